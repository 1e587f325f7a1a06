"""The life cycle of a task: added, claimed under a lease, ended once."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import Agent, Blackboard, Dependency, NewTask, Session, TaskStatus
from blackboard.errors import (
    BlackboardError,
    CyclicDependency,
    IdempotencyConflict,
    InvalidInput,
    InvalidTransition,
    LeaseLost,
    NotFound,
    PayloadTooLarge,
    SessionClosed,
    WaitNotAllowed,
    WaitTimeout,
)
from blackboard.ids import new_id
from blackboard.models.tasks import TRANSITIONS

from .conftest import Clock, Connect, eventually

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def agent(session: Session) -> Agent:
    return await session.join("ops/worker", capabilities=["investigate"])


async def kinds(session: Session, subject: uuid.UUID | None = None) -> list[str]:
    page = await session.events.read(subject_id=subject, limit=10_000)
    return [event.type for event in page.events]


async def test_a_task_is_added_claimed_and_completed(session: Session, agent: Agent) -> None:
    added = await session.tasks.add("investigate", {"target": "api"}, capability="investigate", priority=7)
    assert (added.status, added.priority, added.attempt) == (TaskStatus.PENDING, 7, 0)
    [task] = await agent.tasks.claim()
    assert (task.id, task.status, task.assigned_to, task.attempt) == (added.id, "running", agent.id, 1)
    await agent.tasks.complete(task, {"found": True})
    done = await session.tasks.get(task.id)
    assert (done.status, done.result, done.lease_id) == ("completed", {"found": True}, None)
    assert done.completed_at is not None
    assert await kinds(session, task.id) == ["task.created", "task.assigned", "task.completed"]


async def test_events_say_who_did_what(session: Session, agent: Agent) -> None:
    added = await session.tasks.add("investigate", {"k": 1}, capability="investigate")
    [task] = await agent.tasks.claim()
    await agent.tasks.complete(task, [1, 2])
    created, assigned, completed = (await session.events.read(subject_id=added.id)).events
    assert (created.actor, created.data["type"], created.data["parameters"]) == ("tester", "investigate", {"k": 1})
    assert (assigned.actor, assigned.data["assigned_to"], assigned.data["attempt"]) == (agent.id, agent.id, 1)
    assert (completed.actor, completed.data["result"]) == (agent.id, [1, 2])
    changes = await session.events.history(added.id)
    assert [(c.field, c.old, c.new) for c in changes if c.field == "status"] == [
        ("status", None, "pending"),
        ("status", "pending", "running"),
        ("status", "running", "completed"),
    ]


async def test_claims_go_by_assignment_then_priority_then_age(session: Session, agent: Agent) -> None:
    low = await session.tasks.add("t", capability="investigate", priority=1)
    first = await session.tasks.add("t", capability="investigate", priority=9)
    anyone = await session.tasks.add("t", priority=9)
    second = await session.tasks.add("t", capability="investigate", priority=9)
    mine = await session.tasks.add("t", assigned_to=agent.id, priority=0)
    await session.tasks.add("t", capability="fly")
    await session.tasks.add("t", assigned_to="somebody/else")
    order = [(await agent.tasks.claim())[0].id for _ in range(5)]
    assert order[0] == mine.id
    assert order.index(first.id) < order.index(second.id)
    assert set(order[1:4]) == {first.id, second.id, anyone.id}
    assert order[4] == low.id
    assert await agent.tasks.claim() == []


async def test_a_repeated_claim_call_returns_the_same_tasks(session: Session, agent: Agent) -> None:
    await session.tasks.add_many([NewTask(type="t") for _ in range(5)])
    claim_id = new_id()
    first = await agent.tasks.claim(3, claim_id=claim_id)
    again = await agent.tasks.claim(3, claim_id=claim_id)
    assert {t.id for t in first} == {t.id for t in again}
    assert len(again) == 3
    assert {t.attempt for t in again} == {1}
    assert len(await agent.tasks.claim(10)) == 2


async def test_adding_again_with_the_same_id(session: Session) -> None:
    task_id = new_id()
    await session.tasks.add("t", {"a": 1}, id=task_id)
    assert (await session.tasks.add("t", {"a": 1}, id=task_id)).id == task_id
    with pytest.raises(IdempotencyConflict):
        await session.tasks.add("t", {"a": 2}, id=task_id)
    assert await kinds(session, task_id) == ["task.created"]


async def test_completing_twice_changes_nothing(session: Session, agent: Agent) -> None:
    await session.tasks.add("t")
    [task] = await agent.tasks.claim()
    await agent.tasks.complete(task, 1)
    await agent.tasks.complete(task, 1)
    assert await kinds(session, task.id) == ["task.created", "task.assigned", "task.completed"]
    assert await session.tasks.late_results(task.id) == []


async def test_no_two_claimers_get_the_same_task(board: Blackboard, session: Session, database_url: str) -> None:
    await session.tasks.add_many([NewTask(type="t") for _ in range(300)])
    claimed: Counter[uuid.UUID] = Counter()

    async def work(name: str) -> None:
        async with Blackboard.open(database_url, pool_size=1) as own:
            agent = await (await own.session(session.id)).join(name)
            while tasks := await agent.tasks.claim(7):
                claimed.update(task.id for task in tasks)
                assert await agent.tasks.complete_many([(task, None) for task in tasks]) == []

    await asyncio.gather(*(work(f"w/{n}") for n in range(8)))
    assert len(claimed) == 300
    assert set(claimed.values()) == {1}
    assert await session.tasks.count() == {TaskStatus.COMPLETED: 300}


async def test_a_claim_skips_what_another_transaction_holds(session: Session, agent: Agent, db: Connection) -> None:
    first = await session.tasks.add("t", priority=9)
    second = await session.tasks.add("t", priority=1)
    async with db.transaction():
        await db.execute("SELECT 1 FROM blackboard.tasks WHERE id = $1 FOR UPDATE", first.id)
        [task] = await asyncio.wait_for(agent.tasks.claim(), 5)
        assert task.id == second.id
    assert [t.id for t in await agent.tasks.claim()] == [first.id]


async def test_waiting_for_work_wakes_on_add(session: Session, agent: Agent) -> None:
    waiting = asyncio.create_task(agent.tasks.claim(wait=timedelta(seconds=20)))
    await eventually(lambda: _listening(session))
    added = await session.tasks.add("t")
    assert [t.id for t in await asyncio.wait_for(waiting, 10)] == [added.id]
    assert await agent.tasks.claim(wait=timedelta(0)) == []


async def _listening(session: Session) -> bool:
    return session.scope.listener.listening


async def test_waiting_for_a_result(session: Session, agent: Agent) -> None:
    added = await session.tasks.add("t")
    with pytest.raises(WaitTimeout):
        await session.tasks.wait(added.id, timedelta(milliseconds=10))
    waiting = asyncio.create_task(session.tasks.wait(added.id, timedelta(seconds=20)))
    [task] = await agent.tasks.claim()
    await agent.tasks.complete(task, "done")
    assert (await waiting).result == "done"


async def test_failing_comes_back_with_backoff_and_ends_dead(session: Session, agent: Agent, clock: Clock) -> None:
    added = await session.tasks.add("t", max_attempts=2, retry_delay=timedelta(seconds=60))
    [task] = await agent.tasks.claim()
    try:
        raise ValueError("no such file")
    except ValueError as error:
        back = await agent.tasks.fail(task, error)
    assert (back.status, back.error["code"], back.error["message"]) == ("scheduled", "ValueError", "no such file")
    assert "Traceback" in back.error["traceback"]
    assert back.run_at is not None
    assert timedelta(seconds=25) < back.run_at - datetime.now(UTC) < timedelta(seconds=91)
    assert await agent.tasks.claim() == []
    await clock.advance(timedelta(seconds=100))
    [task] = await agent.tasks.claim()
    assert task.attempt == 2
    dead = await agent.tasks.fail(task, "again")
    assert dead.status == "dead"
    assert await agent.tasks.fail(task, "again") == dead, "a repeated call finds what the first did"
    redriven = await session.tasks.redrive(added.id)
    assert (redriven.status, redriven.attempt, redriven.released) == ("pending", 2, 2)
    [task] = await agent.tasks.claim()
    assert task.attempt == 3, "the fencing token never goes back"
    assert await kinds(session, added.id) == [
        "task.created", "task.assigned", "task.retried", "task.ready", "task.assigned", "task.dead", "task.redriven",
        "task.assigned",
    ]  # fmt: skip


async def test_failing_without_retry(session: Session, agent: Agent) -> None:
    await session.tasks.add("t")
    [task] = await agent.tasks.claim()
    assert (await agent.tasks.fail(task, "impossible", retry=False)).status == "failed"
    with pytest.raises(LeaseLost):
        await agent.tasks.complete(task, 1)
    [late] = await session.tasks.late_results(task.id)
    assert (late.result, late.agent_id, late.attempt) == (1, agent.id, 1)


async def test_a_released_attempt_does_not_count(session: Session, agent: Agent) -> None:
    await session.tasks.add("t", max_attempts=1)
    for attempt in (1, 2, 3):
        [task] = await agent.tasks.claim()
        assert task.attempt == attempt
        assert (await agent.tasks.release(task)).status == "pending"
    [task] = await agent.tasks.claim()
    assert (await agent.tasks.fail(task, "x")).status == "dead"


async def test_progress_and_cooperative_cancel(session: Session, agent: Agent) -> None:
    added = await session.tasks.add("t")
    [task] = await agent.tasks.claim()
    assert not (await agent.tasks.progress(task, {"done": 0.5})).cancel_requested
    asked = await session.tasks.cancel(added.id, "not needed")
    assert (asked.status, asked.cancel_requested) == ("running", True)
    assert (await agent.tasks.progress(task, {"done": 0.6})).cancel_requested
    assert (await agent.tasks.release(task)).status == "cancelled"
    with pytest.raises(LeaseLost):
        await agent.tasks.progress(task, {"done": 0.7})
    assert (await session.tasks.cancel(added.id)).status == "cancelled"


async def test_cancel_at_once_where_nobody_runs_it(session: Session, agent: Agent) -> None:
    added = await session.tasks.add("t")
    cancelled = await session.tasks.cancel(added.id, "not needed")
    assert (cancelled.status, cancelled.error["message"]) == ("cancelled", "not needed")
    assert await agent.tasks.claim() == []
    other = await session.tasks.add("t")
    [task] = await agent.tasks.claim()
    await agent.tasks.complete(task)
    with pytest.raises(InvalidTransition) as refused:
        await session.tasks.cancel(other.id)
    assert refused.value.details["status"] == "completed"


async def test_approval_gates_the_start(session: Session, agent: Agent) -> None:
    held = await session.tasks.add("t", requires_approval=True, assigned_to=agent.id)
    assert held.status == "awaiting_approval"
    assert await agent.tasks.claim() == []
    approved = await session.tasks.approve(held.id, by="amy")
    assert (approved.status, approved.approved_by) == ("assigned", "amy")
    assert (await session.tasks.approve(held.id, by="amy")).status == "assigned", "repeating it changes nothing"
    assert len(await agent.tasks.claim()) == 1
    other = await session.tasks.add("t", requires_approval=True)
    assert (await session.tasks.reject(other.id, by="amy", reason="no")).status == "cancelled"
    with pytest.raises(InvalidTransition):
        await session.tasks.approve(other.id, by="amy")


async def test_scheduled_tasks_wait_for_their_time(session: Session, agent: Agent, clock: Clock) -> None:
    later = await session.tasks.add("t", run_at=datetime.now(UTC) + timedelta(hours=1))
    assert later.status == "scheduled"
    assert await agent.tasks.claim() == []
    await clock.advance(timedelta(hours=2))
    assert [t.id for t in await agent.tasks.claim()] == [later.id]


async def test_dependencies_hold_until_all_have_finished(session: Session, agent: Agent) -> None:
    a = await session.tasks.add("a")
    b = await session.tasks.add("b")
    c = await session.tasks.add("c", depends_on=[a.id, b.id])
    assert (c.status, c.blockers) == ("blocked", 2)
    assert {d.id for d in await session.tasks.dependencies(c.id)} == {a.id, b.id}
    first, second = await agent.tasks.claim(2)
    await agent.tasks.complete(first)
    assert (await session.tasks.get(c.id)).blockers == 1
    await agent.tasks.complete(second)
    assert (await session.tasks.get(c.id)).status == "pending"
    done = await session.tasks.add("d", depends_on=[a.id, b.id])
    assert done.status == "pending", "what has finished already blocks nothing"


async def test_two_parents_that_finish_at_once_both_count(
    session: Session, agent: Agent, connect: Connect, blocked: Callable[[int], Awaitable[None]]
) -> None:
    a, b = await session.tasks.add("a"), await session.tasks.add("b")
    child = await session.tasks.add("c", depends_on=[a.id, b.id])
    tasks = await agent.tasks.claim(2)
    one, two = await connect(), await connect()

    def complete(connection: Connection, index: int) -> Awaitable[Any]:
        task = tasks[index]
        return connection.fetch(
            "SELECT * FROM blackboard.complete_tasks($1, ARRAY[$2::uuid], ARRAY[$3::uuid], ARRAY[$4::int], "
            "ARRAY[NULL::jsonb], 'x')",
            session.id, task.id, task.claim_id, task.attempt,
        )  # fmt: skip

    async with one.transaction():
        await complete(one, 0)
        second = asyncio.ensure_future(complete(two, 1))
        await blocked(two.get_server_pid())
    assert await second == []
    assert (await session.tasks.get(child.id)).status == "pending"


async def test_a_failed_dependency_cancels_unless_told_otherwise(session: Session, agent: Agent) -> None:
    parent = await session.tasks.add("a", max_attempts=1)
    strict = await session.tasks.add("b", depends_on=[parent.id])
    below = await session.tasks.add("c", depends_on=[strict.id])
    lenient = await session.tasks.add("d", depends_on=[Dependency(id=parent.id, on_failure="continue")])
    [task] = await agent.tasks.claim()
    await agent.tasks.fail(task, "x")
    assert (await session.tasks.get(strict.id)).status == "cancelled"
    assert (await session.tasks.get(strict.id)).error["code"] == "dependency_failed"
    assert (await session.tasks.get(below.id)).status == "cancelled"
    assert (await session.tasks.get(lenient.id)).status == "pending"


async def test_cycles_are_refused_with_their_path(session: Session, db: Connection) -> None:
    x, y, z = new_id(), new_id(), new_id()
    with pytest.raises(CyclicDependency) as refused:
        await session.tasks.add_many(
            [
                NewTask(type="x", id=x, depends_on=(z,)),
                NewTask(type="y", id=y, depends_on=(x,)),
                NewTask(type="z", id=z, depends_on=(y,)),
            ]
        )
    path = refused.value.details["path"]
    assert path[0] == path[-1]
    assert set(path) == {str(x), str(y), str(z)}
    assert await session.tasks.list() == [], "nothing is half-written"
    a = await session.tasks.add("a")
    b = await session.tasks.add("b", depends_on=[a.id])
    with pytest.raises(asyncpg.PostgresError) as raw:
        await db.execute(
            "INSERT INTO blackboard.task_dependencies (session_id, task_id, depends_on_id) VALUES ($1, $2, $3)",
            session.id, a.id, b.id,
        )  # fmt: skip
    assert raw.value.sqlstate == "BB008"


async def test_two_halves_of_a_cycle_added_at_once_do_not_both_pass(
    session: Session, connect: Connect, blocked: Callable[[int], Awaitable[None]]
) -> None:
    a, b = await session.tasks.add("a"), await session.tasks.add("b")
    insert = "INSERT INTO blackboard.task_dependencies (session_id, task_id, depends_on_id) VALUES ($1, $2, $3)"
    one, two = await connect(), await connect()
    async with one.transaction():
        await one.execute(insert, session.id, a.id, b.id)
        other = asyncio.ensure_future(two.execute(insert, session.id, b.id, a.id))
        await blocked(two.get_server_pid())
    with pytest.raises(asyncpg.PostgresError) as refused:
        await other
    assert refused.value.sqlstate == "BB008"


async def test_unknown_dependency(session: Session) -> None:
    with pytest.raises(NotFound) as refused:
        await session.tasks.add("t", depends_on=[new_id()])
    assert refused.value.details["field"] == "depends_on"
    assert await session.tasks.list() == []


async def test_add_many_is_all_or_nothing_and_keeps_order(session: Session, agent: Agent) -> None:
    ids = await session.tasks.add_many([NewTask(type="t", parameters={"n": n}) for n in range(50)])
    assert [t.parameters["n"] for t in await agent.tasks.claim(50)] == list(range(50))
    assert len(set(ids)) == 50
    with pytest.raises(InvalidInput):
        await session.tasks.add_many([NewTask(type="ok"), NewTask(type="x" * 51)])
    assert len(await session.tasks.list(status="pending")) == 0


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"type": ""}, "type"),
        ({"type": "x" * 51}, "type"),
        ({"type": "a\0b"}, "type"),
        ({"type": "t", "parameters": {"x": float("nan")}}, "parameters"),
        ({"type": "t", "parameters": {"x": "\0"}}, "parameters"),
        ({"type": "t", "priority": 11}, "priority"),
        ({"type": "t", "priority": -1}, "priority"),
        ({"type": "t", "capability": "c" * 101}, "capability"),
        ({"type": "t", "assigned_to": ""}, "assigned_to"),
        ({"type": "t", "max_attempts": 0}, "max_attempts"),
        ({"type": "t", "timeout": timedelta(0)}, "timeout"),
        ({"type": "t", "run_at": datetime(2026, 1, 1)}, "run_at"),
        ({"type": "t", "retry_delay": timedelta(days=-1)}, "retry_delay"),
        ({"type": "t", "id": "not-a-uuid"}, "id"),
    ],
)
async def test_bad_input_names_its_field(session: Session, given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        await session.tasks.add(**given)
    assert refused.value.details["field"] == field
    assert await session.tasks.list() == []


async def test_a_payload_of_ten_megabytes_is_refused(session: Session) -> None:
    with pytest.raises(PayloadTooLarge) as refused:
        await session.tasks.add("t", {"blob": "x" * 10_000_000})
    assert refused.value.details["field"] == "parameters"


async def test_closed_and_paused_sessions(session: Session, agent: Agent) -> None:
    await session.tasks.add("t")
    await session.pause()
    assert await agent.tasks.claim() == []
    await session.tasks.add("t")
    await session.resume()
    running, *_ = await agent.tasks.claim()
    await session.close(outcome={"ok": True})
    assert await session.tasks.count() == {TaskStatus.CANCELLED: 1, TaskStatus.RUNNING: 1}
    with pytest.raises(SessionClosed):
        await session.tasks.add("t")
    with pytest.raises(SessionClosed):
        await agent.tasks.claim()
    await agent.tasks.complete(running, "handed in")
    assert (await session.tasks.get(running.id)).result == "handed in"


async def test_a_session_handle_cannot_claim(session: Session) -> None:
    with pytest.raises(InvalidInput) as refused:
        await session.tasks.claim()
    assert refused.value.details["field"] == "agent_id"


async def test_bound_handles_commit_with_the_callers_rows(
    board: Blackboard, session: Session, agent: Agent, db: Connection
) -> None:
    await db.execute("CREATE TEMP TABLE mine (n int)")
    transaction = db.transaction()
    await transaction.start()
    bound = await board.bind(db).session(session.id)
    await bound.tasks.add("t")
    await db.execute("INSERT INTO mine VALUES (1)")
    with pytest.raises(WaitNotAllowed):
        await board.bind(db).agent(agent).tasks.claim(wait=timedelta(seconds=1))
    await transaction.rollback()
    assert await session.tasks.list() == []
    async with db.transaction():
        added = await bound.tasks.add("t")
        [task] = await board.bind(db).agent(agent).tasks.claim()
        await board.bind(db).agent(agent).tasks.complete(task, 1)
        assert task.id == added.id
        assert await session.tasks.list() == []
    assert (await session.tasks.get(added.id)).status == "completed"


async def test_the_transition_table_is_the_databases(db: Connection) -> None:
    for old in TaskStatus:
        for new in TaskStatus:
            if old is new:
                continue
            event = await db.fetchval("SELECT blackboard.task_event($1, $2, NULL)", old.value, new.value)
            assert (event is not None) == (new in TRANSITIONS[old]), (old, new, event)


async def test_illegal_steps_are_refused_for_raw_sql(session: Session, agent: Agent, db: Connection) -> None:
    await session.tasks.add("t")
    [task] = await agent.tasks.claim()
    await agent.tasks.complete(task)
    for change in (
        "status = 'pending', position = 1, completed_at = NULL",
        "status = 'cancelled'",
        "status = 'failed'",
    ):
        with pytest.raises(asyncpg.PostgresError) as refused:
            await db.execute(f"UPDATE blackboard.tasks SET {change} WHERE id = $1", task.id)
        assert refused.value.sqlstate == "BB003"
    with pytest.raises(asyncpg.PostgresError) as refused:
        await db.execute("TRUNCATE blackboard.tasks CASCADE")
    assert refused.value.sqlstate == "BB005"


async def test_unknown_ids(session: Session, agent: Agent) -> None:
    missing = new_id()
    for call in (
        session.tasks.get(missing),
        session.tasks.cancel(missing),
        session.tasks.approve(missing),
        session.tasks.redrive(missing),
    ):
        with pytest.raises(NotFound) as refused:
            await call
        assert refused.value.details["noun"] == "task"
    assert await agent.tasks.claim_by_id(missing) is None
    with pytest.raises(InvalidInput):
        await session.tasks.get("abc")
    with pytest.raises(BlackboardError):
        await session.tasks.list(status="sleeping")


async def test_claiming_by_id(session: Session, agent: Agent) -> None:
    other = await session.join("ops/other")
    free = await session.tasks.add("t")
    theirs = await session.tasks.add("t", assigned_to=other.id)
    claimed = await agent.tasks.claim_by_id(free.id)
    assert claimed is not None
    assert await agent.tasks.claim_by_id(free.id) is None
    assert await agent.tasks.claim_by_id(theirs.id) is None
    assert await other.tasks.claim_by_id(theirs.id) is not None


async def test_the_fold_of_a_tasks_events_is_its_row(session: Session, agent: Agent, db: Connection) -> None:
    """What a claim and a completion clear is told, too."""

    async def same() -> None:
        # What the first event does not name has its column's default.
        folded: dict[str, Any] = {
            "attempt": 0, "released": 0, "blockers": 0, "max_attempts": 5, "cancel_requested": False, "lease_id": None,
            "progress": None, "result": None, "error": None,
        }  # fmt: skip
        for event in (await session.events.read(subject_id=added.id)).events:
            folded |= event.data
        row = json.loads(await db.fetchval("SELECT to_jsonb(t) FROM blackboard.tasks t WHERE id = $1", added.id))
        assert folded == {name: row[name] for name in folded}

    added = await session.tasks.add("t", retry_delay=timedelta())
    await same()
    [task] = await agent.tasks.claim()
    await agent.tasks.progress(task, {"done": 0.5})
    await agent.tasks.fail(task, "once")
    await same()
    [task] = await agent.tasks.claim(wait=timedelta(seconds=10))
    assert task.progress is None
    await same()
    await agent.tasks.progress(task, 1)
    await agent.tasks.complete(task, "done")
    assert (await session.tasks.get(added.id)).error is None
    await same()


async def test_a_failure_that_changes_the_number_of_attempts_says_so(
    session: Session, agent: Agent, db: Connection
) -> None:
    added = await session.tasks.add("t")
    [task] = await agent.tasks.claim()
    await db.fetch(
        "SELECT * FROM blackboard.fail_tasks($1, ARRAY[$2::uuid], ARRAY[$3::uuid], ARRAY[$4::int], ARRAY[NULL::jsonb], "
        "ARRAY['retry'], ARRAY[interval '1 hour'], ARRAY[7], 'ops/worker')",
        session.id, task.id, task.claim_id, task.attempt,
    )  # fmt: skip
    last = (await session.events.read(subject_id=added.id)).events[-1]
    assert (last.type, last.data["max_attempts"]) == ("task.retried", 7)
