"""A session: one problem that agents work on together."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Any, ClassVar
from uuid import UUID

from .base import Record, UtcDatetime

__all__ = ["SessionRecord", "SessionStatus"]


class SessionStatus(StrEnum):
    """``completed`` and ``failed`` are final; a ``paused`` session takes writes but hands out no tasks."""

    ACTIVE = "active"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"


class SessionRecord(Record):
    """One row of ``blackboard.sessions``.

    Attributes:
        ageing: a ready task gains a step of priority for each such time that it waits; None is off.
        retention: how long ``tasks.prune()`` keeps finished tasks by default.
    """

    json_columns: ClassVar[frozenset[str]] = frozenset({"context", "outcome"})

    id: UUID
    name: str
    goal: str
    context: Any
    status: SessionStatus
    outcome: Any
    allow_self_validation: bool
    created_by: str
    created_at: UtcDatetime
    closed_at: UtcDatetime | None
    ageing: timedelta | None = None
    retention: timedelta | None = None
