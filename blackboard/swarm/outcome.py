"""What a run tells while it lasts, and what came of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any
from uuid import UUID

from ..models.events import Event

__all__ = ["AgentOutcome", "SwarmOutcome", "SwarmStatus", "TaskOutcome", "Update", "UpdateKind"]


class UpdateKind(StrEnum):
    """What an ``Update`` is about."""

    EVENT = "event"
    SESSION = "session"
    AGENT_STARTED = "agent_started"
    AGENT_EXITED = "agent_exited"
    TIMED_OUT = "timed_out"
    STOPPING = "stopping"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Update:
    """One thing that happened during a run.

    Attributes:
        message: one line for people.
        event: of the board, for ``event``.
        agent_id, pid, returncode: of a process, for ``agent_started`` and ``agent_exited``.
        session_id: for ``session``, which comes first.
    """

    kind: UpdateKind
    message: str
    at: datetime
    event: Event | None = None
    agent_id: str | None = None
    pid: int | None = None
    returncode: int | None = None
    session_id: UUID | None = None

    @classmethod
    def now(cls, kind: UpdateKind, message: str, **facts: Any) -> Update:
        """An update of this moment."""
        return cls(kind, message, datetime.now(UTC), **facts)


class SwarmStatus(StrEnum):
    """How a run ended. After ``interrupted`` the session is paused, and running the same file again goes on."""

    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class TaskOutcome:
    """One task of the swarm.

    Attributes:
        name: the agent's for an investigation, the stage's for a stage, else ``synthesis``.
        agent_id: who did it, or has it.
        status: of the task, such as ``completed``, ``cancelled`` or ``dead``.
        error: of its last attempt, when it did not complete.
    """

    name: str
    task_id: UUID
    agent_id: str | None
    status: str
    attempts: int
    result: Any
    error: Any


@dataclass(frozen=True)
class AgentOutcome:
    """One agent's process.

    Attributes:
        exits: exit codes of its processes in order; negative for a signal.
        log: what they wrote.
        log_tail: the last lines of it, when the last one ended badly.
    """

    agent_id: str
    starts: int
    exits: tuple[int, ...]
    log: Path
    log_tail: str


@dataclass(frozen=True)
class SwarmOutcome:
    """What came of a run.

    Attributes:
        result: of the synthesis; without one of the last stage, or of the investigations by agent.
        timed_out: the time was up before all had finished.
        duration: of this run.
        logs: where the agents' logs are; None when they were in a temporary folder that is gone.
        problems: what went wrong, a line each.
    """

    session_id: UUID
    session_name: str
    status: SwarmStatus
    result: Any
    tasks: tuple[TaskOutcome, ...]
    agents: tuple[AgentOutcome, ...]
    timed_out: bool
    duration: timedelta
    logs: Path | None
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The outcome as JSON-ready values."""
        values = asdict(self)
        values["duration"] = self.duration.total_seconds()
        return _plain(values)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return str(value) if isinstance(value, (UUID, Path)) else value
