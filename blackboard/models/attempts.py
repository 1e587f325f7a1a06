"""The attempts at a task, read from its events."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from .base import Record, UtcDatetime

__all__ = ["Attempt", "attempts_of"]

_ENDS = {
    "task.completed": "completed",
    "task.failed": "failed",
    "task.dead": "dead",
    "task.retried": "retried",
    "task.released": "released",
    "task.lapsed": "lapsed",
    "task.cancelled": "cancelled",
}


class Attempt(Record):
    """One attempt at a task.

    Attributes:
        attempt: its number, the fencing token.
        agent_id: who made it.
        outcome: ``running``, ``completed``, ``failed`` (no retry wanted), ``dead`` (the last one), ``retried`` (failed,
            or asked to come back later: see ``error``), ``released`` (handed back), ``lapsed`` (its process went
            silent) or ``cancelled``.
        error: ``code``, ``message``, maybe ``traceback``.
    """

    attempt: int
    agent_id: str
    started_at: UtcDatetime
    ended_at: UtcDatetime | None = None
    outcome: str = "running"
    error: Any = None


def attempts_of(events: Iterable[tuple[str, datetime, str, Any]]) -> list[Attempt]:
    """The attempts that a task's events ``(type, at, actor, data)``, in their order, tell of."""
    found: list[Attempt] = []
    for type_, at, actor, data in events:
        if type_ == "task.assigned":
            found.append(Attempt(attempt=data["attempt"], agent_id=data.get("assigned_to") or actor, started_at=at))
        elif type_ in _ENDS and found and found[-1].ended_at is None:
            # A cancellation of what nobody ran ends no attempt.
            error = data.get("error")
            found[-1] = found[-1].model_copy(update={"ended_at": at, "outcome": _ENDS[type_], "error": error})
    return found
