"""A worker looks after the schedules of its sessions."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TypeAlias

import asyncpg
import pytest

from blackboard import Agent, Blackboard, Session, TaskContext, Worker
from blackboard.errors import NotPermitted
from blackboard.repository.schedules import Scheduler

from .conftest import Clock

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


def worker_of(board: Blackboard, session: Session, done: asyncio.Queue[str], agent_id: str = "w") -> Worker:
    worker = Worker(board, session, agent_id=agent_id, poll_interval=timedelta(seconds=60))

    @worker.handler("nightly")
    async def nightly(ctx: TaskContext) -> None:
        done.put_nowait(str(ctx.task.id))

    return worker


async def test_workers_fire_what_is_due_once(board: Blackboard, session: Session, db: Connection) -> None:
    done: asyncio.Queue[str] = asyncio.Queue()
    await session.schedules.add("daily", "@daily", "nightly")
    async with worker_of(board, session, done, "one"), worker_of(board, session, done, "two"):
        await db.execute("UPDATE blackboard.schedules SET next_at = blackboard.now() - interval '1 second'")
        assert await asyncio.wait_for(done.get(), 20)
        counts = await session.tasks.count()
    assert sum(counts.values()) == 1
    assert done.empty()


async def test_a_worker_hears_of_a_schedule_that_is_added_later(
    steady: Session, board: Blackboard, clock: Clock
) -> None:
    done: asyncio.Queue[str] = asyncio.Queue()
    async with worker_of(board, steady, done):
        await asyncio.sleep(0)
        await steady.schedules.add("daily", "@daily", "nightly")
        await clock.advance(timedelta(days=1))
        await steady.schedules.add("another", "@yearly", "nightly")  # a hint: it looks at the clock again
        assert await asyncio.wait_for(done.get(), 20)


async def test_a_drain_fires_nothing(board: Blackboard, session: Session, db: Connection) -> None:
    done: asyncio.Queue[str] = asyncio.Queue()
    await session.schedules.add("daily", "@daily", "nightly")
    await db.execute("UPDATE blackboard.schedules SET next_at = blackboard.now() - interval '1 second'")
    await worker_of(board, session, done).drain()
    assert done.empty()
    assert await session.tasks.count() == {}


async def test_a_worker_that_must_not_fire_does_its_tasks(
    board: Blackboard, session: Session, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = asyncio.Event()

    async def refused(*_: object, **__: object) -> None:
        tried.set()
        raise NotPermitted("no")

    monkeypatch.setattr(Scheduler, "fire_due", refused)
    done: asyncio.Queue[str] = asyncio.Queue()
    agent: Agent = await session.join("adder")
    async with worker_of(board, session, done):
        await tried.wait()
        await agent.tasks.add("nightly")
        assert await asyncio.wait_for(done.get(), 20)
    assert "schedules are not looked after here any more: no" in caplog.text
