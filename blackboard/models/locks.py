"""Locks: one holder at a time for a named thing."""

from __future__ import annotations

from uuid import UUID

from .base import Record, UtcDatetime

__all__ = ["LockGrant", "LockRecord"]


class LockRecord(Record):
    """One row of ``blackboard.locks``.

    Attributes:
        holder: None when it is free, or not yet taken from a holder that ran out.
        request_id: the request that was granted.
        token: the fencing token of the last grant; it grows with each.
        expires_at: None: until it is released or its holder's lease lapses.
        waiting: how many requests are queued.
    """

    session_id: UUID
    id: UUID
    name: str
    holder: str | None
    lease_id: UUID | None
    request_id: UUID | None
    token: int
    acquired_at: UtcDatetime | None
    expires_at: UtcDatetime | None
    waiting: int


class LockGrant(Record):
    """A lock that was granted: show ``token`` to renew, to release, and to guard writes with ``require_lock``."""

    session_id: UUID
    name: str
    holder: str
    token: int
    request_id: UUID
    acquired_at: UtcDatetime
    expires_at: UtcDatetime | None
