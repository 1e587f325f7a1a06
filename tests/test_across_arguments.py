"""Many sessions in one call under odd circumstances: older snapshots, floors, arguments that do not fit, joins that meet."""

# ruff: noqa: F401, F811 - fixtures are imported, and asked for by name

from __future__ import annotations

import json
import uuid
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from blackboard import Agent, NewTask, Session

from .conftest import Clock, Connect
from .test_across_concurrency import (
    CLAIM,
    COMPLETE,
    Blocked,
    Connection,
    agents,
    claim,
    completed,
    outcomes,
    running,
    sessions,
    statuses,
    waiting,
)


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_completions_of_an_older_snapshot_are_refused_whole(
    isolation: str, sessions: list[Session], agents: list[Agent], db: Connection, connect: Connect, blocked: Blocked
) -> None:
    rows = await running(db, agents)
    [row] = [row for row in rows if row["session_id"] == sessions[1].id]
    other, writer = await connect(), await connect()
    await writer.execute(f"SET default_transaction_isolation = '{isolation}'")
    progress = other.transaction()
    await progress.start()
    await other.execute("UPDATE blackboard.tasks SET progress = '1' WHERE id = $1", row["id"])
    with pytest.raises(asyncpg.SerializationError):
        async with waiting(blocked, writer, COMPLETE, *outcomes(rows)):
            await progress.commit()
    assert await statuses(db, rows) == ["running"] * 3
    assert await writer.fetch(COMPLETE, *outcomes(rows)) == []
    assert await completed(db) == 3


# ------------------------------------------------------------------------------------------------------------- floors


async def test_sessions_under_a_floor_are_left_to_claims_of_one_while_it_lasts(
    sessions: list[Session], agents: list[Agent], db: Connection, clock: Clock
) -> None:
    lease_id = uuid.uuid4()
    await db.execute("SELECT blackboard.start_lease($1, 'here', 1, interval '1 day')", lease_id)
    low = [await session.tasks.add("t") for session in sessions]
    note = "SELECT blackboard.note_floors($1, $2, $3)"
    position = await db.fetchval("SELECT position FROM blackboard.tasks WHERE id = $1", low[1].id)
    await db.execute(note, sessions[1].id, json.dumps({"5 ": position}), 60)
    high = await sessions[1].tasks.add("t")
    rows = await claim(db, agents, lease_id=lease_id)
    assert {row["session_id"] for row in rows} == {sessions[0].id, sessions[2].id}
    one = "SELECT id FROM blackboard.claim_tasks($1, 'w', '{}', $2, gen_random_uuid(), 10)"
    assert [row["id"] for row in await db.fetch(one, sessions[1].id, lease_id)] == [high.id]
    look = "SELECT session_id, ready FROM blackboard.look_for_tasks($1, 'w', '{}')"
    found = {row["session_id"]: row["ready"] for row in await db.fetch(look, [session.id for session in sessions])}
    assert not any(found.values())
    await clock.advance(timedelta(seconds=61))
    assert [row["id"] for row in await claim(db, agents, lease_id=lease_id)] == [low[1].id]


async def test_what_is_noted_of_many_sessions_does_not_grow_for_ever(sessions: list[Session], db: Connection) -> None:
    size = "SELECT coalesce(length(current_setting('blackboard.floors', true)), 0)"
    note = "SELECT blackboard.note_floors(gen_random_uuid(), '{\"5 \": 7}', $1) FROM generate_series(1, 300)"
    await db.execute(note, 0)
    assert await db.fetchval(size) < 200, "of what is over, nothing is kept"
    await db.execute(note, 60)
    assert 300 * 60 < await db.fetchval(size) < 300 * 200


# ------------------------------------------------------------------------------------------------------ odd arguments


async def test_arrays_that_do_not_fit_complete_what_fits(
    sessions: list[Session], agents: list[Agent], db: Connection
) -> None:
    rows = await running(db, agents, 2)
    session_ids, ids, claim_ids, attempts, results = outcomes(rows)

    async def left(*arrays: list[Any]) -> list[Any]:
        return sorted((row[0] for row in await db.fetch(COMPLETE, *arrays)), key=str)

    nothing: list[Any] = []
    for short in range(4):
        arrays = [session_ids, ids, claim_ids, attempts, results]
        arrays[short] = nothing
        assert await left(*arrays) == ([] if short == 1 else sorted(ids, key=str))
    for empty in range(4):
        arrays = [list(one) for one in (session_ids, ids, claim_ids, attempts, results)]
        arrays[empty][0] = None
        arrays = [one[:1] for one in arrays]
        assert await left(*arrays) == ([None] if empty == 1 else ids[:1])
    # Under another session's id there is no such task.
    wrong = [sessions[(sessions.index(one) + 1) % 3].id for one in
             (next(s for s in sessions if s.id == id_) for id_ in session_ids)]  # fmt: skip
    assert await left(wrong, ids, claim_ids, attempts, results) == sorted(ids, key=str)
    assert await statuses(db, rows) == ["running"] * 6
    # Longer than the ids, the others are cut; shorter results are NULL.
    assert await left(session_ids, ids[:2], claim_ids, attempts, results) == []
    assert await left(session_ids[2:4], ids[2:4], claim_ids[2:4], attempts[2:4], results[2:3]) == []
    found = await db.fetch("SELECT id, result FROM blackboard.tasks WHERE id = ANY ($1) ORDER BY id", ids[:4])
    assert [row["result"] for row in found] == ['"0"', '"1"', '"2"', None]
    # Named twice, a task is completed once.
    twice = [one[4:] * 2 for one in (session_ids, ids, claim_ids, attempts, results)]
    assert await left(*twice) == []
    assert await completed(db) == 6


async def test_sessions_that_are_named_twice_unknown_or_null_do_no_harm(
    sessions: list[Session], agents: list[Agent], db: Connection
) -> None:
    for session in sessions:
        await session.tasks.add_many([NewTask(type="t") for _ in range(3)])
    lease_id = await agents[0].scope.leases.current()
    ids = [sessions[0].id, uuid.uuid4(), None, sessions[0].id, sessions[1].id]
    rows = await db.fetch(CLAIM, ids, [], lease_id, uuid.uuid4(), 100, 2)
    got = [row["id"] for row in rows]
    assert len(got) == len(set(got)) >= 4
    assert {row["attempt"] for row in rows} == {1}
    assert {row["session_id"] for row in rows} == {sessions[0].id, sessions[1].id}
    for limit, share in ((0, 5), (5, 0), (-1, 5), (5, -1)):
        assert await claim(db, agents, limit=limit, share=share) == []
    assert await db.fetch(CLAIM, [], [], lease_id, uuid.uuid4(), 5, 5) == []
    join = "SELECT * FROM blackboard.join_sessions($1, 'w', NULL, $2)"
    assert len(await db.fetch(join, [sessions[0].id, sessions[0].id], lease_id)) == 1
    with pytest.raises(asyncpg.PostgresError) as unknown:
        await db.fetch(join, [sessions[0].id, None], lease_id)
    assert unknown.value.sqlstate == "BB001"


async def test_without_a_limit_one_task_is_claimed_as_by_a_claim_from_one(
    sessions: list[Session], agents: list[Agent], db: Connection
) -> None:
    for session in sessions:
        await session.tasks.add_many([NewTask(type="t") for _ in range(2)])
    lease_id = await agents[0].scope.leases.current()
    one = "SELECT * FROM blackboard.claim_tasks($1, 'w', '{}', $2, gen_random_uuid(), NULL)"
    assert len(await db.fetch(one, sessions[0].id, lease_id)) == 1
    ids = [session.id for session in sessions]
    assert len(await db.fetch(CLAIM, ids, [], lease_id, uuid.uuid4(), None, 5)) == 1


# ------------------------------------------------------------------------------------------------------------- joining


async def test_workers_that_join_the_same_sessions_wait_for_each_other_in_one_order(
    sessions: list[Session], db: Connection, connect: Connect, blocked: Blocked
) -> None:
    join = "SELECT * FROM blackboard.join_sessions($1, 'twin', NULL, NULL)"
    ids = [session.id for session in sessions]
    await db.fetch(join, ids)
    one, other = await connect(), await connect()
    hold = one.transaction()
    await hold.start()
    await one.fetch(join, ids)
    async with waiting(blocked, other, join, ids[::-1]) as joined:
        await hold.commit()
    assert len(joined.result()) == 3


async def test_a_session_that_is_closed_while_it_is_joined_takes_nobody_in(
    sessions: list[Session], db: Connection, connect: Connect, blocked: Blocked
) -> None:
    closer, joiner = await connect(), await connect()
    closing = closer.transaction()
    await closing.start()
    await closer.execute("SELECT blackboard.close_session($1, 'completed', NULL, 'boss')", sessions[1].id)
    join = "SELECT * FROM blackboard.join_sessions($1, 'late', NULL, NULL)"
    with pytest.raises(asyncpg.PostgresError) as refused:
        async with waiting(blocked, joiner, join, [session.id for session in sessions]):
            await closing.commit()
    assert refused.value.sqlstate == "BB007"
    assert await db.fetchval("SELECT count(*) FROM blackboard.memberships WHERE agent_id = 'late'") == 0
