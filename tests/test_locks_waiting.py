"""Waiting for a lock: in order, with a time-out, and as a block."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from blackboard import Blackboard, Session
from blackboard.errors import LeaseLost, LockNotAcquired, WaitNotAllowed

from .conftest import Clock, eventually


async def test_a_block_holds_the_lock_and_the_next_one_gets_it(session: Session) -> None:
    a, b = await session.join("ops/a"), await session.join("ops/b")
    order: list[str] = []
    async with a.locks.hold("file:/x") as held:
        waiting = asyncio.create_task(b.locks.acquire("file:/x"))
        await eventually(lambda: _waiting(session, 1))
        order.append(held.holder)
    granted = await asyncio.wait_for(waiting, 10)
    assert [*order, granted.holder] == [a.id, b.id]
    assert granted.token > held.token
    await b.locks.release("file:/x", granted.token)


async def _waiting(session: Session, count: int) -> bool:
    return (await session.locks.get("file:/x")).waiting == count


async def test_time_out_names_the_holder_and_leaves_the_queue(session: Session) -> None:
    a, b = await session.join("ops/a"), await session.join("ops/b")
    async with a.locks.hold("file:/x"):
        with pytest.raises(LockNotAcquired) as refused:
            await b.locks.acquire("file:/x", timeout=timedelta(milliseconds=30))
        assert refused.value.details["holder"] == a.id
        assert (await session.locks.get("file:/x")).waiting == 0


async def test_a_cancelled_wait_leaves_the_queue(session: Session) -> None:
    a, b = await session.join("ops/a"), await session.join("ops/b")
    async with a.locks.hold("file:/x"):
        waiting = asyncio.create_task(b.locks.acquire("file:/x"))
        await eventually(lambda: _waiting(session, 1))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await eventually(lambda: _waiting(session, 0))


async def test_leaving_the_block_after_the_lock_ran_out_says_so(session: Session, clock: Clock) -> None:
    a, b = await session.join("ops/a"), await session.join("ops/b")
    with pytest.raises(LeaseLost):
        async with a.locks.hold("file:/x", ttl=timedelta(seconds=5)):
            await clock.advance(timedelta(seconds=6))
            assert await b.locks.try_acquire("file:/x") is not None


async def test_a_failing_block_releases_and_keeps_its_own_error(session: Session) -> None:
    a, b = await session.join("ops/a"), await session.join("ops/b")
    with pytest.raises(ZeroDivisionError):
        async with a.locks.hold("file:/x"):
            raise ZeroDivisionError
    assert await b.locks.try_acquire("file:/x") is not None


async def test_a_bound_handle_refuses_to_queue(board: Blackboard, session: Session, db: object) -> None:
    a = await session.join("ops/a")
    with pytest.raises(WaitNotAllowed):
        await board.bind(db).agent(a).locks.acquire("file:/x")
