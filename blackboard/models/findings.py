"""Findings: what an agent saw, concluded or suspects, with its evidence."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from .base import Record, UtcDatetime

__all__ = ["Contradiction", "Corroboration", "Evidence", "Finding", "FindingCategory", "FindingStatus", "Similar"]


class FindingCategory(StrEnum):
    """What kind of statement a finding makes."""

    OBSERVATION = "observation"
    HYPOTHESIS = "hypothesis"
    CONCLUSION = "conclusion"


class FindingStatus(StrEnum):
    """``superseded`` and ``retracted`` are final, and hidden from reads that do not ask for them."""

    ACTIVE = "active"
    SUPERSEDED = "superseded"
    RETRACTED = "retracted"


class Evidence(BaseModel):
    """Where something was looked up, with what question, and what came back.

    Attributes:
        source: such as ``prometheus`` or a file's name.
        query: any JSON value, such as ``rate(errors[5m])``.
        result: any JSON value, such as ``"0.05"``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    query: Any = None
    result: Any = None


class Finding(Record):
    """One row of ``blackboard.findings``.

    Attributes:
        content: any JSON value; two that differ only in case and white space are the same thing.
        confidence: in [0, 1]; None where the agent states none.
        derived_from: the findings that it was made from.
        trust: in [0, 1]; never above its agent's (0.5 for one that nobody registered) or that of its sources.
        superseded_by: the finding that replaced it.
        reason: why it was retracted or superseded.
        corroborations: how many other agents reported the same.
        contradicted: whether an active finding contradicts it.
        corroborated: only as the answer to a report: True when the same thing stood already, and this is it. Reported
            by another agent it has one corroboration more, by the same agent nothing changed.
    """

    json_columns: ClassVar[frozenset[str]] = frozenset({"content", "evidence", "provenance"})

    id: UUID
    session_id: UUID
    agent_id: str
    category: FindingCategory
    type: str
    content: Any
    confidence: float | None
    evidence: tuple[Evidence, ...]
    tags: tuple[str, ...]
    provenance: dict[str, Any]
    derived_from: tuple[UUID, ...]
    trust: float
    status: FindingStatus
    superseded_by: UUID | None
    reason: str
    corroborations: int
    contradicted: bool
    created_at: UtcDatetime
    updated_at: UtcDatetime
    corroborated: bool = False


class Corroboration(Record):
    """Another agent's report of the same thing.

    Attributes:
        report_id: the idempotency key of that report.
    """

    json_columns: ClassVar[frozenset[str]] = frozenset({"evidence"})

    session_id: UUID
    finding_id: UUID
    agent_id: str
    report_id: UUID
    confidence: float | None
    evidence: tuple[Evidence, ...]
    created_at: UtcDatetime


class Contradiction(Record):
    """That the finding ``other_id`` contradicts ``finding_id``; ``agent_id`` is who says so."""

    id: UUID
    session_id: UUID
    finding_id: UUID
    other_id: UUID
    kind: str
    agent_id: str
    reason: str
    created_at: UtcDatetime


class Similar(BaseModel):
    """A finding with how much it resembles what was asked for: 1 is the same set of words, 0 no word in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    finding: Finding
    similarity: float
