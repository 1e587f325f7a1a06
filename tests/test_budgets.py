"""Budgets: reserve, settle, release; ceilings, windows, events, expiry, the report."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest

from blackboard import Blackboard
from blackboard.errors import (
    BudgetExceeded,
    IdempotencyConflict,
    InvalidInput,
    InvalidTransition,
    NotFound,
    NotPermitted,
    SessionClosed,
    TransientError,
)
from blackboard.sync import Blackboard as SyncBlackboard

D = Decimal


@pytest.fixture(name="agent")
async def _agent(session: Any) -> Any:
    return await session.join("ops/a")


async def events(db: Any, session: Any) -> list[tuple[str, str, dict[str, Any]]]:
    rows = await db.fetch(
        "SELECT type, actor, data FROM blackboard.events WHERE session_id = $1 AND type LIKE 'budget.%' ORDER BY seq",
        session.id,
    )
    return [(row["type"].partition(".")[2], row["actor"], json.loads(row["data"])) for row in rows]


async def counters(session: Any) -> dict[tuple[str, str], tuple[Decimal, Decimal]]:
    return {(b.scope.value, b.unit.value): (b.reserved, b.spent) for b in await session.budgets.list()}


async def test_reserve_settle_release(session: Any, agent: Any, db: Any) -> None:
    budget = await session.budgets.set("tokens", 10_000, soft=8_000)
    assert (budget.ceiling, budget.remaining, budget.scope, budget.window) == (10_000, 10_000, "session", None)
    held = await agent.budgets.reserve(tokens=5000, model="large", note="first look")
    assert (held.status, held.reserved, held.settled) == ("reserved", {"tokens": 5000}, {})
    assert await counters(session) == {("session", "tokens"): (5000, 0)}
    settled = await agent.budgets.settle(held, tokens=4123)
    assert (settled.status, settled.settled, settled.model) == ("settled", {"tokens": 4123}, "large")
    other = await agent.budgets.reserve(tokens=5877)
    assert (await agent.budgets.release(other)).status == "released"
    assert await counters(session) == {("session", "tokens"): (0, 4123)}
    assert await agent.budgets.get(held.id) == settled
    found = await events(db, session)
    assert [(kind, actor) for kind, actor, _ in found] == [
        ("set", "tester"),
        ("reserved", "ops/a"),
        ("settled", "ops/a"),
        ("reserved", "ops/a"),
        ("released", "ops/a"),
    ]
    assert found[0][2] == {
        "scope": "session", "agent_id": None, "task_id": None, "unit": "tokens", "currency": None, "ceiling": 10000,
        "soft": 8000, "period": None,
    }  # fmt: skip
    assert found[1][2]["reserved"] == {"tokens": 5000}
    assert found[1][2]["budget_ids"] == [str(budget.id)]
    assert found[2][2] == {
        "status": "settled", "agent_id": "ops/a", "task_id": None, "model": "large", "currency": None,
        "settled": {"tokens": 4123},
    }  # fmt: skip


async def test_every_budget_that_applies_or_none(session: Any, agent: Any, db: Any) -> None:
    task = await session.tasks.add("investigate")
    other = await session.tasks.add("investigate")
    await session.budgets.set("tokens", 1000)
    await session.budgets.set("tokens", 600, agent_id="ops/a")
    await session.budgets.set("tokens", 300, task_id=task.id)
    await session.budgets.set("cost", "0.50", task_id=task.id, currency="EUR")
    await session.budgets.set("calls", 2, agent_id="ops/b")  # somebody who has not joined
    with pytest.raises(BudgetExceeded) as caught:
        await agent.budgets.reserve(tokens=200, cost=0.6, calls=1, task=task.id, currency="EUR")
    error = caught.value
    assert (error.code, error.unit, error.scope, error.retryable) == ("budget_exceeded", "cost", "task", False)
    assert (error.ceiling, error.spent, error.reserved, error.asked) == (0.5, 0, 0, 0.6)
    assert (error.agent_id, error.task_id, error.resets_at) == ("ops/a", str(task.id), None)
    assert "budget set" in error.message
    assert set((await counters(session)).values()) == {(0, 0)}
    assert await agent.budgets.ledger() == []
    await agent.budgets.reserve(tokens=200, cost=0.5, calls=1, task=task.id, currency="EUR")
    with pytest.raises(BudgetExceeded) as caught:
        await agent.budgets.reserve(tokens=101, task=task.id)
    assert (caught.value.scope, caught.value.reserved) == ("task", 200)
    await agent.budgets.reserve(tokens=400, task=other.id)
    with pytest.raises(BudgetExceeded) as caught:
        await agent.budgets.reserve(tokens=1)
    assert (caught.value.scope, caught.value.agent_id) == ("agent", "ops/a")
    b = await session.join("ops/b")
    await b.budgets.reserve(tokens=400)
    with pytest.raises(BudgetExceeded) as caught:
        await b.budgets.reserve(calls=1, tokens=1)
    assert caught.value.scope == "session"
    assert sum(kind == "refused" for kind, _, _ in await events(db, session)) == 4


async def test_a_refusal_is_on_record_once_while_nothing_changes(session: Any, agent: Any, db: Any) -> None:
    budget = await session.budgets.set("calls", 1)
    await agent.budgets.reserve(calls=1)
    for _ in range(3):
        with pytest.raises(BudgetExceeded):
            await agent.budgets.reserve(calls=1)
    refusals = [(actor, data) for kind, actor, data in await events(db, session) if kind == "refused"]
    assert refusals == [
        (
            "ops/a",
            {
                "agent_id": "ops/a", "task_id": None, "scope": "session", "unit": "calls", "currency": None, "asked": 1,
                "ceiling": 1, "spent": 0, "reserved": 1,
            },
        )
    ]  # fmt: skip
    await session.budgets.set("calls", 1, soft=1)
    with pytest.raises(BudgetExceeded):
        await agent.budgets.reserve(calls=1)
    assert sum(kind == "refused" for kind, _, _ in await events(db, session)) == 2
    assert await db.fetchval("SELECT blackboard.refuse_budget($1, 'x', $2)", session.id, '{"budget": null}') is False
    big = json.dumps({"budget": str(budget.id), "asked": list(range(3000))})
    assert await db.fetchval("SELECT blackboard.refuse_budget($1, 'x', $2)", session.id, big) is False


async def test_the_truth_may_exceed_the_ceiling_and_stops_everything(session: Any, agent: Any, db: Any) -> None:
    await session.budgets.set("tokens", 100, soft=80)
    held = await agent.budgets.reserve(tokens=90)
    assert not await agent.budgets.over()
    await agent.budgets.settle(held, tokens=130)
    (budget,) = await session.budgets.list()
    assert (budget.spent, budget.remaining) == (130, -30)
    assert await agent.budgets.over()
    assert [kind for kind, _, _ in await events(db, session)][-3:] == ["warned", "exceeded", "settled"]
    for amount in (1, 0):
        with pytest.raises(BudgetExceeded):
            await agent.budgets.reserve(tokens=amount)
    late = await agent.budgets.reserve(calls=1)  # no budget of calls
    assert (await agent.budgets.settle(late, tokens=5)).settled == {"calls": 1, "tokens": 5}
    assert (await session.budgets.list())[0].spent == 135
    found = await events(db, session)
    assert sum(kind == "exceeded" for kind, _, _ in found) == 1
    data = next(data for kind, _, data in found if kind == "exceeded")
    assert (data["ceiling"], data["spent"], data["unit"]) == (100, 130, "tokens")
    raised = await session.budgets.set("tokens", 200)
    assert (raised.id, raised.spent) == (budget.id, 135)
    assert not await agent.budgets.over()
    await agent.budgets.reserve(tokens=65)
    await session.budgets.set("tokens", 150)
    assert [kind for kind, _, _ in await events(db, session)][-1] == "updated"
    assert (await session.budgets.set("tokens", 100)).remaining == -100
    assert [kind for kind, _, _ in await events(db, session)][-2:] == ["updated", "exceeded"]


async def test_a_unit_that_is_not_named_is_settled_as_reserved(session: Any, agent: Any) -> None:
    held = await agent.budgets.reserve(tokens=10, calls=1, cost="0.1")
    settled = await agent.budgets.settle(held, tokens=7, cost=D("0.25"), model="m", note="n")
    assert settled.settled == {"tokens": 7, "calls": 1, "cost": D("0.25")}
    assert (settled.model, settled.note, settled.currency) == ("m", "n", "USD")
    euro = await agent.budgets.reserve(cost=1, currency="EUR")
    assert (await agent.budgets.settle(euro.id, cost=2)).settled == {"cost": 2}
    with pytest.raises(InvalidInput) as caught:
        await agent.budgets.settle(await agent.budgets.reserve(cost=1, currency="EUR"), cost=1, currency="USD")
    assert caught.value.field == "currency"


async def test_settling_and_releasing_again(session: Any, agent: Any, db: Any) -> None:
    await session.budgets.set("tokens", 100)
    held = await agent.budgets.reserve(tokens=10, calls=1)
    assert await agent.budgets.settle(held, tokens=5) == await agent.budgets.settle(held, tokens=5)
    for again in ({"tokens": 6}, {}, {"tokens": 5, "calls": 2}, {"tokens": 5, "seconds": 1}):
        with pytest.raises(IdempotencyConflict):
            await agent.budgets.settle(held, **again)
    with pytest.raises(InvalidTransition):
        await agent.budgets.release(held)
    other = await agent.budgets.reserve(tokens=10)
    assert await agent.budgets.release(other.id) == await agent.budgets.release(other)
    with pytest.raises(InvalidTransition):
        await agent.budgets.settle(other)
    for verb in (agent.budgets.settle, agent.budgets.release, agent.budgets.get):
        with pytest.raises(NotFound):
            await verb(uuid4())
    kinds = [kind for kind, _, _ in await events(db, session)]
    assert kinds == ["set", "reserved", "settled", "reserved", "released"]
    assert await counters(session) == {("session", "tokens"): (0, 5)}


async def test_the_same_id_reserves_once(session: Any, agent: Any) -> None:
    await session.budgets.set("tokens", 10)
    key = uuid4()
    first = await agent.budgets.reserve(tokens=10, id=key)
    assert await agent.budgets.reserve(tokens=10, id=str(key)) == first
    b = await session.join("ops/b")
    for again in (
        agent.budgets.reserve(tokens=9, id=key),
        agent.budgets.reserve(tokens=10, calls=1, id=key),
        agent.budgets.reserve(calls=1, id=key),
        b.budgets.reserve(tokens=10, id=key),
    ):
        with pytest.raises(IdempotencyConflict):
            await again
    settled = await agent.budgets.settle(first, seconds=2)
    assert (await agent.budgets.reserve(tokens=10, id=key)).status == "settled"
    assert settled.settled == {"tokens": 10, "seconds": 2}


async def test_the_block(session: Any, agent: Any, db: Any) -> None:
    await session.budgets.set("tokens", 100)
    async with agent.budgets.spend(tokens=50, seconds=60, model="small") as spend:
        assert await counters(session) == {("session", "tokens"): (50, 0)}
        spend.tokens = 40
        spend.model = "small-2"
    done = await agent.budgets.get(spend.reservation.id)
    assert (done.settled["tokens"], done.model) == (40, "small-2")
    assert 0 < done.settled["seconds"] < 30
    with pytest.raises(RuntimeError, match="broken"):
        async with agent.budgets.spend(tokens=50) as spend:
            raise RuntimeError("broken")
    assert (await agent.budgets.get(spend.reservation.id)).status == "released"
    with pytest.raises(RuntimeError, match="later"):
        async with agent.budgets.spend(tokens=50, calls=1) as spend:
            spend.tokens = 20
            raise RuntimeError("later")
    assert (await agent.budgets.get(spend.reservation.id)).settled == {"tokens": 20, "calls": 1}
    async with agent.budgets.spend(tokens=10):
        pass
    assert await counters(session) == {("session", "tokens"): (0, 70)}
    with pytest.raises(BudgetExceeded):
        async with agent.budgets.spend(tokens=31):
            pytest.fail("never entered")

    async def cancelled() -> None:
        async with agent.budgets.spend(tokens=10):
            entered.set()
            await asyncio.Event().wait()

    entered = asyncio.Event()
    running = asyncio.create_task(cancelled())
    await entered.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await counters(session) == {("session", "tokens"): (0, 70)}


@pytest.mark.parametrize(
    ("amounts", "field"),
    [
        ({}, "tokens"),
        ({"tokens": -1}, "tokens"),
        ({"tokens": 1.5}, "tokens"),
        ({"calls": D("0.5")}, "calls"),
        ({"cost": float("nan")}, "cost"),
        ({"tokens": True}, "tokens"),
        ({"cost": float("inf")}, "cost"),
        ({"cost": "many"}, "cost"),
        ({"cost": object()}, "cost"),
        ({"seconds": 1e16}, "seconds"),
        ({"cost": "1e-13"}, "cost"),
        ({"cost": 1, "currency": "usd"}, "currency"),
        ({"cost": 1, "currency": "ÄÖÜ"}, "currency"),
        ({"tokens": 1, "model": ""}, "model"),
        ({"tokens": 1, "note": "x" * 1001}, "note"),
        ({"tokens": 1, "task": "x"}, "task"),
        ({"tokens": 1, "id": "x"}, "id"),
    ],
)
async def test_refused_amounts(agent: Any, amounts: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await agent.budgets.reserve(**amounts)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"unit": "pages", "ceiling": 1}, "unit"),
        ({"unit": "tokens", "ceiling": -1}, "ceiling"),
        ({"unit": "tokens", "ceiling": float("nan")}, "ceiling"),
        ({"unit": "tokens", "ceiling": 10, "soft": 11}, "soft"),
        ({"unit": "tokens", "ceiling": 10, "currency": "USD"}, "currency"),
        ({"unit": "cost", "ceiling": 10, "currency": "$"}, "currency"),
        ({"unit": "tokens", "ceiling": 10, "window": timedelta(milliseconds=1)}, "window"),
        ({"unit": "tokens", "ceiling": 10, "window": timedelta(days=367)}, "window"),
        ({"unit": "tokens", "ceiling": 10, "agent_id": ""}, "agent_id"),
        ({"unit": "tokens", "ceiling": 10, "task_id": "x"}, "task_id"),
        ({"unit": "tokens", "ceiling": 10, "task_id": uuid4(), "agent_id": "a"}, "task_id"),
    ],
)
async def test_refused_budgets(session: Any, arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await session.budgets.set(arguments.pop("unit"), arguments.pop("ceiling"), **arguments)
    assert caught.value.field == field


async def test_who_may_and_what_must_exist(session: Any, agent: Any, board: Blackboard) -> None:
    with pytest.raises(NotFound):
        await session.budgets.set("tokens", 1, task_id=uuid4())
    with pytest.raises(NotFound) as caught:
        await agent.budgets.reserve(tokens=1, task=uuid4())
    assert caught.value.noun == "task"
    with pytest.raises(InvalidInput) as refused:
        await session.budgets.reserve(tokens=1)
    assert refused.value.field == "agent_id"
    await session.budgets.set("cost", 1)
    with pytest.raises(InvalidInput) as refused:
        await agent.budgets.reserve(cost=0.1, currency="EUR")
    assert (refused.value.field, refused.value.currency) == ("currency", "USD")
    await agent.leave()
    with pytest.raises(NotPermitted):
        await agent.budgets.reserve(tokens=1)
    agent = await session.join("ops/a")
    held = await agent.budgets.reserve(cost=0.1, tokens=1)
    await session.close()
    for call in (agent.budgets.reserve(tokens=1), session.budgets.set("calls", 1), session.budgets.remove("cost")):
        with pytest.raises(SessionClosed):
            await call
    # What was spent was spent.
    assert (await agent.budgets.settle(held, cost=0.2, seconds=3)).settled == {
        "cost": D("0.2"),
        "tokens": 1,
        "seconds": 3,
    }
    assert (await session.budgets.list())[0].spent == D("0.2")
    with pytest.raises(InvalidInput):
        await agent.budgets.ledger(status="paid")


async def test_a_new_budget_knows_what_was_spent_before(session: Any, agent: Any) -> None:
    task = await session.tasks.add("t")
    await agent.budgets.settle(await agent.budgets.reserve(tokens=10, task=task.id), tokens=40)
    await agent.budgets.release(await agent.budgets.reserve(tokens=500))
    held = await agent.budgets.reserve(tokens=20, task=task.id)
    await (await session.join("ops/b")).budgets.reserve(tokens=7)
    for subject, reserved in (({}, 27), ({"agent_id": "ops/a"}, 20), ({"task_id": task.id}, 20)):
        budget = await session.budgets.set("tokens", 100, **subject)
        assert (budget.spent, budget.opening, budget.reserved) == (40, 40, reserved)
    await agent.budgets.settle(held, tokens=25)
    assert {(b.spent, b.reserved) for b in await session.budgets.list()} == {(65, 7), (65, 0)}
    assert await session.budgets.remove("tokens") is True
    assert await session.budgets.remove("tokens") is False
    again = await session.budgets.set("tokens", 60)
    assert (again.spent, again.reserved) == (65, 7)


async def test_windows(session: Any, agent: Any, clock: Any, db: Any) -> None:
    day = timedelta(days=1)
    budget = await session.budgets.set("calls", 2, soft=1, window=day)
    assert budget.window_start.astimezone(UTC).timetuple()[3:6] == (0, 0, 0)
    assert budget.resets_at - budget.window_start == day
    await agent.budgets.settle(await agent.budgets.reserve(calls=1))
    over = await agent.budgets.reserve(calls=1)
    with pytest.raises(BudgetExceeded) as caught:
        await agent.budgets.reserve(calls=1)
    assert caught.value.resets_at is not None
    assert "next window" in caught.value.message
    await agent.budgets.settle(over, calls=2)
    assert await agent.budgets.over()
    held = await agent.budgets.reserve(tokens=1)
    await clock.advance(day)
    assert not await agent.budgets.over()
    (seen,) = await session.budgets.list()
    assert (seen.spent, seen.opening, seen.remaining, seen.window_start - budget.window_start) == (0, 0, 2, day)
    await agent.budgets.settle(held, calls=1)  # in the window in which it is settled
    await agent.budgets.reserve(calls=1)
    (seen,) = await session.budgets.list()
    assert (seen.spent, seen.reserved) == (1, 1)
    assert [kind for kind, _, _ in await events(db, session) if kind in {"warned", "exceeded"}] == [
        "warned",
        "exceeded",
        "warned",
    ]
    # Another window is another budget, which knows what was spent in it.
    weekly = await session.budgets.set("calls", 10, window=timedelta(days=7))
    assert weekly.id != budget.id
    assert weekly.reserved == 1
    assert weekly.spent in {1, 4}  # the clock may have crossed a Monday
    assert weekly.window_start.astimezone(UTC).weekday() == 0
    assert (await session.budgets.set("calls", 10)).spent == 4


async def test_what_a_silent_process_held_expires(
    session: Any, agent: Any, database_url: str, clock: Any, db: Any
) -> None:
    await session.budgets.set("tokens", 100)
    other = await Blackboard.open(database_url)
    lost = await (await (await other.session(session.id)).join("ops/b")).budgets.reserve(tokens=60, calls=1)
    lease = await other._leases.current()
    with pytest.raises(BudgetExceeded):
        await agent.budgets.reserve(tokens=50)
    await db.execute("UPDATE blackboard.leases SET lapsed_at = blackboard.now() WHERE id = $1", lease)
    await agent.budgets.reserve(tokens=50)
    assert await counters(session) == {("session", "tokens"): (50, 0)}
    found = await events(db, session)
    assert found[-2][0] == "expired"
    assert found[-2][2]["reserved"] == {"tokens": 60, "calls": 1}
    assert (await session.budgets.get(lost.id)).status == "expired"
    # Its holder was only slow.
    assert (await session.budgets.release(lost)).status == "expired"
    assert (await session.budgets.settle(lost, tokens=55)).settled == {"tokens": 55, "calls": 1}
    assert await counters(session) == {("session", "tokens"): (50, 55)}
    await other.close()


async def test_a_reservation_without_a_lease_expires_after_an_hour(
    session: Any, agent: Any, clock: Any, db: Any
) -> None:
    await db.execute(
        "SELECT blackboard.reserve_budget($1, gen_random_uuid(), 'ops/a', NULL, '{calls}', '{1}', NULL, NULL, NULL, "
        "NULL)",
        session.id,
    )
    assert await session.budgets.expire() == 0
    await clock.advance(timedelta(minutes=61))
    assert (await session.budgets.report()).totals[0].reserved == 0
    (entry,) = await session.budgets.ledger(status="expired")
    assert (entry.agent_id, entry.reserved, entry.lease_id) == ("ops/a", 1, None)


async def test_expiry_is_bounded(session: Any, agent: Any, db: Any, clock: Any) -> None:
    for _ in range(5):
        await db.execute(
            "SELECT blackboard.reserve_budget($1, gen_random_uuid(), 'ops/a', NULL, '{calls}', '{1}', NULL, NULL, "
            "NULL, NULL)",
            session.id,
        )
    await session.budgets.set("calls", 5)
    await clock.advance(timedelta(hours=2))
    assert await session.budgets.expire(limit=3) == 3
    assert await session.budgets.expire() == 2
    assert await session.budgets.expire() == 0


async def test_a_lease_that_lapsed_is_replaced(session: Any, agent: Any, board: Blackboard, db: Any) -> None:
    lease = await board._leases.current()
    await db.execute("UPDATE blackboard.leases SET lapsed_at = blackboard.now() WHERE id = $1", lease)
    held = await agent.budgets.reserve(tokens=1)
    (entry,) = await session.budgets.ledger()
    assert entry.reservation_id == held.id
    assert entry.lease_id not in {None, lease}


async def test_the_report(session: Any, agent: Any) -> None:
    b = await session.join("ops/b")
    task = await session.tasks.add("t")
    await session.budgets.set("cost", 10)
    await agent.budgets.settle(await agent.budgets.reserve(tokens=10, cost=1, task=task.id, model="large"), cost="1.5")
    await b.budgets.settle(await b.budgets.reserve(tokens=30, model="small"))
    await b.budgets.reserve(cost="0.25", model="small")
    report = await session.budgets.report()
    assert [(u.unit, u.currency, u.spent, u.reserved, u.reservations) for u in report.totals] == [
        ("cost", "USD", D("1.5"), D("0.25"), 2),
        ("tokens", None, 40, 0, 2),
    ]
    assert {(u.key, u.unit): (u.spent, u.reserved) for u in report.agents} == {
        ("ops/a", "cost"): (D("1.5"), 0),
        ("ops/a", "tokens"): (10, 0),
        ("ops/b", "cost"): (0, D("0.25")),
        ("ops/b", "tokens"): (30, 0),
    }
    assert {(u.key, u.unit): u.spent for u in report.tasks} == {
        (str(task.id), "cost"): D("1.5"), (str(task.id), "tokens"): 10, (None, "cost"): 0, (None, "tokens"): 30,
    }  # fmt: skip
    assert {(u.key, u.unit): u.spent for u in report.models} == {
        ("large", "cost"): D("1.5"), ("large", "tokens"): 10, ("small", "cost"): 0, ("small", "tokens"): 30,
    }  # fmt: skip
    assert [(x.remaining, x.currency) for x in report.budgets] == [(D("8.25"), "USD")]
    assert len(await session.budgets.ledger(agent_id="ops/a")) == 2
    assert len(await session.budgets.ledger(task_id=task.id)) == 2
    assert [entry.agent_id for entry in await session.budgets.ledger(limit=1)] == ["ops/b"]


async def test_why_a_task_cannot_spend(session: Any, agent: Any, db: Any) -> None:
    task = await session.tasks.add("t", assigned_to="ops/a")
    reason = "SELECT blackboard.budget_reason($1, $2)"
    over = "SELECT blackboard.over_budget($1, $2, $3)"
    await session.budgets.set("calls", 1, agent_id="ops/a")
    assert await db.fetchval(reason, session.id, task.id) is None
    await agent.budgets.settle(await agent.budgets.reserve(calls=1))
    found = json.loads(await db.fetchval(reason, session.id, task.id))
    assert (found["code"], found["scope"], found["agent_id"], found["spent"]) == ("budget", "agent", "ops/a", 1)
    assert found["message"] == "The budget of calls for ops/a is used up: 1 of 1 are spent."
    assert await db.fetchval(over, session.id, "ops/a", None) is True
    assert await db.fetchval(over, session.id, "ops/b", None) is False
    assert await db.fetchval(over, session.id, "ops/b", task.id) is False
    await session.budgets.set("calls", 0, task_id=task.id)
    assert await db.fetchval(over, session.id, "ops/b", task.id) is True
    assert await session.budgets.over(agent_id="ops/b", task_id=task.id) is True


async def test_in_the_callers_own_transaction(session: Any, agent: Any, board: Blackboard, connect: Any) -> None:
    await session.budgets.set("tokens", 100)
    connection = await connect()
    for isolation in ("read_committed", "repeatable_read", "serializable"):
        transaction = connection.transaction(isolation=isolation)
        await transaction.start()
        bound = board.bind(connection).agent(agent)
        held = await bound.budgets.reserve(tokens=10)
        await bound.budgets.settle(held, tokens=5)
        await transaction.commit()
    assert await counters(session) == {("session", "tokens"): (0, 15)}
    transaction = connection.transaction()
    await transaction.start()
    with pytest.raises(BudgetExceeded):
        await board.bind(connection).agent(agent).budgets.reserve(tokens=90)
    await transaction.rollback()
    transaction = connection.transaction(isolation="repeatable_read")
    await transaction.start()
    await connection.execute("SELECT 1 FROM blackboard.budgets")
    await agent.budgets.reserve(tokens=10)
    with pytest.raises(TransientError):
        await board.bind(connection).agent(agent).budgets.reserve(tokens=10)
    await transaction.rollback()
    assert await counters(session) == {("session", "tokens"): (10, 15)}


def test_the_blocking_twin(database_url: str) -> None:
    with SyncBlackboard.open(database_url) as board:
        session = board.start("s")
        agent = session.join("ops/a")
        session.budgets.set("cost", 5, window=timedelta(days=7))
        with agent.budgets.spend(cost=D("0.30"), model="large") as spend:
            spend.cost = D("0.27")
        assert session.budgets.report().totals[0].spent == D("0.27")
        with pytest.raises(BudgetExceeded):
            agent.budgets.reserve(cost=5)
