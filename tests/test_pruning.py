"""Pruning at length: in batches that begin where the last one ended, beside work that goes on, and told truly before."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeAlias

import asyncpg
import pytest

from blackboard import Agent, NewTask, Session, Stage
from blackboard.errors import CursorExpired

from .conftest import Clock, Connect

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

NOW = timedelta(0)
FETCHED = "SELECT idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relid = 'blackboard.{}'::regclass"


@pytest.fixture
async def agent(session: Session) -> Agent:
    return await session.join("ops/worker")


async def test_a_batch_of_tasks_begins_where_the_last_one_ended(session: Session, db: Connection) -> None:
    await session.tasks.add_many([NewTask(type="t") for _ in range(1000)])
    after = await db.fetchval(
        "SELECT id FROM blackboard.tasks WHERE session_id = $1 ORDER BY id OFFSET 899", session.id
    )
    async with db.transaction():
        before = await db.fetchval(FETCHED.format("tasks"))
        found = await db.fetchrow(
            "SELECT * FROM blackboard.prune_tasks($1, blackboard.now(), '{completed}', $2, 10, false, NULL)",
            session.id, after,
        )  # fmt: skip
        assert found is not None
        assert found["next"] > after
        assert await db.fetchval(FETCHED.format("tasks")) - before < 100, "it walked there from the first task"


async def test_a_batch_of_flows_begins_where_the_last_one_ended(session: Session, db: Connection) -> None:
    for n in range(60):
        await session.flows.create(f"f{n}", [Stage("a", "t")])
    after = await db.fetchval("SELECT id FROM blackboard.flows WHERE session_id = $1 ORDER BY id OFFSET 49", session.id)
    async with db.transaction():
        before = await db.fetchval(FETCHED.format("flows"))
        found = await db.fetchrow(
            "SELECT * FROM blackboard.prune_flows($1, blackboard.now(), '{completed}', $2, 5, false, NULL)",
            session.id, after,
        )  # fmt: skip
        assert found is not None
        assert found["next"] > after
        assert await db.fetchval(FETCHED.format("flows")) - before < 30, "it walked there from the first flow"


async def test_whoever_comes_to_depend_on_a_task_meanwhile_keeps_it(
    session: Session, agent: Agent, db: Connection, connect: Connect, blocked: Callable[[int], Awaitable[None]]
) -> None:
    first = await session.tasks.add("t")
    [task] = await agent.tasks.claim()
    await agent.tasks.complete(task)
    # It is locked by somebody who has just been there: the prune leaves it.
    other = await connect()
    async with other.transaction():
        await other.execute("SELECT FROM blackboard.tasks WHERE id = $1 FOR KEY SHARE", first.id)
        assert (await session.tasks.prune(older_than=NOW)).tasks == 0
    child = await session.tasks.add("t", depends_on=[first.id])
    assert (await session.tasks.prune(older_than=NOW, dry_run=True)).tasks == 0
    assert (await session.tasks.prune(older_than=NOW)).tasks == 0
    [task] = await agent.tasks.claim()
    assert task.id == child.id
    await agent.tasks.complete(task)
    assert (await session.tasks.prune(older_than=NOW)).tasks == 2


async def test_events_go_in_batches_of_whole_transactions(session: Session, db: Connection) -> None:
    for count in (3, 5, 4, 1, 2):
        await session.tasks.add_many([NewTask(type="t") for _ in range(count)])
    moment = await db.fetchval("SELECT blackboard.now()")
    await session.tasks.add("t")
    call = "SELECT blackboard.prune_events($1, $2, $3)"
    went: list[int] = []
    while count := await db.fetchval(call, session.id, moment, 4):
        went.append(count)
        cursors = await db.fetchrow("SELECT tx, seq FROM blackboard.pruned_events WHERE session_id = $1", session.id)
        least = await db.fetchrow(
            "SELECT min(tx) AS tx, min(seq) AS seq FROM blackboard.events WHERE session_id = $1", session.id
        )
        assert cursors is not None
        assert least is not None
        assert cursors["tx"] < least["tx"]
        assert cursors["seq"] < least["seq"]
    # The first one is that of the session itself.
    assert went == [4, 5, 4, 3]
    assert [event.type for event in (await session.events.read()).events] == ["task.created"]


async def test_what_commits_between_two_batches_is_read_and_goes_in_its_turn(
    session: Session, db: Connection, connect: Connect
) -> None:
    late = await connect()
    running = late.transaction()
    await running.start()
    await late.execute("INSERT INTO blackboard.tasks (session_id, type) VALUES ($1, 'late')", session.id)
    for _ in range(6):
        await session.tasks.add("t")
    page = await session.events.read()
    moment = await db.fetchval("SELECT blackboard.now()")
    call = "SELECT blackboard.prune_events($1, $2, 2)"
    assert await db.fetchval(call, session.id, moment) == 2
    await running.commit()
    # It has the time of when it was written, and was not there to be taken.
    [event] = (await session.events.read(page.cursor)).events
    assert event.data["type"] == "late"
    while await db.fetchval(call, session.id, moment):
        pass
    assert (await session.events.read()).events == ()
    with pytest.raises(CursorExpired):
        await session.events.read(page.cursor)
    assert (await session.events.read((await session.events.read()).cursor)).events == ()


async def test_what_belongs_to_the_time_to_keep_stays_however_early_its_transaction_began(
    session: Session, db: Connection, connect: Connect
) -> None:
    await session.tasks.add("t")
    early = await connect()
    running = early.transaction()
    await running.start()
    await early.execute("SELECT pg_current_xact_id()")
    await session.tasks.add("t")
    moment = await db.fetchval("SELECT blackboard.now()")
    await early.execute("INSERT INTO blackboard.tasks (session_id, type) VALUES ($1, 'young')", session.id)
    await running.commit()
    assert await session.events.prune(moment) == 2
    assert [event.data["type"] for event in (await session.events.read()).events] == ["t", "young"]


async def test_a_dry_run_tells_what_would_go(session: Session, agent: Agent, db: Connection, clock: Clock) -> None:
    parent = await session.tasks.add("t")
    await session.tasks.add("t", depends_on=[parent.id])
    [task] = await agent.tasks.claim()
    await agent.tasks.complete(task)
    for _ in range(3):
        await session.tasks.add("u", max_attempts=1)
    [_, dead] = await agent.tasks.claim(2)
    await agent.tasks.fail(dead, "broken")
    await session.flows.cancel((await session.flows.create("f", [Stage("a", "t")])).id)
    await clock.advance(timedelta(days=2), gap=True)
    await session.tasks.add("t")
    for options in (
        {"status": ["cancelled"]}, {"status": ["completed"]}, {"status": ["dead"], "events": True}, {"events": True},
    ):  # fmt: skip
        told = await session.tasks.prune(older_than=timedelta(days=1), dry_run=True, **options)  # type: ignore[arg-type]
        done = await session.tasks.prune(older_than=timedelta(days=1), **options)  # type: ignore[arg-type]
        assert (told.tasks, told.flows, told.events) == (done.tasks, done.flows, done.events)


async def test_two_prunings_at_once_take_everything_once(
    session: Session, agent: Agent, db: Connection, connect: Connect
) -> None:
    await session.tasks.add_many([NewTask(type="t") for _ in range(300)])
    tasks = await agent.tasks.claim(300)
    await agent.tasks.complete_many([(task, None) for task in tasks])
    both = await asyncio.gather(*(session.tasks.prune(older_than=NOW) for _ in range(2)))
    assert sum(one.tasks for one in both) <= 300
    await session.tasks.prune(older_than=NOW)
    assert await db.fetchval("SELECT count(*) FROM blackboard.tasks WHERE session_id = $1", session.id) == 0
    assert len((await session.events.read(topics=["task.pruned"])).events) == 300
