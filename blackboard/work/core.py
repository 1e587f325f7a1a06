"""The state of a running worker, which its parts share."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .context import TaskContext
from .counts import Counts
from .handlers import Handler
from .lane import Lane
from .line import Line
from .threads import Threads

if TYPE_CHECKING:
    from ..board import Blackboard
    from .guard import Guard
    from .intake import Intake
    from .outbox import Outbox
    from .slots import Slots

__all__ = ["Core", "log"]

log = logging.getLogger("blackboard.worker")


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
    # That runs the worker: cancelled with all others when its loop ends.
    owner: asyncio.Task[Any]
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

    def rouse(self) -> None:
        """Whoever waits in the worker looks again."""
        self.intake.wake()
        self.changed.set()

    def crashed(self, error: BaseException) -> None:
        """The worker ends with ``error``, which is no error of a task."""
        if self.fatal is None:
            self.fatal = error
        self.stopping = True
        self.changed.set()
