"""The blackboard's own handle: opens the connections, starts and finds sessions, binds to a caller's connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID

from .errors import BlackboardError, HistoryNotAdopted, SchemaMissing, SchemaOutdated
from .handles import Agent, Session
from .lease import ProcessLease
from .models.sessions import SessionRecord
from .repository.retention import Keeper
from .repository.schedules import Scheduler
from .repository.scope import Scope
from .repository.sessions import Sessions
from .settings import Settings, load_settings
from .store import migrations
from .store.binding import bind
from .store.connections import open_executor
from .store.embedded import EmbeddedServer
from .store.executor import Executor
from .store.listener import Listener
from .store.statements import statements
from .store.urls import normalise_url

__all__ = ["Agent", "Blackboard", "Session"]

_T = TypeVar("_T")
_SCHEMA = statements("schema")


class Blackboard:
    """A blackboard in one database; open it with ``Blackboard.open``.

    ::

        async with Blackboard.open() as board:
            session = await board.start("INC-1234", goal="Why does checkout fail?")
            agent = await session.join("ops/deploy-validator", capabilities=["investigate"])
            await agent.findings.report("deployment v1.2.3 at 10:15 UTC", type="deployment", confidence=0.9)

    One handle serves a whole process: many agents may live in it, and share its lease, its two standing connections
    and its pool.
    """

    def __init__(self, settings: Settings, url: str, executor: Executor, listener: Listener) -> None:
        """Use ``Blackboard.open``."""
        self._settings = settings
        self._executor = executor
        self._listener = listener
        self._leases = ProcessLease(url, executor, settings.lease)
        self.url = url
        self.sessions = Sessions(executor, settings.actor)
        self.schedules = Scheduler(executor, listener)
        self.keeper = Keeper(executor)

    # [async-only]
    @classmethod
    def open(
        cls,
        url: str | None = None,
        *,
        actor: str | None = None,
        data_dir: Path | str | None = None,
        pool_size: int | None = None,
        lease_term: timedelta | None = None,
        migrate: bool | None = None,
        adopt: bool = False,
    ) -> Opening:
        """The board in the database at ``url``; without one, in the embedded server, which is started or joined.

        Use it as ``async with Blackboard.open() as board`` or ``board = await Blackboard.open()``.

        Args:
            url: ``postgresql://…``; else ``BLACKBOARD_URL`` or the settings file; else the embedded server.
            actor: who acts where no agent does; the database role by default.
            data_dir: of the embedded server.
            pool_size: most connections held for statements.
            lease_term: how long a silent process keeps its work.
            migrate: bring the schema up to date first; by default only in the embedded server.
            adopt: go on with a history that was restored from a dump of another cluster; cursors read there are
                refused from then on. Only the owner of the schema may.

        Raises:
            ConfigurationError: a setting or the URL is wrong.
            EmbeddedServerError, EmbeddedServerUnavailable: the embedded server would not start.
            HistoryNotAdopted: the database was restored from a dump of another cluster; see ``adopt``.
            SchemaMissing, SchemaOutdated, SchemaTooNew: the database's tables are not those of this version.
            ServerTooOld, ServerUnreachable, TooManyConnections: the server cannot serve us.
        """
        return Opening(
            cls._open(
                load_settings(
                    url=url,
                    actor=actor,
                    data_dir=data_dir,
                    pool_size=pool_size,
                    lease_term=None if lease_term is None else lease_term.total_seconds(),
                ),
                migrate,
                adopt,
            )
        )

    # [end]
    # [sync-only] @classmethod
    # [sync-only] def open(
    # [sync-only]     cls,
    # [sync-only]     url: str | None = None,
    # [sync-only]     *,
    # [sync-only]     actor: str | None = None,
    # [sync-only]     data_dir: Path | str | None = None,
    # [sync-only]     pool_size: int | None = None,
    # [sync-only]     lease_term: timedelta | None = None,
    # [sync-only]     migrate: bool | None = None,
    # [sync-only]     adopt: bool = False,
    # [sync-only] ) -> Self:
    # [sync-only]     """The board in the database at ``url``; without one, in the embedded server, started or joined.
    # [sync-only]
    # [sync-only]     Use it as ``with Blackboard.open() as board`` or close it in the end. Arguments and errors are
    # [sync-only]     those of ``blackboard.Blackboard.open``.
    # [sync-only]     """
    # [sync-only]     settings = load_settings(
    # [sync-only]         url=url,
    # [sync-only]         actor=actor,
    # [sync-only]         data_dir=data_dir,
    # [sync-only]         pool_size=pool_size,
    # [sync-only]         lease_term=None if lease_term is None else lease_term.total_seconds(),
    # [sync-only]     )
    # [sync-only]     return cls._open(settings, migrate, adopt)

    @classmethod
    async def _open(cls, settings: Settings, migrate: bool | None, adopt: bool) -> Self:
        revive = None
        if settings.url is None:
            server = EmbeddedServer(settings.data_dir, idle_timeout=timedelta(seconds=settings.idle_timeout))
            url = (await _apart(server.start)).url
            # It ends itself when idle, and comes back when it is needed.
            revive = server.start
            migrate = migrate is not False
        else:
            url = normalise_url(settings.url)
        executor = open_executor(url, pool_size=settings.pool_size, revive=revive)
        try:
            await _check_schema(url, executor, migrate=bool(migrate))
            await _check_history(executor, adopt=adopt)
            listener = Listener(
                url, listen_url=settings.listen_url, poll_interval=timedelta(seconds=settings.poll_interval)
            )
            return cls(settings, url, executor, listener)
        except BaseException:
            await executor.close()
            raise

    async def close(self) -> None:
        """This process holds nothing here any more: its lease ends at once, its connections are closed.

        They are closed too if the lease could not be ended; it lapses then after its term.

        Raises:
            Unavailable: the server could not be told.
        """
        try:
            await self._leases.end()
        finally:
            try:
                await _apart(self._listener.close)
            finally:
                await self._executor.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Why a block failed matters more than that the server could not be told of its end.
        with suppress(*(() if error is None else (BlackboardError,))):
            await self.close()

    def bind(self, connection: object) -> BoundBlackboard:
        """Handles on the caller's own connection: what they write commits, or not, with the caller's own rows.

        Works at any isolation level and leaves the connection's codecs alone. Verbs that wait refuse. A connection in
        autocommit mode, with no transaction open, commits each verb by itself.

        Args:
            connection: an asyncpg connection, a psycopg ``AsyncConnection``, or SQLAlchemy's ``AsyncConnection``,
                ``AsyncSession`` or ``async_scoped_session`` with one of these drivers.

        Raises:
            ConfigurationError: it is none of these.
        """
        return BoundBlackboard(bind(connection), self._scope, self._settings.actor)

    async def start(
        self,
        name: str,
        *,
        goal: str = "",
        context: Any = None,
        allow_self_validation: bool = False,
        id: UUID | str | None = None,  # noqa: A002 - the column's name, the same in every language
    ) -> Session:
        """A session of that name is open; see ``sessions.start`` for arguments and errors."""
        record = await self.sessions.start(
            name, goal=goal, context=context, allow_self_validation=allow_self_validation, id=id
        )
        return self._session(record)

    async def session(self, name_or_id: str | UUID) -> Session:
        """The session with that id, or the open one of that name, else the newest closed one.

        Raises:
            NotFound: there is none.
        """
        return self._session(await self.sessions.get(name_or_id))

    async def join(
        self,
        sessions: Sequence[Session | str | UUID],
        agent_id: str,
        *,
        capabilities: Sequence[str] | None = None,
    ) -> list[Agent]:
        """The agent is a member of all these sessions, present while this process lives; in their order.

        One call for all of them: all are joined or, when one refuses, none.

        Args:
            sessions: handles, names or ids.
            agent_id: as in ``Session.join``.
            capabilities: what kinds of task it can do; None leaves what it has declared before.

        Raises:
            InvalidInput: a value is refused; names the field.
            NotFound: there is no such session.
            SessionClosed: one of them is over.
        """
        named = [given for given in sessions if not isinstance(given, Session)]
        found = iter(await self.sessions.get_many(named) if named else ())
        handles = [given if isinstance(given, Session) else self._session(next(found)) for given in sessions]
        session_ids = [handle.id for handle in handles]
        records = await self._leases.under(
            lambda lease_id: self.sessions.join(session_ids, agent_id, capabilities=capabilities, lease_id=lease_id),
            bound=False,
        )
        return [handle.member(records[handle.id]) for handle in handles]

    def _session(self, record: SessionRecord) -> Session:
        return Session(self._scope(record.id), record, self.sessions)

    def _scope(self, session_id: UUID) -> Scope:
        return Scope(
            executor=self._executor,
            session_id=session_id,
            actor=self._settings.actor,
            leases=self._leases,
            listener=self._listener,
        )


class BoundBlackboard:
    """A blackboard on a caller's connection; ``Blackboard.bind`` makes it."""

    def __init__(self, executor: Executor, scope: Callable[[UUID], Scope], actor: str | None) -> None:
        """Use ``Blackboard.bind``."""
        self._executor = executor
        self._scope = scope
        self.sessions = Sessions(executor, actor)

    async def start(
        self,
        name: str,
        *,
        goal: str = "",
        context: Any = None,
        allow_self_validation: bool = False,
        id: UUID | str | None = None,  # noqa: A002
    ) -> Session:
        """A session of that name is open once the caller commits; see ``sessions.start``."""
        record = await self.sessions.start(
            name, goal=goal, context=context, allow_self_validation=allow_self_validation, id=id
        )
        return self._session(record)

    async def session(self, name_or_id: str | UUID) -> Session:
        """The session, as this connection sees it.

        Raises:
            NotFound: there is none.
        """
        return self._session(await self.sessions.get(name_or_id))

    def agent(self, agent: Agent) -> Agent:
        """The same agent, which writes on this connection, as does its ``session``."""
        there = agent.session
        session = Session(replace(there.scope, executor=self._executor), there.record, self.sessions)
        return Agent(replace(agent.scope, executor=self._executor), agent.record, session)

    def _session(self, record: SessionRecord) -> Session:
        return Session(replace(self._scope(record.id), executor=self._executor), record, self.sessions)


async def _check_schema(url: str, executor: Executor, *, migrate: bool) -> None:
    try:
        row = await executor.fetch_one(_SCHEMA["schema_version"])
        revision = None if row is None else str(row["revision"])
    except SchemaMissing:
        revision = None
    try:
        migrations.check_revision(revision)
    except (SchemaMissing, SchemaOutdated):
        if not migrate:
            raise
        await _apart(migrations.upgrade, url)


async def _check_history(executor: Executor, *, adopt: bool) -> None:
    row = await executor.fetch_one(_SCHEMA["needs_adoption"])
    if row is None or not row["needed"]:
        return
    if not adopt:
        raise HistoryNotAdopted(
            "This database was restored from a dump of another cluster, whose transaction ids were others; writing "
            "to it now would hide events from their readers. Run `blackboard db adopt` once."
        )
    await executor.fetch_one(_SCHEMA["adopt"])


# [async-only]
async def _apart(function: Callable[..., _T], *arguments: Any) -> _T:
    """Runs what blocks in a thread, so that the event loop goes on."""
    return await asyncio.to_thread(function, *arguments)


class Opening:
    """A board that is about to open: await it, or enter it with ``async with``."""

    def __init__(self, opening: Awaitable[Blackboard]) -> None:
        """Use ``Blackboard.open``."""
        self._opening = opening
        self._board: Blackboard | None = None

    def __await__(self) -> Generator[Any, None, Blackboard]:
        return self._opening.__await__()

    async def __aenter__(self) -> Blackboard:
        self._board = await self._opening
        return self._board

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            await self._board.__aexit__(kind, error, trace)


# [end]
# [sync-only] def _apart(function: Callable[..., _T], *arguments: Any) -> _T:
# [sync-only]     return function(*arguments)
