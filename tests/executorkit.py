"""What the suites of the executors share: the executors, a server, and statements to run."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from blackboard.store.asyncpg_executor import AsyncpgExecutor
from blackboard.store.psycopg_executor import PsycopgExecutor
from blackboard.store.statements import Statement
from blackboard.sync.store.psycopg_executor import PsycopgExecutor as BlockingExecutor

from .serverfixture import PrivateServer


def sql(text: str, name: str = "test") -> Statement:
    return Statement.from_text(name, text)


ONE = sql("SELECT CAST(:x AS integer) AS x")
SLEEP = sql("SELECT pg_sleep(CAST(:seconds AS double precision))")
PID = sql("SELECT pg_backend_pid() AS pid")
INSERT = sql("INSERT INTO things (id, name) VALUES (:id, CAST(:name AS text)) RETURNING id, name", "add_thing")
COUNT = sql("SELECT count(*) AS n FROM things")


# As many as calls at a time: calls that queue for a connection must not keep the holder of one from its next call.
THREADS = ThreadPoolExecutor(150, thread_name_prefix="blocking-calls")


async def in_thread(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(THREADS, functools.partial(call, *args, **kwargs))


class InThread:
    """A blocking executor behind the asynchronous protocol; every call runs in a thread."""

    def __init__(self, blocking: Any) -> None:
        self.blocking = blocking

    @property
    def bound(self) -> bool:
        return self.blocking.bound

    async def fetch_all(self, statement: Statement, **params: Any) -> Any:
        return await in_thread(self.blocking.fetch_all, statement, **params)

    async def fetch_one(self, statement: Statement, **params: Any) -> Any:
        return await in_thread(self.blocking.fetch_one, statement, **params)

    async def execute(self, statement: Statement, **params: Any) -> None:
        await in_thread(self.blocking.execute, statement, **params)

    @contextlib.asynccontextmanager
    async def transaction(self, isolation: Any = None) -> AsyncIterator[InThread]:
        block = self.blocking.transaction(isolation)
        inner = InThread(await in_thread(block.__enter__))
        try:
            yield inner
        except BaseException as error:
            if not await in_thread(block.__exit__, type(error), error, error.__traceback__):
                raise
        else:
            await in_thread(block.__exit__, None, None, None)

    async def close(self) -> None:
        await in_thread(self.blocking.close)


KINDS: dict[str, Callable[..., Any]] = {
    "asyncpg": AsyncpgExecutor,
    "psycopg": PsycopgExecutor,
    "blocking": lambda *args, **kwargs: InThread(BlockingExecutor(*args, **kwargs)),
}


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    server = PrivateServer("max_connections=20", "deadlock_timeout=50ms")
    try:
        server.start()
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(
                """
                CREATE TABLE things (
                    id uuid PRIMARY KEY, name text NOT NULL CHECK (name <> 'bad') UNIQUE,
                    parent uuid REFERENCES things DEFERRABLE INITIALLY DEFERRED);
                CREATE TABLE counters (id integer PRIMARY KEY, n integer NOT NULL);
                CREATE FUNCTION fail(code text, said text, facts text) RETURNS void LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION '%', said USING ERRCODE = code, DETAIL = facts, HINT = 'Do this.'; END $$
                """
            )
        yield server
    finally:
        server.destroy()


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def make(kind: str, server: PrivateServer) -> AsyncIterator[Callable[..., Any]]:
    made: list[Any] = []

    def build(url: str | None = None, **options: Any) -> Any:
        made.append(KINDS[kind](url or server.url(), **options))
        return made[-1]

    yield build
    for executor in made:
        await executor.close()


@pytest.fixture
async def executor(make: Callable[..., Any]) -> Any:
    executor = make()
    await executor.execute(sql("TRUNCATE things, counters"))
    return executor


async def backends(server: PrivateServer, name: str = "blackboard") -> int:
    def count() -> int:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            row = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", [name])
            return row.fetchone()[0]  # type: ignore[index]

    return await asyncio.to_thread(count)


async def until(holds: Callable[[], Awaitable[bool]], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not await holds():
        assert time.monotonic() < deadline, "did not come true in time"
        await asyncio.sleep(0.02)


async def count(executor: Any) -> int:
    return (await executor.fetch_one(COUNT))["n"]
