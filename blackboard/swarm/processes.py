"""The agents' processes as the runner sees them: started, told, restarted, killed with all they started."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .exits import EXIT_ABANDONED, EXIT_CONFIGURATION
from .outcome import AgentOutcome, Update, UpdateKind
from .spec import AgentSpec

__all__ = ["AgentProcess", "log_name"]

_LONGEST_PAUSE = 5.0
_TAIL_BYTES = 4000
_TAIL_LINES = 20


class AgentProcess:
    """One agent's process, and those that follow it when it dies.

    Attributes:
        gone: it has ended, and none will follow.
        misconfigured: it ended because the file asks for what is not there.
    """

    def __init__(
        self,
        agent: AgentSpec,
        plan: Mapping[str, Any],
        *,
        log: Path,
        environment: Mapping[str, str],
        report: Callable[[Update], None],
    ) -> None:
        """Nothing runs yet."""
        self.agent = agent
        self.gone = False
        self.misconfigured = False
        self._plan = json.dumps(plan).encode() + b"\n"
        self._log = log
        self._environment = environment
        self._report = report
        self._process: asyncio.subprocess.Process | None = None
        self._starts = 0
        self._exits: list[int] = []
        self._stopping = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    async def supervise(self) -> None:
        """Returns when the process has ended and none will follow it."""
        try:
            restarts = 0
            while not self._stopping.is_set():
                code = await self._live()
                if self._stopping.is_set():
                    return
                if code == EXIT_CONFIGURATION:
                    self.misconfigured = True
                    return
                # One that ended to get rid of a stuck task is not dead: the task's attempts bound how often.
                if code != EXIT_ABANDONED:
                    if not self.agent.restart.wanted(code, restarts):
                        return
                    restarts += 1
                pause = min(_LONGEST_PAUSE, 0.1 * 2 ** min(restarts, 10))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), pause)
        finally:
            self.gone = True

    def tell(self, line: str) -> None:
        """The process reads the line, if there is one."""
        process = self._process
        if process is not None and process.returncode is None and process.stdin is not None:
            with contextlib.suppress(OSError, RuntimeError):
                process.stdin.write(line.encode() + b"\n")

    def stop(self) -> None:
        """The process is asked to end, and none will follow.

        By its input and not by a signal, which would kill it while it is starting: the line waits until it is read.
        """
        self._stopping.set()
        self.tell("stop")

    def kill(self) -> None:
        """The process and all that it started in its group are killed."""
        if self._process is not None:
            _kill_group(self._process.pid)

    def outcome(self) -> AgentOutcome:
        """How it went."""
        bad = bool(self._exits) and self._exits[-1] != 0
        return AgentOutcome(self.agent.id, self._starts, tuple(self._exits), self._log, self.log_tail() if bad else "")

    def log_tail(self) -> str:
        """The last lines that its processes wrote."""
        try:
            with self._log.open("rb") as file:
                file.seek(max(0, self._log.stat().st_size - _TAIL_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-_TAIL_LINES:])

    async def _live(self) -> int:
        with self._log.open("ab") as log:
            # -P: nothing in the working directory is imported in place of what the host itself needs.
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "blackboard.swarm.host",
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=dict(self._environment),
                start_new_session=True,
            )  # fmt: skip
        self._starts += 1
        assert process.stdin is not None
        process.stdin.write(self._plan)
        if self._stopping.is_set():
            self.stop()
        agent_id = self.agent.id
        started = f"{agent_id} runs as process {process.pid}"
        self._report(Update.now(UpdateKind.AGENT_STARTED, started, agent_id=agent_id, pid=process.pid))
        code = -signal.SIGKILL
        try:
            code = await process.wait()
        finally:
            _kill_group(process.pid)  # what it started and left behind
            self._exits.append(code)
        ended = f"killed by {_signal_name(-code)}" if code < 0 else f"exit code {code}"
        self._report(
            Update.now(
                UpdateKind.AGENT_EXITED,
                f"{agent_id} ended: {ended}",
                agent_id=agent_id,
                pid=process.pid,
                returncode=code,
            )
        )
        return code


def log_name(number: int, agent_id: str) -> str:
    """A file name for the agent's log."""
    return f"{number:02d}-{re.sub(r'[^A-Za-z0-9._-]+', '-', agent_id)}.log"


def _kill_group(pid: int) -> None:
    # The process is the leader of its group, whose number is not used again while anybody is left in it.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
