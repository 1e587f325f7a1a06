"""Spending: reserved before, settled after, and freed whatever becomes of those who spend."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from typing import Any
from uuid import UUID

from ..errors import BlackboardError, BudgetExceeded, InvalidInput, NotFound
from ..ids import as_uuid, new_id
from ..jsonable import check_text, dump_json
from ..models.budgets import Reservation, Spending, Unit
from ..store.executor import Row
from ..store.statements import statements
from .amounts import Amount, as_amounts, as_currency, reservation_id_of, reservation_of
from .scope import Repository, in_doubt

__all__ = ["BudgetSpending"]

_SQL = statements("budgets")
_LEASES = statements("leases")


class BudgetSpending(Repository):
    """The part of ``budgets`` that is for whoever spends."""

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
            try:
                rows = await self._reserve_once(params)
            except BudgetExceeded as refused:
                rows = await self._refused(params, refused)
        except BaseException as error:
            if id is None and in_doubt(error):
                # Nobody else could ever release it.
                self._owe_release(reservation_id)
            raise
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
        given = {"tokens": tokens, "cost": cost, "calls": calls, "seconds": seconds}
        params = await self._settlement(reservation, given, currency, model, note)
        return await self._settle(params)

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
        anything was set, or what was set is refused, the reservation is released. What the server could not be told
        it is told later, while this process lives. Arguments and errors are those of ``reserve`` and ``settle``.
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
            # Why the block failed matters more than that its end could not be written.
            with suppress(BlackboardError):
                if all(value is None for value in (spending.tokens, spending.cost, spending.calls, spending.seconds)):
                    await self._give_back(reservation)
                else:
                    await self._settle_block(spending, time.monotonic() - began)
            raise
        await self._settle_block(spending, time.monotonic() - began)

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
        return await self._under_lease(
            lambda lease_id: self._executor.fetch_all(_SQL["reserve_budget"], lease_id=lease_id, **params)
        )

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

    async def _settlement(
        self,
        reservation: Reservation | UUID | str,
        given: Mapping[str, Amount | None],
        currency: str | None,
        model: str | None,
        note: str | None,
    ) -> dict[str, Any]:
        amounts = as_amounts(given)
        if currency is None:
            currency = reservation.currency if isinstance(reservation, Reservation) else None
            if currency is None and "cost" in amounts:
                held = reservation_id_of(reservation)
                currency = (await self.get(held)).currency
        return {
            "session_id": self._scope.session_id,
            "id": reservation_id_of(reservation),
            "units": list(amounts),
            "amounts": list(amounts.values()),
            "currency": as_currency(currency),
            "model": None if model is None else check_text(model, "model", 200, 1),
            "note": None if note is None else check_text(note, "note", 1000),
            "actor": self._scope.actor,
        }

    async def _settle(self, params: Mapping[str, Any]) -> Reservation:
        rows = await self._executor.fetch_all(_SQL["settle_budget"], **params)
        self._hint("budgets")
        return reservation_of(rows)

    async def _settle_block(self, spending: Spending, elapsed: float) -> None:
        measured = spending.seconds
        if measured is None and Unit.SECONDS in spending.reservation.reserved:
            measured = round(elapsed, 6)
        given = {"tokens": spending.tokens, "cost": spending.cost, "calls": spending.calls, "seconds": measured}
        params: dict[str, Any] | None = None
        try:
            params = await self._settlement(spending.reservation, given, None, spending.model, spending.note)
            await self._settle(params)
        except BaseException as error:
            if params is not None and in_doubt(error):
                # It was spent: the server is told again, until it has heard it.
                self._scope.leases.owe(_SQL["settle_budget"], **params)
            else:
                with suppress(BlackboardError):
                    await self._give_back(spending.reservation)
            raise

    async def _give_back(self, reservation: Reservation) -> None:
        try:
            await self.release(reservation)
        except BaseException as error:
            if in_doubt(error):
                self._owe_release(reservation.id)
            raise

    def _owe_release(self, reservation_id: UUID) -> None:
        self._scope.leases.owe(
            _LEASES["return_reservation"],
            session_id=self._scope.session_id,
            id=reservation_id,
            actor=self._scope.actor,
        )
