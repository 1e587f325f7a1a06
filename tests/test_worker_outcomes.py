"""How attempts end: results, failures, retries, signals, time-outs, threads."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import (
    Blackboard,
    BlockingTaskContext,
    DeadLetter,
    NewTask,
    Release,
    RetryLater,
    RetryPolicy,
    Session,
    TaskCancelled,
    TaskContext,
    Worker,
)
from blackboard.errors import InvalidInput

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

SOON = RetryPolicy(max_attempts=3, delay=timedelta(milliseconds=1), jitter=0)


@pytest.fixture
def worker(board: Blackboard, session: Session) -> Worker:
    return Worker(board, session, agent_id="w/1", poll_interval=timedelta(seconds=5))


async def test_an_exception_fails_the_attempt_with_its_traceback(session: Session, worker: Worker) -> None:
    @worker.handler("bad", retry=SOON)
    async def bad(ctx: TaskContext) -> None:
        raise ValueError(f"no {ctx.task.attempt}\0\ud800")

    task = await session.tasks.add("bad")
    counts = await worker.drain(scheduled=True)
    assert (counts.retried, counts.dead) == (2, 1)
    dead = await session.tasks.get(task.id)
    assert (dead.status, dead.attempt, dead.max_attempts, dead.error["code"]) == ("dead", 3, 3, "ValueError")
    log = await session.tasks.attempts(task.id)
    assert [(one.attempt, one.outcome, one.agent_id) for one in log] == [
        (1, "retried", "w/1"), (2, "retried", "w/1"), (3, "dead", "w/1"),
    ]  # fmt: skip
    assert all("raise ValueError" in one.error["traceback"] and one.ended_at is not None for one in log)


async def test_a_task_keeps_its_own_policy(session: Session, worker: Worker) -> None:
    @worker.handler("bad", retry=SOON)
    async def bad(ctx: TaskContext) -> None:
        raise ValueError

    task = await session.tasks.add("bad", max_attempts=1)
    assert (await worker.drain()).dead == 1
    assert (await session.tasks.get(task.id)).attempt == 1


async def test_usual_numbers_are_nobodys_own(session: Session, worker: Worker) -> None:
    """The board keeps numbers and not who chose them; one that is unusual makes both the task's own."""

    @worker.handler("bad", retry=RetryPolicy(max_attempts=1))
    async def bad(ctx: TaskContext) -> None:
        raise ValueError

    usual = await session.tasks.add("bad", max_attempts=5, retry_delay=timedelta(seconds=1))
    own = await session.tasks.add("bad", max_attempts=5, retry_delay=timedelta(milliseconds=1))
    counts = await worker.drain(scheduled=True)
    assert (counts.dead, counts.retried) == (2, 4)
    assert [(await session.tasks.get(task.id)).attempt for task in (usual, own)] == [1, 5]


def test_the_policy_is_arithmetic() -> None:
    policy = RetryPolicy(delay=timedelta(seconds=2), factor=3, max_delay=timedelta(seconds=30), jitter=0.5)
    middle = [policy.delay_after(n, lambda: 0.5).total_seconds() for n in (1, 2, 3, 4, 2000)]
    assert middle == [2, 6, 18, 30, 30]
    assert policy.delay_after(1, lambda: 0.0).total_seconds() == 1
    for wrong in ({"max_attempts": 0}, {"delay": timedelta(-1)}, {"factor": 0.5}, {"jitter": 2}):
        with pytest.raises(InvalidInput):
            RetryPolicy(**wrong)
    with pytest.raises(InvalidInput):
        RetryLater(-1)


@pytest.mark.parametrize("returned", [True, False])
async def test_signals_end_an_attempt_otherwise(session: Session, worker: Worker, returned: bool) -> None:
    seen: list[tuple[str, int]] = []

    @worker.handler("t", retry=RetryPolicy(max_attempts=1))
    async def handle(ctx: TaskContext) -> Any:
        kind = ctx.parameters["kind"]
        seen.append((kind, ctx.task.attempt))
        signal: Exception | None = None
        if kind == "dead":
            signal = DeadLetter("no such customer")
        elif ctx.task.attempt < 3:
            signal = RetryLater(0.001, "rate limit") if kind == "later" else Release()
        if signal is None or returned:
            return signal
        raise signal

    ids = {kind: (await session.tasks.add("t", {"kind": kind})).id for kind in ("later", "release", "dead")}
    counts = await worker.drain(scheduled=True)
    assert (counts.released, counts.completed, counts.dead) == (4, 2, 1)
    later, release, dead = [await session.tasks.get(ids[kind]) for kind in ("later", "release", "dead")]
    # With one attempt allowed, neither counted as a failure.
    assert (later.status, later.attempt, later.released) == ("completed", 3, 2)
    assert (release.status, release.attempt, release.released) == ("completed", 3, 2)
    assert (dead.status, dead.error["code"], dead.error["message"]) == ("dead", "dead_letter", "no such customer")
    assert [one.error and one.error["message"] for one in await session.tasks.attempts(later.id)] == [
        "rate limit", "rate limit", None,
    ]  # fmt: skip
    assert [one.outcome for one in await session.tasks.attempts(release.id)] == ["released", "released", "completed"]


async def test_results_that_are_no_json_fail_the_attempt_and_no_other(session: Session, worker: Worker) -> None:
    @worker.handler("t", retry=RetryPolicy(max_attempts=1))
    async def handle(ctx: TaskContext) -> Any:
        return {1} if ctx.parameters["n"] == 1 else "fine"

    ids = await session.tasks.add_many([NewTask(type="t", parameters={"n": n}) for n in range(3)])
    counts = await worker.drain()
    assert (counts.completed, counts.dead) == (2, 1)
    assert (await session.tasks.get(ids[1])).error["code"] == "InvalidInput"


async def test_a_result_that_the_database_refuses_fails_alone(session: Session, worker: Worker) -> None:
    @worker.handler("t", retry=RetryPolicy(max_attempts=1))
    async def handle(ctx: TaskContext) -> Any:
        # As text below the limit, as jsonb over it: numbers take more room there.
        return list(range(100, 100 + 150_000)) if ctx.parameters["n"] == 1 else "fine"

    ids = await session.tasks.add_many([NewTask(type="t", parameters={"n": n}) for n in range(5)])
    counts = await worker.drain()
    assert (counts.completed, counts.dead) == (4, 1)
    refused = await session.tasks.get(ids[1])
    assert refused.status == "dead" and refused.error["code"] == "PayloadTooLarge"


async def test_unknown_types_go_back_for_others_and_are_said_once(
    session: Session, worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    @worker.handler("known")
    async def known(ctx: TaskContext) -> None:
        return None

    ids = await session.tasks.add_many([NewTask(type="strange") for _ in range(3)])
    assert (await worker.drain()).released == 3
    task = await session.tasks.get(ids[0])
    assert (task.status, task.released, task.error["code"]) == ("scheduled", 1, "unknown_type")
    assert sum("no handler for tasks of type 'strange'" in line for line in caplog.messages) == 1


async def test_blocking_handlers_run_in_threads_and_their_context_blocks(
    board: Blackboard, session: Session, db: Connection
) -> None:
    worker = Worker(board, session, agent_id="w/1", concurrency=2)
    await db.execute("CREATE TABLE IF NOT EXISTS public.paid (id uuid)")
    barrier = threading.Barrier(2, timeout=10)

    @worker.handler("t")
    def handle(ctx: BlockingTaskContext) -> dict[str, Any]:
        assert threading.current_thread() is not threading.main_thread()
        barrier.wait()  # two at once, or it breaks
        ctx.progress({"done": 0.5})
        finding = ctx.agent.findings.report("slow", type="metric")
        assert ctx.session.tasks.get(ctx.task.id).progress == {"done": 0.5}
        with ctx.transaction() as tx:
            tx.connection.execute("INSERT INTO public.paid VALUES ($1)", ctx.task.id)
            tx.agent.findings.report(f"paid {ctx.task.id}", type="invoice")
            tx.complete({"finding": str(finding.id)})
        return {"ignored": True}

    try:
        ids = await session.tasks.add_many([NewTask(type="t", parameters={"n": n}) for n in range(2)])
        assert (await worker.drain()).completed == 2
        assert "finding" in (await session.tasks.get(ids[0])).result
        assert await db.fetchval("SELECT count(*) FROM public.paid") == 2
        assert len(await session.findings.list(type="invoice")) == 2
    finally:
        await db.execute("DROP TABLE public.paid")


async def test_a_task_over_its_time_is_cancelled_and_retried(session: Session, worker: Worker) -> None:
    ended: list[str | None] = []

    @worker.handler("t", retry=SOON)
    async def handle(ctx: TaskContext) -> str:
        if ctx.task.attempt == 2:
            return "quick"
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(ctx.reason)
        return "never"

    task = await session.tasks.add("t", timeout=timedelta(milliseconds=200))
    counts = await worker.drain(scheduled=True)
    assert (counts.retried, counts.completed, ended) == (1, 1, ["timeout"])
    log = await session.tasks.attempts(task.id)
    assert [(one.outcome, one.error and one.error["code"]) for one in log] == [
        ("retried", "timeout"),
        ("completed", None),
    ]


async def test_a_thread_over_its_time_sees_it_and_its_result_does_not_count(session: Session, worker: Worker) -> None:
    ended = threading.Event()
    reasons: list[str] = []

    @worker.handler("t", retry=RetryPolicy(max_attempts=1))
    def handle(ctx: BlockingTaskContext) -> str:
        try:
            while True:
                ctx.raise_if_cancelled()
                threading.Event().wait(0.005)
        except TaskCancelled as stop:
            reasons.append(stop.reason)
            ended.set()
        return "too late"

    task = await session.tasks.add("t", timeout=timedelta(milliseconds=100))
    assert (await worker.drain()).dead == 1
    assert await asyncio.to_thread(ended.wait, 10)
    assert reasons == ["timeout"]
    assert (await session.tasks.get(task.id)).error["code"] == "timeout"
