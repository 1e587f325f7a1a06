"""Workers behind a network that fails at the worst moments: what was done, was it told? And what goes on without being told?"""

# ruff: noqa: F401, F811 - fixtures are imported, and asked for by name

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import Blackboard, NewTask, Release, RetryPolicy, Session, TaskContext, Worker
from blackboard.errors import ServerUnreachable

from .chaos.faults import answer_of
from .chaos.kit import door, ended, far_board
from .chaos.proxy import Door
from .conftest import eventually

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

SOON = timedelta(seconds=30)
AGAIN = RetryPolicy(max_attempts=1000, delay=timedelta(milliseconds=20), factor=1)


@pytest.fixture
def far_term() -> timedelta:
    """Its heartbeat comes every twenty minutes: nothing here can wait for a lapse."""
    return timedelta(hours=1)


@pytest.fixture
async def worker(far_board: Blackboard, session: Session) -> Worker:
    made = Worker(far_board, session.name, agent_id="w/there", poll_interval=timedelta(milliseconds=50), concurrency=4)

    @made.handler("t", retry=AGAIN)
    async def handle(ctx: TaskContext) -> int:
        return ctx.task.attempt

    return made


async def story(session: Session, task: Any) -> list[str]:
    """What happened to a task."""
    return [event.type.removeprefix("task.") for event in (await session.events.read(subject_id=task.id)).events]


async def sprung(ambush: Any) -> None:
    async def check() -> bool:
        return ambush.sprung.is_set()

    await eventually(check)


def heartbeat(board: Blackboard) -> Any:
    return board._leases._heartbeat


# ------------------------------------------------------------------------------------ done, and the answer was lost


async def test_a_claim_whose_answer_is_lost_is_asked_for_again(
    session: Session, far_board: Blackboard, worker: Worker, door: Door
) -> None:
    """Its task runs within one heartbeat: there was none in between."""
    async with worker:
        await asyncio.to_thread(door.lay, ambush := answer_of("claim"))
        beats = heartbeat(far_board).renewals
        task = await session.tasks.add("t")
        done = await ended(session, task)
        assert ambush.sprung.is_set()
        assert (done.status, done.result) == ("completed", 1), "it is the claim that was made"
        assert heartbeat(far_board).renewals - beats <= 1, "the first one, at most"
    assert await story(session, task) == ["created", "assigned", "completed"]
    assert worker.counts.claimed == worker.counts.completed == 1


async def test_a_claim_that_nobody_knows_of_goes_back_with_the_next_heartbeat(
    session: Session, far_board: Blackboard, worker: Worker, door: Door
) -> None:
    """The call and its repetition were cut, and whoever made it has given up."""
    agent = await (await far_board.session(session.id)).join("w/there")
    async with worker:
        # Nobody else can claim it before: nobody has the capability.
        task = await session.tasks.add("t", capability="by hand")
        for _ in range(2):
            door.lay(answer_of("claim"))
        with pytest.raises(ServerUnreachable):
            await agent.tasks.claim_by_id(task.id)
        held = await session.tasks.get(task.id)
        assert (held.status, held.attempt) == ("running", 1), "and nobody runs it"
        beats = heartbeat(far_board).renewals
        heartbeat(far_board).beat_now()

        async def back() -> bool:
            return (await session.tasks.get(task.id)).status == "pending"

        await eventually(back)
        assert heartbeat(far_board).renewals == beats + 1
        other = await session.join("w/other", capabilities=["by hand"])
        [again] = await other.tasks.claim()
        assert (again.id, again.attempt, again.released) == (task.id, 2, 1)
        await other.tasks.complete(again)
    assert await story(session, task) == ["created", "assigned", "released", "assigned", "completed"]


async def test_a_completion_whose_answer_is_lost_counts_once(session: Session, worker: Worker, door: Door) -> None:
    async with worker:
        ambush = door.lay(answer_of("complete"))
        task = await session.tasks.add("t")
        await ended(session, task)
        await sprung(ambush)
        # The next one shows that the first was settled too.
        await ended(session, await session.tasks.add("t"))
    assert (worker.counts.completed, worker.counts.refused) == (2, 0)
    assert await story(session, task) == ["created", "assigned", "completed"]
    assert await session.tasks.late_results(task.id) == []


@pytest.mark.parametrize("delay", [0.02, 1.0], ids=["running again", "waiting"])
async def test_a_failure_and_a_release_whose_answers_are_lost_count_once(
    session: Session, worker: Worker, door: Door, delay: float
) -> None:
    # The failure is written once more, after the task was claimed again or before.
    @worker.handler("odd", retry=RetryPolicy(delay=timedelta(seconds=delay), jitter=0))
    async def handle(ctx: TaskContext) -> None:
        if ctx.task.attempt == 1:
            raise ValueError("the first time")
        if ctx.task.attempt == 2:
            raise Release

    async with worker:
        failing, releasing = door.lay(answer_of("fail")), door.lay(answer_of("release"))
        task = await session.tasks.add("odd")
        done = await ended(session, task)
        assert failing.sprung.is_set()
        assert releasing.sprung.is_set()
    assert (done.attempt, done.released) == (3, 1)
    assert await story(session, task) == [
        "created", "assigned", "retried", "ready", "assigned", "released", "assigned", "completed",
    ]  # fmt: skip


async def test_a_commit_whose_answer_is_lost_happened_once(
    session: Session, far_board: Blackboard, worker: Worker, door: Door, db: Connection
) -> None:
    """The handler cannot know, and its attempt fails; the board knows, and keeps the completion."""
    errors: list[BaseException] = []

    @worker.handler("pay", retry=AGAIN)
    async def handle(ctx: TaskContext) -> None:
        try:
            async with ctx.transaction() as tx:
                await tx.agent.findings.report("paid", type="invoice")
                await tx.complete("in the transaction")
                door.lay(ambush)
        except ServerUnreachable as error:
            errors.append(error)
            raise

    ambush = answer_of("commit")
    async with worker:
        task = await session.tasks.add("pay")
        done = await ended(session, task)
        await sprung(ambush)

        async def told() -> bool:
            return worker.counts.refused == 1

        await eventually(told)
        await ended(session, await session.tasks.add("t"))
    assert (done.result, done.attempt) == ("in the transaction", 1)
    assert len(errors) == 1
    assert len(await session.findings.list()) == 1
    assert [one for one in await story(session, task) if one != "result_refused"] == [
        "created",
        "assigned",
        "completed",
    ]


async def test_adding_and_a_new_lease_whose_answers_are_lost_happen_once(
    session: Session, far_board: Blackboard, worker: Worker, door: Door, db: Connection
) -> None:
    lease, adding = door.lay(answer_of("lease")), door.lay(answer_of("add"))
    async with worker:
        assert lease.sprung.is_set()
        [task_id] = await (await far_board.session(session.id)).tasks.add_many([NewTask(type="t")])
        assert adding.sprung.is_set()
        assert (await session.tasks.wait(task_id, SOON)).status == "completed"
        assert await db.fetchval("SELECT count(*) FROM blackboard.leases WHERE lapsed_at IS NULL") == 1
    assert await session.tasks.count() == {"completed": 1}


async def test_a_reader_whose_answers_are_lost_misses_and_repeats_nothing(
    session: Session, far_board: Blackboard, door: Door
) -> None:
    reader = await far_board.session(session.id)
    cursor = await reader.events.now()
    seen: list[str] = []
    for n in range(5):
        await session.tasks.add("t", {"n": n})
        ambush = door.lay(answer_of("read"))
        page = await reader.events.read(cursor)
        assert ambush.sprung.is_set(), "and the call was repeated"
        cursor = page.cursor
        seen += [event.data["parameters"]["n"] for event in page.events]
    assert seen == [0, 1, 2, 3, 4]


async def test_connections_cut_anywhere_in_a_message_do_no_harm(
    session: Session, far_board: Blackboard, worker: Worker, door: Door, db: Connection
) -> None:
    draw = random.Random(7)

    @worker.handler("pay", retry=AGAIN)
    async def handle(ctx: TaskContext) -> None:
        async with ctx.transaction() as tx:
            await tx.agent.findings.report(str(ctx.task.id), type="paid")
            await tx.complete(ctx.task.attempt)

    async with worker:
        for _ in range(25):
            ids = await session.tasks.add_many([NewTask(type=type_) for type_ in ("t", "pay", "t")])
            door.cut_after(draw.randrange(1, 4000))
            for task_id in ids:
                assert (await session.tasks.wait(task_id, SOON)).status == "completed"
    paid = await db.fetch("SELECT content, count(*) FROM blackboard.findings GROUP BY 1")
    assert [row["count"] for row in paid] == [1] * 25
    assert await db.fetchval("SELECT count(*) FROM blackboard.events WHERE type = 'task.completed'") == 75
    assert await db.fetchval("SELECT count(*) FROM blackboard.events WHERE type = 'task.lapsed'") == 0


# ---------------------------------------------------------------------------------------------- nobody tells anything


@pytest.mark.parametrize("in_transaction", [False, True], ids=["returned", "in a transaction"])
async def test_a_process_in_a_black_hole_loses_its_work_and_its_late_result_is_kept_aside(
    session: Session, door: Door, database_url: str, db: Connection, in_transaction: bool
) -> None:
    started, may_end = asyncio.Event(), asyncio.Event()

    async def handle(ctx: TaskContext) -> str | None:
        if ctx.agent.id == "w/here":
            return "here"
        started.set()
        await may_end.wait()
        if not in_transaction:
            return "there"
        async with ctx.transaction() as tx:
            await tx.agent.findings.report("there", type="x")
            await tx.complete("there")
        return None

    term = timedelta(seconds=1)
    async with (
        Blackboard.open(door.url(database_url), lease_term=term) as there,
        Blackboard.open(database_url, lease_term=term) as here,
    ):
        far = Worker(there, session.name, agent_id="w/there")
        near = Worker(here, session.name, agent_id="w/here")
        far.register("t", handle)
        near.register("t", handle)
        async with far:
            task = await session.tasks.add("t")
            await asyncio.wait_for(started.wait(), 20)
            await asyncio.to_thread(door.hole)
            # It ends while nobody can be told; the server knows only that the process is silent.
            may_end.set()
            async with near:
                done = await ended(session, task)
                assert (done.result, done.attempt, done.assigned_to) == ("here", 2, "w/here")
            await asyncio.to_thread(door.heal)

            async def kept() -> bool:
                # What a handler has not handed in when its worker hears of the loss is dropped.
                return in_transaction or bool(await session.tasks.late_results(task.id))

            await eventually(kept)
            # It goes on under a new lease.
            again = await session.tasks.add("t", assigned_to="w/there")
            assert (await ended(session, again)).result in {"there", None}
    for late in await session.tasks.late_results(task.id):
        assert (late.result, late.attempt, late.agent_id) == ("there", 1, "w/there")
    assert (await session.tasks.get(task.id)).result == "here"
    assert await db.fetchval("SELECT count(*) FROM blackboard.findings WHERE agent_id = 'w/there'") == in_transaction
