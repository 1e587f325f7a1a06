"""What holds tasks back: pauses, limits, uniqueness, deadlines, fallback, ageing."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import asyncpg
import pytest

from blackboard import Agent, Blackboard, NewTask, Session
from blackboard.errors import CONSTRAINTS, AlreadyExists, BlackboardError, IdempotencyConflict, InvalidInput, NotFound
from blackboard.models.tasks import Unique

from .conftest import Clock, Connect

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
SECOND = timedelta(seconds=1)


@pytest.fixture
async def agent(session: Session) -> Agent:
    return await session.join("ops/worker", capabilities=["call", "investigate"])


async def kinds(session: Session, subject: uuid.UUID | None = None) -> list[str]:
    page = await session.events.read(subject_id=subject, limit=10_000)
    return [event.type for event in page.events]


async def gated(db: Connection, session: Session) -> bool:
    return bool(await db.fetchval("SELECT gated FROM blackboard.sessions WHERE id = $1", session.id))


# ------------------------------------------------------------------------------------------------------- pauses


async def test_a_paused_type_is_held_and_comes_back(session: Session, agent: Agent, db: Connection) -> None:
    added = await session.tasks.add_many([NewTask(type="mail", priority=n % 3) for n in range(6)])
    other = await session.tasks.add("report")
    pause = await agent.tasks.pause(type="mail", reason="the relay is down")
    assert (pause.kind, pause.name, pause.paused_by) == ("type", "mail", agent.id)
    assert await gated(db, session)
    assert {(await session.tasks.get(one)).status for one in added} == {"held"}
    late = await session.tasks.add("mail")
    assert [task.id for task in await agent.tasks.claim(10)] == [other.id]
    assert (await session.tasks.get(late.id)).held["code"] == "paused", "a claim holds what it meets"
    [shown] = await session.tasks.pauses()
    assert shown == pause
    assert await agent.tasks.resume(type="mail") == 7
    assert await session.tasks.pauses() == []
    assert not await gated(db, session), "and claims look no further again"
    tasks = await agent.tasks.claim(10)
    assert [task.priority for task in tasks] == sorted((task.priority for task in tasks), reverse=True)
    assert len(tasks) == 7
    assert await kinds(session, added[0]) == ["task.created", "task.held", "task.ready", "task.assigned"]
    assert await kinds(session, pause.id) == ["pause.started", "pause.resumed", "pause.deleted"]
    assert await agent.tasks.resume(type="mail") == 0


async def test_what_was_assigned_comes_back_to_its_agent(session: Session, agent: Agent) -> None:
    added = await session.tasks.add("mail", assigned_to=agent.id)
    await session.tasks.pause(type="mail")
    assert await agent.tasks.claim() == []
    await session.tasks.resume(type="mail")
    assert (await session.tasks.get(added.id)).status == "assigned"
    [task] = await agent.tasks.claim()
    assert task.id == added.id


async def test_a_paused_capability_is_left_out(session: Session, agent: Agent) -> None:
    call = await session.tasks.add("t", capability="call", priority=9)
    own = await session.tasks.add("t", capability="call", assigned_to=agent.id)
    other = await session.tasks.add("t", capability="investigate")
    await session.tasks.pause(capability="call")
    assert [task.id for task in await agent.tasks.claim(10)] == [other.id]
    assert await agent.tasks.claim_by_id(call.id) is None
    assert (await session.tasks.get(call.id)).status == "pending"
    assert await session.tasks.resume(capability="call") == 0
    assert [task.id for task in await agent.tasks.claim(10)] == [own.id, call.id]


async def test_what_runs_goes_on(session: Session, agent: Agent) -> None:
    await session.tasks.add("mail")
    [task] = await agent.tasks.claim()
    await session.tasks.pause(type="mail")
    await agent.tasks.complete(task, 1)
    assert (await session.tasks.get(task.id)).status == "completed"


async def test_a_resume_that_was_cut_short_is_finished_by_claims(session: Session, agent: Agent, db: Connection) -> None:
    await session.tasks.add_many([NewTask(type="mail") for _ in range(5)])
    await session.tasks.pause(type="mail")
    await db.execute("SELECT blackboard.resume_tasks($1, 'type', 'mail', 'x')", session.id)
    assert len(await agent.tasks.claim(10)) == 5
    await agent.tasks.claim()
    assert not await gated(db, session)


async def test_a_resume_does_not_miss_what_a_claim_is_holding(
    session: Session, agent: Agent, db: Connection, connect: Connect, blocked: Callable[[int], Awaitable[None]]
) -> None:
    await session.tasks.pause(type="mail")
    added = await session.tasks.add("mail")
    holding = await connect()
    lease = await agent.scope.leases.current()
    async with holding.transaction():
        claimed = await holding.fetch(
            "SELECT * FROM blackboard.claim_tasks($1, 'ops/x', '{}', $2, gen_random_uuid(), 5)", session.id, lease
        )
        assert claimed == []
        resuming = asyncio.create_task(
            db.fetchval("SELECT blackboard.resume_tasks($1, 'type', 'mail', 'x')", session.id)
        )
        await blocked(db.get_server_pid())
    pause_id = await resuming
    assert await db.fetchval("SELECT blackboard.retire_pause($1, $2, 10)", session.id, pause_id) == 1
    assert await db.fetchval("SELECT blackboard.retire_pause($1, $2, 10)", session.id, pause_id) is None
    assert (await session.tasks.get(added.id)).status == "pending"


async def test_pause_arguments(session: Session) -> None:
    for arguments in ({}, {"type": "a", "capability": "b"}):
        with pytest.raises(InvalidInput):
            await session.tasks.pause(**arguments)
        with pytest.raises(InvalidInput):
            await session.tasks.resume(**arguments)


# ------------------------------------------------------------------------------------------------------- limits


async def test_a_concurrency_limit_holds_and_lets_go(session: Session, agent: Agent) -> None:
    limit = await session.limits.set("calls", max_running=2, capability="call")
    low = await session.tasks.add_many([NewTask(type="t", capability="call", priority=1) for _ in range(3)])
    high = await session.tasks.add_many([NewTask(type="t", capability="call", priority=8) for _ in range(2)])
    tasks = await agent.tasks.claim(10)
    assert [task.id for task in tasks] == high
    held = await session.tasks.get(low[0])
    assert (held.status, held.held["code"], held.held["limit"]) == ("held", "limit", str(limit.id))
    assert await agent.tasks.claim(10) == []
    [usage] = await session.limits.usage("calls")
    assert (usage.running, usage.held) == (2, 3)
    await agent.tasks.complete(tasks[0])
    assert [(await session.tasks.get(one)).status for one in low] == ["pending", "held", "held"], "in the same transaction"
    [third] = await agent.tasks.claim(10)
    assert third.id == low[0]
    assert await session.limits.check() == []
    await agent.tasks.complete_many([(tasks[1], None), (third, None)])
    assert [task.id for task in await agent.tasks.claim(10)] == low[1:]
    assert await kinds(session, low[1]) == ["task.created", "task.held", "task.ready", "task.assigned"]


@pytest.mark.parametrize("end", ["fail", "dead", "release", "cancel", "lapse", "timeout", "delete"])
async def test_every_way_out_of_running_frees_the_slot(
    session: Session, agent: Agent, db: Connection, clock: Clock, end: str
) -> None:
    await session.limits.set("one", max_running=1)
    first = await session.tasks.add("t", max_attempts=1 if end in ("dead", "lapse") else 5, timeout=5 * SECOND)
    second = await session.tasks.add("t")
    if end == "lapse":
        lease = uuid.uuid4()
        await db.execute("SELECT blackboard.start_lease($1, 'x', 1, interval '30 seconds')", lease)
        row = await db.fetchrow(
            "SELECT * FROM blackboard.claim_tasks($1, 'x', '{}', $2, gen_random_uuid(), 1)", session.id, lease
        )
        assert row is not None and row["id"] == first.id
    else:
        [task] = await agent.tasks.claim(5)
        assert task.id == first.id
    assert (await session.tasks.get(second.id)).status == ("pending" if end == "lapse" else "held")
    if end in ("fail", "dead"):
        await agent.tasks.fail(task, "no", delay=timedelta(hours=1))
    elif end == "release":
        await agent.tasks.release(task)
    elif end == "cancel":
        await session.tasks.cancel(task.id)
        await agent.tasks.release(task)
    elif end == "lapse":
        await clock.advance(31 * SECOND)
    elif end == "timeout":
        await clock.advance(6 * SECOND)
    else:
        await db.execute("DELETE FROM blackboard.tasks WHERE session_id = $1 AND id = $2", session.id, first.id)
    got = await agent.tasks.claim()
    if not got:
        got = await agent.tasks.claim()
    assert len(got) == 1
    assert await session.limits.check() == []
    [usage] = await session.limits.usage("one")
    assert usage.running == 1


async def test_limits_per_key(session: Session, agent: Agent) -> None:
    await session.limits.set("tenant", max_running=1, per_key=True)
    await session.limits.set("all", max_running=3)
    await session.tasks.add_many([NewTask(type="t", limit_key=key) for key in "aabbccdd"])
    free = await session.tasks.add("t", priority=9)
    tasks = await agent.tasks.claim(20)
    assert [task.limit_key for task in tasks] == [None, "a", "b"], "one each, the keyless one unlimited by key, 3 in all"
    assert tasks[0].id == free.id
    await agent.tasks.complete(tasks[1])
    [task] = await agent.tasks.claim(20)
    assert task.limit_key in ("a", "c")
    assert await session.limits.check() == []
    left = {"a": 2, "b": 2, "c": 2, "d": 2}
    left["a"] -= 1
    running = [tasks[0], tasks[2], task]
    done = 1
    while running:
        await agent.tasks.complete_many([(one, None) for one in running])
        done += len(running)
        running = await agent.tasks.claim(20)
        keys = [one.limit_key for one in running]
        assert len(keys) == len(set(keys)) <= 3
    assert done == 9
    assert await session.limits.check() == []


async def test_a_rate_sends_the_rest_to_later_windows(session: Session, agent: Agent, clock: Clock) -> None:
    await session.limits.set("mails", rate_count=2, rate_period=timedelta(minutes=1), type="mail")
    added = await session.tasks.add_many([NewTask(type="mail") for _ in range(5)])

    async def run() -> list[uuid.UUID]:
        tasks = await agent.tasks.claim(10)
        await agent.tasks.complete_many([(task, None) for task in tasks])
        return [task.id for task in tasks]

    assert await run() == added[:2]
    waiting = [await session.tasks.get(one) for one in added[2:]]
    assert {task.status for task in waiting} == {"scheduled"}
    assert {task.held["code"] for task in waiting} == {"rate"}
    first, second, third = (task.run_at for task in waiting)
    assert first is not None and second is not None and third is not None
    assert (first, third) == (second, first + timedelta(minutes=1)), "two in the next window, one in that after it"
    assert await run() == []
    await clock.advance(timedelta(minutes=1), gap=True)
    assert sorted(await run()) == sorted(added[2:4])
    assert await run() == []
    await clock.advance(timedelta(minutes=1), gap=True)
    assert await run() == added[4:]
    await clock.advance(timedelta(minutes=10), gap=True)
    more = await session.tasks.add_many([NewTask(type="mail") for _ in range(3)])
    assert await run() == more[:2], "what was not used before does not add up"


async def test_a_limit_counts_what_runs_already(session: Session, agent: Agent) -> None:
    await session.tasks.add_many([NewTask(type="t") for _ in range(4)])
    [task] = await agent.tasks.claim()
    await session.limits.set("one", max_running=1)
    assert await agent.tasks.claim(5) == []
    await agent.tasks.complete(task)
    assert len(await agent.tasks.claim(5)) == 1
    assert await session.limits.check() == []


async def test_a_claim_that_began_before_the_limit_counts(
    session: Session, agent: Agent, connect: Connect, board: Blackboard
) -> None:
    await session.tasks.add_many([NewTask(type="t") for _ in range(4)])
    early = await connect()
    transaction = early.transaction()
    await transaction.start()
    bound = board.bind(early)
    [task] = await bound.agent(agent).tasks.claim()
    setting = asyncio.create_task(session.limits.set("one", max_running=1))
    watcher = await connect()
    while not await watcher.fetchval("SELECT count(*) FROM blackboard.limits"):
        await asyncio.sleep(0)
    await transaction.commit()
    await setting
    assert await agent.tasks.claim(5) == [], "the one slot is taken"
    assert await session.limits.check() == []
    await agent.tasks.complete(task)
    assert len(await agent.tasks.claim(5)) == 1


async def test_raising_and_removing_a_limit(session: Session, agent: Agent, db: Connection) -> None:
    await session.limits.set("few", max_running=1)
    await session.tasks.add_many([NewTask(type="t") for _ in range(6)])
    assert len(await agent.tasks.claim(10)) == 1
    raised = await session.limits.set("few", max_running=3)
    assert raised.max_running == 3
    assert len(await agent.tasks.claim(10)) == 2
    assert await session.limits.remove("few") == 3
    assert len(await agent.tasks.claim(10)) == 3
    assert await session.limits.list() == []
    assert not await gated(db, session)
    assert await db.fetchval("SELECT count(*) FROM blackboard.task_slots") == 0
    with pytest.raises(NotFound):
        await session.limits.remove("few")
    with pytest.raises(NotFound):
        await session.limits.usage("few")


async def test_what_a_limit_is_for_does_not_change(session: Session) -> None:
    await session.limits.set("x", max_running=1, type="a")
    for arguments in ({"max_running": 1, "type": "b"}, {"rate_count": 1, "rate_period": SECOND, "type": "a"}):
        with pytest.raises(IdempotencyConflict):
            await session.limits.set("x", **arguments)
    for arguments in ({}, {"max_running": 1, "rate_count": 1}, {"rate_count": 1}, {"max_running": 0}):
        with pytest.raises(InvalidInput):
            await session.limits.set("y", **arguments)


async def test_a_slot_freed_for_a_task_nobody_came_for_goes_to_another(session: Session, agent: Agent) -> None:
    await session.limits.set("one", max_running=1)
    first = await session.tasks.add("t", capability="call", priority=9)
    other = await session.join("ops/rare", capabilities=["rare"])
    await session.tasks.add("t", capability="rare", priority=5)
    mine = await session.tasks.add("t", capability="call", priority=1)
    [task] = await agent.tasks.claim(5)
    assert task.id == first.id
    assert await other.tasks.claim(5) == []
    await agent.tasks.complete(task)
    [task] = await agent.tasks.claim(5)
    assert task.id == mine.id, "the slot came back to the rare one, for which nobody has come"


async def test_claim_by_id_passes_the_gates(session: Session, agent: Agent) -> None:
    await session.limits.set("one", max_running=1)
    first, second = await session.tasks.add_many([NewTask(type="t") for _ in range(2)])
    assert (await agent.tasks.claim_by_id(first)) is not None
    assert (await agent.tasks.claim_by_id(second)) is None
    assert (await session.tasks.get(second)).status == "held"
    assert await session.limits.check() == []


async def test_complete_and_claim_uses_the_slot_it_frees(session: Session, agent: Agent) -> None:
    await session.limits.set("one", max_running=1)
    await session.tasks.add_many([NewTask(type="t") for _ in range(3)])
    [task] = await agent.tasks.claim()
    for left in (1, 1, 0):
        following = await agent.tasks.complete_and_claim(task)
        assert len(following) == left
        if following:
            [task] = following
    assert await session.limits.check() == []


async def test_limits_write_events(session: Session) -> None:
    limit = await session.limits.set("x", max_running=1)
    await session.limits.set("x", max_running=1)
    await session.limits.set("x", max_running=2)
    await session.limits.remove("x")
    assert await kinds(session, limit.id) == ["limit.set", "limit.changed", "limit.removed", "limit.deleted"]


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
    daily = Unique(key="report", window=timedelta(days=1), states=("pending", "running", "completed"))
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
    session: Session, board: Blackboard, connect: Connect, blocked: Callable[[int], Awaitable[None]], isolation: str
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
    later = await session.tasks.add("t", run_at=at + timedelta(hours=1), expires_at=at)
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
        await session.tasks.add("t", expires_at=datetime(2030, 1, 1))  # noqa: DTZ001 - that is the point


async def test_an_expired_task_is_not_claimed_even_before_it_is_swept(
    session: Session, agent: Agent, db: Connection
) -> None:
    added = await session.tasks.add("t", expires_at=datetime.now(UTC) - timedelta(minutes=5))
    await session.limits.set("gate", max_running=5)
    for _ in range(2):
        await db.execute("UPDATE blackboard.liveness SET checked_at = blackboard.now() + interval '1 ms', unswept = false")
        await db.execute("UPDATE blackboard.liveness SET checked_at = blackboard.now(), unswept = false")
        assert await agent.tasks.claim() == []
        assert await agent.tasks.claim_by_id(added.id) is None
        await session.limits.remove("gate") if (await session.limits.list()) else None


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
    await agent.tasks.claim(0 + 1, capabilities=["none"]) and None
    assert (await session.tasks.get(low.id)).priority == 2


# ------------------------------------------------------------------------------------------------ raw SQL writers


@pytest.mark.parametrize(
    ("constraint", "statement"),
    [
        ("limits_kind_known", "INSERT INTO blackboard.limits (session_id, name, kind) VALUES ($1, 'x', 'y')"),
        ("limits_figures_of_kind", "INSERT INTO blackboard.limits (session_id, name, kind) VALUES ($1, 'x', 'rate')"),
        (
            "limits_one_scope",
            "INSERT INTO blackboard.limits (session_id, name, kind, max_running, type, capability) "
            "VALUES ($1, 'x', 'concurrency', 1, 'a', 'b')",
        ),
        (
            "limits_max_running_range",
            "INSERT INTO blackboard.limits (session_id, name, kind, max_running) VALUES ($1, 'x', 'concurrency', 0)",
        ),
        (
            "limits_rate_count_range",
            "INSERT INTO blackboard.limits (session_id, name, kind, rate_count, rate_period) "
            "VALUES ($1, 'x', 'rate', 0, '1 s')",
        ),
        (
            "limits_rate_period_range",
            "INSERT INTO blackboard.limits (session_id, name, kind, rate_count, rate_period) "
            "VALUES ($1, 'x', 'rate', 1, '1 ms')",
        ),
        (
            "limits_name_length",
            "INSERT INTO blackboard.limits (session_id, name, kind, max_running) VALUES ($1, '', 'concurrency', 1)",
        ),
        (
            "limits_type_length",
            "INSERT INTO blackboard.limits (session_id, name, kind, max_running, type) "
            "VALUES ($1, 'x', 'concurrency', 1, '')",
        ),
        (
            "limits_capability_length",
            "INSERT INTO blackboard.limits (session_id, name, kind, max_running, capability) "
            "VALUES ($1, 'x', 'concurrency', 1, repeat('x', 101))",
        ),
        (
            "limit_usage_limit_fkey",
            "INSERT INTO blackboard.limit_usage (session_id, limit_id) VALUES ($1, gen_random_uuid())",
        ),
        ("pauses_kind_known", "INSERT INTO blackboard.pauses (session_id, kind, name) VALUES ($1, 'x', 'y')"),
        ("pauses_name_length", "INSERT INTO blackboard.pauses (session_id, kind, name) VALUES ($1, 'type', '')"),
        (
            "pauses_reason_length",
            "INSERT INTO blackboard.pauses (session_id, kind, name, reason) VALUES ($1, 'type', 'a', repeat('x', 4001))",
        ),
        ("sessions_ageing_range", "UPDATE blackboard.sessions SET ageing = '1 ms', gated = true WHERE id = $1"),
        ("sessions_ageing_is_gated", "UPDATE blackboard.sessions SET ageing = '1 h' WHERE id = $1"),
        ("sessions_retention_range", "UPDATE blackboard.sessions SET retention = '-1 s' WHERE id = $1"),
        (
            "tasks_held_says_why",
            "INSERT INTO blackboard.tasks (session_id, type, status, position) VALUES ($1, 't', 'held', NULL)",
        ),
        (
            "tasks_held_size",
            "INSERT INTO blackboard.tasks (session_id, type, held) SELECT $1, 't', jsonb_agg(random()) "
            "FROM generate_series(1, 2000)",
        ),
        ("tasks_limit_key_length", "INSERT INTO blackboard.tasks (session_id, type, limit_key) VALUES ($1, 't', '')"),
        ("tasks_unique_key_length", "INSERT INTO blackboard.tasks (session_id, type, unique_key) VALUES ($1, 't', '')"),
        ("tasks_fallback_range", "INSERT INTO blackboard.tasks (session_id, type, fallback) VALUES ($1, 't', '-1 s')"),
    ],
)
async def test_constraints(session: Session, db: Connection, constraint: str, statement: str) -> None:
    with pytest.raises(asyncpg.IntegrityConstraintViolationError) as caught:
        await db.execute(statement, session.id)
    assert caught.value.constraint_name == constraint
    assert constraint in CONSTRAINTS


async def test_names_are_taken_once(session: Session, db: Connection) -> None:
    await session.limits.set("x", max_running=1)
    with pytest.raises(asyncpg.UniqueViolationError, match="limits_name_once"):
        await db.execute(
            "INSERT INTO blackboard.limits (session_id, name, kind, max_running) VALUES ($1, 'x', 'concurrency', 1)",
            session.id,
        )
    assert CONSTRAINTS["limits_name_once"][0] is AlreadyExists
    await session.tasks.pause(type="x")
    with pytest.raises(asyncpg.UniqueViolationError, match="pauses_once"):
        await db.execute(
            "INSERT INTO blackboard.pauses (session_id, kind, name) VALUES ($1, 'type', 'x')", session.id
        )


async def test_a_limit_set_by_hand_holds(session: Session, agent: Agent, db: Connection) -> None:
    await session.tasks.add_many([NewTask(type="t") for _ in range(3)])
    await agent.tasks.claim()
    await db.execute(
        "INSERT INTO blackboard.limits (session_id, name, kind, max_running) VALUES ($1, 'x', 'concurrency', 2)",
        session.id,
    )
    assert len(await agent.tasks.claim(5)) == 1
    await db.execute("DELETE FROM blackboard.limits WHERE session_id = $1", session.id)
    assert not await gated(db, session)
