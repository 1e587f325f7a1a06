"""A board in a process that forks, that has loops one after the other, that runs out of threads, or that is given up."""

# ruff: noqa: F811 - fixtures are imported, and asked for by name

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias
from uuid import uuid4

import asyncpg
import psycopg
import pytest

from blackboard import Blackboard, Session
from blackboard import board as board_module
from blackboard import sync as blocking
from blackboard.errors import ConfigurationError, InvalidInput, TransientError, Unavailable
from blackboard.sqlstates import from_sqlstate
from blackboard.store.connections import open_executor
from blackboard.store.listener import Listener
from blackboard.sync import board as blocking_module
from blackboard.work import answers

from .chaos.kit import door  # noqa: F401 - a fixture
from .chaos.proxy import Door
from .conftest import eventually

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# --------------------------------------------------------------------------------------------------------------- forks

FORK = """
import asyncio, os, sys

def backend(board):
    [(connection, _)] = board._executor._idle
    return connection._connection.info.backend_pid if blocking else connection.connection.get_server_pid()

async def main():
    board = await Blackboard.open(sys.argv[1])
    await board.start("a")
    return board

async def again(board):
    await board.session("a")
    own = backend(board)
    await board.close()
    return own

blocking = sys.argv[2] == "True"
if blocking:
    from blackboard.sync import Blackboard
    board = Blackboard.open(sys.argv[1])
    board.start("a")
else:
    from blackboard import Blackboard
    loop = asyncio.new_event_loop()
    board = loop.run_until_complete(main())
mine = backend(board)
if (child := os.fork()) == 0:
    if blocking:
        board.session("a")
        own = backend(board)
        board.close()
    else:
        own = loop.run_until_complete(again(board)) if sys.argv[3] == "same" else asyncio.run(again(board))
    os._exit(0 if own != mine else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
if blocking:
    board.session("a")
    assert backend(board) == mine
    board.close()
else:
    assert loop.run_until_complete(again(board)) == mine
    loop.close()
"""


@pytest.mark.parametrize(("kind", "loop"), [("True", "none"), ("False", "other"), ("False", "same")])
def test_a_forked_child_opens_connections_of_its_own(database_url: str, kind: str, loop: str) -> None:
    """On its parent's both would read each other's answers; and its close is not the parent's."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, database_url, kind, loop],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


# --------------------------------------------------------------------------------------------------------------- loops


def test_a_lease_that_was_waited_for_in_one_loop_is_had_in_the_next(database_url: str) -> None:
    async def join(board: Any, session: Session, names: list[str]) -> None:
        await asyncio.gather(*(session.join(name) for name in names))

    async def first() -> tuple[Any, Session]:
        board: Any = await Blackboard.open(database_url)
        session = await board.start("a")
        await join(board, session, ["a", "b", "c"])
        await board._executor._close_idle(time.monotonic())
        return board, session

    async def second(board: Any, session: Session) -> None:
        await board._leases.forget(await board._leases.current())
        await join(board, session, ["d", "e", "f"])
        await board.close()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.run(second(*asyncio.run(first())))
        gc.collect()


# ----------------------------------------------------------------------------------------------------- what is left over


@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_a_board_that_does_not_open_leaves_no_connection(
    database_url: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    opened: list[Any] = []
    module: Any = board_module if kind == "async" else blocking_module
    real: Callable[..., Any] = module.open_executor

    def remembered(*args: Any, **options: Any) -> Any:
        opened.append(real(*args, **options))
        return opened[-1]

    monkeypatch.setattr(module, "open_executor", remembered)
    monkeypatch.setenv("BLACKBOARD_LISTEN_URL", "postgresql://a b?c")
    with pytest.raises(ConfigurationError):
        if kind == "async":
            await Blackboard.open(database_url)
        else:
            await asyncio.to_thread(blocking.Blackboard.open, database_url)
    [executor] = opened
    assert executor._closed and executor._idle == []


async def test_a_close_that_is_given_up_leaves_no_connection(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor: Any = open_executor(database_url, pool_size=3)
    statement = board_module.statements("schema")["schema_version"]
    await asyncio.gather(*(executor.fetch_one(statement) for _ in range(3)))
    connections = [idle.connection for idle, _ in executor._idle]
    assert len(connections) == 3

    async def never(self: Any, *, timeout: float | None = None) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncpg.Connection, "close", never)
    closing = asyncio.create_task(executor.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait({closing})
    assert closing.cancelled()
    assert all(connection.is_closed() for connection in connections)


async def test_a_deadlock_of_one_call_costs_the_others_no_connection(database_url: str) -> None:
    executor: Any = open_executor(database_url, pool_size=3)
    statement = board_module.statements("schema")["schema_version"]
    await asyncio.gather(*(executor.fetch_one(statement) for _ in range(3)))
    assert await executor._worth_repeating(TransientError("a deadlock", sqlstate="40P01"))
    assert len(executor._idle) == 3
    assert await executor._worth_repeating(TransientError("another schema", sqlstate="0A000"))
    assert executor._idle == []
    await executor.close()


async def test_what_the_collector_ends_waits_for_no_lock_of_its_own_thread(board: Blackboard, session: Session) -> None:
    """It comes at any allocation, also of the thread that holds the lock."""
    inner: Any = board

    async def claims() -> None:
        async with inner._leases.claiming(uuid4()):
            await asyncio.sleep(3600)

    abandoned = claims()
    abandoned.send(None)
    with inner._leases._book, inner._executor._guard:
        abandoned.close()
        connection = await inner._executor._acquire() if not inner._executor._idle else inner._executor._idle[-1][0]
    assert connection.usable


# ------------------------------------------------------------------------------------------------------ scarce threads


def scarce(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """No thread of that name can be started while the list that this returns is empty."""
    plenty: list[str] = []
    start = threading.Thread.start

    def start_perhaps(thread: threading.Thread) -> None:
        if thread.name == name and not plenty:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_perhaps)
    return plenty


async def test_a_lease_without_a_heartbeat_is_not_held(
    board: Blackboard, session: Session, monkeypatch: pytest.MonkeyPatch, db: Connection
) -> None:
    plenty = scarce(monkeypatch, "blackboard-heartbeat")
    with pytest.raises(Unavailable, match="thread"):
        await session.join("ops/a")
    plenty.append("now")
    await session.join("ops/a")
    leases: Any = board._leases  # pyright: ignore[reportPrivateUsage]

    async def renewed() -> bool:
        return leases._heartbeat.renewals > 0

    await eventually(renewed)
    assert await db.fetchval(
        "SELECT lapsed_at IS NULL FROM blackboard.leases WHERE id = $1", leases._heartbeat.lease_id
    )


def test_hints_wait_for_a_thread_and_never_fail(
    database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plenty = scarce(monkeypatch, "blackboard-listener")
    listener = Listener(database_url)
    session_id = uuid4()
    with psycopg.connect(database_url, autocommit=True) as connection, listener.subscribe(session_id) as hints:
        connection.execute("LISTEN blackboard")
        listener.notify(session_id, "tasks.ready")
        listener.notify(session_id, "tasks.changed")
        assert hints.wait(10)  # here it is heard
        assert [record.message for record in caplog.records] == ["wake-ups wait for a thread: can't start new thread"]
        plenty.append("now")
        listener.notify(session_id, "tasks")
        heard = {notice.payload for notice in connection.notifies(timeout=30, stop_after=3)}
    assert heard == {f"{session_id} {noun}" for noun in ("tasks.ready", "tasks.changed", "tasks")}
    listener.close()


# ------------------------------------------------------------------------------------------------------- silent servers


async def test_a_blocking_board_closes_though_its_connections_are_dead(
    database_url: str, door: Door, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They look alive, and no answer will ever come: the lease is ended on another one."""
    monkeypatch.setattr(answers, "ANSWER_SECONDS", 0.5)
    board = await asyncio.to_thread(blocking.Blackboard.open, door.url(database_url))
    session = await asyncio.to_thread(board.start, "s")
    await asyncio.to_thread(session.join, "ops/a")
    await asyncio.to_thread(door.deafen)
    await asyncio.wait_for(asyncio.to_thread(board.close), 30)
    assert await db.fetchval("SELECT lapsed_at IS NOT NULL FROM blackboard.leases")


async def test_nor_does_a_silent_server_keep_it(database_url: str, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "ANSWER_SECONDS", 0.5)
    board = await asyncio.to_thread(blocking.Blackboard.open, door.url(database_url))
    session = await asyncio.to_thread(board.start, "s")
    await asyncio.to_thread(session.join, "ops/a")
    await asyncio.to_thread(door.hole)
    with pytest.raises(Unavailable):
        await asyncio.wait_for(asyncio.to_thread(board.close), 30)
    await asyncio.to_thread(door.heal, cut=True)


# -------------------------------------------------------------------------------------------------------- others' words


@pytest.mark.parametrize("detail", ["5", "[1]", "null", '{"message": "x", "self": 1}', "no JSON"])
def test_anybody_may_raise_our_sqlstates_with_any_detail(detail: str) -> None:
    error = from_sqlstate("BB002", "refused", detail=detail)
    assert isinstance(error, InvalidInput) and str(error) == "refused"
    assert error.details == ({"message": "x", "self": 1} if detail.startswith("{") else {"detail": detail})
