"""Adding a task again: the same content finds it whatever has become of it, other content is refused and changes nothing."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import Agent, Blackboard, Dependency, NewTask, Session, Unique
from blackboard.errors import IdempotencyConflict, NotFound
from blackboard.ids import new_id

from .conftest import Clock, Connect

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

LATER = datetime(2100, 1, 1, tzinfo=UTC)
# Everything that can be said of a task but what it depends on.
SAID: dict[str, Any] = {
    "capability": "x", "priority": 7, "assigned_to": "ops/a", "run_at": LATER, "timeout": timedelta(minutes=5),
    "requires_approval": True, "max_attempts": 3, "retry_delay": timedelta(seconds=90), "limit_key": "customer",
    "expires_at": LATER + timedelta(days=1), "fallback": timedelta(hours=1), "unique": Unique(key="once"),
}  # fmt: skip
OTHER: dict[str, Any] = {
    "capability": "y", "priority": 6, "assigned_to": "ops/b", "run_at": LATER + timedelta(seconds=1),
    "timeout": timedelta(minutes=6), "requires_approval": False, "max_attempts": 4,
    "retry_delay": timedelta(seconds=91), "limit_key": "another", "expires_at": LATER + timedelta(days=2),
    "fallback": timedelta(hours=2), "unique": Unique(key="twice"),
}  # fmt: skip


@pytest.fixture
async def agent(session: Session) -> Agent:
    return await session.join("ops/a")


async def state(db: Connection, session: Session) -> list[Any]:
    """All that adding could change."""
    return [
        await db.fetch(f"SELECT * FROM blackboard.{table} WHERE session_id = $1 ORDER BY {order}", session.id)
        for table, order in (
            ("tasks", "id"), ("task_dependencies", "task_id, depends_on_id"), ("events", "seq"), ("keyed_tasks", "task_id"),
        )
    ]  # fmt: skip


@pytest.mark.parametrize("field", [None, *SAID])
@pytest.mark.parametrize("many", [False, True])
async def test_another_add_under_the_same_id(session: Session, db: Connection, field: str | None, many: bool) -> None:
    """``field`` is all that the task is added with; None: everything."""
    said: dict[str, Any] = SAID if field is None else {field: SAID[field]}
    if field == "fallback":
        # Which needs somebody to wait for.
        said["assigned_to"] = "ops/a"

    async def add(**options: Any) -> uuid.UUID:
        if many:
            [found] = await session.tasks.add_many([NewTask(type="t", parameters={"n": 1}, id=task_id, **options)])
            return found
        return (await session.tasks.add("t", {"n": 1}, id=task_id, **options)).id

    task_id = new_id()
    assert await add(**said) == task_id
    before = await state(db, session)
    assert await add(**said) == task_id
    for name, value in (OTHER | {"requires_approval": "requires_approval" not in said}).items():
        if name == "fallback" and "assigned_to" not in said:
            continue
        with pytest.raises(IdempotencyConflict, match=rf"used before with other content \({name}\)"):
            await add(**{**said, name: value})
    for name in [name for name in said if not (name == "assigned_to" and "fallback" in said)]:
        with pytest.raises(IdempotencyConflict, match=name) as refused:
            await add(**{key: value for key, value in said.items() if key != name})
        assert refused.value.details["fields"] == [name]
    assert await state(db, session) == before, "refused or repeated, it changed nothing"


async def test_other_type_or_parameters(session: Session, db: Connection) -> None:
    task = await session.tasks.add("t", {"n": 1})
    before = await state(db, session)
    with pytest.raises(IdempotencyConflict, match=r"\(type\)"):
        await session.tasks.add("u", {"n": 1}, id=task.id)
    with pytest.raises(IdempotencyConflict, match=r"\(parameters\)"):
        await session.tasks.add("t", {"n": 2}, id=task.id)
    assert await session.tasks.add("t", {"n": 1.0}, id=task.id) == task, "the same value in other words"
    assert await state(db, session) == before


async def test_of_many_one_conflict_refuses_all(session: Session, db: Connection) -> None:
    old = await session.tasks.add("t", {"n": 1})
    before = await state(db, session)
    batch = [NewTask(type="t", parameters={"n": 0}), NewTask(type="t", parameters={"n": 1}, id=old.id, priority=9)]
    with pytest.raises(IdempotencyConflict):
        await session.tasks.add_many(batch)
    twice = new_id()
    with pytest.raises(IdempotencyConflict, match=str(twice)):
        await session.tasks.add_many([NewTask(type="t", id=twice), NewTask(type="t", id=twice, max_attempts=9)])
    assert await state(db, session) == before
    again = [NewTask(type="t", id=twice, priority=3), NewTask(type="t", parameters={"n": 1}, id=old.id)]
    assert await session.tasks.add_many([*again, again[0]]) == [twice, old.id, twice]
    assert await session.tasks.count() == {"pending": 2}


async def test_other_dependencies(session: Session, db: Connection) -> None:
    first, second, gone = [await session.tasks.add("p") for _ in range(3)]
    await session.tasks.cancel(gone.id)
    free = await session.tasks.add("t")
    child = await session.tasks.add("t", depends_on=[first, second])
    before = await state(db, session)
    other: list[tuple[uuid.UUID, list[Any]]] = [
        (free.id, [first.id]), (free.id, [gone.id]), (child.id, []), (child.id, [first.id]),
        (child.id, [first.id, second.id, gone.id]), (child.id, [first.id, Dependency(id=second.id, on_failure="continue")]),
    ]  # fmt: skip
    for task_id, depends_on in other:
        with pytest.raises(IdempotencyConflict, match="depends_on"):
            await session.tasks.add("t", depends_on=depends_on, id=task_id)
        with pytest.raises(IdempotencyConflict, match="depends_on"):
            await session.tasks.add_many(
                [NewTask(type="new"), NewTask(type="t", id=task_id, depends_on=tuple(depends_on))]
            )
    assert await state(db, session) == before
    assert (await session.tasks.add("t", depends_on=[second, first, second], id=child.id)).id == child.id
    with pytest.raises(NotFound):
        await session.tasks.add_many([NewTask(type="t", id=free.id), NewTask(type="t", depends_on=(new_id(),))])
    assert await state(db, session) == before


async def test_some_of_a_batch_are_new(session: Session) -> None:
    parent = await session.tasks.add("p")
    old = await session.tasks.add("t", depends_on=[parent])
    new = NewTask(type="t", id=new_id(), depends_on=(parent.id, old.id))
    batch = [NewTask(type="t", id=old.id, depends_on=(parent.id,)), new]
    assert await session.tasks.add_many(batch) == [old.id, new.id]
    assert {edge.id for edge in await session.tasks.dependencies(old.id)} == {parent.id}
    assert {edge.id for edge in await session.tasks.dependencies(batch[1].id or old.id)} == {parent.id, old.id}
    assert await session.tasks.add_many(batch) == [old.id, new.id]


async def test_after_others_have_changed_the_task(session: Session, agent: Agent, db: Connection, clock: Clock) -> None:
    """What a repeated add is held against is what was added, not what the row says by now."""
    big = {"text": "".join(str(uuid.uuid4()) for _ in range(600))}
    task_id = new_id()

    async def again(priority: int = 5) -> str:
        found = await session.tasks.add("t", big, id=task_id, max_attempts=4, priority=priority)
        assert found.id == task_id
        return found.status.value

    assert await again() == "pending"
    await db.execute(
        "UPDATE blackboard.tasks SET priority = 9, timeout = '1 hour', retry_delay = '7 s', max_attempts = 8 WHERE id = $1",
        task_id,
    )
    assert await again() == "pending"
    with pytest.raises(IdempotencyConflict, match=r"\(priority\)"):
        await again(9)
    [held] = await agent.tasks.claim()
    assert await again() == "running"
    await agent.tasks.fail(held, "x")
    assert await again() == "scheduled"
    await clock.advance(timedelta(hours=1))
    [held] = await agent.tasks.claim()
    await agent.tasks.complete(held, 1)
    assert await again() == "completed"
    await db.execute("""UPDATE blackboard.tasks SET parameters = '{"n": 2}' WHERE id = $1""", task_id)
    assert await again() == "completed"
    await session.close()
    assert await again() == "completed", "also when the session is over"


async def test_after_its_dependencies_have_been_settled(session: Session, agent: Agent, db: Connection) -> None:
    good, bad = await session.tasks.add("good"), await session.tasks.add("bad", max_attempts=1)
    child = await session.tasks.add("t", depends_on=[good, Dependency(id=bad.id, on_failure="continue")])
    for _ in range(2):
        [task] = await agent.tasks.claim()
        await (agent.tasks.complete(task) if task.id == good.id else agent.tasks.fail(task, "x"))
    strict = await session.tasks.add("t", depends_on=[bad])
    await db.execute("UPDATE blackboard.tasks SET completed_at = completed_at - interval '2 hours'")
    edges: list[Any] = [good.id, Dependency(id=bad.id, on_failure="continue")]
    before = await state(db, session)
    assert (await session.tasks.add("t", depends_on=edges, id=child.id)).status == "pending"
    assert (await session.tasks.add("t", depends_on=[bad.id], id=strict.id)).status == "cancelled"
    with pytest.raises(IdempotencyConflict):
        await session.tasks.add("t", id=child.id)
    assert await state(db, session) == before
    [task] = await agent.tasks.claim()
    await agent.tasks.complete(task)
    # What it depended on is gone for good, and with it the edges.
    async with db.transaction():
        await db.execute("SET LOCAL blackboard.pruning = 'on'")
        await db.execute("DELETE FROM blackboard.task_dependencies")
        await db.execute("DELETE FROM blackboard.tasks WHERE id = ANY ($1)", [good.id, bad.id])
    assert (await session.tasks.add("t", depends_on=edges, id=child.id)).status == "completed"


async def test_after_others_have_changed_its_edges(session: Session, db: Connection) -> None:
    parent, late = await session.tasks.add("p"), await session.tasks.add("p")
    child = await session.tasks.add("t", depends_on=[parent])
    await db.execute(
        "INSERT INTO blackboard.task_dependencies (session_id, task_id, depends_on_id) VALUES ($1, $2, $3)",
        session.id, child.id, late.id,
    )  # fmt: skip
    assert (await session.tasks.add("t", depends_on=[parent], id=child.id)).blockers == 2
    with pytest.raises(IdempotencyConflict):
        await session.tasks.add("t", depends_on=[parent, late], id=child.id)


async def test_what_history_has_forgotten_is_no_conflict(session: Session, db: Connection) -> None:
    task = await session.tasks.add("t", {"n": 1}, priority=3, limit_key="k")
    await db.execute("SET session_replication_role = replica")
    await db.execute("DELETE FROM blackboard.events")
    assert await session.tasks.add("t", {"n": 1}, priority=4, limit_key="k", id=task.id) == task
    with pytest.raises(IdempotencyConflict):
        await session.tasks.add("t", {"n": 1}, priority=3, id=task.id)


async def test_in_a_transaction_of_the_caller(board: Blackboard, session: Session, db: Connection) -> None:
    """What the same transaction has added is there like any other task."""
    parent, task_id = await session.tasks.add("p"), new_id()
    tasks = (await board.bind(db).session(session.id)).tasks
    async with db.transaction():
        await tasks.add("t", id=task_id)
        with pytest.raises(IdempotencyConflict, match="depends_on"):
            async with db.transaction():
                await tasks.add_many([NewTask(type="t"), NewTask(type="t", id=task_id, depends_on=(parent.id,))])
        assert (await tasks.add("t", id=task_id)).blockers == 0
    assert await session.tasks.dependencies(task_id) == []


@pytest.mark.parametrize("states", [("pending", "running"), ("completed",)])
async def test_a_unique_add_repeated_while_the_first_is_under_way(
    session: Session, connect: Connect, blocked: Callable[[int], Awaitable[None]], states: tuple[str, ...]
) -> None:
    first, second = await connect(), await connect()
    add = "SELECT blackboard.add_unique_tasks($1, $2, '{t}', '{\"\"}', '{5}', '{\"{}\"}', $3, 'a')"
    task_id = new_id()
    listed = ", ".join(f'"{one}"' for one in states)
    options = [f'{{"unique": {{"key": "k", "states": [{listed}]}}}}']
    transaction = first.transaction()
    await transaction.start()
    assert await first.fetchval(add, session.id, [task_id], options) == [task_id]
    repeated = asyncio.create_task(second.fetchval(add, session.id, [task_id], options))
    await blocked(second.get_server_pid())
    await transaction.commit()
    assert await repeated == [task_id]
    assert await session.tasks.count() == {"pending": 1}


@pytest.mark.parametrize("same", [True, False])
async def test_an_add_repeated_while_the_first_is_under_way(
    session: Session, connect: Connect, blocked: Callable[[int], Awaitable[None]], same: bool
) -> None:
    first, second = await connect(), await connect()
    add = "SELECT blackboard.add_tasks($1, $2, '{t}', '{\"\"}', '{5}', '{\"{}\"}', $3, 'a')"
    parent, task_id = await session.tasks.add("p"), new_id()
    options = [f'{{"depends_on": ["{parent.id}"]}}']
    transaction = first.transaction()
    await transaction.start()
    assert await first.fetchval(add, session.id, [task_id], options) == 1
    repeated = asyncio.create_task(second.fetchval(add, session.id, [task_id], options if same else None))
    await blocked(second.get_server_pid())
    await transaction.commit()
    if same:
        assert await repeated == 0
    else:
        with pytest.raises(asyncpg.PostgresError, match="depends_on") as refused:
            await repeated
        assert refused.value.sqlstate == "BB004"
    assert (await session.tasks.get(task_id)).blockers == 1


async def test_however_moments_and_spans_are_written(session: Session, db: Connection) -> None:
    for style, zone in (
        ("iso_8601", "Asia/Kolkata"),
        ("sql_standard", "America/St_Johns"),
        ("postgres_verbose", "UTC"),
    ):
        await db.execute(f"SET intervalstyle = '{style}'; SET timezone = '{zone}'")
        task_id = new_id()
        await db.execute(
            "SELECT blackboard.add_tasks($1, $2, '{t}', '{\"\"}', '{5}', '{\"{}\"}', $3, 'a')",
            session.id, [task_id],
            ['{"timeout": "1 hour 5 minutes", "retry_delay": "90.25 s", "run_at": "2100-01-01T02:00:00+02:00"}'],
        )  # fmt: skip
        said: dict[str, Any] = {"timeout": timedelta(minutes=65), "retry_delay": timedelta(seconds=90.25)}
        assert (await session.tasks.add("t", run_at=LATER, id=task_id, **said)).status == "scheduled"
        with pytest.raises(IdempotencyConflict, match=r"\(run_at\)"):
            await session.tasks.add("t", run_at=LATER + timedelta(microseconds=1), id=task_id, **said)
