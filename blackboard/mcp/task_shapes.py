"""What the tools on tasks take and answer, and how a task is shown."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import AwareDatetime, Field

from ..models.tasks import TaskRecord
from .fence import NOTICE
from .tool import Arguments, IdempotencyKey, Item, JsonArray, JsonObject, MaxTokens, Result

__all__ = [
    "AddArguments",
    "ClaimArguments",
    "ClaimResult",
    "CompleteArguments",
    "FailArguments",
    "ProgressArguments",
    "ReleaseArguments",
    "TaskInput",
    "TaskResult",
    "TaskView",
    "moment",
    "task_view",
    "token_of",
]

TaskId = Annotated[UUID, Field(description="The task's id, as {claim_task} returned it.")]
Token = Annotated[
    str,
    Field(
        min_length=1,
        max_length=100,
        description="The token that {claim_task} returned with the task. It proves that the task is still yours.",
    ),
]


class TaskView(Item):
    """A task as it is shown."""

    id: str
    type: str
    status: str
    priority: int
    capability: str
    assigned_to: str | None
    attempt: int
    max_attempts: int
    parameters: Any = None
    progress: Any = None
    result: Any = None
    error: Any = None
    token: str | None = None
    deadline_at: str | None = None
    run_at: str | None = None


class ClaimArguments(Arguments):
    """What claim_task takes."""

    wait_seconds: Annotated[
        float, Field(ge=0, le=60, description="How long to wait for a task when none is ready now; 0 to 60 seconds.")
    ] = 0
    capabilities: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=100)]] | None,
        JsonArray,
        Field(
            description="Take only tasks that need one of these, or none; by default everything that you offered when "
            "you joined."
        ),
    ] = None
    task_id: Annotated[
        UUID | None, Field(description="Claim this very task, or see one again that you hold; by default the best.")
    ] = None
    max_tokens: MaxTokens = 8000
    idempotency_key: IdempotencyKey = None


class TaskInput(Item):
    """What a task that this one depended on has produced."""

    task_id: str
    type: str
    status: str
    result: Any = None


class ClaimResult(Result):
    """What claim_task answers.

    Attributes:
        inputs: what the tasks that it depended on have produced.
        bound_inputs: what it reads as a stage of a flow, by name; null for what was not given.
    """

    notice: str = NOTICE
    claimed: bool
    task: TaskView | None = None
    token: str | None = None
    deadline_at: str | None = None
    inputs: tuple[TaskInput, ...] = ()
    bound_inputs: dict[str, Any] = Field(default_factory=dict[str, Any])
    cut: bool = False
    counts: dict[str, int] = Field(default_factory=dict[str, int])


class TaskResult(Result):
    """What the other task tools answer."""

    task_id: str
    status: str
    attempt: int
    run_at: str | None = None
    cancel_requested: bool = False


class CompleteArguments(Arguments):
    """What complete_task takes."""

    task_id: TaskId
    token: Token
    result: Annotated[
        Any,
        Field(
            description="What came of it, as any JSON value up to 1 MiB; those who wait for this task read it.",
            examples=[{"summary": "v1.2.3 leaks connections", "finding_ids": []}],
        ),
    ] = None
    idempotency_key: IdempotencyKey = None


class FailArguments(Arguments):
    """What fail_task takes."""

    task_id: TaskId
    token: Token
    error: Annotated[
        str, Field(min_length=1, max_length=10_000, description="Why it cannot be done, for whoever tries next.")
    ]
    retry: Annotated[
        bool, Field(description="True: it comes back later for another attempt. False: it has failed for good.")
    ] = True
    idempotency_key: IdempotencyKey = None


class ReleaseArguments(Arguments):
    """What release_task takes."""

    task_id: TaskId
    token: Token
    idempotency_key: IdempotencyKey = None


class ProgressArguments(Arguments):
    """What progress_task takes."""

    task_id: TaskId
    token: Token
    progress: Annotated[Any, Field(description="How far you are, as any JSON value.", examples=["read 3 of 7 logs"])]
    idempotency_key: IdempotencyKey = None


class AddArguments(Arguments):
    """What add_task takes."""

    type: Annotated[
        str, Field(min_length=1, max_length=50, description="What is to be done.", examples=["investigate"])
    ]
    parameters: Annotated[
        JsonObject, Field(description="What it is about.", examples=[{"target": "checkout", "context": {}}])
    ] = Field(default_factory=dict[str, Any])
    capability: Annotated[
        str, Field(max_length=100, description="Only agents that offer this may claim it; empty means anyone.")
    ] = ""
    priority: Annotated[int, Field(ge=0, le=10, description="0 to 10; higher first.")] = 5
    assigned_to: Annotated[
        str | None, Field(min_length=1, max_length=100, description="Only this agent may claim it.")
    ] = None
    depends_on: Annotated[
        list[UUID], JsonArray, Field(max_length=100, description="Ids of tasks that must be completed first.")
    ] = Field(default_factory=list[UUID])
    timeout_seconds: Annotated[
        float | None, Field(gt=0, le=604_800, description="The longest that one attempt may run.")
    ] = None
    requires_approval: Annotated[bool, Field(description="Whether a human must approve it first.")] = False
    run_at: Annotated[
        AwareDatetime | None,
        Field(description="Not before this time."),
    ] = None
    expires_at: Annotated[
        AwareDatetime | None,
        Field(description="Cancelled if not started by then."),
    ] = None
    fallback_seconds: Annotated[
        float | None, Field(ge=0, description="How long it waits for assigned_to; then anybody may.")
    ] = None
    max_attempts: Annotated[int, Field(ge=1, le=1000, description="Then it is dead.")] = 5
    retry_delay_seconds: Annotated[float, Field(ge=0, description="Before the second attempt; doubles.")] = 1
    unique: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=200,
            description="A name for this work: an unfinished task that has it is returned instead.",
        ),
    ] = None
    unique_window_seconds: Annotated[float | None, Field(gt=0, description="unique looks back only so long.")] = None
    limit_key: Annotated[
        str | None, Field(min_length=1, max_length=200, description="For limits that are per key.")
    ] = None
    idempotency_key: IdempotencyKey = None


def moment(value: datetime | None) -> str | None:
    """A time as text, to the second."""
    return None if value is None else value.isoformat(timespec="seconds")


def token_of(task: TaskRecord) -> str | None:
    """The fencing token of a claimed task as one opaque text."""
    return None if task.claim_id is None else f"{task.attempt}.{task.claim_id.hex}"


def task_view(task: TaskRecord, *, mine: bool = False) -> TaskView:
    """The task as values; with its token only for its holder."""
    return TaskView(
        id=str(task.id),
        type=task.type,
        status=task.status.value,
        priority=task.priority,
        capability=task.capability,
        assigned_to=task.assignee,
        attempt=task.attempt,
        max_attempts=task.max_attempts,
        parameters=task.parameters,
        progress=task.progress,
        result=task.result,
        error=task.error,
        token=token_of(task) if mine else None,
        deadline_at=moment(task.deadline_at),
        run_at=moment(task.run_at),
    )
