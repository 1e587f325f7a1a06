"""The programs of an agent: found, given their assignment, run."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from ..board import Agent, Blackboard, Session
from ..errors import ConfigurationError
from ..models.tasks import TaskRecord
from .assignment import Assignment, call_function, gather_inputs, load_function, own_findings_only
from .commands import fill_in, mcp_config, run_command, token_of, write_private
from .queries import Queries
from .spec import SYNTHESIZE, Program, mapping

__all__ = ["Programs"]


class Programs:
    """What one agent's process can run. A task of the file brings its own program, whoever does it."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        """``plan`` is what the runner told this process."""
        self._plan = plan
        self._agent_id: str = plan["agent_id"]
        self._programs = {UUID(key): _program(value) for key, value in plan["tasks"].items()}
        self._environments = {UUID(key): value["env"] for key, value in plan["tasks"].items()}
        self._sync: tuple[Any, Any, Any] | None = None

    async def close(self) -> None:
        """The blocking board, if there is one, is closed."""
        if self._sync is not None:
            await asyncio.to_thread(self._sync[0].close)

    def check(self) -> None:
        """What the agent's own tasks need is there.

        Raises:
            ConfigurationError: a function cannot be imported, or a program is not found.
        """
        for key, value in self._plan["tasks"].items():
            program = self._programs[UUID(key)]
            if value["agent_id"] != self._agent_id:
                continue
            if program.run is not None:
                load_function(program.run)
            elif program.command and _which(program.command[0]) is None:
                raise ConfigurationError(f"`command: [{program.command[0]}, …]`: there is no such program.")

    def of(self, task: TaskRecord) -> Program:
        """What does the task."""
        # A task of the file brings its own program, whoever does it; any other is for this agent's own.
        return self._programs.get(task.id) or _program(self._plan["program"])

    async def call(self, board: Blackboard, agent: Agent, task: TaskRecord) -> Any:
        """What the task's program returned.

        Raises:
            CommandFailed: a program ended badly.
            Exception: what a function raised.
        """
        program = self.of(task)
        session = agent.session

        async def other_session(session_id: UUID) -> Session:
            return await board.session(session_id)

        inputs, missing = await gather_inputs(session, task, other_session)
        parameters = mapping(task.parameters)
        seen = agent
        narrow = not self._plan["share_findings"] and task.type != SYNTHESIZE
        if narrow:
            seen = await (await board.session(session.id)).join(self._agent_id)  # handles of its own, to narrow
            own_findings_only(seen)
        assignment = Assignment(
            agent=seen,
            session=seen.session,
            focus=str(parameters.get("focus") or self._plan["focus"]),
            target=str(parameters.get("target") or self._plan["target"]),
            context=parameters.get("context"),
            inputs=inputs,
            missing=missing,
            task=task,
            queries=Queries(agent, shared=self._plan["avoid_duplicate_queries"]),
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
                os.environ["BLACKBOARD_URL"], actor=self._agent_id, lease_term=timedelta(seconds=self._plan["lease"])
            )
            session = board.session(UUID(self._plan["session_id"]))
            self._sync = (board, session.join(self._agent_id), session)
        board, agent, session = self._sync
        if narrow:
            session = board.session(session.id)
            agent = session.join(self._agent_id)
            own_findings_only(agent)
        return agent, session

    async def _command(self, command: tuple[str, ...], assignment: Assignment, *, narrow: bool) -> Any:
        task, plan = assignment.task, self._plan
        variables = {
            "SWARM_BACKEND": "postgres",
            "BLACKBOARD_URL": os.environ["BLACKBOARD_URL"],
            "BLACKBOARD_LEASE_TERM": str(plan["lease"]),
            "SWARM_SESSION": plan["session_id"],
            "AGENT_ID": self._agent_id,
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
                    "agent_id": self._agent_id,
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
            **self._environments.get(task.id, {}),
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
            "agent_id": self._agent_id,
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
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    return program if "{" in program else shutil.which(program, path=path)
