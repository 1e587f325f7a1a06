"""Adding: one a call, many a call; and an agent that takes one task at a time."""

from __future__ import annotations

from .run import Run

PART = "adding"


async def run(run: Run) -> None:
    """One process and one connection each."""
    single, batched, one_by_one = run.size(5000), run.size(100_000, 5000), run.size(5000)
    async with run.arenas(run.contestants) as arenas:
        for _ in range(run.rounds):
            for name, (arena, [player]) in arenas.items():
                await run.stage.quiet()
                with arena.clock() as clock:
                    await player.do("add", n=single)
                run.rate(PART, "one a call", name, single, clock)
            for name, (arena, [player]) in arenas.items():
                count = batched // arena.contestant.small.get("batch", 1)
                await run.stage.quiet()
                with arena.clock() as clock:
                    await player.do("batch", n=count, size=1000)
                run.rate(PART, "1 000 a call", name, count, clock)
            for fused in (True, False):
                for name, (arena, [player]) in arenas.items():
                    if arena.contestant.language != "own":
                        continue
                    await run.stage.quiet()
                    with arena.clock() as clock:
                        await player.do("one_by_one", n=one_by_one, fused=fused)
                    case = "one at a time, " + ("fused" if fused else "complete, then claim")
                    run.rate(PART, case, name, one_by_one, clock)
