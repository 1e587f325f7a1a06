"""PGQueuer. Tuned: two managers of batch 100 on uvloop, and the autovacuum settings that it ships."""

# Every player is given the options of all.
# ruff: noqa: ARG002

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import timedelta
from typing import Any

import asyncpg
from pgqueuer.models import Job
from pgqueuer.qm import QueueManager
from pgqueuer.queries import Queries
from protocol import Player, main


class PgQueuer(Player):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._running: list[tuple[QueueManager, asyncio.Task[None], asyncpg.Connection]] = []

    async def setup(self, **options: Any) -> None:
        await self.open()
        await self._queries.install()
        await self._queries.optimize_autovacuum()

    async def open(self, **options: Any) -> None:
        self._queries = Queries.from_asyncpg_connection(await asyncpg.connect(self.url))

    async def add_one(self, number: int) -> None:
        await self._queries.enqueue("noop", str(number).encode())

    async def add_batch(self, size: int) -> None:
        await self._queries.enqueue(["noop"] * size, [b"-1"] * size, [0] * size)

    async def start(self, tuned: bool = False, copies: int = 1, **options: Any) -> None:
        for _ in range(copies * (2 if tuned else 1)):
            connection = await asyncpg.connect(self.url)
            manager = QueueManager(Queries.from_asyncpg_connection(connection))

            @manager.entrypoint("noop")
            async def noop(job: Job) -> None:
                self.handle(int(job.payload or b"-1"))

            running = manager.run(batch_size=100) if tuned else manager.run()
            self._running.append((manager, asyncio.create_task(running), connection))

    async def stop(self) -> None:
        for manager, _, _ in self._running:
            manager.shutdown.set()
        for _, task, connection in self._running:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(task, timedelta(seconds=10).total_seconds())
            connection.terminate()
        self._running = []


if __name__ == "__main__":
    import uvloop

    uvloop.install()
    logging.disable(logging.WARNING)
    main(PgQueuer)
