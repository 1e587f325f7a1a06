"""Tasks: added, claimed under a lease, ended once."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from ..errors import InvalidInput, LeaseLost, NotFound, WaitTimeout
from ..ids import as_uuid, new_id
from ..jsonable import check_text, dump_json
from ..models.tasks import Dependency, LateResult, NewTask, TaskRecord, TaskStatus, Unique
from ..store.statements import statements
from .dead_letters import DeadLetters
from .gates import TaskGates

__all__ = ["Tasks", "error_facts", "task_options"]

_SQL = statements("tasks")
_ENGINE = statements("engine")


class Tasks(DeadLetters, TaskGates):
    """The work of one session."""

    async def add(
        self,
        type: str,  # noqa: A002 - the column's name, the same in every language
        parameters: Any = None,
        *,
        capability: str = "",
        priority: int = 5,
        assigned_to: str | None = None,
        depends_on: Iterable[UUID | Dependency] = (),
        run_at: datetime | None = None,
        timeout: timedelta | None = None,
        requires_approval: bool = False,
        max_attempts: int = 5,
        retry_delay: timedelta = timedelta(seconds=1),
        unique: Unique | None = None,
        limit_key: str | None = None,
        expires_at: datetime | None = None,
        fallback: timedelta | None = None,
        id: UUID | str | None = None,  # noqa: A002
    ) -> TaskRecord:
        """The task is on the board; once committed, whoever can do it may claim it.

        Args:
            type: what is to be done, such as ``investigate``; 1 to 50 characters.
            parameters: any JSON value up to 1 MiB, such as ``{"target": …, "context": …}``.
            capability: only agents that offer it may claim; empty means anyone.
            priority: 0 to 10, higher first.
            assigned_to: only this agent may claim it, for its first attempt.
            depends_on: tasks that must finish first; a plain id cancels this task when that one does not complete.
            run_at: not before this moment (aware datetime).
            timeout: the longest one attempt may run, up to 3650 days; then the attempt has failed.
            requires_approval: held until somebody approves it.
            max_attempts: attempts before it is dead, 1 to 1000.
            retry_delay: before the second attempt; doubles with each, with jitter, up to an hour (or this, if longer).
            unique: when there is such a task already, that one is returned and nothing is added; of two who add at
                once, one does.
            limit_key: tells it from others in limits that are per key, such as a customer; 1 to 200 characters.
            expires_at: not started by this moment (aware datetime), it is cancelled; checked about once a second.
            fallback: with ``assigned_to``: anybody may claim it when that agent has not in this time since it was
                ready, or when it has left or gone silent.
            id: the idempotency key; made here when not given.

        Raises:
            CyclicDependency: the dependencies form a cycle; carries the path.
            IdempotencyConflict: the id was used before with other content.
            InvalidInput: a value is refused; names the field.
            NotFound: no such session, or no such task to depend on.
            SessionClosed: the session is over.
        """
        task = NewTask.model_construct(
            type=type,
            parameters={} if parameters is None else parameters,
            id=None if id is None else as_uuid(id, "id"),
            capability=capability,
            priority=priority,
            assigned_to=assigned_to,
            depends_on=tuple(depends_on),
            run_at=run_at,
            timeout=timeout,
            requires_approval=requires_approval,
            max_attempts=max_attempts,
            retry_delay=retry_delay,
            unique=unique,
            limit_key=limit_key,
            expires_at=expires_at,
            fallback=fallback,
        )
        row = await self._executor.fetch_one(
            _SQL["add_task"],
            session_id=self._scope.session_id,
            id=task.id or new_id(),
            type=check_text(type, "type", 50, 1),
            capability=check_text(capability, "capability", 100),
            priority=_priority(priority),
            parameters=dump_json(task.parameters, "parameters"),
            options=task_options(task),
            actor=self._scope.actor,
        )
        assert row is not None
        self._hint("tasks")
        return TaskRecord.from_row(row)

    async def add_many(self, tasks: Iterable[NewTask]) -> list[UUID]:
        """All of the tasks are on the board, or none; their ids in the order given. They may depend on each other.

        For one that is not unique the id is that of the task which was there, or comes earlier in the batch; none may
        depend on it by the id it was given.

        Raises:
            CyclicDependency, IdempotencyConflict, InvalidInput, NotFound, SessionClosed: as ``add`` does.
        """
        batch = list(tasks)
        ids = [task.id or new_id() for task in batch]
        unique = any(task.unique is not None for task in batch)
        row = await self._executor.fetch_one(
            _SQL["add_unique_tasks" if unique else "add_tasks"],
            session_id=self._scope.session_id,
            ids=ids,
            types=[check_text(task.type, "type", 50, 1) for task in batch],
            capabilities=[check_text(task.capability, "capability", 100) for task in batch],
            priorities=[_priority(task.priority) for task in batch],
            parameters=[dump_json(task.parameters, "parameters") for task in batch],
            options=[task_options(task) for task in batch],
            actor=self._scope.actor,
        )
        self._hint("tasks")
        return row["ids"] if unique and row is not None else ids

    async def claim(
        self,
        limit: int = 1,
        *,
        capabilities: Sequence[str] | None = None,
        wait: timedelta | None = None,
        claim_id: UUID | None = None,
    ) -> list[TaskRecord]:
        """Up to ``limit`` tasks are running under this agent's lease: assigned ones first, then by priority and age.

        No two callers get the same task. The tasks stay with the caller while its process renews its lease; the
        records carry the fencing token that every later verb on them needs. An empty list means that there was
        nothing that could be claimed.

        Args:
            limit: 1 to 10 000.
            capabilities: which kinds to take; by default all that the agent offers. Tasks for anyone are included.
            wait: how long to wait for the first one; not at all by default.
            claim_id: the idempotency key: a call repeated with the same one returns the same tasks.

        Raises:
            InvalidInput: the limit is out of range, or this is no agent's handle.
            SessionClosed: the session is over.
            WaitNotAllowed: ``wait`` on a handle that is bound to a caller's connection.
        """
        if not 1 <= limit <= 10_000:
            raise InvalidInput("limit must be between 1 and 10000.", field="limit")
        chosen = self._scope.capabilities if capabilities is None else capabilities
        checked = [check_text(capability, "capabilities", 100) for capability in chosen]

        async def attempt() -> list[TaskRecord] | None:
            return await self._claim_once(limit, checked, claim_id or new_id()) or None

        if wait is None:
            return await attempt() or []
        return await self._until("claim", ("tasks", "sessions"), attempt, wait, again_in=self._due_in) or []

    async def _due_in(self) -> float | None:
        """In how many seconds the next scheduled task of the session gets ready."""
        row = await self._executor.fetch_one(_SQL["next_task_due"], session_id=self._scope.session_id)
        return None if row is None or row["seconds"] is None else max(0.0, row["seconds"])

    async def claim_by_id(self, task_id: UUID | str, *, claim_id: UUID | None = None) -> TaskRecord | None:
        """This very task is running under this agent's lease; None if it is not ready, or assigned to somebody else.

        Raises:
            SessionClosed: the session is over.
        """
        lease_id, claim_id = await self._scope.leases.current(), claim_id or new_id()
        self._scope.leases.begin_claim(claim_id)
        row = None
        try:
            row = await self._executor.fetch_one(
                _SQL["claim_task"],
                session_id=self._scope.session_id,
                id=as_uuid(task_id, "task_id"),
                agent_id=self._agent_id,
                lease_id=lease_id,
                claim_id=claim_id,
            )
        finally:
            self._scope.leases.end_claim(claim_id, held=row is not None)
        if row is None:
            return None
        self._hint("tasks")
        return TaskRecord.from_row(row)

    async def _claim_once(self, limit: int, capabilities: Sequence[str], claim_id: UUID) -> list[TaskRecord]:
        agent_id = self._agent_id
        lease_id = await self._scope.leases.current()
        try:
            rows = await self._claim_rows(agent_id, limit, capabilities, lease_id, claim_id)
        except LeaseLost:
            # Nothing was claimed: the process slept past its lease.
            if self._executor.bound:
                raise
            await self._scope.leases.forget(lease_id)
            lease_id = await self._scope.leases.current()
            rows = await self._claim_rows(agent_id, limit, capabilities, lease_id, claim_id)
        if rows:
            self._hint("tasks")
        return [TaskRecord.from_row(row) for row in rows]

    async def _claim_rows(
        self, agent_id: str, limit: int, capabilities: Sequence[str], lease_id: UUID, claim_id: UUID
    ) -> list[Any]:
        self._scope.leases.begin_claim(claim_id)
        rows: list[Any] = []
        try:
            rows = await self._executor.fetch_all(
                _SQL["claim_tasks"],
                session_id=self._scope.session_id,
                agent_id=agent_id,
                capabilities=list(capabilities),
                lease_id=lease_id,
                claim_id=claim_id,
                limit=limit,
            )
        finally:
            self._scope.leases.end_claim(claim_id, held=bool(rows))
        return rows

    async def complete(self, task: TaskRecord, result: Any = None) -> None:
        """The task is completed with ``result`` (JSON, up to 1 MiB), and what depended on it is ready, at once.

        Repeating the call changes nothing.

        Raises:
            InvalidInput: the result is refused.
            LeaseLost: the task was taken from this holder; the result was kept aside (``late_results``).
        """
        refused = await self.complete_many([(task, result)])
        if refused:
            raise LeaseLost(
                f"Task {task.id} is not yours any more: the result was kept aside and not applied. Drop this work.",
                noun="task",
                id=str(task.id),
            )

    async def complete_and_claim(
        self,
        task: TaskRecord,
        result: Any = None,
        *,
        limit: int = 1,
        capabilities: Sequence[str] | None = None,
        claim_id: UUID | None = None,
    ) -> list[TaskRecord]:
        """The task is completed and the next ones are running under this agent's lease, in one call and transaction.

        What the completion made ready can be among them. For agents that take one task at a time: it saves a round
        trip and a commit per task. An empty list means that there was nothing to claim, or that the session is paused
        or over.

        Args:
            task: as it was claimed.
            result: JSON, up to 1 MiB.
            limit: as in ``claim``.
            capabilities: as in ``claim``.
            claim_id: of the next claim: a call repeated with the same one returns the same tasks.

        Raises:
            InvalidInput: the limit or the result is refused.
            LeaseLost: the task was taken from this holder; the result was kept aside, and nothing was claimed.
        """
        if not 1 <= limit <= 10_000:
            raise InvalidInput("limit must be between 1 and 10000.", field="limit")
        chosen = self._scope.capabilities if capabilities is None else capabilities
        checked = [check_text(capability, "capabilities", 100) for capability in chosen]
        lease_id, claim_id = await self._scope.leases.current(), claim_id or new_id()
        self._scope.leases.begin_claim(claim_id)
        rows: list[Any] = []
        try:
            rows = await self._executor.fetch_all(
                _ENGINE["complete_and_claim"],
                session_id=self._scope.session_id,
                id=task.id,
                claim_id=_claim_id(task),
                attempt=task.attempt,
                result=None if result is None else dump_json(result, "result"),
                agent_id=self._agent_id,
                capabilities=checked,
                lease_id=lease_id,
                next_claim_id=claim_id,
                limit=limit,
            )
        except LeaseLost:
            if self._executor.bound:
                raise
            # Nothing has happened. Either the task is not ours, which is told again, the result then kept aside; or
            # the lease that the next ones should come under is gone.
            await self.complete(task, result)
            return await self._claim_once(limit, checked, claim_id)
        finally:
            self._scope.leases.end_claim(claim_id, held=bool(rows))
        self._hint("tasks")
        return [TaskRecord.from_row(row) for row in rows]

    async def complete_many(self, results: Sequence[tuple[TaskRecord, Any]]) -> list[UUID]:
        """All held tasks among them are completed; returns the ids of those that were refused, results kept aside.

        Raises:
            InvalidInput: a result is refused; nothing was completed then.
        """
        rows = await self._executor.fetch_all(
            _SQL["complete_tasks"],
            session_id=self._scope.session_id,
            ids=[task.id for task, _ in results],
            claim_ids=[_claim_id(task) for task, _ in results],
            attempts=[task.attempt for task, _ in results],
            results=[None if result is None else dump_json(result, "result") for _, result in results],
            agent_id=self._agent_id,
        )
        self._hint("tasks")
        return [row["id"] for row in rows]

    async def fail(
        self,
        task: TaskRecord,
        error: BaseException | str | dict[str, Any],
        *,
        retry: bool = True,
        delay: timedelta | None = None,
    ) -> TaskRecord:
        """This attempt has failed: the task comes back later, or is ``dead`` after its last attempt, or ``failed``.

        Args:
            task: as it was claimed.
            error: an exception (its traceback is kept), a message, or an object with at least ``message``.
            retry: False ends it as ``failed`` at once.
            delay: until the next attempt; by default exponential backoff with jitter.

        Raises:
            LeaseLost: the task was taken from this holder.
            NotFound: no such task.
        """
        row = await self._executor.fetch_one(
            _SQL["fail_task"],
            session_id=self._scope.session_id,
            id=task.id,
            claim_id=_claim_id(task),
            attempt=task.attempt,
            error=dump_json(error_facts(error), "error"),
            retry=retry,
            delay=delay,
            agent_id=self._agent_id,
        )
        assert row is not None
        return TaskRecord.from_row(row)

    async def release(self, task: TaskRecord) -> TaskRecord:
        """The task is ready for others again, and this attempt does not count.

        Raises:
            LeaseLost: the task was taken from this holder.
            NotFound: no such task.
        """
        row = await self._executor.fetch_one(
            _SQL["release_task"],
            session_id=self._scope.session_id,
            id=task.id,
            claim_id=_claim_id(task),
            attempt=task.attempt,
            agent_id=self._agent_id,
        )
        assert row is not None
        return TaskRecord.from_row(row)

    async def progress(self, task: TaskRecord, progress: Any) -> TaskRecord:
        """Everybody can see how far the task is; ``cancel_requested`` of what returns tells whether to stop.

        Raises:
            InvalidInput: the value is refused.
            LeaseLost: the task was taken from this holder.
            NotFound: no such task.
        """
        row = await self._executor.fetch_one(
            _SQL["progress_task"],
            session_id=self._scope.session_id,
            id=task.id,
            claim_id=_claim_id(task),
            attempt=task.attempt,
            progress=dump_json(progress, "progress"),
            agent_id=self._agent_id,
        )
        assert row is not None
        return TaskRecord.from_row(row)

    async def cancel(self, task_id: UUID | str, reason: str = "") -> TaskRecord:
        """The task is cancelled; a running one is asked to stop, which its holder sees with its next progress report.

        Raises:
            InvalidTransition: it has finished already.
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
        return await self._one("decide_task", task_id, approved=True, by=by or self._scope.actor, reason="")

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
        )

    async def redrive(self, task_id: UUID | str) -> TaskRecord:
        """The failed or dead task is ready again, with its attempts counted anew.

        Raises:
            InvalidTransition: it is neither failed nor dead.
            NotFound: no such task.
        """
        return await self._one("redrive_task", task_id, actor=self._scope.actor)

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
        limit: int = 100,
    ) -> list[TaskRecord]:
        """The tasks that match, oldest first.

        Raises:
            InvalidInput: no such status.
        """
        wanted = [status] if isinstance(status, str) else status
        rows = await self._executor.fetch_all(
            _SQL["list_tasks"],
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

    async def _one(self, statement: str, task_id: UUID | str, **params: Any) -> TaskRecord:
        row = await self._executor.fetch_one(
            _SQL[statement], session_id=self._scope.session_id, id=as_uuid(task_id, "task_id"), **params
        )
        if row is None:
            raise NotFound(f"There is no task {task_id} in this session.", noun="task", id=str(task_id))
        return TaskRecord.from_row(row)


def _claim_id(task: TaskRecord) -> UUID:
    if task.claim_id is None:
        raise InvalidInput("This task was never claimed: pass the record that `claim` returned.", field="task")
    return task.claim_id


def _priority(value: int) -> int:
    if not 0 <= value <= 10:
        raise InvalidInput(f"priority must be between 0 and 10, got {value}.", field="priority")
    return value


def _status(value: TaskStatus | str) -> str:
    try:
        return TaskStatus(value).value
    except ValueError:
        known = ", ".join(TaskStatus)
        raise InvalidInput(f"There is no task status {value!r}; use one of {known}.", field="status") from None


def task_options(task: NewTask) -> str | None:
    """What is rare about a task as one object; None for a plain task, which is the fast path."""
    options: dict[str, Any] = {}
    if task.assigned_to is not None:
        options["assigned_to"] = check_text(task.assigned_to, "assigned_to", 100, 1)
    if task.run_at is not None:
        if task.run_at.tzinfo is None:
            raise InvalidInput("run_at must be an aware datetime, such as datetime.now(UTC).", field="run_at")
        options["run_at"] = task.run_at.isoformat()
    if task.expires_at is not None:
        if task.expires_at.tzinfo is None:
            raise InvalidInput("expires_at must be an aware datetime, such as datetime.now(UTC).", field="expires_at")
        options["expires_at"] = task.expires_at.isoformat()
    if task.fallback is not None:
        if task.assigned_to is None:
            raise InvalidInput("fallback needs assigned_to: whom to wait for.", field="fallback")
        options["fallback"] = f"{task.fallback.total_seconds()} seconds"
    if task.limit_key is not None:
        options["limit_key"] = check_text(task.limit_key, "limit_key", 200, 1)
    if task.unique is not None:
        options["unique"] = _unique(task.unique)
    if task.timeout is not None:
        options["timeout"] = f"{task.timeout.total_seconds()} seconds"
    if task.requires_approval:
        options["requires_approval"] = True
    if task.max_attempts != 5:
        options["max_attempts"] = task.max_attempts
    if task.retry_delay != timedelta(seconds=1):
        options["retry_delay"] = f"{task.retry_delay.total_seconds()} seconds"
    edges = [Dependency(id=edge) if isinstance(edge, UUID) else edge for edge in task.depends_on]
    if edges:
        options["depends_on"] = [{"id": str(edge.id), "on_failure": edge.on_failure} for edge in edges]
    return dump_json(options, "options") if options else None


def _unique(unique: Unique) -> dict[str, Any]:
    window = unique.window
    return {
        "key": check_text(unique.key, "unique", 200, 1),
        "window": None if window is None else f"{window.total_seconds()} seconds",
        "states": [TaskStatus(state).value for state in unique.states],
    }


def error_facts(error: BaseException | str | dict[str, Any]) -> dict[str, Any]:
    """What a task's ``error`` says of a failure: ``code`` and ``message``, and an exception's ``traceback``."""
    if isinstance(error, BaseException):
        return {
            "code": type(error).__name__,
            "message": str(error)[:10_000],
            "traceback": "".join(traceback.format_exception(error))[-50_000:],
        }
    if isinstance(error, str):
        return {"code": "failed", "message": error[:10_000]}
    return error
