"""Sessions: started, found, changed, closed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

from ..errors import InvalidInput, NotFound
from ..ids import as_uuid, new_id
from ..jsonable import check_duration, check_names, check_text, dump_json
from ..models.agents import AgentRecord
from ..models.retention import Retention
from ..models.sessions import SessionRecord, SessionStatus
from ..store.executor import Executor
from ..store.statements import statements

__all__ = ["Sessions"]

_SQL = statements("sessions")
_GATES = statements("gates")
_AGENTS = statements("agents")
_RETENTION = statements("retention")
_LONGEST = timedelta(days=36_500)


class Sessions:
    """Every session of the board."""

    def __init__(self, executor: Executor, actor: str | None) -> None:
        self._executor = executor
        self._actor = actor

    async def start(
        self,
        name: str,
        *,
        goal: str = "",
        context: Any = None,
        allow_self_validation: bool = False,
        id: UUID | str | None = None,  # noqa: A002 - the column's name, the same in every language
    ) -> SessionRecord:
        """A session of that name is open, and its first event, ``session.started``, is written.

        Args:
            name: 1 to 200 characters; only one open session may have it.
            goal: what it is for, up to 10 000 characters.
            context: any JSON value up to 1 MiB; an empty object by default.
            allow_self_validation: whether an author may validate an own hypothesis.
            id: the idempotency key; made here when not given.

        Raises:
            AlreadyExists: an open session has that name.
            IdempotencyConflict: the id was used before with other content.
            InvalidInput: a value is refused; names the field.
        """
        row = await self._executor.fetch_one(
            _SQL["start_session"],
            id=new_id() if id is None else as_uuid(id, "id"),
            name=check_text(name, "name", 200, 1),
            goal=check_text(goal, "goal", 10_000),
            context=dump_json({} if context is None else context, "context"),
            actor=self._actor,
            allow_self_validation=allow_self_validation,
        )
        assert row is not None
        return SessionRecord.from_row(row)

    async def get(self, name_or_id: str | UUID) -> SessionRecord:
        """The session with that id, or the open one of that name, else the newest closed one.

        Raises:
            NotFound: there is none.
        """
        row = None
        with suppress(InvalidInput):
            row = await self._executor.fetch_one(_SQL["get_session"], id=as_uuid(name_or_id, "session"))
        if row is None:
            row = await self._executor.fetch_one(_SQL["find_session"], name=check_text(str(name_or_id), "name", 200))
        if row is None:
            raise _no_session(name_or_id)
        return SessionRecord.from_row(row)

    async def get_many(self, names_or_ids: Sequence[str | UUID]) -> list[SessionRecord]:
        """As ``get``, for many in one call; in their order.

        Raises:
            NotFound: one of them does not exist; names the first.
        """
        names = [check_text(str(given), "name", 200) for given in names_or_ids]
        ids = [_uuid_or_none(given) for given in names_or_ids]
        rows = await self._executor.fetch_all(_SQL["find_sessions"], ids=ids, names=names)
        by_id: dict[UUID, SessionRecord] = {}
        by_name: dict[str, SessionRecord] = {}
        for row in rows:
            facts = dict(row)
            name = facts.pop("by_name")
            record = SessionRecord.from_row(facts)
            if name is None:
                by_id[record.id] = record
            else:
                by_name[name] = record
        records: list[SessionRecord] = []
        for name, session_id in zip(names, ids, strict=True):
            record = (by_id.get(session_id) if session_id is not None else None) or by_name.get(name)
            if record is None:
                raise _no_session(name)
            records.append(record)
        return records

    async def join(
        self,
        session_ids: Sequence[UUID],
        agent_id: str,
        *,
        capabilities: Sequence[str] | None = None,
        lease_id: UUID | None = None,
    ) -> dict[UUID, AgentRecord]:
        """The agent is registered and a member of all these sessions, or of none of them; its membership of each.

        Args:
            session_ids: of open sessions.
            agent_id: as in ``agents.join``.
            capabilities: what kinds of task it can do; None leaves what it has declared before.
            lease_id: the lease under which it is present.

        Raises:
            InvalidInput: a value is refused; names the field.
            LeaseLost: the lease has lapsed.
            NotFound: there is no such session.
            SessionClosed: one of them is over.
        """
        rows = await self._executor.fetch_all(
            _AGENTS["join_sessions"],
            session_ids=list(session_ids),
            agent_id=check_text(agent_id, "agent_id", 100, 1),
            capabilities=None if capabilities is None else check_names(capabilities, "capabilities", 100, 1),
            lease_id=lease_id,
        )
        return {row["session_id"]: AgentRecord.from_row(row) for row in rows}

    async def list(self, *, status: SessionStatus | str | None = None, limit: int = 100) -> list[SessionRecord]:
        """The sessions, newest first, at most ``limit`` (1 to 10 000).

        Raises:
            InvalidInput: no such status, or the limit is out of range.
        """
        if not 1 <= limit <= 10_000:
            raise InvalidInput("limit must be between 1 and 10000.", field="limit")
        rows = await self._executor.fetch_all(
            _SQL["list_sessions"], status=None if status is None else _status(status), limit=limit
        )
        return [SessionRecord.from_row(row) for row in rows]

    async def update(
        self,
        session_id: UUID,
        *,
        goal: str | None = None,
        context: Any = None,
        status: SessionStatus | str | None = None,
        key: str | None = None,
    ) -> SessionRecord:
        """Goal, context or status is as given; what is None stays.

        Raises:
            IdempotencyConflict: ``key`` was used for another call.
            InvalidInput: a value is refused; closing has its own verb.
            NotFound: no such session.
            SessionClosed: it is completed or failed.
        """
        row = await self._executor.fetch_one(
            _SQL["update_session"],
            session_id=session_id,
            goal=None if goal is None else check_text(goal, "goal", 10_000),
            context=None if context is None else dump_json(context, "context"),
            status=None if status is None else _status(status),
            actor=self._actor,
            key=None if key is None else check_text(key, "key", 200, 1),
        )
        assert row is not None
        return SessionRecord.from_row(row)

    async def configure(
        self, session_id: UUID, *, ageing: timedelta | None = None, retention: timedelta | None = None
    ) -> SessionRecord:
        """Ageing and retention are as given; what is None stays, and zero ends it.

        Args:
            session_id: which session.
            ageing: a ready task gains a step of priority for each such time that it waits, so that low priority is
                not starved; 1 second or more. Checked about four times in that time, by those who look for work, for
                a bounded number of tasks a time.
            retention: how long ``tasks.prune()`` keeps finished tasks when it is not told. By itself nothing goes:
                see ``keep``.

        Raises:
            InvalidInput: a value is refused.
            NotFound: no such session.
            SessionClosed: it is completed or failed.
        """
        row = await self._executor.fetch_one(
            _GATES["configure_session"],
            session_id=session_id,
            ageing=ageing,
            retention=retention,
            actor=self._actor,
        )
        assert row is not None
        return SessionRecord.from_row(row)

    async def keep(
        self, session_id: UUID, *, tasks: timedelta | None = None, events: timedelta | None = None
    ) -> Retention:
        """From now on what is older than that goes by itself, by any worker of the board; None keeps for ever.

        A round comes every twentieth of the time, at least once an hour and at most once a minute, in batches. Also of
        a session that is over. Nothing goes while no worker runs, of whatever session.

        Args:
            session_id: which session.
            tasks: since they ended: those that are completed, failed or cancelled, by the rules of ``tasks.prune()``,
                and the flows that had them. Dead letters stay until they are redriven, discarded or pruned by hand.
            events: the session's events, of whatever noun, 1 hour or more; cursors from before that expire.

        Raises:
            InvalidInput: a time is out of its range.
            NotFound: no such session.
            NotPermitted: only the owner of the schema may.
        """
        if tasks is not None and not timedelta() <= check_duration(tasks, "tasks") <= _LONGEST:
            raise InvalidInput("tasks must be between 0 and 100 years; None keeps them for ever.", field="tasks")
        if events is not None and not timedelta(hours=1) <= check_duration(events, "events") <= _LONGEST:
            raise InvalidInput("events must be between 1 hour and 100 years; None keeps them for ever.", field="events")
        row = await self._executor.fetch_one(
            _RETENTION["keep_session"], session_id=session_id, tasks=tasks, events=events, actor=self._actor
        )
        assert row is not None
        return Retention(tasks=row["tasks"], events=row["events"])

    async def kept(self, session_id: UUID) -> Retention:
        """How long the session keeps what is over."""
        row = await self._executor.fetch_one(_RETENTION["get_retention"], session_id=session_id)
        return Retention() if row is None else Retention.from_row(row)

    async def close(
        self, session_id: UUID, *, outcome: Any = None, status: SessionStatus | str = SessionStatus.COMPLETED
    ) -> SessionRecord:
        """The session is completed (or failed), once: repeating it with the same outcome returns the same row.

        Open tasks are cancelled, open proposals expire without a decision, locks are released, all in the same
        transaction.

        Raises:
            InvalidInput: ``status`` is not completed or failed.
            NotFound: no such session.
            SessionClosed: it was closed with another outcome.
        """
        row = await self._executor.fetch_one(
            _SQL["close_session"],
            session_id=session_id,
            status=_status(status),
            outcome=None if outcome is None else dump_json(outcome, "outcome"),
            actor=self._actor,
        )
        assert row is not None
        return SessionRecord.from_row(row)


def _uuid_or_none(value: str | UUID) -> UUID | None:
    with suppress(InvalidInput):
        return as_uuid(value, "session")
    return None


def _no_session(name_or_id: str | UUID) -> NotFound:
    return NotFound(
        f"There is no session {str(name_or_id)!r}; `blackboard session list` shows those there are.",
        noun="session",
        id=str(name_or_id),
    )


def _status(value: SessionStatus | str) -> str:
    try:
        return SessionStatus(value).value
    except ValueError:
        known = ", ".join(SessionStatus)
        raise InvalidInput(f"There is no session status {value!r}; use one of {known}.", field="status") from None
