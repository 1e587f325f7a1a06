"""What every contestant's process speaks: one JSON object a line in, one out.

Needs nothing but the standard library: the peers run it in an environment of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import traceback
from time import monotonic
from typing import Any


class Player:
    """A queue to measure. Subclasses say how it is set up, filled and emptied; the rest is here."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.handled = 0
        self.added = 0
        self.starts: dict[int, float] = {}
        self._feeder: asyncio.Task[None] | None = None

    def handle(self, number: object) -> None:
        """Every handler does this and nothing else."""
        self.handled += 1
        if isinstance(number, int) and number >= 0:
            self.starts[number] = monotonic()

    # What a subclass has to offer ------------------------------------------------------------------------------

    async def setup(self, **options: Any) -> None:
        """The schema is there."""
        raise NotImplementedError

    async def open(self, **options: Any) -> None:
        """Connected."""
        raise NotImplementedError

    async def add_one(self, number: int) -> None:
        """One task, by one call, committed."""
        raise NotImplementedError

    async def add_batch(self, size: int) -> None:
        """Many tasks, by one call, committed."""
        raise NotImplementedError

    async def start(self, **options: Any) -> None:
        """Workers run."""
        raise NotImplementedError

    async def stop(self) -> None:
        """No worker runs."""
        raise NotImplementedError

    async def close(self) -> None:
        """Disconnected."""
        await self.stop()

    # Commands --------------------------------------------------------------------------------------------------

    async def do_setup(self, **options: Any) -> None:
        await self.setup(**options)

    async def do_open(self, **options: Any) -> None:
        await self.open(**options)

    async def do_fill(self, n: int) -> None:
        """Added, whatever it takes."""
        for done in range(0, n, 1000):
            await self.add_batch(min(1000, n - done))

    async def do_add(self, n: int) -> dict[str, float]:
        began = monotonic()
        for _ in range(n):
            await self.add_one(-1)
        return {"seconds": monotonic() - began}

    async def do_batch(self, n: int, size: int) -> dict[str, float]:
        began = monotonic()
        for _ in range(0, n, size):
            await self.add_batch(size)
        return {"seconds": monotonic() - began}

    async def do_adders(self, n: int, concurrency: int) -> dict[str, float]:
        async def one() -> None:
            for _ in range(n // concurrency):
                await self.add_one(-1)

        began = monotonic()
        await asyncio.gather(*(one() for _ in range(concurrency)))
        return {"seconds": monotonic() - began}

    async def do_start(self, **options: Any) -> None:
        self.handled = 0
        self.starts.clear()
        await self.start(**options)

    async def do_stop(self) -> None:
        await self.stop()

    async def do_count(self) -> dict[str, int]:
        return {"handled": self.handled, "added": self.added}

    async def do_starts(self) -> dict[str, list[tuple[int, float]]]:
        return {"starts": list(self.starts.items())}

    async def do_ping(self, n: int, gap: float) -> dict[str, list[tuple[int, float, float]]]:
        """Single adds with pauses: number, when the call began, when it had been committed."""
        pings: list[tuple[int, float, float]] = []
        for number in range(n):
            # Not in step with anything that polls.
            await asyncio.sleep(gap * (0.5 + (number * 0.618) % 1))
            began = monotonic()
            await self.add_one(number)
            pings.append((number, began, monotonic()))
        return {"pings": pings}

    async def do_feed(self, size: int, ahead: int) -> None:
        """Adds without end, never more than ``ahead`` before the handlers of this process."""
        self.added = self.handled

        async def feed() -> None:
            while True:
                if self.added - self.handled < ahead:
                    await self.add_batch(size)
                    self.added += size
                else:
                    await asyncio.sleep(0.001)

        self._feeder = asyncio.create_task(feed())

    async def do_unfeed(self) -> None:
        if self._feeder is not None:
            self._feeder.cancel()
            await asyncio.wait([self._feeder])
            self._feeder = None


def main(kind: type[Player]) -> None:
    """Serves until its input ends, which it does with the process that started it."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(kind))


async def _serve(kind: type[Player]) -> None:
    player = kind(sys.argv[1])
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command = json.loads(line)
        name = command.pop("do")
        try:
            answer = await getattr(player, "do_" + name)(**command) or {}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    await player.do_unfeed()
    await player.close()
