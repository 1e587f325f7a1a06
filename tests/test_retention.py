"""What a session does not keep goes by itself: by any worker, in batches, once, and nothing that is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeAlias

import asyncpg
import psycopg
import pytest

from blackboard import Agent, Blackboard, NewTask, Session, Stage, TaskContext, Worker
from blackboard.errors import CursorExpired, InvalidInput, NotFound, NotPermitted
from blackboard.ids import new_id
from blackboard.models.retention import Kept, Retention
from blackboard.models.tasks import TaskRecord
from blackboard.work.upkeep import run_retention

from . import test_cli_grants
from .conftest import Clock, Connect, eventually

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)

# The fixtures that make roles.
_cli = vars(test_cli_grants)["_cli"]
_role = vars(test_cli_grants)["_role"]


@pytest.fixture
async def agent(session: Session) -> Agent:
    return await session.join("ops/worker", capabilities=["c"])


async def ended(agent: Agent, count: int = 1) -> list[TaskRecord]:
    """So many tasks that are completed."""
    await agent.tasks.add_many([NewTask(type="t", capability="c") for _ in range(count)])
    tasks = list(await agent.tasks.claim(count))
    await agent.tasks.complete_many([(task, None) for task in tasks])
    return tasks


async def rounds(board: Blackboard, **options: Any) -> list[Kept]:
    """Everything that is due now goes."""
    looks: list[Kept] = []
    while True:
        looks.append(await board.keeper.keep_due(**options))
        if looks[-1].seconds != 0:
            return looks


async def statuses(db: Connection, session: Session) -> dict[str, int]:
    found = await db.fetch(
        "SELECT status, count(*) AS n FROM blackboard.tasks WHERE session_id = $1 GROUP BY 1", session.id
    )
    return {row["status"]: row["n"] for row in found}


async def test_by_default_everything_is_kept(board: Blackboard, session: Session, agent: Agent, clock: Clock) -> None:
    await ended(agent)
    await session.configure(retention=DAY)
    await clock.advance(400 * DAY, gap=True)
    assert await session.kept() == Retention()
    assert await board.keeper.keep_due() == Kept(session_id=None, tasks=0, flows=0, events=0, error=None, seconds=None)
    assert len(await session.tasks.list()) == 1


async def test_what_ended_long_ago_goes_and_the_rest_stays(
    board: Blackboard, session: Session, agent: Agent, db: Connection, clock: Clock
) -> None:
    await ended(agent, 3)
    await session.tasks.cancel((await session.tasks.add("t")).id)
    await session.tasks.add("t", capability="c", max_attempts=1)
    [dead] = await agent.tasks.claim()
    await agent.tasks.fail(dead, "broken")
    await session.tasks.add("waits")
    flow = await agent.flows.create("f", [Stage("a", "t", capability="c")])
    [stage] = await agent.tasks.claim()
    await agent.tasks.complete(stage)
    assert await session.keep(tasks=DAY) == await session.kept() == Retention(tasks=DAY)
    assert {(look.tasks, look.flows) for look in await rounds(board)} == {(0, 0)}
    await clock.advance(2 * DAY, gap=True)
    [young] = await ended(agent)
    looks = await rounds(board)
    assert (sum(look.tasks for look in looks), sum(look.flows for look in looks)) == (5, 1)
    assert await statuses(db, session) == {"completed": 1, "dead": 1, "pending": 1}
    assert (await session.tasks.get(young.id)).status == "completed"
    with pytest.raises(NotFound):
        await session.flows.get(flow.id)
    page = await session.events.read(topics=["task.pruned", "flow.pruned", "session.retention_changed"])
    assert [event.actor for event in page.events] == ["tester", *["retention"] * 6]
    assert page.events[0].data == {"keep_tasks": "1 day", "keep_events": None}
    # Redriven, the dead letter is a task like any other.
    await session.tasks.redrive(dead.id)


async def test_events_go_too_where_it_is_said(
    board: Blackboard, session: Session, agent: Agent, db: Connection, clock: Clock
) -> None:
    await ended(agent, 20)
    cursor = (await session.events.read(limit=3)).cursor
    await session.keep(events=DAY)
    before = await db.fetchval("SELECT count(*) FROM blackboard.events WHERE session_id = $1", session.id)
    await clock.advance(2 * DAY, gap=True)
    await ended(agent)
    looks = await rounds(board, scan=10)
    assert sum(look.events for look in looks) == before
    assert len([look for look in looks if look.events]) >= 2
    assert await statuses(db, session) == {"completed": 21}
    with pytest.raises(CursorExpired):
        await session.events.read(cursor)


async def test_a_round_comes_again_but_not_at_once(
    board: Blackboard, session: Session, agent: Agent, db: Connection, clock: Clock
) -> None:
    await session.keep(tasks=HOUR)
    last = (await rounds(board))[-1]
    assert last.seconds == pytest.approx(180, abs=20)
    await ended(agent)
    await clock.advance(2 * HOUR, gap=True)
    assert sum(look.tasks for look in await rounds(board)) == 1
    await ended(agent)
    assert (await board.keeper.keep_due()).session_id is None
    # What was changed is looked at now.
    await session.keep(tasks=timedelta(0))
    assert sum(look.tasks for look in await rounds(board)) == 1


async def test_batches_are_bounded_and_go_on_where_they_were(
    board: Blackboard, session: Session, agent: Agent, db: Connection
) -> None:
    await ended(agent, 25)
    await session.keep(tasks=timedelta(0))
    assert [look.tasks for look in await rounds(board, scan=10)] == [10, 10, 5, 0]
    assert await statuses(db, session) == {}
    for scan in (0, 10_001):
        with pytest.raises(InvalidInput):
            await board.keeper.keep_due(scan)


async def test_sessions_take_turns(board: Blackboard, session: Session, agent: Agent) -> None:
    other = await board.start("other")
    await ended(agent, 30)
    busy = await other.join("ops/other", capabilities=["c"])
    await ended(busy, 30)
    for one in (session, other):
        await one.keep(tasks=timedelta(0))
    looks = await rounds(board, scan=10)
    assert [look.session_id for look in looks[:4]] == [session.id, other.id, session.id, other.id]
    assert sum(look.tasks for look in looks) == 60


async def test_one_at_a_time_looks_after_a_session(
    board: Blackboard, session: Session, agent: Agent, connect: Connect
) -> None:
    await ended(agent, 5)
    await session.keep(tasks=timedelta(0))
    first = await connect()
    async with first.transaction():
        assert (await first.fetchrow("SELECT * FROM blackboard.keep_due(2)"))["tasks"] == 2  # type: ignore[index]
        found = await board.keeper.keep_due()
        assert (found.session_id, found.tasks) == (None, 0)
        assert found.seconds is not None
        assert found.seconds > 0
    assert sum(look.tasks for look in await rounds(board)) == 3


async def test_a_closed_session_is_looked_after_too(board: Blackboard, session: Session, agent: Agent) -> None:
    await ended(agent, 2)
    await session.close()
    await session.keep(tasks=timedelta(0))
    assert sum(look.tasks for look in await rounds(board)) == 2


async def test_what_cannot_go_stops_nothing_else(
    board: Blackboard, session: Session, agent: Agent, db: Connection
) -> None:
    tasks = sorted(await ended(agent, 6), key=lambda task: task.id)
    await db.execute("CREATE TABLE public.orders (s uuid, t uuid, FOREIGN KEY (s, t) REFERENCES blackboard.tasks)")
    try:
        await db.execute("INSERT INTO public.orders VALUES ($1, $2)", session.id, tasks[2].id)
        await session.keep(tasks=timedelta(0), events=HOUR)
        looks = await rounds(board, scan=2)
        assert [look.tasks for look in looks][:4] == [2, 0, 2, 0]
        assert [look.error is not None for look in looks] == [False, True, *[False] * (len(looks) - 2)]
        assert 'table "orders"' in str((await session.kept()).error)
        assert await statuses(db, session) == {"completed": 2}
    finally:
        await db.execute("DROP TABLE public.orders")
    await db.execute("UPDATE blackboard.retentions SET due_at = blackboard.now()")
    await rounds(board)
    assert (await session.kept()).error is None
    assert await statuses(db, session) == {}


async def test_a_locked_task_waits_for_the_next_round(
    board: Blackboard, session: Session, agent: Agent, db: Connection, connect: Connect
) -> None:
    [task] = await ended(agent)
    await session.keep(tasks=timedelta(0))
    other = await connect()
    async with other.transaction():
        await other.execute("SELECT FROM blackboard.tasks WHERE id = $1 FOR UPDATE", task.id)
        assert sum(look.tasks for look in await rounds(board)) == 0
    await db.execute("UPDATE blackboard.retentions SET due_at = blackboard.now()")
    assert sum(look.tasks for look in await rounds(board)) == 1


async def test_a_worker_sees_to_it(board: Blackboard, session: Session, agent: Agent, db: Connection) -> None:
    await ended(agent, 5)
    elsewhere = await board.start("elsewhere")
    await session.keep(tasks=timedelta(0))
    worker = Worker(board, elsewhere, agent_id="ops/w")
    worker.register("t", _nothing)
    async with worker:
        await eventually(lambda: _none_left(db, session))


async def _nothing(_: TaskContext) -> None:
    pass


async def _none_left(db: Connection, session: Session) -> bool:
    return await statuses(db, session) == {}


async def test_an_interrupted_round_loses_nothing(
    board: Blackboard, session: Session, agent: Agent, connect: Connect, db: Connection
) -> None:
    await ended(agent, 6)
    await session.keep(tasks=timedelta(0))
    killed = await connect()
    transaction = killed.transaction()
    await transaction.start()
    await killed.fetchrow("SELECT * FROM blackboard.keep_due(2)")
    await db.execute("SELECT pg_terminate_backend($1, 5000)", killed.get_server_pid())
    assert await statuses(db, session) == {"completed": 6}
    assert sum(look.tasks for look in await rounds(board, scan=2)) == 6
    assert len((await session.events.read(topics=["task.pruned"])).events) == 6


async def test_what_is_given_is_checked(board: Blackboard, session: Session, db: Connection) -> None:
    for given in (
        {"tasks": timedelta(seconds=-1)}, {"tasks": timedelta(days=40_000)}, {"events": timedelta(minutes=59)},
        {"events": timedelta(days=40_000)}, {"tasks": 5},
    ):  # fmt: skip
        with pytest.raises(InvalidInput):
            await session.keep(**given)  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        await board.sessions.keep(new_id(), tasks=DAY)
    assert await session.keep(tasks=DAY, events=HOUR) == Retention(tasks=DAY, events=HOUR)
    assert await session.keep(tasks=DAY, events=HOUR) == Retention(tasks=DAY, events=HOUR)
    assert await session.keep() == await session.kept() == Retention()
    page = await session.events.read(topics=["session.retention_changed"])
    assert [event.data for event in page.events] == [
        {"keep_tasks": "1 day", "keep_events": "01:00:00"}, {"keep_tasks": None, "keep_events": None},
    ]  # fmt: skip
    with pytest.raises(asyncpg.CheckViolationError):
        await db.execute("INSERT INTO blackboard.retentions (session_id, events) VALUES ($1, '1 minute')", session.id)


async def test_what_is_written_by_hand_is_history_too(session: Session, db: Connection) -> None:
    await db.execute("INSERT INTO blackboard.retentions (session_id, tasks) VALUES ($1, '2 days')", session.id)
    await db.execute("UPDATE blackboard.retentions SET tasks = NULL, events = '3 days'")
    await db.execute("UPDATE blackboard.retentions SET due_at = due_at")
    await db.execute("DELETE FROM blackboard.retentions")
    page = await session.events.read(topics=["session.retention_changed"])
    assert [(event.data["keep_tasks"], event.data["keep_events"]) for event in page.events] == [
        ("2 days", None), (None, "3 days"), (None, None),
    ]  # fmt: skip


@pytest.mark.fresh_database
async def test_the_owner_decides_and_agents_carry_it_out(role: Callable[[str], str], database_url: str) -> None:
    async with Blackboard.open(database_url) as owner, Blackboard.open(role("agent")) as board:
        session = await board.start("s")
        agent = await session.join("ops/a", capabilities=["c"])
        await ended(agent, 3)
        with pytest.raises(NotPermitted):
            await session.keep(tasks=timedelta(0))
        await (await owner.session("s")).keep(tasks=timedelta(0))
        with pytest.raises(NotPermitted):
            await session.keep()
        assert sum(look.tasks for look in await rounds(board)) == 3
    with (
        psycopg.connect(role("reader"), autocommit=True) as reader,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        reader.execute("SELECT blackboard.keep_due(10)")


@pytest.mark.fresh_database
async def test_who_may_not_says_so_and_works_on(role: Callable[[str], str], caplog: pytest.LogCaptureFixture) -> None:
    url = role("reader")
    async with Blackboard.open(url) as board:
        await asyncio.wait_for(run_retention(board, asyncio.Event()), 10)
    assert "blackboard db grants" in caplog.text
