"""Tasks: the life cycle in one place, and the values that travel."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Any, ClassVar, Final
from uuid import UUID

from pydantic import Field

from .base import Record, UtcDatetime

__all__ = ["FINAL", "TRANSITIONS", "Dependency", "LateResult", "NewTask", "TaskRecord", "TaskStatus"]


class TaskStatus(StrEnum):
    """Where a task stands. Only ``pending`` and ``assigned`` can be claimed."""

    SCHEDULED = "scheduled"
    BLOCKED = "blocked"
    AWAITING_APPROVAL = "awaiting_approval"
    HELD = "held"
    PENDING = "pending"
    ASSIGNED = "assigned"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEAD = "dead"

    @classmethod
    def _missing_(cls, value: object) -> TaskStatus | None:
        # Names that other systems use for the same state.
        return {"in_progress": cls.RUNNING, "queued": cls.PENDING}.get(str(value).lower())


_S = TaskStatus
FINAL: Final = frozenset({_S.COMPLETED, _S.FAILED, _S.CANCELLED, _S.DEAD})
"""Nothing follows, except that ``failed`` and ``dead`` can be redriven and ``dead`` discarded."""

_WAITING = frozenset({_S.SCHEDULED, _S.BLOCKED, _S.AWAITING_APPROVAL, _S.HELD, _S.PENDING, _S.ASSIGNED})
_READY = frozenset({_S.PENDING, _S.ASSIGNED, _S.SCHEDULED})

TRANSITIONS: Final[dict[TaskStatus, frozenset[TaskStatus]]] = {
    **{status: (_WAITING - {status}) | {_S.CANCELLED} for status in _WAITING},
    _S.PENDING: (_WAITING - {_S.PENDING}) | {_S.RUNNING, _S.CANCELLED},
    _S.ASSIGNED: (_WAITING - {_S.ASSIGNED}) | {_S.RUNNING, _S.CANCELLED},
    _S.RUNNING: _READY | {_S.BLOCKED} | FINAL,
    _S.FAILED: _READY | {_S.BLOCKED},
    _S.DEAD: _READY | {_S.BLOCKED, _S.CANCELLED},
    _S.COMPLETED: frozenset(),
    _S.CANCELLED: frozenset(),
}
"""What the database lets follow what; a test compares it with ``blackboard.task_event``."""


class Dependency(Record):
    """An edge to a task that must finish first.

    Attributes:
        id: the task depended on.
        on_failure: ``fail`` cancels the dependant when that task does not complete, ``continue`` lets it run.
    """

    id: UUID
    on_failure: str = "fail"


class NewTask(Record):
    """What ``tasks.add_many`` takes; the same arguments as ``tasks.add``."""

    type: str
    parameters: Any = Field(default_factory=dict[str, Any])
    id: UUID | None = None
    capability: str = ""
    priority: int = 5
    assigned_to: str | None = None
    depends_on: tuple[UUID | Dependency, ...] = ()
    run_at: UtcDatetime | None = None
    timeout: timedelta | None = None
    requires_approval: bool = False
    max_attempts: int = 5
    retry_delay: timedelta = timedelta(seconds=1)


class TaskRecord(Record):
    """One row of ``blackboard.tasks``.

    Attributes:
        priority: 0 to 10, higher first.
        attempt: counts claims and only grows; together with ``claim_id`` it is the fencing token.
        released: how many attempts were handed back and do not count.
        timeout: the longest one attempt may run.
        error: of the last attempt that failed: ``code``, ``message``, ``attempt``, ``agent_id``, maybe ``traceback``.
        blockers: how many dependencies have not finished.
    """

    json_columns: ClassVar[frozenset[str]] = frozenset({"parameters", "progress", "result", "error"})

    session_id: UUID
    id: UUID
    type: str
    capability: str
    priority: int
    status: TaskStatus
    parameters: Any
    assigned_to: str | None
    timeout: timedelta | None
    requires_approval: bool
    approved_by: str | None
    run_at: UtcDatetime | None
    attempt: int
    released: int
    max_attempts: int
    retry_delay: timedelta
    claim_id: UUID | None
    lease_id: UUID | None
    started_at: UtcDatetime | None
    deadline_at: UtcDatetime | None
    cancel_requested: bool
    blockers: int
    progress: Any
    result: Any
    error: Any
    created_by: str
    created_at: UtcDatetime
    completed_at: UtcDatetime | None

    @property
    def finished(self) -> bool:
        """Nothing more will happen to it by itself."""
        return self.status in FINAL


class LateResult(Record):
    """What a late owner handed in: kept, never applied."""

    json_columns: ClassVar[frozenset[str]] = frozenset({"result", "error"})

    id: UUID
    task_id: UUID
    claim_id: UUID
    attempt: int
    agent_id: str
    result: Any
    error: Any
    at: UtcDatetime
