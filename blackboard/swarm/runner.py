"""Runs a swarm: its tasks on the board, its agents as processes, from the first to the last event."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Generator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

from ..board import Blackboard, Session
from ..errors import BlackboardError, PayloadTooLarge, SessionClosed
from ..models.sessions import SessionStatus
from ..models.tasks import TaskRecord, TaskStatus
from .conductor import Conductor
from .outcome import SwarmOutcome, SwarmStatus, TaskOutcome, Update, UpdateKind
from .plan import PlannedTask
from .prepare import RUNNER, Prepared, host_plan, prepare
from .processes import AgentProcess, log_name
from .reporter import OnUpdate, Reporter
from .spec import SwarmSpec, SwarmType

__all__ = ["run_swarm", "run_swarm_sync"]


async def run_swarm(
    spec: SwarmSpec,
    *,
    url: str | None = None,
    session_name: str | None = None,
    on_update: OnUpdate | None = None,
    logs: Path | str | None = None,
    data_dir: Path | str | None = None,
    resume: bool | None = None,
    from_stage: str | int | None = None,
    grace: timedelta = timedelta(seconds=5),
    handle_signals: bool = True,
    close_session: bool = True,
) -> SwarmOutcome:
    """The swarm has run: its session is closed with the result, and none of its processes is left.

    An open session of that name is joined and continued: what is completed there is not done again. SIGINT, SIGTERM
    and SIGHUP stop everything; the session is then paused, and running the same swarm again goes on. So does a swarm
    whose runner was killed.

    Args:
        spec: as ``load_swarm`` returned it.
        url: the board's database; without one as ``Blackboard.open`` finds it.
        session_name: in place of the spec's.
        on_update: called with every event of the session and every start and end of a process, in order; may be
            async. What it raises is logged and changes nothing.
        logs: folder for the agents' logs, made if it is not there. Without one they are kept only when the run did
            not complete.
        data_dir: of the embedded server.
        resume: True wants an open session of that name, False wants that there is none, None takes either.
        from_stage: runs a progressive refinement again from this stage on, with the results that earlier stages left
            in the newest session of that name.
        grace: how long processes that are asked to stop may take until they are killed.
        handle_signals: whether to react to signals; only the main thread can.
        close_session: False leaves the session open in the end, for more work on it.

    Raises:
        AlreadyExists: there is an open session of that name and ``resume`` is False.
        BlackboardError: the board cannot be used.
        ConfigurationError: there is no such stage, or an earlier one has no result yet.
        Conflict: another runner is at work in the session.
        NotFound: there is no open session of that name and ``resume`` is True.
    """
    environment = dict(os.environ)
    if data_dir is not None:
        environment["BLACKBOARD_DATA_DIR"] = str(data_dir)
    lease = spec.coordination.lease
    async with Blackboard.open(url, actor=RUNNER, data_dir=data_dir, lease_term=lease) as board:
        environment["BLACKBOARD_URL"] = board.url
        reporter = Reporter(on_update)
        runner = _Runner(spec, reporter, environment, grace.total_seconds())
        finished = None
        try:
            with runner.signals() if handle_signals else contextlib.nullcontext():
                prepared = await prepare(
                    board,
                    spec,
                    session_name or spec.session,
                    reporter.report,
                    runner.interrupted,
                    resume=resume,
                    from_stage=None if from_stage is None else str(from_stage),
                )
                try:
                    with _folders(logs) as (log_folder, private):
                        outcome = await runner.run(prepared, log_folder, private, close=close_session)
                        if logs is None and outcome.status is SwarmStatus.COMPLETED:
                            shutil.rmtree(log_folder, ignore_errors=True)
                            outcome = replace(outcome, logs=None)
                finally:
                    await asyncio.shield(prepared.release())
                finished = prepared.session
        finally:
            await reporter.finish(finished)
        return outcome


def run_swarm_sync(spec: SwarmSpec, **options: Any) -> SwarmOutcome:
    """``run_swarm`` for callers without an event loop."""
    return asyncio.run(run_swarm(spec, **options))


@contextlib.contextmanager
def _folders(logs: Path | str | None) -> Generator[tuple[Path, Path]]:
    """A folder for logs, which stays, and one for what holds secrets, which goes."""
    private = Path(tempfile.mkdtemp(prefix="blackboard-swarm-private-"))
    try:
        folder = Path(tempfile.mkdtemp(prefix="blackboard-swarm-logs-")) if logs is None else Path(logs)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder, private
    finally:
        shutil.rmtree(private, ignore_errors=True)


class _Runner:
    def __init__(self, spec: SwarmSpec, reporter: Reporter, environment: dict[str, str], grace: float) -> None:
        self._spec = spec
        self._reporter = reporter
        self._environment = environment
        self._grace = grace
        self.interrupted = asyncio.Event()
        self._processes: list[AgentProcess] = []

    async def run(self, prepared: Prepared, logs: Path, private: Path, *, close: bool) -> SwarmOutcome:
        """The swarm's processes have come and gone, and its session is closed or paused."""
        began = monotonic()
        session, report = prepared.session, self._reporter.report
        self._reporter.follow(session, prepared.cursor)
        self._make_processes(prepared, logs, private)
        conductor = Conductor(self._spec, prepared, self._processes, self._grace, report)
        supervisors = [asyncio.create_task(process.supervise()) for process in self._processes]
        for supervisor in supervisors:
            supervisor.add_done_callback(lambda _: conductor.changed.set())
        interrupting = asyncio.create_task(self.interrupted.wait())
        conducting = asyncio.create_task(conductor.conduct())
        try:
            await asyncio.wait({interrupting, conducting}, return_when=asyncio.FIRST_COMPLETED)
            interrupted = not conducting.done()
            if interrupted:
                report(Update.now(UpdateKind.STOPPING, "interrupted; run the same swarm again to go on"))
                with contextlib.suppress(BlackboardError):
                    await session.pause()  # before the agents hand back their tasks, or the others would take them
            else:
                conducting.result()
        finally:
            interrupting.cancel()
            conducting.cancel()
            await asyncio.shield(asyncio.create_task(self._stop(supervisors)))
            await asyncio.gather(conducting, return_exceptions=True)
        records = await session.tasks.get_many([task.id for task in prepared.plan.tasks])
        tasks = tuple(_task_outcome(task, records[task.id]) for task in prepared.plan.tasks)
        completed, result = self._result(tasks)
        status = SwarmStatus.COMPLETED if completed else SwarmStatus.FAILED
        if interrupted:
            status = SwarmStatus.INTERRUPTED
        outcome = SwarmOutcome(
            session_id=session.id,
            session_name=session.name,
            status=status,
            result=result if status is SwarmStatus.COMPLETED else None,
            tasks=tasks,
            agents=tuple(process.outcome() for process in self._processes),
            timed_out=conductor.timed_out,
            duration=timedelta(seconds=monotonic() - began),
            logs=logs,
            problems=tuple(conductor.problems),
        )
        if close and not interrupted:
            await _close(session, outcome)
        return outcome

    def _result(self, tasks: tuple[TaskOutcome, ...]) -> tuple[bool, Any]:
        """Whether the swarm reached its end, and what came of it."""
        done = [task for task in tasks if task.status == TaskStatus.COMPLETED]
        if self._spec.synthesis is not None:
            return tasks[-1] in done, tasks[-1].result
        if self._spec.type is SwarmType.PROGRESSIVE_REFINEMENT:
            return len(done) == len(tasks), tasks[-1].result
        return bool(done), {task.name: task.result for task in done}

    def _make_processes(self, prepared: Prepared, logs: Path, private: Path) -> None:
        for number, agent in enumerate(self._spec.agents, 1):
            variables = {
                **self._environment,
                **agent.env,
                "PYTHONUNBUFFERED": "1",
                "AGENT_ID": agent.id,
                "SWARM_SESSION": str(prepared.session.id),
                "SWARM_FOCUS": agent.focus,
                "SWARM_SHARE_FINDINGS": "1" if self._spec.coordination.share_findings else "0",
                "BLACKBOARD_URL": self._environment["BLACKBOARD_URL"],
            }
            self._processes.append(
                AgentProcess(
                    agent,
                    host_plan(self._spec, agent, prepared, private, self._grace),
                    log=logs / log_name(number, agent.id),
                    environment=variables,
                    report=self._reporter.report,
                )
            )

    async def _stop(self, supervisors: list[asyncio.Task[None]]) -> None:
        """No process of this swarm is left."""
        pending = {one for one in supervisors if not one.done()}
        if pending:
            self._reporter.report(Update.now(UpdateKind.STOPPING, "the agents are asked to stop"))
        for process in self._processes:
            process.stop()
        if pending:
            await asyncio.wait(pending, timeout=self._grace)
        for process in self._processes:
            if not process.gone:
                process.kill()
        await asyncio.gather(*supervisors, return_exceptions=True)

    @contextlib.contextmanager
    def signals(self) -> Generator[None]:
        """The first signal interrupts; a second one kills the processes at once."""
        loop = asyncio.get_running_loop()
        caught: list[signal.Signals] = []

        def interrupt() -> None:
            if self.interrupted.is_set():
                for process in self._processes:
                    process.kill()
            self.interrupted.set()

        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            try:
                loop.add_signal_handler(signum, interrupt)
            except (ValueError, RuntimeError, NotImplementedError):  # not the main thread
                break
            caught.append(signum)
        try:
            yield
        finally:
            for signum in caught:
                loop.remove_signal_handler(signum)


def _task_outcome(task: PlannedTask, record: TaskRecord) -> TaskOutcome:
    return TaskOutcome(
        name=task.name,
        task_id=task.id,
        agent_id=record.assigned_to,
        status=record.status.value,
        attempts=record.attempt - record.released,
        result=record.result,
        error=None if record.status is TaskStatus.COMPLETED else record.error,
    )


async def _close(session: Session, outcome: SwarmOutcome) -> None:
    completed = outcome.status is SwarmStatus.COMPLETED
    status = SessionStatus.COMPLETED if completed else SessionStatus.FAILED
    try:
        await session.close(outcome=outcome.result if completed else _failure(outcome), status=status)
    except PayloadTooLarge:  # the results together; each is on its task
        await session.close(outcome={"tasks": {task.name: str(task.task_id) for task in outcome.tasks}}, status=status)
    except SessionClosed:
        pass  # by somebody else meanwhile, whose outcome stands


def _failure(outcome: SwarmOutcome) -> dict[str, Any]:
    return {
        "timed_out": outcome.timed_out,
        "problems": list(outcome.problems),
        "tasks": {task.name: task.status for task in outcome.tasks},
    }
