"""Flows: created as a whole, joined, failed, looped, compensated and read."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import After, Agent, Blackboard, NewTask, Session, Stage, TaskRecord, fork_join, parallel, sequential
from blackboard.errors import (
    CyclicDependency,
    IdempotencyConflict,
    InvalidInput,
    LeaseLost,
    NotFound,
    SessionClosed,
    WaitNotAllowed,
    WaitTimeout,
)
from blackboard.ids import new_id
from blackboard.models.flows import FlowRecord

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def agent(session: Session) -> Agent:
    return await session.join("ops/worker")


def states(flow: FlowRecord) -> dict[str, str]:
    return {stage.name: stage.state.value for stage in flow.stages}


async def take(agent: Agent, flow: FlowRecord, stage: str) -> TaskRecord:
    """Claims the task of a stage."""
    fresh = await agent.flows.get(flow.id)
    task = await agent.tasks.claim_by_id(fresh.stage(stage).task_id)
    assert task is not None, fresh.stage(stage)
    return task


async def done(agent: Agent, flow: FlowRecord, *stages: str, result: Any = None) -> FlowRecord:
    for stage in stages:
        await agent.tasks.complete(await take(agent, flow, stage), {"of": stage} if result is None else result)
    return await agent.flows.get(flow.id)


async def broken(agent: Agent, flow: FlowRecord, stage: str) -> FlowRecord:
    await agent.tasks.fail(await take(agent, flow, stage), "broken", retry=False)
    return await agent.flows.get(flow.id)


async def kinds(session: Session, flow: FlowRecord) -> list[str]:
    page = await session.events.read(subject_id=flow.id, limit=10_000)
    return [event.type for event in page.events]


# ------------------------------------------------------------------------------------------------------- create


async def test_a_flow_runs_from_end_to_end(session: Session, agent: Agent) -> None:
    flow = await session.flows.create(
        "release",
        [
            Stage("identify", "look", {"deep": True}, output="found"),
            Stage("fix", "change", after=["identify"], inputs={"changes": "identify.files", "region": "inputs.region"}),
            Stage("report", "write", after=["fix"], inputs={"all": "found", "first": "found.files.0"}, output="report"),
        ],
        inputs={"region": "eu"},
    )
    assert (flow.status, flow.version, flow.inputs, flow.created_by) == ("running", 1, {"region": "eu"}, "tester")
    assert states(flow) == {"identify": "ready", "fix": "waiting", "report": "waiting"}
    assert [s.task_status for s in flow.stages] == ["pending", "blocked", "blocked"]
    first = await take(agent, flow, "identify")
    assert (first.parameters, first.type) == ({"deep": True}, "look")
    await agent.tasks.complete(first, {"files": ["a.py", "b.py"]})
    second = await take(agent, flow, "fix")
    assert await agent.flows.inputs(second) == {"changes": ["a.py", "b.py"], "region": "eu"}
    await agent.tasks.complete(second)
    third = await take(agent, flow, "report")
    assert await session.flows.inputs(third.id) == {"all": {"files": ["a.py", "b.py"]}, "first": "a.py"}
    await agent.tasks.complete(third, "fine")
    over = await session.flows.wait(flow.id, timedelta(seconds=5))
    assert (over.status, over.finished, over.error) == ("completed", True, None)
    assert over.outputs == {"found": {"files": ["a.py", "b.py"]}, "report": "fine"}
    assert set(states(over).values()) == {"completed"}
    events = await kinds(session, flow)
    assert [e for e in events if not e.startswith("flow.stage")] == ["flow.created", "flow.completed"]
    assert events.count("flow.stage_ready") == events.count("flow.stage_completed") == 3


async def test_events_follow_their_cause(session: Session, agent: Agent) -> None:
    flow = await session.flows.create("f", sequential(Stage("a", "t"), Stage("b", "t")))
    await done(agent, flow, "a", "b")
    page = await session.events.read(topics=["task.completed", "task.ready", "flow.completed"], limit=100)
    assert [e.type for e in page.events] == [
        "task.ready", "task.completed", "task.ready", "task.completed", "flow.completed"
    ]  # fmt: skip
    assert {e.actor for e in page.events[1:]} == {agent.id}


async def test_stages_take_the_options_of_tasks(session: Session, agent: Agent) -> None:
    mine = new_id()
    flow = await session.flows.create(
        "f",
        [
            Stage("a", "t", capability="c", priority=9, timeout=timedelta(minutes=1), max_attempts=2, id=mine),
            Stage("b", "t", after=["a"], requires_approval=True),
            Stage("c", "t", after=["a"], assigned_to=agent.id),
            Stage("d", "t", after=["a"], run_at=datetime.now(UTC) + timedelta(hours=1)),
        ],
    )
    task = await session.tasks.get(mine)
    assert (task.capability, task.priority, task.timeout, task.max_attempts) == ("c", 9, timedelta(minutes=1), 2)
    assert flow.stage("b").task_status == "awaiting_approval"
    await session.tasks.approve(flow.stage("b").task_id)
    assert (await session.tasks.get(flow.stage("b").task_id)).status == "blocked"
    flow = await done(agent, flow, "a")
    assert [flow.stage(name).task_status for name in "bcd"] == ["pending", "assigned", "scheduled"]


async def test_approval_after_the_stage_before(session: Session, agent: Agent) -> None:
    flow = await session.flows.create("f", [Stage("a", "t"), Stage("b", "t", after=["a"], requires_approval=True)])
    flow = await done(agent, flow, "a")
    assert (flow.stage("b").state, flow.stage("b").task_status) == ("ready", "awaiting_approval")
    await session.tasks.reject(flow.stage("b").task_id)
    flow = await session.flows.get(flow.id)
    assert (flow.status, states(flow)["b"]) == ("failed", "cancelled")


@pytest.mark.parametrize(
    ("stages", "field", "said"),
    [
        ([], "stages", "at least one"),
        ([Stage("a", "t"), Stage("a", "u")], "name", "'a'"),
        ([Stage("a", "t", after=["b"])], "after", "'b', which is no stage"),
        ([Stage("a", "t"), Stage("b", "t", after=["a", "a"])], "after", "twice"),
        ([Stage("a", "t", inputs={"x": "b"})], "inputs", "'b', which is no stage"),
        ([Stage("a", "t"), Stage("b", "t", inputs={"x": "a"})], "inputs", "does not come before"),
        ([Stage("a", "t", inputs={"x": "b"}), Stage("b", "t", after=["a"])], "inputs", "does not come before"),
        ([Stage("a", "t"), Stage("b", "t", after=["a"], join=2)], "join", "2 successes and has 1"),
        ([Stage("a", "t"), Stage("b", "t", min_quality=0.5, loop_to="a")], "loop_to", "does not come before"),
        ([Stage("a", "t"), Stage("b", "t", after=["a"], loop_to="a")], "loop_to", "min_quality"),
        ([Stage("a", "t", min_quality=1.5)], "min_quality", "between 0 and 1"),
        ([Stage("a", "t", min_quality=float("nan"))], "stages", "NaN"),
        ([Stage("a", "t", min_quality=0.5, max_iterations=101)], "max_iterations", "1 and 100"),
        ([Stage("a", "t", output="x"), Stage("b", "t", output="x")], "output", "same output"),
        ([Stage("a", "t", output="b"), Stage("b", "t")], "output", "another stage"),
        ([Stage("a.b", "t")], "name", "without white space"),
        ([Stage("inputs", "t")], "name", "without white space"),
        ([Stage("a", "t", output="in put")], "output", "without white space"),
        ([Stage("a", "t", priority=11)], "priority", "between 0 and 10"),
        ([Stage("a", "")], "type", "empty"),
        ([Stage("a", "t", depends_on=[uuid.uuid4()])], "depends_on", "after"),
        ([Stage("a", "t", unique={"key": "k"})], "unique", "unique"),
        ([Stage("a", "t", max_attempts=0)], "max_attempts", "attempts"),
    ],
)
async def test_what_is_no_sound_flow_is_refused_as_a_whole(
    session: Session, stages: list[Stage], field: str, said: str
) -> None:
    with pytest.raises(InvalidInput, match=said) as caught:
        await session.flows.create("f", stages)
    assert caught.value.details["field"] == field
    assert await session.flows.list() == []
    assert await session.tasks.list() == []


@pytest.mark.parametrize(
    ("edges", "path"),
    [
        ({"a": "a"}, ["a", "a"]),
        ({"a": "c", "b": "a", "c": "b"}, None),
        ({"x": "", "a": "xb", "b": "a", "c": "b", "d": "c"}, None),
    ],
)
async def test_a_cycle_is_refused_with_its_path(
    session: Session, edges: dict[str, str], path: Sequence[str] | None
) -> None:
    stages = [Stage(name, "t", after=list(before)) for name, before in edges.items()]
    with pytest.raises(CyclicDependency) as caught:
        await session.flows.create("f", stages)
    found = caught.value.details["path"]
    assert found[0] == found[-1]
    assert path is None or found == path
    assert all(before in edges[stage] for stage, before in pairwise(found))
    assert " -> ".join(found) in str(caught.value)
    assert await session.tasks.list() == []


async def test_the_id_is_the_idempotency_key(session: Session) -> None:
    flow_id = new_id()
    first = await session.flows.create("f", [Stage("a", "t")], id=flow_id)
    again = await session.flows.create("f", [Stage("a", "t")], id=flow_id)
    assert (first.id, first.stages[0].task_id) == (again.id, again.stages[0].task_id)
    assert len(await session.tasks.list()) == 1
    with pytest.raises(IdempotencyConflict):
        await session.flows.create("f", [Stage("b", "t")], id=flow_id)
    taken = await session.tasks.add("t")
    with pytest.raises(IdempotencyConflict):
        await session.flows.create("g", [Stage("a", "t", id=taken.id)])


async def test_where_no_flow_can_be(session: Session, board: Blackboard) -> None:
    with pytest.raises(NotFound):
        await session.flows.get(uuid.uuid4())
    for verb in (session.flows.pause, session.flows.resume, session.flows.cancel, session.flows.progress):
        with pytest.raises(NotFound):
            await verb(uuid.uuid4())
    with pytest.raises(NotFound):
        await session.flows.wait(uuid.uuid4(), timedelta(0))
    with pytest.raises(InvalidInput):
        await session.flows.list(status="odd")
    await session.close()
    with pytest.raises(SessionClosed):
        await session.flows.create("f", [Stage("a", "t")])


async def test_a_large_flow_is_made_and_settled_in_one_go(session: Session, agent: Agent) -> None:
    middle = [Stage(f"m{number}", "t") for number in range(400)]
    flow = await session.flows.create("f", fork_join(Stage("a", "t"), [[one] for one in middle], Stage("z", "t")))
    flow = await broken(agent, flow, "a")
    assert flow.status == "failed"
    assert list(states(flow).values()).count("cancelled") == 401
    chain = await session.flows.create("g", sequential(*[Stage(f"c{number}", "t") for number in range(400)]))
    assert (await broken(agent, chain, "c0")).status == "failed"


async def test_it_works_on_a_connection_of_the_caller(
    session: Session, board: Blackboard, connect: Any, agent: Agent
) -> None:
    connection = await connect()
    transaction = connection.transaction()
    await transaction.start()
    bound = await board.bind(connection).session(session.id)
    flow = await bound.flows.create("f", [Stage("a", "t")])
    with pytest.raises(WaitNotAllowed):
        await bound.flows.wait(flow.id)
    assert await session.flows.list() == []
    await transaction.rollback()
    assert await session.flows.list() == []
    with pytest.raises(WaitTimeout):
        kept = await session.flows.create("g", [Stage("a", "t")])
        await session.flows.wait(kept.id, timedelta(0))


# ------------------------------------------------------------------------------------------------------- joins


async def test_any_goes_on_with_the_first_and_the_others_may_end(session: Session, agent: Agent) -> None:
    flow = await session.flows.create(
        "f", fork_join(Stage("a", "t"), [Stage("b", "t"), Stage("c", "t"), Stage("d", "t")], Stage("e", "t"), k=1)
    )
    flow = await done(agent, flow, "a", "c")
    assert states(flow)["e"] == "ready"
    flow = await done(agent, flow, "e", "b")
    assert flow.status == "running"
    flow = await done(agent, flow, "d")
    assert flow.status == "completed"


async def test_k_of_n_fails_when_k_can_no_longer_be_reached(session: Session, agent: Agent) -> None:
    flow = await session.flows.create(
        "f", [*parallel(*(Stage(n, "t") for n in "abc")), Stage("e", "t", after=["a", "b", "c"], join=2)]
    )
    flow = await broken(agent, flow, "a")
    assert states(flow)["e"] == "waiting"
    flow = await broken(agent, flow, "b")
    assert states(flow)["e"] == "cancelled"
    assert flow.stage("e").error["depends_on"] == ["a", "b"]
    assert flow.status == "running"
    flow = await done(agent, flow, "c")
    assert flow.status == "failed"
    assert flow.error["stages"] == ["a", "b", "e"]


# ---------------------------------------------------------------------------------------------------- policies


@pytest.mark.parametrize(
    ("policy", "next_state", "status"),
    [("fail", "cancelled", "failed"), ("skip", "skipped", "failed"), ("continue", "ready", "running")],
)
async def test_what_an_edge_says_of_failure(
    session: Session, agent: Agent, policy: Any, next_state: str, status: str
) -> None:
    flow = await session.flows.create(
        "f", [Stage("a", "t"), Stage("b", "t", after=[After("a", policy)], inputs={"x": "a"})]
    )
    flow = await broken(agent, flow, "a")
    assert (states(flow)["b"], flow.status) == (next_state, status)
    if policy == "continue":
        assert await agent.flows.inputs(await take(agent, flow, "b")) == {"x": None}
        task = await agent.tasks.get(flow.stage("b").task_id)
        await agent.tasks.complete(task)
        # The failure is not forgotten because others could do without.
        assert (await session.flows.get(flow.id)).status == "failed"
    else:
        task = await session.tasks.get(flow.stage("b").task_id)
        assert (task.status, task.error["code"]) == (
            "cancelled",
            "skipped" if policy == "skip" else "dependency_failed",
        )


async def test_a_skip_goes_on_only_along_skipping_edges(session: Session, agent: Agent) -> None:
    flow = await session.flows.create(
        "f",
        [
            Stage("a", "t"),
            Stage("b", "t", after=[After("a", "skip")]),
            Stage("c", "t", after=[After("b", "skip")]),
            Stage("d", "t", after=["b"]),
        ],
    )
    flow = await broken(agent, flow, "a")
    assert states(flow) == {"a": "failed", "b": "skipped", "c": "skipped", "d": "ready"}


async def test_a_dead_stage_fails_its_flow_and_redriven_in_time_it_does_not(session: Session, agent: Agent) -> None:
    flow = await session.flows.create("f", [Stage("a", "t", max_attempts=1), Stage("b", "t")])
    await agent.tasks.fail(await take(agent, flow, "a"), "x")
    assert states(await session.flows.get(flow.id)) == {"a": "failed", "b": "ready"}
    await session.tasks.redrive(flow.stage("a").task_id)
    assert states(await session.flows.get(flow.id)) == {"a": "ready", "b": "ready"}
    flow = await done(agent, flow, "b", "a")
    assert flow.status == "completed"


async def test_compensation_undoes_in_reverse_order(session: Session, agent: Agent) -> None:
    def undo(name: str) -> NewTask:
        return NewTask(type=f"undo-{name}", parameters={"k": 1})

    flow = await session.flows.create(
        "trip",
        [
            Stage("hotel", "book", compensate=undo("hotel")),
            Stage("car", "book", after=["hotel"], compensate=undo("car")),
            Stage("flight", "book", after=["car"]),
            Stage("mail", "write", after=[After("flight", "compensate")]),
            Stage("map", "draw"),
        ],
    )
    await done(agent, flow, "hotel", "car")
    running = await take(agent, flow, "map")
    flow = await broken(agent, flow, "flight")
    assert flow.compensating
    assert states(flow)["mail"] == "cancelled"
    assert flow.status == "running"
    assert (await session.tasks.get(running.id)).cancel_requested
    await agent.tasks.release(running)
    flow = await session.flows.get(flow.id)
    assert flow.status == "failed"
    assert flow.stage("hotel").compensation_status == "blocked"
    [first] = await agent.tasks.claim(10)
    assert first.type == "undo-car"
    assert first.parameters["k"] == 1
    assert first.parameters["compensates"] == {
        "flow": str(flow.id), "stage": "car", "task_id": str(flow.stage("car").task_id), "result": {"of": "car"}
    }  # fmt: skip
    await agent.tasks.fail(first, "no luck", retry=False)
    [second] = await agent.tasks.claim(10)
    assert second.type == "undo-hotel"
    await agent.tasks.complete(second)
    assert await agent.tasks.claim(10) == []


async def test_the_last_stage_is_undone_by_the_edge_that_leads_to_it(session: Session, agent: Agent) -> None:
    undo = NewTask(type="undo")
    flow = await session.flows.create(
        "f", [Stage("a", "t", compensate=undo), Stage("b", "t", after=[After("a", "compensate")], compensate=undo)]
    )
    await done(agent, flow, "a")
    flow = await broken(agent, flow, "b")
    assert (flow.status, flow.compensating) == ("failed", True)
    assert flow.stage("a").compensation_status == "pending"
    assert flow.stage("b").compensation_task_id is None


# -------------------------------------------------------------------------------------------------------- loops


async def test_low_quality_loops_back_with_feedback_until_it_is_good(session: Session, agent: Agent) -> None:
    flow = await session.flows.create(
        "f",
        [
            Stage("plan", "t"),
            Stage("write", "t", {"topic": "x"}, after=["plan"]),
            Stage("review", "t", after=["write"], min_quality=0.8, max_iterations=3, loop_to="write", output="text"),
            Stage("publish", "t", after=["review"], inputs={"text": "text"}),
        ],
    )
    await done(agent, flow, "plan", "write")
    await agent.flows.complete_stage(await take(agent, flow, "review"), {"n": 1}, quality=0.5)
    flow = await session.flows.get(flow.id)
    assert states(flow) == {"plan": "completed", "write": "ready", "review": "waiting", "publish": "waiting"}
    task = await take(agent, flow, "write")
    assert task.parameters["topic"] == "x"
    feedback = task.parameters["feedback"]
    assert (feedback["quality"], feedback["iteration"], feedback["result"]) == (0.5, 1, {"n": 1})
    await agent.tasks.complete(task)
    # Any worker can say its quality in the result.
    await agent.tasks.complete(await take(agent, flow, "review"), {"n": 2, "quality": 0.9})
    flow = await session.flows.get(flow.id)
    assert (flow.stage("review").iteration, flow.stage("review").quality) == (2, 0.9)
    publish = await take(agent, flow, "publish")
    assert await agent.flows.inputs(publish) == {"text": {"n": 2, "quality": 0.9}}
    await agent.tasks.complete(publish)
    assert (await session.flows.get(flow.id)).status == "completed"
    assert (await kinds(session, flow)).count("flow.stage_looped") == 2


async def test_a_loop_ends_at_its_cap(session: Session, agent: Agent) -> None:
    flow = await session.flows.create(
        "f", [Stage("a", "t", min_quality=0.5, max_iterations=3), Stage("b", "t", after=["a"])]
    )
    for _ in range(3):
        await agent.tasks.complete(await take(agent, flow, "a"), {"quality": 0.1})
    flow = await session.flows.get(flow.id)
    assert (flow.status, states(flow)) == ("failed", {"a": "failed", "b": "cancelled"})
    assert flow.stage("a").error["code"] == "quality"
    assert "after 3 rounds" in flow.stage("a").error["message"]


async def test_parameters_that_are_no_object_and_results_that_are_too_large(session: Session, agent: Agent) -> None:
    flow = await session.flows.create("f", [Stage("a", "t", [1, 2], min_quality=0.5, max_iterations=2)])
    big = "x" * 1_040_000
    await agent.flows.complete_stage(await take(agent, flow, "a"), big, quality=0.1)
    task = await take(agent, flow, "a")
    assert task.parameters["parameters"] == [1, 2]
    assert task.parameters["feedback"]["quality"] == 0.1


async def test_a_branch_left_behind_does_not_disturb_the_next_round(session: Session, agent: Agent) -> None:
    flow = await session.flows.create(
        "f",
        [
            Stage("a", "t"),
            Stage("b", "t", after=["a"]),
            Stage("c", "t", after=["a"]),
            Stage("d", "t", after=["b", "c"], join="any", min_quality=0.5, max_iterations=2, loop_to="a"),
        ],
    )
    await done(agent, flow, "a", "b")
    slow = await take(agent, flow, "c")
    await agent.flows.complete_stage(await take(agent, flow, "d"), quality=0.1)
    assert (await session.tasks.get(slow.id)).cancel_requested
    await agent.tasks.complete(slow, "late")
    flow = await session.flows.get(flow.id)
    assert states(flow) == {"a": "ready", "b": "waiting", "c": "waiting", "d": "waiting"}
    flow = await done(agent, flow, "a", "c")
    await agent.flows.complete_stage(await take(agent, flow, "d"), quality=0.9)
    flow = await done(agent, flow, "b")
    assert flow.status == "completed"


async def test_complete_stage_refuses_what_it_cannot_do(session: Session, agent: Agent) -> None:
    plain = await session.tasks.add("t")
    task = await agent.tasks.claim_by_id(plain.id)
    assert task is not None
    with pytest.raises(InvalidInput, match="no stage"):
        await agent.flows.complete_stage(task, quality=1)
    flow = await session.flows.create("f", [Stage("a", "t", min_quality=0.5)])
    held = await take(agent, flow, "a")
    with pytest.raises(InvalidInput, match="between 0 and 1"):
        await agent.flows.complete_stage(held, quality=1.5)
    with pytest.raises(InvalidInput, match="between 0 and 1"):
        await agent.flows.complete_stage(held, quality=float("nan"))
    with pytest.raises(InvalidInput, match="never claimed"):
        await agent.flows.complete_stage(plain)
    await agent.tasks.release(held)
    with pytest.raises(LeaseLost):
        await agent.flows.complete_stage(held, "late", quality=0.9)
    assert [r.result for r in await session.tasks.late_results(held.id)] == ["late"]
    assert (await session.flows.get(flow.id)).stage("a").quality is None
    mine = await take(agent, flow, "a")
    await agent.flows.complete_stage(mine, 1, quality=0.9)
    await agent.flows.complete_stage(mine, 1, quality=0.9)
    assert (await session.flows.get(flow.id)).status == "completed"


# ------------------------------------------------------------------------------------------------------- reading


async def test_progress_names_the_critical_path_and_stragglers(session: Session, agent: Agent, clock: Any) -> None:
    flow = await session.flows.create(
        "f",
        [
            *(Stage(n, "t") for n in "abcs"),
            Stage("z", "t", after=["a", "b", "s"]),
        ],
    )
    tasks = {name: await take(agent, flow, name) for name in "abcs"}
    await clock.advance(timedelta(seconds=2))
    for name in "abc":
        await agent.tasks.complete(tasks[name])
    await clock.advance(timedelta(seconds=10))
    progress = await session.flows.progress(flow.id)
    assert (progress.total, progress.states) == (5, {"completed": 3, "ready": 1, "waiting": 1})
    assert progress.critical_path == ("s", "z")
    assert progress.stragglers == ("s",)


async def test_graphs_show_edges_and_states(session: Session, agent: Agent) -> None:
    flow = await session.flows.create(
        "f",
        [
            Stage("a", "t"),
            Stage("b", "t", after=[After("a", "skip")], min_quality=0.5, max_iterations=2),
            Stage('c"<x>', "t", after=["a", After("b", "continue")], join="any"),
        ],
    )
    text = (await session.flows.graph(flow.id)).splitlines()
    assert text[0].split() == ["a", "ready"]
    assert "<- a (else skip)" in text[1]
    assert "round 1, up to 2" in text[1]
    assert "<- 1 of a, b (else continue)" in text[2]
    mermaid = await session.flows.graph(flow.id, format="mermaid")
    assert mermaid.startswith("flowchart TD\n")
    assert "s0 -. skip .-> s1" in mermaid
    assert "s1 -. quality .-> s1" in mermaid
    assert "c#quot;#lt;x>" in mermaid
    with pytest.raises(InvalidInput):
        await session.flows.graph(flow.id, format="png")  # type: ignore[arg-type]


async def test_the_reason_says_what_a_stage_waits_for(session: Session, agent: Agent) -> None:
    flow = await session.flows.create("f", [Stage("a", "t"), Stage("b", "t", after=["a"])])
    reason = await session.flows.reason(flow.stage("b").task_id)
    assert reason is not None
    assert (reason["code"], reason["stage"], reason["need"]) == ("flow_waiting", "b", 1)
    assert [w["stage"] for w in reason["waits_for"]] == ["a"]
    assert await session.flows.reason(flow.stage("a").task_id) is None
    await session.flows.pause(flow.id)
    reason = await session.flows.reason(flow.stage("a").task_id)
    assert reason is not None
    assert reason["code"] == "flow_paused"
    assert await session.flows.inputs((await session.tasks.add("t")).id) == {}
    assert await session.flows.reason((await session.tasks.add("t")).id) is None


async def test_flows_are_listed_newest_first(session: Session, agent: Agent) -> None:
    first = await session.flows.create("a", [Stage("a", "t")])
    second = await session.flows.create("b", [Stage("a", "t")])
    assert [f.id for f in await session.flows.list()] == [second.id, first.id]
    await done(agent, first, "a")
    assert [f.id for f in await session.flows.list(status="completed")] == [first.id]
    assert len(await session.flows.list(limit=1)) == 1


async def test_closing_the_session_cancels_its_flows(session: Session, agent: Agent) -> None:
    flow = await session.flows.create("f", [Stage("a", "t", min_quality=0.9, max_iterations=3), Stage("b", "t")])
    task = await take(agent, flow, "a")
    await session.close()
    assert states(await session.flows.get(flow.id)) == {"a": "ready", "b": "cancelled"}
    await agent.tasks.complete(task, {"quality": 0.1})
    flow = await session.flows.get(flow.id)
    assert (flow.status, flow.error["code"]) == ("cancelled", "session_closed")
    assert states(flow)["a"] == "failed"


async def test_tasks_outside_can_wait_for_a_stage(session: Session, agent: Agent, db: Connection) -> None:
    flow = await session.flows.create("f", [Stage("a", "t"), Stage("b", "t", after=["a"])])
    outside = await session.tasks.add("t", depends_on=[flow.stage("b").task_id])
    await done(agent, flow, "a", "b")
    assert (await session.tasks.get(outside.id)).status == "pending"
    other = await session.flows.create("g", [Stage("a", "t")])
    with pytest.raises(IdempotencyConflict):
        await session.tasks.add_many([NewTask(type="t", id=other.stage("a").task_id, depends_on=(outside.id,))])
    with pytest.raises(asyncpg.PostgresError, match="stage of a flow"):
        await db.execute(
            "INSERT INTO blackboard.task_dependencies (session_id, task_id, depends_on_id) VALUES ($1, $2, $3)",
            session.id, other.stage("a").task_id, outside.id,
        )  # fmt: skip
