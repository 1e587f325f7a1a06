"""What a program of a swarm is given to do, and how a Python function gets it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from ..board import Agent, Session
from ..errors import ConfigurationError
from ..models.tasks import TaskRecord
from .privacy import OwnFindings
from .queries import BlockingQueries, Queries
from .spec import mapping

__all__ = ["OFFERED", "Assignment", "call_function", "gather_inputs", "load_function", "own_findings_only"]

OFFERED = (
    "agent", "session", "focus", "target", "context", "inputs", "missing", "task", "queries", "cancelled", "assignment",
)  # fmt: skip


@dataclass
class Assignment:
    """One attempt at one task.

    A function gets those of these that its parameters name, and this itself as ``assignment``::

        async def investigate(agent, focus, *, inputs, task, queries): ...
        def investigate(agent, focus): ...      # not async: `agent` and `session` are those of blackboard.sync

    Attributes:
        agent: the handle of the agent that does it.
        session: the session's handle.
        focus: what this task is about: the agent's focus, the stage's task, or the synthesis's action.
        target: what the whole swarm is about.
        context: as the file gives it.
        inputs: results of earlier tasks by name: of the stages' outputs, or for the synthesis by agent.
        missing: why an input is not there, by name: the status in which its task ended.
        task: as it was claimed.
        queries: runs queries that others may ask too; see ``Queries.run``.
        cancelled: is set when the work is not wanted any more; a function that is not async should look at it.
    """

    agent: Any
    session: Any
    focus: str
    target: str
    context: Any
    task: TaskRecord
    queries: Queries | BlockingQueries
    inputs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    missing: Mapping[str, str] = field(default_factory=dict[str, str])
    cancelled: threading.Event = field(default_factory=threading.Event)


def load_function(reference: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names.

    Raises:
        ConfigurationError: it cannot be imported, is no function, or wants what nobody gives it.
    """
    module_name, _, path = reference.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"`run: {reference}` cannot be imported: {error}.") from error
    if not callable(found):
        raise ConfigurationError(f"`run: {reference}` is no function but {type(found).__name__}.")
    wanted = [one for one in inspect.signature(found).parameters.values() if one.default is one.empty]
    rest = {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    unknown = [one.name for one in wanted if one.kind not in rest and one.name not in OFFERED]
    if unknown:
        raise ConfigurationError(
            f"`run: {reference}` wants {', '.join(unknown)}, which a swarm does not give; its parameters may be named "
            f"{', '.join(OFFERED)}."
        )
    return found


async def call_function(
    function: Callable[..., Any], assignment: Assignment, sync_handles: Callable[[], tuple[Any, Any]]
) -> Any:
    """What the function returned. One that is not async runs in a thread of its own, which cannot be stopped.

    Args:
        function: as ``load_function`` returned it.
        assignment: with asynchronous handles.
        sync_handles: blocking agent and session; called in the function's thread.
    """
    if _is_async(function):
        return await function(*_positional(function, assignment), **_keywords(function, assignment))
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(RuntimeError(repr(error)) if isinstance(error, StopIteration) else error)

    def work() -> None:
        result, failure = None, None
        try:
            assignment.agent, assignment.session = sync_handles()
            if isinstance(assignment.queries, Queries):
                assignment.queries = BlockingQueries(assignment.queries, loop)
            result = function(*_positional(function, assignment), **_keywords(function, assignment))
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is over, and nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=work, name=f"swarm-{assignment.task.type}", daemon=True).start()
    cancelled: asyncio.CancelledError | None = None
    while True:
        try:
            result = await asyncio.shield(done)
        except asyncio.CancelledError as error:
            if cancelled is not None:
                raise  # asked twice: the thread is left behind
            cancelled = error
            assignment.cancelled.set()
            continue
        if cancelled is not None:
            raise cancelled
        return result


def _is_async(function: Callable[..., Any]) -> bool:
    call = getattr(function, "__call__", None)  # noqa: B004 - its kind is asked for
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _values(assignment: Assignment) -> dict[str, Any]:
    return {name: assignment if name == "assignment" else getattr(assignment, name) for name in OFFERED}


def _positional(function: Callable[..., Any], assignment: Assignment) -> list[Any]:
    values = _values(assignment)
    return [
        values[one.name]
        for one in inspect.signature(function).parameters.values()
        if one.kind is one.POSITIONAL_ONLY and one.name in values
    ]


def _keywords(function: Callable[..., Any], assignment: Assignment) -> dict[str, Any]:
    values = _values(assignment)
    parameters = inspect.signature(function).parameters.values()
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        taken = {one.name for one in parameters if one.kind is one.POSITIONAL_ONLY}
        return {name: value for name, value in values.items() if name not in taken}
    return {
        one.name: values[one.name]
        for one in parameters
        if one.kind in {one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY} and one.name in values
    }


async def gather_inputs(session: Session, task: TaskRecord, results_of: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The results that the task's parameters name, and the status of those tasks that have none.

    Args:
        session: the task's session.
        task: its ``parameters["inputs"]`` maps a name to ``task_id`` and maybe ``session_id``.
        results_of: opens another session by id.
    """
    inputs: dict[str, Any] = {}
    missing: dict[str, str] = {}
    sources: dict[str, dict[str, str]] = mapping(mapping(task.parameters).get("inputs"))
    for name, source in sources.items():
        where = session if "session_id" not in source else await results_of(UUID(source["session_id"]))
        producer = (await where.tasks.get_many([UUID(source["task_id"])])).get(UUID(source["task_id"]))
        if producer is None:
            missing[name] = "gone"
        elif producer.status.value == "completed":
            inputs[name] = producer.result
        else:
            missing[name] = producer.status.value
    return inputs, missing


def own_findings_only(agent: Agent) -> None:
    """``agent.findings`` and its session's show only what this agent reported: ``share_findings: false``.

    That keeps agents from leaning on each other. It is no protection: events and ``session.board()`` tell everything.
    """
    agent.findings = OwnFindings(agent.findings, agent.id)  # pyright: ignore[reportAttributeAccessIssue]
    agent.session.findings = OwnFindings(agent.session.findings, agent.id)  # pyright: ignore[reportAttributeAccessIssue]
