"""Budgets: reserved before, settled after, stopped at the ceiling, and the ledger of it all."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from uuid import UUID

from ..errors import BlackboardError, InvalidInput
from ..ids import as_uuid
from ..jsonable import check_text
from ..models.budgets import BudgetRecord, BudgetReport, LedgerEntry, SpendStatus, Unit, Usage
from ..store.statements import statements
from .amounts import (
    Amount,
    as_amount,
    as_currency,
    as_spend_status,
    as_unit,
)
from .spending import BudgetSpending

__all__ = ["Budgets"]

_SQL = statements("budgets")


class Budgets(BudgetSpending):
    """What may be spent in one session, and what was.

    Everything an agent spends is reserved first and settled after; what is settled is the truth, whatever was
    reserved. A reservation counts against every budget that applies: the session's, the agent's and the task's. The
    counters are exact sums of the ledger, however many reserve at once.
    """

    async def set(
        self,
        unit: Unit | str,
        ceiling: Amount,
        *,
        agent_id: str | None = None,
        task_id: UUID | str | None = None,
        soft: Amount | None = None,
        window: timedelta | None = None,
        currency: str | None = None,
    ) -> BudgetRecord:
        """The session, the agent or the task may spend so much; what is spent already counts.

        Writes ``budget.set``, or ``budget.updated`` where only the limits change. Another window or currency makes a
        new budget, which starts from what the ledger says. Lowering a ceiling under what is spent stops the next
        reservation and takes nothing back.

        Args:
            unit: tokens, cost, calls or seconds.
            ceiling: from 0 to 1e15; 0 allows nothing.
            agent_id: whose; it need not have joined yet. Without agent and task it is the session's.
            task_id: for all work on this task, whoever does it.
            soft: ``budget.warned`` is written when spending reaches it.
            window: the ceiling holds for each fixed window of this length, from 1 second to 366 days, counted from
                Monday 2000-01-03 00:00 UTC; None for the whole life. What is held counts in every window, what was
                spent in the one in which it was settled.
            currency: of cost, such as ``USD``, the default; all of a session's cost that meets a budget is in its
                currency.

        Raises:
            InvalidInput: a value is refused; names the field.
            NotFound: no such session or task.
            NotPermitted: this database role only works as an agent and sets no budgets.
            SessionClosed: the session is over.
        """
        kind = as_unit(unit)
        if kind is not Unit.COST and currency is not None:
            raise InvalidInput("A currency belongs to a budget of cost and to no other.", field="currency")
        if agent_id is not None and task_id is not None:
            raise InvalidInput("A budget is for an agent or for a task, not for both.", field="task_id")
        row = await self._executor.fetch_one(
            _SQL["set_budget"],
            session_id=self._scope.session_id,
            unit=kind.value,
            ceiling=as_amount(ceiling, "ceiling"),
            soft=None if soft is None else as_amount(soft, "soft"),
            window=window,
            currency=as_currency(currency) if kind is Unit.COST else None,
            agent_id=None if agent_id is None else check_text(agent_id, "agent_id", 100, 1),
            task_id=None if task_id is None else as_uuid(task_id, "task_id"),
            actor=self._scope.actor,
        )
        assert row is not None
        return BudgetRecord.from_row(row)

    async def remove(self, unit: Unit | str, *, agent_id: str | None = None, task_id: UUID | str | None = None) -> bool:
        """That budget limits nothing any more; the ledger stays. Writes ``budget.deleted``.

        Returns:
            Whether there was one.

        Raises:
            InvalidInput: no such unit.
            NotFound: no such session.
            NotPermitted: this database role only works as an agent and sets no budgets.
            SessionClosed: the session is over.
        """
        row = await self._executor.fetch_one(
            _SQL["remove_budget"],
            session_id=self._scope.session_id,
            unit=as_unit(unit).value,
            agent_id=agent_id,
            task_id=None if task_id is None else as_uuid(task_id, "task_id"),
            actor=self._scope.actor,
        )
        assert row is not None
        return bool(row["removed"])

    async def list(self) -> list[BudgetRecord]:
        """The budgets: the session's own, then the agents', then the tasks'."""
        rows = await self._executor.fetch_all(_SQL["list_budgets"], session_id=self._scope.session_id)
        return [BudgetRecord.from_row(row) for row in rows]

    async def ledger(
        self,
        *,
        agent_id: str | None = None,
        task_id: UUID | str | None = None,
        status: SpendStatus | str | None = None,
        limit: int = 100,
    ) -> list[LedgerEntry]:
        """The entries that match, newest first; one for each unit of a reservation.

        Raises:
            InvalidInput: no such status.
        """
        rows = await self._executor.fetch_all(
            _SQL["list_ledger"],
            session_id=self._scope.session_id,
            agent_id=agent_id,
            task_id=None if task_id is None else as_uuid(task_id, "task_id"),
            status=None if status is None else as_spend_status(status),
            limit=limit,
        )
        return [LedgerEntry.from_row(row) for row in rows]

    async def report(self) -> BudgetReport:
        """What every agent, task and model spent over the life of the session, and what is left of each budget.

        What silent processes held is freed first.
        """
        if not self._executor.bound:
            # Whoever may only read reports all the same.
            with suppress(BlackboardError):
                await self.expire()
        async with self._executor.transaction("repeatable read") as executor:
            budgets = await executor.fetch_all(_SQL["list_budgets"], session_id=self._scope.session_id)
            rows = await executor.fetch_all(_SQL["report_usage"], session_id=self._scope.session_id)
            now = await executor.fetch_one(_SQL["report_time"])
        assert now is not None
        parts: dict[str, list[Usage]] = {"totals": [], "agents": [], "tasks": [], "models": []}
        for row in rows:
            values = dict(row)
            parts[values.pop("part")].append(Usage.from_row(values))
        return BudgetReport.model_validate(
            {"at": now["at"], "budgets": [BudgetRecord.from_row(row) for row in budgets], **parts}
        )

    async def over(self, *, agent_id: str | None = None, task_id: UUID | str | None = None) -> bool:
        """Whether a budget that applies to the agent's work on the task is used up, so that nothing can be reserved.

        Args:
            agent_id: this handle's agent by default.
            task_id: its budgets apply too.
        """
        row = await self._executor.fetch_one(
            _SQL["over_budget"],
            session_id=self._scope.session_id,
            agent_id=agent_id or self._scope.agent_id,
            task_id=None if task_id is None else as_uuid(task_id, "task_id"),
        )
        assert row is not None
        return bool(row["over"])
