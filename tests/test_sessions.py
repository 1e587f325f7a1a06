"""Sessions from start to close, the agents in them, idempotency keys, and the picture of a session."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import Blackboard, Session
from blackboard.errors import (
    AlreadyExists,
    BlackboardError,
    IdempotencyConflict,
    InvalidInput,
    LeaseLost,
    NotFound,
    PayloadTooLarge,
    SessionClosed,
)
from blackboard.ids import new_id
from blackboard.models.sessions import SessionStatus

from .conftest import Clock, Connect, eventually

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def kinds(session: Session, subject: uuid.UUID | None = None) -> list[str]:
    return [event.type for event in (await session.events.read(subject_id=subject, limit=10_000)).events]


# -------------------------------------------------------------------------------------------------- start and find


async def test_a_session_is_started_and_found(board: Blackboard) -> None:
    started = await board.start("INC-1", goal="why?", context={"task": "INC-1"}, allow_self_validation=True)
    record = started.record
    assert (record.name, record.goal, record.context, record.status) == ("INC-1", "why?", {"task": "INC-1"}, "active")
    assert (record.created_by, record.closed_at, record.outcome, record.allow_self_validation) == (
        "tester",
        None,
        None,
        True,
    )
    for wanted in ("INC-1", started.id, str(started.id)):
        assert (await board.session(wanted)).record == record
    [event] = (await started.events.read()).events
    assert (event.type, event.actor, event.subject_id) == ("session.started", "tester", started.id)
    assert event.data["initiator"] == "tester"
    assert event.data["context"] == {"task": "INC-1"}
    assert repr(started) == f"<Session 'INC-1' {started.id}>"


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"name": 3}, "name"),
        ({"name": "a", "goal": "x" * 10_001}, "goal"),
        ({"name": "a", "goal": "\0"}, "goal"),
        ({"name": "a", "context": {"x": math.nan}}, "context"),
        ({"name": "a", "context": {"x": "\0"}}, "context"),
        ({"name": "a", "context": object()}, "context"),
        ({"name": "a", "id": "abc"}, "id"),
        ({"name": "a", "id": uuid.UUID(int=0)}, "id"),
    ],
)
async def test_what_a_session_cannot_be_started_with(board: Blackboard, arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        await board.start(**arguments)
    assert refused.value.field == field
    assert await board.sessions.list() == []


async def test_ten_megabytes_of_context_are_too_large(board: Blackboard) -> None:
    with pytest.raises(PayloadTooLarge) as refused:
        await board.start("a", context={"x": "y" * 10_000_000})
    assert refused.value.field == "context"


async def test_a_name_is_free_again_once_its_session_is_closed(board: Blackboard) -> None:
    first = await board.start("nightly")
    with pytest.raises(AlreadyExists) as refused:
        await board.start("nightly")
    assert refused.value.field == "name"
    await first.close()
    second = await board.start("nightly")
    assert (await board.session("nightly")).id == second.id, "the open one is found first"
    await second.close(status="failed")
    assert (await board.session("nightly")).id == second.id, "then the newest closed one"
    assert (await board.session(first.id)).id == first.id


async def test_of_two_that_start_one_name_at_once_one_does(
    connect: Connect, blocked: Callable[[int], Awaitable[None]]
) -> None:
    one, two = await connect(), await connect()
    start = "SELECT id FROM blackboard.start_session($1, 'same', '', '{}', NULL)"
    transaction = one.transaction()
    await transaction.start()
    await one.execute(start, new_id())
    second = asyncio.ensure_future(two.execute(start, new_id()))
    await blocked(two.get_server_pid())
    await transaction.commit()
    with pytest.raises(asyncpg.UniqueViolationError) as refused:
        await second
    assert refused.value.constraint_name == "sessions_name_while_open"


async def test_two_overlapping_starts_with_one_id_are_one_start(
    board: Blackboard, connect: Connect, blocked: Callable[[int], Awaitable[None]]
) -> None:
    one, two = await connect(), await connect()
    key = new_id()
    start = "SELECT id FROM blackboard.start_session($1, 'same', 'g', '{}', NULL)"
    transaction = one.transaction()
    await transaction.start()
    await one.execute(start, key)
    second = asyncio.ensure_future(two.fetchval(start, key))
    await blocked(two.get_server_pid())
    await transaction.commit()
    assert await second == key
    assert len(await board.sessions.list()) == 1


async def test_the_same_id_is_the_same_session(board: Blackboard) -> None:
    key = new_id()
    first = await board.start("a", goal="g", context={"x": 1}, id=key)
    await first.update(goal="another")
    again = await board.start("a", goal="g", context={"x": 1}, id=str(key))
    assert (again.id, again.record.goal) == (key, "another")
    for change in ({"goal": "h"}, {"context": {"x": 2}}, {"allow_self_validation": True}):
        with pytest.raises(IdempotencyConflict):
            await board.start("a", **{"goal": "g", "context": {"x": 1}, "id": key, **change})
    with pytest.raises(IdempotencyConflict):
        await board.start("b", goal="g", context={"x": 1}, id=key)
    assert await kinds(first, key) == ["session.started", "session.updated"]


async def test_sessions_are_listed_newest_first(board: Blackboard) -> None:
    names = [(await board.start(f"s{n}")).name for n in range(5)]
    await (await board.session("s2")).close()
    await (await board.session("s3")).pause()
    assert [record.name for record in await board.sessions.list()] == names[::-1]
    assert [record.name for record in await board.sessions.list(limit=2)] == ["s4", "s3"]
    assert [record.name for record in await board.sessions.list(status="completed")] == ["s2"]
    assert [record.name for record in await board.sessions.list(status=SessionStatus.PAUSED)] == ["s3"]
    with pytest.raises(InvalidInput) as refused:
        await board.sessions.list(status="sleeping")
    assert refused.value.field == "status"


@pytest.mark.parametrize("wanted", ["nothing", str(uuid.UUID(int=7)), uuid.UUID(int=7), ""])
async def test_a_session_that_is_not_there(board: Blackboard, wanted: Any) -> None:
    with pytest.raises(NotFound) as refused:
        await board.session(wanted)
    assert refused.value.noun == "session"


@pytest.mark.parametrize("limit", [0, -1, 2**31, 2**70])
async def test_limits_out_of_range_are_refused(board: Blackboard, session: Session, limit: int) -> None:
    for call in (
        board.sessions.list(limit=limit),
        session.board(limit=limit),
        session.events.read(limit=limit),
        session.events.history(limit=limit),
    ):
        with pytest.raises(InvalidInput):
            await call


# ---------------------------------------------------------------------------------------------- update, pause, close


async def test_goal_and_context_change_and_the_rest_stays(session: Session) -> None:
    await session.update(goal="new")
    assert (session.record.goal, session.record.context) == ("new", {})
    await session.update(context=[1, {"a": None}])
    assert (session.record.goal, session.record.context) == ("new", [1, {"a": None}])
    await session.update(goal="new")
    assert await kinds(session) == ["session.started", "session.updated", "session.updated"], "no change is no event"
    last = (await session.events.read()).events[-1]
    assert last.data == {"context": [1, {"a": None}]}
    with pytest.raises(InvalidInput):
        await session.update(goal="x" * 10_001)


async def test_a_paused_session_hands_out_nothing(session: Session) -> None:
    agent = await session.join("a")
    await session.tasks.add("t")
    await session.tasks.add("t")
    [running] = await agent.tasks.claim()
    assert (await session.pause()).status == "paused"
    assert (await session.pause()).status == "paused"
    assert await agent.tasks.claim() == []
    assert await agent.tasks.claim_by_id((await session.tasks.list(status="pending"))[0].id) is None
    await agent.tasks.complete(running)
    assert (await session.resume()).status == "active"
    assert len(await agent.tasks.claim()) == 1
    assert [kind for kind in await kinds(session) if kind.startswith("session")] == [
        "session.started", "session.paused", "session.resumed",
    ]  # fmt: skip


async def test_closing_is_done_once(session: Session) -> None:
    closed = await session.close(outcome={"decision": "rollback"})
    assert (closed.status, closed.outcome) == ("completed", {"decision": "rollback"})
    assert closed.closed_at is not None
    assert await session.close(outcome={"decision": "rollback"}) == closed, "repeating it returns the same"
    for call in (
        session.close(outcome="another"),
        session.close(outcome={"decision": "rollback"}, status="failed"),
        session.pause(),
        session.resume(),
        session.update(goal="x"),
    ):
        with pytest.raises(SessionClosed) as refused:
            await call
        assert refused.value.status == "completed"
    assert await kinds(session) == ["session.started", "session.completed"]
    with pytest.raises(InvalidInput):
        await session.close(status="paused")


async def test_two_that_close_at_once_close_once(
    session: Session, connect: Connect, blocked: Callable[[int], Awaitable[None]]
) -> None:
    one, two = await connect(), await connect()
    close = "SELECT (blackboard.close_session($1, $2, NULL, 'x')).status"
    transaction = one.transaction()
    await transaction.start()
    await one.execute(close, session.id, "completed")
    second = asyncio.ensure_future(two.fetchval(close, session.id, "failed"))
    await blocked(two.get_server_pid())
    await transaction.commit()
    with pytest.raises(asyncpg.PostgresError) as refused:
        await second
    assert refused.value.sqlstate == "BB007"
    assert await kinds(session) == ["session.started", "session.completed"]


async def test_what_becomes_of_everything_that_is_open(session: Session, db: Connection) -> None:
    agent, other = await session.join("a"), await session.join("b")
    runs = await session.tasks.add("runs", priority=9)
    [held] = await agent.tasks.claim()
    waits = [
        await session.tasks.add("pending"),
        await session.tasks.add("assigned", assigned_to="b"),
        await session.tasks.add("blocked", depends_on=[runs.id]),
        await session.tasks.add("gated", requires_approval=True),
    ]
    proposal = await agent.proposals.open("roll back?")
    action = await agent.actions.propose("modify", "api", requires_approval=True)
    await agent.locks.acquire("file:/a")
    await session.close()
    assert {task.status for task in (await session.tasks.get_many([t.id for t in waits])).values()} == {"cancelled"}
    assert (await session.proposals.get(proposal.id)).status == "expired"
    assert (await session.actions.get(action.id)).status == "rejected"
    assert await db.fetchval("SELECT count(*) FROM blackboard.locks WHERE holder IS NOT NULL") == 0
    assert (await session.tasks.get(held.id)).cancel_requested
    transactions = await db.fetchval(
        "SELECT count(DISTINCT tx) FROM blackboard.events WHERE session_id = $1 AND seq >= "
        "(SELECT min(seq) FROM blackboard.events WHERE type IN ('task.cancelled', 'proposal.expired'))",
        session.id,
    )
    assert transactions == 1, "all of it in one transaction"
    assert (await kinds(session))[-1] == "session.completed"
    await agent.tasks.complete(held, "the holder may still hand in")
    assert (await session.tasks.get(held.id)).result == "the holder may still hand in"
    assert other.id == "b"


async def test_a_closed_session_takes_no_more_writes(session: Session, db: Connection) -> None:
    agent = await session.join("a")
    finding = await agent.findings.report("seen", type="t")
    hypothesis = await agent.hypotheses.propose("it leaks", confidence=0.5)
    await session.close()
    writes: list[Awaitable[Any]] = [
        session.join("b"),
        session.tasks.add("t"),
        agent.tasks.claim(),
        agent.tasks.claim_by_id(new_id()),
        agent.findings.report("more", type="t"),
        agent.findings.retract(finding.id, "wrong"),
        agent.hypotheses.propose("it does not", confidence=0.5),
        agent.hypotheses.add_evidence(hypothesis.id, finding.id),
        agent.proposals.open("really?"),
        agent.actions.propose("query", "api"),
        agent.locks.acquire("x"),
    ]
    for write in writes:
        with pytest.raises(SessionClosed):
            await write
    before = len(await kinds(session))
    for sql in (
        "INSERT INTO blackboard.tasks (session_id, type) VALUES ($1, 't')",
        "INSERT INTO blackboard.findings (session_id, agent_id, type, content) VALUES ($1, 'a', 't', '1')",
        "INSERT INTO blackboard.memberships (session_id, agent_id) VALUES ($1, 'z')",
        "INSERT INTO blackboard.hypotheses (session_id, agent_id, statement) VALUES ($1, 'a', 's')",
        "INSERT INTO blackboard.actions (session_id, agent_id, type) VALUES ($1, 'a', 'query')",
        "INSERT INTO blackboard.proposals (session_id, agent_id, title) VALUES ($1, 'a', 't')",
        "INSERT INTO blackboard.locks (session_id, name) VALUES ($1, 'l')",
    ):
        await db.execute("INSERT INTO blackboard.agents (id) VALUES ('z') ON CONFLICT DO NOTHING")
        with pytest.raises(asyncpg.PostgresError) as refused:
            await db.execute(sql, session.id)
        assert refused.value.sqlstate == "BB007", (sql, refused.value)
    assert len(await kinds(session)) == before


# ------------------------------------------------------------------------------------------------------- keys


async def test_a_key_makes_an_update_happen_once(board: Blackboard, session: Session) -> None:
    await session.update(goal="one", key="k")
    await session.update(goal="two")
    assert (await session.update(goal="one", key="k")).goal == "two", "the repetition returns what is there now"
    with pytest.raises(IdempotencyConflict) as refused:
        await session.update(goal="three", key="k")
    assert refused.value.field == "key"
    await session.close()
    assert (await session.update(goal="one", key="k")).status == "completed", "the key comes before the state"
    with pytest.raises(InvalidInput) as empty:
        await session.update(goal="x", key="")
    assert empty.value.field == "key"


async def test_a_key_belongs_to_its_verb(session: Session, db: Connection) -> None:
    await session.update(goal="one", key="k")
    with pytest.raises(asyncpg.PostgresError) as refused:
        await db.execute("SELECT blackboard.first_time($1, 'k', 'another_verb', '[\"one\", null, null]')", session.id)
    assert refused.value.sqlstate == "BB004"


async def test_of_two_overlapping_calls_with_one_key_one_happens(
    session: Session, connect: Connect, blocked: Callable[[int], Awaitable[None]]
) -> None:
    one, two = await connect(), await connect()
    first_time = "SELECT blackboard.first_time($1, 'k', 'v', '{}')"
    transaction = one.transaction()
    await transaction.start()
    assert await one.fetchval(first_time, session.id) is True
    second = asyncio.ensure_future(two.fetchval(first_time, session.id))
    await blocked(two.get_server_pid())
    await transaction.commit()
    assert await second is False
    transaction = one.transaction()
    await transaction.start()
    assert await one.fetchval("SELECT blackboard.first_time($1, 'l', 'v', '{}')", session.id) is True
    third = asyncio.ensure_future(two.fetchval("SELECT blackboard.first_time($1, 'l', 'v', '{}')", session.id))
    await blocked(two.get_server_pid())
    await transaction.rollback()
    assert await third is True, "what was rolled back did not happen"


async def test_keys_are_kept_for_a_day(session: Session, db: Connection, clock: Clock) -> None:
    await session.update(goal="one", key="k")
    await clock.advance(timedelta(hours=25))
    await session.update(goal="two", key="other")
    assert await db.fetchval("SELECT array_agg(key) FROM blackboard.requests") == ["other"]


# ------------------------------------------------------------------------------------------------------- agents


async def test_an_agent_joins_and_joins_again(session: Session) -> None:
    agent = await session.join(
        "ops/a", capabilities=["x", "y"], expertise={"observation": 0.9}, capacity=3, role="lead", vote_weight=2
    )
    record = agent.record
    assert (record.capabilities, record.expertise, record.capacity) == (["x", "y"], {"observation": 0.9}, 3) or (
        tuple(record.capabilities), record.expertise, record.capacity
    ) == (("x", "y"), {"observation": 0.9}, 3)  # fmt: skip
    assert (record.role, record.vote_weight, record.present, record.left_at) == ("lead", 2, True, None)
    again = (await session.join("ops/a", capacity=4)).record
    assert (again.capacity, again.role, again.vote_weight, again.expertise) == (4, "lead", 2, {"observation": 0.9})
    assert again.joined_at == record.joined_at
    assert await kinds(session) == ["session.started", "agent.joined"]
    assert repr(agent).startswith("<Agent 'ops/a'")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"agent_id": ""}, "agent_id"),
        ({"agent_id": "a b"}, "agent_id"),
        ({"agent_id": "a\n"}, "agent_id"),
        ({"agent_id": "x" * 101}, "agent_id"),
        ({"agent_id": "a\0"}, "agent_id"),
        ({"agent_id": "a", "expertise": {"x": 1.5}}, "expertise"),
        ({"agent_id": "a", "expertise": {"x": -1}}, "expertise"),
        ({"agent_id": "a", "expertise": {"x": math.nan}}, "expertise"),
        ({"agent_id": "a", "expertise": {"x": "high"}}, "expertise"),
        ({"agent_id": "a", "expertise": {"x": [0.5]}}, "expertise"),
        ({"agent_id": "a", "capacity": 0}, "capacity"),
        ({"agent_id": "a", "capacity": 2**40}, "capacity"),
        ({"agent_id": "a", "capabilities": [""]}, "capabilities"),
        ({"agent_id": "a", "capabilities": ["x"] * 101}, "capabilities"),
        ({"agent_id": "a", "role": ""}, "role"),
        ({"agent_id": "a", "role": "x" * 51}, "role"),
        ({"agent_id": "a", "vote_weight": -1}, "vote_weight"),
        ({"agent_id": "a", "vote_weight": math.nan}, "vote_weight"),
        ({"agent_id": "a", "vote_weight": math.inf}, "vote_weight"),
    ],
)
async def test_what_an_agent_cannot_be(session: Session, arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        await session.join(**arguments)
    assert refused.value.field == field
    assert await session.agents.list() == []


async def test_presence_ends_with_the_process_and_comes_back(session: Session, database_url: str, clock: Clock) -> None:
    async with Blackboard.open(database_url) as other:
        agent = await (await other.session(session.id)).join("a")
        assert (await session.agents.get("a")).present
        assert agent.id == "a"
    assert not (await session.agents.get("a")).present
    assert (await session.join("a")).record.present
    assert await kinds(session) == ["session.started", "agent.joined"], "presence is no history"


async def test_leaving_and_coming_back(session: Session) -> None:
    agent = await session.join("a")
    await agent.leave()
    await agent.leave()
    assert (await session.agents.get("a")).left_at is not None
    assert (await session.join("a")).record.left_at is None
    assert await kinds(session) == ["session.started", "agent.joined", "agent.left", "agent.joined"]
    for call in (session.agents.leave("nobody"), session.agents.get("nobody")):
        with pytest.raises(NotFound) as refused:
            await call
        assert refused.value.noun == "agent"


async def test_members_are_listed_in_order_and_by_capability(session: Session) -> None:
    await session.join("b", capabilities=["x"])
    await session.join("a", capabilities=["x", "y"])
    await session.join("c")
    assert [agent.id for agent in await session.agents.list()] == ["b", "a", "c"]
    assert [agent.id for agent in await session.agents.list(capability="x")] == ["b", "a"]
    assert [agent.id for agent in await session.agents.list(capability="y")] == ["a"]
    assert await session.agents.list(capability="z") == []


async def test_joining_under_a_lapsed_lease_is_refused(session: Session, db: Connection) -> None:
    lease = new_id()
    await db.execute("SELECT blackboard.start_lease($1, 'h', 1, '30 seconds')", lease)
    await db.execute("SELECT blackboard.end_lease($1)", lease)
    with pytest.raises(LeaseLost):
        await session.agents.join("a", lease_id=lease)
    assert await session.agents.list() == []


# ------------------------------------------------------------------------------------------------------ the picture


async def test_the_whole_picture(session: Session) -> None:
    agent = await session.join("ops/deploy-validator")
    await session.update(context={"task": "investigate incident INC-1234"})
    finding = await agent.findings.report("deployment v1.2.3", type="deployment", confidence=0.9)
    strong = await agent.hypotheses.propose("pool exhaustion", confidence=0.7)
    weak = await agent.hypotheses.propose("memory leak", confidence=0.3)
    task = await session.tasks.add("investigate", priority=7)
    await session.tasks.add("done")
    proposal = await agent.proposals.open("roll back?")
    action = await agent.actions.propose("modify", "api", requires_approval=True)
    picture = await session.board()
    assert picture.context == {"task": "investigate incident INC-1234"}
    assert picture.session == await session.refresh()
    assert [found.id for found in picture.findings] == [finding.id]
    assert [found.id for found in picture.hypotheses] == [strong.id, weak.id]
    assert next(found.id for found in picture.tasks) == task.id
    assert [found.id for found in picture.proposals] == [proposal.id]
    assert [(found.id, found.status) for found in picture.actions] == [(action.id, "awaiting_approval")]
    assert [found.id for found in picture.agents] == [agent.id]
    assert picture.counts.tasks == {"pending": 2}
    assert (picture.counts.findings, picture.counts.hypotheses, picture.counts.actions) == (1, 2, 1)
    assert len((await session.board(limit=1)).tasks) == 1
    [claimed] = await agent.tasks.claim()
    later = await session.events.read(picture.cursor)
    assert [event.type for event in later.events] == ["task.assigned"]
    assert later.events[0].subject_id == claimed.id


async def test_the_picture_and_its_cursor_leave_no_gap(session: Session, db: Connection, connect: Connect) -> None:
    # A transaction that commits after the picture was taken, but began before.
    slow = await connect()
    transaction = slow.transaction()
    await transaction.start()
    await slow.execute("INSERT INTO blackboard.tasks (session_id, type) VALUES ($1, 'slow')", session.id)
    await session.tasks.add("fast")
    picture = await session.board()
    assert [task.type for task in picture.tasks] == ["fast"]
    await transaction.commit()
    page = await session.events.read(picture.cursor)
    assert [event.data["type"] for event in page.events if event.type == "task.created"] == ["slow"]


async def test_a_picture_is_of_one_moment(session: Session, database_url: str) -> None:
    done = asyncio.Event()

    async def write() -> None:
        async with Blackboard.open(database_url) as own:
            mine = await own.session(session.id)
            while not done.is_set():
                await mine.tasks.add("t")

    writer = asyncio.create_task(write())
    try:

        async def enough() -> bool:
            picture = await session.board(limit=10_000)
            page = await session.events.read(limit=10_000)
            until = sum(1 for event in page.events if event.type == "task.created")
            after = await session.events.read(picture.cursor, limit=10_000)
            created = sum(1 for event in after.events if event.type == "task.created")
            total = sum(picture.counts.tasks.values())
            assert len(picture.tasks) == total
            everything = await session.events.read(limit=10_000)
            assert total <= until <= sum(1 for e in everything.events if e.type == "task.created")
            # What the picture holds and what comes after its cursor is everything, each once.
            seen = {task.id for task in picture.tasks} & {event.subject_id for event in after.events}
            assert seen == set()
            assert created >= 0
            return total >= 30

        await eventually(enough, 30)
    finally:
        done.set()
        await writer


async def test_the_picture_of_no_session(board: Blackboard, session: Session, db: Connection) -> None:
    await db.execute("DELETE FROM blackboard.sessions")
    with pytest.raises(NotFound):
        await session.board()
    with pytest.raises(BlackboardError):
        await session.refresh()
