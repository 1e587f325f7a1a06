"""Opening a board: from nothing, from a URL, with settings, against servers that cannot serve, and closing it again."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import psycopg
import pytest

import blackboard.sync
from blackboard import Blackboard
from blackboard.errors import (
    BlackboardError,
    ConfigurationError,
    SchemaMissing,
    SchemaOutdated,
    SchemaTooNew,
    ServerTooOld,
    ServerUnreachable,
    TooManyConnections,
)
from blackboard.settings import load_settings
from blackboard.store import migrations
from blackboard.store.temporary import temporary_server

from .conftest import eventually, with_database

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


# ------------------------------------------------------------------------------------------------------ embedded


@pytest.fixture
def own_place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data directory of this test's own; its server is stopped in the end."""
    import shutil
    import tempfile

    from blackboard.store.embedded import EmbeddedServer

    if os.environ.get("BLACKBOARD_TEST_PG_BIN"):
        monkeypatch.setenv("BLACKBOARD_PG_BIN", os.environ["BLACKBOARD_TEST_PG_BIN"])
    room = Path(tempfile.mkdtemp(prefix="bbopen-", dir="/tmp"))
    room.chmod(0o711)
    monkeypatch.setenv("BLACKBOARD_DATA_DIR", str(room / "data"))
    yield room / "data"
    with contextlib.suppress(BlackboardError):
        EmbeddedServer(room / "data").stop(timeout=0.0)
    shutil.rmtree(room, ignore_errors=True)


@pytest.mark.lifecycle
async def test_without_a_url_a_server_is_started_joined_and_migrated(own_place: Path) -> None:
    first, second = await asyncio.gather(Blackboard.open(), Blackboard.open())
    assert str(own_place) == os.environ["BLACKBOARD_DATA_DIR"]
    async with first, second:
        session = await first.start("a")
        assert (await second.session("a")).id == session.id
        with blackboard.sync.Blackboard.open() as third:
            assert third.session("a").name == "a"
    assert (own_place / "PG_VERSION").exists() or any(own_place.rglob("PG_VERSION"))
    async with Blackboard.open() as again:
        assert (await again.session("a")).id == session.id, "what was written stays"


# ---------------------------------------------------------------------------------------------- servers that do not do


async def refused(url: str, **options: Any) -> BlackboardError:
    with pytest.raises(BlackboardError) as error:
        await Blackboard.open(url, **options)
    with pytest.raises(BlackboardError) as twin:
        await asyncio.to_thread(lambda: blackboard.sync.Blackboard.open(url, **options))
    assert type(twin.value) is type(error.value)
    return error.value


async def test_nothing_answers() -> None:
    error = await refused("postgresql://nobody@127.0.0.1:1/none")
    assert isinstance(error, ServerUnreachable)
    assert error.retryable


async def test_no_such_database(server_url: str) -> None:
    error = await refused(with_database(server_url, "not_there"))
    assert isinstance(error, ConfigurationError)
    assert "database" in str(error)


@pytest.mark.parametrize("url", ["mysql://localhost/x", "not a url", "http://x", "postgresql://[::1/x"])
async def test_a_url_that_is_none(url: str) -> None:
    assert isinstance(await refused(url), ConfigurationError)


async def test_a_database_without_a_board(create_database: Callable[..., str]) -> None:
    url = create_database()
    error = await refused(url)
    assert isinstance(error, SchemaMissing)
    assert "blackboard db upgrade" in str(error)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT to_regnamespace('blackboard')").fetchone() == (None,), "nothing was written"
    async with Blackboard.open(url, migrate=True) as board:
        await board.start("a")
    async with Blackboard.open(url) as board:
        assert (await board.session("a")).name == "a"


@pytest.mark.parametrize(("revision", "kind"), [("0001", SchemaOutdated), ("9999", SchemaTooNew)])
async def test_another_revision(create_database: Callable[..., str], template: str, revision: str, kind: type) -> None:
    url = create_database(template)
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE blackboard.schema_version SET version_num = %s", [revision])
    error = await refused(url)
    assert type(error) is kind
    assert (error.revision, error.needed) == (revision, migrations.HEAD)
    if kind is SchemaTooNew:
        assert isinstance(await refused(url, migrate=True), SchemaTooNew)


async def _old_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """PostgreSQL 14, as far as it is asked: no TLS, everybody may enter."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            size = int.from_bytes(await reader.readexactly(4), "big")
            code = int.from_bytes((await reader.readexactly(size - 4))[:4], "big")
            if code not in (80877103, 80877104):  # SSLRequest, GSSENCRequest
                break
            writer.write(b"N")
        writer.write(b"R" + (8).to_bytes(4, "big") + (0).to_bytes(4, "big"))
        for name, value in (
            (b"server_version", b"14.11"), (b"client_encoding", b"UTF8"), (b"server_encoding", b"UTF8"),
            (b"integer_datetimes", b"on"), (b"standard_conforming_strings", b"on"), (b"TimeZone", b"UTC"),
            (b"DateStyle", b"ISO, MDY"),
        ):  # fmt: skip
            body = name + b"\0" + value + b"\0"
            writer.write(b"S" + (len(body) + 4).to_bytes(4, "big") + body)
        writer.write(b"K" + (12).to_bytes(4, "big") + bytes(8))
        writer.write(b"Z" + (5).to_bytes(4, "big") + b"I")
        await writer.drain()
        while await reader.read(1000):
            pass
    writer.close()


async def test_a_server_that_is_too_old() -> None:
    server = await asyncio.start_server(_old_server, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        error = await refused(f"postgresql://u@127.0.0.1:{port}/x?sslmode=disable&gssencmode=disable")
    finally:
        server.close()
    assert isinstance(error, ServerTooOld)
    assert not error.retryable
    assert "15" in str(error)


@pytest.mark.lifecycle
async def test_wrong_passwords_and_used_up_slots() -> None:
    bin_dir = os.environ.get("BLACKBOARD_TEST_PG_BIN")
    with temporary_server(
        settings={"max_connections": "8", "superuser_reserved_connections": "2"},
        bin_dir=Path(bin_dir) if bin_dir else None,
    ) as server:
        url = server.url("postgres")
        await asyncio.to_thread(migrations.upgrade, url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE ROLE plain LOGIN; GRANT ALL ON SCHEMA blackboard TO plain")
            connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA blackboard TO plain")
        user = psycopg.conninfo.conninfo_to_dict(url)["user"]
        plain = url.replace(f"//{user}@", "//plain@").replace(f"user={user}", "user=plain")
        assert plain != url
        held = [await asyncpg.connect(url) for _ in range(6)]
        try:
            error = await refused(plain)
        finally:
            for connection in held:
                await connection.close()
        assert isinstance(error, TooManyConnections)
        assert error.retryable
        for remedy in ("PgBouncer", "pool_size", "max_connections"):
            assert remedy in str(error)
        async with Blackboard.open(plain) as board:
            assert await board.sessions.list() == []


async def test_a_password_that_is_wrong(server_url: str) -> None:
    # What the server would say, since the test server asks for none.
    from blackboard.sqlstates import from_sqlstate

    for state in ("28P01", "28000"):
        error = from_sqlstate(state, "password authentication failed")
        assert isinstance(error, ConfigurationError)
    error = await refused(
        server_url.replace("//", f"//role_{uuid.uuid4().hex[:6]}@", 1)
        if "@" not in server_url
        else server_url.replace(server_url.split("//")[1].split("@", maxsplit=1)[0], f"role_{uuid.uuid4().hex[:6]}", 1)
    )
    assert isinstance(error, ConfigurationError)


# ----------------------------------------------------------------------------------------------------- settings


def test_arguments_come_before_the_environment_before_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config" / "blackboard").mkdir(parents=True)
    (tmp_path / "config" / "blackboard" / "blackboard.toml").write_text(
        'actor = "user"\npool_size = 7\nlease_term = 60\n'
    )
    (tmp_path / "blackboard.toml").write_text('actor = "here"\npool_size = 8\n')
    settings = load_settings()
    assert (settings.actor, settings.pool_size, settings.lease) == ("here", 8, timedelta(seconds=60))
    monkeypatch.setenv("BLACKBOARD_ACTOR", "environment")
    assert load_settings().actor == "environment"
    assert load_settings(actor="argument").actor == "argument"
    assert load_settings(actor=None).actor == "environment"
    monkeypatch.setenv("BLACKBOARD_ACTOR", "")
    assert load_settings().actor == "here", "an empty variable is none"


@pytest.mark.parametrize(
    ("name", "value"),
    [("POOL_SIZE", "0"), ("POOL_SIZE", "many"), ("LEASE_TERM", "0.5"), ("LEASE_TERM", "nan"), ("POLL_INTERVAL", "-1"),
     ("IDLE_TIMEOUT", "never"), ("ACTOR", "x" * 101)],
)  # fmt: skip
def test_a_value_that_is_not_allowed_names_its_setting(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"BLACKBOARD_{name}", value)
    with pytest.raises(ConfigurationError) as error:
        load_settings()
    assert name.lower() in str(error.value)


@pytest.mark.parametrize("text", ["pool_size = ", "colour = 1", "pool_size = 'x'"])
def test_a_file_that_is_wrong_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blackboard.toml").write_text(text)
    with pytest.raises(ConfigurationError) as error:
        load_settings()
    assert any(word in str(error.value) for word in ("blackboard.toml", "colour", "pool_size"))


async def test_settings_reach_the_board(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLACKBOARD_URL", database_url)
    monkeypatch.setenv("BLACKBOARD_ACTOR", "from/environment")
    async with Blackboard.open(lease_term=timedelta(seconds=77)) as board:
        session = await board.start("a")
        assert session.record.created_by == "from/environment"
        await session.join("x")
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT term FROM blackboard.leases").fetchone() == (timedelta(seconds=77),)


# ----------------------------------------------------------------------------------------------- connections, leases


async def connections(db: Connection) -> int:
    return await db.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend' "
        "AND application_name LIKE 'blackboard%'"
    )


async def test_an_idle_process_holds_two_connections(database_url: str, db: Connection) -> None:
    async with Blackboard.open(database_url, pool_size=8) as board:
        session = await board.start("a")
        agents = [await session.join(f"a/{n}") for n in range(20)]
        assert await db.fetchval("SELECT count(*) FROM blackboard.leases") == 1, (
            "one lease a process, however many agents"
        )
        await asyncio.gather(*(agent.findings.report(f"seen {n}", type="t") for n, agent in enumerate(agents)))
        assert (await session.events.wait(timeout=timedelta(0))).events == ()

        async def idle() -> bool:
            return await connections(db) <= 2

        await eventually(idle, 40)
        assert {agent.present for agent in await session.agents.list()} == {True}

    async def gone() -> bool:
        return await connections(db) == 0

    await eventually(gone)


async def test_closing_gives_everything_back(database_url: str, db: Connection) -> None:
    async with Blackboard.open(database_url) as board:
        session = await board.start("a")
        agent = await session.join("x")
        await session.tasks.add("t")
        [task] = await agent.tasks.claim()
    row = await db.fetchrow("SELECT status, lease_id FROM blackboard.tasks WHERE id = $1", task.id)
    assert row is not None
    assert (row["status"], row["lease_id"]) == ("pending", None)
    assert await db.fetchval("SELECT lapsed_at IS NOT NULL FROM blackboard.leases")


async def test_a_closed_board_says_so(database_url: str) -> None:
    board = await Blackboard.open(database_url)
    session = await board.start("a")
    await board.close()
    await board.close()
    for call in (board.start("b"), session.board(), session.tasks.list(), session.join("x")):
        with pytest.raises(ConfigurationError, match="closed"):
            await call
    twin = await asyncio.to_thread(blackboard.sync.Blackboard.open, database_url)
    await asyncio.to_thread(twin.close)
    with pytest.raises(ConfigurationError, match="closed"):
        await asyncio.to_thread(twin.sessions.list)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_one_board_in_two_event_loops_one_after_the_other(database_url: str) -> None:
    board = asyncio.run(_open(database_url))
    try:
        assert asyncio.run(_names(board)) == ["a"]
        assert asyncio.run(_names(board)) == ["a"]
    finally:
        asyncio.run(board.close())
        del board
        gc.collect()  # a loop that ended took its connections with it unclosed; the warnings belong here


async def _open(url: str) -> Blackboard:
    board = await Blackboard.open(url)
    await board.start("a")
    return board


async def _names(board: Blackboard) -> list[str]:
    return [record.name for record in await board.sessions.list()]


def test_a_forked_child_gets_a_lease_of_its_own(database_url: str) -> None:
    code = """
import os, sys
from blackboard.sync import Blackboard
board = Blackboard.open(sys.argv[1])
session = board.start("a")
parent = session.join("parent")
for n in range(2):
    session.tasks.add("t")
[task] = parent.tasks.claim()
pid = os.fork()
if pid == 0:
    child = session.join("child")
    [own] = child.tasks.claim()
    ok = own.id != task.id and own.lease_id != task.lease_id
    child.tasks.complete(own)
    os._exit(0 if ok else 3)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
parent.tasks.complete(task)
board.close()
"""
    import subprocess

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, database_url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
