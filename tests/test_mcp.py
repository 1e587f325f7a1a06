"""``mcp-agent-swarm`` over stdio: a client of the official SDK, server processes, a real database."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import pytest
from mcp import MCPError

from blackboard import Session
from blackboard.store.embedded import EmbeddedServer

from .conftest import eventually
from .mcp_client import COMMAND, Speaker, environment, spawned

Db: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def pid_of(db: Db, agent_id: str) -> int:
    """The server process in which that agent lives, as its lease says."""
    return await db.fetchval(
        "SELECT l.pid FROM blackboard.memberships m JOIN blackboard.leases l ON l.id = m.lease_id "
        "WHERE m.agent_id = $1 AND l.lapsed_at IS NULL",
        agent_id,
    )


async def test_two_agents_investigate_and_decide(session: Session, database_url: str) -> None:
    first, second = "ops/deploy-validator", "ops/rollback-advisor"
    async with (
        spawned(first, database_url, SWARM_SESSION=session.name, SWARM_CAPABILITIES="check_deployment") as one,
        spawned(second, database_url, BLACKBOARD_POLL_INTERVAL="60") as two,
    ):
        briefing = await one("join_session")
        assert (briefing["session"], briefing["goal"]) == (session.name, "a test")
        assert briefing["capabilities"] == ["check_deployment"]
        joined = await two("join_session", session=session.name, capabilities=["analyze"])
        await one("add_task", type="analyze", capability="analyze", parameters={"target": "checkout"})
        posted = await one(
            "post_finding",
            content="deployment v1.2.3 at 10:15 UTC",
            type="deployment",
            confidence=0.9,
            evidence=[{"source": "deployments.log", "query": "v1.2", "result": "10:15"}],
        )
        assert not posted["corroborated"]
        read = await two("get_findings", since=joined["cursor"])
        assert [(f["author"], f["content"]) for f in read["findings"]] == [(first, "deployment v1.2.3 at 10:15 UTC")]
        assert (await two("get_findings", since=read["next_cursor"]))["findings"] == []
        again = await two("post_finding", content="Deployment  v1.2.3 at 10:15 utc", type="deployment")
        assert (again["corroborated"], again["finding_id"]) == (True, posted["finding_id"])

        assert (await one("claim_task"))["claimed"] is False  # it cannot do that kind
        claimed = await two("claim_task")
        assert claimed["task"]["parameters"] == {"target": "checkout"}
        done = await two("complete_task", task_id=claimed["task"]["id"], token=claimed["token"], result={"leak": True})
        assert done["status"] == "completed"

        proposed = await two(
            "propose_action",
            type="modify",
            target="checkout",
            parameters={"action": "rollback", "version": "v1.2.2"},
            reason="connections leak",
        )
        assert sorted(proposed["must_vote"]) == [first, second]
        ballot = {"proposal_id": proposed["proposal_id"], "choice": "yes", "confidence": 0.9}
        running = await one("vote", **ballot, reason="error rate 5x")
        assert (running["closed"], running["proposal"]["tally"]["votes_for"]) == (False, 1)
        final = await two("vote", **ballot, reason="seen before")
        assert (final["closed"], final["decision"]) == (True, "rollback")
        assert final["actions"] == {proposed["action_id"]: "approved"}
        started = await two("start_action", action_id=proposed["action_id"])
        finished = await two(
            "finish_action", action_id=proposed["action_id"], token=started["token"], succeeded=True, result="ok"
        )
        assert finished["status"] == "completed"
    history = [(event.actor, event.type) for event in (await session.events.read()).events]
    for expected in [
        (first, "finding.reported"), (second, "finding.corroborated"), (second, "task.assigned"),
        (second, "task.completed"), (second, "action.proposed"), (first, "vote.cast"), (second, "action.completed"),
    ]:  # fmt: skip
        assert expected in history


async def test_a_killed_agents_task_goes_to_the_other(session: Session, database_url: str, db: Db) -> None:
    await session.tasks.add("investigate", {"target": "checkout"})
    term = {"BLACKBOARD_LEASE_TERM": "1", "SWARM_SESSION": session.name}
    async with spawned("ops/survivor", database_url, **term) as survivor:
        await survivor("join_session")
        held: dict[str, Any] = {}

        async def until_killed() -> None:
            async with spawned("ops/victim", database_url, **term) as victim:
                held.update(await victim("claim_task"))
                os.kill(await pid_of(db, "ops/victim"), signal.SIGKILL)
                with pytest.raises(MCPError):  # the connection is gone
                    await victim("view")

        await until_killed()
        assert held["claimed"]
        taken = await survivor("claim_task", wait_seconds=30)
        assert taken["claimed"]
        assert taken["task"]["id"] == held["task"]["id"]
        assert taken["task"]["attempt"] == 2
        # What the dead one knew would not help it now.
        text, error = await survivor.refused(
            "complete_task", task_id=held["task"]["id"], token=held["token"], result="too late"
        )
        assert error["code"] == "lease_lost"
        assert "swarm_claim_task" in text
        late = await session.tasks.late_results(held["task"]["id"])
        assert [one.result for one in late] == ["too late"]
        await survivor("complete_task", task_id=taken["task"]["id"], token=taken["token"], result="in time")
    assert (await session.tasks.get(UUID(held["task"]["id"]))).result == "in time"


@pytest.mark.parametrize("how", ["closed", "terminated"])
async def test_an_orderly_end_gives_everything_back_at_once(
    session: Session, database_url: str, db: Db, how: str
) -> None:
    task = await session.tasks.add("investigate")
    async with spawned("ops/a", database_url, SWARM_SESSION=session.name, BLACKBOARD_LEASE_TERM="600") as agent:
        assert (await agent("claim_task"))["claimed"]
        if how == "terminated":
            os.kill(await pid_of(db, "ops/a"), signal.SIGTERM)
            await eventually(lambda: _is_pending(session, task.id))
    await eventually(lambda: _is_pending(session, task.id))
    assert not (await session.agents.get("ops/a")).present


async def _is_pending(session: Session, task_id: UUID) -> bool:
    return (await session.tasks.get(task_id)).status.value == "pending"


async def test_sigterm_ends_a_process_whose_client_stays(session: Session, database_url: str) -> None:
    server = await asyncio.create_subprocess_exec(
        COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment("ops/a", database_url, SWARM_SESSION=session.name)},
    )
    assert server.stdin is not None
    assert server.stdout is not None
    request = (
        b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},'
        b'"clientInfo":{"name":"test","version":"1"}}}\n'
    )
    server.stdin.write(request)
    answer = await asyncio.wait_for(server.stdout.readline(), 30)
    assert b'"agent-swarm"' in answer
    server.send_signal(signal.SIGTERM)
    out, err = await asyncio.wait_for(server.communicate(), 20)
    assert (server.returncode, out, err) == (0, b"", b"")


async def test_wait_wakes_within_a_second(session: Session, database_url: str) -> None:
    other = await session.join("ops/other")
    # Polls would come too late: it is the hint that wakes.
    async with spawned("ops/a", database_url, SWARM_SESSION=session.name, BLACKBOARD_POLL_INTERVAL="300") as agent:
        await agent("join_session")
        heard = asyncio.Event()

        async def tell(progress: float, total: float | None, message: str | None) -> None:
            heard.set()

        waiting = asyncio.create_task(
            agent.client.call_tool(
                "swarm_wait", {"timeout_seconds": 60, "topics": ["finding.*"]}, progress_callback=tell
            )
        )
        await asyncio.wait_for(heard.wait(), 10)  # progress: the call is under way
        await other.tasks.add("investigate")  # not asked for
        await other.findings.report("errors rise", type="errors")
        began = time.monotonic()
        result = await waiting
        assert time.monotonic() - began < 1
        answer = result.structured_content
        assert [(e["type"], e["actor"]) for e in answer["events"]] == [("finding.reported", "ops/other")]
        empty = await agent("wait", cursor=answer["cursor"], timeout_seconds=0.05)
        assert (empty["happened"], empty["events"]) == (False, [])
        # Where no cursor is given, the connection goes on where it was.
        await other.findings.report("errors fall", type="errors")
        assert [e["type"] for e in (await agent("wait"))["events"]] == ["finding.reported"]


async def test_a_cancelled_claim_hands_its_task_back(session: Session, database_url: str) -> None:
    async with spawned("ops/a", database_url, SWARM_SESSION=session.name) as agent:
        await agent("join_session")
        heard = asyncio.Event()

        async def tell(progress: float, total: float | None, message: str | None) -> None:
            heard.set()

        waiting = asyncio.create_task(
            agent.client.call_tool("swarm_claim_task", {"wait_seconds": 60}, progress_callback=tell)
        )
        await asyncio.wait_for(heard.wait(), 10)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        task = await session.tasks.add("investigate")
        # The server serves on, and nobody took the task in the name of the call that was given up.
        taken = await agent("claim_task", wait_seconds=30)
        assert (taken["task"]["id"], taken["task"]["attempt"]) == (str(task.id), 1)


async def test_dotted_names_are_listed_on_request_and_both_always_work(session: Session, database_url: str) -> None:
    async with spawned(
        "ops/a", database_url, dotted=True, SWARM_SESSION=session.name, SWARM_TOOL_NAMES="dotted"
    ) as agent:
        names = {tool.name for tool in (await agent.client.list_tools()).tools}
        assert {"swarm.join_session", "swarm.post_finding", "swarm.get_findings", "swarm.claim_task"} <= names
        assert {"swarm.complete_task", "swarm.propose_action", "swarm.vote", "swarm.wait", "swarm.view"} <= names
        assert agent.client.instructions is not None
        assert "swarm.claim_task" in agent.client.instructions
        assert "swarm.wait" in await agent.text("join_session")
        assert not (await agent.client.call_tool("swarm_view", {})).is_error


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Where an embedded server may put its data, also as root; it is stopped in the end."""
    made = Path(tempfile.mkdtemp(prefix="bbmcp-"))
    made.chmod(0o711)
    yield made / "data"
    EmbeddedServer(made / "data").stop()
    shutil.rmtree(made)


@pytest.mark.lifecycle
async def test_the_embedded_server_is_the_default(data_dir: Path, tmp_path: Path) -> None:
    settings = {"BLACKBOARD_DATA_DIR": str(data_dir), "BLACKBOARD_IDLE_TIMEOUT": "60"}
    log = tmp_path / "errors"
    async with spawned("ops/a", None, errors=log, **settings) as agent:
        assert (await agent("join_session", session="INC-1", create_if_missing=True))["session_started"]
        assert not (await agent("post_finding", content="it works", type="note"))["corroborated"]
    assert log.read_text() == ""
    async with spawned("ops/b", None, **settings) as agent:
        found = await agent("join_session", session="INC-1")
        assert [finding["summary"] for finding in found["findings"]] == ["it works"]


@pytest.mark.parametrize(
    ("variables", "arguments", "code", "says"),
    [
        ({}, [], 2, "AGENT_ID is not set"),
        ({"AGENT_ID": ""}, [], 2, "AGENT_ID is not set"),
        ({"AGENT_ID": "two words"}, [], 2, "none blank"),
        ({"AGENT_ID": "${AGENT_ID}"}, [], 2, "does not expand variables"),
        ({"AGENT_ID": "a", "SWARM_BACKEND": "redis"}, [], 2, "SWARM_BACKEND=postgres"),
        ({"AGENT_ID": "a", "SWARM_TOOL_NAMES": "spaces"}, [], 2, "underscore"),
        ({"AGENT_ID": "a", "BLACKBOARD_LEASE_TERM": "never"}, [], 2, "lease_term"),
        ({"AGENT_ID": "a", "BLACKBOARD_URL": "mysql://x/y"}, [], 2, "postgresql://"),
        ({"AGENT_ID": "a", "DATABASE_URL": "postgresql://u@127.0.0.1:1/x"}, [], 4, "server_unreachable"),
        ({"BLACKBOARD_URL": "postgresql://u@127.0.0.1:1/x"}, ["--agent-id", "a"], 4, "server_unreachable"),
        ({"AGENT_ID": "a"}, ["--nonsense"], 2, "--nonsense"),
    ],
)
def test_a_bad_environment_is_named(variables: dict[str, str], arguments: list[str], code: int, says: str) -> None:
    done = subprocess.run(
        [COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": os.environ["PATH"], "XDG_CONFIG_HOME": "/nonexistent", **variables},
    )
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_database_without_a_board_is_named(server_url: str) -> None:
    done = subprocess.run(
        [COMMAND], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60,
        env={"PATH": os.environ["PATH"], **environment("a", server_url)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (4, "")
    assert "blackboard db upgrade" in done.stderr


def test_help_and_version_answer_without_a_board() -> None:
    env = {"PATH": os.environ["PATH"]}
    shown = subprocess.run([COMMAND, "--help"], capture_output=True, text=True, check=True, timeout=60, env=env)
    for word in ("BLACKBOARD_URL", "AGENT_ID", "SWARM_TOOL_NAMES", "exit codes", "mcpServers"):
        assert word in shown.stdout
    version = subprocess.run([COMMAND, "--version"], capture_output=True, text=True, check=True, timeout=60, env=env)
    assert version.stdout.startswith("mcp-agent-swarm ")


async def test_a_database_that_goes_away_is_an_error_and_not_the_end(
    session: Session, database_url: str, db: Db
) -> None:
    async with spawned("ops/a", database_url, SWARM_SESSION=session.name) as agent:
        await agent("join_session")
        await _cut(db)
        assert await eventually(lambda: _answers(agent))


async def _cut(db: Db) -> None:
    await db.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )


async def _answers(agent: Speaker) -> bool:
    result = await agent.raw("post_finding", content="still here", type="note", idempotency_key="k")
    if result.is_error:
        assert result.structured_content["error"]["code"] == "server_unreachable"
        assert "idempotency_key" in result.structured_content["error"]["next"]
    return not result.is_error


async def test_a_timed_out_claim_is_honest(session: Session, database_url: str) -> None:
    async with spawned("ops/a", database_url, SWARM_SESSION=session.name) as agent:
        began = time.monotonic()
        nothing = await agent("claim_task", wait_seconds=0.2)
        assert nothing["claimed"] is False
        assert timedelta(seconds=0.2) <= timedelta(seconds=time.monotonic() - began)


def test_nothing_but_the_protocol_reaches_standard_output(database_url: str) -> None:
    program = (
        "import os\n"
        "from blackboard.mcp import serving\n"
        "make = serving.make_server\n"
        "def noisy(*arguments):\n"
        "    print('noise of ours', flush=True)\n"
        "    os.system('echo noise of a child')\n"
        "    return make(*arguments)\n"
        "serving.make_server = noisy\n"
        "from blackboard.mcp.server import main\n"
        "main([])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=60, env={"PATH": os.environ["PATH"], **environment("a", database_url)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.split("\n") == ["noise of ours", "noise of a child", ""]


def test_without_the_extra_it_says_what_to_install() -> None:
    program = "import sys; sys.modules['mcp'] = None; from blackboard.mcp.server import main; main([])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60,
        env={"PATH": os.environ["PATH"], "AGENT_ID": "a"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'agent-blackboard[mcp]'" in done.stderr
