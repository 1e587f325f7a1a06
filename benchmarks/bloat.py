"""No cliff: sustained add and drain, alone and beside transactions that keep dead rows from being removed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from itertools import pairwise
from time import monotonic
from typing import Any

import asyncpg

from .peers import OURS
from .run import Run
from .stage import Arena, PlayerError

PART = "bloat"
CASES = ("alone", "held snapshot", "idle writer here", "idle writer in another database")


async def run(run: Run) -> None:
    """The last sixth of the time against the first; the peers only where they fall."""
    seconds = run.seconds(60)
    for name in CASES:
        for contestant in run.contestants:
            if contestant.program != OURS.program and name not in {"alone", "held snapshot"}:
                continue
            async with run.arenas([contestant]) as arenas:
                for who, (arena, [player]) in arenas.items():
                    try:
                        async with _beside(run, arena, name):
                            rates = await _sustained(run, player, seconds)
                    except PlayerError as error:
                        run.report.fail(f"{PART}: {error}")
                        continue
                    sixth = max(1, len(rates) // 6)
                    first, last = sum(rates[:sixth]) / sixth, sum(rates[-sixth:]) / sixth
                    run.report.add(PART, f"{name}: first {seconds / 6:.0f} s of {seconds:.0f}", who, first, "tasks/s")
                    run.report.add(PART, f"{name}: last {seconds / 6:.0f} s", who, last, "tasks/s")
                    run.report.add(PART, f"{name}: last over first", who, last / first if first else 0.0, "")


async def _sustained(run: Run, player: Any, seconds: float) -> list[float]:
    """Tasks handled in each second."""
    await run.stage.quiet()
    await player.do("start", tuned=True)
    await player.do("feed", size=500, ahead=5000)
    counts: list[tuple[float, int]] = []
    until = monotonic() + seconds + 0.5
    await asyncio.sleep(0.5)
    while monotonic() < until:
        counts.append((monotonic(), (await player.do("count"))["handled"]))
        await asyncio.sleep(1)
    await player.do("unfeed")
    await player.do("stop")
    return [(n1 - n0) / (t1 - t0) for (t0, n0), (t1, n1) in pairwise(counts)]


@contextlib.asynccontextmanager
async def _beside(run: Run, arena: Arena, name: str) -> AsyncGenerator[None]:
    """Beside a transaction of that kind, which does nothing more."""
    if name == "alone":
        yield
        return
    elsewhere = name == "idle writer in another database"
    connection = await asyncpg.connect(run.stage.server.url() if elsewhere else arena.url)
    try:
        if name == "held snapshot":
            await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class")
        else:
            await connection.execute("BEGIN; CREATE TABLE idle_writer (n integer); INSERT INTO idle_writer VALUES (1)")
        yield
        await connection.execute("ROLLBACK")
    finally:
        connection.terminate()
