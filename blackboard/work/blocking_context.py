"""What a handler in a thread is called with: the same names as on the loop, and what is awaited there blocks here."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, cast

from ..models.tasks import TaskRecord
from ..store.executor import Isolation
from .blocking import Blocking, BlockingContext, call

if TYPE_CHECKING:
    from ..sync import Agent as BlockingAgent
    from ..sync import BoundBlackboard as BoundBlockingBlackboard
    from ..sync import Session as BlockingSession
    from .context import TaskContext, TaskTransaction

__all__ = ["BlockingTaskContext", "BlockingTaskTransaction"]


class BlockingTaskContext:
    """One attempt at a task, for a handler that runs in a thread: the same names, and what is awaited blocks."""

    def __init__(self, ctx: TaskContext, loop: asyncio.AbstractEventLoop) -> None:
        """Made by the worker."""
        self._ctx = ctx
        self._loop = loop

    def __repr__(self) -> str:
        return repr(self._ctx)

    @property
    def task(self) -> TaskRecord:
        """The task as it was claimed, with its fencing token."""
        return self._ctx.task

    @property
    def parameters(self) -> Any:
        """What the task was added with."""
        return self._ctx.parameters

    def inputs(self) -> dict[str, Any]:
        """As ``TaskContext.inputs``."""
        return call(self._loop, self._ctx.inputs())

    @property
    def agent(self) -> BlockingAgent:
        """The worker's agent; its verbs block."""
        return cast("Any", Blocking(self._ctx.agent, self._loop))

    @property
    def session(self) -> BlockingSession:
        """The task's session; its verbs block."""
        return cast("Any", Blocking(self._ctx.session, self._loop))

    @property
    def cancelled(self) -> bool:
        """Whether the handler is to stop; nobody can stop it but itself."""
        return self._ctx.cancelled

    @property
    def reason(self) -> str | None:
        """Why it is to stop."""
        return self._ctx.reason

    @property
    def seconds_left(self) -> float | None:
        """How much of its maximum run time is left; None without one."""
        return self._ctx.seconds_left

    def raise_if_cancelled(self) -> None:
        """Nothing happens unless the handler is to stop.

        Raises:
            TaskCancelled: it is.
        """
        self._ctx.raise_if_cancelled()

    def progress(self, value: Any) -> None:
        """As ``TaskContext.progress``.

        Raises:
            InvalidInput, LeaseLost, TaskCancelled: as there.
        """
        call(self._loop, self._ctx.progress(value))

    def transaction(self, isolation: Isolation | None = None) -> AbstractContextManager[BlockingTaskTransaction]:
        """As ``TaskContext.transaction``, for ``with``."""
        return BlockingContext(
            self._ctx.transaction(isolation), self._loop, lambda tx: BlockingTaskTransaction(tx, self._loop)
        )


class BlockingTaskTransaction:
    """As ``TaskTransaction``, for a thread.

    Attributes:
        connection: for statements of your own: the coroutine methods of an asyncpg connection, which block here.
        board: handles on this connection.
        agent: the worker's agent on this connection.
    """

    def __init__(self, tx: TaskTransaction, loop: asyncio.AbstractEventLoop) -> None:
        """Use ``BlockingTaskContext.transaction``."""
        self._tx = tx
        self._loop = loop
        self.connection: Any = Blocking(tx.connection, loop)
        self.board: BoundBlockingBlackboard = cast("Any", Blocking(tx.board, loop))
        self.agent: BlockingAgent = cast("Any", Blocking(tx.agent, loop))

    @property
    def completed(self) -> bool:
        """Whether ``complete`` was called."""
        return self._tx.completed

    def complete(self, result: Any = None) -> None:
        """As ``TaskTransaction.complete``.

        Raises:
            InvalidInput, LeaseLost: as there.
        """
        call(self._loop, self._tx.complete(result))
