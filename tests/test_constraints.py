"""Every constraint that a caller can hit has a typed error; each of the core tables is broken here from raw SQL."""

from __future__ import annotations

from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import Session, errors
from blackboard.errors import BlackboardError
from blackboard.sqlstates import CONSTRAINTS
from blackboard.store.driver_errors import from_asyncpg

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# What no caller can hit: rows that only the board's own functions write, one each.
UNREACHABLE = {
    "events_pkey": "seq comes from a sequence",
    "history_only_row": "one row, made by the migration",
    "history_pkey": "one row, made by the migration",
    "liveness_only_row": "one row, made by the migration",
    "liveness_pkey": "one row, made by the migration",
    "pruned_events_pkey": "written by prune_events with ON CONFLICT",
    "schema_version_pkc": "written by the migrations",
    "unsettled_limits_pkey": "written by triggers with ON CONFLICT",
    "unsettled_limits_session_id_limit_id_fkey": "written by triggers for rows that there are",
}

CORE = (
    "agents", "late_results", "leases", "liveness", "memberships", "requests", "sessions", "task_dependencies", "tasks",
    "history",
)  # fmt: skip


async def names(db: Connection, tables: tuple[str, ...] | None = None) -> dict[str, str]:
    """Constraints and unique indexes of the schema, and the rules that triggers hold, by name: the table."""
    rows = await db.fetch(
        """SELECT c.conname AS name, r.relname AS table FROM pg_constraint c JOIN pg_class r ON r.oid = c.conrelid
           WHERE r.relnamespace = 'blackboard'::regnamespace AND c.contype IN ('c', 'f', 'p', 'u', 'x')
           UNION
           SELECT i.relname, r.relname FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
           JOIN pg_class r ON r.oid = x.indrelid
           WHERE r.relnamespace = 'blackboard'::regnamespace AND x.indisunique
           UNION
           SELECT rule[1], 'tasks' FROM pg_proc p, regexp_matches(p.prosrc, 'THEN ''([a-z_]+)''', 'g') rule
           WHERE p.oid = 'blackboard.broken_task_rule'::regproc"""
    )
    return {row["name"]: row["table"] for row in rows if tables is None or row["table"] in tables}


async def test_every_constraint_has_its_error(db: Connection) -> None:
    found = await names(db)
    assert sorted(set(found) - set(CONSTRAINTS) - set(UNREACHABLE)) == [], (
        "add them to blackboard.sqlstates.CONSTRAINTS"
    )
    assert sorted(set(UNREACHABLE) - set(found)) == []
    assert sorted(set(UNREACHABLE) & set(CONSTRAINTS)) == []


async def test_every_entry_has_its_constraint(db: Connection) -> None:
    assert sorted(set(CONSTRAINTS) - set(await names(db))) == []


def test_entries_say_what_to_do() -> None:
    for name, (kind, field, message) in CONSTRAINTS.items():
        assert issubclass(kind, BlackboardError), name
        assert field.isidentifier(), name
        assert message.endswith("."), name
        assert message[0].isupper() or message.split()[0] == field or message[0].islower(), name
        assert len(message) <= 160, name


async def test_no_constraint_is_left_unvalidated(db: Connection) -> None:
    assert (
        await db.fetch(
            "SELECT conname FROM pg_constraint c JOIN pg_class r ON r.oid = c.conrelid "
            "WHERE r.relnamespace = 'blackboard'::regnamespace AND NOT c.convalidated"
        )
        == []
    )


BIG = "to_jsonb((SELECT string_agg(md5(n::text || random()::text), '') FROM generate_series(1, 40000) n))"
TASK = "INSERT INTO blackboard.tasks (session_id, type{}) VALUES ($1, 't'{})"
EDGE = "INSERT INTO blackboard.task_dependencies (session_id, task_id, depends_on_id{}) VALUES ($1, {})"
LATE = "INSERT INTO blackboard.late_results (session_id, task_id, claim_id, attempt, agent_id{}) VALUES ($1, $2, $2, 1, {})"
CHANGE = "UPDATE blackboard.tasks SET {} WHERE session_id = $1 AND id = $2"

# Constraint: a statement that breaks it ($1 session, $2 a pending task, $3 another).
BROKEN: dict[str, str] = {
    "agents_capabilities_few": "INSERT INTO blackboard.agents (id, capabilities) VALUES ('x', ARRAY[NULL]::text[])",
    "agents_capacity_range": "INSERT INTO blackboard.agents (id, capacity) VALUES ('x', 0)",
    "agents_expertise_size": (
        "INSERT INTO blackboard.agents (id, expertise) SELECT 'x', jsonb_object_agg(md5(n::text), 0.123456) "
        "FROM generate_series(1, 60000) n"
    ),
    "agents_expertise_weights": "INSERT INTO blackboard.agents (id, expertise) VALUES ('x', '{\"a\": 1.01}')",
    "agents_id_form": "INSERT INTO blackboard.agents (id) VALUES ('a b')",
    "agents_pkey": "INSERT INTO blackboard.agents (id) VALUES ('member')",
    "agents_role_length": "INSERT INTO blackboard.agents (id, role) VALUES ('x', '')",
    "agents_trust_range": "INSERT INTO blackboard.agents (id, trust) VALUES ('x', 'NaN')",
    "late_results_agent_id_length": LATE.format("", "''"),
    "late_results_error_size": LATE.format(", error", f"'a', {BIG}"),
    "late_results_once": f"{LATE.format('', chr(39) + 'a' + chr(39))}, ($1, $2, $2, 1, 'b')",
    "late_results_pkey": (
        "INSERT INTO blackboard.late_results (session_id, id, task_id, claim_id, attempt, agent_id) "
        "VALUES ($1, $2, $2, $2, 1, 'a'), ($1, $2, $3, $2, 1, 'a')"
    ),
    "late_results_result_size": LATE.format(", result", f"'a', {BIG}"),
    "leases_pkey": (
        "INSERT INTO blackboard.leases (id, term, expires_at) VALUES ($2, '1 minute', now()), ($2, '1 minute', now())"
    ),
    "leases_term_range": "INSERT INTO blackboard.leases (id, term, expires_at) VALUES ($2, '31 days', now())",
    "memberships_agent_id_fkey": "INSERT INTO blackboard.memberships (session_id, agent_id) VALUES ($1, 'nobody')",
    "memberships_pkey": "INSERT INTO blackboard.memberships (session_id, agent_id) VALUES ($1, 'member')",
    "memberships_role_length": "UPDATE blackboard.memberships SET role = repeat('x', 51)",
    "memberships_session_id_fkey": (
        "INSERT INTO blackboard.memberships (session_id, agent_id) VALUES (gen_random_uuid(), 'member')"
    ),
    "memberships_vote_weight_range": "UPDATE blackboard.memberships SET vote_weight = 'NaN'",
    "requests_key_length": "SELECT blackboard.first_time($1, '', 'v', '{}')",
    "requests_pkey": (
        "INSERT INTO blackboard.requests (session_id, key, verb, digest) VALUES ($1, 'k', 'v', ''), ($1, 'k', 'v', '')"
    ),
    "sessions_ageing_is_gated": "UPDATE blackboard.sessions SET ageing = '1 hour', gated = false WHERE id = $1",
    "sessions_ageing_range": "UPDATE blackboard.sessions SET ageing = '1 ms', gated = true WHERE id = $1",
    "sessions_closed_at_iff_closed": "UPDATE blackboard.sessions SET closed_at = now() WHERE id = $1",
    "sessions_context_size": f"UPDATE blackboard.sessions SET context = {BIG} WHERE id = $1",
    "sessions_goal_length": "UPDATE blackboard.sessions SET goal = repeat('x', 10001) WHERE id = $1",
    "sessions_name_length": "UPDATE blackboard.sessions SET name = '' WHERE id = $1",
    "sessions_name_while_open": (
        "INSERT INTO blackboard.sessions (name) SELECT name FROM blackboard.sessions WHERE id = $1"
    ),
    "sessions_not_the_board": (
        "INSERT INTO blackboard.sessions (id, name) VALUES ('00000000-0000-0000-0000-000000000000', 'x')"
    ),
    "sessions_outcome_size": f"UPDATE blackboard.sessions SET outcome = {BIG} WHERE id = $1",
    "sessions_pkey": "INSERT INTO blackboard.sessions (id, name) VALUES ($1, 'x')",
    "sessions_retention_range": "UPDATE blackboard.sessions SET retention = '-1 day' WHERE id = $1",
    "sessions_status_known": "UPDATE blackboard.sessions SET status = 'sleeping' WHERE id = $1",
    "task_dependencies_depends_on_fkey": EDGE.format("", "$2, gen_random_uuid()"),
    "task_dependencies_not_itself": EDGE.format("", "$2, $2"),
    "task_dependencies_on_failure_known": EDGE.format(", on_failure", "$2, $3, 'shrug'"),
    "task_dependencies_pkey": f"{EDGE.format('', '$2, $3')}, ($1, $2, $3)",
    "task_dependencies_state_known": EDGE.format(", state", "$2, $3, 'unknown'"),
    "task_dependencies_task_fkey": EDGE.format("", "gen_random_uuid(), $2"),
    "tasks_assigned_to_length": TASK.format(", assigned_to", ", ''"),
    "tasks_assignee_when_assigned": TASK.format(", status", ", 'assigned'"),
    "tasks_attempt_range": CHANGE.format("attempt = -1"),
    "tasks_blockers_iff_blocked": CHANGE.format("status = 'blocked', position = NULL"),
    "tasks_blockers_range": CHANGE.format("blockers = -1"),
    "tasks_capability_length": TASK.format(", capability", ", repeat('x', 101)"),
    "tasks_claimed_when_running": CHANGE.format("status = 'running', position = NULL, lease_id = gen_random_uuid()"),
    "tasks_completed_at_iff_final": CHANGE.format("completed_at = now()"),
    "tasks_deadline_only_running": CHANGE.format("deadline_at = now()"),
    "tasks_error_size": CHANGE.format(f"error = {BIG}"),
    "tasks_fallback_range": TASK.format(", fallback", ", '-1 hour'"),
    "tasks_held_says_why": CHANGE.format("status = 'held', position = NULL, held = NULL"),
    "tasks_held_size": CHANGE.format(f"held = {BIG}"),
    "tasks_lease_iff_running": CHANGE.format("lease_id = gen_random_uuid()"),
    "tasks_limit_key_length": TASK.format(", limit_key", ", ''"),
    "tasks_max_attempts_range": TASK.format(", max_attempts", ", 1001"),
    "tasks_parameters_size": TASK.format(", parameters", f", {BIG}"),
    "tasks_pkey": "INSERT INTO blackboard.tasks (session_id, id, type) VALUES ($1, $2, 't')",
    "tasks_position_iff_ready": CHANGE.format("position = NULL"),
    "tasks_priority_range": TASK.format(", priority", ", 11"),
    "tasks_progress_size": CHANGE.format(f"progress = {BIG}"),
    "tasks_ready_is_approved": TASK.format(", requires_approval", ", true"),
    "tasks_ready_is_unblocked": CHANGE.format("blockers = 1"),
    "tasks_result_size": CHANGE.format(f"result = {BIG}"),
    "tasks_retry_delay_range": TASK.format(", retry_delay", ", '31 days'"),
    "tasks_run_at_when_scheduled": CHANGE.format("status = 'scheduled', position = NULL"),
    "tasks_status_known": CHANGE.format("status = 'sleeping', position = NULL"),
    "tasks_timeout_range": TASK.format(", timeout", ", '3651 days'"),
    "tasks_type_length": "INSERT INTO blackboard.tasks (session_id, type) VALUES ($1, '')",
    "tasks_unique_key_length": TASK.format(", unique_key", ", ''"),
}


async def test_all_constraints_of_the_core_are_broken_here(db: Connection) -> None:
    core = set(await names(db, CORE)) - set(UNREACHABLE)
    assert sorted(core - set(BROKEN)) == []
    assert sorted(set(BROKEN) - core) == []


@pytest.mark.parametrize("name", sorted(BROKEN))
async def test_a_constraint_holds_and_becomes_its_error(session: Session, db: Connection, name: str) -> None:
    await session.join("member")
    tasks = [(await session.tasks.add("t")).id for _ in range(2)]
    sql = BROKEN[name]
    arguments: list[Any] = [session.id, *tasks]
    used = max([n for n in (1, 2, 3) if f"${n}" in sql], default=0)
    for n in range(1, used):
        if f"${n}" not in sql:  # a parameter that is not used has no type
            sql = sql.replace(f"${used}", f"coalesce(${used}, ${n}::uuid)")
    with pytest.raises(asyncpg.PostgresError) as refused:
        await db.execute(sql, *arguments[:used])
    assert refused.value.as_dict().get("constraint_name") == name, refused.value
    error = from_asyncpg(refused.value)
    kind, field, message = CONSTRAINTS[name]
    assert type(error) is kind
    assert (error.field, error.constraint, error.message) == (field, name, message)
    assert await db.fetchval("SELECT count(*) FROM blackboard.tasks") == 2, "nothing is half-written"


def test_error_codes_are_unique_and_drawn_in_the_tree() -> None:
    classes = {
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, BlackboardError)
    }
    codes = [kind.code for kind in classes]
    assert len(codes) == len(set(codes))
    tree = errors.__doc__ or ""
    lines = {
        line.replace("│", "").replace("├──", "").replace("└──", "").split()[0]: line
        for line in tree.splitlines()
        if line.strip()
    }
    for kind in classes:
        assert kind.__name__ in lines, f"{kind.__name__} is missing in the tree of errors.py"
        assert kind.__name__ in errors.__all__
        depth = len([c for c in kind.__mro__ if issubclass(c, BlackboardError)]) - 1
        indent = len(lines[kind.__name__]) - len(lines[kind.__name__].lstrip(" │├└─"))
        assert indent == 4 + 4 * depth, lines[kind.__name__]
    assert all(kind.__doc__ for kind in classes)
