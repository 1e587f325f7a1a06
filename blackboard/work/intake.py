"""Where tasks come from: claims as large as there is room for, over several sessions in turn, on one connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import Any
from uuid import UUID

from ..errors import LeaseLost, NotFound, SessionClosed
from ..ids import new_id
from ..repository.scope import head_start
from ..store.statements import statements
from ..store.subscription import Subscription
from .context import TaskContext
from .core import Core, log
from .lane import Lane
from .line import Line
from .outage import RETRYABLE, Outage

__all__ = ["Intake"]

_SQL = statements("engine")

_AHEAD_SECONDS = 0.05
"""How much work lies ready beside what runs: enough to hide a claim's round trip, too little to be missed elsewhere."""

_LEAST_SHARE = 100
_MOST_LANES = 200
_LOOK_SECONDS = 0.1
_FIRST_MISS_SECONDS = 0.01
_RENEW_SECONDS = 1.0


class Intake:
    """Keeps the buffer filled by demand.

    Handlers that take longer than a few milliseconds get what there are free slots for and nothing more; for shorter
    ones so much is claimed ahead as they will do within ``_AHEAD_SECONDS``, up to the largest batch.
    """

    def __init__(self, core: Core, line: Line, poll_interval: timedelta) -> None:
        self._core = core
        self._line = line
        self._poll_seconds = poll_interval.total_seconds()
        self._event = asyncio.Event()
        self._turn = 0
        self._look_at = 0.0
        self._renewed_at = float("-inf")
        self._lease_id: UUID | None = None
        self._outage = Outage("a worker's claims")
        self._subscriptions: list[Subscription] = []
        # A slot wakes us when the buffer has sunk to this; -1 while nobody waits for that.
        self.low_water = -1
        # Nothing was left at the last look, and nothing has happened since.
        self.dry = False

    def start(self) -> None:
        """Hints are heard from here on."""
        for lane in self._core.lanes:
            hints = lane.session.scope.listener.subscribe(lane.session.id, ("tasks.ready", "sessions"))
            hints.call(partial(self._heard, lane))
            self._subscriptions.append(hints)

    def close(self) -> None:
        """Hints are heard no more."""
        for hints in self._subscriptions:
            hints.close()
        for lane in self._core.lanes:
            if lane.coming is not None:
                lane.coming.cancel()

    def wake(self) -> None:
        """There is room for more."""
        self._event.set()

    def stir(self) -> None:
        """There may be more to claim than was seen."""
        self.dry = False
        self._event.set()

    async def run(self) -> None:
        """Claims until the worker stops; a claim that is under way is brought to its end."""
        core = self._core
        while not core.stopping and not all(lane.closed for lane in core.lanes):
            room, ahead = self._room()
            if room <= 0:
                await self._wait(None)
                continue
            lanes = self._next()
            now = monotonic()
            emptied = [
                lane for lane in core.lanes if not (lane.hot or lane.closed) and (lane.recheck or lane.look_by <= now)
            ]
            try:
                if emptied and (not lanes or monotonic() >= self._look_at):
                    await self._look(emptied)
                elif lanes:
                    await self._claim(lanes, room, self._share(room, ahead))
                elif self._floored() and now - self._renewed_at >= _RENEW_SECONDS:
                    # The last look leaves nothing out.
                    self._renewed_at = now
                    await self._line.renew()
                    await self._look([lane for lane in core.lanes if not lane.closed])
                else:
                    # What could not be claimed just now (somebody has it locked, a slot is being freed) is not nothing.
                    self.dry = not any(lane.hot and not lane.closed for lane in core.lanes)
                    core.changed.set()
                    if not await self._wait(self._until_next()):
                        await self._look([lane for lane in core.lanes if not lane.closed])
                self._outage.over()
            except RETRYABLE as error:
                await self._outage.wait(error, core.changed if core.stopping else None)
        core.changed.set()

    def _floored(self) -> bool:
        return self._core.draining and any(lane.floored and not lane.closed for lane in self._core.lanes)

    def _room(self) -> tuple[int, int]:
        """How many tasks there is room for, and how many of them ahead of free slots."""
        core = self._core
        free = core.concurrency - len(core.running)
        took = core.slots.took
        ahead = 0
        if took is not None and took < _AHEAD_SECONDS:
            ahead = min(2 * core.max_batch, int(core.concurrency * _AHEAD_SECONDS / max(took, 1e-6)))
        if ahead and core.outbox.backlog > 4 * core.max_batch:
            ahead = 0
        buffered, target = len(core.buffer), free + ahead
        self._low = target // 2 if ahead else max(core.concurrency, 1)
        if ahead and buffered > target // 2:
            return 0, ahead
        return min(target - buffered, core.max_batch), ahead

    def _share(self, room: int, ahead: int) -> int:
        """No session takes all the room while others wait for it."""
        now = monotonic()
        hot = sum(1 for lane in self._core.lanes if lane.hot and lane.not_before <= now)
        fair = -(-room // max(hot, 1))
        return min(room, max(fair, min(ahead, _LEAST_SHARE)))

    def _next(self) -> list[Lane]:
        """The lanes to claim from next: one that must be alone, or several in turn."""
        lanes, now = self._core.lanes, monotonic()
        chosen: list[Lane] = []
        for step in range(len(lanes)):
            lane = lanes[(self._turn + step) % len(lanes)]
            if not lane.hot or lane.not_before > now:
                continue
            if lane.alone:
                return chosen or [lane]
            chosen.append(lane)
            if len(chosen) >= _MOST_LANES:
                break
        return chosen

    async def _wait(self, seconds: float | None) -> bool:
        """True when woken, False when the time was up."""
        if self._core.stopping:
            return True
        if seconds is None:
            self.low_water = self._low
        try:
            if seconds is not None:
                async with asyncio.timeout(seconds):
                    await self._event.wait()
            elif self._room()[0] <= 0:
                await self._event.wait()
        except TimeoutError:
            return False
        finally:
            self.low_water = -1
        self._event.clear()
        return True

    def _until_next(self) -> float:
        now = monotonic()
        times = [self._poll_seconds]
        for lane in self._core.lanes:
            if lane.closed:
                continue
            if lane.due_at is not None:
                # What is due and could not be had is somebody else's for now: not before it is worth another claim.
                times.append(max(lane.due_at, lane.not_before) - now)
            if lane.hot:
                times.append(lane.not_before - now)
        return max(0.001, min(times))

    async def _claim(self, lanes: list[Lane], limit: int, share: int) -> None:
        core = self._core
        leases = lanes[0].session.scope.leases
        async with self._outage.answer():
            lease_id = await leases.current()
        claim_id = new_id()
        try:
            # The lease may lapse between its start and this.
            async with self._outage.answer():
                await self._appear(lease_id)
            sent_at = monotonic()
            async with leases.claiming(claim_id) as claim:
                rows = await self._ask(lanes, lease_id, claim_id, limit, share)
                claim.held = bool(rows)
        except LeaseLost:
            core.guard.lose(lease_id)
            await leases.forget(lease_id)
            return
        except (SessionClosed, NotFound) as error:
            [lane] = lanes
            log.info("no more tasks from session %s: %s", lane.session.name, error)
            lane.closed, lane.hot, lane.recheck = True, False, False
            return
        if lease_id in core.guard.lost:
            core.counts.lost += len(rows)
            return
        if len(lanes) == 1:
            [lane] = lanes
            self._answered(lane, len(rows), min(limit, share))
            contexts = [TaskContext(core, lane, row, claim_id, lease_id, sent_at) for row in rows]
        else:
            by_id = {lane.session.id: lane for lane in lanes}
            contexts = [TaskContext(core, by_id[row["session_id"]], row, claim_id, lease_id, sent_at) for row in rows]
            got = Counter(ctx.lane for ctx in contexts)
            if len(rows) >= limit:
                # Those behind the last one were not asked, and that one perhaps not for all of its share.
                lanes = lanes[: max(lanes.index(lane) for lane in got) + 1]
                got[lanes[-1]] = share
            for lane in lanes:
                lane.left_out = not got[lane]
                self._answered(lane, got[lane], share)
        self._turn = (lanes[-1].place + 1) % len(core.lanes)
        if contexts:
            core.counts.claimed += len(contexts)
            core.held.update(contexts)
            core.buffer.extend(contexts)
            core.slots.dispatch()
            # Handlers start before anything else is asked.
            await asyncio.sleep(0)

    def _answered(self, lane: Lane, got: int, share: int) -> None:
        lane.hot = got >= share
        lane.recheck = not lane.hot
        if got:
            lane.misses = lane.in_vain = 0
            lane.not_before = 0.0
            lane.unheard = True
        elif lane.misses:
            lane.not_before = monotonic() + min(self._poll_seconds, _FIRST_MISS_SECONDS * 2 ** min(lane.misses, 10))

    async def _ask(self, lanes: list[Lane], lease_id: UUID, claim_id: UUID, limit: int, share: int) -> list[Any]:
        """The claim's answer, however often it takes to get it: asking again gives the same tasks.

        Raises:
            LeaseLost, NotFound, SessionClosed: nothing was claimed.
            Unavailable, TransientError: nobody knows, and the worker stops or has lost its lease.
        """
        agent = lanes[0].agent
        values: dict[str, Any] = {
            "agent_id": agent.id,
            "capabilities": agent.scope.capabilities,
            "lease_id": lease_id,
            "claim_id": claim_id,
        }
        if len(lanes) == 1:
            statement = _SQL["claim_for_worker"]
            values |= {"session_id": lanes[0].session.id, "limit": min(limit, share)}
        else:
            statement = _SQL["claim_across"]
            values |= {"session_ids": [lane.session.id for lane in lanes], "limit": limit, "share": share}
        while True:
            try:
                async with self._outage.answer():
                    rows = await self._line.fetch_all(statement, **values)
            except RETRYABLE as error:
                if self._core.stopping or lease_id in self._core.guard.lost:
                    raise
                await self._outage.wait(error)
            else:
                self._outage.over()
                return list(rows)

    async def _appear(self, lease_id: UUID) -> None:
        """The worker's agent is present under the lease that is held now."""
        if lease_id == self._lease_id:
            return
        if self._lease_id is not None:
            lanes = [lane for lane in self._core.lanes if not lane.closed]
            try:
                await self._core.board.join([lane.session for lane in lanes], self._core.agent_id)
            except (SessionClosed, NotFound):
                for lane in lanes:
                    with contextlib.suppress(SessionClosed, NotFound):
                        await lane.session.agents.join(lane.agent.id, lease_id=lease_id)
        self._lease_id = lease_id

    async def _look(self, lanes: list[Lane]) -> None:
        """Which of the lanes have something, and when the next scheduled task is due; one statement for all."""
        for lane in lanes:
            lane.recheck = False
        by_id = {lane.session.id: lane for lane in lanes}
        began = monotonic()
        try:
            async with self._outage.answer():
                rows = await self._line.fetch_all(
                    _SQL["look_for_tasks"],
                    session_ids=list(by_id),
                    agent_id=self._core.agent_id,
                    capabilities=lanes[0].agent.scope.capabilities,
                )
        except BaseException:
            for lane in lanes:
                lane.recheck = True
            raise
        now = monotonic()
        # Looks in between cost a twentieth of the time.
        self._look_at = now + max(_LOOK_SECONDS, 20 * (now - began))
        for row in rows:
            lane = by_id.pop(row["session_id"])
            due_in = row["due_in"]
            lane.due_at = None if due_in is None else now + due_in.total_seconds()
            lane.floored = row["floored"]
            seconds = self._poll_seconds if due_in is None else min(self._poll_seconds, due_in.total_seconds())
            lane.look_by = now + seconds
            if row["status"] not in {"active", "paused"}:
                log.info("session %s is %s", lane.session.name, row["status"])
                lane.closed = True
            ready = row["ready"] or (due_in is not None and due_in <= timedelta())
            if ready and not lane.closed:
                if not lane.hot:
                    # There is something, and the last claim did not get it: somebody else may have it locked.
                    lane.hot, lane.alone = True, lane.left_out
                    lane.misses += 1
                    if lane.misses > 1:
                        lane.not_before = now + min(
                            self._poll_seconds, _FIRST_MISS_SECONDS * 2 ** min(lane.misses - 2, 10)
                        )
            elif not lane.closed:
                lane.misses = 0
                lane.alone = lane.left_out = False
        for lane in by_id.values():
            lane.closed = True

    def _heard(self, lane: Lane) -> None:
        """There was a hint. Of many idle workers not all come at once: who came in vain the last time comes later."""
        if lane.closed or lane.coming is not None:
            return
        if lane.in_vain:
            lane.coming = asyncio.get_running_loop().call_later(head_start(lane.in_vain), self._come, lane)
        else:
            lane.hot = True
            self._stirred(lane)

    def _come(self, lane: Lane) -> None:
        lane.coming = None
        # A look costs less than a claim.
        lane.recheck = True
        self._stirred(lane)

    def _stirred(self, lane: Lane) -> None:
        lane.in_vain += 1
        lane.misses = 0
        lane.not_before = 0.0
        self.stir()
