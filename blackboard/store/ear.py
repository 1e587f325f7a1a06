"""An event loop that reads a link's notifications itself, while the link's own thread waits."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
from collections.abc import Callable, Generator

__all__ = ["Ear", "Notice", "running_loop"]

Notice = tuple[int, str]
"""The sender's process id and the payload."""


class Ear:
    """Lets one event loop take in what the server sends, without waking a thread in between.

    A thread that hears for a loop costs two thread switches a hint, and where many such processes or threads hear the
    same one, they are in each other's way: that took longer than all the rest of a wake-up. So the thread lends its
    connection to the loop whenever it only waits, and takes it back for everything else.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, heard: Callable[[int, list[Notice]], None]) -> None:
        """Call it in ``loop``.

        Args:
            loop: reads from now on.
            heard: is given our own process id on the server and what came in, in the loop.

        Raises:
            NotImplementedError: this platform or this kind of loop cannot do it.
            OSError: there is no descriptor left.
        """
        if not hasattr(select, "epoll"):
            raise NotImplementedError
        self.loop = loop
        self._heard = heard
        self._pid = os.getpid()
        # A descriptor of our own for the loop, behind which the connection can be put and taken away by any thread.
        # Nobody closes it, for its number may be in use in the other thread: it goes with the last who knows it.
        self._behind = select.epoll()
        # Held by whoever uses the connection; by the thread whenever it has not lent it.
        self._turn = threading.Lock()
        self._turn.acquire()
        self._read: Callable[[], tuple[int, list[Notice]] | None] | None = None
        self._lent = -1
        loop.add_reader(self._behind.fileno(), self._listen)

    @property
    def gone(self) -> bool:
        """Whether the loop will never read again."""
        return self.loop.is_closed()

    @contextlib.contextmanager
    def lent(self, descriptor: int, read: Callable[[], tuple[int, list[Notice]] | None]) -> Generator[None]:
        """Inside, the loop calls ``read`` when the descriptor has something; the caller leaves it alone.

        What ``read`` returns is our own process id on the server and what came in, or None if nothing will come any
        more: it is not called again. It must not raise.
        """
        self._read = read
        self._lent = -1
        with contextlib.suppress(OSError):  # no descriptor is left: the loop hears nothing until the next time
            # libpq closes its own under us when the server is gone. Where a forked child has that one too, it would
            # stay behind ours, always readable, and nothing could take it away.
            self._lent = os.dup(descriptor)
            self._behind.register(self._lent, select.EPOLLIN)
        self._turn.release()
        try:
            yield
        finally:
            self._mute()
            self._turn.acquire()
            if self._lent >= 0:
                os.close(self._lent)

    def _mute(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._behind.unregister(self._lent)

    def _listen(self) -> None:
        if self._pid != os.getpid():  # a forked child goes on with the loop; the connection is the parent's
            self._close()
            return
        if self._read is None or not self._turn.acquire(blocking=False):
            return  # the thread is about to take the connection back, and reads it then
        try:
            heard = self._read()
            if heard is None:
                self._mute()
        finally:
            self._turn.release()
        if heard is not None:
            self._heard(*heard)

    def retire(self) -> None:
        """The loop does not read any more; call it from anywhere."""
        with contextlib.suppress(RuntimeError):  # the loop was closed, and its readers with it
            self.loop.call_soon_threadsafe(self._close)

    def _close(self) -> None:
        self.loop.remove_reader(self._behind.fileno())


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that this is called in, if any."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
