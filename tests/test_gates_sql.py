"""Limits and pauses for who writes SQL."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import TypeAlias

import asyncpg
import pytest

from blackboard import Agent, NewTask, Session
from blackboard.errors import AlreadyExists
from blackboard.sqlstates import CONSTRAINTS

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
SECOND = timedelta(seconds=1)


@pytest.fixture
async def agent(session: Session) -> Agent:
    return await session.join("ops/worker", capabilities=["call", "investigate"])


async def kinds(session: Session, subject: uuid.UUID | None = None) -> list[str]:
    page = await session.events.read(subject_id=subject, limit=10_000)
    return [event.type for event in page.events]


async def gated(db: Connection, session: Session) -> bool:
    return bool(await db.fetchval("SELECT gated FROM blackboard.sessions WHERE id = $1", session.id))


# ------------------------------------------------------------------------------------------------ raw SQL writers


@pytest.mark.parametrize(
    ("constraint", "statement"),
    [
        ("limits_kind_known", "INSERT INTO blackboard.limits (session_id, name, kind) VALUES ($1, 'x', 'y')"),
        ("limits_figures_of_kind", "INSERT INTO blackboard.limits (session_id, name, kind) VALUES ($1, 'x', 'rate')"),
        (
            "limits_one_scope",
            (
                "INSERT INTO blackboard.limits (session_id, name, kind, max_running, type, capability) "
                "VALUES ($1, 'x', 'concurrency', 1, 'a', 'b')"
            ),
        ),
        (
            "limits_max_running_range",
            "INSERT INTO blackboard.limits (session_id, name, kind, max_running) VALUES ($1, 'x', 'concurrency', 0)",
        ),
        (
            "limits_rate_count_range",
            (
                "INSERT INTO blackboard.limits (session_id, name, kind, rate_count, rate_period) "
                "VALUES ($1, 'x', 'rate', 0, '1 s')"
            ),
        ),
        (
            "limits_rate_period_range",
            (
                "INSERT INTO blackboard.limits (session_id, name, kind, rate_count, rate_period) "
                "VALUES ($1, 'x', 'rate', 1, '1 ms')"
            ),
        ),
        (
            "limits_name_length",
            "INSERT INTO blackboard.limits (session_id, name, kind, max_running) VALUES ($1, '', 'concurrency', 1)",
        ),
        (
            "limits_type_length",
            (
                "INSERT INTO blackboard.limits (session_id, name, kind, max_running, type) "
                "VALUES ($1, 'x', 'concurrency', 1, '')"
            ),
        ),
        (
            "limits_capability_length",
            (
                "INSERT INTO blackboard.limits (session_id, name, kind, max_running, capability) "
                "VALUES ($1, 'x', 'concurrency', 1, repeat('x', 101))"
            ),
        ),
        (
            "limit_usage_limit_fkey",
            "INSERT INTO blackboard.limit_usage (session_id, limit_id) VALUES ($1, gen_random_uuid())",
        ),
        ("pauses_kind_known", "INSERT INTO blackboard.pauses (session_id, kind, name) VALUES ($1, 'x', 'y')"),
        ("pauses_name_length", "INSERT INTO blackboard.pauses (session_id, kind, name) VALUES ($1, 'type', '')"),
        (
            "pauses_reason_length",
            (
                "INSERT INTO blackboard.pauses (session_id, kind, name, reason) "
                "VALUES ($1, 'type', 'a', repeat('x', 4001))"
            ),
        ),
        ("sessions_ageing_range", "UPDATE blackboard.sessions SET ageing = '1 ms', gated = true WHERE id = $1"),
        ("sessions_ageing_is_gated", "UPDATE blackboard.sessions SET ageing = '1 h' WHERE id = $1"),
        ("sessions_retention_range", "UPDATE blackboard.sessions SET retention = '-1 s' WHERE id = $1"),
        (
            "tasks_held_says_why",
            "INSERT INTO blackboard.tasks (session_id, type, status, position) VALUES ($1, 't', 'held', NULL)",
        ),
        (
            "tasks_held_size",
            (
                "INSERT INTO blackboard.tasks (session_id, type, held) SELECT $1, 't', jsonb_agg(random()) "
                "FROM generate_series(1, 2000)"
            ),
        ),
        ("tasks_limit_key_length", "INSERT INTO blackboard.tasks (session_id, type, limit_key) VALUES ($1, 't', '')"),
        ("tasks_unique_key_length", "INSERT INTO blackboard.tasks (session_id, type, unique_key) VALUES ($1, 't', '')"),
        ("tasks_fallback_range", "INSERT INTO blackboard.tasks (session_id, type, fallback) VALUES ($1, 't', '-1 s')"),
    ],
)
async def test_constraints(session: Session, db: Connection, constraint: str, statement: str) -> None:
    with pytest.raises(asyncpg.IntegrityConstraintViolationError) as caught:
        await db.execute(statement, session.id)
    assert caught.value.constraint_name == constraint
    assert constraint in CONSTRAINTS


async def test_names_are_taken_once(session: Session, db: Connection) -> None:
    await session.limits.set("x", max_running=1)
    with pytest.raises(asyncpg.UniqueViolationError, match="limits_name_once"):
        await db.execute(
            "INSERT INTO blackboard.limits (session_id, name, kind, max_running) VALUES ($1, 'x', 'concurrency', 1)",
            session.id,
        )
    assert CONSTRAINTS["limits_name_once"][0] is AlreadyExists
    await session.tasks.pause(type="x")
    with pytest.raises(asyncpg.UniqueViolationError, match="pauses_once"):
        await db.execute("INSERT INTO blackboard.pauses (session_id, kind, name) VALUES ($1, 'type', 'x')", session.id)


async def test_a_limit_set_by_hand_holds(session: Session, agent: Agent, db: Connection) -> None:
    await session.tasks.add_many([NewTask(type="t") for _ in range(3)])
    await agent.tasks.claim()
    await db.execute(
        "INSERT INTO blackboard.limits (session_id, name, kind, max_running) VALUES ($1, 'x', 'concurrency', 2)",
        session.id,
    )
    assert len(await agent.tasks.claim(5)) == 1
    await db.execute("DELETE FROM blackboard.limits WHERE session_id = $1", session.id)
    assert not await gated(db, session)
