"""What every part is given: sizes, the stage, the contestants and the report."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from .machine import Clock
from .peers import Contestant
from .report import Report
from .stage import Arena, PlayerProcess, Stage


@dataclass
class Run:
    """One run of the benchmark.

    Attributes:
        stage: the server.
        report: where figures go.
        contestants: ours, the bare table, and the peers that are there.
        rounds: how often each figure is taken, the contestants in turn.
        scale: 1 for the sizes of the targets; less for a look.
    """

    stage: Stage
    report: Report
    contestants: Sequence[Contestant]
    rounds: int
    scale: float

    def size(self, full: int, least: int = 1000) -> int:
        """A number of tasks, in thousands."""
        return max(least, int(full * self.scale) // 1000 * 1000)

    def seconds(self, full: float) -> float:
        """A duration."""
        return max(2.0, full * self.scale)

    @contextlib.asynccontextmanager
    async def arenas(
        self, contestants: Sequence[Contestant], processes: int = 1, **options: object
    ) -> AsyncGenerator[dict[str, tuple[Arena, list[PlayerProcess]]]]:
        """A database and processes for each of them, all at once, so that they can be measured in turn."""
        async with contextlib.AsyncExitStack() as stack:
            found: dict[str, tuple[Arena, list[PlayerProcess]]] = {}
            for contestant in contestants:
                try:
                    arena = await stack.enter_async_context(self.stage.arena(contestant))
                    found[contestant.name] = (arena, [await arena.player(**options) for _ in range(processes)])
                except Exception as error:
                    self.report.fail(f"{contestant.name}: {error}")
            yield found

    def rate(self, part: str, case: str, who: str, n: int, clock: Clock, *, note: str = "") -> None:
        """A rate, and what CPU each task cost where."""
        others = clock.others / clock.seconds
        self.report.add(part, case, who, n / clock.seconds, "tasks/s", others=others, note=note)
        self.report.add(
            part, case + ", CPU of the server", who, clock.server / n * 1e6, "µs/task", higher=False, others=others
        )
        self.report.add(
            part, case + ", CPU of the clients", who, clock.client / n * 1e6, "µs/task", higher=False, others=others
        )
