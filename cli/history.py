"""``blackboard history``."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer

from .commands import command, single
from .desk import Desk
from .output import Column

__all__ = ["app"]

app = single()

_COLUMNS = [
    Column("at", lambda c: c.at),
    Column("actor", lambda c: c.actor, most=0.25),
    Column("event", lambda c: c.event),
    Column("field", lambda c: c.field),
    Column("old", lambda c: c.old, grow=True),
    Column("new", lambda c: c.new, grow=True),
]


@command(
    app,
    "history",
    example="""
    blackboard history 5e1c9a07
    blackboard history --limit 50
    """,
)
def history(
    desk: Desk,
    *,
    subject: Annotated[
        str | None,
        typer.Argument(help="A row's id, or 6 or more characters of its beginning or end; by default the session."),
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="At most so many changes.")] = 1000,
) -> None:
    """Show who changed what, from which value to which, when; oldest first."""
    session = desk.session()
    subject_id = None if subject is None else _subject(desk, subject)
    changes = session.events.history(subject_id, limit=limit)
    if subject_id is not None and not changes:
        from blackboard.errors import NotFound

        raise NotFound(f"Nothing in this session has the id {subject_id}.", noun="subject", id=str(subject_id))
    full = len(changes) >= limit
    if not desk.out.json:
        # A new row's empty columns are changes from nothing to nothing.
        changes = [change for change in changes if change.old is not None or change.new not in (None, "", {}, [])]
    desk.out.records(changes, _COLUMNS, empty="Nothing happened yet.")
    if full:
        desk.out.cut(limit)


def _subject(desk: Desk, given: str) -> UUID:
    try:
        return UUID(given)
    except ValueError:
        pass
    session = desk.session()
    seen: dict[UUID, None] = {}
    cursor: str | None = None
    while True:
        page = session.events.read(cursor, limit=10_000)
        seen.update(dict.fromkeys(event.subject_id for event in page.events))
        cursor = page.cursor
        if not page.more:
            return desk.pick(given, "subject", list(seen))
