"""Flows: graphs of stages that are created, watched and changed as one thing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal
from uuid import UUID

from ..errors import InvalidInput, LeaseLost, NotFound, WaitTimeout
from ..ids import as_uuid, new_id
from ..jsonable import check_text, dump_json, load_json
from ..models.flow_plans import After, Stage
from ..models.flows import FlowProgress, FlowRecord, FlowStatus, FlowSummary
from ..models.tasks import NewTask, TaskRecord
from ..store.statements import statements
from .adding import task_options
from .ids import PartialIds

__all__ = ["Flows"]

_SQL = statements("flows")


class Flows(PartialIds):
    """The flows of one session."""

    noun = "flow"

    async def create(
        self,
        name: str,
        stages: Iterable[Stage],
        *,
        inputs: Mapping[str, Any] | None = None,
        id: UUID | str | None = None,  # noqa: A002 - the column's name, the same in every language
    ) -> FlowRecord:
        """The flow is on the board with all its tasks and edges; its first stages can be claimed once committed.

        Args:
            name: what it is called; 1 to 200 characters.
            stages: 1 to 10 000; ``sequential``, ``parallel`` and ``fork_join`` put them together.
            inputs: what its stages can read as ``inputs.x``; up to 1 MiB of JSON.
            id: the idempotency key; made here when not given.

        Raises:
            CyclicDependency: the stages form a cycle; carries the path of their names.
            IdempotencyConflict: the id was used before with other content.
            InvalidInput: a value is refused, a name is there twice, or an edge, input or loop names a stage that there
                is not, or that does not come before; names stage and field. Nothing was created.
            NotFound: no such session.
            SessionClosed: the session is over.
        """
        described = [dump_json(_described(stage), "stages") for stage in stages]
        flow_id = new_id() if id is None else as_uuid(id, "id")
        await self._executor.fetch_one(
            _SQL["create_flow"],
            session_id=self._scope.session_id,
            id=flow_id,
            name=check_text(name, "name", 200, 1),
            stages=described,
            inputs=dump_json({} if inputs is None else dict(inputs), "inputs"),
            actor=self._scope.actor,
        )
        self._hint("tasks.ready")
        return await self.get(flow_id)

    async def get(self, flow_id: UUID | str) -> FlowRecord:
        """The flow with its stages and what became of them.

        Raises:
            NotFound: no such flow in this session.
        """
        wanted = as_uuid(flow_id, "flow_id")
        row = await self._executor.fetch_one(_SQL["get_flow"], session_id=self._scope.session_id, id=wanted)
        if row is None:
            raise NotFound(f"There is no flow {flow_id} in this session.", noun="flow", id=str(flow_id))
        return FlowRecord.from_row(row)

    async def list(self, *, status: FlowStatus | str | None = None, limit: int = 100) -> list[FlowSummary]:
        """The flows without their stages, newest first.

        Raises:
            InvalidInput: no such status.
        """
        rows = await self._executor.fetch_all(
            _SQL["list_flows"],
            session_id=self._scope.session_id,
            status=None if status is None else _status(status),
            limit=limit,
        )
        return [FlowSummary.from_row(row) for row in rows]

    async def progress(self, flow_id: UUID | str) -> FlowProgress:
        """How far the flow is: stages by state, the critical path, the stragglers.

        Raises:
            NotFound: no such flow.
        """
        return (await self.get(flow_id)).progress

    async def graph(self, flow_id: UUID | str, *, format: Literal["text", "mermaid"] = "text") -> str:  # noqa: A002
        """The graph with the states of its stages, as plain text or in Mermaid's language.

        Raises:
            InvalidInput: no such format.
            NotFound: no such flow.
        """
        if format not in ("text", "mermaid"):
            raise InvalidInput(f"format must be text or mermaid, got {format!r}.", field="format")
        flow = await self.get(flow_id)
        return flow.text() if format == "text" else flow.mermaid()

    async def wait(self, flow_id: UUID | str, timeout: timedelta | None = None) -> FlowRecord:
        """The flow is over: completed, failed or cancelled, as its record tells. Compensation may still be going on.

        Raises:
            NotFound: no such flow.
            WaitNotAllowed: this handle is bound to a caller's connection.
            WaitTimeout: it is not over in time.
        """
        wanted = as_uuid(flow_id, "flow_id")

        async def check() -> FlowRecord | None:
            row = await self._executor.fetch_one(_SQL["get_flow_status"], session_id=self._scope.session_id, id=wanted)
            return await self.get(wanted) if row is None or row["finished"] else None

        # Its end may come with a hot verb on a task, which hints at tasks only.
        flow = await self._until("wait", ("flows", "tasks"), check, timeout)
        if flow is None:
            raise WaitTimeout(f"Flow {flow_id} is not over in time; wait again or cancel it.", id=str(flow_id))
        return flow

    async def inputs(self, task: TaskRecord | UUID | str) -> dict[str, Any]:
        """What the stage of this task reads, by name, as it is bound; ``{}`` for a task of no flow.

        None stands for what a stage did not give: it was skipped, it failed, or its result has no such path.
        """
        row = await self._executor.fetch_one(
            _SQL["get_task_inputs"], session_id=self._scope.session_id, id=_task_id(task)
        )
        assert row is not None
        return load_json(row["inputs"])

    async def reason(self, task: TaskRecord | UUID | str) -> dict[str, Any] | None:
        """Why its flow keeps the task from being claimed (``code``, ``message``, ``waits_for``); None if none does."""
        row = await self._executor.fetch_one(
            _SQL["get_flow_reason"], session_id=self._scope.session_id, id=_task_id(task)
        )
        assert row is not None
        return load_json(row["reason"])

    async def complete_stage(self, task: TaskRecord, result: Any = None, *, quality: float | None = None) -> None:
        """The stage's task is completed, and what follows from its quality has happened: the next stages, or a loop.

        ``tasks.complete`` does the same and takes the quality from a number called ``quality`` in the result. A stage
        with ``min_quality`` that does not say any loops back as one that is below it.

        Args:
            task: as it was claimed.
            result: JSON, up to 1 MiB.
            quality: 0 to 1.

        Raises:
            InvalidInput: the task is no stage of a flow, or a value is refused.
            LeaseLost: the task was taken from this holder; the result was kept aside.
        """
        if task.claim_id is None:
            raise InvalidInput("This task was never claimed: pass the record that `claim` returned.", field="task")
        refused = await self._executor.fetch_one(
            _SQL["complete_stage"],
            session_id=self._scope.session_id,
            id=task.id,
            claim_id=task.claim_id,
            attempt=task.attempt,
            result=None if result is None else dump_json(result, "result"),
            quality=quality,
            agent_id=self._agent_id,
        )
        self._hint("tasks.ready")
        if refused is not None:
            raise LeaseLost(
                f"Task {task.id} is not yours any more: the result was kept aside and not applied. Drop this work.",
                noun="task",
                id=str(task.id),
            )

    async def pause(self, flow_id: UUID | str, *, stop: bool = False) -> FlowRecord:
        """No stage of the flow is handed out any more until ``resume``; doing it again changes nothing.

        Args:
            flow_id: of the flow.
            stop: also ask those who run its stages to stop; what stops starts over after ``resume``, and what is
                completed nevertheless counts.

        Raises:
            InvalidTransition: the flow is over.
            NotFound: no such flow.
            TransientError: it collided with the end of many stages; call it again.
        """
        return await self._changed("pause_flow", flow_id, stop=stop)

    async def resume(self, flow_id: UUID | str) -> FlowRecord:
        """What the pause held can be claimed again; doing it again changes nothing.

        Raises:
            InvalidTransition: the flow is over.
            NotFound: no such flow.
            SessionClosed: the session is over.
            TransientError: it collided with the end of many stages; call it again.
        """
        return await self._changed("resume_flow", flow_id)

    async def cancel(self, flow_id: UUID | str, reason: str = "") -> FlowRecord:
        """The flow is cancelled: what waits is cancelled, what runs is asked to stop. Nothing is compensated.

        Raises:
            InvalidTransition: the flow is completed or failed.
            NotFound: no such flow.
            TransientError: it collided with the end of many stages; call it again.
        """
        return await self._changed("cancel_flow", flow_id, reason=check_text(reason, "reason", 4000))

    async def modify(
        self,
        flow_id: UUID | str,
        expected_version: int,
        *,
        add: Iterable[Stage] = (),
        remove: Iterable[str] = (),
        rewire: Mapping[str, Sequence[str | After]] | None = None,
        reprioritise: Mapping[str, int] | None = None,
        key: str | None = None,
    ) -> FlowRecord:
        """Stages that have not started are changed, all together; what is done or being done stays as it is.

        Args:
            flow_id: of the flow.
            expected_version: the ``version`` of the flow that the change was made for.
            add: new stages.
            remove: names of stages; their tasks are cancelled. What came after them is to be rewired, or removed too.
            rewire: what a stage comes after from now on, by its name.
            reprioritise: a stage's new priority, 0 to 10, by its name.
            key: the idempotency key: the same call with it returns the flow as it is. Made here when not given, so that
                a call whose answer was lost can be repeated.

        Raises:
            Conflict: the flow is at another version (``version`` says which), or a stage has started.
            CyclicDependency: the stages would form a cycle; carries the path of their names.
            IdempotencyConflict: ``key`` was used for another call.
            InvalidInput: what would come out is no sound flow; see ``create``.
            InvalidTransition: the flow is over.
            NotFound: no such flow or stage.
            SessionClosed: the session is over.
            TransientError: it collided with the end of many stages; call it again.
        """
        change: dict[str, Any] = {}
        if added := [_described(stage) for stage in add]:
            change["add"] = added
        if removed := [check_text(name, "remove", 100, 1) for name in remove]:
            change["remove"] = removed
        if rewire:
            change["rewire"] = {name: _edges(after) for name, after in rewire.items()}
        if reprioritise:
            for name, priority in reprioritise.items():
                _check_priority(priority, name)
            change["reprioritise"] = dict(reprioritise)
        if not change:
            raise InvalidInput("Say what to change: add, remove, rewire or reprioritise.", field="change")
        if key is None and not self._executor.bound:
            key = str(new_id())
        return await self._changed(
            "modify_flow",
            flow_id,
            expected_version=expected_version,
            change=dump_json(change, "change"),
            key=None if key is None else check_text(key, "key", 200, 1),
        )

    async def _changed(self, statement: str, flow_id: UUID | str, **params: Any) -> FlowRecord:
        wanted = as_uuid(flow_id, "flow_id")
        await self._executor.fetch_one(
            _SQL[statement], session_id=self._scope.session_id, id=wanted, actor=self._scope.actor, **params
        )
        self._hint("tasks.ready")
        return await self.get(wanted)


def _task_id(task: TaskRecord | UUID | str) -> UUID:
    return task.id if isinstance(task, TaskRecord) else as_uuid(task, "task_id")


def _status(value: FlowStatus | str) -> str:
    try:
        return FlowStatus(value).value
    except ValueError:
        known = ", ".join(FlowStatus)
        raise InvalidInput(f"There is no flow status {value!r}; use one of {known}.", field="status") from None


def _check_priority(priority: int, stage: str) -> None:
    if not 0 <= priority <= 10:
        raise InvalidInput(
            f"The priority of stage {stage} must be between 0 and 10, got {priority}.", field="priority", stage=stage
        )


def _edges(after: Sequence[str | After]) -> list[dict[str, str]]:
    edges = [After(edge) if isinstance(edge, str) else edge for edge in after]
    return [
        {"stage": check_text(edge.stage, "after", 100, 1), "on_failure": check_text(edge.on_failure, "on_failure", 20)}
        for edge in edges
    ]


def _template(task: NewTask) -> dict[str, Any]:
    """A task of a flow, as ``blackboard.create_flow`` takes it."""
    if task.depends_on:
        raise InvalidInput("A stage depends on stages: name them in `after`.", field="depends_on")
    if task.unique is not None:
        raise InvalidInput("A stage is always a task of its own: leave `unique` out.", field="unique")
    _check_priority(task.priority, task.type)
    return {
        "type": check_text(task.type, "type", 50, 1),
        "capability": check_text(task.capability, "capability", 100),
        "priority": task.priority,
        "parameters": task.parameters,
        "options": load_json(task_options(task)),
    }


def _described(stage: Stage) -> dict[str, Any]:
    return {
        **_template(stage),
        "name": check_text(stage.name, "name", 100, 1),
        "id": None if stage.id is None else str(stage.id),
        "after": _edges(stage.after),
        "join": stage.join,
        "inputs": {
            check_text(name, "inputs", 100, 1): check_text(source, "inputs", 1000, 1)
            for name, source in stage.inputs.items()
        },
        "output": None if stage.output is None else check_text(stage.output, "output", 100, 1),
        "compensate": None if stage.compensate is None else _template(stage.compensate),
        "min_quality": stage.min_quality,
        "max_iterations": stage.max_iterations,
        "loop_to": None if stage.loop_to is None else check_text(stage.loop_to, "loop_to", 100, 1),
    }
