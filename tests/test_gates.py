"""What holds tasks back: pauses and limits."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import Agent, Blackboard, NewTask, Session
from blackboard.errors import IdempotencyConflict, InvalidInput, NotFound

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
    assert [task.id for task in await agent.tasks.claim()] == [own.id], "what is assigned comes first"
    assert [task.id for task in await agent.tasks.claim(10)] == [call.id]


async def test_what_runs_goes_on(session: Session, agent: Agent) -> None:
    await session.tasks.add("mail")
    [task] = await agent.tasks.claim()
    await session.tasks.pause(type="mail")
    await agent.tasks.complete(task, 1)
    assert (await session.tasks.get(task.id)).status == "completed"


async def test_a_resume_that_was_cut_short_is_finished_by_claims(
    session: Session, agent: Agent, db: Connection
) -> None:
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
    refused: list[dict[str, Any]] = [{}, {"type": "a", "capability": "b"}]
    for arguments in refused:
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
    assert [(await session.tasks.get(one)).status for one in low] == ["pending", "held", "held"], (
        "in the same transaction"
    )
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
    task = None
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
    if end != "lapse":
        assert task is not None
    if task is not None and end in ("fail", "dead"):
        await agent.tasks.fail(task, "no", delay=timedelta(hours=1))
    elif task is not None and end == "release":
        await agent.tasks.release(task)
    elif task is not None and end == "cancel":
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
    assert [task.limit_key for task in tasks] == [None, "a", "b"], (
        "one each, the keyless one unlimited by key, 3 in all"
    )
    assert tasks[0].id == free.id
    await agent.tasks.complete(tasks[1])
    [task] = await agent.tasks.claim(20)
    assert task.limit_key in ("a", "c")
    assert await session.limits.check() == []
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
    others: list[dict[str, Any]] = [
        {"max_running": 1, "type": "b"},
        {"rate_count": 1, "rate_period": SECOND, "type": "a"},
    ]
    for arguments in others:
        with pytest.raises(IdempotencyConflict):
            await session.limits.set("x", **arguments)
    wrong: list[dict[str, Any]] = [{}, {"max_running": 1, "rate_count": 1}, {"rate_count": 1}, {"max_running": 0}]
    for arguments in wrong:
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


async def test_a_look_sees_what_a_claim_would_get(session: Session, agent: Agent, db: Connection) -> None:
    async def ready(*capabilities: str) -> bool:
        row = await db.fetchrow(
            "SELECT ready FROM blackboard.look_for_tasks(ARRAY[$1::uuid], 'ops/x', $2)", session.id, list(capabilities)
        )
        assert row is not None
        return row["ready"]

    await session.limits.set("one", max_running=1)
    await session.tasks.add_many([NewTask(type="t", capability=name) for name in ("call", "rare", "call")])
    assert await ready("call") and await ready("rare") and not await ready("other")
    await session.tasks.pause(capability="rare")
    assert not await ready("rare")
    await session.tasks.resume(capability="rare")
    [task] = await agent.tasks.claim(5, capabilities=["call"])
    assert not await ready("call"), "the other one is held"
    await session.tasks.add("t", capability="rare", priority=9)
    other = await session.join("ops/rare", capabilities=["rare"])
    assert await other.tasks.claim(5) == []
    await agent.tasks.complete(task)
    assert await ready("call"), "the slot came back to a rare one, but a claim would pull the held call"
