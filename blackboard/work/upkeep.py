"""What a worker does for its board beside its tasks: schedules fire, and what sessions do not keep goes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, Collection
from functools import partial
from time import monotonic
from typing import Protocol
from uuid import UUID

from ..errors import NotPermitted, TransientError, Unavailable
from ..models.retention import Kept
from ..repository.retention import Keeper
from ..repository.schedules import Scheduler
from .schedules import run_schedules

__all__ = ["run_retention", "upkeep"]

_log = logging.getLogger(__name__)

_LONGEST_SECONDS = 60.0
# While no session has a retention; one that is given one waits so long at most.
_IDLE_SECONDS = 300.0


class _Board(Protocol):
    @property
    def keeper(self) -> Keeper: ...

    @property
    def schedules(self) -> Scheduler: ...


@contextlib.asynccontextmanager
async def upkeep(board: _Board, sessions: Collection[UUID]) -> AsyncGenerator[None]:
    """Within the block the schedules of the sessions are looked after, and the retention of every session.

    What goes wrong with it is logged, and ends nothing else.

    Args:
        board: an open ``Blackboard``.
        sessions: their ids.
    """
    stop = asyncio.Event()
    firing = asyncio.create_task(run_schedules(board, sessions, stop), name="blackboard-worker-schedules")
    firing.add_done_callback(partial(_ended, "schedules are"))
    keeping = asyncio.create_task(run_retention(board, stop), name="blackboard-worker-retention")
    keeping.add_done_callback(partial(_ended, "retention is"))
    try:
        yield
    finally:
        stop.set()
        firing.cancel()
        keeping.cancel()
        await asyncio.wait({firing, keeping})


async def run_retention(board: _Board, stop: asyncio.Event) -> None:
    """What the sessions of the board do not keep goes, until ``stop`` is set: a batch at a time, for at most half of
    the time.

    Goes on through outages of the database. Where this role may not, it says so and returns.

    Args:
        board: an open ``Blackboard``.
        stop: ends it within a moment.
    """
    while not stop.is_set():
        try:
            pause = await _look(board.keeper)
        except (Unavailable, TransientError):
            # Told by those who work.
            pause = _LONGEST_SECONDS * (0.5 + random.random())
        except NotPermitted:
            _log.warning("This role may not look after retention: run what `blackboard db grants` prints, once more.")
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause)


async def _look(keeper: Keeper) -> float:
    """Lets one batch go; seconds until the next look."""
    began = monotonic()
    kept = await keeper.keep_due()
    if kept.error is not None:
        _log.error("Retention of session %s: a batch could not go: %s", kept.session_id, kept.error)
    return _pause(kept, monotonic() - began)


def _pause(kept: Kept, took: float) -> float:
    if kept.seconds is None:
        return _IDLE_SECONDS * (0.5 + random.random() / 2)
    # As long as the batch took at least: whoever works comes first. And not all processes at the same moment.
    rest = min(kept.seconds, _LONGEST_SECONDS)
    return max(rest, took, 0.01) + random.random() * rest / 10


def _ended(what: str, done: asyncio.Task[None]) -> None:
    """Tasks are done all the same: another process may be allowed to do what this one is not."""
    if not done.cancelled() and (error := done.exception()) is not None:
        _log.error("%s not looked after here any more: %s", what, error)
