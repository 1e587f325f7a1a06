"""Locks: one holder, first come first served, and no late owner's write."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from blackboard.errors import (
    IdempotencyConflict,
    InvalidInput,
    LeaseLost,
    NotFound,
    NotPermitted,
    SessionClosed,
)
from blackboard.ids import new_id

_NAME = "file:/src/main.py"
_MINUTE = timedelta(minutes=1)
_ACQUIRE = "SELECT token FROM blackboard.acquire_lock($1, $2, $3, $4, $5, $6, $7) WHERE request_id = $5"
_RELEASE = "SELECT * FROM blackboard.release_lock($1, $2, $3, $4)"


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


async def lease(db: Any) -> UUID:
    id_ = new_id()
    await db.execute("SELECT blackboard.start_lease($1, 'elsewhere', 1, interval '1 minute')", id_)
    return id_


async def lapse(db: Any, lease_id: UUID) -> None:
    await db.execute("UPDATE blackboard.leases SET lapsed_at = blackboard.now() WHERE id = $1", lease_id)


async def test_one_holder_at_a_time(session: Any, db: Any) -> None:
    a, b = await members(session, 2)
    grant = await a.locks.try_acquire(_NAME)
    assert (grant.name, grant.holder, grant.token, grant.expires_at) == (_NAME, "ops/a", 1, None)
    assert await b.locks.try_acquire(_NAME) is None
    assert (await session.locks.get(_NAME)).waiting == 0
    assert await b.locks.try_acquire("another") is not None
    await a.locks.release(_NAME, grant.token)
    assert (await b.locks.try_acquire(_NAME)).token == 2
    written = [(type_, actor, data["holder"], data["token"]) for type_, actor, data in await events(db, session)]
    assert [x for x in written if x[0] != "created"] == [
        ("acquired", "ops/a", "ops/a", 1),
        ("acquired", "ops/b", "ops/b", 1),
        ("released", "ops/a", None, 1),
        ("acquired", "ops/b", "ops/b", 2),
    ]


async def test_the_same_request_gets_the_same_token(session: Any, db: Any) -> None:
    a, b = await members(session, 2)
    request = new_id()
    grant = await a.locks.try_acquire(_NAME, request_id=request, ttl=_MINUTE)
    assert await a.locks.try_acquire(_NAME, request_id=request, ttl=_MINUTE) == grant
    assert await a.locks.try_acquire(_NAME) is None  # not re-entrant
    for call in (
        b.locks.try_acquire(_NAME, request_id=request),
        b.locks.try_acquire(_NAME, request_id=request, wait=_MINUTE),
    ):
        with pytest.raises(IdempotencyConflict):
            await call
    waiting = new_id()
    assert await b.locks.try_acquire(_NAME, request_id=waiting, wait=_MINUTE) is None
    with pytest.raises(IdempotencyConflict):
        await b.locks.try_acquire("another", request_id=waiting, wait=_MINUTE)
    assert [t for t, _, _ in await events(db, session)].count("acquired") == 1


async def test_first_come_first_served(session: Any) -> None:
    a, b, c, d = await members(session, 4)
    token = (await a.locks.try_acquire(_NAME)).token
    requests = {agent.id: new_id() for agent in (c, b, d)}
    for agent in (c, b, d):
        assert await agent.locks.try_acquire(_NAME, request_id=requests[agent.id], wait=_MINUTE) is None
    for agent in (b, c):  # asking again keeps the place
        assert await agent.locks.try_acquire(_NAME, request_id=requests[agent.id], wait=_MINUTE) is None
    assert (await session.locks.get(_NAME)).waiting == 3
    holders: list[str] = []
    for _ in range(3):
        await (a if not holders else {x.id: x for x in (b, c, d)}[holders[-1]]).locks.release(_NAME, token)
        # It is granted in the transaction of the release, before the waiter asks again.
        held = await session.locks.get(_NAME)
        assert held.request_id == requests[held.holder]
        holders.append(held.holder)
        token = held.token
    assert holders == ["ops/c", "ops/b", "ops/d"]
    assert token == 4


async def test_nobody_overtakes_the_queue(session: Any) -> None:
    a, b, c = await members(session)
    token = (await a.locks.try_acquire(_NAME)).token
    waiting = new_id()
    await b.locks.try_acquire(_NAME, request_id=waiting, wait=_MINUTE)
    await a.locks.release(_NAME, token)
    assert await c.locks.try_acquire(_NAME) is None
    assert (await b.locks.try_acquire(_NAME, request_id=waiting, wait=_MINUTE)).token == 2


async def test_mutual_exclusion_under_eight_connections(session: Any, db: Any, connect: Any) -> None:
    agents = await members(session, 8)
    inside: list[str] = []
    entered: list[int] = []

    async def work(agent: Any) -> None:
        connection = await connect()
        mine = await lease(connection)
        for _ in range(4):
            request = new_id()
            asked = (session.id, _NAME, agent.id, mine, request, None, _MINUTE)
            while (token := await connection.fetchval(_ACQUIRE, *asked)) is None:
                await asyncio.sleep(0)
            inside.append(agent.id)
            assert inside == [agent.id]
            await connection.execute("SELECT blackboard.require_lock($1, $2, $3)", session.id, _NAME, token)
            entered.append(token)
            inside.remove(agent.id)
            await connection.execute(_RELEASE, session.id, _NAME, agent.id, token)

    await asyncio.gather(*(work(agent) for agent in agents))
    assert entered == list(range(1, 33))
    written = [t for t, _, _ in await events(db, session)]
    assert written == ["created", *["acquired", "released"] * 32]


async def test_a_grant_ends_with_its_ttl(session: Any, db: Any, clock: Any) -> None:
    a, b = await members(session, 2)
    grant = await a.locks.try_acquire(_NAME, ttl=_MINUTE)
    await clock.advance(timedelta(seconds=40))
    renewed = await a.locks.renew(_NAME, grant.token, ttl=_MINUTE)
    assert renewed.expires_at > grant.expires_at
    await clock.advance(timedelta(seconds=40))
    assert await b.locks.try_acquire(_NAME) is None
    await clock.advance(timedelta(seconds=40))
    assert (await b.locks.try_acquire(_NAME)).token == 2
    for call in (a.locks.renew(_NAME, 1), a.locks.release(_NAME, 1), a.locks.require(_NAME, 1)):
        with pytest.raises(LeaseLost):
            await call
    assert (await session.locks.get(_NAME)).holder == "ops/b"
    written = [(type_, actor) for type_, actor, _ in await events(db, session)]
    assert written == [
        ("created", "ops/a"),
        ("acquired", "ops/a"),
        ("expired", "blackboard"),
        ("acquired", "ops/b"),
    ]


async def test_an_owner_past_its_ttl_is_late_even_if_nobody_came(session: Any, clock: Any) -> None:
    [a] = await members(session, 1)
    await a.locks.try_acquire(_NAME, ttl=_MINUTE)
    await clock.advance(_MINUTE)
    for call in (a.locks.renew(_NAME, 1), a.locks.release(_NAME, 1), a.locks.require(_NAME, 1)):
        with pytest.raises(LeaseLost):
            await call


async def test_a_grant_ends_with_its_lease(session: Any, db: Any) -> None:
    a, b = await members(session, 2)
    gone = await lease(db)
    request = new_id()
    asked = (session.id, _NAME, a.id, gone, request, None, None)
    assert await db.fetchval(_ACQUIRE, *asked) == 1
    waiting = new_id()
    assert await b.locks.try_acquire(_NAME, request_id=waiting, wait=_MINUTE) is None
    await lapse(db, gone)
    assert (await b.locks.try_acquire(_NAME, request_id=waiting, wait=_MINUTE)).token == 2
    assert (await refused(db, _RELEASE, session.id, _NAME, a.id, 1)).sqlstate == "BB006"
    assert (await refused(db, _ACQUIRE, *asked)).sqlstate == "BB006"
    assert ("expired", "blackboard") in [(t, actor) for t, actor, _ in await events(db, session)]


async def test_no_grant_to_a_dead_waiter(session: Any, db: Any) -> None:
    a, b, c = await members(session)
    token = (await a.locks.try_acquire(_NAME)).token
    gone, waiting = await lease(db), new_id()
    await db.execute(_ACQUIRE, session.id, _NAME, b.id, gone, new_id(), None, _MINUTE)
    await c.locks.try_acquire(_NAME, request_id=waiting, wait=_MINUTE)
    await lapse(db, gone)
    await a.locks.release(_NAME, token)
    held = await session.locks.get(_NAME)
    assert (held.holder, held.request_id, held.waiting) == ("ops/c", waiting, 0)


async def test_no_grant_to_a_waiter_whose_time_is_up(session: Any, clock: Any) -> None:
    a, b, c = await members(session)
    token = (await a.locks.try_acquire(_NAME)).token
    late, patient = new_id(), new_id()
    await b.locks.try_acquire(_NAME, request_id=late, wait=_MINUTE)
    await c.locks.try_acquire(_NAME, request_id=patient, wait=10 * _MINUTE)
    await clock.advance(_MINUTE)
    await a.locks.release(_NAME, token)
    assert (await session.locks.get(_NAME)).holder == "ops/c"
    assert await b.locks.try_acquire(_NAME, request_id=late) is None


async def test_asking_again_prolongs_the_wait(session: Any, clock: Any) -> None:
    a, b = await members(session, 2)
    token = (await a.locks.try_acquire(_NAME)).token
    request = new_id()
    for _ in range(3):
        assert await b.locks.try_acquire(_NAME, request_id=request, wait=_MINUTE) is None
        await clock.advance(timedelta(seconds=50))
    await a.locks.release(_NAME, token)
    assert (await session.locks.get(_NAME)).holder == "ops/b"


async def test_a_cancelled_request_holds_nothing(session: Any) -> None:
    a, b, c = await members(session)
    token = (await a.locks.try_acquire(_NAME)).token
    first, second = new_id(), new_id()
    await b.locks.try_acquire(_NAME, request_id=first, wait=_MINUTE)
    await c.locks.try_acquire(_NAME, request_id=second, wait=_MINUTE)
    assert not await a.locks.cancel_wait(first)  # another's
    await a.locks.release(_NAME, token)
    assert await b.locks.cancel_wait(first)  # granted meanwhile: it goes on to the next
    assert not await b.locks.cancel_wait(first)
    held = await session.locks.get(_NAME)
    assert (held.holder, held.token) == ("ops/c", 3)
    third = new_id()
    await b.locks.try_acquire(_NAME, request_id=third, wait=_MINUTE)
    assert await b.locks.cancel_wait(third)
    assert (await session.locks.get(_NAME)).waiting == 0


async def test_only_the_owner_releases_and_renews(session: Any) -> None:
    a, b = await members(session, 2)
    token = (await a.locks.try_acquire(_NAME)).token
    for call in (
        b.locks.release(_NAME, token),
        a.locks.release(_NAME, token + 1),
        b.locks.renew(_NAME, token),
        a.locks.release("unknown", token),
        a.locks.require("unknown", token),
    ):
        with pytest.raises(LeaseLost):
            await call
    await a.locks.require(_NAME, token)
    await a.locks.release(_NAME, token)
    await a.locks.release(_NAME, token)  # a repetition
    with pytest.raises(LeaseLost):
        await a.locks.require(_NAME, token)


async def test_two_releases_at_once_grant_once(session: Any, db: Any, connect: Any, blocked: Any) -> None:
    a, b, c = await members(session)
    token = (await a.locks.try_acquire(_NAME)).token
    for agent in (b, c):
        await agent.locks.try_acquire(_NAME, request_id=new_id(), wait=_MINUTE)
    first, second = await connect(), await connect()
    leading = first.transaction()
    await leading.start()
    await first.execute(_RELEASE, session.id, _NAME, a.id, token)
    waiting = asyncio.create_task(second.execute(_RELEASE, session.id, _NAME, a.id, token))
    await blocked(second.get_server_pid())
    await leading.commit()
    await waiting
    held = await session.locks.get(_NAME)
    assert (held.holder, held.token, held.waiting) == ("ops/b", 2, 1)
    assert [t for t, _, _ in await events(db, session)].count("released") == 1


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read", "serializable"])
async def test_two_first_requests_at_once(session: Any, connect: Any, blocked: Any, isolation: str) -> None:
    a, b = await members(session, 2)
    first, second = await connect(), await connect()
    mine, theirs = await lease(first), await lease(second)
    leading, following = first.transaction(isolation=isolation), second.transaction(isolation=isolation)
    await leading.start()
    await following.start()
    await second.fetchval("SELECT count(*) FROM blackboard.locks")
    assert await first.fetchval(_ACQUIRE, session.id, _NAME, a.id, mine, new_id(), None, _MINUTE) == 1
    asked = (_ACQUIRE, session.id, _NAME, b.id, theirs, new_id(), None, _MINUTE)
    waiting = asyncio.create_task(second.fetchval(*asked))
    await blocked(second.get_server_pid())
    await leading.commit()
    if isolation == "read_committed":
        assert await waiting is None
        await following.commit()
    else:
        with pytest.raises(asyncpg.SerializationError):
            await waiting
        await following.rollback()
        assert await second.fetchval(*asked) is None
    held = await session.locks.get(_NAME)
    assert (held.holder, held.waiting) == ("ops/a", 1)


async def test_a_guarded_transaction_keeps_the_lock_from_the_next_holder(
    session: Any, db: Any, connect: Any, blocked: Any
) -> None:
    a, b = await members(session, 2)
    token = (await a.locks.try_acquire(_NAME, ttl=_MINUTE)).token
    writer, taker = await connect(), await connect()
    theirs = await lease(taker)
    writing = writer.transaction()
    await writing.start()
    await writer.execute("SELECT blackboard.require_lock($1, $2, $3)", session.id, _NAME, token)
    asked = (session.id, _NAME, b.id, theirs, new_id(), None, None)
    taking = asyncio.create_task(taker.fetchval(_ACQUIRE, *asked))
    await blocked(taker.get_server_pid())
    await writing.commit()
    assert await taking is None


async def test_grants_commit_synchronously(session: Any, db: Any) -> None:
    [a] = await members(session, 1)
    mine = await lease(db)
    await db.execute("SET synchronous_commit = off")
    async with db.transaction():
        await db.execute(_ACQUIRE, session.id, _NAME, a.id, mine, new_id(), None, None)
        assert await db.fetchval("SHOW synchronous_commit") == "on"
    assert await db.fetchval("SHOW synchronous_commit") == "off"


async def test_list_shows_what_is_held_or_waited_for(session: Any) -> None:
    a, b = await members(session, 2)
    for agent, name in ((a, "b"), (a, "a"), (b, "c")):
        await agent.locks.try_acquire(name)
    await b.locks.release("c", 1)
    assert [lock.name for lock in await session.locks.list()] == ["a", "b"]
    assert [lock.name for lock in await session.locks.list(holder=a.id)] == ["a", "b"]
    assert await session.locks.list(holder=b.id) == []
    assert len(await session.locks.list(limit=1)) == 1


async def test_bad_values_are_refused(session: Any, db: Any) -> None:
    [a] = await members(session, 1)
    with pytest.raises(NotFound):
        await session.locks.get(_NAME)
    for field, arguments in {
        "name": {"name": ""},
        "ttl": {"name": _NAME, "ttl": timedelta(0)},
        "wait": {"name": _NAME, "wait": timedelta(seconds=-1)},
        "request_id": {"name": _NAME, "request_id": "no"},
    }.items():
        with pytest.raises(InvalidInput) as caught:
            await a.locks.try_acquire(**arguments)
        assert caught.value.field == field
    await a.locks.try_acquire(_NAME)
    with pytest.raises(InvalidInput):
        await a.locks.renew(_NAME, 1, ttl=timedelta(0))
    with pytest.raises(InvalidInput):
        await session.locks.try_acquire(_NAME)
    await db.execute("SELECT blackboard.leave_session($1, $2)", session.id, a.id)
    with pytest.raises(NotPermitted):
        await a.locks.try_acquire("another")
    await a.locks.release(_NAME, 1)


async def test_the_end_of_a_session_frees_its_locks(session: Any, db: Any) -> None:
    a, b = await members(session, 2)
    await a.locks.try_acquire(_NAME)
    await b.locks.try_acquire(_NAME, wait=_MINUTE)
    await db.execute("SELECT blackboard.end_decisions($1)", session.id)
    await db.execute(
        "UPDATE blackboard.sessions SET status = 'completed', closed_at = blackboard.now() WHERE id = $1", session.id
    )
    assert await session.locks.list() == []
    await a.locks.release(_NAME, 1)
    with pytest.raises(SessionClosed):
        await a.locks.try_acquire(_NAME)
    assert (await events(db, session))[-1][0] == "released"
