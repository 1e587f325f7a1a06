"""Who waits for what in this process: subscriptions by session, and how a hint reaches all that it concerns."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from .hints import concerns, keys_of
from .subscription import Subscription, Woken, resolve

__all__ = ["Fanout"]


class Fanout:
    """The subscriptions of one listener.

    Attributes:
        lock: held for every look at them. Reentrant: the collector may close an abandoned waiter in the thread that
            holds it.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._groups: dict[int | None, dict[Subscription, None]] = {}

    def __bool__(self) -> bool:
        """Whether anybody is subscribed."""
        return bool(self._groups)

    def add(self, subscription: Subscription) -> None:
        """It hears from now on."""
        with self.lock:
            for key in keys_of(subscription.sessions):
                self._groups.setdefault(key, {})[subscription] = None

    def remove(self, subscription: Subscription) -> None:
        """It hears nothing more."""
        with self.lock:
            for key in keys_of(subscription.sessions):
                group = self._groups.get(key, {})
                group.pop(subscription, None)
                if not group:
                    self._groups.pop(key, None)

    def revive(self) -> None:
        """In a forked child: they are usable there. The lock may have been held in the parent."""
        self.lock = threading.RLock()
        for group in self._groups.values():
            for subscription in group:
                subscription.revive()

    def deliver(self, session: int | None, noun: str | None, here: asyncio.AbstractEventLoop | None = None) -> None:
        """All subscriptions of that session and noun are hinted; all there are, if ``noun`` is None.

        Args:
            session: as a number.
            noun: what the hint is about.
            here: the loop that this is called in, if any: who waits there needs no word from outside.
        """
        woken: Woken = {}
        with self.lock:
            groups = self._groups
            chosen = tuple(groups.values()) if noun is None else (groups.get(session), groups.get(None))
            for group in chosen:
                for subscription in tuple(group or ()):
                    if noun is None or subscription.nouns is None or concerns(noun, subscription.nouns):
                        subscription.hint(woken)
        for loop, waiting in woken.items():  # one call a loop: each one writes to the loop's socket
            if loop is here:
                resolve(waiting, True)
                continue
            with contextlib.suppress(RuntimeError):  # the loop was closed under its waiters
                loop.call_soon_threadsafe(resolve, waiting, True)
