"""A shared workspace on PostgreSQL for many agents working on one problem.

Agents report findings, argue over hypotheses, claim tasks, take decisions and act on them, all on one board that is
read, watched and audited by everybody. ``Blackboard.open()`` is where to begin; ``blackboard.sync`` is the blocking
twin, with the same names.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .board import Agent, Blackboard, BoundBlackboard, Session
    from .errors import BlackboardError
    from .models.attempts import Attempt
    from .models.events import Event, EventPage
    from .models.findings import Evidence
    from .models.flow_plans import After, Stage, fork_join, parallel, sequential
    from .models.tasks import Dependency, NewTask, TaskRecord, TaskStatus, Unique
    from .settings import Settings
    from .store.embedded import EmbeddedServer

    # [async-only]
    from .work.blocking_context import BlockingTaskContext
    from .work.context import TaskContext
    from .work.handlers import Handlers
    from .work.retry import RetryPolicy
    from .work.signals import DeadLetter, Release, RetryLater, TaskCancelled
    from .work.worker import Worker
    # [end]

__all__ = [
    "After",
    "Agent",
    "Attempt",
    "Blackboard",
    "BlackboardError",
    # [async-only]
    "BlockingTaskContext",
    # [end]
    "BoundBlackboard",
    # [async-only]
    "DeadLetter",
    # [end]
    "Dependency",
    "EmbeddedServer",
    "Event",
    "EventPage",
    "Evidence",
    # [async-only]
    "Handlers",
    # [end]
    "NewTask",
    # [async-only]
    "Release",
    "RetryLater",
    "RetryPolicy",
    # [end]
    "Session",
    "Settings",
    "Stage",
    # [async-only]
    "TaskCancelled",
    "TaskContext",
    # [end]
    "TaskRecord",
    "TaskStatus",
    "Unique",
    # [async-only]
    "Worker",
    # [end]
    "fork_join",
    "parallel",
    "sequential",
]

# [async-only]
__version__ = "0.1.0"
# [end]

# Relative: of each twin its own. The rest is of both.
_HOMES = {
    "After": "blackboard.models.flow_plans",
    "Agent": ".board",
    "Attempt": "blackboard.models.attempts",
    "Blackboard": ".board",
    "BlackboardError": "blackboard.errors",
    # [async-only]
    "BlockingTaskContext": "blackboard.work.blocking_context",
    # [end]
    "BoundBlackboard": ".board",
    # [async-only]
    "DeadLetter": "blackboard.work.signals",
    # [end]
    "Dependency": "blackboard.models.tasks",
    "EmbeddedServer": "blackboard.store.embedded",
    "Event": "blackboard.models.events",
    "EventPage": "blackboard.models.events",
    "Evidence": "blackboard.models.findings",
    # [async-only]
    "Handlers": "blackboard.work.handlers",
    # [end]
    "NewTask": "blackboard.models.tasks",
    # [async-only]
    "Release": "blackboard.work.signals",
    "RetryLater": "blackboard.work.signals",
    "RetryPolicy": "blackboard.work.retry",
    # [end]
    "Session": ".board",
    "Settings": "blackboard.settings",
    "Stage": "blackboard.models.flow_plans",
    # [async-only]
    "TaskCancelled": "blackboard.work.signals",
    "TaskContext": "blackboard.work.context",
    # [end]
    "TaskRecord": "blackboard.models.tasks",
    "TaskStatus": "blackboard.models.tasks",
    "Unique": "blackboard.models.tasks",
    # [async-only]
    "Worker": "blackboard.work.worker",
    # [end]
    "fork_join": "blackboard.models.flow_plans",
    "parallel": "blackboard.models.flow_plans",
    "sequential": "blackboard.models.flow_plans",
}


def __getattr__(name: str) -> Any:
    # Names are loaded when first asked for: a program that only wants an error class, or a help text, should not pay
    # for two database drivers.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
