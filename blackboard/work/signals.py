"""What a handler raises, or returns, to say that its task ends otherwise than by a result or a failure."""

from __future__ import annotations

from datetime import timedelta

from ..errors import InvalidInput

__all__ = ["DeadLetter", "Release", "RetryLater", "Signal", "TaskCancelled"]

_LONGEST = timedelta(days=30)


class Signal(Exception):
    """Base of what a handler may raise or return in place of a result."""


class RetryLater(Signal):
    """Not now: the task comes back after ``delay``, and this attempt does not count as a failure.

    What waits for something outside (a rate limit, a file that is not there yet) so never dies of waiting; give the
    task a deadline of its own if it should.
    """

    def __init__(self, delay: timedelta | float, reason: str = "") -> None:
        """
        Args:
            delay: a duration, or seconds; up to 30 days.
            reason: shown in the attempt log.

        Raises:
            InvalidInput: the delay is negative or too long.
        """
        try:
            self.delay = delay if isinstance(delay, timedelta) else timedelta(seconds=delay)
        except (OverflowError, TypeError, ValueError):
            raise InvalidInput(f"delay must be a duration or seconds, got {delay!r:.100}.", field="delay") from None
        self.reason = reason
        if not timedelta() <= self.delay <= _LONGEST:
            raise InvalidInput("delay must be between 0 and 30 days.", field="delay")
        super().__init__(f"again in {self.delay}{': ' * bool(reason)}{reason}")


class Release(Signal):
    """Somebody else may have it, at once; this attempt does not count as a failure."""


class DeadLetter(Signal):
    """No attempt will ever succeed: the task is dead at once, whatever its retry policy."""

    def __init__(self, reason: str) -> None:
        """
        Args:
            reason: shown in the task's error and in the dead letters.
        """
        self.reason = reason
        super().__init__(reason)


class TaskCancelled(Exception):
    """Raised by ``raise_if_cancelled``: the handler is to stop; ``reason`` says why."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The task is to stop: {reason}.")
