"""Workers that are cancelled, at any moment: nothing runs on, nothing is left undone, nothing of the caller's is lost."""

from __future__ import annotations

import asyncio
import signal
from datetime import timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import Blackboard, Session, TaskContext, Worker
from blackboard.errors import NotFound

from .conftest import eventually

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
def worker(board: Blackboard, session: Session) -> Worker:
    return Worker(board, session, agent_id="w/1", concurrency=2)


def left_over() -> list[str]:
    names = [task.get_name() for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith(("blackboard-worker", "blackboard-slot"))]


async def connections(db: Connection) -> int:
    return await db.fetchval(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name LIKE 'blackboard worker%'"
    )


@pytest.mark.parametrize("times", [1, 2])
async def test_a_block_that_is_not_entered_leaves_no_worker_behind(
    session: Session, worker: Worker, db: Connection, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    worker.register("t", lambda ctx: "done")
    joining, go_on = asyncio.Event(), asyncio.Event()
    join = Blackboard.join

    async def slow(self: Blackboard, *args: Any, **options: Any) -> Any:
        joining.set()
        try:
            await go_on.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            await go_on.wait()
            raise
        return await join(self, *args, **options)

    monkeypatch.setattr(Blackboard, "join", slow)
    entering = asyncio.create_task(worker.__aenter__())
    await joining.wait()
    try:
        for _ in range(times):
            entering.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
        assert not entering.done(), "what it started has not ended yet"
    finally:
        go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert left_over() == []
    # It can be used again.
    task = await session.tasks.add("t")
    assert (await worker.drain()).completed == 1
    assert (await session.tasks.get(task.id)).result == "done"


async def test_a_block_that_cannot_be_entered_says_why(board: Blackboard) -> None:
    worker = Worker(board, "no such session", agent_id="w/1")
    worker.register("t", lambda ctx: None)
    with pytest.raises(NotFound):
        async with worker:
            raise AssertionError("never entered")
    assert left_over() == []


@pytest.mark.parametrize("times", [1, 2, 4])
async def test_a_run_that_is_cancelled_again_and_again_ends_in_order(
    session: Session, worker: Worker, db: Connection, times: int
) -> None:
    started, cleaning, cleaned = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> str:
        if ctx.task.attempt > 1:
            return "second"
        async with ctx.transaction():
            pass
        # After the commit: cancelled in it, the handler would never come to its clean-up.
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await cleaned.wait()
        return "never"

    task = await session.tasks.add("t")
    run = asyncio.create_task(worker.run(signals=False))
    await asyncio.wait_for(started.wait(), 20)
    run.cancel()
    await asyncio.wait_for(cleaning.wait(), 20)
    for _ in range(times - 1):
        run.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
    assert not run.done(), "the handler has not ended yet"
    cleaned.set()
    with pytest.raises(asyncio.CancelledError):
        await run
    back = await session.tasks.get(task.id)
    assert (back.status, back.released) == ("pending", 1)
    assert left_over() == []

    async def closed() -> bool:
        return await connections(db) == 0

    await eventually(closed)
    assert worker.stopped_at_once
    assert (await worker.drain()).completed == 1


async def test_a_cancellation_ends_the_grace(board: Blackboard, session: Session) -> None:
    worker = Worker(board, session, agent_id="w/1", grace=timedelta(hours=1))
    started, ended = asyncio.Event(), asyncio.Event()

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = await session.tasks.add("t")
    run = asyncio.create_task(worker.run(signals=False))
    await asyncio.wait_for(started.wait(), 20)
    worker.stop()

    async def winding_down() -> bool:
        return "blackboard-worker-intake" not in left_over()

    await eventually(winding_down)
    assert not ended.is_set()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(run, 20)
    assert ended.is_set()
    assert (await session.tasks.get(task.id)).status == "pending"
    assert left_over() == []


async def test_the_callers_signal_handlers_are_there_again(session: Session, worker: Worker) -> None:
    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        assert signal.getsignal(signal.SIGTERM) is not mine
        worker.stop()

    def mine(number: int, frame: object) -> None:
        raise AssertionError("no signal was sent")

    interrupted, terminated = signal.getsignal(signal.SIGINT), signal.signal(signal.SIGTERM, mine)
    try:
        await session.tasks.add("t")
        await worker.run()
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGINT) == interrupted
    finally:
        signal.signal(signal.SIGTERM, terminated)


async def test_a_signal_that_the_loop_had_a_handler_for_is_not_swallowed_afterwards(
    session: Session, worker: Worker
) -> None:
    """That handler cannot be read back; what asyncio leaves of it alone would do nothing at all."""
    worker.register("t", lambda ctx: worker.stop())
    before = signal.getsignal(signal.SIGTERM)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)
    try:
        await session.tasks.add("t")
        await worker.run()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
