"""Agents, and their membership of a session."""

from __future__ import annotations

from typing import ClassVar
from uuid import UUID

from .base import Record, UtcDatetime

__all__ = ["AgentRecord"]


class AgentRecord(Record):
    """An agent as a member of one session.

    Attributes:
        expertise: category to weight in [0, 1]; a category that is not there counts as 0.5.
        capacity: how many tasks it takes at once.
        present: its process holds a live lease now.
    """

    json_columns: ClassVar[frozenset[str]] = frozenset({"expertise"})

    id: str
    session_id: UUID
    capabilities: tuple[str, ...]
    expertise: dict[str, float]
    capacity: int
    role: str
    trust: float
    vote_weight: float
    lease_id: UUID | None
    present: bool
    joined_at: UtcDatetime
    left_at: UtcDatetime | None

    def expertise_in(self, category: str) -> float:
        """The weight that ``category`` has in confidence aggregation."""
        return self.expertise.get(category, 0.5)
