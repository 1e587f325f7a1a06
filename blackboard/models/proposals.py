"""Proposals, the ballots cast on them, and their tally."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, ClassVar, Literal
from uuid import UUID

from .base import Record, UtcDatetime

__all__ = [
    "AtDeadline",
    "Choice",
    "ProposalDetails",
    "ProposalRecord",
    "ProposalStatus",
    "Rule",
    "Tally",
    "VoteOptions",
    "VoteRecord",
]


class Rule(StrEnum):
    """What makes a proposal pass, given the weights of yes and no; abstentions count for the turnout only.

    Attributes:
        MAJORITY: yes > no.
        UNANIMOUS: yes > 0 and no = 0.
        THRESHOLD: yes > 0 and yes / (yes + no) >= threshold.
    """

    MAJORITY = "majority"
    UNANIMOUS = "unanimous"
    THRESHOLD = "threshold"


class AtDeadline(StrEnum):
    """What happens to a proposal that is still open at its deadline.

    Attributes:
        REJECT: it is rejected.
        TALLY: the ballots that were cast decide.
        ESCALATE: it expires, and a human decides on the actions that waited for it.
    """

    REJECT = "reject"
    TALLY = "tally"
    ESCALATE = "escalate"


class ProposalStatus(StrEnum):
    """Only ``open`` takes ballots; the others are final."""

    OPEN = "open"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"


class Choice(StrEnum):
    """What a ballot says."""

    YES = "yes"
    NO = "no"
    ABSTAIN = "abstain"


class Tally(Record):
    """The ballots of an electorate, counted.

    Attributes:
        votes_for: how many voted yes.
        votes_against: how many voted no.
        abstentions: how many abstained.
        outstanding: how many have not voted.
        weight_for: the weight of those who voted yes; without weights, their number. So for the next two.
        weight_total: the weight of the whole electorate.
        turnout: the share of that weight that has voted, abstentions included, in [0, 1].
        outcome: ``accepted`` or ``rejected``, as closing now would decide by the ballots.
        certain: whether no ballot that is still to come can change ``outcome``; cast ones count as final.
    """

    votes_for: int
    votes_against: int
    abstentions: int
    outstanding: int
    weight_for: float
    weight_against: float
    weight_abstained: float
    weight_total: float
    turnout: float
    outcome: Literal["accepted", "rejected"]
    certain: bool


class VoteRecord(Record):
    """One elector's ballot as it stands; ``revision`` counts its changes from 1."""

    session_id: UUID
    proposal_id: UUID
    agent_id: str
    choice: Choice
    confidence: float | None
    reason: str
    cast_at: UtcDatetime
    revision: int


class ProposalRecord(Record):
    """One row of ``blackboard.proposals``, with its tally.

    Attributes:
        electorate: the electors that were named at opening; None when it was every member.
        deadline_at: None when it stays open until the ballots decide.
        result: None while open; then ``outcome`` (the status), ``reason`` (``ballots``, ``deadline``, ``turnout``,
            ``escalated``, ``closed`` or ``withdrawn``), ``decision`` (what was decided: ``body["action"]`` of an
            accepted proposal where that is a text, else the outcome), ``votes_for``, ``votes_against``,
            ``abstentions``, ``outstanding``, ``weight_for``, ``weight_against``, ``weight_abstained``,
            ``weight_total`` and ``turnout``.
    """

    json_columns: ClassVar[frozenset[str]] = frozenset({"body", "result", "tally"})

    session_id: UUID
    id: UUID
    agent_id: str
    title: str
    body: Any
    rule: Rule
    threshold: float | None
    weighted: bool
    min_turnout: float
    electorate: tuple[str, ...] | None
    deadline_at: UtcDatetime | None
    at_deadline: AtDeadline
    status: ProposalStatus
    decided_at: UtcDatetime | None
    result: dict[str, Any] | None
    created_at: UtcDatetime
    tally: Tally


class ProposalDetails(ProposalRecord):
    """A proposal with who may vote (agent to weight) and the ballots so far, in order of their last change."""

    json_columns: ClassVar[frozenset[str]] = ProposalRecord.json_columns | {"electors", "ballots"}

    electors: dict[str, float]
    ballots: tuple[VoteRecord, ...]


@dataclass(frozen=True)
class VoteOptions:
    """How the proposal that decides on an action is opened; the fields are those of ``proposals.open``.

    Attributes:
        title: the action's type and target by default.
        body: the action's type (as ``action``), target and parameters by default.
    """

    title: str | None = None
    body: Any = None
    rule: Rule | str = Rule.MAJORITY
    threshold: float | None = None
    weighted: bool = False
    min_turnout: float | None = None
    deadline: timedelta | None = timedelta(minutes=5)
    at_deadline: AtDeadline | str = AtDeadline.TALLY
    electorate: Sequence[str] | None = None

    @classmethod
    def of(cls, options: VoteOptions | Mapping[str, Any]) -> VoteOptions:
        """``options`` as a value.

        Raises:
            TypeError: a name in the mapping is none of ours.
        """
        return options if isinstance(options, VoteOptions) else cls(**options)
