"""Schedules: added, paused, removed; and the firing of those that are due, by any process."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from itertools import islice
from typing import Any
from uuid import UUID, uuid5

from ..cron import Cron
from ..errors import InvalidInput, NotFound
from ..ids import as_uuid, new_id
from ..jsonable import check_text, dump_json
from ..models.schedules import Firing, Missed, ScheduleRecord
from ..store.executor import Executor, Row
from ..store.listener import Listener
from ..store.statements import statements
from ..store.subscription import Subscription
from .adding import check_priority, packed_options
from .scope import Repository

__all__ = ["Scheduler", "Schedules"]

_SQL = statements("schedules")

_BATCH = 10
"""Schedules that one transaction fires: what is locked together waits for each other."""


class Schedules(Repository):
    """The schedules of one session.

    They fire while some process looks after them: ``blackboard schedule run``, a worker, or anybody who calls
    ``board.schedules.fire_due()``. However many do, each planned time gets one task.
    """

    async def add(
        self,
        name: str,
        cron: str,
        type: str,  # noqa: A002 - the column's name, the same in every language
        parameters: Any = None,
        *,
        timezone: str = "UTC",
        missed: Missed | str = Missed.ONCE,
        capability: str = "",
        priority: int = 5,
        assigned_to: str | None = None,
        timeout: timedelta | None = None,
        requires_approval: bool = False,
        max_attempts: int = 5,
        retry_delay: timedelta = timedelta(seconds=1),
        limit_key: str | None = None,
        fallback: timedelta | None = None,
        id: UUID | str | None = None,  # noqa: A002
    ) -> ScheduleRecord:
        """From now on a task is added at every time that the cron expression names.

        Where clocks are changed, a fixed time that does not exist fires at the next moment that does, and one that
        occurs twice fires once; ``blackboard.cron`` has the rules. Tasks are added while the session is active; what
        a pause of the session missed is treated as ``missed`` says.

        Args:
            name: 1 to 200 characters; only one schedule of the session may have it.
            cron: minute, hour, day of month, month, day of week, or ``@daily`` and the like; no seconds.
            type: of the task, such as ``report``; 1 to 50 characters.
            parameters: of the task.
            timezone: in which ``cron`` is read, such as ``Europe/Berlin``.
            missed: what becomes of times at which nobody looked after it: skip, once or all.
            capability, priority, assigned_to, timeout, requires_approval, max_attempts, retry_delay: of the task, as
                ``tasks.add`` takes them.
            limit_key, fallback: likewise.
            id: the idempotency key; made here when not given.

        Raises:
            AlreadyExists: there is a schedule of that name.
            IdempotencyConflict: the id was used before with other content.
            InvalidInput: a value is refused; names the field, such as ``cron`` or ``timezone``.
            NotFound: no such session.
            SessionClosed: the session is over.
        """
        options = packed_options(
            assigned_to=assigned_to,
            timeout=timeout,
            requires_approval=requires_approval,
            max_attempts=max_attempts,
            retry_delay=retry_delay,
            limit_key=limit_key,
            fallback=fallback,
        )
        expression = Cron(check_text(cron, "cron", 200, 1), check_text(timezone, "timezone", 100, 1))
        row = await self._executor.fetch_one(
            _SQL["add_schedule"],
            session_id=self._scope.session_id,
            id=new_id() if id is None else as_uuid(id, "id"),
            name=check_text(name, "name", 200, 1),
            cron=cron,
            timezone=timezone,
            type=check_text(type, "type", 50, 1),
            capability=check_text(capability, "capability", 100),
            priority=check_priority(priority),
            parameters=dump_json({} if parameters is None else parameters, "parameters"),
            options=options or "{}",
            missed=_missed(missed),
            next_at=expression.next(await self._now()),
            actor=self._scope.actor,
        )
        assert row is not None
        return ScheduleRecord.from_row(row)

    async def get(self, name_or_id: str | UUID) -> ScheduleRecord:
        """The schedule of that name, or with that id, also when it was removed.

        Raises:
            NotFound: there is none.
        """
        given = name_or_id if isinstance(name_or_id, UUID) else None
        row = await self._find(given, str(name_or_id))
        if row is None and given is None:
            try:
                row = await self._find(UUID(str(name_or_id)), "")
            except ValueError:
                row = None
        if row is None:
            raise _unknown(name_or_id)
        return ScheduleRecord.from_row(row)

    async def list(self, *, limit: int = 100) -> list[ScheduleRecord]:
        """The schedules of the session by name, without removed ones."""
        rows = await self._executor.fetch_all(_SQL["list_schedules"], session_id=self._scope.session_id, limit=limit)
        return [ScheduleRecord.from_row(row) for row in rows]

    async def next_times(self, name_or_id: str | UUID, n: int = 3) -> list[datetime]:
        """The next ``n`` planned times, as if it were neither paused nor removed; fewer where there are fewer.

        Raises:
            InvalidInput: ``n`` is not between 1 and 1000.
            NotFound: there is no such schedule.
        """
        if not 1 <= n <= 1000:
            raise InvalidInput("n must be between 1 and 1000.", field="n")
        schedule = await self.get(name_or_id)
        expression = Cron(schedule.cron, schedule.timezone)
        if schedule.next_at is None or schedule.paused:
            return [*islice(expression.after(await self._now()), n)]
        return [schedule.next_at, *islice(expression.after(schedule.next_at), n - 1)]

    async def pause(self, name_or_id: str | UUID) -> ScheduleRecord:
        """It fires no more until ``resume``; pausing it again changes nothing.

        Raises:
            NotFound: there is no such schedule.
            SessionClosed: the session is over.
        """
        schedule = await self.get(name_or_id)
        return await self._paused(schedule, paused=True, next_at=None)

    async def resume(self, name_or_id: str | UUID) -> ScheduleRecord:
        """It fires again, from its next time on; what was planned during the pause is not made up for.

        Raises:
            InvalidInput: plain SQL gave it an expression or time zone that cannot be read.
            NotFound: there is no such schedule.
            SessionClosed: the session is over.
        """
        schedule = await self.get(name_or_id)
        next_at = Cron(schedule.cron, schedule.timezone).next(await self._now())
        return await self._paused(schedule, paused=False, next_at=next_at)

    async def remove(self, name_or_id: str | UUID) -> ScheduleRecord:
        """It fires no more and its name is free; what it added stays. Removing it again changes nothing.

        Raises:
            NotFound: there is no such schedule.
        """
        schedule = await self.get(name_or_id)
        row = await self._executor.fetch_one(
            _SQL["remove_schedule"], session_id=self._scope.session_id, id=schedule.id, actor=self._scope.actor
        )
        assert row is not None
        return ScheduleRecord.from_row(row)

    async def _paused(self, schedule: ScheduleRecord, *, paused: bool, next_at: datetime | None) -> ScheduleRecord:
        row = await self._executor.fetch_one(
            _SQL["pause_schedule"],
            session_id=self._scope.session_id,
            id=schedule.id,
            paused=paused,
            next_at=next_at,
            error=None,
            actor=self._scope.actor,
        )
        if row is None:
            raise _unknown(schedule.name)
        return ScheduleRecord.from_row(row)

    async def _find(self, schedule_id: UUID | None, name: str) -> Row | None:
        return await self._executor.fetch_one(
            _SQL["find_schedule"], session_id=self._scope.session_id, id=schedule_id, name=name
        )

    async def _now(self) -> datetime:
        row = await self._executor.fetch_one(_SQL["server_time"])
        assert row is not None
        return row["now"]


class Scheduler:
    """Fires what is due on the whole board, or in some sessions; any number of processes may do so at once."""

    def __init__(self, executor: Executor, listener: Listener) -> None:
        """Use ``board.schedules``."""
        self._executor = executor
        self._listener = listener

    async def fire_due(self, limit: int = 100, *, sessions: Collection[UUID] | None = None) -> list[Firing]:
        """The tasks of what was due are on the board, each planned time's once; returns those that were added here.

        Schedules that another process is firing at this moment are left to it. A task's id is made of its schedule
        and its planned time, so that a call whose answer was lost adds nothing twice. A schedule whose expression or
        task is refused is paused with the reason. Writes ``schedule.fired`` and ``schedule.skipped``.

        Args:
            limit: most schedules to fire, 1 to 10 000; one that makes up for missed times adds several tasks.
            sessions: only in these; None means in every active session.

        Raises:
            InvalidInput: ``limit`` is out of its range.
        """
        if not 1 <= limit <= 10_000:
            raise InvalidInput("limit must be between 1 and 10000.", field="limit")
        fired: list[Firing] = []
        wanted = None if sessions is None else list(sessions)
        left = limit
        while left > 0:
            async with self._executor.transaction() as executor:
                rows = await executor.fetch_all(_SQL["lock_due_schedules"], sessions=wanted, limit=min(left, _BATCH))
                added = [firing for row in rows for firing in await _fire(executor, row)]
            # After the commit: adding tasks does not notify in its own transaction.
            if not self._executor.bound:
                for session_id in {firing.session_id for firing in added}:
                    self._listener.notify(session_id, "tasks.ready")
            fired += added
            left -= len(rows)
            if len(rows) < _BATCH:
                break
        return fired

    async def seconds_to_next(self, *, sessions: Collection[UUID] | None = None) -> float | None:
        """How long until something is due, by the server's clock; negative if it is overdue, None if nothing ever is.

        Args:
            sessions: only in these; None means in every active session.
        """
        row = await self._executor.fetch_one(_SQL["next_due"], sessions=None if sessions is None else list(sessions))
        assert row is not None
        return row["seconds"]

    def hints(self, *, sessions: Collection[UUID] | None = None) -> Subscription:
        """Hears when schedules or sessions change, so that whoever sleeps until the next time looks again.

        Args:
            sessions: only of these; None means of all.
        """
        return self._listener.subscribe(sessions, ("schedules", "sessions"))


async def _fire(executor: Executor, row: Row) -> list[Firing]:
    schedule_id: UUID = row["id"]
    try:
        plan = Cron(row["cron"], row["timezone"]).plan(row["next_at"], row["now"], row["missed"])
    except InvalidInput as error:
        # Written by plain SQL, which cannot read it. It must not stand in the way of the others.
        await executor.execute(
            _SQL["pause_schedule"],
            session_id=row["session_id"],
            id=schedule_id,
            paused=True,
            next_at=None,
            error=error.message,
            actor=f"schedule:{row['name']}",
        )
        return []
    rows = await executor.fetch_all(
        _SQL["fire_schedule"],
        session_id=row["session_id"],
        id=schedule_id,
        expected=row["next_at"],
        times=list(plan.times),
        task_ids=[task_id(schedule_id, moment) for moment in plan.times],
        skipped=plan.skipped,
        next_at=plan.next_at,
    )
    return [
        Firing(session_id=row["session_id"], schedule_id=schedule_id, name=row["name"], **dict(added)) for added in rows
    ]


def task_id(schedule_id: UUID, planned_at: datetime) -> UUID:
    """The id of the task that stands for that planned time; the same whoever fires it, and in order of the times."""
    known = uuid5(UUID(int=schedule_id.int), f"{planned_at.timestamp():.6f}").int
    milliseconds = int(planned_at.timestamp() * 1000)
    # As a UUIDv7: 48 bits of time, the version, and what is known of both.
    return UUID(int=milliseconds << 80 | 7 << 76 | known & ((1 << 76) - 1))


def _missed(value: Missed | str) -> str:
    try:
        return Missed(value).value
    except ValueError:
        raise InvalidInput(f"There is no policy {value!r}; use one of {', '.join(Missed)}.", field="missed") from None


def _unknown(name_or_id: object) -> NotFound:
    return NotFound(
        f"There is no schedule {str(name_or_id)!r} in this session; `blackboard schedule list` shows those there are.",
        noun="schedule",
        id=str(name_or_id),
    )
