"""One migrated database per worker on a real PostgreSQL, emptied between tests; no test sees another's rows.

``BLACKBOARD_TEST_URL`` names a server to use (its role needs CREATEDB); otherwise a throw-away one is started from the
embedded binaries, or from those in ``BLACKBOARD_TEST_PG_BIN``. The database is cloned from a migrated template, and emptied by DELETE, so that commits and NOTIFY
stay real. A test marked ``fresh_database`` gets a clone of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest

# Nothing of the developer's own setup may reach the tests.
TEST_URL = os.environ.pop("BLACKBOARD_TEST_URL", None)
TEST_PG_BIN = os.environ.get("BLACKBOARD_TEST_PG_BIN")
for _name in [name for name in os.environ if name.startswith(("BLACKBOARD_", "SWARM_")) and "_TEST_" not in name]:
    del os.environ[_name]
os.environ.pop("AGENT_ID", None)
os.environ["XDG_CONFIG_HOME"] = "/nonexistent"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts the suite in the background has it ignored, and every process that a test interrupts with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

from blackboard import Blackboard, Session  # noqa: E402 - after the environment is clean
from blackboard.store import migrations  # noqa: E402
from blackboard.store.temporary import temporary_server  # noqa: E402
from blackboard.store.urls import normalise_url  # noqa: E402

_KEY = pytest.StashKey[contextlib.ExitStack]()


def pytest_configure(config: pytest.Config) -> None:
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        config.stash[_URL] = worker["server_url"]
        return
    stack = contextlib.ExitStack()
    if TEST_URL:
        url = normalise_url(TEST_URL)
    else:
        server = stack.enter_context(
            temporary_server(
                settings={"max_prepared_transactions": "10"}, bin_dir=Path(TEST_PG_BIN) if TEST_PG_BIN else None
            )
        )
        url = server.url("postgres")
    config.stash[_URL] = url
    config.stash[_KEY] = stack


_URL = pytest.StashKey[str]()


def pytest_configure_node(node: Any) -> None:
    node.workerinput["server_url"] = node.config.stash[_URL]


def pytest_unconfigure(config: pytest.Config) -> None:
    stack = config.stash.get(_KEY, None)
    if stack is not None:
        stack.close()


_WINDOWS = ("analysis", "cli", "demo", "incident", "mcp", "readme", "report", "swarm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name.startswith(tuple(f"test_{window}" for window in _WINDOWS)):
            item.add_marker("window")


def with_database(url: str, name: str) -> str:
    """``url`` with another database in it."""
    head, _, query = url.partition("?")
    base = head.rsplit("/", 1)[0] if head.count("/") > 2 else head
    return f"{base}/{name}" + (f"?{query}" if query else "")


@pytest.fixture(scope="session")
def server_url(request: pytest.FixtureRequest) -> str:
    """The test server's URL, with a maintenance database."""
    return request.config.stash[_URL]


@pytest.fixture(scope="session")
def create_database(server_url: str) -> Iterator[Callable[..., str]]:
    """Makes databases by name of a template; they are dropped in the end."""
    made: list[str] = []

    def create(template: str = "template1") -> str:
        name = f"bbtest_{os.getpid()}_{uuid.uuid4().hex[:8]}"
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY'.encode())
        made.append(name)
        return with_database(server_url, name)

    yield create
    with psycopg.connect(server_url, autocommit=True) as connection:
        for name in reversed(made):
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())


@pytest.fixture(scope="session")
def template(create_database: Callable[..., str]) -> str:
    """The name of a migrated database that nobody is connected to."""
    url = create_database()
    migrations.upgrade(url)
    return url.partition("?")[0].rsplit("/", 1)[1]


@pytest.fixture(scope="session")
def _worker_database(create_database: Callable[..., str], template: str) -> str:
    return create_database(template)


@pytest.fixture(scope="session")
def _wipe(_worker_database: str) -> str:
    with psycopg.connect(_worker_database) as connection:
        tables = connection.execute(
            """SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
               WHERE schemaname = 'blackboard' AND tablename NOT IN ('schema_version', 'history', 'liveness')"""
        ).fetchall()
    deletes = ";".join(f"DELETE FROM {table}" for (table,) in tables)
    return (
        f"SET session_replication_role = replica; {deletes}; SET session_replication_role = origin; "
        "UPDATE blackboard.liveness SET checked_at = blackboard.now(), grace_from = blackboard.now(), unswept = false, "
        "repaired_at = '-infinity'"
    )


@pytest.fixture
def database_url(request: pytest.FixtureRequest, create_database: Callable[..., str]) -> str:
    """A migrated, empty database: the worker's, or a fresh one for tests marked ``fresh_database``."""
    if request.node.get_closest_marker("fresh_database"):
        return create_database(request.getfixturevalue("template"))
    url = request.getfixturevalue("_worker_database")
    wipe = request.getfixturevalue("_wipe")
    with psycopg.connect(url, autocommit=True) as connection:
        # What a test left running would block, or write into, the next one.
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        for (gid,) in connection.execute("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"):
            connection.execute(f"ROLLBACK PREPARED '{gid}'".encode())
        connection.execute(wipe.encode())
    return url


@pytest.fixture
async def board(database_url: str) -> AsyncIterator[Blackboard]:
    """A board on the test database."""
    async with Blackboard.open(database_url, actor="tester") as opened:
        yield opened


@pytest.fixture
async def session(board: Blackboard) -> Session:
    """A fresh session."""
    return await board.start(f"session-{uuid.uuid4().hex[:8]}", goal="a test")


@pytest.fixture
async def steady(database_url: str, session: Session) -> AsyncIterator[Session]:
    """The session as a process has it whose lease outlives every move of the clock and whose heartbeat beats but once.

    Who joins through it is the only one that looks after the leases: what a claim finds, the claim itself has freed.
    """
    async with Blackboard.open(database_url, actor="tester", lease_term=timedelta(hours=24)) as opened:
        yield await opened.session(session.id)


Connect = Callable[[], Awaitable["asyncpg.Connection[asyncpg.Record]"]]


@pytest.fixture
async def connect(database_url: str) -> AsyncIterator[Connect]:
    """Opens raw connections, closed in the end."""
    opened: list[asyncpg.Connection[asyncpg.Record]] = []

    async def open_one() -> asyncpg.Connection[asyncpg.Record]:
        connection = await asyncpg.connect(database_url)
        opened.append(connection)
        return connection

    yield open_one
    for connection in opened:
        with contextlib.suppress(Exception):
            await connection.close(timeout=2)


@pytest.fixture
async def db(connect: Connect) -> asyncpg.Connection[asyncpg.Record]:
    """A raw connection in autocommit mode."""
    return await connect()


async def eventually(check: Callable[[], Awaitable[Any]], seconds: float = 20.0) -> Any:
    """The first truthy answer of ``check``; fails when there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        if found := await check():
            return found
        assert time.monotonic() < deadline, "what the test waits for never happened"
        await asyncio.sleep(0.005)


@pytest.fixture
async def blocked(database_url: str) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """Returns once the backend with that pid waits on a lock: the proof that two transactions met."""
    watcher = await asyncpg.connect(database_url)

    async def wait(pid: int) -> None:
        await eventually(
            lambda: watcher.fetchval("SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND wait_event_type = 'Lock'", pid)
        )

    yield wait
    await watcher.close(timeout=2)


class Clock:
    """Moves ``blackboard.now()`` forward."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._connection = connection
        self._offset = timedelta()

    async def advance(self, by: timedelta, *, gap: bool = False) -> None:
        """It is later by ``by``. Unless ``gap``, somebody looked after the leases all the while.

        No heartbeat sees only half of that: the first beats of this process came before, and no beat that knows only
        the earlier time comes after.
        """
        await self._first_beats()
        self._offset += by
        seconds = self._offset.total_seconds()
        await self._connection.execute(
            "CREATE OR REPLACE FUNCTION blackboard.now() RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE "
            f"AS $$ SELECT pg_catalog.clock_timestamp() + interval '{seconds} seconds' $$"
        )
        await self._earlier_beats()
        if not gap:
            await self._connection.execute(
                "UPDATE blackboard.liveness SET checked_at = blackboard.now() - interval '2 seconds', "
                "grace_from = '-infinity'"
            )

    async def _first_beats(self) -> None:
        # A heartbeat beats as soon as it starts, beside whatever comes next: in the moved time it would renew what is
        # to lapse, or be looking already when a claim is to look. A beat names its lease, and is one transaction.
        await eventually(
            lambda: self._connection.fetchval(
                """SELECT NOT EXISTS (
                       SELECT FROM blackboard.leases l
                       WHERE l.host = $1 AND l.pid = $2 AND l.lapsed_at IS NULL AND NOT EXISTS (
                           SELECT FROM pg_stat_activity a
                           WHERE a.datname = current_database() AND a.state = 'idle'
                             AND a.query LIKE format('%%renew_lease(CAST(%L%%', l.id)))""",
                socket.gethostname(), os.getpid(),
            )
        )  # fmt: skip

    async def _earlier_beats(self) -> None:
        moved_at = await self._connection.fetchval("SELECT pg_catalog.clock_timestamp()")
        await eventually(
            lambda: self._connection.fetchval(
                "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() "
                "AND application_name = 'blackboard heartbeat' AND xact_start <= $1)",
                moved_at,
            )
        )

    async def restore(self) -> None:
        """Time is real again."""
        await self._connection.execute(
            "CREATE OR REPLACE FUNCTION blackboard.now() RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE "
            "AS $$ SELECT pg_catalog.clock_timestamp() $$"
        )


@pytest.fixture
async def clock(database_url: str) -> AsyncIterator[Clock]:
    """Moves the board's time without sleeping."""
    connection = await asyncpg.connect(database_url)
    moved = Clock(connection)
    yield moved
    await moved.restore()
    await connection.close(timeout=2)
