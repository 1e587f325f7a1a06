"""Locks that were granted to a request whose answer nobody got are free again."""

# ruff: noqa: F401, F811 - fixtures are imported, and asked for by name

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from blackboard import Agent, Blackboard, Session
from blackboard import sync as blocking
from blackboard.errors import ServerUnreachable
from blackboard.ids import new_id

from .chaos.kit import door, far_board
from .chaos.proxy import Ambush, Door
from .doubtkit import count_now, counted, interrupted, late


@pytest.fixture
def far_term() -> timedelta:
    """Nothing here can wait for a beat that is not asked for."""
    return timedelta(hours=1)


@pytest.fixture
async def agent(session: Session) -> Agent:
    return await session.join("ops/a")


def answer(name: str) -> Ambush:
    return Ambush(lambda text: f"blackboard.{name}(" in text, rows=True)


async def test_a_lock_that_a_cancelled_call_got_is_free_again(
    board: Blackboard, session: Session, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = late(monkeypatch, board, "acquire_lock")
    asking = asyncio.create_task(agent.locks.try_acquire("file:/x"))
    await kept.done.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (await session.locks.get("file:/x")).holder == "ops/a"
    await counted(board)
    assert (await session.locks.get("file:/x")).holder is None
    grant = await agent.locks.try_acquire("file:/x")
    assert grant is not None
    await counted(board)
    await agent.locks.renew("file:/x", grant.token)


async def test_a_request_of_the_callers_keeps_its_lock(
    board: Blackboard, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = new_id()
    grant = await agent.locks.try_acquire("file:/x", request_id=request)
    assert grant is not None
    kept = late(monkeypatch, board, "acquire_lock")
    again = asyncio.create_task(agent.locks.try_acquire("file:/x", request_id=request))
    await kept.done.wait()
    again.cancel()
    await asyncio.wait({again})
    await counted(board)
    await agent.locks.renew("file:/x", grant.token)


@pytest.mark.parametrize("verb", ["try_acquire", "acquire"])
async def test_a_lock_whose_answers_were_cut_is_free_again(
    session: Session, far_board: Blackboard, door: Door, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    agent = await (await far_board.session(session.id)).join("ops/a")
    rows = far_board._executor._rows  # type: ignore[attr-defined]

    async def no_way_back(statement: Any, params: Any) -> Any:
        if statement.name == "cancel_lock_wait":
            raise ServerUnreachable("nor can it be taken back at once")
        return await rows(statement, params)

    monkeypatch.setattr(far_board._executor, "_rows", no_way_back)
    for _ in range(2):
        door.lay(answer("acquire_lock"))
    with pytest.raises(ServerUnreachable, match="connection"):
        await getattr(agent.locks, verb)("file:/x")
    assert (await session.locks.get("file:/x")).holder == "ops/a"
    await counted(far_board)
    assert (await session.locks.get("file:/x")).holder is None


def test_the_blocking_client_too(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with blocking.Blackboard.open(database_url, lease_term=timedelta(hours=1)) as board:
        session = board.start("s")
        agent = session.join("ops/a")
        interrupted(monkeypatch, board, "acquire_lock")
        with pytest.raises(KeyboardInterrupt):
            agent.locks.try_acquire("file:/x")
        assert session.locks.get("file:/x").holder == "ops/a"
        count_now(board)
        assert session.locks.get("file:/x").holder is None
