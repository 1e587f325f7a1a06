"""``blackboard task``."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from . import completion, given
from .commands import command, noun
from .desk import Desk
from .given import By, Capability, Limit, Reason, TaskId, Timeout, Type
from .ids import resolve
from .output import Column, clean, many, ready_again
from .values import coming, document, duration

if TYPE_CHECKING:
    from blackboard.models.tasks import TaskRecord
    from blackboard.sync import Session

__all__ = ["app", "find_task"]

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


@command(app, "list", example="blackboard task list --status pending --status running --capability investigate")
def list_(
    desk: Desk,
    *,
    status: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STATUS",
            autocompletion=completion.statuses(),
            help="Only those that are scheduled, blocked, awaiting_approval, held, pending, assigned, running, "
            "completed, failed, cancelled or dead; repeat it for more.",
        ),
    ] = None,
    type_: Type = None,
    capability: Capability = None,
    assigned_to: Annotated[
        str | None,
        typer.Option(metavar="AGENT", autocompletion=completion.agents, help="Only those that are with it."),
    ] = None,
    newest: Annotated[bool, typer.Option("--newest", help="The newest first.")] = False,
    limit: Limit = 100,
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
    blackboard task add --batch tasks.jsonl
    """,
)
def add(
    desk: Desk,
    *,
    type_: Annotated[
        str | None,
        typer.Argument(
            metavar="TYPE",
            autocompletion=completion.types,
            help="What is to be done, such as investigate; not with --batch.",
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Many tasks, all or none: JSON, an object a line or one array, with the names of these options as in "
            '{"type": "mail", "run_at": "2h"}; - for stdin. A line with an id is added once, however often it is sent.',
        ),
    ] = None,
    parameters: Annotated[
        str | None, typer.Option(metavar="JSON", help="What it needs to know; @FILE or - for stdin.")
    ] = None,
    capability: given.Needed = "",
    priority: given.Priority = 5,
    assigned_to: given.AssignedTo = None,
    depends_on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID", autocompletion=completion.tasks, help="A task that must finish first; repeat it for more."
        ),
    ] = None,
    run_at: Annotated[str | None, typer.Option(metavar="TIME", help="Not before this time, or in so long.")] = None,
    timeout: given.LongestRun = None,
    requires_approval: given.RequiresApproval = False,
    max_attempts: given.MaxAttempts = 5,
    retry_delay: given.RetryDelay = "1s",
    unique: Annotated[
        str | None, typer.Option(metavar="KEY", help="An unfinished task with this key is returned instead.")
    ] = None,
    unique_window: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Only if it was added this long ago or less.")
    ] = None,
    limit_key: given.LimitKey = None,
    expires_at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Cancelled if not started by this time, or in so long; later than --run-at."),
    ] = None,
    fallback: given.Fallback = None,
    id_: given.Id = None,
) -> None:
    """Put a task on the board, or many from a file."""
    from blackboard.errors import InvalidInput
    from blackboard.models.tasks import Unique

    if batch is not None:
        others = (parameters, assigned_to, depends_on, run_at, timeout, unique, unique_window, limit_key, expires_at,
                  fallback, id_, type_)  # fmt: skip
        usual = (capability, priority, requires_approval, max_attempts, retry_delay) == ("", 5, False, 5, "1s")
        if not usual or any(one is not None for one in others):
            raise InvalidInput("With --batch everything about the tasks is said in the file.", field="batch")
        _add_batch(desk, batch)
        return
    if type_ is None:
        raise InvalidInput("Say what is to be done: give TYPE, or --batch with a file of tasks.", field="type")
    if unique_window is not None and unique is None:
        raise InvalidInput("--unique-window says how long --unique holds: give both.", field="unique_window")
    delay = duration(retry_delay, "retry_delay")
    assert delay is not None
    parsed = document(parameters, "parameters")
    session = desk.session()
    now = datetime.now(UTC)
    task = session.tasks.add(
        type_,
        parsed,
        capability=capability,
        priority=priority,
        assigned_to=assigned_to,
        depends_on=[find_task(desk, session, one, "depends_on") for one in depends_on or ()],
        run_at=coming(run_at, "run_at", now),
        timeout=duration(timeout, "timeout"),
        requires_approval=requires_approval,
        max_attempts=max_attempts,
        retry_delay=delay,
        unique=None if unique is None else Unique(key=unique, window=duration(unique_window, "unique_window")),
        limit_key=limit_key,
        expires_at=coming(expires_at, "expires_at", now),
        fallback=duration(fallback, "fallback"),
        id=id_,
    )
    _show(desk, task)
    if task.expires_at is not None and task.expires_at <= task.created_at and not task.finished:
        desk.out.note("Its --expires-at has passed already: it will be cancelled, not run.")


def _add_batch(desk: Desk, file: str) -> None:
    from .batch import add_all, read

    lines = read(file)
    ids = add_all(desk, desk.session(), lines)
    if desk.out.json:
        desk.out.document([str(one) for one in ids])
        return
    for one in ids:
        print(one)
    desk.out.note(f"{many(len(ids), 'task')} from {'stdin' if file == '-' else file}.")


@command(app, "cancel", example='blackboard task cancel 5e1c9a07 --reason "no longer needed"')
def cancel(desk: Desk, *, task_id: TaskId, reason: Reason = "") -> None:
    """Cancel a task; a running one is asked to stop."""
    session = desk.session()
    _show(desk, session.tasks.cancel(find_task(desk, session, task_id), reason))


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
            autocompletion=completion.statuses(final=True),
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
