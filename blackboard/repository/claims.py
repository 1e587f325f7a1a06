"""Tasks: claimed under a lease, held, and ended once."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from ..errors import InvalidInput, LeaseLost, SessionClosed
from ..ids import as_uuid, new_id
from ..jsonable import check_duration, check_names, dump_json, storable
from ..models.tasks import TaskRecord
from ..store.statements import Statement, statements
from .adding import TaskAdding

__all__ = ["TaskClaims", "error_facts", "text_of"]

_SQL = statements("tasks")
_ENGINE = statements("engine")


class TaskClaims(TaskAdding):
    """The part of ``tasks`` that is for whoever does them."""

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
            InvalidInput: the limit is out of range, a capability is refused, or this is no agent's handle.
            LeaseLost: in a caller's transaction, the lease of this process has lapsed.
            SessionClosed: the session is over.
            WaitNotAllowed: ``wait`` on a handle that is bound to a caller's connection.
        """
        if not 1 <= limit <= 10_000:
            raise InvalidInput("limit must be between 1 and 10000.", field="limit")
        chosen = self._scope.capabilities if capabilities is None else capabilities
        checked = check_names(chosen, "capabilities", 100)

        if wait is None:
            return await self._claim_once(limit, checked, claim_id or new_id())
        looked = ready = False
        due_in: float | None = None

        async def attempt() -> list[TaskRecord] | None:
            nonlocal ready, due_in
            # All who wait are woken by a task, and one will get it: from the second time on a look goes first.
            if looked:
                ready, due_in = await self._look(checked)
                if not ready:
                    return None
            return await self._claim_once(limit, checked, claim_id or new_id()) or None

        async def again_in() -> float | None:
            nonlocal looked, ready, due_in
            if not looked:
                ready, due_in = await self._look(checked)
                looked = True
            if ready:
                # Somebody else has it locked, who may yet give it back without a word.
                # What is due is among it.
                return min(due_in, 1.0) if due_in else 1.0
            return due_in

        nouns = ("tasks.ready", "sessions")
        return await self._until("claim", nouns, attempt, wait, again_in=again_in, rivals=True) or []

    async def _look(self, capabilities: Sequence[str]) -> tuple[bool, float | None]:
        """Whether a claim may find something, and in how many seconds time alone may change that."""
        row = await self._executor.fetch_one(
            _ENGINE["look_for_tasks"],
            session_ids=[self._scope.session_id],
            agent_id=self._agent_id,
            capabilities=capabilities,
        )
        if row is None:
            return True, None
        due_in = None if row["due_in"] is None else max(0.0, row["due_in"].total_seconds())
        # A claim in a session that is over says so.
        return row["ready"] or row["status"] not in {"active", "paused"} or due_in == 0.0, due_in

    async def claim_by_id(self, task_id: UUID | str, *, claim_id: UUID | None = None) -> TaskRecord | None:
        """This very task is running under this agent's lease; None if it is not ready, or assigned to somebody else.

        Raises:
            InvalidInput: it is no id, or this is no agent's handle.
            LeaseLost: in a caller's transaction, the lease of this process has lapsed.
            SessionClosed: the session is over.
        """
        claim_id = claim_id or new_id()
        found = await self._claimed(
            claim_id,
            _SQL["claim_task"],
            session_id=self._scope.session_id,
            id=as_uuid(task_id, "task_id"),
            agent_id=self._agent_id,
            claim_id=claim_id,
        )
        return found[0] if found else None

    async def _claim_once(self, limit: int, capabilities: Sequence[str], claim_id: UUID) -> list[TaskRecord]:
        return await self._claimed(
            claim_id,
            _SQL["claim_tasks"],
            session_id=self._scope.session_id,
            agent_id=self._agent_id,
            capabilities=list(capabilities),
            claim_id=claim_id,
            limit=limit,
        )

    async def _claimed(self, by: UUID, statement: Statement, **params: Any) -> list[TaskRecord]:
        """The tasks that the statement claims by that id; what it may have claimed when this raises goes back."""

        async def claim(lease_id: UUID) -> list[TaskRecord]:
            async with self._scope.leases.claiming(by, bound=self._executor.bound) as made:
                rows = await self._executor.fetch_all(statement, lease_id=lease_id, **params)
                tasks = [self._record(row) for row in rows]
                made.held = bool(tasks)
            return tasks

        tasks = await self._under_lease(claim)
        if tasks:
            self._hint("tasks.changed")
        return tasks

    async def complete(self, task: TaskRecord, result: Any = None) -> None:
        """The task is completed with ``result`` (JSON, up to 1 MiB), and what depended on it is ready, at once.

        Repeating the call changes nothing.

        Raises:
            InvalidInput: the result is refused, or the task was never claimed.
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
            InvalidInput: the limit, a capability or the result is refused, or the task was never claimed.
            LeaseLost: the task was taken from this holder; the result was kept aside, and nothing was claimed.
        """
        if not 1 <= limit <= 10_000:
            raise InvalidInput("limit must be between 1 and 10000.", field="limit")
        chosen = self._scope.capabilities if capabilities is None else capabilities
        checked = check_names(chosen, "capabilities", 100)
        claim_id = claim_id or new_id()
        try:
            return await self._claimed(
                claim_id,
                _ENGINE["complete_and_claim"],
                session_id=self._scope.session_id,
                id=task.id,
                claim_id=_claim_id(task),
                attempt=task.attempt,
                result=None if result is None else dump_json(result, "result"),
                agent_id=self._agent_id,
                capabilities=checked,
                next_claim_id=claim_id,
                limit=limit,
            )
        except LeaseLost:
            if self._executor.bound:
                raise
            # Nothing has happened, for the task is not ours: which is told again, the result then kept aside.
            await self.complete(task, result)
        try:
            return await self._claim_once(limit, checked, claim_id)
        except SessionClosed:
            return []

    async def complete_many(self, results: Sequence[tuple[TaskRecord, Any]]) -> list[UUID]:
        """All held tasks among them are completed; returns the ids of those that were refused, results kept aside.

        Raises:
            InvalidInput: a result is refused, or a task was never claimed; nothing was completed then.
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
        self._hint("tasks.changed")
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
            InvalidInput: the error or the delay is refused, or the task was never claimed.
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
            delay=None if delay is None else check_duration(delay, "delay"),
            agent_id=self._agent_id,
        )
        assert row is not None
        return TaskRecord.from_row(row)

    async def release(self, task: TaskRecord) -> TaskRecord:
        """The task is ready for others again, and this attempt does not count.

        Raises:
            InvalidInput: the task was never claimed.
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
            InvalidInput: the value is refused, or the task was never claimed.
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


def _claim_id(task: TaskRecord) -> UUID:
    if task.claim_id is None:
        raise InvalidInput("This task was never claimed: pass the record that `claim` returned.", field="task")
    return task.claim_id


def text_of(value: object) -> str:
    """``str(value)``, or who failed at that: a class of a caller's own may raise there."""
    try:
        return str(value)
    except Exception as error:
        return f"<{type(value).__name__}: {type(error).__name__} in its __str__>"


def _traceback(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # it looks at what the exception says of itself
        return ""


def error_facts(error: BaseException | str | dict[str, Any]) -> dict[str, Any]:
    """What a task's ``error`` says of a failure: ``code`` and ``message``, and an exception's ``traceback``."""
    if isinstance(error, BaseException):
        return {
            "code": type(error).__name__,
            # What was raised may hold text that no database stores; that must not keep the attempt from failing.
            "message": storable(text_of(error)[:10_000]),
            "traceback": storable(_traceback(error)[-50_000:]),
        }
    if isinstance(error, str):
        return {"code": "failed", "message": storable(error[:10_000])}
    return error
