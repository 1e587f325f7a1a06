"""Tasks: the work of a session."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

from ..errors import InvalidInput, NotFound, TaskNotCompleted, WaitTimeout
from ..ids import as_uuid
from ..jsonable import check_text
from ..models.tasks import Dependency, LateResult, TaskRecord, TaskStatus
from ..store.statements import statements
from .claims import TaskClaims
from .dead_letters import DeadLetters
from .gates import TaskGates
from .ids import PartialIds

__all__ = ["Tasks"]

_SQL = statements("tasks")


class Tasks(TaskClaims, DeadLetters, TaskGates, PartialIds):
    """The work of one session."""

    noun = "task"

    async def cancel(self, task_id: UUID | str, reason: str = "") -> TaskRecord:
        """The task is cancelled; a running one is asked to stop, which its holder sees with its next progress report.

        Raises:
            InvalidTransition: it has finished already; a dead one is given up with ``discard``.
            NotFound: no such task.
        """
        return await self._one(
            "cancel_task", task_id, reason=check_text(reason, "reason", 4000), actor=self._scope.actor
        )

    async def approve(self, task_id: UUID | str, *, by: str | None = None) -> TaskRecord:
        """The task that required approval is ready, unless something else holds it.

        Raises:
            InvalidTransition: it waits for no approval.
            NotFound: no such task.
        """
        return await self._one("decide_task", task_id, approved=True, by=by or self._scope.actor, reason="", key=None)

    async def reject(self, task_id: UUID | str, *, by: str | None = None, reason: str = "") -> TaskRecord:
        """The task that required approval is cancelled.

        Raises:
            InvalidTransition: it waits for no approval.
            NotFound: no such task.
        """
        return await self._one(
            "decide_task",
            task_id,
            approved=False,
            by=by or self._scope.actor,
            reason=check_text(reason, "reason", 4000),
            key=self._call_key(),
        )

    async def redrive(self, task_id: UUID | str) -> TaskRecord:
        """The failed or dead task is ready again, with its attempts counted anew.

        What was cancelled or skipped because it failed stays so: tasks that depended on it, and the later stages of its
        flow. A flow that has ended as ``failed`` stays that, whatever becomes of the task.

        Raises:
            InvalidTransition: it is neither failed nor dead.
            NotFound: no such task.
        """
        return await self._one("redrive_task", task_id, actor=self._scope.actor, key=self._call_key())

    async def get(self, task_id: UUID | str) -> TaskRecord:
        """One task.

        Raises:
            NotFound: no such task in this session.
        """
        return await self._one("get_task", task_id)

    async def get_many(self, task_ids: Iterable[UUID]) -> dict[UUID, TaskRecord]:
        """Those of the tasks that exist, by id."""
        rows = await self._executor.fetch_all(_SQL["get_tasks"], session_id=self._scope.session_id, ids=list(task_ids))
        return {row["id"]: TaskRecord.from_row(row) for row in rows}

    async def list(
        self,
        *,
        status: TaskStatus | str | Sequence[TaskStatus | str] | None = None,
        type: str | None = None,  # noqa: A002
        capability: str | None = None,
        assigned_to: str | None = None,
        newest: bool = False,
        limit: int = 100,
    ) -> list[TaskRecord]:
        """The tasks that match, oldest first; more exactly in order of id, which only a caller's own ids may leave.

        Args:
            status: one or several; by default any.
            type: only those.
            capability: only those that need it.
            assigned_to: only those that are with this agent, as ``TaskRecord.assignee`` says.
            newest: the newest first.
            limit: at most so many.

        Raises:
            InvalidInput: no such status, or the limit is negative.
        """
        wanted = [status] if isinstance(status, str) else status
        rows = await self._executor.fetch_all(
            _SQL["list_newest_tasks" if newest else "list_tasks"],
            session_id=self._scope.session_id,
            statuses=None if wanted is None else [_status(one) for one in wanted],
            type=type,
            capability=capability,
            assigned_to=assigned_to,
            limit=limit,
        )
        return [TaskRecord.from_row(row) for row in rows]

    async def count(self) -> dict[TaskStatus, int]:
        """How many tasks there are in each status that occurs."""
        rows = await self._executor.fetch_all(_SQL["count_tasks"], session_id=self._scope.session_id)
        return {TaskStatus(row["status"]): row["count"] for row in rows}

    async def dependencies(self, task_id: UUID | str) -> list[Dependency]:
        """What the task depends on."""
        rows = await self._executor.fetch_all(
            _SQL["list_dependencies"], session_id=self._scope.session_id, id=as_uuid(task_id, "task_id")
        )
        return [Dependency.from_row(row) for row in rows]

    async def late_results(self, task_id: UUID | str) -> list[LateResult]:
        """What late owners handed in for the task, oldest first."""
        rows = await self._executor.fetch_all(
            _SQL["list_late_results"], session_id=self._scope.session_id, id=as_uuid(task_id, "task_id")
        )
        return [LateResult.from_row(row) for row in rows]

    async def wait(self, task_id: UUID | str, timeout: timedelta | None = None) -> TaskRecord:
        """The task has finished: it is completed, failed, cancelled or dead, as its record tells.

        Raises:
            NotFound: no such task.
            WaitNotAllowed: this handle is bound to a caller's connection.
            WaitTimeout: it has not finished in time.
        """

        async def check() -> TaskRecord | None:
            task = await self.get(task_id)
            return task if task.finished else None

        task = await self._until("wait", ("tasks",), check, timeout)
        if task is None:
            raise WaitTimeout(f"Task {task_id} has not finished in time; wait again or cancel it.", id=str(task_id))
        return task

    async def result(self, task_id: UUID | str, timeout: timedelta | None = None) -> Any:
        """What the task's holder handed in; the task is completed.

        Raises:
            NotFound: no such task.
            TaskNotCompleted: it ended failed, dead or cancelled; names ``status``, ``error_code`` and
                ``error_message``.
            WaitNotAllowed: this handle is bound to a caller's connection.
            WaitTimeout: it has not finished in time.
        """
        task = await self.wait(task_id, timeout)
        if task.status is TaskStatus.COMPLETED:
            return task.result
        raise _not_completed(task)

    async def _one(self, statement: str, task_id: UUID | str, **params: Any) -> TaskRecord:
        row = await self._executor.fetch_one(
            _SQL[statement], session_id=self._scope.session_id, id=as_uuid(task_id, "task_id"), **params
        )
        if row is None:
            raise NotFound(f"There is no task {task_id} in this session.", noun="task", id=str(task_id))
        return TaskRecord.from_row(row)


def _not_completed(task: TaskRecord) -> TaskNotCompleted:
    # Whoever writes rows by hand may leave any JSON there.
    given: Any = task.error
    error = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    code, message = error.get("code"), error.get("message")
    why = f" ({': '.join(str(part) for part in (code, message) if part)})" if code or message else ""
    again = "" if task.status is TaskStatus.CANCELLED else f"; start it over with `blackboard task redrive {task.id}`"
    return TaskNotCompleted(
        f"Task {task.id} is {task.status.value} and has no result{why}{again}.",
        id=str(task.id),
        status=task.status.value,
        error_code=code,
        error_message=message,
    )


def _status(value: TaskStatus | str) -> str:
    try:
        return TaskStatus(value).value
    except ValueError:
        known = ", ".join(TaskStatus)
        raise InvalidInput(f"There is no task status {value!r}; use one of {known}.", field="status") from None
