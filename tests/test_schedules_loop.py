"""The loop that looks after schedules, where its waits end in unusual ways."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from blackboard.work.schedules import SchedulerLoop


class Quiet:
    """A scheduler with nothing due, and hints that never come."""

    def __init__(self) -> None:
        self.looks = 0
        self.when_given_up: Any = None
        self.waiting = asyncio.Event()

    def hints(self, *, sessions: Any = None) -> Quiet:
        # Hundreds of workers must not look for what happens in the sessions of others.
        assert sessions == ()
        return self

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    async def fire_due(self, limit: int, *, sessions: Any = None) -> list[Any]:
        self.looks += 1
        return []

    async def seconds_to_next(self, *, sessions: Any = None) -> float:
        return 30.0

    async def wait_async(self, seconds: float) -> bool:
        self.waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            if self.when_given_up is not None:
                self.when_given_up()
        return True


@pytest.mark.parametrize("moment", ["waiting", "tidying up"])
async def test_a_cancellation_ends_the_loop_whenever_it_comes(moment: str) -> None:
    scheduler, stop = Quiet(), asyncio.Event()
    loop = asyncio.create_task(SchedulerLoop(scheduler, sessions=()).run(stop))  # type: ignore[arg-type]
    await scheduler.waiting.wait()
    if moment == "waiting":
        loop.cancel()
    else:
        scheduler.when_given_up = loop.cancel
        # Ends the wait, and is over before anybody looks.
        stop.set()
        stop.clear()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(loop, 20)
    assert scheduler.looks == 1


async def test_stop_ends_the_loop() -> None:
    scheduler, stop = Quiet(), asyncio.Event()
    loop = asyncio.create_task(SchedulerLoop(scheduler, sessions=()).run(stop))  # type: ignore[arg-type]
    await scheduler.waiting.wait()
    stop.set()
    await asyncio.wait_for(loop, 20)
