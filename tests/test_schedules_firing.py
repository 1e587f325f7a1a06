"""Many processes fire at once, die in between, sleep and wake: each planned time has exactly one task."""

from __future__ import annotations

import asyncio
import sys
import textwrap
import time
from datetime import timedelta
from typing import Any

import pytest

from blackboard import Blackboard
from blackboard.errors import ServerUnreachable
from blackboard.work.schedules import SchedulerLoop, run_schedules

from .conftest import eventually

_DUE = """
UPDATE blackboard.schedules SET next_at = date_trunc('hour', blackboard.now()) - interval '4 hours'
WHERE session_id = $1
"""
_DOUBLES = """
SELECT split_part(data ->> 'last_task_id', ' ', 1) FROM blackboard.events
WHERE session_id = $1 AND type = 'schedule.fired' GROUP BY 1 HAVING count(*) > 1
"""


async def add(session: Any, db: Any, count: int) -> None:
    for n in range(count):
        await session.schedules.add(f"s{n}", "0 * * * *", "t", {"n": n}, missed="all")
    await db.execute(_DUE, session.id)


async def check(session: Any, db: Any, count: int) -> None:
    """Every planned time of every schedule has its one task, and its one event."""
    hours = 5 * count
    tasks = await session.tasks.list(limit=10_000)
    assert hours <= len(tasks) <= hours + count  # the hour may turn
    assert not await db.fetch(_DOUBLES, session.id)
    fired = await db.fetchval("SELECT sum(fired) FROM blackboard.schedules WHERE session_id = $1", session.id)
    assert fired == len(tasks)
    per_schedule = await db.fetch(
        "SELECT parameters ->> 'n' AS n, count(*) AS c FROM blackboard.tasks WHERE session_id = $1 GROUP BY 1",
        session.id,
    )
    assert len(per_schedule) == count
    assert {row["c"] for row in per_schedule} <= {5, 6}


async def test_eight_at_the_same_instant(session: Any, db: Any, database_url: str) -> None:
    await add(session, db, 60)
    boards = [await Blackboard.open(database_url, pool_size=1) for _ in range(8)]
    added = await asyncio.gather(*(board.schedules.fire_due(1000) for board in boards))
    # What one of them held was left out by the others.
    rest = await boards[0].schedules.fire_due(1000)
    assert sum(bool(mine) for mine in added) > 1
    ids = [one.task_id for mine in [*added, rest] for one in mine]
    assert len(ids) == len(set(ids))
    assert len(ids) == len(await session.tasks.list(limit=10_000))
    await check(session, db, 60)
    for board in boards:
        await board.close()


async def test_while_one_fires_others_leave_it_alone(session: Any, board: Blackboard, db: Any, connect: Any) -> None:
    await add(session, db, 1)
    holder = await connect()
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("SELECT 1 FROM blackboard.schedules FOR UPDATE")
    assert await board.schedules.fire_due() == []
    await transaction.rollback()
    assert len(await board.schedules.fire_due()) in {5, 6}


async def test_fired_by_somebody_else_since_it_was_read(session: Any, board: Blackboard, db: Any) -> None:
    await add(session, db, 1)
    row = await db.fetchrow("SELECT id, next_at FROM blackboard.schedules")
    await board.schedules.fire_due()
    again = await db.fetch(
        "SELECT * FROM blackboard.fire_schedule($1, $2, $3, ARRAY[$3::timestamptz], ARRAY[gen_random_uuid()], 0, NULL)",
        session.id,
        row["id"],
        row["next_at"],
    )
    assert again == []
    await check(session, db, 1)


_PROGRAM = textwrap.dedent("""
    import asyncio, sys
    from blackboard import Blackboard

    async def main():
        async with Blackboard.open(sys.argv[1], pool_size=1) as board:
            print("ready", flush=True)
            while True:
                await board.schedules.fire_due(7)
                await asyncio.sleep(0.001)

    asyncio.run(main())
""")


@pytest.mark.timeout(120)
async def test_processes_are_killed_in_between(session: Any, db: Any, connect: Any, database_url: str) -> None:
    running: list[asyncio.subprocess.Process] = []

    async def start() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _PROGRAM, database_url, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        assert (await process.stdout.readline()) == b"ready\n"
        running.append(process)

    await asyncio.gather(*(start() for _ in range(3)))
    # Nobody gets past adding its first task: then two of them die there.
    gate = await connect()
    transaction = gate.transaction()
    await transaction.start()
    await gate.execute("LOCK TABLE blackboard.tasks IN SHARE ROW EXCLUSIVE MODE")
    await add(session, db, 100)

    async def all_inside() -> bool:
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return await db.fetchval(waiting) == 3

    await eventually(all_inside)
    for victim in running[:2]:
        victim.kill()
        await victim.wait()
    await transaction.rollback()

    async def nothing_due() -> bool:
        return not await db.fetchval(
            "SELECT count(*) FROM blackboard.schedules WHERE session_id = $1 AND next_at <= blackboard.now()",
            session.id,
        )

    await eventually(nothing_due, 60)
    running[2].kill()
    await running[2].wait()
    await check(session, db, 100)


async def test_the_loop_sleeps_until_the_next_time_and_wakes_for_new_ones(
    session: Any, board: Blackboard, db: Any
) -> None:
    looks = 0
    fire_due = board.schedules.fire_due

    async def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal looks
        looks += 1
        return await fire_due(*arguments, **named)

    board.schedules.fire_due = counted  # type: ignore[method-assign]
    heard: list[Any] = []
    stop = asyncio.Event()
    loop = SchedulerLoop(board.schedules, sessions=[session.id], max_poll=timedelta(minutes=5), on_fired=heard.extend)
    running = asyncio.create_task(loop.run(stop))

    async def looked() -> bool:
        return looks > 0

    await eventually(looked)
    await session.schedules.add("s", "0 0 1 1 *", "t")
    await db.execute("UPDATE blackboard.schedules SET next_at = blackboard.now() + interval '700 ms'")
    began = time.monotonic()

    async def fired() -> bool:
        return bool(heard)

    await eventually(fired)
    assert 0.4 < time.monotonic() - began < 5
    assert heard[0].name == "s"
    # Not one look a poll interval or less: only for hints (at most one a change), the time, and after the firing.
    assert looks < 12
    stop.set()
    await asyncio.wait_for(running, 5)


async def test_the_loop_outlives_an_outage_and_stops_at_once(session: Any, board: Blackboard, db: Any) -> None:
    await add(session, db, 1)
    fire_due = board.schedules.fire_due
    failures = iter([ServerUnreachable("away"), ServerUnreachable("still away")])

    async def shaky(*arguments: Any, **named: Any) -> Any:
        for error in failures:
            raise error
        return await fire_due(*arguments, **named)

    board.schedules.fire_due = shaky  # type: ignore[method-assign]
    stop = asyncio.Event()
    running = asyncio.create_task(run_schedules(board, None, stop))

    async def fired() -> bool:
        return await db.fetchval("SELECT count(*) FROM blackboard.tasks") > 0

    await eventually(fired)
    stop.set()
    await asyncio.wait_for(running, 5)
    await check(session, db, 1)
    cancelled = asyncio.create_task(run_schedules(board, None, asyncio.Event()))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
