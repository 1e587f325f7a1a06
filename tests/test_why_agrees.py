"""What `why` says does not contradict itself, nor what happens next."""

from __future__ import annotations

import json
import uuid
from datetime import timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import Agent, NewTask, Session, Stage, TaskRecord
from blackboard.models.gates import Reason

from .clitools import Cli
from .conftest import Clock

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

HOUR = timedelta(hours=1)


@pytest.fixture
async def agent(session: Session) -> Agent:
    return await session.join("ops/worker", capabilities=["call"])


@pytest.fixture(name="cli")
def _cli(database_url: str) -> Cli:
    return Cli(database_url)


async def why(session: Session, task_id: uuid.UUID) -> dict[str, Reason]:
    reasons = (await session.tasks.why(task_id)).reasons
    assert reasons, "there is always a reason"
    found = {reason.code: reason for reason in reasons}
    assert "ready" not in found or len(found) == 1
    return found


async def hand_back(db: Connection, task: TaskRecord, delay: timedelta | None, error: Any) -> None:
    """As a worker does that has no handler for it."""
    refused = await db.fetch(
        "SELECT * FROM blackboard.release_tasks($1, $2, $3, $4, $5, $6, 'ops/worker')",
        task.session_id, [task.id], [task.claim_id], [task.attempt], [delay],
        [None if error is None else json.dumps(error)],
    )  # fmt: skip
    assert len(refused) == 1


async def claimed(agent: Agent, **options: Any) -> TaskRecord:
    added = await agent.tasks.add("t", **options)
    task = await agent.tasks.claim_by_id(added.id)
    assert task is not None
    return task


async def test_a_release_is_no_failure(session: Session, agent: Agent, db: Connection) -> None:
    task = await claimed(agent)
    await hand_back(db, task, HOUR, {"code": "unknown_type", "message": "No handler for 't' here."})
    said = (await why(session, task.id))["time"]
    assert said.message.startswith("It was handed back (No handler for 't' here.); the next attempt starts at ")
    assert said.details["attempt"] == 0
    silent = await claimed(agent)
    await hand_back(db, silent, HOUR, None)
    assert (await why(session, silent.id))["time"].message.startswith("It was handed back; the next attempt starts at ")


async def test_a_failure_is_one_whatever_came_before(session: Session, agent: Agent, db: Connection) -> None:
    task = await claimed(agent)
    await hand_back(db, task, None, None)
    again = await agent.tasks.claim_by_id(task.id)
    assert again is not None
    await agent.tasks.fail(again, "no route to host", delay=HOUR)
    said = (await why(session, task.id))["time"]
    assert said.message.startswith("Its last attempt failed (no route to host); the next one starts at ")
    assert said.details["attempt"] == 1


async def test_a_timeout_is_a_failure(session: Session, agent: Agent, clock: Clock) -> None:
    task = await claimed(agent, timeout=timedelta(seconds=5), retry_delay=HOUR)
    await clock.advance(timedelta(seconds=10))
    await agent.tasks.claim()
    said = (await why(session, task.id))["time"]
    assert said.message.startswith("Its last attempt failed (It ran longer than its timeout")


async def test_what_was_handed_back_did_not_count(session: Session, agent: Agent, db: Connection) -> None:
    task = await claimed(agent)
    await hand_back(db, task, None, None)
    await session.tasks.cancel(task.id, "not needed")
    said = (await why(session, task.id))["cancelled"]
    assert "attempt" not in said.message
    assert said.details["attempt"] == 0


async def test_a_used_up_budget_is_not_nothing(session: Session, agent: Agent, clock: Clock) -> None:
    task = await session.tasks.add("t")
    assert set(await why(session, task.id)) == {"ready"}
    await session.budgets.set("tokens", 10, window=timedelta(days=1))
    async with agent.budgets.spend(tokens=10) as spend:
        spend.tokens = 10
    found = await why(session, task.id)
    assert set(found) == {"budget"}
    assert found["budget"].message.startswith("The budget of tokens for the session is used up: 10 of 10 are spent. ")
    assert "blackboard budget set" in found["budget"].message
    assert " or begins anew at " in found["budget"].message
    running = await agent.tasks.claim_by_id(task.id)
    assert running is not None
    assert set(await why(session, task.id)) == {"running", "budget"}
    await agent.tasks.complete(running)
    assert set(await why(session, task.id)) == {"completed"}


async def test_the_budget_of_who_had_it_last_does_not_matter(session: Session, agent: Agent) -> None:
    task = await claimed(agent)
    await session.budgets.set("calls", 1, agent_id=agent.id)
    await agent.budgets.settle(await agent.budgets.reserve(calls=1))
    assert set(await why(session, task.id)) == {"running", "budget"}
    await agent.tasks.release(task)
    assert set(await why(session, task.id)) == {"ready"}
    mine = await session.tasks.add("t", assigned_to=agent.id)
    assert set(await why(session, mine.id)) == {"assigned", "budget"}


async def test_a_slot_that_is_free_again(session: Session, agent: Agent) -> None:
    await session.limits.set("one", max_running=1, type="slow")
    ids = await session.tasks.add_many([NewTask(type="slow")] * 2)
    [task] = await agent.tasks.claim(2)
    held = next(one for one in ids if one != task.id)
    full = (await why(session, held))["limit"]
    assert "1 of 1 are running; it comes back when one of them ends" in full.message
    await session.limits.set("one", max_running=2, type="slow")
    free = (await why(session, held))["limit"]
    assert "1 of 2 are running; there is room again, and the next claim in this session brings it back." in free.message
    assert [one.id for one in await agent.tasks.claim(2)] == [held]


async def test_a_time_that_has_come_and_a_limit(session: Session, agent: Agent, clock: Clock) -> None:
    await session.limits.set("one", max_running=1, type="t")
    task = await claimed(agent)
    later = await session.tasks.add("t", run_at=task.created_at + timedelta(minutes=1))
    assert set(await why(session, later.id)) == {"time", "limit"}
    await clock.advance(timedelta(minutes=2))
    assert set(await why(session, later.id)) == {"limit"}
    await agent.tasks.complete(task)
    assert set(await why(session, later.id)) == {"ready"}


async def test_a_rate_that_was_lifted(session: Session, agent: Agent) -> None:
    await session.limits.set("mails", rate_count=1, rate_period=HOUR, type="mail")
    ids = await session.tasks.add_many([NewTask(type="mail")] * 2)
    [task] = await agent.tasks.claim(2)
    put_off = next(one for one in ids if one != task.id)
    said = (await why(session, put_off))["rate"]
    assert "allows one start in 01:00:00, used up by now: it is tried again at " in said.message
    await session.limits.remove("mails")
    found = await why(session, put_off)
    assert set(found) <= {"time", "ready"}
    assert "failed" not in next(iter(found.values())).message


async def test_a_deadline_that_has_passed(session: Session, agent: Agent, clock: Clock) -> None:
    first = await session.tasks.add("t")
    at = first.created_at + timedelta(minutes=1)
    pending = await session.tasks.add("t", expires_at=at)
    blocked = await session.tasks.add("t", expires_at=at, depends_on=[first.id], requires_approval=True)
    assert set(await why(session, pending.id)) == {"ready"}
    assert set(await why(session, blocked.id)) == {"approval", "dependency"}
    await session.budgets.set("calls", 0)
    await clock.advance(timedelta(minutes=2))
    for task in (pending, blocked):
        found = await why(session, task.id)
        assert set(found) == {"deadline"}
        assert found["deadline"].message.endswith(": the next claim cancels it.")
    await agent.tasks.claim()
    assert (await session.tasks.get(pending.id)).status == "cancelled"


async def test_whom_an_assigned_task_waits_for(session: Session, agent: Agent, clock: Clock) -> None:
    other = await session.join("ops/other")
    task = await session.tasks.add("t", assigned_to=other.id, fallback=HOUR)
    said = (await why(session, task.id))["assigned"]
    assert "it is there: it has not asked for more work yet; from " in said.message
    await session.pause()
    found = await why(session, task.id)
    assert set(found) == {"paused", "assigned"}
    assert "has not asked" not in found["assigned"].message
    await session.resume()
    await other.leave()
    gone = (await why(session, task.id))["assigned"]
    assert gone.message == "It waited for ops/other, who has left this session: the next claim lets anybody have it."
    await clock.advance(timedelta(seconds=2))
    [taken] = await agent.tasks.claim()
    assert taken.id == task.id
    await agent.tasks.complete(taken)
    late = await session.tasks.add("t", assigned_to="ops/nobody", fallback=timedelta(minutes=1))
    await clock.advance(timedelta(minutes=2))
    over = (await why(session, late.id))["assigned"]
    assert over.message.startswith("It waited for ops/nobody until ")
    assert "anybody have it" in over.message
    assert [one.id for one in await agent.tasks.claim()] == [late.id]


async def test_what_holds_a_task_is_said_beside_a_pause(session: Session, db: Connection) -> None:
    task = await session.tasks.add("t")
    await db.execute(
        "UPDATE blackboard.tasks SET status = 'held', position = NULL, "
        """held = '{"code": "quarantine", "message": "It is looked into."}' WHERE id = $1""",
        task.id,
    )
    await session.tasks.pause(type="t")
    assert set(await why(session, task.id)) == {"paused", "quarantine"}
    flow = await session.flows.create("f", [Stage("a", "t")])
    await session.flows.pause(flow.id)
    found = (await session.tasks.why(flow.stage("a").task_id)).reasons
    assert sorted(reason.code for reason in found) == ["flow_paused", "paused"]


async def test_who_was_silent_and_asked_to_stop(session: Session, agent: Agent, db: Connection) -> None:
    task = await claimed(agent)
    await session.tasks.cancel(task.id)
    assert "its holder sees that" in (await why(session, task.id))["cancelling"].message
    await db.execute("UPDATE blackboard.leases SET lapsed_at = blackboard.now()")
    found = await why(session, task.id)
    assert "takes the task back" in found["running"].message
    assert found["cancelling"].message == "It was asked to stop: it is cancelled when it is taken back."


# ------------------------------------------------------------------------------------------------- who has it


async def test_a_released_task_is_with_nobody(session: Session, agent: Agent, cli: Cli) -> None:
    task = await claimed(agent)
    assert task.assignee == agent.id
    short = task.id.hex[-8:]
    assert agent.id in cli("task", "list").stdout
    await agent.tasks.release(task)
    back = await session.tasks.get(task.id)
    assert (back.status, back.assigned_to, back.assignee) == ("pending", agent.id, None)
    assert agent.id not in cli("task", "list").stdout
    assert "assigned_to        -\n" in cli("task", "show", short).stdout
    assert cli("task", "show", short, "--json").json["assigned_to"] == agent.id
    tasks = cli("board").stdout
    assert agent.id not in next(line for line in tasks.splitlines() if short in line)
    assert cli("task", "list", "--assigned-to", agent.id, "--json").json == []
    picture = await session.board()
    assert [one.assignee for one in picture.tasks] == [None]
    again = await agent.tasks.claim_by_id(task.id)
    assert again is not None
    assert [one["id"] for one in cli("task", "list", "--assigned-to", agent.id, "--json").json] == [str(task.id)]
    await agent.tasks.fail(again, "broken", delay=HOUR)
    assert (await session.tasks.get(task.id)).assignee is None


async def test_who_a_task_is_for_and_who_ended_it(session: Session, agent: Agent) -> None:
    for options in ({}, {"requires_approval": True}, {"run_at": (await session.tasks.add("x")).created_at + HOUR}):
        mine = await session.tasks.add("t", assigned_to=agent.id, **options)
        assert mine.assignee == agent.id
    task = await claimed(agent)
    await agent.tasks.complete(task)
    assert (await session.tasks.get(task.id)).assignee == agent.id


async def test_why_tells_of_a_process_that_has_missed_a_beat(steady: Session, db: Connection) -> None:
    agent = await steady.join("a")
    await steady.tasks.add("t")
    [task] = await agent.tasks.claim()
    [reason] = (await steady.tasks.why(task.id)).reasons
    assert "heard" not in reason.message
    await db.execute(
        "UPDATE blackboard.leases SET expires_at = blackboard.now() + term / 3 WHERE id = $1", task.lease_id
    )
    [reason] = (await steady.tasks.why(task.id)).reasons
    assert "; its process was last heard of at " in reason.message
    assert ", and loses the task at " in reason.message
