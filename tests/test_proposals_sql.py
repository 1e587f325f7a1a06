"""Proposals and votes written by plain SQL: the same rules, the same history."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import pytest

from blackboard.ids import new_id
from blackboard.sqlstates import CONSTRAINTS


async def members(session: Any, count: int = 3, **options: Any) -> list[Any]:
    return [await session.join(f"ops/{name}", **options) for name in "abcdefgh"[:count]]


async def events(db: Any, session: Any, *types: str) -> list[tuple[str, str, dict[str, Any]]]:
    rows = await db.fetch(
        "SELECT type, actor, data FROM blackboard.events WHERE session_id = $1 AND type = ANY ($2) ORDER BY seq",
        session.id,
        list(types),
    )
    return [(row["type"], row["actor"], json.loads(row["data"])) for row in rows]


async def refused(db: Any, sql: str, *arguments: Any) -> asyncpg.PostgresError:
    with pytest.raises(asyncpg.PostgresError) as caught:
        await db.execute(sql, *arguments)
    return caught.value


async def test_raw_sql_opens_votes_and_closes_with_the_same_rules(session: Any, db: Any) -> None:
    await members(session, 2)
    id_ = await db.fetchval(
        "INSERT INTO blackboard.proposals (session_id, agent_id, title) VALUES ($1, 'ops/a', 'raw') RETURNING id",
        session.id,
    )
    await db.execute(
        "INSERT INTO blackboard.votes (session_id, proposal_id, agent_id, choice) "
        "SELECT $1, $2, agent_id, 'yes' FROM blackboard.proposal_electors WHERE session_id = $1 AND proposal_id = $2",
        session.id,
        id_,
    )
    found = await session.proposals.get(id_)
    assert (found.status, found.result["votes_for"]) == ("accepted", 2)
    actor = await db.fetchval("SELECT session_user")
    assert [
        (t, who) for t, who, _ in await events(db, session, "proposal.opened", "vote.cast", "proposal.accepted")
    ] == [
        ("proposal.opened", actor),
        ("vote.cast", actor),
        ("vote.cast", actor),
        ("proposal.accepted", actor),
    ]


async def test_raw_sql_changes_a_ballot_with_history(session: Any, db: Any) -> None:
    a, b, _ = await members(session)
    proposal = await a.proposals.open("?")
    await b.proposals.vote(proposal.id, "yes")
    await db.execute("UPDATE blackboard.votes SET choice = 'no' WHERE session_id = $1", session.id)
    [(_, _, data)] = await events(db, session, "vote.changed")
    assert (data["choice"], data["revision"]) == ("no", 2)


async def test_raw_sql_cannot_decide_a_vote(session: Any, db: Any) -> None:
    a, b, c = await members(session)
    proposal = await a.proposals.open("?", rule="unanimous")
    await a.proposals.vote(proposal.id, "yes")
    key = (session.id, proposal.id)
    where = "WHERE session_id = $1 AND id = $2"
    of_it = "WHERE session_id = $1 AND proposal_id = $2"
    into_votes = (
        "INSERT INTO blackboard.votes (session_id, proposal_id, agent_id, choice) VALUES ($1, $2, 'ops/zz', 'yes')"
    )
    wanted = {
        f"UPDATE blackboard.proposals SET status = 'accepted' {where}": "BB003",
        f"UPDATE blackboard.proposals SET status = 'rejected' {where}": "BB003",
        f"UPDATE blackboard.proposals SET title = 'another' {where}": "BB005",
        f"UPDATE blackboard.proposals SET electorate = '{{ops/a}}' {where}": "BB005",
        f"UPDATE blackboard.proposals SET deadline_at = blackboard.now() {where}": "BB005",
        f"UPDATE blackboard.proposal_electors SET weight = 9 {of_it}": "BB005",
        f"DELETE FROM blackboard.proposal_electors {of_it}": "BB005",
        "INSERT INTO blackboard.proposal_electors VALUES ($1, $2, 'ops/zz', 1)": "BB005",
        f"DELETE FROM blackboard.votes {of_it}": "BB005",
        f"UPDATE blackboard.votes SET agent_id = 'ops/b' {of_it}": "BB005",
        into_votes: "BB005",
    }
    for sql, code in wanted.items():
        assert (await refused(db, sql, *key)).sqlstate == code, sql
    for agent in (b, c):
        await agent.proposals.vote(proposal.id, "yes")
    for change in ("status = 'open'", "status = 'withdrawn'", "result = '{}'", "decided_at = now()"):
        assert (await refused(db, f"UPDATE blackboard.proposals SET {change} {where}", *key)).sqlstate == "BB003"
    assert (await refused(db, f"UPDATE blackboard.votes SET choice = 'no' {of_it}", *key)).sqlstate == "BB003"
    for table in ("proposals", "votes", "proposal_electors"):
        assert (await refused(db, f"TRUNCATE blackboard.{table} CASCADE")).sqlstate == "BB005"


async def test_raw_sql_may_expire_or_withdraw(session: Any, db: Any) -> None:
    a, _ = await members(session, 2)
    one, two = await a.proposals.open("1"), await a.proposals.open("2")
    await db.execute("UPDATE blackboard.proposals SET status = 'expired' WHERE id = $1", one.id)
    await db.execute("UPDATE blackboard.proposals SET status = 'withdrawn' WHERE id = $1", two.id)
    assert [p.status for p in await session.proposals.list()] == ["withdrawn", "expired"]
    assert len(await events(db, session, "proposal.expired", "proposal.withdrawn")) == 2


async def test_a_deleted_proposal_leaves_its_last_state(session: Any, db: Any) -> None:
    a, _ = await members(session, 2)
    proposal = await a.proposals.open("?")
    await a.proposals.vote(proposal.id, "yes")
    await db.execute("DELETE FROM blackboard.proposals WHERE session_id = $1 AND id = $2", session.id, proposal.id)
    written = await events(db, session, "proposal.deleted", "vote.deleted")
    assert {type_ for type_, _, _ in written} == {"proposal.deleted", "vote.deleted"}
    assert await db.fetchval("SELECT count(*) FROM blackboard.votes WHERE session_id = $1", session.id) == 0


@pytest.mark.parametrize(
    ("constraint", "columns"),
    [
        ("proposals_title_length", {"title": "''"}),
        (
            "proposals_body_size",
            {"body": "to_jsonb((SELECT string_agg(md5(i::text), '') FROM generate_series(1, 60000) i))"},
        ),
        ("proposals_rule_known", {"rule": "'loudest'"}),
        ("proposals_threshold_iff_rule", {"threshold": "0.5"}),
        ("proposals_threshold_range", {"rule": "'threshold'", "threshold": "'NaN'"}),
        ("proposals_min_turnout_range", {"min_turnout": "'NaN'"}),
        ("proposals_at_deadline_known", {"at_deadline": "'shrug'"}),
        ("proposals_deadline_after_opening", {"deadline_at": "blackboard.now() - interval '1 hour'"}),
        ("proposals_decided_iff_closed", {"decided_at": "blackboard.now()"}),
        ("proposals_proposer_member", {"agent_id": "'ops/nobody'"}),
    ],
)
async def test_constraints_of_proposals(session: Any, db: Any, constraint: str, columns: dict[str, str]) -> None:
    await members(session, 1)
    values = {"session_id": f"'{session.id}'", "agent_id": "'ops/a'", "title": "'?'", **columns}
    error = await refused(
        db, f"INSERT INTO blackboard.proposals ({', '.join(values)}) VALUES ({', '.join(values.values())})"
    )
    assert error.constraint_name == constraint  # type: ignore[attr-defined]
    assert constraint in CONSTRAINTS


async def test_a_raw_proposal_starts_open_in_an_open_session(session: Any, db: Any) -> None:
    await members(session, 1)
    insert = "INSERT INTO blackboard.proposals (session_id, agent_id, title, status) VALUES ($1, 'ops/a', '?', $2)"
    assert (await refused(db, insert, session.id, "accepted")).sqlstate == "BB003"
    assert (await refused(db, insert, new_id(), "open")).sqlstate == "BB001"


@pytest.mark.parametrize(
    ("constraint", "columns"),
    [
        ("votes_choice_known", {"choice": "'maybe'"}),
        ("votes_confidence_range", {"confidence": "'NaN'"}),
        ("votes_reason_length", {"reason": "repeat('x', 4001)"}),
    ],
)
async def test_constraints_of_votes(session: Any, db: Any, constraint: str, columns: dict[str, str]) -> None:
    [a] = await members(session, 1)
    proposal = await a.proposals.open("?")
    values = {
        "session_id": f"'{session.id}'",
        "proposal_id": f"'{proposal.id}'",
        "agent_id": "'ops/a'",
        "choice": "'yes'",
        **columns,
    }
    error = await refused(
        db, f"INSERT INTO blackboard.votes ({', '.join(values)}) VALUES ({', '.join(values.values())})"
    )
    assert error.constraint_name == constraint  # type: ignore[attr-defined]
    assert constraint in CONSTRAINTS
    assert (await session.proposals.get(proposal.id)).status == "open"
