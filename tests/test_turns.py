"""Turns: a free place costs no wait, and who waits is served in order whatever is cancelled."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from blackboard.store.turns import Turns


async def queued(turns: Turns, served: list[int], number: int) -> asyncio.Task[None]:
    async def wait() -> None:
        await turns.acquire()
        served.append(number)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)  # it waits now
    return task


async def test_there_are_as_many_places_as_were_said() -> None:
    turns = Turns(2)
    assert turns.take()
    await turns.acquire()
    assert not turns.take()
    turns.release()
    assert turns.take()
    assert not turns.take()


async def test_first_come_first_served_and_nobody_overtakes() -> None:
    turns, served = Turns(1), list[int]()
    await turns.acquire()
    waiting = [await queued(turns, served, number) for number in range(3)]
    for number in range(3):
        turns.release()
        assert not turns.take(), "the place went to who waits, though that one has not run yet"
        await waiting[number]
        assert served == list(range(number + 1))
    turns.release()
    assert turns.take()


async def test_a_cancelled_wait_is_passed_over() -> None:
    turns, served = Turns(1), list[int]()
    await turns.acquire()
    first, second = [await queued(turns, served, number) for number in range(2)]
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    turns.release()
    await second
    assert served == [1]
    turns.release()
    assert turns.take()


@pytest.mark.parametrize("others", [0, 1])
async def test_cancelled_in_the_moment_of_its_turn_it_hands_the_place_on(others: int) -> None:
    turns, served = Turns(1), list[int]()
    await turns.acquire()
    first, *rest = [await queued(turns, served, number) for number in range(1 + others)]
    turns.release()
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    for task in rest:
        await task
        turns.release()
    assert served == [1][:others]
    assert turns.take()
    assert not turns.take()
