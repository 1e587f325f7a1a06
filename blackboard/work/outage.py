"""What a worker does while the database does not serve it: it waits, longer each time, and goes on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from contextlib import AbstractAsyncContextManager
from time import monotonic

from ..errors import BlackboardError, TransientError, Unavailable
from . import answers

__all__ = ["RETRYABLE", "Outage"]

_log = logging.getLogger("blackboard.worker")

RETRYABLE = (Unavailable, TransientError)
"""What a worker waits for rather than ends with."""

_OUTAGE_LOG_SECONDS = 60.0
_LONGEST_BACKOFF = 5.0


class Outage:
    """Waits longer with each failure, and says so once a minute."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._failures = 0
        self._since = 0.0
        self._told_at = float("-inf")

    def answer(self) -> AbstractAsyncContextManager[None]:
        """What is asked inside is answered in time, and in more time after each failure.

        Raises:
            ServerUnreachable: it was not.
        """
        return answers.in_time(answers.ANSWER_SECONDS * 2 ** min(self._failures, 5))

    async def wait(self, error: BlackboardError, until: asyncio.Event | None = None) -> None:
        """The time for another try has come, or ``until`` is set.

        Raises:
            BlackboardError: ``error`` itself, if waiting cannot help: a schema of another version, say.
        """
        if not error.retryable:
            raise error
        now = monotonic()
        if not self._failures:
            self._since = now
        self._failures += 1
        if now - self._told_at >= _OUTAGE_LOG_SECONDS:
            self._told_at = now
            _log.warning("%s waits for the database since %.0f s: %s", self._what, now - self._since, error)
        seconds = min(_LONGEST_BACKOFF, 0.05 * 2 ** min(self._failures, 10))
        if until is None:
            await asyncio.sleep(seconds)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(until.wait(), seconds)

    def over(self) -> None:
        """The database answers again."""
        if self._failures:
            if monotonic() - self._since >= 1:
                _log.warning("%s goes on after %.0f s", self._what, monotonic() - self._since)
            self._failures = 0
            self._told_at = float("-inf")
