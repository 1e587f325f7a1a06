"""The handles of a session and of an agent in it: the repositories, bound to a connection and an actor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Generic, Self, TypeVar, overload
from uuid import UUID

from .models.agents import AgentRecord
from .models.picture import Picture
from .models.retention import Retention
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
from .repository.schedules import Schedules
from .repository.scope import Scope
from .repository.sessions import Sessions
from .repository.tasks import Tasks

__all__ = ["Agent", "Session"]

_R = TypeVar("_R")


class _Bound(Generic[_R]):
    """A repository on the handle's scope, made when it is first asked for: a process may hold thousands of handles."""

    def __init__(self, kind: Callable[[Scope], _R]) -> None:
        self._kind = kind

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, handle: None, owner: type) -> Self: ...
    @overload
    def __get__(self, handle: Session | Agent, owner: type) -> _R: ...
    def __get__(self, handle: Session | Agent | None, owner: type) -> Self | _R:
        if handle is None:
            return self
        # From here on the instance's own attribute is found first.
        made = handle.__dict__[self._name] = self._kind(handle.scope)
        return made


class Session:
    """One problem that agents work on together.

    Attributes:
        record: as it was when this handle was made or last refreshed.
        scope: what its repositories are bound to.
        agents, findings, hypotheses, tasks, flows, proposals, actions, locks, budgets, schedules, events: what is in
            it.
    """

    agents = _Bound(Agents)
    findings = _Bound(Findings)
    hypotheses = _Bound(Hypotheses)
    tasks = _Bound(Tasks)
    flows = _Bound(Flows)
    proposals = _Bound(Proposals)
    actions = _Bound(Actions)
    limits = _Bound(Limits)
    locks = _Bound(Locks)
    budgets = _Bound(Budgets)
    schedules = _Bound(Schedules)
    events = _Bound(Events)

    def __init__(self, scope: Scope, record: SessionRecord, sessions: Sessions) -> None:
        """Use ``Blackboard.start`` or ``Blackboard.session``."""
        self.scope = scope
        self._sessions = sessions
        self.record = record

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
        record = await self.scope.leases.under(
            lambda lease_id: self.agents.join(
                agent_id,
                capabilities=capabilities,
                expertise=expertise,
                capacity=capacity,
                role=role,
                vote_weight=vote_weight,
                lease_id=lease_id,
            ),
            bound=self.scope.executor.bound,
        )
        return self.member(record)

    async def agent(self, agent_id: str) -> Agent:
        """The handle of a member, without taking over its presence: for who speaks for an agent that lives elsewhere.

        Raises:
            NotFound: it is no member.
        """
        return self.member(await self.agents.get(agent_id))

    def member(self, record: AgentRecord) -> Agent:
        """The handle of the member that ``record`` tells of; nothing is asked or changed."""
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

    async def keep(self, *, tasks: timedelta | None = None, events: timedelta | None = None) -> Retention:
        """What is older than that goes by itself; None keeps for ever. See ``sessions.keep``.

        Raises:
            InvalidInput: a time is out of its range.
            NotPermitted: only the owner of the schema may.
        """
        return await self._sessions.keep(self.id, tasks=tasks, events=events)

    async def kept(self) -> Retention:
        """How long the session keeps what is over."""
        return await self._sessions.kept(self.id)

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

    findings = _Bound(Findings)
    hypotheses = _Bound(Hypotheses)
    tasks = _Bound(Tasks)
    flows = _Bound(Flows)
    proposals = _Bound(Proposals)
    actions = _Bound(Actions)
    limits = _Bound(Limits)
    locks = _Bound(Locks)
    budgets = _Bound(Budgets)
    events = _Bound(Events)

    def __init__(self, scope: Scope, record: AgentRecord, session: Session) -> None:
        """Use ``Session.join``."""
        self.scope = scope
        self.record = record
        self.session = session

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
