"""What the tests of swarms share: files, watchers, runners in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blackboard.swarm import SwarmOutcome, SwarmSpec, Update, UpdateKind, load_swarm

from .conftest import eventually

TESTS = Path(__file__).parent
Load = Callable[..., SwarmSpec]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = str(tmp_path_factory.mktemp("temporary"))
    monkeypatch.setattr(tempfile, "tempdir", folder)  # logs of runs that are meant to fail are kept there
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv("BLACKBOARD_POLL_INTERVAL", "0.2")


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Writes a swarm file and loads it."""

    def write(agents: str, *, name: str = "inc", rest: str = "", kind: str = "parallel_investigation") -> SwarmSpec:
        text = f"swarm:\n  type: {kind}\n  task: Investigate INC-1234\n{agents}\n{rest}\n"
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return load_swarm(path)

    return write


def agents(**functions: str) -> str:
    """The agents of a file: name and function, or one further option after a blank."""
    lines = ["  agents:"]
    for name, function in functions.items():
        run, _, option = function.partition(" ")
        lines += [f"    - ops/{name}:", f"        focus: about {name}", f"        run: swarm_agents:{run}"]
        lines += [f"        {option}"] if option else []
    return "\n".join(lines)


SYNTHESIS = "  synthesis: {agent: ops/architect, action: Combine, run: 'swarm_agents:report'}"
FAST = "  coordination: {lease: 1s}"


def by_name(outcome: SwarmOutcome) -> dict[str, Any]:
    return {task.name: task for task in outcome.tasks}


def alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def group(pgid: int) -> list[int]:
    """The living processes of a group."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == pgid and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


async def gone(pgids: list[int]) -> None:
    async def check() -> bool:
        return not any(group(pgid) for pgid in pgids)

    await eventually(check)


class Watch:
    """Collects updates, and lets a test act on one."""

    def __init__(self, **actions: Callable[[Update], Any]) -> None:
        self.updates: list[Update] = []
        self.actions = actions

    def __call__(self, update: Update) -> None:
        self.updates.append(update)
        key = update.event.type if update.event else str(update.kind)
        if action := self.actions.get(key.replace(".", "_")):
            action(update)

    def types(self) -> list[str]:
        return [update.event.type for update in self.updates if update.event]

    def pids(self) -> list[int]:
        return [update.pid for update in self.updates if update.kind == UpdateKind.AGENT_STARTED and update.pid]


def kill(update: Update) -> None:
    assert update.event
    os.kill(update.event.data["progress"]["pid"], signal.SIGKILL)


class Run:
    """A runner in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.pids: list[int] = []
        self.lines: list[dict[str, Any]] = []

    @classmethod
    async def start(cls, url: str, spec: SwarmSpec, **options: Any) -> Run:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(TESTS / "swarm_main.py"), url, str(spec.path), json.dumps(options),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        return cls(process)

    async def read(self) -> dict[str, Any] | None:
        assert self.process.stdout
        line = await self.process.stdout.readline()
        if not line:
            return None
        found = json.loads(line)
        self.lines.append(found)
        if found["kind"] == "agent_started":
            self.pids.append(found["pid"])
        return found

    async def until(self, count: int, **facts: Any) -> dict[str, Any]:
        while True:
            line = await self.read()
            assert line is not None, "the runner ended before"
            count -= all(line.get(key) == value for key, value in facts.items())
            if not count:
                return line

    async def finish(self) -> dict[str, Any]:
        outcome = await self.until(1, kind="outcome")
        assert await self.process.wait() == 0
        return outcome
