"""Closing a board whose server is gone leaves nothing behind, and hides no error."""

# ruff: noqa: F401, F811 - fixtures are imported, and asked for by name

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from blackboard import Blackboard
from blackboard import sync as blocking
from blackboard.errors import ServerUnreachable
from blackboard.store import migrations
from blackboard.work import answers

from .chaos.kit import door
from .chaos.proxy import Door
from .conftest import eventually
from .doubtkit import counted
from .serverfixture import PrivateServer

pytestmark = pytest.mark.lifecycle


@pytest.fixture
def server() -> Iterator[PrivateServer]:
    server = PrivateServer()
    try:
        server.start()
        migrations.upgrade(server.url())
        yield server
    finally:
        server.destroy()


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("blackboard")]


async def open_one(url: str) -> Blackboard:
    board = await Blackboard.open(url)
    session = await board.start("s")
    await session.join("ops/a")
    # Somebody waits, so that there is a listener.
    with board._listener.subscribe(session.id, ("tasks",)) as hints:
        await hints.wait_async(0.1)
    return board


@pytest.mark.parametrize("fails", [False, True])
async def test_all_of_it_is_closed(server: PrivateServer, *, fails: bool) -> None:
    before = set(names())
    board = await open_one(server.url())
    await asyncio.to_thread(server.stop, signal.SIGQUIT)
    with pytest.raises(ValueError if fails else ServerUnreachable):
        async with board:
            if fails:
                raise ValueError("the block's own error")

    async def gone() -> bool:
        return set(names()) <= before

    await eventually(gone)
    executor: Any = board._executor
    assert executor._closed


async def test_also_when_it_was_opened_by_the_block(server: PrivateServer) -> None:
    with pytest.raises(ValueError, match="the block"):
        async with Blackboard.open(server.url()) as board:
            await (await board.start("s")).join("ops/a")
            await asyncio.to_thread(server.stop, signal.SIGQUIT)
            raise ValueError("the block's own error")


@pytest.mark.parametrize("fails", [False, True])
def test_the_blocking_board_too(server: PrivateServer, *, fails: bool) -> None:
    board = blocking.Blackboard.open(server.url())
    board.start("s").join("ops/a")
    server.stop(signal.SIGQUIT)
    with pytest.raises(ValueError if fails else ServerUnreachable), board:
        if fails:
            raise ValueError("the block's own error")
    executor: Any = board._executor
    assert executor._closed


async def test_a_connection_that_is_dead_and_looks_alive_does_not_keep_it(
    database_url: str, door: Door, db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is ended on another one."""
    monkeypatch.setattr(answers, "ANSWER_SECONDS", 0.5)
    board = await Blackboard.open(door.url(database_url))
    await (await board.start("s")).join("ops/a")
    await counted(board)
    await asyncio.to_thread(door.deafen)
    await asyncio.wait_for(board.close(), 20)
    assert await db.fetchval("SELECT lapsed_at IS NOT NULL FROM blackboard.leases")
