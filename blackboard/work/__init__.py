"""Who is working on what: the part of it that needs more than a statement."""

from __future__ import annotations

from .heartbeat import Heartbeat

__all__ = ["Heartbeat"]
