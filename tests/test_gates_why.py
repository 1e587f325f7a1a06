"""Why a task waits, and what becomes of old ones."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import asyncpg
import pytest

from blackboard import Agent, NewTask, Session, Stage
from blackboard.errors import InvalidInput, NotFound
from blackboard.models.gates import Reason
from blackboard.models.tasks import Dependency, Unique

from .conftest import Clock

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def agent(session: Session) -> Agent:
    return await session.join("ops/worker", capabilities=["call"])


async def why(session: Session, task_id: uuid.UUID) -> dict[str, Reason]:
    return {reason.code: reason for reason in (await session.tasks.why(task_id)).reasons}


async def test_dependency_approval_and_time(session: Session) -> None:
    first = await session.tasks.add("collect")
    at = datetime.now(UTC) + timedelta(hours=1)
    task = await session.tasks.add(
        "report", depends_on=[Dependency(id=first.id, on_failure="continue")], requires_approval=True, run_at=at
    )
    found = await why(session, task.id)
    assert set(found) == {"approval", "dependency", "time"}
    assert found["dependency"].details == {
        "id": str(first.id), "type": "collect", "status": "pending", "on_failure": "continue",
    }  # fmt: skip
    assert f"Task {first.id} (collect) must end first; it is pending." in found["dependency"].message
    assert str(task.id) in found["approval"].message
    await session.tasks.approve(task.id)
    assert set(await why(session, task.id)) == {"dependency", "time"}


async def test_a_retry_says_what_failed(session: Session, agent: Agent) -> None:
    await session.tasks.add("t")
    [task] = await agent.tasks.claim()
    await agent.tasks.fail(task, "no route to host", delay=timedelta(hours=1))
    found = await why(session, task.id)
    assert set(found) == {"time"}
    assert "no route to host" in found["time"].message


async def test_limit_rate_and_pauses(session: Session, agent: Agent) -> None:
    await session.limits.set("one", max_running=1, type="slow", per_key=True)
    await session.limits.set("mails", rate_count=1, rate_period=timedelta(hours=1), type="mail")
    ids = await session.tasks.add_many([NewTask(type="slow", limit_key="a")] * 2 + [NewTask(type="mail")] * 2)
    tasks = await agent.tasks.claim(4)
    assert len(tasks) == 2
    held = await why(session, ids[1])
    assert set(held) == {"limit"}
    assert held["limit"].details == {"limit": "one", "key": "a", "running": 1, "max_running": 1}
    assert "1 of 1 are running" in held["limit"].message
    later = await why(session, ids[3])
    assert set(later) == {"rate"}
    assert later["rate"].details["rate_count"] == 1
    fresh = await session.tasks.add("slow", limit_key="a")
    assert set(await why(session, fresh.id)) == {"limit"}, "also while it is still in the ready index"
    mail = await session.tasks.add("mail", capability="call")
    assert set(await why(session, mail.id)) == {"rate"}
    await session.tasks.pause(type="mail", reason="relay down")
    await session.tasks.pause(capability="call")
    found = (await session.tasks.why(mail.id)).reasons
    assert [reason.code for reason in found][:2] == ["paused", "paused"]
    assert "relay down" in found[1].message and "blackboard task resume --type mail" in found[1].message
    await session.pause()
    assert "session resume" in (await session.tasks.why(mail.id)).reasons[0].message


async def test_capability_nobody_present_has(session: Session, agent: Agent, clock: Clock) -> None:
    task = await session.tasks.add("t", capability="fly")
    found = await why(session, task.id)
    assert set(found) == {"capability"} and "'fly'" in found["capability"].message
    call = await session.tasks.add("t", capability="call", priority=9)
    ready = await why(session, call.id)
    assert ready["ready"].details == {"tasks_before": 0, "agents_present": 1}
    await session.tasks.add_many([NewTask(type="t", capability="call", priority=9)] * 2)
    last = await session.tasks.add("t", capability="call", priority=1)
    assert (await why(session, last.id))["ready"].details["tasks_before"] == 3
    await clock.advance(timedelta(hours=1))
    assert set(await why(session, call.id)) == {"capability"}, "its process has gone"


async def test_assigned(session: Session, agent: Agent) -> None:
    unknown = await session.tasks.add("t", assigned_to="ops/other", fallback=timedelta(minutes=5))
    found = await why(session, unknown.id)
    assert set(found) == {"assigned"}
    assert "has not joined" in found["assigned"].message and "anybody may" in found["assigned"].message
    mine = await session.tasks.add("t", assigned_to=agent.id)
    assert "it is there" in (await why(session, mine.id))["assigned"].message
    await agent.leave()
    assert "has left" in (await why(session, mine.id))["assigned"].message


async def test_running_and_finished(session: Session, agent: Agent, db: Connection) -> None:
    ids = await session.tasks.add_many([NewTask(type="t") for _ in range(3)] + [NewTask(type="t", max_attempts=1)])
    tasks = await agent.tasks.claim(4)
    running = (await why(session, ids[0]))["running"]
    assert (running.details["agent_id"], running.details["lease"]) == (agent.id, "live")
    assert "ops/worker runs it since" in running.message
    await session.tasks.cancel(ids[0])
    assert set(await why(session, ids[0])) == {"running", "cancelling"}
    await agent.tasks.complete(tasks[1], {"n": 1})
    assert "by ops/worker" in (await why(session, ids[1]))["completed"].message
    await agent.tasks.fail(tasks[2], "broken", retry=False)
    assert "broken" in (await why(session, ids[2]))["failed"].message
    await agent.tasks.fail(tasks[3], "broken")
    assert f"redrive {ids[3]}" in (await why(session, ids[3]))["dead"].message
    await db.execute("UPDATE blackboard.leases SET lapsed_at = blackboard.now()")
    lapsed = (await why(session, ids[0]))["running"]
    assert lapsed.details["lease"] == "lapsed" and "takes the task back" in lapsed.message
    with pytest.raises(NotFound):
        await session.tasks.why(uuid.uuid4())


async def test_what_another_part_holds_says_so_itself(session: Session, db: Connection) -> None:
    task = await session.tasks.add("t")
    await db.execute(
        "UPDATE blackboard.tasks SET status = 'held', position = NULL, "
        """held = '{"code": "budget", "message": "The budget is used up.", "budget": "tokens"}' WHERE id = $1""",
        task.id,
    )
    [reason] = (await session.tasks.why(task.id)).reasons
    assert reason == Reason(code="budget", message="The budget is used up.", details={"budget": "tokens"})


# -------------------------------------------------------------------------------------------------------- prune


async def finish(session: Session, agent: Agent, count: int) -> list[uuid.UUID]:
    ids = await session.tasks.add_many([NewTask(type="old") for _ in range(count)])
    tasks = await agent.tasks.claim(count)
    await agent.tasks.complete_many([(task, None) for task in tasks])
    return ids


async def test_prune_takes_what_is_old_and_finished(
    session: Session, agent: Agent, clock: Clock, db: Connection
) -> None:
    old = await finish(session, agent, 4)
    cancelled = await session.tasks.add("t", unique=Unique(key="k"))
    await session.tasks.cancel(cancelled.id)
    await clock.advance(timedelta(days=2), gap=True)
    waiting = await session.tasks.add("t")
    new = await session.tasks.add("t")
    await session.tasks.cancel(new.id)
    with pytest.raises(InvalidInput):
        await session.tasks.prune()
    dry = await session.tasks.prune(older_than=timedelta(days=1), dry_run=True)
    assert (dry.tasks, dry.events, dry.dry_run) == (5, None, True)
    assert sum((await session.tasks.count()).values()) == 7
    assert (await session.tasks.prune(older_than=timedelta(days=1), status=["completed"])).tasks == 4
    assert (await session.configure(retention=timedelta(days=1))).retention == timedelta(days=1)
    assert (await session.tasks.prune()).tasks == 1
    assert {task.id for task in await session.tasks.list()} == {waiting.id, new.id}
    page = await session.events.read(subject_id=old[0], limit=100)
    assert page.events[-1].type == "task.pruned"
    assert page.events[-1].data == {"type": "old", "status": "completed"}
    assert await db.fetchval("SELECT count(*) FROM blackboard.task_keys") == 0
    with pytest.raises(InvalidInput):
        await session.tasks.prune(older_than=timedelta(0), status=["running"])


async def test_prune_keeps_what_an_unfinished_task_depends_on(session: Session, agent: Agent, db: Connection) -> None:
    [first] = await finish(session, agent, 1)
    child = await session.tasks.add("t", depends_on=[first], requires_approval=True)
    assert (await session.tasks.prune(older_than=timedelta(0))).tasks == 0
    await session.tasks.reject(child.id)
    assert (await session.tasks.prune(older_than=timedelta(0))).tasks == 2
    assert await db.fetchval("SELECT count(*) FROM blackboard.task_dependencies") == 0


async def test_prune_takes_events_too(session: Session, agent: Agent, clock: Clock) -> None:
    await finish(session, agent, 2)
    await clock.advance(timedelta(days=2), gap=True)
    await session.tasks.add("t")
    dry = await session.tasks.prune(older_than=timedelta(days=1), events=True, dry_run=True)
    pruned = await session.tasks.prune(older_than=timedelta(days=1), events=True)
    assert dry.events == pruned.events and (pruned.events or 0) >= 6


async def test_a_stage_that_waits_for_its_flow_and_an_empty_budget_say_so(session: Session) -> None:
    agent = await session.join("ops/flows")
    flow = await session.flows.create("f", [Stage("first", "t"), Stage("second", "t", after=["first"])])
    second = next(stage for stage in flow.stages if stage.name == "second")
    [reason] = (await session.tasks.why(second.task_id)).reasons
    assert (reason.code, reason.details["stage"]) == ("flow_waiting", "second")
    assert "first" in reason.message
    await session.budgets.set("tokens", 10)
    async with agent.budgets.spend(tokens=10) as spend:
        spend.tokens = 10
    task = await session.tasks.add("t")
    assert "budget" in {reason.code for reason in (await session.tasks.why(task.id)).reasons}
