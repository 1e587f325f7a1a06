"""Ballots at the same instant: closed once, at every isolation level."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import asyncpg
import pytest


async def members(session: Any, count: int = 3, **options: Any) -> list[Any]:
    return [await session.join(f"ops/{name}", **options) for name in "abcdefgh"[:count]]


async def events(db: Any, session: Any, *types: str) -> list[tuple[str, str, dict[str, Any]]]:
    rows = await db.fetch(
        "SELECT type, actor, data FROM blackboard.events WHERE session_id = $1 AND type = ANY ($2) ORDER BY seq",
        session.id,
        list(types),
    )
    return [(row["type"], row["actor"], json.loads(row["data"])) for row in rows]


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read", "serializable"])
async def test_two_last_ballots_at_once_close_it_once(
    session: Any, db: Any, connect: Any, blocked: Any, isolation: str
) -> None:
    a, b = await members(session, 2)
    proposal = await a.proposals.open("?", rule="unanimous")
    first, second = await connect(), await connect()
    vote = "SELECT status FROM blackboard.vote($1, $2, $3, 'yes')"
    leading = first.transaction(isolation=isolation)
    await leading.start()
    assert await first.fetchval(vote, session.id, proposal.id, a.id) == "open"
    following = second.transaction(isolation=isolation)
    await following.start()
    assert await second.fetchval("SELECT count(*) FROM blackboard.votes WHERE session_id = $1", session.id) == 0
    waiting = asyncio.create_task(second.fetchval(vote, session.id, proposal.id, b.id))
    await blocked(second.get_server_pid())
    await leading.commit()
    if isolation == "read_committed":
        assert await waiting == "accepted"
        await following.commit()
    else:
        with pytest.raises(asyncpg.SerializationError):
            await waiting
        await following.rollback()
        async with second.transaction(isolation=isolation):
            assert await second.fetchval(vote, session.id, proposal.id, b.id) == "accepted"
    assert len(await events(db, session, "proposal.accepted")) == 1
    assert len(await events(db, session, "vote.cast")) == 2


async def test_many_ballots_at_once(session: Any, db: Any) -> None:
    agents = await members(session, 8)
    proposal = await agents[0].proposals.open("?", rule="unanimous")
    await asyncio.gather(*(agent.proposals.vote(proposal.id, "yes") for agent in agents))
    assert (await session.proposals.get(proposal.id)).status == "accepted"
    assert len(await events(db, session, "proposal.accepted")) == 1
    assert len(await events(db, session, "vote.cast")) == 8


async def test_a_ballot_waits_for_the_withdrawal_before_it(session: Any, db: Any, connect: Any, blocked: Any) -> None:
    a, b = await members(session, 2)
    proposal = await a.proposals.open("?")
    other = await connect()
    leading = db.transaction()
    await leading.start()
    await db.execute("SELECT blackboard.withdraw_proposal($1, $2, $3)", session.id, proposal.id, a.id)
    waiting = asyncio.create_task(
        other.execute("SELECT blackboard.vote($1, $2, $3, 'yes')", session.id, proposal.id, b.id)
    )
    await blocked(other.get_server_pid())
    await leading.commit()
    with pytest.raises(asyncpg.PostgresError) as caught:
        await waiting
    assert caught.value.sqlstate == "BB003"
