"""``blackboard vote``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from .commands import command, single
from .desk import Desk
from .proposals import ProposalId, find_proposal, show_proposal

__all__ = ["app"]

app = single()


@command(
    app,
    "vote",
    example='blackboard vote 91d4c27b yes --confidence 0.9 --reason "Error rate 5x baseline" --as ops/deploy-validator',
)
def vote(
    desk: Desk,
    *,
    proposal_id: ProposalId,
    choice: Annotated[Literal["yes", "no", "abstain"], typer.Argument(help="yes, no or abstain.")],
    confidence: Annotated[float | None, typer.Option(metavar="SHARE", help="How sure, in [0, 1].")] = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why.")] = "",
    key: Annotated[str | None, typer.Option(metavar="KEY", help="An idempotency key.")] = None,
) -> None:
    """Cast or change an agent's ballot; the proposal closes once its outcome is certain."""
    session = desk.session()
    found = find_proposal(desk, session, proposal_id)
    desk.agent(join=False).proposals.vote(found, choice, confidence=confidence, reason=reason, key=key)
    show_proposal(desk, session.proposals.get(found))
