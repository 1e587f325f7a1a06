"""What holds tasks back, and the answer to why one waits."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar, Literal
from uuid import UUID

from .base import Record, UtcDatetime
from .tasks import TaskStatus

__all__ = ["Limit", "LimitDifference", "LimitUsage", "Pause", "Pruned", "Reason", "Why"]


class Limit(Record):
    """How many tasks may run at once, or start in a time.

    Attributes:
        kind: ``concurrency`` (``max_running``) or ``rate`` (``rate_count`` in ``rate_period``).
        type, capability: of which tasks; neither means all of the session.
        per_key: each ``limit_key`` is limited by itself, and tasks without one are not.
        removed_at: it limits nothing any more; the last tasks that it held are coming back.
    """

    id: UUID
    name: str
    kind: Literal["concurrency", "rate"]
    type: str | None
    capability: str | None
    per_key: bool
    max_running: int | None
    rate_count: int | None
    rate_period: timedelta | None
    created_by: str
    created_at: UtcDatetime
    removed_at: UtcDatetime | None


class LimitUsage(Record):
    """How far a limit is used, for one key.

    Attributes:
        key: empty for a limit that is not per key.
        running: tasks that count.
        held: tasks that wait for a slot.
        window_started_at, used: the present window of a rate, and the starts in it.
        deferred: tasks that were sent to later windows.
    """

    key: str
    running: int
    held: int
    window_started_at: UtcDatetime
    used: int
    deferred: int


class LimitDifference(Record):
    """A counter that is not what it should be; there are none unless rows were written past the verbs."""

    limit_id: UUID
    key: str
    counted: int
    slots: int
    running: int


class Pause(Record):
    """Tasks of a type, or that need a capability, are not handed out."""

    id: UUID
    kind: Literal["type", "capability"]
    name: str
    reason: str
    paused_by: str
    paused_at: UtcDatetime
    resumed_at: UtcDatetime | None


class Pruned(Record):
    """What a prune took away, or with ``dry_run`` would have taken.

    Attributes:
        before: what ended before this moment.
        flows: of which no task is left.
        events: None when the events were left alone.
    """

    tasks: int
    flows: int
    events: int | None
    before: UtcDatetime
    dry_run: bool


class Reason(Record):
    """One thing that a task waits for.

    Attributes:
        code: ``dependency``, ``time``, ``approval``, ``limit``, ``rate``, ``paused``, ``capability`` (nobody present
            offers it), ``assigned`` (to an agent that has not come for it), ``deadline`` (it was not started in time),
            ``ready`` (alone: nothing holds it), ``running``, ``cancelling``, a final status, or what another part of
            the board holds tasks with, such as ``budget``.
        message: says what would end the waiting.
        details: the facts, by name.
    """

    code: str
    message: str
    details: dict[str, Any]


class Why(Record):
    """Why a task stands where it stands: all that must happen before it runs, or who runs it, or how it ended."""

    json_columns: ClassVar[frozenset[str]] = frozenset({"reasons"})

    status: TaskStatus
    reasons: tuple[Reason, ...]
