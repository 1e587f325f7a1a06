"""The worker: takes tasks of some types from some sessions, runs their handlers, and writes what became of them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ..errors import ConfigurationError, InvalidInput
from ..jsonable import check_names
from .closing import to_the_end, wind_down
from .core import Core, log
from .counts import Counts
from .guard import Guard
from .handlers import Handler, Handlers
from .intake import Intake
from .lane import Lane
from .line import Line
from .outbox import Outbox
from .retry import RetryPolicy
from .slots import Slots
from .threads import Threads
from .upkeep import upkeep

if TYPE_CHECKING:
    from ..board import Blackboard, Session

__all__ = ["Worker"]

_F = TypeVar("_F", bound=Callable[..., Any])

_SLOTS_END_SECONDS = 2.0


class Worker:
    """Runs handlers for the tasks of one or more sessions, many at a time, under the lease of this process.

    ::

        worker = Worker(board, session, agent_id="ops/worker-1", capabilities=["investigate"], concurrency=20)

        @worker.handler("investigate", retry=RetryPolicy(max_attempts=3))
        async def investigate(ctx: TaskContext) -> dict[str, str]:
            await ctx.agent.findings.report("high latency", type="metric")
            return {"cause": "deployment"}

        await worker.run()          # until SIGTERM, SIGINT or stop()

    Claiming, running and writing overlap: claims are made on one connection and in sizes that follow demand, outcomes
    are written in batches on another. A task that is claimed is run once unless its process dies or is silent for a
    lease's term, and its outcome counts once in any case; what a handler does outside the board it may so do twice,
    unless it does it in ``ctx.transaction()``.

    An agent id belongs to one worker in a process: tasks that it holds there without the worker's or a handle's
    knowledge are handed back.
    """

    def __init__(
        self,
        board: Blackboard,
        sessions: Session | str | Sequence[Session | str],
        *,
        agent_id: str,
        capabilities: Sequence[str] = (),
        concurrency: int = 10,
        handlers: Mapping[str, Handler] | None = None,
        max_batch: int = 1000,
        grace: timedelta = timedelta(seconds=30),
        poll_interval: timedelta = timedelta(seconds=1),
    ) -> None:
        """Nothing runs yet.

        Args:
            board: an open board; close it after the worker.
            sessions: handles, names or ids; with several, each gets its turn.
            agent_id: who claims, as history shows it; joins the sessions.
            capabilities: what it can do; empty leaves what the agent has declared before.
            concurrency: handlers that run at once, 1 to 10 000; blocking ones have that many threads.
            handlers: to begin with; more are added with ``handler`` and ``register``.
            max_batch: most tasks in one claim or write, 1 to 10 000.
            grace: how long handlers that run may take to end after ``stop``.
            poll_interval: between looks while idle, should a hint be lost.

        Raises:
            InvalidInput: a number or a duration is out of range, or there is no session.
        """
        if not 1 <= concurrency <= 10_000:
            raise InvalidInput("concurrency must be between 1 and 10000.", field="concurrency")
        if not 1 <= max_batch <= 10_000:
            raise InvalidInput("max_batch must be between 1 and 10000.", field="max_batch")
        if grace < timedelta() or poll_interval <= timedelta():
            raise InvalidInput("grace must not be negative, and poll_interval must be positive.", field="grace")
        given = list(sessions) if isinstance(sessions, Iterable) and not isinstance(sessions, str) else [sessions]
        if not given:
            raise InvalidInput("A worker needs a session to take tasks from.", field="sessions")
        self._board = board
        self._sessions: list[Any] = given
        self._agent_id = agent_id
        self._capabilities = tuple(check_names(capabilities, "capabilities", 100, 1)) or None
        self._concurrency = concurrency
        self._max_batch = max_batch
        self._grace = grace
        self._poll_interval = poll_interval
        self._core: Core | None = None
        self._counts = Counts()
        self._active = False
        self._stopped_at_once = False
        self._stop_asked = 0
        self._background: asyncio.Task[Counts] | None = None
        self.handlers = Handlers()
        if handlers is not None:
            self.handlers.update(handlers)

    def __repr__(self) -> str:
        return f"<Worker {self._agent_id!r} for {', '.join(sorted(self.handlers)) or 'nothing'}>"

    @property
    def stopped_at_once(self) -> bool:
        """Whether the last run ended by a second signal or ``stop(now=True)``."""
        return self._stopped_at_once

    @property
    def counts(self) -> Counts:
        """How the tasks claimed so far have ended, in the present run or the last one."""
        return replace(self._counts)

    def handler(self, type: str, *, retry: RetryPolicy | None = None) -> Callable[[_F], _F]:  # noqa: A002
        """A decorator: tasks of that type are done by the function; see ``register``."""
        return self.handlers.handler(type, retry=retry)

    def register(self, type: str, function: Callable[[Any], Any], *, retry: RetryPolicy | None = None) -> None:  # noqa: A002
        """Tasks of that type are done by ``function``.

        Args:
            type: 1 to 50 characters.
            function: takes a ``TaskContext`` if it is a coroutine function, else, in a thread, a
                ``BlockingTaskContext``; returns the result (JSON), or raises.
            retry: what a failure means, unless a task was added with numbers of its own; see ``RetryPolicy``.

        Raises:
            ConfigurationError: the type has a handler already.
            InvalidInput: ``type`` is refused.
        """
        self.handlers.register(type, function, retry=retry)

    # ------------------------------------------------------------------------------------------------------ running

    async def run(self, *, signals: bool = True) -> Counts:
        """Tasks are taken until ``stop``, a signal, or the end of all its sessions; the counts in the end.

        Meanwhile what the schedules of its sessions plan is fired, once, however many workers look after them.

        The first SIGTERM or SIGINT does what ``stop`` does, the second what ``stop(now=True)`` does.

        Args:
            signals: take the two signals; only where this is the main thread. What ``signal.signal`` had set for them
                is there again afterwards; what ``loop.add_signal_handler`` had set cannot be read back and is gone:
                pass False then, and call ``stop`` in a handler of your own.

        Raises:
            ConfigurationError: it runs already, or has no handlers.
            NotFound: there is no such session.
            SystemExit, KeyboardInterrupt: a handler raised it; what ran was handed back.
            Unavailable: the database cannot be reached at the start. Later outages are waited for.
        """
        with self._taking_signals() if signals else contextlib.nullcontext():
            async with self._running() as core, upkeep(self._board, {lane.session.id for lane in core.lanes}):
                while not self._stop_asked and core.fatal is None:
                    core.changed.clear()
                    if all(lane.closed for lane in core.lanes) and not core.held and core.outbox.empty:
                        break
                    await core.changed.wait()
        return self.counts

    async def drain(self, *, scheduled: bool = False) -> Counts:
        """Tasks were taken until nothing that this worker may claim was left; the counts of this run.

        What slow claims have left out for a while is looked for before it ends; behind a pooler that takes up to 15
        seconds.

        Args:
            scheduled: also wait for tasks whose time is still to come, those to be tried again among them.

        Raises:
            ConfigurationError, NotFound, SystemExit, KeyboardInterrupt, Unavailable: as ``run`` does.
        """
        async with self._running() as core:
            core.draining = True
            while not self._stop_asked and core.fatal is None:
                core.changed.clear()
                waiting = any(
                    lane.floored or (scheduled and lane.due_at is not None) for lane in core.lanes if not lane.closed
                )
                ended = core.intake.dry or all(lane.closed for lane in core.lanes)
                if ended and not waiting and not core.held and core.outbox.empty:
                    break
                await core.changed.wait()
        return self.counts

    async def __aenter__(self) -> Self:
        """It runs in the background."""
        started = asyncio.Event()
        background = asyncio.create_task(self._run_behind(started), name="blackboard-worker")
        waiting = asyncio.create_task(started.wait())
        try:
            await asyncio.wait({background, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if background.done():
                await background
        except asyncio.CancelledError:
            # Nobody will leave a block that was not entered.
            background.cancel()
            await to_the_end(_quietly(background), background.cancel)
            raise
        finally:
            waiting.cancel()
        self._background = background
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """It has stopped; handlers that run had the time of ``grace``, unless the block failed."""
        background, self._background = self._background, None
        if background is not None:
            if not background.done():  # else it would stop the next run
                self.stop(now=error is not None)
            await background

    async def _run_behind(self, started: asyncio.Event) -> Counts:
        async with self._running() as core, upkeep(self._board, {lane.session.id for lane in core.lanes}):
            started.set()
            while not self._stop_asked and core.fatal is None:
                core.changed.clear()
                await core.changed.wait()
        return self.counts

    def stop(self, *, now: bool = False) -> None:
        """No further task is claimed, what was not started goes back, and ``run`` returns when handlers have ended.

        May be called from any thread, and in a signal's handler.

        Args:
            now: handlers that run are cancelled too, and their tasks go back. A second ``stop`` means the same.
        """
        self._stop_asked += 2 if now else 1
        if (core := self._core) is not None:
            core.stopping = True
            with contextlib.suppress(RuntimeError):  # the loop has ended
                core.owner.get_loop().call_soon_threadsafe(core.rouse)

    @property
    def _now(self) -> bool:
        return self._stop_asked > 1

    @contextlib.contextmanager
    def _taking_signals(self) -> Generator[None]:
        loop = asyncio.get_running_loop()
        taken: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                before = signal.getsignal(number)
                with contextlib.suppress(NotImplementedError, RuntimeError):
                    loop.add_signal_handler(number, self._signalled, number)
                    # The loop has one face for all its handlers: put back alone, it would swallow the signal.
                    taken[number] = None if before == signal.getsignal(number) else before
        try:
            yield
        finally:
            for number, before in taken.items():
                loop.remove_signal_handler(number)
                if before is not None:
                    signal.signal(number, before)

    def _signalled(self, number: int) -> None:
        name = signal.Signals(number).name
        if self._stop_asked:
            log.warning("%s again: stopping at once", name)
        else:
            running = len(self._core.running) if self._core else 0
            log.info("%s: no more tasks are taken, %d are still running", name, running)
        self.stop(now=bool(self._stop_asked))

    @asynccontextmanager
    async def _running(self) -> AsyncGenerator[Core]:
        if self._active:
            raise ConfigurationError("This worker runs already; one worker runs once at a time.")
        if not self.handlers:
            raise ConfigurationError("This worker has no handlers: register some with worker.handler(type).")
        self._active = True
        try:
            async with self._parts() as core:
                yield core
        finally:
            self._active = False
            self._stopped_at_once = self._now
            self._stop_asked = 0
        if core.fatal is not None:
            raise core.fatal

    @asynccontextmanager
    async def _parts(self) -> AsyncGenerator[Core]:
        owner = asyncio.current_task()
        assert owner is not None
        agents = await self._board.join(self._sessions, self._agent_id, capabilities=self._capabilities)
        once = {agent.session.id: agent for agent in agents}.values()
        lanes = [Lane(agent.session, agent, place) for place, agent in enumerate(once)]
        url = self._board.url
        claims, writes = Line(url, "blackboard worker claims"), Line(url, "blackboard worker results")
        core = Core(
            board=self._board,
            agent_id=self._agent_id,
            capabilities=self._capabilities,
            handlers=self.handlers,
            concurrency=self._concurrency,
            max_batch=self._max_batch,
            lanes=lanes,
            owner=owner,
            # As many as may be open at once: a handler in its transaction must never wait for another one's.
            transactions=Line(url, "blackboard worker transactions", self._concurrency),
            threads=Threads(self._concurrency),
        )
        core.outbox = Outbox(core, writes)
        core.intake = Intake(core, claims, self._poll_interval)
        core.slots = Slots(core)
        core.guard = Guard(core)
        self._core, self._counts = core, core.counts
        parts = [
            asyncio.create_task(part.run(), name=f"blackboard-worker-{type(part).__name__.lower()}")
            for part in (core.intake, core.outbox, core.guard)
        ]
        for part in parts:
            part.add_done_callback(lambda done: _ended(core, done))
        try:
            core.guard.start()
            core.intake.start()
            log.info("%r is at work for %s", self, ", ".join(lane.session.name for lane in lanes))
            yield core
        except BaseException:
            self.stop(now=True)
            raise
        finally:
            try:
                await to_the_end(self._close(core, parts, (claims, writes)), partial(self.stop, now=True))
            finally:
                self._core = None

    async def _close(self, core: Core, parts: Sequence[asyncio.Task[None]], lines: Sequence[Line]) -> None:
        try:
            await wind_down(core, parts, self._grace.total_seconds(), lambda: self._now)
        finally:
            core.intake.close()
            core.held |= core.outbox.refused
            core.guard.close()
            core.slots.close()
            core.threads.close()
            for part in parts:
                part.cancel()
            await asyncio.wait(parts)
            await core.slots.closed(_SLOTS_END_SECONDS)
            for line in (*lines, core.transactions):
                await line.close()


async def _quietly(task: asyncio.Task[Any]) -> None:
    await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("the worker ended before it began: %s", error)


def _ended(core: Core, part: asyncio.Task[None]) -> None:
    """A part that fails takes the worker with it: better than one that claims and never writes."""
    if not part.cancelled() and (error := part.exception()) is not None:
        core.crashed(error)
