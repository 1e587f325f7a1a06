"""A bounded pool of PostgreSQL connections that counts what it lends."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

import asyncpg

__all__ = ["Connection", "Pool", "PoolTimeout"]

Connection = Any
"""An asyncpg connection; asyncpg's own types are generic over record classes that this service never uses."""


class PoolTimeout(Exception):
    """No connection became free in time."""


class Pool:
    """At most ``max_size`` connections, opened when needed, closed again after ``idle_seconds`` without use."""

    def __init__(
        self, database: dict[str, Any], *, max_size: int, acquire_seconds: float, idle_seconds: float = 10.0
    ) -> None:
        self._database = database
        self.max_size = max_size
        self._acquire_seconds = acquire_seconds
        self._idle_seconds = idle_seconds
        self._idle: list[tuple[float, Connection]] = []
        self._waiters: deque[asyncio.Future[Connection]] = deque()
        self._open = 0

    @property
    def in_use(self) -> int:
        """Connections lent out at this moment."""
        return self._open - len(self._idle)

    @property
    def size(self) -> int:
        """Connections that are open, lent out or not."""
        return self._open

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection at this moment."""
        return sum(1 for waiter in self._waiters if not waiter.done())

    async def acquire(self) -> Connection:
        """A connection that is the caller's until it calls :meth:`release`.

        Raises:
            PoolTimeout: all were lent out for as long as a request may wait.
        """
        while self._idle:
            _, connection = self._idle.pop()
            if not connection.is_closed():
                return connection
            self._open -= 1
        if self._open < self.max_size:
            self._open += 1  # before the await, so that two callers cannot both take the last place
            try:
                return await asyncpg.connect(**self._database)
            except BaseException:
                self._open -= 1
                raise
        waiter: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await asyncio.wait_for(waiter, self._acquire_seconds)
        except TimeoutError:
            raise PoolTimeout(
                f"no connection within {self._acquire_seconds:.1f}s "
                f"({self.in_use} of {self.max_size} in use, {self.waiting} waiting)"
            ) from None
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def release(self, connection: Connection) -> None:
        """The connection is free for the next request, the longest waiting one first."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        self._idle.append((time.monotonic(), connection))

    async def close_idle(self) -> None:
        """Connections that nobody used for ``idle_seconds`` are closed; one stays for the next request."""
        limit = time.monotonic() - self._idle_seconds
        stale = [connection for used_at, connection in self._idle[:-1] if used_at < limit]
        self._idle = [(used_at, connection) for used_at, connection in self._idle if connection not in stale]
        self._open -= len(stale)
        for connection in stale:
            await connection.close()

    async def close(self) -> None:
        """Every connection that was given back is closed."""
        idle, self._idle = self._idle, []
        self._open -= len(idle)
        for _, connection in idle:
            await connection.close()
