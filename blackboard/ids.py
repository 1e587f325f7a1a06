"""Ids are UUIDv7: unique without a round trip, and in order of time, so that indexes grow at their right end."""

from __future__ import annotations

from uuid import UUID

from uuid_utils.compat import uuid7

from .errors import InvalidInput

__all__ = ["BOARD_ID", "as_uuid", "new_id"]

BOARD_ID = UUID(int=0)
"""Stands for the board itself where events ask for a session: agents are registered on it, not in a session."""


def new_id() -> UUID:
    """A fresh UUIDv7."""
    return uuid7()


def as_uuid(value: UUID | str, field: str) -> UUID:
    """``value`` as a UUID.

    Raises:
        InvalidInput: it is not one; names ``field``.
    """
    if isinstance(value, UUID):
        return value
    try:
        return UUID(value)
    except (ValueError, AttributeError, TypeError):
        raise InvalidInput(f"{field} must be a UUID, got {value!r:.80}.", field=field) from None
