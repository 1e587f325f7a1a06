"""The worker: claims by demand, runs, writes in batches; wakes, is told to stop, and says what is wrong with it."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import uuid
from datetime import timedelta
from typing import TypeAlias

import asyncpg
import pytest

from blackboard import (
    Blackboard,
    BlockingTaskContext,
    NewTask,
    RetryPolicy,
    Session,
    TaskContext,
    Worker,
)
from blackboard.errors import ConfigurationError, InvalidInput, NotFound

from .conftest import eventually

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

SOON = RetryPolicy(max_attempts=3, delay=timedelta(milliseconds=1), jitter=0)


@pytest.fixture
def worker(board: Blackboard, session: Session) -> Worker:
    return Worker(board, session, agent_id="w/1", poll_interval=timedelta(seconds=5))


async def types(session: Session, task_id: uuid.UUID) -> list[str]:
    return [event.type for event in (await session.events.read(subject_id=task_id)).events]


async def test_many_tasks_are_claimed_and_written_in_large_batches(
    session: Session, worker: Worker, db: Connection
) -> None:
    ids = await session.tasks.add_many([NewTask(type="double", parameters={"n": n}) for n in range(3000)])

    @worker.handler("double")
    async def double(ctx: TaskContext) -> int:
        return ctx.parameters["n"] * 2

    counts = await worker.drain()
    assert (counts.claimed, counts.completed) == (3000, 3000)
    assert (await session.tasks.get(ids[-1])).result == 5998
    claims, writes = await db.fetchrow(
        "SELECT count(DISTINCT tx) FILTER (WHERE type = 'task.assigned'), "
        "count(DISTINCT tx) FILTER (WHERE type = 'task.completed') FROM blackboard.events WHERE session_id = $1",
        session.id,
    )
    assert claims < 30 and writes < 60


async def test_slow_handlers_get_no_more_than_there_are_slots(
    board: Blackboard, session: Session, db: Connection
) -> None:
    worker = Worker(board, session, agent_id="w/1", concurrency=3)
    await session.tasks.add_many([NewTask(type="slow") for _ in range(10)])
    gate = asyncio.Event()
    running = 0

    @worker.handler("slow")
    async def slow(ctx: TaskContext) -> None:
        nonlocal running
        running += 1
        await gate.wait()

    held = "SELECT count(*) FROM blackboard.tasks WHERE status = 'running'"
    async with worker:

        async def three() -> bool:
            return running == 3

        await eventually(three)
        assert await db.fetchval(held) == 3
        gate.set()

        async def done() -> bool:
            return worker.counts.completed == 10

        await eventually(done)


async def test_claiming_running_and_writing_overlap(board: Blackboard, session: Session, db: Connection) -> None:
    """While one handler runs, others are claimed, run and written."""
    worker = Worker(board, session, agent_id="w/1", concurrency=2)
    gate = asyncio.Event()

    @worker.handler("long")
    async def long(ctx: TaskContext) -> None:
        await gate.wait()

    @worker.handler("short")
    async def short(ctx: TaskContext) -> str:
        return "done"

    await session.tasks.add("long", priority=9)
    async with worker:
        for _ in range(3):
            task = await session.tasks.add("short")
            assert (await session.tasks.wait(task.id, timedelta(seconds=10))).result == "done"
        gate.set()
    assert worker.counts.completed == 4


async def test_what_is_claimed_ahead_of_a_handler_that_hangs_goes_back(board: Blackboard, session: Session) -> None:
    worker = Worker(board, session, agent_id="w/1", concurrency=1)
    gate = asyncio.Event()

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        if ctx.parameters["n"] == 60:
            await gate.wait()

    await session.tasks.add_many([NewTask(type="t", parameters={"n": n}) for n in range(200)])
    other = await session.join("w/2")
    async with worker:
        # Those after the one that hangs were in the same claim; another agent gets them.
        got = await eventually(lambda: other.tasks.claim(1000))
        assert {task.parameters["n"] for task in got} & set(range(61, 200))
        gate.set()


async def test_an_idle_worker_is_woken_by_a_new_task(session: Session, worker: Worker) -> None:
    @worker.handler("t")
    async def handle(ctx: TaskContext) -> str:
        return "x"

    async with worker:
        for _ in range(3):
            task = await session.tasks.add("t")
            # Well within the poll interval of 5 s.
            assert (await session.tasks.wait(task.id, timedelta(seconds=3))).status == "completed"


async def test_an_idle_worker_wakes_for_a_scheduled_task(session: Session, worker: Worker, db: Connection) -> None:
    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        return None

    async with worker:
        task = await session.tasks.add("t")
        await session.tasks.wait(task.id, timedelta(seconds=3))
        now = await db.fetchval("SELECT blackboard.now()")
        later = await session.tasks.add("t", run_at=now + timedelta(milliseconds=300))
        done = await session.tasks.wait(later.id, timedelta(seconds=3))
        assert done.status == "completed"
        assert done.started_at is not None and done.started_at - now < timedelta(seconds=2)


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_running_task_that_somebody_cancels_is_stopped(
    session: Session, worker: Worker, blocking: bool
) -> None:
    started = threading.Event()

    if blocking:

        @worker.handler("t")
        def block(ctx: BlockingTaskContext) -> None:
            started.set()
            while True:
                ctx.raise_if_cancelled()
                threading.Event().wait(0.005)
    else:

        @worker.handler("t")
        async def wait(ctx: TaskContext) -> None:
            started.set()
            await asyncio.Event().wait()

    task = await session.tasks.add("t")
    async with worker:

        async def runs() -> bool:
            return started.is_set()

        await eventually(runs)
        assert (await session.tasks.cancel(task.id, "not needed")).cancel_requested
        done = await session.tasks.wait(task.id, timedelta(seconds=5))
        assert (done.status, done.error["code"]) == ("cancelled", "cancelled")

        async def counted() -> bool:
            return worker.counts.cancelled == 1

        await eventually(counted)
    assert (await types(session, task.id))[-1] == "task.cancelled"


async def test_a_cancellation_of_the_handlers_own_making_is_a_failure(session: Session, worker: Worker) -> None:
    @worker.handler("t", retry=RetryPolicy(max_attempts=1))
    async def handle(ctx: TaskContext) -> None:
        inner = asyncio.ensure_future(asyncio.Event().wait())
        inner.cancel()
        await inner

    await session.tasks.add("t")
    assert (await worker.drain()).dead == 1


async def test_timeouts_and_context_variables_of_handlers_do_not_meet(board: Blackboard, session: Session) -> None:
    """One slot runs many handlers; each finds it clean."""
    worker = Worker(board, session, agent_id="w/1", concurrency=1)
    variable = contextvars.ContextVar("variable", default="clean")

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> str:
        before = variable.get()
        variable.set("dirty")
        if ctx.parameters["n"] % 2:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await asyncio.Event().wait()
        return before

    ids = await session.tasks.add_many([NewTask(type="t", parameters={"n": n}) for n in range(6)])
    assert (await worker.drain()).completed == 6
    assert {(await session.tasks.get(one)).result for one in ids} == {"clean"}


async def test_system_exit_ends_the_worker_and_hands_the_task_back(session: Session, worker: Worker) -> None:
    @worker.handler("t")
    def handle(ctx: BlockingTaskContext) -> None:
        raise SystemExit(7)

    task = await session.tasks.add("t")
    with pytest.raises(SystemExit) as end:
        await worker.run(signals=False)
    assert end.value.code == 7
    assert (await session.tasks.get(task.id)).status == "pending"


async def test_several_sessions_get_their_turn_and_paused_ones_wait(board: Blackboard) -> None:
    sessions = [await board.start(f"turn-{n}") for n in range(4)]
    worker = Worker(board, [*sessions[:3], "turn-3"], agent_id="w/1", concurrency=2)
    order: list[str] = []

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> str:
        order.append(ctx.session.name)
        await asyncio.sleep(0.06)  # longer than what is worth claiming ahead
        return ctx.session.name

    for session in sessions:
        await session.tasks.add_many([NewTask(type="t") for _ in range(3)])
    await sessions[1].pause()
    counts = await worker.drain()
    assert counts.completed == 9
    # Nobody waits until another session is empty.
    assert set(order[:6]) == {"turn-0", "turn-2", "turn-3"}
    async with worker:
        await sessions[1].resume()

        async def done() -> bool:
            return worker.counts.completed == 3

        await eventually(done)


async def test_it_ends_when_its_sessions_are_over(session: Session, worker: Worker) -> None:
    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        await ctx.session.close()

    await session.tasks.add("t")
    await asyncio.wait_for(worker.run(signals=False), 20)
    assert worker.counts.claimed == 1


async def test_a_worker_says_what_is_wrong_with_it(board: Blackboard, session: Session, worker: Worker) -> None:
    with pytest.raises(ConfigurationError, match="no handlers"):
        await worker.run(signals=False)
    worker.register("t", lambda ctx: None)
    with pytest.raises(ConfigurationError, match="already"):
        worker.register("t", lambda ctx: None)
    async with worker:
        with pytest.raises(ConfigurationError, match="runs already"):
            await worker.run(signals=False)
    for wrong in ({"concurrency": 0}, {"max_batch": 0}, {"grace": timedelta(-1)}):
        with pytest.raises(InvalidInput):
            Worker(board, session, agent_id="w", **wrong)
    with pytest.raises(InvalidInput):
        Worker(board, [], agent_id="w")
    with pytest.raises(NotFound):
        await Worker(board, "nowhere", agent_id="w", handlers=worker.handlers).drain()
