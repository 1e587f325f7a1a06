"""Watches over what runs: the lease, maximum run times, and requests to stop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import timedelta
from time import monotonic, perf_counter
from uuid import UUID

from ..errors import BlackboardError
from ..store.statements import statements
from .context import TaskContext
from .core import Core, log
from .outage import Outage

__all__ = ["Guard"]

_SQL = statements("engine")

_LOOK_SECONDS = 0.5
_YOUNG_SECONDS = 0.25
_STALE_SECONDS = 1.0


class Guard:
    """Cancels handlers whose work is not theirs any more, or not wanted any more."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._loop = asyncio.get_running_loop()
        self._leave: Callable[[], None] | None = None
        self._outage = Outage("a look for requests to stop")
        # Leases that have lapsed in this worker's time.
        self.lost: set[UUID] = set()

    def start(self) -> None:
        """The lease is watched from here on."""
        self._leave = self._core.lanes[0].session.scope.leases.watch(self, self._core.agent_id)

    def close(self) -> None:
        """Nothing is watched any more; what this worker has not ended goes back with the next count of the lease."""
        leases = self._core.lanes[0].session.scope.leases
        if self._leave is not None:
            self._leave()
            self._leave = None
        # Whose outcome could not be written: nobody works on it any more.
        leases.drop_claims({ctx.claim_id for ctx in self._core.held})

    # ---------------------------------------------------------------------------------------------------- the lease

    def on_lost(self, lease_id: UUID) -> None:
        """From the heartbeat's thread, or from who was told so by the server."""
        with contextlib.suppress(RuntimeError):  # the loop has ended under the worker, and nothing runs there any more
            self._loop.call_soon_threadsafe(self.lose, lease_id)

    def lose(self, lease_id: UUID) -> None:
        """What was claimed under that lease is somebody else's: it is dropped, and nothing of it is written."""
        core = self._core
        if lease_id in self.lost:
            return
        self.lost.add(lease_id)
        dropped = core.take_buffered(lambda ctx: ctx.lease_id == lease_id)
        for ctx in tuple(core.running):
            if ctx.lease_id == lease_id and not ctx.settled:
                ctx.settled = True
                dropped.append(ctx)
                self.interrupt(ctx, "lease_lost")
        core.held.difference_update(dropped)
        core.counts.lost += len(dropped)
        if dropped:
            log.error("the lease was lost: %d tasks were dropped; going on under a new one", len(dropped))
        for lane in core.lanes:
            lane.hot = not lane.closed
        core.intake.stir()
        core.changed.set()

    async def audit(self, lease_id: UUID) -> None:
        """What the lease holds without anybody here knowing of it was handed back: claims whose answer was cut."""
        leases = self._core.lanes[0].session.scope.leases
        counted = asyncio.Event()

        def told() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                self._loop.call_soon_threadsafe(counted.set)

        if lease_id not in self.lost:
            leases.count_now(told)
            await counted.wait()

    # -------------------------------------------------------------------------------------------- what is to stop

    def arm(self, ctx: TaskContext) -> bool:
        """The attempt ends when its maximum run time is over; False if that is so already."""
        left = ctx.seconds_left
        assert left is not None
        if left <= 0:
            # Not interrupted: its slot runs no handler of it, and the next one would be cancelled instead.
            ctx.reason = "timeout"
            self._time_out(ctx)
            return False
        ctx.timer = self._loop.call_later(left, self._expire, ctx)
        return True

    def _expire(self, ctx: TaskContext) -> None:
        if ctx.settled or ctx not in self._core.running:
            return
        # At once, and not when the handler has ended: a thread may never do so, and the board would end it as well.
        self._time_out(ctx)
        self.interrupt(ctx, "timeout")

    def _time_out(self, ctx: TaskContext) -> None:
        ctx.settled = True
        timeout: timedelta = ctx.row["timeout"]
        self._core.outbox.fail(ctx, {"code": "timeout", "message": f"It ran longer than its timeout of {timeout}."})

    def interrupt(self, ctx: TaskContext, reason: str) -> None:
        """The handler is asked to stop: a coroutine by cancellation, a thread by ``cancelled``."""
        if ctx.reason is None:
            ctx.reason = reason
            if ctx.slot is not None and ctx.handler is not None and ctx.handler.suspends:
                ctx.slot.interrupt(ctx)

    async def run(self) -> None:
        """Looks twice a second, while there is something to look after."""
        core = self._core
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for lane in core.lanes:
                if lane.unheard:
                    lane.notify()
            self._hand_back_stale()
            before = perf_counter() - _YOUNG_SECONDS
            if not any(ctx.started < before and ctx.reason is None for ctx in core.running):
                continue
            oldest: dict[UUID, UUID] = {}
            for ctx in core.held:
                oldest[ctx.lease_id] = min(ctx.claim_id, oldest.get(ctx.lease_id, ctx.claim_id))
            for lease_id in oldest.keys() - self.lost:
                try:
                    async with self._outage.answer():
                        rows = await core.lanes[0].session.scope.executor.fetch_all(
                            _SQL["list_cancel_requests"], lease_id=lease_id, oldest_claim_id=oldest[lease_id]
                        )
                except BlackboardError as error:
                    await self._outage.wait(error)
                    continue
                self._outage.over()
                asked = {(row["session_id"], row["id"], row["attempt"]) for row in rows}
                if asked:
                    self._stop_asked(asked)

    def _stop_asked(self, asked: set[tuple[UUID, UUID, int]]) -> None:
        core = self._core

        def meant(ctx: TaskContext) -> bool:
            return (ctx.lane.session.id, ctx.row["id"], ctx.row["attempt"]) in asked

        for ctx in tuple(core.running):
            if meant(ctx):
                self.interrupt(ctx, "cancelled")
        for ctx in core.take_buffered(meant):
            core.outbox.release(ctx, unstarted=True)

    def _hand_back_stale(self) -> None:
        """What was claimed ahead of slow handlers goes back: others may be free."""
        core = self._core
        before = monotonic() - _STALE_SECONDS
        if not core.buffer or core.buffer[0].sent_at > before or len(core.running) < core.concurrency:
            return
        stale = core.take_buffered(lambda ctx: ctx.sent_at <= before)
        for ctx in stale:
            core.outbox.release(ctx, unstarted=True)
        core.slots.took = max(core.slots.took or 0.0, _STALE_SECONDS)
        log.info("%d tasks that could not be started in time are handed back", len(stale))
