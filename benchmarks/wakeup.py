"""Wake-up: from the commit of an add to the start of its handler, on an idle worker, and with 50 idle ones."""

from __future__ import annotations

import asyncio

from .report import percentile
from .run import Run
from .stage import PlayerError

PART = "wake-up"


async def run(run: Run) -> None:
    """The producer is one process, the workers another."""
    pings = max(20, int(300 * run.scale))
    contestants = [one for one in run.contestants if one.name != "bare table"]
    for copies in (1, 50):
        async with run.arenas(contestants, processes=2, notify=True) as arenas:
            for _ in range(run.rounds):
                for name, (_, [producer, workers]) in list(arenas.items()):
                    try:
                        await workers.do("start", tuned=True, ping=True, copies=copies)
                        # The first ones find things being set up.
                        await producer.do("ping", n=5, gap=0.2)
                        answer = await producer.do("ping", n=pings, gap=0.03)
                        for _ in range(100):
                            starts = {int(number): at for number, at in (await workers.do("starts"))["starts"]}
                            if len(starts) >= pings:
                                break
                            await asyncio.sleep(0.02)
                        await workers.do("stop")
                    except PlayerError as error:
                        run.report.fail(f"{PART}: {error}")
                        del arenas[name]
                        continue
                    waits = [
                        (starts[number] - began, starts[number] - committed)
                        for number, began, committed in answer["pings"]
                        if number in starts
                    ]
                    if len(waits) < pings:
                        run.report.fail(f"{PART}: {name} answered {len(waits)} of {pings}")
                        continue
                    workers_text = "an idle worker" if copies == 1 else f"{copies} idle workers"
                    for what, at in (("from the call", 0), ("from the commit", 1)):
                        for share in (0.5, 0.95, 0.99):
                            value = max(0.0, percentile([wait[at] for wait in waits], share)) * 1000
                            case = f"{workers_text}, {what}, p{share * 100:.0f}"
                            run.report.add(PART, case, name, value, "ms", higher=False)
