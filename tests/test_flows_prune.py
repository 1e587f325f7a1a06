"""Finished flows go with their tasks when old ones are pruned, and nothing else does."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import After, Agent, Session, Stage, sequential
from blackboard.errors import NotFound, NotPermitted
from blackboard.models.flows import FlowRecord
from blackboard.store.driver_errors import from_asyncpg

from .conftest import Clock, Connect

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

NOW = timedelta(0)
DAY = timedelta(days=1)
EVERY = ["completed", "failed", "cancelled", "dead"]
TABLES = ("flows", "flow_stages", "flow_edges", "flow_tasks")


@pytest.fixture
async def agent(session: Session) -> Agent:
    return await session.join("ops/worker")


async def run(agent: Agent, name: str = "f", stages: int = 2, *, fail: bool = False) -> FlowRecord:
    """A flow of so many stages in a row that is over."""
    flow = await agent.flows.create(name, sequential(*(Stage(f"s{n}", "t") for n in range(stages))))
    for stage in flow.stages:
        task = await agent.tasks.claim_by_id(stage.task_id)
        assert task is not None
        if fail:
            await agent.tasks.fail(task, "broken", retry=False)
            break
        await agent.tasks.complete(task, {"of": stage.name})
    return await agent.flows.get(flow.id)


async def rows(db: Connection, flow: FlowRecord | None = None) -> dict[str, int]:
    """How many rows each table of flows has, of one flow or in all."""
    found: dict[str, int] = {}
    for table in TABLES:
        column = "id" if table == "flows" else "flow_id"
        where = "" if flow is None else f" WHERE {column} = '{flow.id}'"
        found[table] = await db.fetchval(f"SELECT count(*) FROM blackboard.{table}{where}")
    return found


async def kinds(session: Session, flow: FlowRecord) -> list[str]:
    page = await session.events.read(subject_id=flow.id, limit=10_000)
    return [event.type for event in page.events]


async def pruned(session: Session, **options: Any) -> tuple[int, int]:
    """How many tasks and flows a prune takes, and that a dry run beforehand says the same."""
    before = await session.tasks.prune(dry_run=True, **options)
    found = await session.tasks.prune(**options)
    assert (before.tasks, before.flows) == (found.tasks, found.flows)
    return found.tasks, found.flows


async def test_a_finished_flow_goes_with_its_tasks(session: Session, agent: Agent, db: Connection) -> None:
    flow = await run(agent)
    failed = await run(agent, "g", fail=True)
    waiting = await session.flows.create("h", [Stage("a", "t"), Stage("b", "t", after=["a"])])
    said = await kinds(session, flow)
    dry = await session.tasks.prune(older_than=NOW, dry_run=True)
    assert (dry.tasks, dry.flows) == (4, 2)
    assert (await rows(db, flow))["flow_tasks"] == 2
    assert await pruned(session, older_than=NOW) == (4, 2)
    for gone in (flow, failed):
        assert set((await rows(db, gone)).values()) == {0}
        with pytest.raises(NotFound):
            await session.flows.get(gone.id)
    assert [one.id for one in await session.flows.list()] == [waiting.id]
    assert (await session.flows.get(waiting.id)).stages == waiting.stages
    # One short event, in place of one for each stage and edge.
    assert (await kinds(session, flow)) == [*said, "flow.pruned"]
    page = await session.events.read(subject_id=failed.id, limit=1000)
    assert (page.events[-1].type, page.events[-1].data) == ("flow.pruned", {"name": "g", "status": "failed"})
    assert page.events[-1].actor == "tester"
    assert await pruned(session, older_than=NOW) == (0, 0)


async def test_a_flow_stays_as_long_as_one_of_its_tasks_or_its_time_does(
    session: Session, agent: Agent, clock: Clock
) -> None:
    flow = await run(agent, fail=True)
    await clock.advance(2 * DAY, gap=True)
    young = await run(agent, "young")
    # The one that failed is left, and so is its flow.
    assert await pruned(session, older_than=DAY, status=["cancelled"]) == (1, 0)
    assert [one.id for one in await session.flows.list(status="failed")] == [flow.id]
    # What was left without tasks before goes later.
    assert await pruned(session, older_than=DAY, status=["failed"]) == (1, 1)
    assert [one.id for one in await session.flows.list()] == [young.id]
    assert await pruned(session, older_than=DAY) == (0, 0)
    assert await pruned(session, older_than=NOW) == (2, 1)


async def test_a_flow_of_another_status_stays(session: Session, agent: Agent) -> None:
    done = await run(agent)
    stopped = await session.flows.create("g", [Stage("a", "t")])
    await session.flows.cancel(stopped.id)
    assert await pruned(session, older_than=NOW, status=["completed", "dead"]) == (2, 1)
    with pytest.raises(NotFound):
        await session.flows.get(done.id)
    assert await pruned(session, older_than=NOW, status=["cancelled"]) == (1, 1)


async def test_tasks_of_an_unfinished_flow_are_neither_counted_nor_touched(
    session: Session, agent: Agent, db: Connection
) -> None:
    flow = await session.flows.create("f", sequential(Stage("a", "t"), Stage("b", "t")))
    task = await agent.tasks.claim_by_id(flow.stage("a").task_id)
    assert task is not None
    await agent.tasks.complete(task, 1)
    await db.execute(
        "INSERT INTO blackboard.late_results (session_id, task_id, claim_id, attempt, agent_id) "
        "VALUES ($1, $2, gen_random_uuid(), 1, 'ops/late')",
        session.id, task.id,
    )  # fmt: skip
    assert await pruned(session, older_than=NOW) == (0, 0)
    assert len(await session.tasks.late_results(task.id)) == 1
    await session.flows.cancel(flow.id)
    assert await pruned(session, older_than=NOW) == (2, 1)


async def test_a_flow_waits_for_its_compensation(session: Session, agent: Agent, db: Connection) -> None:
    flow = await session.flows.create(
        "f",
        [Stage("a", "t", compensate=Stage("undo", "undo")), Stage("b", "t", after=[After("a", "compensate")])],
    )
    first = await agent.tasks.claim_by_id(flow.stage("a").task_id)
    assert first is not None
    await agent.tasks.complete(first, 1)
    second = await agent.tasks.claim_by_id(flow.stage("b").task_id)
    assert second is not None
    await agent.tasks.fail(second, "broken", retry=False)
    over = await session.flows.get(flow.id)
    undo = over.stage("a").compensation_task_id
    assert over.status == "failed"
    assert undo is not None
    assert await pruned(session, older_than=NOW) == (2, 0)
    task = await agent.tasks.claim_by_id(undo)
    assert task is not None
    await agent.tasks.complete(task)
    assert await pruned(session, older_than=NOW) == (1, 1)
    assert set((await rows(db)).values()) == {0}


async def test_a_redriven_task_keeps_its_flow(session: Session, agent: Agent) -> None:
    flow = await run(agent, fail=True)
    await session.tasks.redrive(flow.stage("s0").task_id)
    assert await pruned(session, older_than=NOW) == (1, 0)
    assert (await session.flows.get(flow.id)).status == "failed"


async def test_results_stay_while_what_failed_can_be_redriven(session: Session, agent: Agent, clock: Clock) -> None:
    flow = await agent.flows.create(
        "f",
        [
            Stage("a", "t"),
            Stage("b", "t", after=["a"], inputs={"of": "a"}, max_attempts=1),
            Stage("c", "t", after=["b"]),
        ],
    )
    first = await agent.tasks.claim_by_id(flow.stage("a").task_id)
    assert first is not None
    await agent.tasks.complete(first, {"v": 42})
    await clock.advance(2 * DAY, gap=True)
    second = await agent.tasks.claim_by_id(flow.stage("b").task_id)
    assert second is not None
    await agent.tasks.fail(second, "broken")
    assert (await session.flows.get(flow.id)).status == "failed"
    # Neither because it is young, nor because another status was asked for: what it reads stays with it.
    assert await pruned(session, older_than=DAY) == (0, 0)
    assert await pruned(session, older_than=NOW, status=["completed"]) == (0, 0)
    await session.tasks.redrive(second.id)
    assert await pruned(session, older_than=NOW, status=["completed", "dead"]) == (0, 0)
    again = await agent.tasks.claim_by_id(second.id)
    assert again is not None
    assert await session.flows.inputs(again.id) == {"of": {"v": 42}}
    await agent.tasks.complete(again)
    assert await pruned(session, older_than=NOW) == (3, 1)


async def test_batches_are_bounded(session: Session, agent: Agent, db: Connection) -> None:
    for n in range(5):
        await run(agent, f"f{n}", stages=1 + n % 3)
    await session.flows.create("stays", [Stage("a", "t")])
    before = await db.fetchval("SELECT blackboard.now()")
    call = "SELECT next, pruned FROM blackboard.prune_flows($1, $2, $3, $4, $5, false, 'ops/owner')"
    await db.fetch(
        "SELECT * FROM blackboard.prune_tasks($1, $2, $3, NULL, 1000, false, 'x')", session.id, before, EVERY
    )
    after: uuid.UUID | None = None
    left, total, calls = sum((await rows(db)).values()), 0, 0
    while True:
        row = await db.fetchrow(call, session.id, before, EVERY, after, 2)
        assert row is not None
        total, after, calls = total + row["pruned"], row["next"], calls + 1
        now = sum((await rows(db)).values())
        # At most two rows of tasks, or what is left of one flow with at most three stages: 2 edges, 3 stages, itself.
        assert left - now <= 2 + 6
        left = now
        if after is None:
            break
    assert (total, calls > 3) == (5, True)
    assert await rows(db) == {"flows": 1, "flow_stages": 1, "flow_edges": 0, "flow_tasks": 1}


async def test_a_large_flow_goes_in_several_batches(session: Session, agent: Agent, db: Connection) -> None:
    flow = await session.flows.create("f", [Stage(f"s{n}", "t") for n in range(10)])
    await session.flows.cancel(flow.id)
    before = await db.fetchval("SELECT blackboard.now()")
    await session.tasks.prune(older_than=NOW, status=["completed"])
    await db.execute(
        "SELECT * FROM blackboard.prune_tasks($1, $2, $3, NULL, 1000, false, 'x')", session.id, before, EVERY
    )
    call = "SELECT next, pruned FROM blackboard.prune_flows($1, $2, $3, $4, 4, false, 'ops/owner')"
    after: uuid.UUID | None = None
    left: list[int] = []
    gone: list[int] = []
    for _ in range(3):
        row = await db.fetchrow(call, session.id, before, EVERY, after)
        assert row is not None
        after = row["next"]
        left.append((await rows(db, flow))["flow_tasks"])
        gone.append(row["pruned"])
    assert (left, gone, after) == ([6, 2, 0], [0, 0, 1], None)
    assert set((await rows(db, flow)).values()) == {0}


async def test_rows_of_flows_are_still_not_deleted_by_hand(session: Session, agent: Agent, db: Connection) -> None:
    flow = await run(agent)
    for table in TABLES:
        async with db.transaction():
            await db.execute("SET LOCAL blackboard.pruning = 'on'")
            with pytest.raises(asyncpg.PostgresError) as caught:
                async with db.transaction():
                    await db.execute(f"DELETE FROM blackboard.{table}")
        assert isinstance(from_asyncpg(caught.value), NotPermitted)
    assert (await rows(db, flow))["flow_stages"] == 2
    # Neither setting outlives the prune, even in its own transaction.
    async with db.transaction():
        await session_prune(db, session, await db.fetchval("SELECT blackboard.now()"))
        assert await db.fetchval("SELECT current_setting('blackboard.pruning')") == ""
        assert await db.fetchval("SHOW xmloption") == "content"


async def session_prune(db: Connection, session: Session, before: datetime) -> int:
    """Tasks and flows, in this transaction; how many flows went."""
    for what in ("tasks", "flows"):
        row = await db.fetchrow(
            f"SELECT * FROM blackboard.prune_{what}($1, $2, $3, NULL, 1000, false, 'ops/owner')",
            session.id, before, EVERY,
        )  # fmt: skip
        assert row is not None
        assert row["next"] is None
    return row["pruned"]


async def test_whoever_holds_a_flow_is_not_waited_for(
    session: Session, agent: Agent, connect: Connect, db: Connection
) -> None:
    held, free = await run(agent, "held"), await run(agent, "free")
    other = await connect()
    async with other.transaction():
        await other.execute("SELECT 1 FROM blackboard.flows WHERE id = $1 FOR UPDATE", held.id)
        found = await session.tasks.prune(older_than=NOW)
        assert (found.tasks, found.flows) == (4, 1)
    assert [one.id for one in await session.flows.list()] == [held.id]
    assert set((await rows(db, free)).values()) == {0}
    assert await pruned(session, older_than=NOW) == (0, 1)


async def test_who_comes_while_a_flow_goes_finds_none(
    session: Session, agent: Agent, connect: Connect, blocked: Callable[[int], Awaitable[None]]
) -> None:
    flow = await run(agent)
    pruner, other = await connect(), await connect()
    before = await other.fetchval("SELECT blackboard.now()")
    async with pruner.transaction():
        assert await session_prune(pruner, session, before) == 1
        late = asyncio.create_task(
            other.execute("SELECT * FROM blackboard.pause_flow($1, $2, false, 'x')", session.id, flow.id)
        )
        await blocked(other.get_server_pid())
    with pytest.raises(asyncpg.PostgresError) as caught:
        await late
    assert isinstance(from_asyncpg(caught.value), NotFound)


async def test_the_last_task_ends_while_its_flow_is_looked_at(
    session: Session, agent: Agent, connect: Connect, clock: Clock
) -> None:
    """Who ends a task holds it and then takes its flow: a prune meets neither."""
    flow = await session.flows.create("f", [Stage("a", "t")])
    task = await agent.tasks.claim_by_id(flow.stage("a").task_id)
    assert task is not None
    old = await run(agent, "old")
    await clock.advance(DAY, gap=True)
    other = await connect()
    async with other.transaction():
        refused = await other.fetch(
            "SELECT * FROM blackboard.complete_tasks($1, $2, $3, $4, $5, 'ops/worker')",
            session.id, [task.id], [task.claim_id], [task.attempt], ["1"],
        )  # fmt: skip
        assert refused == []
        found = await session.tasks.prune(older_than=NOW)
        assert (found.tasks, found.flows) == (2, 1)
    assert [one.id for one in await session.flows.list()] == [flow.id]
    with pytest.raises(NotFound):
        await session.flows.get(old.id)
