"""Schedules: tasks that are added at the times of a cron expression."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar
from uuid import UUID

from .base import Record, UtcDatetime

__all__ = ["Firing", "Missed", "ScheduleRecord"]


class Missed(StrEnum):
    """What becomes of times at which nobody looked after the schedule (more than a minute ago).

    Attributes:
        SKIP: they are left out.
        ONCE: one task makes up for all of them.
        ALL: each gets its task, up to 100 at a time, the newest.
    """

    SKIP = "skip"
    ONCE = "once"
    ALL = "all"


class ScheduleRecord(Record):
    """One row of ``blackboard.schedules``.

    Attributes:
        cron: five fields, or ``@daily`` and the like.
        timezone: in which they are read, such as ``Europe/Berlin``.
        type, capability, priority, parameters, options: the task that it adds.
        missed: what becomes of times that were missed.
        error: why the board paused it.
        next_at: None when it never fires again.
        last_at: the planned time of the last firing, and ``last_task_id`` its task.
        fired: how many times it fired.
        skipped: how many times were not made up for; counted up to 1000 at a look.
    """

    json_columns: ClassVar[frozenset[str]] = frozenset({"parameters", "options"})

    session_id: UUID
    id: UUID
    name: str
    cron: str
    timezone: str
    type: str
    capability: str
    priority: int
    parameters: Any
    options: dict[str, Any]
    missed: Missed
    paused: bool
    error: str | None
    next_at: UtcDatetime | None
    last_at: UtcDatetime | None
    last_task_id: UUID | None
    fired: int
    skipped: int
    created_by: str
    created_at: UtcDatetime
    removed_at: UtcDatetime | None


class Firing(Record):
    """A task that a schedule added.

    Attributes:
        planned_at: the time of the cron expression that it stands for.
    """

    session_id: UUID
    schedule_id: UUID
    name: str
    planned_at: UtcDatetime
    task_id: UUID
