"""What a handler in a thread can use of the board: everything that one on the loop can, by the same names."""

from __future__ import annotations

import asyncio
import logging
import threading
from datetime import timedelta
from typing import Any

import pytest

from blackboard import Blackboard, BlockingTaskContext, RetryPolicy, Session, Worker
from blackboard.errors import ConfigurationError, InvalidInput
from blackboard.work.blocking import call
from blackboard.work.threads import Threads

from .conftest import eventually


@pytest.fixture
def worker(board: Blackboard, session: Session) -> Worker:
    return Worker(board, session, agent_id="w", concurrency=2)


async def test_a_thread_spends_locks_follows_and_joins(session: Session, worker: Worker) -> None:
    await session.budgets.set("tokens", 100)
    seen: dict[str, Any] = {}

    @worker.handler("t")
    def handle(ctx: BlockingTaskContext) -> str:
        start = ctx.session.events.now()
        with ctx.agent.budgets.spend(tokens=10) as spend:
            spend.tokens = 4
        with ctx.agent.locks.hold("file:/x") as grant:
            seen["token"] = grant.token
        other = ctx.session.join("ops/other")
        other.findings.report("from a thread", type="note")
        pages = ctx.session.events.follow(start, topics=["finding.*"])
        for page in pages:
            seen["followed"] = [event.type for event in page.events]
            break
        return other.id

    task = await session.tasks.add("t")
    assert (await worker.drain()).completed == 1
    assert (await session.tasks.get(task.id)).result == "ops/other"
    assert seen["token"] >= 1 and seen["followed"][0].startswith("finding.")
    [budget] = await session.budgets.list()
    assert budget.spent == 4 and budget.reserved == 0
    [finding] = await session.findings.list()
    assert finding.agent_id == "ops/other"


async def test_an_error_inside_such_a_block_settles_it_and_is_the_handlers(session: Session, worker: Worker) -> None:
    await session.budgets.set("tokens", 100)

    @worker.handler("t")
    def handle(ctx: BlockingTaskContext) -> None:
        with ctx.agent.locks.hold("file:/x"), ctx.agent.budgets.spend(tokens=10):
            raise ValueError("in the midst")

    task = await session.tasks.add("t", max_attempts=1)
    assert (await worker.drain()).dead == 1
    error = (await session.tasks.get(task.id)).error
    assert error is not None and error["message"] == "in the midst"
    assert await session.locks.list() == [] or all(lock.holder is None for lock in await session.locks.list())


async def test_a_transaction_in_a_thread_has_the_same_handles(session: Session, worker: Worker) -> None:
    @worker.handler("t")
    def handle(ctx: BlockingTaskContext) -> None:
        with ctx.transaction() as tx:
            assert not tx.completed
            tx.board.session(ctx.session.id).tasks.add("next")
            tx.agent.findings.report("by the agent", type="note")
            tx.complete(1)
            assert tx.completed

    task = await session.tasks.add("t")
    async with worker:
        await eventually(lambda: _completed(worker))
    assert (await session.tasks.get(task.id)).result == 1
    assert [finding.content for finding in await session.findings.list()] == ["by the agent"]
    assert sorted(one.type for one in await session.tasks.list()) == ["next", "t"]


async def test_what_a_thread_made_after_its_time_is_kept_aside(session: Session, worker: Worker) -> None:
    told = threading.Event()

    @worker.handler("t")
    def handle(ctx: BlockingTaskContext) -> dict[str, str]:
        told.wait(20)
        return {"made": "late"}

    task = await session.tasks.add("t", timeout=timedelta(milliseconds=50), max_attempts=1)
    async with worker:

        async def timed_out() -> bool:
            return (await session.tasks.get(task.id)).status == "dead"

        await eventually(timed_out)
        told.set()

        async def kept() -> bool:
            return [late.result for late in await session.tasks.late_results(task.id)] == [{"made": "late"}]

        await eventually(kept)
    assert (await session.tasks.get(task.id)).result is None
    assert (worker.counts.dead, worker.counts.refused) == (1, 1)


async def test_an_errors_text_cannot_forge_lines_of_the_log(
    session: Session, worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    @worker.handler("t")
    async def handle(ctx: Any) -> None:
        raise ValueError("a\nINFO all is well \x1b[2J\ud800")

    await session.tasks.add("t", max_attempts=1)
    with caplog.at_level(logging.WARNING, "blackboard.worker"):
        await worker.drain()
    [line] = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
    assert line.endswith(r"ValueError: a\nINFO all is well \x1b[2J\ud800") and line.isprintable()


async def test_capabilities_are_a_list_of_names(board: Blackboard, session: Session) -> None:
    with pytest.raises(InvalidInput, match=r"write \['x'\]"):
        Worker(board, session, agent_id="w", capabilities="x")
    with pytest.raises(InvalidInput, match=r"write \['x'\]"):
        await board.join([session], "w", capabilities="x")


async def _completed(worker: Worker) -> bool:
    return worker.counts.completed == 1


async def test_what_a_thread_was_given_is_an_argument_like_any_other(session: Session, worker: Worker) -> None:
    @worker.handler("t")
    def handle(ctx: BlockingTaskContext) -> None:
        other = ctx.session.join("ops/other")
        with ctx.transaction() as tx:
            tx.board.agent(other).findings.report("in the transaction", type="note")
            tx.complete()

    await session.tasks.add("t", max_attempts=1)
    assert (await worker.drain()).completed == 1
    [finding] = await session.findings.list()
    assert finding.agent_id == "ops/other"


async def test_events_that_nobody_reads_on_do_not_stop_the_loop(session: Session, worker: Worker) -> None:
    """The collector may come to them in the loop's own thread."""
    kept: list[Any] = []

    @worker.handler("t")
    def handle(ctx: BlockingTaskContext) -> None:
        pages = ctx.session.events.follow(ctx.session.events.read(limit=1).cursor)
        next(iter(pages))
        kept.append(pages)

    await session.tasks.add("t")
    assert (await worker.drain()).completed == 1
    assert kept
    kept.clear()
    assert await session.tasks.count() == {"completed": 1}


async def test_a_blocking_handle_refuses_where_it_would_wait_for_itself(session: Session, worker: Worker) -> None:
    kept: list[BlockingTaskContext] = []

    @worker.handler("t")
    def handle(ctx: BlockingTaskContext) -> None:
        kept.append(ctx)

    await session.tasks.add("t")
    assert (await worker.drain()).completed == 1
    with pytest.raises(ConfigurationError, match="own thread"):
        kept[0].agent.tasks.count()


def test_nor_does_it_wait_for_a_loop_that_has_ended() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(ConfigurationError, match="ended"):
        call(loop, asyncio.sleep(0))


async def test_a_thread_that_cannot_be_started_is_not_counted(
    session: Session, board: Blackboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(board, session, agent_id="w", concurrency=1)
    worker.register("t", lambda ctx: "done", retry=RetryPolicy(delay=timedelta(milliseconds=1)))
    start, refused = threading.Thread.start, list[str]()

    def start_later(thread: threading.Thread) -> None:
        if thread.name.startswith("blackboard-handler") and not refused:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_later)
    for _ in range(2):
        await session.tasks.add("t")
    async with asyncio.timeout(30):
        counts = await worker.drain(scheduled=True)
    assert refused and counts.completed == 2 and counts.retried == 1


async def test_a_call_without_a_thread_of_its_own_waits_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = Threads(2)
    gate = threading.Event()
    first = asyncio.create_task(threads.run(lambda _: gate.wait(), None))
    await asyncio.sleep(0)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        second = asyncio.create_task(threads.run(lambda given: given, 2))
        await asyncio.sleep(0)
    gate.set()
    assert await first is True
    assert await second == 2
    threads.close()
