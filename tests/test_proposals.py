"""Proposals and votes: opening, ballots, closing once, deadlines, and what raw SQL cannot do to them."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from blackboard.errors import (
    IdempotencyConflict,
    InvalidInput,
    InvalidTransition,
    NotFound,
    NotPermitted,
    PayloadTooLarge,
    SessionClosed,
)
from blackboard.ids import new_id

_FIVE_MINUTES = timedelta(minutes=5)


async def members(session: Any, count: int = 3, **options: Any) -> list[Any]:
    return [await session.join(f"ops/{name}", **options) for name in "abcdefgh"[:count]]


async def events(db: Any, session: Any, *types: str) -> list[tuple[str, str, dict[str, Any]]]:
    rows = await db.fetch(
        "SELECT type, actor, data FROM blackboard.events WHERE session_id = $1 AND type = ANY ($2) ORDER BY seq",
        session.id,
        list(types),
    )
    return [(row["type"], row["actor"], json.loads(row["data"])) for row in rows]


async def test_opening_fixes_the_electorate_and_writes_history(session: Any, db: Any) -> None:
    a, _ = await members(session, 2)
    await session.join("ops/watcher", role="observer")
    body = {"action": "rollback", "version": "v1.2.3"}
    proposal = await a.proposals.open("Roll back?", body)
    assert (proposal.status, proposal.rule, proposal.min_turnout) == ("open", "majority", 0.5)
    assert proposal.body == body
    assert proposal.deadline_at - proposal.created_at == _FIVE_MINUTES
    assert proposal.tally.outstanding == 2
    late = await session.join("ops/late")
    with pytest.raises(NotPermitted):
        await late.proposals.vote(proposal.id, "yes")
    details = await session.proposals.get(proposal.id)
    assert details.electors == {"ops/a": 1.0, "ops/b": 1.0}
    [(_, actor, data)] = await events(db, session, "proposal.opened")
    assert actor == "ops/a"
    assert data["electors"] == {"ops/a": 1, "ops/b": 1}
    assert (data["body"], data["rule"], data["status"]) == (body, "majority", "open")


async def test_defaults_depend_on_the_rule(session: Any) -> None:
    [a] = await members(session, 1)
    threshold = await a.proposals.open("t", rule="threshold")
    unanimous = await a.proposals.open("u", rule="unanimous", deadline=None)
    assert (threshold.threshold, threshold.min_turnout) == (0.7, 0.5)
    assert (unanimous.threshold, unanimous.min_turnout, unanimous.deadline_at) == (None, 1.0, None)
    assert (await a.proposals.open("v", rule="unanimous", min_turnout=0)).min_turnout == 0


async def test_the_source_example(session: Any, db: Any) -> None:
    validator, advisor, lead, _ = await members(session, 4)
    proposal = await validator.proposals.open("Should we rollback?", {"action": "rollback", "version": "v1.2.3"})
    await validator.proposals.vote(proposal.id, "yes", confidence=0.9, reason="Error rate 5x baseline")
    await advisor.proposals.vote(proposal.id, "yes", confidence=0.85, reason="Matches previous incident pattern")
    closed = await lead.proposals.vote(proposal.id, "abstain", reason="No security implications detected")
    assert closed.status == "accepted"
    wanted = {"decision": "rollback", "votes_for": 2, "votes_against": 0, "abstentions": 1}
    assert wanted.items() <= closed.result.items()
    assert (closed.result["outcome"], closed.result["reason"]) == ("accepted", "ballots")
    [(_, actor, data)] = await events(db, session, "proposal.accepted")
    assert actor == lead.id
    assert wanted.items() <= data.items()
    ballots = (await session.proposals.get(proposal.id)).ballots
    assert (ballots[0].agent_id, ballots[0].choice, ballots[0].confidence, ballots[0].reason) == (
        "ops/a",
        "yes",
        0.9,
        "Error rate 5x baseline",
    )
    assert [b.agent_id for b in await session.proposals.votes(proposal.id)] == ["ops/a", "ops/b", "ops/c"]


async def test_a_ballot_can_be_changed_until_the_close(session: Any, db: Any) -> None:
    a, b, c = await members(session)
    proposal = await a.proposals.open("?")
    await a.proposals.vote(proposal.id, "yes")
    changed = await a.proposals.vote(proposal.id, "no", confidence=0.4, reason="looked again")
    assert (changed.tally.votes_for, changed.tally.votes_against, changed.status) == (0, 1, "open")
    assert (await b.proposals.vote(proposal.id, "no")).status == "rejected"
    with pytest.raises(InvalidTransition) as caught:
        await c.proposals.vote(proposal.id, "yes")
    assert caught.value.status == "rejected"
    with pytest.raises(InvalidTransition):
        await a.proposals.vote(proposal.id, "yes")
    written = await events(db, session, "vote.cast", "vote.changed", "proposal.rejected")
    assert [(type_, actor) for type_, actor, _ in written] == [
        ("vote.cast", "ops/a"),
        ("vote.changed", "ops/a"),
        ("vote.cast", "ops/b"),
        ("proposal.rejected", "ops/b"),
    ]
    assert written[1][2] == {
        "agent_id": "ops/a",
        "choice": "no",
        "confidence": 0.4,
        "reason": "looked again",
        "revision": 2,
    }


async def test_the_same_ballot_again_changes_nothing(session: Any, db: Any) -> None:
    a, b = await members(session, 2)
    proposal = await a.proposals.open("?")
    await a.proposals.vote(proposal.id, "yes", reason="r")
    await a.proposals.vote(proposal.id, "yes", reason="r")
    await b.proposals.vote(proposal.id, True)
    again = await b.proposals.vote(proposal.id, "yes")
    assert again.status == "accepted"
    assert len(await events(db, session, "vote.cast", "vote.changed", "proposal.accepted")) == 3


async def test_a_key_keeps_an_old_call_from_undoing_a_newer_ballot(session: Any) -> None:
    a, _, _ = await members(session)
    proposal = await a.proposals.open("?")
    await a.proposals.vote(proposal.id, "yes", key="first")
    await a.proposals.vote(proposal.id, "abstain", key="second")
    assert (await a.proposals.vote(proposal.id, "yes", key="first")).tally.abstentions == 1
    with pytest.raises(IdempotencyConflict):
        await a.proposals.vote(proposal.id, "no", key="first")


async def test_the_same_id_returns_the_first_proposal(session: Any, db: Any) -> None:
    a, b = await members(session, 2)
    id_ = new_id()
    first = await a.proposals.open("?", {"n": 1}, id=id_, rule="threshold", electorate=["ops/b", "ops/a"])
    assert await a.proposals.open("?", {"n": 1}, id=id_, rule="threshold", electorate=["ops/a", "ops/b"]) == first
    for other in [
        {"body": {"n": 2}},
        {"threshold": 0.8},
        {"deadline": None},
        {"min_turnout": 0.9},
        {"electorate": None},
        {"weighted": True},
        {"at_deadline": "reject"},
    ]:
        options: dict[str, Any] = {"body": {"n": 1}, "rule": "threshold", "electorate": ["ops/a", "ops/b"], **other}
        with pytest.raises(IdempotencyConflict):
            await a.proposals.open("?", options.pop("body"), id=id_, **options)
    with pytest.raises(IdempotencyConflict):
        await b.proposals.open("?", {"n": 1}, id=id_, rule="threshold", electorate=["ops/a", "ops/b"])
    assert len(await events(db, session, "proposal.opened")) == 1


async def test_an_electorate_can_be_named(session: Any) -> None:
    a, b, c = await members(session)
    proposal = await a.proposals.open("?", electorate=[b.id, c.id, b.id])
    assert proposal.electorate == ("ops/b", "ops/c")
    with pytest.raises(NotPermitted):
        await a.proposals.vote(proposal.id, "yes")
    await b.proposals.vote(proposal.id, "yes")
    assert (await c.proposals.vote(proposal.id, "yes")).status == "accepted"


async def test_nobody_to_decide_is_refused(session: Any, db: Any) -> None:
    [a] = await members(session, 1, vote_weight=0)
    await session.join("ops/watcher", role="observer")
    for options in (
        {"electorate": []},
        {"electorate": ["ops/nobody"]},
        {"electorate": ["ops/watcher"]},
        {"weighted": True},
    ):
        with pytest.raises(InvalidInput) as caught:
            await a.proposals.open("?", **options)
        assert caught.value.field == "electorate"
    assert await session.proposals.list() == []
    assert await events(db, session, "proposal.opened") == []


async def test_weights_are_those_of_the_opening(session: Any, db: Any) -> None:
    heavy = await session.join("ops/heavy", vote_weight=3)
    light = await session.join("ops/light", vote_weight=1)
    lighter = await session.join("ops/lighter", vote_weight=0.5)
    proposal = await light.proposals.open("?", weighted=True)
    await session.join("ops/light", vote_weight=1000)
    tally = (await light.proposals.vote(proposal.id, "no")).tally
    assert (tally.weight_against, tally.weight_total) == (1, 4.5)
    await lighter.proposals.vote(proposal.id, "no")
    closed = await heavy.proposals.vote(proposal.id, "yes")
    assert closed.status == "accepted"
    assert (closed.result["weight_for"], closed.result["weight_against"]) == (3, 1.5)


async def test_who_left_votes_no_longer(session: Any, db: Any) -> None:
    a, b = await members(session, 2)
    proposal = await a.proposals.open("?")
    await db.execute("SELECT blackboard.leave_session($1, $2)", session.id, b.id)
    with pytest.raises(NotPermitted):
        await b.proposals.vote(proposal.id, "yes")
    with pytest.raises(NotPermitted):
        await b.proposals.open("mine")


@pytest.mark.parametrize(
    ("at_deadline", "choices", "status", "reason", "event"),
    [
        ("tally", ["yes", "yes"], "accepted", "deadline", "proposal.accepted"),
        ("tally", ["yes", "no"], "rejected", "deadline", "proposal.rejected"),
        ("tally", ["yes"], "rejected", "turnout", "proposal.rejected"),
        ("reject", ["yes", "yes"], "rejected", "deadline", "proposal.rejected"),
        ("escalate", ["yes", "yes"], "expired", "escalated", "proposal.escalated"),
    ],
)
async def test_a_deadline_is_applied_by_whoever_reads(
    session: Any, db: Any, clock: Any, at_deadline: str, choices: list[str], status: str, reason: str, event: str
) -> None:
    agents = await members(session, 4)
    proposal = await agents[0].proposals.open("?", at_deadline=at_deadline)
    for agent, choice in zip(agents, choices, strict=False):
        assert (await agent.proposals.vote(proposal.id, choice)).status == "open"
    await clock.advance(_FIVE_MINUTES)
    [closed] = await session.proposals.list()
    assert (closed.status, closed.result["reason"]) == (status, reason)
    [(_, actor, data)] = await events(db, session, event)
    assert (actor, data["votes_for"]) == ("blackboard", choices.count("yes"))
    assert (await session.proposals.get(proposal.id)).status == status


async def test_a_late_ballot_is_refused_and_the_deadline_applied(session: Any, db: Any, clock: Any) -> None:
    a, b, _ = await members(session)
    proposal = await a.proposals.open("?", at_deadline="reject")
    await a.proposals.vote(proposal.id, "yes")
    await clock.advance(_FIVE_MINUTES)
    with pytest.raises(InvalidTransition):
        await b.proposals.vote(proposal.id, "yes")
    assert await db.fetchval("SELECT status FROM blackboard.proposals WHERE id = $1", proposal.id) == "rejected"
    [(_, actor, data)] = await events(db, session, "proposal.rejected")
    assert (actor, data["votes_for"]) == ("blackboard", 1)


async def test_the_actor_is_restored_after_a_deadline_was_applied(session: Any, db: Any, clock: Any) -> None:
    a, _ = await members(session, 2)
    await a.proposals.open("?", at_deadline="reject")
    await clock.advance(_FIVE_MINUTES)
    async with db.transaction():
        await db.execute("SELECT blackboard.act_as('ops/b')")
        assert await db.fetchval("SELECT blackboard.close_due_proposals($1)", session.id) == 1
        assert await db.fetchval("SELECT blackboard.current_actor()") == "ops/b"
    assert await session.proposals.close_due() == 0


async def test_reads_in_a_read_only_transaction_leave_deadlines_alone(session: Any, db: Any, clock: Any) -> None:
    a, _ = await members(session, 2)
    await a.proposals.open("?", at_deadline="reject")
    await clock.advance(_FIVE_MINUTES)
    async with db.transaction(readonly=True):
        assert [
            r["status"] for r in await db.fetch("SELECT * FROM blackboard.list_proposals($1, NULL, 9)", session.id)
        ] == ["open"]


async def test_without_a_deadline_it_stays_open(session: Any, clock: Any) -> None:
    a, _, _ = await members(session)
    proposal = await a.proposals.open("?", deadline=None)
    await clock.advance(timedelta(days=400))
    assert (await session.proposals.get(proposal.id)).status == "open"


async def test_only_the_proposer_withdraws_and_only_while_open(session: Any, db: Any, clock: Any) -> None:
    a, b = await members(session, 2)
    proposal = await a.proposals.open("?")
    await b.proposals.vote(proposal.id, "yes")
    with pytest.raises(NotPermitted):
        await b.proposals.withdraw(proposal.id)
    assert (await a.proposals.withdraw(proposal.id)).status == "withdrawn"
    assert (await a.proposals.withdraw(proposal.id)).status == "withdrawn"
    [(_, actor, data)] = await events(db, session, "proposal.withdrawn")
    assert (actor, data["decision"], data["votes_for"]) == ("ops/a", "withdrawn", 1)
    with pytest.raises(InvalidTransition):
        await b.proposals.vote(proposal.id, "no")
    due = await a.proposals.open("due", at_deadline="escalate")
    await clock.advance(_FIVE_MINUTES)
    with pytest.raises(InvalidTransition):
        await a.proposals.withdraw(due.id)
    assert (await session.proposals.get(due.id)).status == "expired"


async def test_list_by_status_is_newest_first(session: Any) -> None:
    [a] = await members(session, 1)
    first, second = await a.proposals.open("1"), await a.proposals.open("2")
    await a.proposals.vote(first.id, "yes")
    assert [p.id for p in await session.proposals.list()] == [second.id, first.id]
    assert [p.id for p in await session.proposals.list(status="accepted")] == [first.id]
    assert [p.id for p in await session.proposals.list(limit=1)] == [second.id]
    with pytest.raises(InvalidInput):
        await session.proposals.list(status="undecided")


async def test_unknown_ids_and_bad_values_are_refused(session: Any) -> None:
    [a] = await members(session, 1)
    proposal = await a.proposals.open("?")
    for call in (a.proposals.get, a.proposals.tally, a.proposals.withdraw, lambda id_: a.proposals.vote(id_, "yes")):
        with pytest.raises(NotFound):
            await call(new_id())
    assert await a.proposals.votes(new_id()) == []
    for field, options in {
        "title": {"title": ""},
        "rule": {"rule": "loudest"},
        "at_deadline": {"at_deadline": "shrug"},
        "threshold": {"rule": "threshold", "threshold": 1.5},
        "min_turnout": {"min_turnout": float("nan")},
        "deadline": {"deadline": timedelta(0)},
        "body": {"body": float("nan")},
    }.items():
        with pytest.raises(InvalidInput) as caught:
            await a.proposals.open(**{"title": "?", **options})
        assert caught.value.field == field
    with pytest.raises(InvalidInput, match="threshold"):
        await a.proposals.open("?", threshold=0.5)
    with pytest.raises(PayloadTooLarge):
        await a.proposals.open("?", "x" * 2_000_000)
    for field, options in {
        "choice": {"choice": "maybe"},
        "confidence": {"choice": "yes", "confidence": float("nan")},
        "reason": {"choice": "yes", "reason": "a\0b"},
    }.items():
        with pytest.raises(InvalidInput) as caught:
            await a.proposals.vote(proposal.id, **options)
        assert caught.value.field == field
    with pytest.raises(InvalidInput):
        await session.proposals.open("nobody asks")
    assert (await a.proposals.tally(proposal.id)).outstanding == 1


async def test_a_closed_session_takes_nothing(session: Any, db: Any) -> None:
    a, b = await members(session, 2)
    proposal = await a.proposals.open("?")
    await a.proposals.vote(proposal.id, "yes")
    await db.execute("SELECT blackboard.end_decisions($1)", session.id)
    await db.execute(
        "UPDATE blackboard.sessions SET status = 'completed', closed_at = blackboard.now() WHERE id = $1", session.id
    )
    found = await session.proposals.get(proposal.id)
    assert (found.status, found.result["reason"]) == ("expired", "closed")
    assert len(await events(db, session, "proposal.expired")) == 1
    with pytest.raises(SessionClosed):
        await b.proposals.vote(proposal.id, "yes")
    with pytest.raises(SessionClosed):
        await a.proposals.open("again")
    assert (await a.proposals.vote(proposal.id, "yes")).status == "expired"  # a repetition
