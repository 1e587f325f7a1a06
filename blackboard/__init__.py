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
    from .models.events import Event, EventPage
    from .models.findings import Evidence
    from .models.tasks import Dependency, NewTask, TaskRecord, TaskStatus
    from .settings import Settings
    from .store.embedded import EmbeddedServer

__all__ = [
    "Agent",
    "Blackboard",
    "BlackboardError",
    "BoundBlackboard",
    "Dependency",
    "EmbeddedServer",
    "Event",
    "EventPage",
    "Evidence",
    "NewTask",
    "Session",
    "Settings",
    "TaskRecord",
    "TaskStatus",
]

# [async-only]
__version__ = "0.1.0"
# [end]

# Relative: of each twin its own. The rest is of both.
_HOMES = {
    "Agent": ".board",
    "Blackboard": ".board",
    "BlackboardError": "blackboard.errors",
    "BoundBlackboard": ".board",
    "Dependency": "blackboard.models.tasks",
    "EmbeddedServer": "blackboard.store.embedded",
    "Event": "blackboard.models.events",
    "EventPage": "blackboard.models.events",
    "Evidence": "blackboard.models.findings",
    "NewTask": "blackboard.models.tasks",
    "Session": ".board",
    "Settings": "blackboard.settings",
    "TaskRecord": "blackboard.models.tasks",
    "TaskStatus": "blackboard.models.tasks",
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
