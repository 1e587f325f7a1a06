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
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar
from uuid import UUID

from ..board import Agent, Blackboard
from ..errors import BlackboardError, ConfigurationError, InvalidInput, LeaseLost, SessionClosed
from ..models.tasks import TaskRecord, TaskStatus
from .exits import EXIT_ABANDONED, EXIT_CONFIGURATION
from .programs import Programs

__all__ = ["main"]

_T = TypeVar("_T")
_log = logging.getLogger("blackboard.swarm")
_CLAIM_WAIT = timedelta(seconds=30)
_LOOK_SECONDS = 1.0
_ORPHAN_SECONDS = 5.0
_TRIES = 5
_orphaned = threading.Event()


class _Signals:
    """SIGTERM and SIGINT ask the agent to stop; neither kills the process, from ``main`` on to its very end.

    Not the loop's own handlers: those begin and end with the loop, and a process that is asked to end while it ends
    would be killed in place of leaving its exit code. Before ``main`` they kill: the runner sends none.
    """

    def __init__(self) -> None:
        """From here on they are noted."""
        self._asked = False
        self._host: Host | None = None
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._note)

    def pass_to(self, host: Host) -> None:
        """``host`` is asked with the next one, or now if there was one before."""
        self._host = host
        if self._asked:
            host.ask()

    def close(self) -> None:
        """They do nothing any more. Ignored and not handled: the interpreter's end takes handlers away."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, signal.SIG_IGN)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True
        if self._host is not None:
            self._host.ask()


class Host:
    """The agent's life: joins, does its task, takes over what others left, until the swarm is over."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        """``plan`` is the first line of the input."""
        self.plan = plan
        self.agent_id: str = plan["agent_id"]
        self.programs = Programs(plan)
        self.stopping = asyncio.Event()
        self.abandoned = False
        self._loop = asyncio.get_running_loop()
        self._current: tuple[UUID, asyncio.Event] | None = None

    async def run(self) -> int:
        """The exit code, once the swarm is over or this agent is asked to stop."""
        try:
            self.programs.check()
        except ConfigurationError as error:
            _log.error("%s", error)
            return EXIT_CONFIGURATION
        board = await self._insist(self._open)
        try:
            await self._work(board, await self._insist(lambda: self._join(board)))
        except SessionClosed:
            _log.info("the session is over")
        finally:
            if not self.abandoned:  # else its thread may be using it
                await self.programs.close()
            await board.close()
        return EXIT_ABANDONED if self.abandoned else 0

    async def _open(self) -> Blackboard:
        lease = timedelta(seconds=self.plan["lease"])
        return await Blackboard.open(os.environ["BLACKBOARD_URL"], actor=self.agent_id, lease_term=lease)

    async def _join(self, board: Blackboard) -> Agent:
        session = await board.session(UUID(self.plan["session_id"]))
        return await session.join(
            self.agent_id, capabilities=self.plan["capabilities"], expertise=self.plan["expertise"] or None
        )

    async def _insist(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """What ``call`` returned, tried again while the server is away: it must be idempotent."""
        tries = 0
        while True:
            try:
                return await call()
            except BlackboardError as error:
                tries += 1
                if not error.retryable or tries > _TRIES or self.stopping.is_set():
                    raise
                _log.warning("trying again: %s", error)
                await asyncio.sleep(0.1 * 2**tries)

    def ask(self) -> None:
        """It is to stop; safe in the handler of a signal and in other threads."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self.stopping.set)

    def hear(self, line: str) -> None:
        """One line of the runner's."""
        if line == "stop":
            self.stopping.set()
        elif line.startswith("cancel ") and self._current is not None and line[7:] == str(self._current[0]):
            self._current[1].set()

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
        work = asyncio.create_task(self.programs.call(board, agent, task))
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
            await asyncio.wait({work}, timeout=self.plan["stop_seconds"])
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
        if self.programs.of(task).command is not None and not await self._is_ours(agent, task):
            return  # the program has completed or failed it itself, over MCP
        try:
            await self._insist(lambda: agent.tasks.complete(task, work.result()))
            _log.info("task %s is completed", task.id)
        except InvalidInput as refused:
            await self._fail(agent, task, refused, retry=False)
        except LeaseLost as lost:
            _log.warning("%s", lost)

    async def _fail(
        self, agent: Agent, task: TaskRecord, error: BaseException | dict[str, Any], *, retry: bool = True
    ) -> None:
        try:
            await self._insist(lambda: agent.tasks.fail(task, error, retry=retry))
        except LeaseLost as lost:
            _log.warning("%s", lost)
        except InvalidInput:  # a text that cannot be stored; what matters is that the attempt is over
            await agent.tasks.fail(task, f"{type(error).__name__} (its text cannot be stored)", retry=retry)

    async def _is_ours(self, agent: Agent, task: TaskRecord) -> bool:
        now = await self._insist(lambda: agent.tasks.get(task.id))
        return now.status is TaskStatus.RUNNING and (now.claim_id, now.attempt) == (task.claim_id, task.attempt)


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
    """Lives as one agent of a swarm; returns the exit code. SIGTERM and SIGINT are ignored from then on."""
    signals = _Signals()
    try:
        return _live(signals)
    finally:
        signals.close()


def _live(signals: _Signals) -> int:
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
        signals.pass_to(host)
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
