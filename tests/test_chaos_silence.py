"""Connections that are dead, and nobody ever says so: behind a NAT that forgot them, before a host that is gone or hangs."""

# ruff: noqa: F401, F811 - fixtures are imported, and asked for by name

from __future__ import annotations

import asyncio
import os
import socket
from datetime import timedelta
from typing import Any

import pytest

from blackboard import Blackboard, RetryPolicy, Session, TaskContext, Worker
from blackboard.store import asyncpg_executor
from blackboard.store.asyncpg_executor import AsyncpgExecutor
from blackboard.store.psycopg_executor import PsycopgExecutor
from blackboard.store.statements import Statement
from blackboard.sync.store.psycopg_executor import PsycopgExecutor as BlockingExecutor
from blackboard.work import answers

from .chaos.kit import door, ended, far_board
from .chaos.proxy import Door
from .conftest import eventually

AGAIN = RetryPolicy(max_attempts=1000, delay=timedelta(milliseconds=20), factor=1)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(answers, "COMMIT_SECONDS", 0.5)
    monkeypatch.setattr(asyncpg_executor, "_CANCEL_SECONDS", 0.2)


@pytest.fixture
def far_term() -> timedelta:
    return timedelta(seconds=3)


@pytest.fixture
def worker(far_board: Blackboard, session: Session) -> Worker:
    return Worker(far_board, session.name, agent_id="w/there", poll_interval=timedelta(milliseconds=50), concurrency=4)


async def test_an_idle_worker_goes_on_claiming(session: Session, worker: Worker, door: Door) -> None:
    worker.register("t", lambda ctx: "done")
    async with worker:
        await ended(session, await session.tasks.add("t"))
        await asyncio.to_thread(door.deafen)
        done = await ended(session, await session.tasks.add("t"))
        assert done.status == "completed"


async def test_what_ran_meanwhile_is_written_once(session: Session, worker: Worker, door: Door) -> None:
    started, may_end = asyncio.Event(), asyncio.Event()

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> str:
        started.set()
        await may_end.wait()
        return "done"

    async with worker:
        task = await session.tasks.add("t")
        await asyncio.wait_for(started.wait(), 20)
        await asyncio.to_thread(door.deafen)
        may_end.set()
        done = await ended(session, task)
        assert (done.result, done.attempt) == ("done", 1), "the heartbeat kept the lease by a new connection"
    assert (worker.counts.completed, worker.counts.refused) == (1, 0)


@pytest.mark.parametrize("moment", ["before it begins", "in it", "before its commit"])
async def test_a_handlers_transaction_fails_and_is_made_again(
    session: Session, worker: Worker, door: Door, moment: str
) -> None:
    @worker.handler("pay", retry=AGAIN)
    async def handle(ctx: TaskContext) -> None:
        async def now(this: str) -> None:
            if ctx.task.attempt == 1 and moment == this:
                await asyncio.to_thread(door.deafen)

        async with ctx.transaction():
            pass  # there is a connection for the next one
        await now("before it begins")
        async with ctx.transaction() as tx:
            await tx.connection.execute("SELECT 1")
            await now("in it")
            await tx.complete("paid")
            await now("before its commit")

    async with worker:
        task = await session.tasks.add("pay")
        done = await ended(session, task)
        assert (done.status, done.result, done.attempt) == ("completed", "paid", 2)


async def test_a_new_lease_is_started(
    session: Session, board: Blackboard, far_board: Blackboard, worker: Worker, door: Door, db: Any
) -> None:
    worker.register("t", lambda ctx: "done")
    async with worker:
        lease_id = await far_board._leases.current()
        assert await db.fetchval("SELECT blackboard.end_lease($1)", lease_id)
        await asyncio.to_thread(door.deafen)
        done = await ended(session, await session.tasks.add("t"))
        assert done.status == "completed"

        async def another() -> bool:
            return await far_board._leases.current() != lease_id

        await eventually(another)


async def test_a_call_that_was_given_up_leaves_no_dead_connection_behind(database_url: str, door: Door) -> None:
    executor = AsyncpgExecutor(door.url(database_url), pool_size=1)
    one = Statement.from_text("one", "SELECT 1 AS one")
    try:
        assert await executor.fetch_one(one) == {"one": 1}
        await asyncio.to_thread(door.deafen)
        for seconds in (0.3, 0.1):  # in the call itself, and then in the question whether the connection still lives
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(seconds):
                    await executor.fetch_one(one)
        async with asyncio.timeout(20):
            assert await executor.fetch_one(one) == {"one": 1}
        await asyncio.to_thread(door.deafen)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3), executor.transaction() as tx:
                await tx.fetch_one(one)
        async with asyncio.timeout(20), executor.transaction() as tx:
            assert await tx.fetch_one(one) == {"one": 1}
    finally:
        await executor.close()


async def test_the_system_is_asked_to_find_dead_connections(database_url: str, door: Door) -> None:
    """A host that is gone answers nothing; only then, and not before, a proxy in between would hide it from a test."""
    executor = AsyncpgExecutor(door.url(database_url))
    async with executor.transaction() as tx:
        connection: Any = tx
        found = connection.connection._transport.get_extra_info("socket")
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
    await executor.close()
    for kind in (PsycopgExecutor, BlockingExecutor):
        for given, idle in (("", 15), ("?keepalives_idle=77", 77)):
            executor = kind(door.url(database_url) + given)
            connection = executor._open()
            connection = (await connection if asyncio.iscoroutine(connection) else connection)._connection
            found = socket.socket(fileno=os.dup(connection.fileno()))
            assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == idle
            assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
            found.close()
            connection.pgconn.finish()
