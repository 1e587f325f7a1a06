"""Many reserve, settle and release at once: counters are the ledger's sums to the last digit."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from blackboard.errors import BudgetExceeded

D = Decimal

_EXACT = """
SELECT b.unit, b.scope, b.ceiling, b.reserved, b.spent, b.opening,
       (SELECT coalesce(sum(s.reserved), 0) FROM blackboard.spend s
        WHERE s.session_id = b.session_id AND b.id = ANY (s.budget_ids) AND s.status = 'reserved') AS held,
       (SELECT coalesce(sum(s.settled), 0) FROM blackboard.spend s
        WHERE s.session_id = b.session_id AND b.id = ANY (s.budget_ids) AND s.status = 'settled'
          AND (b.period IS NULL OR s.settled_at >= b.window_start)) AS paid
FROM blackboard.budgets b WHERE b.session_id = $1
"""
_RESERVE = "SELECT reservation_id FROM blackboard.reserve_budget($1, $2, $3, $4, $5, $6, 'USD', NULL, NULL, NULL)"
_SETTLE = "SELECT status FROM blackboard.settle_budget($1, $2, $3, $4, 'USD', NULL, NULL, $5)"
_RELEASE = "SELECT status FROM blackboard.release_budget($1, $2, $3)"


async def exact(db: Any, session: Any) -> list[Any]:
    rows = await db.fetch(_EXACT, session.id)
    for row in rows:
        assert row["reserved"] == row["held"], row
        assert row["spent"] == row["opening"] + row["paid"], row
    return rows


async def test_the_ledger_sums_exactly_and_nobody_gets_over(session: Any, db: Any, connect: Any) -> None:
    agents = [f"ops/{name}" for name in "abcd"]
    for agent in agents:
        await session.join(agent)
        await session.budgets.set("cost", "3.7", agent_id=agent)
    tasks = [(await session.tasks.add("t")).id for _ in range(3)]
    await session.budgets.set("tokens", 60_000)
    await session.budgets.set("cost", "12.3456789")
    await session.budgets.set("calls", 700, soft=300)
    await session.budgets.set("tokens", 30_000, task_id=tasks[0])
    done = {"reserved": 0, "refused": 0, "settled": 0, "released": 0, "changed": 0}

    async def spend(seed: int) -> None:
        rng = random.Random(seed)
        connection = await connect()
        held: list[tuple[Any, str, dict[str, Decimal]]] = []
        for _ in range(400):
            if held and rng.random() < 0.5:
                key, agent, amounts = held.pop(rng.randrange(len(held)))
                if rng.random() < 0.4:
                    await connection.fetch(_RELEASE, session.id, key, agent)
                    done["released"] += 1
                else:
                    # Never more than was reserved: then nothing may ever be over a ceiling.
                    real = {unit: (amount * D(rng.random())).quantize(D("1e-9")) for unit, amount in amounts.items()}
                    for unit in ("tokens", "calls"):
                        if unit in real:
                            real[unit] = D(int(real[unit]))
                    await connection.fetch(_SETTLE, session.id, key, list(real), list(real.values()), agent)
                    done["settled"] += 1
                continue
            units = rng.sample(["tokens", "cost", "calls"], rng.randint(1, 3))  # in any order
            amounts = {
                unit: {"tokens": D(rng.randint(1, 900)), "calls": D(1), "cost": D(rng.randint(1, 10**8)) / 10**9}[unit]
                for unit in units
            }
            key, agent = uuid4(), rng.choice(agents)
            try:
                await connection.fetch(
                    _RESERVE, session.id, key, agent, rng.choice([*tasks, None]), units, list(amounts.values())
                )
            except asyncpg.PostgresError as error:
                done["refused" if error.sqlstate == "BB014" else f"error {error.sqlstate}"] += 1
            else:
                held.append((key, agent, amounts))
                done["reserved"] += 1

    async def watch(stop: asyncio.Event) -> None:
        while not stop.is_set():
            assert not await db.fetch(
                "SELECT id FROM blackboard.budgets WHERE session_id = $1 AND spent + reserved > ceiling", session.id
            )
            await exact(db, session)

    stop = asyncio.Event()
    watcher = asyncio.create_task(watch(stop))
    await asyncio.gather(*(spend(seed) for seed in range(8)))
    stop.set()
    await watcher
    assert sum(done.values()) == 8 * 400
    assert min(done["reserved"], done["settled"], done["released"]) > 100
    assert done["refused"] > 20
    rows = await exact(db, session)
    assert any(row["spent"] > 0 and row["reserved"] > 0 for row in rows)
    report = await session.budgets.report()
    totals = {usage.unit.value: (usage.reserved, usage.spent) for usage in report.totals}
    for row in rows:
        if row["scope"] == "session":
            assert totals[row["unit"]] == (row["reserved"], row["spent"])


async def test_two_who_want_the_last_one(session: Any, connect: Any, blocked: Any, db: Any) -> None:
    await session.join("ops/a")
    await session.budgets.set("calls", 1)
    first, second = await connect(), await connect()
    transaction = first.transaction()
    await transaction.start()
    await first.fetch(_RESERVE, session.id, uuid4(), "ops/a", None, ["calls"], [D(1)])
    waiting = asyncio.create_task(second.fetch(_RESERVE, session.id, uuid4(), "ops/a", None, ["calls"], [D(1)]))
    await blocked(second.get_server_pid())
    await transaction.commit()
    with pytest.raises(asyncpg.PostgresError) as caught:
        await waiting
    assert caught.value.sqlstate == "BB014"
    await exact(db, session)


async def test_the_same_id_from_two_at_once(session: Any, connect: Any, blocked: Any, db: Any) -> None:
    await session.join("ops/a")
    await session.budgets.set("calls", 1)
    first, second, key = await connect(), await connect(), uuid4()
    transaction = first.transaction()
    await transaction.start()
    await first.fetch(_RESERVE, session.id, key, "ops/a", None, ["calls"], [D(1)])
    waiting = asyncio.create_task(second.fetch(_RESERVE, session.id, key, "ops/a", None, ["calls"], [D(1)]))
    await blocked(second.get_server_pid())
    await transaction.commit()
    assert len(await waiting) == 1
    assert [row["reserved"] for row in await exact(db, session)] == [1]


async def test_a_budget_set_while_others_reserve_misses_nothing(
    session: Any, connect: Any, blocked: Any, db: Any
) -> None:
    await session.join("ops/a")
    spender, setter = await connect(), await connect()
    transaction = spender.transaction()
    await transaction.start()
    key = uuid4()
    await spender.fetch(_RESERVE, session.id, key, "ops/a", None, ["tokens"], [D(70)])
    setting = asyncio.create_task(
        setter.fetchrow(
            "SELECT * FROM blackboard.set_budget($1, 'tokens', 100, NULL, NULL, NULL, NULL, NULL, NULL)", session.id
        )
    )
    await blocked(setter.get_server_pid())
    await transaction.commit()
    assert (await setting)["reserved"] == 70
    # And the other way round.
    transaction = setter.transaction()
    await transaction.start()
    await setter.fetchrow(
        "SELECT * FROM blackboard.set_budget($1, 'tokens', 90, NULL, NULL, NULL, 'ops/a', NULL, NULL)", session.id
    )
    reserving = asyncio.create_task(spender.fetch(_RESERVE, session.id, uuid4(), "ops/a", None, ["tokens"], [D(25)]))
    await blocked(spender.get_server_pid())
    await transaction.commit()
    with pytest.raises(asyncpg.PostgresError) as caught:
        await reserving
    assert caught.value.sqlstate == "BB014"
    await spender.fetch(_SETTLE, session.id, key, ["tokens"], [D(50)], "ops/a")
    assert {(row["reserved"], row["spent"]) for row in await exact(db, session)} == {(0, 50)}


async def test_settling_while_a_budget_is_set(session: Any, connect: Any, db: Any) -> None:
    await session.join("ops/a")
    keys = [uuid4() for _ in range(60)]
    connections = [await connect() for _ in range(4)]
    for key in keys:
        await connections[0].fetch(_RESERVE, session.id, key, "ops/a", None, ["tokens"], [D(10)])

    async def settle(connection: Any, mine: list[Any]) -> None:
        for key in mine:
            await connection.fetch(_SETTLE, session.id, key, ["tokens", "calls"], [D(11), D(1)], "ops/a")

    async def change(connection: Any) -> None:
        for n in range(20):
            await connection.fetchrow(
                "SELECT * FROM blackboard.set_budget($1, $2, 1000, NULL, $3, NULL, $4, NULL, NULL)",
                session.id,
                ["tokens", "calls"][n % 2],
                None if n % 4 < 2 else timedelta(days=300),
                ["ops/a", None][n % 3 % 2],
            )

    await asyncio.gather(*(settle(c, keys[i::3]) for i, c in enumerate(connections[:3])), change(connections[3]))
    rows = await exact(db, session)
    assert {(row["unit"], row["reserved"], row["spent"]) for row in rows} == {("tokens", 0, 660), ("calls", 0, 60)}


async def test_a_storm_of_refusals_is_on_record_once(
    session: Any, connect: Any, db: Any, blocked: Callable[[int], Awaitable[None]]
) -> None:
    """Each agent and task once while nothing of the budget changes, however many are refused at the same time."""
    budget = await session.budgets.set("calls", 1)
    refuse = "SELECT blackboard.refuse_budget($1, $2, $3)"

    def facts(asked: int) -> str:
        return json.dumps({"budget": str(budget.id), "task_id": None, "asked": asked})

    async def said() -> list[str]:
        rows = await db.fetch("SELECT actor FROM blackboard.events WHERE type = 'budget.refused' ORDER BY seq")
        return [row["actor"] for row in rows]

    first, others = await connect(), [await connect() for _ in range(6)]
    async with first.transaction():
        assert await first.fetchval(refuse, session.id, "ops/a", facts(1)) is True
        waiting = [
            asyncio.create_task(other.fetchval(refuse, session.id, agent, facts(n)))
            for n, (other, agent) in enumerate(zip(others, ["ops/a"] * 4 + ["ops/b"] * 2, strict=True), start=2)
        ]
        for other in others:
            await blocked(other.get_server_pid())
    assert sum([await one for one in waiting]) == 1
    assert await said() == ["ops/a", "ops/b"]
    # By turns they say nothing more.
    for agent in ("ops/a", "ops/b") * 3:
        assert await db.fetchval(refuse, session.id, agent, facts(3)) is False
    # What changed is told again.
    await session.budgets.set("calls", 1, soft=1)
    assert [await db.fetchval(refuse, session.id, agent, facts(3)) for agent in ("ops/a", "ops/b", "ops/a")] == [
        True, True, False
    ]  # fmt: skip
    assert await said() == ["ops/a", "ops/b"] * 2


async def test_many_clients_that_are_refused_at_once(session: Any, db: Any) -> None:
    await session.budgets.set("calls", 1)
    agent = await session.join("ops/a")
    await agent.budgets.reserve(calls=1)
    found = await asyncio.gather(*(agent.budgets.reserve(calls=1) for _ in range(60)), return_exceptions=True)
    assert all(isinstance(one, BudgetExceeded) for one in found)
    assert await db.fetchval("SELECT count(*) FROM blackboard.events WHERE type = 'budget.refused'") == 1
