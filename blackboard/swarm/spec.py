"""A swarm as a file describes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

__all__ = [
    "INVESTIGATE",
    "REFINE",
    "SYNTHESIZE",
    "AgentSpec",
    "Coordination",
    "Program",
    "Restart",
    "StageSpec",
    "SwarmSpec",
    "SwarmType",
    "SynthesisSpec",
    "mapping",
]

INVESTIGATE = "investigate"
REFINE = "refine"
SYNTHESIZE = "synthesize"


class SwarmType(StrEnum):
    """How the agents work together."""

    PARALLEL_INVESTIGATION = "parallel_investigation"
    PROGRESSIVE_REFINEMENT = "progressive_refinement"


@dataclass(frozen=True)
class Program:
    """What does the work: exactly one of the two.

    Attributes:
        run: ``package.module:function``, imported with the working directory and the file's directory on the path.
        command: a program and its arguments; ``{focus}``, ``{mcp_config}`` and so on are filled in.
    """

    run: str | None = None
    command: tuple[str, ...] | None = None

    def __str__(self) -> str:
        return self.run or " ".join(self.command or ())


@dataclass(frozen=True)
class Restart:
    """What happens when an agent's process dies.

    Attributes:
        on: ``never``, ``on-failure`` (any exit but 0) or ``always``.
        at_most: how often; None is without a limit, with growing pauses.
    """

    on: str = "never"
    at_most: int | None = None

    def wanted(self, returncode: int, restarts: int) -> bool:
        """Whether a process that ended like this starts again."""
        if self.on == "never" or (self.on == "on-failure" and returncode == 0):
            return False
        return self.at_most is None or restarts < self.at_most


@dataclass(frozen=True)
class AgentSpec:
    """One agent: one OS process.

    Attributes:
        focus: what it looks at; empty for an agent that has stages or the synthesis only.
        program: what does the work for its own task; None where every task of it brings its own.
        capabilities: what it can do; the first is what its own task needs of whoever takes it over.
        attempts: how often its task is tried before it is given up.
        timeout: the longest that one attempt at its task may run.
    """

    id: str
    focus: str = ""
    program: Program | None = None
    capabilities: tuple[str, ...] = ()
    expertise: dict[str, float] = field(default_factory=dict[str, float])
    restart: Restart = Restart()
    env: dict[str, str] = field(default_factory=dict[str, str])
    attempts: int = 3
    timeout: timedelta | None = None


@dataclass(frozen=True)
class StageSpec:
    """One step of a progressive refinement."""

    name: str
    agent: str
    task: str
    program: Program
    inputs: tuple[str, ...] = ()
    output: str | None = None
    timeout: timedelta | None = None


@dataclass(frozen=True)
class SynthesisSpec:
    """What is made of the findings in the end."""

    agent: str
    action: str
    program: Program
    timeout: timedelta | None = None


@dataclass(frozen=True)
class Coordination:
    """How the agents treat each other.

    Attributes:
        share_findings: each sees the others' findings; else only its own (the synthesis sees all).
        avoid_duplicate_queries: the second asker of a query gets the first one's answer.
        timeout: after it, what is still open is cancelled, and the synthesis works with what there is.
        lease: how long a process that went silent keeps its task.
    """

    share_findings: bool = True
    avoid_duplicate_queries: bool = True
    timeout: timedelta | None = None
    lease: timedelta = timedelta(seconds=10)


@dataclass(frozen=True)
class SwarmSpec:
    """A swarm, ready to run; ``load_swarm`` makes it from a file.

    Attributes:
        session: the session's name.
        task: what it is all about; the session's goal.
        agents: all of them, those that only have a stage or the synthesis included, each once.
        stages: of a progressive refinement, in order.
        directory: is on the import path of ``run`` functions.
    """

    type: SwarmType
    session: str
    task: str
    agents: tuple[AgentSpec, ...]
    stages: tuple[StageSpec, ...] = ()
    synthesis: SynthesisSpec | None = None
    coordination: Coordination = Coordination()
    context: Any = None
    path: Path | None = None

    @property
    def directory(self) -> Path | None:
        """Where the file is."""
        return None if self.path is None else self.path.resolve().parent

    def agent(self, agent_id: str) -> AgentSpec:
        """The agent of that id."""
        return next(agent for agent in self.agents if agent.id == agent_id)


def mapping(value: Any) -> dict[str, Any]:
    """``value`` if it is a JSON object, else an empty one."""
    return cast("dict[str, Any]", value if isinstance(value, dict) else {})
