"""What became of attempts: their log, and the tasks that died of them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from ..errors import InvalidInput, NotFound
from ..ids import as_uuid, new_id
from ..jsonable import check_duration, check_text, load_json
from ..models.attempts import Attempt, attempts_of
from ..models.tasks import TaskRecord
from ..store.statements import statements
from .ids import PartialIds

__all__ = ["DeadLetters"]

_SQL = statements("engine")
_LONGEST = timedelta(days=36_500)


class DeadLetters(PartialIds):
    """The part of ``tasks`` that looks after what went wrong."""

    async def attempts(self, task_id: UUID | str) -> list[Attempt]:
        """Every attempt at the task, oldest first: who, when, how it ended, with error and traceback.

        It is read from the events, so it reaches as far back as they are kept.

        Raises:
            NotFound: no such task in this session.
        """
        wanted = as_uuid(task_id, "task_id")
        rows = await self._executor.fetch_all(_SQL["list_attempt_events"], session_id=self._scope.session_id, id=wanted)
        if rows and rows[0]["type"] is None:
            rows = []
        elif not rows:
            raise NotFound(f"There is no task {task_id} in this session.", noun="task", id=str(task_id))
        return attempts_of((row["type"], row["at"], row["actor"], load_json(row["data"])) for row in rows)

    async def dead_ids_like(self, part: str) -> list[UUID]:
        """As ``ids_like``, of dead tasks only.

        Raises:
            InvalidInput: it is no part of an id.
        """
        return await self._ids_like("dead_letter", part)

    async def dead_letters(
        self,
        *,
        type: str | None = None,  # noqa: A002 - the column's name, the same in every language
        error_code: str | None = None,
        limit: int = 100,
    ) -> list[TaskRecord]:
        """The dead tasks, the latest death first; ``error`` says what each died of.

        Args:
            type: only those.
            error_code: only those whose last error has this ``code``, such as ``timeout`` or ``ValueError``.
            limit: at most so many.

        Raises:
            InvalidInput: the limit is negative or no number.
        """
        rows = await self._executor.fetch_all(
            _SQL["list_dead_tasks"],
            session_id=self._scope.session_id,
            type=type,
            error_code=error_code,
            limit=limit,
        )
        return [TaskRecord.from_row(row) for row in rows]

    async def redrive_many(
        self,
        *,
        type: str | None = None,  # noqa: A002
        error_code: str | None = None,
        older_than: timedelta | None = None,
        limit: int = 1000,
        dry_run: bool = False,
    ) -> list[UUID]:
        """Dead tasks that match are ready again, attempts counted anew; their ids, the longest dead first.

        Args:
            type: only those.
            error_code: only those whose last error has this ``code``.
            older_than: only those that died so long ago.
            limit: at most so many, 1 to 10 000.
            dry_run: change nothing, only tell which.

        Raises:
            InvalidInput: the limit or the age is out of range.
            SessionClosed: the session is over.
        """
        if not 1 <= limit <= 10_000:
            raise InvalidInput("limit must be between 1 and 10000.", field="limit")
        if older_than is not None and not timedelta() <= check_duration(older_than, "older_than") <= _LONGEST:
            raise InvalidInput("older_than must be between 0 and 100 years.", field="older_than")
        rows = await self._executor.fetch_all(
            _SQL["redrive_tasks"],
            session_id=self._scope.session_id,
            type=type,
            error_code=error_code,
            older_than=older_than,
            limit=limit,
            dry_run=dry_run,
            actor=self._scope.actor,
            key=self._call_key(),
        )
        if rows and not dry_run:
            self._hint("tasks.ready")
        return [row["id"] for row in rows]

    async def discard(self, task_id: UUID | str, reason: str = "") -> TaskRecord:
        """The dead task is cancelled for good; what it died of stays in its error, as ``last``.

        Raises:
            InvalidTransition: it is not dead.
            NotFound: no such task.
            SessionClosed: the session is over.
        """
        row: Any = await self._executor.fetch_one(
            _SQL["discard_task"],
            session_id=self._scope.session_id,
            id=as_uuid(task_id, "task_id"),
            reason=check_text(reason, "reason", 4000),
            actor=self._scope.actor,
        )
        return TaskRecord.from_row(row)

    def _call_key(self) -> str | None:
        """What tells a call that the pool repeats, because its answer was lost, from another one."""
        return None if self._executor.bound else str(new_id())
