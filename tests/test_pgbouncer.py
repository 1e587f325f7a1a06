"""Both drivers through a real PgBouncer in transaction mode, with more clients than server connections.

Needs the program ``pgbouncer`` (Debian: ``apt-get install pgbouncer``; 1.18 is the floor). Where it cannot be had,
``BLACKBOARD_TEST_PGBOUNCER=0`` deselects these tests; without it and without the program they fail.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from blackboard import errors
from blackboard.store.asyncpg_executor import AsyncpgExecutor
from blackboard.store.psycopg_executor import PsycopgExecutor
from blackboard.store.statements import Statement
from blackboard.sync.store.psycopg_executor import PsycopgExecutor as BlockingExecutor

from .serverfixture import PrivateServer, account

pytestmark = [
    pytest.mark.lifecycle,
    pytest.mark.skipif(
        os.environ.get("BLACKBOARD_TEST_PGBOUNCER") == "0", reason="deselected by BLACKBOARD_TEST_PGBOUNCER=0"
    ),
]

SERVER_CONNECTIONS = 3
CLIENTS = 12


def sql(text: str) -> Statement:
    return Statement.from_text("test", text)


ADD = sql("INSERT INTO things (id, n) VALUES (:id, CAST(:n AS integer)) RETURNING n, pg_backend_pid() AS pid")
COUNT = sql("SELECT count(*) AS n FROM things")


def _program() -> str:
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.fail(
            "pgbouncer is not installed: apt-get install pgbouncer (or brew install pgbouncer), "
            "or set BLACKBOARD_TEST_PGBOUNCER=0 to leave these tests out"
        )
    return found


class Pooler:
    """A PgBouncer before a private server, on a socket in the server's own directory."""

    def __init__(self, server: PrivateServer) -> None:
        self._server = server
        with socket.socket() as free:  # the socket's name needs a number that nobody else uses
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._home = server.root
        config = self._home / "pgbouncer.ini"
        config.write_text(
            f"[databases]\npostgres = host={server.root} port=5432 user=postgres\n"
            f"[pgbouncer]\nlisten_addr =\nunix_socket_dir = {self._home}\nlisten_port = {self.port}\n"
            f"auth_type = any\npool_mode = transaction\ndefault_pool_size = {SERVER_CONNECTIONS}\n"
            f"max_client_conn = 40\nlogfile = {self._home}/pgbouncer.log\npidfile = {self._home}/pgbouncer.pid\n"
        )
        config.chmod(0o644)
        self._process = subprocess.Popen([_program(), "-q", str(config)], cwd="/", start_new_session=True, **account())
        deadline = time.monotonic() + 10
        while True:
            try:
                psycopg.connect(self.url).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    log = self._home / "pgbouncer.log"
                    raise RuntimeError(log.read_text() if log.exists() else "no log") from None
                time.sleep(0.02)

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={self._home}&port={self.port}"

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(10)


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    _program()
    server = PrivateServer()
    try:
        server.start()
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("CREATE TABLE things (id uuid PRIMARY KEY, n integer NOT NULL)")
        yield server
    finally:
        server.destroy()


@pytest.fixture(scope="module")
def pooler(server: PrivateServer) -> Iterator[Pooler]:
    pooler = Pooler(server)
    try:
        yield pooler
    finally:
        pooler.stop()


@pytest.fixture(autouse=True)
def empty(server: PrivateServer, pooler: Pooler) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("TRUNCATE things")


@pytest.fixture(params=[AsyncpgExecutor, PsycopgExecutor], ids=["asyncpg", "psycopg"])
def kind(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param


async def test_many_clients_share_few_server_connections(kind: Callable[..., Any], pooler: Pooler):
    executors = [kind(pooler.url, pool_size=2) for _ in range(CLIENTS)]
    pids: set[int] = set()

    async def work(executor: Any) -> None:
        for n in range(15):
            identity = uuid4()
            pids.add((await executor.fetch_one(ADD, id=identity, n=n))["pid"])
            # Statements of many shapes, so that a name prepared on one server connection would meet another's.
            row = await executor.fetch_one(sql(f"SELECT CAST(:x AS integer) + {n} AS x"), x=n)
            assert row["x"] == 2 * n
            async with executor.transaction() as tx:
                await tx.execute(sql("UPDATE things SET n = n + 1 WHERE id = :id"), id=identity)
                async with tx.transaction() as inner:
                    assert (await inner.fetch_one(sql("SELECT n FROM things WHERE id = :id"), id=identity))[
                        "n"
                    ] == n + 1

    await asyncio.gather(*(work(executor) for executor in executors for _ in range(2)))
    assert (await executors[0].fetch_one(COUNT))["n"] == CLIENTS * 2 * 15
    assert 1 < len(pids) <= SERVER_CONNECTIONS
    for executor in executors:
        await executor.close()


def test_blocking_twin(pooler: Pooler):
    executor = BlockingExecutor(pooler.url, pool_size=4)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for n in range(20):
                executor.fetch_one(ADD, id=uuid4(), n=n)
                with executor.transaction() as tx:
                    tx.fetch_one(COUNT)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert executor.fetch_one(COUNT) == {"n": 160}
    executor.close()


async def test_nothing_stays_prepared_on_shared_connections(
    kind: Callable[..., Any], pooler: Pooler, server: PrivateServer
):
    executor = kind(pooler.url)
    for n in range(12):
        await executor.fetch_one(ADD, id=uuid4(), n=n)
    left = sql("SELECT count(*) AS n FROM pg_prepared_statements WHERE statement LIKE '%INSERT INTO things%'")
    assert (await executor.fetch_one(left))["n"] == 0
    await executor.close()


async def test_pooler_is_told_from_server(kind: Callable[..., Any], pooler: Pooler, server: PrivateServer):
    for url, pooled in ((pooler.url, True), (server.url(), False)):
        executor = kind(url)
        await executor.fetch_one(COUNT)
        assert executor._pooled is pooled
        await executor.close()


@pytest.mark.parametrize("pooled", [True, False])
async def test_said_is_said(kind: Callable[..., Any], server: PrivateServer, pooled: bool):
    executor = kind(server.url(), pooled=pooled)
    assert (await executor.fetch_one(ADD, id=UUID(int=1), n=5))["n"] == 5
    assert executor._pooled is pooled
    await executor.close()


async def test_errors_and_failed_writes(kind: Callable[..., Any], pooler: Pooler):
    executor = kind(pooler.url)
    await executor.execute(ADD, id=UUID(int=1), n=1)
    for _ in range(5):
        with pytest.raises(errors.AlreadyExists):
            await executor.execute(ADD, id=UUID(int=1), n=2)
        assert (await executor.fetch_one(COUNT))["n"] == 1
    await executor.close()


async def test_cancelled_calls_leave_no_transaction_on_the_pooler(kind: Callable[..., Any], pooler: Pooler):
    executor = kind(pooler.url, pool_size=2)
    for _ in range(SERVER_CONNECTIONS * 2):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await executor.execute(sql("SELECT pg_sleep(20)"))
    async with asyncio.timeout(10):
        assert (await executor.fetch_one(COUNT))["n"] == 0
    await executor.close()


async def test_full_pooler_is_too_many_connections(kind: Callable[..., Any], pooler: Pooler):
    taken = [psycopg.connect(pooler.url) for _ in range(39)]
    executor = kind(pooler.url, pool_size=4)
    try:
        with pytest.raises(errors.TooManyConnections):
            await asyncio.gather(*(executor.fetch_one(COUNT) for _ in range(4)))
    finally:
        await executor.close()
        for connection in taken:
            connection.close()


def test_missing_program_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(pytest.fail.Exception, match="apt-get install pgbouncer"):
        _program()
