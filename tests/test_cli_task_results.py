"""The result of a task, waited for; in both clients and the command line."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from blackboard import Agent, Blackboard, Session, TaskStatus
from blackboard.errors import BlackboardError, NotFound, TaskNotCompleted, WaitNotAllowed, WaitTimeout
from blackboard.ids import new_id
from blackboard.sync import Blackboard as SyncBlackboard

from .clitools import Cli
from .conftest import Connect

SOON = timedelta(seconds=20)
ESC = chr(27)


@pytest.fixture
async def agent(session: Session) -> Agent:
    return await session.join("ops/worker")


@pytest.fixture(name="cli")
def _cli(database_url: str) -> Cli:
    return Cli(database_url)


async def claimed(agent: Agent, **options: Any) -> Any:
    added = await agent.tasks.add("t", **options)
    task = await agent.tasks.claim_by_id(added.id)
    assert task is not None
    return task


async def ended(agent: Agent, how: str) -> Any:
    """A task that ended so."""
    if how == "dead":
        task = await claimed(agent, max_attempts=1)
        await agent.tasks.fail(task, {"code": "TimeoutError", "message": "no answer from db-1"})
    elif how == "failed":
        task = await claimed(agent)
        await agent.tasks.fail(task, {"code": "TimeoutError", "message": "no answer from db-1"}, retry=False)
    else:
        task = await agent.tasks.add("t")
        await agent.tasks.cancel(task.id, "not needed")
    return task


async def test_a_result_comes_when_the_task_is_completed(session: Session, agent: Agent) -> None:
    task = await claimed(agent)
    with pytest.raises(WaitTimeout) as late:
        await session.tasks.result(task.id, timedelta(milliseconds=10))
    assert late.value.id == str(task.id)
    waiting = asyncio.create_task(session.tasks.result(task.id, SOON))
    await agent.tasks.complete(task, {"n": [1, None]})
    assert await waiting == {"n": [1, None]}
    assert await session.tasks.result(str(task.id), timedelta(0)) == {"n": [1, None]}
    empty = await claimed(agent)
    await agent.tasks.complete(empty)
    assert await session.tasks.result(empty.id) is None
    with pytest.raises(NotFound):
        await session.tasks.result(new_id(), SOON)


@pytest.mark.parametrize(
    ("how", "code", "message", "advice"),
    [
        ("dead", "TimeoutError", "no answer from db-1", "redrive"),
        ("failed", "TimeoutError", "no answer from db-1", "redrive"),
        ("cancelled", "cancelled", "not needed", ""),
    ],
)
async def test_a_task_that_ended_otherwise_has_none(
    session: Session, agent: Agent, cli: Cli, how: str, code: str, message: str, advice: str
) -> None:
    task = await ended(agent, how)
    with pytest.raises(TaskNotCompleted) as caught:
        await session.tasks.result(task.id, SOON)
    error = caught.value
    assert isinstance(error, BlackboardError)
    assert error.to_dict() == {
        "code": "task_not_completed", "message": error.message, "retryable": False, "id": str(task.id), "status": how,
        "error_code": code, "error_message": message,
    }  # fmt: skip
    assert f"is {how} and has no result ({code}: {message})" in error.message
    assert ("redrive" in error.message) is bool(advice)
    assert cli("task", "result", task.id.hex[-8:], "--json", code=1).error == error.to_dict()
    # It has ended, which is all that wait says.
    assert cli("task", "wait", task.id.hex[-8:], "--json").json["status"] == how


async def test_an_error_written_by_hand_may_be_anything(
    session: Session, agent: Agent, connect: Connect, cli: Cli
) -> None:
    db: asyncpg.Connection[asyncpg.Record] = await connect()
    for error in (7, "x", {}, {"code": {"deep": 1}, "message": f"{ESC}[2J"}):
        task = await claimed(agent)
        await agent.tasks.fail(task, "x", retry=False)
        await db.execute("UPDATE blackboard.tasks SET error = $2 WHERE id = $1", task.id, json.dumps(error))
        with pytest.raises(TaskNotCompleted):
            await session.tasks.result(task.id, SOON)
        assert ESC not in cli("task", "result", str(task.id), code=1).stderr


async def test_a_bound_handle_does_not_wait(board: Blackboard, session: Session, connect: Connect) -> None:
    added = await session.tasks.add("t")
    connection = await connect()
    async with connection.transaction():
        bound = await board.bind(connection).session(session.id)
        with pytest.raises(WaitNotAllowed):
            await bound.tasks.result(added.id)


def test_the_blocking_twin(database_url: str) -> None:
    with SyncBlackboard.open(database_url) as board:
        session = board.start("s")
        agent = session.join("ops/a")
        added = session.tasks.add("t")
        with pytest.raises(WaitTimeout):
            session.tasks.result(added.id, timedelta(milliseconds=10))
        [task] = agent.tasks.claim()
        agent.tasks.complete(task, 7)
        assert session.tasks.result(added.id, SOON) == 7
        other = session.tasks.add("t")
        session.tasks.cancel(other.id)
        with pytest.raises(TaskNotCompleted):
            session.tasks.result(other.id, SOON)


async def test_the_command_line(session: Session, agent: Agent, cli: Cli) -> None:
    task = await claimed(agent)
    short = task.id.hex[-8:]
    assert cli("task", "wait", short, "--timeout", "0s", "--json", code=5).error["code"] == "wait_timeout"
    assert cli("task", "result", short, "--timeout", "10ms", code=5).stdout == ""
    assert cli("task", "result", short, "--timeout", "soon", "--json", code=2).error["field"] == "timeout"
    await agent.tasks.complete(task, {"text": f"a{ESC}[2J\u009b"})
    assert cli("task", "result", short, "--json").json == {"text": f"a{ESC}[2J\u009b"}
    shown = cli("task", "result", short, "--timeout", "5s").stdout
    assert ESC not in shown
    assert "\u009b" not in shown
    found = cli("task", "wait", short, "--json").json
    assert (found["status"], found["result"]["text"][0]) == (TaskStatus.COMPLETED, "a")
    assert "completed" in cli("task", "wait", short, "--timeout", "5s").stdout
    missing = "00000000-0000-7000-8000-000000000000"
    for verb in ("wait", "result"):
        assert cli("task", verb, missing, "--json", code=3).error["code"] == "not_found"
