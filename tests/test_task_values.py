"""What a task's record says: the same whatever it was read by, over either driver."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from blackboard import Agent, Blackboard, NewTask, Session, TaskContext, Worker, sync
from blackboard.errors import InvalidInput
from blackboard.models.tasks import TaskRecord, Unique

RARE: dict[str, Any] = {
    "priority": 7,
    "assigned_to": "ops/worker",
    "timeout": timedelta(minutes=5, microseconds=1),
    "max_attempts": 2,
    "retry_delay": timedelta(seconds=90),
    "unique": Unique(key="only", window=timedelta(hours=1)),
    "limit_key": "customer-1",
    "expires_at": datetime(2226, 11, 20, 10, 30, 59, 123457, UTC),
    "fallback": timedelta(hours=2),
}
PLAIN_AND_RARE = pytest.mark.parametrize("options", [{}, RARE], ids=["plain", "rare"])


def same(one: TaskRecord, other: TaskRecord) -> None:
    assert one == other
    assert (one.model_dump_json(), one.model_fields_set) == (other.model_dump_json(), other.model_fields_set)
    assert [_kind(value) for _, value in one] == [_kind(value) for _, value in other]
    assert all(value.tzinfo is UTC for _, value in one if isinstance(value, datetime))


def _kind(value: object) -> type:
    # A driver's UUID is a subclass of its own.
    return UUID if isinstance(value, UUID) else type(value)


@pytest.fixture
async def agent(session: Session) -> Agent:
    return await session.join("ops/worker")


@PLAIN_AND_RARE
async def test_adding_and_claiming_return_what_a_look_returns(
    session: Session, agent: Agent, options: dict[str, Any]
) -> None:
    added = await session.tasks.add("look", {"a": ["ä", None]}, **options)
    same(added, await session.tasks.get(added.id))
    [held] = await agent.tasks.claim()
    same(held, await session.tasks.get(added.id))
    second = await session.tasks.add("look")
    [following] = await agent.tasks.complete_and_claim(held, {"done": 1})
    assert following.id == second.id
    same(following, await session.tasks.get(second.id))
    # Added again it is the first one, as it stands now.
    repeated: dict[str, Any] = {**options, "id": held.id}
    again = await session.tasks.add("look", {"a": ["ä", None]}, **repeated)
    assert (again.status, again.result) == ("completed", {"done": 1})


@PLAIN_AND_RARE
def test_so_do_the_blocking_handles_in_any_time_zone(database_url: str, options: dict[str, Any]) -> None:
    url = f"{database_url}{'&' if '?' in database_url else '?'}options=-c%20TimeZone%3DAsia/Kolkata"
    with sync.Blackboard.open(url) as board:
        session = board.start(f"zones-{len(options)}")
        agent = session.join("ops/worker")
        added = session.tasks.add("look", {"a": 1}, **options)
        same(added, session.tasks.get(added.id))
        [held] = agent.tasks.claim()
        same(held, session.tasks.get(added.id))


@PLAIN_AND_RARE
async def test_a_handler_sees_the_whole_task(board: Blackboard, session: Session, options: dict[str, Any]) -> None:
    worker = Worker(board, session, agent_id="ops/worker")
    seen: list[tuple[TaskRecord, TaskRecord]] = []

    @worker.handler("look")
    async def look(ctx: TaskContext) -> None:
        seen.append((ctx.task, await ctx.session.tasks.get(ctx.task.id)))

    await session.tasks.add("look", {"a": 1}, **options)
    await worker.drain()
    [(task, read)] = seen
    assert task == read
    assert task.model_fields_set == read.model_fields_set


async def test_an_id_that_was_read_can_be_part_of_a_document(session: Session, agent: Agent) -> None:
    await session.tasks.add("first")
    [first] = await agent.tasks.claim()
    second = await session.tasks.add("second", {"after": first.id, "all": [first.id]})
    assert second.parameters == {"after": str(first.id), "all": [str(first.id)]}
    await agent.tasks.complete(first, {"next": second.id})
    assert (await session.tasks.get(first.id)).result == {"next": str(second.id)}


@pytest.mark.parametrize(
    "batch",
    [
        [],
        [NewTask(type="one")],
        [NewTask(type="one", parameters=text) for text in ("", "a\nb", "\r\n", "\u2028", "\\n", "{}", "null")],
        [NewTask(type="one", parameters=None), NewTask(type="one", parameters=[]), NewTask(type="one", parameters=0)],
        [NewTask(type="one", capability="c", priority=9, parameters=n) for n in range(1200)],
        [NewTask(type="one", parameters=1), NewTask(type="two", parameters=2)],
        [NewTask(type="one", parameters=1), NewTask(type="one", parameters=2, limit_key="k")],
        [NewTask(type="one", priority=1), NewTask(type="one", priority=2)],
    ],
    ids=["none", "single", "texts", "values", "many", "types", "options", "priorities"],
)
async def test_batches_of_any_shape_are_added_as_given(session: Session, batch: list[NewTask]) -> None:
    ids = await session.tasks.add_many(batch)
    found = await session.tasks.get_many(ids)
    facts: Callable[[Any], tuple[Any, ...]] = lambda task: (  # noqa: E731
        task.type, task.capability, task.priority, task.parameters, task.limit_key,
    )  # fmt: skip
    assert [facts(found[id_]) for id_ in ids] == [facts(task) for task in batch]
    repeated = [task.model_copy(update={"id": id_}) for task, id_ in zip(batch, ids, strict=True)]
    assert await session.tasks.add_many(repeated) == ids
    assert sum((await session.tasks.count()).values()) == len(batch)


@pytest.mark.parametrize(
    ("task", "field"),
    [
        (NewTask(type=""), "type"),
        (NewTask(type="x" * 51), "type"),
        (NewTask(type="x", capability="c\0"), "capability"),
        (NewTask(type="x", priority=11), "priority"),
        (NewTask(type="x", parameters=float("nan")), "parameters"),
        (NewTask(type="x", limit_key=""), "limit_key"),
    ],
)
async def test_one_bad_task_of_a_batch_names_its_field(session: Session, task: NewTask, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await session.tasks.add_many([NewTask(type="good"), task])
    assert caught.value.details["field"] == field
    assert await session.tasks.count() == {}
