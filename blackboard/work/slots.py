"""Where handlers run: so many slots as tasks may run at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from contextvars import Context, copy_context
from datetime import timedelta
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInput
from ..jsonable import dump_json
from ..repository.claims import text_of
from .blocking_context import BlockingTaskContext
from .context import TaskContext
from .core import log
from .signals import DeadLetter, Release, RetryLater, Signal, TaskCancelled

if TYPE_CHECKING:
    from .core import Core

__all__ = ["Slot", "Slots"]

_BURST_SECONDS = 0.002
_LOGGED = 1000
_UNKNOWN_TYPE_DELAY = timedelta(seconds=30)


class Slot:
    """One place to run a handler in: a task of the event loop that takes one piece of work after the other.

    A task of its own for every piece of work would cost more than a short handler does; one that is shared keeps all
    that a handler may expect of its task (time-outs, cancellation, context variables) in order.
    """

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.current: TaskContext | None = None

    def interrupt(self, ctx: TaskContext) -> None:
        """The coroutine that runs ``ctx`` here is cancelled at its next await."""
        if self.current is ctx and self.task is not None:
            self.task.cancel()


class Slots:
    """Starts what is in the buffer, in its order, as slots get free."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._slots: set[Slot] = set()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._unknown: set[str] = set()
        self._closed = False
        # Seconds that a handler takes, as far as known.
        self.took: float | None = None

    def dispatch(self) -> None:
        """The buffer was filled: as many slots as are needed and allowed take from it."""
        wanted = len(self._core.buffer)
        while wanted > 0 and self._idle:
            waiting = self._idle.popleft()
            if not waiting.done():
                waiting.set_result(None)
                wanted -= 1
        while wanted > 0 and len(self._slots) < self._core.concurrency:
            self._start(None)
            wanted -= 1

    def close(self) -> None:
        """No slot waits for work any more; what runs is cancelled."""
        self._closed = True
        for slot in self._slots:
            if slot.task is not None:
                slot.task.cancel()

    async def closed(self, seconds: float) -> None:
        """Every slot has ended, or that time is over: a handler may refuse to be cancelled."""
        tasks = [slot.task for slot in self._slots if slot.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    def _start(self, context: Context | None) -> None:
        slot = Slot()
        slot.task = asyncio.create_task(self._run(slot), name="blackboard-slot", context=context)
        slot.task.add_done_callback(self._ended, context=context)
        self._slots.add(slot)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._core.crashed(error)

    async def _run(self, slot: Slot) -> None:
        core, buffer = self._core, self._core.buffer
        clean = copy_context()
        pause_at = perf_counter() + _BURST_SECONDS
        try:
            while not self._closed:
                if not buffer or core.stopping:
                    if core.intake.low_water >= 0:
                        core.intake.wake()
                    core.outbox.idle()
                    waiting = asyncio.get_running_loop().create_future()
                    self._idle.append(waiting)
                    # The last one is kept by nobody else.
                    ctx = None
                    await waiting
                    pause_at = perf_counter() + _BURST_SECONDS
                    continue
                ctx = buffer.popleft()
                try:
                    ctx.handler = core.handlers[ctx.row["type"]]
                except KeyError:
                    self._refuse(ctx)
                    continue
                now = await self._attempt(slot, ctx)
                if len(buffer) <= core.intake.low_water:
                    core.intake.wake()
                if _changed(clean):
                    # A handler left context variables behind: the next one starts in a clean slot.
                    self._slots.discard(slot)
                    if not core.stopping:
                        self._start(clean.copy())
                    return
                if now > pause_at:
                    # Handlers that never wait would keep the connections from being read.
                    await asyncio.sleep(0)
                    pause_at = perf_counter() + _BURST_SECONDS
        finally:
            self._slots.discard(slot)

    async def _attempt(self, slot: Slot, ctx: TaskContext) -> float:
        core, handler = self._core, ctx.handler
        assert handler is not None
        slot.current = ctx
        ctx.slot = slot
        core.running.add(ctx)
        began = ctx.started = perf_counter()
        if ctx.row["timeout"] is not None and not core.guard.arm(ctx):
            # Its time was up before it was started.
            return self._over(slot, ctx, began)
        try:
            if handler.suspends:
                value = await handler.function(ctx)
            else:
                value = await core.threads.run(handler.function, BlockingTaskContext(ctx, asyncio.get_running_loop()))
        except asyncio.CancelledError as error:
            if ctx.reason is None and (self._closed or core.owner.cancelling()):
                # The worker itself ends, at once.
                ctx.reason = "stopping"
                self._interrupted(ctx, error)
                self._over(slot, ctx, began)
                raise
            self._interrupted(ctx, error)
        except Signal as signal:
            self._signalled(ctx, signal)
        except Exception as error:
            self._failed(ctx, error)
        except BaseException as error:
            if isinstance(error, GeneratorExit):
                raise  # the loop has ended under us
            # SystemExit, KeyboardInterrupt: not the task's failure, and not ours to swallow.
            if not ctx.settled:
                core.outbox.release(ctx)
            core.crashed(error)
        else:
            if value is None and not ctx.settled and not ctx.tried_to_commit:
                core.outbox.complete(ctx, None)
            else:
                self._returned(ctx, value)
        return self._over(slot, ctx, began)

    def _over(self, slot: Slot, ctx: TaskContext, began: float) -> float:
        core = self._core
        slot.current = None
        core.running.discard(ctx)
        if ctx.timer is not None:
            ctx.timer.cancel()
        if ctx.reason != "stopping" and (task := slot.task) is not None:
            # Of whatever cancelled this handler the next one knows nothing.
            while task.cancelling():
                task.uncancel()
        now = perf_counter()
        took = now - began
        known = self.took
        # Quick to believe in slow handlers: tasks claimed too early wait here while others could do them.
        self.took = took if known is None else known + (took - known) * (0.3 if took > known else 0.05)
        if core.stopping:
            core.changed.set()
        return now

    def _returned(self, ctx: TaskContext, value: Any) -> None:
        if ctx.settled:
            self._returned_late(ctx, value)
            return
        if isinstance(value, Signal):
            self._signalled(ctx, value)
            return
        if ctx.tried_to_commit:
            self._failed(
                ctx,
                {
                    "code": "not_committed",
                    "message": "The handler completed the task in a transaction that did not commit, and went on.",
                },
            )
            return
        try:
            text = None if value is None else dump_json(value, "result")
        except InvalidInput as error:
            self._failed(ctx, error)
            return
        self._core.outbox.complete(ctx, text)

    def _returned_late(self, ctx: TaskContext, value: Any) -> None:
        """What a handler still made of a task that was taken from it is handed in, refused, and so kept aside."""
        if ctx.reason in {"timeout", "lease_lost"} and value is not None and not isinstance(value, Signal):
            with contextlib.suppress(InvalidInput):
                self._core.outbox.hand_in_late(ctx, dump_json(value, "result"))

    def _signalled(self, ctx: TaskContext, signal: Signal) -> None:
        if ctx.settled:
            return
        outbox = self._core.outbox
        try:
            if isinstance(signal, RetryLater):
                reason = {"code": "retry_later", "message": signal.reason}
                outbox.release(ctx, delay=signal.delay, reason=reason)
            elif isinstance(signal, DeadLetter):
                outbox.fail(ctx, {"code": "dead_letter", "message": signal.reason}, outcome="dead")
            elif isinstance(signal, Release):
                outbox.release(ctx)
            else:
                outbox.fail(ctx, signal)
        except AttributeError as error:
            # A class of the handler's own that left out what ours is made with.
            self._failed(ctx, error)

    def _failed(self, ctx: TaskContext, error: Exception | dict[str, Any]) -> None:
        if ctx.settled:
            return
        if ctx.reason is not None or isinstance(error, TaskCancelled):
            self._interrupted(ctx, error)
            return
        if isinstance(error, Exception):
            # What an exception says may be no text that a log's file or a terminal takes, or one that deceives them.
            said = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text_of(error)[:_LOGGED])
            log.warning("%r failed: %s: %s", ctx, type(error).__name__, said)
        self._core.outbox.fail(ctx, error)

    def _interrupted(self, ctx: TaskContext, error: BaseException | dict[str, Any]) -> None:
        if ctx.settled:
            return
        if ctx.reason is None:
            # A CancelledError of the handler's own making is a failure like any other.
            self._core.outbox.fail(ctx, error)
        elif ctx.reason in {"cancelled", "stopping"}:
            # Released, a task that was asked to stop is cancelled.
            self._core.outbox.release(ctx)

    def _refuse(self, ctx: TaskContext) -> None:
        kind = ctx.row["type"]
        if kind not in self._unknown:
            self._unknown.add(kind)
            log.warning(
                "there is no handler for tasks of type %r here: they go back for others. Give such tasks a capability "
                "that this worker does not offer.",
                kind,
            )
        self._core.outbox.release(
            ctx, delay=_UNKNOWN_TYPE_DELAY, reason={"code": "unknown_type", "message": f"No handler for {kind!r} here."}
        )


def _changed(clean: Context) -> bool:
    try:
        return copy_context() != clean
    except Exception:  # of two values that differ, and cannot be compared: an array, say
        return True
