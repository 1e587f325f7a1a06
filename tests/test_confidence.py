"""Confidence as numbers: the seed's aggregate, the log-odds pool, and the rule that revises hypotheses."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blackboard.errors import InvalidInput, NotFound
from blackboard.ids import new_id

# Not the subnormal ones: products with them lose their digits, each way of computing in its own way.
UNIT = st.floats(0, 1, allow_subnormal=False)
CATEGORIES = ("observation", "hypothesis", "conclusion")
FINDINGS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(CATEGORIES), st.none() | UNIT, st.integers(0, 4)), max_size=8
)
EXPERTISE = st.lists(st.dictionaries(st.sampled_from(CATEGORIES), UNIT), min_size=3, max_size=3)

# One connection serves all examples of a property.
through_the_database = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def sql(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def seed_aggregate(findings: list[tuple[float, float, int]]) -> float:
    """The seed's own code: (expertise, confidence, items of evidence)."""
    if not findings:
        return 0.0
    weighted_sum = 0.0
    weight_total = 0.0
    for expertise_weight, confidence, evidence in findings:
        evidence_weight = evidence * 0.1 + 0.5
        weight = expertise_weight * evidence_weight
        weighted_sum += confidence * weight
        weight_total += weight
    return weighted_sum / weight_total if weight_total > 0 else 0.0


def logit(value: float) -> float:
    return math.log(value / (1 - value))


def clamp(value: float) -> float:
    return min(max(value, 0.01), 0.99)


def pool(sql: psycopg.Connection[Any], confidences: list[float], weights: list[float]) -> float:
    row = sql.execute(
        "SELECT blackboard.pool_log_odds(%s::double precision[], %s::double precision[])", (confidences, weights)
    ).fetchone()
    assert row is not None
    return float(row[0])


def report_all(
    sql: psycopg.Connection[Any], expertise: list[dict[str, float]], findings: list[tuple[int, str, float | None, int]]
) -> tuple[Any, list[Any]]:
    row = sql.execute("INSERT INTO blackboard.sessions (name) VALUES (%s) RETURNING id", (uuid4().hex,)).fetchone()
    assert row is not None
    names = [f"{row[0]}/{number}" for number in range(len(expertise))]
    for name, weights in zip(names, expertise, strict=True):
        sql.execute("SELECT blackboard.register_agent(%s, NULL, %s::jsonb, NULL, NULL)", (name, json.dumps(weights)))
    ids: list[Any] = []
    for number, (agent, category, confidence, evidence) in enumerate(findings):
        ids.append(new_id())
        sql.execute(
            "INSERT INTO blackboard.findings (session_id, id, agent_id, type, category, content, confidence, evidence)"
            " VALUES (%s, %s, %s, 't', %s, to_jsonb(%s::integer), %s, %s::jsonb)",
            (
                row[0],
                ids[-1],
                names[agent],
                category,
                number,
                confidence,
                json.dumps([{"source": str(n)} for n in range(evidence)]),
            ),
        )
    return row[0], ids


@given(expertise=EXPERTISE, findings=FINDINGS)
@through_the_database
def test_the_aggregate_is_the_seeds_number_to_the_last_bit(
    sql: psycopg.Connection[Any],
    expertise: list[dict[str, float]],
    findings: list[tuple[int, str, float | None, int]],
) -> None:
    session_id, ids = report_all(sql, expertise, findings)
    row = sql.execute("SELECT blackboard.aggregate_confidence(%s, %s::uuid[])", (session_id, ids)).fetchone()
    assert row is not None
    expected = seed_aggregate(
        [
            (expertise[agent].get(category, 0.5), confidence, evidence)
            for agent, category, confidence, evidence in findings
            if confidence is not None
        ]
    )
    # PostgreSQL refuses what is too small for a double, so next to nothing is nothing.
    assert row[0] == (expected if expected > 1e-300 else 0) or abs(row[0] - expected) < 1e-299


@given(value=st.floats(0.01, 0.99), weight=st.floats(0, 10, allow_subnormal=False), times=st.integers(1, 5))
@through_the_database
def test_a_pool_of_equals_is_that_value(sql: psycopg.Connection[Any], value: float, weight: float, times: int) -> None:
    assert pool(sql, [value] * times, [weight] * times) == pytest.approx(value, abs=1e-12)


PAIRS = st.lists(st.tuples(UNIT, st.floats(0, 10, allow_subnormal=False)), min_size=1, max_size=6)


@given(pairs=PAIRS, random=st.randoms(use_true_random=False))
@through_the_database
def test_a_pool_has_no_order_is_symmetric_and_stays_between(
    sql: psycopg.Connection[Any], pairs: list[tuple[float, float]], random: Any
) -> None:
    confidences, weights = [c for c, _ in pairs], [w for _, w in pairs]
    pooled = pool(sql, confidences, weights)
    shuffled = random.sample(pairs, len(pairs))
    assert pool(sql, [c for c, _ in shuffled], [w for _, w in shuffled]) == pooled
    assert pool(sql, [1 - c for c in confidences], weights) == pytest.approx(1 - pooled, abs=1e-9)
    assert clamp(min(confidences)) - 1e-9 <= pooled <= clamp(max(confidences)) + 1e-9


@given(pairs=PAIRS, at=st.integers(0, 5), higher=UNIT)
@through_the_database
def test_a_pool_grows_with_each_of_its_values(
    sql: psycopg.Connection[Any], pairs: list[tuple[float, float]], at: int, higher: float
) -> None:
    confidences, weights = [c for c, _ in pairs], [w for _, w in pairs]
    before = pool(sql, confidences, weights)
    confidences[at % len(pairs)] = max(confidences[at % len(pairs)], higher)
    assert pool(sql, confidences, weights) >= before - 1e-12


def test_the_edges_of_a_pool(sql: psycopg.Connection[Any]) -> None:
    assert pool(sql, [], []) == 0.5
    assert pool(sql, [0.0, 1.0], [1, 1]) == pytest.approx(0.5)
    assert pool(sql, [1.0], [1]) == pytest.approx(0.99)
    assert pool(sql, [0.2, 0.8], [0, 0]) == pytest.approx(0.5)
    assert pool(sql, [0.2, 0.8], [0, 1]) == pytest.approx(0.8)
    row = sql.execute("SELECT blackboard.pool_log_odds(ARRAY[NULL, 0.7]::double precision[], NULL)").fetchone()
    assert row is not None
    assert row[0] == pytest.approx(0.7)
    row = sql.execute("SELECT blackboard.pool_log_odds(NULL, NULL)").fetchone()
    assert row == (0.5,)


async def test_aggregate_in_python(session: Any) -> None:
    expert = await session.join("ops/expert", expertise={"observation": 0.9})
    novice = await session.join("ops/novice", expertise={"observation": 0.1})
    evidence = [{"source": "a"}, {"source": "b"}]
    one = await expert.findings.report("one", type="t", confidence=0.9, evidence=evidence)
    two = await novice.findings.report("two", type="t", confidence=0.2)
    unsure = await novice.findings.report("three", type="t")
    ids = [one, two.id, str(unsure.id)]
    weights = 0.9 * 0.7, 0.1 * 0.5
    expected = (0.9 * weights[0] + 0.2 * weights[1]) / sum(weights)
    assert await session.findings.aggregate_confidence(ids) == pytest.approx(expected)
    pooled = (logit(0.9) * weights[0] + logit(0.2) * weights[1]) / sum(weights)
    assert await session.findings.aggregate_confidence(ids, "log_odds") == pytest.approx(1 / (1 + math.exp(-pooled)))
    assert await session.findings.aggregate_confidence(ids, max_findings=1) == pytest.approx(0.9)
    assert await session.findings.aggregate_confidence([]) == 0.0
    assert await session.findings.aggregate_confidence([unsure]) == 0.0
    assert await session.findings.aggregate_confidence([], method="log_odds") == 0.5
    with pytest.raises(NotFound):
        await session.findings.aggregate_confidence([one, new_id()])
    with pytest.raises(InvalidInput) as caught:
        await session.findings.aggregate_confidence([one], "mean")
    assert caught.value.field == "method"
    with pytest.raises(InvalidInput) as caught:
        await session.findings.aggregate_confidence([one], max_findings=0)
    assert caught.value.field == "max_findings"


def expected_confidence(
    assessments: list[tuple[float, float]], evidence: list[tuple[bool, float | None, float, float, bool]]
) -> float:
    """The rule in Python: (confidence, expertise); (supports, confidence, weight, trust, contradicted)."""
    weights = [weight for _, weight in assessments]
    if not sum(weights):
        weights = [1.0] * len(weights)
    total = sum(logit(clamp(c)) * w for (c, _), w in zip(assessments, weights, strict=True)) / sum(weights)
    for side in (True, False):
        terms = [
            weight * trust * (0.5 if contradicted else 1) * math.log((0.5 + c / 2) / (0.5 - c / 2))
            for supports, stated, weight, trust, contradicted in evidence
            if supports is side
            for c in [min(0.5 if stated is None else stated, 0.98)]
        ]
        total += sum(sorted(terms, reverse=True)[:10]) * (1 if side else -1)
    return clamp(1 / (1 + math.exp(-total)))


@given(
    assessments=st.lists(st.tuples(UNIT, UNIT), min_size=1, max_size=3),
    evidence=st.lists(st.tuples(st.booleans(), st.none() | UNIT, st.floats(0.01, 1), UNIT, st.booleans()), max_size=14),
)
@through_the_database
def test_a_hypothesis_follows_the_rule(
    sql: psycopg.Connection[Any],
    assessments: list[tuple[float, float]],
    evidence: list[tuple[bool, float | None, float, float, bool]],
) -> None:
    session_id, _ = report_all(sql, [{"hypothesis": weight} for _, weight in assessments], [])
    hypothesis = new_id()
    sql.execute(
        "SELECT blackboard.propose_hypothesis(%s, %s, %s, 'x', %s)",
        (session_id, hypothesis, f"{session_id}/0", assessments[0][0]),
    )
    for number, (confidence, _) in enumerate(assessments):
        sql.execute(
            "SELECT blackboard.assess_hypothesis(%s, %s, %s, %s, '', NULL)",
            (session_id, hypothesis, f"{session_id}/{number}", confidence),
        )
    sql.execute("INSERT INTO blackboard.agents (id) VALUES (%s)", (f"{session_id}/x",))
    row = sql.execute(
        "INSERT INTO blackboard.findings (session_id, agent_id, type, content) VALUES (%s, 'x', 't', '0') RETURNING id",
        (session_id,),
    ).fetchone()
    assert row is not None
    for number, (supports, confidence, weight, trust, contradicted) in enumerate(evidence, 1):
        finding = new_id()
        sql.execute(
            "INSERT INTO blackboard.findings (session_id, id, agent_id, type, content, confidence, trust)"
            " VALUES (%s, %s, %s, 't', to_jsonb(%s::integer), %s, %s)",
            (session_id, finding, f"{session_id}/x", number, confidence, trust),
        )
        sql.execute(
            "SELECT blackboard.add_evidence(%s, %s, %s, %s, %s, 'x')",
            (session_id, hypothesis, finding, supports, weight),
        )
        if contradicted:
            sql.execute("SELECT blackboard.contradict_finding(%s, %s, %s, '', 'x')", (session_id, finding, row[0]))
    found = sql.execute("SELECT confidence FROM blackboard.hypotheses WHERE id = %s", (hypothesis,)).fetchone()
    assert found is not None
    assert found[0] == pytest.approx(expected_confidence(assessments, evidence), abs=1e-9)
