"""A waiting loop's ear: hears that something of interest may have changed, from threads and from event loops."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Self
from uuid import UUID

__all__ = ["Subscription", "resolve"]


class Subscription:
    """Hears the hints of one session, or of all. It belongs to one waiting loop; get it from ``Listener.subscribe``.

    ::

        with listener.subscribe(session_id, {"tasks"}) as subscription:
            while not (found := await look()):
                await subscription.wait_async(remaining)

    Subscribe, then look, then wait: a hint that comes in between makes the next wait return at once.
    """

    def __init__(
        self,
        session_id: UUID | None,
        nouns: Collection[str] | None,
        *,
        waiting: Callable[[float | None], tuple[float, threading.RLock]],
        poll_over: Callable[[asyncio.Future[bool], float], None],
        leave: Callable[[Subscription], None],
    ) -> None:
        self.session_id = session_id
        self.nouns = None if nouns is None else frozenset(nouns)
        self._waiting = waiting
        self._poll_over = poll_over
        self._leave = leave
        self._hinted = False
        self._waiters: list[asyncio.Future[bool] | threading.Lock] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Hears nothing more; may be called twice."""
        self._leave(self)

    def wait(self, timeout: float | None = None) -> bool:
        """True after a hint, False when ``timeout`` seconds or the poll interval are over: look again either way.

        Blocks the thread. All who wait at once on one subscription are woken by a hint.
        """
        seconds, lock = self._waiting(timeout)
        gate = threading.Lock()
        gate.acquire()
        with lock:
            if self._hinted or seconds <= 0:
                return self._take()
            self._waiters.append(gate)
        try:
            woken = gate.acquire(timeout=seconds)
        finally:
            with lock:
                self._drop(gate)
        with lock:
            return self._take() or woken

    async def wait_async(self, timeout: float | None = None) -> bool:
        """Like ``wait``, without blocking the event loop; a cancelled wait leaves its hint to the next one."""
        seconds, lock = self._waiting(timeout)
        loop = asyncio.get_running_loop()
        with lock:
            if self._hinted or seconds <= 0:
                return self._take()
            future: asyncio.Future[bool] = loop.create_future()
            self._waiters.append(future)
        if seconds == timeout:
            timer = loop.call_later(seconds, resolve, [future], False)
        else:
            timer = loop.call_later(
                seconds, self._poll_over, future, math.inf if timeout is None else timeout - seconds
            )
        try:
            woken = await future
        finally:
            timer.cancel()
            with lock:
                self._drop(future)
        with lock:
            return self._take() or woken

    def _take(self) -> bool:
        hinted, self._hinted = self._hinted, False
        return hinted

    def _drop(self, waiter: asyncio.Future[bool] | threading.Lock) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def hint(self, futures: dict[asyncio.AbstractEventLoop, list[asyncio.Future[bool]]]) -> None:
        """Waiting threads are released, and ``futures`` holds those to resolve in their loops.

        For the listener, which holds the lock. The flag stays up until a wait returns it, so that a cancelled wait
        loses nothing.
        """
        self._hinted = True
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if isinstance(waiter, asyncio.Future):
                    futures.setdefault(waiter.get_loop(), []).append(waiter)
                else:
                    waiter.release()

    def revive(self) -> None:
        """Usable in a forked child: those who waited stayed in the parent, what happened meanwhile is unknown."""
        self._waiters = []
        self._hinted = True


def resolve(futures: list[asyncio.Future[bool]], hinted: bool) -> None:
    for future in futures:
        if not future.done():
            future.set_result(hinted)
