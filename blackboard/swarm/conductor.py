"""Watches over the tasks of a swarm: the time-out, tasks that nobody is left to do, programs that are not there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from time import monotonic
from uuid import UUID

from ..errors import BlackboardError, WaitTimeout
from ..models.tasks import TaskRecord, TaskStatus
from .outcome import Update, UpdateKind
from .prepare import Prepared
from .processes import AgentProcess
from .spec import SwarmSpec, mapping

__all__ = ["Conductor"]

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 0.5


class Conductor:
    """One run's.

    Attributes:
        changed: set by whoever knows that it is time to look.
        timed_out: the time was up before all work had finished.
        problems: what went wrong, a line each.
    """

    def __init__(
        self,
        spec: SwarmSpec,
        prepared: Prepared,
        processes: Sequence[AgentProcess],
        grace: float,
        report: Callable[[Update], None],
    ) -> None:
        """Nothing is watched yet."""
        self.changed = asyncio.Event()
        self.timed_out = False
        self.problems: list[str] = []
        self._session = prepared.session
        self._tasks = prepared.runner.tasks
        self._plan = prepared.plan
        self._processes = processes
        self._grace = grace
        self._report = report
        timeout = spec.coordination.timeout
        self._deadline = None if timeout is None else monotonic() + timeout.total_seconds()
        self._kill_at: dict[UUID, float] = {}

    async def conduct(self) -> None:
        """Returns when every task of the plan has finished."""
        hints = asyncio.create_task(self._hear())
        try:
            while True:
                self.changed.clear()
                try:
                    if await self._look():
                        return
                except BlackboardError as error:
                    if not error.retryable:
                        raise
                    _log.warning("the tasks could not be read, trying again: %s", error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), self._pause())
        finally:
            hints.cancel()

    async def _hear(self) -> None:
        """Wakes the loop when the last task finishes, without waiting for its next look."""
        last = self._plan.tasks[-1].id
        while True:
            with contextlib.suppress(WaitTimeout, BlackboardError):
                await self._tasks.wait(last, timedelta(seconds=60))
                self.changed.set()
                return
            await asyncio.sleep(_LOOK_SECONDS)

    def _pause(self) -> float:
        ends = [at for at in (self._deadline, *self._kill_at.values()) if at is not None]
        return max(0.0, min([_LOOK_SECONDS, *(at - monotonic() for at in ends)]))

    async def _look(self) -> bool:
        records = await self._tasks.get_many([task.id for task in self._plan.tasks])
        if all(record.finished for record in records.values()):
            self._note_failures(records)
            return True
        work = [records[task.id] for task in self._plan.work]
        if self._deadline is not None and monotonic() >= self._deadline:
            self._deadline = None
            if await self._cancel([task for task in work if not task.finished], "The swarm's time was up."):
                self.timed_out = True
                self._report(Update.now(UpdateKind.TIMED_OUT, "the time is up; what is open is cancelled"))
        self._kill_the_deaf(records)
        await self._cancel_what_nobody_can_do(records)
        return False

    async def _cancel(self, tasks: Sequence[TaskRecord], reason: str) -> int:
        """The tasks are cancelled, or asked to be; returns how many."""
        count = 0
        for task in tasks:
            try:
                now = await self._tasks.cancel(task.id, reason)
            except BlackboardError as error:
                if error.retryable:
                    raise
                continue  # it has finished meanwhile
            count += 1
            if now.status is TaskStatus.RUNNING:
                self._kill_at[task.id] = monotonic() + self._grace
                for process in self._processes:
                    process.tell(f"cancel {task.id}")
        return count

    def _kill_the_deaf(self, records: Mapping[UUID, TaskRecord]) -> None:
        """A process that does not let go of a cancelled task is killed; its lease does the rest."""
        for task_id, at in list(self._kill_at.items()):
            task = records[task_id]
            if task.status is not TaskStatus.RUNNING:
                del self._kill_at[task_id]
            elif monotonic() >= at:
                del self._kill_at[task_id]
                for process in self._processes:
                    if process.agent.id == task.assigned_to and process.pid is not None:
                        self._problem(f"{process.agent.id} did not let go of its cancelled task and was killed")
                        process.kill()

    async def _cancel_what_nobody_can_do(self, records: Mapping[UUID, TaskRecord]) -> None:
        living = [process for process in self._processes if not process.gone]
        if len(living) == len(self._processes):
            return
        for process in self._processes:
            if process.misconfigured:
                tail = process.log_tail().strip().splitlines()
                self._problem(f"{process.agent.id} cannot start: {tail[-1] if tail else 'see its log'}")
        if any(process.misconfigured for process in self._processes):
            await self._cancel([task for task in records.values() if not task.finished], "An agent cannot start.")
            return
        present = {
            capability
            for member in await self._session.agents.list()
            if member.present
            for capability in member.capabilities
        } | {capability for process in living for capability in process.agent.capabilities}
        ids = {process.agent.id for process in living}
        for task in records.values():
            if task.finished or task.status is TaskStatus.RUNNING:
                continue
            if task.status is TaskStatus.ASSIGNED and task.assigned_to not in ids:
                await self._free(task)
            elif task.capability not in present and task.assigned_to not in ids:
                self._problem(f"nobody is left who can do task {task.type} of {task.assigned_to}: it is cancelled")
                await self._cancel([task], "Nobody is left who can do it.")

    async def _free(self, task: TaskRecord) -> None:
        """A task that is reserved for an agent that died before it began is for all who can do it.

        Only its own agent can take it, so it is taken and handed back in its name.
        """
        assert task.assigned_to is not None
        with contextlib.suppress(BlackboardError):
            agent = await self._session.join(task.assigned_to)
            if (claimed := await agent.tasks.claim_by_id(task.id)) is not None:
                await agent.tasks.release(claimed)
            await agent.leave()

    def _note_failures(self, records: Mapping[UUID, TaskRecord]) -> None:
        for task in self._plan.tasks:
            record = records[task.id]
            if record.status is not TaskStatus.COMPLETED:
                error = mapping(record.error).get("message")
                why = f": {error}" if error else ""
                self._problem(f"{record.type} of {task.name} ended {record.status.value}{why}")

    def _problem(self, text: str) -> None:
        if text not in self.problems:
            self.problems.append(text)
            self._report(Update.now(UpdateKind.PROBLEM, text))
