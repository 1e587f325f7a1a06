"""The tasks that a swarm puts on the board."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid5

from ..board import Session
from ..errors import ConfigurationError
from ..jsonable import dump_json
from ..models.tasks import Dependency, NewTask, TaskRecord, TaskStatus
from .spec import INVESTIGATE, REFINE, SYNTHESIZE, Program, StageSpec, SwarmSpec, SwarmType, mapping

__all__ = ["Earlier", "Plan", "PlannedTask", "earlier_tasks", "make_plan"]

_TYPES = (INVESTIGATE, REFINE, SYNTHESIZE)


@dataclass(frozen=True)
class PlannedTask:
    """One task of the swarm: what goes on the board, and the program that does it, which does not.

    Attributes:
        name: the agent's for an investigation, the stage's for a stage, else ``synthesis``.
    """

    name: str
    agent_id: str
    program: Program
    env: Mapping[str, str]
    new: NewTask

    @property
    def id(self) -> UUID:
        """The task's id, the same whenever the same swarm is planned in the same session and round."""
        assert self.new.id is not None
        return self.new.id


@dataclass(frozen=True)
class Plan:
    """All tasks of one round, each after those it depends on.

    Attributes:
        work: investigations or stages.
        synthesis: what follows them.
    """

    work: tuple[PlannedTask, ...]
    synthesis: PlannedTask | None = None

    @property
    def tasks(self) -> tuple[PlannedTask, ...]:
        """Work and synthesis."""
        return self.work if self.synthesis is None else (*self.work, self.synthesis)


@dataclass
class Earlier:
    """What earlier rounds and runs left behind.

    Attributes:
        round: the newest round in the session, -1 when there was none.
        open: swarm tasks that have not finished.
        outputs: where the result of each named output is: session and task.
        from_stage: the stage with which the newest round began, where that is not the first.
    """

    round: int = -1
    from_stage: str | None = None
    open: list[TaskRecord] = field(default_factory=list[TaskRecord])
    outputs: dict[str, tuple[UUID, UUID]] = field(default_factory=dict[str, tuple[UUID, UUID]])


async def earlier_tasks(session: Session) -> Earlier:
    """What the session knows of earlier rounds of its swarm."""
    earlier = Earlier()
    for kind in _TYPES:
        for task in await session.tasks.list(type=kind, limit=10_000):
            parameters = mapping(task.parameters)
            if not isinstance(parameters.get("round"), int):
                continue  # added by an agent, not by us
            if parameters["round"] > earlier.round:
                earlier.round, earlier.from_stage = parameters["round"], parameters.get("from_stage")
            if not task.finished:
                earlier.open.append(task)
            for name, source in parameters.get("inputs", {}).items():
                if "session_id" in source:  # itself re-used from a session before
                    earlier.outputs.setdefault(name, (UUID(source["session_id"]), UUID(source["task_id"])))
            if task.status is TaskStatus.COMPLETED and parameters.get("output"):
                earlier.outputs[parameters["output"]] = (session.id, task.id)
    return earlier


def make_plan(
    spec: SwarmSpec,
    session_id: UUID,
    *,
    round_number: int = 0,
    from_stage: str | None = None,
    outputs: Mapping[str, tuple[UUID, UUID]] | None = None,
) -> Plan:
    """The tasks of the swarm in that session.

    Raises:
        ConfigurationError: there is no such stage, or what it needs was never produced.
    """
    planner = _Planner(spec, session_id, round_number)
    if spec.type is SwarmType.PARALLEL_INVESTIGATION:
        if from_stage is not None:
            raise ConfigurationError("A parallel investigation has no stages to start from; leave from_stage out.")
        work = [planner.investigation(agent.id) for agent in spec.agents if agent.focus]
    else:
        work = planner.stages(_stages_from(spec, from_stage), outputs or {}, from_stage)
    return Plan(tuple(work), planner.synthesis(work) if spec.synthesis is not None else None)


def _stages_from(spec: SwarmSpec, name: str | None) -> tuple[StageSpec, ...]:
    if name is None:
        return spec.stages
    names = [stage.name for stage in spec.stages]
    if name not in names:
        raise ConfigurationError(f"There is no stage {name!r}; there are {', '.join(names)}.")
    return spec.stages[names.index(name) :]


class _Planner:
    def __init__(self, spec: SwarmSpec, session_id: UUID, round_number: int) -> None:
        self._spec = spec
        self._session_id = session_id
        self._round = round_number

    def investigation(self, agent_id: str) -> PlannedTask:
        agent = self._spec.agent(agent_id)
        return self._task(
            INVESTIGATE, agent_id, agent_id, agent.program or Program(), focus=agent.focus, timeout=agent.timeout
        )

    def stages(
        self,
        stages: tuple[StageSpec, ...],
        outputs: Mapping[str, tuple[UUID, UUID]],
        from_stage: str | None,
    ) -> list[PlannedTask]:
        planned: list[PlannedTask] = []
        produced: dict[str, UUID] = {}
        for stage in stages:
            inputs: dict[str, dict[str, str]] = {}
            for name in stage.inputs:
                if name in produced:
                    inputs[name] = {"task_id": str(produced[name])}
                elif name in outputs:
                    session_id, task_id = outputs[name]
                    inputs[name] = {"task_id": str(task_id)}
                    if session_id != self._session_id:
                        inputs[name]["session_id"] = str(session_id)
                else:
                    raise ConfigurationError(
                        f"Stage {stage.name} needs `{name}`, which no earlier stage of session "
                        f"{self._spec.session!r} has produced yet; start from that stage."
                    )
            before = {planned[-1].id} if planned else set[UUID]()
            before |= {produced[name] for name in stage.inputs if name in produced}
            task = self._task(
                REFINE,
                stage.name,
                stage.agent,
                stage.program,
                focus=stage.task,
                timeout=stage.timeout or self._spec.agent(stage.agent).timeout,
                depends_on=tuple(sorted(before)),
                extra={"stage": stage.name, "inputs": inputs, "output": stage.output, "from_stage": from_stage},
            )
            planned.append(task)
            if stage.output is not None:
                produced[stage.output] = task.id
        return planned

    def synthesis(self, work: list[PlannedTask]) -> PlannedTask:
        synthesis = self._spec.synthesis
        assert synthesis is not None
        return self._task(
            SYNTHESIZE,
            "synthesis",
            synthesis.agent,
            synthesis.program,
            focus=synthesis.action,
            timeout=synthesis.timeout,
            depends_on=tuple(Dependency(id=task.id, on_failure="continue") for task in work),
            extra={"inputs": {task.name: {"task_id": str(task.id)} for task in work}},
            capability=SYNTHESIZE,
        )

    def _task(
        self,
        kind: str,
        name: str,
        agent_id: str,
        program: Program,
        *,
        focus: str,
        timeout: timedelta | None,
        depends_on: tuple[UUID | Dependency, ...] = (),
        extra: Mapping[str, Any] | None = None,
        capability: str | None = None,
    ) -> PlannedTask:
        spec = self._spec
        agent = spec.agent(agent_id)
        needs = capability or next(iter(agent.capabilities), kind)
        parameters = {
            "target": spec.task or focus,
            "focus": focus,
            "context": spec.context,
            "round": self._round,
            **(extra or {}),
        }
        # The id holds all that the task is: a file that was edited meanwhile makes other tasks, not a conflict.
        edges = [str(edge) if isinstance(edge, UUID) else [str(edge.id), edge.on_failure] for edge in depends_on]
        identity = [kind, name, agent_id, needs, agent.attempts, str(timeout), edges, parameters]
        new = NewTask(
            id=uuid5(self._session_id, dump_json(identity, "swarm")),
            type=kind,
            parameters=parameters,
            capability=needs,
            assigned_to=agent_id,
            depends_on=depends_on,
            timeout=timeout,
            max_attempts=agent.attempts,
        )
        return PlannedTask(name, agent_id, program, agent.env, new)
