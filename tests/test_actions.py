"""Actions: who must approve them, who executes them, and that nothing else starts them."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import asyncpg
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
from blackboard.models.proposals import VoteOptions

_ROLLBACK = ("modify", "deployment/checkout", {"action": "rollback", "version": "v1.2.3"})


async def members(session: Any, count: int = 3) -> list[Any]:
    return [await session.join(f"ops/{name}") for name in "abcdefgh"[:count]]


async def events(db: Any, session: Any, prefix: str = "action") -> list[tuple[str, str, dict[str, Any]]]:
    rows = await db.fetch(
        "SELECT type, actor, data FROM blackboard.events WHERE session_id = $1 AND type LIKE $2 ORDER BY seq",
        session.id,
        f"{prefix}.%",
    )
    return [(row["type"].partition(".")[2], row["actor"], json.loads(row["data"])) for row in rows]


async def test_without_a_need_for_approval_it_starts_at_once(session: Any, db: Any) -> None:
    a, b = await members(session, 2)
    action = await a.actions.propose("query", "prometheus", {"query": "up"}, requires_approval=False)
    assert (action.status, action.approval, action.token) == ("approved", None, 0)
    started = await b.actions.start(action.id)
    assert (started.status, started.executor, started.token) == ("executing", "ops/b", 1)
    done = await b.actions.complete(action.id, started.token, {"up": 1})
    assert (done.status, done.result) == ("completed", {"up": 1})
    assert done.created_at <= done.decided_at <= done.started_at <= done.finished_at
    written = await events(db, session)
    assert [(type_, actor) for type_, actor, _ in written] == [
        ("proposed", "ops/a"),
        ("approved", "ops/a"),
        ("started", "ops/b"),
        ("completed", "ops/b"),
    ]
    assert (written[0][2]["requires_approval"], written[0][2]["proposal_id"]) == (False, None)
    assert written[1][2]["approved_through"] == "policy"
    assert (written[2][2]["executor"], written[2][2]["token"]) == ("ops/b", 1)
    assert written[3][2]["result"] == {"up": 1}


async def test_a_vote_approves_in_the_transaction_of_the_deciding_ballot(session: Any, db: Any, connect: Any) -> None:
    a, b, c = await members(session)
    action = await a.actions.propose(*_ROLLBACK, vote={"title": "Roll back?", "body": {"action": "rollback"}})
    assert (action.status, action.approval) == ("awaiting_approval", "vote")
    proposal = await session.proposals.get(action.proposal_id)
    assert (proposal.title, proposal.body, proposal.rule) == ("Roll back?", {"action": "rollback"}, "majority")
    await a.proposals.vote(proposal.id, "yes")
    with pytest.raises(InvalidTransition):
        await c.actions.start(action.id)
    voting = db.transaction()
    await voting.start()
    await db.execute("SELECT blackboard.vote($1, $2, $3, 'yes')", session.id, proposal.id, b.id)
    assert (await session.actions.get(action.id)).status == "awaiting_approval"
    await voting.commit()
    approved = await session.actions.get(action.id)
    assert (approved.status, approved.vote_accepted, approved.approved_by) == ("approved", True, None)
    written = await events(db, session)
    assert [type_ for type_, _, _ in written] == ["proposed", "awaiting_approval", "approved"]
    assert written[0][2]["proposal_id"] == str(proposal.id)
    assert (written[2][1], written[2][2]["approved_through"]) == ("ops/b", "vote")
    rows = await db.fetch(
        "SELECT tx FROM blackboard.events WHERE session_id = $1 ORDER BY seq DESC LIMIT 3", session.id
    )
    assert len({row["tx"] for row in rows}) == 1


@pytest.mark.parametrize("how", ["ballots", "withdrawal", "deadline"])
async def test_a_proposal_that_fails_rejects_its_action(session: Any, clock: Any, how: str) -> None:
    a, b, _ = await members(session)
    action = await a.actions.propose(*_ROLLBACK, vote=VoteOptions(at_deadline="reject"))
    if how == "ballots":
        await a.proposals.vote(action.proposal_id, "no")
        await b.proposals.vote(action.proposal_id, "no")
    elif how == "withdrawal":
        await a.proposals.withdraw(action.proposal_id)
    else:
        await clock.advance(timedelta(minutes=5))
    [rejected] = await session.actions.list()
    assert rejected.status == "rejected"
    assert rejected.approval_reason == f"The proposal was {'withdrawn' if how == 'withdrawal' else 'rejected'}."
    with pytest.raises(InvalidTransition):
        await b.actions.start(action.id)
    with pytest.raises(InvalidTransition):
        await session.actions.approve(action.id, by="operator")


async def test_an_escalated_vote_leaves_the_action_to_a_human(session: Any, db: Any, clock: Any) -> None:
    a, _, _ = await members(session)
    one = await a.actions.propose(*_ROLLBACK, vote={"at_deadline": "escalate"})
    both = await a.actions.propose(*_ROLLBACK, approval="both", vote={"at_deadline": "escalate"})
    await session.actions.approve(both.id, by="operator")
    await clock.advance(timedelta(minutes=5))
    [waiting] = await session.actions.list(status="awaiting_approval")
    assert (waiting.id, waiting.approval) == (one.id, "human")
    assert (await session.actions.get(both.id)).status == "approved"
    assert (await session.actions.approve(one.id, by="operator")).status == "approved"
    assert [t for t, _, _ in await events(db, session)].count("awaiting_approval") == 3


async def test_an_action_on_a_decided_proposal_is_decided_at_once(session: Any) -> None:
    a, b = await members(session, 2)
    yes, no = await a.proposals.open("yes?"), await a.proposals.open("no?")
    for agent in (a, b):
        await agent.proposals.vote(yes.id, "yes")
    await b.proposals.vote(no.id, "no")
    assert (await a.actions.propose(*_ROLLBACK, proposal_id=yes.id)).status == "approved"
    assert (await a.actions.propose(*_ROLLBACK, proposal_id=no.id)).status == "rejected"
    advised = await a.actions.propose(*_ROLLBACK, proposal_id=no.id, approval="human")
    assert advised.status == "awaiting_approval"


async def test_a_named_human_approves(session: Any, db: Any) -> None:
    a, _ = await members(session, 2)
    action = await a.actions.propose(*_ROLLBACK)
    assert (action.approval, action.status) == ("human", "awaiting_approval")
    approved = await session.actions.approve(action.id, by="demo-operator", reason="agreed")
    assert (approved.status, approved.approved_by, approved.approval_reason) == ("approved", "demo-operator", "agreed")
    assert await session.actions.approve(action.id, by="demo-operator") == approved
    with pytest.raises(InvalidTransition):
        await session.actions.approve(action.id, by="another")
    with pytest.raises(InvalidTransition):
        await session.actions.reject(action.id, by="another")
    type_, actor, data = (await events(db, session))[-1]
    assert (type_, actor, data["approved_by"], data["approved_through"]) == (
        "approved",
        "demo-operator",
        "demo-operator",
        "human",
    )


async def test_a_named_human_rejects_and_the_proposer_takes_back(session: Any, db: Any) -> None:
    a, _ = await members(session, 2)
    action = await a.actions.propose(*_ROLLBACK)
    rejected = await session.actions.reject(action.id, by="operator", reason="not now")
    assert (rejected.status, rejected.rejected_by, rejected.approval_reason) == ("rejected", "operator", "not now")
    assert (await session.actions.reject(action.id, by="operator")).status == "rejected"
    with pytest.raises(InvalidTransition):
        await session.actions.approve(action.id, by="operator")
    own = await a.actions.propose(*_ROLLBACK)
    assert (await a.actions.reject(own.id, by=a.id)).status == "rejected"
    assert (await events(db, session))[2][:2] == ("rejected", "operator")


async def test_nobody_approves_an_own_action(session: Any) -> None:
    a, b = await members(session, 2)
    action = await a.actions.propose(*_ROLLBACK)
    for handle, by in ((session, a.id), (a, "somebody"), (b, a.id)):
        with pytest.raises(NotPermitted):
            await handle.actions.approve(action.id, by=by)
    assert (await b.actions.approve(action.id, by="operator")).status == "approved"


async def test_a_human_stands_in_for_a_vote_that_is_on(session: Any) -> None:
    a, b = await members(session, 2)
    action = await a.actions.propose(*_ROLLBACK, vote={})
    assert (await session.actions.approve(action.id, by="operator")).status == "approved"
    assert (await session.proposals.get(action.proposal_id)).status == "open"
    assert (await b.proposals.vote(action.proposal_id, "no")).status == "rejected"
    assert (await session.actions.get(action.id)).status == "approved"


@pytest.mark.parametrize("human_first", [True, False])
async def test_both_means_both(session: Any, human_first: bool) -> None:
    a, b = await members(session, 2)
    action = await a.actions.propose(*_ROLLBACK, approval="both", vote={})
    if human_first:
        assert (await session.actions.approve(action.id, by="operator")).status == "awaiting_approval"
        with pytest.raises(InvalidTransition, match="waits for its vote"):
            await session.actions.approve(action.id, by="another")
    await a.proposals.vote(action.proposal_id, "yes")
    await b.proposals.vote(action.proposal_id, "yes")
    if not human_first:
        assert (await session.actions.get(action.id)).status == "awaiting_approval"
        await session.actions.approve(action.id, by="operator")
    found = await session.actions.get(action.id)
    assert (found.status, found.vote_accepted, found.approved_by) == ("approved", True, "operator")


async def test_both_is_rejected_by_either(session: Any) -> None:
    a, b = await members(session, 2)
    one = await a.actions.propose(*_ROLLBACK, approval="both", vote={})
    two = await a.actions.propose(*_ROLLBACK, approval="both", vote={})
    assert (await session.actions.reject(one.id, by="operator")).status == "rejected"
    await session.actions.approve(two.id, by="operator")
    await b.proposals.vote(two.proposal_id, "no")
    assert (await session.actions.get(two.id)).status == "rejected"


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read", "serializable"])
@pytest.mark.parametrize("human_first", [True, False])
async def test_human_and_vote_at_the_same_instant_approve(
    session: Any, connect: Any, blocked: Any, isolation: str, human_first: bool
) -> None:
    a, b = await members(session, 2)
    action = await a.actions.propose(*_ROLLBACK, approval="both", vote={"rule": "unanimous"})
    await a.proposals.vote(action.proposal_id, "yes")
    approve = ("SELECT blackboard.approve_action($1, $2, 'operator', '', NULL)", session.id, action.id)
    vote = ("SELECT blackboard.vote($1, $2, $3, 'yes')", session.id, action.proposal_id, b.id)
    one, two = (approve, vote) if human_first else (vote, approve)
    first, second = await connect(), await connect()
    leading, following = first.transaction(isolation=isolation), second.transaction(isolation=isolation)
    await leading.start()
    await following.start()
    await second.fetchval("SELECT count(*) FROM blackboard.actions")
    await first.execute(*one)
    waiting = asyncio.create_task(second.execute(*two))
    await blocked(second.get_server_pid())
    await leading.commit()
    if isolation == "read_committed":
        await waiting
        await following.commit()
    else:
        with pytest.raises(asyncpg.SerializationError):
            await waiting
        await following.rollback()
        await second.execute(*two)
    assert (await session.actions.get(action.id)).status == "approved"


async def test_an_action_that_names_a_proposal_while_it_is_decided(session: Any, connect: Any, blocked: Any) -> None:
    a, b = await members(session, 2)
    proposal = await a.proposals.open("?")
    await a.proposals.vote(proposal.id, "yes")
    first, second = await connect(), await connect()
    voting = first.transaction()
    await voting.start()
    await first.execute("SELECT blackboard.vote($1, $2, $3, 'yes')", session.id, proposal.id, b.id)
    waiting = asyncio.create_task(
        second.fetchval(
            "SELECT id FROM blackboard.propose_action($1, $2, $3, 'notify', 't', p_proposal_id => $4)",
            session.id,
            new_id(),
            a.id,
            proposal.id,
        )
    )
    await blocked(second.get_server_pid())
    await voting.commit()
    assert (await session.actions.get(await waiting)).status == "approved"


async def test_an_approval_blocks_nothing_else(session: Any) -> None:
    a, b = await members(session, 2)
    await a.actions.propose(*_ROLLBACK)
    other = await a.actions.propose("query", requires_approval=False)
    token = (await b.actions.start(other.id)).token
    assert (await b.actions.complete(other.id, token)).status == "completed"


async def test_what_is_escalated_awaits_a_human(session: Any) -> None:
    a, b = await members(session, 2)
    plain = await a.actions.propose("escalate", "on-call")
    advised = await a.actions.propose("escalate", "on-call", vote={})
    assert [x.approval for x in (plain, advised)] == ["human", "human"]
    for agent in (a, b):
        await agent.proposals.vote(advised.proposal_id, "yes")
    inbox = await session.actions.list(status="awaiting_approval")
    assert [x.id for x in inbox] == [advised.id, plain.id]
    for options in ({"requires_approval": False}, {"approval": "vote", "vote": {}}):
        with pytest.raises(InvalidInput):
            await a.actions.propose("escalate", "on-call", **options)
    assert len(await session.proposals.list()) == 1


async def test_the_same_id_returns_the_first_action(session: Any, db: Any) -> None:
    a, b = await members(session, 2)
    id_ = new_id()
    first = await a.actions.propose(*_ROLLBACK, vote={"rule": "unanimous"}, id=id_)
    assert await a.actions.propose(*_ROLLBACK, vote={"rule": "unanimous"}, id=id_) == first
    for call in (
        b.actions.propose(*_ROLLBACK, vote={"rule": "unanimous"}, id=id_),
        a.actions.propose(*_ROLLBACK, vote={"rule": "majority"}, id=id_),
        a.actions.propose(*_ROLLBACK, id=id_),
        a.actions.propose("notify", *_ROLLBACK[1:], vote={"rule": "unanimous"}, id=id_),
    ):
        with pytest.raises(IdempotencyConflict):
            await call
    plain = await a.actions.propose(*_ROLLBACK, id=new_id())
    with pytest.raises(IdempotencyConflict):
        await a.actions.propose(*_ROLLBACK, vote={}, id=plain.id)
    assert len(await session.proposals.list()) == 1
    assert [t for t, _, _ in await events(db, session)].count("proposed") == 2


async def test_unknown_ids_and_bad_values_are_refused(session: Any) -> None:
    [a] = await members(session, 1)
    nowhere = new_id()
    for call in (
        a.actions.get(nowhere),
        a.actions.approve(nowhere, by="x"),
        a.actions.reject(nowhere, by="x"),
        a.actions.start(nowhere),
        a.actions.complete(nowhere, 1),
        a.actions.roll_back(nowhere),
        a.actions.propose(*_ROLLBACK, proposal_id=nowhere),
    ):
        with pytest.raises(NotFound):
            await call
    for field, arguments in {
        "type": {"type": "destroy"},
        "target": {"type": "modify", "target": "x" * 501},
        "approval": {"type": "modify", "approval": "vote"},
        "vote": {"type": "modify", "vote": {"quorum": 3}},
        "rule": {"type": "modify", "vote": {"rule": "loudest"}},
        "parameters": {"type": "modify", "parameters": float("inf")},
    }.items():
        with pytest.raises(InvalidInput) as caught:
            await a.actions.propose(**arguments)
        assert caught.value.field == field
    with pytest.raises(InvalidInput):
        await a.actions.propose("modify", requires_approval=False, vote={})
    with pytest.raises(InvalidInput):
        await a.actions.propose("modify", requires_approval=False, approval="human")
    with pytest.raises(InvalidInput):
        await session.actions.list(status="done")
    with pytest.raises(PayloadTooLarge):
        await a.actions.propose("modify", parameters="x" * 2_000_000)
    with pytest.raises(InvalidInput):
        await session.actions.start(nowhere)
    assert await session.actions.list() == []
    assert await session.proposals.list() == []


async def test_the_end_of_a_session_ends_its_actions(session: Any, db: Any) -> None:
    a, _ = await members(session, 2)
    waiting = await a.actions.propose(*_ROLLBACK)
    voted = await a.actions.propose(*_ROLLBACK, vote={})
    running = await a.actions.propose("query", requires_approval=False)
    token = (await a.actions.start(running.id)).token
    await db.execute("SELECT blackboard.end_decisions($1)", session.id)
    await db.execute(
        "UPDATE blackboard.sessions SET status = 'failed', closed_at = blackboard.now() WHERE id = $1", session.id
    )
    found = {action.id: action.status for action in await session.actions.list()}
    assert found == {waiting.id: "rejected", voted.id: "rejected", running.id: "failed"}
    for call in (
        a.actions.propose(*_ROLLBACK),
        session.actions.approve(waiting.id, by="operator"),
        a.actions.complete(running.id, token),
    ):
        with pytest.raises(SessionClosed):
            await call
