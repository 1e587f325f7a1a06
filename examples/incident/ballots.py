"""How each agent votes: by what is on the board, and by thresholds that are written here."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from blackboard.errors import InvalidTransition, NotPermitted
from blackboard.models.findings import Finding

from .casework import Case, proposal_of
from .plain import as_object

__all__ = ["Ballot", "cast_ballot", "decide", "vote"]

CLEAR_RATIO = 3.0
"""Errors that came so many times more often are clearly more."""
CLEAR_SCORE = 0.5
WEAK_SCORE = 0.25
ATTACK_SHARE = 0.2
"""When signs of an attack come to so much of the errors, the errors may well be the attack."""


@dataclass(frozen=True)
class Ballot:
    """What an agent votes, how sure it is, and why."""

    choice: str
    confidence: float
    reason: str


async def cast_ballot(case: Case) -> dict[str, Any]:
    """The task of type ``vote`` is done: this agent's ballot is cast."""
    ballot = await vote(case, proposal_of(case.task.parameters))
    said = "it was closed already" if ballot is None else f"{ballot.choice}: {ballot.reason}"
    return case.result(f"voted {said}", choice=None if ballot is None else ballot.choice)


async def vote(case: Case, proposal_id: UUID) -> Ballot | None:
    """This agent's ballot is cast by its own rule; None when the proposal takes none of it any more."""
    proposal = await case.agent.proposals.get(proposal_id)
    findings = await case.session.findings.list(limit=1000)
    ballot = decide(case.agent.id, proposal.body, findings)
    with suppress(InvalidTransition, NotPermitted):
        await case.agent.proposals.vote(
            proposal_id, ballot.choice, confidence=ballot.confidence, reason=ballot.reason[:4000]
        )
        return ballot
    return None


def decide(agent_id: str, body: Any, findings: Sequence[Finding]) -> Ballot:
    """The ballot of that agent on that proposal, by the findings on the board.

    ``security/…`` looks at signs of an attack, ``ops/rollback-advisor`` at whether it can be done, everybody else at
    how well the change fits the errors.
    """
    action = as_object(body).get("action")
    if agent_id.startswith("security/"):
        return _by_security(action, findings)
    if action == "rollback":
        return _by_feasibility(findings) if agent_id.endswith("rollback-advisor") else _by_correlation(findings)
    return _by_severity(findings)


def _data(findings: Sequence[Finding], kind: str) -> dict[str, Any] | None:
    found = next((finding for finding in findings if finding.type == kind), None)
    return None if found is None else as_object(found.provenance.get("data"))


def _times(onset: dict[str, Any]) -> str:
    facts = onset["onset"]
    if facts["baseline_per_minute"] > 0:
        return f"{float(facts['ratio']):.0f}x baseline"
    return f"{float(facts['incident_per_minute']):.1f} a minute from none"


def _by_correlation(findings: Sequence[Finding]) -> Ballot:
    onset, change = _data(findings, "onset"), _data(findings, "correlation")
    if onset is None or change is None:
        return Ballot("abstain", 0.5, "No change was measured against the errors")
    ratio, score = float(onset["onset"]["ratio"]), float(change["score"])
    said = f"Error rate {_times(onset)}; {change['change']} explains the onset with score {score:.2f}"
    if ratio >= CLEAR_RATIO and score >= CLEAR_SCORE:
        return Ballot("yes", round(min(0.99, score), 2), said)
    if score >= WEAK_SCORE:
        return Ballot("abstain", round(score, 2), f"{said}, which is not clear")
    return Ballot("no", round(1 - score, 2), f"{said}: another cause is likelier")


def _by_feasibility(findings: Sequence[Finding]) -> Ballot:
    facts = _data(findings, "rollback_feasibility")
    if facts is None or "to" not in facts:
        return Ballot("no", 0.9, "There is no version that it could be rolled back to safely")
    rate, after = facts["rate"], float(facts["after"])
    if rate is None:
        return Ballot("abstain", 0.5, f"The logs do not show how {facts['to']} ran")
    said = f"{facts['to']} ran for {facts['minutes']:.1f} min with {rate:.2f} errors a minute, {after:.1f} now"
    if after >= CLEAR_RATIO * max(rate, 0.01):
        return Ballot("yes", round(min(0.99, 1 - rate / after), 2), said)
    return Ballot("no", 0.7, f"{said}: going back would gain little")


def _by_security(action: Any, findings: Sequence[Finding]) -> Ballot:
    facts = _data(findings, "security")
    if facts is None:
        return Ballot("abstain", 0.3, "The logs were not looked at for signs of an attack")
    signs, errors = int(facts["since"]), int(facts["errors_since"])
    total = int(facts["denied"]) + int(facts["suspicious"])
    rose = facts["rates"]["since"] > 2 * facts["rates"]["before"]
    if not total:
        return Ballot("abstain", 0.9, "No security implications detected: 0 refused accesses, 0 suspicious requests")
    said = f"{signs} signs of an attack since the errors began, {errors} errors"
    if signs >= 5 and rose and signs >= ATTACK_SHARE * max(errors, 1):
        if action == "rollback":
            return Ballot("no", 0.8, f"{said}: a rollback does not stop an attack, contain it first")
        return Ballot("yes", 0.9, f"{said}: somebody must look at this now")
    if rose and signs >= 5:
        return Ballot("yes", 0.6, f"{said}: signs rose with the errors, so the sooner it ends the better")
    return Ballot("abstain", 0.8, f"No security implications detected: {said}, no more than before")


def _by_severity(findings: Sequence[Finding]) -> Ballot:
    onset = _data(findings, "onset")
    if onset is None:
        return Ballot("no", 0.9, "Errors did not rise: nobody needs to be called")
    ratio = float(onset["onset"]["ratio"])
    ended = onset["onset"]["ended_at"] is not None
    said = f"Error rate {_times(onset)}, {'over again' if ended else 'still going on'}"
    if ratio >= CLEAR_RATIO and not ended:
        return Ballot("yes", 0.9, said)
    if ratio >= CLEAR_RATIO:
        return Ballot("yes", 0.6, f"{said}; somebody should know")
    return Ballot("abstain", 0.5, said)
