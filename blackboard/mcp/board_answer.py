"""The picture of a session within a budget, what matters most to the reader first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..board import Agent, Session
from ..models.picture import FindingGlance, Picture, TaskGlance
from ..models.tasks import FINAL, TaskStatus
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
from .names import Names
from .tool import Answer
from .tools_tasks import held_tasks

__all__ = ["BoardAnswer", "Reader", "board_answer"]

_TOP = 50


@dataclass(frozen=True)
class Reader:
    """Who reads, and in which session."""

    session: Session
    agent_id: str
    capabilities: tuple[str, ...] = ()
    share_findings: bool = True

    @classmethod
    def of(cls, agent: Agent, *, share_findings: bool) -> Reader:
        """The agent as a reader of its own session."""
        return cls(agent.session, agent.id, agent.record.capabilities, share_findings)


class BoardAnswer(Answer):
    """An answer whose values are those of a board."""

    data: BoardResult


async def board_answer(
    reader: Reader,
    names: Names,
    head: str,
    *,
    limit: int,
    max_tokens: int,
    best_findings: bool = False,
    started: bool = False,
) -> BoardAnswer:
    """The picture of the session within a budget, what matters most to the reader first."""
    most = max(limit, _TOP)
    picture = await reader.session.board(limit=most)
    record, budget = picture.session, Budget(max_tokens)
    goal, context = quoted(record.goal, 2000), quoted(record.context, 2000)
    outcome = None if record.outcome is None else quoted(record.outcome, 1000)
    lines = [f"goal {goal}", f"context {context}"] + ([] if outcome is None else [f"outcome {outcome}"])
    budget.spend("\n".join(lines))
    found = [one for one in picture.findings if reader.share_findings or one.agent_id == reader.agent_id]
    if best_findings:
        found.sort(key=_weight, reverse=True)
    mine, others = _claimable(picture, reader)

    held_taken, held_lines = budget.fill(
        "held_tasks", map(held_item, await held_tasks(reader.session, reader.agent_id)), held_line
    )
    proposals, proposal_lines = budget.fill("proposals", await _proposals(reader, picture, limit), proposal_line)
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
    omitted = _omitted(
        picture,
        most,
        findings=len(findings),
        hypotheses=len(hypotheses),
        proposals=len(proposals),
        actions=len(actions),
        open_tasks=len(held_taken) + len(tasks) + len(other),
        agents=len(agents),
    )
    fence = Fence()
    text = "\n".join(
        [
            head,
            f"Status {record.status.value}. On the board: {_listed(counts) or 'nothing'}.",
            fence.explanation(),
            fence.around("board", lines),
            *([f"Left out: {_listed(omitted)}. {_more(names)}"] if omitted else []),
            f"cursor: {picture.cursor}",
        ]
    )
    return BoardAnswer(
        text,
        BoardResult(
            session_id=str(record.id),
            session=record.name,
            status=record.status.value,
            goal=goal[1:-1],
            context=context,
            outcome=outcome,
            agent_id=reader.agent_id,
            capabilities=reader.capabilities,
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
        _advice(names, record.status.value, held_taken, proposals, mine),
    )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in counts.items())


def _weight(finding: FindingGlance) -> tuple[float, int]:
    return ((0.5 if finding.confidence is None else finding.confidence) * finding.trust, finding.corroborations)


def _claimable(picture: Picture, reader: Reader) -> tuple[list[TaskGlance], list[TaskGlance]]:
    offered = {"", *reader.capabilities}
    mine: list[TaskGlance] = []
    others: list[TaskGlance] = []
    for task in picture.tasks:
        if task.status == TaskStatus.RUNNING and task.assigned_to == reader.agent_id:
            continue  # shown with its token
        for_anyone = task.status == TaskStatus.PENDING and task.capability in offered
        for_me = task.status == TaskStatus.ASSIGNED and task.assigned_to == reader.agent_id
        (mine if for_anyone or for_me else others).append(task)
    return mine, others


async def _proposals(reader: Reader, picture: Picture, limit: int) -> list[ProposalItem]:
    shown = picture.proposals[:limit]
    items = [proposal_item(await reader.session.proposals.get(one.id), reader.agent_id) for one in shown]
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


def _omitted(picture: Picture, most: int, **shown: int) -> dict[str, int]:
    """How many of each kind are not shown. The picture's own counts also count what it hides, the withdrawn say, so
    they are used only where the picture had to stop."""
    counts = picture.counts
    there = {
        "findings": (len(picture.findings), counts.findings),
        "hypotheses": (len(picture.hypotheses), counts.hypotheses),
        "proposals": (len(picture.proposals), counts.proposals),
        "actions": (len(picture.actions), counts.actions),
        "open_tasks": (len(picture.tasks), sum(n for status, n in counts.tasks.items() if status not in FINAL)),
        "agents": (len(picture.agents), len(picture.agents)),
    }
    left = {kind: (listed if listed < most else counted) - shown[kind] for kind, (listed, counted) in there.items()}
    return {kind: number for kind, number in left.items() if number > 0}


def _more(names: Names) -> str:
    return (
        f"{names['view']} with a larger limit and max_tokens shows more; {names['get_findings']} reads findings with "
        "filters."
    )


def _advice(
    names: Names,
    status: str,
    held: Sequence[HeldItem],
    proposals: Sequence[ProposalItem],
    claimable: Sequence[TaskGlance],
) -> str:
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
