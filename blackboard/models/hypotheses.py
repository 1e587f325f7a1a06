"""Hypotheses: statements that agents argue over with findings, until somebody else gives the verdict."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar
from uuid import UUID

from .base import Record, UtcDatetime
from .findings import Finding

__all__ = ["Assessment", "Hypothesis", "HypothesisEvidence", "HypothesisStatus"]


class HypothesisStatus(StrEnum):
    """All but ``proposed`` are final."""

    PROPOSED = "proposed"
    VALIDATED = "validated"
    REFUTED = "refuted"
    WITHDRAWN = "withdrawn"


class Hypothesis(Record):
    """One row of ``blackboard.hypotheses``.

    Attributes:
        prior: its author's confidence when it was proposed, in [0, 1].
        confidence: computed from the agents' assessments and the evidence, in [0.01, 0.99]; see ``Hypotheses``.
        revision: how often the confidence was computed anew.
        validated_by: who gave the verdict, validated or refuted.
        verdict_evidence: the findings that the verdict rests on.
        reason: why it was decided so, or withdrawn.
    """

    id: UUID
    session_id: UUID
    agent_id: str
    statement: str
    status: HypothesisStatus
    prior: float
    confidence: float
    revision: int
    validated_by: str | None
    validated_at: UtcDatetime | None
    verdict_evidence: tuple[UUID, ...]
    reason: str
    created_at: UtcDatetime
    updated_at: UtcDatetime


class HypothesisEvidence(Record):
    """A finding as evidence for a hypothesis, or against it.

    Attributes:
        supports: True speaks for the hypothesis, False against it.
        weight: how much this finding says about this hypothesis, in (0, 1].
        log_odds: what it adds to the hypothesis's log-odds now, before the cap of 10 a side; 0 when it was retracted
            or its finding is no longer active.
        retracted_at: since when the link does not count; ``reason`` says why.
    """

    json_columns: ClassVar[frozenset[str]] = frozenset({"finding"})

    id: UUID
    session_id: UUID
    hypothesis_id: UUID
    finding_id: UUID
    agent_id: str
    supports: bool
    weight: float
    log_odds: float
    reason: str
    created_at: UtcDatetime
    retracted_at: UtcDatetime | None
    finding: Finding


class Assessment(Record):
    """The confidence that one agent itself has in a hypothesis, in [0, 1]."""

    session_id: UUID
    hypothesis_id: UUID
    agent_id: str
    confidence: float
    reason: str
    at: UtcDatetime
