"""How a worker ends: what it has claimed is done or goes back, and all of it is written."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from time import monotonic
from typing import Any

from ..errors import BlackboardError, LeaseLost
from . import answers
from .core import Core, log

__all__ = ["to_the_end", "wind_down"]

_LAST_WRITES_SECONDS = 10.0
_HARD_STOP_SECONDS = 2.0


async def to_the_end(work: Coroutine[Any, Any, None], hurry: Callable[[], object]) -> None:
    """``work`` has ended, however often the caller was cancelled meanwhile; each time ``hurry`` was called.

    Raises:
        CancelledError: in the end, if the caller was cancelled.
    """
    task = asyncio.create_task(work, name="blackboard-worker-closing")
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
            hurry()
    if cancelled is None:
        return task.result()
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("the worker did not end in order: %s", error)
    raise cancelled


async def wind_down(
    core: Core, parts: Sequence[asyncio.Task[None]], grace_seconds: float, in_a_hurry: Callable[[], bool]
) -> None:
    """Nothing is claimed any more, what was not started is back, what ran has ended, and all of it is written.

    Without an answer of the database it takes half a minute longer than the grace.

    Args:
        core: of the worker.
        parts: its intake, its outbox and its guard, which run on until they are cancelled.
        grace_seconds: how long what runs may take to end by itself.
        in_a_hurry: whether that time is over early; ``core.changed`` tells when it may be.
    """
    core.stopping = True
    core.intake.wake()
    intake, writer, _ = parts
    await asyncio.wait({intake}, timeout=_LAST_WRITES_SECONDS)
    for ctx in core.take_buffered(lambda _: True):
        core.outbox.release(ctx, unstarted=True)
    await _until(core, monotonic() + grace_seconds, lambda: not core.running or in_a_hurry() or core.fatal is not None)
    if core.running:
        await _stop_running(core)
    await _until(core, monotonic() + _LAST_WRITES_SECONDS, lambda: core.outbox.empty or writer.done())
    if not core.outbox.empty:
        log.error("%d outcomes could not be written; their tasks come back", core.outbox.backlog)
    with contextlib.suppress(BlackboardError, LeaseLost):
        # A claim whose answer never came may have got something.
        async with answers.in_time(answers.ANSWER_SECONDS):
            lease_id = await core.lanes[0].session.scope.leases.current()
            await core.guard.audit(lease_id)


async def _stop_running(core: Core) -> None:
    log.warning("%d handlers are stopped; their tasks go back", len(core.running))
    for ctx in tuple(core.running):
        core.guard.interrupt(ctx, "stopping")
    await _until(
        core,
        monotonic() + _HARD_STOP_SECONDS,
        lambda: not any(ctx.handler and ctx.handler.suspends for ctx in core.running),
    )
    for ctx in tuple(core.running):
        # Threads, and coroutines that would not be cancelled: their outcome counts no more.
        if not ctx.settled:
            ctx.settled = True
            core.outbox.release(ctx)


async def _until(core: Core, ends: float, reached: Callable[[], bool]) -> None:
    while not reached() and (left := ends - monotonic()) > 0:
        core.changed.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(core.changed.wait(), left)
