"""What the parts of a running worker share."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..errors import BlackboardError, TransientError, Unavailable
from ..store.asyncpg_executor import AsyncpgConnectionExecutor, AsyncpgExecutor
from . import answers
from .context import TaskContext
from .handlers import Handler
from .threads import Threads

if TYPE_CHECKING:
    from ..board import Agent, Blackboard, Session
    from .guard import Guard
    from .intake import Intake
    from .outbox import Outbox
    from .slots import Slots

__all__ = ["RETRYABLE", "Core", "Counts", "Lane", "Line", "Outage"]

log = logging.getLogger("blackboard.worker")

RETRYABLE = (Unavailable, TransientError)
"""What a worker waits for rather than ends with."""

_OUTAGE_LOG_SECONDS = 60.0
_LONGEST_BACKOFF = 5.0


@dataclass
class Counts:
    """How the tasks that a worker claimed have ended.

    Attributes:
        claimed: tasks that were claimed.
        completed: with a result.
        retried: attempts that failed, with others to follow.
        failed: ended as ``failed``.
        dead: after the last attempt, or by ``DeadLetter``.
        released: handed back, by ``Release`` and ``RetryLater`` or because they were not started.
        cancelled: that somebody had asked to stop.
        refused: whose outcome came late: the task was somebody else's by then, and its result was kept aside.
        lost: dropped with a lease that lapsed.
    """

    claimed: int = 0
    completed: int = 0
    retried: int = 0
    failed: int = 0
    dead: int = 0
    released: int = 0
    cancelled: int = 0
    refused: int = 0
    lost: int = 0


@dataclass(eq=False)
class Lane:
    """One session that a worker takes tasks from.

    Attributes:
        place: its number among the worker's lanes.
        hot: a claim may find something.
        recheck: it was emptied, and is to be looked at once more before the worker goes idle.
        misses: how often in a row there was something that could not be claimed.
        not_before: when it is worth another claim after that.
        due_at: when its next scheduled task is due.
        floored: it may hold something that the connection for claims does not see before ``due_at``.
        look_by: when it is to be looked at, however busy the others are: something is due, or a hint was lost.
        unheard: its listeners were not yet told what was claimed of it.
        in_vain: how many hints in a row came to nothing: others were quicker.
        coming: the look that a hint has led to, where it is to come a little later.
        left_out: the last claim from several lanes got nothing of it.
        alone: and yet there is something, which such a claim leaves to one from this lane alone.
    """

    session: Session
    agent: Agent
    place: int = 0
    hot: bool = True
    recheck: bool = False
    misses: int = 0
    not_before: float = 0.0
    due_at: float | None = None
    floored: bool = False
    look_by: float = 0.0
    closed: bool = False
    unheard: bool = False
    in_vain: int = 0
    coming: asyncio.TimerHandle | None = None
    left_out: bool = False
    alone: bool = False

    def moved(self) -> None:
        """A task of it ended here: what was locked or held until then may be free."""
        self.recheck = True
        self.not_before = 0.0

    def notify(self) -> None:
        """Whoever waits for what becomes of tasks of this session looks again."""
        self.unheard = False
        self.session.scope.listener.notify(self.session.id, "tasks.changed")


class _LineConnection(AsyncpgConnectionExecutor):
    async def command(self, sql: str) -> str:
        async with answers.in_time(answers.COMMIT_SECONDS):
            return await super().command(sql)

    def _rows_of(self, records: list[Any]) -> list[Any]:
        # As they are: a dict of each would cost as much again as its decoding.
        return records


class Line(AsyncpgExecutor):
    """One connection of a worker, kept for one purpose; reconnects by itself."""

    connection_type = _LineConnection

    def __init__(self, url: str, name: str, size: int = 1) -> None:
        super().__init__(url, pool_size=size, application_name=name)

    async def renew(self) -> None:
        """What comes next goes over new connections: they know of no floors, unless a pooler gives them an old one."""
        await self._close_idle(monotonic())


class Outage:
    """Waits longer with each failure, and says so once a minute."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._failures = 0
        self._since = 0.0
        self._told_at = float("-inf")

    def answer(self) -> AbstractAsyncContextManager[None]:
        """What is asked inside is answered in time, and in more time after each failure.

        Raises:
            ServerUnreachable: it was not.
        """
        return answers.in_time(answers.ANSWER_SECONDS * 2 ** min(self._failures, 5))

    async def wait(self, error: BlackboardError, until: asyncio.Event | None = None) -> None:
        """The time for another try has come, or ``until`` is set.

        Raises:
            BlackboardError: ``error`` itself, if waiting cannot help: a schema of another version, say.
        """
        if not error.retryable:
            raise error
        now = monotonic()
        if not self._failures:
            self._since = now
        self._failures += 1
        if now - self._told_at >= _OUTAGE_LOG_SECONDS:
            self._told_at = now
            log.warning("%s waits for the database since %.0f s: %s", self._what, now - self._since, error)
        seconds = min(_LONGEST_BACKOFF, 0.05 * 2 ** min(self._failures, 10))
        if until is None:
            await asyncio.sleep(seconds)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(until.wait(), seconds)

    def over(self) -> None:
        """The database answers again."""
        if self._failures:
            if monotonic() - self._since >= 1:
                log.warning("%s goes on after %.0f s", self._what, monotonic() - self._since)
            self._failures = 0
            self._told_at = float("-inf")


@dataclass
class Core:
    """The state of a running worker, and the parts that change it."""

    board: Blackboard
    agent_id: str
    capabilities: Sequence[str] | None
    handlers: Mapping[str, Handler]
    concurrency: int
    max_batch: int
    lanes: list[Lane]
    transactions: Line
    threads: Threads
    buffer: deque[TaskContext] = field(default_factory=deque[TaskContext])
    running: set[TaskContext] = field(default_factory=set[TaskContext])
    # Everything that this worker has claimed and not yet been told the end of.
    held: set[TaskContext] = field(default_factory=set[TaskContext])
    counts: Counts = field(default_factory=Counts)
    # The worker ends when nothing is left.
    draining: bool = False
    # No new task is started any more.
    stopping: bool = False
    # Wakes the worker's own loop: something that it waits for may have happened.
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    fatal: BaseException | None = None
    intake: Intake = field(init=False)
    outbox: Outbox = field(init=False)
    slots: Slots = field(init=False)
    guard: Guard = field(init=False)

    def transacted(self, ctx: TaskContext) -> None:
        """The task was completed in a transaction of its handler."""
        self.counts.completed += 1
        self.held.discard(ctx)
        ctx.lane.moved()
        ctx.lane.notify()
        self.intake.stir()

    def take_buffered(self, wanted: Callable[[TaskContext], bool]) -> list[TaskContext]:
        """What is ``wanted`` of that which was claimed and not started, taken out."""
        taken = [ctx for ctx in self.buffer if wanted(ctx)]
        if taken:
            kept = [ctx for ctx in self.buffer if not wanted(ctx)]
            self.buffer.clear()
            self.buffer.extend(kept)
        return taken

    def crashed(self, error: BaseException) -> None:
        """The worker ends with ``error``, which is no error of a task."""
        if self.fatal is None:
            self.fatal = error
        self.stopping = True
        self.changed.set()
