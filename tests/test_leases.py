"""Liveness: what a silent process held goes back, what a live one holds stays."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeAlias

import asyncpg
import pytest

from blackboard import Agent, Blackboard, Session
from blackboard.errors import LeaseLost

from .conftest import Clock, Connect, eventually

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def agent(steady: Session) -> Agent:
    return await steady.join("ops/worker")


async def hold(
    db: Connection, session: Session, name: str = "ops/silent", term: str = "30 seconds"
) -> tuple[uuid.UUID, uuid.UUID, asyncpg.Record]:
    """A claim under a lease that no heartbeat renews."""
    lease_id, claim_id = uuid.uuid4(), uuid.uuid4()
    await db.execute("SELECT blackboard.start_lease($1, 'elsewhere', 1, CAST($2::text AS interval))", lease_id, term)
    row = await db.fetchrow(
        "SELECT * FROM blackboard.claim_tasks($1, $2, '{}', $3, $4, 1)", session.id, name, lease_id, claim_id
    )
    assert row is not None
    return lease_id, claim_id, row


async def complete(db: Connection, session: Session, row: asyncpg.Record, result: str = "1") -> list[asyncpg.Record]:
    return await db.fetch(
        "SELECT * FROM blackboard.complete_tasks($1, ARRAY[$2::uuid], ARRAY[$3::uuid], ARRAY[$4::int], "
        "ARRAY[$5::text]::jsonb[], 'ops/silent')",
        session.id, row["id"], row["claim_id"], row["attempt"], result,
    )  # fmt: skip


async def test_work_of_a_silent_process_goes_to_the_next_claim(
    session: Session, agent: Agent, db: Connection, clock: Clock
) -> None:
    added = await session.tasks.add("t")
    lease_id, _, row = await hold(db, session)
    assert await agent.tasks.claim() == []
    await clock.advance(timedelta(seconds=31))
    [task] = await agent.tasks.claim()
    assert (task.id, task.attempt) == (added.id, 2)
    assert await db.fetchval("SELECT blackboard.renew_lease($1)", lease_id) is None, "a lapse is final"
    assert len(await complete(db, session, row)) == 1, "the late owner is told"
    [late] = await session.tasks.late_results(added.id)
    assert late.result == 1
    await agent.tasks.complete(task, 2)
    assert (await session.tasks.get(added.id)).result == 2
    types = [event.type for event in (await session.events.read(subject_id=added.id)).events]
    assert types == [
        "task.created", "task.assigned", "task.lapsed", "task.assigned", "task.result_refused", "task.completed",
    ]  # fmt: skip


@pytest.mark.parametrize("verb", ["claim_tasks", "claim_task", "claim_tasks_across"])
async def test_nothing_is_claimed_under_a_lease_that_lapses_with_the_claims_own_look(
    session: Session, agent: Agent, db: Connection, clock: Clock, verb: str
) -> None:
    lease_id = uuid.uuid4()
    await db.execute("SELECT blackboard.start_lease($1, 'elsewhere', 1, interval '30 seconds')", lease_id)
    added = await session.tasks.add("t")
    await clock.advance(timedelta(seconds=31))
    sql = {
        "claim_tasks": "claim_tasks($1, 'ops/silent', '{}', $2, gen_random_uuid(), 1)",
        "claim_task": f"claim_task($1, '{added.id}', 'ops/silent', $2, gen_random_uuid())",
        "claim_tasks_across": "claim_tasks_across(ARRAY[$1::uuid], 'ops/silent', '{}', $2, gen_random_uuid(), 1, 1)",
    }[verb]
    with pytest.raises(asyncpg.PostgresError) as lost:
        await db.fetch(f"SELECT * FROM blackboard.{sql}", session.id, lease_id)
    assert lost.value.sqlstate == "BB006"
    [task] = await agent.tasks.claim()
    assert (task.id, task.attempt) == (added.id, 1), "no attempt was burnt"


async def test_an_owner_that_is_late_but_not_yet_lapsed_keeps_its_work(
    session: Session, db: Connection, clock: Clock
) -> None:
    added = await session.tasks.add("t")
    lease_id, _, row = await hold(db, session)
    await clock.advance(timedelta(seconds=31))
    assert await db.fetchval("SELECT blackboard.renew_lease($1)", lease_id) == 1
    assert await complete(db, session, row) == []
    assert (await session.tasks.get(added.id)).status == "completed"


async def test_an_owner_that_renews_while_it_is_being_swept_keeps_its_work(
    session: Session, agent: Agent, connect: Connect, clock: Clock, blocked: Callable[[int], Awaitable[None]]
) -> None:
    await session.tasks.add("t")
    owner, sweeper = await connect(), await connect()
    lease_id, _, row = await hold(owner, session)
    await clock.advance(timedelta(seconds=31))
    transaction = owner.transaction()
    await transaction.start()
    # The renewal holds the lease's row; the sweep must wait for it and then find the lease alive.
    await owner.execute(
        "UPDATE blackboard.leases SET expires_at = blackboard.now() + term WHERE id = $1 AND lapsed_at IS NULL",
        lease_id,
    )
    sweep = asyncio.ensure_future(sweeper.fetchval("SELECT blackboard.tend_leases()"))
    await blocked(sweeper.get_server_pid())
    await transaction.commit()
    assert await sweep == 0
    assert await agent.tasks.claim() == []
    assert await complete(owner, session, row) == []


async def test_nothing_lapses_after_a_gap_in_which_nobody_could_renew(
    session: Session, agent: Agent, db: Connection, clock: Clock
) -> None:
    await session.tasks.add("t")
    lease_id, _, _ = await hold(db, session)
    await clock.advance(timedelta(hours=1), gap=True)
    assert await agent.tasks.claim() == []
    assert await db.fetchval("SELECT lapsed_at FROM blackboard.leases WHERE id = $1", lease_id) is None
    assert await db.fetchval("SELECT blackboard.renew_lease($1)", lease_id) == 1


async def test_after_the_gap_the_silent_lose_their_work_within_one_term(
    session: Session, agent: Agent, db: Connection, clock: Clock
) -> None:
    await session.tasks.add("t")
    await hold(db, session)
    await clock.advance(timedelta(hours=1), gap=True)
    assert await agent.tasks.claim() == []
    for _ in range(7):
        # Somebody looks every few seconds, as heartbeats do: no second gap.
        await clock.advance(timedelta(seconds=5), gap=True)
        await db.fetchval("SELECT blackboard.tend_leases()")
    assert len(await agent.tasks.claim()) == 1


async def test_a_task_that_kills_its_workers_ends_dead(
    session: Session, agent: Agent, db: Connection, clock: Clock
) -> None:
    added = await session.tasks.add("t", max_attempts=2)
    for _ in range(2):
        await hold(db, session)
        await clock.advance(timedelta(seconds=31))
    assert await agent.tasks.claim() == []
    dead = await session.tasks.get(added.id)
    assert (dead.status, dead.error["code"], dead.error["agent_id"]) == ("dead", "lease_lapsed", "ops/silent")


async def test_the_longest_run_time_is_apart_from_the_lease(session: Session, db: Connection, clock: Clock) -> None:
    added = await session.tasks.add("t", timeout=timedelta(minutes=1), retry_delay=timedelta(0))
    lease_id, _, row = await hold(db, session, term="1 hour")
    assert row["deadline_at"] is not None
    await clock.advance(timedelta(minutes=2))
    assert await db.fetchval("SELECT blackboard.renew_lease($1)", lease_id) == 0, (
        "the process lives, the attempt is over"
    )
    back = await session.tasks.get(added.id)
    assert (back.status, back.error["code"]) == ("scheduled", "timeout")
    assert len(await complete(db, session, row)) == 1


async def test_ending_a_lease_gives_everything_back_at_once(session: Session, agent: Agent, database_url: str) -> None:
    await session.tasks.add("t")
    async with Blackboard.open(database_url) as other:
        held = await (await other.session(session.id)).join("ops/leaver")
        assert len(await held.tasks.claim()) == 1
        assert (await session.agents.get("ops/leaver")).present
    assert not (await session.agents.get("ops/leaver")).present
    assert len(await agent.tasks.claim()) == 1


async def test_the_heartbeat_keeps_a_lease_longer_than_its_term(
    session: Session, database_url: str, db: Connection
) -> None:
    await session.tasks.add("t")
    async with Blackboard.open(database_url, lease_term=timedelta(seconds=1)) as other:
        held = await (await other.session(session.id)).join("ops/steady")
        [task] = await held.tasks.claim()
        first = await db.fetchval("SELECT expires_at FROM blackboard.leases WHERE id = $1", task.lease_id)
        await eventually(
            lambda: db.fetchval(
                "SELECT 1 FROM blackboard.leases WHERE id = $1 AND expires_at > CAST($2 AS timestamptz) + interval '1 second'",
                task.lease_id, first,
            )
        )  # fmt: skip
        await held.tasks.complete(task, "still mine")
    assert (await session.tasks.get(task.id)).result == "still mine"


async def test_kill_9_of_a_real_process(session: Session, database_url: str) -> None:
    agent = await session.join("ops/worker")
    added = await session.tasks.add("t")
    program = textwrap.dedent(
        """
        import sys, time
        from datetime import timedelta
        from blackboard.sync import Blackboard
        board = Blackboard.open(sys.argv[1], lease_term=timedelta(seconds=1))
        agent = board.session(sys.argv[2]).join("ops/doomed")
        print(len(agent.tasks.claim()), flush=True)
        sys.stdin.read()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, database_url, str(session.id)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as doomed:
        assert doomed.stdout is not None
        assert await asyncio.to_thread(doomed.stdout.readline) == b"1\n"
        os.kill(doomed.pid, signal.SIGKILL)
        doomed.wait()
    [task] = await agent.tasks.claim(wait=timedelta(seconds=30))
    assert (task.id, task.attempt) == (added.id, 2)


async def test_a_process_that_slept_past_its_lease_gets_a_new_one(
    session: Session, db: Connection, database_url: str
) -> None:
    async with Blackboard.open(database_url) as other:
        sleeper = await (await other.session(session.id)).join("ops/sleeper")
        await session.tasks.add("t")
        [task] = await sleeper.tasks.claim()
        await db.execute("SELECT blackboard.end_lease($1)", task.lease_id)
        with pytest.raises(LeaseLost):
            await sleeper.tasks.complete(task, 1)
        again = await eventually(lambda: _claim(sleeper))
        assert (again.id, again.attempt) == (task.id, 2)
        assert again.lease_id != task.lease_id
        assert (await session.agents.get("ops/sleeper")).present, "it is there again, under the new lease"


async def _claim(agent: Agent) -> object:
    try:
        return next(iter(await agent.tasks.claim()), None)
    except LeaseLost:
        return None
