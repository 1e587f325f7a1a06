"""``blackboard task``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from .commands import command, noun
from .desk import Desk
from .ids import resolve
from .output import Column, clean, many, ready_again
from .values import coming, document, duration

if TYPE_CHECKING:
    from blackboard.models.tasks import TaskRecord
    from blackboard.sync import Session

__all__ = ["TaskId", "app", "find_task"]

app = noun("Tasks: the work to be done.")

_COLUMNS = [
    Column("id", lambda t: t.id),
    Column("type", lambda t: t.type),
    Column("status", lambda t: t.status, "status"),
    Column("pri", lambda t: t.priority, "number"),
    Column("assigned to", lambda t: t.assignee, grow=True),
    Column("capability", lambda t: t.capability or None, wide=100),
    Column("attempt", lambda t: f"{t.attempt - t.released}/{t.max_attempts}", "number", wide=90),
    Column("created", lambda t: t.created_at),
]
_LATE = [
    Column("id", lambda r: r.id),
    Column("agent", lambda r: r.agent_id),
    Column("attempt", lambda r: r.attempt, "number"),
    Column("result", lambda r: r.result if r.error is None else r.error, grow=True),
    Column("at", lambda r: r.at),
]
_PAUSES = [
    Column("paused", lambda p: p.kind),
    Column("name", lambda p: p.name),
    Column("by", lambda p: p.paused_by),
    Column("since", lambda p: p.paused_at),
    Column("reason", lambda p: p.reason, grow=True),
]

TaskId = Annotated[str, typer.Argument(metavar="ID", help="Whole, or 6 or more characters of its beginning or end.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why.")]
By = Annotated[str | None, typer.Option(metavar="NAME", help="Who decides; else --as, else your login name.")]


def _statuses(incomplete: str) -> list[str]:
    """For completion: the statuses that begin so."""
    from blackboard.models.tasks import TaskStatus

    return [one.value for one in TaskStatus if one.startswith(incomplete)]


def _ended(incomplete: str) -> list[str]:
    """As ``_statuses``, of tasks that ended only."""
    from blackboard.models.tasks import FINAL

    return [one for one in _statuses(incomplete) if one in FINAL]


@command(app, "list", example="blackboard task list --status pending --status running --capability investigate")
def list_(
    desk: Desk,
    *,
    status: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STATUS",
            autocompletion=_statuses,
            help="Only those that are scheduled, blocked, awaiting_approval, held, pending, assigned, running, "
            "completed, failed, cancelled or dead; repeat it for more.",
        ),
    ] = None,
    type_: Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Only those.")] = None,
    capability: Annotated[str | None, typer.Option(metavar="NAME", help="Only those that need it.")] = None,
    assigned_to: Annotated[str | None, typer.Option(metavar="AGENT", help="Only those that are with it.")] = None,
    newest: Annotated[bool, typer.Option("--newest", help="The newest first.")] = False,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="At most so many.")] = 100,
) -> None:
    """List the tasks of a session, oldest first."""
    desk.out.records(
        desk.session().tasks.list(
            status=status, type=type_, capability=capability, assigned_to=assigned_to, newest=newest, limit=limit
        ),
        _COLUMNS,
        empty="No such tasks.",
        limit=limit,
    )


@command(app, "show", example="blackboard task show 5e1c9a07")
def show(desk: Desk, *, task_id: TaskId) -> None:
    """Show one task and what it depends on."""
    session = desk.session()
    found = find_task(desk, session, task_id)
    _show(desk, session.tasks.get(found), depends_on=session.tasks.dependencies(found))


@command(
    app,
    "add",
    example="""
    blackboard task add investigate --parameters '{"target": "checkout"}' --priority 8 --timeout 5m
    blackboard task add report --depends-on 5e1c9a07 --capability synthesize
    blackboard task add report --run-at 2h --expires-at 2027-01-31T10:15:00Z
    """,
)
def add(
    desk: Desk,
    *,
    type_: Annotated[str, typer.Argument(metavar="TYPE", help="What is to be done, such as investigate.")],
    parameters: Annotated[
        str | None, typer.Option(metavar="JSON", help="What it needs to know; @FILE or - for stdin.")
    ] = None,
    capability: Annotated[str, typer.Option(metavar="NAME", help="Only agents that offer it may claim.")] = "",
    priority: Annotated[int, typer.Option(metavar="N", help="0 to 10, higher first.")] = 5,
    assigned_to: Annotated[str | None, typer.Option(metavar="AGENT", help="Only this agent may claim it.")] = None,
    depends_on: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A task that must finish first; repeat it for more.")
    ] = None,
    run_at: Annotated[str | None, typer.Option(metavar="TIME", help="Not before this time, or in so long.")] = None,
    timeout: Annotated[str | None, typer.Option(metavar="DURATION", help="The longest an attempt may run.")] = None,
    requires_approval: Annotated[
        bool, typer.Option("--requires-approval", help="Held until somebody approves it.")
    ] = False,
    max_attempts: Annotated[int, typer.Option(metavar="N", help="1 to 1000; then it is dead.")] = 5,
    retry_delay: Annotated[str, typer.Option(metavar="DURATION", help="Before the second attempt; doubles.")] = "1s",
    unique: Annotated[
        str | None, typer.Option(metavar="KEY", help="An unfinished task with this key is returned instead.")
    ] = None,
    unique_window: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Only if it was added this long ago or less.")
    ] = None,
    limit_key: Annotated[str | None, typer.Option(metavar="KEY", help="For limits that are per key.")] = None,
    expires_at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Cancelled if not started by this time, or in so long.")
    ] = None,
    fallback: Annotated[
        str | None, typer.Option(metavar="DURATION", help="How long it waits for --assigned-to; then anybody may.")
    ] = None,
    id_: Annotated[str | None, typer.Option("--id", metavar="UUID", help="The idempotency key.")] = None,
) -> None:
    """Put a task on the board."""
    from blackboard.errors import InvalidInput
    from blackboard.models.tasks import Unique

    if unique_window is not None and unique is None:
        raise InvalidInput("--unique-window says how long --unique holds: give both.", field="unique_window")
    delay = duration(retry_delay, "retry_delay")
    assert delay is not None
    parsed = document(parameters, "parameters")
    session = desk.session()
    task = session.tasks.add(
        type_,
        parsed,
        capability=capability,
        priority=priority,
        assigned_to=assigned_to,
        depends_on=[find_task(desk, session, one, "depends_on") for one in depends_on or ()],
        run_at=coming(run_at, "run_at"),
        timeout=duration(timeout, "timeout"),
        requires_approval=requires_approval,
        max_attempts=max_attempts,
        retry_delay=delay,
        unique=None if unique is None else Unique(key=unique, window=duration(unique_window, "unique_window")),
        limit_key=limit_key,
        expires_at=coming(expires_at, "expires_at"),
        fallback=duration(fallback, "fallback"),
        id=id_,
    )
    _show(desk, task)


@command(app, "cancel", example='blackboard task cancel 5e1c9a07 --reason "no longer needed"')
def cancel(desk: Desk, *, task_id: TaskId, reason: Reason = "") -> None:
    """Cancel a task; a running one is asked to stop."""
    session = desk.session()
    _show(desk, session.tasks.cancel(find_task(desk, session, task_id), reason))


Timeout = Annotated[str | None, typer.Option(metavar="DURATION", help="The longest to wait; else until it ends.")]


@command(
    app,
    "wait",
    example="""
    blackboard task wait 5e1c9a07
    blackboard task wait 5e1c9a07 --timeout 5m --json
    """,
)
def wait(desk: Desk, *, task_id: TaskId, timeout: Timeout = None) -> None:
    """Wait until a task has ended, however it did, and show it; exit code 5 when it has not in time."""
    session = desk.session()
    longest = duration(timeout, "timeout")
    _show(desk, session.tasks.wait(find_task(desk, session, task_id), longest))


@command(app, "result", example="blackboard task result 5e1c9a07 --timeout 5m")
def result(desk: Desk, *, task_id: TaskId, timeout: Timeout = None) -> None:
    """Wait until a task is completed and print its result as JSON; exit code 1 when it ended otherwise."""
    session = desk.session()
    longest = duration(timeout, "timeout")
    found = session.tasks.result(find_task(desk, session, task_id), longest)
    if desk.out.json:
        desk.out.document(found)
    else:
        print(clean(json.dumps(found, indent=2, ensure_ascii=False)))


@command(app, "approve", example="blackboard task approve 5e1c9a07 --by maria")
def approve(desk: Desk, *, task_id: TaskId, by: By = None) -> None:
    """Approve a task that waits for it."""
    session = desk.session()
    _show(desk, session.tasks.approve(find_task(desk, session, task_id), by=by or desk.person))


@command(app, "reject", example='blackboard task reject 5e1c9a07 --reason "too risky"')
def reject(desk: Desk, *, task_id: TaskId, by: By = None, reason: Reason = "") -> None:
    """Reject a task that waits for approval: it is cancelled."""
    session = desk.session()
    _show(desk, session.tasks.reject(find_task(desk, session, task_id), by=by or desk.person, reason=reason))


@command(app, "redrive", example="blackboard task redrive 5e1c9a07")
def redrive(desk: Desk, *, task_id: TaskId) -> None:
    """Make a failed or dead task ready again, with its attempts counted anew."""
    session = desk.session()
    _show(desk, session.tasks.redrive(find_task(desk, session, task_id)))


@command(app, "late", example="blackboard task late 5e1c9a07")
def late(desk: Desk, *, task_id: TaskId) -> None:
    """List what late owners handed in for a task: kept, never applied."""
    session = desk.session()
    desk.out.records(
        session.tasks.late_results(find_task(desk, session, task_id)), _LATE, empty="Nothing was handed in late."
    )


Type = Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Tasks of this type.")]
Capability = Annotated[str | None, typer.Option(metavar="NAME", help="Tasks that need this capability.")]


@command(
    app,
    "pause",
    example="""
    blackboard task pause --type mail --reason "the relay is down"
    blackboard task pause --capability call_api
    """,
)
def pause(desk: Desk, *, type_: Type = None, capability: Capability = None, reason: Reason = "") -> None:
    """Hand out no more tasks of a type, or that need a capability; what runs goes on."""
    desk.out.record(desk.session().tasks.pause(type=type_, capability=capability, reason=reason))


@command(app, "resume", example="blackboard task resume --type mail")
def resume(desk: Desk, *, type_: Type = None, capability: Capability = None) -> None:
    """Hand out what was paused again."""
    tasks = desk.session().tasks
    named = ("capability", capability) if type_ is None else ("type", type_)
    paused = any((one.kind, one.name) == named for one in tasks.pauses())
    moved = tasks.resume(type=type_, capability=capability)
    if desk.out.json:
        desk.out.document({"ready_again": moved})
    elif not paused and not moved:
        desk.out.note("It was not paused; `blackboard task pauses` lists what is.")
    else:
        desk.out.note(f"Resumed; {ready_again(moved)}.")


@command(app, "pauses", example="blackboard task pauses")
def pauses(desk: Desk) -> None:
    """List the types and capabilities that are paused."""
    desk.out.records(desk.session().tasks.pauses(), _PAUSES, empty="No type and no capability is paused.")


@command(
    app,
    "prune",
    example="""
    blackboard task prune --older-than 30d --dry-run
    blackboard task prune --status completed --older-than 12h --events
    """,
)
def prune(
    desk: Desk,
    *,
    older_than: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Ended so long ago; else the session's retention.")
    ] = None,
    status: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STATUS",
            autocompletion=_ended,
            help="Only those that are completed, failed, cancelled or dead; repeat it for more. Else all of them.",
        ),
    ] = None,
    events: Annotated[bool, typer.Option("--events", help="Also all events before that moment.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
) -> None:
    """Delete finished tasks that ended long ago, and the flows that had them. Only the owner of the schema may."""
    from blackboard.errors import InvalidInput

    session = desk.session()
    if older_than is None and session.record.retention is None:
        raise InvalidInput(
            "Say how old what goes must be: give --older-than, or set the session's retention with "
            "`blackboard session configure --retention`.",
            field="older_than",
        )
    pruned = session.tasks.prune(
        older_than=duration(older_than, "older_than"), status=status, events=events, dry_run=dry_run
    )
    if desk.out.json:
        desk.out.record(pruned)
        return
    parts = [many(pruned.tasks, "task")]
    if pruned.flows:
        parts.append(many(pruned.flows, "flow"))
    if pruned.events is not None:
        parts.append(many(pruned.events, "event"))
    what = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    gone = "is gone" if parts == ["1 task"] else "are gone"
    desk.out.note(f"{what} {'would go' if dry_run else gone}.")


def _show(desk: Desk, task: TaskRecord, **more: Any) -> None:
    # For people who it is with; the record's own column also remembers who had it last.
    desk.out.record(task, more=more if desk.out.json else {"assigned_to": task.assignee, **more})


def find_task(desk: Desk, session: Session, given: str, field: str = "task_id") -> UUID:
    """The task that ``given`` stands for."""
    return resolve(desk, given, field, session.tasks.ids_like, noun="task")
