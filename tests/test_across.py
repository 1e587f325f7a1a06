"""Many sessions in one call: joined, claimed from and completed in; and a worker that serves them all."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import Agent, Blackboard, NewTask, Session, TaskContext, Worker
from blackboard.errors import InvalidInput, NotFound, SessionClosed

from .conftest import Connect, eventually

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

CLAIM = "SELECT * FROM blackboard.claim_tasks_across($1, 'w', $2, $3, $4, $5, $6)"
COMPLETE = "SELECT * FROM blackboard.complete_tasks_across($1, $2, $3, $4, $5, 'w')"


@pytest.fixture
async def sessions(board: Blackboard) -> list[Session]:
    return [await board.start(f"many-{n}") for n in range(4)]


@pytest.fixture
async def agents(board: Blackboard, sessions: list[Session]) -> list[Agent]:
    return await board.join(sessions, "w")


async def lease_of(agents: list[Agent]) -> uuid.UUID:
    return await agents[0].scope.leases.current()


async def claim(
    db: Connection,
    agents: list[Agent],
    *,
    limit: int = 100,
    share: int = 100,
    capabilities: tuple[str, ...] = (),
    claim_id: uuid.UUID | None = None,
) -> list[Any]:
    ids = [agent.session.id for agent in agents]
    lease_id = await lease_of(agents)
    # A look that a busy machine made slow is no sign of a held snapshot.
    await db.execute("SET blackboard.floors = ''")
    return await db.fetch(CLAIM, ids, list(capabilities), lease_id, claim_id or uuid.uuid4(), limit, share)


def outcomes(rows: list[Any]) -> list[list[Any]]:
    names = ("session_id", "id", "claim_id", "attempt")
    return [*([row[name] for row in rows] for name in names), [f'"{n}"' for n in range(len(rows))]]


# ------------------------------------------------------------------------------------------------------------- joining


async def test_an_agent_joins_many_sessions_in_one_call(
    board: Blackboard, sessions: list[Session], db: Connection
) -> None:
    agents = await board.join(["many-3", sessions[0], sessions[1].id], "ops/w", capabilities=["read"])
    assert [agent.session.name for agent in agents] == ["many-3", "many-0", "many-1"]
    assert all(agent.record.present and agent.record.capabilities == ("read",) for agent in agents)
    rows = await db.fetch(
        "SELECT session_id, tx FROM blackboard.events WHERE type = 'agent.joined' AND actor = 'ops/w'"
    )
    assert {row["session_id"] for row in rows} == {agent.session.id for agent in agents}
    assert len({row["tx"] for row in rows}) == 1
    # What it does not say stays; whoever left is back.
    await agents[0].leave()
    [again] = await board.join([agents[0].session], "ops/w")
    assert again.record.capabilities == ("read",) and again.record.left_at is None and again.record.role == "member"


async def test_of_sessions_that_cannot_be_joined_none_is(board: Blackboard, sessions: list[Session]) -> None:
    await sessions[2].close()
    with pytest.raises(SessionClosed, match="many-2"):
        await board.join(sessions, "ops/w")
    with pytest.raises(NotFound, match="nowhere"):
        await board.join([sessions[0], "nowhere"], "ops/w")
    with pytest.raises(NotFound, match="There is no session"):
        await board.sessions.join([sessions[0].id, uuid.uuid4()], "ops/w")
    with pytest.raises(InvalidInput):
        await board.join(sessions[:1], "")
    assert [agent.id for agent in await sessions[0].agents.list()] == []


async def test_many_sessions_are_found_as_one_is(board: Blackboard) -> None:
    old = await board.start("again")
    await old.close()
    new = await board.start("again")
    odd = await board.start(str(uuid.uuid4()))
    asked = ["again", old.id, str(new.id), odd.name, str(new.id).upper()]
    records = await board.sessions.get_many(asked)
    assert [record.id for record in records] == [(await board.sessions.get(one)).id for one in asked]
    assert [record.id for record in records] == [new.id, old.id, new.id, odd.id, new.id]
    assert await board.sessions.get_many([]) == []


# ------------------------------------------------------------------------------------------------------------ claiming


async def test_a_claim_from_many_takes_a_share_of_each_by_priority_and_age(agents: list[Agent], db: Connection) -> None:
    for agent in agents[:3]:
        for priority in (1, 9, 5, 5):
            await agent.session.tasks.add("t", priority=priority)
    rows = await claim(db, agents, limit=5, share=2)
    taken = [[row["priority"] for row in rows if row["session_id"] == agent.session.id] for agent in agents]
    assert [sorted(one) for one in taken] == [[5, 9], [5, 9], [9], []]
    assert {(row["status"], row["assigned_to"], row["attempt"]) for row in rows} == {("running", "w", 1)}
    # In the order of the call, whatever order they have in the table.
    [first] = await claim(db, [agents[2], agents[0], agents[1]], limit=1)
    assert first["session_id"] == agents[2].session.id
    await db.execute("SELECT blackboard.release_task($1, $2, $3, $4, 'w')",
                     first["session_id"], first["id"], first["claim_id"], first["attempt"])  # fmt: skip
    rest = await claim(db, agents)
    assert sorted(row["priority"] for row in rest) == [1, 1, 1, 5, 5, 5, 5]
    events = await db.fetch("SELECT subject_id FROM blackboard.events WHERE type = 'task.assigned'")
    assert {row["subject_id"] for row in events} == {row["id"] for row in [*rows, first, *rest]}


async def test_capabilities_are_merged_by_priority_in_each_session(agents: list[Agent], db: Connection) -> None:
    for agent in agents[:2]:
        for capability, priority in (("a", 3), ("b", 8), ("", 5), ("other", 10), ("a", 8)):
            await agent.session.tasks.add("t", capability=capability, priority=priority)
    rows = await claim(db, agents, share=3, capabilities=("a", "b"))
    assert [sorted(row["priority"] for row in rows if row["session_id"] == one.session.id) for one in agents[:2]] == [
        [5, 8, 8],
        [5, 8, 8],
    ]
    assert [row["capability"] for row in await claim(db, agents, capabilities=("a", "b"))] == ["a", "a"]
    assert await claim(db, agents, capabilities=("a", "b")) == []


async def test_repeating_a_claim_from_many_gives_the_same_tasks(agents: list[Agent], db: Connection) -> None:
    for agent in agents:
        await agent.session.tasks.add_many([NewTask(type="t") for _ in range(3)])
    claim_id = uuid.uuid4()
    first, again = [await claim(db, agents, share=2, claim_id=claim_id) for _ in range(2)]
    assert len(first) == 8 and {row["id"] for row in again} == {row["id"] for row in first}


async def test_what_a_claim_from_many_leaves_to_a_claim_from_one(
    board: Blackboard, sessions: list[Session], agents: list[Agent], db: Connection
) -> None:
    sessions += [await board.start(f"more-{n}") for n in range(4)]
    agents = await board.join(sessions, "w")
    for session in sessions:
        await session.tasks.add("t")
    plain, limited, mine, due, paused, held, closed, expired = sessions
    await limited.limits.set("few", type="t", max_running=1)
    await mine.tasks.add("t", assigned_to="w")
    await due.tasks.add("t", run_at=await db.fetchval("SELECT now() + interval '1 hour'"))
    await paused.pause()
    await held.tasks.pause(type="t")
    await closed.close()
    await expired.tasks.add("t", expires_at=datetime.now(UTC) + timedelta(hours=1))
    # Its hour has come for the scheduled one only.
    await db.execute("UPDATE blackboard.tasks SET run_at = now() - interval '1 s' WHERE status = 'scheduled'")
    rows = await claim(db, agents)
    assert sorted((row["session_id"] for row in rows), key=str) == sorted([plain.id, expired.id, expired.id], key=str)
    for left in (limited, mine, due):
        assert await agents[sessions.index(left)].tasks.claim()
    assert await claim(db, agents) != []  # ``mine`` and ``due`` are plain again


async def test_a_claim_from_many_waits_for_nobody_and_needs_a_lease(
    agents: list[Agent], db: Connection, connect: Connect
) -> None:
    for agent in agents:
        await agent.session.tasks.add_many([NewTask(type="t") for _ in range(2)])
    other = await connect()
    async with other.transaction():
        held = await claim(other, agents, share=1)
        rows = await asyncio.wait_for(claim(db, agents), 10)
    assert len(held) == 4 and len(rows) == 4 and not {row["id"] for row in held} & {row["id"] for row in rows}
    with pytest.raises(asyncpg.PostgresError) as lost:
        await db.fetch(CLAIM, [agents[0].session.id], [], uuid.uuid4(), uuid.uuid4(), 1, 1)
    assert lost.value.sqlstate == "BB006"


# ---------------------------------------------------------------------------------------------------------- completing


async def test_completions_of_many_sessions_leave_what_others_wait_for(
    sessions: list[Session], agents: list[Agent], db: Connection
) -> None:
    plain, stage, limited, lost = sessions
    await plain.tasks.add_many([NewTask(type="t") for _ in range(3)])
    first = await stage.tasks.add("t")
    second = await stage.tasks.add("t", depends_on=[first.id])
    await lost.tasks.add("t")
    rows = await claim(db, agents)
    await limited.limits.set("few", type="t", max_running=1)
    await limited.tasks.add("t")
    rows += [dict((await db.fetch("SELECT * FROM blackboard.tasks WHERE id = $1", one.id))[0])
             for one in await agents[2].tasks.claim()]  # fmt: skip
    [taken] = [row for row in rows if row["session_id"] == lost.id]
    await db.execute("SELECT blackboard.release_task($1, $2, $3, $4, 'w')",
                     lost.id, taken["id"], taken["claim_id"], taken["attempt"])  # fmt: skip

    left = {row[0] for row in await db.fetch(COMPLETE, *outcomes(rows))}
    assert left == {row["id"] for row in rows if row["session_id"] != plain.id}
    assert {task.status for task in await plain.tasks.list()} == {"completed"}
    assert {task.result for task in await plain.tasks.list()} <= {str(n) for n in range(len(rows))}
    assert (await stage.tasks.get(second.id)).status == "blocked"
    # Once more: what is completed is not left over.
    assert {row[0] for row in await db.fetch(COMPLETE, *outcomes(rows))} == left
    assert len(await db.fetch("SELECT FROM blackboard.events WHERE type = 'task.completed'")) == 3


# ---------------------------------------------------------------------------------------------------------- the worker


async def test_a_worker_of_many_sessions_claims_and_completes_for_them_together(
    board: Blackboard, db: Connection
) -> None:
    sessions = [await board.start(f"wide-{n}") for n in range(60)]
    for session in sessions:
        await session.tasks.add_many([NewTask(type="t") for _ in range(5)])
    worker = Worker(board, sessions, agent_id="w")

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> str:
        return ctx.session.name

    assert (await worker.drain()).completed == 300
    for session in (sessions[0], sessions[-1]):
        assert {task.result for task in await session.tasks.list()} == {session.name}
    row = await db.fetchrow(
        "SELECT count(DISTINCT tx) FILTER (WHERE type = 'agent.joined' AND actor = 'w'), "
        "count(DISTINCT tx) FILTER (WHERE type = 'task.assigned'), "
        "count(DISTINCT tx) FILTER (WHERE type = 'task.completed') FROM blackboard.events"
    )
    assert row is not None
    joins, claims, writes = row
    assert joins == 1 and claims < 40 and writes < 60


async def test_sessions_with_more_to_do_get_their_turn_beside_one_that_never_ends(
    board: Blackboard, sessions: list[Session]
) -> None:
    busy, limited, staged, plain = sessions
    worker = Worker(board, sessions, agent_id="w", concurrency=4)
    others: set[str] = set()

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        # A handler of the busy session always leaves another one.
        if ctx.session.name == busy.name:
            await ctx.session.tasks.add("t")
        else:
            others.add(str(ctx.task.id))

    await limited.limits.set("one", type="t", max_running=1)
    wanted = {str(one) for one in await limited.tasks.add_many([NewTask(type="t") for _ in range(5)])}
    first = await staged.tasks.add("t")
    wanted |= {str(first.id), str((await staged.tasks.add("t", depends_on=[first.id])).id)}
    wanted.add(str((await plain.tasks.add("t", assigned_to="w")).id))
    await busy.tasks.add_many([NewTask(type="t") for _ in range(50)])
    async with worker:

        async def done() -> bool:
            return others == wanted

        await eventually(done)
    assert worker.counts.failed == worker.counts.refused == 0


async def test_results_that_come_late_are_kept_aside_beside_those_of_other_sessions(
    board: Blackboard, sessions: list[Session]
) -> None:
    worker = Worker(board, sessions, agent_id="w", concurrency=10)
    everybody = asyncio.Barrier(4)

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> str:
        if ctx.task.attempt > 1:
            return "again"
        await everybody.wait()
        if ctx.session.name == "many-1":
            # Somebody takes it away behind the worker's back.
            [held] = await ctx.session.tasks.list(status="running")
            await ctx.agent.tasks.release(held)
        await everybody.wait()
        return ctx.session.name

    ids = [(await session.tasks.add("t")).id for session in sessions]
    counts = await worker.drain()
    assert (counts.completed, counts.refused) == (4, 1)
    assert [late.result for late in await sessions[1].tasks.late_results(ids[1])] == ["many-1"]
    results = [(await session.tasks.get(one)).result for session, one in zip(sessions, ids, strict=True)]
    assert results == ["many-0", "again", "many-2", "many-3"]


async def test_a_lost_lease_is_joined_anew_in_all_sessions(
    board: Blackboard, sessions: list[Session], db: Connection
) -> None:
    worker = Worker(board, sessions, agent_id="w", poll_interval=timedelta(milliseconds=50))

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        return None

    async with worker:
        await sessions[0].tasks.add("t")
        await eventually(lambda: _completed(worker, 1))
        await db.execute("UPDATE blackboard.leases SET lapsed_at = blackboard.now() WHERE lapsed_at IS NULL")
        await sessions[3].close()
        await sessions[1].tasks.add("t")
        await eventually(lambda: _completed(worker, 2))
        present = [(await session.agents.get("w")).present for session in sessions[:3]]
        assert present == [True, True, True]


async def _completed(worker: Worker, count: int) -> bool:
    return worker.counts.completed >= count
