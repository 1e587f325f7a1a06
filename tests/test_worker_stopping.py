"""Workers that end, die, lose their lease or their database; and what the handlers' own transactions then hold."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest

from blackboard import Blackboard, BlockingTaskContext, NewTask, Session, TaskContext, Worker
from blackboard.store import migrations

from .conftest import Clock, eventually
from .serverfixture import PrivateServer

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Process: TypeAlias = asyncio.subprocess.Process

APP = Path(__file__).with_name("worker_app.py")


class Apps:
    """Workers in processes of their own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.processes: list[Process] = []

    async def start(self, session: Session, *arguments: str) -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(APP), self._url, str(session.id), *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self.processes.append(process)
        assert await line(process) == "ready"
        return process


async def line(process: Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()


@pytest.fixture
async def apps(database_url: str) -> AsyncIterator[Apps]:
    started = Apps(database_url)
    yield started
    for process in started.processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def running(session: Session) -> int:
    return len(await session.tasks.list(status="running"))


async def test_sigterm_hands_back_what_was_not_started_and_lets_the_rest_end(session: Session, apps: Apps) -> None:
    process = await apps.start(session, "1")
    # A handler that was quick makes the worker claim ahead; then one holds the only slot.
    await session.tasks.add_many([NewTask(type="echo", parameters={}) for _ in range(300)])
    await session.tasks.add("gate")
    await session.tasks.add_many([NewTask(type="echo", parameters={"n": n}) for n in range(50)])
    first = await line(process)
    assert first.startswith("started")
    process.send_signal(signal.SIGTERM)
    other = await session.join("w/other")
    got: list[str] = []

    async def all_are_back() -> bool:
        got.extend(task.type for task in await other.tasks.claim(100))
        return got.count("echo") == 50

    # Claimable at once, while the handler is still at work.
    await eventually(all_are_back)
    assert "gate" not in got
    await session.tasks.add("key")
    assert (await line(process)).startswith("ended Counts(")
    assert await process.wait() == 0
    [gate] = await session.tasks.list(type="gate")
    assert (gate.status, gate.result) == ("completed", "passed")


@pytest.mark.parametrize("kind", ["gate", "deaf"])
async def test_a_second_signal_stops_at_once(session: Session, apps: Apps, kind: str) -> None:
    process = await apps.start(session)
    task = await session.tasks.add(kind)
    assert await line(process) == f"started {task.id}"
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    while b"still running" not in await asyncio.wait_for(process.stderr.readline(), 30):
        pass
    process.send_signal(signal.SIGINT)
    if kind == "gate":
        assert await line(process) == "cancelled stopping"
    assert (await line(process)).startswith("ended")
    assert await process.wait() == 0
    back = await session.tasks.get(task.id)
    assert (back.status, back.released) == ("pending", 1)


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_rows_and_completion_commit_once_whenever_the_process_dies(
    session: Session, apps: Apps, db: Connection, clock: Clock, moment: str
) -> None:
    await db.execute("CREATE TABLE IF NOT EXISTS public.ledger (id uuid, attempt integer)")
    try:
        task = await session.tasks.add("pay", {"die": moment})
        process = await apps.start(session)
        assert await process.wait() == -signal.SIGKILL
        assert await db.fetchval("SELECT count(*) FROM public.ledger") == (0 if moment == "before" else 1)
        # Its lease lapses; somebody else comes.
        await clock.advance(timedelta(seconds=31))
        await apps.start(session)
        done = await session.tasks.wait(task.id, timedelta(seconds=20))
        attempt = 2 if moment == "before" else 1
        assert (done.status, done.result) == ("completed", {"attempt": attempt})
        rows = await db.fetch("SELECT id, attempt FROM public.ledger")
        assert [tuple(row) for row in rows] == [(task.id, attempt)]
    finally:
        await db.execute("DROP TABLE public.ledger")


@pytest.fixture
def worker(board: Blackboard, session: Session) -> Worker:
    return Worker(board, session, agent_id="w/1", grace=timedelta(seconds=10))


async def test_a_lost_lease_cancels_what_runs_and_work_goes_on_under_a_new_one(
    board: Blackboard, session: Session, worker: Worker, db: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    reasons: list[str | None] = []
    leases: list[uuid.UUID] = []
    release = threading.Event()

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> str:
        leases.append(ctx.lease_id)
        if ctx.task.attempt == 1:
            try:
                await asyncio.Event().wait()
            finally:
                reasons.append(ctx.reason)
        return "second"

    @worker.handler("thread")
    def thread(ctx: BlockingTaskContext) -> str:
        if ctx.task.attempt == 1:
            release.wait(20)
            reasons.append(ctx.reason)
        return f"by {ctx.task.attempt}"

    one = await session.tasks.add("t")
    two = await session.tasks.add("thread")
    async with worker:

        async def both() -> bool:
            return await running(session) == 2

        await eventually(both)
        lease_id = await session.scope.leases.current()
        assert await db.fetchval("SELECT blackboard.end_lease($1)", lease_id)
        if (heartbeat := session.scope.leases._heartbeat) is not None:  # type: ignore[attr-defined]
            # Otherwise a claim has found out already.
            heartbeat.beat_now()
        done = await session.tasks.wait(one.id, timedelta(seconds=20))
        assert (done.status, done.result, done.attempt) == ("completed", "second", 2)
        assert (await session.tasks.wait(two.id, timedelta(seconds=20))).result == "by 2"
        release.set()

        async def seen() -> bool:
            return len(reasons) == 2

        await eventually(seen)
        assert (await session.agents.get("w/1")).present
    assert reasons == ["lease_lost", "lease_lost"]
    assert len(set(leases)) == 2
    assert worker.counts.lost == 2 and worker.counts.completed == 2
    # Of the first attempts only what the thread still made is there, kept aside.
    assert await session.tasks.late_results(one.id) == []
    assert [late.result for late in await session.tasks.late_results(two.id)] == ["by 1"]


async def test_a_claim_whose_answer_was_cut_is_handed_back_with_the_next_heartbeat(
    board: Blackboard, session: Session, worker: Worker, db: Connection
) -> None:
    """And what this process claimed by hand, for the same agent, is not."""
    done: list[int] = []

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        done.append(ctx.task.attempt)

    by_hand = await session.join("w/1")
    async with worker:
        await session.tasks.add("mine", capability="special")
        [mine] = await by_hand.tasks.claim(capabilities=["special"])
        lease_id = await session.scope.leases.current()
        await session.pause()
        cut = await session.tasks.add("t")
        # Under the worker's lease and for its agent, but with a claim id that it does not know.
        await db.execute("UPDATE blackboard.sessions SET status = 'active' WHERE id = $1", session.id)
        claimed = await db.fetch(
            "SELECT id FROM blackboard.claim_tasks($1, 'w/1', '{}', $2, $3, 1)", session.id, lease_id, uuid.uuid4()
        )
        if claimed:  # else the worker was quicker, and has it
            session.scope.leases._heartbeat.beat_now()  # type: ignore[attr-defined]
        finished = await session.tasks.wait(cut.id, timedelta(seconds=20))
        assert finished.status == "completed"
        assert finished.released == (1 if claimed else 0)
        await by_hand.tasks.complete(mine)


async def test_a_long_claim_by_hand_survives_many_heartbeats(session: Session, worker: Worker) -> None:
    worker.register("t", lambda ctx: None)
    by_hand = await session.join("w/1")
    async with worker:
        await session.tasks.add("mine", capability="special")
        [mine] = await by_hand.tasks.claim(capabilities=["special"])
        for _ in range(5):
            heartbeat = session.scope.leases._heartbeat  # type: ignore[attr-defined]
            before = heartbeat.renewals
            heartbeat.beat_now()

            async def beaten(heartbeat: object = heartbeat, before: int = before) -> bool:
                return heartbeat.renewals > before  # type: ignore[attr-defined]

            await eventually(beaten)
            await worker._core.guard.audit(await session.scope.leases.current())  # type: ignore[union-attr]
        await by_hand.tasks.complete(mine)


async def test_stopping_in_the_block_cancels_what_runs_when_the_block_fails(session: Session, worker: Worker) -> None:
    started = asyncio.Event()

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        started.set()
        await asyncio.Event().wait()

    task = await session.tasks.add("t")
    with pytest.raises(RuntimeError, match="the block"):
        async with worker:
            await asyncio.wait_for(started.wait(), 20)
            raise RuntimeError("the block")
    assert (await session.tasks.get(task.id)).status == "pending"


async def test_handlers_that_outlast_the_grace_are_stopped(board: Blackboard, session: Session) -> None:
    worker = Worker(board, session, agent_id="w/1", grace=timedelta(milliseconds=50))
    started = asyncio.Event()

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        started.set()
        await asyncio.Event().wait()

    task = await session.tasks.add("t")
    async with worker:
        await asyncio.wait_for(started.wait(), 20)
    assert (await session.tasks.get(task.id)).status == "pending"


@pytest.mark.lifecycle
async def test_an_outage_longer_than_the_lease_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    server = PrivateServer()
    try:
        await asyncio.to_thread(server.start)
        url = server.url()
        await asyncio.to_thread(migrations.upgrade, url)
        async with Blackboard.open(url, lease_term=timedelta(seconds=1)) as board:
            session = await board.start("outage")
            worker = Worker(board, session, agent_id="w/1")
            gate, started = asyncio.Event(), asyncio.Event()

            @worker.handler("t")
            async def handle(ctx: TaskContext) -> int:
                if ctx.parameters["n"] == 0:
                    started.set()
                    await gate.wait()
                return ctx.parameters["n"]

            first = await session.tasks.add("t", {"n": 0})
            with caplog.at_level(logging.WARNING, logger="blackboard.worker"):
                async with worker:
                    await asyncio.wait_for(started.wait(), 20)
                    await asyncio.to_thread(server.stop, signal.SIGQUIT)
                    down = time.monotonic()
                    # It ends while nobody can be told.
                    gate.set()

                    async def long_enough() -> bool:
                        return time.monotonic() - down > 2.5

                    await eventually(long_enough)
                    await asyncio.to_thread(server.start)
                    done = await session.tasks.wait(first.id, timedelta(seconds=30))
                    assert (done.status, done.result, done.attempt) == ("completed", 0, 1)
                    second = await session.tasks.add("t", {"n": 1})
                    assert (await session.tasks.wait(second.id, timedelta(seconds=30))).result == 1
            said = [message for message in caplog.messages if "waits for the database" in message]
            assert len([message for message in said if "results" in message]) == 1, "once a minute"
    finally:
        server.destroy()


async def test_results_of_a_board_without_its_worker_are_late(session: Session, worker: Worker, db: Connection) -> None:
    """A result that is handed in for a task that was taken away is kept aside."""
    taken = asyncio.Event()

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> str:
        if ctx.task.attempt == 1:
            await db.execute("UPDATE blackboard.tasks SET status = 'pending', lease_id = NULL, started_at = NULL, "
                             "position = 1 WHERE id = $1", ctx.task.id)  # fmt: skip
            taken.set()
        return f"by {ctx.task.attempt}"

    task = await session.tasks.add("t")
    counts = await worker.drain()
    assert taken.is_set() and (counts.refused, counts.completed) == (1, 1)
    assert (await session.tasks.get(task.id)).result == "by 2"
    [late] = await session.tasks.late_results(task.id)
    assert late.result == "by 1"
