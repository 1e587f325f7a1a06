"""Swarms of real processes on a real board."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from blackboard import Blackboard
from blackboard.errors import AlreadyExists, ConfigurationError, Conflict, NotFound
from blackboard.swarm import SwarmOutcome, SwarmSpec, SwarmStatus, Update, UpdateKind, load_swarm, run_swarm
from blackboard.swarm.assignment import load_function

from .conftest import eventually

TESTS = Path(__file__).parent
Load = Callable[..., SwarmSpec]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = str(tmp_path_factory.mktemp("temporary"))
    monkeypatch.setattr(tempfile, "tempdir", folder)  # logs of runs that are meant to fail are kept there
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv("BLACKBOARD_POLL_INTERVAL", "0.2")


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Writes a swarm file and loads it."""

    def write(agents: str, *, name: str = "inc", rest: str = "", kind: str = "parallel_investigation") -> SwarmSpec:
        text = f"swarm:\n  type: {kind}\n  task: Investigate INC-1234\n{agents}\n{rest}\n"
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return load_swarm(path)

    return write


def agents(**functions: str) -> str:
    """The agents of a file: name and function, or one further option after a blank."""
    lines = ["  agents:"]
    for name, function in functions.items():
        run, _, option = function.partition(" ")
        lines += [f"    - ops/{name}:", f"        focus: about {name}", f"        run: swarm_agents:{run}"]
        lines += [f"        {option}"] if option else []
    return "\n".join(lines)


SYNTHESIS = "  synthesis: {agent: ops/architect, action: Combine, run: 'swarm_agents:report'}"
FAST = "  coordination: {lease: 1s}"


def by_name(outcome: SwarmOutcome) -> dict[str, Any]:
    return {task.name: task for task in outcome.tasks}


def alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def group(pgid: int) -> list[int]:
    """The living processes of a group."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == pgid and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


async def gone(pgids: list[int]) -> None:
    async def check() -> bool:
        return not any(group(pgid) for pgid in pgids)

    await eventually(check)


class Watch:
    """Collects updates, and lets a test act on one."""

    def __init__(self, **actions: Callable[[Update], Any]) -> None:
        self.updates: list[Update] = []
        self.actions = actions

    def __call__(self, update: Update) -> None:
        self.updates.append(update)
        key = update.event.type if update.event else str(update.kind)
        if action := self.actions.get(key.replace(".", "_")):
            action(update)

    def types(self) -> list[str]:
        return [update.event.type for update in self.updates if update.event]

    def pids(self) -> list[int]:
        return [update.pid for update in self.updates if update.kind == UpdateKind.AGENT_STARTED and update.pid]


def kill(update: Update) -> None:
    assert update.event
    os.kill(update.event.data["progress"]["pid"], signal.SIGKILL)


# ------------------------------------------------------------------------------------------------------- both shapes


async def test_a_parallel_investigation_ends_with_its_synthesis(
    load: Load, database_url: str, board: Blackboard
) -> None:
    watch = Watch()
    outcome = await run_swarm(
        load(agents(a="report", b="report"), rest=SYNTHESIS), url=database_url, on_update=watch
    )
    assert outcome.status is SwarmStatus.COMPLETED
    assert outcome.result["by"] == "ops/architect"
    assert outcome.result["inputs"]["ops/a"]["focus"] == "about a"
    assert set(outcome.result["inputs"]) == {"ops/a", "ops/b"}
    assert [task.status for task in outcome.tasks] == ["completed"] * 3
    assert [agent.exits for agent in outcome.agents] == [(0,)] * 3
    assert outcome.logs is None
    assert not outcome.agents[0].log.exists()
    session = await board.session("inc")
    assert session.record.status == "completed"
    assert session.record.outcome == outcome.result
    assert session.record.goal == "Investigate INC-1234"
    assert {finding.agent_id for finding in await session.findings.list()} == {"ops/a", "ops/b"}
    types = watch.types()
    assert types[0] == "session.started"
    assert types[-1] == "session.completed"
    assert types.count("task.completed") == 3
    assert watch.updates[0].kind is UpdateKind.SESSION
    await gone(watch.pids())
    assert json.loads(json.dumps(outcome.to_dict()))["status"] == "completed"


async def test_stages_get_the_outputs_that_they_name_and_can_be_run_again_from_any(
    load: Load, database_url: str, board: Blackboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGE_LOG", str(tmp_path / "log"))
    spec = load(
        "  defaults: {run: 'swarm_agents:stage'}\n"
        "  stages:\n"
        "    - {stage: 1, agent: ops/a, task: first, output: changes}\n"
        "    - {stage: 2, agent: ops/b, task: second, input: changes, output: report}\n"
        "    - {stage: 3, agent: ops/c, task: third, input: [changes, report]}",
        kind="progressive_refinement",
    )
    outcome = await run_swarm(spec, url=database_url)
    first = {"focus": "first", "inputs": {}, "by": "ops/a"}
    second = {"focus": "second", "inputs": {"changes": first}, "by": "ops/b"}
    third = {"focus": "third", "inputs": {"changes": first, "report": second}, "by": "ops/c"}
    assert outcome.status is SwarmStatus.COMPLETED
    assert outcome.result == third
    again = await run_swarm(spec, url=database_url, from_stage=3)
    assert again.session_id != outcome.session_id
    assert again.result == third
    once_more = await run_swarm(spec, url=database_url, from_stage="2", close_session=False)
    assert once_more.result == third
    assert (tmp_path / "log").read_text().split() == ["first", "second", "third", "third", "second", "third"]
    # The session is still open: the same stages run again there, in a new round.
    assert (await board.session("inc")).record.status == "active"
    fourth = await run_swarm(spec, url=database_url, from_stage=3)
    assert fourth.session_id == once_more.session_id
    assert fourth.result == third
    assert len(await (await board.session(fourth.session_id)).tasks.list(type="refine")) == 3


async def test_a_stage_needs_the_results_of_earlier_ones(load: Load, database_url: str) -> None:
    spec = load(
        "  defaults: {run: 'swarm_agents:stage'}\n"
        "  stages:\n"
        "    - {stage: 1, agent: ops/a, task: first, output: changes}\n"
        "    - {stage: 2, agent: ops/b, task: second, input: changes}",
        kind="progressive_refinement",
    )
    with pytest.raises(ConfigurationError, match="needs `changes`"):
        await run_swarm(spec, url=database_url, from_stage=2)
    with pytest.raises(ConfigurationError, match="no stage '7'"):
        await run_swarm(spec, url=database_url, from_stage=7)
    with pytest.raises(NotFound, match="no open session"):
        await run_swarm(spec, url=database_url, resume=True)


async def test_an_open_session_is_not_started_twice(load: Load, database_url: str, board: Blackboard) -> None:
    await board.start("inc")
    with pytest.raises(AlreadyExists):
        await run_swarm(load(agents(a="report")), url=database_url, resume=False)
    joined = await run_swarm(load(agents(a="report")), url=database_url)
    assert joined.result["ops/a"]["by"] == "ops/a"


async def test_two_runners_do_not_share_a_session(load: Load, database_url: str, board: Blackboard) -> None:
    other = await (await board.start("inc")).join("swarm/runner")
    grant = await other.locks.acquire("swarm/runner")
    spec = load(agents(a="report"), rest=FAST)
    with pytest.raises(Conflict, match="being run by another process"):
        await run_swarm(spec, url=database_url)
    run = await Run.start(database_url, spec)
    await run.until(2, kind="session")
    await other.locks.release("swarm/runner", grant.token)
    assert (await run.finish())["status"] == "completed"


async def test_a_signal_ends_the_wait_for_another_runner(load: Load, database_url: str, board: Blackboard) -> None:
    other = await (await board.start("inc")).join("swarm/runner")
    await other.locks.acquire("swarm/runner")
    run = await Run.start(database_url, load(agents(a="report")))
    await run.until(2, kind="session")
    os.kill(run.process.pid, signal.SIGTERM)
    assert await run.process.wait() == 1
    assert run.pids == []


async def test_a_session_that_somebody_else_closes_ends_the_swarm(
    load: Load, database_url: str, board: Blackboard
) -> None:
    closing: list[asyncio.Task[Any]] = []

    async def close() -> None:
        await (await board.session("inc")).close(outcome="enough")

    watch = Watch(task_progressed=lambda _: closing.append(asyncio.create_task(close())))
    outcome = await run_swarm(load(agents(a="hang")), url=database_url, on_update=watch)
    assert outcome.status is SwarmStatus.FAILED
    assert (await board.session("inc")).record.outcome == "enough"
    assert outcome.agents[0].exits == (0,)


async def test_a_display_that_fails_stops_nothing(load: Load, database_url: str) -> None:
    async def broken(update: Update) -> None:
        raise RuntimeError(update.message)

    assert (await run_swarm(load(agents(a="report")), url=database_url, on_update=broken)).status == "completed"


async def test_a_function_that_is_not_async_gets_the_blocking_twin(load: Load, database_url: str) -> None:
    outcome = await run_swarm(load(agents(a="blocking")), url=database_url)
    assert outcome.result["ops/a"] == {
        "by": "ops/a", "type": "blackboard.sync.board", "answer": 42, "same_thread": True, "findings": 1,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- death


async def test_the_task_of_a_killed_agent_is_finished_by_another(load: Load, database_url: str) -> None:
    watch = Watch(task_progressed=kill)
    outcome = await run_swarm(
        load(agents(a="hang_once", b="report"), rest=f"{FAST}\n{SYNTHESIS}"), url=database_url, on_update=watch
    )
    assert outcome.status is SwarmStatus.COMPLETED
    assert by_name(outcome)["ops/a"].result == {"by": "ops/b", "attempt": 2}
    assert outcome.agents[0].exits == (-9,)
    assert "task.lapsed" in watch.types()


async def test_a_killed_agent_starts_again_as_the_file_says(load: Load, database_url: str) -> None:
    outcome = await run_swarm(
        load(agents(a="hang_once restart: 1"), rest=FAST), url=database_url, on_update=Watch(task_progressed=kill)
    )
    assert outcome.result["ops/a"] == {"by": "ops/a", "attempt": 2}
    assert outcome.agents[0].starts == 2
    assert outcome.agents[0].exits == (-9, 0)


async def test_a_swarm_with_nobody_left_ends(load: Load, database_url: str, board: Blackboard) -> None:
    outcome = await run_swarm(
        load(agents(a="hang"), rest=FAST), url=database_url, on_update=Watch(task_progressed=kill)
    )
    assert outcome.status is SwarmStatus.FAILED
    assert "nobody is left" in outcome.problems[0]
    assert outcome.logs is not None
    assert "attempt 1" in outcome.agents[0].log_tail
    session = await board.session("inc")
    assert session.record.status == "failed"
    assert session.record.outcome["tasks"] == {"ops/a": "cancelled"}


async def test_an_agent_that_dies_before_it_begins_does_not_keep_its_task(load: Load, database_url: str) -> None:
    spec = load(agents(a="report env: {CRASH_AT_IMPORT: '1'}", b="report"), rest=FAST)
    outcome = await run_swarm(spec, url=database_url)
    assert outcome.status is SwarmStatus.COMPLETED
    assert by_name(outcome)["ops/a"].result["by"] == "ops/b"
    assert outcome.agents[0].exits == (3,)


async def test_what_is_not_there_ends_the_swarm_at_once(load: Load, database_url: str) -> None:
    spec = load("  agents:\n    - a: {focus: x, run: 'no_module:f'}\n    - b: {focus: x, command: [no-program]}")
    outcome = await run_swarm(spec, url=database_url)
    assert outcome.status is SwarmStatus.FAILED
    assert any("cannot start" in problem for problem in outcome.problems)
    assert 78 in {code for agent in outcome.agents for code in agent.exits}
    tails = "".join(agent.log_tail for agent in outcome.agents)
    assert "No module named 'no_module'" in tails or "there is no such program" in tails


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("asyncio:nothing", "no attribute 'nothing'"),
        ("asyncio:events", "is no function but module"),
        ("asyncio:sleep", "wants delay, which a swarm does not give"),
    ],
)
def test_what_is_no_function_for_a_swarm(reference: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        load_function(reference)


async def test_a_function_that_fails_is_tried_again_and_then_given_up(load: Load, database_url: str) -> None:
    outcome = await run_swarm(
        load(agents(a="fail attempts: 2", b="unstorable", c="report"), rest=SYNTHESIS), url=database_url
    )
    tasks = by_name(outcome)
    assert (tasks["ops/a"].status, tasks["ops/a"].attempts) == ("dead", 2)
    assert tasks["ops/a"].error["code"] == "LookupError"
    assert "raise LookupError" in tasks["ops/a"].error["traceback"]
    assert (tasks["ops/b"].status, tasks["ops/b"].attempts) == ("failed", 1)
    assert "NaN" in tasks["ops/b"].error["message"]
    assert outcome.status is SwarmStatus.COMPLETED
    assert outcome.result["missing"] == {"ops/a": "dead", "ops/b": "failed"}
    assert any("nothing about about a" in problem for problem in outcome.problems)


# ---------------------------------------------------------------------------------------------------------- time-out


async def test_when_the_time_is_up_the_synthesis_works_with_what_there_is(load: Load, database_url: str) -> None:
    watch = Watch()
    spec = load(agents(a="hang", b="report", c="until_cancelled"), rest=f"  coordination: {{timeout: 3s}}\n{SYNTHESIS}")
    outcome = await run_swarm(spec, url=database_url, on_update=watch)
    assert outcome.status is SwarmStatus.COMPLETED
    assert outcome.timed_out
    assert set(outcome.result["inputs"]) == {"ops/b"}
    assert outcome.result["missing"] == {"ops/a": "cancelled", "ops/c": "cancelled"}
    assert [agent.exits for agent in outcome.agents] == [(0,)] * 4
    assert UpdateKind.TIMED_OUT in {update.kind for update in watch.updates}


async def test_what_does_not_let_go_when_the_time_is_up_is_killed(load: Load, database_url: str) -> None:
    limits = "  coordination: {timeout: 2s, lease: 1s}"
    spec = load(agents(a="stuck_loop", b="hang_in_thread"), rest=f"{limits}\n{SYNTHESIS}")
    outcome = await run_swarm(spec, url=database_url, grace=timedelta(seconds=1))
    assert outcome.status is SwarmStatus.COMPLETED
    assert outcome.result["missing"] == {"ops/a": "cancelled", "ops/b": "cancelled"}
    assert outcome.agents[0].exits == (-9,)
    assert outcome.agents[1].exits[0] == 75  # it ended itself to get rid of the thread, and came back


async def test_an_attempt_over_its_own_time_is_tried_again(load: Load, database_url: str) -> None:
    spec = load(agents(a="hang_once timeout: 1s"))
    outcome = await run_swarm(spec, url=database_url)
    assert outcome.result["ops/a"]["attempt"] == 2


# ----------------------------------------------------------------------------------------------------------- signals


class Run:
    """A runner in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.pids: list[int] = []
        self.lines: list[dict[str, Any]] = []

    @classmethod
    async def start(cls, url: str, spec: SwarmSpec, **options: Any) -> Run:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(TESTS / "swarm_main.py"), url, str(spec.path), json.dumps(options),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        return cls(process)

    async def read(self) -> dict[str, Any] | None:
        assert self.process.stdout
        line = await self.process.stdout.readline()
        if not line:
            return None
        found = json.loads(line)
        self.lines.append(found)
        if found["kind"] == "agent_started":
            self.pids.append(found["pid"])
        return found

    async def until(self, count: int, **facts: Any) -> dict[str, Any]:
        while True:
            line = await self.read()
            assert line is not None, "the runner ended before"
            count -= all(line.get(key) == value for key, value in facts.items())
            if not count:
                return line

    async def finish(self) -> dict[str, Any]:
        outcome = await self.until(1, kind="outcome")
        assert await self.process.wait() == 0
        return outcome


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
    spec = load(
        agents(a="ask", b="ask", c="ask", d="ask"), rest=f"  coordination: {{avoid_duplicate_queries: {flag}}}"
    )
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
