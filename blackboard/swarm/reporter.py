"""Tells a run's updates, in order: the board's events as they are committed, and what the runner itself sees."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta

from ..board import Session
from ..errors import BlackboardError
from ..models.events import EventPage
from .outcome import Update, UpdateKind

__all__ = ["OnUpdate", "Reporter"]

OnUpdate = Callable[[Update], Awaitable[None] | None]
"""Called with each update; what it raises is logged and changes nothing."""

_log = logging.getLogger(__name__)
_PAUSE_SECONDS = 0.5


class Reporter:
    """One run's."""

    def __init__(self, on_update: OnUpdate | None) -> None:
        """Nothing is told yet; it needs a running loop."""
        self._on_update = on_update
        self._updates: asyncio.Queue[Update | None] = asyncio.Queue()
        self._telling = asyncio.create_task(self._tell())
        self._following: asyncio.Task[None] | None = None
        self._cursor: str | None = None

    def report(self, update: Update) -> None:
        """The update is told, in its turn."""
        self._updates.put_nowait(update)

    def follow(self, session: Session, cursor: str | None) -> None:
        """From now on the session's events after ``cursor`` are told; None begins with the first one."""
        self._cursor = cursor
        self._following = asyncio.create_task(self._follow(session))

    async def finish(self, session: Session | None = None) -> None:
        """All has been told, with ``session`` all of its events too, and nothing more will be."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
            self._following = None
        if session is not None:
            while self._take(await session.events.read(self._cursor)):
                pass
        self._updates.put_nowait(None)
        await self._telling

    async def _tell(self) -> None:
        while (update := await self._updates.get()) is not None:
            if self._on_update is None:
                continue
            try:
                told = self._on_update(update)
                if inspect.isawaitable(told):
                    await told
            except Exception:
                _log.exception("on_update failed")

    async def _follow(self, session: Session) -> None:
        while True:
            try:
                if self._cursor is None:
                    self._take(await session.events.read())
                else:
                    self._take(await session.events.wait(self._cursor, timeout=timedelta(seconds=60)))
            except BlackboardError as error:
                if not error.retryable:
                    raise
                _log.warning("the events could not be read, trying again: %s", error)
                await asyncio.sleep(_PAUSE_SECONDS)

    def _take(self, page: EventPage) -> bool:
        self._cursor = page.cursor
        for event in page.events:
            self.report(Update.now(UpdateKind.EVENT, f"{event.actor}: {event.type}", event=event, agent_id=event.actor))
        return page.more
