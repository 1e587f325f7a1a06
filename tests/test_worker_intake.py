"""Where a worker's tasks come from, when that is not as usual: locked rows, lapsed leases, floors."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import Blackboard, NewTask, Session, TaskContext, Worker
from blackboard.errors import LeaseLost
from blackboard.store.statements import Statement
from blackboard.work.line import Line

from .conftest import eventually

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Connect: TypeAlias = Callable[[], Awaitable[Connection]]


@pytest.fixture
def worker(board: Blackboard, session: Session) -> Worker:
    return Worker(board, session, agent_id="w/1", concurrency=1)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the worker has run which statement on connections of its own."""
    counts: Counter[str] = Counter()
    fetch_all = Line.fetch_all

    async def counting(self: Line, statement: Statement, **values: Any) -> Any:
        counts[statement.name] += 1
        return await fetch_all(self, statement, **values)

    monkeypatch.setattr(Line, "fetch_all", counting)
    return counts


async def test_a_due_task_that_somebody_has_locked_is_asked_for_ever_more_seldom(
    session: Session, worker: Worker, db: Connection, connect: Connect, asked: Counter[str]
) -> None:
    worker.register("t", lambda ctx: "done")
    run_at = await db.fetchval("SELECT blackboard.now() + interval '1 hour'")
    task = await session.tasks.add("t", run_at=run_at)
    await db.execute("UPDATE blackboard.tasks SET run_at = blackboard.now() - interval '1 second'")
    holder = await connect()
    lock = holder.transaction()
    await lock.start()
    await holder.execute("SELECT FROM blackboard.tasks WHERE id = $1 FOR UPDATE", task.id)
    async with worker:
        assert worker._core is not None  # type: ignore[attr-defined]
        [lane] = worker._core.lanes  # type: ignore[attr-defined]

        async def missed() -> bool:
            return lane.misses >= 7

        await eventually(missed)
        # Two or three questions for each time that it was not to be had.
        assert asked.total() <= 5 * lane.misses + 10, asked
        await lock.rollback()
        assert (await session.tasks.wait(task.id, timedelta(seconds=20))).result == "done"


async def test_a_lease_that_lapses_before_the_worker_has_joined_under_it_is_given_up(
    board: Blackboard, session: Session, worker: Worker, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.register("t", lambda ctx: "done")
    join = Blackboard.join
    refused: list[uuid.UUID] = []

    async def late(self: Blackboard, *args: Any, **options: Any) -> Any:
        if not refused:
            refused.append(await session.scope.leases.current())
            assert await db.fetchval("SELECT blackboard.end_lease($1)", refused[0])
            raise LeaseLost("The lease has lapsed.")
        return await join(self, *args, **options)

    async with worker:
        first = await session.tasks.add("t")
        await session.tasks.wait(first.id, timedelta(seconds=20))
        monkeypatch.setattr(Blackboard, "join", late)
        held = await session.scope.leases.current()
        assert await db.fetchval("SELECT blackboard.end_lease($1)", held)
        second = await session.tasks.add("t")
        assert (await session.tasks.wait(second.id, timedelta(seconds=20))).result == "done"
        assert len(refused) == 1 and refused != [await session.scope.leases.current()]
        assert (await session.agents.get("w/1")).present
    assert worker.counts.completed == 2


@pytest.mark.parametrize("pooler", [False, True], ids=["direct", "behind a pooler"])
async def test_drain_does_not_leave_what_lies_below_a_floor(
    board: Blackboard,
    session: Session,
    worker: Worker,
    db: Connection,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    pooler: bool,
) -> None:
    """Added before the last claims and committed after them, it is not seen on the connection that made these."""
    if pooler:
        # Which may hand out the connection that knows the floors again.
        async def same(self: Line) -> None:
            return None

        monkeypatch.setattr(Line, "renew", same)
    slow = await connect()
    adding = slow.transaction()
    await adding.start()
    below = await (await board.bind(slow).session(session.id)).tasks.add("below")
    last = await session.tasks.add("last")
    position = await db.fetchval("SELECT position FROM blackboard.tasks WHERE id = $1", last.id)
    worker.register("below", lambda ctx: "done")

    @worker.handler("last")
    async def handle(ctx: TaskContext) -> None:
        assert worker._core is not None  # type: ignore[attr-defined]
        # As a slow claim leaves it on the connection.
        async with worker._core.intake._line.transaction() as line:  # type: ignore[attr-defined]
            await line.connection.execute(  # type: ignore[attr-defined]
                "SELECT blackboard.note_floors($1, '{}', $2), blackboard.note_floors($1, $3, NULL)",
                session.id, 1 if pooler else 3600, json.dumps({"5 ": position}),
            )  # fmt: skip
        await adding.commit()

    assert (await worker.drain()).completed == 2
    assert [(await session.tasks.get(task.id)).status for task in (below, last)] == ["completed", "completed"]


async def test_a_drain_goes_on_while_what_is_left_is_locked(
    session: Session, board: Blackboard, connect: Connect
) -> None:
    task = await session.tasks.add("t")
    other = await connect()
    transaction = other.transaction()
    await transaction.start()
    await other.execute("SELECT FROM blackboard.tasks WHERE id = $1 FOR UPDATE", task.id)
    worker = Worker(board, session, agent_id="w", poll_interval=timedelta(milliseconds=20))

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        pass

    draining = asyncio.create_task(worker.drain())

    async def missed() -> bool:
        core = worker._core
        return core is not None and core.lanes[0].misses > 3

    await eventually(missed)
    assert not draining.done()
    await transaction.rollback()
    assert (await draining).completed == 1


async def test_a_drain_leaves_what_is_held_for_others(session: Session, board: Blackboard) -> None:
    agent = await session.join("a", capabilities=["x"])
    await session.limits.set("one", max_running=1)
    await session.tasks.add_many([NewTask(type="t", capability="x") for _ in range(3)])
    [first] = await agent.tasks.claim(3)
    await agent.tasks.release(first)
    await session.limits.set("one", max_running=2)
    worker = Worker(board, session, agent_id="w")

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        pass

    assert (await asyncio.wait_for(worker.drain(), 20)).claimed == 0
