"""How a session is shown: what the views of the board answer, one line an item."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ..models.agents import AgentRecord
from ..models.picture import ActionGlance, FindingGlance, HypothesisGlance, TaskGlance
from ..models.proposals import ProposalDetails, ProposalRecord, Tally
from ..models.tasks import TaskRecord
from .fence import NOTICE, quoted
from .task_shapes import moment, token_of
from .tool import Item, Result

__all__ = [
    "ActionItem",
    "AgentItem",
    "BoardResult",
    "FindingItem",
    "HeldItem",
    "HypothesisItem",
    "ProposalItem",
    "TallyItem",
    "TaskItem",
    "action_item",
    "action_line",
    "agent_item",
    "agent_line",
    "finding_item",
    "finding_line",
    "held_item",
    "held_line",
    "hypothesis_item",
    "hypothesis_line",
    "proposal_item",
    "proposal_line",
    "tally_item",
    "tally_text",
    "task_item",
    "task_item_line",
]

_SHORT = 240


class AgentItem(Item):
    """A member of the session."""

    id: str
    role: str
    present: bool
    capabilities: tuple[str, ...]


class FindingItem(Item):
    """A finding at a glance."""

    id: str
    author: str
    category: str
    type: str
    summary: str
    confidence: float | None
    trust: float
    corroborations: int


class HypothesisItem(Item):
    """A hypothesis at a glance."""

    id: str
    author: str
    statement: str
    status: str
    confidence: float


class TaskItem(Item):
    """A task at a glance."""

    id: str
    type: str
    status: str
    priority: int
    capability: str
    assigned_to: str | None
    progress: str | None


class HeldItem(Item):
    """A task that the reader holds, with the token that ends it."""

    id: str
    type: str
    priority: int
    attempt: int
    token: str | None
    deadline_at: str | None
    parameters: str
    cancel_requested: bool


class TallyItem(Item):
    """How the ballots stand."""

    votes_for: int
    votes_against: int
    abstentions: int
    outstanding: int
    turnout: float
    outcome_if_closed_now: str
    certain: bool


class ProposalItem(Item):
    """A proposal at a glance; ``your_vote`` is null where you have not voted."""

    id: str
    author: str
    title: str
    body: str
    rule: str
    threshold: float | None
    status: str
    deadline_at: str | None
    tally: TallyItem
    you_may_vote: bool
    your_vote: str | None
    waiting_for: tuple[str, ...]


class ActionItem(Item):
    """An action at a glance."""

    id: str
    author: str
    type: str
    target: str
    parameters: str
    status: str
    approval: str | None
    proposal_id: str | None
    approved_by: str | None


class BoardResult(Result):
    """What join_session and view answer. Texts of others are shortened; ``omitted`` counts what did not fit."""

    notice: str = NOTICE
    session_id: str
    session: str
    status: str
    goal: str
    context: str
    outcome: str | None
    agent_id: str
    capabilities: tuple[str, ...]
    session_started: bool = False
    held_tasks: tuple[HeldItem, ...]
    proposals: tuple[ProposalItem, ...]
    claimable_tasks: tuple[TaskItem, ...]
    hypotheses: tuple[HypothesisItem, ...]
    findings: tuple[FindingItem, ...]
    actions: tuple[ActionItem, ...]
    other_tasks: tuple[TaskItem, ...]
    agents: tuple[AgentItem, ...]
    counts: dict[str, int]
    omitted: dict[str, int] = Field(default_factory=dict[str, int])
    cursor: str


def clipped(value: Any, limit: int = _SHORT) -> str:
    """A value on one line of limited length, without quotes around text."""
    made = quoted(value, limit)
    return made[1:-1] if isinstance(value, str) else made


def agent_item(agent: AgentRecord) -> AgentItem:
    """The agent at a glance."""
    return AgentItem(id=agent.id, role=agent.role, present=agent.present, capabilities=agent.capabilities)


def agent_line(agent: AgentItem) -> str:
    """The agent on one line."""
    can = f" can {', '.join(quoted(kind, 100) for kind in agent.capabilities)}" if agent.capabilities else ""
    here = "present" if agent.present else "absent"
    return f"agent {quoted(agent.id, 100)} {here} role {quoted(agent.role, 50)}{can}"


def finding_item(finding: FindingGlance) -> FindingItem:
    """The finding at a glance."""
    return FindingItem(
        id=str(finding.id),
        author=finding.agent_id,
        category=finding.category,
        type=finding.type,
        summary=clipped(finding.content),
        confidence=finding.confidence,
        trust=finding.trust,
        corroborations=finding.corroborations,
    )


def finding_line(finding: FindingItem) -> str:
    """The finding on one line."""
    sure = "unstated" if finding.confidence is None else f"{finding.confidence:.2f}"
    also = f" corroborated by {finding.corroborations}" if finding.corroborations else ""
    return (
        f"finding {finding.id} {finding.category} by {quoted(finding.author, 100)} confidence {sure} "
        f'trust {finding.trust:.2f}{also} type {quoted(finding.type, 50)}: "{finding.summary}"'
    )


def hypothesis_item(hypothesis: HypothesisGlance) -> HypothesisItem:
    """The hypothesis at a glance."""
    return HypothesisItem(
        id=str(hypothesis.id),
        author=hypothesis.agent_id,
        statement=clipped(hypothesis.statement),
        status=hypothesis.status,
        confidence=hypothesis.confidence,
    )


def hypothesis_line(hypothesis: HypothesisItem) -> str:
    """The hypothesis on one line."""
    return (
        f"hypothesis {hypothesis.id} {hypothesis.status} confidence {hypothesis.confidence:.2f} "
        f'by {quoted(hypothesis.author, 100)}: "{hypothesis.statement}"'
    )


def task_item(task: TaskGlance) -> TaskItem:
    """The task at a glance."""
    return TaskItem(
        id=str(task.id),
        type=task.type,
        status=task.status.value,
        priority=task.priority,
        capability=task.capability,
        assigned_to=task.assignee,
        progress=None if task.progress is None else clipped(task.progress),
    )


def task_item_line(task: TaskItem) -> str:
    """The task on one line."""
    needs = f" needs {quoted(task.capability, 100)}" if task.capability else ""
    holder = f" with {quoted(task.assigned_to, 100)}" if task.assigned_to else ""
    done = f' progress "{task.progress}"' if task.progress is not None else ""
    return f"task {task.id} {task.status} priority {task.priority} type {quoted(task.type, 50)}{needs}{holder}{done}"


def held_item(task: TaskRecord) -> HeldItem:
    """The task with its token."""
    return HeldItem(
        id=str(task.id),
        type=task.type,
        priority=task.priority,
        attempt=task.attempt,
        token=token_of(task),
        deadline_at=moment(task.deadline_at),
        parameters=clipped(task.parameters, 1000),
        cancel_requested=task.cancel_requested,
    )


def held_line(task: HeldItem) -> str:
    """The task on one line."""
    until = f" until {task.deadline_at}" if task.deadline_at else ""
    stop = " TO BE STOPPED" if task.cancel_requested else ""
    return (
        f"task {task.id} token {task.token}{until}{stop} priority {task.priority} type {quoted(task.type, 50)} "
        f"parameters {task.parameters}"
    )


def tally_item(tally: Tally) -> TallyItem:
    """The tally as values."""
    return TallyItem(
        votes_for=tally.votes_for,
        votes_against=tally.votes_against,
        abstentions=tally.abstentions,
        outstanding=tally.outstanding,
        turnout=tally.turnout,
        outcome_if_closed_now=tally.outcome,
        certain=tally.certain,
    )


def tally_text(tally: TallyItem) -> str:
    """The tally in words."""
    return (
        f"{tally.votes_for} yes, {tally.votes_against} no, {tally.abstentions} abstained, "
        f"{tally.outstanding} outstanding (turnout {tally.turnout:.0%})"
    )


def proposal_item(proposal: ProposalRecord, agent_id: str) -> ProposalItem:
    """The proposal as ``agent_id`` sees it; who may vote is known of details only."""
    electors: dict[str, float] = {}
    ballots: dict[str, str] = {}
    if isinstance(proposal, ProposalDetails):
        electors = proposal.electors
        ballots = {vote.agent_id: vote.choice.value for vote in proposal.ballots}
    is_open = proposal.status.value == "open"
    return ProposalItem(
        id=str(proposal.id),
        author=proposal.agent_id,
        title=clipped(proposal.title),
        body=clipped(proposal.body, 600),
        rule=proposal.rule.value,
        threshold=proposal.threshold,
        status=proposal.status.value,
        deadline_at=moment(proposal.deadline_at),
        tally=tally_item(proposal.tally),
        you_may_vote=is_open and agent_id in electors,
        your_vote=ballots.get(agent_id),
        waiting_for=tuple(name for name in electors if name not in ballots) if is_open else (),
    )


def proposal_line(proposal: ProposalItem) -> str:
    """The proposal on one line."""
    rule = proposal.rule if proposal.threshold is None else f"{proposal.rule} {proposal.threshold:g}"
    yours = (
        f" your vote {proposal.your_vote}"
        if proposal.your_vote
        else (" YOUR VOTE IS MISSING" if proposal.you_may_vote else "")
    )
    until = f" until {proposal.deadline_at}" if proposal.deadline_at and proposal.status == "open" else ""
    return (
        f"proposal {proposal.id} {proposal.status}{until} by {quoted(proposal.author, 100)} rule {rule}, "
        f'{tally_text(proposal.tally)}{yours}: "{proposal.title}" {proposal.body}'
    )


def action_item(action: ActionGlance) -> ActionItem:
    """The action at a glance."""
    return ActionItem(
        id=str(action.id),
        author=action.agent_id,
        type=action.type.value,
        target=clipped(action.target),
        parameters=clipped(action.parameters),
        status=action.status.value,
        approval=None if action.approval is None else action.approval.value,
        proposal_id=None if action.proposal_id is None else str(action.proposal_id),
        approved_by=action.approved_by,
    )


def action_line(action: ActionItem) -> str:
    """The action on one line."""
    needs = f" (approval: {action.approval})" if action.approval and action.status == "awaiting_approval" else ""
    return (
        f"action {action.id} {action.status}{needs} {action.type} by {quoted(action.author, 100)} "
        f'target "{action.target}" {action.parameters}'
    )
