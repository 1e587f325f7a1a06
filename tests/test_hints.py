"""What is told to whom: claimers hear of what is ready, those who wait for outcomes of everything, and nobody else."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeAlias

import asyncpg
import pytest

from blackboard import Agent, Blackboard, Session

from .conftest import Clock, Connect, eventually

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Told = Callable[[], Awaitable[list[str]]]


@pytest.fixture
async def agent(session: Session) -> Agent:
    return await session.join("ops/a")


@pytest.fixture
async def told(session: Session, connect: Connect) -> Told:
    """What was notified about tasks of the session since the last call, without what clients send after their commits."""
    listening, asking = await connect(), await connect()
    heard: list[str] = []

    async def ask() -> list[str]:
        # Notifications come in the order of commits: after this one, all before it are here.
        mark = uuid.uuid4().hex
        await asking.execute("SELECT pg_notify('blackboard', $1)", mark)

        async def marked() -> bool:
            return mark in heard

        await eventually(marked)
        own = [text.removeprefix(f"{session.id} ") for text in heard if text.startswith(str(session.id))]
        heard.clear()
        return [noun for noun in own if noun.startswith("tasks")]

    await listening.add_listener("blackboard", lambda *args: heard.append(str(args[-1])))
    return ask


async def add(db: Connection, session: Session, *ids: uuid.UUID, depends_on: uuid.UUID | None = None) -> None:
    """Added without any client that would tell."""
    options = None if depends_on is None else json.dumps({"depends_on": [str(depends_on)]})
    await db.execute(
        "SELECT blackboard.add_tasks($1, $2, array_fill('t'::text, $3), array_fill(''::text, $3), "
        "array_fill(5::smallint, $3), array_fill('{}'::jsonb, $3), array_fill($4::jsonb, $3), 'ops/b')",
        session.id, ids, [len(ids)], options,
    )  # fmt: skip


async def start(db: Connection, session: Session, count: int = 1) -> list[asyncpg.Record]:
    """Claimed by a lease of its own, without any client that would tell."""
    lease_id = uuid.uuid4()
    await db.execute("SELECT blackboard.start_lease($1, 'elsewhere', 1, interval '1 hour')", lease_id)
    return await db.fetch(
        "SELECT * FROM blackboard.claim_tasks($1, 'ops/b', '{}', $2, gen_random_uuid(), $3)",
        session.id, lease_id, count,
    )  # fmt: skip


COMPLETE = """
SELECT * FROM blackboard.complete_tasks($1, ARRAY[$2::uuid], ARRAY[$3::uuid], ARRAY[$4::int], ARRAY[NULL::jsonb], 'ops/b')
"""


async def test_hot_verbs_say_nothing_themselves(session: Session, db: Connection, told: Told) -> None:
    add = "SELECT * FROM blackboard.add_plain_task($1, $2, 't', '', 5::smallint, '{}', 'ops/b', $3)"
    await db.fetch(add, session.id, uuid.uuid4(), False)
    [row] = await start(db, session)
    assert await db.fetch(COMPLETE, session.id, row["id"], row["claim_id"], row["attempt"]) == []
    assert await told() == []
    task_id = uuid.uuid4()
    await db.fetch(add, session.id, task_id, True)
    assert await told() == ["tasks.ready"], "asked to"
    assert await db.fetchval(add, session.id, task_id, True) is None, "the id was used before"
    assert await told() == []


async def test_raw_sql_tells_of_everything(session: Session, db: Connection, told: Told) -> None:
    task_id = await db.fetchval(
        "INSERT INTO blackboard.tasks (session_id, type) VALUES ($1, 't') RETURNING id", session.id
    )
    assert await told() == ["tasks.ready"]
    await db.execute("UPDATE blackboard.tasks SET priority = 9 WHERE id = $1", task_id)
    assert await told() == ["tasks.ready"]
    await db.execute(
        "UPDATE blackboard.tasks SET status = 'cancelled', position = NULL, completed_at = blackboard.now() WHERE id = $1",
        task_id,
    )
    assert await told() == ["tasks.changed"]


async def test_what_a_completion_frees_is_told_with_its_commit(session: Session, db: Connection, told: Told) -> None:
    parent = uuid.uuid4()
    await add(db, session, parent)
    await add(db, session, uuid.uuid4(), depends_on=parent)
    [row] = await start(db, session)
    await told()
    assert await db.fetch(COMPLETE, session.id, row["id"], row["claim_id"], row["attempt"]) == []
    assert await told() == ["tasks.ready"]


async def test_what_comes_back_is_told_with_its_commit(
    session: Session, db: Connection, told: Told, clock: Clock
) -> None:
    await add(db, session, *(uuid.uuid4() for _ in range(3)))
    first, second, _ = await start(db, session, 3)
    await told()
    await db.fetch(
        "SELECT * FROM blackboard.release_tasks($1, ARRAY[$2::uuid], ARRAY[$3::uuid], ARRAY[$4::int], "
        "ARRAY[NULL::interval], ARRAY[NULL::jsonb], 'ops/b')",
        session.id, first["id"], first["claim_id"], first["attempt"],
    )  # fmt: skip
    assert await told() == ["tasks.ready"]
    await db.fetch(
        "SELECT * FROM blackboard.fail_tasks($1, ARRAY[$2::uuid], ARRAY[$3::uuid], ARRAY[$4::int], ARRAY[NULL::jsonb], "
        "ARRAY['retry'], ARRAY[NULL::interval], ARRAY[NULL::int], 'ops/b')",
        session.id, second["id"], second["claim_id"], second["attempt"],
    )  # fmt: skip
    assert await told() == ["tasks.ready"], "who waits for its time has to know of it"
    # The sweep comes with somebody else's renewal; what it frees is anybody's.
    other = uuid.uuid4()
    await db.execute("SELECT blackboard.start_lease($1, 'here', 1, interval '1 hour')", other)
    await db.execute("UPDATE blackboard.leases SET lapsed_at = blackboard.now() WHERE id = $1", first["lease_id"])
    await clock.advance(timedelta(seconds=2))
    await db.execute("SELECT blackboard.renew_lease($1)", other)
    assert await told() == ["tasks.ready"]


async def test_an_add_in_the_callers_transaction_wakes_with_its_commit(
    board: Blackboard, session: Session, connect: Connect
) -> None:
    own = await connect()
    waiting = asyncio.ensure_future((await session.join("ops/waiting")).tasks.claim(wait=timedelta(seconds=20)))
    listener = session.scope.listener

    async def listening() -> bool:
        return listener.listening

    await eventually(listening)
    async with own.transaction():
        bound = await board.bind(own).session(session.name)
        added = await bound.tasks.add("t")
        assert not waiting.done()
    async with asyncio.timeout(10):
        # The poll would take longer, while hints are heard.
        assert [task.id for task in await waiting] == [added.id]


async def test_claimers_are_not_woken_by_what_others_finish(session: Session, agent: Agent, db: Connection) -> None:
    listener = session.scope.listener
    with (
        listener.subscribe(session.id, ("tasks.ready", "sessions")) as claimer,
        listener.subscribe(session.id, ("tasks",)) as waiter,
    ):

        async def listening() -> bool:
            return listener.listening

        await eventually(listening)
        while await claimer.wait_async(0) or await waiter.wait_async(0):
            pass
        await agent.tasks.add("t")
        assert await claimer.wait_async(10)
        assert await waiter.wait_async(10)
        [task] = await agent.tasks.claim()
        assert await waiter.wait_async(10)
        await agent.tasks.complete(task)
        assert await waiter.wait_async(10)
        assert not await claimer.wait_async(0)
        await db.execute("SELECT pg_notify('blackboard', $1)", f"{session.id} tasks")
        assert await claimer.wait_async(10), "who does not say what about tasks means all of it"


async def test_of_many_who_wait_each_gets_its_task(session: Session) -> None:
    agents = [await session.join(f"ops/{number}") for number in range(12)]
    waiting = [asyncio.ensure_future(one.tasks.claim(wait=timedelta(seconds=30))) for one in agents]
    got: list[uuid.UUID] = []
    for _ in agents:
        added = await session.tasks.add("t")
        done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        [claimed] = [task.id for one in done for task in one.result()]
        assert claimed == added.id
        got.append(claimed)
        waiting = list(rest)
    assert len(set(got)) == 12
