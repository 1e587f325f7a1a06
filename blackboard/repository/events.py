"""Events: read since a cursor, and the history of a row."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from ..errors import InvalidInput
from ..ids import as_uuid
from ..jsonable import check_text, load_json
from ..models.events import Event, EventPage, StateChange
from ..store.statements import statements
from .scope import Repository

__all__ = ["Events"]

_SQL = statements("events")
_BATCH = 5000


class Events(Repository):
    """The history of one session.

    A cursor never misses an event and never waits for a running transaction: what commits late comes later. Events of
    a transaction that the reading handle itself has open are not read before it has committed.
    """

    async def read(
        self,
        cursor: str | None = None,
        *,
        topics: Sequence[str] | None = None,
        subject_id: UUID | str | None = None,
        limit: int = 1000,
    ) -> EventPage:
        """The events after ``cursor``, in order of ``seq``, and the cursor to go on with.

        Args:
            cursor: None reads from the beginning; ``await now()`` gives the present end.
            topics: event types such as ``task.completed`` or ``task.*``; the ``agent.`` topics are the same events.
            subject_id: only events about this row.
            limit: 1 to 10 000 events at once.

        Raises:
            CursorExpired: events after it were pruned.
            CursorFromAnotherHistory: it was read elsewhere, or before a restore to an earlier state.
            InvalidInput: it is no cursor, or the limit is out of range.
        """
        if not 1 <= limit <= 10_000:
            raise InvalidInput("limit must be between 1 and 10000.", field="limit")
        row = await self._executor.fetch_one(
            _SQL["read_events"],
            session_id=self._scope.session_id,
            cursor=None if cursor is None else check_text(cursor, "cursor", 1_000_000),
            limit=limit,
            topics=None if topics is None else [check_text(topic, "topics", 200, 1) for topic in topics],
            subject_id=None if subject_id is None else as_uuid(subject_id, "subject_id"),
        )
        assert row is not None
        return EventPage(
            events=tuple(Event.model_validate(event) for event in load_json(row["events"])),
            cursor=row["cursor"],
            more=row["more"],
        )

    async def follow(
        self,
        cursor: str | None = None,
        *,
        topics: Sequence[str] | None = None,
        subject_id: UUID | str | None = None,
        batch: int = 1000,
    ) -> AsyncIterator[EventPage]:
        """Yields every page of events after ``cursor``, then each new one as it is committed, without end.

        Store ``page.cursor`` together with what you did for the page: going on from it repeats and misses nothing.
        With ``cursor`` None it begins with what happens from now on.

        Raises:
            CursorExpired, CursorFromAnotherHistory, InvalidInput: as ``read`` does.
            WaitNotAllowed: this handle is bound to a caller's connection.
        """
        at = await self.now() if cursor is None else cursor
        while True:
            page = await self._next(at, topics, subject_id, batch, None)
            at = page.cursor
            yield page

    async def wait(
        self,
        cursor: str | None = None,
        *,
        topics: Sequence[str] | None = None,
        subject_id: UUID | str | None = None,
        timeout: timedelta | None = timedelta(seconds=30),
        limit: int = 1000,
    ) -> EventPage:
        """The first events after ``cursor``, as soon as there are any; an empty page when the time is up.

        Either way the page's cursor is the one to go on with. With ``cursor`` None only what happens from now on
        counts.

        Raises:
            CursorExpired, CursorFromAnotherHistory, InvalidInput: as ``read`` does.
            WaitNotAllowed: this handle is bound to a caller's connection.
        """
        at = await self.now() if cursor is None else cursor
        return await self._next(at, topics, subject_id, limit, timeout)

    async def _next(
        self,
        cursor: str,
        topics: Sequence[str] | None,
        subject_id: UUID | str | None,
        limit: int,
        timeout: timedelta | None,
    ) -> EventPage:
        last = EventPage(events=(), cursor=cursor, more=False)

        async def check() -> EventPage | None:
            nonlocal last
            # From the last page on, also when nothing in it was asked for: no event is looked at twice.
            last = await self.read(last.cursor, topics=topics, subject_id=subject_id, limit=limit)
            return last if last.events or last.more else None

        return await self._until("wait", _nouns(topics), check, timeout) or last

    async def now(self) -> str:
        """A cursor at the present end: what commits from now on comes after it."""
        row = await self._executor.fetch_one(_SQL["cursor_now"], session_id=self._scope.session_id)
        assert row is not None
        return row["cursor"]

    async def history(self, subject_id: UUID | str | None = None, *, limit: int = 10_000) -> list[StateChange]:
        """Who changed what, from which value to which, when, oldest first; of one row or of the whole session.

        At most ``limit`` changes (1 to 1 000 000).

        Raises:
            InvalidInput: the limit is out of range.
        """
        if not 1 <= limit <= 1_000_000:
            raise InvalidInput("limit must be between 1 and 1000000.", field="limit")
        rows = await self._executor.fetch_all(
            _SQL["state_history"],
            session_id=self._scope.session_id,
            subject_id=None if subject_id is None else as_uuid(subject_id, "subject_id"),
            limit=limit,
        )
        return [StateChange.from_row(row) for row in rows]

    async def prune(self, before: datetime) -> int:
        """Events before that moment are gone, as far as they form one unbroken beginning; returns how many.

        They go in batches of some thousands, each in a transaction of its own: what is interrupted has done a part, and
        is gone on with by calling it again. In a caller's transaction all is one.

        Raises:
            NotPermitted: only the owner of the schema may.
        """
        gone = 0
        while True:
            row = await self._executor.fetch_one(
                _SQL["prune_events"], session_id=self._scope.session_id, before=before, limit=_BATCH
            )
            assert row is not None
            if not row["pruned"]:
                return gone
            gone += row["pruned"]


def _nouns(topics: Sequence[str] | None) -> Collection[str] | None:
    """The nouns whose hints announce these topics; None is every noun."""
    if topics is None:
        return None
    nouns = {topic.removeprefix("agent.").partition(".")[0] for topic in topics}
    return None if nouns & {"*", "error", "agent"} else {_PLURALS.get(noun, f"{noun}s") for noun in nouns}


_PLURALS = {"hypothesis": "hypotheses"}
