"""The connections of a worker's own: what it claims, writes and commits never queues behind what handlers ask."""

from __future__ import annotations

from time import monotonic
from typing import Any

from ..store.asyncpg_executor import AsyncpgConnectionExecutor, AsyncpgExecutor
from . import answers

__all__ = ["Line"]


class _LineConnection(AsyncpgConnectionExecutor):
    async def command(self, sql: str) -> str:
        async with answers.in_time(answers.COMMIT_SECONDS):
            return await super().command(sql)

    def _rows_of(self, records: list[Any]) -> list[Any]:
        # As they are: a dict of each would cost as much again as its decoding.
        return records


class Line(AsyncpgExecutor):
    """One connection of a worker, kept for one purpose; reconnects by itself."""

    connection_type = _LineConnection

    def __init__(self, url: str, name: str, size: int = 1) -> None:
        super().__init__(url, pool_size=size, application_name=name)

    async def renew(self) -> None:
        """What comes next goes over new connections: they know of no floors, unless a pooler gives them an old one."""
        await self._close_idle(monotonic())
