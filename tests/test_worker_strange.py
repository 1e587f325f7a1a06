"""Handlers that do what none should: whatever they raise, leave behind or refuse, their tasks end and the worker goes on."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from contextvars import ContextVar
from typing import Any

import pytest

from blackboard import Blackboard, BlockingTaskContext, RetryLater, Session, TaskContext, Worker
from blackboard.errors import LeaseLost, NotFound

from .conftest import eventually


@pytest.fixture
def worker(board: Blackboard, session: Session) -> Worker:
    return Worker(board, session, agent_id="w", concurrency=1)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class Halved(RetryLater):
    def __init__(self) -> None:
        """Leaves out what the base class is made with."""


@pytest.mark.parametrize("kind", [Unspeakable, Halved])
async def test_an_exception_that_cannot_tell_of_itself_fails_its_attempt(
    session: Session, worker: Worker, kind: type[Exception]
) -> None:
    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        raise kind

    strange = await session.tasks.add("t", max_attempts=1)
    worker.register("u", lambda ctx: "done")
    plain = await session.tasks.add("u", priority=0)
    async with asyncio.timeout(20):
        counts = await worker.drain()
    assert (counts.dead, counts.completed) == (1, 1)
    error = (await session.tasks.get(strange.id)).error
    assert error["code"] == ("Unspeakable" if kind is Unspeakable else "AttributeError")
    assert error["message"]
    assert (await session.tasks.get(plain.id)).result == "done"


async def test_a_reason_without_words_ends_its_task_too(session: Session, worker: Worker) -> None:
    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        raise RetryLater(30, reason=Unspeakable())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    await session.tasks.add("t")
    async with asyncio.timeout(20):
        # The base class already puts the reason into words: it is the attempt that fails.
        counts = await worker.drain()
    assert counts.retried + counts.released == 1


async def test_a_handler_that_cancels_its_own_task_has_failed(session: Session, worker: Worker) -> None:
    """And is not claimed again and again for ever, which no attempt would count."""

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    task = await session.tasks.add("t", max_attempts=1)
    async with asyncio.timeout(20):
        assert (await worker.drain()).dead == 1
    assert (await session.tasks.get(task.id)).error["code"] == "CancelledError"


async def test_what_a_handler_swallowed_is_nothing_to_the_next_one(session: Session, worker: Worker) -> None:
    counts: list[int] = []

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        task = asyncio.current_task()
        assert task is not None
        counts.append(task.cancelling())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(0)

    for _ in range(2):
        await session.tasks.add("t")
    assert (await worker.drain()).completed == 2
    assert counts == [0, 0]


async def test_a_handler_in_its_cleaning_up_does_not_outlive_the_worker(session: Session, worker: Worker) -> None:
    started, cleaning = asyncio.Event(), asyncio.Event()

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await asyncio.Event().wait()

    task = await session.tasks.add("t")
    async with worker:
        await started.wait()
        await session.tasks.cancel(task.id)
        await cleaning.wait()
        worker.stop(now=True)
    assert [one for one in asyncio.all_tasks() if one.get_name() == "blackboard-slot"] == []


class Array:
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value of an array is ambiguous")


async def test_context_variables_may_hold_what_cannot_be_compared(session: Session, worker: Worker) -> None:
    variable: ContextVar[Array] = ContextVar("variable")
    variable.set(Array())

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        variable.set(Array())

    for _ in range(3):
        await session.tasks.add("t")
    async with asyncio.timeout(20):
        assert (await worker.drain()).completed == 3


class Big:
    pass


@pytest.mark.parametrize("blocking", [False, True])
async def test_nothing_of_a_finished_task_stays_with_an_idle_worker(
    session: Session, worker: Worker, caplog: pytest.LogCaptureFixture, *, blocking: bool
) -> None:
    caplog.set_level(logging.CRITICAL)  # what is captured is kept
    variable: ContextVar[Big] = ContextVar("variable")
    seen: list[weakref.ref[Any]] = []

    def work(ctx: Any) -> None:
        big = Big()
        variable.set(big)
        seen.extend((weakref.ref(big), weakref.ref(ctx)))
        if ctx.parameters == "fails":
            raise ValueError

    async def suspending(ctx: TaskContext) -> None:
        work(ctx)

    def in_thread(ctx: BlockingTaskContext) -> None:
        work(ctx)

    worker.register("t", in_thread if blocking else suspending)
    gc.collect()
    gc.disable()
    try:
        async with worker:
            for parameters in (None, "fails", None, "fails"):
                await session.tasks.add("t", parameters, max_attempts=1)

            async def ended() -> bool:
                counts = worker.counts
                return counts.completed == counts.dead == 2 and not [one for one in seen if one() is not None]

            await eventually(ended)
    finally:
        gc.enable()


async def test_a_long_message_is_cut_before_it_is_looked_at(
    session: Session, worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        raise ValueError("x" * 1_000_000)

    await session.tasks.add("t", max_attempts=1)
    assert (await worker.drain()).dead == 1
    assert max(len(record.getMessage()) for record in caplog.records) < 2000


async def test_a_worker_that_ended_by_itself_can_be_used_again(session: Session, worker: Worker) -> None:
    worker.register("t", lambda ctx: "done")
    inner: Any = worker
    with pytest.raises(NotFound):
        async with worker:
            inner._core.crashed(NotFound("the session is gone"))
            await asyncio.wait({inner._background})
    await session.tasks.add("t")
    assert (await worker.drain()).completed == 1


async def test_stop_may_come_from_any_thread(session: Session, worker: Worker) -> None:
    asyncio.get_running_loop().set_debug(True)  # it refuses what is not safe there
    told: list[BaseException | None] = []

    def tell() -> None:
        try:
            worker.stop()
            told.append(None)
        except BaseException as error:
            told.append(error)

    worker.register("t", lambda ctx: None)
    running = asyncio.create_task(worker.run(signals=False))

    inner: Any = worker

    async def at_work() -> bool:
        return inner._core is not None and inner._core.intake.dry

    await eventually(at_work)
    thread = threading.Thread(target=tell)
    thread.start()
    async with asyncio.timeout(20):
        await running
    thread.join()
    assert told == [None]


async def test_sessions_may_be_any_collection(board: Blackboard) -> None:
    names = {f"s{number}" for number in range(3)}
    for name in names:
        await (await board.start(name)).tasks.add("t")
    worker = Worker(board, names, agent_id="w")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    worker.register("t", lambda ctx: None)
    assert (await worker.drain()).completed == 3


async def test_a_session_that_is_over_gives_no_next_task(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the completion and the claim had to be told apart."""
    agent = await session.join("ops/a")
    await session.tasks.add("t")
    [task] = await agent.tasks.claim()
    tasks: Any = agent.tasks
    claimed = tasks._claimed

    async def lost(by: Any, statement: Any, **params: Any) -> Any:
        if statement.name == "complete_and_claim":
            raise LeaseLost("not yours", noun="task")
        await session.close()
        return await claimed(by, statement, **params)

    monkeypatch.setattr(tasks, "_claimed", lost)
    assert await agent.tasks.complete_and_claim(task, 1) == []
    assert (await session.tasks.get(task.id)).result == 1


async def test_a_worker_that_cannot_begin_is_watched_no_more(
    board: Blackboard, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any, **options: Any) -> Any:
        raise OSError(24, "Too many open files")

    worker.register("t", lambda ctx: None)
    inner: Any = board
    monkeypatch.setattr(inner._listener, "subscribe", refused)
    with pytest.raises(OSError, match="Too many"):
        await worker.run(signals=False)
    assert inner._leases._watchers == []
