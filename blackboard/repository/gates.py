"""What holds tasks back, why one waits, and what becomes of old ones."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from uuid import UUID

from ..errors import InvalidInput
from ..ids import as_uuid, new_id
from ..jsonable import check_duration, check_text
from ..models.gates import Pause, Pruned, Why
from ..models.tasks import FINAL, TaskStatus
from ..store.statements import statements
from .events import Events
from .scope import Repository

__all__ = ["TaskGates"]

_SQL = statements("gates")
_BATCH = 5000
_LONGEST = timedelta(days=36_500)


class TaskGates(Repository):
    """The part of ``tasks`` that is about many tasks at once, and about why one waits."""

    async def pause(
        self,
        *,
        type: str | None = None,  # noqa: A002 - the column's name, the same in every language
        capability: str | None = None,
        reason: str = "",
    ) -> Pause:
        """Tasks of the type, or that need the capability, are not handed out until ``resume``; what runs goes on.

        A whole session is paused with ``session.pause()``.

        Args:
            type: this or ``capability``.
            capability: this or ``type``.
            reason: up to 4000 characters; ``why`` shows it.

        Raises:
            InvalidInput: both or neither were given, or a value is refused.
            SessionClosed: the session is over.
        """
        kind, name = _one_of(type, capability)
        row = await self._executor.fetch_one(
            _SQL["pause_tasks"],
            session_id=self._scope.session_id,
            id=new_id(),
            kind=kind,
            name=name,
            reason=check_text(reason, "reason", 4000),
            actor=self._scope.actor,
        )
        assert row is not None
        while kind == "type":
            # Out of the way of those who look for work; what is left they move themselves.
            moved = await self._executor.fetch_one(
                _SQL["hold_paused"], session_id=self._scope.session_id, type=name, batch=_BATCH
            )
            if moved is None or not moved["moved"]:
                break
        return Pause.from_row(row)

    async def resume(
        self,
        *,
        type: str | None = None,  # noqa: A002
        capability: str | None = None,
    ) -> int:
        """Tasks of the type, or that need the capability, are handed out again; returns how many had been held.

        Nothing happens if they were not paused.

        Raises:
            InvalidInput: both or neither were given.
            SessionClosed: the session is over.
        """
        kind, name = _one_of(type, capability)
        row = await self._executor.fetch_one(
            _SQL["resume_tasks"], session_id=self._scope.session_id, kind=kind, name=name, actor=self._scope.actor
        )
        total = 0
        while row is not None and row["id"] is not None:
            moved = await self._executor.fetch_one(
                _SQL["retire_pause"], session_id=self._scope.session_id, id=row["id"], batch=_BATCH
            )
            if moved is None or not moved["moved"]:
                break
            total += moved["moved"]
        self._hint("tasks.ready")
        return total

    async def pauses(self) -> list[Pause]:
        """What is paused, types after capabilities, by name."""
        rows = await self._executor.fetch_all(_SQL["list_pauses"], session_id=self._scope.session_id)
        return [Pause.from_row(row) for row in rows]

    async def why(self, task_id: UUID | str) -> Why:
        """Everything that the task waits for, and what would end that; or who runs it; or how it ended.

        Raises:
            NotFound: no such task.
        """
        row = await self._executor.fetch_one(
            _SQL["why_task"], session_id=self._scope.session_id, id=as_uuid(task_id, "task_id")
        )
        assert row is not None
        return Why.from_row(row)

    async def prune(
        self,
        *,
        older_than: timedelta | None = None,
        status: Iterable[TaskStatus | str] | None = None,
        events: bool = False,
        dry_run: bool = False,
    ) -> Pruned:
        """Finished tasks that ended long ago are gone, with their late results and edges, a batch a transaction.

        A task stays while one that depends on it has not finished, or its flow has not; and while one of its flow that
        failed stays, which could be redriven and read its result. A flow that ended as long ago goes when none of its
        tasks is left. Each leaves an event, ``task.pruned`` or ``flow.pruned``.

        Args:
            older_than: how long ago they must have ended; by default the session's ``retention``.
            status: final statuses, of tasks and of flows; by default all of them.
            events: also the session's events before that moment, of whatever noun; cursors from before expire.
            dry_run: only counts.

        Raises:
            InvalidInput: no age was given and the session has no retention, or a status is not final.
            NotPermitted: only the owner of the schema may.
        """
        statuses = [_final(one) for one in (FINAL if status is None else status)]
        row = await self._executor.fetch_one(_SQL["retention"], session_id=self._scope.session_id)
        assert row is not None
        age: timedelta | None = row["retention"] if older_than is None else older_than
        if age is None or not timedelta() <= check_duration(age, "older_than") <= _LONGEST:
            raise InvalidInput(
                "Say how old what goes must be: give older_than (0 to 100 years), or set the session's retention.",
                field="older_than",
            )
        before: datetime = row["now"] - age
        tasks = await self._pruned("prune_tasks", before, statuses, dry_run)
        flows = await self._pruned("prune_flows", before, statuses, dry_run)
        gone: int | None = None
        if events and dry_run:
            counted = await self._executor.fetch_one(
                _SQL["count_prunable_events"], session_id=self._scope.session_id, before=before
            )
            assert counted is not None
            gone = counted["events"]
        elif events:
            gone = await Events(self._scope).prune(before)
        return Pruned(tasks=tasks, flows=flows, events=gone, before=before, dry_run=dry_run)

    async def _pruned(self, statement: str, before: datetime, statuses: list[str], dry_run: bool) -> int:
        total = 0
        after: UUID | None = None
        while True:
            batch = await self._executor.fetch_one(
                _SQL[statement],
                session_id=self._scope.session_id,
                before=before,
                statuses=statuses,
                after=after,
                scan=_BATCH,
                dry_run=dry_run,
                actor=self._scope.actor,
            )
            assert batch is not None
            total += batch["pruned"]
            after = batch["next"]
            if after is None:
                return total


def _one_of(type_: str | None, capability: str | None) -> tuple[str, str]:
    if (type_ is None) == (capability is None):
        raise InvalidInput("Say either which type or which capability.", field="type")
    if type_ is not None:
        return "type", check_text(type_, "type", 50, 1)
    assert capability is not None
    return "capability", check_text(capability, "capability", 100, 1)


def _final(value: TaskStatus | str) -> str:
    try:
        status = TaskStatus(value)
    except ValueError:
        status = None
    if status is None or status not in FINAL:
        known = ", ".join(sorted(FINAL))
        raise InvalidInput(f"Only finished tasks can be pruned; use some of {known}.", field="status")
    return status.value
