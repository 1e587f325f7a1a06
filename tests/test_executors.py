"""One suite for every executor that owns its connections: asyncpg, psycopg, and psycopg's blocking twin."""

# ruff: noqa: F811 - fixtures are imported, and asked for by name

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import socket
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import psycopg
import pytest

from blackboard import errors
from blackboard.store.asyncpg_executor import AsyncpgExecutor

from .executorkit import INSERT, ONE, count, executor, kind, make, server, sql  # noqa: F401 - fixtures
from .serverfixture import PrivateServer

pytestmark = pytest.mark.lifecycle


# --- values ----------------------------------------------------------------------------------------------------------

NOW = dt.datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("integer", 5),
        ("integer", None),
        ("bigint", 2**62),
        ("double precision", 0.1),
        ("numeric", Decimal("1.10")),
        ("boolean", True),
        ("text", "ä ' \" % :x $1 \\ \n 😀"),
        ("text", ""),
        ("text", None),
        ("uuid", UUID(int=7)),
        ("timestamptz", NOW),
        ("date", NOW.date()),
        ("interval", dt.timedelta(days=400, hours=2, microseconds=1)),
        ("interval", dt.timedelta(seconds=-0.5)),
        ("bytea", b"\0\xff"),
        ("text[]", ["a", "b,{}\"'", ""]),
        ("text[]", []),
        ("text[]", None),
        ("uuid[]", [UUID(int=1), UUID(int=2)]),
        ("uuid[]", []),
        ("integer[]", [1, 100_000, 3]),
        ("bigint[]", [2**40, 1]),
        ("timestamptz[]", [NOW]),
    ],
    ids=repr,
)
async def test_values_come_back_as_they_went(executor: Any, type_: str, value: object):
    row = await executor.fetch_one(sql(f"SELECT CAST(:value AS {type_}) AS value"), value=value)
    assert row["value"] == value
    if isinstance(value, list):
        assert [type(v) for v in row["value"]] == [type(v) for v in value] or isinstance(value[0], UUID)


async def test_json_crosses_as_text(executor: Any):
    row = await executor.fetch_one(
        sql("SELECT CAST(CAST(CAST(:x AS text) AS jsonb) AS text) AS x"), x='{"b": [1, null, "\\u00e4"]}'
    )
    assert row["x"] == '{"b": [1, null, "ä"]}'


async def test_rows_are_mappings_in_order(executor: Any):
    rows = await executor.fetch_all(sql("SELECT i, i * 2 AS twice FROM generate_series(1, :n) AS i"), n=3)
    assert rows == [{"i": 1, "twice": 2}, {"i": 2, "twice": 4}, {"i": 3, "twice": 6}]
    assert await executor.fetch_all(sql("SELECT 1 AS x WHERE false")) == []
    assert await executor.fetch_one(sql("SELECT 1 AS x WHERE false")) is None
    assert await executor.fetch_one(sql("SELECT i FROM generate_series(1, 3) AS i")) == {"i": 1}


async def test_statement_without_rows(executor: Any):
    assert await executor.fetch_all(sql("UPDATE things SET name = 'x' WHERE false")) == []
    assert await executor.execute(sql("SELECT 1 AS a")) is None


async def test_fetch_one_runs_the_statement_to_its_end(executor: Any):
    await executor.execute(sql("INSERT INTO counters VALUES (1, 0)"))
    await executor.execute(
        sql("""CREATE OR REPLACE FUNCTION count_up(i integer) RETURNS integer LANGUAGE sql VOLATILE AS
               $$ UPDATE counters SET n = n + 1 WHERE id = 1 RETURNING n $$""")
    )
    await executor.fetch_one(sql("SELECT count_up(i) AS n FROM generate_series(1, 5) AS i"))
    assert (await executor.fetch_one(sql("SELECT n FROM counters")))["n"] == 5


async def test_percent_signs_without_parameters(executor: Any):
    assert await executor.fetch_one(sql("SELECT '100%' AS p, 7 % 4 AS r")) == {"p": "100%", "r": 3}


async def test_many_runs_of_one_statement_with_changing_sizes(executor: Any):
    # Crosses psycopg's threshold for preparing, and its choice of smallint, integer and bigint.
    for x in (1, 40_000, -1, 2**31 - 1, 5, 6, 7, None, 8):
        assert (await executor.fetch_one(ONE, x=x))["x"] == x


async def test_wrong_parameter_names_are_a_type_error_before_anything_is_sent(make: Callable[..., Any]):
    executor = make("postgresql://u@/nowhere?host=/no/such/dir")
    for params in ({}, {"y": 1}, {"x": 1, "y": 2}):
        with pytest.raises(TypeError, match="test"):
            await executor.fetch_all(ONE, **params)


# --- errors ----------------------------------------------------------------------------------------------------------


async def raised(executor: Any, text: str, **params: Any) -> errors.BlackboardError:
    with pytest.raises(errors.BlackboardError) as caught:
        await executor.execute(sql(text), **params)
    assert caught.value.__cause__ is not None
    assert isinstance(
        caught.value.__cause__, (asyncpg.PostgresError, asyncpg.InterfaceError, psycopg.Error, ValueError)
    )
    return caught.value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT * FROM nothing_here", errors.SchemaMissing),
        ("SELECT no_such_function()", errors.SchemaOutdated),
        ("SELEKT 1", errors.BlackboardError),
        ("SELECT 1 / 0", errors.InvalidInput),
        ("SELECT CAST('x' AS integer)", errors.InvalidInput),
        ("INSERT INTO things VALUES (gen_random_uuid(), 'bad')", errors.InvalidInput),
        ("INSERT INTO things (id) VALUES (gen_random_uuid())", errors.InvalidInput),
        ("INSERT INTO things VALUES (gen_random_uuid(), 'a', gen_random_uuid())", errors.BlackboardError),
        ("SELECT fail('40001', 'collided', '')", errors.TransientError),
        ("SELECT fail('57014', 'too slow', '')", errors.TransientError),
        ("SELECT fail('53300', 'full', '')", errors.TooManyConnections),
        ("SELECT fail('BB003', 'no such step', 'not json')", errors.InvalidTransition),
    ],
)
async def test_server_errors_become_ours(executor: Any, text: str, expected: type[errors.BlackboardError]):
    error = await raised(executor, text)
    assert isinstance(error, expected)
    # The connection serves on.
    assert (await executor.fetch_one(ONE, x=1))["x"] == 1


async def test_our_functions_errors_carry_their_facts(executor: Any):
    error = await raised(executor, "SELECT fail('BB001', 'No task 7.', :facts)", facts='{"noun": "task", "id": "7"}')
    assert type(error) is errors.NotFound
    assert error.details == {"noun": "task", "id": "7"}
    assert error.message == "No task 7. Do this."


async def test_unique_key_is_already_exists(executor: Any):
    await executor.execute(INSERT, id=UUID(int=1), name="a")
    assert isinstance(
        await raised(executor, "INSERT INTO things VALUES (:id, 'b')", id=UUID(int=1)), errors.AlreadyExists
    )


async def test_column_is_the_field(executor: Any):
    error = await raised(executor, "INSERT INTO things (id) VALUES (gen_random_uuid())")
    assert error.details["field"] == "name"


@pytest.mark.parametrize("value", ["x", object(), 2**80, "\ud800", {"a": 1}], ids=lambda v: type(v).__name__)
async def test_value_of_a_wrong_type_is_invalid_input(executor: Any, value: object):
    with pytest.raises(errors.InvalidInput):
        await executor.fetch_one(sql("SELECT CAST(:x AS integer) + 1 AS x"), x=value)
    assert (await executor.fetch_one(ONE, x=1))["x"] == 1


async def test_zero_byte_is_invalid_input(executor: Any):
    with pytest.raises(errors.InvalidInput):
        await executor.fetch_one(sql("SELECT CAST(:x AS text) AS x"), x="a\0b")


async def test_asyncpg_names_the_field_of_a_wrong_type(server: PrivateServer):
    executor = AsyncpgExecutor(server.url())
    with pytest.raises(errors.InvalidInput) as caught:
        await executor.fetch_one(sql("SELECT CAST(:a AS text) AS a, CAST(:limit AS integer)"), a="x", limit="many")
    await executor.close()
    assert caught.value.details["field"] == "limit", caught.value


# --- connecting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u@/db?host=/no/such/dir", errors.ServerUnreachable),
        ("postgresql://u:secret@127.0.0.1:1/db", errors.ServerUnreachable),
        ("postgresql://u:secret@no-such-host.invalid/db", errors.ServerUnreachable),
        ("postgresql://u:secret@127.0.0.1/db?sslmode=nonsense", errors.ConfigurationError),
    ],
)
async def test_no_way_to_a_server(make: Callable[..., Any], url: str, expected: type[errors.BlackboardError]):
    with pytest.raises(expected) as caught:
        await make(url).fetch_one(ONE, x=1)
    assert "secret" not in str(caught.value)


async def test_login_refused(make: Callable[..., Any], server: PrivateServer):
    with pytest.raises(errors.ConfigurationError, match="does not exist"):
        await make(server.url("no_such_database")).fetch_one(ONE, x=1)
    with pytest.raises(errors.ConfigurationError):
        await make(server.url().replace("postgres@", "nobody_here@")).fetch_one(ONE, x=1)


async def test_silent_server_is_unreachable_in_time(make: Callable[..., Any]):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        executor = make(f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/db?sslmode=disable", connect_timeout=2)
        started = time.monotonic()
        with pytest.raises(errors.ServerUnreachable):
            await executor.fetch_one(ONE, x=1)
        assert time.monotonic() - started < 5


async def test_server_without_free_connections(make: Callable[..., Any], server: PrivateServer):
    with contextlib.ExitStack() as taken, pytest.raises(errors.TooManyConnections):
        while True:
            try:
                taken.enter_context(psycopg.connect(server.url()))
            except psycopg.OperationalError:
                break
        await make().fetch_one(ONE, x=1)


async def test_old_server_is_refused(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    for module in ("asyncpg_executor", "psycopg_executor"):
        monkeypatch.setattr(f"blackboard.store.{module}.MINIMUM_SERVER_VERSION", 99)
    monkeypatch.setattr("blackboard.sync.store.psycopg_executor.MINIMUM_SERVER_VERSION", 99)
    with pytest.raises(errors.ServerTooOld):
        await make().fetch_one(ONE, x=1)


async def test_application_name_can_be_had_from_the_url(make: Callable[..., Any], server: PrivateServer):
    asked = sql("SELECT current_setting('application_name') AS name")
    assert (await make(application_name="mine").fetch_one(asked))["name"] == "mine"
    named = make(server.url() + "&application_name=from_url", application_name="mine")
    assert (await named.fetch_one(asked))["name"] == "from_url"


# --- transactions ----------------------------------------------------------------------------------------------------


async def test_block_commits_whole(executor: Any):
    async with executor.transaction() as tx:
        assert not tx.bound
        await tx.execute(INSERT, id=uuid4(), name="a")
        await tx.execute(INSERT, id=uuid4(), name="b")
        assert await count(executor) == 0
    assert await count(executor) == 2


async def test_block_that_fails_leaves_nothing(executor: Any):
    with pytest.raises(KeyError):
        async with executor.transaction() as tx:
            await tx.execute(INSERT, id=uuid4(), name="a")
            raise KeyError
    assert await count(executor) == 0


async def test_foreign_errors_of_a_block_stay_what_they_are(executor: Any):
    for error in (OSError("mine"), TimeoutError("mine"), ValueError("mine")):
        with pytest.raises(type(error), match="mine") as caught:
            async with executor.transaction():
                raise error
        assert caught.value is error


async def test_savepoint_takes_back_only_itself(executor: Any):
    async with executor.transaction() as tx:
        await tx.execute(INSERT, id=uuid4(), name="kept")
        with pytest.raises(errors.InvalidInput):
            async with tx.transaction() as inner:
                await inner.execute(INSERT, id=uuid4(), name="lost")
                async with inner.transaction() as innermost:
                    await innermost.execute(INSERT, id=uuid4(), name="bad")
        async with tx.transaction() as inner:
            await inner.execute(INSERT, id=uuid4(), name="kept too")
    names = await executor.fetch_all(sql("SELECT name FROM things ORDER BY name"))
    assert [row["name"] for row in names] == ["kept", "kept too"]


async def test_commit_of_a_failed_transaction_is_no_silent_rollback(executor: Any):
    with pytest.raises(errors.TransientError, match="nothing was kept"):
        async with executor.transaction() as tx:
            await tx.execute(INSERT, id=uuid4(), name="a")
            with contextlib.suppress(errors.InvalidInput):
                await tx.execute(INSERT, id=uuid4(), name="bad")
    assert await count(executor) == 0


async def test_savepoint_whose_error_was_swallowed_is_taken_back(executor: Any):
    async with executor.transaction() as tx:
        await tx.execute(INSERT, id=uuid4(), name="kept")
        with pytest.raises(errors.TransientError):
            async with tx.transaction() as inner:
                with contextlib.suppress(errors.InvalidInput):
                    await inner.execute(INSERT, id=uuid4(), name="bad")
        await tx.execute(INSERT, id=uuid4(), name="kept too")
    assert await count(executor) == 2


async def test_deferred_constraint_fails_the_commit(executor: Any):
    with pytest.raises(errors.BlackboardError) as caught:
        async with executor.transaction() as tx:
            await tx.execute(sql("INSERT INTO things VALUES (:id, 'a', :parent)"), id=uuid4(), parent=uuid4())
    assert caught.value.__cause__ is not None
    assert await count(executor) == 0


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
async def test_isolation(executor: Any, isolation: str):
    asked = sql("SHOW transaction_isolation")
    async with executor.transaction(isolation) as tx:
        assert (await tx.fetch_one(asked))["transaction_isolation"] == isolation
        async with tx.transaction("serializable") as inner:
            assert (await inner.fetch_one(asked))["transaction_isolation"] == isolation
    assert (await executor.fetch_one(asked))["transaction_isolation"] == "read committed"


async def test_collision_is_transient(executor: Any):
    await executor.execute(sql("INSERT INTO counters VALUES (1, 0)"))
    bump = sql("UPDATE counters SET n = n + 1 WHERE id = 1")
    with pytest.raises(errors.TransientError):
        async with executor.transaction("repeatable read") as tx:
            await tx.fetch_one(sql("SELECT n FROM counters"))
            await executor.execute(bump)
            await tx.execute(bump)
    assert (await executor.fetch_one(sql("SELECT n FROM counters")))["n"] == 1


async def test_deadlock_is_transient_for_one_of_two(executor: Any):
    await executor.execute(sql("INSERT INTO counters VALUES (1, 0), (2, 0)"))
    lock = sql("SELECT n FROM counters WHERE id = :id FOR UPDATE")
    both = asyncio.Barrier(2)

    async def take(first: int, second: int) -> None:
        async with executor.transaction() as tx:
            await tx.execute(lock, id=first)
            await both.wait()
            await tx.execute(lock, id=second)

    outcome = await asyncio.gather(take(1, 2), take(2, 1), return_exceptions=True)
    assert sorted(type(o).__name__ for o in outcome) == ["NoneType", "TransientError"]
