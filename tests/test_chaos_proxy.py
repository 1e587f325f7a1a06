"""The proxy of the crash storm: what it understands of the protocol, and the ways in which it fails."""

from __future__ import annotations

import asyncio
import itertools
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from .chaos.machines import eventually
from .chaos.proxy import Ambush, Door, Proxy, upstream_of
from .chaos.wire import FromClient, FromServer, Request


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


ENCRYPTION = message(b"", struct.pack("!i", 80877103))
STARTUP = message(b"", struct.pack("!i", 196608) + b"user\0x\0\0")
SPOKEN = b"".join(
    [
        ENCRYPTION,
        STARTUP,
        message(b"Q", b"SELECT 1\0"),
        message(b"P", b"s1\0INSERT\0\0\0") + message(b"S", b""),
        message(b"B", b"\0s1\0\0\0") + message(b"E", b"\0\0\0\0\0") + message(b"B", b"\0s1\0") + message(b"S", b""),
        message(b"X", b""),
    ]
)
HEARD = [Request(()), Request(("SELECT 1",)), Request(()), Request(("INSERT", "INSERT"))]
READY = message(b"Z", b"I")
ANSWERED = [
    message(b"R", b"\0\0\0\0") + READY,
    message(b"D", b"1") + message(b"D", b"2") + message(b"C", b"SELECT 2\0") + READY,
    message(b"E", b"no\0") + message(b"Z", b"E"),
]


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(st.lists(st.integers(0, 1000)))
def test_messages_are_understood_however_they_arrive(cuts: list[int]) -> None:
    client = FromClient()
    assert [request for piece in pieces(SPOKEN, cuts) for request in client.feed(piece)] == HEARD
    server = FromServer(client)
    answers = [answer for piece in pieces(b"N" + b"".join(ANSWERED), cuts) for answer in server.feed(piece)]
    assert b"".join(bytes(answer.data) for answer in answers) == b"N" + b"".join(ANSWERED)
    assert [(answer.rows, answer.failed, answer.status) for answer in answers] == [
        (0, False, "I"),
        (2, False, "I"),
        (0, True, "E"),
    ]
    assert server.idle


def test_a_request_to_cancel_is_no_conversation() -> None:
    client = FromClient()
    assert client.feed(message(b"", struct.pack("!iii", 80877102, 1, 2))) == []
    assert client.cancels


def test_where_a_url_leads() -> None:
    assert upstream_of("postgresql://x@/d?host=/run/pg&port=7") == "/run/pg/.s.PGSQL.7"
    assert upstream_of("postgresql://x@db.example/d") == ("db.example", 5432)


# ----------------------------------------------------------------------------------------------- before a real server


@pytest.fixture
def door(database_url: str) -> Iterator[Door]:
    with Proxy() as proxy:
        yield proxy.door("test", upstream_of(database_url))


@pytest.fixture
def direct(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.notes (n integer)")
        yield connection
        connection.execute("DROP TABLE public.notes")


@pytest.fixture
def enter(door: Door, database_url: str) -> Iterator[Callable[[], psycopg.Connection[Any]]]:
    opened: list[psycopg.Connection[Any]] = []

    def connect() -> psycopg.Connection[Any]:
        opened.append(psycopg.connect(door.url(database_url), autocommit=True, connect_timeout=10))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.pgconn.finish()


Enter = Callable[[], "psycopg.Connection[Any]"]


def notes(direct: psycopg.Connection[Any]) -> list[int]:
    return [n for (n,) in direct.execute("SELECT n FROM public.notes ORDER BY n").fetchall()]


def behind(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """The call in a thread, and what it returned or raised."""
    ended: list[object] = []

    def run() -> None:
        try:
            ended.append(call())
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, ended


def test_cut_connections_are_told_and_new_ones_work(door: Door, enter: Enter) -> None:
    first = enter()
    door.cut()
    with pytest.raises(psycopg.OperationalError):
        first.execute("SELECT 1")
    assert enter().execute("SELECT 1").fetchone() == (1,)


def test_refused_connections(door: Door, enter: Enter) -> None:
    old = enter()
    door.refuse()
    with pytest.raises(psycopg.OperationalError):
        enter()
    assert old.execute("SELECT 1").fetchone() == (1,)
    door.heal()
    enter()


@pytest.mark.parametrize("cut", [False, True])
def test_a_black_hole_holds_old_and_new_connections(
    door: Door, enter: Enter, direct: psycopg.Connection[Any], cut: bool
) -> None:
    old = enter()
    pid = old.info.backend_pid
    door.hole()
    writing, written = behind(lambda: old.execute("INSERT INTO public.notes VALUES (1) RETURNING n").fetchone())
    entering, entered = behind(enter)
    # The server goes on, and has heard of nothing.
    assert notes(direct) == []
    assert direct.execute("SELECT state FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone() == ("idle",)
    assert not written
    assert not entered
    door.heal(cut=cut)
    writing.join(20)
    entering.join(20)
    assert written and entered
    if cut:
        assert isinstance(written[0], psycopg.OperationalError)
        assert notes(direct) == []
    else:
        assert written == [(1,)]
        assert isinstance(entered[0], psycopg.Connection)


def test_deaf_connections_are_never_told(door: Door, enter: Enter, direct: psycopg.Connection[Any]) -> None:
    old = enter()
    pid = old.info.backend_pid
    door.deafen()
    thread, ended = behind(lambda: old.execute("INSERT INTO public.notes VALUES (1)"))
    eventually(
        lambda: not direct.execute("SELECT FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchall(), 20, "its end"
    )
    assert enter().execute("SELECT 1").fetchone() == (1,)
    assert thread.is_alive()
    assert not ended
    assert notes(direct) == []


def test_a_message_is_cut_in_the_middle(door: Door, enter: Enter, direct: psycopg.Connection[Any]) -> None:
    connection = enter()
    connection.execute("INSERT INTO public.notes VALUES (1)")
    door.cut_after(10)
    with pytest.raises(psycopg.OperationalError):
        connection.execute("INSERT INTO public.notes VALUES (2)")
    enter().execute("INSERT INTO public.notes VALUES (3)")
    assert notes(direct) == [1, 3]


def test_an_answer_is_lost_after_the_commit(door: Door, enter: Enter, direct: psycopg.Connection[Any]) -> None:
    connection = enter()
    ambush = door.lay(Ambush(lambda text: "INSERT" in text))
    connection.execute("SELECT 1")
    with pytest.raises(psycopg.errors.NotNullViolation):
        direct.execute("ALTER TABLE public.notes ALTER n SET NOT NULL")
        connection.execute("INSERT INTO public.notes VALUES (NULL)")
    assert not ambush.sprung.is_set(), "an error is no loss"
    with pytest.raises(psycopg.OperationalError):
        connection.execute("INSERT INTO public.notes VALUES (1)")
    assert ambush.sprung.is_set()
    assert notes(direct) == [1]
    enter().execute("INSERT INTO public.notes VALUES (2)")
    assert notes(direct) == [1, 2], "once"


def test_an_ambush_may_wait_for_rows(door: Door, enter: Enter, direct: psycopg.Connection[Any]) -> None:
    connection = enter()
    ambush = door.lay(Ambush(lambda text: "notes" in text, rows=True))
    assert connection.execute("SELECT n FROM public.notes").fetchall() == []
    direct.execute("INSERT INTO public.notes VALUES (1)")
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT n FROM public.notes")
    assert ambush.sprung.is_set()
    other = door.lay(Ambush(lambda text: "notes" in text))
    door.lift(other)
    assert enter().execute("SELECT n FROM public.notes").fetchall() == [(1,)]


async def test_in_a_transaction_the_answer_of_its_commit_is_lost(
    door: Door, direct: psycopg.Connection[Any], database_url: str
) -> None:
    insert = "INSERT INTO public.notes VALUES ($1) RETURNING n"
    connection = await asyncpg.connect(door.url(database_url))
    try:
        await in_transactions(connection, door, direct, insert)
    finally:
        connection.terminate()


async def in_transactions(connection: Any, door: Door, direct: psycopg.Connection[Any], insert: str) -> None:
    ambush = door.lay(Ambush(lambda text: "INSERT" in text, rows=True))
    with pytest.raises(ZeroDivisionError):
        async with connection.transaction():
            assert await connection.fetchval(insert, 1) == 1
            raise ZeroDivisionError
    assert not ambush.sprung.is_set()
    assert await asyncio.to_thread(notes, direct) == []
    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)):
        async with connection.transaction():
            assert await connection.fetchval(insert, 2) == 2
            assert await connection.fetchval(insert, 3) == 3
    assert ambush.sprung.is_set()
    assert await asyncio.to_thread(notes, direct) == [2, 3]


def test_a_server_that_is_gone_is_an_end_of_the_connection(database_url: str) -> None:
    with Proxy() as proxy:
        door = proxy.door("nowhere", "/nowhere/.s.PGSQL.1")
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(door.url(database_url), connect_timeout=10)
