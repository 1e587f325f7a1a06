"""What doing nothing costs: 500 idle agents that wait for tasks, their leases kept, in % of one core."""

from __future__ import annotations

import asyncio

from .peers import OURS
from .run import Run

PART = "idle"


async def run(run: Run) -> None:
    """In one process, and spread over ten."""
    seconds = run.seconds(60)
    for processes in (1, 10):
        async with run.arenas([OURS], processes=processes) as arenas:
            for arena, players in arenas.values():
                each = max(1, int(500 * min(1.0, run.scale * 5)) // processes)
                for player in players:
                    await player.do("idle_agents", agents=each, seconds=seconds + 60)
                await asyncio.sleep(min(5.0, seconds))
                with arena.clock() as clock:
                    await asyncio.sleep(seconds)
                for player in players:
                    await player.do("end_idle")
            case = f"{each * processes} agents in {processes} process{'es' if processes > 1 else ''}"
            for what, used in (("PostgreSQL", clock.server), ("clients", clock.client)):
                run.report.add(
                    PART, f"{case}, {what}", OURS.name, used / clock.seconds * 100, "% of a core", higher=False
                )
            total = (clock.server + clock.client) / clock.seconds * 100
            run.report.add(PART, f"{case}, together", OURS.name, total, "% of a core", higher=False)
