"""Unique tasks, deadlines, fallback, ageing."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeAlias

import asyncpg
import pytest

from blackboard import Agent, Blackboard, NewTask, Session, TaskStatus
from blackboard.errors import BlackboardError, InvalidInput
from blackboard.models.tasks import Unique

from .conftest import Clock, Connect

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
SECOND = timedelta(seconds=1)


@pytest.fixture
async def agent(steady: Session) -> Agent:
    return await steady.join("ops/worker", capabilities=["call", "investigate"])


async def kinds(session: Session, subject: uuid.UUID | None = None) -> list[str]:
    page = await session.events.read(subject_id=subject, limit=10_000)
    return [event.type for event in page.events]


async def gated(db: Connection, session: Session) -> bool:
    return bool(await db.fetchval("SELECT gated FROM blackboard.sessions WHERE id = $1", session.id))


# ------------------------------------------------------------------------------------------------------- unique


async def test_a_duplicate_returns_the_task_that_is_there(session: Session, agent: Agent) -> None:
    first = await session.tasks.add("sync", {"n": 1}, unique=Unique(key="customer 7"))
    again = await session.tasks.add("sync", {"n": 2}, unique=Unique(key="customer 7"))
    assert again == first
    assert again.unique_key == "customer 7"
    assert (await session.tasks.add("sync", unique=Unique(key="customer 8"))).id != first.id
    [task, _] = await agent.tasks.claim(5)
    assert (await session.tasks.add("sync", unique=Unique(key="customer 7"))).id == first.id, "it still runs"
    await agent.tasks.complete(task)
    after = await session.tasks.add("sync", unique=Unique(key="customer 7"))
    assert after.id != first.id
    assert (await session.tasks.add("sync", {"n": 1}, unique=Unique(key="customer 7"), id=first.id)).id == first.id


async def test_windows_and_states(session: Session, agent: Agent, clock: Clock) -> None:
    daily = Unique(
        key="report", window=timedelta(days=1), states=(TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.COMPLETED)
    )
    first = await session.tasks.add("report", unique=daily)
    [task] = await agent.tasks.claim()
    await agent.tasks.complete(task)
    assert (await session.tasks.add("report", unique=daily)).id == first.id, "also when it is done"
    assert (await session.tasks.add("report", unique=Unique(key="report"))).id != first.id
    await clock.advance(timedelta(days=1, seconds=1))
    assert (await session.tasks.add("report", unique=daily)).id != first.id


async def test_uniqueness_in_a_batch(session: Session) -> None:
    ids = await session.tasks.add_many(
        [NewTask(type="t", unique=Unique(key=key)) for key in ("b", "a", "b", "a", "c")] + [NewTask(type="t")]
    )
    assert (ids[0], ids[1]) == (ids[2], ids[3])
    assert len(set(ids)) == 4
    assert sum((await session.tasks.count()).values()) == 4
    again = await session.tasks.add_many([NewTask(type="t", unique=Unique(key="c"))])
    assert again == [ids[4]]


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read"])
async def test_of_two_that_add_at_once_one_does(
    session: Session,
    board: Blackboard,
    connect: Connect,
    blocked: Callable[[int], Awaitable[None]],
    isolation: Literal["read_committed", "repeatable_read"],
) -> None:
    one, two = await connect(), await connect()
    first = one.transaction()
    await first.start()
    second = two.transaction(isolation=isolation)
    await second.start()
    await two.fetchval("SELECT count(*) FROM blackboard.tasks")
    a = await (await board.bind(one).session(session.id)).tasks.add("t", unique=Unique(key="k"))
    waiting = asyncio.create_task((await board.bind(two).session(session.id)).tasks.add("t", unique=Unique(key="k")))
    await blocked(two.get_server_pid())
    await first.commit()
    if isolation == "read_committed":
        assert (await waiting).id == a.id
        await second.commit()
    else:
        with pytest.raises(BlackboardError) as caught:
            await waiting
        assert caught.value.retryable
        await second.rollback()
    assert sum((await session.tasks.count()).values()) == 1


async def test_many_that_add_at_once(session: Session, board: Blackboard) -> None:
    keys = [str(n % 5) for n in range(60)]
    found = await asyncio.gather(*(session.tasks.add("t", unique=Unique(key=key)) for key in keys))
    assert len({task.id for task in found}) == 5
    by_key = {(key, task.id) for key, task in zip(keys, found, strict=True)}
    assert len(by_key) == 5


# --------------------------------------------------------------------------------- deadlines, fallback, ageing


async def test_what_was_not_started_in_time_is_cancelled(session: Session, agent: Agent, clock: Clock) -> None:
    at = datetime.now(UTC) + timedelta(minutes=5)
    added = await session.tasks.add("t", expires_at=at)
    later = await session.tasks.add("t", run_at=at - timedelta(seconds=1), expires_at=at)
    child = await session.tasks.add("t", depends_on=[added.id])
    running = await session.tasks.add("t", priority=9, expires_at=at)
    [task] = await agent.tasks.claim()
    assert task.id == running.id
    await clock.advance(timedelta(minutes=5), gap=True)
    assert await agent.tasks.claim(10) == []
    for one in (added, later):
        found = await session.tasks.get(one.id)
        assert (found.status, found.error["code"]) == ("cancelled", "deadline")
    assert (await session.tasks.get(child.id)).status == "cancelled"
    assert (await session.tasks.get(running.id)).status == "running", "it was started in time"
    assert await kinds(session, added.id) == ["task.created", "task.cancelled"]
    with pytest.raises(InvalidInput):
        await session.tasks.add("t", expires_at=datetime(2030, 1, 1))
    for run_at in (at, at + timedelta(hours=1)):
        with pytest.raises(InvalidInput, match="expires_at must be later than run_at"):
            await session.tasks.add("t", run_at=run_at, expires_at=at)
        with pytest.raises(InvalidInput, match="expires_at must be later than run_at"):
            await session.tasks.add_many([NewTask(type="t"), NewTask(type="t", run_at=run_at, expires_at=at)])


async def test_who_only_looks_tends_what_is_due(session: Session, agent: Agent, clock: Clock, db: Connection) -> None:
    waiting = await session.join("ops/specialist")
    late = await session.tasks.add("t", run_at=datetime.now(UTC) + timedelta(seconds=59), fallback=None,
                                   expires_at=datetime.now(UTC) + timedelta(minutes=1))  # fmt: skip
    left = await session.tasks.add("t", assigned_to=waiting.id, fallback=timedelta(minutes=2))
    look = "SELECT ready FROM blackboard.look_for_tasks(ARRAY[$1::uuid], $2, '{}')"
    assert await db.fetchval(look, session.id, agent.id) is False
    await clock.advance(timedelta(minutes=2))
    assert await db.fetchval(look, session.id, agent.id) is True
    assert (await session.tasks.get(late.id)).status == "cancelled"
    assert (await session.tasks.get(left.id)).status == "pending"


async def test_an_expired_task_is_not_claimed_even_before_it_is_swept(
    session: Session, agent: Agent, db: Connection
) -> None:
    added = await session.tasks.add("t", expires_at=datetime.now(UTC) - timedelta(minutes=5))
    async with db.transaction():
        # Nobody sweeps while this row is locked.
        await db.execute("SELECT FROM blackboard.liveness FOR UPDATE")
        for gate in (False, True):
            if gate:
                await session.tasks.pause(type="other")
            assert await agent.tasks.claim() == []
            assert await agent.tasks.claim_by_id(added.id) is None
        assert (await session.tasks.get(added.id)).status == "pending"


async def test_an_assigned_task_falls_back_in_time(session: Session, agent: Agent, clock: Clock) -> None:
    waiting = await session.join("ops/specialist")
    added = await session.tasks.add("t", assigned_to=waiting.id, fallback=timedelta(minutes=2))
    kept = await session.tasks.add("t", assigned_to=waiting.id)
    assert await agent.tasks.claim() == []
    await clock.advance(timedelta(minutes=2))
    [task] = await agent.tasks.claim(5)
    assert (task.id, task.assigned_to) == (added.id, agent.id)
    assert (await session.tasks.get(kept.id)).status == "assigned"
    with pytest.raises(InvalidInput):
        await session.tasks.add("t", fallback=SECOND)


async def test_an_assigned_task_falls_back_when_its_agent_has_gone(
    session: Session, agent: Agent, clock: Clock, db: Connection
) -> None:
    lease = uuid.uuid4()
    await db.execute("SELECT blackboard.start_lease($1, 'x', 1, interval '30 seconds')", lease)
    await session.agents.join("ops/silent", lease_id=lease)
    await session.agents.join("ops/leaver", lease_id=lease)
    silent = await session.tasks.add("t", assigned_to="ops/silent", fallback=timedelta(hours=2))
    left = await session.tasks.add("t", assigned_to="ops/leaver", fallback=timedelta(hours=2))
    unknown = await session.tasks.add("t", assigned_to="ops/unknown", fallback=timedelta(hours=2))
    await session.agents.leave("ops/leaver")
    await clock.advance(2 * SECOND)
    assert [task.id for task in await agent.tasks.claim(5)] == [left.id]
    await clock.advance(31 * SECOND)
    assert await agent.tasks.claim(5) or await agent.tasks.claim(5)
    assert (await session.tasks.get(silent.id)).assigned_to == agent.id
    assert (await session.tasks.get(unknown.id)).status == "assigned", "who never was there may still come"


async def test_fallback_counts_from_when_it_is_ready(session: Session, agent: Agent, clock: Clock) -> None:
    await session.join("ops/specialist")
    first = await session.tasks.add("t", priority=9)
    added = await session.tasks.add(
        "t", assigned_to="ops/specialist", fallback=timedelta(minutes=2), depends_on=[first.id]
    )
    [task] = await agent.tasks.claim()
    await clock.advance(timedelta(minutes=10), gap=True)
    await agent.tasks.complete(task)
    assert await agent.tasks.claim() == []
    assert (await session.tasks.get(added.id)).status == "assigned"
    await clock.advance(timedelta(minutes=2, seconds=5), gap=True)
    [task] = await agent.tasks.claim()
    assert task.id == added.id


async def test_low_priority_is_not_starved_with_ageing(session: Session, agent: Agent, clock: Clock) -> None:
    record = await session.configure(ageing=timedelta(minutes=1))
    assert record.ageing == timedelta(minutes=1)
    low = await session.tasks.add("t", priority=2)
    for _ in range(4):
        await session.tasks.add("t", priority=5)
        [task] = await agent.tasks.claim()
        assert task.id != low.id
        await agent.tasks.complete(task)
        await clock.advance(timedelta(minutes=1))
    found = await session.tasks.get(low.id)
    assert found.priority == 5, "a step for each minute of waiting, counted at the last claim"
    await session.tasks.add_many([NewTask(type="t", priority=5)])
    [task] = await agent.tasks.claim()
    assert (task.id, task.priority) == (low.id, 6)
    assert "task.updated" in await kinds(session, low.id)
    assert (await session.configure(ageing=timedelta(0))).ageing is None


async def test_what_a_limit_holds_ages_too(session: Session, agent: Agent, clock: Clock) -> None:
    await session.configure(ageing=timedelta(minutes=1))
    await session.limits.set("one", max_running=1)
    await session.tasks.add("t", priority=10)
    low = await session.tasks.add("t", priority=2)
    [task] = await agent.tasks.claim(5)
    await clock.advance(timedelta(minutes=3), gap=True)
    await session.tasks.add("t", priority=4)
    assert await agent.tasks.claim(5) == []
    await agent.tasks.complete(task)
    [task] = await agent.tasks.claim(5)
    assert (task.id, task.priority) == (low.id, 5)


async def test_ageing_off_costs_nothing(session: Session, agent: Agent, db: Connection, clock: Clock) -> None:
    await session.configure(ageing=timedelta(minutes=1))
    await session.configure(ageing=timedelta(0))
    assert not await gated(db, session)
    low = await session.tasks.add("t", priority=2)
    await clock.advance(timedelta(minutes=10))
    other = await session.tasks.add("t", priority=9)
    assert [task.id for task in await agent.tasks.claim()] == [other.id]
    assert (await session.tasks.get(low.id)).priority == 2
