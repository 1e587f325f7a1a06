"""A verb whose answer was lost: repeated, it answers as the first time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import Agent, Session, Stage, TaskRecord
from blackboard.errors import Conflict, InvalidTransition, LeaseLost, ServerUnreachable
from blackboard.store.asyncpg_executor import AsyncpgConnectionExecutor
from blackboard.store.executor import Row
from blackboard.store.statements import Statement

from .conftest import Clock

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def agent(session: Session) -> Agent:
    return await session.join("a")


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Callable[[], int]]:
    """The answer to the next call of a function is lost after its commit; how often the function was called."""
    real = AsyncpgConnectionExecutor.rows
    wanted, calls = "", 0

    async def rows(self: AsyncpgConnectionExecutor, statement: Statement, params: Any) -> list[Row]:
        nonlocal calls
        found = await real(self, statement, params)
        # A pooled call is one inside a transaction of its own: only the outer one has committed.
        if f"blackboard.{wanted}(" in statement.numbered and not self._connection.is_in_transaction():  # pyright: ignore[reportPrivateUsage]
            calls += 1
            if calls == 1:
                raise ServerUnreachable("the answer is lost")
        return found

    def begin(function: str) -> Callable[[], int]:
        nonlocal wanted, calls
        wanted, calls = function, 0
        return lambda: calls

    monkeypatch.setattr(AsyncpgConnectionExecutor, "rows", rows)
    return begin


Cut: TypeAlias = Callable[[str], Callable[[], int]]


async def held(session: Session, agent: Agent, **options: Any) -> TaskRecord:
    added = await session.tasks.add("t", **options)
    task = await agent.tasks.claim_by_id(added.id)
    assert task is not None
    return task


async def kinds(session: Session, task: TaskRecord) -> list[str]:
    page = await session.events.read(subject_id=task.id)
    return [event.type.removeprefix("task.") for event in page.events]


@pytest.mark.parametrize("asked_to_stop", [False, True])
async def test_release(session: Session, agent: Agent, cut: Cut, asked_to_stop: bool) -> None:
    task = await held(session, agent)
    if asked_to_stop:
        await session.tasks.cancel(task.id)
    calls = cut("release_task")
    back = await agent.tasks.release(task)
    assert (back.status, back.released) == ("cancelled" if asked_to_stop else "pending", 1)
    assert calls() == 2
    ends = [kind for kind in await kinds(session, task) if kind in ("released", "cancelled")]
    assert ends == ["cancelled" if asked_to_stop else "released"]


@pytest.mark.parametrize(("asked_to_stop", "retry", "status"), [
    (False, True, "scheduled"), (False, False, "failed"), (True, True, "cancelled"), (True, False, "failed"),
])  # fmt: skip
async def test_fail(session: Session, agent: Agent, cut: Cut, asked_to_stop: bool, retry: bool, status: str) -> None:
    task = await held(session, agent)
    if asked_to_stop:
        await session.tasks.cancel(task.id)
    calls = cut("fail_task")
    ended = await agent.tasks.fail(task, {"message": "no code"}, retry=retry)
    assert (ended.status, calls()) == (status, 2)
    assert ended.error == {"message": "no code", "attempt": 1, "agent_id": "a"}
    assert len(await session.tasks.attempts(task.id)) == 1


async def test_after_the_task_has_gone_on(session: Session, agent: Agent, clock: Clock) -> None:
    """Somebody else has it by now, has done it, or it is over otherwise: what the first call did, it did."""
    failed, released = await held(session, agent), await held(session, agent)
    for _ in range(2):
        await agent.tasks.fail(failed, "x")
        await agent.tasks.release(released)
    await clock.advance(timedelta(seconds=30))
    other = await session.join("b")
    taken = await other.tasks.claim(2)
    for status in ("running", "completed"):
        assert (await agent.tasks.fail(failed, "x")).status == status
        assert (await agent.tasks.release(released)).status == status
        if status == "running":
            await other.tasks.complete_many([(task, None) for task in taken])
    for task in (failed, released):
        assert len(await session.tasks.attempts(task.id)) == 2
    with pytest.raises(LeaseLost):
        await agent.tasks.release(failed)
    with pytest.raises(LeaseLost):
        await agent.tasks.fail(released, "x")


async def test_what_others_did_is_not_ones_own(session: Session, steady: Session, db: Connection, clock: Clock) -> None:
    """A lapsed lease and a deadline end an attempt as well, and whoever comes late is told."""
    agent = await steady.join("a")
    lapsed, stopped = await held(session, agent), await held(session, agent)
    await session.tasks.cancel(stopped.id)
    await db.execute("UPDATE blackboard.leases SET lapsed_at = blackboard.now() WHERE id = $1", lapsed.lease_id)
    await db.execute("SELECT blackboard.sweep_leases(10)")
    assert [(await kinds(session, task))[-1] for task in (lapsed, stopped)] == ["lapsed", "cancelled"]
    for task in (lapsed, stopped):
        with pytest.raises(LeaseLost):
            await agent.tasks.release(task)
        with pytest.raises(LeaseLost):
            await agent.tasks.fail(task, "x")
    over = await held(session, await session.join("b"), timeout=timedelta(minutes=1))
    await clock.advance(timedelta(minutes=2))
    await db.execute("SELECT blackboard.sweep_leases(10)")
    assert (await session.tasks.get(over.id)).error["code"] == "timeout"
    with pytest.raises(LeaseLost):
        await agent.tasks.fail(over, "x")


async def test_another_claim_of_the_same_attempt(session: Session, agent: Agent, db: Connection) -> None:
    task = await held(session, agent)
    await agent.tasks.release(task)
    forged = await db.fetch(
        "SELECT * FROM blackboard.release_tasks($1, $2, '{00000000-0000-0000-0000-000000000001}', '{1}', NULL, NULL, 'b')",
        session.id, [task.id],
    )  # fmt: skip
    assert forged == []


async def test_redrive(session: Session, agent: Agent, cut: Cut) -> None:
    task = await held(session, agent, max_attempts=1)
    await agent.tasks.fail(task, "x")
    calls = cut("redrive_task")
    assert (await session.tasks.redrive(task.id)).status == "pending"
    assert calls() == 2
    assert (await kinds(session, task)).count("redriven") == 1
    with pytest.raises(InvalidTransition):
        await session.tasks.redrive(task.id)


async def test_redrive_many(session: Session, agent: Agent, cut: Cut) -> None:
    dead = [await held(session, agent, max_attempts=1) for _ in range(6)]
    for task in reversed(dead):
        await agent.tasks.fail(task, "x")
    expected = await session.tasks.redrive_many(limit=4, dry_run=True)
    assert expected == [task.id for task in reversed(dead)][:4], "the longest dead first"
    calls = cut("redrive_tasks")
    assert await session.tasks.redrive_many(limit=4, older_than=timedelta()) == expected
    assert calls() == 2
    assert await session.tasks.count() == {"pending": 4, "dead": 2}
    assert len(await session.tasks.redrive_many(limit=4)) == 2, "another call goes on"
    calls = cut("redrive_tasks")
    assert (await session.tasks.redrive_many(limit=4), calls()) == ([], 2)


async def test_reject(session: Session, cut: Cut) -> None:
    task = await session.tasks.add("t", requires_approval=True)
    calls = cut("decide_task")
    rejected = await session.tasks.reject(task.id, by="boss", reason="too dear")
    assert (rejected.status, rejected.error) == ("cancelled", {"code": "rejected", "message": "too dear"})
    assert calls() == 2
    with pytest.raises(InvalidTransition):
        await session.tasks.reject(task.id, by="boss", reason="too dear")


async def test_approve(session: Session, cut: Cut) -> None:
    task = await session.tasks.add("t", requires_approval=True)
    calls = cut("decide_task")
    assert (await session.tasks.approve(task.id, by="boss")).status == "pending"
    assert calls() == 2


async def test_modifying_a_flow(session: Session, cut: Cut) -> None:
    flow = await session.flows.create("f", [Stage("a", "t")])
    calls = cut("modify_flow")
    changed = await session.flows.modify(flow.id, flow.version, reprioritise={"a": 7})
    assert (changed.version, calls()) == (flow.version + 1, 2)
    with pytest.raises(Conflict):
        await session.flows.modify(flow.id, flow.version, reprioritise={"a": 7})


async def test_in_a_transaction_of_the_caller_no_key_is_kept(
    board: Any, session: Session, agent: Agent, db: Connection
) -> None:
    task = await held(session, agent, max_attempts=1)
    await agent.tasks.fail(task, "x")
    gated = await session.tasks.add("t", requires_approval=True)
    flow = await session.flows.create("f", [Stage("a", "t")])
    async with db.transaction(isolation="repeatable_read"):
        bound = await board.bind(db).session(session.id)
        await bound.tasks.redrive(task.id)
        await bound.tasks.reject(gated.id)
        await bound.flows.modify(flow.id, flow.version, reprioritise={"a": 7})
    assert await db.fetchval("SELECT count(*) FROM blackboard.requests") == 0
