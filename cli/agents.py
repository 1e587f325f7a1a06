"""``blackboard agent``."""

from __future__ import annotations

from typing import Annotated

import typer

from . import completion
from .commands import command, noun
from .desk import Desk
from .output import Column
from .values import weights

__all__ = ["app"]

app = noun("Agents: who works in a session, and on what they are experts.")

_COLUMNS = [
    Column("id", lambda a: a.id, most=0.5),
    Column("present", lambda a: "left" if a.left_at else a.present),
    Column("role", lambda a: a.role),
    Column("capabilities", lambda a: a.capabilities, grow=True),
    Column("trust", lambda a: a.trust, "share", wide=100),
    Column("weight", lambda a: a.vote_weight, "number", wide=100),
    Column("joined", lambda a: a.joined_at),
]

AgentId = Annotated[
    str, typer.Argument(metavar="AGENT", autocompletion=completion.agents, help="Such as ops/deploy-validator.")
]


@command(app, "list", example="blackboard agent list --capability investigate")
def list_(
    desk: Desk,
    *,
    capability: Annotated[str | None, typer.Option(metavar="NAME", help="Only those that offer it.")] = None,
) -> None:
    """List the members of a session in order of joining."""
    desk.out.records(desk.session().agents.list(capability=capability), _COLUMNS, empty="Nobody has joined yet.")


@command(app, "show", example="blackboard agent show ops/deploy-validator")
def show(desk: Desk, *, agent_id: AgentId) -> None:
    """Show one member."""
    desk.out.record(desk.session().agents.get(agent_id))


@command(
    app,
    "join",
    example="blackboard agent join ops/architect --capability synthesize --expertise deployment=0.9",
)
def join(
    desk: Desk,
    *,
    agent_id: AgentId,
    capability: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            autocompletion=completion.capabilities,
            help="What kind of task it can do; repeat it for more.",
        ),
    ] = None,
    expertise: Annotated[
        list[str] | None, typer.Option(metavar="CATEGORY=WEIGHT", help="In [0, 1]; repeat it for more.")
    ] = None,
    capacity: Annotated[int | None, typer.Option(metavar="N", help="How many tasks it takes at once.")] = None,
    role: Annotated[str | None, typer.Option(metavar="ROLE", help="An observer does not vote.")] = None,
    vote_weight: Annotated[float | None, typer.Option(metavar="WEIGHT", help="In weighted votes.")] = None,
) -> None:
    """Make an agent a member, or change what it declares; it is present once its own process joins."""
    desk.out.record(
        desk.session().agents.join(
            agent_id,
            capabilities=capability,
            expertise=weights(expertise, "expertise"),
            capacity=capacity,
            role=role,
            vote_weight=vote_weight,
        )
    )


@command(app, "leave", example="blackboard agent leave ops/architect")
def leave(desk: Desk, *, agent_id: AgentId) -> None:
    """End a membership; what the agent wrote stays."""
    agents = desk.session().agents
    agents.leave(agent_id)
    desk.out.record(agents.get(agent_id))
