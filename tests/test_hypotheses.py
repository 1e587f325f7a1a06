"""Hypotheses: competing, revised by evidence, decided by somebody else; and the races that must not lose evidence."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import asyncpg
import pytest

from blackboard.errors import (
    Conflict,
    IdempotencyConflict,
    InvalidInput,
    InvalidTransition,
    NotFound,
    NotPermitted,
    SessionClosed,
)
from blackboard.ids import new_id

ADD = "SELECT * FROM blackboard.add_evidence($1, $2, $3, $4, 1, $5)"


async def events(db: Any, session: Any, pattern: str) -> list[tuple[str, str, dict[str, Any]]]:
    rows = await db.fetch(
        "SELECT type, actor, data FROM blackboard.events WHERE session_id = $1 AND type ~ $2 ORDER BY seq",
        session.id,
        pattern,
    )
    return [(row["type"], row["actor"], json.loads(row["data"])) for row in rows]


def probability(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))


def strength(confidence: float) -> float:
    return math.log((0.5 + confidence / 2) / (0.5 - confidence / 2))


@pytest.fixture
async def pair(session: Any) -> tuple[Any, Any]:
    return await session.join("ops/a"), await session.join("ops/b")


async def test_a_proposal_is_read_back_and_written_to_history(session: Any, pair: Any, db: Any) -> None:
    a, b = pair
    key = new_id()
    proposed = await a.hypotheses.propose("the pool is exhausted", 0.7, id=key)
    assert await a.hypotheses.propose("the pool is exhausted", 0.7, id=key) == proposed
    assert await session.hypotheses.get(key) == proposed
    assert (proposed.prior, proposed.confidence, proposed.revision, proposed.status) == (0.7, 0.7, 0, "proposed")
    [assessment] = await session.hypotheses.assessments(key)
    assert (assessment.agent_id, assessment.confidence) == ("ops/a", 0.7)
    [(kind, actor, data)] = await events(db, session, "^hypothesis")
    assert (kind, actor) == ("hypothesis.proposed", "ops/a")
    assert (data["agent_id"], data["description"]) == ("ops/a", "the pool is exhausted")
    assert (data["confidence"], data["status"]) == (0.7, "proposed")
    for agent, text, confidence in ((a, "other", 0.7), (a, "the pool is exhausted", 0.6), (b, proposed.statement, 0.7)):
        with pytest.raises(IdempotencyConflict):
            await agent.hypotheses.propose(text, confidence, id=key)
    assert (await a.hypotheses.propose("sure", 1.0)).confidence == 0.99


async def test_assessments_compete_and_are_pooled_by_expertise(session: Any, db: Any) -> None:
    expert = await session.join("ops/expert", expertise={"hypothesis": 0.8})
    novice = await session.join("ops/novice", expertise={"hypothesis": 0.2})
    proposed = await novice.hypotheses.propose("a leak", 0.9)
    revised = await expert.hypotheses.assess(proposed.id, 0.3, "no growth in memory")
    pooled = 0.2 * math.log(9) + 0.8 * math.log(3 / 7)
    assert revised.confidence == pytest.approx(probability(pooled))
    assert revised.revision == 1
    assert (await expert.hypotheses.assess(proposed.id, 0.3, "no growth in memory")).revision == 1
    assert (await novice.hypotheses.assess(proposed.id, 0.3)).confidence == pytest.approx(0.3)
    found = await session.hypotheses.assessments(proposed.id)
    assert {one.agent_id: one.confidence for one in found} == {"ops/expert": 0.3, "ops/novice": 0.3}
    assessed, revision = (await events(db, session, "^hypothesis"))[1:3]
    assert assessed == (
        "hypothesis.assessed",
        "ops/expert",
        {"assessment": {"agent_id": "ops/expert", "confidence": 0.3, "reason": "no growth in memory"}},
    )
    assert revision[:2] == ("hypothesis.revised", "ops/expert")
    assert revision[2] == {
        "confidence": revised.confidence,
        "revision": 1,
        "because": {"event": "hypothesis.assessed", "agent_id": "ops/expert"},
    }


async def test_a_late_repetition_does_not_undo_a_newer_assessment(session: Any, pair: Any) -> None:
    _, b = pair
    proposed = await pair[0].hypotheses.propose("x")
    await b.hypotheses.assess(proposed.id, 0.2, key="first")
    newer = await b.hypotheses.assess(proposed.id, 0.9, key="second")
    assert await b.hypotheses.assess(proposed.id, 0.2, key="first") == newer
    with pytest.raises(IdempotencyConflict):
        await b.hypotheses.assess(proposed.id, 0.3, key="first")


async def test_evidence_moves_the_confidence_both_ways(session: Any, pair: Any, db: Any) -> None:
    a, b = pair
    proposed = await a.hypotheses.propose("the pool is exhausted")
    strong = await a.findings.report("timeouts", type="log", confidence=0.8)
    plain = await b.findings.report("pool looks fine", type="log")
    one = await a.hypotheses.add_evidence(proposed.id, strong)
    assert one.confidence == pytest.approx(probability(strength(0.8)))
    both = await b.hypotheses.add_evidence(proposed.id, plain.id, supports=False, weight=0.5)
    assert both.confidence == pytest.approx(probability(strength(0.8) - 0.5 * strength(0.5)))
    assert both.revision == 2
    assert await b.hypotheses.add_evidence(proposed.id, plain.id, supports=False, weight=0.5) == both
    with pytest.raises(Conflict, match="retract it first"):
        await a.hypotheses.add_evidence(proposed.id, plain.id)
    found = await session.hypotheses.evidence(proposed.id)
    assert [(link.finding.content, link.supports, link.agent_id) for link in found] == [
        ("timeouts", True, "ops/a"),
        ("pool looks fine", False, "ops/b"),
    ]
    assert [link.log_odds for link in found] == pytest.approx([strength(0.8), -0.5 * strength(0.5)])
    back = await b.hypotheses.retract_evidence(proposed.id, plain.id, "looked at the wrong pool")
    assert back.confidence == pytest.approx(one.confidence)
    assert await b.hypotheses.retract_evidence(proposed.id, plain.id) == back
    last = (await session.hypotheses.evidence(proposed.id))[-1]
    assert (last.log_odds, last.reason) == (0, "looked at the wrong pool")
    assert last.retracted_at is not None
    assert (await a.hypotheses.add_evidence(proposed.id, plain.id)).revision == 4
    found_events = await events(db, session, "^(evidence|hypothesis.revised)")
    assert [kind for kind, _, _ in found_events] == [
        kind for verb in ("added", "added", "retracted", "added") for kind in (f"evidence.{verb}", "hypothesis.revised")
    ]
    assert found_events[0][2]["finding_id"] == str(strong.id)
    assert found_events[1][2]["because"] == {"event": "evidence.added", "finding_ids": [str(strong.id)]}


async def test_a_hypothesis_falls_with_its_findings(session: Any, pair: Any, db: Any) -> None:
    a, b = pair
    proposed = await a.hypotheses.propose("x")
    one = await a.findings.report("one", type="t", confidence=0.8)
    two = await a.findings.report("two", type="t", confidence=0.6)
    for finding in (one, two):
        await a.hypotheses.add_evidence(proposed.id, finding)
    full = strength(0.8) + strength(0.6)

    async def confidence() -> float:
        return (await session.hypotheses.get(proposed.id)).confidence

    against = await b.findings.report("not one", type="t")
    await b.findings.contradict(one.id, against.id)
    assert await confidence() == pytest.approx(probability(full - strength(0.8) / 2))
    await b.findings.retract(against.id)
    assert await confidence() == pytest.approx(probability(full))
    await a.findings.supersede(two.id, "two, better", confidence=0.9)
    assert await confidence() == pytest.approx(probability(strength(0.8)))
    await a.findings.retract(one.id)
    assert await confidence() == pytest.approx(0.5)
    because = [data["because"]["event"] for _, _, data in await events(db, session, "hypothesis.revised")]
    assert because[2:] == ["finding.contradicted", "finding.retracted", "finding.superseded", "finding.retracted"]


async def test_trust_scales_and_ten_a_side_count(session: Any, pair: Any, db: Any) -> None:
    a, b = pair
    await db.execute("UPDATE blackboard.agents SET trust = 0.5 WHERE id = 'ops/b'")
    proposed = await a.hypotheses.propose("x", 0.05)
    doubted = await b.findings.report("by b", type="t", confidence=0.5)
    first = await a.hypotheses.add_evidence(proposed.id, doubted)
    assert first.confidence == pytest.approx(probability(math.log(0.05 / 0.95) + 0.5 * strength(0.5)))
    for number in range(11):
        finding = await a.findings.report(number, type="t", confidence=0.2)
        last = await a.hypotheses.add_evidence(proposed.id, finding)
    total = math.log(0.05 / 0.95) + 0.5 * strength(0.5) + 9 * strength(0.2)
    assert last.confidence == pytest.approx(probability(total))


async def test_a_verdict_is_given_once_by_another_on_evidence(session: Any, pair: Any, db: Any) -> None:
    a, b = pair
    proposed = await a.hypotheses.propose("x", 0.6)
    finding = await a.findings.report("seen", type="t")
    gone = await a.findings.report("mistaken", type="t")
    await a.findings.retract(gone.id)
    with pytest.raises(NotPermitted, match="author"):
        await a.hypotheses.validate(proposed.id, True, [finding])
    with pytest.raises(InvalidInput) as caught:
        await b.hypotheses.validate(proposed.id, True, [])
    assert caught.value.field == "evidence"
    with pytest.raises(InvalidInput):
        await b.hypotheses.validate(proposed.id, "false", [finding])
    with pytest.raises(Conflict, match="retracted"):
        await b.hypotheses.validate(proposed.id, True, [finding, gone])
    with pytest.raises(NotFound):
        await b.hypotheses.validate(proposed.id, True, [new_id()])
    judged = await b.hypotheses.validate(proposed.id, True, [finding, finding.id], "reproduced")
    assert (judged.status, judged.validated_by, judged.reason) == ("validated", "ops/b", "reproduced")
    assert judged.verdict_evidence == (finding.id,)
    assert judged.confidence == 0.6
    assert await b.hypotheses.validate(proposed.id, True, [finding]) == judged
    with pytest.raises(InvalidTransition) as refused:
        await b.hypotheses.validate(proposed.id, False, [finding])
    assert refused.value.status == "validated"
    for call in (
        a.hypotheses.add_evidence(proposed.id, finding),
        b.hypotheses.assess(proposed.id, 0.1),
        a.hypotheses.withdraw(proposed.id),
    ):
        with pytest.raises(InvalidTransition):
            await call
    [(kind, actor, data)] = await events(db, session, "hypothesis.validated")
    assert (kind, actor) == ("hypothesis.validated", "ops/b")
    assert (data["validated_by"], data["result"], data["evidence"]) == ("ops/b", True, [str(finding.id)])
    assert data["status"] == "validated"


async def test_refuting_is_a_verdict_too_and_a_human_may_judge(session: Any, pair: Any, db: Any) -> None:
    a, _ = pair
    proposed = await a.hypotheses.propose("x")
    finding = await a.findings.report("seen", type="t")
    refuted = await session.hypotheses.validate(proposed.id, False, [finding])
    assert (refuted.status, refuted.validated_by) == ("refuted", "tester")
    [(_, _, data)] = await events(db, session, "hypothesis.validated")
    assert (data["result"], data["status"]) == (False, "refuted")


async def test_a_session_may_allow_self_validation(board: Any) -> None:
    session = await board.start("alone", allow_self_validation=True)
    alone = await session.join("ops/a")
    proposed = await alone.hypotheses.propose("x")
    finding = await alone.findings.report("seen", type="t")
    assert (await alone.hypotheses.validate(proposed.id, True, [finding])).status == "validated"


async def test_only_the_author_withdraws(session: Any, pair: Any, db: Any) -> None:
    a, b = pair
    proposed = await a.hypotheses.propose("x")
    with pytest.raises(NotPermitted, match="ops/a"):
        await b.hypotheses.withdraw(proposed.id)
    withdrawn = await a.hypotheses.withdraw(proposed.id, "superseded by y")
    assert await a.hypotheses.withdraw(proposed.id) == withdrawn
    [(_, actor, data)] = await events(db, session, "hypothesis.withdrawn")
    assert (actor, data) == ("ops/a", {"status": "withdrawn", "reason": "superseded by y"})


async def test_the_list_is_in_order_of_confidence(session: Any, pair: Any) -> None:
    a, b = pair
    low, high, mid = [await a.hypotheses.propose(str(c), c) for c in (0.2, 0.9, 0.5)]
    assert [one.id for one in await session.hypotheses.list()] == [high.id, mid.id, low.id]
    assert [one.id for one in await session.hypotheses.list(min_confidence=0.5, limit=1)] == [high.id]
    finding = await a.findings.report("seen", type="t")
    await b.hypotheses.validate(mid.id, False, [finding])
    assert [one.id for one in await session.hypotheses.list(status="refuted")] == [mid.id]
    for wrong in ({"status": "true"}, {"limit": 0}, {"min_confidence": -1}):
        with pytest.raises(InvalidInput) as caught:
            await session.hypotheses.list(**wrong)
        assert caught.value.field == next(iter(wrong))


async def test_bad_input_unknown_ids_and_closed_sessions(session: Any, pair: Any) -> None:
    a, _ = pair
    finding = await a.findings.report("seen", type="t")
    proposed = await a.hypotheses.propose("x")
    for call, field in (
        (a.hypotheses.propose(""), "statement"),
        (a.hypotheses.propose("x" * 2001), "statement"),
        (a.hypotheses.propose("x", float("nan")), "confidence"),
        (a.hypotheses.assess(proposed.id, 1.5), "confidence"),
        (a.hypotheses.assess(proposed.id, 0.5, "x" * 4001), "reason"),
        (a.hypotheses.add_evidence(proposed.id, finding, weight=0), "weight"),
        (a.hypotheses.add_evidence(proposed.id, finding, weight=1.1), "weight"),
        (a.hypotheses.get("x"), "hypothesis_id"),
        (session.hypotheses.propose("x"), "agent_id"),
    ):
        with pytest.raises(InvalidInput) as caught:
            await call
        assert caught.value.field == field
    for call, noun in (
        (a.hypotheses.get(new_id()), "hypothesis"),
        (a.hypotheses.assess(new_id(), 0.5), "hypothesis"),
        (a.hypotheses.add_evidence(new_id(), finding), "hypothesis"),
        (a.hypotheses.add_evidence(proposed.id, new_id()), "finding"),
        (a.hypotheses.retract_evidence(new_id(), finding), "hypothesis"),
        (a.hypotheses.retract_evidence(proposed.id, finding), "evidence"),
        (a.hypotheses.withdraw(new_id()), "hypothesis"),
        (session.hypotheses.validate(new_id(), True, [finding]), "hypothesis"),
    ):
        with pytest.raises(NotFound) as missing:
            await call
        assert missing.value.noun == noun
    await session.close()
    for call in (
        a.hypotheses.propose("y"),
        a.hypotheses.assess(proposed.id, 0.4),
        a.hypotheses.add_evidence(proposed.id, finding),
        a.hypotheses.retract_evidence(proposed.id, finding),
        session.hypotheses.validate(proposed.id, True, [finding]),
        a.hypotheses.withdraw(proposed.id),
    ):
        with pytest.raises(SessionClosed):
            await call


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read", "serializable"])
async def test_two_links_at_once_both_count(
    session: Any, pair: Any, connect: Any, blocked: Any, isolation: str
) -> None:
    a, _ = pair
    proposed = await a.hypotheses.propose("x")
    one = await a.findings.report("one", type="t", confidence=0.3)
    two = await a.findings.report("two", type="t", confidence=0.4)
    first, second = await connect(), await connect()
    late = second.transaction(isolation=isolation)
    await late.start()
    await second.fetchval("SELECT count(*) FROM blackboard.findings")
    async with first.transaction():
        await first.fetchrow(ADD, session.id, proposed.id, one.id, True, "ops/a")
        waiting = asyncio.create_task(second.fetchrow(ADD, session.id, proposed.id, two.id, True, "ops/b"))
        await blocked(second.get_server_pid())
    if isolation == "read_committed":
        await waiting
        await late.commit()
    else:
        with pytest.raises(asyncpg.SerializationError):
            await waiting
        await late.rollback()
        await second.fetchrow(ADD, session.id, proposed.id, two.id, True, "ops/b")
    found = await session.hypotheses.get(proposed.id)
    assert found.confidence == pytest.approx(probability(strength(0.3) + strength(0.4)))
    assert found.revision == 2


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read", "serializable"])
@pytest.mark.parametrize(
    "verb", ["retract_finding($1, $2, '', 'ops/a')", "contradict_finding($1, $2, $3, '', 'ops/a')"]
)
async def test_no_link_escapes_a_change_of_its_finding(
    session: Any, pair: Any, connect: Any, blocked: Any, isolation: str, verb: str
) -> None:
    a, _ = pair
    proposed = await a.hypotheses.propose("x")
    finding = await a.findings.report("one", type="t", confidence=0.8)
    other = await a.findings.report("not one", type="t")
    first, second = await connect(), await connect()
    change = [f"SELECT blackboard.{verb}", session.id, finding.id, *([other.id] if "$3" in verb else [])]
    late = second.transaction(isolation=isolation)
    await late.start()
    await second.fetchval("SELECT count(*) FROM blackboard.findings")
    async with first.transaction():
        await first.fetchrow(ADD, session.id, proposed.id, finding.id, True, "ops/a")
        waiting = asyncio.create_task(second.execute(*change))
        await blocked(second.get_server_pid())
    if isolation == "read_committed":
        await waiting
        await late.commit()
    else:
        with pytest.raises(asyncpg.SerializationError):
            await waiting
        await late.rollback()
        await second.execute(*change)
    left = 0 if "retract" in verb else strength(0.8) / 2
    assert (await session.hypotheses.get(proposed.id)).confidence == pytest.approx(probability(left))
