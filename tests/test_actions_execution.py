"""Executing an approved action: one executor, its token, late results, rolling back."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from blackboard.errors import (
    IdempotencyConflict,
    InvalidTransition,
    LeaseLost,
)
from blackboard.ids import new_id


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


async def lease(db: Any) -> UUID:
    id_ = new_id()
    await db.execute("SELECT blackboard.start_lease($1, 'elsewhere', 1, interval '1 minute')", id_)
    return id_


async def lapse(db: Any, lease_id: UUID) -> None:
    await db.execute("UPDATE blackboard.leases SET lapsed_at = blackboard.now() WHERE id = $1", lease_id)


async def test_one_of_two_agents_starts_it(session: Any, connect: Any, blocked: Any) -> None:
    a, b = await members(session, 2)
    action = await a.actions.propose("query", requires_approval=False)
    first, second = await connect(), await connect()
    mine, theirs = await lease(first), await lease(second)
    start = "SELECT token FROM blackboard.start_action($1, $2, $3, $4)"
    leading = first.transaction()
    await leading.start()
    assert await first.fetchval(start, session.id, action.id, a.id, mine) == 1
    waiting = asyncio.create_task(second.fetchval(start, session.id, action.id, b.id, theirs))
    await blocked(second.get_server_pid())
    await leading.commit()
    with pytest.raises(asyncpg.PostgresError) as caught:
        await waiting
    assert caught.value.sqlstate == "BB003"
    assert await first.fetchval(start, session.id, action.id, a.id, mine) == 1


async def test_a_lapsed_execution_goes_to_another_and_the_late_result_aside(session: Any, db: Any) -> None:
    a, b = await members(session, 2)
    action = await a.actions.propose("modify", requires_approval=False)
    gone = await lease(db)
    await db.execute("SELECT blackboard.start_action($1, $2, $3, $4)", session.id, action.id, b.id, gone)
    with pytest.raises(InvalidTransition) as caught:
        await a.actions.start(action.id)
    assert caught.value.executor == "ops/b"
    await lapse(db, gone)
    for late in (b.actions.complete(action.id, 1, {"done": True}), b.actions.complete(action.id, 1, {"done": True})):
        with pytest.raises(LeaseLost):
            await late
    again = await a.actions.start(action.id)
    assert (again.token, again.executor) == (2, "ops/a")
    with pytest.raises(LeaseLost):
        await b.actions.fail(action.id, 1, "too late")
    assert (await a.actions.complete(action.id, 2)).status == "completed"
    late = [data for type_, _, data in await events(db, session) if type_ == "late"]
    assert [(x["token"], x["result"], x["error"]) for x in late] == [(1, {"done": True}, None), (1, None, "too late")]
    assert (
        await refused(db, "SELECT blackboard.start_action($1, $2, $3, $4)", session.id, action.id, b.id, gone)
    ).sqlstate == ("BB006")


async def test_only_the_holder_ends_it_once(session: Any, db: Any) -> None:
    a, b = await members(session, 2)
    action = await a.actions.propose("modify", requires_approval=False)
    for call in (a.actions.complete(action.id, 0), a.actions.complete(action.id, 1)):
        with pytest.raises(LeaseLost):
            await call
    token = (await a.actions.start(action.id)).token
    assert (await a.actions.start(action.id)).token == token
    for call in (b.actions.complete(action.id, token), a.actions.complete(action.id, token + 1)):
        with pytest.raises(LeaseLost):
            await call
    failed = await a.actions.fail(action.id, token, "timeout")
    assert (failed.status, failed.error) == ("failed", "timeout")
    assert await a.actions.fail(action.id, token, "timeout") == failed
    with pytest.raises(IdempotencyConflict):
        await a.actions.fail(action.id, token, "another")
    with pytest.raises(InvalidTransition):
        await a.actions.complete(action.id, token)
    assert [t for t, _, _ in await events(db, session)].count("failed") == 1


@pytest.mark.parametrize("end", ["complete", "fail"])
async def test_roll_back(session: Any, db: Any, end: str) -> None:
    a, b = await members(session, 2)
    action = await a.actions.propose("modify", requires_approval=False)
    with pytest.raises(InvalidTransition):
        await b.actions.roll_back(action.id)
    token = (await a.actions.start(action.id)).token
    with pytest.raises(InvalidTransition):
        await b.actions.roll_back(action.id)
    await (a.actions.complete(action.id, token) if end == "complete" else a.actions.fail(action.id, token, "e"))
    undone = await b.actions.roll_back(action.id, reason="worse")
    assert (undone.status, undone.rolled_back_by, undone.rollback_reason) == ("rolled_back", "ops/b", "worse")
    assert await b.actions.roll_back(action.id) == undone
    with pytest.raises(InvalidTransition):
        await session.actions.roll_back(action.id, by="operator")
    type_, actor, data = (await events(db, session))[-1]
    assert (type_, actor, data["rollback_reason"]) == ("rolled_back", "ops/b", "worse")
