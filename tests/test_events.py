"""Cursors: nothing missed, doubled or stalled, whatever commits when."""

from __future__ import annotations

import asyncio
import random
import tempfile
import uuid
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias

import asyncpg
import psycopg
import pytest

from blackboard import Blackboard, Session
from blackboard.errors import CursorExpired, CursorFromAnotherHistory, HistoryNotAdopted, InvalidInput, WaitNotAllowed
from blackboard.models.events import Event
from blackboard.store import migrations
from blackboard.store.temporary import temporary_server

from .conftest import Connect, eventually, with_database

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
ADD = """INSERT INTO blackboard.tasks (session_id, type, parameters)
         VALUES ($1, 't', jsonb_build_object('n', $2::int))"""


def numbers(events: tuple[Event, ...]) -> list[int]:
    return [event.data["parameters"]["n"] for event in events if event.type == "task.created"]


async def test_a_long_transaction_stalls_nobody_and_is_delivered_when_it_commits(
    session: Session, connect: Connect
) -> None:
    slow, fast = await connect(), await connect()
    start = await session.events.now()
    transaction = slow.transaction()
    await transaction.start()
    await slow.execute(ADD, session.id, 1)
    await fast.execute(ADD, session.id, 2)
    first = await session.events.read(start)
    assert numbers(first.events) == [2], "the reader does not wait for the one that is still open"
    await fast.execute(ADD, session.id, 3)
    second = await session.events.read(first.cursor)
    assert numbers(second.events) == [3]
    await transaction.commit()
    third = await session.events.read(second.cursor)
    assert numbers(third.events) == [1], "and misses nothing of it"
    assert numbers((await session.events.read(third.cursor)).events) == []


async def test_commits_out_of_order(session: Session, connect: Connect) -> None:
    writers = [await connect() for _ in range(4)]
    transactions = [writer.transaction() for writer in writers]
    for number, (writer, transaction) in enumerate(zip(writers, transactions, strict=True)):
        await transaction.start()
        await writer.execute(ADD, session.id, number)
    cursor = None
    seen: list[int] = []
    for number in (2, 0, 3, 1):
        await transactions[number].commit()
        page = await session.events.read(cursor)
        seen += numbers(page.events)
        cursor = page.cursor
        assert seen[-1] == number
    assert sorted(seen) == [0, 1, 2, 3]


async def test_a_transaction_in_another_database_stalls_nobody(
    session: Session, server_url: str, db: Connection
) -> None:
    with psycopg.connect(with_database(server_url, "postgres")) as elsewhere:
        elsewhere.execute("SELECT pg_current_xact_id()")
        start = await session.events.now()
        await db.execute(ADD, session.id, 1)
        assert numbers((await session.events.read(start)).events) == [1]
        elsewhere.rollback()


async def test_a_prepared_transaction_is_delivered_when_it_commits(
    session: Session, db: Connection, connect: Connect
) -> None:
    other = await connect()
    gid = f"test-{uuid.uuid4().hex}"
    start = await session.events.now()
    await other.execute("BEGIN")
    # A prepared transaction may not have notified.
    await other.execute("SET LOCAL blackboard.notify = 'off'")
    await other.execute(ADD, session.id, 1)
    await other.execute(f"PREPARE TRANSACTION '{gid}'")
    await db.execute(ADD, session.id, 2)
    page = await session.events.read(start)
    assert numbers(page.events) == [2]
    await db.execute(f"COMMIT PREPARED '{gid}'")
    assert numbers((await session.events.read(page.cursor)).events) == [1]


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read", "serializable"])
async def test_a_reader_that_writes_gets_its_own_events_after_its_commit(
    board: Blackboard, session: Session, db: Connection, isolation: str
) -> None:
    start = await session.events.now()
    async with db.transaction(isolation=isolation):  # type: ignore[arg-type]
        bound = await board.bind(db).session(session.id)
        await bound.tasks.add("t", {"n": 1})
        inside = await bound.events.read(start)
        assert numbers(inside.events) == []
        await bound.tasks.add("t", {"n": 2})
        again = await bound.events.read(inside.cursor)
        assert numbers(again.events) == []
    after = await session.events.read(again.cursor)
    assert numbers(after.events) == [1, 2]
    assert numbers((await session.events.read(after.cursor)).events) == []


async def test_pages_between_two_fixed_bounds(session: Session, connect: Connect, db: Connection) -> None:
    slow = await connect()
    transaction = slow.transaction()
    await transaction.start()
    await slow.execute(ADD, session.id, -1)
    for number in range(25):
        await db.execute(ADD, session.id, number)
    start = (await session.events.read(None, limit=1)).cursor
    seen: list[int] = []
    cursor, more, sizes = start, True, []
    while more:
        page = await session.events.read(cursor, limit=10)
        seen += numbers(page.events)
        sizes.append(len(page.events))
        cursor, more = page.cursor, page.more
        if len(sizes) == 1:
            # In the middle of the pages: one that was running commits, one is new. Both come after the pages.
            await transaction.commit()
            await db.execute(ADD, session.id, 100)
    assert max(sizes) <= 10
    assert seen == list(range(25))
    assert sorted(numbers((await session.events.read(cursor)).events)) == [-1, 100]


async def test_topics_of_the_seed_are_the_same_events(session: Session) -> None:
    agent = await session.join("ops/a")
    await agent.tasks.add("t", max_attempts=1)
    [task] = await agent.tasks.claim()
    await agent.tasks.fail(task, "broken")
    for topics, expected in (
        (["agent.task.assigned"], ["task.assigned"]),
        (["task.assigned"], ["task.assigned"]),
        (["agent.error.occurred"], ["task.dead"]),
        (["task.*"], ["task.created", "task.assigned", "task.dead"]),
        (["session.*"], ["session.started"]),
        (["nothing.of.this"], []),
    ):
        page = await session.events.read(topics=topics)
        assert [event.type for event in page.events] == expected, topics
    assert page.cursor == (await session.events.read()).cursor, "a filter does not hold the cursor back"


async def test_waiting_returns_on_the_event_or_in_time(session: Session, db: Connection) -> None:
    start = await session.events.now()
    nothing = await session.events.wait(start, timeout=timedelta(milliseconds=20))
    assert nothing.events == ()
    waiting = asyncio.create_task(session.events.wait(nothing.cursor, topics=["task.*"], timeout=timedelta(seconds=20)))
    await eventually(lambda: _listening(session))
    await session.update(goal="something else")
    await db.execute(ADD, session.id, 7)
    assert numbers((await asyncio.wait_for(waiting, 10)).events) == [7]


async def _listening(session: Session) -> bool:
    return session.scope.listener.listening


async def test_following_sees_everything_once(session: Session, connect: Connect) -> None:
    """Writers with random rollbacks and one long transaction, a follower from the start."""
    rng = random.Random(7)
    start = await session.events.now()
    committed: set[int] = set()
    seen: list[int] = []

    async def write(base: int) -> None:
        connection = await connect()
        for number in range(base, base + 40):
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute(ADD, session.id, number)
            if rng.random() < 0.3:
                await asyncio.sleep(0)
            if rng.random() < 0.2:
                await transaction.rollback()
            else:
                await transaction.commit()
                committed.add(number)

    long = await connect()
    held = long.transaction()
    await held.start()
    await long.execute(ADD, session.id, 9999)

    async def follow() -> None:
        async for page in session.events.follow(start, batch=17):
            seen.extend(numbers(page.events))
            if 9999 in seen and len(seen) >= len(committed):
                return

    following = asyncio.create_task(follow())
    await asyncio.gather(*(write(1000 * n) for n in range(1, 6)))
    await eventually(lambda: _true(len(seen) >= len(committed)))
    assert 9999 not in seen
    committed.add(9999)
    await held.commit()
    await asyncio.wait_for(following, 20)
    assert sorted(seen) == sorted(committed)


async def _true(value: bool) -> bool:
    return value


async def test_a_bound_handle_refuses_to_wait(board: Blackboard, session: Session, db: Connection) -> None:
    bound = await board.bind(db).session(session.id)
    with pytest.raises(WaitNotAllowed):
        await bound.events.wait(timeout=timedelta(seconds=1))


@pytest.mark.parametrize(
    "cursor", ["", "nonsense", "bb1.zz.1.", "bb1.00000000.x.", "bb1.00000000.1.2.3", "bb1" + ".1" * 9]
)
async def test_what_is_no_cursor(session: Session, cursor: str) -> None:
    if cursor == "":
        assert (await session.events.read(cursor)).events
        return
    with pytest.raises((InvalidInput, CursorFromAnotherHistory)):
        await session.events.read(cursor)


async def test_a_cursor_of_another_database_or_of_the_future(session: Session, db: Connection) -> None:
    cursor = (await session.events.read()).cursor
    _, history, xmax, *_ = cursor.split(".")
    with pytest.raises(CursorFromAnotherHistory):
        await session.events.read(f"bb1.{'0' * 8}.{xmax}.")
    with pytest.raises(CursorFromAnotherHistory):
        await session.events.read(f"bb1.{history}.{int(xmax) + 1000}.")


async def test_pruning_expires_older_cursors_only(session: Session, db: Connection) -> None:
    await db.execute(ADD, session.id, 1)
    old = (await session.events.read(limit=1)).cursor
    middle = (await session.events.read()).cursor
    moment = await db.fetchval("SELECT blackboard.now()")
    await db.execute(ADD, session.id, 2)
    assert await session.events.prune(moment) == 2
    with pytest.raises(CursorExpired):
        await session.events.read(old)
    assert numbers((await session.events.read(middle)).events) == [2]
    assert numbers((await session.events.read()).events) == [2]
    later = await db.fetchval("SELECT blackboard.now()")
    assert await session.events.prune(later) == 1
    here = (await session.events.read()).cursor
    await db.execute(ADD, session.id, 3)
    assert numbers((await session.events.read(here)).events) == [3]


def listed(cursor: str) -> list[str]:
    """The transactions that ran when the cursor was read."""
    return cursor.split(".")[3].split(",")


@pytest.mark.parametrize("ended", [True, False])
async def test_a_cursor_expires_by_what_was_taken_and_not_by_who_ran(
    session: Session, server_url: str, db: Connection, connect: Connect, ended: bool
) -> None:
    slow = await connect()
    with psycopg.connect(with_database(server_url, "postgres")) as elsewhere:
        elsewhere.execute("SELECT pg_current_xact_id()")
        transaction = slow.transaction()
        await transaction.start()
        await slow.execute(ADD, session.id, 1)
        await db.execute(ADD, session.id, 2)
        cursor = (await session.events.read()).cursor
        assert len(listed(cursor)) >= 2, "one here and one elsewhere"
        if ended:
            elsewhere.rollback()
        assert await session.events.prune(await db.fetchval("SELECT blackboard.now()")) == 2
        await transaction.commit()
        page = await session.events.read(cursor)
        assert numbers(page.events) == [1], "it ran while the others were taken"
        assert await session.events.prune(await db.fetchval("SELECT blackboard.now()")) == 1
        with pytest.raises(CursorExpired):
            await session.events.read(cursor)
        await db.execute(ADD, session.id, 3)
        assert numbers((await session.events.read(page.cursor)).events) == [3]
        elsewhere.rollback()


async def test_of_many_that_were_pruned_the_last_thousand_are_told_apart(
    session: Session, server_url: str, db: Connection
) -> None:
    many = """DO $$ BEGIN FOR n IN 1 .. %d LOOP
                  INSERT INTO blackboard.tasks (session_id, type) VALUES ('%s', 't'); COMMIT; END LOOP; END $$"""
    elsewhere = with_database(server_url, "postgres")
    with psycopg.connect(elsewhere) as one, psycopg.connect(elsewhere) as two:
        one.execute("SELECT pg_current_xact_id()")
        await db.execute(many % (600, session.id))
        two.execute("SELECT pg_current_xact_id()")
        await db.execute(many % (600, session.id))
        late = await session.events.now()
        assert await session.events.prune(await db.fetchval("SELECT blackboard.now()")) == 1201
        assert (await session.events.read(late)).events == (), "both still run"
        both = await session.events.now()
        two.rollback()
        assert await session.events.prune(await db.fetchval("SELECT blackboard.now()")) == 0
        assert (await session.events.read(both)).events == (), "nothing was taken meanwhile"
        await db.execute(many % (1, session.id))
        last = await session.events.now()
        one.rollback()
        assert await session.events.prune(await db.fetchval("SELECT blackboard.now()")) == 1
        with pytest.raises(CursorExpired):
            await session.events.read(last)


async def test_history_is_append_only(session: Session, db: Connection) -> None:
    for statement in (
        "UPDATE blackboard.events SET actor = 'x'",
        "DELETE FROM blackboard.events",
        "TRUNCATE blackboard.events",
    ):
        with pytest.raises(asyncpg.PostgresError) as refused:
            await db.execute(statement)
        assert refused.value.sqlstate == "BB005", statement


async def test_what_is_typed_into_psql_is_history_too(session: Session, db: Connection) -> None:
    added = await session.tasks.add("t")
    user = await db.fetchval("SELECT session_user::text")
    await db.execute("UPDATE blackboard.tasks SET priority = 9 WHERE id = $1", added.id)
    await db.execute("DELETE FROM blackboard.tasks WHERE id = $1", added.id)
    _, updated, deleted = (await session.events.read(subject_id=added.id)).events
    assert (updated.type, updated.actor, updated.data["priority"]) == ("task.updated", user, 9)
    assert (deleted.type, deleted.data["priority"]) == ("task.deleted", 9)


@pytest.mark.lifecycle
async def test_an_immediate_stop_after_rollbacks_and_notifies_loses_no_event() -> None:
    """Transaction ids that left no flushed WAL are handed out again after a crash."""
    with temporary_server(durable=True) as server:
        migrations.upgrade(server.url())
        async with Blackboard.open(server.url()) as board:
            session = await board.start("before")
            connection = await asyncpg.connect(server.url())
            await connection.execute(ADD, session.id, 1)
            await connection.execute("SET synchronous_commit = off")
            for _ in range(50):
                transaction = connection.transaction()
                await transaction.start()
                await connection.execute("SELECT pg_current_xact_id()")
                await transaction.rollback()
                await connection.execute("SELECT pg_notify('elsewhere', 'x')")
            cursor = (await session.events.read()).cursor
            session_id = session.id
        server.stop(timeout=0.0)
        server.start(foreground_parent=True)
        async with Blackboard.open(server.url()) as board:
            session = await board.session(session_id)
            await session.tasks.add("t", {"n": 2})
            assert numbers((await session.events.read(cursor)).events) == [2]


@pytest.mark.lifecycle
async def test_a_dump_restored_into_a_new_cluster_needs_adoption() -> None:
    with temporary_server() as old, temporary_server() as new:
        migrations.upgrade(old.url())
        async with Blackboard.open(old.url()) as board:
            session = await board.start("moved")
            connection = await asyncpg.connect(old.url())
            # The old cluster's transaction ids are far ahead of the new one's.
            for _ in range(300):
                await connection.execute("SELECT pg_current_xact_id()")
            await connection.execute(ADD, session.id, 1)
            cursor = (await session.events.read()).cursor
            await connection.close()
        await _copy(old.url(), new.url())
        with pytest.raises(HistoryNotAdopted):
            await Blackboard.open(new.url())
        async with Blackboard.open(new.url(), adopt=True):
            pass
        async with Blackboard.open(new.url()) as board:
            moved = await board.session(session.id)
            with pytest.raises(CursorFromAnotherHistory):
                await moved.events.read(cursor)
            here = (await moved.events.read()).cursor
            await moved.tasks.add("t", {"n": 2})
            assert numbers((await moved.events.read(here)).events) == [2]


async def _copy(source: str, target: str) -> None:
    from blackboard.store.binaries import find_binaries

    programs = find_binaries(None, Path(tempfile.gettempdir())).directory
    dump = await asyncio.create_subprocess_exec(
        str(programs / "pg_dump"), "--format=custom", f"--dbname={source}", stdout=asyncio.subprocess.PIPE
    )
    data, _ = await dump.communicate()
    assert dump.returncode == 0
    restore = await asyncio.create_subprocess_exec(
        str(programs / "pg_restore"), f"--dbname={target}", stdin=asyncio.subprocess.PIPE
    )
    await restore.communicate(data)
    assert restore.returncode == 0
