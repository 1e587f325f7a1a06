"""Who is working on what: the part of it that needs more than a statement."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .blocking_context import BlockingTaskContext, BlockingTaskTransaction
    from .context import TaskContext, TaskTransaction
    from .counts import Counts
    from .handlers import Handlers
    from .heartbeat import Heartbeat
    from .retry import RetryPolicy
    from .signals import DeadLetter, Release, RetryLater, TaskCancelled
    from .worker import Worker

__all__ = [
    "BlockingTaskContext",
    "BlockingTaskTransaction",
    "Counts",
    "DeadLetter",
    "Handlers",
    "Heartbeat",
    "Release",
    "RetryLater",
    "RetryPolicy",
    "TaskCancelled",
    "TaskContext",
    "TaskTransaction",
    "Worker",
]

_HOMES = {
    "BlockingTaskContext": ".blocking_context",
    "BlockingTaskTransaction": ".blocking_context",
    "Counts": ".counts",
    "DeadLetter": ".signals",
    "Handlers": ".handlers",
    "Heartbeat": ".heartbeat",
    "Release": ".signals",
    "RetryLater": ".signals",
    "RetryPolicy": ".retry",
    "TaskCancelled": ".signals",
    "TaskContext": ".context",
    "TaskTransaction": ".context",
    "Worker": ".worker",
}


def __getattr__(name: str) -> Any:
    # The heartbeat is what every board needs; a worker is not.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value
