"""Flows against a pure model: random graphs, joins, policies, qualities and outcomes; and what the helpers build."""

from __future__ import annotations

import random
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blackboard import After, Agent, Session, Stage, fork_join, parallel, sequential
from blackboard.models.flow_plans import OnFailure
from blackboard.models.tasks import TaskStatus

from .flowmodel import OPEN, Model


def random_stages(dice: random.Random) -> list[Stage]:
    count = dice.randrange(1, 9)
    names = [f"s{number}" for number in range(count)]
    policies: list[OnFailure] = ["fail", "fail", "skip", "continue", "compensate"]
    if dice.random() < 0.7:
        policies.remove("compensate")
    stages: list[Stage] = []
    for number, name in enumerate(names):
        before = dice.sample(names[:number], min(number, dice.randrange(4)))
        join = dice.choice(["all", "all", "any", dice.randrange(1, len(before) + 1)]) if before else "all"
        gated = dice.random() < 0.3
        above: list[str] = []
        if gated and before and dice.random() < 0.5:
            above = before
        stages.append(
            Stage(
                name,
                "t",
                after=[After(one, dice.choice(policies)) for one in before],
                join=join,
                min_quality=0.5 if gated else None,
                max_iterations=dice.randrange(1, 4) if gated else 1,
                loop_to=dice.choice(above) if above else None,
                compensate=Stage(f"undo-{name}", f"undo-{name}") if dice.random() < 0.7 else None,
            )
        )
    dice.shuffle(stages)
    return stages


async def play(session: Session, agent: Agent, dice: random.Random) -> None:
    stages = random_stages(dice)
    flow = await session.flows.create("random", stages)
    model = Model(stages)
    for _ in range(200):
        flow = await session.flows.get(flow.id)
        assert {stage.name: stage.state.value for stage in flow.stages} == model.state, stages
        assert flow.status == model.status
        assert flow.compensating == model.compensating
        for stage in flow.stages:
            claimable = stage.task_status in (TaskStatus.PENDING, TaskStatus.ASSIGNED)
            assert claimable == (stage.state == "ready"), (stage, stages)
        if not (ready := model.ready()):
            break
        name = dice.choice(ready)
        task = await agent.tasks.claim_by_id(flow.stage(name).task_id)
        assert task is not None
        outcome = dice.choice(["completed", "completed", "completed", "failed", "cancelled"])
        quality = dice.choice([None, 0.2, 0.7])
        if outcome == "completed":
            await agent.flows.complete_stage(task, {"by": name}, quality=quality)
        elif outcome == "failed":
            await agent.tasks.fail(task, "broken", retry=False)
        else:
            await session.tasks.cancel(task.id)
            await agent.tasks.release(task)
        model.end(name, outcome, quality)
    assert not set(model.state.values()) & set(OPEN)
    if set(model.state.values()) & {"failed", "cancelled"}:
        assert flow.status == "failed"
    # Compensation: the completed stages that have some, the later one first, one at a time.
    wanted = [s.name for s in stages if model.compensating and s.compensate and model.state[s.name] == "completed"]
    assert {s.name for s in flow.stages if s.compensation_task_id} == set(wanted)
    done: list[str] = []
    while tasks := await agent.tasks.claim(5):
        assert len(tasks) == 1
        done.append(tasks[0].type.removeprefix("undo-"))
        assert tasks[0].parameters["compensates"]["stage"] == done[-1]
        if dice.random() < 0.5:
            await agent.tasks.complete(tasks[0])
        else:
            await agent.tasks.fail(tasks[0], "x", retry=False)
    assert sorted(done) == sorted(wanted)
    for place, name in enumerate(done):
        assert not set(done[place + 1 :]) & (model._below(name) - {name})


@pytest.mark.parametrize("seed", range(8))
async def test_random_flows_end_as_the_model_says(session: Session, seed: int) -> None:
    agent = await session.join("w/1")
    dice = random.Random(seed)
    for _ in range(12):
        await play(session, agent, dice)


# ------------------------------------------------------------------------------------------------------ helpers

_COUNT = st.integers(1, 4)


def made(count: int, prefix: str) -> list[Stage]:
    return [Stage(f"{prefix}{number}", "t") for number in range(count)]


def edges(stages: list[Stage]) -> set[tuple[str, str]]:
    return {(before, stage.name) for stage in stages for before in stage.depends}


@given(st.lists(_COUNT, min_size=1, max_size=5))
@settings(deadline=None)
def test_sequential_joins_each_part_with_the_next(sizes: list[int]) -> None:
    parts = [made(size, f"p{number}-") for number, size in enumerate(sizes)]
    whole = sequential(*parts)
    assert [s.name for s in whole] == [s.name for part in parts for s in part]
    assert edges(whole) == {(a.name, b.name) for first, second in pairwise(parts) for a in first for b in second}


@given(st.lists(_COUNT, min_size=1, max_size=5))
@settings(deadline=None)
def test_parallel_adds_no_edges(sizes: list[int]) -> None:
    parts = [sequential(*made(size, f"p{number}-")) for number, size in enumerate(sizes)]
    assert edges(parallel(*parts)) == {edge for part in parts for edge in edges(part)}


@given(_COUNT, st.lists(_COUNT, min_size=1, max_size=5), st.booleans())
@settings(deadline=None)
def test_fork_join_has_one_way_in_and_one_out(before: int, sizes: list[int], some: bool) -> None:
    branches = [sequential(*made(size, f"b{number}-")) for number, size in enumerate(sizes)]
    whole = fork_join(sequential(*made(before, "a")), branches, Stage("end", "t"), k=1 if some else None)
    by_name = {stage.name: stage for stage in whole}
    assert set(by_name["end"].depends) == {branch[-1].name for branch in branches}
    assert by_name["end"].join == (1 if some else "all")
    for branch in branches:
        assert by_name[branch[0].name].depends == (f"a{before - 1}",)


def test_edges_that_are_there_stay_as_they_are() -> None:
    first, second = sequential(Stage("a", "t"), Stage("b", "t", after=[After("a", "skip")]))
    assert (first.after, second.after) == ((), (After("a", "skip"),))
    assert timedelta(seconds=1) == second.retry_delay
    assert sequential(Stage("a", "t"), [], Stage("b", "t"))[1].depends == ("a",)
