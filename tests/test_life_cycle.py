"""How attempts end: what counts, whose a task is that goes back, and what is refused."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import Agent, Session, Stage, TaskRecord
from blackboard.errors import InvalidTransition, LeaseLost
from blackboard.store.statements import statements

from .conftest import Clock, Connect, eventually

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

HAND_BACK = statements("engine")["release_tasks"]


@pytest.fixture
async def agent(session: Session) -> Agent:
    return await session.join("w")


@pytest.fixture
async def other(session: Session) -> Agent:
    return await session.join("other")


async def hand_back(
    db: Connection, *tasks: TaskRecord, unstarted: bool = True, delay: timedelta | None = None
) -> dict[uuid.UUID, str]:
    """What a worker does with tasks that it has not begun."""
    rows = await db.fetch(
        HAND_BACK.numbered,
        *HAND_BACK.arguments(
            {
                "session_id": tasks[0].session_id,
                "ids": [task.id for task in tasks],
                "claim_ids": [task.claim_id for task in tasks],
                "attempts": [task.attempt for task in tasks],
                "delays": [delay for _ in tasks],
                "errors": [None for _ in tasks],
                "agent_id": tasks[0].assigned_to,
                "unstarted": [unstarted for _ in tasks],
            }
        ),
    )
    return {row["id"]: row["status"] for row in rows}


# -------------------------------------------------------------------------------------------------------------- backoff


async def test_an_attempt_that_does_not_count_lengthens_no_backoff(
    session: Session, steady: Session, db: Connection, clock: Clock
) -> None:
    agent = await steady.join("w")
    minute = timedelta(minutes=1)
    ids = [(await session.tasks.add("t", retry_delay=minute, timeout=timedelta(hours=1))).id for _ in range(3)]
    for _ in range(12):
        for task in await agent.tasks.claim(3):
            await agent.tasks.release(task)
    one, many, late = sorted(await agent.tasks.claim(3), key=lambda task: ids.index(task.id))
    assert (one.attempt, one.released) == (13, 12)
    await agent.tasks.fail(one, "x")
    await db.execute(
        "SELECT blackboard.fail_tasks($1, $2, $3, $4, NULL, '{retry}', NULL, NULL, 'w')",
        session.id, [many.id], [many.claim_id], [many.attempt],
    )  # fmt: skip
    now = await db.fetchval("SELECT blackboard.now()")
    for task in (one, many):
        run_at = (await session.tasks.get(task.id)).run_at
        assert run_at is not None
        assert minute * 0.4 < run_at - now < minute * 1.6, "as after a first failure"
    await clock.advance(timedelta(hours=2))
    await db.execute("SELECT blackboard.sweep_leases(10)")
    now = await db.fetchval("SELECT blackboard.now()")
    swept = await session.tasks.get(late.id)
    assert (swept.status, swept.error["code"]) == ("scheduled", "timeout")
    assert swept.run_at is not None
    assert minute * 0.4 < swept.run_at - now < minute * 1.6


# ------------------------------------------------------------------------------------------------------ whose a task is


async def test_a_task_never_begun_stays_with_its_agent(
    session: Session, agent: Agent, other: Agent, db: Connection
) -> None:
    mine = await session.tasks.add("t", assigned_to="w")
    anyone = await session.tasks.add("t")
    for attempt in (1, 2):
        claimed = await agent.tasks.claim(2)
        assert [task.attempt for task in claimed] == [attempt, attempt]
        assert await hand_back(db, *claimed) == {mine.id: "assigned", anyone.id: "pending"}
    assert [task.id for task in await other.tasks.claim(2)] == [anyone.id]
    back = await session.tasks.get(mine.id)
    assert (back.assignee, back.attempt, back.released) == ("w", 2, 2)
    [begun] = await agent.tasks.claim()
    released = await agent.tasks.release(begun)
    assert (released.status, released.assignee) == ("pending", None), "a first attempt that was begun was the first one"
    assert [task.id for task in await other.tasks.claim()] == [mine.id]


async def test_a_task_of_anybody_is_nobodys_when_it_comes_back(
    session: Session, agent: Agent, other: Agent, db: Connection, clock: Clock
) -> None:
    """Whoever claims a task is named by its row; that makes it nobody's own."""
    ids = {(await session.tasks.add("t")).id for _ in range(3)}
    later, begun_later, blocked = await agent.tasks.claim(3)
    assert await hand_back(db, later, delay=timedelta(seconds=1)) == {later.id: "scheduled"}
    assert await hand_back(db, begun_later, unstarted=False, delay=timedelta(seconds=1)) == {
        begun_later.id: "scheduled"
    }
    assert await hand_back(db, blocked) == {blocked.id: "pending"}
    parent = await session.tasks.add("p", assigned_to="other")
    await db.execute(
        "INSERT INTO blackboard.task_dependencies (session_id, task_id, depends_on_id) VALUES ($1, $2, $3)",
        session.id, blocked.id, parent.id,
    )  # fmt: skip
    [task] = await other.tasks.claim()
    await other.tasks.complete(task)
    assert (await session.tasks.get(blocked.id)).status == "pending"
    await clock.advance(timedelta(seconds=2))
    rejoined = await session.join("third")
    assert {task.id for task in await rejoined.tasks.claim(3)} == ids


async def test_never_begun_it_stays_so_through_whatever_holds_it(
    session: Session, agent: Agent, other: Agent, db: Connection, clock: Clock
) -> None:
    flow = await session.flows.create("f", [Stage("a", "t", assigned_to="w")])
    staged = flow.stage("a").task_id
    waiting = (await session.tasks.add("t", assigned_to="w")).id
    later = (await session.tasks.add("t", assigned_to="w")).id
    claimed = {task.id: task for task in await agent.tasks.claim(3)}
    assert await hand_back(db, claimed[staged]) == {staged: "assigned"}
    assert await hand_back(db, claimed[waiting]) == {waiting: "assigned"}
    assert await hand_back(db, claimed[later], delay=timedelta(seconds=1)) == {later: "scheduled"}
    await session.flows.pause(flow.id)
    parent = await session.tasks.add("p")
    await db.execute(
        "INSERT INTO blackboard.task_dependencies (session_id, task_id, depends_on_id) VALUES ($1, $2, $3)",
        session.id, waiting, parent.id,
    )  # fmt: skip
    statuses = [(await session.tasks.get(one)).status.value for one in (staged, waiting, later)]
    assert statuses == ["held", "blocked", "scheduled"]
    await session.flows.resume(flow.id)
    [task] = await other.tasks.claim(3)
    await other.tasks.complete(task)
    await clock.advance(timedelta(seconds=2))
    assert task.id == parent.id
    assert await (await session.join("third")).tasks.claim(3) == []
    rejoined = await session.join("w")
    assert {task.id for task in await rejoined.tasks.claim(3)} == {staged, waiting, later}


async def test_never_begun_and_asked_to_stop(session: Session, agent: Agent, db: Connection) -> None:
    added = await session.tasks.add("t", assigned_to="w")
    [task] = await agent.tasks.claim()
    await session.tasks.cancel(added.id)
    assert await hand_back(db, task) == {task.id: "cancelled"}
    ended = await session.tasks.get(added.id)
    assert (ended.status, ended.assigned_to, ended.error["code"]) == ("cancelled", "w", "cancelled")


async def test_whoever_handed_it_back_has_it_no_more(session: Session, agent: Agent, db: Connection) -> None:
    await session.tasks.add("t", assigned_to="w")
    [task] = await agent.tasks.claim()
    assert await hand_back(db, task) == await hand_back(db, task) == {task.id: "assigned"}
    with pytest.raises(LeaseLost):
        await agent.tasks.complete(task, "late")
    with pytest.raises(LeaseLost):
        await agent.tasks.fail(task, "late")
    assert [late.result for late in await session.tasks.late_results(task.id)] == ["late"]
    [again] = await agent.tasks.claim()
    await agent.tasks.complete(again, 1)
    assert await hand_back(db, task) == {task.id: "assigned"}


# ------------------------------------------------------------------------------------------------------------ giving up


async def test_what_a_task_died_of_is_not_cancelled_away(session: Session, agent: Agent) -> None:
    await session.tasks.add("t", max_attempts=1)
    [task] = await agent.tasks.claim()
    dead = await agent.tasks.fail(task, "the reason")
    with pytest.raises(InvalidTransition, match="blackboard deadletter discard") as refused:
        await session.tasks.cancel(task.id)
    assert refused.value.details["status"] == "dead"
    assert await session.tasks.get(task.id) == dead
    given_up = await session.tasks.discard(task.id)
    assert (given_up.status, given_up.error["last"]["message"]) == ("cancelled", "the reason")
    assert (await session.tasks.cancel(task.id)).status == "cancelled", "which it is"


async def test_dead_after_it_was_asked_to_stop(session: Session, agent: Agent, db: Connection) -> None:
    await session.tasks.add("t")
    [task] = await agent.tasks.claim()
    await session.tasks.cancel(task.id)
    await db.execute(
        "SELECT blackboard.fail_tasks($1, $2, $3, $4, NULL, '{dead}', NULL, NULL, 'w')",
        session.id, [task.id], [task.claim_id], [task.attempt],
    )  # fmt: skip
    assert (await session.tasks.cancel(task.id)).status == "dead", "the same call again"


# ------------------------------------------------------------------------------------------------------- what is told


@pytest.mark.parametrize("verb", ["fail", "release"])
async def test_an_end_is_told_with_its_commit(session: Session, agent: Agent, connect: Connect, verb: str) -> None:
    """The single verbs do as those of many do, but whoever calls them need not send the hint."""
    heard: list[str] = []
    listener, caller = await connect(), await connect()
    await session.tasks.add("t", max_attempts=1)
    [task] = await agent.tasks.claim()
    await session.tasks.cancel(task.id)

    def hear(*told: Any) -> None:
        heard.append(str(told[-1]))

    await listener.add_listener("blackboard", hear)
    arguments: list[Any] = [session.id, task.id, task.claim_id, task.attempt]
    async with caller.transaction():
        if verb == "fail":
            await caller.execute("SELECT blackboard.fail_task($1, $2, $3, $4, '\"x\"', true, NULL, 'w')", *arguments)
        else:
            await caller.execute("SELECT blackboard.release_task($1, $2, $3, $4, 'w')", *arguments)
        assert await caller.fetchval("SHOW xmlbinary") == "base64", "the flag of the hot verbs ends with them"

    async def told() -> bool:
        return f"{session.id} tasks.changed" in heard

    await eventually(told)
    assert (await session.tasks.get(task.id)).status == "cancelled"
