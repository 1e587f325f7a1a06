"""The picture of a session within a budget, what matters most to the reader first."""

from __future__ import annotations

from collections.abc import Sequence

from ..board import Agent
from ..models.picture import FindingGlance, Picture, TaskGlance
from ..models.tasks import TaskStatus
from .board_shapes import (
    BoardResult,
    HeldItem,
    ProposalItem,
    action_item,
    action_line,
    agent_item,
    agent_line,
    finding_item,
    finding_line,
    held_item,
    held_line,
    hypothesis_item,
    hypothesis_line,
    proposal_item,
    proposal_line,
    task_item,
    task_item_line,
)
from .budget import Budget
from .fence import Fence, quoted
from .tool import Answer, Call
from .tools_tasks import held_tasks

__all__ = ["board_answer"]

_TOP = 50


async def board_answer(
    call: Call,
    agent: Agent,
    head: str,
    *,
    limit: int,
    max_tokens: int,
    best_findings: bool = False,
    started: bool = False,
) -> Answer:
    """The picture of the session within a budget, what matters most to this agent first."""
    picture = await agent.session.board(limit=max(limit, _TOP))
    call.connection.cursor = picture.cursor
    record, budget = picture.session, Budget(max_tokens)
    goal, context = quoted(record.goal, 2000), quoted(record.context, 2000)
    outcome = None if record.outcome is None else quoted(record.outcome, 1000)
    lines = [f"goal {goal}", f"context {context}"] + ([] if outcome is None else [f"outcome {outcome}"])
    budget.spend("\n".join(lines))
    found = sorted(picture.findings, key=_weight, reverse=True) if best_findings else list(picture.findings)
    mine, others = _claimable(picture, agent)

    held_taken, held_lines = budget.fill("held_tasks", map(held_item, await held_tasks(agent)), held_line)
    proposals, proposal_lines = budget.fill("proposals", await _proposals(agent, picture, limit), proposal_line)
    tasks, claimable_lines = budget.fill("claimable_tasks", map(task_item, mine[:limit]), task_item_line)
    hypotheses, hypothesis_lines = budget.fill(
        "hypotheses", map(hypothesis_item, picture.hypotheses[:limit]), hypothesis_line
    )
    findings, finding_lines = budget.fill("findings", map(finding_item, found[:limit]), finding_line)
    actions, action_lines = budget.fill("actions", map(action_item, picture.actions[:limit]), action_line)
    other, other_lines = budget.fill("other_tasks", map(task_item, others[:limit]), task_item_line)
    agents, agent_lines = budget.fill("agents", map(agent_item, picture.agents[:limit]), agent_line)

    sections = [
        ("tasks that you hold", held_lines),
        ("proposals", proposal_lines),
        ("tasks that you could claim", claimable_lines),
        ("hypotheses, the most likely first", hypothesis_lines),
        ("findings, the strongest first" if best_findings else "findings, the newest first", finding_lines),
        ("actions", action_lines),
        ("other open tasks", other_lines),
        ("agents", agent_lines),
    ]
    for title, part in sections:
        if part:
            lines += [f"{title}:", *(f"  {line}" for line in part)]
    counts = _counts(picture)
    omitted = _omitted(picture, budget, counts, len(findings), len(hypotheses), len(actions))
    fence = Fence()
    text = "\n".join(
        [
            head,
            f"Status {record.status.value}. On the board: {_listed(counts) or 'nothing'}.",
            fence.explanation(),
            fence.around("board", lines),
            *([f"Left out: {_listed(omitted)}. {_more(call)}"] if omitted else []),
            f"cursor: {picture.cursor}",
        ]
    )
    return Answer(
        text,
        BoardResult(
            session_id=str(record.id),
            session=record.name,
            status=record.status.value,
            goal=goal[1:-1],
            context=context,
            outcome=outcome,
            agent_id=agent.id,
            capabilities=agent.record.capabilities,
            session_started=started,
            held_tasks=tuple(held_taken),
            proposals=tuple(proposals),
            claimable_tasks=tuple(tasks),
            hypotheses=tuple(hypotheses),
            findings=tuple(findings),
            actions=tuple(actions),
            other_tasks=tuple(other),
            agents=tuple(agents),
            counts=counts,
            omitted=omitted,
            cursor=picture.cursor,
        ),
        _advice(call, record.status.value, held_taken, proposals, mine),
    )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in counts.items())


def _weight(finding: FindingGlance) -> tuple[float, int]:
    return ((0.5 if finding.confidence is None else finding.confidence) * finding.trust, finding.corroborations)


def _claimable(picture: Picture, agent: Agent) -> tuple[list[TaskGlance], list[TaskGlance]]:
    offered = {"", *agent.record.capabilities}
    mine: list[TaskGlance] = []
    others: list[TaskGlance] = []
    for task in picture.tasks:
        if task.status == TaskStatus.RUNNING and task.assigned_to == agent.id:
            continue  # shown with its token
        for_anyone = task.status == TaskStatus.PENDING and task.capability in offered
        for_me = task.status == TaskStatus.ASSIGNED and task.assigned_to == agent.id
        (mine if for_anyone or for_me else others).append(task)
    return mine, others


async def _proposals(agent: Agent, picture: Picture, limit: int) -> list[ProposalItem]:
    shown = picture.proposals[:limit]
    items = [proposal_item(await agent.proposals.get(one.id), agent.id) for one in shown]
    return sorted(items, key=lambda item: not (item.you_may_vote and item.your_vote is None))


def _counts(picture: Picture) -> dict[str, int]:
    counts = {
        "findings": picture.counts.findings,
        "hypotheses": picture.counts.hypotheses,
        "proposals": picture.counts.proposals,
        "actions": picture.counts.actions,
        **{f"tasks {status.value}": number for status, number in sorted(picture.counts.tasks.items())},
    }
    return {kind: number for kind, number in counts.items() if number}


def _omitted(
    picture: Picture, budget: Budget, counts: dict[str, int], findings: int, hypotheses: int, actions: int
) -> dict[str, int]:
    shown = {"findings": findings, "hypotheses": min(hypotheses, len(picture.hypotheses)), "actions": actions}
    left = {kind: counts.get(kind, 0) - number for kind, number in shown.items()}
    left |= {kind: number for kind, number in budget.omitted.items() if kind not in shown}
    return {kind: number for kind, number in left.items() if number > 0}


def _more(call: Call) -> str:
    return (
        f"{call.names['view']} with a larger limit and max_tokens shows more; {call.names['get_findings']} reads "
        "findings with filters."
    )


def _advice(
    call: Call,
    status: str,
    held: Sequence[HeldItem],
    proposals: Sequence[ProposalItem],
    claimable: Sequence[TaskGlance],
) -> str:
    names = call.names
    if status in {"completed", "failed"}:
        return f"nothing more here: the session is {status}. Join another one with {names['join_session']}."
    if held:
        return f"finish the tasks that you hold: {names['complete_task']} or {names['fail_task']} with their tokens."
    if any(one.you_may_vote and one.your_vote is None for one in proposals):
        return f"a vote of yours is missing: look at the evidence, then {names['vote']}."
    if claimable:
        return f"{names['claim_task']} gets you a task."
    return (
        f"nothing waits for you. {names['get_findings']} reads what is known, {names['post_finding']} shares what you "
        f"know, {names['wait']} with this cursor sleeps until something happens."
    )
