"""A worker of several sessions whose database lies behind PgBouncer in transaction mode."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from blackboard import Blackboard, NewTask, TaskContext, Worker
from blackboard.store import migrations

from .serverfixture import PrivateServer
from .test_pgbouncer import Pooler
from .test_pgbouncer import pytestmark as _marks

pytestmark = _marks


async def test_a_worker_of_many_sessions_behind_a_pooler() -> None:
    server = PrivateServer()
    try:
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(migrations.upgrade, server.url())
        pooler = await asyncio.to_thread(Pooler, server)
        try:
            async with Blackboard.open(pooler.url) as board:
                sessions = [await board.start(f"pooled-{n}") for n in range(4)]
                await sessions[3].limits.set("two", max_running=2)
                for session in sessions:
                    first = await session.tasks.add("t")
                    await session.tasks.add("t", depends_on=[first.id])
                    await session.tasks.add_many([NewTask(type="t") for _ in range(20)])
                worker = Worker(board, sessions, agent_id="w", poll_interval=timedelta(milliseconds=50))

                @worker.handler("t")
                async def handle(ctx: TaskContext) -> str:
                    return ctx.session.name

                counts = await worker.drain()
                assert (counts.completed, counts.refused, counts.lost) == (88, 0, 0)
                for session in sessions:
                    assert {task.result for task in await session.tasks.list()} == {session.name}
        finally:
            await asyncio.to_thread(pooler.stop)
    finally:
        server.destroy()
