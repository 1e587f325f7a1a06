"""``blackboard session``."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

import typer

from . import completion
from .board import show_board
from .commands import command, noun
from .desk import Desk
from .given import Limit
from .output import Column
from .values import document, duration, loose

__all__ = ["app"]

app = noun("Sessions: problems that agents work on together.")

_COLUMNS = [
    Column("id", lambda s: s.id),
    Column("name", lambda s: s.name),
    Column("status", lambda s: s.status, "status"),
    Column("goal", lambda s: s.goal, grow=True),
    Column("created by", lambda s: s.created_by, wide=100),
    Column("created", lambda s: s.created_at),
    Column("closed", lambda s: s.closed_at, wide=100),
]

Which = Annotated[
    str | None,
    typer.Argument(metavar="NAME_OR_ID", autocompletion=completion.sessions, help="By default the one of --session."),
]


@command(app, "list", example="blackboard session list --status active")
def list_(
    desk: Desk,
    *,
    status: Annotated[
        Literal["active", "paused", "completed", "failed"] | None, typer.Option(help="Only those.")
    ] = None,
    limit: Limit = 100,
) -> None:
    """List the sessions, newest first."""
    desk.out.records(
        desk.board.sessions.list(status=status, limit=limit),
        _COLUMNS,
        empty="No sessions; start one with `blackboard session start NAME`.",
        limit=limit,
    )


@command(app, "show", example="blackboard session show INC-1234")
def show(
    desk: Desk,
    *,
    name_or_id: Which = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="At most so many of each kind.")] = 20,
) -> None:
    """Show one session with the whole picture of what is in it."""
    show_board(desk, desk.session(name_or_id), limit)


@command(
    app,
    "start",
    example="""
    blackboard session start INC-1234 --goal "Why does checkout fail?"
    blackboard session start nightly --context @context.json --as ops/scheduler
    """,
)
def start(
    desk: Desk,
    *,
    name: Annotated[str, typer.Argument(help="Only one open session may have it.")],
    goal: Annotated[str, typer.Option(metavar="TEXT", help="What it is for.")] = "",
    context: Annotated[str | None, typer.Option(metavar="JSON", help="What is known; @FILE or - for stdin.")] = None,
    allow_self_validation: Annotated[
        bool, typer.Option("--allow-self-validation", help="Authors may validate their own hypotheses.")
    ] = False,
    id_: Annotated[str | None, typer.Option("--id", metavar="UUID", help="The idempotency key.")] = None,
) -> None:
    """Start a session."""
    record = desk.board.sessions.start(
        name,
        goal=goal,
        context=document(context, "context"),
        allow_self_validation=allow_self_validation,
        id=id_,
    )
    desk.out.record(record)


@command(app, "close", example='blackboard session close INC-1234 --outcome "rolled back to v1.2.2"')
def close(
    desk: Desk,
    *,
    name_or_id: Which = None,
    outcome: Annotated[
        str | None, typer.Option(metavar="TEXT_OR_JSON", help="How it ended; @FILE or - for stdin.")
    ] = None,
    status: Annotated[Literal["completed", "failed"], typer.Option(help="Whether it reached its goal.")] = "completed",
) -> None:
    """Close a session: open tasks are cancelled, open proposals expire, locks are released."""
    value = None if outcome is None else loose(outcome, "outcome")
    desk.out.record(desk.session(name_or_id).close(outcome=value, status=status))


@command(app, "configure", example="blackboard session configure INC-1234 --ageing 5m --retention 30d")
def configure(
    desk: Desk,
    *,
    name_or_id: Which = None,
    ageing: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Waiting tasks gain a step of priority in each such time; 0 ends it."),
    ] = None,
    retention: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="The age that `task prune` takes by default; by itself nothing goes: `session keep`.",
        ),
    ] = None,
) -> None:
    """Set how a session treats tasks that wait, and those that have ended."""
    desk.out.record(
        desk.session(name_or_id).configure(
            ageing=duration(ageing, "ageing"), retention=duration(retention, "retention")
        )
    )


@command(app, "keep", example="blackboard session keep INC-1234 --tasks 30d --events 90d")
def keep(
    desk: Desk,
    *,
    name_or_id: Which = None,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="DURATION|ever", help="Finished tasks, but dead letters, and the flows that had them."),
    ] = None,
    events: Annotated[
        str | None, typer.Option(metavar="DURATION|ever", help="All events; cursors from before that expire.")
    ] = None,
) -> None:
    """Set for how long a session keeps what is over, or show it; what is older goes by itself.

    Any worker of the board sees to it, in small batches. What is not named stays as it is; at first all is kept for
    ever. Only the owner of the schema may.
    """
    session = desk.session(name_or_id)
    kept = session.kept()
    if tasks is not None or events is not None:
        kept = session.keep(tasks=_age(tasks, "tasks", kept.tasks), events=_age(events, "events", kept.events))
    desk.out.record(kept)


def _age(text: str | None, field: str, present: timedelta | None) -> timedelta | None:
    if text is None:
        return present
    return None if text == "ever" else duration(text, field)


@command(app, "pause", example="blackboard session pause INC-1234")
def pause(desk: Desk, *, name_or_id: Which = None) -> None:
    """Hand out no tasks any more until it is resumed; what runs goes on."""
    desk.out.record(desk.session(name_or_id).pause())


@command(app, "resume", example="blackboard session resume INC-1234")
def resume(desk: Desk, *, name_or_id: Which = None) -> None:
    """Hand out tasks again."""
    desk.out.record(desk.session(name_or_id).resume())
