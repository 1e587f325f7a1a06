"""Tools on budgets: reserve what a piece of work may cost, settle what it did cost."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field

from ..models.budgets import BudgetRecord, Reservation
from .fence import quoted
from .tool import Answer, Arguments, Call, IdempotencyKey, Item, Result, Tool

__all__ = ["BUDGET_TOOLS"]

Count = Annotated[int | None, Field(ge=0, le=10**15)]
Number = Annotated[float | None, Field(ge=0, le=1e15)]


class ReserveArguments(Arguments):
    """What ``reserve_budget`` takes."""

    tokens: Annotated[Count, Field(description="How many tokens at most.", examples=[5000])] = None
    cost: Annotated[Number, Field(description="How much money at most, in currency.")] = None
    calls: Annotated[Count, Field(description="How many calls at most.")] = None
    seconds: Annotated[Number, Field(description="How much wall time at most.")] = None
    task_id: Annotated[UUID | None, Field(description="The task that it is for; its budgets apply too.")] = None
    model: Annotated[
        str | None, Field(min_length=1, max_length=200, description="Which model is paid for; the report sums by it.")
    ] = None
    currency: Annotated[str, Field(pattern="^[A-Z]{3,8}$", description="Of the cost.")] = "USD"
    idempotency_key: IdempotencyKey = None


class SettleArguments(Arguments):
    """What ``settle_budget`` takes."""

    reservation_id: Annotated[UUID, Field(description="As {reserve_budget} returned it.")]
    tokens: Annotated[Count, Field(description="How many it really were.")] = None
    cost: Annotated[Number, Field(description="What it really cost, in the currency of the reservation.")] = None
    calls: Annotated[Count, Field(description="How many it really were.")] = None
    seconds: Annotated[Number, Field(description="How long it really took.")] = None
    nothing_spent: Annotated[bool, Field(description="true gives everything back; then name no amounts.")] = False
    idempotency_key: IdempotencyKey = None


class BudgetView(Item):
    """A budget that applies to you, as it stands."""

    scope: str
    unit: str
    currency: str | None
    ceiling: float
    spent: float
    reserved: float
    remaining: float
    resets_at: str | None


class ReservationResult(Result):
    """What both tools answer."""

    reservation_id: str
    status: str
    reserved: dict[str, float]
    settled: dict[str, float]
    budgets: list[BudgetView]


async def reserve(call: Call, arguments: ReserveArguments) -> Answer:
    """The amounts are held for this agent, or nothing is."""
    agent = await call.connection.agent()
    reservation = await agent.budgets.reserve(
        tokens=arguments.tokens,
        cost=arguments.cost,
        calls=arguments.calls,
        seconds=arguments.seconds,
        task=arguments.task_id,
        model=arguments.model,
        currency=arguments.currency,
        id=call.connection.id_for(agent, "reserve_budget", arguments.idempotency_key),
    )
    budgets = [one for one in await agent.budgets.list() if _applies(one, reservation)]
    if not budgets:
        text = f"Reserved as {reservation.id}: no budget limits it, it is only written down."
    else:
        text = f"Reserved as {reservation.id}. {_left(budgets)}"
    advice = f"do the work, then {call.names['settle_budget']} with what it really took."
    return Answer(text, _result(reservation, budgets), advice)


async def settle(call: Call, arguments: SettleArguments) -> Answer:
    """What was really spent is on record; the rest is free again."""
    agent = await call.connection.agent()
    if arguments.nothing_spent:
        reservation = await agent.budgets.release(arguments.reservation_id)
    else:
        reservation = await agent.budgets.settle(
            arguments.reservation_id,
            tokens=arguments.tokens,
            cost=arguments.cost,
            calls=arguments.calls,
            seconds=arguments.seconds,
        )
    budgets = [one for one in await agent.budgets.list() if _applies(one, reservation)]
    text = f"Reservation {reservation.id} is {reservation.status.value}. {_left(budgets)}".rstrip()
    advice = ""
    if any(one.remaining <= 0 and one.spent >= one.ceiling for one in budgets):
        advice = f'nothing more can be spent: end what you hold, {call.names["fail_task"]} with error="budget".'
    return Answer(text, _result(reservation, budgets), advice)


def _applies(budget: BudgetRecord, reservation: Reservation) -> bool:
    return (
        budget.unit in reservation.reserved
        and budget.agent_id in {None, reservation.agent_id}
        and budget.task_id in {None, reservation.task_id}
    )


def _left(budgets: list[BudgetRecord]) -> str:
    said = [
        f"{max(one.remaining, Decimal(0))} of {one.ceiling} {one.currency or one.unit.value} for "
        + {"session": "the session", "task": "the task"}.get(one.scope.value, quoted(one.agent_id, 100))
        for one in budgets
    ]
    return f"Left: {', '.join(said)}." if said else ""


def _result(reservation: Reservation, budgets: list[BudgetRecord]) -> ReservationResult:
    return ReservationResult(
        reservation_id=str(reservation.id),
        status=reservation.status.value,
        reserved={unit.value: float(amount) for unit, amount in reservation.reserved.items()},
        settled={unit.value: float(amount) for unit, amount in reservation.settled.items()},
        budgets=[
            BudgetView(
                scope=one.scope.value,
                unit=one.unit.value,
                currency=one.currency,
                ceiling=float(one.ceiling),
                spent=float(one.spent),
                reserved=float(one.reserved),
                remaining=float(one.remaining),
                resets_at=None if one.resets_at is None else one.resets_at.isoformat(),
            )
            for one in budgets
        ],
    )


BUDGET_TOOLS: tuple[Tool[Any], ...] = (
    Tool(
        "reserve_budget",
        "Reserve budget",
        "Before something costly: hold the tokens, money, calls or seconds that it may take, under every budget of "
        "the session, of you and of the task, or be told budget_exceeded. Then {settle_budget} with what it really "
        "took. What is never settled is freed when this server ends.",
        ReserveArguments,
        ReservationResult,
        reserve,
    ),
    Tool(
        "settle_budget",
        "Settle a reservation",
        "Put on record what was really spent, be it more or less than what {reserve_budget} held; the rest is free "
        "again. What you do not name is settled as it was reserved.",
        SettleArguments,
        ReservationResult,
        settle,
        idempotent=True,
    ),
)
