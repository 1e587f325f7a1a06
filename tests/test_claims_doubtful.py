"""Claims whose answer nobody got go back with the next count of the heartbeat; all others stay, whoever looks."""

# ruff: noqa: F401, F811 - fixtures are imported, and asked for by name

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import Agent, Blackboard, NewTask, Session, TaskContext, Worker
from blackboard import sync as blocking
from blackboard.errors import ServerUnreachable
from blackboard.ids import new_id

from .chaos.faults import answer_of
from .chaos.kit import door, far_board
from .chaos.proxy import Ambush, Door
from .conftest import Connect, eventually
from .doubtkit import count_now, counted, interrupted, late

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

STATEMENTS = {
    "claim": "claim_tasks",
    "claim_waiting": "claim_tasks",
    "claim_by_id": "claim_task",
    "complete_and_claim": "complete_and_claim",
}


@pytest.fixture
def far_term() -> timedelta:
    """Nothing here can wait for a beat that is not asked for."""
    return timedelta(hours=1)


@pytest.fixture
async def agent(session: Session) -> Agent:
    return await session.join("ops/a")


async def call(verb: str, agent: Agent, task_id: Any, before: Any, **options: Any) -> Any:
    if verb == "claim":
        return await agent.tasks.claim(**options)
    if verb == "claim_waiting":
        return await agent.tasks.claim(wait=timedelta(seconds=20), **options)
    if verb == "claim_by_id":
        return await agent.tasks.claim_by_id(task_id, **options)
    return await agent.tasks.complete_and_claim(before, **options)


@pytest.mark.parametrize("verb", STATEMENTS)
async def test_what_a_cancelled_claim_got_goes_back(
    board: Blackboard, session: Session, agent: Agent, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Without a worker in this process."""
    await session.tasks.add("first")
    [before] = await agent.tasks.claim()
    task = await session.tasks.add("t")
    answer = late(monkeypatch, board, STATEMENTS[verb])
    asking = asyncio.create_task(call(verb, agent, task.id, before))
    await answer.done.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (await session.tasks.get(task.id)).status == "running", "and nobody knows of it"
    await counted(board)
    back = await session.tasks.get(task.id)
    assert (back.status, back.attempt, back.released) == ("pending", 1, 1)
    if verb != "complete_and_claim":
        await agent.tasks.complete(before)
    [again] = await agent.tasks.claim()
    await counted(board)
    await agent.tasks.complete(again)


@pytest.mark.parametrize("verb", STATEMENTS)
async def test_what_a_claim_got_whose_answers_were_cut_goes_back(
    session: Session, far_board: Blackboard, door: Door, verb: str
) -> None:
    agent = await (await far_board.session(session.id)).join("ops/a")
    await session.tasks.add("first")
    [before] = await agent.tasks.claim()
    task = await session.tasks.add("t")
    for _ in range(2):
        door.lay(Ambush(lambda text: f"blackboard.{STATEMENTS[verb]}(" in text, rows=True))
    with pytest.raises(ServerUnreachable):
        await call(verb, agent, task.id, before)
    assert (await session.tasks.get(task.id)).status == "running"
    await counted(far_board)
    assert (await session.tasks.get(task.id)).status == "pending"


@pytest.mark.parametrize("cut", [False, True])
def test_the_blocking_client_too(database_url: str, door: Door, monkeypatch: pytest.MonkeyPatch, *, cut: bool) -> None:
    url = door.url(database_url)
    with blocking.Blackboard.open(url, lease_term=timedelta(hours=1)) as board:
        session = board.start("s")
        agent = session.join("ops/a")
        task = session.tasks.add("t")
        if cut:
            for _ in range(2):
                door.lay(answer_of("claim"))
        else:
            interrupted(monkeypatch, board, "claim_tasks")
        with pytest.raises(ServerUnreachable if cut else KeyboardInterrupt):
            agent.tasks.claim()
        assert session.tasks.get(task.id).status == "running"
        count_now(board)
        assert session.tasks.get(task.id).status == "pending"
        [again] = agent.tasks.claim()
        count_now(board)
        agent.tasks.complete(again)


async def test_a_task_that_nobody_began_is_its_agents_again(
    board: Blackboard, session: Session, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await session.tasks.add("t", assigned_to="ops/a")
    answer = late(monkeypatch, board, "claim_tasks")
    asking = asyncio.create_task(agent.tasks.claim())
    await answer.done.wait()
    asking.cancel()
    await asyncio.wait({asking})
    await counted(board)
    back = await session.tasks.get(task.id)
    assert (back.status, back.assigned_to) == ("assigned", "ops/a")


async def test_what_came_after_a_time_limit_goes_back(
    board: Blackboard, session: Session, agent: Agent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = await session.tasks.add_many([NewTask(type="t") for _ in range(3)])
    answer = late(monkeypatch, board, "claim_tasks")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await agent.tasks.claim(3, wait=timedelta(seconds=20))
    assert answer.done.is_set()
    with caplog.at_level(logging.WARNING, logger="blackboard.lease"):
        await counted(board)
    assert "3 tasks were claimed without our knowing" in caplog.text
    assert [(await session.tasks.get(task)).status for task in tasks] == ["pending"] * 3


@pytest.mark.parametrize("watched", [False, True])
async def test_a_claim_under_way_is_left_alone(
    board: Blackboard, session: Session, agent: Agent, monkeypatch: pytest.MonkeyPatch, *, watched: bool
) -> None:
    worker = Worker(board, session, agent_id="ops/a", capabilities=["other"])
    worker.register("t", lambda ctx: None)
    if watched:
        await worker.__aenter__()
    # Another claim is in doubt, so that the lease is looked at.
    await session.tasks.add("doubtful", capability="special")
    answer = late(monkeypatch, board, "claim_tasks")
    cancelled = asyncio.create_task(agent.tasks.claim(capabilities=["special"]))
    await answer.done.wait()
    cancelled.cancel()
    await asyncio.wait({cancelled})
    await session.tasks.add("mine", capability="mine")
    answer = late(monkeypatch, board, "claim_tasks")
    asking = asyncio.create_task(agent.tasks.claim(capabilities=["mine"]))
    await answer.done.wait()
    await counted(board)
    answer.deliver.set()
    [mine] = await asking
    await counted(board)
    await agent.tasks.complete(mine)
    if watched:
        await worker.__aexit__(None, None, None)


@pytest.mark.parametrize("watched", [False, True])
async def test_a_repeated_claim_that_fails_takes_nothing_back(
    board: Blackboard, session: Session, agent: Agent, monkeypatch: pytest.MonkeyPatch, *, watched: bool
) -> None:
    """What its first call has given to the caller is the caller's."""
    await session.tasks.add("mine", capability="mine")
    claim_id = new_id()
    [mine] = await agent.tasks.claim(capabilities=["mine"], claim_id=claim_id)
    worker = Worker(board, session, agent_id="ops/a", capabilities=["other"])
    worker.register("t", lambda ctx: None)
    if watched:
        await worker.__aenter__()
    answer = late(monkeypatch, board, "claim_tasks")
    again = asyncio.create_task(agent.tasks.claim(capabilities=["mine"], claim_id=claim_id))
    await answer.done.wait()
    again.cancel()
    await asyncio.wait({again})
    await counted(board)
    await agent.tasks.complete(mine)
    if watched:
        await worker.__aexit__(None, None, None)


async def test_a_repeated_claim_waits_until_its_first_one_is_back(
    board: Blackboard,
    session: Session,
    agent: Agent,
    monkeypatch: pytest.MonkeyPatch,
    connect: Connect,
    db: Connection,
    blocked: Callable[[int], Awaitable[None]],
) -> None:
    """What is being handed back is not handed out: a caller may repeat a claim at any moment."""
    task, claim_id = await session.tasks.add("t"), new_id()
    answer = late(monkeypatch, board, "claim_tasks")
    first = asyncio.create_task(agent.tasks.claim(claim_id=claim_id))
    await answer.done.wait()
    first.cancel()
    await asyncio.wait({first})
    other = await connect()
    transaction = other.transaction()
    await transaction.start()
    await other.execute("SELECT 1 FROM blackboard.tasks WHERE id = $1 FOR UPDATE", task.id)
    looking = asyncio.create_task(counted(board))
    pid = await eventually(
        lambda: db.fetchval(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
            "AND application_name = 'blackboard heartbeat'"
        )
    )
    await blocked(pid)
    again = asyncio.create_task(agent.tasks.claim(claim_id=claim_id))
    # Long enough to have been answered, were it sent.
    await agent.tasks.list()
    await agent.tasks.list()
    assert not again.done()
    await transaction.rollback()
    await looking
    [mine] = await again
    assert (mine.id, mine.attempt) == (task.id, 2)
    await counted(board)
    await agent.tasks.complete(mine)


async def test_a_claim_in_a_callers_transaction_is_his_whenever_he_commits(
    board: Blackboard, session: Session, agent: Agent, connect: Connect
) -> None:
    """The counts before his commit list none of it."""
    worker = Worker(board, session, agent_id="ops/a", capabilities=["other"])
    worker.register("t", lambda ctx: None)
    await session.tasks.add("mine", capability="mine")
    await session.tasks.add("also", capability="also")
    async with worker:
        [also] = await agent.tasks.claim(capabilities=["also"])
        connection = await connect()
        transaction = connection.transaction()
        await transaction.start()
        [mine] = await board.bind(connection).agent(agent).tasks.claim(capabilities=["mine"])
        # The next full count, after which whoever holds nothing is forgotten.
        for _ in range(11):
            await counted(board)
        await transaction.commit()
        await counted(board)
        await agent.tasks.complete(mine)
        await agent.tasks.complete(also)


async def test_claims_that_hold_nothing_are_forgotten(
    board: Blackboard, session: Session, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blackboard.lease._MANY_CLAIMS", 5)
    await session.tasks.add("mine", capability="mine")
    [mine] = await agent.tasks.claim(capabilities=["mine"])
    await session.tasks.add_many([NewTask(type="t") for _ in range(10)])
    for _ in range(10):
        [task] = await agent.tasks.claim()
        await agent.tasks.complete(task)
    leases: Any = board._leases
    assert len(leases._claims) == 11
    await counted(board)
    assert set(leases._claims) == {mine.claim_id}
    await agent.tasks.complete(mine)


async def test_a_worker_leaves_alone_what_a_handle_claimed_before_it_started(
    board: Blackboard, session: Session, agent: Agent
) -> None:
    await session.tasks.add("by_hand")
    [mine] = await agent.tasks.claim()
    worker = Worker(board, session, agent_id="ops/a")
    done: list[Any] = []

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        done.append(ctx.task.id)

    await session.tasks.add("t")
    counts = await worker.drain()
    assert (counts.completed, len(done)) == (1, 1)
    assert (await session.tasks.get(mine.id)).status == "running"
    await worker.drain()
    await agent.tasks.complete(mine, {"done": True})


async def test_what_a_worker_could_not_end_goes_back(
    board: Blackboard, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its board stays open, and so does its lease."""
    monkeypatch.setattr("blackboard.work.closing._LAST_WRITES_SECONDS", 0.1)
    worker = Worker(board, session, agent_id="w/1")

    async def refuse(*_: Any, **__: Any) -> Any:
        raise ServerUnreachable("for results only")

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        monkeypatch.setattr(ctx.core.outbox._line, "fetch_all", refuse)
        worker.stop()

    task = await session.tasks.add("t")
    await worker.run(signals=False)
    assert (await session.tasks.get(task.id)).status == "running"
    await counted(board)
    assert (await session.tasks.get(task.id)).status == "pending"
