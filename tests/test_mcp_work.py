"""Tools that act: idempotency of every write, tasks, decisions, hypotheses, waiting."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from blackboard import Blackboard, Session
from blackboard.mcp.handlers import TOOLS
from blackboard.repository.tasks import Tasks

from .conftest import eventually
from .mcp_client import Speaker, speaking, text_of


@pytest.fixture
async def agent(board: Blackboard, session: Session) -> AsyncIterator[Speaker]:
    async with speaking(board, "ops/a", session.name) as speaker:
        yield speaker


@pytest.fixture
async def other(board: Blackboard, session: Session) -> AsyncIterator[Speaker]:
    async with speaking(board, "ops/b", session.name) as speaker:
        yield speaker


# --------------------------------------------------------------------------------------------------- idempotency


async def _events(session: Session) -> list[tuple[str, str]]:
    return [(event.type, str(event.subject_id)) for event in (await session.events.read(limit=10_000)).events]


async def test_every_write_repeated_with_its_key_returns_the_first_result(
    session: Session, agent: Speaker, other: Speaker
) -> None:
    await other("join_session")

    async def twice(speaker: Speaker, verb: str, /, key: str | None = "k", **arguments: Any) -> dict[str, Any]:
        first = await speaker(verb, **arguments, idempotency_key=key)
        before = await _events(session)
        assert await speaker(verb, **arguments, idempotency_key=key) == first
        assert await _events(session) == before, verb
        return first

    finding = await twice(agent, "post_finding", content="pool exhausted", type="pool", confidence=0.9)
    # The same key of another agent, or of another tool, is another key.
    foreign = await other("post_finding", content="another thing", type="pool", idempotency_key="k")
    assert foreign["finding_id"] != finding["finding_id"]
    text, error = await agent.refused("post_finding", content="changed", type="pool", idempotency_key="k")
    assert error["code"] == "idempotency_conflict"
    assert "new idempotency_key" in text

    better = {"content": "pool exhausted, 20 of 20", "type": "pool", "reason": "counted"}
    await twice(other, "post_finding", key="k2", **better, supersedes=foreign["finding_id"])
    foreign = await twice(
        other, "post_finding", key="k3", content="pool fine", type="pool", contradicts=[finding["finding_id"]]
    )
    first_task = await twice(agent, "add_task", type="investigate")
    await twice(agent, "add_task", key="k2", type="investigate")
    await twice(agent, "add_task", key="k3", type="investigate")
    claimed = await twice(agent, "claim_task")
    assert claimed["task"]["id"] == first_task["task_id"]
    held = {"task_id": claimed["task"]["id"], "token": claimed["token"]}
    await twice(agent, "progress_task", **held, progress=0.5)
    await twice(agent, "complete_task", **held, result=1)
    # Also after the task is over, the claim's key gets no second task.
    assert (await agent("claim_task", idempotency_key="k"))["token"] == claimed["token"]
    claimed = await twice(agent, "claim_task", key="k2")
    held = {"task_id": claimed["task"]["id"], "token": claimed["token"]}
    assert (await twice(agent, "fail_task", **held, error="no access"))["status"] == "scheduled"
    claimed = await twice(agent, "claim_task", key="k3")
    held = {"task_id": claimed["task"]["id"], "token": claimed["token"]}
    assert (await twice(agent, "release_task", **held))["status"] == "pending"

    proposed = await twice(agent, "propose_action", type="modify", target="checkout", parameters={"action": "x"})
    ballot = {"proposal_id": proposed["proposal_id"], "choice": "yes"}
    await twice(agent, "vote", **ballot)
    await twice(other, "vote", **ballot)
    started = await twice(agent, "start_action", action_id=proposed["action_id"])
    await twice(
        agent, "finish_action", action_id=proposed["action_id"], token=started["token"], succeeded=True, result="ok"
    )

    hypothesis = await twice(agent, "propose_hypothesis", statement="the pool leaks", confidence=0.6)
    about = {"hypothesis_id": hypothesis["hypothesis_id"]}
    await twice(other, "assess_hypothesis", **about, confidence=0.8)
    await twice(other, "add_evidence", **about, finding_id=finding["finding_id"])
    await twice(other, "validate_hypothesis", **about, result=True, evidence=[finding["finding_id"]])
    await twice(other, "retract_finding", finding_id=foreign["finding_id"], reason="wrong")


async def test_every_tool_that_writes_takes_a_key_and_without_one_each_call_is_new(agent: Speaker) -> None:
    for tool in TOOLS.values():
        assert ("idempotency_key" in tool.arguments.model_fields) == tool.writes, tool.verb
    one = await agent("add_task", type="investigate")
    two = await agent("add_task", type="investigate")
    assert one["task_id"] != two["task_id"]


async def test_two_concurrent_claims_with_one_key_get_one_task(session: Session, agent: Speaker) -> None:
    await agent("join_session")
    waiting = [asyncio.create_task(agent("claim_task", wait_seconds=20, idempotency_key="k")) for _ in range(2)]
    await session.tasks.add("investigate")
    await session.tasks.add("investigate")
    first, second = await asyncio.gather(*waiting)
    assert first["token"] == second["token"]
    assert (await session.tasks.count()) == {"running": 1, "pending": 1}


# --------------------------------------------------------------------------------------------- tasks, decisions


async def test_a_claimed_task_brings_the_results_it_depends_on(session: Session, agent: Speaker) -> None:
    first = await agent("add_task", type="collect")
    await agent("add_task", type="correlate", depends_on=[first["task_id"]], timeout_seconds=600)
    claimed = await agent("claim_task")
    await agent("complete_task", task_id=first["task_id"], token=claimed["token"], result={"changes": ["v1.2.3"]})
    second = await agent("claim_task")
    assert second["inputs"] == [
        {"task_id": first["task_id"], "type": "collect", "status": "completed", "result": {"changes": ["v1.2.3"]}}
    ]
    assert second["deadline_at"] is not None
    failed = await agent("fail_task", task_id=second["task"]["id"], token=second["token"], error="no", retry=False)
    assert failed["status"] == "failed"


async def test_a_big_task_is_cut_and_can_be_seen_whole(session: Session, agent: Speaker) -> None:
    first = await session.tasks.add("collect", {"lines": ["y" * 100] * 100})
    await session.tasks.add("correlate", {"lines": ["z" * 100] * 100}, depends_on=[first.id])
    collect = await agent("claim_task")
    await agent(
        "complete_task", task_id=collect["task"]["id"], token=collect["token"], result={"lines": ["w" * 100] * 100}
    )
    result = await agent.raw("claim_task", max_tokens=500)
    claimed = result.structured_content
    assert claimed["cut"]
    assert len(json.dumps(claimed)) < 500 * 4 + 1500
    assert len(text_of(result)) < 500 * 4 + 1500
    assert "Cut to fit" in text_of(result)
    whole = await agent("claim_task", task_id=claimed["task"]["id"], max_tokens=50_000)
    assert (whole["token"], whole["cut"]) == (claimed["token"], False)
    assert whole["task"]["parameters"] == {"lines": ["z" * 100] * 100}
    assert whole["inputs"][0]["result"] == {"lines": ["w" * 100] * 100}


async def test_no_task_is_an_answer_and_says_what_there_is(session: Session, agent: Speaker) -> None:
    task = await session.tasks.add("analyze", capability="metrics")
    text = await agent.text("claim_task")
    assert "1 pending" in text
    assert "swarm_wait" in text
    _, error = await agent.refused("claim_task", task_id=str(uuid.uuid4()))
    assert error["code"] == "not_found"
    other = await session.join("ops/other", capabilities=["metrics"])
    assert await other.tasks.claim()
    assert 'with "ops/other"' in await agent.text("claim_task", task_id=str(task.id))
    await session.pause()
    assert "paused" in await agent.text("claim_task")


async def test_a_lost_task_says_so_and_keeps_the_result(session: Session, agent: Speaker) -> None:
    await session.tasks.add("investigate")
    claimed = await agent("claim_task")
    held = {"task_id": claimed["task"]["id"], "token": claimed["token"]}
    await agent("release_task", **held)
    text, error = await agent.refused("complete_task", **held, result="late")
    assert error["code"] == "lease_lost"
    assert "Stop this work" in text
    assert [one.result for one in await session.tasks.late_results(held["task_id"])] == ["late"]
    _, error = await agent.refused("fail_task", **held, error="late")
    assert error["code"] == "lease_lost"
    text, error = await agent.refused("complete_task", task_id=held["task_id"], token="my token")
    assert (error["code"], error["details"]["field"]) == ("invalid_input", "token")
    _, error = await agent.refused("complete_task", task_id=str(uuid.uuid4()), token=held["token"])
    assert error["code"] == "not_found"


async def test_a_task_that_is_to_stop_tells_its_holder(session: Session, agent: Speaker) -> None:
    task = await session.tasks.add("investigate")
    claimed = await agent("claim_task")
    await session.tasks.cancel(task.id, "not needed")
    text = await agent.text("progress_task", task_id=str(task.id), token=claimed["token"], progress=1)
    assert "Somebody asked to stop" in text


async def test_propose_action_says_who_must_decide(session: Session, agent: Speaker, other: Speaker) -> None:
    await other("join_session")
    await agent("join_session")
    voted = await agent(
        "propose_action", type="modify", target="checkout", rule="threshold", threshold=0.6, deadline_seconds=60
    )
    assert sorted(voted["must_vote"]) == ["ops/a", "ops/b"]
    assert (voted["human_must_approve"], voted["rule"]) == (False, "threshold")
    text = await agent.text("propose_action", type="modify", target="db", approval="human")
    assert "A human must approve it: `blackboard action approve" in text
    both = await agent("propose_action", type="modify", target="x", approval="both", electorate=["ops/b"])
    assert (both["must_vote"], both["human_must_approve"]) == (["ops/b"], True)
    escalated = await agent("propose_action", type="escalate", target="on-call")
    assert (escalated["proposal_id"], escalated["human_must_approve"]) == (None, True)
    free = await agent("propose_action", type="notify", target="chat", requires_approval=False)
    assert (free["status"], free["must_vote"]) == ("approved", [])
    _, error = await agent.refused("start_action", action_id=voted["action_id"])
    assert error["code"] == "invalid_transition"
    _, error = await other.refused("vote", proposal_id=str(uuid.uuid4()), choice="yes")
    assert error["code"] == "not_found"
    _, error = await agent.refused("vote", proposal_id=both["proposal_id"], choice="no")
    assert error["code"] == "not_permitted"


async def test_a_ballot_can_be_a_boolean_and_be_changed(agent: Speaker, other: Speaker) -> None:
    await other("join_session")
    await agent("join_session")
    proposed = await agent("propose_action", type="modify", target="checkout", rule="unanimous")
    first = await agent("vote", proposal_id=proposed["proposal_id"], choice=True, confidence=1, reason="sure")
    assert (first["your_vote"], first["closed"]) == ("yes", False)
    changed = await agent("vote", proposal_id=proposed["proposal_id"], choice="abstain")
    assert (changed["your_vote"], changed["proposal"]["tally"]["abstentions"]) == ("abstain", 1)
    last = await other("vote", proposal_id=proposed["proposal_id"], choice="no")
    assert (last["closed"], last["proposal"]["status"]) == (True, "rejected")
    assert last["actions"] == {proposed["action_id"]: "rejected"}


async def test_hypotheses_compete(session: Session, agent: Speaker, other: Speaker) -> None:
    pool = await agent("propose_hypothesis", statement="the pool leaks", confidence=0.5)
    finding = await agent("post_finding", content="connections only grow", type="pool", confidence=0.9)
    moved = await other("add_evidence", hypothesis_id=pool["hypothesis_id"], finding_id=finding["finding_id"])
    assert moved["confidence"] > 0.5
    _text, error = await agent.refused(
        "validate_hypothesis", hypothesis_id=pool["hypothesis_id"], result=True, evidence=[finding["finding_id"]]
    )
    assert error["code"] == "not_permitted"
    verdict = await other(
        "validate_hypothesis", hypothesis_id=pool["hypothesis_id"], result=True, evidence=[finding["finding_id"]]
    )
    assert verdict["status"] == "validated"


async def test_wait_hears_only_others_unless_asked(session: Session, agent: Speaker, other: Speaker) -> None:
    await other("join_session")
    start = (await agent("join_session"))["cursor"]
    await agent("post_finding", content="mine", type="note")
    silent = await agent("wait", cursor=start, topics=["finding.*"], timeout_seconds=0)
    assert silent["happened"] is False
    heard = await agent("wait", cursor=start, topics=["agent.finding.reported"], timeout_seconds=0, include_own=True)
    assert [(one["type"], one["actor"]) for one in heard["events"]] == [("finding.reported", "ops/a")]
    waiting = asyncio.create_task(agent("wait", cursor=silent["cursor"], timeout_seconds=20))
    await other("add_task", type="investigate")
    assert [one["type"] for one in (await waiting)["events"]] == ["task.created"]


async def test_many_events_come_in_pages(session: Session, agent: Speaker) -> None:
    boss = await session.join("ops/boss")
    start = (await agent("join_session"))["cursor"]
    for number in range(70):
        await boss.findings.report(f"{number}", type="note")
    first = await agent("wait", cursor=start, max_tokens=20_000)
    assert (len(first["events"]), first["more"]) == (50, True)
    second = await agent("wait", cursor=first["cursor"], max_tokens=20_000)
    assert (len(second["events"]), second["more"]) == (20, False)
    small = await agent("wait", cursor=start, max_tokens=300)
    assert small["omitted"] == 50 - len(small["events"])


async def test_a_task_granted_to_a_call_that_was_given_up_is_handed_back(
    session: Session, agent: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await agent("join_session")
    task = await session.tasks.add("investigate")
    granted = asyncio.Event()
    claim = Tasks.claim

    async def slow(self: Tasks, *arguments: Any, **named: Any) -> Any:
        await claim(self, *arguments, **named)
        granted.set()
        await asyncio.Event().wait()  # the answer never reaches the client

    monkeypatch.setattr(Tasks, "claim", slow)
    call = asyncio.create_task(agent("claim_task"))
    await granted.wait()
    assert (await session.tasks.get(task.id)).status.value == "running"
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call

    async def is_back() -> bool:
        now = await session.tasks.get(task.id)
        return (now.status.value, now.released) == ("pending", 1)

    await eventually(is_back)


async def test_leaving_a_session_with_tasks_in_hand_is_pointed_out(
    board: Blackboard, session: Session, agent: Speaker
) -> None:
    await session.tasks.add("investigate")
    held = await agent("claim_task")
    elsewhere = await board.start(f"other-{session.name}")
    assert f'You still hold tasks in "{session.name}"' in await agent.text("join_session", session=elsewhere.name)
    _, error = await agent.refused("complete_task", task_id=held["task"]["id"], token=held["token"])
    assert error["code"] == "not_found"
    await agent("join_session", session=session.name)
    await agent("complete_task", task_id=held["task"]["id"], token=held["token"])
