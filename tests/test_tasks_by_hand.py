"""Tasks that are written by hand: no step passes a rule by, and history tells every column that a step changed."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import Session

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

BIG = "to_jsonb((SELECT string_agg(md5(n::text || random()::text), '') FROM generate_series(1, 40000) n))"
BEGIN = (
    "status = 'running', position = NULL, attempt = attempt + 1, assigned_to = 'a', lease_id = $3, "
    "claim_id = $2, started_at = now()"
)
END = "status = 'completed', lease_id = NULL, deadline_at = NULL, completed_at = now()"

# A step of a task, and from where it is made.
STEPS = {"add": None, "begin": "pending", "end": "running"}

# What is written with it, beside or in place of what belongs to the step.
CHANGES = {
    "priority": ["0", "10", "11", "-1"],
    "parameters": ["'{\"a\": 1}'", BIG],
    "timeout": ["'1 hour'", "'0'", "'-1 second'", "'3650 days'", "'3651 days'"],
    "retry_delay": ["'0'", "'30 days'", "'31 days'", "'-1 second'"],
    "max_attempts": ["1", "1000", "0", "1001"],
    "attempt": ["0", "-1", "7"],
    "released": ["1", "3"],
    "blockers": ["1", "-1"],
    "held": ['\'{"code": "limit"}\'', "'{}'", f"jsonb_build_object('code', 'x', 'more', {BIG})"],
    "progress": ["'0.5'", BIG],
    "result": ["'1'", BIG],
    "error": ['\'{"code": "failed", "message": "no"}\'', BIG],
    "position": ["NULL", "5"],
    "lease_id": ["NULL", "$3"],
    "claim_id": ["NULL"],
    "assigned_to": ["NULL", "'b'"],
    "started_at": ["NULL"],
    "deadline_at": ["now()"],
    "completed_at": ["NULL", "now()"],
    "capability": ["'c'"],
    "run_at": ["now()"],
    "approved_by": ["'somebody'"],
    "cancel_requested": ["true"],
    "status": ["'assigned'", "'scheduled'", "'held'", "'dead'", "'nothing'"],
}
ONLY_NEW = {
    "type": ["''", "repeat('x', 51)"],
    "unique_key": ["''", "repeat('x', 201)", "'k'"],
    "limit_key": ["''", "'k'"],
    "fallback": ["'1 hour'", "'4000 days'"],
    "requires_approval": ["true"],
}
TOLD = (
    "status", "priority", "capability", "parameters", "timeout", "retry_delay", "max_attempts", "attempt", "blockers",
    "held", "progress", "result", "error", "assigned_to", "lease_id", "run_at", "approved_by", "cancel_requested",
    "released",
)  # fmt: skip

# A rule, a step that there is not, a column that stays as it was.
REFUSALS = {"23514", "BB003"}

CASES = [
    (step, column, value)
    for step in STEPS
    for column, values in (CHANGES | ONLY_NEW if step == "add" else CHANGES).items()
    for value in values
]


async def begun(session: Session, db: Connection, status: str) -> tuple[Any, Any]:
    """A task in that status, and a live lease."""
    agent = await session.join("a")
    record = await agent.tasks.add("t", {"n": 1})
    if status == "running":
        await agent.tasks.claim()
    return record.id, await db.fetchval("SELECT id FROM blackboard.leases WHERE lapsed_at IS NULL LIMIT 1")


def statement(step: str, column: str, value: str) -> str:
    if step == "add":
        columns = {"session_id": "$1", "id": "$2", "type": "'t'"} | {column: value}
        return (
            f"INSERT INTO blackboard.tasks ({', '.join(columns)}) "
            f"SELECT {', '.join(columns.values())} WHERE $3::uuid IS NOT NULL OR true"
        )
    parts = dict(part.strip().split(" = ", 1) for part in (BEGIN if step == "begin" else END).split(","))
    parts[column] = value
    sets = ", ".join(f"{name} = {what}" for name, what in parts.items())
    return f"UPDATE blackboard.tasks SET {sets} WHERE session_id = $1 AND id = $2 AND ($3::uuid IS NOT NULL OR true)"


async def done(db: Connection, text: str, *values: Any) -> bool:
    """Whether the statement was taken; False if it was refused."""
    try:
        async with db.transaction():
            await db.execute(text, *values)
    except asyncpg.PostgresError as error:
        if error.sqlstate not in REFUSALS:
            raise
        return False
    return True


async def broken(db: Connection) -> list[Any]:
    """The rules that rows of the table break."""
    (arguments,) = await db.fetchrow(
        """SELECT string_agg('t.' || substr(name, 3), ', ' ORDER BY place)
           FROM pg_proc, unnest(proargnames) WITH ORDINALITY u (name, place)
           WHERE oid = 'blackboard.broken_task_rule'::regproc"""
    )
    rows = await db.fetch(f"SELECT blackboard.broken_task_rule({arguments}) AS rule FROM blackboard.tasks t")
    return [row["rule"] for row in rows if row["rule"] is not None]


async def folded(db: Connection, task_id: Any) -> dict[str, Any]:
    events = await db.fetch("SELECT data FROM blackboard.events WHERE subject_id = $1 ORDER BY seq", task_id)
    values: dict[str, Any] = {}
    for event in events:
        values |= json.loads(event["data"])
    return values


@pytest.mark.parametrize("hot", [False, True], ids=["by hand", "as the functions do"])
async def test_no_step_passes_a_rule_by(session: Session, db: Connection, hot: bool) -> None:
    made = {status: await begun(session, db, status) for status in ("pending", "running")}
    tries = refused = 0
    for step, column, value in CASES:
        task_id, lease_id = made[STEPS[step] or "pending"]
        if step == "add":
            task_id = await db.fetchval("SELECT gen_random_uuid()")
        undo = db.transaction()
        await undo.start()
        tries += 1
        try:
            if hot:
                await db.execute("SET LOCAL xmlbinary = 'hex'")
            refused += not await done(db, statement(step, column, value), session.id, task_id, lease_id)
            assert await broken(db) == [], (step, column, value)
        finally:
            await undo.rollback()
    assert tries / 3 < refused < tries, "both are tried"


async def test_history_tells_every_column_that_a_step_changes(session: Session, db: Connection) -> None:
    told = 0
    for step, column, value in CASES:
        if step == "add" or value == BIG or BIG in value:  # too long for history: the row has it
            continue
        undo = db.transaction()
        await undo.start()
        try:
            task_id = await db.fetchval("SELECT gen_random_uuid()")
            lease_id = await db.fetchval("SELECT id FROM blackboard.start_lease(gen_random_uuid(), 'h', 1, '1 minute')")
            await db.execute(statement("add", "priority", "5"), session.id, task_id, lease_id)
            if STEPS[step] == "running":
                await db.execute(statement("begin", "attempt", "1"), session.id, task_id, lease_id)
            if not await done(db, statement(step, column, value), session.id, task_id, lease_id):
                continue
            row = json.loads(await db.fetchval("SELECT to_jsonb(t) FROM blackboard.tasks t WHERE t.id = $1", task_id))
            values = await folded(db, task_id)
            unsaid = dict.fromkeys(TOLD) | {
                "priority": 5, "capability": "", "max_attempts": 5, "retry_delay": "00:00:01", "attempt": 0,
                "blockers": 0, "cancel_requested": False, "released": 0,
            }  # fmt: skip
            values = unsaid | values
            assert {name: values[name] for name in TOLD} == {name: row[name] for name in TOLD}, (step, column, value)
            told += 1
        finally:
            await undo.rollback()
    assert told > 30
