"""``blackboard limit``."""

from __future__ import annotations

from typing import Annotated

import typer

from . import completion
from .commands import command, noun
from .desk import Desk
from .output import Column, ready_again
from .values import duration

__all__ = ["app"]

app = noun("Limits: how many tasks may run at once, or start in a time.")

_COLUMNS = [
    Column("name", lambda k: k.name, grow=True),
    Column("of", lambda k: k.type or k.capability or "all tasks"),
    Column("per key", lambda k: "yes" if k.per_key else None),
    Column("at once", lambda k: k.max_running, "number"),
    Column("starts", lambda k: k.rate_count, "number"),
    Column("in", lambda k: k.rate_period),
    Column("set by", lambda k: k.created_by, wide=100),
]

Name = Annotated[str, typer.Argument(metavar="NAME", autocompletion=completion.limits, help="Of the limit.")]


@command(
    app,
    "set",
    example="""
    blackboard limit set calls --max-running 3 --capability call_api
    blackboard limit set tenants --max-running 1 --per-key
    blackboard limit set mails --rate 100 --period 1m --type mail
    """,
)
def set_(
    desk: Desk,
    *,
    name: Name,
    max_running: Annotated[int | None, typer.Option(metavar="N", help="At most so many run at once.")] = None,
    rate: Annotated[int | None, typer.Option(metavar="N", help="At most so many start in each --period.")] = None,
    period: Annotated[str | None, typer.Option(metavar="DURATION", help="Of --rate.")] = None,
    type_: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", autocompletion=completion.types, help="Only tasks of this type."),
    ] = None,
    capability: Annotated[
        str | None,
        typer.Option(metavar="NAME", autocompletion=completion.capabilities, help="Only tasks that need it."),
    ] = None,
    per_key: Annotated[bool, typer.Option("--per-key", help="For each limit key by itself.")] = False,
) -> None:
    """Set a limit, or change its figures; what runs already counts."""
    from blackboard.errors import InvalidInput

    # The library's own words for it are no options of ours.
    if (rate is None) != (period is None) or (max_running is None) == (rate is None):
        raise InvalidInput("A limit has either --max-running, or --rate and --period.", field="max_running")
    desk.out.record(
        desk.session().limits.set(
            name,
            max_running=max_running,
            rate_count=rate,
            rate_period=duration(period, "period"),
            type=type_,
            capability=capability,
            per_key=per_key,
        )
    )


@command(app, "list", example="blackboard limit list")
def list_(desk: Desk) -> None:
    """List the limits of a session, by name."""
    desk.out.records(desk.session().limits.list(), _COLUMNS, empty="There are no limits.")


@command(app, "remove", example="blackboard limit remove calls")
def remove(desk: Desk, *, name: Name) -> None:
    """Remove a limit: what it held is ready again."""
    moved = desk.session().limits.remove(name)
    if desk.out.json:
        desk.out.document({"name": name, "ready_again": moved})
    else:
        desk.out.note(f"Limit {name} is gone; {ready_again(moved)}.")
