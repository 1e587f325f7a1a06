"""Plain SQL on findings and hypotheses: same history, same numbers; and what happens when two write at once."""

from __future__ import annotations

import asyncio
import json
import math
import random
from typing import Any

import asyncpg
import pytest

from blackboard.errors import BlackboardError
from blackboard.ids import new_id

REPORT = "SELECT * FROM blackboard.report_finding($1, $2, $3, 'metric', $4::jsonb)"
FINDING = "INSERT INTO blackboard.findings (session_id, agent_id, type, content{0}) VALUES ($1, 'a', 't', '0'{1})"
HYPOTHESIS = "INSERT INTO blackboard.hypotheses (session_id, agent_id, statement{0}) VALUES ($1, 'a', 's'{1})"
SET_FINDING = "UPDATE blackboard.findings SET {0} WHERE session_id = $1"
SET_HYPOTHESIS = "UPDATE blackboard.hypotheses SET {0} WHERE session_id = $1"
CORROBORATE = (
    "INSERT INTO blackboard.corroborations (session_id, finding_id, agent_id{0})"
    " SELECT session_id, id, 'b'{1} FROM blackboard.findings WHERE session_id = $1"
)
LINK = (
    "INSERT INTO blackboard.finding_links (session_id, finding_id, other_id{0})"
    " SELECT f.session_id, f.id, o.id{1} FROM blackboard.findings f, blackboard.findings o"
    " WHERE f.session_id = $1 AND o.session_id = $1 AND f.content = '1' AND o.content = '2'"
)
EVIDENCE = (
    "INSERT INTO blackboard.hypothesis_evidence (session_id, hypothesis_id, finding_id{0})"
    " SELECT h.session_id, h.id, f.id{1} FROM blackboard.hypotheses h, blackboard.findings f"
    " WHERE h.session_id = $1 AND f.session_id = $1 AND f.content = '1'"
)


@pytest.fixture
async def pair(session: Any) -> tuple[Any, Any]:
    return await session.join("ops/a"), await session.join("ops/b")


@pytest.fixture
async def raw(session: Any, db: Any) -> Any:
    """The session's id; there are findings 1, 2 and 3 in it and one hypothesis, written with plain SQL."""
    for content in "123":
        await db.execute(FINDING.format("", "").replace("'0'", f"'{content}'"), session.id)
    await db.execute(HYPOTHESIS.format("", ""), session.id)
    return session.id


async def test_plain_sql_gets_the_same_history_and_numbers(raw: Any, db: Any) -> None:
    await db.execute("SELECT blackboard.act_as('nobody')")
    await db.execute(EVIDENCE.format("", ""), raw)
    await db.execute(LINK.format("", ""), raw)
    await db.execute(CORROBORATE.format("", "") + " AND content = '1'", raw)
    await db.execute(
        "UPDATE blackboard.findings SET confidence = 0.8, content = '\"1\"' WHERE session_id = $1 AND content = '1'",
        raw,
    )
    row = await db.fetchrow("SELECT confidence, revision FROM blackboard.hypotheses WHERE session_id = $1", raw)
    # Trust of an agent that nobody registered is 0.5, and the finding is contradicted.
    odds = 0.5 * 0.5 * math.log(0.9 / 0.1)
    assert row["confidence"] == pytest.approx(1 / (1 + math.exp(-odds)))
    assert row["revision"] == 3
    await db.execute("DELETE FROM blackboard.finding_links WHERE session_id = $1", raw)
    await db.execute("DELETE FROM blackboard.corroborations WHERE session_id = $1", raw)
    await db.execute("DELETE FROM blackboard.hypothesis_evidence WHERE session_id = $1", raw)
    await db.execute("UPDATE blackboard.findings SET status = 'retracted' WHERE session_id = $1", raw)
    row = await db.fetchrow("SELECT confidence FROM blackboard.hypotheses WHERE session_id = $1", raw)
    assert row["confidence"] == pytest.approx(0.5)
    rows = await db.fetch("SELECT corroborations, trust FROM blackboard.findings WHERE session_id = $1", raw)
    assert {(row["corroborations"], row["trust"]) for row in rows} == {(0, 0.5)}
    await db.execute("DELETE FROM blackboard.hypotheses WHERE session_id = $1", raw)
    await db.execute("DELETE FROM blackboard.findings WHERE session_id = $1", raw)
    events = await db.fetch("SELECT type, actor, data FROM blackboard.events WHERE session_id = $1 ORDER BY seq", raw)
    assert [event["type"] for event in events] == [
        "session.started",
        *["finding.reported"] * 3,
        "hypothesis.proposed",
        "evidence.added",
        "hypothesis.revised",
        "finding.contradicted",
        "hypothesis.revised",
        "finding.corroborated",
        "finding.updated",
        "hypothesis.revised",
        "contradiction.deleted",
        "hypothesis.revised",
        "corroboration.deleted",
        "finding.updated",
        "evidence.deleted",
        "hypothesis.revised",
        *["finding.retracted"] * 3,
        "hypothesis.deleted",
        "assessment.deleted",
        *["finding.deleted"] * 3,
    ]
    assert {event["actor"] for event in events[1:]} == {await db.fetchval("SELECT session_user::text")}
    assert json.loads(events[10]["data"]) == {"confidence": 0.8, "content": "1", "content_was": 1}


async def test_an_untouched_row_writes_no_event(raw: Any, db: Any) -> None:
    count = "SELECT count(*) FROM blackboard.events WHERE session_id = $1"
    before = await db.fetchval(count, raw)
    await db.execute(SET_FINDING.format("type = type, trust = trust"), raw)
    await db.execute(SET_HYPOTHESIS.format("reason = reason"), raw)
    assert await db.fetchval(count, raw) == before


async def test_a_listener_hears_of_each_noun(raw: Any, db: Any, connect: Any) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    listener = await connect()
    await listener.add_listener("blackboard", lambda *args: heard.put_nowait(args[-1]))
    await db.execute(EVIDENCE.format("", ""), raw)
    assert await asyncio.wait_for(heard.get(), 10) == f"{raw} hypotheses"
    await db.execute(LINK.format("", ""), raw)
    assert {await asyncio.wait_for(heard.get(), 10) for _ in range(2)} == {f"{raw} findings", f"{raw} hypotheses"}


async def test_an_id_is_made_where_none_is_given(raw: Any, db: Any) -> None:
    row = await db.fetchrow("SELECT * FROM blackboard.report_finding($1, NULL, 'a', 't', '7')", raw)
    assert row["id"] is not None
    row = await db.fetchrow("SELECT * FROM blackboard.propose_hypothesis($1, NULL, 'a', 's')", raw)
    assert (row["prior"], row["confidence"]) == (0.5, 0.5)


async def test_crossing_successors_do_not_lock_each_other_out(session: Any, pair: Any) -> None:
    a, _ = pair
    one, two = await a.findings.report("one", type="t"), await a.findings.report("two", type="t")
    done = await asyncio.gather(
        a.findings.supersede(one.id, "two"), a.findings.supersede(two.id, "one"), return_exceptions=True
    )
    assert all(not isinstance(found, BaseException) for found in done)
    hidden = [await session.findings.get(one.id), await session.findings.get(two.id)]
    assert [finding.status for finding in hidden].count("active") <= 1
    assert len(await session.findings.list()) >= 1


@pytest.mark.fresh_database
async def test_the_newest_page_walks_its_index(db: Any, session: Any) -> None:
    await db.execute(
        """INSERT INTO blackboard.findings (session_id, agent_id, type, content, created_at, tags)
           SELECT $1, 'ops/' || n % 7, 't' || n % 300, to_jsonb(n), now() - n * interval '1 second',
                  CASE WHEN n % 500 = 0 THEN '{rare}'::text[] ELSE '{}' END
           FROM generate_series(1, 20000) n""",
        session.id,
    )
    await db.execute("ANALYZE blackboard.findings")
    page = "status = 'active' {} ORDER BY created_at DESC, id LIMIT 100"
    for condition, index in (
        ("", "findings_newest"),
        ("AND created_at <= now() - interval '1 hour'", "findings_newest"),
        ("AND type = 't7'", "findings_type"),
        ("AND tags @> '{rare}' AND tags <> '{}'", "findings_tags"),
    ):
        plan = await db.fetch(
            f"EXPLAIN SELECT * FROM blackboard.findings WHERE session_id = '{session.id}' AND {page.format(condition)}"
        )
        assert index in "\n".join(row[0] for row in plan)


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read", "serializable"])
async def test_two_agents_report_the_same_at_the_same_instant(
    session: Any, pair: Any, connect: Any, db: Any, blocked: Any, isolation: str
) -> None:
    one, other = await connect(), await connect()
    async with one.transaction():
        await one.fetchrow(REPORT, session.id, new_id(), "ops/a", '"spike"')
        transaction = other.transaction(isolation=isolation)
        await transaction.start()
        # The snapshot of the stricter levels is from before the other's commit.
        await other.fetchval("SELECT count(*) FROM blackboard.findings")
        second = asyncio.create_task(other.fetchrow(REPORT, session.id, new_id(), "ops/b", '"Spike"'))
        await blocked(other.get_server_pid())
    if isolation == "read_committed":
        row = await second
        await transaction.commit()
        assert row["corroborations"] == 1
    else:
        with pytest.raises(asyncpg.SerializationError):
            await second
        await transaction.rollback()
        await other.fetchrow(REPORT, session.id, new_id(), "ops/b", '"Spike"')
    assert await db.fetchval("SELECT count(*) FROM blackboard.findings") == 1
    assert await db.fetchval("SELECT array_agg(agent_id) FROM blackboard.corroborations") == ["ops/b"]
    assert await db.fetchval("SELECT corroborations FROM blackboard.findings") == 1


async def test_a_report_waits_for_a_retraction_and_then_stands_anew(
    session: Any, pair: Any, connect: Any, blocked: Any
) -> None:
    a, _ = pair
    old = await a.findings.report("spike", type="metric")
    one, other = await connect(), await connect()
    async with one.transaction():
        await one.execute("SELECT blackboard.retract_finding($1, $2, '', 'ops/a')", session.id, old.id)
        second = asyncio.create_task(other.fetchrow(REPORT, session.id, new_id(), "ops/b", '"spike"'))
        await blocked(other.get_server_pid())
    row = await second
    assert row["id"] != old.id
    assert (row["agent_id"], row["corroborations"]) == ("ops/b", 0)


@pytest.mark.parametrize(
    "verb", ["retract_finding($1, $2, '', 'ops/b')", "supersede_finding($1, $2, NULL, 'ops/b', '9')"]
)
async def test_evidence_and_the_end_of_a_contradiction_see_each_other(
    session: Any, pair: Any, connect: Any, blocked: Any, verb: str
) -> None:
    a, b = pair
    proposed = await a.hypotheses.propose("x")
    finding = await a.findings.report("up", type="t", confidence=0.5)
    against = await b.findings.report("down", type="t")
    await b.findings.contradict(finding.id, against.id)
    one, other = await connect(), await connect()
    async with one.transaction():
        await one.execute(
            "SELECT blackboard.add_evidence($1, $2, $3, true, 1, 'ops/a')", session.id, proposed.id, finding.id
        )
        waiting = asyncio.create_task(other.execute(f"SELECT blackboard.{verb}", session.id, against.id))
        await blocked(other.get_server_pid())
    await waiting
    assert (await session.hypotheses.get(proposed.id)).confidence == pytest.approx(0.75)


async def test_whatever_happens_at_once_the_numbers_are_right_in_the_end(session: Any, db: Any) -> None:
    agents = [await session.join(f"ops/{name}") for name in "abcdef"]
    hypotheses = [await agents[n].hypotheses.propose(f"hypothesis {n}", 0.2 + n / 5) for n in range(3)]
    findings = [await agents[n % 6].findings.report(f"finding {n}", type="t", confidence=n / 12) for n in range(12)]

    async def work(agent: Any, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(20):
            one, other = chance.sample(findings, 2)
            about = chance.choice(hypotheses)
            verb = chance.choice(["add", "add", "take", "contradict", "retract", "supersede", "assess", "report"])
            try:
                match verb:
                    case "add":
                        await agent.hypotheses.add_evidence(about.id, one.id, supports=chance.random() < 0.6)
                    case "take":
                        await agent.hypotheses.retract_evidence(about.id, one.id)
                    case "contradict":
                        await agent.findings.contradict(one.id, other.id)
                    case "retract":
                        await agent.findings.retract(one.id)
                    case "supersede":
                        await agent.findings.supersede(one.id, f"finding {chance.randrange(14)}", confidence=0.5)
                    case "assess":
                        await agent.hypotheses.assess(about.id, chance.random())
                    case _:
                        await agent.findings.report(f"finding {chance.randrange(14)}", type="t", confidence=0.7)
            except BlackboardError as error:
                # Refusals are part of the game; a failure without a name is not.
                if type(error) is BlackboardError:
                    raise

    await asyncio.gather(*(work(agent, seed) for seed, agent in enumerate(agents)))
    for row in await db.fetch(
        """SELECT h.confidence, blackboard.hypothesis_confidence(h.session_id, h.id, h.prior) AS computed
           FROM blackboard.hypotheses h WHERE session_id = $1""",
        session.id,
    ):
        assert row["confidence"] == pytest.approx(row["computed"], abs=1e-12)
    assert not await db.fetch(
        """SELECT id FROM blackboard.findings f WHERE session_id = $1 AND corroborations <>
           (SELECT count(*) FROM blackboard.corroborations c WHERE c.finding_id = f.id)""",
        session.id,
    )
