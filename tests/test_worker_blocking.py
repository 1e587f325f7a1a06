"""What a handler in a thread can use of the board: everything that one on the loop can, by the same names."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from typing import Any

import pytest

from blackboard import Blackboard, BlockingTaskContext, Session, Worker
from blackboard.errors import InvalidInput

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
