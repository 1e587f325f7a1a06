"""One client's place on the board: who it is, which session it is in, how far it has read."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid5

from ..board import Agent, Blackboard, Session
from ..errors import AlreadyExists, NotFound
from ..ids import BOARD_ID
from ..models.sessions import SessionStatus
from ..models.tasks import TaskRecord
from .environment import Environment
from .fence import quoted
from .refusals import Refused

__all__ = ["Connection"]

_REMEMBERED_CLAIMS = 1000


class Connection:
    """The state behind the tools. Who the agent is never changes; which session it is in does with every join.

    Attributes:
        agent_id: who acts; from the environment, never from a tool's argument.
        share_findings: whether tools that read findings show those of others.
        cursor: how far this connection has been told of events; None before the first join.
    """

    def __init__(self, board: Blackboard, environment: Environment) -> None:
        """Nothing is joined yet."""
        self.board = board
        self.agent_id = environment.agent_id
        self.share_findings = environment.share_findings
        self.cursor: str | None = None
        self._environment = environment
        self._agent: Agent | None = None
        self._joining = asyncio.Lock()
        self._claiming: dict[UUID, asyncio.Lock] = {}
        self._claims: OrderedDict[UUID, TaskRecord] = OrderedDict()

    async def agent(self) -> Agent:
        """This agent in its session; the session of the environment is joined if none was.

        Raises:
            Refused: no session was joined, and none is configured.
        """
        if self._agent is None:
            async with self._joining:
                if self._agent is None:
                    await self._join_default()
        assert self._agent is not None
        return self._agent

    @property
    def joined(self) -> Agent | None:
        """This agent in the session that it joined last, if any."""
        return self._agent

    async def _join_default(self) -> None:
        name = self._environment.session
        if name is None:
            raise Refused(
                "not_joined",
                f"You are in no session yet. {await self.open_sessions()}",
                "Call {join_session} with the name of a session, then this tool again.",
            )
        await self._enter(await self._find(name), None, None, None)

    async def join(
        self,
        name: str | None,
        *,
        capabilities: Sequence[str] | None = None,
        expertise: dict[str, float] | None = None,
        role: str | None = None,
        create: bool = False,
        goal: str = "",
        context: Any = None,
        key: str | None = None,
    ) -> tuple[Agent, bool]:
        """This agent in the session of that name or id, and whether the session was started by this call.

        Raises:
            BlackboardError: as ``Session.join`` and ``Blackboard.start`` raise.
            Refused: there is no such session and it was not to be created, or no name is known.
        """
        name = name or self._environment.session
        if name is None:
            raise Refused(
                "not_joined",
                f"No session was named and none is configured. {await self.open_sessions()}",
                "Call {join_session} again with session set to the name of one.",
            )
        async with self._joining:
            started = False
            if create:
                session, started = await self._find_or_start(name, goal, context, key)
            else:
                session = await self._find(name)
            return await self._enter(session, capabilities, expertise, role), started

    async def _enter(
        self,
        session: Session,
        capabilities: Sequence[str] | None,
        expertise: dict[str, float] | None,
        role: str | None,
    ) -> Agent:
        offered = self._environment.capabilities if capabilities is None else capabilities
        # From before the briefing is read: what happens meanwhile is told twice rather than never.
        cursor = await session.events.now()
        self._agent = await session.join(self.agent_id, capabilities=offered, expertise=expertise, role=role)
        self.cursor = cursor
        return self._agent

    async def _find(self, name: str) -> Session:
        try:
            return await self.board.session(name)
        except NotFound:
            raise Refused(
                "not_found",
                f"There is no session {quoted(name, 200)}. {await self.open_sessions()}",
                "Call {join_session} with the name of an open session, or with create_if_missing=true to start this "
                "one.",
                facts={"noun": "session", "id": name},
            ) from None

    async def _find_or_start(self, name: str, goal: str, context: Any, key: str | None) -> tuple[Session, bool]:
        session = await self._open_session(name)
        if session is not None:
            return session, False
        # A retried call finds the session that it started, even if that was closed meanwhile.
        id_ = None if key is None else uuid5(BOARD_ID, f"{self.agent_id}\njoin_session\n{key}")
        try:
            return await self.board.start(name, goal=goal, context=context, id=id_), True
        except AlreadyExists:  # another agent was faster
            return await self.board.session(name), False

    async def _open_session(self, name: str) -> Session | None:
        try:
            session = await self.board.session(name)
        except NotFound:
            return None
        # A closed one is taken only by its id: its name is free for a new one.
        is_open = session.record.status in {SessionStatus.ACTIVE, SessionStatus.PAUSED}
        return session if is_open or str(session.id) == name.lower() else None

    async def open_sessions(self) -> str:
        """A sentence that names the open sessions."""
        found = [
            session.name
            for status in (SessionStatus.ACTIVE, SessionStatus.PAUSED)
            for session in await self.board.sessions.list(status=status, limit=10)
        ]
        if not found:
            return "No session is open."
        return f"Open sessions: {', '.join(quoted(name, 200) for name in found[:10])}."

    def id_for(self, agent: Agent, verb: str, key: str | None) -> UUID | None:
        """The id that a retried call makes again; None without a key."""
        return None if key is None else uuid5(agent.session.id, f"{agent.id}\n{verb}\n{key}")

    def key_for(self, agent: Agent, verb: str, key: str | None) -> str | None:
        """The board's idempotency key for a verb that creates nothing: one agent's keys never meet another's."""
        made = self.id_for(agent, verb, key)
        return None if made is None else f"mcp:{made}"

    def claim_lock(self, claim_id: UUID) -> asyncio.Lock:
        """Held while a claim with that id is under way, so that a retry waits for the first call's answer."""
        return self._claiming.setdefault(claim_id, asyncio.Lock())

    def claimed(self, claim_id: UUID) -> TaskRecord | None:
        """What the claim with that id got, as long as this process remembers."""
        return self._claims.get(claim_id)

    def remember_claim(self, claim_id: UUID, task: TaskRecord) -> None:
        """A retry of the claim with that id gets the same answer."""
        self._claims[claim_id] = task
        while len(self._claims) > _REMEMBERED_CLAIMS:
            forgotten, _ = self._claims.popitem(last=False)
            self._claiming.pop(forgotten, None)
