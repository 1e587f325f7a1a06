"""Limits: how many tasks may run at once, or start in a time."""

from __future__ import annotations

from builtins import list as list_of
from datetime import timedelta
from uuid import UUID

from ..errors import InvalidInput, NotFound
from ..ids import as_uuid, new_id
from ..jsonable import check_text
from ..models.gates import Limit, LimitDifference, LimitUsage
from ..store.statements import statements
from .scope import Repository

__all__ = ["Limits"]

_SQL = statements("gates")
_BATCH = 1000
_PATIENCE = timedelta(seconds=2)


class Limits(Repository):
    """What limits the tasks of one session.

    A task that meets a full limit is ``held`` until a slot is free, by priority and age; one that meets a used-up rate
    is ``scheduled`` for a later window. Neither is looked at again by those who look for work.
    """

    async def set(
        self,
        name: str,
        *,
        max_running: int | None = None,
        rate_count: int | None = None,
        rate_period: timedelta | None = None,
        type: str | None = None,  # noqa: A002 - the column's name, the same in every language
        capability: str | None = None,
        per_key: bool = False,
        id: UUID | str | None = None,  # noqa: A002
    ) -> Limit:
        """The limit holds from now on; setting it again changes its figures. What runs already counts, and goes on.

        A rate counts in windows of ``rate_period`` that follow each other without a gap, so that the end of one and
        the beginning of the next together may see up to twice ``rate_count`` starts in less than a period.

        Args:
            name: 1 to 100 characters, one of its kind in the session.
            max_running: at most so many run at once, 1 to 1 000 000. Either this or a rate.
            rate_count: at most so many start in each ``rate_period``, 1 to 1 000 000.
            rate_period: 10 ms to 366 days.
            type: only tasks of this type.
            capability: only tasks that need this capability; with neither, all tasks of the session.
            per_key: limits the tasks of each ``limit_key`` by themselves, and those without one not at all.
            id: the limit's id; made here when not given.

        Raises:
            IdempotencyConflict: there is a limit of that name for other tasks or of the other kind; remove it first.
            InvalidInput: a value is refused; names the field.
            SessionClosed: the session is over.
        """
        if (max_running is None) == (rate_count is None) or (rate_count is None) != (rate_period is None):
            raise InvalidInput(
                "A limit has either max_running, or rate_count and rate_period.",
                field="max_running" if rate_count is None else "rate_count",
            )
        row = await self._executor.fetch_one(
            _SQL["set_limit"],
            session_id=self._scope.session_id,
            id=new_id() if id is None else as_uuid(id, "id"),
            name=check_text(name, "name", 100, 1),
            kind="rate" if max_running is None else "concurrency",
            type=None if type is None else check_text(type, "type", 50, 1),
            capability=None if capability is None else check_text(capability, "capability", 100),
            per_key=per_key,
            max_running=max_running,
            rate_count=rate_count,
            rate_period=rate_period,
            actor=self._scope.actor,
        )
        assert row is not None
        limit = Limit.from_row(row)
        if limit.kind == "concurrency" and not self._executor.bound:
            # Whoever was claiming while the limit came to be did not count: a look after they have ended does.
            await self._executor.execute(
                _SQL["settle_limit"], session_id=self._scope.session_id, id=limit.id, patience=_PATIENCE
            )
        return limit

    async def list(self) -> list_of[Limit]:
        """The limits of the session, by name."""
        rows = await self._executor.fetch_all(_SQL["list_limits"], session_id=self._scope.session_id)
        return [Limit.from_row(row) for row in rows]

    async def usage(self, name: str) -> list_of[LimitUsage]:
        """How far the limit is used, one entry for each key that was ever seen (one in all if it is not per key).

        Raises:
            NotFound: no such limit.
        """
        if not any(limit.name == name for limit in await self.list()):
            raise NotFound(f"There is no limit {name!r} in this session.", noun="limit", id=name)
        rows = await self._executor.fetch_all(_SQL["limit_usage"], session_id=self._scope.session_id, name=name)
        return [LimitUsage.from_row(row) for row in rows]

    async def remove(self, name: str) -> int:
        """The limit limits nothing any more, and what it held is ready again; returns how many that were.

        Raises:
            NotFound: no such limit.
            SessionClosed: the session is over.
        """
        row = await self._executor.fetch_one(
            _SQL["remove_limit"],
            session_id=self._scope.session_id,
            name=check_text(name, "name", 100, 1),
            actor=self._scope.actor,
        )
        assert row is not None
        return await self._bring_back("retire_limit", row["id"])

    async def check(self) -> list_of[LimitDifference]:
        """Where the counters differ from what runs; empty when all is well. Reads every running task."""
        rows = await self._executor.fetch_all(_SQL["check_limits"], session_id=self._scope.session_id)
        return [LimitDifference.from_row(row) for row in rows]

    async def _bring_back(self, statement: str, row_id: UUID) -> int:
        # A batch a transaction; claims go on with what is left should this end half way.
        total = 0
        while True:
            row = await self._executor.fetch_one(
                _SQL[statement], session_id=self._scope.session_id, id=row_id, batch=_BATCH
            )
            if row is None or not row["moved"]:
                return total
            total += row["moved"]
