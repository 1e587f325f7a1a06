"""All handles of a bound board write in the caller's transaction, also those that others lead to."""

from __future__ import annotations

from typing import TypeAlias

import asyncpg
import psycopg

from blackboard import Blackboard, Session
from blackboard import sync as blocking

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def test_the_session_of_a_bound_agent_is_bound(board: Blackboard, session: Session, db: Connection) -> None:
    agent = await session.join("ops/a")
    transaction = db.transaction()
    await transaction.start()
    bound = board.bind(db).agent(agent)
    assert (bound.session.id, bound.session.name) == (session.id, session.name)
    await bound.session.tasks.add("by_session")
    await bound.session.update(goal="another")
    await bound.session.join("ops/b")
    assert len(await bound.tasks.list()) == 1
    await transaction.rollback()
    assert await session.tasks.list() == []
    assert (await session.refresh()).goal == "a test"
    assert [one.id for one in await session.agents.list()] == ["ops/a"]
    assert agent.session is session


def test_the_blocking_one_too(database_url: str) -> None:
    with blocking.Blackboard.open(database_url) as board, psycopg.connect(database_url) as db:
        session = board.start("s")
        bound = board.bind(db).agent(session.join("ops/a"))
        bound.session.tasks.add("by_session")
        db.rollback()
        assert session.tasks.list() == []
