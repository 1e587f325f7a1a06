"""Graphs of tasks cost what they are big, whatever the statistics say: rows read are counted, and not the time."""

from __future__ import annotations

import json
import uuid
from typing import TypeAlias

import asyncpg
import pytest

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

pytestmark = [pytest.mark.fresh_database, pytest.mark.timeout(180)]

SESSION = uuid.UUID(int=1)
READ = """
SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_xact_user_tables
WHERE schemaname = 'blackboard' AND (relname LIKE 'task%' OR relname LIKE 'flow%')
"""
ADD = """
SELECT blackboard.add_tasks($1, array_agg(t.id), array_agg('t'::text), array_agg(''::text), array_agg(5::smallint),
                            array_agg('{}'::jsonb),
                            array_agg(CASE WHEN t.after <> '[]' THEN jsonb_build_object('depends_on', t.after) END), 'x')
FROM jsonb_to_recordset($2) AS t (id uuid, after jsonb)
"""
CREATE = "SELECT id FROM blackboard.create_flow($1, $2, 'f', $3, '{}', 'x')"
END = """
UPDATE blackboard.tasks t SET status = 'cancelled', position = NULL, completed_at = blackboard.now()
WHERE t.session_id = $1 AND t.id = ANY ($2) AND t.completed_at IS NULL
"""
Graph: TypeAlias = "list[tuple[uuid.UUID, list[uuid.UUID]]]"


def graph(shape: str, size: int) -> Graph:
    """Tasks with what they come after."""
    ids = [uuid.uuid4() for _ in range(size)]
    if shape == "chain":
        return [(ids[n], ids[max(n - 1, 0) : n]) for n in range(size)]
    if shape == "fan out":
        return [(ids[n], ids[: min(n, 1)]) for n in range(size)]
    if shape == "fan in":
        return [(ids[n], ids[:-1] if n == size - 1 else []) for n in range(size)]
    return [(ids[n], ids[(n // 20 - 1) * 20 : n // 20 * 20] if n >= 20 else []) for n in range(size)]


async def add(db: Connection, tasks: Graph) -> None:
    described = [{"id": str(key), "after": [str(one) for one in after]} for key, after in tasks]
    await db.fetch(ADD, SESSION, json.dumps(described))


def stages(tasks: Graph, **more: object) -> str:
    return json.dumps(
        [{"name": str(key), "type": "t", "after": [str(one) for one in after], **more} for key, after in tasks]
    )


@pytest.fixture
async def seeded(request: pytest.FixtureRequest, db: Connection) -> Connection:
    """A session on tables that were analysed when they held this many rows, or never, and never again."""
    rows: int | None = request.param
    for table in ("tasks", "task_dependencies", "flows", "flow_stages", "flow_edges", "flow_tasks"):
        await db.execute(f"ALTER TABLE blackboard.{table} SET (autovacuum_enabled = off)")
    await db.execute("INSERT INTO blackboard.sessions (id, name) VALUES ($1, 's')", SESSION)
    await db.execute("SET jit = off")
    if rows is not None:
        if rows:
            await add(db, graph("chain", rows))
            await db.fetch(CREATE, SESSION, uuid.uuid4(), stages(graph("chain", rows)))
        await db.execute("ANALYZE")
    return db


@pytest.mark.parametrize("shape", ["chain", "fan out", "fan in", "layers"])
@pytest.mark.parametrize("seeded", [None, 0, 1, 30], indirect=True)
async def test_dependencies_are_read_as_often_as_there_are_some(seeded: Connection, shape: str) -> None:
    tasks = graph(shape, 1000)
    size = len(tasks) + sum(len(after) for _, after in tasks)
    for _ in range(2):
        async with seeded.transaction():
            before = await seeded.fetchval(READ)
            await add(seeded, tasks)
            added = await seeded.fetchval(READ) - before
            await seeded.execute(END, SESSION, [key for key, after in tasks if not after])
            ended = await seeded.fetchval(READ) - before - added
        states = await seeded.fetch(
            "SELECT status, count(*) FROM blackboard.tasks WHERE session_id = $1 AND id = ANY ($2) GROUP BY 1",
            SESSION, [key for key, _ in tasks],
        )  # fmt: skip
        assert [tuple(row) for row in states] == [("cancelled", 1000)]
        assert added < 40 * size and ended < 40 * size, (added, ended, size)
        tasks = graph(shape, 1000)


@pytest.mark.parametrize("shape", ["chain", "fan out", "fan in", "layers"])
@pytest.mark.parametrize("seeded", [None, 1], indirect=True)
async def test_flows_are_read_as_often_as_they_have_stages_and_edges(seeded: Connection, shape: str) -> None:
    tasks = graph(shape, 1000)
    size = len(tasks) + sum(len(after) for _, after in tasks)
    flow_id = uuid.uuid4()
    async with seeded.transaction():
        before = await seeded.fetchval(READ)
        await seeded.fetch(CREATE, SESSION, flow_id, stages(tasks))
        created = await seeded.fetchval(READ) - before
        roots = await seeded.fetchval(
            "SELECT array_agg(task_id) FROM blackboard.flow_stages WHERE flow_id = $1 AND state = 'ready'", flow_id
        )
        await seeded.execute(END, SESSION, roots)
        ended = await seeded.fetchval(READ) - before - created
    assert await seeded.fetchval("SELECT status FROM blackboard.flows WHERE id = $1", flow_id) == "failed"
    assert created < 40 * size and ended < 60 * size, (created, ended, size)


@pytest.mark.parametrize("seeded", [None], indirect=True)
async def test_what_a_stage_reads_from_far_above_is_looked_for_in_one_walk(seeded: Connection) -> None:
    names = [f"s{n}" for n in range(400)]
    described = [
        {"name": name, "type": "t", "after": names[max(n - 1, 0) : n], "inputs": {"x": "s0"} if n else {}}
        for n, name in enumerate(names)
    ]
    async with seeded.transaction():
        before = await seeded.fetchval(READ)
        await seeded.fetch(CREATE, SESSION, uuid.uuid4(), json.dumps(described))
        assert await seeded.fetchval(READ) - before < 50 * len(names)
    described[100]["inputs"] = {"x": "s200"}
    with pytest.raises(asyncpg.PostgresError, match="stage 's200', which does not come before it"):
        await seeded.fetch(CREATE, SESSION, uuid.uuid4(), json.dumps(described))
    described[100]["inputs"] = {"x": "s100"}
    with pytest.raises(asyncpg.PostgresError, match="stage 's100', which does not come before it"):
        await seeded.fetch(CREATE, SESSION, uuid.uuid4(), json.dumps(described))


@pytest.mark.parametrize("seeded", [None], indirect=True)
async def test_the_end_of_one_parent_reads_nothing_of_others(seeded: Connection) -> None:
    """With true statistics: joins by hash, right for what a trigger has at hand, would read a whole session's tables."""
    pairs: Graph = []
    for _ in range(3000):
        parent = uuid.uuid4()
        pairs += [(parent, []), (uuid.uuid4(), [parent])]
    await add(seeded, pairs)
    flow_id = uuid.uuid4()
    await seeded.fetch(CREATE, SESSION, flow_id, stages([(uuid.uuid4(), []) for _ in range(1000)]))
    await seeded.execute("ANALYZE")
    stage_task = await seeded.fetchval("SELECT task_id FROM blackboard.flow_stages WHERE flow_id = $1 LIMIT 1", flow_id)
    for ending in (pairs[0][0], stage_task):
        async with seeded.transaction():
            before = await seeded.fetchval(READ)
            await seeded.execute(END, SESSION, [ending])
            assert await seeded.fetchval(READ) - before < 100
    # Likewise the edges of a flow: those of other flows are not read.
    async with seeded.transaction():
        before = await seeded.fetchval(READ)
        await seeded.fetch(CREATE, SESSION, uuid.uuid4(), stages(graph("chain", 2)))
        assert await seeded.fetchval(READ) - before < 200
