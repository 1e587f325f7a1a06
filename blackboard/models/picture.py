"""The whole picture of a session, as one value small enough to read."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

from .actions import ActionStatus, ActionType, Approval
from .agents import AgentRecord
from .base import Record, UtcDatetime
from .proposals import ProposalStatus, Rule, Tally
from .sessions import SessionRecord
from .tasks import TaskStatus, with_whom

__all__ = ["ActionGlance", "Counts", "FindingGlance", "HypothesisGlance", "Picture", "ProposalGlance", "TaskGlance"]


class FindingGlance(Record):
    """A finding, without the evidence's text."""

    id: UUID
    agent_id: str
    category: str
    type: str
    content: Any
    confidence: float | None
    trust: float
    tags: tuple[str, ...]
    corroborations: int
    evidence_items: int
    created_at: UtcDatetime


class HypothesisGlance(Record):
    """A hypothesis and how likely it is now."""

    id: UUID
    agent_id: str
    statement: str
    status: str
    confidence: float
    revision: int
    validated_by: str | None
    created_at: UtcDatetime


class TaskGlance(Record):
    """A task that has not finished."""

    id: UUID
    type: str
    status: TaskStatus
    priority: int
    capability: str
    assigned_to: str | None
    attempt: int
    progress: Any
    created_at: UtcDatetime

    @property
    def assignee(self) -> str | None:
        """Who it is with: who alone may claim it or runs it; None while anybody may claim it."""
        return with_whom(self.status, self.attempt, self.assigned_to)


class ProposalGlance(Record):
    """A proposal and its running tally."""

    id: UUID
    agent_id: str
    title: str
    rule: Rule
    status: ProposalStatus
    deadline_at: UtcDatetime | None
    tally: Tally
    created_at: UtcDatetime


class ActionGlance(Record):
    """An action and what it waits for."""

    id: UUID
    agent_id: str
    type: ActionType
    target: str
    parameters: Any
    status: ActionStatus
    approval: Approval | None
    proposal_id: UUID | None
    approved_by: str | None
    executor: str | None
    created_at: UtcDatetime


class Counts(Record):
    """How many there are of everything, shown or not; findings are those in force."""

    findings: int
    hypotheses: int
    proposals: int
    actions: int
    tasks: dict[TaskStatus, int]


class Picture(Record):
    """Context, findings, hypotheses, tasks, proposals and actions of a session, all of one moment.

    Attributes:
        findings: those in force, newest first.
        hypotheses: the most likely first; withdrawn ones are left out.
        tasks: those that have not finished, by priority.
        proposals, actions: newest first.
        cursor: reading events from here on continues the picture without a gap.
    """

    json_columns: ClassVar[frozenset[str]] = frozenset(
        {"session", "agents", "findings", "hypotheses", "tasks", "proposals", "actions", "counts"}
    )

    session: SessionRecord
    agents: tuple[AgentRecord, ...]
    findings: tuple[FindingGlance, ...]
    hypotheses: tuple[HypothesisGlance, ...]
    tasks: tuple[TaskGlance, ...]
    proposals: tuple[ProposalGlance, ...]
    actions: tuple[ActionGlance, ...]
    counts: Counts
    cursor: str

    @property
    def context(self) -> Any:
        """The session's context."""
        return self.session.context
