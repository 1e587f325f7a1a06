"""Events: the board's history as it is read."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

from .base import Record, UtcDatetime

__all__ = ["Event", "EventPage", "StateChange"]


class Event(Record):
    """One thing that happened, visible to all once its transaction had committed.

    Attributes:
        seq: orders history; an event that commits late has a lower one than events read before it.
        type: ``noun.verb``, such as ``task.assigned``.
        subject_id: the row it is about.
        data: the mutable columns that changed, with their new values.
    """

    session_id: UUID
    seq: int
    at: UtcDatetime
    actor: str
    type: str
    subject_id: UUID
    data: dict[str, Any]

    @property
    def topic(self) -> str:
        """The same event's name as a topic: ``agent.task.assigned``."""
        return f"agent.{self.type}"


class EventPage(Record):
    """What one read returned.

    Attributes:
        events: in order of ``seq``.
        cursor: opaque; pass it to the next read. It is never older than the events.
        more: another read will return more at once.
    """

    events: tuple[Event, ...]
    cursor: str
    more: bool


class StateChange(Record):
    """One field of one row as one event changed it."""

    json_columns: ClassVar[frozenset[str]] = frozenset({"old", "new"})

    seq: int
    at: UtcDatetime
    actor: str
    noun: str
    subject_id: UUID
    event: str
    field: str
    old: Any
    new: Any
