"""A process that slept past its lease goes on under a new one with its next call, whichever that is."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import pytest

from blackboard import Agent, Blackboard, Session
from blackboard import sync as blocking
from blackboard.errors import LeaseLost
from blackboard.work.heartbeat import Heartbeat

from .doubtkit import counted

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

VERBS = ("claim", "claim_by_id", "complete_and_claim", "reserve", "try_acquire", "acquire", "join", "join_many")


async def do(verb: str, board: Blackboard, agent: Agent, task_id: UUID, before: Any) -> Any:
    calls: dict[str, Any] = {
        "claim": agent.tasks.claim,
        "claim_by_id": lambda: agent.tasks.claim_by_id(task_id),
        "complete_and_claim": lambda: agent.tasks.complete_and_claim(before),
        "reserve": lambda: agent.budgets.reserve(tokens=1),
        "try_acquire": lambda: agent.locks.try_acquire("file:/x"),
        "acquire": lambda: agent.locks.acquire("file:/x", timeout=timedelta(seconds=5)),
        "join": lambda: agent.session.join("ops/b"),
        "join_many": lambda: board.join([agent.session], "ops/b"),
    }
    return await calls[verb]()


async def lapse(db: Connection, lease_id: UUID) -> None:
    """Nobody has swept what it held."""
    await db.execute("UPDATE blackboard.leases SET lapsed_at = blackboard.now() WHERE id = $1", lease_id)


@pytest.mark.parametrize("verb", VERBS)
async def test_every_verb_that_needs_a_lease_gets_a_new_one(
    board: Blackboard, session: Session, db: Connection, verb: str
) -> None:
    agent = await session.join("ops/a")
    await session.tasks.add("first")
    [before] = await agent.tasks.claim()
    task = await session.tasks.add("t")
    await counted(board)
    old = await board._leases.current()
    await lapse(db, old)
    found = await do(verb, board, agent, task.id, before)
    assert found
    assert (new := await board._leases.current()) != old
    if verb in {"join", "join_many"}:
        assert (await session.agents.get("ops/b")).present
    if verb in {"claim", "claim_by_id", "complete_and_claim"}:
        claimed = found if verb == "claim_by_id" else found[0]
        assert claimed.lease_id == new
        await counted(board)
        await agent.tasks.complete(claimed)


async def test_in_a_callers_transaction_the_lease_stays_lost(
    board: Blackboard, session: Session, db: Connection
) -> None:
    """His transaction is broken, and only he can begin another one."""
    agent = await session.join("ops/a")
    await counted(board)
    old = await board._leases.current()
    await lapse(db, old)
    for verb in ("claim", "try_acquire", "join"):
        transaction = db.transaction()
        await transaction.start()
        with pytest.raises(LeaseLost):
            await do(verb, board, board.bind(db).agent(agent), old, None)
        await transaction.rollback()
    assert await agent.tasks.claim() == []
    assert await board._leases.current() != old


async def test_a_task_that_was_lost_is_no_lost_lease(board: Blackboard, session: Session, db: Connection) -> None:
    agent = await session.join("ops/a")
    await session.tasks.add("t")
    [task] = await agent.tasks.claim()
    await agent.tasks.release(task)
    lease = await board._leases.current()
    with pytest.raises(LeaseLost):
        await agent.tasks.complete_and_claim(task, "late")
    assert await board._leases.current() == lease
    assert [late.result for late in await session.tasks.late_results(task.id)] == ["late"]


def test_the_blocking_client_too(database_url: str) -> None:
    import psycopg

    with blocking.Blackboard.open(database_url) as board, psycopg.connect(database_url, autocommit=True) as db:
        session = board.start("s")
        agent = session.join("ops/a")
        task = session.tasks.add("t")
        for call in (
            lambda: agent.tasks.claim_by_id(task.id),
            lambda: agent.locks.try_acquire("file:/x"),
            lambda: board.join([session], "ops/b"),
            lambda: session.join("ops/c"),
        ):
            lease = board._leases.current()
            db.execute("UPDATE blackboard.leases SET lapsed_at = blackboard.now() WHERE id = %s", [lease])
            assert call()
            assert board._leases.current() != lease


async def test_watchers_are_told_even_if_the_caller_gives_up_meanwhile(
    board: Blackboard, session: Session, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[UUID] = []

    class Watcher:
        def on_lost(self, lease_id: UUID) -> None:
            told.append(lease_id)

    agent = await session.join("ops/a")
    await counted(board)
    old = await board._leases.current()
    leave = board._leases.watch(Watcher(), "w/1")
    stopping, go_on = asyncio.Event(), threading.Event()
    loop, stop = asyncio.get_running_loop(), Heartbeat.stop

    def slow(self: Heartbeat) -> None:
        # As with a server that hangs.
        loop.call_soon_threadsafe(stopping.set)
        go_on.wait(20)
        stop(self)

    monkeypatch.setattr(Heartbeat, "stop", slow)
    await lapse(db, old)
    claiming = asyncio.create_task(agent.tasks.claim())
    await stopping.wait()
    claiming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await claiming
    go_on.set()
    monkeypatch.undo()
    assert await agent.tasks.claim() == []
    assert told == [old]
    leave()
