"""``blackboard proposal``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

import typer

from .commands import command, noun
from .desk import Desk
from .given import Limit
from .ids import resolve
from .output import Column, fields
from .values import document, duration

if TYPE_CHECKING:
    from blackboard.sync import Session

__all__ = ["app", "find_proposal", "show_proposal"]

app = noun("Proposals: what is decided by vote.")

Rule = Literal["majority", "unanimous", "threshold"]
AtDeadline = Literal["reject", "tally", "escalate"]


def _tally(proposal: Any) -> str:
    tally = proposal.tally
    text = f"{tally.votes_for} yes, {tally.votes_against} no, {tally.abstentions} abstained"
    return f"{text}, {tally.outstanding} to come" if proposal.status == "open" else text


_COLUMNS = [
    Column("id", lambda p: p.id),
    Column("title", lambda p: p.title, grow=True),
    Column("status", lambda p: p.status, "status"),
    Column("tally", _tally, most=0.5),
    Column("rule", lambda p: p.rule, wide=100),
    Column("by", lambda p: p.agent_id, wide=130),
    Column("deadline", lambda p: p.deadline_at if p.status == "open" else None, wide=100),
    Column("created", lambda p: p.created_at, wide=90),
]
_BALLOTS = [
    Column("agent", lambda v: v.agent_id),
    Column("choice", lambda v: v.choice, "status"),
    Column("confidence", lambda v: v.confidence, "share"),
    Column("reason", lambda v: v.reason or None, grow=True),
    Column("cast", lambda v: v.cast_at),
]

ProposalId = Annotated[
    str, typer.Argument(metavar="ID", help="Whole, or 6 or more characters of its beginning or end.")
]


@command(app, "list", example="blackboard proposal list --status open")
def list_(
    desk: Desk,
    *,
    status: Annotated[
        Literal["open", "accepted", "rejected", "expired", "withdrawn"] | None, typer.Option(help="Only those.")
    ] = None,
    limit: Limit = 100,
) -> None:
    """List the proposals of a session, newest first, each with its tally."""
    desk.out.records(
        desk.session().proposals.list(status=status, limit=limit), _COLUMNS, empty="No such proposals.", limit=limit
    )


@command(app, "show", example="blackboard proposal show 91d4c27b")
def show(desk: Desk, *, proposal_id: ProposalId) -> None:
    """Show one proposal with its tally, its electors and every ballot."""
    session = desk.session()
    show_proposal(desk, session.proposals.get(find_proposal(desk, session, proposal_id)))


@command(
    app,
    "open",
    example="""
    blackboard proposal open "Roll back to v1.2.2?" --as ops/rollback-advisor
    blackboard proposal open "Scale up?" --rule threshold --threshold 0.7 --deadline 10m --as ops/architect
    """,
)
def open_(
    desk: Desk,
    *,
    title: Annotated[str, typer.Argument(help="The question.")],
    body: Annotated[str | None, typer.Option(metavar="JSON", help="What is proposed; @FILE or - for stdin.")] = None,
    rule: Annotated[Rule, typer.Option(help="What makes it pass.")] = "majority",
    threshold: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Of yes among yes and no; for rule threshold.")
    ] = None,
    weighted: Annotated[bool, typer.Option("--weighted", help="Ballots count by their electors' weights.")] = False,
    min_turnout: Annotated[float | None, typer.Option(metavar="SHARE", help="The least turnout, in [0, 1].")] = None,
    deadline: Annotated[str, typer.Option(metavar="DURATION", help="How long it stays open, or none.")] = "5m",
    at_deadline: Annotated[AtDeadline, typer.Option(help="What happens then.")] = "tally",
    electorate: Annotated[
        list[str] | None, typer.Option(metavar="AGENT", help="Who may vote; by default every member. Repeat it.")
    ] = None,
    id_: Annotated[str | None, typer.Option("--id", metavar="UUID", help="The idempotency key.")] = None,
) -> None:
    """Open a proposal as an agent; its electorate is fixed now."""
    parsed = document(body, "body")
    term = None if deadline == "none" else duration(deadline, "deadline")
    proposal = desk.agent().proposals.open(
        title,
        parsed,
        rule=rule,
        threshold=threshold,
        weighted=weighted,
        min_turnout=min_turnout,
        deadline=term,
        at_deadline=at_deadline,
        electorate=electorate,
        id=id_,
    )
    desk.out.record(proposal)


@command(app, "withdraw", example="blackboard proposal withdraw 91d4c27b --as ops/rollback-advisor")
def withdraw(desk: Desk, *, proposal_id: ProposalId) -> None:
    """Withdraw a proposal without a decision; only the agent that opened it may."""
    found = find_proposal(desk, desk.session(), proposal_id)
    desk.out.record(desk.agent(join=False).proposals.withdraw(found))


def show_proposal(desk: Desk, proposal: Any) -> None:
    """Prints a proposal with its ballots."""
    if desk.out.json:
        desk.out.record(proposal)
        return
    hidden = {"ballots", "tally", "session_id", "result"}
    facts = {name: value for name, value in fields(proposal).items() if name not in hidden}
    facts["electors"] = [
        agent if not proposal.weighted else f"{agent} ({weight:g})" for agent, weight in proposal.electors.items()
    ]
    facts["tally"] = _tally(proposal)
    facts["turnout"] = proposal.tally.turnout
    if proposal.result:
        facts["decision"] = proposal.result.get("decision")
        facts["decided_by"] = proposal.result.get("reason")
    desk.out.facts(facts)
    if proposal.ballots:
        print()
        desk.out.records(proposal.ballots, _BALLOTS, empty="")


def find_proposal(desk: Desk, session: Session, given: str) -> UUID:
    """The id that ``given`` stands for."""
    return resolve(desk, given, "proposal_id", session.proposals.ids_like)
