"""When a failed attempt is tried again: pure arithmetic."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from ..errors import InvalidInput

__all__ = ["RetryPolicy"]

_LONGEST = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a type of task is tried, and how long it waits in between.

    A task that was added with another ``max_attempts`` than 5 or another ``retry_delay`` than a second keeps both of
    its own. The board keeps the numbers and not who chose them: a task for which just these two were written out is as
    one for which nothing was, and follows the policy. Exactly five attempts whatever the policy: give it a
    ``retry_delay`` that is not a second.

    Attributes:
        max_attempts: failed attempts after which it is dead, 1 to 1000. An attempt whose process died is counted by
            the board, which knows the task's own number only: for what must not be tried twice, add it with
            ``max_attempts=1`` as well.
        delay: before the second attempt.
        factor: by which the delay grows with each failure; 1 keeps it.
        max_delay: which the delay never exceeds, jitter aside.
        jitter: 0.5 spreads a delay over half to one and a half times itself, so that what failed together does not
            come back together; 0 keeps it exact.
    """

    max_attempts: int = 5
    delay: timedelta = timedelta(seconds=1)
    factor: float = 2.0
    max_delay: timedelta = timedelta(hours=1)
    jitter: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.max_attempts <= 1000:
            raise InvalidInput("max_attempts must be between 1 and 1000.", field="max_attempts")
        if not timedelta() <= self.delay <= _LONGEST or not timedelta() <= self.max_delay <= _LONGEST:
            raise InvalidInput("delay and max_delay must be between 0 and 30 days.", field="delay")
        if not 1 <= self.factor <= 100:
            raise InvalidInput("factor must be between 1 and 100.", field="factor")
        if not 0 <= self.jitter <= 1:
            raise InvalidInput("jitter must be between 0 and 1.", field="jitter")

    def delay_after(self, failures: int, spread: Callable[[], float] = random.random) -> timedelta:
        """How long to wait after the ``failures``-th failure (1 is the first).

        Args:
            failures: 1 or more.
            spread: a number in [0, 1) that decides where in the jitter's range the delay falls.
        """
        longest = self.max_delay.total_seconds()
        try:
            seconds = min(self.delay.total_seconds() * self.factor ** (max(failures, 1) - 1), longest)
        except OverflowError:
            seconds = longest
        return timedelta(seconds=seconds * (1 + self.jitter * (2 * spread() - 1)))
