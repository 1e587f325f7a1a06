"""Limits under many at once: never more than allowed, no slot lost, and everything finally runs."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import Agent, Blackboard, NewTask, Session, Stage

from .conftest import Connect

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Blocked: TypeAlias = Callable[[int], Coroutine[Any, Any, None]]
KEYS = ("a", "b", "c", "d")
LIMITS = {"all": 6, "slow": 3, "tenant": 2}


class Worker:
    """Claims through SQL under leases of its own, and ends what it claims in every way there is."""

    def __init__(self, connection: Connection, session: Session, name: str, seed: int, *, calm: bool = False) -> None:
        self.connection = connection
        self.session = session
        self.name = name
        self.random = random.Random(seed)
        self.calm = calm
        self.lease = uuid.uuid4()
        self.failures: Counter[str] = Counter()

    async def call(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        try:
            return await self.connection.fetch(sql, *arguments)
        except asyncpg.PostgresError as error:
            # The task is somebody else's by now, or was cancelled; or a deadlock was broken, which must not happen.
            self.failures[error.sqlstate or ""] += 1
            return []

    async def start_lease(self) -> None:
        self.lease = uuid.uuid4()
        await self.call("SELECT blackboard.start_lease($1, 'x', 1, interval '1 hour')", self.lease)

    async def round(self) -> int:
        tasks = await self.call(
            "SELECT id, claim_id, attempt FROM blackboard.claim_tasks($1, $2, '{call}', $3, gen_random_uuid(), $4)",
            self.session.id, self.name, self.lease, self.random.choice((1, 2, 5, 20)),
        )  # fmt: skip
        done: list[asyncpg.Record] = []
        for task in tasks:
            end = "complete" if self.calm else self.random.choices(
                ["complete", "fail", "release", "cancel", "lapse"], [60, 12, 12, 4, 4]
            )[0]  # fmt: skip
            held = (self.session.id, task["id"], task["claim_id"], task["attempt"])
            if end == "complete":
                done.append(task)
            elif end == "fail":
                await self.call(
                    "SELECT blackboard.fail_task($1, $2, $3, $4, '{}', true, interval '0', $5)", *held, self.name
                )
            elif end == "release":
                await self.call("SELECT blackboard.release_task($1, $2, $3, $4, $5)", *held, self.name)
            elif end == "cancel":
                await self.call("SELECT blackboard.cancel_task($1, $2, '', $3)", *held[:2], self.name)
                await self.call("SELECT blackboard.release_task($1, $2, $3, $4, $5)", *held, self.name)
            else:
                await self.call("SELECT blackboard.end_lease($1)", self.lease)
                await self.start_lease()
        if done:
            self.random.shuffle(done)
            await self.call(
                "SELECT * FROM blackboard.complete_tasks($1, $2, $3, $4, CAST($5::text[] AS jsonb[]), $6)",
                self.session.id, [task["id"] for task in done], [task["claim_id"] for task in done],
                [task["attempt"] for task in done], [None] * len(done), self.name,
            )  # fmt: skip
        return len(tasks)


async def highest(db: Connection, session: Session) -> dict[str, int]:
    """How many run under each limit, for the key with the most, in one snapshot."""
    rows = await db.fetch(
        """SELECT name, max(running) AS running FROM (
               SELECT name, key, count(*) AS running FROM blackboard.task_limits
               WHERE session_id = $1 AND kind = 'concurrency' AND status = 'running' GROUP BY name, key) k
           GROUP BY name""",
        session.id,
    )
    return {row["name"]: row["running"] for row in rows}


async def replay(db: Connection, session: Session) -> dict[str, int]:
    """The most that ever ran under each limit, by folding the events in order."""
    tasks = {row["id"]: row for row in await db.fetch("SELECT id, type, limit_key FROM blackboard.tasks")}
    running: Counter[tuple[str, str]] = Counter()
    most: Counter[str] = Counter()
    on: set[uuid.UUID] = set()
    for row in await db.fetch(
        "SELECT type, subject_id, data->>'status' AS status FROM blackboard.events "
        "WHERE session_id = $1 AND type LIKE 'task.%' AND data ? 'status' ORDER BY seq",
        session.id,
    ):
        task = tasks[row["subject_id"]]
        counters = [("all", ""), ("tenant", task["limit_key"])] + ([("slow", "")] if task["type"] == "slow" else [])
        if row["status"] == "running":
            on.add(row["subject_id"])
            running.update(counters)
            for name, key in counters:
                most[name] = max(most[name], running[name, key])
        elif row["subject_id"] in on:
            on.remove(row["subject_id"])
            running.subtract(counters)
    assert not on
    return dict(most)


@pytest.mark.parametrize("seed", [1, 2])
async def test_limits_hold_in_chaos(session: Session, db: Connection, connect: Connect, seed: int) -> None:
    await session.limits.set("all", max_running=LIMITS["all"])
    await session.limits.set("slow", max_running=LIMITS["slow"], type="slow")
    await session.limits.set("tenant", max_running=LIMITS["tenant"], per_key=True)
    chance = random.Random(seed)
    await session.tasks.add_many(
        [
            NewTask(
                type=chance.choice(("slow", "fast")),
                limit_key=chance.choice(KEYS),
                capability=chance.choice(("", "call")),
                priority=chance.randrange(11),
                max_attempts=1000,
                retry_delay=timedelta(0),
            )
            for _ in range(250)
        ]
    )
    workers = [Worker(await connect(), session, f"w/{n}", seed * 100 + n) for n in range(8)]
    finished = asyncio.Event()
    seen: Counter[str] = Counter()

    async def work(worker: Worker) -> None:
        await worker.start_lease()
        while not finished.is_set():
            await worker.round()

    async def watch() -> None:
        connection = await connect()
        started = time.monotonic()
        while not finished.is_set():
            for name, running in (await highest(connection, session)).items():
                seen[name] = max(seen[name], running)
            left = await connection.fetchval(
                "SELECT count(*) FROM blackboard.tasks WHERE session_id = $1 AND completed_at IS NULL", session.id
            )
            if left == 0:
                finished.set()
            elif time.monotonic() - started > 30:
                finished.set()
                pytest.fail(
                    f"{left} never ran: {await session.tasks.count()}, {[worker.failures for worker in workers]}"
                )

    await asyncio.gather(watch(), *(work(worker) for worker in workers))
    failures = sum((worker.failures for worker in workers), Counter[str]())
    # A late owner is told, also when the task has ended meanwhile; nobody deadlocks.
    assert set(failures) <= {"BB003", "BB006"}, failures
    assert all(seen[name] <= most for name, most in LIMITS.items()), seen
    folded = await replay(db, session)
    assert folded.keys() == LIMITS.keys()
    assert all(folded[name] <= most for name, most in LIMITS.items()), folded
    assert await session.limits.check() == []
    assert await db.fetchval("SELECT count(*) FROM blackboard.task_slots") == 0
    assert await db.fetchval("SELECT sum(running) FROM blackboard.limit_usage") == 0
    statuses = await session.tasks.count()
    assert set(statuses) <= {"completed", "cancelled"}
    # No slot was lost on the way: every limit can be used to the full.
    await session.tasks.add_many([NewTask(type="slow", limit_key=f"new-{n}") for n in range(9)])
    await session.tasks.add_many([NewTask(type="fast", limit_key="new-0") for _ in range(9)])
    await session.tasks.add_many([NewTask(type="fast", limit_key=f"newer-{n}") for n in range(9)])
    agent = await session.join("ops/last")
    assert len(await agent.tasks.claim(100)) == LIMITS["all"]
    assert await highest(db, session) == LIMITS


async def test_a_rate_is_never_exceeded(session: Session, db: Connection, connect: Connect) -> None:
    await session.limits.set("starts", rate_count=4, rate_period=timedelta(milliseconds=200))
    await session.tasks.add_many([NewTask(type="t") for _ in range(40)])
    workers = [Worker(await connect(), session, f"w/{n}", n, calm=True) for n in range(6)]
    started = time.monotonic()

    async def work(worker: Worker) -> None:
        await worker.start_lease()
        while time.monotonic() - started < 60:
            await worker.round()
            counts = await session.tasks.count()
            if set(counts) == {"completed"}:
                return

    await asyncio.gather(*(work(worker) for worker in workers))
    assert await session.tasks.count() == {"completed": 40}
    rows = await db.fetch(
        """SELECT floor(extract(epoch FROM t.started_at - u.window_started_at) / 0.2) AS window, count(*) AS starts
           FROM blackboard.tasks t JOIN blackboard.limit_usage u USING (session_id)
           WHERE t.session_id = $1 GROUP BY 1 ORDER BY 1""",
        session.id,
    )
    assert max(row["starts"] for row in rows) <= 4
    assert len(rows) >= 10


async def test_two_claims_of_the_last_slot(
    session: Session, board: Blackboard, connect: Connect, blocked: Callable[[int], Awaitable[None]]
) -> None:
    await session.limits.set("one", max_running=1)
    await session.tasks.add_many([NewTask(type="t") for _ in range(2)])
    agent = await session.join("ops/worker")
    one, two = await connect(), await connect()
    transaction = one.transaction()
    await transaction.start()
    [first] = await board.bind(one).agent(agent).tasks.claim()
    second = asyncio.create_task(board.bind(two).agent(agent).tasks.claim())
    await blocked(two.get_server_pid())
    await transaction.commit()
    assert await second == []
    assert await session.limits.check() == []
    await agent.tasks.complete(first)
    assert len(await agent.tasks.claim()) == 1


async def test_a_task_held_while_its_slot_is_freed_is_not_forgotten(
    session: Session, agent: Agent, board: Blackboard, connect: Connect, blocked: Callable[[int], Awaitable[None]]
) -> None:
    await session.limits.set("one", max_running=1)
    first, second = await session.tasks.add_many([NewTask(type="t") for _ in range(2)])
    [task] = await agent.tasks.claim()
    one, two = await connect(), await connect()
    transaction = one.transaction()
    await transaction.start()
    assert await board.bind(one).agent(agent).tasks.claim() == [], "it holds the second one, unseen as yet"
    ending = asyncio.create_task(board.bind(two).agent(agent).tasks.complete(task))
    await blocked(two.get_server_pid())
    await transaction.commit()
    await ending
    assert (await session.tasks.get(second)).status == "pending"
    assert (await session.tasks.get(first)).status == "completed"


# ------------------------------------------------------------------------------------------------- the order of locks


async def test_a_limit_is_removed_while_a_task_that_it_counts_is_ending(
    session: Session, agent: Agent, board: Blackboard, db: Connection, connect: Connect, blocked: Blocked
) -> None:
    """Completion: the first counter, then the second. Claim: the removed limit's counter and slots, then the first."""
    await session.limits.set("first", max_running=5)
    await session.limits.set("second", max_running=5)
    await session.tasks.add_many([NewTask(type="t") for _ in range(3)])
    [task] = await agent.tasks.claim()
    await db.execute("SELECT blackboard.remove_limit($1, 'second', 'ops')", session.id)
    holder, one, two = await connect(), await connect(), await connect()
    held = holder.transaction()
    await held.start()
    await holder.execute(
        """SELECT FROM blackboard.limit_usage u JOIN blackboard.limits l ON l.id = u.limit_id
           WHERE l.session_id = $1 AND l.name = 'first' FOR UPDATE OF u""",
        session.id,
    )
    ending = asyncio.create_task(board.bind(one).agent(agent).tasks.complete(task))
    await blocked(one.get_server_pid())
    claiming = asyncio.create_task(board.bind(two).agent(agent).tasks.claim())
    await met(claiming, blocked(two.get_server_pid()))
    await held.commit()
    await asyncio.gather(ending, claiming)
    for open_task in [*claiming.result(), *await agent.tasks.claim(2)]:
        await agent.tasks.complete(open_task)
    assert await session.tasks.count() == {"completed": 3}
    assert [limit.name for limit in await session.limits.list()] == ["first"]
    assert await session.limits.check() == []
    assert await db.fetchval("SELECT count(*) FROM blackboard.task_slots") == 0


async def test_a_limit_is_set_while_tasks_end_in_any_order(
    session: Session, agent: Agent, connect: Connect, blocked: Blocked
) -> None:
    """Both lock the tasks by id, however the list of those that end is ordered."""
    await session.tasks.add_many([NewTask(type="t") for _ in range(3)])
    first, second, third = sorted(await agent.tasks.claim(3), key=lambda task: task.id)
    holder, one, two = await connect(), await connect(), await connect()
    held = holder.transaction()
    await held.start()
    await holder.execute("SELECT FROM blackboard.tasks WHERE id = $1 FOR UPDATE", third.id)
    tasks = (second, third, first)
    ending = asyncio.create_task(
        one.fetch(
            "SELECT * FROM blackboard.complete_tasks($1, $2, $3, $4, CAST($5::text[] AS jsonb[]), $6)",
            session.id, [task.id for task in tasks], [task.claim_id for task in tasks],
            [task.attempt for task in tasks], [None] * 3, agent.id,
        )
    )  # fmt: skip
    await blocked(one.get_server_pid())
    setting = asyncio.create_task(
        two.execute(
            "SELECT blackboard.set_limit($1, gen_random_uuid(), 'x', 'concurrency', NULL, NULL, false, 5, NULL, NULL, '')",
            session.id,
        )
    )
    await blocked(two.get_server_pid())
    await held.commit()
    assert await ending == []
    await setting
    assert await session.limits.check() == []


async def test_who_has_just_ended_a_task_sweeps_nothing(
    session: Session, agent: Agent, board: Blackboard, db: Connection, connect: Connect, blocked: Blocked
) -> None:
    """What is swept has counters too, which come before those that the end of the task has locked."""
    await session.limits.set("first", max_running=5, type="x")
    await session.limits.set("second", max_running=5)
    await session.tasks.add_many([NewTask(type="x"), NewTask(type="x"), NewTask(type="y", capability="call")])
    lapsing, lease = Worker(db, session, "w/lapsing", 1), uuid.uuid4()
    await lapsing.start_lease()
    await db.fetch(
        "SELECT id FROM blackboard.claim_tasks($1, 'w/lapsing', '{}', $2, $3, 1)", session.id, lapsing.lease, lease
    )
    [swept] = await agent.tasks.claim()
    caller = await session.join("ops/caller", capabilities=["call"])
    [own] = await caller.tasks.claim()
    one, two = await connect(), await connect()
    warnings: list[str] = []
    two.add_log_listener(lambda _, message: warnings.append(str(message)))
    transaction = two.transaction()
    await transaction.start()
    await board.bind(two).agent(caller).tasks.complete(own)
    ending = asyncio.create_task(board.bind(one).agent(agent).tasks.complete(swept))
    await blocked(one.get_server_pid())
    await db.execute("UPDATE blackboard.leases SET lapsed_at = blackboard.now() WHERE id = $1", lapsing.lease)
    await db.execute("UPDATE blackboard.liveness SET checked_at = blackboard.now() - interval '2 seconds'")
    assert await board.bind(two).agent(caller).tasks.claim() == []
    await transaction.commit()
    await ending
    assert warnings == [], "a sweep that fails says so"
    [again] = await agent.tasks.claim()
    assert again.type == "x"
    assert await session.limits.check() == []


async def test_who_has_just_ended_a_task_waits_for_nobody_that_ages(
    session: Session, agent: Agent, board: Blackboard, connect: Connect, blocked: Blocked
) -> None:
    """The first claim in a session makes the row that says when its tasks were aged, then waits for the counter."""
    await session.limits.set("all", max_running=5)
    await session.tasks.add_many([NewTask(type="t") for _ in range(3)])
    [task] = await agent.tasks.claim()
    await session.configure(ageing=timedelta(hours=1))
    one, two = await connect(), await connect()
    transaction = one.transaction()
    await transaction.start()
    await board.bind(one).agent(agent).tasks.complete(task)
    claiming = asyncio.create_task(board.bind(two).agent(agent).tasks.claim())
    await blocked(two.get_server_pid())
    assert len(await board.bind(one).agent(agent).tasks.claim()) == 1
    await transaction.commit()
    assert len(await claiming) == 1
    assert await session.limits.check() == []


async def test_a_stage_goes_back_while_another_of_its_flow_ends(
    session: Session, agent: Agent, board: Blackboard, connect: Connect, blocked: Blocked
) -> None:
    """Both need the flow and the counter: whose attempt failed as well as whose flow goes on."""
    await session.limits.set("all", max_running=5)
    flow = await session.flows.create("f", [Stage("a", "t"), Stage("b", "t")])
    one_stage, other_stage = await agent.tasks.claim(2)
    one, two = await connect(), await connect()
    transaction = one.transaction()
    await transaction.start()
    await board.bind(one).agent(agent).tasks.fail(one_stage, "broken", delay=timedelta(0))
    ending = asyncio.create_task(board.bind(two).agent(agent).tasks.complete(other_stage))
    await blocked(two.get_server_pid())
    await transaction.commit()
    await ending
    [again] = await agent.tasks.claim()
    await agent.tasks.complete(again)
    assert (await session.flows.get(flow.id)).status == "completed"
    assert await session.limits.check() == []


async def test_a_held_stage_comes_back_while_another_of_its_flow_ends(
    session: Session, agent: Agent, board: Blackboard, connect: Connect, blocked: Blocked
) -> None:
    """A slot is freed: the stage that gets it needs its flow, which the one that ends has, who needs the counter."""
    await session.limits.set("all", max_running=2)
    await session.tasks.add("plain")
    [plain] = await agent.tasks.claim()
    flow = await session.flows.create("f", [Stage("a", "t"), Stage("b", "t")])
    [running] = await agent.tasks.claim(2)
    one, two = await connect(), await connect()
    transaction = one.transaction()
    await transaction.start()
    await board.bind(one).agent(agent).tasks.complete(plain)
    ending = asyncio.create_task(board.bind(two).agent(agent).tasks.complete(running))
    await blocked(two.get_server_pid())
    await transaction.commit()
    await ending
    [held] = await agent.tasks.claim()
    await agent.tasks.complete(held)
    assert (await session.flows.get(flow.id)).status == "completed"
    assert await session.limits.check() == []


async def met(task: asyncio.Task[Any], waiting: Coroutine[Any, Any, None]) -> None:
    """Returns once the call has ended or its backend waits on a lock."""
    seen = asyncio.create_task(waiting)
    await asyncio.wait({task, seen}, return_when=asyncio.FIRST_COMPLETED)
    seen.cancel()


@pytest.fixture
async def agent(session: Session) -> Agent:
    return await session.join("ops/worker")
