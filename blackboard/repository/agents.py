"""The members of a session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from ..errors import NotFound
from ..jsonable import check_names, check_text, dump_json
from ..models.agents import AgentRecord
from ..store.statements import statements
from .scope import Repository

__all__ = ["Agents"]

_SQL = statements("agents")


class Agents(Repository):
    """Who works in this session, on what they are experts, and who is there."""

    async def join(
        self,
        agent_id: str,
        *,
        capabilities: Sequence[str] | None = None,
        expertise: Mapping[str, float] | None = None,
        capacity: int | None = None,
        role: str | None = None,
        vote_weight: float | None = None,
        lease_id: UUID | None = None,
    ) -> AgentRecord:
        """The agent is registered and a member of the session; joining again changes only what is given.

        Args:
            agent_id: such as ``ops/deploy-validator``; 1 to 100 characters without white space.
            capabilities: what kinds of task it can do.
            expertise: category to weight in [0, 1]; what is not named counts as 0.5.
            capacity: how many tasks it takes at once.
            role: ``member`` votes, ``observer`` does not; other roles are yours to use, and vote.
            vote_weight: its weight in weighted votes.
            lease_id: the lease under which it is present.

        Raises:
            InvalidInput: a value is refused; names the field.
            LeaseLost: the lease has lapsed.
            NotFound: no such session.
            SessionClosed: the session is over.
        """
        row = await self._executor.fetch_one(
            _SQL["join_session"],
            session_id=self._scope.session_id,
            agent_id=check_text(agent_id, "agent_id", 100, 1),
            capabilities=None if capabilities is None else check_names(capabilities, "capabilities", 100, 1),
            expertise=None if expertise is None else dump_json(dict(expertise), "expertise"),
            capacity=capacity,
            role=None if role is None else check_text(role, "role", 50, 1),
            vote_weight=vote_weight,
            lease_id=lease_id,
        )
        assert row is not None
        return AgentRecord.from_row(row)

    async def leave(self, agent_id: str) -> None:
        """The agent is no member any more and votes no longer; what it wrote stays.

        Raises:
            NotFound: it is no member.
        """
        await self._executor.fetch_one(_SQL["leave_session"], session_id=self._scope.session_id, agent_id=agent_id)

    async def get(self, agent_id: str) -> AgentRecord:
        """One member.

        Raises:
            NotFound: it is no member.
        """
        row = await self._executor.fetch_one(
            _SQL["get_agent"], session_id=self._scope.session_id, agent_id=check_text(agent_id, "agent_id", 100, 1)
        )
        if row is None:
            raise NotFound(f"{agent_id} is not a member of this session.", noun="agent", id=agent_id)
        return AgentRecord.from_row(row)

    async def list(self, *, capability: str | None = None) -> list[AgentRecord]:
        """The members in order of joining, optionally only those that offer ``capability``."""
        rows = await self._executor.fetch_all(
            _SQL["list_agents"], session_id=self._scope.session_id, capability=capability
        )
        return [AgentRecord.from_row(row) for row in rows]
