"""A waiting loop's ear: hears that something of interest may have changed, from threads and from event loops."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Self
from uuid import UUID

__all__ = ["Subscription", "Woken", "resolve"]


class Subscription:
    """Hears the hints of some sessions, or of all. It belongs to one waiting loop; get it from ``Listener.subscribe``.

    ::

        with listener.subscribe(session_id, {"tasks"}) as subscription:
            while not (found := await look()):
                await subscription.wait_async(remaining)

    Subscribe, then look, then wait: a hint that comes in between makes the next wait return at once.
    """

    def __init__(
        self,
        sessions: Collection[UUID] | None,
        nouns: Collection[str] | None,
        *,
        waiting: Callable[[float | None, asyncio.AbstractEventLoop | None], tuple[float, threading.RLock]],
        poll_over: Callable[[asyncio.Future[bool], float], None],
        leave: Callable[[Subscription], None],
    ) -> None:
        self.sessions = None if sessions is None else frozenset(sessions)
        self.nouns = None if nouns is None else frozenset(nouns)
        self._waiting = waiting
        self._poll_over = poll_over
        self._leave = leave
        self._hinted = False
        self._waiters: list[asyncio.Future[bool] | threading.Lock] = []
        self._call: tuple[asyncio.AbstractEventLoop, Callable[[], None], threading.RLock] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Hears nothing more; may be called twice."""
        self._leave(self)
        self._call = None

    def wait(self, timeout: float | None = None) -> bool:
        """True after a hint, False when ``timeout`` seconds or the poll interval are over: look again either way.

        Blocks the thread. All who wait at once on one subscription are woken by a hint.
        """
        seconds, lock = self._waiting(timeout, None)
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
        loop = asyncio.get_running_loop()
        seconds, lock = self._waiting(timeout, loop)
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

    def call(self, function: Callable[[], None]) -> None:
        """From now on ``function`` is called in this event loop after hints, one call for those that come at once.

        It is also called soon if there was a hint before. What it raises goes to the loop's exception handler. For
        whoever also looks without a hint: nothing is called when the poll interval is over.
        """
        loop = asyncio.get_running_loop()
        _, lock = self._waiting(None, loop)
        with lock:
            self._call = (loop, function, lock)
            if self._hinted:
                loop.call_soon(self.called)

    def called(self) -> None:
        """The function of ``call`` has been called, if there is a hint that it was not called for."""
        if self._call is None:
            return
        loop, function, lock = self._call
        with lock:
            if not self._take():
                return
        try:
            function()
        except Exception as error:  # the others are to hear it all the same
            loop.call_exception_handler({"message": "what is called after hints failed", "exception": error})

    def _take(self) -> bool:
        hinted, self._hinted = self._hinted, False
        return hinted

    def _drop(self, waiter: asyncio.Future[bool] | threading.Lock) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def hint(self, woken: Woken) -> None:
        """Waiting threads are released, and ``woken`` holds who is to be woken in its loop.

        For the listener, which holds the lock. The flag stays up until a wait returns it, so that a cancelled wait
        loses nothing.
        """
        if self._call is not None and not self._hinted:
            woken.setdefault(self._call[0], []).append(self)
        self._hinted = True
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if isinstance(waiter, asyncio.Future):
                    woken.setdefault(waiter.get_loop(), []).append(waiter)
                else:
                    waiter.release()

    def revive(self) -> None:
        """Usable in a forked child: those who waited stayed in the parent, what happened meanwhile is unknown."""
        self._waiters = []
        self._call = None
        self._hinted = True


Woken = dict[asyncio.AbstractEventLoop, list["asyncio.Future[bool] | Subscription"]]


def resolve(woken: Sequence[asyncio.Future[bool] | Subscription], hinted: bool) -> None:
    """In their loop: who waits goes on, and who is to be called is."""
    for one in woken:
        if isinstance(one, Subscription):
            one.called()
        elif not one.done():
            one.set_result(hinted)
