"""Runs a swarm: its tasks on the board, its agents as processes, from the first to the last event."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

from ..board import Blackboard, Session
from ..errors import AlreadyExists, BlackboardError, NotFound
from ..models.sessions import SessionStatus
from ..models.tasks import TaskRecord, TaskStatus
from .conductor import Conductor
from .outcome import SwarmOutcome, SwarmStatus, TaskOutcome, Update, UpdateKind
from .plan import Earlier, Plan, PlannedTask, earlier_tasks, make_plan
from .processes import AgentProcess, log_name
from .spec import AgentSpec, SwarmSpec, SwarmType

__all__ = ["OnUpdate", "run_swarm", "run_swarm_sync"]

OnUpdate = Callable[[Update], Awaitable[None] | None]
_log = logging.getLogger(__name__)
_FOLLOW_SECONDS = 0.1


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
        NotFound: there is no open session of that name and ``resume`` is True.
    """
    runner = _Runner(spec, session_name or spec.session, on_update, logs, grace)
    stage = None if from_stage is None else str(from_stage)
    environment = dict(os.environ)
    if data_dir is not None:
        environment["BLACKBOARD_DATA_DIR"] = str(Path(data_dir).absolute())
    async with Blackboard.open(url, data_dir=data_dir) as board:
        with runner.signals() if handle_signals else contextlib.nullcontext():
            environment["BLACKBOARD_URL"] = board.url
            return await runner.run(board, environment, resume=resume, from_stage=stage, close=close_session)


def run_swarm_sync(spec: SwarmSpec, **options: Any) -> SwarmOutcome:
    """``run_swarm`` for callers without an event loop."""
    return asyncio.run(run_swarm(spec, **options))


class _Runner:
    def __init__(
        self, spec: SwarmSpec, name: str, on_update: OnUpdate | None, logs: Path | str | None, grace: timedelta
    ) -> None:
        self.spec = spec
        self.name = name
        self.grace = grace.total_seconds()
        self.interrupted = asyncio.Event()
        self._on_update = on_update
        self._keep_logs = logs is not None
        self._logs = Path(tempfile.mkdtemp(prefix="blackboard-swarm-")) if logs is None else Path(logs)
        self._logs.mkdir(parents=True, exist_ok=True)
        self._updates: asyncio.Queue[Update | None] = asyncio.Queue()
        self._processes: list[AgentProcess] = []

    async def run(
        self,
        board: Blackboard,
        environment: dict[str, str],
        *,
        resume: bool | None,
        from_stage: str | None,
        close: bool,
    ) -> SwarmOutcome:
        began = monotonic()
        folder = Path(tempfile.mkdtemp(prefix="blackboard-swarm-private-"))
        telling = asyncio.create_task(self._tell())
        try:
            session, plan, cursor = await self._prepare(board, resume, from_stage)
            following = asyncio.create_task(self._follow(session, cursor))
            conductor = Conductor(self.spec, session, plan, self._processes, self.grace, self.report)
            try:
                outcome = await self._conduct(session, plan, conductor, following, environment, folder, began, close)
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
        except BaseException:
            if not self._processes and not self._keep_logs:
                shutil.rmtree(self._logs, ignore_errors=True)
            raise
        finally:
            await self._updates.put(None)
            await telling
            shutil.rmtree(folder, ignore_errors=True)
        if not self._keep_logs and outcome.status is SwarmStatus.COMPLETED:
            shutil.rmtree(self._logs, ignore_errors=True)
        return outcome

    # ------------------------------------------------------------------------------------------ before and after

    async def _prepare(
        self, board: Blackboard, resume: bool | None, from_stage: str | None
    ) -> tuple[Session, Plan, str | None]:
        """The session is open, and its tasks are on the board."""
        spec = self.spec
        before = None
        with contextlib.suppress(NotFound):
            before = await board.session(self.name)
        is_open = before is not None and before.record.status in {SessionStatus.ACTIVE, SessionStatus.PAUSED}
        if resume is False and is_open:
            raise AlreadyExists(
                f"There is an open session {self.name!r}: resume it, close it, or give this one another name.",
                noun="session",
                id=self.name,
            )
        if resume and not is_open:
            raise NotFound(f"There is no open session {self.name!r} to resume.", noun="session", id=self.name)
        earlier = Earlier()
        if before is not None and (is_open or from_stage is not None):
            earlier = await earlier_tasks(before)
        if from_stage is not None:  # what it needs must be there before anything is changed
            make_plan(spec, board_session_id(before), from_stage=from_stage, outputs=earlier.outputs)
        if before is not None and is_open:
            session, cursor = before, await before.events.now()
            if session.record.status is SessionStatus.PAUSED:
                await session.resume()
        else:
            context = dict(spec.context) if isinstance(spec.context, dict) else {"context": spec.context}  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
            if spec.context is None:
                context = {}
            session = await board.start(self.name, goal=spec.task, context={"task": spec.task, **context})
            cursor = None
            earlier = Earlier(outputs=earlier.outputs)
        self.report(
            Update.now(UpdateKind.SESSION, f"session {session.name} {session.id}", session_id=session.id)
        )
        again = from_stage is not None and earlier.round >= 0
        plan = make_plan(
            spec,
            session.id,
            round_number=max(earlier.round, 0) + again,
            from_stage=from_stage,
            outputs=earlier.outputs,
        )
        wanted = {task.id for task in plan.tasks}
        for task in earlier.open:
            if task.id not in wanted:
                with contextlib.suppress(BlackboardError):
                    await session.tasks.cancel(task.id, "The swarm was started anew without this task.")
        await session.tasks.add_many([task.new for task in plan.tasks])
        for task in (await session.tasks.get_many(wanted)).values():
            if task.status in {TaskStatus.DEAD, TaskStatus.FAILED}:
                await session.tasks.redrive(task.id)
        return session, plan, cursor

    async def _conduct(
        self,
        session: Session,
        plan: Plan,
        conductor: Conductor,
        following: asyncio.Task[None],
        environment: dict[str, str],
        folder: Path,
        began: float,
        close: bool,
    ) -> SwarmOutcome:
        self._make_processes(session, plan, environment, folder)
        supervisors = [asyncio.create_task(process.supervise()) for process in self._processes]
        for supervisor in supervisors:
            supervisor.add_done_callback(lambda _: conductor.changed.set())
        interrupting = asyncio.create_task(self.interrupted.wait())
        conducting = asyncio.create_task(conductor.conduct())
        try:
            await asyncio.wait({interrupting, conducting}, return_when=asyncio.FIRST_COMPLETED)
            interrupted = not conducting.done()
            if interrupted:
                with contextlib.suppress(BlackboardError):
                    await session.pause()  # before the agents hand back their tasks, or the others would take them
            else:
                conducting.result()
        finally:
            interrupting.cancel()
            conducting.cancel()
            await asyncio.gather(conducting, return_exceptions=True)
            await asyncio.shield(asyncio.create_task(self._stop(supervisors)))
        outcome = await self._outcome(session, plan, conductor, interrupted, monotonic() - began)
        if close and not interrupted:
            await session.close(
                outcome=outcome.result if outcome.status is SwarmStatus.COMPLETED else _failure(outcome),
                status=SessionStatus.COMPLETED if outcome.status is SwarmStatus.COMPLETED else SessionStatus.FAILED,
            )
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await self._last_events(session)
        return outcome

    async def _outcome(
        self, session: Session, plan: Plan, conductor: Conductor, interrupted: bool, seconds: float
    ) -> SwarmOutcome:
        records = await session.tasks.get_many([task.id for task in plan.tasks])
        tasks = tuple(_task_outcome(task, records[task.id]) for task in plan.tasks)
        done = [task for task in tasks if task.status == "completed"]
        if plan.synthesis is not None:
            completed, result = tasks[-1] in done, tasks[-1].result
        elif self.spec.type is SwarmType.PROGRESSIVE_REFINEMENT:
            completed, result = len(done) == len(tasks), tasks[-1].result
        else:
            completed, result = bool(done), {task.name: task.result for task in done}
        status = SwarmStatus.COMPLETED if completed else SwarmStatus.FAILED
        if interrupted:
            status = SwarmStatus.INTERRUPTED
        return SwarmOutcome(
            session_id=session.id,
            session_name=session.name,
            status=status,
            result=result if status is SwarmStatus.COMPLETED else None,
            tasks=tasks,
            agents=tuple(process.outcome() for process in self._processes),
            timed_out=conductor.timed_out,
            duration=timedelta(seconds=seconds),
            logs=self._logs if self._keep_logs or status is not SwarmStatus.COMPLETED else None,
            problems=tuple(conductor.problems),
        )

    # -------------------------------------------------------------------------------------------------- processes

    def _make_processes(self, session: Session, plan: Plan, environment: dict[str, str], folder: Path) -> None:
        spec = self.spec
        for number, agent in enumerate(spec.agents, 1):
            variables = {
                **environment,
                **agent.env,
                "PYTHONUNBUFFERED": "1",
                "AGENT_ID": agent.id,
                "SWARM_SESSION": str(session.id),
                "SWARM_FOCUS": agent.focus,
                "SWARM_SHARE_FINDINGS": "1" if spec.coordination.share_findings else "0",
                "BLACKBOARD_URL": environment["BLACKBOARD_URL"],
            }
            self._processes.append(
                AgentProcess(
                    agent,
                    _host_plan(spec, agent, session, plan, folder),
                    log=self._logs / log_name(number, agent.id),
                    environment=variables,
                    report=self.report,
                )
            )

    async def _stop(self, supervisors: list[asyncio.Task[None]]) -> None:
        """No process of this swarm is left."""
        pending = {one for one in supervisors if not one.done()}
        if pending:
            self.report(Update.now(UpdateKind.STOPPING, "the agents are asked to stop"))
        for process in self._processes:
            process.stop()
        if pending:
            await asyncio.wait(pending, timeout=self.grace)
        for process in self._processes:
            if not process.gone:
                process.kill()
        await asyncio.gather(*supervisors, return_exceptions=True)

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
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

    # ---------------------------------------------------------------------------------------------------- updates

    def report(self, update: Update) -> None:
        """The update is told, in its turn."""
        self._updates.put_nowait(update)

    async def _tell(self) -> None:
        while (update := await self._updates.get()) is not None:
            if self._on_update is None:
                continue
            try:
                told = self._on_update(update)
                if inspect.isawaitable(told):
                    await told
            except Exception:
                _log.exception("on_update failed")

    async def _follow(self, session: Session, cursor: str | None) -> None:
        self._cursor = cursor
        while True:
            try:
                more = await self._read_events(session)
            except BlackboardError as error:
                if not error.retryable:
                    raise
                _log.warning("the events could not be read, trying again: %s", error)
                more = False
            if not more:
                await asyncio.sleep(_FOLLOW_SECONDS)

    async def _read_events(self, session: Session) -> bool:
        page = await session.events.read(self._cursor)
        self._cursor = page.cursor
        for event in page.events:
            self.report(
                Update.now(UpdateKind.EVENT, f"{event.actor}: {event.type}", event=event, agent_id=event.actor)
            )
        return page.more

    async def _last_events(self, session: Session) -> None:
        while await self._read_events(session):
            pass


def board_session_id(session: Session | None) -> Any:
    """An id to plan with before the session exists."""
    from ..ids import BOARD_ID

    return BOARD_ID if session is None else session.id


def _host_plan(
    spec: SwarmSpec, agent: AgentSpec, session: Session, plan: Plan, folder: Path
) -> dict[str, Any]:
    own = next((task.program for task in plan.tasks if task.agent_id == agent.id), agent.program)
    program = agent.program or own
    return {
        "agent_id": agent.id,
        "session_id": str(session.id),
        "capabilities": list(agent.capabilities),
        "expertise": agent.expertise,
        "focus": agent.focus,
        "target": spec.task,
        "lease": spec.coordination.lease.total_seconds(),
        "share_findings": spec.coordination.share_findings,
        "avoid_duplicate_queries": spec.coordination.avoid_duplicate_queries,
        "folder": str(folder),
        "paths": [str(Path.cwd()), *([str(spec.directory)] if spec.directory else [])],
        "program": {} if program is None else {"run": program.run, "command": program.command},
        "tasks": {
            str(task.id): {
                "agent_id": task.agent_id,
                "run": task.program.run,
                "command": task.program.command,
                "env": dict(task.env),
            }
            for task in plan.tasks
        },
    }


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


def _failure(outcome: SwarmOutcome) -> dict[str, Any]:
    return {
        "timed_out": outcome.timed_out,
        "problems": list(outcome.problems),
        "tasks": {task.name: task.status for task in outcome.tasks},
    }
