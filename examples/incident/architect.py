"""ops/architect: gives the verdict on the hypotheses and says in conclusion what happened and what should be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from blackboard import Agent
from blackboard.errors import Conflict, NotPermitted
from blackboard.models.actions import ActionRecord, ActionStatus
from blackboard.models.findings import Finding
from blackboard.models.hypotheses import Hypothesis, HypothesisStatus
from blackboard.models.tasks import TaskRecord

from .ballots import cast_ballot
from .casework import VOTE, Case, Claim
from .plain import as_object

__all__ = ["synthesize"]

VALIDATED_FROM = 0.8
REFUTED_UNTIL = 0.2
MIN_SUPPORT = 2
"""One measurement alone, such as what the messages say, makes a cause likely and not certain."""


async def synthesize(
    agent: Agent,
    focus: str,
    *,
    inputs: Mapping[str, Any],
    missing: Mapping[str, str],
    task: TaskRecord,
    queries: Any,
    context: Any,
) -> dict[str, Any]:
    """The findings combined: hypotheses validated or refuted on their evidence, and a conclusion on the board."""
    case = Case(agent, task, queries, context)
    if task.type == VOTE:
        return await cast_ballot(case)
    await case.progress(focus)
    verdicts = await _verdicts(case)
    findings = list(reversed(await case.session.findings.list(limit=1000)))
    actions = await case.session.actions.list()
    action = actions[0] if actions else None
    claim = conclude(findings, verdicts, action, dict(missing))
    await case.progress("writing the conclusion")
    finding = await case.report(claim)
    cause = next((one for one in verdicts if one.status is HypothesisStatus.VALIDATED), None)
    return case.result(
        claim.text,
        conclusion=str(finding),
        cause=None if cause is None else cause.statement,
        action=None if action is None else str(action.id),
        inputs={name: as_object(value).get("summary") for name, value in inputs.items()},
    )


async def _verdicts(case: Case) -> list[Hypothesis]:
    """Every hypothesis of somebody else that its evidence decides has its verdict; the others stay open."""
    decided: list[Hypothesis] = []
    for hypothesis in await case.session.hypotheses.list(limit=100):
        if hypothesis.status is not HypothesisStatus.PROPOSED:
            decided.append(hypothesis)
            continue
        links = [link for link in await case.session.hypotheses.evidence(hypothesis.id) if link.retracted_at is None]
        verdict = hypothesis.confidence >= VALIDATED_FROM
        ids = [link.finding_id for link in links if link.supports is verdict]
        sums = [sum(abs(link.log_odds) for link in links if link.supports is side) for side in (True, False)]
        now = hypothesis
        if len(ids) >= (MIN_SUPPORT if verdict else 1) and (verdict or hypothesis.confidence <= REFUTED_UNTIL):
            reason = (
                f"confidence {hypothesis.confidence:.2f}; {len(links)} pieces of evidence, log-odds "
                f"{sums[0]:.1f} for and {sums[1]:.1f} against"
            )
            try:
                now = await case.agent.hypotheses.validate(hypothesis.id, result=verdict, evidence=ids, reason=reason)
            except (Conflict, NotPermitted):  # decided meanwhile, or our own
                now = await case.session.hypotheses.get(hypothesis.id)
        decided.append(now)
    return decided


def conclude(
    findings: Sequence[Finding],
    hypotheses: Sequence[Hypothesis],
    action: ActionRecord | None,
    missing: Mapping[str, str],
) -> Claim:
    """The conclusion: what happened, why, and what should be done, each part from a finding on the board."""
    onset = _first(findings, "onset")
    quiet = _first(findings, "no_onset")
    evidence: list[tuple[str, str, str]] = []

    def cite(finding: Finding | None) -> None:
        if finding is not None and finding.evidence:
            item = finding.evidence[0]
            evidence.append((item.source, f"finding {finding.id} of {finding.agent_id}", str(finding.content)))

    cite(onset or quiet)
    gaps = f" Nothing came from {', '.join(missing)}." if missing else ""
    if onset is None and quiet is None:
        return Claim(
            "conclusion",
            f"Nothing can be concluded: nobody has looked for errors in the logs.{gaps}",
            (("board", "findings of types onset and no_onset", "none"),),
            category="conclusion",
            confidence=0.0,
        )
    if onset is None:
        return Claim(
            "conclusion",
            f"Nothing stands out: {quiet.content if quiet is not None else ''}. No action is recommended.{gaps}",
            tuple(evidence),
            category="conclusion",
            confidence=0.5 if quiet is None else (quiet.confidence or 0.5),
        )
    causes = [one for one in hypotheses if one.status is HypothesisStatus.VALIDATED]
    refuted = [one for one in hypotheses if one.status is HypothesisStatus.REFUTED]
    unsettled = [one for one in hypotheses if one.status is HypothesisStatus.PROPOSED]
    change = _first(findings, "correlation")
    cite(change)
    for one in (*causes, *refuted, *unsettled):
        evidence.append(
            ("board", f"hypothesis {one.id} of {one.agent_id}", f"{one.status}: {one.statement}, {one.reason}")
        )
    parts = [f"{str(onset.content)[0].upper()}{str(onset.content)[1:]}."]
    if causes:
        parts.append(f"Cause: {' and '.join(f'{one.statement} ({one.confidence:.0%})' for one in causes)}.")
    else:
        likeliest = max(unsettled, key=lambda one: one.confidence, default=None)
        parts.append(
            "The evidence decides for no cause"
            + ("." if likeliest is None else f"; likeliest is {likeliest.statement} ({likeliest.confidence:.0%}).")
        )
    if refuted:
        parts.append(f"Refuted: {', '.join(one.statement for one in refuted)}.")
    if change is not None:
        facts: Any = change.provenance.get("data") or {}
        parts.append(f"Change that fits best: {facts.get('change')} (score {float(facts.get('score', 0)):.2f}).")
    parts.append(_recommendation(action))
    cite(_first(findings, "rollback_feasibility"))
    confidence = causes[0].confidence if causes else 0.5
    return Claim(
        "conclusion", " ".join(parts) + gaps, tuple(evidence), category="conclusion", confidence=round(confidence, 3)
    )


def _recommendation(action: ActionRecord | None) -> str:
    if action is None:
        return "No action was proposed."
    parameters = as_object(action.parameters)
    if parameters.get("action") == "rollback":
        what = f"roll {action.target} back from {parameters.get('from')} to {parameters.get('to')}"
    else:
        what = f"{parameters.get('action', action.type)} to {action.target}"
    said = {
        ActionStatus.AWAITING_APPROVAL: "it awaits approval",
        ActionStatus.PROPOSED: "it awaits approval",
        ActionStatus.REJECTED: f"it was rejected by {action.rejected_by or 'the vote'}",
        ActionStatus.COMPLETED: f"approved by {action.approved_by or 'the vote'} and carried out"
        + (" (simulated)" if as_object(action.result).get("simulated") else ""),
    }.get(action.status, f"it is {action.status}")
    return f"Recommended: {what}; {said}."


def _first(findings: Sequence[Finding], kind: str) -> Finding | None:
    return next((finding for finding in findings if finding.type == kind), None)
