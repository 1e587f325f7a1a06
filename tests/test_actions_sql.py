"""Actions written by plain SQL: the same gate, the same history."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import pytest

from blackboard.ids import new_id
from blackboard.sqlstates import CONSTRAINTS

_ROLLBACK = ("modify", "deployment/checkout", {"action": "rollback", "version": "v1.2.3"})


async def members(session: Any, count: int = 3) -> list[Any]:
    return [await session.join(f"ops/{name}") for name in "abcdefgh"[:count]]


async def events(db: Any, session: Any, prefix: str = "action") -> list[tuple[str, str, dict[str, Any]]]:
    rows = await db.fetch(
        "SELECT type, actor, data FROM blackboard.events WHERE session_id = $1 AND type LIKE $2 ORDER BY seq",
        session.id,
        f"{prefix}.%",
    )
    return [(row["type"].partition(".")[2], row["actor"], json.loads(row["data"])) for row in rows]


async def refused(db: Any, sql: str, *arguments: Any) -> asyncpg.PostgresError:
    with pytest.raises(asyncpg.PostgresError) as caught:
        await db.execute(sql, *arguments)
    return caught.value


async def test_raw_sql_goes_through_the_same_gate(session: Any, db: Any) -> None:
    await members(session, 1)
    insert = (
        "INSERT INTO blackboard.actions (session_id, agent_id, type, requires_approval) "
        "VALUES ($1, 'ops/a', 'query', $2) RETURNING id"
    )
    free, gated = [await db.fetchval(insert, session.id, required) for required in (False, True)]
    assert (await session.actions.get(free)).status == "approved"
    assert (await session.actions.get(gated)).status == "awaiting_approval"
    assert [t for t, _, _ in await events(db, session)] == ["proposed", "approved", "proposed", "awaiting_approval"]
    await db.execute("UPDATE blackboard.actions SET status = 'approved', approved_by = 'dba' WHERE id = $1", gated)
    assert (await session.actions.get(gated)).decided_at is not None
    await db.execute("DELETE FROM blackboard.actions WHERE id = $1", free)
    assert (await events(db, session))[-1][0] == "deleted"


async def test_raw_sql_cannot_bypass_the_gate(session: Any, db: Any) -> None:
    a, _ = await members(session, 2)
    voted = await a.actions.propose(*_ROLLBACK, vote={})
    where = "WHERE session_id = $1 AND id = $2"
    taken = "executor = 'ops/a', lease_id = gen_random_uuid(), token = token + 1"
    wanted = {
        "status = 'approved'": "23514",
        "vote_accepted = true": "BB003",
        "status = 'approved', vote_accepted = true": "BB003",
        "approval = 'human'": "BB003",
        "requires_approval = false, approval = NULL": "BB005",
        "parameters = '{}'": "BB005",
        "agent_id = 'ops/b'": "BB005",
        f"status = 'executing', {taken}": "23514",
        f"status = 'completed', {taken}": "23514",
        "status = 'proposed'": "BB003",
        "token = 7": "BB003",
    }
    for change, code in wanted.items():
        error = await refused(db, f"UPDATE blackboard.actions SET {change} {where}", session.id, voted.id)
        assert error.sqlstate == code, change
    free = await a.actions.propose("query", requires_approval=False)
    for change, code in {
        "status = 'awaiting_approval'": "BB003",
        "status = 'rejected'": "BB003",
        f"status = 'completed', {taken}": "BB003",
    }.items():
        error = await refused(db, f"UPDATE blackboard.actions SET {change} {where}", session.id, free.id)
        assert error.sqlstate in {code, "23514"}, change
    await a.actions.start(free.id)
    for change in ("token = 0", "token = token + 1, status = 'completed'", "executor = 'ops/b'", "status = 'approved'"):
        error = await refused(db, f"UPDATE blackboard.actions SET {change} {where}", session.id, free.id)
        assert error.sqlstate in {"BB003", "23514"}, change
    insert = (
        "INSERT INTO blackboard.actions (session_id, agent_id, type, status) VALUES ($1, 'ops/a', 'query', 'approved')"
    )
    assert (await refused(db, insert, session.id)).sqlstate == "BB003"
    assert (await refused(db, insert.replace("'approved'", "'proposed'"), new_id())).sqlstate == "BB001"
    assert (await refused(db, "TRUNCATE blackboard.actions")).sqlstate == "BB005"


@pytest.mark.parametrize(
    ("constraint", "columns"),
    [
        ("actions_type_known", {"type": "'destroy'"}),
        ("actions_target_length", {"target": "repeat('x', 501)"}),
        (
            "actions_parameters_size",
            {"parameters": "to_jsonb((SELECT string_agg(md5(i::text), '') FROM generate_series(1, 60000) i))"},
        ),
        ("actions_approval_known", {"approval": "'nobody'"}),
        ("actions_approval_iff_required", {"requires_approval": "false", "approval": "'human'"}),
        ("actions_vote_needs_proposal", {"approval": "'both'"}),
        ("actions_escalation_needs_human", {"type": "'escalate'", "requires_approval": "false"}),
        ("actions_proposer_member", {"agent_id": "'ops/nobody'"}),
        ("actions_proposal_known", {"proposal_id": "gen_random_uuid()"}),
        ("actions_error_length", {"error": "repeat('x', 10001)"}),
        ("actions_finished_at_iff_finished", {"finished_at": "now()"}),
        ("actions_decided_at_iff_decided", {"decided_at": "now()"}),
        ("actions_rolled_back_by_whom", {"rolled_back_by": "'x'"}),
    ],
)
async def test_constraints_of_actions(session: Any, db: Any, constraint: str, columns: dict[str, str]) -> None:
    await members(session, 1)
    values = {"session_id": f"'{session.id}'", "agent_id": "'ops/a'", "type": "'query'", **columns}
    error = await refused(
        db, f"INSERT INTO blackboard.actions ({', '.join(values)}) VALUES ({', '.join(values.values())})"
    )
    assert error.constraint_name == constraint  # type: ignore[attr-defined]
    assert constraint in CONSTRAINTS


@pytest.mark.parametrize(
    ("constraint", "change"),
    [
        ("actions_approver_is_another", "approved_by = 'ops/a', status = 'approved'"),
        ("actions_approved_by_length", "approved_by = ''"),
        ("actions_rejected_by_length", "rejected_by = ''"),
        ("actions_approval_reason_length", "approval_reason = repeat('x', 4001)"),
        ("actions_approved_before_start", "status = 'approved'"),
        ("actions_token_range", "token = -1"),
        ("actions_rollback_reason_length", "rollback_reason = repeat('x', 4001)"),
    ],
)
async def test_constraints_of_changed_actions(session: Any, db: Any, constraint: str, change: str) -> None:
    [a] = await members(session, 1)
    action = await a.actions.propose(*_ROLLBACK)
    error = await refused(db, f"UPDATE blackboard.actions SET {change} WHERE id = $1", action.id)
    assert error.constraint_name == constraint  # type: ignore[attr-defined]
    assert constraint in CONSTRAINTS


async def test_there_is_no_other_status(session: Any, db: Any) -> None:
    [a] = await members(session, 1)
    action = await a.actions.propose("query", requires_approval=False)
    error = await refused(db, "UPDATE blackboard.actions SET status = 'maybe' WHERE id = $1", action.id)
    assert error.constraint_name == "actions_status_known"  # type: ignore[attr-defined]
