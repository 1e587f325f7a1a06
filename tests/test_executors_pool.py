"""The executors' pools: bounds, idle connections, cancellation, restarts, event loops; for each driver alike."""

# ruff: noqa: F811 - fixtures are imported, and asked for by name

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from blackboard import errors
from blackboard.store import pool as pool_module
from blackboard.store.asyncpg_executor import AsyncpgExecutor
from blackboard.store.connections import open_executor
from blackboard.sync.store import pool as sync_pool_module
from blackboard.sync.store.connections import open_executor as open_blocking
from blackboard.sync.store.psycopg_executor import PsycopgExecutor as BlockingExecutor

from .executorkit import INSERT, KINDS, ONE, PID, SLEEP, backends, count, executor, kind, make, server, sql, until  # noqa: F401 - fixtures
from .serverfixture import PrivateServer

pytestmark = pytest.mark.lifecycle


# --- the pool --------------------------------------------------------------------------------------------------------


async def test_pool_holds_its_bound_under_load(make: Callable[..., Any], server: PrivateServer, kind: str):
    executor = make(pool_size=3, application_name=f"bound_{kind}")
    seen = sql("SELECT count(*) AS n FROM pg_stat_activity WHERE application_name = :name")

    async def work(i: int) -> int:
        if i % 5 == 0:
            async with executor.transaction() as tx:
                return (await tx.fetch_one(seen, name=f"bound_{kind}"))["n"]
        return (await executor.fetch_one(seen, name=f"bound_{kind}"))["n"]

    assert max(await asyncio.gather(*(work(i) for i in range(120)))) == 3


async def test_sequential_calls_share_one_connection(make: Callable[..., Any]):
    executor = make()
    assert len({(await executor.fetch_one(PID))["pid"] for _ in range(10)}) == 1


async def test_idle_connections_go(
    make: Callable[..., Any], server: PrivateServer, monkeypatch: pytest.MonkeyPatch, kind: str
):
    monkeypatch.setattr(pool_module, "IDLE_SECONDS", 0.2)
    monkeypatch.setattr(sync_pool_module, "IDLE_SECONDS", 0.2)
    name = f"idle_{kind}"
    executor = make(application_name=name)
    for _ in range(2):  # and come back when needed
        await asyncio.gather(*(executor.execute(SLEEP, seconds=0.05) for _ in range(4)))
        assert await backends(server, name) > 0

        async def gone() -> bool:
            return await backends(server, name) == 0

        await until(gone)


async def test_closed_executor_refuses(make: Callable[..., Any], server: PrivateServer, kind: str):
    name = f"closed_{kind}"
    executor = make(application_name=name)
    await executor.fetch_one(ONE, x=1)
    await executor.close()
    await executor.close()
    with pytest.raises(errors.ConfigurationError, match="closed"):
        await executor.fetch_one(ONE, x=1)
    with pytest.raises(errors.ConfigurationError, match="closed"):
        async with executor.transaction():
            pass

    async def gone() -> bool:
        return await backends(server, name) == 0

    await until(gone)


async def test_close_lets_running_calls_end(make: Callable[..., Any], server: PrivateServer, kind: str):
    name = f"closing_{kind}"
    executor = make(application_name=name)
    await executor.fetch_one(ONE, x=1)
    call = asyncio.create_task(executor.execute(SLEEP, seconds=0.3))
    await asyncio.sleep(0.1)
    await executor.close()
    await call

    async def gone() -> bool:
        return await backends(server, name) == 0

    await until(gone)


async def test_unused_executor_closes(make: Callable[..., Any]):
    await make().close()


# --- cancellation ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cancellable(kind: str) -> None:
    if kind == "blocking":
        pytest.skip("a thread cannot be cancelled")


@pytest.mark.usefixtures("cancellable")
async def test_cancelled_call_leaves_the_pool_whole(make: Callable[..., Any], server: PrivateServer, kind: str):
    name = f"cancel_{kind}"
    executor = make(pool_size=2, application_name=name)
    for _ in range(5):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await executor.execute(SLEEP, seconds=30)
        assert (await executor.fetch_one(ONE, x=1))["x"] == 1
    await asyncio.gather(*(executor.fetch_one(ONE, x=i) for i in range(20)))
    assert await backends(server, name) <= 2


@pytest.mark.usefixtures("cancellable")
async def test_cancelled_transaction_is_rolled_back(executor: Any, make: Callable[..., Any]):
    one = make(pool_size=1)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), one.transaction() as tx:
                await tx.execute(INSERT, id=uuid4(), name="a")
                await tx.execute(SLEEP, seconds=30)
        assert await count(one) == 0


@pytest.mark.usefixtures("cancellable")
async def test_call_cancelled_while_it_queues_gives_up_its_place(make: Callable[..., Any]):
    executor = make(pool_size=1)
    async with executor.transaction():
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await executor.fetch_one(ONE, x=1)
    assert (await executor.fetch_one(ONE, x=1))["x"] == 1


@pytest.mark.usefixtures("cancellable")
async def test_cancellation_at_any_moment(make: Callable[..., Any], server: PrivateServer, kind: str):
    name = f"chaos_{kind}"
    executor = make(pool_size=2, application_name=name)
    await executor.fetch_one(ONE, x=0)

    async def work(i: int) -> None:
        async with executor.transaction() as tx:
            assert (await tx.fetch_one(ONE, x=i))["x"] == i
            async with tx.transaction() as inner:
                await inner.execute(SLEEP, seconds=0.002)

    for i in range(60):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(i * 0.0002):
                await work(i)
    for i in range(10):
        assert (await executor.fetch_one(ONE, x=i))["x"] == i
    assert await backends(server, name) <= 2


@pytest.mark.usefixtures("cancellable")
async def test_tasks_may_share_a_transaction(executor: Any):
    async with executor.transaction() as tx:
        rows = await asyncio.gather(*(tx.fetch_one(ONE, x=i) for i in range(10)))
    assert [row["x"] for row in rows] == list(range(10))


# --- lost connections ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "crashed"])
async def test_restart_between_calls_is_not_noticed(
    make: Callable[..., Any], server: PrivateServer, how: signal.Signals
):
    executor = make(pool_size=3)
    await asyncio.gather(*(executor.execute(SLEEP, seconds=0.05) for _ in range(3)))
    await asyncio.to_thread(server.stop, how)
    await asyncio.to_thread(server.start)
    assert (await executor.fetch_one(ONE, x=1))["x"] == 1
    async with executor.transaction() as tx:
        assert (await tx.fetch_one(ONE, x=2))["x"] == 2


async def test_restart_before_a_transaction_is_not_noticed(make: Callable[..., Any], server: PrivateServer):
    executor = make()
    await executor.fetch_one(ONE, x=1)
    await asyncio.to_thread(server.restart)
    async with executor.transaction() as tx:
        assert (await tx.fetch_one(ONE, x=2))["x"] == 2


async def test_restart_inside_a_transaction_is_an_error(make: Callable[..., Any], server: PrivateServer):
    executor = make()
    with pytest.raises(errors.ServerUnreachable) as caught:
        async with executor.transaction() as tx:
            await tx.fetch_one(ONE, x=1)
            await asyncio.to_thread(server.restart)
            await tx.fetch_one(ONE, x=2)
    assert caught.value.__cause__ is not None
    assert (await executor.fetch_one(ONE, x=3))["x"] == 3


KILL_ONCE = sql(
    # Advisory locks go with the backend: the second try finds the marker row and lives.
    "SELECT CASE WHEN n = 0 THEN pg_terminate_backend(pg_backend_pid()) END AS x FROM counters WHERE id = 1"
)


async def test_cut_call_is_repeated_once(executor: Any):
    await executor.execute(sql("INSERT INTO counters VALUES (1, 0)"))
    with pytest.raises(errors.ServerUnreachable):  # cut in both tries
        await executor.fetch_one(KILL_ONCE)
    first = asyncio.create_task(executor.fetch_one(KILL_ONCE))
    await asyncio.sleep(0)
    await executor.execute(sql("UPDATE counters SET n = 1"))
    await asyncio.gather(first, return_exceptions=True)
    assert (await executor.fetch_one(ONE, x=1))["x"] == 1


async def test_stopped_server_is_unreachable_and_comes_back(make: Callable[..., Any], server: PrivateServer):
    executor = make()
    await executor.fetch_one(ONE, x=1)
    await asyncio.to_thread(server.stop)
    try:
        with pytest.raises(errors.ServerUnreachable):
            await executor.fetch_one(ONE, x=1)
    finally:
        await asyncio.to_thread(server.start)
    assert (await executor.fetch_one(ONE, x=1))["x"] == 1


async def test_changed_table_does_not_break_prepared_statements(executor: Any):
    read = sql("SELECT * FROM counters")
    for _ in range(10):
        await executor.fetch_all(read)
    await executor.execute(sql("ALTER TABLE counters ADD COLUMN IF NOT EXISTS extra text"))
    try:
        await executor.fetch_all(read)
    finally:
        await executor.execute(sql("ALTER TABLE counters DROP COLUMN extra"))


# --- event loops and threads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
# What the first loop left open is the point.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_handle_outlives_its_event_loop(server: PrivateServer, kind: str):
    executor = KINDS[kind](server.url())

    async def ask() -> int:
        return (await executor.fetch_one(ONE, x=1))["x"]

    assert asyncio.run(ask()) == 1
    assert asyncio.run(ask()) == 1

    async def in_another_loop() -> None:
        await ask()
        with pytest.raises(errors.ConfigurationError, match="event loop"):
            await asyncio.to_thread(asyncio.run, ask())
        await executor.close()

    asyncio.run(in_another_loop())
    gc.collect()


async def test_factories_choose_the_driver(server: PrivateServer):
    assert isinstance(open_executor(server.url()), AsyncpgExecutor)
    assert isinstance(open_blocking(server.url()), BlockingExecutor)
    with pytest.raises(errors.ConfigurationError):
        open_executor("mysql://x")
