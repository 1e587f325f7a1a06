"""Who may use something of which there are only so many: first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["Turns"]


class Turns:
    """A semaphore of one event loop whose free places are taken without a coroutine, which most calls do.

    A place that is given up goes straight to whoever waits longest, so nobody is overtaken.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        # While somebody is in here that still waits, no place is free.
        self._queue: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """Whether a place was free; it is the caller's then."""
        if self._free:
            self._free -= 1
            return True
        return False

    async def acquire(self) -> None:
        """A place is the caller's. A cancelled wait leaves it to the next."""
        if self.take():
            return
        place = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                # It was handed over in the same moment.
                self.release()
            raise

    def release(self) -> None:
        """The caller's place is another's, or free."""
        while self._queue:
            place = self._queue.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._free += 1
