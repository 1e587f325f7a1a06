"""``blackboard deadletter``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast
from uuid import UUID

import typer

from . import completion
from .commands import command, noun
from .desk import Desk
from .given import Limit
from .ids import resolve
from .output import Column, clean, jsonable
from .values import duration

if TYPE_CHECKING:
    from blackboard.sync import Session

__all__ = ["app"]


def _said(record: Any, name: str) -> Any:
    error: Any = record.error
    return cast("dict[str, Any]", error).get(name) if isinstance(error, dict) else None


app = noun("Dead letters: tasks that died of their last attempt.")

_COLUMNS = [
    Column("id", lambda t: t.id),
    Column("type", lambda t: t.type),
    Column("died", lambda t: t.completed_at),
    Column("attempts", lambda t: t.attempt - t.released, "number", wide=90),
    Column("code", lambda t: _said(t, "code")),
    Column("of", lambda t: _said(t, "message"), grow=True),
]
_ATTEMPTS = [
    Column("attempt", lambda a: a.attempt, "number"),
    Column("agent", lambda a: a.agent_id, most=0.3),
    Column("started", lambda a: a.started_at),
    Column("ended", lambda a: a.ended_at),
    Column("outcome", lambda a: a.outcome, "status"),
    Column("error", lambda a: _said(a, "message"), grow=True),
]

TaskId = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        autocompletion=completion.dead_letters,
        help="Whole, or 6 or more characters of its beginning or end.",
    ),
]
Type = Annotated[
    str | None, typer.Option("--type", metavar="TYPE", autocompletion=completion.types, help="Only tasks of this type.")
]
Code = Annotated[
    str | None, typer.Option("--error", metavar="CODE", help="Only those that died of it, such as timeout.")
]


@command(app, "list", example="blackboard deadletter list --type investigate --error timeout")
def list_(
    desk: Desk,
    *,
    type_: Type = None,
    error: Code = None,
    limit: Limit = 100,
) -> None:
    """List the dead tasks of a session, the latest death first."""
    found = desk.session().tasks.dead_letters(type=type_, error_code=error, limit=limit)
    desk.out.records(found, _COLUMNS, empty="No dead letters.", limit=limit)


@command(app, "show", example="blackboard deadletter show 5e1c9a07")
def show(desk: Desk, *, task_id: TaskId) -> None:
    """Show every attempt at a task, and the traceback of the last one that failed."""
    session = desk.session()
    found = _dead(desk, session, task_id)
    task, attempts = session.tasks.get(found), session.tasks.attempts(found)
    if desk.out.json:
        desk.out.document({**jsonable(task), "attempts": jsonable(attempts)})
        return
    desk.out.facts({"id": task.id, "type": task.type, "status": task.status, "parameters": task.parameters})
    print()
    desk.out.records(attempts, _ATTEMPTS, empty="No attempts are known.")
    trace = next((found for one in reversed(attempts) if (found := _said(one, "traceback"))), None)
    if trace:
        print()
        print(clean(trace).rstrip())


@command(
    app,
    "redrive",
    example="""
    blackboard deadletter redrive 5e1c9a07
    blackboard deadletter redrive --type investigate --error timeout --older-than 1h --dry-run
    """,
)
def redrive(
    desk: Desk,
    *,
    task_ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", autocompletion=completion.dead_letters, help="These; or choose by filter."),
    ] = None,
    type_: Type = None,
    error: Code = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Only those that died so long ago.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="All of them: needed when nothing else chooses.")] = False,
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=10_000, help="At most so many.")] = 1000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell which.")] = False,
) -> None:
    """Make dead tasks ready again, with their attempts counted anew."""
    from blackboard.errors import InvalidInput

    age = duration(older_than, "older_than")
    chosen = type_ is not None or error is not None or age is not None
    if bool(task_ids) == (chosen or all_):
        raise InvalidInput(
            "Name dead letters by id, or choose them by --type, --error and --older-than, or take --all.",
            field="task_ids",
        )
    session = desk.session()
    if task_ids:
        found = [_dead(desk, session, one) for one in task_ids]
        if not dry_run:
            for one in found:
                session.tasks.redrive(one)
    else:
        found = session.tasks.redrive_many(type=type_, error_code=error, older_than=age, limit=limit, dry_run=dry_run)
    _told(desk, found, "would be redriven" if dry_run else "redriven")


@command(app, "discard", example='blackboard deadletter discard 5e1c9a07 --reason "customer is gone"')
def discard(
    desk: Desk,
    *,
    task_ids: Annotated[
        list[str],
        typer.Argument(
            metavar="ID...", autocompletion=completion.dead_letters, help="Whole, or a part of 6 or more characters."
        ),
    ],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why.")] = "",
) -> None:
    """Give dead tasks up for good: they are cancelled; what they died of is kept."""
    session = desk.session()
    found = [_dead(desk, session, one) for one in task_ids]
    for one in found:
        session.tasks.discard(one, reason)
    _told(desk, found, "discarded")


def _dead(desk: Desk, session: Session, given: str) -> UUID:
    return resolve(desk, given, "task_id", session.tasks.dead_ids_like, noun="dead letter")


def _told(desk: Desk, found: list[UUID], what: str) -> None:
    if desk.out.json:
        desk.out.document([str(one) for one in found])
        return
    for one in found:
        print(one)
    desk.out.note(f"{len(found)} {what}.")
