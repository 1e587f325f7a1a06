"""``blackboard swarm``."""

from __future__ import annotations

from .commands import noun

__all__ = ["app"]

app = noun("Swarms: agents that a file describes, each a process of its own.")
