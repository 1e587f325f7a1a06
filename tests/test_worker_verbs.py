"""What a worker's verbs do by themselves: complete and claim, outcomes in batches, dead letters, the attempt log."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import Agent, Blackboard, NewTask, Session, TaskRecord, sync
from blackboard.errors import InvalidInput, InvalidTransition, LeaseLost, NotFound, SessionClosed

from .conftest import Clock, Connect

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def agent(session: Session) -> Agent:
    return await session.join("ops/worker")


async def claimed(agent: Agent, session: Session, **options: Any) -> TaskRecord:
    await session.tasks.add("t", **options)
    [task] = await agent.tasks.claim()
    return task


# ------------------------------------------------------------------------------------------- complete and claim


async def test_the_next_task_comes_with_the_end_of_the_last_one_freed_dependants_too(
    session: Session, agent: Agent, db: Connection
) -> None:
    first = await session.tasks.add("first")
    second = await session.tasks.add("second", depends_on=[first.id])
    [task] = await agent.tasks.claim()
    [after] = await agent.tasks.complete_and_claim(task, {"n": 1})
    assert after.id == second.id and after.status == "running"
    assert await agent.tasks.complete_and_claim(after) == []
    assert (await session.tasks.get(first.id)).result == {"n": 1}
    # One transaction: the freed one and its claim have the completion's.
    txs = await db.fetch(
        "SELECT DISTINCT tx FROM blackboard.events WHERE (subject_id = $1 AND type = 'task.completed') "
        "OR (subject_id = $2 AND type = 'task.assigned')", first.id, second.id,
    )  # fmt: skip
    assert len(txs) == 1


async def test_repeating_complete_and_claim_gives_the_same_tasks(session: Session, agent: Agent) -> None:
    task = await claimed(agent, session)
    ids = await session.tasks.add_many([NewTask(type="t") for _ in range(3)])
    claim_id = uuid.uuid4()
    again = [await agent.tasks.complete_and_claim(task, 1, limit=2, claim_id=claim_id) for _ in range(2)]
    assert [[one.id for one in batch] for batch in again] == [ids[:2], ids[:2]]


async def test_complete_and_claim_of_a_lost_task_keeps_its_result_aside_and_claims_nothing(
    session: Session, agent: Agent
) -> None:
    task = await claimed(agent, session)
    await agent.tasks.release(task)
    await session.tasks.add("t")
    with pytest.raises(LeaseLost, match="kept aside"):
        await agent.tasks.complete_and_claim(task, "late")
    [late] = await session.tasks.late_results(task.id)
    assert late.result == "late"
    assert await session.tasks.list(status="running") == []


async def test_complete_and_claim_after_the_lease_lapsed_goes_on_under_a_new_one(
    session: Session, agent: Agent, db: Connection
) -> None:
    task = await claimed(agent, session)
    await session.tasks.add("t")
    # Lapsed, and not yet swept: the completion is still accepted, the claim is not.
    await db.execute("UPDATE blackboard.leases SET lapsed_at = blackboard.now()")
    [after] = await agent.tasks.complete_and_claim(task, "in time")
    assert (await session.tasks.get(task.id)).result == "in time"
    assert after.lease_id != task.lease_id


async def test_complete_and_claim_of_a_paused_session_completes(session: Session, agent: Agent) -> None:
    task = await claimed(agent, session)
    await session.tasks.add("t")
    await session.pause()
    assert await agent.tasks.complete_and_claim(task) == []
    assert (await session.tasks.get(task.id)).status == "completed"
    with pytest.raises(InvalidInput):
        await agent.tasks.complete_and_claim(task, limit=0)


async def test_complete_and_claim_in_a_callers_transaction_rolls_back_with_it(
    board: Blackboard, session: Session, agent: Agent, db: Connection
) -> None:
    task = await claimed(agent, session)
    await session.tasks.add("t")
    transaction = db.transaction()
    await transaction.start()
    assert len(await board.bind(db).agent(agent).tasks.complete_and_claim(task)) == 1
    await transaction.rollback()
    assert (await session.tasks.get(task.id)).status == "running"
    assert len(await session.tasks.list(status="pending")) == 1


# ------------------------------------------------------------------------------------------ outcomes in batches


def arrays(tasks: list[TaskRecord]) -> tuple[list[uuid.UUID], list[uuid.UUID | None], list[int]]:
    return [task.id for task in tasks], [task.claim_id for task in tasks], [task.attempt for task in tasks]


FAIL = (
    "SELECT id, status FROM blackboard.fail_tasks($1, $2::uuid[], $3::uuid[], $4::int[], $5::text[]::jsonb[], "
    "$6::text[], $7::interval[], $8::int[], 'ops/worker')"
)


async def test_many_failures_in_one_call_go_where_they_belong(session: Session, agent: Agent, db: Connection) -> None:
    await session.tasks.add_many([NewTask(type="t", parameters={"n": n}) for n in range(5)])
    tasks = await agent.tasks.claim(5)
    await session.tasks.cancel(tasks[3].id)
    await agent.tasks.complete(tasks[4])
    args = (
        session.id, *arrays(tasks), ['{"code": "x", "message": "m"}'] * 5,
        ["retry", "failed", "dead", "retry", "retry"], [timedelta(hours=1)] * 5, [None, None, None, None, 1],
    )  # fmt: skip
    where = {row["id"]: row["status"] for row in await db.fetch(FAIL, *args)}
    assert [where[task.id] for task in tasks] == ["scheduled", "failed", "dead", "cancelled", None]
    # A repetition is no refusal, and changes nothing.
    before = await db.fetchval("SELECT max(seq) FROM blackboard.events")
    where = {row["id"]: row["status"] for row in await db.fetch(FAIL, *args)}
    assert [where[task.id] for task in tasks] == ["scheduled", "failed", "dead", "cancelled", None]
    assert await db.fetchval("SELECT max(seq) FROM blackboard.events") == before
    [late] = await session.tasks.late_results(tasks[4].id)
    assert late.error["code"] == "x"
    first = await session.tasks.get(tasks[0].id)
    assert first.error == {"code": "x", "message": "m", "attempt": 1, "agent_id": "ops/worker"}
    assert first.run_at is not None and first.max_attempts == 5


async def test_a_request_to_cancel_that_comes_with_the_failure_is_seen(
    session: Session, agent: Agent, connect: Connect, blocked: Callable[[int], Awaitable[None]]
) -> None:
    task = await claimed(agent, session)
    canceller, failer = await connect(), await connect()
    transaction = canceller.transaction()
    await transaction.start()
    await canceller.fetch("SELECT * FROM blackboard.cancel_task($1, $2, '', 'x')", session.id, task.id)
    failing = asyncio.ensure_future(
        failer.fetch(FAIL, session.id, *arrays([task]), ['{"code": "x"}'], ["retry"], [None], [None])
    )
    await blocked(failer.get_server_pid())
    await transaction.commit()
    assert [row["status"] for row in await failing] == ["cancelled"]


RELEASE = (
    "SELECT id, status FROM blackboard.release_tasks($1, $2::uuid[], $3::uuid[], $4::int[], $5::interval[], "
    "$6::text[]::jsonb[], 'ops/worker')"
)


async def test_many_releases_in_one_call(session: Session, agent: Agent, db: Connection) -> None:
    await session.tasks.add_many([NewTask(type="t") for _ in range(4)])
    tasks = await agent.tasks.claim(4)
    await session.tasks.cancel(tasks[2].id)
    await agent.tasks.complete(tasks[3])
    args = (session.id, *arrays(tasks), [None, timedelta(hours=1), None, None], [None, '{"code": "later"}', None, None])
    where = {row["id"]: row["status"] for row in await db.fetch(RELEASE, *args)}
    assert [where.get(task.id) for task in tasks] == ["pending", "scheduled", "cancelled", None]
    # The same call again tells the same, and changes nothing.
    assert {row["id"]: row["status"] for row in await db.fetch(RELEASE, *args)} == where
    later = await session.tasks.get(tasks[1].id)
    assert (later.released, later.error["code"]) == (1, "later")
    events = (await session.events.read(subject_id=tasks[0].id)).events
    assert (events[-1].type, events[-1].actor) == ("task.released", "ops/worker")
    assert events[-1].data["released"] == 1


async def test_one_look_tells_which_sessions_have_work(board: Blackboard, db: Connection) -> None:
    sessions = {name: await board.start(name) for name in ("empty", "ready", "mine", "other", "paused", "later")}
    await sessions["ready"].tasks.add("t", capability="a")
    await sessions["mine"].join("w")
    await sessions["mine"].tasks.add("t", assigned_to="w")
    await sessions["other"].tasks.add("t", capability="b")
    await sessions["paused"].tasks.add("t")
    await sessions["paused"].pause()
    now = await db.fetchval("SELECT blackboard.now()")
    await sessions["later"].tasks.add("t", run_at=now + timedelta(hours=1))
    names = {session.id: name for name, session in sessions.items()}
    rows = await db.fetch("SELECT * FROM blackboard.look_for_tasks($1, 'w', ARRAY['a'])", list(names))
    assert {names[row["session_id"]] for row in rows if row["ready"]} == {"ready", "mine"}
    due = {names[row["session_id"]]: row["due_in"] for row in rows if row["due_in"] is not None}
    assert set(due) == {"later"} and timedelta(minutes=59) < due["later"] <= timedelta(hours=1)


# ------------------------------------------------------------------------------------------------- dead letters


async def die(agent: Agent, session: Session, type_: str, code: str) -> uuid.UUID:
    task = await session.tasks.add(type_, max_attempts=1)
    [held] = await agent.tasks.claim()
    await agent.tasks.fail(held, {"code": code, "message": f"{code} happened"})
    return task.id


async def test_dead_letters_are_listed_the_latest_first(session: Session, agent: Agent) -> None:
    ids = [
        await die(agent, session, "a", "timeout"),
        await die(agent, session, "b", "x"),
        await die(agent, session, "a", "x"),
    ]
    assert [task.id for task in await session.tasks.dead_letters()] == ids[::-1]
    assert [task.id for task in await session.tasks.dead_letters(type="a")] == [ids[2], ids[0]]
    assert [task.id for task in await session.tasks.dead_letters(error_code="x", limit=1)] == [ids[2]]


async def test_dead_letters_are_redriven_by_filter(
    session: Session, agent: Agent, clock: Clock, connect: Connect
) -> None:
    ids = [
        await die(agent, session, "a", "timeout"),
        await die(agent, session, "b", "x"),
        await die(agent, session, "a", "x"),
    ]
    assert await session.tasks.redrive_many(type="a", dry_run=True) == [ids[0], ids[2]]
    assert len(await session.tasks.dead_letters()) == 3, "a dry run changes nothing"
    assert await session.tasks.redrive_many(older_than=timedelta(hours=1)) == []
    await clock.advance(timedelta(hours=2))
    # One that somebody else is at is left to him.
    other = await connect()
    transaction = other.transaction()
    await transaction.start()
    await other.execute("SELECT 1 FROM blackboard.tasks WHERE id = $1 FOR UPDATE", ids[0])
    assert await session.tasks.redrive_many(type="a", older_than=timedelta(hours=1)) == [ids[2]]
    await transaction.rollback()
    again = await session.tasks.get(ids[2])
    assert (again.status, again.error, again.attempt - again.released) == ("pending", None, 0)
    assert (await session.events.read(subject_id=ids[2])).events[-1].type == "task.redriven"
    assert await session.tasks.redrive_many(error_code="timeout") == [ids[0]]
    assert await session.tasks.redrive_many(limit=1) == [ids[1]]
    for wrong in ({"limit": 0}, {"limit": 10_001}, {"older_than": timedelta(-1)}):
        with pytest.raises(InvalidInput):
            await session.tasks.redrive_many(**wrong)
    await session.close()
    with pytest.raises(SessionClosed):
        await session.tasks.redrive_many()


async def test_a_discarded_task_is_cancelled_and_keeps_what_it_died_of(session: Session, agent: Agent) -> None:
    dead = await die(agent, session, "a", "x")
    for _ in range(2):
        task = await agent.tasks.discard(dead, "customer is gone")
        assert (task.status, task.error["code"], task.error["message"]) == (
            "cancelled",
            "discarded",
            "customer is gone",
        )
        assert task.error["last"]["code"] == "x"
    last = (await session.events.read(subject_id=dead)).events[-1]
    assert (last.type, last.actor) == ("task.cancelled", "ops/worker")
    alive = await session.tasks.add("t")
    with pytest.raises(InvalidTransition, match="only dead tasks"):
        await session.tasks.discard(alive.id)
    with pytest.raises(NotFound):
        await session.tasks.discard(uuid.uuid4())
    assert await session.tasks.dead_letters() == []


# ------------------------------------------------------------------------------------------------ the attempt log


async def test_the_attempt_log_tells_every_attempt(session: Session, agent: Agent, clock: Clock) -> None:
    task = await session.tasks.add("t", max_attempts=2, retry_delay=timedelta())
    assert await session.tasks.attempts(task.id) == []
    [held] = await agent.tasks.claim()
    await agent.tasks.release(held)
    [held] = await agent.tasks.claim()
    await agent.tasks.fail(held, ValueError("no"))
    [held] = await agent.tasks.claim()
    assert [one.outcome for one in await session.tasks.attempts(task.id)] == ["released", "retried", "running"]
    await agent.tasks.fail(held, "really no")
    log = await session.tasks.attempts(task.id)
    assert [(one.attempt, one.outcome) for one in log] == [(1, "released"), (2, "retried"), (3, "dead")]
    assert "ValueError: no" in log[1].error["traceback"]
    assert log[2].error["message"] == "really no"
    assert all(one.ended_at is not None and one.ended_at >= one.started_at for one in log)
    await session.tasks.redrive(task.id)
    await session.tasks.cancel(task.id)
    assert len(await session.tasks.attempts(task.id)) == 3, "nobody ran what was cancelled"
    with pytest.raises(NotFound):
        await session.tasks.attempts(uuid.uuid4())


def test_the_blocking_twin_has_them_too(database_url: str) -> None:
    with sync.Blackboard.open(database_url) as board:
        session = board.start("twin")
        agent = session.join("w")
        session.tasks.add_many([NewTask(type="t", max_attempts=1) for _ in range(2)])
        [task] = agent.tasks.claim()
        [after] = agent.tasks.complete_and_claim(task, 1)
        agent.tasks.fail(after, "no")
        [dead] = session.tasks.dead_letters()
        assert [one.outcome for one in session.tasks.attempts(dead.id)] == ["dead"]
        assert session.tasks.redrive_many() == [dead.id]
