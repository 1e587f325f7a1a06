"""Actions: proposed, approved by a vote or a human, executed once, rolled back."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

from ..errors import BlackboardError, InvalidInput, LeaseLost, NotFound, WaitTimeout
from ..ids import as_uuid, new_id
from ..jsonable import check_text, dump_json
from ..models.actions import ActionRecord, ActionStatus, ActionType, Approval
from ..models.proposals import VoteOptions
from ..store.statements import statements
from .ids import PartialIds
from .proposals import as_at_deadline, as_rule
from .scope import soon

__all__ = ["Actions"]

_SQL = statements("actions")


class Actions(PartialIds):
    """What agents do to the world outside the board; an approval blocks its own action and nothing else."""

    noun = "action"

    async def propose(
        self,
        type: ActionType | str,  # noqa: A002 - the column's name, the same in every language
        target: str = "",
        parameters: Any = None,
        *,
        requires_approval: bool = True,
        approval: Approval | str | None = None,
        vote: VoteOptions | Mapping[str, Any] | None = None,
        proposal_id: UUID | str | None = None,
        id: UUID | str | None = None,  # noqa: A002
    ) -> ActionRecord:
        """The action is proposed and awaits its approval, or is approved already when it needs none.

        Writes ``action.proposed``, then ``action.awaiting_approval`` or ``action.approved``; with ``vote`` before
        them ``proposal.opened``, in the same transaction. Once that proposal is decided, the action is approved or
        rejected in the transaction of the deciding ballot.

        Args:
            type: query, modify, notify or escalate; what is escalated always awaits a human.
            target: what it is done to, up to 500 characters.
            parameters: any JSON value up to 1 MiB; an empty object by default.
            requires_approval: False lets it start at once.
            approval: who must approve; by default the vote where there is one, else a human.
            vote: opens a proposal that decides on it.
            proposal_id: a proposal that decides on it, instead of ``vote``.
            id: the idempotency key of both; made here when not given.

        Raises:
            IdempotencyConflict: the id was used before with other content.
            InvalidInput: a value is refused; names the field.
            NotFound: no such proposal.
            NotPermitted: this agent is no member any more.
            SessionClosed: the session is over.
        """
        options = _vote_options(vote)
        parameters_text = dump_json({} if parameters is None else parameters, "parameters")
        electorate = options.electorate
        row = await self._executor.fetch_one(
            _SQL["propose_action"],
            session_id=self._scope.session_id,
            id=new_id() if id is None else as_uuid(id, "id"),
            agent_id=self._agent_id,
            type=_type(type),
            target=check_text(target, "target", 500),
            parameters=parameters_text,
            requires_approval=requires_approval,
            approval=None if approval is None else _approval(approval),
            proposal_id=None if proposal_id is None else as_uuid(proposal_id, "proposal_id"),
            vote=vote is not None,
            vote_title=None if options.title is None else check_text(options.title, "title", 500, 1),
            vote_body=None if options.body is None else dump_json(options.body, "body"),
            vote_rule=as_rule(options.rule),
            vote_threshold=options.threshold,
            vote_weighted=options.weighted,
            vote_min_turnout=options.min_turnout,
            vote_deadline=options.deadline,
            vote_at_deadline=as_at_deadline(options.at_deadline),
            vote_electorate=None if electorate is None else [check_text(e, "electorate", 100, 1) for e in electorate],
        )
        assert row is not None
        return ActionRecord.from_row(row)

    async def approve(self, action_id: UUID | str, *, by: str, reason: str = "") -> ActionRecord:
        """A named human has approved the action; with approval ``both`` it still waits for its vote.

        Approval ``vote`` is decided by this too: the human stands in for the vote, whose proposal stays open and is
        then only on record. The same human approving again changes nothing.

        Args:
            action_id: which one.
            by: the human's name, 1 to 200 characters; history shows it as the actor.
            reason: up to 4000 characters.

        Raises:
            InvalidInput: a value is refused; names the field.
            InvalidTransition: it awaits no approval.
            NotFound: no such action.
            NotPermitted: whoever proposed the action approves it.
            SessionClosed: the session is over.
        """
        row = await self._executor.fetch_one(
            _SQL["approve_action"],
            session_id=self._scope.session_id,
            id=as_uuid(action_id, "action_id"),
            by=check_text(by, "by", 200, 1),
            reason=check_text(reason, "reason", 4000),
            actor=self._scope.agent_id,
        )
        assert row is not None
        return ActionRecord.from_row(row)

    async def reject(self, action_id: UUID | str, *, by: str, reason: str = "") -> ActionRecord:
        """A named human has rejected the action, whatever a vote may say; its proposer may do so to take it back.

        Args:
            action_id: which one.
            by: who rejects, 1 to 200 characters; history shows it as the actor.
            reason: up to 4000 characters.

        Raises:
            InvalidInput: a value is refused; names the field.
            InvalidTransition: it awaits no approval.
            NotFound: no such action.
            SessionClosed: the session is over.
        """
        row = await self._executor.fetch_one(
            _SQL["reject_action"],
            session_id=self._scope.session_id,
            id=as_uuid(action_id, "action_id"),
            by=check_text(by, "by", 200, 1),
            reason=check_text(reason, "reason", 4000),
        )
        assert row is not None
        return ActionRecord.from_row(row)

    async def start(self, action_id: UUID | str) -> ActionRecord:
        """This agent executes the action; the record's ``token`` is what it ends it with.

        An action whose executor's lease has lapsed can be started again, with a higher token. The present executor
        gets the same token again.

        Raises:
            InvalidTransition: it is not approved, or another agent executes it.
            LeaseLost: this process's own lease has lapsed.
            NotFound: no such action.
            NotPermitted: this agent is no member any more.
            SessionClosed: the session is over.
        """
        values = {
            "session_id": self._scope.session_id,
            "id": as_uuid(action_id, "action_id"),
            "agent_id": self._agent_id,
        }
        row = await self._under_lease(
            lambda lease_id: self._executor.fetch_one(_SQL["start_action"], **values, lease_id=lease_id)
        )
        assert row is not None
        return ActionRecord.from_row(row)

    async def complete(self, action_id: UUID | str, token: int, result: Any = None) -> ActionRecord:
        """The action is completed with ``result``; the same call again changes nothing.

        Args:
            action_id: which one.
            token: from ``start``.
            result: any JSON value up to 1 MiB.

        Raises:
            IdempotencyConflict: it was completed under this token with another result.
            InvalidInput: a value is refused; names the field.
            InvalidTransition: it has failed already.
            LeaseLost: the token is not the present one or the lease lapsed; the result is kept as the event
                ``action.late``.
            NotFound: no such action.
            SessionClosed: the session is over.
        """
        result_text = None if result is None else dump_json(result, "result")
        try:
            row = await self._executor.fetch_one(
                _SQL["complete_action"],
                session_id=self._scope.session_id,
                id=as_uuid(action_id, "action_id"),
                agent_id=self._agent_id,
                token=token,
                result=result_text,
            )
        except LeaseLost:
            await self._keep_late(action_id, token, result_text, None)
            raise
        assert row is not None
        return ActionRecord.from_row(row)

    async def fail(self, action_id: UUID | str, token: int, error: str) -> ActionRecord:
        """The action has failed with ``error``; the same call again changes nothing.

        Args:
            action_id: which one.
            token: from ``start``.
            error: what went wrong, up to 10 000 characters.

        Raises:
            IdempotencyConflict: it failed under this token with another error.
            InvalidInput: a value is refused; names the field.
            InvalidTransition: it was completed already.
            LeaseLost: the token is not the present one or the lease lapsed; the error is kept as the event
                ``action.late``.
            NotFound: no such action.
            SessionClosed: the session is over.
        """
        check_text(error, "error", 10_000)
        try:
            row = await self._executor.fetch_one(
                _SQL["fail_action"],
                session_id=self._scope.session_id,
                id=as_uuid(action_id, "action_id"),
                agent_id=self._agent_id,
                token=token,
                error=error,
            )
        except LeaseLost:
            await self._keep_late(action_id, token, None, error)
            raise
        assert row is not None
        return ActionRecord.from_row(row)

    async def roll_back(self, action_id: UUID | str, *, by: str | None = None, reason: str = "") -> ActionRecord:
        """It is on record that what the action did was undone.

        Args:
            action_id: which one.
            by: who undid it, 1 to 200 characters; this agent by default.
            reason: up to 4000 characters.

        Raises:
            InvalidInput: a value is refused; names the field.
            InvalidTransition: it was not executed to an end, or was rolled back by somebody else.
            NotFound: no such action.
            SessionClosed: the session is over.
        """
        row = await self._executor.fetch_one(
            _SQL["roll_back_action"],
            session_id=self._scope.session_id,
            id=as_uuid(action_id, "action_id"),
            by=self._agent_id if by is None else check_text(by, "by", 200, 1),
            reason=check_text(reason, "reason", 4000),
        )
        assert row is not None
        return ActionRecord.from_row(row)

    async def get(self, action_id: UUID | str) -> ActionRecord:
        """One action; deadlines of votes that have passed are applied first.

        Raises:
            NotFound: no such action.
        """
        row = await self._executor.fetch_one(
            _SQL["get_action"], session_id=self._scope.session_id, id=as_uuid(action_id, "action_id")
        )
        if row is None:
            raise NotFound(f"There is no action {action_id} in this session.", noun="action", id=str(action_id))
        return ActionRecord.from_row(row)

    async def list(self, *, status: ActionStatus | str | None = None, limit: int = 100) -> list[ActionRecord]:
        """The actions, newest first; those ``awaiting_approval`` are the human inbox.

        Raises:
            InvalidInput: no such status.
        """
        rows = await self._executor.fetch_all(
            _SQL["list_actions"],
            session_id=self._scope.session_id,
            status=None if status is None else _status(status),
            limit=limit,
        )
        return [ActionRecord.from_row(row) for row in rows]

    async def wait(self, action_id: UUID | str, timeout: timedelta | None = None) -> ActionRecord:
        """The action is decided: approved (and maybe executed since) or rejected, as its record tells.

        Raises:
            NotFound: no such action.
            WaitNotAllowed: this handle is bound to a caller's connection.
            WaitTimeout: nobody had decided when the time was up.
        """

        async def check() -> ActionRecord | None:
            action = await self.get(action_id)
            return None if action.status in {ActionStatus.PROPOSED, ActionStatus.AWAITING_APPROVAL} else action

        decided = await self._until("wait", ("actions", "proposals"), check, timeout, again_in=soon)
        if decided is None:
            raise WaitTimeout(f"Action {action_id} is not decided yet; wait again.", id=str(action_id))
        return decided

    async def _keep_late(self, action_id: UUID | str, token: int, result: str | None, error: str | None) -> None:
        # In a transaction that the refusal has broken nothing can be kept.
        with suppress(BlackboardError):
            await self._executor.fetch_one(
                _SQL["keep_late_action"],
                session_id=self._scope.session_id,
                id=as_uuid(action_id, "action_id"),
                agent_id=self._agent_id,
                token=token,
                result=result,
                error=error,
            )


def _vote_options(vote: VoteOptions | Mapping[str, Any] | None) -> VoteOptions:
    try:
        return VoteOptions() if vote is None else VoteOptions.of(vote)
    except TypeError as error:
        raise InvalidInput(f"vote takes the options of proposals.open: {error}.", field="vote") from None


def _type(value: ActionType | str) -> str:
    try:
        return ActionType(value).value
    except ValueError:
        raise InvalidInput(
            f"There is no action type {value!r}; use one of {', '.join(ActionType)}.", field="type"
        ) from None


def _approval(value: Approval | str) -> str:
    try:
        return Approval(value).value
    except ValueError:
        known = ", ".join(Approval)
        raise InvalidInput(f"There is no approval {value!r}; use one of {known}.", field="approval") from None


def _status(value: ActionStatus | str) -> str:
    try:
        return ActionStatus(value).value
    except ValueError:
        known = ", ".join(ActionStatus)
        raise InvalidInput(f"There is no action status {value!r}; use one of {known}.", field="status") from None
