"""Reservations whose answer nobody got, and ends that the server could not be told: nothing stays held by them."""

# ruff: noqa: F401, F811 - fixtures are imported, and asked for by name

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from blackboard import Agent, Blackboard, Session
from blackboard import sync as blocking
from blackboard.errors import InvalidInput, ServerUnreachable
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
    await session.budgets.set("tokens", 100)
    return await session.join("ops/a")


async def tokens(session: Session) -> tuple[float, float]:
    """Reserved and spent."""
    [budget] = await session.budgets.list()
    return float(budget.reserved), float(budget.spent)


def answer(name: str) -> Ambush:
    return Ambush(lambda text: f"blackboard.{name}(" in text, rows=True)


async def spend(agent: Agent) -> None:
    async with agent.budgets.spend(tokens=100):
        pass


@pytest.mark.parametrize("block", [False, True])
async def test_what_a_cancelled_call_reserved_is_free_again(
    board: Blackboard, session: Session, agent: Agent, monkeypatch: pytest.MonkeyPatch, *, block: bool
) -> None:
    kept = late(monkeypatch, board, "reserve_budget")
    asking = asyncio.create_task(spend(agent) if block else agent.budgets.reserve(tokens=100))
    await kept.done.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await tokens(session) == (100, 0)
    await counted(board)
    assert await tokens(session) == (0, 0)
    held = await agent.budgets.reserve(tokens=100)
    await counted(board)
    assert (await agent.budgets.settle(held, tokens=60)).settled == {"tokens": 60}


async def test_what_was_reserved_and_never_answered_is_free_again(
    session: Session, agent: Agent, far_board: Blackboard, door: Door
) -> None:
    far = await (await far_board.session(session.id)).join("ops/far")
    for _ in range(2):
        door.lay(answer("reserve_budget"))
    with pytest.raises(ServerUnreachable):
        await spend(far)
    assert await tokens(session) == (100, 0)
    await counted(far_board)
    assert await tokens(session) == (0, 0)


@pytest.mark.parametrize("cut", [False, True])
def test_the_blocking_client_too(database_url: str, door: Door, monkeypatch: pytest.MonkeyPatch, *, cut: bool) -> None:
    with blocking.Blackboard.open(door.url(database_url), lease_term=timedelta(hours=1)) as board:
        session = board.start("s")
        agent = session.join("ops/a")
        session.budgets.set("tokens", 100)
        if cut:
            for _ in range(2):
                door.lay(answer("reserve_budget"))
        else:
            interrupted(monkeypatch, board, "reserve_budget")
        with pytest.raises(ServerUnreachable if cut else KeyboardInterrupt), agent.budgets.spend(tokens=100):
            pass
        assert session.budgets.list()[0].reserved == 100
        count_now(board)
        assert session.budgets.list()[0].reserved == 0


async def test_a_reservation_by_an_id_of_the_callers_is_his(
    board: Blackboard, session: Session, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He may have it from an earlier call, and can release it in any case."""
    key = new_id()
    held = await agent.budgets.reserve(tokens=10, id=key)
    kept = late(monkeypatch, board, "reserve_budget")
    again = asyncio.create_task(agent.budgets.reserve(tokens=10, id=key))
    await kept.done.wait()
    again.cancel()
    await asyncio.wait({again})
    await counted(board)
    assert await tokens(session) == (10, 0)
    await agent.budgets.settle(held)


async def test_a_settlement_that_is_refused_holds_nothing(session: Session, agent: Agent) -> None:
    with pytest.raises(InvalidInput) as refused:
        async with agent.budgets.spend(tokens=100) as spending:
            spending.tokens = 99.5
    assert refused.value.details["field"] == "tokens"
    assert await tokens(session) == (0, 0)


async def test_a_settlement_that_is_refused_after_a_failure_holds_nothing_either(
    session: Session, agent: Agent
) -> None:
    with pytest.raises(RuntimeError, match="the block"):
        async with agent.budgets.spend(tokens=100) as spending:
            spending.tokens = 99.5
            raise RuntimeError("the block")
    assert await tokens(session) == (0, 0)


@pytest.mark.parametrize("fails", [False, True])
async def test_what_was_spent_is_told_later_if_the_server_cannot_be_told_now(
    session: Session, agent: Agent, far_board: Blackboard, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    far = await (await far_board.session(session.id)).join("ops/far")
    rows = far_board._executor._rows  # type: ignore[attr-defined]

    async def unreachable(statement: Any, params: Any) -> Any:
        if statement.name == "settle_budget":
            raise ServerUnreachable("for settlements only")
        return await rows(statement, params)

    with pytest.raises(RuntimeError if fails else ServerUnreachable):
        async with far.budgets.spend(tokens=100, task=(await session.tasks.add("t")).id, note="it's here") as spending:
            monkeypatch.setattr(far_board._executor, "_rows", unreachable)
            spending.tokens = 60
            if fails:
                raise RuntimeError("the block")
    assert await tokens(session) == (100, 0)
    await counted(far_board)
    assert await tokens(session) == (0, 60)
    await counted(far_board)
    assert far_board._leases._debts == []


async def test_a_failed_block_that_could_not_release_does_so_later(
    board: Blackboard, session: Session, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = board._executor._rows  # type: ignore[attr-defined]
    begun = asyncio.Event()

    async def unreachable(statement: Any, params: Any) -> Any:
        if statement.name == "release_budget":
            begun.set()
            await asyncio.Event().wait()
        return await rows(statement, params)

    monkeypatch.setattr(board._executor, "_rows", unreachable)

    async def fail() -> None:
        async with agent.budgets.spend(tokens=100):
            raise RuntimeError("the block")

    failing = asyncio.create_task(fail())
    await begun.wait()
    failing.cancel()
    await asyncio.wait({failing})
    assert await tokens(session) == (100, 0)
    await counted(board)
    assert await tokens(session) == (0, 0)


async def test_what_is_only_reserved_after_its_caller_gave_up_is_found_by_a_later_count(
    board: Blackboard, session: Session, agent: Agent
) -> None:
    """The call may still run on the server; a count finds nothing then, and the next one looks again."""
    key = new_id()
    agent.budgets._owe_release(key)
    await counted(board)
    await agent.budgets.reserve(tokens=100, id=key)
    await counted(board)
    assert await tokens(session) == (0, 0)
    assert board._leases._debts == []
