"""The exit codes of every command, in one table."""

from __future__ import annotations

from typing import Final

__all__ = ["INTERRUPTED", "INVALID", "LOST", "MEANINGS", "NOT_FOUND", "OK", "REFUSED", "UNAVAILABLE", "exit_code"]

OK: Final = 0
REFUSED: Final = 1
INVALID: Final = 2
NOT_FOUND: Final = 3
UNAVAILABLE: Final = 4
LOST: Final = 5
INTERRUPTED: Final = 130

MEANINGS: Final[dict[int, str]] = {
    OK: "done",
    REFUSED: "the board refused: a conflict, a closed session, not permitted, no result",
    INVALID: "the command or a value is wrong, or a setting is",
    NOT_FOUND: "there is no such thing",
    UNAVAILABLE: "the database or its schema cannot serve us",
    LOST: "lease lost, lock not acquired, or the wait timed out",
    INTERRUPTED: "interrupted",
}

_CODES: Final[dict[str, int]] = {
    "BlackboardError": REFUSED,
    "ConfigurationError": INVALID,
    "InvalidInput": INVALID,
    "LeaseLost": LOST,
    "LockNotAcquired": LOST,
    "NotFound": NOT_FOUND,
    "TaskNotCompleted": REFUSED,
    "TransientError": UNAVAILABLE,
    "Unavailable": UNAVAILABLE,
    "WaitTimeout": LOST,
}


def exit_code(error: BaseException) -> int:
    """The code for ``error``: that of its nearest ancestor in the table."""
    # By name, so that the table can be read without importing the library.
    return next((_CODES[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _CODES), REFUSED)
