"""Swarms of real processes on a real board: both shapes, death, time-out."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from blackboard import Blackboard
from blackboard.errors import AlreadyExists, ConfigurationError, Conflict, NotFound
from blackboard.swarm import SwarmStatus, Update, UpdateKind, run_swarm
from blackboard.swarm.assignment import load_function

from .swarmkit import FAST, SYNTHESIS, Load, Run, Watch, agents, by_name, gone, kill, load, surroundings

__all__ = ["load", "surroundings"]  # fixtures


# ------------------------------------------------------------------------------------------------------- both shapes


async def test_a_parallel_investigation_ends_with_its_synthesis(
    load: Load, database_url: str, board: Blackboard
) -> None:
    watch = Watch()
    outcome = await run_swarm(load(agents(a="report", b="report"), rest=SYNTHESIS), url=database_url, on_update=watch)
    assert outcome.status is SwarmStatus.COMPLETED
    assert outcome.result["by"] == "ops/architect"
    assert outcome.result["inputs"]["ops/a"]["focus"] == "about a"
    assert set(outcome.result["inputs"]) == {"ops/a", "ops/b"}
    assert [task.status for task in outcome.tasks] == ["completed"] * 3
    assert all(agent.exits == (0,) for agent in outcome.agents), outcome.agents
    assert len(outcome.agents) == 3
    assert outcome.logs is None
    assert not outcome.agents[0].log.exists()
    session = await board.session("inc")
    assert session.record.status == "completed"
    assert session.record.outcome == outcome.result
    assert session.record.goal == "Investigate INC-1234"
    assert {finding.agent_id for finding in await session.findings.list()} == {"ops/a", "ops/b"}
    types = watch.types()
    assert types[0] == "session.started"
    assert types[-1] == "session.completed"
    assert types.count("task.completed") == 3
    assert watch.updates[0].kind is UpdateKind.SESSION
    await gone(watch.pids())
    assert json.loads(json.dumps(outcome.to_dict()))["status"] == "completed"


async def test_stages_get_the_outputs_that_they_name_and_can_be_run_again_from_any(
    load: Load, database_url: str, board: Blackboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGE_LOG", str(tmp_path / "log"))
    spec = load(
        "  defaults: {run: 'swarm_agents:stage'}\n"
        "  stages:\n"
        "    - {stage: 1, agent: ops/a, task: first, output: changes}\n"
        "    - {stage: 2, agent: ops/b, task: second, input: changes, output: report}\n"
        "    - {stage: 3, agent: ops/c, task: third, input: [changes, report]}",
        kind="progressive_refinement",
    )
    outcome = await run_swarm(spec, url=database_url)
    first = {"focus": "first", "inputs": {}, "by": "ops/a"}
    second = {"focus": "second", "inputs": {"changes": first}, "by": "ops/b"}
    third = {"focus": "third", "inputs": {"changes": first, "report": second}, "by": "ops/c"}
    assert outcome.status is SwarmStatus.COMPLETED
    assert outcome.result == third
    again = await run_swarm(spec, url=database_url, from_stage=3)
    assert again.session_id != outcome.session_id
    assert again.result == third
    once_more = await run_swarm(spec, url=database_url, from_stage="2", close_session=False)
    assert once_more.result == third
    assert (tmp_path / "log").read_text().split() == ["first", "second", "third", "third", "second", "third"]
    # The session is still open: the same stages run again there, in a new round.
    assert (await board.session("inc")).record.status == "active"
    fourth = await run_swarm(spec, url=database_url, from_stage=3)
    assert fourth.session_id == once_more.session_id
    assert fourth.result == third
    assert len(await (await board.session(fourth.session_id)).tasks.list(type="refine")) == 3


async def test_a_stage_needs_the_results_of_earlier_ones(load: Load, database_url: str) -> None:
    spec = load(
        "  defaults: {run: 'swarm_agents:stage'}\n"
        "  stages:\n"
        "    - {stage: 1, agent: ops/a, task: first, output: changes}\n"
        "    - {stage: 2, agent: ops/b, task: second, input: changes}",
        kind="progressive_refinement",
    )
    with pytest.raises(ConfigurationError, match="needs `changes`"):
        await run_swarm(spec, url=database_url, from_stage=2)
    with pytest.raises(ConfigurationError, match="no stage '7'"):
        await run_swarm(spec, url=database_url, from_stage=7)
    with pytest.raises(NotFound, match="no open session"):
        await run_swarm(spec, url=database_url, resume=True)


async def test_an_open_session_is_not_started_twice(load: Load, database_url: str, board: Blackboard) -> None:
    await board.start("inc")
    with pytest.raises(AlreadyExists):
        await run_swarm(load(agents(a="report")), url=database_url, resume=False)
    joined = await run_swarm(load(agents(a="report")), url=database_url)
    assert joined.result["ops/a"]["by"] == "ops/a"


async def test_two_runners_do_not_share_a_session(load: Load, database_url: str, board: Blackboard) -> None:
    other = await (await board.start("inc")).join("swarm/runner")
    grant = await other.locks.acquire("swarm/runner")
    spec = load(agents(a="report"), rest=FAST)
    with pytest.raises(Conflict, match="being run by another process"):
        await run_swarm(spec, url=database_url)
    run = await Run.start(database_url, spec)
    await run.until(2, kind="session")
    await other.locks.release("swarm/runner", grant.token)
    assert (await run.finish())["status"] == "completed"


async def test_a_signal_ends_the_wait_for_another_runner(load: Load, database_url: str, board: Blackboard) -> None:
    other = await (await board.start("inc")).join("swarm/runner")
    await other.locks.acquire("swarm/runner")
    run = await Run.start(database_url, load(agents(a="report")))
    await run.until(2, kind="session")
    os.kill(run.process.pid, signal.SIGTERM)
    assert await run.process.wait() == 1
    assert run.pids == []


async def test_a_session_that_somebody_else_closes_ends_the_swarm(
    load: Load, database_url: str, board: Blackboard
) -> None:
    closing: list[asyncio.Task[Any]] = []

    async def close() -> None:
        await (await board.session("inc")).close(outcome="enough")

    watch = Watch(task_progressed=lambda _: closing.append(asyncio.create_task(close())))
    outcome = await run_swarm(load(agents(a="hang")), url=database_url, on_update=watch)
    assert outcome.status is SwarmStatus.FAILED
    assert (await board.session("inc")).record.outcome == "enough"
    assert outcome.agents[0].exits == (0,)


async def test_a_display_that_fails_stops_nothing(load: Load, database_url: str) -> None:
    async def broken(update: Update) -> None:
        raise RuntimeError(update.message)

    assert (await run_swarm(load(agents(a="report")), url=database_url, on_update=broken)).status == "completed"


async def test_a_function_that_is_not_async_gets_the_blocking_twin(load: Load, database_url: str) -> None:
    outcome = await run_swarm(load(agents(a="blocking")), url=database_url)
    result = outcome.result["ops/a"]
    assert result.pop("type").startswith("blackboard.sync.")
    assert result == {"by": "ops/a", "answer": 42, "same_thread": True, "findings": 1}


# ------------------------------------------------------------------------------------------------------------- death


async def test_the_task_of_a_killed_agent_is_finished_by_another(load: Load, database_url: str) -> None:
    watch = Watch(task_progressed=kill)
    outcome = await run_swarm(
        load(agents(a="hang_once", b="report"), rest=f"{FAST}\n{SYNTHESIS}"), url=database_url, on_update=watch
    )
    assert outcome.status is SwarmStatus.COMPLETED
    assert by_name(outcome)["ops/a"].result == {"by": "ops/b", "attempt": 2}
    assert outcome.agents[0].exits == (-9,)
    assert "task.lapsed" in watch.types()


async def test_a_killed_agent_starts_again_as_the_file_says(load: Load, database_url: str) -> None:
    outcome = await run_swarm(
        load(agents(a="hang_once restart: 1"), rest=FAST), url=database_url, on_update=Watch(task_progressed=kill)
    )
    assert outcome.result["ops/a"] == {"by": "ops/a", "attempt": 2}
    assert outcome.agents[0].starts == 2
    assert outcome.agents[0].exits == (-9, 0)


async def test_a_swarm_with_nobody_left_ends(load: Load, database_url: str, board: Blackboard) -> None:
    outcome = await run_swarm(
        load(agents(a="hang"), rest=FAST), url=database_url, on_update=Watch(task_progressed=kill)
    )
    assert outcome.status is SwarmStatus.FAILED
    assert "nobody is left" in outcome.problems[0]
    assert outcome.logs is not None
    assert "attempt 1" in outcome.agents[0].log_tail
    session = await board.session("inc")
    assert session.record.status == "failed"
    assert session.record.outcome["tasks"] == {"ops/a": "cancelled"}


async def test_an_agent_that_dies_before_it_begins_does_not_keep_its_task(load: Load, database_url: str) -> None:
    spec = load(agents(a="report env: {CRASH_AT_IMPORT: '1'}", b="report"), rest=FAST)
    outcome = await run_swarm(spec, url=database_url)
    assert outcome.status is SwarmStatus.COMPLETED
    assert by_name(outcome)["ops/a"].result["by"] == "ops/b"
    assert outcome.agents[0].exits == (3,)


async def test_what_is_not_there_ends_the_swarm_at_once(load: Load, database_url: str) -> None:
    spec = load("  agents:\n    - a: {focus: x, run: 'no_module:f'}\n    - b: {focus: x, command: [no-program]}")
    outcome = await run_swarm(spec, url=database_url)
    assert outcome.status is SwarmStatus.FAILED
    assert any("cannot start" in problem for problem in outcome.problems)
    assert 78 in {code for agent in outcome.agents for code in agent.exits}
    tails = "".join(agent.log_tail for agent in outcome.agents)
    assert "No module named 'no_module'" in tails or "there is no such program" in tails


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("asyncio:nothing", "no attribute 'nothing'"),
        ("asyncio:events", "is no function but module"),
        ("asyncio:sleep", "wants delay, which a swarm does not give"),
    ],
)
def test_what_is_no_function_for_a_swarm(reference: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        load_function(reference)


async def test_a_function_that_fails_is_tried_again_and_then_given_up(load: Load, database_url: str) -> None:
    outcome = await run_swarm(
        load(agents(a="fail attempts: 2", b="unstorable", c="report"), rest=SYNTHESIS), url=database_url
    )
    tasks = by_name(outcome)
    assert (tasks["ops/a"].status, tasks["ops/a"].attempts) == ("dead", 2)
    assert tasks["ops/a"].error["code"] == "LookupError"
    assert "raise LookupError" in tasks["ops/a"].error["traceback"]
    assert (tasks["ops/b"].status, tasks["ops/b"].attempts) == ("failed", 1)
    assert "NaN" in tasks["ops/b"].error["message"]
    assert outcome.status is SwarmStatus.COMPLETED
    assert outcome.result["missing"] == {"ops/a": "dead", "ops/b": "failed"}
    assert any("nothing about about a" in problem for problem in outcome.problems)


# ---------------------------------------------------------------------------------------------------------- time-out


async def test_when_the_time_is_up_the_synthesis_works_with_what_there_is(load: Load, database_url: str) -> None:
    watch = Watch()
    spec = load(agents(a="hang", b="report", c="until_cancelled"), rest=f"  coordination: {{timeout: 3s}}\n{SYNTHESIS}")
    outcome = await run_swarm(spec, url=database_url, on_update=watch)
    assert outcome.status is SwarmStatus.COMPLETED
    assert outcome.timed_out
    assert set(outcome.result["inputs"]) == {"ops/b"}
    assert outcome.result["missing"] == {"ops/a": "cancelled", "ops/c": "cancelled"}
    assert all(agent.exits == (0,) for agent in outcome.agents), outcome.agents
    assert len(outcome.agents) == 4
    assert UpdateKind.TIMED_OUT in {update.kind for update in watch.updates}


async def test_what_does_not_let_go_when_the_time_is_up_is_killed(load: Load, database_url: str) -> None:
    limits = "  coordination: {timeout: 2s, lease: 1s}"
    spec = load(agents(a="stuck_loop", b="hang_in_thread"), rest=f"{limits}\n{SYNTHESIS}")
    outcome = await run_swarm(spec, url=database_url, grace=timedelta(seconds=1))
    assert outcome.status is SwarmStatus.COMPLETED
    assert outcome.result["missing"] == {"ops/a": "cancelled", "ops/b": "cancelled"}
    assert outcome.agents[0].exits == (-9,)
    assert outcome.agents[1].exits[0] == 75  # it ended itself to get rid of the thread, and came back


async def test_an_attempt_over_its_own_time_is_tried_again(load: Load, database_url: str) -> None:
    spec = load(agents(a="hang_once timeout: 1s"))
    outcome = await run_swarm(spec, url=database_url)
    assert outcome.result["ops/a"]["attempt"] == 2
