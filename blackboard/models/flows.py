"""Flows as they stand: their stages, what they wait for, how far they are."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from statistics import mean, median
from typing import Any, ClassVar, Final
from uuid import UUID

from .base import Record, UtcDatetime
from .flow_plans import After
from .tasks import TaskStatus

__all__ = ["FlowProgress", "FlowRecord", "FlowStatus", "FlowSummary", "StageRecord", "StageState"]


class FlowStatus(StrEnum):
    """Where a flow stands.

    ``completed`` means that no stage failed. A flow in which one did ends ``failed``, also where an edge or a k-of-n
    join let the others go on to the end: its stages and outputs tell what came of it.
    """

    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StageState(StrEnum):
    """Where a stage stands: ``ready`` from when its task can be claimed until that has ended."""

    WAITING = "waiting"
    READY = "ready"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


_OPEN: Final = frozenset({StageState.WAITING, StageState.READY})
_ARROWS: Final = {
    "fail": "-->",
    "skip": "-. skip .->",
    "continue": "-- continue -->",
    "compensate": "-- compensate -->",
}


class StageRecord(Record):
    """One stage of a flow and the task of its present iteration.

    Attributes:
        iteration: how often it was begun; more than 1 after a loop back.
        quality: of its present iteration, when one was said.
        error: why it failed, or was cancelled or skipped: ``code`` and ``message``.
        task_status: of its present task.
        attempt: of its present task.
    """

    name: str
    state: StageState
    task_id: UUID
    type: str
    task_status: TaskStatus | None
    attempt: int | None
    after: tuple[After, ...]
    join: int | None
    inputs: dict[str, str]
    output: str | None
    min_quality: float | None
    max_iterations: int
    loop_to: str | None
    iteration: int
    quality: float | None
    error: Any
    compensation_task_id: UUID | None
    compensation_status: TaskStatus | None
    started_at: UtcDatetime | None
    completed_at: UtcDatetime | None

    def elapsed(self, now: datetime) -> timedelta | None:
        """How long its present task has run, or ran; None before it starts."""
        if self.started_at is None:
            return None
        return max((self.completed_at or now) - self.started_at, timedelta())


class FlowProgress(Record):
    """How far a flow is.

    Attributes:
        total: how many stages it has.
        states: how many are in each state that occurs.
        critical_path: the chain of stages that decides when the flow is over, by the time that they took, have run so
            far, or are expected to take.
        stragglers: running stages that have taken more than twice as long as those like them.
    """

    total: int
    states: dict[StageState, int]
    critical_path: tuple[str, ...]
    stragglers: tuple[str, ...]


class FlowSummary(Record):
    """One row of ``blackboard.flows``.

    Attributes:
        version: grows with every pause, resume, change and cancellation; ``flows.modify`` names the one it saw.
        compensating: a failure asked for compensation; nothing new starts.
        error: why it failed or was cancelled: ``code``, ``message``, ``stages``.
    """

    json_columns: ClassVar[frozenset[str]] = frozenset({"inputs", "error"})

    session_id: UUID
    id: UUID
    name: str
    status: FlowStatus
    version: int
    inputs: dict[str, Any]
    compensating: bool
    error: Any
    created_by: str
    created_at: UtcDatetime
    finished_at: UtcDatetime | None

    @property
    def finished(self) -> bool:
        """Nothing more will happen in it, but compensation."""
        return self.finished_at is not None


class FlowRecord(FlowSummary):
    """A flow with its stages, in the order in which they were described.

    Attributes:
        outputs: the results of the completed stages that name an output.
        as_of: the board's time when it was read.
    """

    json_columns: ClassVar[frozenset[str]] = FlowSummary.json_columns | {"outputs", "stages"}

    outputs: dict[str, Any]
    stages: tuple[StageRecord, ...]
    as_of: UtcDatetime

    def stage(self, name: str) -> StageRecord:
        """The stage of that name.

        Raises:
            KeyError: there is none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    @property
    def progress(self) -> FlowProgress:
        """The roll-up: counts by state, the critical path, who takes long."""
        states: dict[StageState, int] = {}
        for stage in self.stages:
            states[stage.state] = states.get(stage.state, 0) + 1
        return FlowProgress(
            total=len(self.stages),
            states=states,
            critical_path=self._critical_path(),
            stragglers=self._stragglers(),
        )

    def _took(self) -> dict[str, list[float]]:
        took: dict[str, list[float]] = {}
        for stage in self.stages:
            elapsed = stage.elapsed(self.as_of)
            if stage.state is StageState.COMPLETED and elapsed is not None:
                took.setdefault(stage.type, []).append(elapsed.total_seconds())
        return took

    def _critical_path(self) -> tuple[str, ...]:
        took = self._took()
        every = [seconds for one in took.values() for seconds in one]
        usual = mean(every) if every else 1.0

        def weight(stage: StageRecord) -> float:
            if stage.state in {StageState.SKIPPED, StageState.CANCELLED}:
                return 0.0
            elapsed = stage.elapsed(self.as_of)
            seconds = elapsed.total_seconds() if elapsed is not None else 0.0
            if stage.state not in _OPEN:
                return seconds
            known = took.get(stage.type)
            return max(seconds, mean(known) if known else usual)

        by_name = {stage.name: stage for stage in self.stages}
        best: dict[str, tuple[float, str | None]] = {}
        for name in self._order():
            stage = by_name[name]
            before = max((best[edge.stage][0], edge.stage) for edge in stage.after) if stage.after else (0.0, None)
            best[name] = (before[0] + weight(stage), before[1])
        path: list[str] = []
        at = max(best, key=lambda name: best[name][0]) if best else None
        while at is not None:
            path.append(at)
            at = best[at][1]
        return tuple(reversed(path))

    def _order(self) -> list[str]:
        """The names, each after what it depends on."""
        waiting = {stage.name: len(stage.after) for stage in self.stages}
        followers: dict[str, list[str]] = {}
        for stage in self.stages:
            for edge in stage.after:
                followers.setdefault(edge.stage, []).append(stage.name)
        ready = [name for name, count in waiting.items() if count == 0]
        for name in ready:
            for follower in followers.get(name, ()):
                waiting[follower] -= 1
                if waiting[follower] == 0:
                    ready.append(follower)
        return ready

    def _stragglers(self) -> tuple[str, ...]:
        took = self._took()
        every = [seconds for one in took.values() for seconds in one]
        found: list[str] = []
        for stage in self.stages:
            elapsed = stage.elapsed(self.as_of)
            alike = took.get(stage.type, [])
            usual = alike if len(alike) >= 3 else every
            if stage.task_status is not TaskStatus.RUNNING or elapsed is None or len(usual) < 3:
                continue
            if elapsed.total_seconds() > 2 * median(usual):
                found.append(stage.name)
        return tuple(found)

    def text(self) -> str:
        """The graph as plain text: one line a stage, with what it comes after."""
        width = max((len(stage.name) for stage in self.stages), default=0)
        by_name = {stage.name: stage for stage in self.stages}
        lines: list[str] = []
        for name in self._order():
            stage = by_name[name]
            said = [f"{name.ljust(width)}  {stage.state:<9}"]
            if stage.after:
                join = "" if stage.join is None else f"{stage.join} of "
                edges = [
                    edge.stage if edge.on_failure == "fail" else f"{edge.stage} (else {edge.on_failure})"
                    for edge in stage.after
                ]
                said.append(f"<- {join}{', '.join(edges)}")
            if stage.min_quality is not None:
                said.append(
                    f"[quality >= {stage.min_quality:g}, round {stage.iteration}, up to {stage.max_iterations}]"
                )
            lines.append(" ".join(said).rstrip())
        return "\n".join(lines)

    def mermaid(self) -> str:
        """The graph in Mermaid's language, as documents and READMEs show it."""
        ids = {stage.name: f"s{number}" for number, stage in enumerate(self.stages)}
        lines = ["flowchart TD"]
        for stage in self.stages:
            label = stage.name.replace("#", "#35;").replace('"', "#quot;").replace("<", "#lt;")
            lines.append(f'    {ids[stage.name]}["{label}<br/>{stage.state}"]:::{stage.state}')
        for stage in self.stages:
            lines += [f"    {ids[edge.stage]} {_ARROWS[edge.on_failure]} {ids[stage.name]}" for edge in stage.after]
            if stage.min_quality is not None and stage.max_iterations > 1:
                lines.append(f"    {ids[stage.name]} -. quality .-> {ids[stage.loop_to or stage.name]}")
        return "\n".join(lines)
