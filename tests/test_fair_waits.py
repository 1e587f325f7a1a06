"""What waits, waits for what it should: expiry, ageing, windows, limits beside long transactions, joins on old snapshots."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import asyncpg
import psycopg
import pytest

from blackboard import Blackboard, NewTask, Session, Stage
from blackboard.models.tasks import TaskStatus

from . import test_cli_grants
from .conftest import Clock

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# The fixtures that make roles.
_cli = vars(test_cli_grants)["_cli"]
_role = vars(test_cli_grants)["_role"]


async def test_what_was_started_in_time_does_not_expire(steady: Session, clock: Clock) -> None:
    agent = await steady.join("a")
    in_an_hour = datetime.now(UTC) + timedelta(hours=1)
    started = await steady.tasks.add("t", expires_at=in_an_hour)
    handed_back = await steady.tasks.add("t", expires_at=in_an_hour)
    waiting = await steady.tasks.add("t", expires_at=in_an_hour)
    held = {task.id: task for task in await agent.tasks.claim(2)}
    await agent.tasks.fail(held[started.id], "the real reason")
    await agent.tasks.release(held[handed_back.id])
    await clock.advance(timedelta(hours=2))
    ready = {task.id for task in await agent.tasks.claim(5)}
    assert ready == {started.id, handed_back.id}
    record = await steady.tasks.get(waiting.id)
    assert (record.status, (record.error or {})["code"]) == (TaskStatus.CANCELLED, "deadline")
    assert (await steady.tasks.get(started.id)).attempt == 2


async def test_what_was_started_in_time_expires_in_no_session_of_several_and_behind_no_limit(
    steady: Session, board: Blackboard, clock: Clock
) -> None:
    gated = await board.start("gated")
    await gated.limits.set("ten", max_running=10)
    in_an_hour = datetime.now(UTC) + timedelta(hours=1)
    agents = [await session.join("a") for session in (steady, gated)]
    for agent in agents:
        await agent.tasks.add("t", expires_at=in_an_hour)
        [task] = await agent.tasks.claim()
        await agent.tasks.fail(task, "no")
    await clock.advance(timedelta(hours=2))
    for agent in agents:
        [task] = await agent.tasks.claim()
        assert task.attempt == 2
        assert {reason.code for reason in (await agent.session.tasks.why(task.id)).reasons} == {"running"}


async def test_a_held_task_ages_from_when_it_was_ready(steady: Session, clock: Clock) -> None:
    agent = await steady.join("a")
    await steady.configure(ageing=timedelta(hours=1))
    await steady.limits.set("one", max_running=1)
    await steady.tasks.add("busy", priority=10)
    await agent.tasks.claim()
    late = await steady.tasks.add("late", priority=0, run_at=datetime.now(UTC) + timedelta(hours=5))
    await clock.advance(timedelta(hours=5, minutes=1))
    await agent.tasks.claim()
    await clock.advance(timedelta(minutes=5))
    await agent.tasks.claim()
    record = await steady.tasks.get(late.id)
    assert (record.status, record.priority) == (TaskStatus.HELD, 0)
    await clock.advance(timedelta(hours=1))
    await agent.tasks.claim()
    assert (await steady.tasks.get(late.id)).priority == 1


@pytest.mark.fresh_database
async def test_windows_of_days_have_days_of_24_hours(database_url: str, connect: Callable[..., object]) -> None:
    owner: Connection = await connect()  # type: ignore[misc]
    name = await owner.fetchval("SELECT current_database()")
    await owner.execute(f"ALTER DATABASE {name} SET timezone = 'Europe/Berlin'")
    # An hour before its clocks go back.
    await owner.execute(
        "CREATE OR REPLACE FUNCTION blackboard.now() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE "
        "AS $$ SELECT timestamptz '2026-10-25 00:30+00' $$"
    )
    async with Blackboard.open(database_url) as board:
        session = await board.start("s")
        agent = await session.join("a")
        budget = await session.budgets.set("tokens", 10, window=timedelta(days=1))
        assert budget.window_start is not None
        assert budget.resets_at == budget.window_start + timedelta(days=1)
        assert [b.resets_at for b in await session.budgets.list()] == [budget.resets_at]
        await session.limits.set("r", rate_count=1, rate_period=timedelta(days=1))
        await session.tasks.add("t")
        second = await session.tasks.add("t")
        await agent.tasks.claim(2)
        assert (await session.tasks.get(second.id)).run_at == datetime(2026, 10, 26, 0, 30, tzinfo=UTC)


async def test_a_limit_comes_to_count_what_a_long_transaction_had_claimed(
    session: Session, board: Blackboard, connect: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blackboard.repository.limits._PATIENCE", timedelta(0))
    first, second = await session.join("first"), await session.join("second")
    await session.tasks.add_many([_task() for _ in range(4)])
    other: Connection = await connect()  # type: ignore[misc]
    transaction = other.transaction()
    await transaction.start()
    held = await board.bind(other).agent(first).tasks.claim()
    await session.limits.set("one", max_running=1)
    # Nothing is known of the first one's task yet.
    [also] = await second.tasks.claim(5)
    await transaction.commit()
    await second.tasks.complete(also)
    await second.tasks.claim(5)
    assert await second.tasks.claim(5) == []
    [usage] = await session.limits.usage("one")
    assert usage.running == 1
    assert await session.limits.check() == []
    await first.tasks.complete(held[0])
    assert len(await second.tasks.claim(5)) == 1
    assert await session.limits.check() == []


async def test_a_limit_that_is_set_in_a_transaction_counts_after_it(
    session: Session, board: Blackboard, connect: Callable[..., object]
) -> None:
    agent = await session.join("a")
    await session.tasks.add_many([_task() for _ in range(4)])
    other: Connection = await connect()  # type: ignore[misc]
    transaction = other.transaction()
    await transaction.start()
    bound = await board.bind(other).session(session.id)
    await bound.limits.set("one", max_running=1)
    [before] = await agent.tasks.claim()
    await transaction.commit()
    while await agent.tasks.claim():
        pass
    assert await session.limits.check() == []
    [usage] = await session.limits.usage("one")
    assert usage.running == 1
    await agent.tasks.complete(before)


def _task() -> NewTask:
    return NewTask(type="t")


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_a_join_on_an_old_snapshot_takes_a_lease_that_is_younger(
    session: Session, database_url: str, connect: Callable[..., object], isolation: str
) -> None:
    await session.tasks.add("t")
    connection: Connection = await connect()  # type: ignore[misc]
    async with Blackboard.open(database_url) as board, connection.transaction(isolation=isolation):  # type: ignore[arg-type]
        assert await connection.fetchval("SELECT count(*) FROM blackboard.leases") >= 0
        agent = await (await board.bind(connection).session(session.id)).join("late")
        [task] = await agent.tasks.claim()
        await agent.tasks.complete(task)
    assert (await session.tasks.get(task.id)).status is TaskStatus.COMPLETED


async def test_ids_that_the_database_makes_are_in_order_of_time(session: Session, db: Connection) -> None:
    for number in range(3):
        await session.tasks.add("t", number)
        await db.execute(
            "INSERT INTO blackboard.tasks (session_id, type, parameters) VALUES ($1, 't', to_jsonb($2::int))",
            session.id, number + 10,
        )  # fmt: skip
        await session.flows.create(f"flow-{number}", [Stage("only", "t", number + 20)])
        await db.execute("SELECT pg_sleep(0.002)")
    records = await session.tasks.list()
    assert [record.parameters for record in records] == [0, 10, 20, 1, 11, 21, 2, 12, 22]
    assert all(record.id.version == 7 for record in records)
    assert await session.tasks.list(newest=True, limit=4) == records[:-5:-1]


@pytest.mark.fresh_database
@pytest.mark.parametrize(
    "call",
    [
        "free_slots(ARRAY[gen_random_uuid()], ARRAY[gen_random_uuid()])",
        "try_counters(gen_random_uuid(), '{}', '{}')",
        "age_tasks(gen_random_uuid(), '1 hour', now(), 5)",
        "tend_gates_now(gen_random_uuid(), now())",
        "tend_gates_briefly(gen_random_uuid(), now())",
    ],
)
def test_an_agent_cannot_call_what_only_the_board_does(role: Callable[[str], str], call: str) -> None:
    with psycopg.connect(role("agent")) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(f"SELECT blackboard.{call}")
