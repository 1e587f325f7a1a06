"""Looking after schedules: asleep until the next planned time, awake when one is added."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from time import monotonic
from typing import Any, Protocol
from uuid import UUID

from ..errors import TransientError, Unavailable
from ..models.schedules import Firing
from ..repository.schedules import Scheduler
from ..store.subscription import Subscription

__all__ = ["SchedulerLoop", "run_schedules"]

_log = logging.getLogger(__name__)

_AT_ONCE = 100
_LONGEST_BACKOFF = 30.0
# So long at most hundreds of processes that wake at the same planned time are spread over.
_SPREAD_SECONDS = 0.1


class _Board(Protocol):
    @property
    def schedules(self) -> Scheduler: ...


class SchedulerLoop:
    """Fires what is due until it is stopped; run it in as many processes as you like.

    It goes on through outages of the database: what was planned meanwhile is fired or skipped afterwards, as each
    schedule says.
    """

    def __init__(
        self,
        schedules: Scheduler,
        *,
        sessions: Collection[UUID] | None = None,
        max_poll: timedelta = timedelta(seconds=30),
        on_fired: Callable[[Sequence[Firing]], None] | None = None,
    ) -> None:
        """Nothing runs yet.

        Args:
            schedules: ``board.schedules``.
            sessions: only in these; None means in every active session.
            max_poll: looks again after this time at the latest, should a hint be lost.
            on_fired: called with the tasks that were added here.
        """
        self._schedules = schedules
        self._sessions = sessions
        self._max_poll = max_poll.total_seconds()
        self._on_fired = on_fired

    async def run(self, stop: asyncio.Event) -> None:
        """Returns once ``stop`` is set."""
        failures = 0
        with self._schedules.hints(sessions=self._sessions) as hints:
            while not stop.is_set():
                try:
                    delay = await self._look()
                    failures = 0
                except (Unavailable, TransientError) as error:
                    failures += 1
                    delay = min(_LONGEST_BACKOFF, 0.1 * 2 ** min(failures, 10)) * (0.5 + random.random())
                    if failures == 1:
                        _log.warning("Schedules are not looked after for now: %s", str(error).partition("\n")[0])
                await self._sleep(hints, stop, delay)

    async def _look(self) -> float:
        """Fires what is due; seconds until it is worth looking again."""
        fired = await self._schedules.fire_due(_AT_ONCE, sessions=self._sessions)
        if fired and self._on_fired is not None:
            self._on_fired(fired)
        seconds = await self._schedules.seconds_to_next(sessions=self._sessions)
        if seconds is None:
            return self._max_poll
        # What is overdue though we have just looked is in another process's hands: leave it a moment.
        late = random.random() * _SPREAD_SECONDS if seconds > 0 else 0.0
        return min(self._max_poll, max(0.0, seconds) + late if fired or seconds > 0 else 0.25)

    async def _sleep(self, hints: Subscription, stop: asyncio.Event, delay: float) -> None:
        until = monotonic() + delay
        stopped = asyncio.ensure_future(stop.wait())
        try:
            while not stop.is_set() and (left := until - monotonic()) > 0:
                hinted = asyncio.ensure_future(hints.wait_async(left))
                try:
                    await asyncio.wait({hinted, stopped}, return_when=asyncio.FIRST_COMPLETED)
                    # Without a hint the wait ends at the listener's poll interval: that is no reason to look.
                    if hinted.done() and hinted.result():
                        return
                finally:
                    await _cancelled(hinted)
        finally:
            await _cancelled(stopped)


async def run_schedules(board: _Board, sessions: Collection[UUID] | None, stop: asyncio.Event) -> None:
    """Fires what is due in ``sessions`` (None: in every active one) until ``stop`` is set, as every worker does.

    Args:
        board: an open ``Blackboard``.
        sessions: their ids.
        stop: ends it within a moment.
    """
    await SchedulerLoop(board.schedules, sessions=sessions).run(stop)


async def _cancelled(task: asyncio.Future[Any]) -> None:
    task.cancel()
    # Not by awaiting the task itself: its cancellation and one of our own would look alike.
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
