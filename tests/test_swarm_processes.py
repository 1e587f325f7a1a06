"""The processes of a swarm: signals, killed runners, programs of any kind, queries that several ask."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from blackboard import Blackboard
from blackboard.swarm import SwarmStatus, run_swarm

from .conftest import eventually
from .swarmkit import FAST, TESTS, Load, Run, Watch, agents, alive, by_name, gone, load, surroundings

__all__ = ["load", "surroundings"]  # fixtures


# ----------------------------------------------------------------------------------------------------------- signals


async def test_ctrl_c_pauses_the_session_and_running_again_goes_on(
    load: Load, database_url: str, board: Blackboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGE_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("HANG_WHILE", str(tmp_path / "hang"))
    (tmp_path / "hang").touch()
    spec = load(
        "  defaults: {run: 'swarm_agents:stage_or_hang'}\n"
        "  stages:\n"
        "    - {agent: ops/a, task: first, output: changes}\n"
        "    - {agent: ops/b, task: second, input: changes}",
        kind="progressive_refinement",
    )
    run = await Run.start(database_url, spec)
    await run.until(1, type="task.progressed")
    os.kill(run.process.pid, signal.SIGINT)
    outcome = await run.finish()
    assert outcome["status"] == "interrupted"
    assert [agent["exits"] for agent in outcome["agents"]] == [[0], [0]]
    await gone(run.pids)
    session = await board.session("inc")
    assert session.record.status == "paused"
    assert [task.status for task in await session.tasks.list(type="refine")].count("pending") == 1
    (tmp_path / "hang").unlink()
    again = await run_swarm(spec, url=database_url, resume=True)
    assert again.session_id == session.id
    assert again.status is SwarmStatus.COMPLETED
    assert again.result["inputs"]["changes"]["focus"] == "first"
    assert (tmp_path / "log").read_text().split() == ["first", "second"]


async def test_nothing_is_left_of_a_killed_runner(
    load: Load, database_url: str, board: Blackboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    program = json.dumps([sys.executable, str(TESTS / "swarm_agents.py"), "sleeper"])
    spec = load(
        agents(a="hang", b="until_cancelled", c="stuck_loop")
        + f"\n    - ops/d:\n        focus: x\n        command: {program}"
    )
    run = await Run.start(database_url, spec)
    await run.until(3, type="task.progressed")

    async def written() -> str:
        with contextlib.suppress(FileNotFoundError):
            return (tmp_path / "pids").read_text()
        return ""

    pids = [int(pid) for pid in (await eventually(written)).split()]
    assert all(alive(pid) for pid in pids)
    os.kill(run.process.pid, signal.SIGKILL)
    await run.process.wait()
    await gone(run.pids)
    assert not any(alive(pid) for pid in pids)
    assert len(run.pids) == 4
    # What was held went back at once, except where the event loop was blocked; running it again goes on.
    session = await board.session("inc")
    statuses = [task.status for task in await session.tasks.list(type="investigate")]
    assert statuses.count("pending") == 3


async def test_a_killed_host_leaves_no_program_behind(
    load: Load, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    program = json.dumps([sys.executable, str(TESTS / "swarm_agents.py"), "sleeper"])
    spec = load(f"  agents:\n    - ops/d:\n        focus: x\n        command: {program}", rest=FAST)
    watch = Watch()
    running = asyncio.create_task(run_swarm(spec, url=database_url, on_update=watch))

    async def written() -> str:
        with contextlib.suppress(FileNotFoundError):
            return (tmp_path / "pids").read_text()
        return ""

    pids = [int(pid) for pid in (await eventually(written)).split()]
    os.kill(watch.pids()[0], signal.SIGKILL)
    outcome = await running
    assert outcome.status is SwarmStatus.FAILED
    await gone(watch.pids())
    assert not any(alive(pid) for pid in pids)


async def test_a_cancelled_run_leaves_nothing(load: Load, database_url: str) -> None:
    progressed = asyncio.Event()
    watch = Watch(task_progressed=lambda _: progressed.set())
    running = asyncio.create_task(run_swarm(load(agents(a="hang")), url=database_url, on_update=watch))
    await progressed.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await gone(watch.pids())


async def test_agents_that_are_stopped_while_they_start_end_by_themselves(load: Load, database_url: str) -> None:
    run = await Run.start(database_url, load(agents(a="hang", b="hang")))
    await run.until(2, kind="agent_started")
    # Their interpreters have not come to any line of ours by now.
    os.kill(run.process.pid, signal.SIGINT)
    outcome = await run.finish()
    assert outcome["status"] == "interrupted"
    assert [agent["exits"] for agent in outcome["agents"]] == [[0], [0]]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_at_the_very_end_of_a_process_does_not_kill_it(
    load: Load, database_url: str, tmp_path: Path, signum: int
) -> None:
    # Modules go last of all, when the interpreter has taken away its handlers of signals.
    (tmp_path / f"ends_with_{signum}.py").write_text(
        "import atexit, os\n"
        f"def ask(say=os.write, kill=os.kill, pid=os.getpid()):\n    say(2, b'asked\\n')\n    kill(pid, {signum})\n"
        "class Last:\n    def __init__(self):\n        self.ask = ask\n"
        "    def __del__(self):\n        self.ask()\n"
        "atexit.register(ask)\nlast = Last()\nasync def report():\n    return 'done'\n"
    )
    spec = load(agents(a="x").replace("swarm_agents:x", f"ends_with_{signum}:report"))
    outcome = await run_swarm(spec, url=database_url, logs=tmp_path / "logs")
    assert outcome.result == {"ops/a": "done"}
    assert outcome.agents[0].exits == (0,)
    assert outcome.agents[0].log.read_text().count("asked\n") == 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_signal_before_an_agent_is_told_anything_is_not_lost(database_url: str, board: Blackboard) -> None:
    session = await board.start("inc")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "blackboard.swarm.host",
        stdin=asyncio.subprocess.PIPE, start_new_session=True, env={**os.environ, "BLACKBOARD_URL": database_url},
    )  # fmt: skip
    assert process.stdin is not None

    async def handled() -> bool:
        status = Path(f"/proc/{process.pid}/status").read_text()
        [caught] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
        return bool(int(caught, 16) & 1 << signal.SIGTERM - 1)

    await eventually(handled)
    os.kill(process.pid, signal.SIGTERM)
    plan: dict[str, Any] = {
        "agent_id": "ops/a", "session_id": str(session.id), "capabilities": [], "expertise": [], "lease": 10.0,
        "stop_seconds": 1.0, "paths": [], "program": {}, "tasks": {}, "share_findings": True,
    }  # fmt: skip
    process.stdin.write(json.dumps(plan).encode() + b"\n")
    assert await asyncio.wait_for(process.wait(), 20) == 0


# ---------------------------------------------------------------------------------------------------------- programs


async def test_a_program_is_told_everything_in_its_environment(
    load: Load, database_url: str, board: Blackboard, tmp_path: Path
) -> None:
    words = ["{python}", str(TESTS / "swarm_agents.py"), "show", "{focus}", "--config={mcp_config}", "{other} {{focus}"]
    spec = load(
        "  context: {release: v1.2.3}\n  agents:\n    - ops/d:\n        focus: look here\n"
        f"        command: {json.dumps(words)}\n        env: {{EXTRA: more}}"
    )
    outcome = await run_swarm(spec, url=database_url, logs=tmp_path / "logs")
    assert outcome.status is SwarmStatus.COMPLETED, outcome
    said = outcome.result["ops/d"]
    told = said["environment"]
    session = await board.session("inc")
    task = outcome.tasks[0]
    assert said["arguments"] == ["look here", f"--config={said['config_path']}", "{other} {look here"]
    assert told["SWARM_SESSION"] == str(session.id)
    assert told["SWARM_FOCUS"] == "look here"
    assert told["SWARM_TASK_ID"] == str(task.task_id)
    assert told["SWARM_TASK_TOKEN"].startswith("1.")
    assert told["AGENT_ID"] == "ops/d"
    assert told["BLACKBOARD_URL"] == database_url
    assert said["extra"] == "more"
    assert said["mcp_found"]
    server = said["config"]["mcpServers"]["agent-swarm"]
    assert server["command"] == "mcp-agent-swarm"
    assert server["env"] == {
        "SWARM_BACKEND": "postgres",
        "BLACKBOARD_URL": database_url,
        "BLACKBOARD_LEASE_TERM": "10.0",
        "SWARM_SESSION": str(session.id),
        "AGENT_ID": "ops/d",
        "SWARM_SHARE_FINDINGS": "1",
    }
    assert said["config_mode"] == "0o600"
    assert not Path(said["config_path"]).parent.exists()
    assert said["assignment"]["focus"] == "look here"
    assert said["assignment"]["context"] == {"release": "v1.2.3"}
    assert said["assignment"]["target"] == "Investigate INC-1234"
    assert outcome.logs == tmp_path / "logs"
    assert "a line for the log" in outcome.agents[0].log.read_text()


async def test_programs_end_their_tasks_themselves_or_badly(load: Load, database_url: str) -> None:
    itself, badly = (
        json.dumps([sys.executable, str(TESTS / "swarm_agents.py"), name]) for name in ("complete_itself", "exit_badly")
    )
    spec = load(
        f"  agents:\n    - a: {{focus: x, command: {itself}}}\n    - b: {{focus: x, attempts: 1, command: {badly}}}"
    )
    outcome = await run_swarm(spec, url=database_url)
    tasks = by_name(outcome)
    assert tasks["a"].result == {"by": "itself"}
    assert tasks["b"].status == "dead"
    assert "exit code 7: the disk is full" in tasks["b"].error["message"]


# ------------------------------------------------------------------------------------------------ queries, findings


@pytest.mark.parametrize("shared", [True, False])
async def test_a_query_that_many_ask_runs_once(
    load: Load, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    monkeypatch.setenv("QUERY_LOG", str(tmp_path / "queries"))
    monkeypatch.setenv("QUERY_ASKERS", "4")
    flag = json.dumps(shared)
    spec = load(agents(a="ask", b="ask", c="ask", d="ask"), rest=f"  coordination: {{avoid_duplicate_queries: {flag}}}")
    outcome = await run_swarm(spec, url=database_url)
    ran = (tmp_path / "queries").read_text().split()
    answers = [outcome.result[name]["answer"] for name in ("ops/a", "ops/b", "ops/c", "ops/d")]
    if shared:
        assert len(ran) == 1
        assert answers == ran * 4
    else:
        assert sorted(ran) == answers


async def test_findings_can_be_kept_apart(load: Load, database_url: str) -> None:
    spec = load(agents(a="see", b="see"), rest="  coordination: {share_findings: false}")
    outcome = await run_swarm(spec, url=database_url)
    assert [outcome.result[name] for name in ("ops/a", "ops/b")] == [
        {"mine": ["ops/a"], "all": 1}, {"mine": ["ops/b"], "all": 1},
    ]  # fmt: skip
