"""The tools that reserve and settle budgets."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest

from blackboard import Blackboard, Session

from .mcp_client import Speaker, speaking


@pytest.fixture
async def agent(board: Blackboard, session: Session) -> AsyncIterator[Speaker]:
    async with speaking(board, "ops/a", session.name) as speaker:
        yield speaker


async def test_reserve_and_settle(session: Session, agent: Speaker) -> None:
    await agent("join_session")
    task = await session.tasks.add("t")
    await session.budgets.set("tokens", 1000)
    await session.budgets.set("cost", 1, agent_id="ops/a")
    await session.budgets.set("calls", 9, agent_id="ops/b")
    arguments = {"tokens": 800, "cost": 0.25, "task_id": str(task.id), "model": "large", "idempotency_key": "k"}
    held = await agent("reserve_budget", **arguments)
    assert (held["status"], held["reserved"]) == ("reserved", {"cost": 0.25, "tokens": 800})
    assert {(one["scope"], one["unit"], one["remaining"]) for one in held["budgets"]} == {
        ("session", "tokens", 200),
        ("agent", "cost", 0.75),
    }
    assert "swarm_settle_budget" in held["next"]
    assert await agent("reserve_budget", **arguments) == held
    text, error = await agent.refused("reserve_budget", tokens=201)
    assert (error["code"], error["details"]["asked"]) == ("budget_exceeded", 201)
    assert "Reserve less" in text
    settled = await agent("settle_budget", reservation_id=held["reservation_id"], tokens=1200, cost=0.3)
    assert (settled["status"], settled["settled"]) == ("settled", {"cost": 0.3, "tokens": 1200})
    assert "swarm_fail_task" in settled["next"]
    assert await agent("settle_budget", reservation_id=held["reservation_id"], tokens=1200, cost=0.3) == settled
    _, error = await agent.refused("settle_budget", reservation_id=held["reservation_id"], tokens=1)
    assert error["code"] == "idempotency_conflict"
    free = await agent("reserve_budget", calls=1)
    assert free["budgets"] == []
    assert "no budget limits it" in await agent.text("reserve_budget", calls=1)
    released = await agent("settle_budget", reservation_id=free["reservation_id"], nothing_spent=True)
    assert released["status"] == "released"
    text, error = await agent.refused("settle_budget", reservation_id=str(uuid.uuid4()))
    assert (error["details"]["noun"], "swarm_reserve_budget" in text) == ("reservation", True)
    _, error = await agent.refused("reserve_budget")
    assert error["code"] == "invalid_input"
