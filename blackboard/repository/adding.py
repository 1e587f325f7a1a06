"""Tasks: how they come to the board."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from ..errors import InvalidInput
from ..ids import as_uuid, new_id
from ..jsonable import check_duration, check_text, dump_json, load_json
from ..models.tasks import Dependency, NewTask, TaskRecord, TaskStatus, Unique
from ..store.executor import Row
from ..store.statements import statements
from .scope import Repository

__all__ = ["TaskAdding", "check_priority", "packed_options", "task_options"]

_SQL = statements("tasks")

_USUAL_DELAY = timedelta(seconds=1)
# What a task may say of itself without needing options.
_PLAIN = frozenset({"type", "parameters", "id", "capability", "priority"})


class TaskAdding(Repository):
    """The part of ``tasks`` that adds."""

    async def add(
        self,
        type: str,  # noqa: A002 - the column's name, the same in every language
        parameters: Any = None,
        *,
        capability: str = "",
        priority: int = 5,
        assigned_to: str | None = None,
        depends_on: Iterable[UUID | str | TaskRecord | Dependency] = (),
        run_at: datetime | None = None,
        timeout: timedelta | None = None,
        requires_approval: bool = False,
        max_attempts: int = 5,
        retry_delay: timedelta = _USUAL_DELAY,
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
            depends_on: tasks that must finish first, their ids or records; such a plain edge cancels this task when
                that one does not complete.
            run_at: not before this moment (aware datetime).
            timeout: the longest one attempt may run, up to 3650 days; then the attempt has failed.
            requires_approval: held until somebody approves it.
            max_attempts: attempts before it is dead, 1 to 1000. Where a worker's handler has a ``RetryPolicy``, that
                one counts for a task with the usual two numbers, written out or not.
            retry_delay: before the second attempt; doubles with each, with jitter, up to an hour (or this, if longer).
            unique: when there is such a task already, that one is returned and nothing is added; of two who add at
                once, one does.
            limit_key: tells it from others in limits that are per key, such as a customer; 1 to 200 characters.
            expires_at: not started by this moment (aware datetime, later than ``run_at``), it is cancelled, as is one
                that is added after it; checked about once a second where a worker looks for tasks, and with every
                heartbeat elsewhere.
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
        options = packed_options(
            assigned_to=assigned_to,
            depends_on=depends_on,
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
        task_id = new_id() if id is None else as_uuid(id, "id")
        values: dict[str, Any] = {
            "session_id": self._scope.session_id,
            "id": task_id,
            "type": check_text(type, "type", 50, 1),
            "capability": check_text(capability, "capability", 100),
            "priority": check_priority(priority),
        }
        text = "{}" if parameters is None else dump_json(parameters, "parameters")
        if options is None:
            # Most tasks: what the row says is known here, but for when and by whom.
            told = self._hints_within()
            made = await self._executor.fetch_one(
                _SQL["add_plain_task"], **values, parameters=text, actor=self._scope.actor, hint=told
            )
            if made is not None and made["created_at"] is not None:
                self._hint("tasks.ready", told=told)
                return TaskRecord.plain(**values, parameters=load_json(text), **made)
        row = await self._executor.fetch_one(
            _SQL["add_task"], **values, parameters=text, options=options, actor=self._scope.actor
        )
        assert row is not None
        self._hint("tasks.ready")
        return self._record(row)

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
        kinds = {(task.type, task.capability, task.priority) for task in batch}
        for type_, capability, priority in kinds:
            check_text(type_, "type", 50, 1)
            check_text(capability, "capability", 100)
            check_priority(priority)
        parameters = [dump_json(task.parameters, "parameters") for task in batch]
        options = [task_options(task) for task in batch]
        if len(kinds) == 1 and not any(options):
            [(type_, capability, priority)] = kinds
            row = await self._executor.fetch_one(
                _SQL["add_like_tasks"],
                session_id=self._scope.session_id,
                ids=ids,
                type=type_,
                capability=capability,
                priority=priority,
                parameters="\n".join(parameters),
                actor=self._scope.actor,
            )
        else:
            row = await self._executor.fetch_one(
                _SQL["add_unique_tasks" if unique else "add_tasks"],
                session_id=self._scope.session_id,
                ids=ids,
                types=[task.type for task in batch],
                capabilities=[task.capability for task in batch],
                priorities=[task.priority for task in batch],
                parameters=parameters,
                options=options,
                actor=self._scope.actor,
            )
        self._hint("tasks.ready")
        return row["ids"] if unique and row is not None else ids

    def _record(self, row: Row) -> TaskRecord:
        return TaskRecord.from_row(row) if self._executor.bound else TaskRecord.from_own_row(row)


def check_priority(value: int) -> int:
    """``value`` itself, known to be a whole number between 0 and 10.

    Raises:
        InvalidInput: it is none.
    """
    if type(value) is not int or not 0 <= value <= 10:
        raise InvalidInput(f"priority must be a whole number between 0 and 10, got {value!r:.40}.", field="priority")
    return value


def task_options(task: NewTask) -> str | None:
    """What is rare about a task as one object; None for a plain task, which is the fast path."""
    if task.model_fields_set <= _PLAIN:
        return None
    return packed_options(
        assigned_to=task.assigned_to,
        depends_on=task.depends_on,
        run_at=task.run_at,
        timeout=task.timeout,
        requires_approval=task.requires_approval,
        max_attempts=task.max_attempts,
        retry_delay=task.retry_delay,
        unique=task.unique,
        limit_key=task.limit_key,
        expires_at=task.expires_at,
        fallback=task.fallback,
    )


def packed_options(
    *,
    assigned_to: str | None = None,
    depends_on: Iterable[UUID | str | TaskRecord | Dependency] = (),
    run_at: datetime | None = None,
    timeout: timedelta | None = None,
    requires_approval: bool = False,
    max_attempts: int = 5,
    retry_delay: timedelta = _USUAL_DELAY,
    unique: Unique | None = None,
    limit_key: str | None = None,
    expires_at: datetime | None = None,
    fallback: timedelta | None = None,
) -> str | None:
    """What is not as usual among these, as JSON text; None if all of it is.

    Raises:
        InvalidInput: a value is refused; names the field.
    """
    options: dict[str, Any] = {}
    if assigned_to is not None:
        options["assigned_to"] = check_text(assigned_to, "assigned_to", 100, 1)
    if run_at is not None:
        if run_at.tzinfo is None:
            raise InvalidInput("run_at must be an aware datetime, such as datetime.now(UTC).", field="run_at")
        options["run_at"] = run_at.isoformat()
    if expires_at is not None:
        if expires_at.tzinfo is None:
            raise InvalidInput("expires_at must be an aware datetime, such as datetime.now(UTC).", field="expires_at")
        options["expires_at"] = expires_at.isoformat()
        # Both are the caller's; whether either has passed, only the server's clock can say.
        if run_at is not None and expires_at <= run_at:
            raise InvalidInput(
                f"expires_at must be later than run_at, or the task can never start; got {expires_at.isoformat()}, and "
                f"{run_at.isoformat()} for run_at.",
                field="expires_at",
            )
    if fallback is not None:
        if assigned_to is None:
            raise InvalidInput("fallback needs assigned_to: whom to wait for.", field="fallback")
        options["fallback"] = _seconds(fallback, "fallback")
    if limit_key is not None:
        options["limit_key"] = check_text(limit_key, "limit_key", 200, 1)
    if unique is not None:
        options["unique"] = _unique(unique)
    if timeout is not None:
        options["timeout"] = _seconds(timeout, "timeout")
    if requires_approval:
        options["requires_approval"] = True
    if max_attempts != 5:
        options["max_attempts"] = max_attempts
    if retry_delay != _USUAL_DELAY:
        options["retry_delay"] = _seconds(retry_delay, "retry_delay")
    if depends_on != () and (edges := _edges(depends_on)):
        options["depends_on"] = [{"id": str(edge.id), "on_failure": edge.on_failure} for edge in edges]
    return dump_json(options, "options") if options else None


def _edges(depends_on: Iterable[UUID | str | TaskRecord | Dependency]) -> list[Dependency]:
    if isinstance(depends_on, (str, UUID, TaskRecord, Dependency)):
        raise InvalidInput("depends_on is a list: write [task.id].", field="depends_on")
    return [
        edge
        if isinstance(edge, Dependency)
        else Dependency(id=edge.id if isinstance(edge, TaskRecord) else as_uuid(edge, "depends_on"))
        for edge in depends_on
    ]


def _seconds(value: timedelta, field: str) -> str:
    seconds = check_duration(value, field).total_seconds()
    if 0 < abs(seconds) < 0.001:
        # As a float it would have an exponent, which an interval cannot.
        return f"{value // timedelta(microseconds=1)} microseconds"
    return f"{seconds} seconds"


def _unique(unique: Unique) -> dict[str, Any]:
    window = unique.window
    if not unique.states or (window is not None and window <= timedelta()):
        raise InvalidInput("unique needs a state to look for, and a window, if any, longer than 0.", field="unique")
    return {
        "key": check_text(unique.key, "unique", 200, 1),
        "window": None if window is None else _seconds(window, "unique"),
        "states": [TaskStatus(state).value for state in unique.states],
    }
