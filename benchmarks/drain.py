"""Drain of no-op tasks: through the worker of each queue, one process and two, tuned and as installed."""

from __future__ import annotations

from .run import Run
from .stage import PlayerError

PART = "drain"


async def run(run: Run) -> None:
    """Interleaved; every queue is filled before and empty after."""
    n = run.size(60_000, 4000)
    async with run.arenas(run.contestants, processes=2) as arenas:
        for _ in range(run.rounds):
            for mode, processes in (("tuned", 1), ("default", 1), ("tuned", 2), ("default", 2)):
                for name, (arena, players) in list(arenas.items()):
                    if mode == "default" and (
                        name == "bare table" or (processes == 2 and arena.contestant.language != "own")
                    ):
                        continue
                    # Of the slow ones a part is enough.
                    count = max(5, n // arena.contestant.small.get(mode, 1))
                    try:
                        await players[0].do("fill", n=count)
                        await run.stage.quiet()
                        clock = await arena.drain(count, players[:processes], tuned=mode == "tuned")
                    except PlayerError as error:
                        run.report.fail(f"{PART}: {error}")
                        del arenas[name]
                        continue
                    case = f"{mode}, {processes} process{'es' if processes > 1 else ''}"
                    run.rate(PART, case, name, count, clock, note="" if count == n else f"{count} tasks")
