"""Budgets: reserved before, settled after, stopped at the ceiling, and the ledger of it all."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from ..errors import BlackboardError, BudgetExceeded, InvalidInput, LeaseLost, NotFound
from ..ids import as_uuid, new_id
from ..jsonable import check_text, dump_json
from ..models.budgets import BudgetRecord, BudgetReport, LedgerEntry, Reservation, Spending, SpendStatus, Unit, Usage
from ..store.executor import Row
from ..store.statements import statements
from .amounts import (
    Amount,
    as_amount,
    as_amounts,
    as_currency,
    as_spend_status,
    as_unit,
    reservation_id_of,
    reservation_of,
)
from .scope import Repository

__all__ = ["Budgets"]

_SQL = statements("budgets")


class Budgets(Repository):
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

    async def reserve(
        self,
        *,
        tokens: Amount | None = None,
        cost: Amount | None = None,
        calls: int | Decimal | None = None,
        seconds: Amount | None = None,
        task: UUID | str | None = None,
        model: str | None = None,
        currency: str = "USD",
        note: str = "",
        id: UUID | str | None = None,  # noqa: A002 - the column's name, the same in every language
    ) -> Reservation:
        """All of the amounts are held for this agent under every budget that applies, or nothing is.

        Settle or release it in the end; else it expires when the lease of this process lapses. Without any budget it
        is only written down. A refusal writes ``budget.refused``, once for the agent and task while nothing of the
        budget changes, unless it broke the caller's own transaction.

        Args:
            tokens, calls: whole numbers from 0.
            cost: in ``currency``.
            seconds: of wall time.
            task: what it is spent on; its budgets apply too.
            model: whom it is paid to, 1 to 200 characters; the report sums by it.
            currency: of the cost, 3 to 8 capital letters.
            note: up to 1000 characters.
            id: the idempotency key; made here when not given.

        Raises:
            BudgetExceeded: a budget has no room for it; names budget, ceiling, spent, reserved, asked.
            IdempotencyConflict: the id was used before with other content.
            InvalidInput: a value is refused, or the budget of cost is in another currency; names the field.
            LeaseLost: this process's lease lapsed, on a handle that is bound to a caller's connection.
            NotFound: no such task.
            NotPermitted: this agent has left the session.
            SessionClosed: the session is over.
        """
        amounts = as_amounts({"tokens": tokens, "cost": cost, "calls": calls, "seconds": seconds})
        if not amounts:
            raise InvalidInput("Say how much: tokens, cost, calls or seconds.", field="tokens")
        reservation_id = new_id() if id is None else as_uuid(id, "id")
        params: dict[str, Any] = {
            "session_id": self._scope.session_id,
            "id": reservation_id,
            "agent_id": self._agent_id,
            "task_id": None if task is None else as_uuid(task, "task"),
            "units": list(amounts),
            "amounts": list(amounts.values()),
            "currency": as_currency(currency),
            "model": None if model is None else check_text(model, "model", 200, 1),
            "note": check_text(note, "note", 1000),
        }
        try:
            rows = await self._reserve_once(params)
        except BudgetExceeded as refused:
            rows = await self._refused(params, refused)
        self._hint("budgets")
        return reservation_of(rows)

    async def settle(
        self,
        reservation: Reservation | UUID | str,
        *,
        tokens: Amount | None = None,
        cost: Amount | None = None,
        calls: int | Decimal | None = None,
        seconds: Amount | None = None,
        currency: str | None = None,
        model: str | None = None,
        note: str | None = None,
    ) -> Reservation:
        """What was really spent is on record, above or below what was reserved; the rest is free again.

        A unit that is not named is settled at what was reserved; one that was not reserved is added. Spending over
        the ceiling is recorded all the same: it writes ``budget.exceeded``, and every further reservation is refused.
        So is what is settled after the lease lapsed or the session closed. The same call again changes nothing.

        Args:
            reservation: what ``reserve`` returned, or its id.
            tokens, cost, calls, seconds: what was really spent.
            currency: of the cost; that of the reservation by default.
            model: replaces the one that was named.
            note: replaces the one that was given.

        Raises:
            IdempotencyConflict: it was settled before with other amounts.
            InvalidInput: a value is refused; names the field.
            InvalidTransition: it was released.
            NotFound: no such reservation.
        """
        amounts = as_amounts({"tokens": tokens, "cost": cost, "calls": calls, "seconds": seconds})
        if currency is None:
            currency = reservation.currency if isinstance(reservation, Reservation) else None
            if currency is None and "cost" in amounts:
                held = reservation_id_of(reservation)
                currency = (await self.get(held)).currency
        rows = await self._executor.fetch_all(
            _SQL["settle_budget"],
            session_id=self._scope.session_id,
            id=reservation_id_of(reservation),
            units=list(amounts),
            amounts=list(amounts.values()),
            currency=as_currency(currency),
            model=None if model is None else check_text(model, "model", 200, 1),
            note=None if note is None else check_text(note, "note", 1000),
            actor=self._scope.actor,
        )
        self._hint("budgets")
        return reservation_of(rows)

    async def release(self, reservation: Reservation | UUID | str) -> Reservation:
        """Nothing was spent: what was reserved is free again. The same call again changes nothing.

        Raises:
            InvalidTransition: it was settled.
            NotFound: no such reservation.
        """
        rows = await self._executor.fetch_all(
            _SQL["release_budget"],
            session_id=self._scope.session_id,
            id=reservation_id_of(reservation),
            actor=self._scope.actor,
        )
        self._hint("budgets")
        return reservation_of(rows)

    @asynccontextmanager
    async def spend(
        self,
        *,
        tokens: Amount | None = None,
        cost: Amount | None = None,
        calls: int | Decimal | None = None,
        seconds: Amount | None = None,
        task: UUID | str | None = None,
        model: str | None = None,
        currency: str = "USD",
        note: str = "",
    ) -> AsyncGenerator[Spending]:
        """The amounts are held inside the block and settled on leaving it.

        ::

            async with agent.budgets.spend(tokens=5000, task=task.id, model="large") as spend:
                answer = await ask(prompt)
                spend.tokens = answer.usage.total_tokens

        What is not set is settled as it was reserved, seconds as they were measured. If the block fails before
        anything was set, the reservation is released. Arguments and errors are those of ``reserve`` and ``settle``.
        """
        reservation = await self.reserve(
            tokens=tokens,
            cost=cost,
            calls=calls,
            seconds=seconds,
            task=task,
            model=model,
            currency=currency,
            note=note,
        )
        spending = Spending(reservation)
        began = time.monotonic()
        try:
            yield spending
        except BaseException:
            # Why the block failed matters more than that its end could not be written: it expires with the lease.
            with suppress(BlackboardError):
                if all(value is None for value in (spending.tokens, spending.cost, spending.calls, spending.seconds)):
                    await self.release(reservation)
                else:
                    await self._settle(spending, time.monotonic() - began)
            raise
        await self._settle(spending, time.monotonic() - began)

    async def get(self, reservation_id: UUID | str) -> Reservation:
        """One reservation, and what became of it.

        Raises:
            NotFound: no such reservation.
        """
        rows = await self._executor.fetch_all(
            _SQL["get_reservation"],
            session_id=self._scope.session_id,
            id=as_uuid(reservation_id, "reservation_id"),
        )
        if not rows:
            raise NotFound(
                f"There is no reservation {reservation_id} in this session.",
                noun="reservation",
                id=str(reservation_id),
            )
        return reservation_of(rows)

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

    async def expire(self, limit: int = 200) -> int:
        """What silent processes hold is free again, up to ``limit`` entries; returns how many.

        A reservation that finds no room and a report do this by themselves. Writes ``budget.expired``.
        """
        row = await self._executor.fetch_one(
            _SQL["expire_reservations"], session_id=self._scope.session_id, limit=limit
        )
        assert row is not None
        return int(row["expired"])

    async def _reserve_once(self, params: Mapping[str, Any]) -> Sequence[Row]:
        lease_id = await self._scope.leases.current()
        try:
            return await self._executor.fetch_all(_SQL["reserve_budget"], lease_id=lease_id, **params)
        except LeaseLost:
            # Nothing was reserved: the process slept past its lease.
            if self._executor.bound:
                raise
            await self._scope.leases.forget(lease_id)
            lease_id = await self._scope.leases.current()
            return await self._executor.fetch_all(_SQL["reserve_budget"], lease_id=lease_id, **params)

    async def _refused(self, params: Mapping[str, Any], refused: BudgetExceeded) -> Sequence[Row]:
        # In a transaction that the refusal has broken nothing more can be done.
        if self._executor.bound:
            raise refused
        # Somebody may have died with a part of it.
        while await self.expire():
            try:
                return await self._reserve_once(params)
            except BudgetExceeded as again:
                refused = again
        with suppress(BlackboardError):
            await self._executor.fetch_one(
                _SQL["refuse_budget"],
                session_id=params["session_id"],
                agent_id=params["agent_id"],
                facts=dump_json(refused.details, "details"),
            )
        raise refused

    async def _settle(self, spending: Spending, elapsed: float) -> None:
        measured = spending.seconds
        if measured is None and Unit.SECONDS in spending.reservation.reserved:
            measured = round(elapsed, 6)
        await self.settle(
            spending.reservation,
            tokens=spending.tokens,
            cost=spending.cost,
            calls=spending.calls,
            seconds=measured,
            model=spending.model,
            note=spending.note,
        )
