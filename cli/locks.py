"""``blackboard lock``."""

from __future__ import annotations

from typing import Annotated

import typer

from .commands import command, noun
from .desk import Desk
from .output import Column

__all__ = ["app"]

app = noun("Locks: who holds what.")

_COLUMNS = [
    Column("name", lambda k: k.name, grow=True),
    Column("holder", lambda k: k.holder),
    Column("token", lambda k: k.token, "number"),
    Column("waiting", lambda k: k.waiting, "number"),
    Column("acquired", lambda k: k.acquired_at),
    Column("expires", lambda k: k.expires_at, wide=90),
]


@command(app, "list", example="blackboard lock list --holder ops/release-manager")
def list_(
    desk: Desk,
    *,
    holder: Annotated[str | None, typer.Option(metavar="AGENT", help="Only those that it holds.")] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="At most so many.")] = 100,
) -> None:
    """List the locks that are held or waited for, by name."""
    desk.out.records(
        desk.session().locks.list(holder=holder, limit=limit), _COLUMNS, empty="Nothing is locked.", limit=limit
    )


@command(app, "show", example="blackboard lock show file:/src/main.py")
def show(
    desk: Desk, *, name: Annotated[str, typer.Argument(help="Its whole name, such as file:/src/main.py.")]
) -> None:
    """Show one lock."""
    desk.out.record(desk.session().locks.get(name))
