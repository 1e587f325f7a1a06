"""Proposals: opened, voted on, decided by their ballots or their deadline."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

from ..errors import BlackboardError, InvalidInput, InvalidTransition, NotFound, WaitTimeout
from ..ids import as_uuid, new_id
from ..jsonable import check_text, dump_json
from ..models.proposals import (
    AtDeadline,
    Choice,
    ProposalDetails,
    ProposalRecord,
    ProposalStatus,
    Rule,
    Tally,
    VoteRecord,
)
from ..store.statements import statements
from .ids import PartialIds
from .scope import soon

__all__ = ["Proposals"]

_SQL = statements("proposals")


class Proposals(PartialIds):
    """What the members decide together.

    A proposal closes at once when no ballot that is still to come can change its outcome (ballots that were cast count
    as final for that, although each may be changed until then), and otherwise at its deadline, which whoever reads or
    votes next applies. The rules are those of ``Rule``; under each of them the share of the electorate's weight that
    has voted, abstentions included, must also reach ``min_turnout``. What does not pass is rejected.
    """

    noun = "proposal"

    async def open(
        self,
        title: str,
        body: Any = None,
        *,
        rule: Rule | str = Rule.MAJORITY,
        threshold: float | None = None,
        weighted: bool = False,
        min_turnout: float | None = None,
        deadline: timedelta | None = timedelta(minutes=5),
        at_deadline: AtDeadline | str = AtDeadline.TALLY,
        electorate: Sequence[str] | None = None,
        id: UUID | str | None = None,  # noqa: A002 - the column's name, the same in every language
    ) -> ProposalRecord:
        """A proposal is open, its electorate is fixed, and ``proposal.opened`` is written.

        Args:
            title: the question, 1 to 500 characters.
            body: what is proposed, any JSON value up to 1 MiB, such as ``{"action": "rollback"}``.
            rule: what makes it pass.
            threshold: the share of yes among yes and no, in (0, 1]; only for rule ``threshold``, 0.7 by default.
            weighted: whether a ballot weighs as much as its elector's ``vote_weight`` now; otherwise 1.
            min_turnout: the least turnout, in [0, 1]; by default 1 for rule ``unanimous``, otherwise 0.5.
            deadline: how long it stays open; None until the ballots decide.
            at_deadline: what happens then.
            electorate: who may vote, members that are no observers; by default all of these.
            id: the idempotency key; made here when not given.

        Raises:
            IdempotencyConflict: the id was used before with other content.
            InvalidInput: a value is refused, or nobody could vote; names the field.
            NotPermitted: this agent is no member any more.
            SessionClosed: the session is over.
        """
        row = await self._executor.fetch_one(
            _SQL["open_proposal"],
            session_id=self._scope.session_id,
            id=new_id() if id is None else as_uuid(id, "id"),
            agent_id=self._agent_id,
            title=check_text(title, "title", 500, 1),
            body=dump_json({} if body is None else body, "body"),
            rule=as_rule(rule),
            threshold=threshold,
            weighted=weighted,
            min_turnout=min_turnout,
            deadline=deadline,
            at_deadline=as_at_deadline(at_deadline),
            electorate=None if electorate is None else [check_text(e, "electorate", 100, 1) for e in electorate],
        )
        assert row is not None
        return ProposalRecord.from_row(row)

    async def vote(
        self,
        proposal_id: UUID | str,
        choice: Choice | str,
        *,
        confidence: float | None = None,
        reason: str = "",
        key: str | None = None,
    ) -> ProposalRecord:
        """This agent's ballot says ``choice``, and the proposal is closed if that made its outcome certain.

        Writes ``vote.cast`` or ``vote.changed``, and with the closing ballot ``proposal.accepted`` or ``.rejected``, in
        one transaction with the approval or rejection of the actions that wait for it. The same ballot again changes
        nothing, also after the close.

        Args:
            proposal_id: which one.
            choice: yes, no or abstain.
            confidence: how sure the agent is, in [0, 1]; kept, and not weighed.
            reason: up to 4000 characters.
            key: an idempotency key; needed only where an old call could arrive after a newer, different ballot.

        Returns:
            The proposal with its tally after this ballot.

        Raises:
            IdempotencyConflict: ``key`` was used for another call.
            InvalidInput: a value is refused; names the field.
            InvalidTransition: the proposal is closed, or its deadline has passed.
            NotFound: no such proposal.
            NotPermitted: this agent is not in the electorate, or has left the session.
            SessionClosed: the session is over.
            TransientError: under REPEATABLE READ or SERIALIZABLE, another ballot came in between: run it again.
        """
        try:
            row = await self._executor.fetch_one(
                _SQL["vote"],
                session_id=self._scope.session_id,
                proposal_id=as_uuid(proposal_id, "proposal_id"),
                agent_id=self._agent_id,
                choice=_choice(choice),
                confidence=confidence,
                reason=check_text(reason, "reason", 4000),
                key=None if key is None else check_text(key, "key", 200, 1),
            )
        except InvalidTransition:
            await self._apply_deadlines()
            raise
        assert row is not None
        return ProposalRecord.from_row(row)

    async def withdraw(self, proposal_id: UUID | str) -> ProposalRecord:
        """The proposal is withdrawn without a decision; withdrawing it again changes nothing.

        Raises:
            InvalidTransition: it was decided, or its deadline has passed.
            NotFound: no such proposal.
            NotPermitted: another agent opened it.
            SessionClosed: the session is over.
        """
        try:
            row = await self._executor.fetch_one(
                _SQL["withdraw_proposal"],
                session_id=self._scope.session_id,
                proposal_id=as_uuid(proposal_id, "proposal_id"),
                agent_id=self._agent_id,
            )
        except InvalidTransition:
            await self._apply_deadlines()
            raise
        assert row is not None
        return ProposalRecord.from_row(row)

    async def get(self, proposal_id: UUID | str) -> ProposalDetails:
        """One proposal with its tally, electors and ballots; deadlines that have passed are applied first.

        Raises:
            NotFound: no such proposal.
        """
        row = await self._executor.fetch_one(
            _SQL["get_proposal"],
            session_id=self._scope.session_id,
            proposal_id=as_uuid(proposal_id, "proposal_id"),
        )
        if row is None:
            raise NotFound(f"There is no proposal {proposal_id} in this session.", noun="proposal", id=str(proposal_id))
        return ProposalDetails.from_row(row)

    async def list(self, *, status: ProposalStatus | str | None = None, limit: int = 100) -> list[ProposalRecord]:
        """The proposals, newest first, each with its tally; deadlines that have passed are applied first.

        Raises:
            InvalidInput: no such status.
        """
        rows = await self._executor.fetch_all(
            _SQL["list_proposals"],
            session_id=self._scope.session_id,
            status=None if status is None else _status(status),
            limit=limit,
        )
        return [ProposalRecord.from_row(row) for row in rows]

    async def tally(self, proposal_id: UUID | str) -> Tally:
        """The running tally of an open proposal, the final one of a closed one.

        Raises:
            NotFound: no such proposal.
        """
        row = await self._executor.fetch_one(
            _SQL["tally"],
            session_id=self._scope.session_id,
            proposal_id=as_uuid(proposal_id, "proposal_id"),
        )
        assert row is not None
        return Tally.from_row(row)

    async def votes(self, proposal_id: UUID | str) -> Sequence[VoteRecord]:
        """The ballots as they stand, in order of their last change; none for a proposal that is not there."""
        rows = await self._executor.fetch_all(
            _SQL["list_votes"],
            session_id=self._scope.session_id,
            proposal_id=as_uuid(proposal_id, "proposal_id"),
        )
        return [VoteRecord.from_row(row) for row in rows]

    async def wait(self, proposal_id: UUID | str, timeout: timedelta | None = None) -> ProposalDetails:
        """The proposal is closed: accepted, rejected, expired or withdrawn, as its record tells.

        Raises:
            NotFound: no such proposal.
            WaitNotAllowed: this handle is bound to a caller's connection.
            WaitTimeout: it was still open when the time was up.
        """

        async def check() -> ProposalDetails | None:
            proposal = await self.get(proposal_id)
            return None if proposal.status is ProposalStatus.OPEN else proposal

        closed = await self._until("wait", ("proposals",), check, timeout, again_in=soon)
        if closed is None:
            raise WaitTimeout(f"Proposal {proposal_id} is still open; wait again.", id=str(proposal_id))
        return closed

    async def close_due(self, *, limit: int = 100) -> int:
        """The deadlines that have passed are applied, ``limit`` at most; returns how many proposals closed.

        Reads and ballots do this by themselves.
        """
        row = await self._executor.fetch_one(
            _SQL["close_due_proposals"], session_id=self._scope.session_id, limit=limit
        )
        assert row is not None
        return int(row["closed"])

    async def _apply_deadlines(self) -> None:
        # A refusal rolls back, so the outcome of the deadline that caused it needs a statement of its own. Inside a
        # transaction that the refusal has broken, whoever comes next applies it.
        with suppress(BlackboardError):
            await self.close_due()


def as_rule(value: Rule | str) -> str:
    """``value`` as the column's text.

    Raises:
        InvalidInput: no such rule.
    """
    try:
        return Rule(value).value
    except ValueError:
        raise InvalidInput(f"There is no rule {value!r}; use one of {', '.join(Rule)}.", field="rule") from None


def as_at_deadline(value: AtDeadline | str) -> str:
    """``value`` as the column's text.

    Raises:
        InvalidInput: nothing of that name happens at a deadline.
    """
    try:
        return AtDeadline(value).value
    except ValueError:
        known = ", ".join(AtDeadline)
        raise InvalidInput(
            f"Nothing called {value!r} happens at a deadline; use one of {known}.", field="at_deadline"
        ) from None


def _choice(value: Choice | str | bool) -> str:
    # YAML and JSON writers turn the words yes and no into booleans.
    if isinstance(value, bool):
        return Choice.YES.value if value else Choice.NO.value
    try:
        return Choice(value).value
    except ValueError:
        raise InvalidInput(f"A ballot cannot say {value!r}; use one of {', '.join(Choice)}.", field="choice") from None


def _status(value: ProposalStatus | str) -> str:
    try:
        return ProposalStatus(value).value
    except ValueError:
        known = ", ".join(ProposalStatus)
        raise InvalidInput(f"There is no proposal status {value!r}; use one of {known}.", field="status") from None
