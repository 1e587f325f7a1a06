"""``blackboard why``."""

from __future__ import annotations

from .commands import command, single
from .desk import Desk
from .given import TaskId
from .output import clean
from .tasks import find_task

__all__ = ["app"]

app = single()


@command(app, "why", example="blackboard why 5e1c9a07")
def why(desk: Desk, *, task_id: TaskId) -> None:
    """Say what a task waits for and what would end that; or who runs it; or how it ended."""
    session = desk.session()
    found = find_task(desk, session, task_id)
    answer = session.tasks.why(found)
    if desk.out.json:
        desk.out.record(answer)
        return
    print(f"Task {found} is {answer.status}.")
    for reason in answer.reasons:
        print(f"{reason.code}: {clean(reason.message)}")
