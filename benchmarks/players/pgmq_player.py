"""pgmq, installed from the SQL in its Python client. It has no worker: read, run, delete is ours.

Tuned: 1 000 a read.
"""

# Every player is given the options of all.
# ruff: noqa: ARG002

from __future__ import annotations

import asyncio
import importlib.resources
from typing import Any

import asyncpg
from protocol import Player, main


class Pgmq(Player):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._running: list[asyncio.Task[None]] = []

    async def setup(self, **options: Any) -> None:
        await self.open()
        await self._connection.execute((importlib.resources.files("pgmq") / "sql" / "pgmq.sql").read_text())
        await self._connection.execute("SELECT pgmq.create('bench')")
        if options.get("notify"):
            # Off by default; 0: no notification is held back.
            await self._connection.execute("SELECT pgmq.enable_notify_insert('bench', 0)")

    async def open(self, **options: Any) -> None:
        self._connection = await asyncpg.connect(self.url)

    async def add_one(self, number: int) -> None:
        await self._connection.fetchval("SELECT pgmq.send('bench', $1::jsonb)", str(number))

    async def add_batch(self, size: int) -> None:
        await self._connection.fetch("SELECT pgmq.send_batch('bench', $1::jsonb[])", ["-1"] * size)

    async def start(self, tuned: bool = False, copies: int = 1, ping: bool = False, **options: Any) -> None:
        for _ in range(copies * (2 if tuned and not ping else 1)):
            self._running.append(asyncio.create_task(self._loop(1000 if tuned else 1, listen=ping)))

    async def _loop(self, size: int, *, listen: bool) -> None:
        connection = await asyncpg.connect(self.url)
        woken = asyncio.Event()
        if listen:
            await connection.add_listener("pgmq.q_bench.INSERT", lambda *_: woken.set())
        try:
            while True:
                rows = await connection.fetch("SELECT msg_id, message FROM pgmq.read('bench', 60, $1)", size)
                for row in rows:
                    self.handle(int(row["message"]))
                if rows:
                    await connection.fetch("SELECT pgmq.delete('bench', $1::bigint[])", [row["msg_id"] for row in rows])
                elif listen:
                    await woken.wait()
                    woken.clear()
                else:
                    await asyncio.sleep(0.01)
        finally:
            connection.terminate()

    async def stop(self) -> None:
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)
        self._running = []


if __name__ == "__main__":
    import uvloop

    uvloop.install()
    main(Pgmq)
