"""Limits, pauses and their like under least privileges."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import psycopg
import pytest

from blackboard import Blackboard, NewTask, Stage
from blackboard.errors import NotPermitted
from blackboard.models.tasks import Unique

from . import test_cli_grants

pytestmark = pytest.mark.fresh_database

# The fixtures that make roles.
_cli = vars(test_cli_grants)["_cli"]
_role = vars(test_cli_grants)["_role"]


async def test_an_agent_works_behind_gates(role: Callable[[str], str]) -> None:
    async with Blackboard.open(role("agent")) as board:
        session = await board.start("life")
        await session.configure(ageing=timedelta(minutes=1), retention=timedelta(days=1))
        agent = await session.join("ops/a", capabilities=["c"])
        await session.limits.set("one", max_running=1, per_key=True)
        await session.limits.set("rate", rate_count=100, rate_period=timedelta(minutes=1))
        await session.tasks.add_many([NewTask(type="t", limit_key="k") for _ in range(3)])
        await session.tasks.add("u", unique=Unique(key="k"), fallback=timedelta(0), assigned_to="ops/b")
        await session.tasks.add("u", unique=Unique(key="k"))
        await agent.tasks.pause(type="u", reason="x")
        [task] = await agent.tasks.claim(5)
        assert {reason.code for reason in (await session.tasks.why(task.id)).reasons} == {"running"}
        await agent.tasks.complete(task)
        assert await agent.tasks.resume(type="u") == 1
        assert len(await agent.tasks.claim(5)) >= 1
        assert await session.limits.check() == []
        assert await session.limits.remove("one") + await session.limits.remove("rate") == 1
        with pytest.raises(NotPermitted):
            await session.tasks.prune()


@pytest.mark.parametrize(
    "call",
    [
        "return_held(gen_random_uuid(), 'paused', 'x', '', NULL, 5)",
        "gate_tasks(gen_random_uuid(), '{}', 5, now())",
        "tend_gates(gen_random_uuid(), now())",
        'unique_tasks(gen_random_uuid(), ARRAY[gen_random_uuid()], ARRAY[\'{"unique": {"key": "k"}}\'::jsonb])',
        "retire_limit(gen_random_uuid(), gen_random_uuid(), 5)",
        "retire_pause(gen_random_uuid(), gen_random_uuid(), 5)",
        "refresh_gated(gen_random_uuid())",
        "prune_tasks(gen_random_uuid(), now(), '{}', NULL, 5, true, NULL)",
        "prune_flows(gen_random_uuid(), now(), '{}', NULL, 5, true, NULL)",
    ],
)
def test_a_reader_cannot_change_what_the_owner_keeps(role: Callable[[str], str], call: str) -> None:
    with (
        psycopg.connect(role("reader"), autocommit=True) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(f"SELECT blackboard.{call}".encode())


async def test_flows_are_pruned_by_the_owner_only(role: Callable[[str], str]) -> None:
    url = role("agent")
    async with Blackboard.open(url) as board:
        session = await board.start("flows")
        flow = await session.flows.create("f", [Stage("a", "t")])
        await session.flows.cancel(flow.id)
    with psycopg.connect(url, autocommit=True) as connection:
        for dry_run in ("true", "false"):
            call = f"SELECT blackboard.prune_flows(%s, now(), '{{cancelled}}', NULL, 5, {dry_run}, NULL)"
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(call.encode(), [session.id])
        for table in ("flow_tasks", "flow_edges", "flow_stages", "flows"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(
                    f"SET xmloption = 'document'; SET blackboard.pruning = 'on'; DELETE FROM blackboard.{table}".encode()
                )


async def test_an_agent_cannot_prune_a_flow_without_tasks(role: Callable[[str], str], database_url: str) -> None:
    url = role("agent")
    async with Blackboard.open(database_url) as board:
        session = await board.start("flows")
        flow = await session.flows.create("f", [Stage("a", "t")])
        await session.flows.cancel(flow.id)
        call = "SELECT pruned FROM blackboard.{}(%s, blackboard.now(), '{{cancelled}}', NULL, 5, false, NULL)"
        with psycopg.connect(database_url, autocommit=True) as owner:
            owner.execute(call.format("prune_tasks").encode(), [session.id])
        with (
            psycopg.connect(url, autocommit=True) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute(call.format("prune_flows").encode(), [session.id])
        assert await session.flows.get(flow.id)
        assert (await session.tasks.prune(older_than=timedelta(0))).flows == 1
