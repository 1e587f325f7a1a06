"""How long a session keeps what is over, and what went because of it."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from .base import Record

__all__ = ["Kept", "Retention"]


class Retention(Record):
    """How long a session keeps what is over.

    Attributes:
        tasks: finished ones, but dead letters, and the flows that had them; None is for ever.
        events: None is for ever.
        error: why something could not go in the last round, in PostgreSQL's words.
    """

    tasks: timedelta | None = None
    events: timedelta | None = None
    error: str | None = None


class Kept(Record):
    """What one look at the retention of all sessions has done: a batch in the session whose turn it was.

    Attributes:
        session_id: None when nothing was due.
        tasks, flows, events: how many went.
        error: why this batch could not go, in PostgreSQL's words.
        seconds: when to look again: 0 when there is more to do, None when no session has a retention.
    """

    session_id: UUID | None
    tasks: int
    flows: int
    events: int
    error: str | None
    seconds: float | None
