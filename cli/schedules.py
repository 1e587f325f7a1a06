"""``blackboard schedule``."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from . import completion, given
from .commands import command, noun
from .desk import Desk
from .given import Limit
from .output import Column, ago, jsonable, plain
from .values import document, duration

if TYPE_CHECKING:
    from uuid import UUID

    from blackboard.models.schedules import Firing, ScheduleRecord
    from blackboard.sync import Session

__all__ = ["app"]

app = noun("Schedules: tasks that are added at the times of a cron expression.")

_COLUMNS = [
    Column("name", lambda row: row[0].name),
    Column("cron", lambda row: row[0].cron),
    Column("time zone", lambda row: row[0].timezone),
    Column("type", lambda row: row[0].type, wide=90),
    Column("status", lambda row: "failed" if row[0].error else "paused" if row[0].paused else "active", "status"),
    Column("fired", lambda row: row[0].fired, "number", wide=100),
    Column("next times", lambda row: ", ".join(plain(one) for one in row[1]) or None, grow=True),
]

_PATIENCE = timedelta(minutes=1)

Name = Annotated[str, typer.Argument(metavar="NAME", autocompletion=completion.schedules, help="Its name or whole id.")]


@command(
    app,
    "add",
    example="""
    blackboard schedule add nightly '30 2 * * *' report --timezone Europe/Berlin
    blackboard schedule add probe '*/5 * * * *' investigate --parameters '{"target": "checkout"}' --missed skip
    """,
)
def add(
    desk: Desk,
    *,
    name: Annotated[str, typer.Argument(help="One schedule of a session has it.")],
    cron: Annotated[
        str, typer.Argument(help="Minute, hour, day of month, month, day of week; or @daily and the like.")
    ],
    type_: Annotated[
        str, typer.Argument(metavar="TYPE", autocompletion=completion.types, help="Of the task, such as report.")
    ],
    parameters: Annotated[str | None, typer.Option(metavar="JSON", help="Of the task; @FILE or - for stdin.")] = None,
    timezone: Annotated[str, typer.Option(metavar="ZONE", help="Such as Europe/Berlin.")] = "UTC",
    missed: Annotated[
        Literal["skip", "once", "all"], typer.Option(help="What becomes of times at which nobody looked after it.")
    ] = "once",
    capability: given.Needed = "",
    priority: given.Priority = 5,
    assigned_to: given.AssignedTo = None,
    timeout: given.LongestRun = None,
    requires_approval: given.RequiresApproval = False,
    max_attempts: given.MaxAttempts = 5,
    retry_delay: given.RetryDelay = "1s",
    limit_key: given.LimitKey = None,
    fallback: given.Fallback = None,
    id_: given.Id = None,
) -> None:
    """Add a schedule; it fires while a worker of the session runs, or `blackboard schedule run`."""
    delay = duration(retry_delay, "retry_delay")
    assert delay is not None
    parsed = document(parameters, "parameters")
    desk.out.record(
        desk.session().schedules.add(
            name,
            cron,
            type_,
            parsed,
            timezone=timezone,
            missed=missed,
            capability=capability,
            priority=priority,
            assigned_to=assigned_to,
            timeout=duration(timeout, "timeout"),
            requires_approval=requires_approval,
            max_attempts=max_attempts,
            retry_delay=delay,
            limit_key=limit_key,
            fallback=duration(fallback, "fallback"),
            id=id_,
        )
    )


@command(app, "list", example="blackboard schedule list")
def list_(desk: Desk, *, limit: Limit = 100) -> None:
    """List the schedules of a session with their next three times."""
    from blackboard.errors import InvalidInput

    session = desk.session()
    schedules = session.schedules
    rows: list[tuple[ScheduleRecord, list[object]]] = []
    for schedule in schedules.list(limit=limit):
        try:
            rows.append((schedule, [*schedules.next_times(schedule.id, 3)]))
        except InvalidInput:
            # Plain SQL gave it an expression that cannot be read; its error says so once it was to fire.
            rows.append((schedule, []))
    if desk.out.json:
        desk.out.document([{**jsonable(schedule), "next_times": jsonable(times)} for schedule, times in rows])
        return
    desk.out.records(
        rows, _COLUMNS, empty="No schedules; add one with `blackboard schedule add NAME CRON TYPE`.", limit=limit
    )
    _overdue(desk, session, [schedule for schedule, _ in rows])


@command(app, "show", example="blackboard schedule show nightly")
def show(
    desk: Desk,
    *,
    name: Name,
    times: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="How many of its next times.")] = 3,
) -> None:
    """Show one schedule and its next times."""
    session = desk.session()
    schedules = session.schedules
    schedule = schedules.get(name)
    desk.out.record(schedule, more={"next_times": schedules.next_times(schedule.id, times)})
    _overdue(desk, session, [schedule])


def _overdue(desk: Desk, session: Session, schedules: Sequence[ScheduleRecord]) -> None:
    """Says that nobody looks after them: a time that passed a minute ago was missed by whoever should have fired it."""
    if session.record.status != "active":
        return  # nothing fires there
    now = datetime.now(UTC)
    due = [one.next_at for one in schedules if one.next_at is not None and not one.paused and one.removed_at is None]
    if due and now - min(due) > _PATIENCE:
        desk.out.note(f"What was due {ago(min(due), now)} has not fired: start a worker or `blackboard schedule run`.")


@command(app, "pause", example="blackboard schedule pause nightly")
def pause(desk: Desk, *, name: Name) -> None:
    """Fire no more until it is resumed."""
    desk.out.record(desk.session().schedules.pause(name))


@command(app, "resume", example="blackboard schedule resume nightly")
def resume(desk: Desk, *, name: Name) -> None:
    """Fire again from its next time on; what was planned during the pause is not made up for."""
    desk.out.record(desk.session().schedules.resume(name))


@command(app, "remove", example="blackboard schedule remove nightly")
def remove(desk: Desk, *, name: Name) -> None:
    """Fire no more; what it added stays."""
    desk.out.record(desk.session().schedules.remove(name))


@command(
    app,
    "run",
    example="""
    blackboard schedule run
    blackboard schedule run --session INC-1234 --once
    """,
)
def run(
    desk: Desk,
    *,
    session: Annotated[
        str | None,
        typer.Option(
            "--session",
            "-s",
            metavar="NAME_OR_ID",
            autocompletion=completion.sessions,
            help="Only this one; else that of BLACKBOARD_SESSION, else all.",
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Fire what is due now, and end.")] = False,
) -> None:
    """Look after the schedules, of one session or of all, until Ctrl-C; run it as often as you like."""
    named = session or desk.options.session or os.environ.get("BLACKBOARD_SESSION")
    sessions = None if named is None else [desk.session(named).id]
    if once:
        _told(desk, desk.board.schedules.fire_due(10_000, sessions=sessions))
        return
    asyncio.run(_run(desk, sessions))


async def _run(desk: Desk, sessions: Sequence[UUID] | None) -> None:
    from blackboard import Blackboard
    from blackboard.work.schedules import SchedulerLoop

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with Blackboard.open(desk.url, actor=desk.options.actor, pool_size=1) as board:
        desk.out.note("Looking after schedules; Ctrl-C ends it.")
        fired = SchedulerLoop(board.schedules, sessions=sessions, on_fired=lambda added: _told(desk, added))
        await fired.run(stop)


def _told(desk: Desk, fired: Sequence[Firing]) -> None:
    for one in fired:
        if desk.out.json:
            desk.out.line(jsonable(one))
        else:
            print(f"{plain(one.planned_at)}  {plain(one.name)}  task {one.task_id}", flush=True)
