"""A swarm from a file: each agent its own process, all on one board.

::

    outcome = await run_swarm(load_swarm("incident.yaml"))
"""

from __future__ import annotations

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
