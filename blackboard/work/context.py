"""What a handler is called with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from ..errors import ConfigurationError, LeaseLost
from ..jsonable import dump_json, load_json
from ..models.tasks import TaskRecord, TaskStatus
from ..store.asyncpg_executor import AsyncpgConnectionExecutor
from ..store.executor import Isolation
from . import answers
from .signals import TaskCancelled

if TYPE_CHECKING:
    from uuid import UUID

    import asyncpg

    from ..board import Agent, BoundBlackboard, Session
    from .core import Core
    from .handlers import Handler
    from .lane import Lane
    from .slots import Slot

__all__ = ["TaskContext", "TaskTransaction"]

_USUAL_DELAY = timedelta(seconds=1)
# The wait for a connection, opening it and asking once more among it.
_BEGIN_SECONDS = 3 * answers.COMMIT_SECONDS


class TaskContext:
    """One attempt at a task, for the handler that makes it.

    For handlers are its properties and methods, ``reason``, ``claim_id`` and ``lease_id``; what else it shows is the
    worker's own book-keeping.

    Made for every task that is claimed, so it does as little as it can until it is asked.
    """

    # Seldom set; class attributes cost nothing per task.
    settled = False
    tried_to_commit = False
    timer: asyncio.TimerHandle | None = None
    reason: str | None = None
    _record: TaskRecord | None = None
    _in_transaction = False

    def __init__(
        self, core: Core, lane: Lane, row: Mapping[str, Any], claim_id: UUID, lease_id: UUID, sent_at: float
    ) -> None:
        """Made by the worker."""
        self.core = core
        self.lane = lane
        self.row = row
        self.claim_id = claim_id
        self.lease_id = lease_id
        self.sent_at = sent_at
        # What every task gets later has its place from the start: added to so many objects, each would need a dict.
        self.handler: Handler | None = None
        self.slot: Slot | None = None
        self.started = 0.0
        # JSON text, once the outbox has it.
        self.result: str | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.row['type']} {self.row['id']} attempt {self.row['attempt']}>"

    @property
    def task(self) -> TaskRecord:
        """The task as it was claimed, with its fencing token."""
        record = self._record
        if record is None:
            values: dict[str, Any] = dict(self.row)
            for name in ("parameters", "error"):
                values[name] = load_json(values[name])
            for name in ("started_at", "created_at"):
                # A double holds the microseconds of the next two centuries, and this rounds to them.
                values[name] = datetime.fromtimestamp(values[name], UTC)
            if values["retry_delay"] is None:
                values["retry_delay"] = _USUAL_DELAY
            values.update(
                session_id=self.lane.session.id,
                status=TaskStatus.RUNNING,
                assigned_to=self.lane.agent.id,
                claim_id=self.claim_id,
                lease_id=self.lease_id,
                progress=None,
                result=None,
                completed_at=None,
                held=None,
            )
            record = self._record = TaskRecord.trusting(values)
        return record

    @property
    def parameters(self) -> Any:
        """What the task was added with."""
        return load_json(self.row["parameters"]) if self._record is None else self._record.parameters

    async def inputs(self) -> dict[str, Any]:
        """What the task reads as a stage of a flow, by name, as it is bound; ``{}`` for a task of no flow.

        None stands for what a stage did not give: it was skipped, it failed, or its result has no such path.
        """
        return await self.session.flows.inputs(self.task)

    @property
    def agent(self) -> Agent:
        """The worker's agent in the task's session: what it writes is signed with the worker's ``agent_id``."""
        return self.lane.agent

    @property
    def session(self) -> Session:
        """The task's session."""
        return self.lane.session

    @property
    def cancelled(self) -> bool:
        """Whether the handler is to stop: ``cancelled`` says that, ``reason`` says why.

        A coroutine is also cancelled (``asyncio.CancelledError`` at its next ``await``); a thread cannot be, and has
        to look here. Reasons: ``cancelled`` (somebody asked for it), ``timeout``, ``lease_lost``, ``stopping``.
        """
        return self.reason is not None

    @property
    def seconds_left(self) -> float | None:
        """How much of its maximum run time is left; None without one."""
        timeout = self.row["timeout"]
        return None if timeout is None else self.sent_at + timeout.total_seconds() - monotonic()

    def raise_if_cancelled(self) -> None:
        """Nothing happens unless the handler is to stop.

        Raises:
            TaskCancelled: it is.
        """
        if self.reason is not None:
            raise TaskCancelled(self.reason)

    async def progress(self, value: Any) -> None:
        """Everybody can see how far the task is; ``value`` is JSON.

        Raises:
            InvalidInput: the value is refused.
            LeaseLost: the task was taken from this worker.
            TaskCancelled: somebody asked for it to stop, which this call noticed.
        """
        record = await self.agent.tasks.progress(self.task, value)
        if record.cancel_requested and self.reason is None:
            self.reason = "cancelled"
        self.raise_if_cancelled()

    @asynccontextmanager
    async def transaction(self, isolation: Isolation | None = None) -> AsyncGenerator[TaskTransaction]:
        """A block whose rows commit together with the completion of the task, once or not at all.

        ::

            async with ctx.transaction() as tx:
                await tx.connection.execute("INSERT INTO invoices ...")
                await tx.agent.findings.report("paid", type="invoice")
                await tx.complete({"invoice": 7})

        Without ``complete`` the rows commit and the task goes on. If the task was taken from this worker, ``complete``
        raises ``LeaseLost`` and everything rolls back, also if that is caught in the block; the result is then kept
        aside. One task has one transaction at a time; within it there are savepoints.

        Args:
            isolation: of the transaction; read committed by default.

        Raises:
            ConfigurationError: a transaction of this task is open already.
            LeaseLost: ``complete`` raised it.
            ServerUnreachable: the connection was cut. At the commit it is then unknown whether it happened; the
                attempt fails, and the board knows better: a completion that did commit stays.
        """
        if self._in_transaction:
            # There are as many connections as slots: two of them for one handler could wait for each other for ever.
            raise ConfigurationError(
                f"{self!r} has a transaction open already; use that one, with savepoints inside, or leave it first."
            )
        self._in_transaction = True
        tx: TaskTransaction | None = None
        try:
            async with AsyncExitStack() as stack:
                async with answers.in_time(_BEGIN_SECONDS):
                    executor = await stack.enter_async_context(self.core.transactions.transaction(isolation))
                tx = TaskTransaction(self, cast("AsyncpgConnectionExecutor", executor))
                yield tx
                if tx.refused is not None:
                    raise tx.refused
        except LeaseLost:
            if tx is not None and tx.refused is not None:
                # What was kept aside went with the rollback; handed in once more it is refused again, and stays.
                self.core.outbox.complete(self, tx.result)
                self.settled = True
            raise
        finally:
            self._in_transaction = False
        if tx.completed:
            self.settled = True
            self.core.transacted(self)


class TaskTransaction:
    """A transaction that a task can be completed in.

    Attributes:
        connection: for statements of your own; for savepoints, execute ``SAVEPOINT`` and ``ROLLBACK TO`` on it.
        board: handles on this connection.
        agent: the worker's agent on this connection.
        completed: whether ``complete`` was called.
    """

    def __init__(self, ctx: TaskContext, executor: AsyncpgConnectionExecutor) -> None:
        """Use ``TaskContext.transaction``."""
        self._ctx = ctx
        self.connection: asyncpg.Connection[Any] = cast("Any", executor.connection)
        self.board: BoundBlackboard = ctx.core.board.bind(self.connection)
        self.agent: Agent = self.board.agent(ctx.agent)
        self.completed = False
        self.refused: LeaseLost | None = None
        self.result: str | None = None

    async def complete(self, result: Any = None) -> None:
        """The task is completed with ``result`` if and when this transaction commits.

        What the handler returns afterwards is ignored.

        Raises:
            InvalidInput: the result is refused.
            LeaseLost: the task was taken from this worker; leave the block, which rolls back.
        """
        ctx = self._ctx
        self.result = None if result is None else dump_json(result, "result")
        ctx.tried_to_commit = True
        try:
            async with answers.in_time(answers.COMMIT_SECONDS):
                await self.agent.tasks.complete(ctx.task, result)
        except LeaseLost as error:
            self.refused = error
            raise
        self.completed = True
