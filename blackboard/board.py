"""The handles: a blackboard, a session on it, an agent in that. They bind repositories to a connection and an actor."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID

from .errors import HistoryNotAdopted, SchemaMissing, SchemaOutdated
from .ids import new_id
from .models.agents import AgentRecord
from .models.picture import Picture
from .models.sessions import SessionRecord, SessionStatus
from .repository.actions import Actions
from .repository.agents import Agents
from .repository.budgets import Budgets
from .repository.events import Events
from .repository.findings import Findings
from .repository.flows import Flows
from .repository.hypotheses import Hypotheses
from .repository.limits import Limits
from .repository.locks import Locks
from .repository.pictures import Pictures
from .repository.proposals import Proposals
from .repository.schedules import Scheduler, Schedules
from .repository.scope import LeaseWatcher, Scope
from .repository.sessions import Sessions
from .repository.tasks import Tasks
from .settings import Settings, load_settings
from .store import migrations
from .store.binding import bind
from .store.connections import open_executor
from .store.embedded import EmbeddedServer
from .store.executor import Executor
from .store.listener import Listener
from .store.statements import statements
from .store.urls import normalise_url
from .work.heartbeat import Heartbeat

__all__ = ["Agent", "Blackboard", "Session"]

_T = TypeVar("_T")
_LEASES = statements("leases")
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
        except BaseException:
            await executor.close()
            raise
        listener = Listener(
            url, listen_url=settings.listen_url, poll_interval=timedelta(seconds=settings.poll_interval)
        )
        return cls(settings, url, executor, listener)

    async def close(self) -> None:
        """This process holds nothing here any more: its lease ends at once, its connections are closed."""
        await self._leases.end()
        await _apart(self._listener.close)
        await self._executor.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        """The same agent, writing on this connection."""
        return Agent(replace(agent.scope, executor=self._executor), agent.record, agent.session)

    def _session(self, record: SessionRecord) -> Session:
        return Session(replace(self._scope(record.id), executor=self._executor), record, self.sessions)


class Session:
    """One problem that agents work on together.

    Attributes:
        record: as it was when this handle was made or last refreshed.
        scope: what its repositories are bound to.
        agents, findings, hypotheses, tasks, flows, proposals, actions, locks, budgets, schedules, events: what is in
            it.
    """

    def __init__(self, scope: Scope, record: SessionRecord, sessions: Sessions) -> None:
        """Use ``Blackboard.start`` or ``Blackboard.session``."""
        self.scope = scope
        self._sessions = sessions
        self.record = record
        self.agents = Agents(scope)
        self.findings = Findings(scope)
        self.hypotheses = Hypotheses(scope)
        self.tasks = Tasks(scope)
        self.flows = Flows(scope)
        self.proposals = Proposals(scope)
        self.actions = Actions(scope)
        self.limits = Limits(scope)
        self.locks = Locks(scope)
        self.budgets = Budgets(scope)
        self.schedules = Schedules(scope)
        self.events = Events(scope)

    def __repr__(self) -> str:
        return f"<Session {self.record.name!r} {self.id}>"

    @property
    def id(self) -> UUID:
        """The session's id."""
        return self.record.id

    @property
    def name(self) -> str:
        """The session's name."""
        return self.record.name

    async def join(
        self,
        agent_id: str,
        *,
        capabilities: Sequence[str] | None = None,
        expertise: Mapping[str, float] | None = None,
        capacity: int | None = None,
        role: str | None = None,
        vote_weight: float | None = None,
    ) -> Agent:
        """The agent is a member, present while this process lives; see ``agents.join`` for arguments and errors."""
        record = await self.agents.join(
            agent_id,
            capabilities=capabilities,
            expertise=expertise,
            capacity=capacity,
            role=role,
            vote_weight=vote_weight,
            lease_id=await self.scope.leases.current(),
        )
        return self._agent(record)

    async def agent(self, agent_id: str) -> Agent:
        """The handle of a member, without taking over its presence: for who speaks for an agent that lives elsewhere.

        Raises:
            NotFound: it is no member.
        """
        return self._agent(await self.agents.get(agent_id))

    def _agent(self, record: AgentRecord) -> Agent:
        scope = replace(self.scope, actor=record.id, agent_id=record.id, capabilities=record.capabilities)
        return Agent(scope, record, self)

    async def board(self, *, limit: int = 100) -> Picture:
        """The whole picture in one call and one snapshot: context, findings, hypotheses, tasks, proposals, actions.

        Args:
            limit: most items of each kind, newest or strongest first; the counts are of all.
        """
        return await Pictures(self.scope).get(limit=limit)

    async def refresh(self) -> SessionRecord:
        """``record`` is as the database has it now."""
        self.record = await self._sessions.get(self.id)
        return self.record

    async def update(self, *, goal: str | None = None, context: Any = None, key: str | None = None) -> SessionRecord:
        """Goal or context is as given; what is None stays.

        Raises:
            IdempotencyConflict: ``key`` was used for another call.
            InvalidInput: a value is refused.
            SessionClosed: it is completed or failed.
        """
        self.record = await self._sessions.update(self.id, goal=goal, context=context, key=key)
        return self.record

    async def configure(self, *, ageing: timedelta | None = None, retention: timedelta | None = None) -> SessionRecord:
        """Ageing and retention are as given; what is None stays, and zero ends it. See ``sessions.configure``.

        Raises:
            InvalidInput: a value is refused.
            SessionClosed: it is completed or failed.
        """
        self.record = await self._sessions.configure(self.id, ageing=ageing, retention=retention)
        return self.record

    async def pause(self) -> SessionRecord:
        """No task is handed out any more until ``resume``; what runs goes on.

        Raises:
            SessionClosed: it is completed or failed.
        """
        self.record = await self._sessions.update(self.id, status=SessionStatus.PAUSED)
        return self.record

    async def resume(self) -> SessionRecord:
        """Tasks are handed out again.

        Raises:
            SessionClosed: it is completed or failed.
        """
        self.record = await self._sessions.update(self.id, status=SessionStatus.ACTIVE)
        return self.record

    async def close(
        self, *, outcome: Any = None, status: SessionStatus | str = SessionStatus.COMPLETED
    ) -> SessionRecord:
        """The session is over, once; see ``sessions.close`` for what becomes of its open rows, and for errors."""
        self.record = await self._sessions.close(self.id, outcome=outcome, status=status)
        return self.record


class Agent:
    """A knowledge source at work in one session; what it writes is signed with its id.

    Attributes:
        record: as it was when it joined.
        scope: what its repositories are bound to.
        session: where it works.
        findings, hypotheses, tasks, flows, proposals, actions, locks, budgets, events: what it can read and write.
    """

    def __init__(self, scope: Scope, record: AgentRecord, session: Session) -> None:
        """Use ``Session.join``."""
        self.scope = scope
        self.record = record
        self.session = session
        self.findings = Findings(scope)
        self.hypotheses = Hypotheses(scope)
        self.tasks = Tasks(scope)
        self.flows = Flows(scope)
        self.proposals = Proposals(scope)
        self.actions = Actions(scope)
        self.limits = Limits(scope)
        self.locks = Locks(scope)
        self.budgets = Budgets(scope)
        self.events = Events(scope)

    def __repr__(self) -> str:
        return f"<Agent {self.id!r} in {self.session.name!r}>"

    @property
    def id(self) -> str:
        """The agent's id."""
        return self.record.id

    async def leave(self) -> None:
        """The agent is no member any more; what it holds stays with its process's lease.

        Raises:
            NotFound: it had left already and was removed.
        """
        await Agents(self.scope).leave(self.id)


class ProcessLease:
    """The one lease of this process on this board: started at the first need, kept by a heartbeat of its own."""

    def __init__(self, url: str, executor: Executor, term: timedelta) -> None:
        """Nothing is held yet."""
        self._url = url
        self._executor = executor
        self._term = term
        self._heartbeat: Heartbeat | None = None
        self._last: UUID | None = None
        self._pid = 0
        self._starting = asyncio.Lock()
        self._watchers: list[LeaseWatcher] = []
        self._claiming: set[UUID] = set()
        self._claims: set[UUID] = set()

    def watch(self, watcher: LeaseWatcher) -> Callable[[], None]:
        """The watcher hears of the lease, from the heartbeat's thread, until what this returns is called."""
        self._watchers.append(watcher)

        def leave() -> None:
            self._watchers.remove(watcher)
            if not self._watchers:
                self._claims.clear()
                self._claiming.clear()

        return leave

    def begin_claim(self, claim_id: UUID) -> None:
        """A claim of that id is about to be made; while somebody watches, it is known as one of this process."""
        if self._watchers:
            self._claiming.add(claim_id)

    def end_claim(self, claim_id: UUID, *, held: bool) -> None:
        """The claim was answered and holds tasks; or it holds none, or nobody here knows which."""
        if claim_id in self._claiming:
            self._claiming.discard(claim_id)
            if held:
                self._claims.add(claim_id)

    def claims(self, *, answered: bool = False) -> frozenset[UUID]:
        """The claims of this process that may hold tasks, or only those that were answered already."""
        return frozenset(self._claims) if answered else frozenset(self._claims | self._claiming)

    def drop_claims(self, claim_ids: Iterable[UUID]) -> None:
        """These hold nothing any more."""
        self._claims.difference_update(claim_ids)

    async def current(self) -> UUID:
        """The lease that is held now; a new one where there is none, it has lapsed, or the process forked."""
        async with self._starting:
            held = self._heartbeat
            if held is not None and not held.lost and self._pid == os.getpid():
                return held.lease_id
            lease_id = new_id()
            await self._executor.fetch_one(
                _LEASES["start_lease"], id=lease_id, host=socket.gethostname(), pid=os.getpid(), term=self._term
            )
            if self._last is not None and self._pid == os.getpid():
                # The agents of this process are there again. After a fork they are the parent's.
                await self._executor.execute(_LEASES["move_presence"], old_id=self._last, new_id=lease_id)
            self._last = lease_id
            self._pid = os.getpid()
            self._heartbeat = Heartbeat(
                self._url,
                lease_id,
                self._term,
                on_lost=lambda: self._tell_lost(lease_id),
                on_count=lambda held: self._tell_count(lease_id, held),
            )
            self._heartbeat.start()
            return lease_id

    async def forget(self, lease_id: UUID) -> None:
        """The server said that this lease has lapsed: the next ``current`` starts a new one."""
        held = self._heartbeat
        if held is not None and held.lease_id == lease_id:
            self._heartbeat = None
            await _apart(held.stop)
            self._tell_lost(lease_id)

    def _tell_lost(self, lease_id: UUID) -> None:
        for watcher in tuple(self._watchers):
            watcher.on_lost(lease_id)

    def _tell_count(self, lease_id: UUID, held: int) -> None:
        for watcher in tuple(self._watchers):
            watcher.on_count(lease_id, held)

    async def end(self) -> None:
        """What the lease holds goes back at once."""
        held, self._heartbeat = self._heartbeat, None
        if held is None or self._pid != os.getpid():
            return
        await _apart(held.stop)
        if not held.lost:
            await self._executor.fetch_one(_LEASES["end_lease"], id=held.lease_id)


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
            await self._board.close()


# [end]
# [sync-only] def _apart(function: Callable[..., _T], *arguments: Any) -> _T:
# [sync-only]     return function(*arguments)
