"""``blackboard finding``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, cast
from uuid import UUID

import typer

from .commands import command, noun
from .desk import Desk
from .given import Limit
from .ids import resolve
from .output import Column
from .values import document, loose, moment

if TYPE_CHECKING:
    from blackboard.sync import Session

__all__ = ["app", "find_finding"]

app = noun("Findings: what the agents know.")

Category = Literal["observation", "hypothesis", "conclusion"]

_COLUMNS = [
    Column("id", lambda f: f.id),
    Column("confidence", lambda f: f.confidence, "share"),
    Column("content", lambda f: f.content, grow=True),
    Column("agent", lambda f: f.agent_id, most=0.25),
    Column("category", lambda f: f.category, wide=110),
    Column("type", lambda f: f.type, wide=100),
    Column("created", lambda f: f.created_at),
]

FindingId = Annotated[str, typer.Argument(metavar="ID", help="Whole, or 6 or more characters of its beginning or end.")]


@command(
    app,
    "list",
    example="""
    blackboard finding list --category observation --min-confidence 0.7
    blackboard finding list --agent-id ops/deploy-validator --since 10m
    """,
)
def list_(
    desk: Desk,
    *,
    category: Annotated[Category | None, typer.Option(help="Only those.")] = None,
    type_: Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Only those.")] = None,
    agent_id: Annotated[str | None, typer.Option(metavar="AGENT", help="Only those that it reported.")] = None,
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="Only those that have it.")] = None,
    min_confidence: Annotated[float | None, typer.Option(metavar="SHARE", help="At least as sure.")] = None,
    min_trust: Annotated[float | None, typer.Option(metavar="SHARE", help="At least as trusted.")] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Only newer ones: a time, or 10m for ago.")] = None,
    include_hidden: Annotated[
        bool, typer.Option("--include-hidden", help="Also what was superseded or retracted.")
    ] = False,
    limit: Limit = 100,
) -> None:
    """List the findings of a session that are in force, newest first."""
    desk.out.records(
        desk.session().findings.list(
            category=category,
            type=type_,
            agent_id=agent_id,
            tag=tag,
            min_confidence=min_confidence,
            min_trust=min_trust,
            since=moment(since, "since"),
            include_hidden=include_hidden,
            limit=limit,
        ),
        _COLUMNS,
        empty="No such findings.",
        limit=limit,
    )


@command(app, "show", example="blackboard finding show 7f0c5d1e")
def show(desk: Desk, *, finding_id: FindingId) -> None:
    """Show one finding with its evidence."""
    session = desk.session()
    found = find_finding(desk, session, finding_id)
    desk.out.record(
        session.findings.get(found),
        more={
            "corroborated_by": [one.agent_id for one in session.findings.corroborations(found)],
            "contradicted_by": [str(one.other_id) for one in session.findings.contradictions(found)],
        },
    )


@command(
    app,
    "report",
    example="""
    blackboard finding report "v1.2.3 at 10:15 UTC" --type deployment --confidence 0.9 --as ops/deploy-validator
    blackboard finding report "5x errors" --type error_rate --evidence '{"source": "prometheus"}' --as ops/sre
    """,
)
def report(
    desk: Desk,
    *,
    content: Annotated[str, typer.Argument(help="Text, or JSON; @FILE.json or - for stdin.")],
    type_: Annotated[str, typer.Option("--type", metavar="TYPE", help="Such as deployment or error_rate.")],
    category: Annotated[Category, typer.Option(help="What kind of knowledge it is.")] = "observation",
    confidence: Annotated[float | None, typer.Option(metavar="SHARE", help="How sure, in [0, 1].")] = None,
    evidence: Annotated[
        list[str] | None,
        typer.Option(metavar="JSON", help="An item, or a list of them: source, query, result; repeat it for more."),
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="TAG", help="Repeat it for more.")] = None,
    provenance: Annotated[str | None, typer.Option(metavar="JSON", help="Where it comes from.")] = None,
    derived_from: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A finding that it rests on; repeat it for more.")
    ] = None,
    id_: Annotated[str | None, typer.Option("--id", metavar="UUID", help="The idempotency key.")] = None,
) -> None:
    """Report a finding as an agent; what is known already is corroborated."""
    items: list[Any] = []
    for text in evidence or ():
        item = document(text, "evidence")
        items.extend(cast("list[Any]", item) if isinstance(item, list) else [item])
    value = loose(content, "content")
    origin = document(provenance, "provenance")
    session = desk.session()
    bases = [find_finding(desk, session, one, "derived_from") for one in derived_from or ()]
    finding = desk.agent().findings.report(
        value,
        type=type_,
        category=category,
        confidence=confidence,
        evidence=items,
        tags=tag or (),
        provenance=origin,
        derived_from=bases,
        id=id_,
    )
    desk.out.record(finding)


@command(app, "retract", example='blackboard finding retract 7f0c5d1e --reason "the clock was wrong" --as ops/sre')
def retract(
    desk: Desk, *, finding_id: FindingId, reason: Annotated[str, typer.Option(metavar="TEXT", help="Why.")] = ""
) -> None:
    """Take a finding back as its author, or as somebody who is no agent; what rests on it is revised."""
    session = desk.session()
    desk.out.record(session.findings.retract(find_finding(desk, session, finding_id), reason))


def find_finding(desk: Desk, session: Session, given: str, field: str = "finding_id") -> UUID:
    """The id that ``given`` stands for."""
    return resolve(desk, given, field, session.findings.ids_like)
