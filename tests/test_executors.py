"""One suite for every executor that owns its connections: asyncpg, psycopg, and psycopg's blocking twin."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import psycopg
import pytest

from blackboard import errors
from blackboard.store import pool as pool_module
from blackboard.store.asyncpg_executor import AsyncpgExecutor
from blackboard.store.connections import open_executor
from blackboard.store.psycopg_executor import PsycopgExecutor
from blackboard.store.statements import Statement
from blackboard.sync.store import pool as sync_pool_module
from blackboard.sync.store.connections import open_executor as open_blocking
from blackboard.sync.store.psycopg_executor import PsycopgExecutor as BlockingExecutor

from .serverfixture import PrivateServer

pytestmark = pytest.mark.lifecycle


def sql(text: str, name: str = "test") -> Statement:
    return Statement.from_text(name, text)


ONE = sql("SELECT CAST(:x AS integer) AS x")
SLEEP = sql("SELECT pg_sleep(CAST(:seconds AS double precision))")
PID = sql("SELECT pg_backend_pid() AS pid")
INSERT = sql("INSERT INTO things (id, name) VALUES (:id, CAST(:name AS text)) RETURNING id, name", "add_thing")
COUNT = sql("SELECT count(*) AS n FROM things")


class InThread:
    """A blocking executor behind the asynchronous protocol; every call runs in a thread."""

    def __init__(self, blocking: Any) -> None:
        self.blocking = blocking

    @property
    def bound(self) -> bool:
        return self.blocking.bound

    async def fetch_all(self, statement: Statement, **params: Any) -> Any:
        return await asyncio.to_thread(self.blocking.fetch_all, statement, **params)

    async def fetch_one(self, statement: Statement, **params: Any) -> Any:
        return await asyncio.to_thread(self.blocking.fetch_one, statement, **params)

    async def execute(self, statement: Statement, **params: Any) -> None:
        await asyncio.to_thread(self.blocking.execute, statement, **params)

    @contextlib.asynccontextmanager
    async def transaction(self, isolation: Any = None) -> AsyncIterator[InThread]:
        block = self.blocking.transaction(isolation)
        inner = InThread(await asyncio.to_thread(block.__enter__))
        try:
            yield inner
        except BaseException as error:
            if not await asyncio.to_thread(block.__exit__, type(error), error, error.__traceback__):
                raise
        else:
            await asyncio.to_thread(block.__exit__, None, None, None)

    async def close(self) -> None:
        await asyncio.to_thread(self.blocking.close)


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
        ("uuid", uuid4()),
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
    assert isinstance(caught.value.__cause__, (asyncpg.PostgresError, asyncpg.InterfaceError, psycopg.Error, ValueError))
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


@pytest.mark.parametrize("value", ["x", object(), 2**80, "\ud800", {"a": 1}], ids=repr)
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
        await executor.fetch_one(sql("SELECT CAST(:a AS text), CAST(:limit AS integer)"), a="x", limit="many")
    assert caught.value.details["field"] == "limit"
    await executor.close()


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
        assert time.monotonic() - started < 8  # two tries


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


async def count(executor: Any) -> int:
    return (await executor.fetch_one(COUNT))["n"]


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
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # what the first loop left behind is the point
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


async def test_factories_choose_the_driver(server: PrivateServer):
    assert isinstance(open_executor(server.url()), AsyncpgExecutor)
    assert isinstance(open_blocking(server.url()), BlockingExecutor)
    with pytest.raises(errors.ConfigurationError):
        open_executor("mysql://x")
