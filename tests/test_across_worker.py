"""A worker of several sessions: what each of them gets, as whom it may work, and what must not be mixed up."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TypeAlias

import asyncpg
import pytest

from blackboard import Blackboard, NewTask, Session, TaskContext, Worker
from blackboard.errors import NotPermitted
from blackboard.ids import new_id

from . import test_cli_grants
from .conftest import Connect, eventually

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# The fixtures that make roles.
_cli = vars(test_cli_grants)["_cli"]
_role = vars(test_cli_grants)["_role"]


@pytest.fixture
async def sessions(board: Blackboard) -> list[Session]:
    return [await board.start(f"many-{n}") for n in range(3)]


async def test_a_request_to_stop_reaches_the_task_of_its_session_only(
    board: Blackboard, sessions: list[Session]
) -> None:
    # Ids are made by clients, and name one task in each session.
    same = new_id()
    worker = Worker(board, sessions, agent_id="w", poll_interval=timedelta(milliseconds=50))
    started: set[str] = set()
    stopped: set[str] = set()
    go_on = asyncio.Event()

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> str:
        started.add(ctx.session.name)
        try:
            await go_on.wait()
        except asyncio.CancelledError:
            stopped.add(ctx.session.name)
            raise
        return ctx.session.name

    for session in sessions:
        await session.tasks.add("t", id=same)
    async with worker:

        async def all_started() -> bool:
            return len(started) == 3

        async def one_stopped() -> bool:
            return (await sessions[0].tasks.get(same)).status == "cancelled"

        await eventually(all_started)
        await sessions[0].tasks.cancel(same)
        await eventually(one_stopped)
        go_on.set()

        async def ended() -> bool:
            return all([(await session.tasks.get(same)).finished for session in sessions])

        await eventually(ended)
    assert stopped == {"many-0"}
    tasks = [await session.tasks.get(same) for session in sessions]
    assert [(task.status, task.attempt) for task in tasks] == [("cancelled", 1), ("completed", 1), ("completed", 1)]
    assert [task.result for task in tasks[1:]] == ["many-1", "many-2"]


async def test_tasks_of_the_same_id_are_completed_each_in_its_session(
    board: Blackboard, sessions: list[Session]
) -> None:
    same = [new_id() for _ in range(20)]
    for session in sessions:
        await session.tasks.add_many([NewTask(type="t", id=one) for one in same])
    await sessions[1].tasks.add("t", depends_on=[same[0]])
    worker = Worker(board, sessions, agent_id="w", concurrency=30)

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> str:
        return ctx.session.name

    counts = await worker.drain()
    assert (counts.completed, counts.refused) == (61, 0)
    for session in sessions:
        assert {task.result for task in await session.tasks.list()} == {session.name}


@pytest.mark.parametrize("concurrency", [1, 6])
async def test_no_session_is_left_out_beside_two_that_are_always_busy(
    board: Blackboard, sessions: list[Session], concurrency: int
) -> None:
    """Whose tasks come due, are assigned or limited, which claims from many leave to claims of that session alone."""
    quiet = [await board.start(f"quiet-{n}") for n in range(4)]
    due, mine, limited, plain = quiet
    worker = Worker(board, [*sessions[:2], *quiet], agent_id="w", concurrency=concurrency)
    done: Counter[str] = Counter()

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        done[ctx.session.name] += 1
        if ctx.session.name.startswith("many"):
            # Two for one, so that there is always more than the worker can do.
            await ctx.session.tasks.add_many([NewTask(type="t")] * (2 if done[ctx.session.name] < 100 else 1))

    await limited.limits.set("one", max_running=1)
    for session in sessions[:2]:
        await session.tasks.add_many([NewTask(type="t") for _ in range(50)])
    async with worker:
        for turn in range(1, 4):
            await due.tasks.add("t", run_at=datetime.now(UTC) + timedelta(milliseconds=50))
            await mine.tasks.add("t", assigned_to="w")
            await limited.tasks.add_many([NewTask(type="t") for _ in range(2)])
            await plain.tasks.add("t")
            before = done["many-0"], done["many-1"]

            async def all_done(turn: int = turn) -> bool:
                return [done[one.name] for one in quiet] == [turn, turn, 2 * turn, turn]

            await eventually(all_done)
            assert done["many-0"] > before[0] and done["many-1"] > before[1], "nor are the busy ones"
    assert worker.counts.failed == worker.counts.refused == 0


async def test_a_hint_that_is_lost_costs_no_more_than_a_look_beside_a_busy_session(
    board: Blackboard, sessions: list[Session], db: Connection
) -> None:
    busy, quiet, _ = sessions
    worker = Worker(board, sessions, agent_id="w", concurrency=4, poll_interval=timedelta(milliseconds=100))
    done: Counter[str] = Counter()

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        done[ctx.session.name] += 1
        if ctx.session.name == busy.name:
            await ctx.session.tasks.add("t")

    await busy.tasks.add_many([NewTask(type="t") for _ in range(50)])
    async with worker:

        async def under_way() -> bool:
            return done[busy.name] > 100

        async def found() -> bool:
            return done[quiet.name] == 1

        await eventually(under_way)
        async with db.transaction():
            await db.execute("SET LOCAL blackboard.notify = off")
            await db.execute("INSERT INTO blackboard.tasks (session_id, type) VALUES ($1, 't')", quiet.id)
        await eventually(found)


async def test_a_drain_goes_on_with_what_was_locked_while_the_last_task_ran(
    board: Blackboard, sessions: list[Session], connect: Connect
) -> None:
    worker = Worker(board, sessions, agent_id="w", concurrency=2, poll_interval=timedelta(seconds=60))
    go_on = asyncio.Event()

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        await go_on.wait()

    first, second = [(await sessions[0].tasks.add("t")).id for _ in range(2)]
    other = await connect()
    lock = other.transaction()
    await lock.start()
    await other.execute("SELECT FROM blackboard.tasks WHERE id = $1 FOR UPDATE", second)
    draining = asyncio.create_task(worker.drain())

    async def tired() -> bool:
        # It has come for the second one so often that it will not do so for a second or more.
        lane = worker._core.lanes[0] if worker._core else None  # type: ignore[attr-defined]
        return lane is not None and lane.misses >= 9 and lane.not_before - monotonic() > 0.9

    await eventually(tired)
    await lock.rollback()
    go_on.set()
    assert (await asyncio.wait_for(draining, 20)).completed == 2
    assert {(await sessions[0].tasks.get(one)).status for one in (first, second)} == {"completed"}


async def test_sessions_that_end_one_by_one_do_not_end_the_worker(board: Blackboard, sessions: list[Session]) -> None:
    worker = Worker(board, sessions, agent_id="w", poll_interval=timedelta(milliseconds=50))
    done: Counter[str] = Counter()

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        done[ctx.session.name] += 1

    running = asyncio.create_task(worker.run(signals=False))
    for number, session in enumerate(sessions):
        for other in sessions[number:]:
            await other.tasks.add("t")

        async def all_done(number: int = number) -> bool:
            return [done[one.name] for one in sessions[number:]] == [number + 1] * (3 - number)

        await eventually(all_done)
        assert not running.done()
        await session.close()
    counts = await asyncio.wait_for(running, 20)
    assert counts.completed == 6


@pytest.mark.fresh_database
async def test_a_restricted_role_works_in_many_sessions(role: Callable[[str], str]) -> None:
    async with Blackboard.open(role("agent")) as board:
        sessions = [await board.start(f"life-{n}") for n in range(3)]
        await sessions[2].limits.set("one", max_running=1)
        worker = Worker(board, sessions, agent_id="w")

        @worker.handler("t")
        async def handle(ctx: TaskContext) -> str:
            return ctx.session.name

        for session in sessions:
            first = await session.tasks.add("t")
            await session.tasks.add("t", depends_on=[first.id])
        counts = await worker.drain()
        assert (counts.completed, counts.refused) == (6, 0)
    async with Blackboard.open(role("reader")) as board:
        for session in [await board.session(session.id) for session in sessions]:
            assert {task.result for task in await session.tasks.list()} == {session.name}
        with pytest.raises(NotPermitted):
            await board.join(sessions, "w")
