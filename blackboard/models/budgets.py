"""Budgets: what may be spent, what is reserved, and the ledger of what was."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from uuid import UUID

from .base import Record, UtcDatetime

__all__ = [
    "BudgetRecord",
    "BudgetReport",
    "BudgetScope",
    "LedgerEntry",
    "Reservation",
    "SpendStatus",
    "Spending",
    "Unit",
    "Usage",
]


class Unit(StrEnum):
    """What is counted. Tokens and calls are whole numbers; seconds are wall time."""

    TOKENS = "tokens"
    COST = "cost"
    CALLS = "calls"
    SECONDS = "seconds"


class BudgetScope(StrEnum):
    """Whose spending a budget limits."""

    SESSION = "session"
    AGENT = "agent"
    TASK = "task"


class SpendStatus(StrEnum):
    """``reserved → settled | released | expired``, and ``expired → settled`` when a late holder tells the truth."""

    RESERVED = "reserved"
    SETTLED = "settled"
    RELEASED = "released"
    EXPIRED = "expired"


class BudgetRecord(Record):
    """One row of ``blackboard.budgets``.

    Attributes:
        unit: what it limits; ``currency`` names the money where that is cost.
        ceiling: reservations never take it over this; what was really spent may.
        soft: spending that reaches this writes ``budget.warned``.
        window: None limits the whole life; else spending counts anew in each fixed window of this length, counted
            from Monday 2000-01-03 00:00 UTC, so that days begin at midnight UTC and weeks on Monday.
        window_start: of the window in which it was last charged.
        resets_at: when the present window ends.
        reserved: held by those who have not settled yet.
        spent: settled, in the present window where it has one; includes ``opening``.
        opening: what had been spent when the budget was set.
        remaining: what can still be reserved; negative once it was exceeded.
    """

    session_id: UUID
    id: UUID
    scope: BudgetScope
    agent_id: str | None
    task_id: UUID | None
    unit: Unit
    currency: str | None
    ceiling: Decimal
    soft: Decimal | None
    window: timedelta | None
    window_start: UtcDatetime | None
    resets_at: UtcDatetime | None
    reserved: Decimal
    spent: Decimal
    opening: Decimal
    remaining: Decimal
    created_by: str
    created_at: UtcDatetime


class LedgerEntry(Record):
    """One row of ``blackboard.spend``: one unit of one reservation.

    Attributes:
        settled: what was really spent; None unless ``status`` is settled.
        budget_ids: the budgets that it counts against.
        settled_at: when it ended, however it did.
        lease_id: of the process that holds it; it expires with that.
    """

    session_id: UUID
    id: UUID
    reservation_id: UUID
    agent_id: str
    task_id: UUID | None
    unit: Unit
    currency: str | None
    reserved: Decimal
    settled: Decimal | None
    status: SpendStatus
    budget_ids: tuple[UUID, ...]
    model: str | None
    note: str
    at: UtcDatetime
    settled_at: UtcDatetime | None
    lease_id: UUID | None
    expires_at: UtcDatetime | None


class Reservation(Record):
    """What one call of ``reserve`` holds, and what became of it.

    Attributes:
        reserved: amounts by unit.
        settled: what was really spent by unit; empty until it is settled.
    """

    id: UUID
    agent_id: str
    task_id: UUID | None
    model: str | None
    note: str
    currency: str | None
    status: SpendStatus
    reserved: dict[Unit, Decimal]
    settled: dict[Unit, Decimal]
    at: UtcDatetime
    settled_at: UtcDatetime | None


@dataclass(slots=True)
class Spending:
    """What ``agent.budgets.spend`` hands out: set what was really spent; what stays None is settled as reserved.

    Attributes:
        reservation: what is held.
        seconds: None is the measured wall time of the block, where seconds were reserved.
        model: None leaves the one that was named when it was reserved.
    """

    reservation: Reservation
    tokens: float | Decimal | None = None
    cost: float | Decimal | None = None
    calls: int | Decimal | None = None
    seconds: float | Decimal | None = None
    model: str | None = None
    note: str | None = None


class Usage(Record):
    """What one agent, task, model or the whole session spent of one unit.

    Attributes:
        key: the agent's id, the task's id or the model's name; None for the total and for what names none.
        reserved: still held.
        spent: settled, over the whole life of the session.
        reservations: how many there were.
    """

    key: str | None
    unit: Unit
    currency: str | None
    reserved: Decimal
    spent: Decimal
    reservations: int


class BudgetReport(Record):
    """Where the money went, from the ledger, and what is left.

    Attributes:
        at: the server's time of this report.
        budgets: as they stand.
        totals, agents, tasks, models: usage over the whole life of the session.
    """

    at: datetime
    budgets: tuple[BudgetRecord, ...]
    totals: tuple[Usage, ...]
    agents: tuple[Usage, ...]
    tasks: tuple[Usage, ...]
    models: tuple[Usage, ...]
