"""Flows from raw SQL: what holds whoever writes, and what roles may do."""

from __future__ import annotations

import json
import uuid
from datetime import timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import Blackboard, Session, Stage, sequential
from blackboard.errors import BlackboardError, Conflict, InvalidInput, InvalidTransition, NotPermitted
from blackboard.sqlstates import CONSTRAINTS
from blackboard.store.driver_errors import from_asyncpg

from .conftest import Connect

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

FLOW = "INSERT INTO blackboard.flows (session_id, id, name, digest{}) VALUES ($1, $2, {})"
STAGE = (
    "INSERT INTO blackboard.flow_stages (session_id, flow_id, name, ordinal, task_id, template{}) VALUES ($1, $2, {})"
)
EDGE = "INSERT INTO blackboard.flow_edges (session_id, flow_id, stage, depends_on{}) VALUES ($1, $2, {})"
TASK = "INSERT INTO blackboard.flow_tasks (session_id, flow_id, task_id, stage, iteration{}) VALUES ($1, $2, {})"
BIG = "jsonb_build_object('x', (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 60000) n))"
NEW = "'n', 9, gen_random_uuid(), '{}'"

BROKEN = {
    "flow_edges_depends_on_fkey": EDGE.format("", "'a', 'nobody'"),
    "flow_edges_on_failure_known": EDGE.format(", on_failure", "'a', 'b', 'odd'"),
    "flow_edges_pkey": EDGE.format("", "'b', 'a'"),
    "flow_edges_stage_fkey": EDGE.format("", "'nobody', 'a'"),
    "flow_stages_bindings_object": STAGE.format(", bindings", NEW + ", '[]'"),
    "flow_stages_flow_fkey": STAGE.format("", NEW).replace("$2", "gen_random_uuid()"),
    "flow_stages_join_range": STAGE.format(", join_need", NEW + ", 0"),
    "flow_stages_loop_has_quality": STAGE.format(", loop_to", NEW + ", 'a'"),
    "flow_stages_max_iterations_range": STAGE.format(", max_iterations", NEW + ", 101"),
    "flow_stages_min_quality_range": STAGE.format(", min_quality", NEW + ", 'NaN'"),
    "flow_stages_name_form": STAGE.format("", NEW.replace("'n'", "'a b'")),
    "flow_stages_output_form": STAGE.format(", output", NEW + ", 'a.b'"),
    "flow_stages_output_once": STAGE.format(", output", NEW + ", 'out'"),
    "flow_stages_pkey": STAGE.format("", NEW.replace("'n'", "'a'")),
    "flow_stages_quality_range": STAGE.format(", quality", NEW + ", 'NaN'"),
    "flow_stages_state_known": STAGE.format(", state", NEW + ", 'odd'"),
    "flow_tasks_flow_fkey": TASK.format("", "gen_random_uuid(), 'a', 1").replace("$2", "gen_random_uuid()"),
    "flow_tasks_kind_known": TASK.format(", kind", "gen_random_uuid(), 'a', 1, 'odd'"),
    "flow_tasks_pkey": TASK.format("", "(SELECT task_id FROM blackboard.flow_tasks LIMIT 1), 'a', 1"),
    "flows_finished_at_iff_final": FLOW.format(", status", "'f', '', 'completed'").replace("$2", "gen_random_uuid()"),
    "flows_inputs_object": FLOW.format(", inputs", "'f', '', '[]'").replace("$2", "gen_random_uuid()"),
    "flows_inputs_size": FLOW.format(", inputs", f"'f', '', {BIG}").replace("$2", "gen_random_uuid()"),
    "flows_name_length": FLOW.format("", "'', ''").replace("$2", "gen_random_uuid()"),
    "flows_pkey": FLOW.format("", "'f', ''"),
    "flows_session_known": FLOW.format("", "'f', ''").replace("$1", "gen_random_uuid()"),
    "flows_status_known": FLOW.format(", status", "'f', '', 'odd'").replace("$2", "gen_random_uuid()"),
    "flows_version_range": FLOW.format(", version", "'f', '', 0").replace("$2", "gen_random_uuid()"),
}


@pytest.fixture(name="flow")
async def _flow(session: Session) -> Any:
    return await session.flows.create("f", sequential(Stage("a", "t", output="out"), Stage("b", "t")))


def test_every_constraint_of_flows_is_broken_here() -> None:
    assert sorted(BROKEN) == sorted(name for name in CONSTRAINTS if name.startswith("flow"))


async def refused(db: Connection, sql: str, *values: object) -> BlackboardError:
    with pytest.raises(asyncpg.PostgresError) as caught:
        await db.execute(sql, *values)
    return from_asyncpg(caught.value)


@pytest.mark.parametrize("name", sorted(BROKEN))
async def test_a_broken_constraint_has_its_error(session: Session, db: Connection, flow: Any, name: str) -> None:
    sql = BROKEN[name]
    values = [value for mark, value in (("$1", session.id), ("$2", flow.id)) if mark in sql]
    if "$1" not in sql:
        sql = sql.replace("$2", "$1")
    transaction = db.transaction()
    await transaction.start()
    # As a verb of the board would, if it had a fault.
    await db.execute("SET LOCAL xmloption = 'document'")
    with pytest.raises(asyncpg.PostgresError) as caught:
        await db.execute(sql, *values)
    await transaction.rollback()
    kind, field, _ = CONSTRAINTS[name]
    error = from_asyncpg(caught.value)
    assert error.details.get("constraint") == name
    assert (type(error), error.details["field"]) == (kind, field)


@pytest.mark.parametrize("table", ["flows", "flow_stages", "flow_edges", "flow_tasks"])
async def test_rows_of_flows_are_not_written_by_hand(db: Connection, flow: Any, table: str) -> None:
    column = "id" if table == "flows" else "flow_id"
    for sql in (f"DELETE FROM blackboard.{table}", f"UPDATE blackboard.{table} SET {column} = {column}"):
        assert isinstance(await refused(db, sql), NotPermitted)
    assert "append-only" in str(await refused(db, f"TRUNCATE blackboard.{table} CASCADE"))


async def test_what_is_over_stays_over_even_for_a_verb(session: Session, db: Connection, flow: Any) -> None:
    await session.flows.cancel(flow.id)
    transaction = db.transaction()
    await transaction.start()
    await db.execute("SET LOCAL xmloption = 'document'")
    error = await refused(db, "UPDATE blackboard.flows SET status = 'running', finished_at = NULL")
    await transaction.rollback()
    assert isinstance(error, InvalidTransition)


async def test_tasks_of_a_living_flow_cannot_be_deleted(session: Session, db: Connection, flow: Any) -> None:
    task = flow.stage("a").task_id
    assert isinstance(await refused(db, "DELETE FROM blackboard.tasks WHERE id = $1", task), Conflict)
    other = await session.tasks.add("t")
    edge = "INSERT INTO blackboard.task_dependencies (session_id, task_id, depends_on_id) VALUES ($1, $2, $3)"
    error = await refused(db, edge, session.id, flow.stage("b").task_id, other.id)
    assert isinstance(error, InvalidInput)
    async with db.transaction():
        await db.execute("SET LOCAL blackboard.pruning = 'on'")
        await db.execute("DELETE FROM blackboard.tasks WHERE id = $1", task)
    assert await session.tasks.get(task)
    await session.flows.cancel(flow.id)
    await db.execute("DELETE FROM blackboard.tasks WHERE id = $1", task)
    assert (await session.flows.get(flow.id)).stage("a").task_status is None


async def test_a_stage_ended_by_hand_moves_its_flow(session: Session, db: Connection, flow: Any) -> None:
    await db.execute(
        "UPDATE blackboard.tasks SET status = 'cancelled', position = NULL, completed_at = now() WHERE id = $1",
        flow.stage("a").task_id,
    )
    fresh = await session.flows.get(flow.id)
    assert (fresh.status, fresh.stage("b").state) == ("failed", "cancelled")


async def test_sql_alone_can_make_and_run_a_flow(session: Session, db: Connection) -> None:
    stages = [{"name": "a", "type": "t"}, {"name": "b", "type": "t", "after": ["a"], "inputs": {"x": "a.k"}}]
    row = await db.fetchrow(
        "SELECT * FROM blackboard.create_flow($1, $2, 'f', $3, NULL, 'psql')",
        session.id,
        uuid.uuid4(),
        json.dumps(stages),
    )
    assert (row["status"], row["created_by"]) == ("running", "psql")
    agent = await session.join("w")
    [task] = await agent.tasks.claim()
    await agent.tasks.complete(task, {"k": 7})
    [task] = await agent.tasks.claim()
    assert json.loads(await db.fetchval("SELECT blackboard.task_inputs($1, $2)", session.id, task.id)) == {"x": 7}


async def test_the_history_folds_to_the_tables(session: Session, db: Connection) -> None:
    agent = await session.join("w")
    flow = await session.flows.create(
        "f", [Stage("a", "t", min_quality=0.5, max_iterations=2), Stage("b", "t", after=["a"])]
    )
    for quality in (0.1, 0.9):
        [task] = await agent.tasks.claim()
        await agent.flows.complete_stage(task, quality=quality)
    await session.flows.pause(flow.id)
    rows = await db.fetch(
        """SELECT data ->> 'stage' AS stage, d.key,
                  (array_agg(d.value ORDER BY e.seq DESC))[1] AS value
           FROM blackboard.events e CROSS JOIN LATERAL jsonb_each(e.data) d
           WHERE e.subject_id = $1 GROUP BY 1, 2""",
        flow.id,
    )
    folded = {(row["stage"], row["key"]): json.loads(row["value"]) for row in rows}
    fresh = await session.flows.get(flow.id)
    assert (folded[None, "status"], folded[None, "version"]) == (fresh.status, fresh.version)
    for stage in fresh.stages:
        for field in ("state", "iteration", "quality"):
            assert folded[stage.name, field] == getattr(stage, field)
        assert folded[stage.name, "task_id"] == str(stage.task_id)


@pytest.mark.fresh_database
async def test_roles_use_the_verbs_and_nothing_else(database_url: str, connect: Connect) -> None:
    from .clitools import Cli

    owner = await connect()
    made: list[str] = []
    try:
        for kind in ("agent", "reader"):
            name = f"bb_{kind}_{uuid.uuid4().hex[:8]}"
            await owner.execute(f"CREATE ROLE {name} LOGIN")
            made.append(name)
            await owner.execute(Cli(database_url)("db", "grants", name, "--role", kind).stdout)
        host = database_url.partition("://")[2].rpartition("@")[2]
        async with Blackboard.open(f"postgresql://{made[0]}@{host}") as board:
            session = await board.start("roles")
            agent = await session.join("w")
            flow = await session.flows.create(
                "f", sequential(Stage("a", "t", min_quality=0.5, max_iterations=2), Stage("b", "t"))
            )
            await session.flows.pause(flow.id, stop=True)
            await session.flows.resume(flow.id)
            await session.flows.modify(flow.id, 3, add=[Stage("c", "t", after=["b"])])
            for quality in (0.1, 0.9):
                [task] = await agent.tasks.claim()
                await agent.flows.complete_stage(task, quality=quality)
            [task] = await agent.tasks.claim()
            await agent.tasks.fail(task, "x", delay=timedelta(0))
            await session.flows.cancel(flow.id)
        for role in made:
            async with Blackboard.open(f"postgresql://{role}@{host}") as board:
                raw = await asyncpg.connect(f"postgresql://{role}@{host}")
                for table in ("flows", "flow_stages", "flow_edges", "flow_tasks"):
                    await raw.fetch(f"SELECT * FROM blackboard.{table}")
                    assert isinstance(await refused(raw, f"DELETE FROM blackboard.{table}"), NotPermitted)
                await raw.close()
                session = await board.session("roles")
                assert (await session.flows.get(flow.id)).status == "cancelled"
                if role == made[1]:
                    with pytest.raises(NotPermitted):
                        await session.flows.create("g", [Stage("a", "t")])
    finally:
        for role in made:
            await owner.execute(f"DROP OWNED BY {role}")
            await owner.execute(f"DROP ROLE {role}")
