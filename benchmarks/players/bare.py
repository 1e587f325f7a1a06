"""The ceiling: the same steps on a bare table with one index, in plain SQL, with nothing around them."""

# Every player is given the options of all.
# ruff: noqa: ARG002

from __future__ import annotations

import asyncio
import contextlib
from time import monotonic
from typing import Any

import asyncpg

from benchmarks.players.protocol import Player, main

_SCHEMA = """
CREATE SCHEMA bare;
CREATE TABLE bare.jobs (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, status smallint NOT NULL DEFAULT 0,
                        attempt integer NOT NULL DEFAULT 0, parameters text NOT NULL);
CREATE INDEX jobs_ready ON bare.jobs (id) WHERE status = 0;
"""
_PICK = """
WITH picked AS MATERIALIZED (
    SELECT id FROM bare.jobs WHERE status = 0 ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED)
UPDATE bare.jobs j SET status = 1, attempt = attempt + 1 FROM picked p WHERE j.id = p.id
RETURNING j.id, j.parameters
"""
_DONE = "UPDATE bare.jobs SET status = 2 WHERE id = ANY ($1::bigint[])"
# One statement: the end of the last one, and the claim of the next.
_NEXT = """
WITH ended AS (UPDATE bare.jobs SET status = 2 WHERE id = $1),
picked AS MATERIALIZED (SELECT id FROM bare.jobs WHERE status = 0 ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
UPDATE bare.jobs j SET status = 1, attempt = attempt + 1 FROM picked p WHERE j.id = p.id
RETURNING j.id, j.parameters
"""


class Bare(Player):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._tasks: list[asyncio.Task[None]] = []

    async def setup(self, **options: Any) -> None:
        connection = await asyncpg.connect(self.url)
        await connection.execute(_SCHEMA)
        await connection.close()

    async def open(self, **options: Any) -> None:
        self._connection = await asyncpg.connect(self.url)
        self._pool = await asyncpg.create_pool(self.url, min_size=0, max_size=32)

    async def add_one(self, number: int) -> None:
        await self._connection.execute("INSERT INTO bare.jobs (parameters) VALUES ($1)", f'{{"n": {number}}}')

    async def add_batch(self, size: int) -> None:
        await self._connection.execute(
            "INSERT INTO bare.jobs (parameters) SELECT x FROM unnest($1::text[]) x", ['{"n": -1}'] * size
        )

    async def start(self, size: int = 1000, **options: Any) -> None:
        self._tasks.append(asyncio.create_task(self._loop(size)))

    async def _loop(self, size: int) -> None:
        claims, writes = await asyncpg.connect(self.url), await asyncpg.connect(self.url)
        with contextlib.closing(_Terminated(claims, writes)):
            pick, done = await claims.prepare(_PICK), await writes.prepare(_DONE)
            ending: asyncio.Future[Any] | None = None
            while True:
                rows = await pick.fetch(size)
                for _ in rows:
                    self.handle(None)
                if ending is not None:
                    await ending
                    ending = None
                if rows:
                    ending = asyncio.ensure_future(done.fetch([row["id"] for row in rows]))
                else:
                    await asyncio.sleep(0.001)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks = []

    async def do_one_by_one(self, n: int, fused: bool) -> dict[str, float]:
        pick, done, following = [await self._connection.prepare(sql) for sql in (_PICK, _DONE, _NEXT)]
        began = monotonic()
        row = await pick.fetchrow(1)
        count = 0
        while row is not None and count < n:
            count += 1
            if fused and count < n:
                row = await following.fetchrow(row["id"])
            else:
                await done.fetch([row["id"]])
                row = await pick.fetchrow(1) if count < n else None
        return {"seconds": monotonic() - began, "done": count}

    async def do_adders(self, n: int, concurrency: int) -> dict[str, float]:
        async def one() -> None:
            async with self._pool.acquire() as connection:
                insert = await connection.prepare("INSERT INTO bare.jobs (parameters) VALUES ($1)")
                for _ in range(n // concurrency):
                    await insert.fetch("{}")

        began = monotonic()
        await asyncio.gather(*(one() for _ in range(concurrency)))
        return {"seconds": monotonic() - began}


class _Terminated:
    def __init__(self, *connections: asyncpg.Connection[Any]) -> None:
        self._connections = connections

    def close(self) -> None:
        for connection in self._connections:
            connection.terminate()


if __name__ == "__main__":
    main(Bare)
