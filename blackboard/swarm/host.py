"""One agent's process: ``python -m blackboard.swarm.host``, started by the runner and by nobody else.

The first line on standard input is what the agent is and does, as JSON; then come ``stop`` and ``cancel <task id>``.
When the input ends, the runner is gone, and so is this process, at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from ..board import Agent, Blackboard, Session
from ..errors import BlackboardError, ConfigurationError, InvalidInput, LeaseLost, SessionClosed
from ..models.tasks import TaskRecord, TaskStatus
from .assignment import Assignment, call_function, gather_inputs, load_function, own_findings_only
from .commands import fill_in, mcp_config, run_command, token_of, write_private
from .exits import EXIT_ABANDONED, EXIT_CONFIGURATION
from .queries import Queries
from .spec import SYNTHESIZE, Program

__all__ = ["main"]

_log = logging.getLogger("blackboard.swarm")
_CLAIM_WAIT = timedelta(seconds=30)
_LOOK_SECONDS = 1.0
_STOP_SECONDS = 3.0
_ORPHAN_SECONDS = 5.0
_TRIES = 5
_orphaned = threading.Event()


class Host:
    """The agent's life: joins, does its task, takes over what others left, until the swarm is over."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        """``plan`` is the first line of the input."""
        self.plan = plan
        self.agent_id: str = plan["agent_id"]
        self.programs = {UUID(key): _program(value) for key, value in plan["tasks"].items()}
        self.environments = {UUID(key): value["env"] for key, value in plan["tasks"].items()}
        self.stopping = asyncio.Event()
        self.abandoned = False
        self._loop = asyncio.get_running_loop()
        self._current: tuple[UUID, asyncio.Event] | None = None
        self._sync: tuple[Any, Any, Any] | None = None

    async def run(self) -> int:
        """The exit code, once the swarm is over or this agent is asked to stop."""
        try:
            self._check_programs()
        except ConfigurationError as error:
            _log.error("%s", error)
            return EXIT_CONFIGURATION
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(signum, self.stopping.set)
        board = await Blackboard.open(
            os.environ["BLACKBOARD_URL"], actor=self.agent_id, lease_term=timedelta(seconds=self.plan["lease"])
        )
        try:
            session = await board.session(UUID(self.plan["session_id"]))
            agent = await session.join(
                self.agent_id,
                capabilities=self.plan["capabilities"],
                expertise=self.plan["expertise"] or None,
            )
            await self._work(board, agent)
        except SessionClosed:
            _log.info("the session is over")
        finally:
            if self._sync is not None and not self.abandoned:
                await asyncio.to_thread(self._sync[0].close)
            await board.close()
        return EXIT_ABANDONED if self.abandoned else 0

    def hear(self, line: str) -> None:
        """One line of the runner's."""
        if line == "stop":
            self.stopping.set()
        elif line.startswith("cancel ") and self._current is not None and line[7:] == str(self._current[0]):
            self._current[1].set()

    def _check_programs(self) -> None:
        for key, value in self.plan["tasks"].items():
            program = self.programs[UUID(key)]
            if value["agent_id"] != self.agent_id:
                continue
            if program.run is not None:
                load_function(program.run)
            elif program.command and _which(program.command[0]) is None:
                raise ConfigurationError(f"`command: [{program.command[0]}, …]`: there is no such program.")

    async def _work(self, board: Blackboard, agent: Agent) -> None:
        failures = 0
        stopped = asyncio.create_task(self.stopping.wait())
        while not self.stopping.is_set() and not self.abandoned:
            claim = asyncio.create_task(agent.tasks.claim(1, wait=_CLAIM_WAIT))
            await asyncio.wait({claim, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not claim.done():
                claim.cancel()
                with contextlib.suppress(asyncio.CancelledError, BlackboardError):
                    await claim
                return
            try:
                tasks = claim.result()
            except SessionClosed:
                raise
            except BlackboardError as error:
                # The server may be away for a moment; the lease is the heartbeat's business.
                failures += 1
                if failures > _TRIES or not (error.retryable or isinstance(error, LeaseLost)):
                    raise
                _log.warning("claiming failed, trying again: %s", error)
                await asyncio.wait({stopped}, timeout=0.2 * 2**failures)
                continue
            failures = 0
            for task in tasks:
                await self._attempt(board, agent, task)
        stopped.cancel()

    async def _attempt(self, board: Blackboard, agent: Agent, task: TaskRecord) -> None:
        cancelled = asyncio.Event()
        self._current = (task.id, cancelled)
        _log.info("task %s (%s), attempt %s", task.id, task.type, task.attempt)
        work = asyncio.create_task(self._call(board, agent, task))
        others = {
            asyncio.create_task(self.stopping.wait()): "stopping",
            asyncio.create_task(cancelled.wait()): "cancelled",
            asyncio.create_task(self._watch(agent, task)): "watched",
        }
        try:
            seconds = None if task.timeout is None else task.timeout.total_seconds()
            await asyncio.wait({work, *others}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await self._settle(agent, task, work)
                return
            why = next((name for one, name in others.items() if one.done()), "timeout")
            _log.info("task %s is stopped: %s", task.id, why)
            work.cancel()
            await asyncio.wait({work}, timeout=_STOP_SECONDS)
            if not work.done():
                _log.warning("task %s would not stop: this process ends", task.id)
                self.abandoned = True
                work.cancel()
            if why == "timeout":
                await self._fail(agent, task, {"code": "timeout", "message": f"It ran longer than {task.timeout}."})
            else:
                with contextlib.suppress(BlackboardError):
                    await agent.tasks.release(task)
        finally:
            self._current = None
            for one in others:
                one.cancel()

    async def _watch(self, agent: Agent, task: TaskRecord) -> None:
        """Returns when the task is not wanted from this process any more."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            with contextlib.suppress(BlackboardError):
                now = await agent.tasks.get(task.id)
                if now.cancel_requested or (now.claim_id, now.attempt) != (task.claim_id, task.attempt):
                    return

    async def _settle(self, agent: Agent, task: TaskRecord, work: asyncio.Task[Any]) -> None:
        error = asyncio.CancelledError() if work.cancelled() else work.exception()
        if error is not None:
            _log.error("task %s failed", task.id, exc_info=error)
            await self._fail(agent, task, error)
            return
        if self._programs_command(task) and not await self._is_ours(agent, task):
            return  # the program has completed or failed it itself, over MCP
        try:
            await agent.tasks.complete(task, work.result())
            _log.info("task %s is completed", task.id)
        except InvalidInput as refused:
            await self._fail(agent, task, refused, retry=False)
        except LeaseLost as lost:
            _log.warning("%s", lost)

    async def _fail(
        self, agent: Agent, task: TaskRecord, error: BaseException | dict[str, Any], *, retry: bool = True
    ) -> None:
        try:
            await agent.tasks.fail(task, error, retry=retry)
        except LeaseLost as lost:
            _log.warning("%s", lost)
        except InvalidInput:  # a text that cannot be stored; what matters is that the attempt is over
            await agent.tasks.fail(task, f"{type(error).__name__} (its text cannot be stored)", retry=retry)

    async def _is_ours(self, agent: Agent, task: TaskRecord) -> bool:
        now = await agent.tasks.get(task.id)
        return now.status is TaskStatus.RUNNING and (now.claim_id, now.attempt) == (task.claim_id, task.attempt)

    # --------------------------------------------------------------------------------------- the program itself

    def _program(self, task: TaskRecord) -> Program:
        # A task of the file brings its own program, whoever does it; any other is for this agent's own.
        return self.programs.get(task.id) or _program(self.plan["program"])

    def _programs_command(self, task: TaskRecord) -> bool:
        return self._program(task).command is not None

    async def _call(self, board: Blackboard, agent: Agent, task: TaskRecord) -> Any:
        program = self._program(task)
        session = agent.session

        async def other_session(session_id: UUID) -> Session:
            return await board.session(session_id)

        inputs, missing = await gather_inputs(session, task, other_session)
        parameters: dict[str, Any] = task.parameters if isinstance(task.parameters, dict) else {}
        seen = agent
        narrow = not self.plan["share_findings"] and task.type != SYNTHESIZE
        if narrow:
            seen = await (await board.session(session.id)).join(self.agent_id)  # handles of its own, to narrow
            own_findings_only(seen)
        assignment = Assignment(
            agent=seen,
            session=seen.session,
            focus=str(parameters.get("focus") or self.plan["focus"]),
            target=str(parameters.get("target") or self.plan["target"]),
            context=parameters.get("context"),
            inputs=inputs,
            missing=missing,
            task=task,
            queries=Queries(agent, shared=self.plan["avoid_duplicate_queries"]),
        )
        if program.command is not None:
            return await self._command(program.command, assignment, narrow=narrow)
        assert program.run is not None
        try:
            return await call_function(
                load_function(program.run), assignment, lambda: self._sync_handles(narrow=narrow)
            )
        except (SystemExit, KeyboardInterrupt) as error:
            raise RuntimeError(f"The function ended with {error!r}.") from error

    def _sync_handles(self, *, narrow: bool) -> tuple[Any, Any]:
        from .. import sync

        if self._sync is None:
            board: Any = sync.Blackboard.open(
                os.environ["BLACKBOARD_URL"], actor=self.agent_id, lease_term=timedelta(seconds=self.plan["lease"])
            )
            session = board.session(UUID(self.plan["session_id"]))
            self._sync = (board, session.join(self.agent_id), session)
        board, agent, session = self._sync
        if narrow:
            session = board.session(session.id)
            agent = session.join(self.agent_id)
            own_findings_only(agent)
        return agent, session

    async def _command(self, command: tuple[str, ...], assignment: Assignment, *, narrow: bool) -> Any:
        task, plan = assignment.task, self.plan
        variables = {
            "SWARM_BACKEND": "postgres",
            "BLACKBOARD_URL": os.environ["BLACKBOARD_URL"],
            "BLACKBOARD_LEASE_TERM": str(plan["lease"]),
            "SWARM_SESSION": plan["session_id"],
            "AGENT_ID": self.agent_id,
            "SWARM_SHARE_FINDINGS": "0" if narrow else "1",
        }
        for name in ("BLACKBOARD_DATA_DIR", "BLACKBOARD_LISTEN_URL"):
            if os.environ.get(name):
                variables[name] = os.environ[name]
        # Named by attempt, so that a child that outlived its attempt reads nothing of the next.
        stem = f"{task.id.hex}-{task.attempt}"
        folder = Path(plan["folder"])
        files = [
            write_private(folder / f"{stem}.mcp.json", mcp_config(variables)),
            write_private(
                folder / f"{stem}.task.json",
                {
                    "agent_id": self.agent_id,
                    "session_id": plan["session_id"],
                    "task_id": str(task.id),
                    "task_token": token_of(task),
                    "type": task.type,
                    "attempt": task.attempt,
                    "focus": assignment.focus,
                    "target": assignment.target,
                    "context": assignment.context,
                    "inputs": assignment.inputs,
                    "missing": assignment.missing,
                    "parameters": task.parameters,
                },
            ),
        ]
        environment = {
            **os.environ,
            **self.environments.get(task.id, {}),
            **variables,
            "SWARM_FOCUS": assignment.focus,
            "SWARM_TARGET": assignment.target,
            "SWARM_TASK_ID": str(task.id),
            "SWARM_TASK_TOKEN": token_of(task),
            "SWARM_MCP_CONFIG": str(files[0]),
            "SWARM_ASSIGNMENT": str(files[1]),
        }
        # So that `mcp-agent-swarm` is found where the package is installed and its folder is not on the path.
        environment["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
        values = {
            "focus": assignment.focus,
            "target": assignment.target,
            "agent_id": self.agent_id,
            "session": plan["session_id"],
            "task_id": str(task.id),
            "task_token": token_of(task),
            "mcp_config": str(files[0]),
            "assignment": str(files[1]),
            "python": sys.executable,
        }
        try:
            return await run_command(fill_in(command, values), environment)
        finally:
            for file in files:
                file.unlink(missing_ok=True)


def _program(value: Mapping[str, Any]) -> Program:
    command = value.get("command")
    return Program(run=value.get("run"), command=None if command is None else tuple(command))


def _which(program: str) -> str | None:
    import shutil

    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    return program if "{" in program else shutil.which(program, path=path)


def _listen(stream: Any, loop: asyncio.AbstractEventLoop, hear: Callable[[str], None]) -> None:
    """In a thread: what the runner says, until it is gone."""
    for line in stream:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(hear, line.strip())
    # The runner is gone: nobody else will kill what does not stop by itself, or what a program left behind.
    _orphaned.set()
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(hear, "stop")
    time.sleep(_ORPHAN_SECONDS)
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    """Lives as one agent of a swarm; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    # The input is the runner's: what the agent's own program reads there is nothing.
    runner = os.fdopen(os.dup(0), encoding="utf-8")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    line = runner.readline()
    if not line:
        return 0
    plan = json.loads(line)
    for folder in reversed(plan["paths"]):
        if folder not in sys.path:
            sys.path.insert(0, folder)

    async def live() -> int:
        host = Host(plan)
        thread = threading.Thread(
            target=_listen, args=(runner, asyncio.get_running_loop(), host.hear), name="swarm-runner", daemon=True
        )
        thread.start()
        code = await host.run()
        if host.abandoned:  # the loop would wait for what does not stop
            _end(code)
        return code

    code = asyncio.run(live())
    if _orphaned.is_set():
        _end(code)
    return code


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    if _orphaned.is_set():
        os.killpg(0, signal.SIGKILL)
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
