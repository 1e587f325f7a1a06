"""Actions: what agents do to the world outside the board, and who approved it."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar
from uuid import UUID

from .base import Record, UtcDatetime

__all__ = ["ActionRecord", "ActionStatus", "ActionType", "Approval"]


class ActionType(StrEnum):
    """What kind of thing is done; ``escalate`` always awaits a human."""

    QUERY = "query"
    MODIFY = "modify"
    NOTIFY = "notify"
    ESCALATE = "escalate"


class Approval(StrEnum):
    """Who must say yes before an action starts; a human may also decide in place of a vote.

    Attributes:
        VOTE: its proposal must be accepted.
        HUMAN: a named human must approve.
        BOTH: both must.
    """

    VOTE = "vote"
    HUMAN = "human"
    BOTH = "both"


class ActionStatus(StrEnum):
    """``proposed → awaiting_approval → approved | rejected``, ``approved → executing → completed | failed →
    rolled_back``; without a need for approval ``proposed → approved``.
    """

    PROPOSED = "proposed"
    AWAITING_APPROVAL = "awaiting_approval"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXECUTING = "executing"
    COMPLETED = "completed"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"


class ActionRecord(Record):
    """One row of ``blackboard.actions``.

    Attributes:
        agent_id: who proposed it.
        approval: None when nobody must approve.
        proposal_id: the proposal that decides on it (or, with approval ``human``, advises).
        vote_accepted: whether that proposal was accepted.
        approved_by: the human who approved; None when only a vote or nobody did.
        executor: the agent that executes or executed it.
        token: the fencing token of the last start, 0 before the first.
    """

    json_columns: ClassVar[frozenset[str]] = frozenset({"parameters", "result"})

    session_id: UUID
    id: UUID
    agent_id: str
    type: ActionType
    target: str
    parameters: Any
    requires_approval: bool
    approval: Approval | None
    proposal_id: UUID | None
    status: ActionStatus
    vote_accepted: bool
    approved_by: str | None
    rejected_by: str | None
    approval_reason: str
    executor: str | None
    lease_id: UUID | None
    token: int
    result: Any
    error: str | None
    rolled_back_by: str | None
    rollback_reason: str | None
    created_at: UtcDatetime
    decided_at: UtcDatetime | None
    started_at: UtcDatetime | None
    finished_at: UtcDatetime | None
