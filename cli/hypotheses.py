"""``blackboard hypothesis``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal
from uuid import UUID

import typer

from .commands import command, noun
from .desk import Desk
from .findings import find_finding
from .given import Limit
from .ids import resolve
from .output import Column

if TYPE_CHECKING:
    from blackboard.sync import Session

__all__ = ["app"]

app = noun("Hypotheses: what they believe, and the evidence for and against it.")

_COLUMNS = [
    Column("id", lambda h: h.id),
    Column("confidence", lambda h: h.confidence, "share"),
    Column("statement", lambda h: h.statement, grow=True),
    Column("status", lambda h: h.status, "status"),
    Column("agent", lambda h: h.agent_id, wide=90),
    Column("created", lambda h: h.created_at),
]
_EVIDENCE = [
    Column("finding", lambda e: e.finding_id),
    Column("says", lambda e: "retracted" if e.retracted_at else "for" if e.supports else "against", "status"),
    Column("log odds", lambda e: f"{e.log_odds:+.2f}", "number"),
    Column("weight", lambda e: e.weight, "number", wide=100),
    Column("content", lambda e: e.finding.content, grow=True),
    Column("agent", lambda e: e.agent_id, wide=100),
]

HypothesisId = Annotated[
    str, typer.Argument(metavar="ID", help="Whole, or 6 or more characters of its beginning or end.")
]


@command(app, "list", example="blackboard hypothesis list --status proposed --min-confidence 0.5")
def list_(
    desk: Desk,
    *,
    status: Annotated[
        Literal["proposed", "validated", "refuted", "withdrawn"] | None, typer.Option(help="Only those.")
    ] = None,
    min_confidence: Annotated[float | None, typer.Option(metavar="SHARE", help="At least as likely.")] = None,
    limit: Limit = 100,
) -> None:
    """List the hypotheses of a session, the most likely first."""
    found = desk.session().hypotheses.list(status=status, min_confidence=min_confidence, limit=limit)
    desk.out.records(found, _COLUMNS, empty="No such hypotheses.", limit=limit)


@command(app, "show", example="blackboard hypothesis show 2b8e03fa")
def show(desk: Desk, *, hypothesis_id: HypothesisId) -> None:
    """Show one hypothesis with the evidence for and against it."""
    session = desk.session()
    found = _hypothesis(desk, session, hypothesis_id)
    evidence = session.hypotheses.evidence(found)
    hypothesis = session.hypotheses.get(found)
    if desk.out.json:
        desk.out.record(hypothesis, more={"evidence": evidence})
        return
    desk.out.record(hypothesis)
    if evidence:
        print()
        desk.out.records(evidence, _EVIDENCE, empty="")


@command(
    app,
    "propose",
    example='blackboard hypothesis propose "connection pool exhaustion" --confidence 0.7 --as ops/architect',
)
def propose(
    desk: Desk,
    *,
    statement: Annotated[str, typer.Argument(help="What may be so.")],
    confidence: Annotated[float, typer.Option(metavar="SHARE", help="How sure, in [0, 1].")] = 0.5,
    id_: Annotated[str | None, typer.Option("--id", metavar="UUID", help="The idempotency key.")] = None,
) -> None:
    """Propose a hypothesis as an agent."""
    desk.out.record(desk.agent().hypotheses.propose(statement, confidence, id=id_))


@command(
    app, "assess", example='blackboard hypothesis assess 2b8e03fa 0.85 --reason "matches INC-1101" --as ops/architect'
)
def assess(
    desk: Desk,
    *,
    hypothesis_id: HypothesisId,
    confidence: Annotated[float, typer.Argument(help="How sure the agent is of it, in [0, 1].")],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why.")] = "",
) -> None:
    """State an agent's own confidence in a hypothesis."""
    found = _hypothesis(desk, desk.session(), hypothesis_id)
    desk.out.record(desk.agent().hypotheses.assess(found, confidence, reason))


@command(
    app,
    "evidence",
    example="blackboard hypothesis evidence 2b8e03fa 7f0c5d1e --contradicts --weight 0.5 --as ops/architect",
)
def evidence(
    desk: Desk,
    *,
    hypothesis_id: HypothesisId,
    finding_id: Annotated[str, typer.Argument(metavar="FINDING", help="The finding's id, or a part of it.")],
    supports: Annotated[bool, typer.Option("--supports/--contradicts", help="Which way it points.")] = True,
    weight: Annotated[float, typer.Option(metavar="WEIGHT", help="How much it says, above 0 and up to 1.")] = 1.0,
) -> None:
    """Link a finding to a hypothesis as evidence; its confidence is revised."""
    session = desk.session()
    found = _hypothesis(desk, session, hypothesis_id)
    finding = find_finding(desk, session, finding_id)
    desk.out.record(session.hypotheses.add_evidence(found, finding, supports=supports, weight=weight))


@command(
    app,
    "validate",
    example="""
    blackboard hypothesis validate 2b8e03fa --evidence 7f0c5d1e --as ops/deploy-validator
    blackboard hypothesis validate 2b8e03fa --refuted --evidence 7f0c5d1e --as ops/deploy-validator
    """,
)
def validate(
    desk: Desk,
    *,
    hypothesis_id: HypothesisId,
    result: Annotated[bool, typer.Option("--validated/--refuted", help="What came out.")] = True,
    evidence: Annotated[
        list[str] | None, typer.Option(metavar="FINDING", help="A finding that shows it; repeat it for more.")
    ] = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why.")] = "",
) -> None:
    """Validate or refute a hypothesis of another agent, on evidence."""
    session = desk.session()
    found = _hypothesis(desk, session, hypothesis_id)
    shown = [find_finding(desk, session, one, "evidence") for one in evidence or ()]
    desk.out.record(session.hypotheses.validate(found, result, shown, reason))


def _hypothesis(desk: Desk, session: Session, given: str) -> UUID:
    return resolve(desk, given, "hypothesis_id", session.hypotheses.ids_like)
