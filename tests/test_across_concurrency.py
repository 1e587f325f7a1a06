"""Claims and completions of many sessions in one call, beside everybody who changes the same rows meanwhile.

The interleavings are proved: a call goes on only after another backend was seen waiting for a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import Agent, Blackboard, NewTask, Session, Stage, sequential

from .conftest import Connect

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Blocked: TypeAlias = Callable[[int], Awaitable[None]]

CLAIM = "SELECT * FROM blackboard.claim_tasks_across($1, 'w', $2, $3, $4, $5, $6)"
COMPLETE = "SELECT * FROM blackboard.complete_tasks_across($1, $2, $3, $4, $5, 'w')"
COMPLETE_ONE = "SELECT * FROM blackboard.complete_tasks($1, $2, $3, $4, $5, 'w')"


@pytest.fixture
async def sessions(board: Blackboard) -> list[Session]:
    return [await board.start(f"many-{n}") for n in range(3)]


@pytest.fixture
async def agents(board: Blackboard, sessions: list[Session]) -> list[Agent]:
    return await board.join(sessions, "w")


async def claim(
    db: Connection, agents: list[Agent], *, limit: int = 100, share: int = 100, lease_id: uuid.UUID | None = None
) -> list[Any]:
    lease_id = lease_id or await agents[0].scope.leases.current()
    ids = [agent.session.id for agent in agents]
    return await db.fetch(CLAIM, ids, [], lease_id, uuid.uuid4(), limit, share)


def outcomes(rows: list[Any]) -> list[list[Any]]:
    names = ("session_id", "id", "claim_id", "attempt")
    return [*([row[name] for row in rows] for name in names), [f'"{n}"' for n in range(len(rows))]]


async def running(db: Connection, agents: list[Agent], each: int = 1) -> list[Any]:
    """Claimed tasks of all sessions, in the order of their ids, which is that of no session."""
    for _ in range(each):
        for agent in agents:
            await agent.session.tasks.add("t")
    rows = await claim(db, agents)
    assert len(rows) == each * len(agents)
    return sorted(rows, key=lambda row: row["id"])


async def statuses(db: Connection, rows: list[Any]) -> list[str]:
    found = await db.fetch("SELECT id, status FROM blackboard.tasks WHERE id = ANY ($1)", [row["id"] for row in rows])
    by_id = {row["id"]: row["status"] for row in found}
    return [by_id[row["id"]] for row in rows]


async def completed(db: Connection) -> int:
    return await db.fetchval("SELECT count(*) FROM blackboard.events WHERE type = 'task.completed'")


@asynccontextmanager
async def waiting(
    blocked: Blocked, connection: Connection, sql: str, *arguments: Any
) -> AsyncGenerator[asyncio.Task[list[Any]]]:
    """The statement runs, and waits for somebody's lock."""
    async with asyncio.timeout(30):
        task = asyncio.create_task(connection.fetch(sql, *arguments))
        try:
            await blocked(connection.get_server_pid())
            yield task
            await task
        finally:
            task.cancel()


# ------------------------------------------------------------------------------------------------- completions that wait


async def test_two_workers_lock_by_id_whatever_the_order_of_their_arrays(
    agents: list[Agent], db: Connection, connect: Connect, blocked: Blocked
) -> None:
    rows = await running(db, agents, 2)
    holder, one, other = await connect(), await connect(), await connect()
    hold = holder.transaction()
    await hold.start()
    await holder.execute("SELECT FROM blackboard.tasks WHERE id = $1 FOR UPDATE", rows[2]["id"])
    async with (
        waiting(blocked, one, COMPLETE, *outcomes(rows)) as first,
        # In the order of the array this one would hold the last row by now, which the first one is going to want.
        waiting(blocked, other, COMPLETE, *outcomes(rows[::-1])) as second,
    ):
        await hold.rollback()
    assert (first.result(), second.result()) == ([], [])
    assert await completed(db) == len(rows)


async def test_a_task_that_others_come_to_wait_for_is_left_out(
    sessions: list[Session], agents: list[Agent], db: Connection, connect: Connect, blocked: Blocked, board: Blackboard
) -> None:
    rows = await running(db, agents)
    [parent] = [row for row in rows if row["session_id"] == sessions[1].id]
    adder, writer = await connect(), await connect()
    adding = adder.transaction()
    await adding.start()
    child = await (await board.bind(adder).session(sessions[1].id)).tasks.add("t", depends_on=[parent["id"]])
    async with waiting(blocked, writer, COMPLETE, *outcomes(rows)) as done:
        await adding.commit()
    assert [row[0] for row in done.result()] == [parent["id"]]
    assert (await sessions[1].tasks.get(child.id)).status == "blocked"
    assert await completed(db) == 2
    left = outcomes([parent])[1:]
    assert await db.fetch(COMPLETE_ONE, sessions[1].id, *left) == []
    assert (await sessions[1].tasks.get(child.id)).status == "pending"


async def test_a_task_that_a_new_limit_counts_is_left_out(
    sessions: list[Session], agents: list[Agent], db: Connection, connect: Connect, blocked: Blocked, board: Blackboard
) -> None:
    rows = await running(db, agents)
    [counted] = [row for row in rows if row["session_id"] == sessions[0].id]
    setter, writer = await connect(), await connect()
    setting = setter.transaction()
    await setting.start()
    await (await board.bind(setter).session(sessions[0].id)).limits.set("one", max_running=1)
    async with waiting(blocked, writer, COMPLETE, *outcomes(rows)) as done:
        await setting.commit()
    assert [row[0] for row in done.result()] == [counted["id"]]
    await sessions[0].tasks.add("t")
    assert await agents[0].tasks.claim() == [], "its slot is taken"
    assert await db.fetch(COMPLETE_ONE, sessions[0].id, *outcomes([counted])[1:]) == []
    assert await sessions[0].limits.check() == []
    assert len(await agents[0].tasks.claim()) == 1


async def test_stages_of_flows_are_left_out(sessions: list[Session], agents: list[Agent], db: Connection) -> None:
    flow = await sessions[0].flows.create("f", sequential(Stage("first", "t"), Stage("second", "t")))
    for session in sessions[1:]:
        await session.tasks.add("t")
    rows = await claim(db, agents)
    [stage] = [row for row in rows if row["session_id"] == sessions[0].id]
    assert [row[0] for row in await db.fetch(COMPLETE, *outcomes(rows))] == [stage["id"]]
    assert await db.fetch(COMPLETE_ONE, sessions[0].id, *outcomes([stage])[1:]) == []
    [second] = await claim(db, agents)
    assert second["session_id"] == sessions[0].id
    # The last one too: the flow ends with it.
    assert [row[0] for row in await db.fetch(COMPLETE, *outcomes([second]))] == [second["id"]]
    assert await db.fetch(COMPLETE_ONE, sessions[0].id, *outcomes([second])[1:]) == []
    assert (await sessions[0].flows.get(flow.id)).status == "completed"


@pytest.mark.parametrize("how", ["lapse", "release", "cancel", "close"])
async def test_what_is_taken_away_while_it_is_waited_for_is_left_out(
    how: str, sessions: list[Session], agents: list[Agent], db: Connection, connect: Connect, blocked: Blocked
) -> None:
    await sessions[1].tasks.add("t")
    lease_id = uuid.uuid4()
    await db.execute("SELECT blackboard.start_lease($1, 'here', 1, interval '1 day')", lease_id)
    [row] = await claim(db, [agents[1]], lease_id=lease_id)
    rows = [row, *await running(db, [agents[0], agents[2]])]
    other, writer = await connect(), await connect()
    taking = other.transaction()
    await taking.start()
    if how == "lapse":
        await other.execute("UPDATE blackboard.leases SET lapsed_at = blackboard.now() WHERE id = $1", lease_id)
        assert await other.fetchval("SELECT blackboard.sweep_leases(10)") == 1
    elif how == "release":
        await other.execute("SELECT blackboard.release_task($1, $2, $3, $4, 'w')",
                            sessions[1].id, row["id"], row["claim_id"], row["attempt"])  # fmt: skip
    elif how == "cancel":
        await other.execute("SELECT blackboard.cancel_task($1, $2, 'enough', 'boss')", sessions[1].id, row["id"])
    else:
        await other.execute("SELECT blackboard.close_session($1, 'completed', NULL, 'boss')", sessions[1].id)
    async with waiting(blocked, writer, COMPLETE, *outcomes(rows)) as done:
        await taking.commit()
    # Who was only asked to stop has completed before: so it is with the completion of one session.
    gone = how in {"lapse", "release"}
    assert [one[0] for one in done.result()] == ([row["id"]] if gone else [])
    assert await statuses(db, [row]) == ["pending" if gone else "completed"]
    assert await completed(db) == (2 if gone else 3)


WANTED = {
    "close": "SELECT blackboard.close_session($1, 'completed', NULL, 'boss') WHERE $2::uuid IS NOT NULL",
    "cancel": "SELECT blackboard.cancel_task($1, $2, 'enough', 'boss')",
    "limit": "SELECT blackboard.set_limit($1, $2, 'one', 'concurrency', NULL, NULL, false, 1, NULL, NULL, 'boss')",
    "depend": "WITH child AS (INSERT INTO blackboard.tasks (session_id, type) VALUES ($1, 't') RETURNING session_id, id) "
    "INSERT INTO blackboard.task_dependencies (session_id, task_id, depends_on_id) SELECT session_id, id, $2 FROM child",
}


@pytest.mark.parametrize("wish", WANTED)
async def test_who_wants_what_is_being_completed_waits_and_holds_nobody_up(
    wish: str, sessions: list[Session], agents: list[Agent], db: Connection, connect: Connect, blocked: Blocked
) -> None:
    rows = await running(db, agents, 2)
    holder, writer, other = await connect(), await connect(), await connect()
    hold = holder.transaction()
    await hold.start()
    await holder.execute("SELECT FROM blackboard.tasks WHERE id = $1 FOR UPDATE", rows[-1]["id"])
    first = rows[0]
    assert rows[-1]["session_id"] != first["session_id"]
    late = pytest.raises(asyncpg.PostgresError, match="can no longer be cancelled")
    # The completions have the first one, and wait for the last; the other has the session or more, and waits for the
    # first.
    async with waiting(blocked, writer, COMPLETE, *outcomes(rows)) as done:
        with late if wish == "cancel" else contextlib.nullcontext():
            async with waiting(blocked, other, WANTED[wish], first["session_id"], first["id"]):
                await hold.rollback()
    assert done.result() == []
    assert await completed(db) == len(rows)
    for session in sessions:
        assert await session.limits.check() == []


async def test_who_wants_nothing_that_is_being_completed_goes_on(
    sessions: list[Session], agents: list[Agent], db: Connection, connect: Connect, blocked: Blocked
) -> None:
    flow = await sessions[0].flows.create("f", sequential(Stage("first", "t"), Stage("second", "t")))
    [stage] = await claim(db, agents)
    old = await sessions[0].tasks.add("t")
    await sessions[0].tasks.cancel(old.id)
    rows = await running(db, agents)
    holder, writer = await connect(), await connect()
    hold = holder.transaction()
    await hold.start()
    await holder.execute("SELECT FROM blackboard.tasks WHERE id = $1 FOR UPDATE", rows[-1]["id"])
    async with asyncio.timeout(20), waiting(blocked, writer, COMPLETE, *outcomes([stage, *rows])) as done:
        await db.execute(
            "UPDATE blackboard.tasks SET completed_at = completed_at - interval '1 day' WHERE id = $1", old.id
        )
        assert (await sessions[0].tasks.prune(older_than=timedelta(hours=1))).tasks == 1
        await sessions[0].tasks.pause(type="other")
        assert await db.fetch(COMPLETE_ONE, stage["session_id"], *outcomes([stage])[1:]) == []
        await sessions[0].flows.cancel(flow.id)
        await sessions[1].tasks.add("t")
        assert len(await agents[1].tasks.claim()) == 1
        await hold.rollback()
    assert done.result() == [], "what was completed meanwhile is no other outcome"
    assert await completed(db) == len(rows) + 1


async def test_a_sweeper_passes_by_what_is_being_completed(
    agents: list[Agent], db: Connection, connect: Connect, blocked: Blocked
) -> None:
    rows = await running(db, agents)
    holder, writer = await connect(), await connect()
    hold = holder.transaction()
    await hold.start()
    await holder.execute("SELECT FROM blackboard.tasks WHERE id = $1 FOR UPDATE", rows[-1]["id"])
    async with waiting(blocked, writer, COMPLETE, *outcomes(rows)) as done:
        await db.execute("UPDATE blackboard.leases SET lapsed_at = blackboard.now()")
        assert await asyncio.wait_for(db.fetchval("SELECT blackboard.sweep_leases(10)"), 20) == 0
        await hold.rollback()
    assert done.result() == []
    assert await statuses(db, rows) == ["completed"] * 3


async def test_an_old_result_never_counts_for_a_later_attempt(
    sessions: list[Session], agents: list[Agent], db: Connection
) -> None:
    rows = await running(db, agents)
    row = rows[0]
    await db.execute("SELECT blackboard.release_task($1, $2, $3, $4, 'w')",
                     row["session_id"], row["id"], row["claim_id"], row["attempt"])  # fmt: skip
    [again] = await claim(db, agents)
    assert (again["id"], again["attempt"]) == (row["id"], 2)
    assert [one[0] for one in await db.fetch(COMPLETE, *outcomes(rows))] == [row["id"]]
    assert await statuses(db, rows) == ["running", "completed", "completed"]
    # Neither half of the fence is enough.
    for claim_id, attempt in ((row["claim_id"], 2), (again["claim_id"], 1)):
        half = {**dict(again), "claim_id": claim_id, "attempt": attempt}
        assert len(await db.fetch(COMPLETE, *outcomes([half]))) == 1
    assert await db.fetch(COMPLETE, *outcomes([again])) == []


# ------------------------------------------------------------------------------------ between the look and the claim


@asynccontextmanager
async def looked(
    agents: list[Agent], connect: Connect, blocked: Blocked, isolation: str = ""
) -> AsyncGenerator[tuple[Connection, asyncio.Task[list[Any]]]]:
    """A claim from all sessions has looked which of them are open to it, and has not taken anything yet.

    Also yields the connection that keeps it from that, in a transaction which is committed in the end.
    """
    keeper, claimer = await connect(), await connect()
    lease_id = await agents[0].scope.leases.current()
    ids = [agent.session.id for agent in agents]
    async with asyncio.timeout(30):
        keeping = keeper.transaction()
        await keeping.start()
        # Nobody tends leases meanwhile; who locks rows of tasks waits, and who only looks does not.
        await keeper.execute("SELECT FROM blackboard.liveness FOR UPDATE")
        await keeper.execute("LOCK TABLE blackboard.tasks IN EXCLUSIVE MODE")
        if isolation:
            await claimer.execute(f"SET default_transaction_isolation = '{isolation}'")
        task = asyncio.create_task(claimer.fetch(CLAIM, ids, [], lease_id, uuid.uuid4(), 100, 100))
        try:
            await blocked(claimer.get_server_pid())
            yield keeper, task
            await keeping.commit()
            await asyncio.wait({task})
        finally:
            task.cancel()


async def test_a_session_that_is_closed_after_the_look_gives_nothing(
    sessions: list[Session], agents: list[Agent], db: Connection, connect: Connect, blocked: Blocked
) -> None:
    for session in sessions:
        await session.tasks.add("t")
    async with looked(agents, connect, blocked) as (keeper, claims):
        await keeper.execute("SELECT blackboard.close_session($1, 'completed', NULL, 'boss')", sessions[1].id)
    assert {row["session_id"] for row in claims.result()} == {sessions[0].id, sessions[2].id}
    assert {task.status for task in await sessions[1].tasks.list()} == {"cancelled"}


async def test_a_session_that_is_paused_after_the_look_gives_its_last_tasks(
    sessions: list[Session], agents: list[Agent], connect: Connect, blocked: Blocked, db: Connection
) -> None:
    for session in sessions:
        await session.tasks.add("t")
    async with looked(agents, connect, blocked) as (keeper, claims):
        await keeper.execute("UPDATE blackboard.sessions SET status = 'paused' WHERE id = $1", sessions[1].id)
    # As a claim that came just before; the next one finds nothing there.
    assert {row["session_id"] for row in claims.result()} == {session.id for session in sessions}
    await sessions[1].tasks.add("t")
    assert await claim(db, agents) == []


async def test_a_limit_that_is_set_after_the_look_counts_what_is_claimed(
    sessions: list[Session], agents: list[Agent], db: Connection, connect: Connect, blocked: Blocked, board: Blackboard
) -> None:
    for session in sessions:
        await session.tasks.add_many([NewTask(type="t") for _ in range(2)])
    async with looked(agents, connect, blocked) as (keeper, claims):
        limits = (await board.bind(keeper).session(sessions[1].id)).limits
        await limits.set("one", max_running=1)
    rows = claims.result()
    mine = [row for row in rows if row["session_id"] == sessions[1].id]
    assert len(mine) == 2, "as much as if it had come before the limit"
    # Whoever sets a limit waits for claims that do not know of it, and counts what they got.
    await sessions[1].limits.set("one", max_running=1)
    await sessions[1].tasks.add("t")
    assert await agents[1].tasks.claim() == []
    left = await db.fetch(COMPLETE, *outcomes(rows))
    assert {row[0] for row in left} == {row["id"] for row in mine}
    assert await db.fetch(COMPLETE_ONE, sessions[1].id, *outcomes(mine)[1:]) == []
    assert await sessions[1].limits.check() == []
    assert len(await agents[1].tasks.claim(5)) == 1


async def test_what_is_claimed_under_a_lease_that_lapses_after_the_look_comes_back(
    sessions: list[Session], agents: list[Agent], db: Connection, connect: Connect, blocked: Blocked
) -> None:
    for session in sessions:
        await session.tasks.add("t")
    lease_id = await agents[0].scope.leases.current()
    async with looked(agents, connect, blocked) as (keeper, claims):
        lapse = "UPDATE blackboard.leases SET lapsed_at = blackboard.now(), swept_at = blackboard.now() WHERE id = $1"
        await keeper.execute(lapse, lease_id)
    rows = claims.result()
    assert len(rows) == 3
    await db.execute("UPDATE blackboard.liveness SET repaired_at = '-infinity', checked_at = now() - interval '2 s'")
    await db.execute("SELECT blackboard.tend_leases()")
    assert await statuses(db, rows) == ["pending"] * 3
    assert len(await db.fetch(COMPLETE, *outcomes(rows))) == 3
    assert await completed(db) == 0


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_a_claim_of_an_older_snapshot_is_refused_whole(
    isolation: str, sessions: list[Session], agents: list[Agent], db: Connection, connect: Connect, blocked: Blocked
) -> None:
    for session in sessions:
        await session.tasks.add("t")
    async with looked(agents, connect, blocked, isolation) as (keeper, claims):
        await keeper.execute("SELECT blackboard.close_session($1, 'completed', NULL, 'boss')", sessions[1].id)
    assert isinstance(claims.exception(), asyncpg.SerializationError)
    assert {task.status for session in (sessions[0], sessions[2]) for task in await session.tasks.list()} == {"pending"}
    assert len(await claim(db, agents)) == 2
