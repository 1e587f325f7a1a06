"""Tasks: the life cycle in one place, and the values that travel."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar, Final
from uuid import UUID

from pydantic import Field

from ..jsonable import load_json
from .base import Record, UtcDatetime, in_utc

__all__ = [
    "FINAL",
    "TRANSITIONS",
    "UNFINISHED",
    "Dependency",
    "LateResult",
    "NewTask",
    "TaskRecord",
    "TaskStatus",
    "Unique",
    "with_whom",
]


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

UNFINISHED: Final = (_S.SCHEDULED, _S.BLOCKED, _S.AWAITING_APPROVAL, _S.HELD, _S.PENDING, _S.ASSIGNED, _S.RUNNING)
"""Where a task has not ended: what a unique task is by default compared with."""

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


def with_whom(status: TaskStatus, attempt: int, assigned_to: str | None) -> str | None:
    """Who a task is with; None for one that waits: after its first attempt it is for anybody again."""
    return None if attempt > 0 and status in _WAITING and status is not _S.ASSIGNED else assigned_to


class Dependency(Record):
    """An edge to a task that must finish first.

    Attributes:
        id: the task depended on.
        on_failure: ``fail`` cancels the dependant when that task does not complete, ``continue`` lets it run.
    """

    id: UUID
    on_failure: str = "fail"


class Unique(Record):
    """Says when a new task is the same as one that is there, which is then returned in its place.

    Attributes:
        key: 1 to 200 characters; tasks of one session with the same key are compared.
        window: only those added this long ago or less; by default however old.
        states: only those that stand like this; by default those that have not ended.
    """

    key: str
    window: timedelta | None = None
    states: tuple[TaskStatus, ...] = UNFINISHED


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
    unique: Unique | None = None
    limit_key: str | None = None
    expires_at: UtcDatetime | None = None
    fallback: timedelta | None = None


class TaskRecord(Record):
    """One row of ``blackboard.tasks``.

    Attributes:
        priority: 0 to 10, higher first.
        assigned_to: who alone may claim it, or after a claim who made the last one; ``assignee`` is who it is with.
        attempt: counts claims and only grows; together with ``claim_id`` it is the fencing token.
        released: how many attempts were handed back and do not count.
        timeout: the longest one attempt may run.
        error: of the last attempt that failed: ``code``, ``message``, ``attempt``, ``agent_id``, maybe ``traceback``.
        blockers: how many dependencies have not finished.
        unique_key: of the ``Unique`` it was added with.
        limit_key: by which limits that are per key tell it from others.
        expires_at: not started by then, it is cancelled (``error.code`` is ``deadline``).
        fallback: how long an assigned task waits for its agent before anybody may have it.
        held: what holds it: ``code`` and facts; ``tasks.why`` says it in words.
    """

    json_columns: ClassVar[frozenset[str]] = frozenset({"parameters", "progress", "result", "error", "held"})

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
    unique_key: str | None = None
    limit_key: str | None = None
    expires_at: UtcDatetime | None = None
    fallback: timedelta | None = None
    held: Any = None

    @classmethod
    def plain(
        cls,
        *,
        session_id: UUID,
        id: UUID,  # noqa: A002
        type: str,  # noqa: A002
        capability: str,
        priority: int,
        parameters: Any,
        created_by: str,
        created_at: datetime,
    ) -> TaskRecord:
        """The value of a row that was just added and says nothing but this."""
        return cls.trusting(
            {
                **_PLAIN,
                "session_id": session_id,
                "id": id,
                "type": type,
                "capability": capability,
                "priority": priority,
                "parameters": parameters,
                "created_by": created_by,
                "created_at": in_utc(created_at),
            }
        )

    @classmethod
    def from_own_row(cls, row: Mapping[str, Any]) -> TaskRecord:
        """The value of a row that came over a connection of ours: no caller's codec has changed its types.

        For what claims and adds return, where validating it would cost more than all else that is done with the answer.
        """
        values = dict(row)
        if len(values) != _COLUMNS:
            return cls.from_row(row)
        values["status"] = _STATUSES[values["status"]]
        for column in cls.json_columns:
            if values[column] is not None:
                values[column] = load_json(values[column])
        for column in _MOMENTS:
            if values[column] is not None:
                values[column] = in_utc(values[column])
        return cls.trusting(values)

    @property
    def assignee(self) -> str | None:
        """Who it is with: who alone may claim it, runs it, or had it when it ended; None while anybody may claim it."""
        return with_whom(self.status, self.attempt, self.assigned_to)

    @property
    def finished(self) -> bool:
        """Nothing more will happen to it by itself."""
        return self.status in FINAL


_COLUMNS = len(TaskRecord.model_fields)
# In the order of the fields, as every record has them.
_PLAIN: dict[str, Any] = {
    **dict.fromkeys(TaskRecord.model_fields),
    "status": TaskStatus.PENDING,
    "requires_approval": False,
    "attempt": 0,
    "released": 0,
    "max_attempts": 5,
    "retry_delay": timedelta(seconds=1),
    "cancel_requested": False,
    "blockers": 0,
}
_STATUSES = {status.value: status for status in TaskStatus}
_MOMENTS = ("run_at", "started_at", "deadline_at", "created_at", "completed_at", "expires_at")


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
