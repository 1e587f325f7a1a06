"""A swarm from a file: each agent its own process, all on one board.

::

    outcome = await run_swarm(load_swarm("incident.yaml"))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .assignment import Assignment
    from .loader import load_swarm
    from .outcome import AgentOutcome, SwarmOutcome, SwarmStatus, TaskOutcome, Update, UpdateKind
    from .queries import BlockingQueries, Queries
    from .reporter import OnUpdate
    from .runner import run_swarm, run_swarm_sync
    from .spec import SwarmSpec, SwarmType

__all__ = [
    "AgentOutcome",
    "Assignment",
    "BlockingQueries",
    "OnUpdate",
    "Queries",
    "SwarmOutcome",
    "SwarmSpec",
    "SwarmStatus",
    "SwarmType",
    "TaskOutcome",
    "Update",
    "UpdateKind",
    "load_swarm",
    "run_swarm",
    "run_swarm_sync",
]

_HOMES = {
    "AgentOutcome": ".outcome",
    "Assignment": ".assignment",
    "BlockingQueries": ".queries",
    "OnUpdate": ".reporter",
    "Queries": ".queries",
    "SwarmOutcome": ".outcome",
    "SwarmSpec": ".spec",
    "SwarmStatus": ".outcome",
    "SwarmType": ".spec",
    "TaskOutcome": ".outcome",
    "Update": ".outcome",
    "UpdateKind": ".outcome",
    "load_swarm": ".loader",
    "run_swarm": ".runner",
    "run_swarm_sync": ".runner",
}


def __getattr__(name: str) -> Any:
    # Names are loaded when first asked for: an agent's process needs neither the YAML reader nor the runner.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value
