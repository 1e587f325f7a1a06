"""Living flows: paused, resumed, changed, cancelled, and everything at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import After, Agent, Blackboard, Session, Stage, TaskRecord, fork_join, parallel, sequential
from blackboard.errors import (
    Conflict,
    CyclicDependency,
    IdempotencyConflict,
    InvalidInput,
    InvalidTransition,
    LeaseLost,
    NotFound,
    TransientError,
)
from blackboard.ids import new_id
from blackboard.models.flows import FlowRecord

from .conftest import Clock, Connect, eventually

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Blocked: TypeAlias = Callable[[int], Awaitable[None]]


@pytest.fixture
async def agent(session: Session) -> Agent:
    return await session.join("ops/worker")


def statuses(flow: FlowRecord) -> dict[str, Any]:
    return {stage.name: stage.task_status and stage.task_status.value for stage in flow.stages}


def states(flow: FlowRecord) -> dict[str, str]:
    return {stage.name: stage.state.value for stage in flow.stages}


async def take(agent: Agent, flow: FlowRecord, stage: str) -> TaskRecord:
    fresh = await agent.flows.get(flow.id)
    task = await agent.tasks.claim_by_id(fresh.stage(stage).task_id)
    assert task is not None, fresh.stage(stage)
    return task


# ------------------------------------------------------------------------------------------------ pause, resume


async def test_a_pause_holds_exactly_what_could_be_claimed(session: Session, agent: Agent) -> None:
    flow = await session.flows.create(
        "f",
        [
            Stage("a", "t"),
            Stage("b", "t", assigned_to=agent.id),
            Stage("c", "t", run_at=(await session.flows.create("x", [Stage("x", "t")])).as_of + timedelta(hours=1)),
            Stage("d", "t", requires_approval=True),
            Stage("e", "t"),
            Stage("f", "t", after=["e"]),
            Stage("g", "t"),
        ],
    )
    running = await take(agent, flow, "e")
    before = statuses(await session.flows.get(flow.id))
    flow = await session.flows.pause(flow.id)
    assert (flow.status, flow.version) == ("paused", 2)
    assert statuses(flow) == {
        "a": "held", "b": "held", "c": "held", "d": "awaiting_approval", "e": "running", "f": "blocked", "g": "held"
    }  # fmt: skip
    assert (await session.flows.pause(flow.id)).version == 2
    await agent.tasks.complete(running)
    await session.tasks.approve(flow.stage("d").task_id)
    flow = await session.flows.get(flow.id)
    assert (statuses(flow)["f"], statuses(flow)["d"]) == ("held", "held")
    [other] = await agent.tasks.claim(10)
    assert other.type == "t" and other.id not in {stage.task_id for stage in flow.stages}
    flow = await session.flows.resume(flow.id)
    assert (flow.status, flow.version) == ("running", 3)
    assert statuses(flow) == before | {"d": "pending", "e": "completed", "f": "pending"}
    assert (await session.flows.resume(flow.id)).version == 3
    order = [task.id for _ in range(3) for task in await agent.tasks.claim()]
    names = {stage.task_id: stage.name for stage in flow.stages}
    # The assigned one first, then as they stood in line before the pause, then what got ready since.
    assert [names[one] for one in order] == ["b", "a", "g"]
    page = await session.events.read(topics=["flow.paused", "flow.resumed"])
    assert [e.type for e in page.events] == ["flow.paused", "flow.resumed"]


@pytest.mark.parametrize("back", ["retry", "release", "lapse"])
async def test_what_comes_back_during_a_pause_is_held(
    session: Session, agent: Agent, back: str, database_url: str, clock: Clock
) -> None:
    flow = await session.flows.create("f", [Stage("a", "t")])
    async with Blackboard.open(database_url, lease_term=timedelta(seconds=5)) as other:
        one = await (await other.session(session.id)).join("ops/other")
        task = await take(one, flow, "a")
        await session.flows.pause(flow.id)
        if back == "retry":
            await one.tasks.fail(task, "x", delay=timedelta(0))
        elif back == "release":
            await one.tasks.release(task)
    # Closing ends the lease: what it still held lapses.
    flow = await session.flows.get(flow.id)
    assert statuses(flow) == {"a": "held"}
    assert await agent.tasks.claim(10) == []
    flow = await session.flows.resume(flow.id)
    assert await agent.tasks.claim(10) or statuses(flow)["a"] == "scheduled"
    changes = await session.events.history(task.id)
    last = [change.new for change in changes if change.field == "status"]
    assert last[-1] == (await session.tasks.get(task.id)).status


async def test_a_pause_can_ask_to_stop_and_what_stops_starts_over(session: Session, agent: Agent) -> None:
    flow = await session.flows.create("f", [Stage("a", "t"), Stage("b", "t"), Stage("c", "t", after=["a", "b"])])
    stops, goes_on = await take(agent, flow, "a"), await take(agent, flow, "b")
    flow = await session.flows.pause(flow.id, stop=True)
    assert (await agent.tasks.progress(stops, 1)).cancel_requested
    assert (await agent.tasks.release(stops)).status == "cancelled"
    await agent.tasks.complete(goes_on)
    flow = await session.flows.get(flow.id)
    assert statuses(flow) == {"a": "held", "b": "completed", "c": "blocked"}
    assert flow.stage("a").task_id != stops.id
    await session.flows.resume(flow.id)
    await agent.tasks.complete(await take(agent, flow, "a"))
    await agent.tasks.complete(await take(agent, flow, "c"))
    assert (await session.flows.get(flow.id)).status == "completed"


async def test_a_paused_flow_can_end_and_what_is_over_stays_over(session: Session, agent: Agent) -> None:
    flow = await session.flows.create("f", [Stage("a", "t")])
    task = await take(agent, flow, "a")
    await session.flows.pause(flow.id)
    await agent.tasks.complete(task)
    flow = await session.flows.get(flow.id)
    assert flow.status == "completed"
    for verb in (session.flows.pause, session.flows.resume, session.flows.cancel):
        with pytest.raises(InvalidTransition):
            await verb(flow.id)
    with pytest.raises(InvalidTransition):
        await session.flows.modify(flow.id, flow.version, add=[Stage("b", "t")])


async def test_cancelling_ends_it_at_once(session: Session, agent: Agent) -> None:
    flow = await session.flows.create("f", [Stage("a", "t"), Stage("b", "t"), Stage("c", "t", after=["a", "b"])])
    running = await take(agent, flow, "a")
    flow = await session.flows.cancel(flow.id, "changed our mind")
    assert (flow.status, flow.error["message"]) == ("cancelled", "changed our mind")
    assert statuses(flow) == {"a": "running", "b": "cancelled", "c": "cancelled"}
    assert (await agent.tasks.progress(running, 1)).cancel_requested
    assert (await session.flows.cancel(flow.id)).version == flow.version
    await agent.tasks.complete(running)
    flow = await session.flows.get(flow.id)
    assert (flow.status, states(flow)["a"]) == ("cancelled", "completed")


async def test_a_retry_in_a_cancelled_flow_is_no_retry(session: Session, agent: Agent, db: Connection) -> None:
    flow = await session.flows.create("f", [Stage("a", "t")])
    task = await take(agent, flow, "a")
    await session.flows.cancel(flow.id)
    await db.execute("UPDATE blackboard.tasks SET cancel_requested = false WHERE id = $1", task.id)
    await agent.tasks.fail(task, "x", delay=timedelta(0))
    assert (await session.tasks.get(task.id)).status == "cancelled"


# ------------------------------------------------------------------------------------------------------- modify


async def test_a_living_flow_is_changed(session: Session, agent: Agent) -> None:
    flow = await session.flows.create("f", sequential(Stage("a", "t"), Stage("b", "t"), Stage("c", "t")))
    await agent.tasks.complete(await take(agent, flow, "a"), 1)
    removed = flow.stage("b").task_id
    flow = await session.flows.modify(
        flow.id,
        1,
        add=[Stage("x", "t", after=["a"]), Stage("y", "t", after=["x"], inputs={"v": "a"})],
        remove=["b"],
        rewire={"c": ["y", After("x", "continue")]},
        reprioritise={"c": 9},
    )
    assert flow.version == 2
    assert states(flow) == {"a": "completed", "c": "waiting", "x": "ready", "y": "waiting"}
    gone = await session.tasks.get(removed)
    assert (gone.status, gone.error["code"]) == ("cancelled", "removed")
    assert (await session.tasks.get(flow.stage("c").task_id)).priority == 9
    [event] = (await session.events.read(topics=["flow.modified"])).events
    assert event.data["version"] == 2
    assert event.data["change"]["remove"] == ["b"]
    assert [stage["name"] for stage in event.data["change"]["add"]] == ["x", "y"]
    for name in "xyc":
        await agent.tasks.complete(await take(agent, flow, name))
    assert (await session.flows.get(flow.id)).status == "completed"


async def test_rewiring_can_hold_back_what_was_ready_and_free_what_waited(session: Session, agent: Agent) -> None:
    flow = await session.flows.create("f", [Stage("a", "t"), Stage("b", "t", after=["a"]), Stage("c", "t")])
    flow = await session.flows.modify(flow.id, 1, rewire={"b": [], "c": ["a"]})
    assert statuses(flow) == {"a": "pending", "b": "pending", "c": "blocked"}
    await session.flows.pause(flow.id)
    flow = await session.flows.modify(flow.id, 3, rewire={"b": ["a"], "c": []})
    assert statuses(flow) == {"a": "held", "b": "blocked", "c": "held"}
    flow = await session.flows.resume(flow.id)
    assert statuses(flow) == {"a": "pending", "b": "blocked", "c": "pending"}


async def test_removing_the_last_open_stage_ends_the_flow(session: Session, agent: Agent) -> None:
    flow = await session.flows.create("f", sequential(Stage("a", "t"), Stage("b", "t")))
    await agent.tasks.complete(await take(agent, flow, "a"))
    flow = await session.flows.modify(flow.id, 1, remove=["b"])
    assert (flow.status, states(flow)) == ("completed", {"a": "completed"})


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"remove": ["a"]}, Conflict, "has started"),
        ({"remove": ["b"]}, InvalidInput, "'c' depends"),
        ({"remove": ["nobody"]}, NotFound, "nobody"),
        ({"rewire": {"a": []}}, Conflict, "has started"),
        ({"rewire": {"b": ["c"]}}, CyclicDependency, "cycle"),
        ({"rewire": {"b": ["b"]}}, CyclicDependency, "b -> b"),
        ({"rewire": {"c": []}}, InvalidInput, "does not come before"),
        ({"rewire": {"b": ["nobody"]}}, InvalidInput, "no stage"),
        ({"reprioritise": {"a": 9}}, Conflict, "has started"),
        ({"reprioritise": {"b": 11}}, InvalidInput, "between 0 and 10"),
        ({"add": [Stage("b", "t")]}, InvalidInput, "unique"),
        ({}, InvalidInput, "what to change"),
    ],
)
async def test_a_change_that_cannot_be_changes_nothing(
    session: Session, agent: Agent, change: dict[str, Any], error: type[Exception], said: str
) -> None:
    flow = await session.flows.create(
        "f", [Stage("a", "t"), Stage("b", "t", after=["a"]), Stage("c", "t", after=["b"], inputs={"x": "b"})]
    )
    await take(agent, flow, "a")
    before = await session.flows.get(flow.id)
    with pytest.raises(error, match=said):
        await session.flows.modify(flow.id, 1, **change)
    after = await session.flows.get(flow.id)
    assert (before.version, before.stages) == (after.version, after.stages)


async def test_a_change_names_the_version_it_was_made_for(session: Session) -> None:
    flow = await session.flows.create("f", [Stage("a", "t")])
    key = str(new_id())
    first = await session.flows.modify(flow.id, 1, add=[Stage("b", "t")], key=key)
    assert (await session.flows.modify(flow.id, 1, add=[Stage("b", "t")], key=key)).version == first.version == 2
    with pytest.raises(IdempotencyConflict):
        await session.flows.modify(flow.id, 1, add=[Stage("c", "t")], key=key)
    with pytest.raises(Conflict) as caught:
        await session.flows.modify(flow.id, 1, add=[Stage("c", "t")])
    assert (caught.value.details["version"], caught.value.details["expected_version"]) == (2, 1)


# -------------------------------------------------------------------------------------------- at the same time


async def bound(board: Blackboard, connect: Connect, agent: Agent) -> tuple[Connection, Agent]:
    connection = await connect()
    return connection, board.bind(connection).agent(agent)


async def test_two_parents_that_end_at_once_are_both_seen(
    session: Session, board: Blackboard, agent: Agent, connect: Connect, blocked: Blocked
) -> None:
    flow = await session.flows.create("f", [Stage("a", "t"), Stage("b", "t"), Stage("c", "t", after=["a", "b"])])
    tasks = [await take(agent, flow, name) for name in "ab"]
    first, one = await bound(board, connect, agent)
    second, two = await bound(board, connect, agent)
    held = first.transaction()
    await held.start()
    await one.tasks.complete(tasks[0])
    other = asyncio.create_task(two.tasks.complete(tasks[1]))
    await blocked(second.get_server_pid())
    await held.commit()
    await other
    assert statuses(await session.flows.get(flow.id))["c"] == "pending"


async def test_a_claim_before_the_pause_runs_and_its_retry_is_held(
    session: Session, board: Blackboard, agent: Agent, connect: Connect, blocked: Blocked
) -> None:
    flow = await session.flows.create("f", [Stage("a", "t")])
    first, one = await bound(board, connect, agent)
    second = await connect()
    pausing = await board.bind(second).session(session.id)
    held = first.transaction()
    await held.start()
    [task] = await one.tasks.claim()
    pause = asyncio.create_task(pausing.flows.pause(flow.id))
    await blocked(second.get_server_pid())
    await held.commit()
    assert statuses(await pause) == {"a": "running"}
    await agent.tasks.fail(task, "x", delay=timedelta(0))
    assert statuses(await session.flows.get(flow.id)) == {"a": "held"}


async def test_a_retry_that_meets_a_pause_is_held(
    session: Session, board: Blackboard, agent: Agent, connect: Connect, blocked: Blocked
) -> None:
    flow = await session.flows.create("f", [Stage("a", "t")])
    task = await take(agent, flow, "a")
    first, second = await connect(), await connect()
    held = first.transaction()
    await held.start()
    await (await board.bind(first).session(session.id)).flows.pause(flow.id)
    retry = asyncio.create_task(board.bind(second).agent(agent).tasks.fail(task, "x", delay=timedelta(0)))
    await blocked(second.get_server_pid())
    await held.commit()
    await retry
    assert statuses(await session.flows.get(flow.id)) == {"a": "held"}
    assert await agent.tasks.claim(10) == []


async def test_a_pause_that_meets_a_retry_holds_it(
    session: Session, board: Blackboard, agent: Agent, connect: Connect, blocked: Blocked
) -> None:
    flow = await session.flows.create("f", [Stage("a", "t"), Stage("b", "t", after=["a"])])
    task = await take(agent, flow, "a")
    first, one = await bound(board, connect, agent)
    second = await connect()
    held = first.transaction()
    await held.start()
    await one.tasks.complete(task)
    pause = asyncio.create_task((await board.bind(second).session(session.id)).flows.pause(flow.id))
    await blocked(second.get_server_pid())
    await held.commit()
    # The stage that the completion released is seen by the pause that came after it.
    assert statuses(await pause) == {"a": "completed", "b": "held"}


async def test_a_change_that_meets_a_claim_leaves_the_claimed_alone(
    session: Session, board: Blackboard, agent: Agent, connect: Connect, blocked: Blocked
) -> None:
    flow = await session.flows.create("f", [Stage("a", "t"), Stage("b", "t")])
    first, one = await bound(board, connect, agent)
    second = await connect()
    held = first.transaction()
    await held.start()
    assert await one.tasks.claim_by_id(flow.stage("a").task_id)
    changing = await board.bind(second).session(session.id)
    change = asyncio.create_task(changing.flows.modify(flow.id, 1, remove=["a"]))
    await blocked(second.get_server_pid())
    await held.commit()
    with pytest.raises(Conflict, match="has started"):
        await change
    assert states(await session.flows.get(flow.id)) == {"a": "ready", "b": "ready"}
    # The other way round: the claim passes by what is being changed.
    held = second.transaction()
    await held.start()
    await (await board.bind(second).session(session.id)).flows.modify(flow.id, 1, remove=["b"])
    assert await agent.tasks.claim(10) == []
    await held.commit()
    assert states(await session.flows.get(flow.id)) == {"a": "ready"}


async def test_of_two_changes_for_one_version_one_is_made(session: Session, database_url: str) -> None:
    flow = await session.flows.create("f", [Stage("a", "t")])

    async def change(name: str) -> bool:
        try:
            await session.flows.modify(flow.id, 1, add=[Stage(name, "t")])
        except Conflict:
            return False
        return True

    assert sorted(await asyncio.gather(*(change(f"n{number}") for number in range(5)))) == [False] * 4 + [True]


async def test_many_hands_on_many_flows(session: Session, database_url: str, connect: Connect) -> None:
    flows: list[FlowRecord] = []
    dice = random.Random(5)
    for number in range(6):
        branches = [[Stage(f"b{n}", "t"), Stage(f"c{n}", "t", after=[f"b{n}"])] for n in range(4)]
        plan = fork_join(
            Stage("a", "t"), branches, Stage("z", "t", min_quality=0.5, max_iterations=3, loop_to="b0"), k=2
        )
        flows.append(await session.flows.create(f"f{number}", parallel(plan)))
    stop = time.monotonic() + 40

    async def over() -> bool:
        return all([(await session.flows.get(flow.id)).finished for flow in flows])

    async def work(seed: int) -> None:
        own = random.Random(seed)
        async with Blackboard.open(database_url, pool_size=1) as board:
            agent = await (await board.session(session.id)).join(f"w/{seed}")
            while time.monotonic() < stop and not await over():
                for task in await agent.tasks.claim(3):
                    with contextlib.suppress(LeaseLost, TransientError):
                        if own.random() < 0.1:
                            await agent.tasks.fail(task, "x", retry=own.random() < 0.7, delay=timedelta(0))
                        elif own.random() < 0.1:
                            await agent.tasks.release(task)
                        else:
                            await agent.tasks.complete(task, {"quality": own.random()})

    async def meddle() -> None:
        while time.monotonic() < stop and not await over():
            flow = dice.choice(flows)
            with contextlib.suppress(InvalidTransition, Conflict, TransientError):
                await session.flows.pause(flow.id, stop=dice.random() < 0.3)
                seen = await session.flows.get(flow.id)
                await session.flows.modify(flow.id, seen.version, reprioritise={"z": dice.randrange(11)})
            with contextlib.suppress(InvalidTransition, TransientError):
                await session.flows.resume(flow.id)

    await asyncio.wait_for(asyncio.gather(*(work(seed) for seed in range(4)), meddle()), 60)
    db = await connect()
    for flow in flows:
        fresh = await session.flows.get(flow.id)
        assert fresh.finished
        good = set(states(fresh).values()) <= {"completed", "skipped"}
        assert fresh.status == ("completed" if good else "failed")
    assert (
        await db.fetchval(
            "SELECT count(*) FROM blackboard.flow_stages s JOIN blackboard.tasks t ON t.id = s.task_id "
            "WHERE s.state = 'completed' AND t.status <> 'completed' OR s.state IN ('cancelled', 'skipped') "
            "AND t.completed_at IS NULL"
        )
        == 0
    )


WORKER = """
import asyncio, sys
from blackboard import Blackboard
async def main():
    async with Blackboard.open(sys.argv[1]) as board:
        agent = await (await board.session(sys.argv[2])).join("ops/doomed")
        [task] = await agent.tasks.claim(wait=__import__("datetime").timedelta(seconds=30))
        print(task.id, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_a_worker_killed_in_the_middle_of_a_flow(
    session: Session, agent: Agent, database_url: str, clock: Clock, tmp_path: Path
) -> None:
    flow = await session.flows.create("f", sequential(Stage("a", "t"), Stage("b", "t"), Stage("c", "t")))
    await agent.tasks.complete(await take(agent, flow, "a"))
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), database_url, str(session.id),
        stdout=asyncio.subprocess.PIPE, env={**os.environ},
    )  # fmt: skip
    assert process.stdout is not None
    taken = uuid.UUID((await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip())
    assert taken == flow.stage("b").task_id
    process.send_signal(signal.SIGKILL)
    await process.wait()
    assert statuses(await session.flows.get(flow.id)) == {"a": "completed", "b": "running", "c": "blocked"}
    await clock.advance(timedelta(minutes=10))

    async def again() -> list[TaskRecord]:
        return await agent.tasks.claim()

    [task] = await eventually(again)
    assert (task.id, task.attempt) == (taken, 2)
    await agent.tasks.complete(task)
    [last] = await agent.tasks.claim()
    await agent.tasks.complete(last)
    assert (await session.flows.get(flow.id)).status == "completed"
