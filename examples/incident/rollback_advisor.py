"""ops/rollback-advisor: whether a rollback can be done and would help; proposes it, carries it out once approved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from blackboard import Agent
from blackboard.models.actions import ActionRecord, ActionStatus
from blackboard.models.proposals import ProposalStatus, Rule, VoteOptions
from blackboard.models.tasks import TaskRecord

from .analysis import Change, ChangeCorrelation, judge_traffic
from .ballots import cast_ballot, vote
from .casework import INVESTIGATE, VOTE, Case, Claim, action_id
from .deploy_validator import gauge_claims
from .examination import Examination, clock
from .plain import as_object
from .suspects import PRIOR, TRAFFIC, gauge_cases

__all__ = ["Feasibility", "assess_rollback", "investigate", "simulated_result"]

MIN_SCORE = 0.5
"""A change that explains the onset less well than this is no reason to roll back."""
BALLOT_PATIENCE = timedelta(seconds=20)
APPROVAL_PATIENCE = timedelta(seconds=60)
COLLEAGUES_PATIENCE = timedelta(minutes=8)
_TARGET = re.compile(r"\b(?:service|app|application|component)=\"?([\w./-]+)")


@dataclass(frozen=True)
class Feasibility:
    """Whether the change that fits the onset can be undone, and what speaks for it.

    Attributes:
        best: the change that explains the onset best.
        target: the service that the change was made to.
        previous: the version to go back to.
        rate: errors a minute while that version ran before; None when the logs do not show it.
        minutes: how long they show it.
        obstacle: why it should not be rolled back, empty when it can.
    """

    best: ChangeCorrelation | None
    target: str
    previous: str | None
    rate: float | None
    minutes: float
    obstacle: str

    @property
    def advised(self) -> bool:
        """Whether a rollback is proposed."""
        return self.best is not None and not self.obstacle


def assess_rollback(exam: Examination) -> Feasibility:
    """The rollback that would undo the change which fits the onset best, and whether it can be done."""
    best = exam.found.changes[0] if exam.found.changes else None
    source = exam.primary.digest.source
    if exam.onset is None:
        return Feasibility(None, source, None, None, 0.0, "errors did not rise, so there is nothing to roll back")
    if best is None:
        return Feasibility(None, source, None, None, 0.0, "nothing is known of changes, so there is none to undo")
    said = _TARGET.search(best.change.summary)
    target = said[1] if said is not None else source
    release = _release_before(exam.changes, best.change)
    previous = best.change.previous or (release.version if release is not None else None)
    rate, minutes = _stability(exam, release, best.change)
    obstacle = ""
    if best.score < MIN_SCORE:
        obstacle = f"{best.change.name} explains the onset too weakly (score {best.score:.2f}, {MIN_SCORE} is needed)"
    elif best.change.kind != "deploy" or best.change.version is None:
        obstacle = f"{best.change.name} is no deployment of a version"
    elif previous is None:
        obstacle = f"it is not known which version ran before {best.change.name}"
    else:
        migration = next(
            (
                change
                for change in exam.changes
                if change.kind == "migration" and change.at >= best.change.at - timedelta(minutes=30)
            ),
            None,
        )
        if migration is not None:
            obstacle = f"{migration.name} at {clock(migration.at)} UTC changed the schema; {previous} may not fit it"
    return Feasibility(best, target, previous, rate, minutes, obstacle)


def _release_before(changes: tuple[Change, ...], best: Change) -> Change | None:
    return next(
        (change for change in reversed(changes) if change.kind in ("deploy", "rollback") and change.at < best.at), None
    )


def _stability(exam: Examination, release: Change | None, best: Change) -> tuple[float | None, float]:
    errors = exam.found.errors
    start = max(errors.start, release.at) if release is not None else errors.start
    known = errors.between(start, best.at).known()
    minutes = len(known) * errors.step.total_seconds() / 60
    return (sum(known) / minutes, minutes) if minutes > 0 else (None, 0.0)


async def investigate(agent: Agent, focus: str, *, task: TaskRecord, queries: Any, context: Any) -> dict[str, Any]:
    """Rollback feasibility: proposed as an action with a vote, and carried out once approved; or why not."""
    case = Case(agent, task, queries, context)
    if task.type == VOTE:
        return await cast_ballot(case)
    await case.progress(focus)
    exam = await case.examine()
    advice = assess_rollback(exam)
    await _weigh(case, exam)
    await case.report(_feasibility_claim(case, exam, advice))
    onset = exam.onset
    if onset is None:
        return case.result(f"no rollback proposed: {advice.obstacle}", proposed=None)
    await case.progress("waiting for the findings of the others")
    await _colleagues_done(case)
    for gauge in gauge_cases(exam):  # by now the others have proposed what they suspect
        said = f"what was measured on {gauge.judged.subject} adds up to {gauge.judged.score:.2f}"
        await case.assess(gauge.suspect.kind, gauge.judged.score, said)
    await case.progress("putting the action to the vote")
    action = await _propose(case, exam, advice)
    await _collect_ballots(case, action)
    await case.progress("waiting for the approval")
    action = await _approved(case, action, _patience(case.context)) or await agent.actions.get(action.id)
    if action.status is ActionStatus.APPROVED:
        action = await _carry_out(case, action)
    name = as_object(action.parameters).get("action", action.type)
    return case.result(f"{name} of {action.target}: {action.status}", action=str(action.id))


async def _weigh(case: Case, exam: Examination) -> None:
    """What a rollback would not cure: too many requests; and whether what it frees was at its limit at all."""
    onset = exam.onset
    if onset is None:
        return
    requests = exam.requests
    judged = judge_traffic(requests, onset)
    if judged.evidence:
        await case.propose(TRAFFIC, judged.statement, PRIOR)
        # One number of the metrics, or the lines of the log itself.
        source = exam.primary.digest.source if exam.metrics is None else "metrics"
        if exam.metrics is not None and case.files.metrics is not None:
            source = case.files.name(case.files.metrics)
        for item in judged.evidence:
            await case.report(
                Claim(
                    "traffic",
                    item.statement,
                    (
                        (
                            source,
                            f"judge_traffic: {requests.name} before and since {clock(onset.at)} UTC",
                            item.statement,
                        ),
                    ),
                    bears_on={TRAFFIC: item.weight},
                )
            )
    for gauge in gauge_cases(exam):
        for claim in gauge_claims(case, exam, gauge, onset, limits=True):
            await case.report(claim)


def _feasibility_claim(case: Case, exam: Examination, advice: Feasibility) -> Claim:
    source = exam.primary.digest.source if case.files.deployments is None else case.files.name(case.files.deployments)
    best = advice.best
    if best is None or advice.obstacle:
        return Claim(
            "rollback_feasibility",
            f"no rollback: {advice.obstacle}",
            ((source, "assess_rollback: best change, version before, migrations since", advice.obstacle),),
        )
    ran = (
        f"{advice.previous} ran for {advice.minutes:.1f} min with {advice.rate:.2f} errors a minute"
        if advice.rate is not None
        else f"the logs do not show how {advice.previous} ran"
    )
    later = [change.name for change in exam.changes if change.at > best.change.at]
    since = f"; changed since and to be looked at: {', '.join(later[:5])}" if later else ""
    evidence = [
        (
            source,
            "assess_rollback: version before, migrations since",
            f"previous={advice.previous}; no migration{since}",
        ),
        (
            exam.primary.digest.source,
            f"error rate while {advice.previous} ran, until {clock(best.change.at)} UTC",
            ran,
        ),
    ]
    return Claim(
        "rollback_feasibility",
        f"{best.change.name} can be rolled back to {advice.previous}: {ran}, no migration was made since{since}",
        tuple(evidence),
        data={
            "from": best.change.version,
            "to": advice.previous,
            "rate": advice.rate,
            "minutes": advice.minutes,
            "after": best.errors_after_per_minute,
        },
    )


async def _colleagues_done(case: Case) -> None:
    async def check() -> bool | None:
        tasks = await case.session.tasks.list(type=INVESTIGATE, limit=1000)
        return all(task.finished for task in tasks if task.id != case.task.id) or None

    await case.until(check, "task.*", timeout=COLLEAGUES_PATIENCE)


async def _propose(case: Case, exam: Examination, advice: Feasibility) -> ActionRecord:
    onset = exam.onset
    assert onset is not None
    investigators = {task.assigned_to for task in await case.session.tasks.list(type=INVESTIGATE, limit=1000)}
    electorate = [
        member.id
        for member in await case.session.agents.list()
        if member.present and (member.id in investigators or member.id == case.agent.id)
    ]
    if advice.advised and advice.best is not None:
        kind, target = "modify", advice.target
        parameters: dict[str, Any] = {"action": "rollback", "from": advice.best.change.version, "to": advice.previous}
        title = f"Roll {target} back from {advice.best.change.version} to {advice.previous}"
        body = {**parameters, "target": target, "version": advice.best.change.version}
    else:
        kind, target = "escalate", "on-call"
        parameters = {
            "action": "escalate",
            "reason": advice.obstacle,
            "since": onset.at.isoformat(),
            "errors_per_minute": round(onset.incident_per_minute, 1),
            "log": exam.primary.digest.source,
        }
        title = f"Escalate the errors in {exam.primary.digest.source} to on-call"
        body = {**parameters, "target": target}
    existing = [action for action in await case.session.actions.list() if action.id == action_id(case.session.id)]
    if existing:  # an earlier attempt at this task has got so far
        return existing[0]
    return await case.agent.actions.propose(
        kind,
        target,
        parameters,
        approval="human" if kind == "escalate" and not electorate else "both",
        vote=VoteOptions(
            title=title,
            body=body,
            rule=Rule.MAJORITY,
            deadline=timedelta(minutes=1),
            electorate=electorate or [case.agent.id],
        ),
        id=action_id(case.session.id),
    )


async def _collect_ballots(case: Case, action: ActionRecord) -> None:
    """The others are asked to vote; this agent votes last, so that its own ballot silences nobody."""
    if action.proposal_id is None:
        return
    agent, proposal_id = case.agent, action.proposal_id
    proposal = await agent.proposals.get(proposal_id)
    if proposal.status is not ProposalStatus.OPEN:
        return
    for elector in proposal.electors:
        if elector != agent.id:
            await agent.tasks.add(
                VOTE,
                {"focus": f"Vote: {proposal.title}", "proposal_id": str(proposal_id), "context": case.context},
                assigned_to=elector,
                priority=8,
                max_attempts=1,
            )

    async def others_voted() -> bool | None:
        now = await agent.proposals.get(proposal_id)
        if now.status is not ProposalStatus.OPEN:
            return True
        heard = {ballot.agent_id for ballot in now.ballots}
        there = {member.id for member in await case.session.agents.list() if member.present}
        return all(one in heard or one not in there for one in now.electors if one != agent.id) or None

    await case.until(others_voted, "vote.*", "proposal.*", timeout=BALLOT_PATIENCE)
    await vote(case, proposal_id)


async def _approved(case: Case, action: ActionRecord, patience: timedelta) -> ActionRecord | None:
    async def check() -> ActionRecord | None:
        now = await case.agent.actions.get(action.id)
        waiting = now.status in (ActionStatus.PROPOSED, ActionStatus.AWAITING_APPROVAL)
        return None if waiting else now

    return await case.until(check, "action.*", "proposal.*", timeout=patience)


def _patience(context: Mapping[str, Any]) -> timedelta:
    seconds = context.get("approval_wait_seconds")
    return timedelta(seconds=float(seconds)) if isinstance(seconds, int | float) else APPROVAL_PATIENCE


async def _carry_out(case: Case, action: ActionRecord) -> ActionRecord:
    """The approved action is carried out, under a lock on its target, and says what really happened: nothing."""
    agent = case.agent
    grant = await agent.locks.try_acquire(f"service:{action.target}", wait=timedelta(seconds=5))
    started = await agent.actions.start(action.id)
    try:
        return await agent.actions.complete(started.id, started.token, simulated_result(action))
    finally:
        if grant is not None:
            await agent.locks.release(grant.name, grant.token)


def simulated_result(action: ActionRecord) -> dict[str, Any]:
    """What carrying the action out comes to here: the files are a record of the past, so nothing was touched."""
    done = "no deployment was changed" if action.type == "modify" else "nobody was called"
    return {"simulated": True, "note": f"The case is a record of the past: {done}.", "parameters": action.parameters}
