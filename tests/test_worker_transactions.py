"""What a handler writes with its completion: all of it once, or nothing."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TypeAlias

import asyncpg
import pytest

from blackboard import Blackboard, BlockingTaskContext, NewTask, RetryPolicy, Session, TaskContext, Worker
from blackboard.errors import ConfigurationError, LeaseLost

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Process: TypeAlias = asyncio.subprocess.Process


@pytest.fixture
def worker(board: Blackboard, session: Session) -> Worker:
    return Worker(board, session, agent_id="w/1", grace=timedelta(seconds=10))


async def test_a_completion_that_comes_too_late_takes_the_handlers_rows_back(
    board: Blackboard, session: Session, worker: Worker, db: Connection
) -> None:
    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        if ctx.task.attempt > 1:
            return
        # Somebody takes the task away while we work.
        await db.execute("SELECT * FROM blackboard.release_tasks($1, ARRAY[$2::uuid], ARRAY[$3::uuid], ARRAY[1], "
                         "ARRAY[NULL::interval], ARRAY[NULL::jsonb], 'x')",
                         ctx.session.id, ctx.task.id, ctx.task.claim_id)  # fmt: skip
        async with ctx.transaction() as tx:
            await tx.agent.findings.report("never seen", type="x")
            await tx.complete("late")

    task = await session.tasks.add("t")
    counts = await worker.drain()
    assert (counts.completed, counts.refused) == (1, 1)
    assert await session.findings.list() == []
    [late] = await session.tasks.late_results(task.id)
    assert (late.result, late.attempt) == ("late", 1)


async def test_a_transaction_without_completion_commits_and_the_task_goes_on(session: Session, worker: Worker) -> None:
    @worker.handler("t")
    async def handle(ctx: TaskContext) -> str:
        async with ctx.transaction(isolation="serializable") as tx:
            await tx.agent.findings.report("half way", type="x")
            assert await tx.connection.fetchval("SHOW transaction_isolation") == "serializable"
        return "whole"

    task = await session.tasks.add("t")
    assert (await worker.drain()).completed == 1
    assert (await session.tasks.get(task.id)).result == "whole"
    assert len(await session.findings.list()) == 1


async def test_a_handler_that_hides_a_failed_commit_does_not_complete_its_task(
    session: Session, worker: Worker
) -> None:
    @worker.handler("t", retry=RetryPolicy(max_attempts=1))
    async def handle(ctx: TaskContext) -> str:
        try:
            async with ctx.transaction() as tx:
                await tx.complete("done")
                raise RuntimeError("after the completion")
        except RuntimeError:
            return "fine"

    task = await session.tasks.add("t")
    assert (await worker.drain()).dead == 1
    assert (await session.tasks.get(task.id)).error["code"] == "not_committed"


async def test_transactions_of_all_slots_at_once_do_not_wait_for_each_other(
    board: Blackboard, session: Session
) -> None:
    """More of them than the board's pool has connections, each in need of one of those too."""
    worker = Worker(board, session, agent_id="w/1", concurrency=8)
    barrier = asyncio.Barrier(8)

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        async with ctx.transaction() as tx:
            await barrier.wait()
            await ctx.progress(1)
            await tx.agent.findings.report(str(ctx.task.id), type="x")

    await session.tasks.add_many([NewTask(type="t") for _ in range(8)])
    assert (await asyncio.wait_for(worker.drain(), 30)).completed == 8


@pytest.mark.parametrize("blocking", [False, True])
async def test_rows_of_a_lost_attempt_go_also_when_its_handler_hides_that(
    session: Session, worker: Worker, db: Connection, blocking: bool
) -> None:
    release = (
        "SELECT * FROM blackboard.release_tasks($1, ARRAY[$2::uuid], ARRAY[$3::uuid], ARRAY[1], "
        "ARRAY[NULL::interval], ARRAY[NULL::jsonb], 'x')"
    )
    told: list[str] = []

    async def handle(ctx: TaskContext) -> None:
        if ctx.task.attempt > 1:
            return
        await db.execute(release, ctx.session.id, ctx.task.id, ctx.task.claim_id)
        async with ctx.transaction() as tx:
            await tx.agent.findings.report("never seen", type="x")
            try:
                await tx.complete("late")
            except LeaseLost as error:
                told.append(error.code)

    def in_a_thread(ctx: BlockingTaskContext) -> None:
        if ctx.task.attempt > 1:
            return
        with ctx.transaction() as tx:
            tx.agent.findings.report("never seen", type="x")
            taken = db.execute(release, ctx.session.id, ctx.task.id, ctx.task.claim_id)
            asyncio.run_coroutine_threadsafe(taken, loop).result()
            try:
                tx.complete("late")
            except LeaseLost as error:
                told.append(error.code)

    loop = asyncio.get_running_loop()
    worker.register("t", in_a_thread if blocking else handle)
    task = await session.tasks.add("t")
    counts = await worker.drain()
    assert (counts.completed, counts.refused, told) == (1, 1, ["lease_lost"])
    assert await session.findings.list() == []
    [late] = await session.tasks.late_results(task.id)
    assert (late.result, late.attempt) == ("late", 1)


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_task_has_one_transaction_at_a_time(board: Blackboard, session: Session, blocking: bool) -> None:
    """There are as many connections as handlers: with a second one they would wait for each other."""
    worker = Worker(board, session, agent_id="w/1", concurrency=1)

    async def handle(ctx: TaskContext) -> None:
        async with ctx.transaction() as one:
            with pytest.raises(ConfigurationError, match="savepoints"):
                await ctx.transaction().__aenter__()
            await one.agent.findings.report("first", type="x")
        async with ctx.transaction() as two:
            await two.agent.findings.report("second", type="x")
            await two.complete("both")

    def in_a_thread(ctx: BlockingTaskContext) -> None:
        with ctx.transaction() as one:
            with pytest.raises(ConfigurationError, match="savepoints"):
                ctx.transaction().__enter__()
            one.agent.findings.report("first", type="x")
        with ctx.transaction() as two:
            two.agent.findings.report("second", type="x")
            two.complete("both")

    worker.register("t", in_a_thread if blocking else handle)
    task = await session.tasks.add("t", max_attempts=1)
    assert (await asyncio.wait_for(worker.drain(), 30)).completed == 1
    assert (await session.tasks.get(task.id)).result == "both"
    assert {finding.content for finding in await session.findings.list()} == {"first", "second"}
