"""A worker whose database lies behind PgBouncer in transaction mode."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from blackboard import Blackboard, NewTask, TaskContext, Worker
from blackboard.store import migrations

from .serverfixture import PrivateServer
from .test_pgbouncer import Pooler
from .test_pgbouncer import pytestmark as _marks

pytestmark = _marks


async def test_a_worker_behind_a_pooler_claims_runs_and_writes() -> None:
    server = PrivateServer()
    try:
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(migrations.upgrade, server.url())
        pooler = await asyncio.to_thread(Pooler, server)
        try:
            async with Blackboard.open(pooler.url) as board:
                session = await board.start("pooled")
                worker = Worker(board, session, agent_id="w", concurrency=2, poll_interval=timedelta(milliseconds=50))

                @worker.handler("t")
                async def handle(ctx: TaskContext) -> int:
                    async with ctx.transaction() as tx:
                        assert await tx.connection.fetchval("SELECT CAST($1 AS integer)", 7) == 7
                        if ctx.parameters["n"] % 2:
                            await tx.complete("in the transaction")
                    return ctx.parameters["n"]

                ids = await session.tasks.add_many([NewTask(type="t", parameters={"n": n}) for n in range(40)])
                assert (await worker.drain()).completed == 40
                assert (await session.tasks.get(ids[1])).result == "in the transaction"
                async with worker:
                    task = await session.tasks.add("t", {"n": 100})
                    assert (await session.tasks.wait(task.id, timedelta(seconds=20))).result == 100
        finally:
            await asyncio.to_thread(pooler.stop)
    finally:
        server.destroy()
