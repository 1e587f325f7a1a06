"""Procrastinate. Tuned: five jobs at once, finished jobs deleted."""

# Every player is given the options of all.
# ruff: noqa: ARG002

from __future__ import annotations

import asyncio
import logging
from typing import Any

import procrastinate
from protocol import Player, main


class Procrastinate(Player):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._running: list[asyncio.Task[None]] = []
        self._apps: list[procrastinate.App] = []

    def _app(self) -> procrastinate.App:
        app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=self.url))

        @app.task(name="noop")
        async def noop(n: int) -> None:
            self.handle(n)

        return app

    async def setup(self, **options: Any) -> None:
        await self.open()
        await self._own.schema_manager.apply_schema_async()

    async def open(self, **options: Any) -> None:
        self._own = self._app()
        await self._own.open_async()
        self._task = self._own.tasks["noop"]

    async def add_one(self, number: int) -> None:
        await self._task.defer_async(n=number)

    async def add_batch(self, size: int) -> None:
        await self._task.batch_defer_async(*({"n": -1} for _ in range(size)))

    async def start(self, tuned: bool = False, copies: int = 1, **options: Any) -> None:
        settings: dict[str, Any] = {"concurrency": 5, "delete_jobs": "successful"} if tuned else {}
        for _ in range(copies):
            app = self._app()
            await app.open_async()
            self._apps.append(app)
            self._running.append(asyncio.create_task(app.run_worker_async(install_signal_handlers=False, **settings)))

    async def stop(self) -> None:
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)
        for app in self._apps:
            await app.close_async()
        self._running, self._apps = [], []

    async def close(self) -> None:
        await self.stop()
        await self._own.close_async()


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main(Procrastinate)
