"""How tasks have ended, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Counts"]


@dataclass
class Counts:
    """How the tasks that a worker claimed have ended.

    Attributes:
        claimed: tasks that were claimed.
        completed: with a result.
        retried: attempts that failed, with others to follow.
        failed: ended as ``failed``.
        dead: after the last attempt, or by ``DeadLetter``.
        released: handed back, by ``Release`` and ``RetryLater`` or because they were not started.
        cancelled: that somebody had asked to stop.
        refused: whose outcome came late: the task was somebody else's by then, and its result was kept aside.
        lost: dropped with a lease that lapsed.
    """

    claimed: int = 0
    completed: int = 0
    retried: int = 0
    failed: int = 0
    dead: int = 0
    released: int = 0
    cancelled: int = 0
    refused: int = 0
    lost: int = 0
