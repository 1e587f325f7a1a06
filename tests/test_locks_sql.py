"""Locks written by plain SQL: no stealing, the same history."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import pytest

from blackboard.sqlstates import CONSTRAINTS

_NAME = "file:/src/main.py"


async def members(session: Any, count: int = 3) -> list[Any]:
    return [await session.join(f"ops/{name}") for name in "abcdefgh"[:count]]


async def events(db: Any, session: Any) -> list[tuple[str, str, dict[str, Any]]]:
    rows = await db.fetch(
        "SELECT type, actor, data FROM blackboard.events WHERE session_id = $1 AND type LIKE 'lock.%' ORDER BY seq",
        session.id,
    )
    return [(row["type"].partition(".")[2], row["actor"], json.loads(row["data"])) for row in rows]


async def refused(db: Any, sql: str, *arguments: Any) -> asyncpg.PostgresError:
    with pytest.raises(asyncpg.PostgresError) as caught:
        await db.execute(sql, *arguments)
    return caught.value


async def test_raw_sql_holds_and_releases_with_history(session: Any, db: Any) -> None:
    await members(session, 1)
    await db.execute(
        "INSERT INTO blackboard.locks (session_id, name, holder, request_id, token, acquired_at, expires_at) "
        "VALUES ($1, 'raw', 'ops/a', gen_random_uuid(), 1, blackboard.now(), blackboard.now() + interval '1 hour')",
        session.id,
    )
    await db.execute(
        "UPDATE blackboard.locks SET holder = NULL, request_id = NULL, acquired_at = NULL, expires_at = NULL "
        "WHERE session_id = $1",
        session.id,
    )
    await db.execute("DELETE FROM blackboard.locks WHERE session_id = $1", session.id)
    assert [t for t, _, _ in await events(db, session)] == ["acquired", "released", "deleted"]


async def test_raw_sql_cannot_steal(session: Any, db: Any) -> None:
    a, _ = await members(session, 2)
    await a.locks.try_acquire(_NAME)
    where = "WHERE session_id = $1"
    free = "holder = NULL, request_id = NULL, acquired_at = NULL, expires_at = NULL, lease_id = NULL"
    for change in (
        "holder = 'ops/b'",
        "holder = 'ops/b', token = token + 1",
        "request_id = gen_random_uuid()",
        "lease_id = gen_random_uuid()",
        "token = token + 1",
        "name = 'another'",
        f"{free}, token = 0",
        f"{free}, token = token + 1",
    ):
        error = await refused(db, f"UPDATE blackboard.locks SET {change} {where}", session.id)
        assert error.sqlstate == "BB003", change
    for table in ("locks CASCADE", "lock_waiters"):
        assert (await refused(db, f"TRUNCATE blackboard.{table}")).sqlstate == "BB005"
    assert (await session.locks.get(_NAME)).holder == "ops/a"


@pytest.mark.parametrize(
    ("constraint", "columns"),
    [
        ("locks_name_length", {"name": "''"}),
        ("locks_token_range", {"token": "-1"}),
        ("locks_held_whole", {"holder": "'ops/a'"}),
        (
            "locks_holder_has_an_end",
            {"holder": "'ops/a'", "request_id": "gen_random_uuid()", "acquired_at": "now()", "token": "1"},
        ),
        (
            "locks_holder_member",
            {
                "holder": "'ops/zz'",
                "request_id": "gen_random_uuid()",
                "acquired_at": "now()",
                "token": "1",
                "expires_at": "now()",
            },
        ),
        ("locks_session_known", {"session_id": "gen_random_uuid()"}),
        ("locks_name_once", {"name": "'taken'"}),
    ],
)
async def test_constraints_of_locks(session: Any, db: Any, constraint: str, columns: dict[str, str]) -> None:
    [a] = await members(session, 1)
    await a.locks.try_acquire("taken")
    values = {"session_id": f"'{session.id}'", "name": "'raw'", **columns}
    error = await refused(
        db, f"INSERT INTO blackboard.locks ({', '.join(values)}) VALUES ({', '.join(values.values())})"
    )
    assert error.constraint_name == constraint  # type: ignore[attr-defined]
    assert constraint in CONSTRAINTS
