"""Handles on a caller's connection: his transaction, his rows, his settings."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import asyncpg
import orjson
import psycopg
import pytest
import sqlalchemy
import sqlalchemy.orm
from psycopg.rows import namedtuple_row
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

from blackboard import errors
from blackboard.store.binding import bind
from blackboard.store.statements import Statement
from blackboard.sync.store.binding import bind as bind_blocking

from .serverfixture import PrivateServer

pytestmark = pytest.mark.lifecycle


def sql(text: str) -> Statement:
    return Statement.from_text("test", text)


ADD = sql(
    "INSERT INTO board (id, data) VALUES (:id, CAST(CAST(:data AS text) AS jsonb)) RETURNING CAST(data AS text) AS data"
)
ADD_BAD = sql("INSERT INTO board (id, data) VALUES (:id, NULL)")
COUNT = sql("SELECT count(*) AS n, '100%' AS percent FROM board")
MINE = "INSERT INTO mine VALUES (1)"


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    server = PrivateServer()
    try:
        server.start()
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(
                "CREATE TABLE board (id uuid PRIMARY KEY, data jsonb NOT NULL); CREATE TABLE mine (n integer)"
            )
        yield server
    finally:
        server.destroy()


@pytest.fixture
def outside(server: PrivateServer) -> Iterator[psycopg.Connection[Any]]:
    """What somebody else sees."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("TRUNCATE board, mine")
        yield connection


def seen(outside: psycopg.Connection[Any]) -> tuple[int, int]:
    row = outside.execute("SELECT (SELECT count(*) FROM board), (SELECT count(*) FROM mine)").fetchone()
    assert row is not None
    return row[0], row[1]


class Caller:
    """A connection of some kind: what to bind to, and how its owner works with it."""

    def __init__(self, target: Any, execute: Any, begin: Any, commit: Any, rollback: Any) -> None:
        self.target, self.execute, self.begin, self.commit, self.rollback = target, execute, begin, commit, rollback


async def nothing() -> None:
    pass


@contextlib.asynccontextmanager
async def caller(kind: str, server: PrivateServer) -> AsyncIterator[Caller]:
    async with contextlib.AsyncExitStack() as stack:
        if kind.startswith("asyncpg"):
            if kind == "asyncpg pool":
                pool = await stack.enter_async_context(asyncpg.create_pool(server.url(), min_size=1, max_size=1))
                raw = await stack.enter_async_context(pool.acquire())
            else:
                raw = await asyncpg.connect(server.url())
                stack.push_async_callback(raw.close)
            await raw.set_type_codec(
                "jsonb", encoder=lambda v: orjson.dumps(v).decode(), decoder=orjson.loads, schema="pg_catalog"
            )
            if kind == "asyncpg begin":
                # A transaction that asyncpg does not know to be its own.
                commands = [lambda c=c: raw.execute(c) for c in ("BEGIN", "COMMIT", "ROLLBACK")]
                yield Caller(raw, raw.execute, *commands)
            else:
                transaction = raw.transaction()
                yield Caller(raw, raw.execute, transaction.start, transaction.commit, transaction.rollback)
        elif kind.startswith("psycopg"):
            connection = await psycopg.AsyncConnection.connect(server.url(), row_factory=namedtuple_row)
            stack.push_async_callback(connection.close)
            connection.cursor_factory = psycopg.AsyncRawCursor
            if kind == "psycopg autocommit":
                await connection.set_autocommit(True)
                commands = [lambda c=c: connection.execute(c) for c in ("BEGIN", "COMMIT", "ROLLBACK")]
                yield Caller(connection, connection.execute, *commands)
            else:
                yield Caller(connection, connection.execute, nothing, connection.commit, connection.rollback)
        else:
            _, driver, what = kind.split()
            engine = create_async_engine(server.url(scheme=f"postgresql+{driver}"), poolclass=NullPool)
            stack.push_async_callback(engine.dispose)
            if what == "connection":
                connection = await stack.enter_async_context(engine.connect())
                yield Caller(connection, connection.exec_driver_sql, nothing, connection.commit, connection.rollback)
            elif what == "session":
                session = await stack.enter_async_context(AsyncSession(engine))
                yield Caller(
                    session, lambda q: session.execute(sqlalchemy.text(q)), nothing, session.commit, session.rollback
                )
            else:
                scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=lambda: 1)
                stack.push_async_callback(scoped.remove)
                yield Caller(
                    scoped, lambda q: scoped.execute(sqlalchemy.text(q)), nothing, scoped.commit, scoped.rollback
                )


KINDS = [
    "asyncpg",
    "asyncpg pool",
    "asyncpg begin",
    "psycopg",
    "psycopg autocommit",
    *(f"sqlalchemy {d} {w}" for d in ("asyncpg", "psycopg") for w in ("connection", "session", "scoped")),
]


@pytest.fixture(params=KINDS)
async def his(request: pytest.FixtureRequest, server: PrivateServer, outside: Any) -> AsyncIterator[Caller]:
    async with caller(request.param, server) as made:
        yield made


@pytest.mark.parametrize("board_first", [True, False])
async def test_rows_go_and_stay_with_the_callers(his: Caller, outside: Any, board_first: bool):
    for keep in (False, True):
        await his.begin()
        board = bind(his.target)
        assert board.bound
        if not board_first:
            await his.execute(MINE)
        row = await board.fetch_one(ADD, id=uuid4(), data='{"a": "ä"}')
        assert row == {"data": '{"a": "ä"}'}
        await his.execute(MINE)
        assert await board.fetch_one(COUNT) == {"n": 1, "percent": "100%"}
        assert seen(outside) == (0, 0)
        await (his.commit() if keep else his.rollback())
        assert seen(outside)[0] == (1 if keep else 0)
        assert (seen(outside)[1] > 0) is keep
        if not keep and type(his.target).__module__.startswith("asyncpg") and hasattr(his.begin, "__self__"):
            return  # asyncpg's transaction objects serve once


async def test_savepoint_a_verb(his: Caller, outside: Any):
    await his.begin()
    board = bind(his.target)
    await his.execute(MINE)
    with pytest.raises(errors.InvalidInput) as caught:
        async with board.transaction("serializable") as tx:
            assert tx.bound
            await tx.execute(ADD, id=uuid4(), data="1")
            async with tx.transaction() as inner:
                await inner.execute(ADD_BAD, id=uuid4())
    assert caught.value.details["field"] == "data"
    async with board.transaction() as tx:
        await tx.execute(ADD, id=uuid4(), data="2")
    await his.commit()
    assert seen(outside) == (1, 1)


async def test_error_in_a_verb_of_one_statement_aborts_the_callers_transaction(his: Caller, outside: Any):
    await his.begin()
    board = bind(his.target)
    await his.execute(MINE)
    with pytest.raises(errors.InvalidInput):
        await board.execute(ADD_BAD, id=uuid4())
    with pytest.raises(errors.TransientError):
        await board.fetch_one(COUNT)
    await his.rollback()
    assert seen(outside) == (0, 0)


async def test_closing_leaves_the_connection_open(his: Caller, outside: Any):
    await his.begin()
    board = bind(his.target)
    await board.fetch_one(COUNT)
    await board.close()
    await his.execute(MINE)
    await his.commit()
    assert seen(outside) == (0, 1)


@pytest.mark.parametrize("kind", ["asyncpg", "asyncpg pool", "psycopg autocommit"])
async def test_without_a_transaction_each_verb_commits(kind: str, server: PrivateServer, outside: Any):
    async with caller(kind, server) as his:
        board = bind(his.target)
        await board.execute(ADD, id=uuid4(), data="1")
        assert seen(outside) == (1, 0)
        with pytest.raises(errors.InvalidInput):
            async with board.transaction("repeatable read") as tx:
                await tx.execute(ADD, id=uuid4(), data="2")
                assert seen(outside) == (1, 0)
                await tx.execute(ADD_BAD, id=uuid4())
        assert seen(outside) == (1, 0)
        async with board.transaction() as tx:
            await tx.execute(ADD, id=uuid4(), data="3")
        assert seen(outside) == (2, 0)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_sqlalchemy_in_autocommit(driver: str, server: PrivateServer, outside: Any):
    engine = create_async_engine(
        server.url(scheme=f"postgresql+{driver}"), poolclass=NullPool, isolation_level="AUTOCOMMIT"
    )
    async with engine.connect() as connection:
        board = bind(connection)
        await board.execute(ADD, id=uuid4(), data="1")
        assert seen(outside) == (1, 0)
        async with board.transaction() as tx:
            await tx.execute(ADD, id=uuid4(), data="2")
            async with tx.transaction() as inner:
                await inner.execute(ADD, id=uuid4(), data="3")
            assert seen(outside) == (1, 0)
        assert seen(outside) == (3, 0)
        with pytest.raises(errors.TransientError, match="nothing was kept"):
            async with board.transaction() as tx:
                with contextlib.suppress(errors.InvalidInput):
                    await tx.execute(ADD_BAD, id=uuid4())
    await engine.dispose()


async def test_callers_settings_are_left_alone(server: PrivateServer, outside: Any):
    async with caller("asyncpg", server) as his:
        await bind(his.target).execute(ADD, id=uuid4(), data='{"a": 1}')
        assert await his.target.fetchval("SELECT data FROM board") == {"a": 1}  # his codec, still
        assert await his.target.fetchval("SELECT $1::jsonb", [1]) == [1]
    async with caller("psycopg", server) as his:
        await bind(his.target).fetch_one(COUNT)
        cursor = await his.target.execute("SELECT $1 AS n", [5])
        assert (await cursor.fetchone()).n == 5
        assert not his.target.autocommit and his.target.isolation_level is None


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_connection_that_streams(driver: str, server: PrivateServer, outside: Any):
    async with caller(f"sqlalchemy {driver} connection", server) as his:
        await his.target.execution_options(stream_results=True)
        await bind(his.target).execute(ADD, id=uuid4(), data="1")
        await his.commit()
        assert seen(outside) == (1, 0)


@pytest.mark.parametrize("kind", KINDS)
async def test_cancelled_block_goes_back_to_its_savepoint(kind: str, server: PrivateServer, outside: Any):
    async with caller(kind, server) as his:
        await his.begin()
        board = bind(his.target)
        await his.execute(MINE)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), board.transaction() as tx:
                await tx.execute(ADD, id=uuid4(), data="1")
                await tx.execute(sql("SELECT pg_sleep(30)"))
        if kind.startswith("sqlalchemy"):
            # SQLAlchemy gives up a connection whose call was cancelled, and the transaction with it.
            with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError):
                await his.commit()
            await his.rollback()
            assert seen(outside) == (0, 0)
        else:
            await his.commit()
            assert seen(outside) == (0, 1)


@pytest.mark.parametrize(
    "thing", ["postgresql://x/y", None, object(), 5, asyncpg, create_async_engine("postgresql+asyncpg://u@/x")]
)
def test_anything_else_is_refused(thing: object):
    with pytest.raises(errors.ConfigurationError, match="asyncpg connection"):
        bind(thing)
    with pytest.raises(errors.ConfigurationError, match="psycopg Connection"):
        bind_blocking(thing)


def test_other_dialects_are_refused():
    with sqlalchemy.create_engine("sqlite://").connect() as connection:
        with pytest.raises(errors.ConfigurationError, match=r"postgresql\+psycopg://"):
            bind_blocking(connection)
        with pytest.raises(errors.ConfigurationError, match=r"blackboard\.sync"):
            bind(connection)
    with pytest.raises(errors.ConfigurationError, match="bind"):
        bind_blocking(sqlalchemy.orm.Session())


def test_twins_do_not_take_each_others_connections(server: PrivateServer):
    with (
        psycopg.connect(server.url()) as connection,
        pytest.raises(errors.ConfigurationError, match=r"blackboard\.sync"),
    ):
        bind(connection)


async def test_asynchronous_connection_is_refused_by_the_blocking_twin(server: PrivateServer):
    async with caller("psycopg", server) as his:
        with pytest.raises(errors.ConfigurationError, match="asynchronous connections"):
            bind_blocking(his.target)


# --- the blocking twin -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def blocking_caller(kind: str, server: PrivateServer) -> Iterator[Any]:
    if kind == "psycopg":
        with contextlib.closing(psycopg.connect(server.url(), row_factory=namedtuple_row)) as connection:
            yield connection
        return
    engine = sqlalchemy.create_engine(server.url(scheme="postgresql+psycopg"), poolclass=NullPool)
    if kind == "connection":
        with engine.connect() as connection:
            yield connection
    elif kind == "session":
        with sqlalchemy.orm.Session(engine) as session:
            yield session
    else:
        scoped = sqlalchemy.orm.scoped_session(sqlalchemy.orm.sessionmaker(engine))
        yield scoped
        scoped.remove()


@pytest.mark.parametrize("kind", ["psycopg", "connection", "session", "scoped"])
def test_blocking_rows_go_and_stay_with_the_callers(kind: str, server: PrivateServer, outside: Any):
    with blocking_caller(kind, server) as target:
        mine = MINE if kind == "psycopg" else sqlalchemy.text(MINE)
        for keep in (False, True):
            board = bind_blocking(target)
            assert board.fetch_one(ADD, id=uuid4(), data="[1]") == {"data": "[1]"}
            target.execute(mine)
            with pytest.raises(errors.InvalidInput), board.transaction() as tx:
                tx.execute(ADD, id=uuid4(), data="2")
                tx.execute(ADD_BAD, id=uuid4())
            with board.transaction() as tx:
                tx.execute(ADD, id=uuid4(), data="3")
            assert seen(outside) == (0, 0)
            target.commit() if keep else target.rollback()
        assert seen(outside) == (2, 1)
