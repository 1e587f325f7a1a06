"""A bounded, seeded load on the orders service: what its users do, mistakes included."""

from __future__ import annotations

import asyncio
import json
import random

from .service.http import send

__all__ = ["Load"]

KNOWN_ORDERS = 43_200
MAX_OUTSTANDING = 48


class Load:
    """Requests that arrive at random moments, ``per_second`` of them on average, until :meth:`stop`.

    Arrivals do not wait for answers (users do not know that the service is slow), but no more than
    ``MAX_OUTSTANDING`` are under way at once: what comes on top of that is not sent.
    """

    def __init__(self, port: int, per_second: float, missing_share: float, seed: int) -> None:
        self._port = port
        self._per_second = per_second
        self._missing_share = missing_share
        self._random = random.Random(seed)
        self._running: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self.sent = 0
        self.refused = 0

    def start(self) -> None:
        """Requests begin to arrive."""
        self._task = asyncio.create_task(self._arrive())

    async def stop(self) -> None:
        """No more requests arrive, and those under way have ended."""
        if self._task is not None:
            self._task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _arrive(self) -> None:
        while True:
            await asyncio.sleep(self._random.expovariate(self._per_second))
            if len(self._running) < MAX_OUTSTANDING:
                task = asyncio.create_task(self._request(*self._draw()))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    def _draw(self) -> tuple[str, str, bytes]:
        draw = self._random.random()
        if draw < self._missing_share:
            return "GET", f"/orders/{self._random.randint(10_000_000, 99_999_999)}", b""
        if draw < 0.60:
            return "GET", f"/orders/{self._random.randint(1, KNOWN_ORDERS)}", b""
        if draw < 0.75:
            return "GET", f"/report?day={self._random.randint(1, 59)}", b""
        quantity = self._random.randint(1, 5)
        if draw > 0.99:
            quantity = 0  # refused by the database's CHECK: the client's mistake, 422
        elif draw > 0.985:
            quantity = 4_200_000_000  # does not fit an integer: a bug of every release, 500
        return (
            "POST",
            "/orders",
            json.dumps({"product_id": self._random.randint(1, 1600), "quantity": quantity}).encode(),
        )

    async def _request(self, method: str, target: str, body: bytes) -> None:
        self.sent += 1
        try:
            await send(self._port, method, target, body)
        except (OSError, asyncio.IncompleteReadError):
            self.refused += 1  # the service is just being replaced
