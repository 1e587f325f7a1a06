"""Where attempts end: outcomes are collected and written many at a time, on a connection of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from ..errors import BlackboardError, InvalidInput
from ..jsonable import dump_json, storable
from ..repository.claims import error_facts, text_of
from ..store.statements import statements
from .context import TaskContext
from .core import Core, log
from .lane import Lane
from .line import Line
from .outage import RETRYABLE, Outage

__all__ = ["Outbox"]

_TASKS = statements("tasks")
_ENGINE = statements("engine")

_LINGER_SECONDS = 0.003
_DEFAULT_ATTEMPTS = 5
_REFUSED_DELAY = timedelta(seconds=30)


@dataclass(slots=True)
class _Failure:
    ctx: TaskContext
    error: str
    outcome: str
    delay: timedelta | None
    max_attempts: int | None
    # In words that no handler chose.
    plain: bool = False


@dataclass(slots=True)
class _Release:
    ctx: TaskContext
    delay: timedelta | None
    error: str | None
    unstarted: bool = False


class Outbox:
    """Writes what became of tasks: at once when the worker is idle, else in batches a few milliseconds apart."""

    def __init__(self, core: Core, line: Line) -> None:
        self._core = core
        self._line = line
        self._completed: list[TaskContext] = []
        self._failed: list[_Failure] = []
        self._released: list[_Release] = []
        self._late: list[TaskContext] = []
        self._wake = asyncio.Event()
        self._lingering: asyncio.Future[None] | None = None
        self._writing = 0
        self._outage = Outage("a worker's results")
        # That have ended here, and that the database does not even take back for now.
        self.refused: set[TaskContext] = set()

    # ------------------------------------------------------------------------------------------ what handlers end in

    def complete(self, ctx: TaskContext, result: str | None) -> None:
        """The task is about to be completed with that JSON text."""
        ctx.result = result
        self._completed.append(ctx)
        waiting, most = len(self._completed), self._core.max_batch
        if waiting in (1, most):
            self._nudge(full=waiting == most)

    def hand_in_late(self, ctx: TaskContext, result: str) -> None:
        """What the task's handler made of it after it was taken away is about to be kept aside (``late_results``)."""
        ctx.result = result
        self._late.append(ctx)
        self._nudge()

    def fail(self, ctx: TaskContext, error: BaseException | str | dict[str, Any], *, outcome: str = "retry") -> None:
        """The attempt is about to fail: ``retry`` by policy, or ``dead`` or ``failed`` at once."""
        delay, most = _policy(ctx)
        self._failed.append(_Failure(ctx, _error_text(error), outcome, delay, most))
        self._nudge()

    def release(
        self,
        ctx: TaskContext,
        *,
        delay: timedelta | None = None,
        reason: dict[str, Any] | None = None,
        unstarted: bool = False,
    ) -> None:
        """The task is about to be handed back; it comes back after ``delay``, or at once.

        One whose handler never began stays with whom it was assigned to: ``unstarted``.
        """
        self._released.append(_Release(ctx, delay, None if reason is None else _error_text(reason), unstarted))
        self._nudge()

    # --------------------------------------------------------------------------------------------------- the writer

    @property
    def empty(self) -> bool:
        """Whether everything was written and answered."""
        return not self.backlog

    @property
    def backlog(self) -> int:
        """How many outcomes wait to be written."""
        return len(self._completed) + len(self._failed) + len(self._released) + len(self._late) + self._writing

    def idle(self) -> None:
        """Nothing more is coming for now: what is there is written at once."""
        if self._lingering is not None:
            self._nudge(full=True)

    def _nudge(self, *, full: bool = False) -> None:
        self._wake.set()
        if full and self._lingering is not None and not self._lingering.done():
            self._lingering.set_result(None)

    async def run(self) -> None:
        """Writes until cancelled; between two writes nothing is lost by that."""
        while True:
            while self.empty:
                self._wake.clear()
                await self._wake.wait()
            if len(self._completed) < self._core.max_batch and self._core.buffer and not self._core.stopping:
                await self._linger()
            await self.flush()
            self._core.changed.set()

    async def _linger(self) -> None:
        loop = asyncio.get_running_loop()
        self._lingering = loop.create_future()
        timer = loop.call_later(_LINGER_SECONDS, self._nudge_full)
        try:
            await self._lingering
        finally:
            timer.cancel()
            self._lingering = None

    def _nudge_full(self) -> None:
        self._nudge(full=True)

    async def flush(self) -> None:
        """What is there was written; goes on trying while the database cannot be reached."""
        most = self._core.max_batch
        if self._completed:
            batch, self._completed = self._completed[:most], self._completed[most:]
            self._writing = len(batch)
            await self._write_by_lane(await self._complete_across(batch))
        if self._failed:
            failed, self._failed = self._failed[:most], self._failed[most:]
            await self._write(failed, self._write_failed)
        if self._released:
            released, self._released = self._released[:most], self._released[most:]
            await self._write(released, self._write_released)
        if self._late and not self._failed:
            # After what took the tasks away, else they would still count.
            late, self._late = self._late[:most], self._late[most:]
            await self._write_by_lane(late)

    async def _write_by_lane(self, batch: list[TaskContext]) -> None:
        self._writing = len(batch)
        try:
            for group in _by_lane(batch):
                await self._insist(group, group, self._write_completed)
        finally:
            self._writing = 0

    async def _write(self, batch: Sequence[Any], write: Any) -> None:
        self._writing = len(batch)
        try:
            ends = {one.ctx: one for one in batch}
            for group in _by_lane(list(ends)):
                await self._insist([ends[ctx] for ctx in group], group, write)
        finally:
            self._writing = 0

    async def _insist(self, batch: Sequence[Any], contexts: Sequence[TaskContext], write: Any) -> None:
        """What one lane's tasks ended in was written, or refused for good."""
        lane = contexts[0].lane
        while True:
            try:
                async with self._outage.answer():
                    await write(lane, batch)
            except RETRYABLE as error:
                # Writing them once more is no second outcome: claim id and attempt are the key.
                await self._outage.wait(error)
                continue
            except BlackboardError as error:
                await self._apart(batch, contexts, write, error)
            self._outage.over()
            break
        self._written(contexts)

    def _written(self, contexts: Sequence[TaskContext]) -> None:
        self._core.held.difference_update(contexts)
        for lane in {ctx.lane for ctx in contexts}:
            lane.moved()
            lane.notify()
        self._core.intake.stir()

    async def _complete_across(self, batch: list[TaskContext]) -> list[TaskContext]:
        """Those that one call for all their lanes did not complete; of one lane, all of them."""
        while any(ctx.lane is not batch[0].lane for ctx in batch):
            try:
                async with self._outage.answer():
                    rows = await self._line.fetch_all(
                        _ENGINE["complete_across"],
                        session_ids=[ctx.lane.session.id for ctx in batch],
                        agent_id=self._core.agent_id,
                        **_outcomes(batch),
                    )
            except RETRYABLE as error:
                await self._outage.wait(error)
                continue
            except BlackboardError as error:
                log.debug("completing session by session: %s", error)
                break
            self._outage.over()
            ids = {row["id"] for row in rows}
            left = [ctx for ctx in batch if ctx.row["id"] in ids]
            self._core.counts.completed += len(batch) - len(left)
            self._written([ctx for ctx in batch if ctx.row["id"] not in ids] if left else batch)
            return left
        return batch

    async def _apart(
        self, batch: Sequence[Any], contexts: Sequence[TaskContext], write: Any, error: BlackboardError
    ) -> None:
        # One value that the database refuses must not take the others with it.
        if len(batch) > 1:
            half = len(batch) // 2
            for part in (slice(None, half), slice(half, None)):
                await self._insist(batch[part], contexts[part], write)
            return
        ctx, one = contexts[0], batch[0]
        log.error("%r: its outcome was refused by the database: %s", ctx, error)
        # No claim is dropped unwritten: under a lease that lives on, its task would be running for ever.
        if one is ctx:
            # The result is at fault: the attempt fails with what the database said.
            failure = _Failure(ctx, _error_text(error), "retry", *_policy(ctx))
            await self._insist([failure], contexts, self._write_failed)
        elif isinstance(one, _Failure) and not one.plain:
            said = _error_text({"code": "outcome_refused", "message": storable(error.message[:10_000])})
            await self._insist([replace(one, error=said, plain=True)], contexts, self._write_failed)
        elif isinstance(one, _Failure) or one.error is not None:
            delay = one.delay or _REFUSED_DELAY
            await self._insist([_Release(ctx, delay, None)], contexts, self._write_released)
        else:
            self.refused.add(ctx)
            asyncio.get_running_loop().call_later(_REFUSED_DELAY.total_seconds(), self._once_more, one)

    def _once_more(self, release: _Release) -> None:
        self._released.append(release)
        self._nudge()

    async def _write_completed(self, lane: Lane, batch: list[TaskContext]) -> None:
        rows = await self._line.fetch_all(
            _TASKS["complete_tasks"],
            session_id=lane.session.id,
            agent_id=lane.agent.id,
            **_outcomes(batch),
        )
        counts = self._core.counts
        counts.completed += len(batch) - len(rows)
        if rows:
            counts.refused += len(rows)
            log.warning(
                "%d results came too late for their tasks and were kept aside, that of task %s first",
                len(rows), rows[0]["id"],
            )  # fmt: skip

    async def _write_failed(self, lane: Lane, batch: list[_Failure]) -> None:
        rows = await self._line.fetch_all(
            _ENGINE["fail_tasks"],
            session_id=lane.session.id,
            ids=[one.ctx.row["id"] for one in batch],
            claim_ids=[one.ctx.claim_id for one in batch],
            attempts=[one.ctx.row["attempt"] for one in batch],
            errors=[one.error for one in batch],
            outcomes=[one.outcome for one in batch],
            delays=[one.delay for one in batch],
            max_attempts=[one.max_attempts for one in batch],
            agent_id=lane.agent.id,
        )
        self._count([one.ctx for one in batch], rows, delayed="retried")

    async def _write_released(self, lane: Lane, batch: list[_Release]) -> None:
        rows = await self._line.fetch_all(
            _ENGINE["release_tasks"],
            session_id=lane.session.id,
            ids=[one.ctx.row["id"] for one in batch],
            claim_ids=[one.ctx.claim_id for one in batch],
            attempts=[one.ctx.row["attempt"] for one in batch],
            delays=[one.delay for one in batch],
            errors=[one.error for one in batch],
            agent_id=lane.agent.id,
            unstarted=[one.unstarted for one in batch],
        )
        self._count([one.ctx for one in batch], rows, delayed="released")

    def _count(self, contexts: Sequence[TaskContext], rows: Sequence[Any], *, delayed: str) -> None:
        counts = self._core.counts
        self.refused.difference_update(contexts)
        where: dict[Any, str | None] = {row["id"]: row["status"] for row in rows}
        names = {
            "scheduled": delayed,
            "pending": "released",
            "assigned": "released",
            "blocked": "released",
            "failed": "failed",
            "dead": "dead",
            "cancelled": "cancelled",
        }
        for ctx in contexts:
            name = names.get(where.get(ctx.row["id"]) or "", "refused")
            setattr(counts, name, getattr(counts, name) + 1)
            if name == "refused":
                log.warning("%r was taken away before its outcome was written", ctx)


def _by_lane(contexts: Sequence[TaskContext]) -> list[list[TaskContext]]:
    groups: dict[Lane, list[TaskContext]] = {}
    for ctx in contexts:
        groups.setdefault(ctx.lane, []).append(ctx)
    return list(groups.values())


def _outcomes(batch: Sequence[TaskContext]) -> dict[str, list[Any]]:
    return {
        "ids": [ctx.row["id"] for ctx in batch],
        "claim_ids": [ctx.claim_id for ctx in batch],
        "attempts": [ctx.row["attempt"] for ctx in batch],
        # Many handlers return nothing, and an array that is too short is filled up with NULL.
        "results": [ctx.result for ctx in batch] if any(ctx.result is not None for ctx in batch) else [],
    }


def _policy(ctx: TaskContext) -> tuple[timedelta | None, int | None]:
    """Delay and most attempts by the handler's policy; None where the task was added with its own."""
    policy = None if ctx.handler is None else ctx.handler.retry
    row = ctx.row
    if policy is None:
        return None, None
    # A first failure wrote the policy's number into the row.
    if row["retry_delay"] is not None or row["max_attempts"] not in {_DEFAULT_ATTEMPTS, policy.max_attempts}:
        return None, None
    return policy.delay_after(row["attempt"] - row["released"]), policy.max_attempts


def _error_text(error: BaseException | str | dict[str, Any]) -> str:
    facts = error_facts(error)
    try:
        return dump_json(facts, "error")
    except InvalidInput:
        # A handler's own facts may hold what no database stores; that must not keep the attempt from failing.
        return dump_json({text_of(name): storable(text_of(value)[:10_000]) for name, value in facts.items()}, "error")
