"""The plans of the hot statements: no scan of a big table, whatever the statistics say."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard.store.statements import statements

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

pytestmark = [pytest.mark.fresh_database, pytest.mark.timeout(180)]

SESSION = uuid.UUID(int=1)
LEASE = uuid.UUID(int=2)
BIG = {"tasks", "events", "findings"}

SEED = """
SET session_replication_role = replica;
INSERT INTO blackboard.sessions (id, name)
SELECT lpad(to_hex(n), 32, '0')::uuid, 's' || n FROM generate_series(1, 20) n;
INSERT INTO blackboard.leases (id, term, expires_at)
SELECT lpad(to_hex(n), 32, '0')::uuid, '1 hour', now() + '1 hour' FROM generate_series(1, 500) n;
INSERT INTO blackboard.agents (id) VALUES ('ops/a');
INSERT INTO blackboard.tasks (session_id, id, type, capability, priority, status, position, attempt, lease_id, claim_id,
                              assigned_to, started_at, completed_at, run_at)
SELECT lpad(to_hex(1 + n % 20), 32, '0')::uuid, lpad(to_hex(n), 32, '0')::uuid, 't', (ARRAY['', 'x', 'y'])[1 + n % 3], n % 11,
       s.status, CASE WHEN s.status = 'pending' THEN n END, (s.status <> 'pending')::int,
       CASE WHEN s.status = 'running' THEN lpad(to_hex(1 + n % 500), 32, '0')::uuid END,
       CASE WHEN s.status <> 'pending' THEN lpad(to_hex(n), 32, '0')::uuid END, 'ops/b',
       CASE WHEN s.status = 'running' THEN now() END, CASE WHEN s.status = 'completed' THEN now() END, NULL
FROM generate_series(1, {rows}) n,
     LATERAL (SELECT CASE WHEN n % 100 < 89 THEN 'completed' WHEN n % 100 < 90 THEN 'running' ELSE 'pending' END AS status) s;
INSERT INTO blackboard.events (session_id, tx, seq, type, subject_id, actor, data)
SELECT lpad(to_hex(1 + n % 20), 32, '0')::uuid, n, n, 'task.created', lpad(to_hex(n), 32, '0')::uuid, 'x', '{{}}'
FROM generate_series(1, {rows}) n;
INSERT INTO blackboard.findings (session_id, id, agent_id, type, content, created_at)
SELECT lpad(to_hex(1 + n % 20), 32, '0')::uuid, lpad(to_hex(n), 32, '0')::uuid, 'ops/a', 't', to_jsonb(n),
       now() - n * interval '1 second'
FROM generate_series(1, {rows} / 2) n;
SELECT setval('blackboard.event_seq', {rows} + 1), setval('blackboard.task_positions', {rows} + 1);
SET session_replication_role = origin;
"""


class Plans:
    """Reads the plans that auto_explain logs, also of statements inside functions."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._logged: list[str] = []
        connection.add_log_listener(lambda _, message: self._logged.append(str(message)))

    async def of(self, sql: str, *args: Any) -> str:
        """The plans of everything that ``sql`` ran."""
        self._logged.clear()
        await self.connection.fetch(sql, *args)
        await asyncio.sleep(0)
        found = "\n".join(text for text in self._logged if "Query Text" in text or "plan:" in text)
        assert found, "auto_explain logged nothing"
        return found

    async def indexed(self, expected: set[str], sql: str, *args: Any) -> None:
        """No big table is scanned, and the plans use ``expected`` and never a whole index of another."""
        plans = await self.of(sql, *args)
        scanned = set(re.findall(r"Seq Scan on (?:blackboard\.)?(\w+)", plans)) & BIG
        assert scanned == set(), plans
        used = set(re.findall(r"Index(?: Only)? Scan(?: Backward)? using (\w+)", plans))
        used |= set(re.findall(r"Bitmap Index Scan on (\w+)", plans))
        assert expected <= used, f"{expected - used} not among {used}\n{plans}"


@pytest.fixture(params=["empty", "fresh", "big"])
async def plans(request: pytest.FixtureRequest, database_url: str) -> AsyncIterator[Plans]:
    connection = await asyncpg.connect(database_url)
    rows = {"empty": 0, "fresh": 2_000, "big": 200_000}[request.param]
    # Statistics of the moment before: of nothing, of nothing although there are rows, and true ones.
    for table in ("tasks", "events", "findings"):
        await connection.execute(f"ALTER TABLE blackboard.{table} SET (autovacuum_enabled = off)")
    await connection.execute(SEED.format(rows=rows))
    if request.param == "big":
        await connection.execute("ANALYZE blackboard.tasks, blackboard.events, blackboard.findings, blackboard.leases")
    try:
        await connection.execute("LOAD 'auto_explain'")
    except asyncpg.PostgresError:
        pytest.skip("this server has no auto_explain")
    await connection.execute(
        "SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on; "
        "SET auto_explain.log_level = 'notice'; SET client_min_messages = 'notice'"
    )
    yield Plans(connection)
    await connection.close(timeout=5)


CLAIM = "SELECT * FROM blackboard.claim_tasks($1, 'ops/a', ARRAY['x'], $2, gen_random_uuid(), $3)"


async def test_claim(plans: Plans) -> None:
    for limit in (1, 10):
        await plans.indexed({"tasks_assigned", "tasks_ready", "tasks_leased"}, CLAIM, SESSION, LEASE, limit)


async def test_claim_of_one_queue(plans: Plans) -> None:
    for limit in (1, 10):
        # A slow claim would send the next one another way.
        await plans.connection.execute("SELECT set_config('blackboard.floors', '', false)")
        plan = await plans.of(CLAIM.replace("ARRAY['x']", "'{}'"), SESSION, LEASE, limit)
        assert not set(re.findall(r"Seq Scan on (?:blackboard\.)?(\w+)", plan)) & BIG, plan
        # The index's order is the queue's: nothing is sorted, and no head is looked for.
        picked = plan[plan.index("CTE picked") : plan.index("CTE Scan on picked")]
        assert "Index Scan using tasks_ready" in picked and "Sort" not in picked and "max(" not in plan, plan


@pytest.mark.parametrize("plans", ["empty"], indirect=True)
@pytest.mark.parametrize("rows", [0, 1, 3, 30])
async def test_claims_look_up_keys_however_small_the_table_was(plans: Plans, rows: int) -> None:
    """Analysed while there was next to nothing in it: a join would read all rows that have come since, for each claim."""
    await plans.connection.execute(
        "INSERT INTO blackboard.tasks (session_id, type) SELECT $1, 't' FROM generate_series(1, $2::int)", SESSION, rows
    )
    await plans.connection.execute("ANALYZE blackboard.tasks")
    for floors in ("", "noted"):
        for claim in (CLAIM, CLAIM.replace("ARRAY['x']", "'{}'")):
            # Explaining takes its time: floors that a slow claim has noted would send the next one another way.
            await plans.connection.execute("SELECT set_config('blackboard.floors', '', false)")
            await plans.connection.execute("INSERT INTO blackboard.tasks (session_id, type) VALUES ($1, 't')", SESSION)
            if floors:
                await plans.connection.execute("SELECT blackboard.note_floors($1, '{}', 60)", SESSION)
            plan = await plans.of(claim, SESSION, LEASE, 5)
            steps = [
                step for step in plan.split("Query Text:") if "t.ctid = p.ctid" in step and "Update on tasks" in step
            ]
            assert steps
            for step in steps:
                assert re.search(r"Tid Scan on tasks t .*\n.*TID Cond: ", step), plan


async def test_claims_and_completions_across_sessions(plans: Plans) -> None:
    sessions = [uuid.UUID(int=n) for n in range(1, 21)]
    complete = "SELECT * FROM blackboard.complete_tasks_across($1, $2, $3, $4, '{}', 'ops/a')"
    for capabilities in ([], ["x"]):
        claim = "SELECT * FROM blackboard.claim_tasks_across($1, 'ops/a', $2, $3, gen_random_uuid(), $4, 2)"
        for limit in (1, 30):
            await plans.indexed(
                {"tasks_ready", "tasks_leased", "tasks_scheduled", "tasks_assigned"},
                claim, sessions, capabilities, LEASE, limit,
            )  # fmt: skip
        rows = await plans.connection.fetch(claim, sessions, capabilities, LEASE, 30)
        if rows:
            values = [[row[name] for row in rows] for name in ("session_id", "id", "claim_id", "attempt")]
            await plans.indexed({"tasks_pkey"}, complete, *values)
            # Those that are not held any more are looked up as well.
            await plans.indexed({"tasks_pkey"}, complete, *values[:3], [0] * len(rows))


@pytest.mark.parametrize("plans", ["empty"], indirect=True)
@pytest.mark.parametrize("rows", [3, 30, 300])
async def test_outcomes_look_up_keys_however_small_the_table_was(plans: Plans, rows: int) -> None:
    """Analysed while it was small, and never since: a plan for few rows would read all of them."""
    await plans.connection.execute(
        "INSERT INTO blackboard.tasks (session_id, type) SELECT $1, 't' FROM generate_series(1, $2::int)", SESSION, rows
    )
    await plans.connection.execute("ANALYZE blackboard.tasks")
    listed = "$1, $2::uuid[], $3::uuid[], $4::int[]"
    for verb in (
        f"complete_tasks({listed}, array_fill(NULL::jsonb, ARRAY[cardinality($2::uuid[])]), 'ops/a')",
        f"release_tasks({listed}, array_fill(NULL::interval, ARRAY[1]), array_fill(NULL::jsonb, ARRAY[1]), 'ops/a')",
        (
            f"fail_tasks({listed}, array_fill(NULL::jsonb, ARRAY[1]), ARRAY['retry'], array_fill(NULL::interval, ARRAY[1]), "
            "array_fill(NULL::int, ARRAY[1]), 'ops/a')"
        ),
        "complete_tasks_across(array_fill($1::uuid, ARRAY[cardinality($2::uuid[])]), $2, $3::uuid[], $4::int[], '{}', 'ops/a')",
    ):
        claimed = await plans.connection.fetch(CLAIM, SESSION, LEASE, 1)
        columns = [[row[name] for row in claimed] for name in ("id", "claim_id", "attempt")]
        plan = await plans.of(f"SELECT * FROM blackboard.{verb}", SESSION, *columns)
        updated = plan[plan.index("Update on tasks") :]
        assert re.search(r"Index Scan using tasks_pkey on tasks t .*\n.*Index Cond: .*id = ", updated), plan


async def test_claim_and_look_above_floors(plans: Plans) -> None:
    for _ in range(2):
        await plans.connection.execute("SELECT blackboard.note_floors($1, '{\"5 \": 7}', 3600)", SESSION)
        for limit in (1, 10):
            await plans.indexed({"tasks_ready"}, CLAIM, SESSION, LEASE, limit)
        plan = await plans.of("SELECT * FROM blackboard.look_for_tasks(ARRAY[$1::uuid], 'ops/a', ARRAY['x'])", SESSION)
        assert not set(re.findall(r"Seq Scan on (?:blackboard\.)?(\w+)", plan)) & BIG, plan
        heads = [line for line in plan.splitlines() if "Index Cond" in line and '"position" >' in line]
        assert heads, f"a floor is where a walk begins, not what it leaves out\n{plan}"
        assert all("priority = " in line and "capability = " in line for line in heads), plan


async def test_complete_many(plans: Plans) -> None:
    rows = await plans.connection.fetch(CLAIM, SESSION, LEASE, 20)
    ids, claims = [row["id"] for row in rows] or [SESSION], [row["claim_id"] for row in rows] or [SESSION]
    await plans.indexed(
        {"tasks_pkey"},
        "SELECT * FROM blackboard.complete_tasks($1, $2::uuid[], $3::uuid[], $4::int[], "
        "array_fill(NULL::jsonb, ARRAY[cardinality($2::uuid[])]), 'ops/a')",
        SESSION, ids, claims, [1] * len(ids),
    )  # fmt: skip


@pytest.mark.parametrize("plans", ["empty"], indirect=True)
async def test_completions_of_a_session_that_grows(plans: Plans) -> None:
    """The first plans are made for ten tasks, on this connection, and nobody looks at the table again."""
    add = """SELECT blackboard.add_tasks($1, array_agg(gen_random_uuid()), array_agg('t'::text), array_agg(''::text),
                 array_agg(5::smallint), array_agg('{}'::jsonb), array_agg(NULL::jsonb), 'x') FROM generate_series(1, $2)"""
    complete = """SELECT * FROM blackboard.complete_tasks($1, $2::uuid[], $3::uuid[], $4::int[],
                      array_fill(NULL::jsonb, ARRAY[cardinality($2::uuid[])]), 'ops/a')"""
    fused = """SELECT * FROM blackboard.complete_and_claim($1, $2, $3, $4, NULL, 'ops/a', ARRAY['x'], $5,
                   gen_random_uuid(), 1)"""
    await plans.connection.execute("ANALYZE blackboard.tasks, blackboard.leases")
    lease = uuid.uuid4()
    await plans.connection.fetch("SELECT blackboard.start_lease($1, 'x', 1, '1 hour')", lease)
    for size in (10, 20_000):
        await plans.connection.fetch(add, SESSION, size)
        rows = await plans.connection.fetch(CLAIM, SESSION, lease, 6)
        for first in range(0, 4, 2):
            held = rows[first : first + 2]
            values = [[row[name] for row in held] for name in ("id", "claim_id", "attempt")]
            await plans.indexed({"tasks_pkey"}, complete, SESSION, *values)
        for row in rows[4:]:
            held = [row[name] for name in ("id", "claim_id", "attempt")]
            await plans.indexed({"tasks_pkey", "tasks_ready"}, fused, SESSION, *held, lease)


FLOWS = """
SET session_replication_role = replica;
INSERT INTO blackboard.flows (session_id, id, name, digest)
SELECT lpad(to_hex(1 + n % 20), 32, '0')::uuid, lpad(to_hex(n), 32, '0')::uuid, 'f', 'x' FROM generate_series(1, {flows}) n;
INSERT INTO blackboard.flow_stages (session_id, flow_id, name, ordinal, template, task_id)
SELECT lpad(to_hex(1 + n % 20), 32, '0')::uuid, lpad(to_hex(n), 32, '0')::uuid, s.name, s.ordinal,
       '{{"type": "t"}}', gen_random_uuid()
FROM generate_series(1, {flows}) n, (VALUES ('a', 1), ('b', 2)) s (name, ordinal);
INSERT INTO blackboard.flow_tasks (session_id, task_id, flow_id, stage, iteration)
SELECT s.session_id, s.task_id, s.flow_id, s.name, 1 FROM blackboard.flow_stages s;
INSERT INTO blackboard.flow_edges (session_id, flow_id, stage, depends_on)
SELECT f.session_id, f.id, 'b', 'a' FROM blackboard.flows f;
SET session_replication_role = origin;
"""


async def test_flows_begin_and_go_on(plans: Plans) -> None:
    rows = await plans.connection.fetchval("SELECT count(*) FROM blackboard.events")
    for table in ("flows", "flow_stages", "flow_edges", "flow_tasks"):
        await plans.connection.execute(f"ALTER TABLE blackboard.{table} SET (autovacuum_enabled = off)")
    await plans.connection.execute(FLOWS.format(flows=rows // 4))
    if rows > 10_000:
        await plans.connection.execute(
            "ANALYZE blackboard.flows, blackboard.flow_stages, blackboard.flow_edges, blackboard.flow_tasks"
        )
    stages = '[{"name": "a", "type": "first"}, {"name": "b", "type": "second", "after": ["a"]}]'
    create = "SELECT id FROM blackboard.create_flow($1, gen_random_uuid(), 'f', CAST($2::text AS jsonb), '{}', 'x')"
    for _ in range(2):
        flow_id = await plans.connection.fetchval(create, SESSION, stages)
        await unscanned(plans, create, SESSION, stages)
        ready = "SELECT id FROM blackboard.tasks WHERE session_id = $1 AND type = $2 AND status = 'pending'"
        for stage in ("first", "second"):
            task_id = await plans.connection.fetchval(
                "SELECT task_id FROM blackboard.flow_tasks WHERE session_id = $1 AND flow_id = $2 AND stage = $3",
                SESSION, flow_id, {"first": "a", "second": "b"}[stage],
            )  # fmt: skip
            assert task_id in [row["id"] for row in await plans.connection.fetch(ready, SESSION, stage)]
            held = await plans.connection.fetchrow(
                "SELECT * FROM blackboard.claim_task($1, $2, 'ops/a', $3, gen_random_uuid())", SESSION, task_id, LEASE
            )
            assert held is not None
            await unscanned(
                plans,
                "SELECT * FROM blackboard.complete_tasks($1, ARRAY[$2::uuid], ARRAY[$3::uuid], ARRAY[1], "
                "ARRAY[NULL::jsonb], 'ops/a')",
                SESSION, task_id, held["claim_id"],
            )  # fmt: skip
        finished = "SELECT status FROM blackboard.flows WHERE session_id = $1 AND id = $2"
        assert await plans.connection.fetchval(finished, SESSION, flow_id) == "completed"


async def unscanned(plans: Plans, sql: str, *args: Any) -> None:
    """Neither the big tables nor those of flows are scanned."""
    plan = await plans.of(sql, *args)
    scanned = set(re.findall(r"Seq Scan on (?:blackboard\.)?(\w+)", plan))
    assert not scanned & (BIG | {"flows", "flow_stages", "flow_edges", "flow_tasks"}), plan


async def test_add_many(plans: Plans) -> None:
    plan = await plans.of(
        "SELECT blackboard.add_tasks($1, array_agg(gen_random_uuid()), array_agg('t'::text), array_agg(''::text), "
        "array_agg(5::smallint), array_agg('{}'::jsonb), array_agg(NULL::jsonb), 'x') FROM generate_series(1, 50)",
        SESSION,
    )
    assert not set(re.findall(r"Seq Scan on (?:blackboard\.)?(\w+)", plan)) & BIG, plan


async def test_renew_and_sweep(plans: Plans) -> None:
    await plans.indexed({"tasks_leased"}, "SELECT blackboard.renew_lease($1)", LEASE)
    await plans.connection.execute(
        "UPDATE blackboard.liveness SET checked_at = blackboard.now() - interval '2 seconds', grace_from = '-infinity'"
    )
    await plans.connection.execute("UPDATE blackboard.leases SET lapsed_at = now() WHERE id = $1", uuid.UUID(int=7))
    # The first look after a lapse sweeps, and looks for tasks whose lease is gone.
    plan = await plans.of("SELECT blackboard.tend_leases()")
    assert not set(re.findall(r"Seq Scan on (?:blackboard\.)?(\w+)", plan)) & (
        BIG if "tasks_leased" in plan else set()
    ), plan


async def test_read_events_since_a_recent_cursor(plans: Plans) -> None:
    cursor = await plans.connection.fetchval("SELECT blackboard.cursor_now($1)", SESSION)
    await plans.connection.execute(
        "INSERT INTO blackboard.tasks (session_id, type) SELECT $1, 't' FROM generate_series(1, 5)", SESSION
    )
    read = "SELECT * FROM blackboard.read_events($1, $2, 100)"
    if await plans.connection.fetchval("SELECT count(*) FROM blackboard.events") < 1000:
        assert len(await plans.connection.fetch(read, SESSION, cursor)) == 1
        return
    await plans.indexed({"events_cursor"}, read, SESSION, cursor)


async def test_the_newest_findings_and_lists(plans: Plans) -> None:
    if await plans.connection.fetchval("SELECT count(*) FROM blackboard.findings") < 10_000:
        return
    find = statements("findings")["list_findings"]
    values = dict.fromkeys(find.parameters) | {"session_id": SESSION, "limit": 100}
    defaults = await _arguments(plans.connection, find, values)
    plans_text = await plans.of(find.numbered, *defaults)
    assert "Seq Scan on findings" not in plans_text, plans_text
    cursor = statements("events")["cursor_now"]
    await plans.indexed({"events_cursor"}, cursor.numbered, SESSION)


async def _arguments(connection: Connection, statement: Any, values: dict[str, Any]) -> list[Any]:
    prepared = await connection.prepare(statement.numbered)
    arguments = []
    for name, kind in zip(statement.parameters, prepared.get_parameters(), strict=True):
        value = values[name]
        if value is None and kind.name == "bool":
            value = False
        arguments.append(value)
    return arguments


async def test_a_lease_is_renewed_without_touching_an_index(plans: Plans) -> None:
    connection = plans.connection
    if not await connection.fetchval("SELECT count(*) FROM blackboard.leases"):
        return
    await connection.execute("VACUUM blackboard.leases")
    stat = "SELECT n_tup_hot_upd, n_tup_upd FROM pg_stat_xact_user_tables WHERE relname = 'leases'"
    async with connection.transaction():
        for _ in range(5):
            await connection.execute("SELECT blackboard.renew_lease($1)", LEASE)
        row = await connection.fetchrow(stat)
    assert row is not None
    assert row["n_tup_hot_upd"] == row["n_tup_upd"] >= 5
