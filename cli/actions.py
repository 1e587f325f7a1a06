"""``blackboard action``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

import typer

from .commands import command, noun
from .desk import Desk
from .given import Limit
from .ids import resolve
from .output import Column
from .proposals import find_proposal
from .values import document, duration

if TYPE_CHECKING:
    from blackboard.sync import Session

__all__ = ["app"]

app = noun("Actions: what is done to the world outside, and who approved it.")

_COLUMNS = [
    Column("id", lambda a: a.id),
    Column("type", lambda a: a.type),
    Column("target", lambda a: a.target or None, grow=True),
    Column("status", lambda a: a.status, "status"),
    Column("by", lambda a: a.agent_id, wide=90, most=0.2),
    Column("approval", lambda a: a.approval, wide=100),
    Column("approved by", lambda a: a.approved_by, wide=120),
    Column("created", lambda a: a.created_at),
]

ActionId = Annotated[str, typer.Argument(metavar="ID", help="Whole, or 6 or more characters of its beginning or end.")]
By = Annotated[str | None, typer.Option(metavar="NAME", help="Who decides; else --as, else your login name.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why.")]
Status = Literal[
    "proposed", "awaiting_approval", "approved", "rejected", "executing", "completed", "failed", "rolled_back"
]


@command(app, "list", example="blackboard action list --status awaiting_approval")
def list_(
    desk: Desk,
    *,
    status: Annotated[Status | None, typer.Option(metavar="STATUS", help="Only those.")] = None,
    limit: Limit = 100,
) -> None:
    """List the actions of a session, newest first."""
    desk.out.records(
        desk.session().actions.list(status=status, limit=limit), _COLUMNS, empty="No such actions.", limit=limit
    )


@command(app, "show", example="blackboard action show c07be215")
def show(desk: Desk, *, action_id: ActionId) -> None:
    """Show one action."""
    session = desk.session()
    desk.out.record(session.actions.get(_action(desk, session, action_id)))


@command(
    app,
    "propose",
    example="""
    blackboard action propose modify checkout --parameters '{"do": "rollback"}' --as ops/rollback-advisor
    blackboard action propose modify checkout --vote-rule unanimous --approval both --as ops/rollback-advisor
    """,
)
def propose(
    desk: Desk,
    *,
    type_: Annotated[
        Literal["query", "modify", "notify", "escalate"],
        typer.Argument(metavar="TYPE", help="query, modify, notify or escalate."),
    ],
    target: Annotated[str, typer.Argument(help="What it is done to.")] = "",
    parameters: Annotated[str | None, typer.Option(metavar="JSON", help="How; @FILE or - for stdin.")] = None,
    requires_approval: Annotated[bool, typer.Option(help="Whether it waits for a yes.")] = True,
    approval: Annotated[Literal["vote", "human", "both"] | None, typer.Option(help="Who must approve.")] = None,
    proposal_id: Annotated[str | None, typer.Option(metavar="ID", help="An open proposal that decides on it.")] = None,
    vote_rule: Annotated[
        Literal["majority", "unanimous", "threshold"] | None,
        typer.Option(help="Open a proposal under this rule that decides on it."),
    ] = None,
    vote_deadline: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Of that proposal, or none; 5m by default.")
    ] = None,
    vote_title: Annotated[str | None, typer.Option(metavar="TEXT", help="Of that proposal.")] = None,
    id_: Annotated[str | None, typer.Option("--id", metavar="UUID", help="The idempotency key.")] = None,
) -> None:
    """Propose an action as an agent; it waits for its approval and blocks nothing else."""
    parsed = document(parameters, "parameters")
    vote: dict[str, Any] = {}
    if vote_rule is not None:
        vote["rule"] = vote_rule
    if vote_deadline is not None:
        vote["deadline"] = None if vote_deadline == "none" else duration(vote_deadline, "vote_deadline")
    if vote_title is not None:
        vote["title"] = vote_title
    decided_by = None if proposal_id is None else find_proposal(desk, desk.session(), proposal_id)
    action = desk.agent().actions.propose(
        type_,
        target,
        parsed,
        requires_approval=requires_approval,
        approval=approval,
        vote=vote or None,
        proposal_id=decided_by,
        id=id_,
    )
    desk.out.record(action)


@command(app, "approve", example='blackboard action approve c07be215 --reason "checked with the on-call"')
def approve(desk: Desk, *, action_id: ActionId, by: By = None, reason: Reason = "") -> None:
    """Approve an action as a named human."""
    session = desk.session()
    found = _action(desk, session, action_id)
    desk.out.record(session.actions.approve(found, by=by or desk.person, reason=reason))


@command(app, "reject", example='blackboard action reject c07be215 --reason "not during the sale"')
def reject(desk: Desk, *, action_id: ActionId, by: By = None, reason: Reason = "") -> None:
    """Reject an action as a named human, whatever a vote may say."""
    session = desk.session()
    found = _action(desk, session, action_id)
    desk.out.record(session.actions.reject(found, by=by or desk.person, reason=reason))


def _action(desk: Desk, session: Session, given: str) -> UUID:
    return resolve(desk, given, "action_id", session.actions.ids_like)
