"""``blackboard why``."""

from __future__ import annotations

from .commands import command, single
from .desk import Desk
from .output import Column
from .tasks import TaskId, find_task

__all__ = ["app"]

app = single()

_COLUMNS = [
    Column("reason", lambda r: r.code, "status"),
    Column("what would end it", lambda r: r.message, grow=True),
]


@command(app, "why", example="blackboard why 5e1c9a07")
def why(desk: Desk, *, task_id: TaskId) -> None:
    """Say what a task waits for and what would end that; or who runs it; or how it ended."""
    session = desk.session()
    found = find_task(desk, session, task_id)
    answer = session.tasks.why(found)
    if desk.out.json:
        desk.out.record(answer)
        return
    desk.out.note(f"Task {found} is {answer.status}.")
    for reason in answer.reasons:
        desk.out.note(f"  {reason.code}: {reason.message}")
