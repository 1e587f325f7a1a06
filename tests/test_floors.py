"""Floors: while an old snapshot is held, claims do not walk again and again over what was claimed already."""

from __future__ import annotations

import json
import uuid
from datetime import timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import Session

from .conftest import Clock, Connect

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

LOOK = "SELECT ready, due_in FROM blackboard.look_for_tasks(ARRAY[$1::uuid], 'ops/a', $2)"


@pytest.fixture
async def lease_id(db: Connection) -> uuid.UUID:
    lease_id = uuid.uuid4()
    await db.execute("SELECT blackboard.start_lease($1, 'here', 1, interval '1 day')", lease_id)
    return lease_id


async def claim(
    db: Connection, session: Session, lease_id: uuid.UUID, limit: int, capabilities: tuple[str, ...] = ()
) -> list[uuid.UUID]:
    rows = await db.fetch(
        "SELECT id FROM blackboard.claim_tasks($1, 'ops/a', $2, $3, gen_random_uuid(), $4)",
        session.id, list(capabilities), lease_id, limit,
    )  # fmt: skip
    return [row["id"] for row in rows]


async def note(db: Connection, session: Session, floors: dict[str, int], seconds: int = 60) -> None:
    await db.execute("SELECT blackboard.note_floors($1, $2, $3)", session.id, json.dumps(floors), seconds)


async def positions(db: Connection, session: Session) -> dict[uuid.UUID, int]:
    rows = await db.fetch("SELECT id, position FROM blackboard.tasks WHERE session_id = $1", session.id)
    return {row["id"]: row["position"] for row in rows}


async def test_claims_begin_above_the_floor_until_its_time_is_over(
    session: Session, db: Connection, lease_id: uuid.UUID, clock: Clock
) -> None:
    first, second, third = [(await session.tasks.add("t")).id for _ in range(3)]
    await note(db, session, {"5 ": (await positions(db, session))[second]})
    assert await claim(db, session, lease_id, 10) == [third]
    look = await db.fetchrow(LOOK, session.id, [])
    assert look is not None
    assert not look["ready"]
    assert timedelta() < look["due_in"] <= timedelta(seconds=60), "what is below is looked at when the time is over"
    await clock.advance(timedelta(seconds=61))
    assert await db.fetchval(LOOK, session.id, []) is True
    assert await claim(db, session, lease_id, 10) == [first, second]


async def test_floors_rise_with_what_is_claimed_and_what_comes_back_lies_above(
    session: Session, db: Connection, lease_id: uuid.UUID
) -> None:
    ids = [(await session.tasks.add("t")).id for _ in range(4)]
    await note(db, session, {})
    assert await claim(db, session, lease_id, 2) == ids[:2]
    noted = json.loads(await db.fetchval("SELECT floors FROM blackboard.floors($1)", session.id))
    waiting = await positions(db, session)
    assert noted == {"5 ": waiting[ids[2]] - 1}
    # Released, it gets a new place at the end of the queue: no floor hides it.
    row = await db.fetchrow("SELECT * FROM blackboard.tasks WHERE id = $1", ids[0])
    assert row is not None
    await db.fetch(
        "SELECT * FROM blackboard.release_task($1, $2, $3, $4, 'ops/a')",
        session.id, ids[0], row["claim_id"], row["attempt"],
    )  # fmt: skip
    assert await claim(db, session, lease_id, 10) == [ids[2], ids[3], ids[0]]
    assert await db.fetchval(LOOK, session.id, []) is False


async def test_every_capability_and_priority_has_a_floor_of_its_own(
    session: Session, db: Connection, lease_id: uuid.UUID
) -> None:
    added = {
        (capability, priority): (await session.tasks.add("t", capability=capability, priority=priority)).id
        for capability in ("", "x", "y")
        for priority in (0, 5, 10)
    }
    last = max((await positions(db, session)).values())
    await note(db, session, {"5 x": last, "10 ": last})
    assert await claim(db, session, lease_id, 10, ("x",)) == [
        added["x", 10], added["", 5], added["x", 0], added["", 0],
    ]  # fmt: skip
    assert await db.fetchval(LOOK, session.id, ["x"]) is False
    assert await db.fetchval(LOOK, session.id, ["y"]) is True


async def test_a_rollback_takes_the_note_back(session: Session, db: Connection, lease_id: uuid.UUID) -> None:
    ids = [(await session.tasks.add("t")).id for _ in range(2)]
    await note(db, session, {})
    transaction = db.transaction()
    await transaction.start()
    assert await claim(db, session, lease_id, 1) == ids[:1]
    await transaction.rollback()
    assert await claim(db, session, lease_id, 2) == ids


async def test_floors_of_several_sessions_and_what_is_over(
    session: Session, db: Connection, board: Any, clock: Clock
) -> None:
    other = await board.start(f"other-{uuid.uuid4().hex[:8]}")
    await note(db, session, {"5 ": 1}, 10)
    await note(db, other, {"5 ": 2}, 60)
    noted = "SELECT floors FROM blackboard.floors($1)"
    assert json.loads(await db.fetchval(noted, session.id)) == {"5 ": 1}
    assert json.loads(await db.fetchval(noted, other.id)) == {"5 ": 2}
    await clock.advance(timedelta(seconds=11))
    assert await db.fetchval(noted, session.id) is None
    await note(db, other, {"5 ": 3}, 60)
    kept = json.loads(await db.fetchval("SELECT current_setting('blackboard.floors')"))
    assert set(kept) == {str(other.id)}, "nothing piles up"


@pytest.mark.fresh_database
async def test_a_held_snapshot_does_not_make_every_claim_walk_over_what_was_done(
    session: Session, db: Connection, connect: Connect, lease_id: uuid.UUID
) -> None:
    async def cycle(tasks: int) -> None:
        """So many tasks come and go."""
        await db.execute(
            "SELECT blackboard.add_tasks($1, array_agg(gen_random_uuid()), array_agg('t'::text), array_agg(''::text), "
            "array_agg(5::smallint), array_agg('{}'::jsonb), array_agg(NULL::jsonb), 'x') FROM generate_series(1, $2)",
            session.id, tasks,
        )  # fmt: skip
        rows = await db.fetch(
            "SELECT id, claim_id, attempt FROM blackboard.claim_tasks($1, 'ops/a', '{}', $2, gen_random_uuid(), $3)",
            session.id, lease_id, tasks,
        )  # fmt: skip
        assert len(rows) == tasks
        await db.fetch(
            "SELECT * FROM blackboard.complete_tasks($1, $2, $3, $4, array_fill(NULL::jsonb, ARRAY[$5::int]), 'ops/a')",
            session.id, *([row[name] for row in rows] for name in ("id", "claim_id", "attempt")), tasks,
        )  # fmt: skip

    async def pages(sql: str, *arguments: Any) -> int:
        """How many pages a statement looked at, with all that it called."""
        plan = json.loads(await db.fetchval("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + sql, *arguments))
        return plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"]

    # Both plans are made before anything is measured.
    await cycle(1)
    await note(db, session, {})
    await cycle(1)
    await db.execute("SET blackboard.floors = ''")

    holder = await connect()
    await holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM blackboard.tasks LIMIT 1")
    await cycle(60_000)
    await db.execute("SET blackboard.floors = ''")
    await session.tasks.add("t")
    one = f"SELECT * FROM blackboard.claim_tasks('{session.id}', 'ops/a', '{{}}', '{lease_id}', gen_random_uuid(), 1)"
    assert await pages(one) > 1500, "the walk over what is dead, which the snapshot keeps"
    assert await db.fetchval("SELECT floors FROM blackboard.floors($1)", session.id) == "{}", "it was found slow"
    for expected in ("the one that finds the floor", "flat"):
        await session.tasks.add("t")
        walked = await pages(one)
        assert (walked > 1500) == (expected != "flat"), walked
    assert walked < 500
    looked = await pages(f"SELECT * FROM blackboard.look_for_tasks(ARRAY['{session.id}'::uuid], 'ops/a', '{{}}')")
    assert looked < 500
    await cycle(1000)
    await session.tasks.add("t")
    assert await pages(one) < 500
    # The lease has held all of it, and renewing it walks over none of it either.
    assert await db.fetchval("SELECT blackboard.renew_lease($1)", lease_id) == 4
    greatest = uuid.UUID(int=2**128 - 1)
    since = f"SELECT blackboard.renew_lease('{lease_id}', '{greatest}')"
    await db.execute("UPDATE blackboard.liveness SET checked_at = blackboard.now(), repaired_at = blackboard.now()")
    assert await pages(since) < 500
    assert await db.fetchval("SELECT blackboard.renew_lease($1, $2)", lease_id, uuid.UUID(int=0)) == 4
