"""Findings: reported once, corroborated, superseded, retracted, contradicted; what they write and refuse."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from blackboard.errors import (
    Conflict,
    IdempotencyConflict,
    InvalidInput,
    InvalidTransition,
    NotFound,
    NotPermitted,
    PayloadTooLarge,
    SessionClosed,
)
from blackboard.ids import new_id
from blackboard.models.findings import Evidence

REPORT = "SELECT * FROM blackboard.report_finding($1, $2, $3, 'metric', $4::jsonb)"


async def events(db: Any, session: Any, pattern: str) -> list[tuple[str, str, dict[str, Any]]]:
    rows = await db.fetch(
        "SELECT type, actor, data FROM blackboard.events WHERE session_id = $1 AND type LIKE $2 ORDER BY seq",
        session.id,
        pattern,
    )
    return [(row["type"], row["actor"], json.loads(row["data"])) for row in rows]


@pytest.fixture
async def pair(session: Any) -> tuple[Any, Any]:
    return await session.join("ops/a"), await session.join("ops/b")


async def test_a_report_is_read_back_and_written_to_history(session: Any, pair: Any, db: Any) -> None:
    a, _ = pair
    finding = await a.findings.report(
        {"text": "Error rate 5x", "n": 1.5},
        type="metric",
        category="conclusion",
        confidence=0.9,
        evidence=[Evidence(source="prometheus", query="rate(errors[5m])", result="0.05"), {"source": "log"}],
        tags=["errors", "errors", "deploy"],
        provenance={"tool": "promql"},
    )
    assert finding == await session.findings.get(finding.id)
    assert finding.content == {"text": "Error rate 5x", "n": 1.5}
    assert finding.evidence[1] == Evidence(source="log")
    assert finding.tags == ("errors", "deploy")
    assert (finding.agent_id, finding.trust, finding.status, finding.corroborated) == ("ops/a", 1.0, "active", False)
    [(kind, actor, data)] = await events(db, session, "finding.%")
    assert (kind, actor) == ("finding.reported", "ops/a")
    assert data["content"] == finding.content
    assert (data["agent_id"], data["category"], data["type"]) == ("ops/a", "conclusion", "metric")
    assert (data["confidence"], data["status"], data["trust"]) == (0.9, "active", 1)


async def test_large_content_stays_in_the_row_and_the_event_says_so(session: Any, pair: Any, db: Any) -> None:
    finding = await pair[0].findings.report("x" * 9000, type="log")
    [(_, _, data)] = await events(db, session, "finding.%")
    assert data["content_ref"] is True
    assert "content" not in data
    assert len((await session.findings.get(finding.id)).content) == 9000


async def test_the_second_report_of_the_same_thing_is_a_corroboration(session: Any, pair: Any, db: Any) -> None:
    a, b = pair
    first = await a.findings.report("Error rate  spike\n", type="metric")
    second = await b.findings.report(" error RATE spike", type="metric", confidence=0.7, evidence=[{"source": "log"}])
    assert second.corroborated
    assert (second.id, second.corroborations) == (first.id, 1)
    again = await b.findings.report("error rate spike", type="metric")
    own = await a.findings.report("error rate spike", type="metric")
    assert again.corroborated
    assert own.corroborated
    assert (again.corroborations, own.corroborations) == (1, 1)
    [corroboration] = await session.findings.corroborations(first.id)
    assert (corroboration.agent_id, corroboration.confidence) == ("ops/b", 0.7)
    assert corroboration.evidence == (Evidence(source="log"),)
    [_, (kind, actor, data)] = await events(db, session, "finding.%")
    assert (kind, actor) == ("finding.corroborated", "ops/b")
    assert data["corroborations"] == 1
    assert data["corroboration"]["agent_id"] == "ops/b"
    assert len(await session.findings.list()) == 1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("C:\\new", "c:\\NEW", True),
        ("C:\\new", "C: ew", False),
        ("a\tb", "a  b", True),
        ({"k": " v "}, {"k": "V"}, True),
        ({"k": 1, "l": 2}, {"l": 2, "k": 1}, True),
        ({"k": 1}, {"k": 2}, False),
        ("a b", "ab", False),
        (None, "null", False),
    ],
)
async def test_what_counts_as_the_same(pair: Any, one: Any, other: Any, same: bool) -> None:
    a, b = pair
    await a.findings.report(one, type="t")
    assert (await b.findings.report(other, type="t")).corroborated is same


async def test_type_and_category_tell_findings_apart(pair: Any) -> None:
    a, b = pair
    await a.findings.report("x", type="t")
    assert not (await b.findings.report("x", type="u")).corroborated
    assert not (await b.findings.report("x", type="t", category="conclusion")).corroborated


async def test_an_id_is_an_idempotency_key(session: Any, pair: Any, db: Any) -> None:
    a, b = pair
    first_id, second_id = new_id(), new_id()
    first = await a.findings.report("x", type="t", confidence=0.5, id=first_id)
    assert await a.findings.report("x", type="t", confidence=0.5, id=first_id) == first
    with pytest.raises(IdempotencyConflict) as caught:
        await a.findings.report("x", type="t", confidence=0.6, id=first_id)
    assert caught.value.id == str(first_id)
    with pytest.raises(IdempotencyConflict):
        await b.findings.report("x", type="t", confidence=0.5, id=first_id)
    second = await b.findings.report("x", type="t", id=second_id)
    assert await b.findings.report("x", type="t", id=second_id) == second
    with pytest.raises(IdempotencyConflict):
        await b.findings.report("y", type="t", id=second_id)
    # The key is looked at before the fingerprint: a retracted finding is not reported anew by a late repetition.
    await a.findings.retract(first.id)
    assert (await a.findings.report("x", type="t", confidence=0.5, id=first_id)).status == "retracted"
    assert (await b.findings.report("x", type="t", id=second_id)).id == first.id
    assert [kind for kind, _, _ in await events(db, session, "finding.%")] == [
        "finding.reported",
        "finding.corroborated",
        "finding.retracted",
    ]


async def test_many_corroborate_at_once_and_each_is_counted(session: Any, pair: Any) -> None:
    agents = [await session.join(f"ops/{number}") for number in range(8)]
    found = await asyncio.gather(*(agent.findings.report("same", type="t") for agent in agents))
    assert len({finding.id for finding in found}) == 1
    assert [finding.corroborated for finding in found].count(False) == 1
    assert (await session.findings.get(found[0].id)).corroborations == 7
    assert len(await session.findings.corroborations(found[0].id)) == 7


async def test_superseding_hides_the_old_and_shows_the_new(session: Any, pair: Any, db: Any) -> None:
    a, b = pair
    old = await a.findings.report("rate 4x", type="metric", category="conclusion", tags=["x"])
    key = new_id()
    new = await a.findings.supersede(old.id, "rate 5x", confidence=0.9, reason="recount", id=key)
    assert (new.id, new.type, new.category, new.content) == (key, "metric", "conclusion", "rate 5x")
    gone = await session.findings.get(old.id)
    assert (gone.status, gone.superseded_by, gone.reason) == ("superseded", new.id, "recount")
    assert [finding.id for finding in await session.findings.list()] == [new.id]
    assert {finding.id for finding in await session.findings.list(include_hidden=True)} == {old.id, new.id}
    assert (await a.findings.supersede(old.id, "rate 5x", confidence=0.9, id=key)).id == new.id
    with pytest.raises(InvalidTransition) as caught:
        await a.findings.supersede(old.id, "rate 6x")
    assert caught.value.superseded_by == str(new.id)
    with pytest.raises(IdempotencyConflict):
        await a.findings.supersede(new.id, "rate 7x", id=old.id)
    with pytest.raises(NotPermitted, match="ops/a"):
        await b.findings.supersede(new.id, "rate 8x")
    with pytest.raises(NotFound):
        await a.findings.supersede(new_id(), "x")
    assert [kind for kind, _, _ in await events(db, session, "finding.%")] == [
        "finding.reported",
        "finding.reported",
        "finding.superseded",
    ]
    _, actor, data = (await events(db, session, "finding.superseded"))[0]
    assert actor == "ops/a"
    assert data == {"status": "superseded", "superseded_by": str(new.id), "reason": "recount"}


async def test_the_same_content_supersedes_with_another_confidence(session: Any, pair: Any) -> None:
    a, _ = pair
    old = await a.findings.report("spike", type="metric", confidence=0.5)
    new = await a.findings.supersede(old.id, "Spike", confidence=0.8)
    assert new.id != old.id
    assert not new.corroborated
    assert [finding.confidence for finding in await session.findings.list()] == [0.8]


async def test_what_stands_already_takes_the_place(session: Any, pair: Any) -> None:
    a, b = pair
    old = await a.findings.report("rate 4x", type="metric")
    theirs = await b.findings.report("rate 5x", type="metric")
    new = await a.findings.supersede(old.id, "rate 5x")
    assert (new.id, new.corroborated, new.corroborations) == (theirs.id, True, 1)
    assert (await session.findings.get(old.id)).superseded_by == theirs.id


async def test_who_may_retract(session: Any, pair: Any, db: Any) -> None:
    a, b = pair
    controller = await session.join("ops/c", role="controller")
    findings = [await a.findings.report(text, type="t") for text in ("one", "two", "three")]
    with pytest.raises(NotPermitted, match="contradict it instead"):
        await b.findings.retract(findings[0].id)
    by_author = await a.findings.retract(findings[0].id, "wrong host")
    assert (by_author.status, by_author.reason) == ("retracted", "wrong host")
    assert await a.findings.retract(findings[0].id, "again") == by_author
    assert (await controller.findings.retract(findings[1].id)).status == "retracted"
    assert (await session.findings.retract(findings[2].id)).status == "retracted"
    assert await session.findings.list() == []
    with pytest.raises(NotFound):
        await a.findings.retract(new_id())
    with pytest.raises(InvalidTransition):
        await a.findings.supersede(findings[0].id, "x")
    found = await events(db, session, "finding.retracted")
    assert [actor for _, actor, _ in found] == ["ops/a", "ops/c", "tester"]
    assert found[0][2] == {"status": "retracted", "reason": "wrong host"}


async def test_what_is_superseded_cannot_be_retracted(pair: Any) -> None:
    a, _ = pair
    old = await a.findings.report("one", type="t")
    await a.findings.supersede(old.id, "two")
    with pytest.raises(InvalidTransition) as caught:
        await a.findings.retract(old.id)
    assert caught.value.status == "superseded"


async def test_a_contradiction_is_on_record_once(session: Any, pair: Any, db: Any) -> None:
    a, b = pair
    one, other = await a.findings.report("up", type="t"), await b.findings.report("down", type="t")
    link = await b.findings.contradict(one.id, other.id, "measured")
    assert await b.findings.contradict(one.id, other.id) == link
    assert await session.findings.contradictions(one.id) == [link]
    assert (await session.findings.get(one.id)).contradicted
    assert not (await session.findings.get(other.id)).contradicted
    [(kind, actor, data)] = await events(db, session, "finding.contradicted")
    assert (kind, actor) == ("finding.contradicted", "ops/b")
    assert data["contradiction"] == {
        "id": str(link.id),
        "by": str(other.id),
        "agent_id": "ops/b",
        "reason": "measured",
    }
    with pytest.raises(InvalidInput, match="itself"):
        await a.findings.contradict(one.id, one.id)
    with pytest.raises(NotFound):
        await a.findings.contradict(one.id, new_id())
    await b.findings.retract(other.id)
    assert not (await session.findings.get(one.id)).contradicted
    third = await a.findings.report("sideways", type="t")
    with pytest.raises(Conflict, match="retracted"):
        await a.findings.contradict(third.id, other.id)


async def test_trust_is_the_least_of_the_agent_and_the_sources(session: Any, pair: Any, db: Any) -> None:
    a, b = pair
    await db.execute("UPDATE blackboard.agents SET trust = 0.6 WHERE id = 'ops/b'")
    low = await b.findings.report("from b", type="t")
    derived = await a.findings.report("from a", type="t", derived_from=[low, low.id])
    assert (low.trust, derived.trust) == (0.6, 0.6)
    assert derived.derived_from == (low.id, low.id)
    row = await db.fetchrow(REPORT, session.id, new_id(), "nobody", '"x"')
    assert row["trust"] == 0.5
    missing = new_id()
    with pytest.raises(NotFound) as caught:
        await a.findings.report("y", type="t", derived_from=[missing])
    assert caught.value.id == str(missing)


async def test_filters_and_pages(session: Any, pair: Any) -> None:
    a, b = pair
    first = await a.findings.report("1", type="t", confidence=0.2, tags=["red"])
    second = await b.findings.report("2", type="u", confidence=0.8, category="conclusion")
    third = await a.findings.report("3", type="u", tags=["red", "blue"])
    gone = await a.findings.report("4", type="u")
    await a.findings.retract(gone.id)

    async def ids(**filters: Any) -> list[Any]:
        return [finding.id for finding in await session.findings.list(**filters)]

    everything = [third.id, second.id, first.id]
    assert await ids() == everything
    assert await ids(category="conclusion") == [second.id]
    assert await ids(category="observation") == [third.id, first.id]
    assert await ids(type="u") == [third.id, second.id]
    assert await ids(agent_id="ops/a") == [third.id, first.id]
    assert await ids(tag="red") == [third.id, first.id]
    assert await ids(tag="blue", agent_id="ops/a", type="u") == [third.id]
    assert await ids(min_confidence=0.5) == [second.id]
    assert await ids(min_trust=1.0) == everything
    assert await ids(since=second.created_at) == [third.id, second.id]
    assert await ids(include_hidden=True) == [gone.id, *everything]
    assert await ids(include_hidden=True, type="u", limit=2) == [gone.id, third.id]
    assert await ids(limit=2) == [third.id, second.id]
    assert await ids(limit=2, before=second) == [first.id]
    assert await ids(before=(third.created_at, third.id), include_hidden=True) == [second.id, first.id]
    for wrong in (
        {"category": "guess"},
        {"limit": 0},
        {"min_confidence": 2},
        {"since": datetime(2026, 1, 1)},
        {"before": (datetime.now(UTC), "x")},
    ):
        with pytest.raises(InvalidInput) as caught:
            await session.findings.list(**wrong)
        assert caught.value.field == next(iter(wrong))


async def test_pages_of_one_instant_neither_miss_nor_double(session: Any, pair: Any, db: Any) -> None:
    await db.execute(
        """INSERT INTO blackboard.findings (session_id, agent_id, type, content, created_at)
           SELECT $1, 'ops/a', 't', to_jsonb(n), '2026-01-01 00:00Z' FROM generate_series(1, 25) n""",
        session.id,
    )
    seen: list[Any] = []
    page = await session.findings.list(limit=10)
    while page:
        seen.extend(finding.id for finding in page)
        page = await session.findings.list(limit=10, before=page[-1])
    assert len(seen) == len(set(seen)) == 25


async def test_similar_findings_share_words(session: Any, pair: Any) -> None:
    a, _ = pair
    near = await a.findings.report("the pool of connections is exhausted", type="t")
    far = await a.findings.report({"note": "disk pool"}, type="t")
    await a.findings.report("nothing in common", type="t")
    gone = await a.findings.report("connections exhausted", type="t")
    await a.findings.retract(gone.id)
    found = await session.findings.similar("Connections of the pool are exhausted")
    assert [item.finding.id for item in found] == [near.id, far.id]
    assert found[0].similarity == pytest.approx(5 / 7)
    assert (await session.findings.similar("the pool of connections is exhausted", limit=1))[0].similarity == 1
    assert await session.findings.similar("quite unheard") == []
    assert len(await session.findings.similar(["pool", "x " * 100_000])) == 2


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"type": ""}, "type"),
        ({"type": "x" * 51}, "type"),
        ({"type": "a\0"}, "type"),
        ({"category": "guess"}, "category"),
        ({"confidence": 1.01}, "confidence"),
        ({"confidence": float("nan")}, "confidence"),
        ({"confidence": "high"}, "confidence"),
        ({"content": float("inf")}, "content"),
        ({"content": "a\0"}, "content"),
        ({"evidence": [{"query": "x"}]}, "evidence"),
        ({"evidence": ["x"]}, "evidence"),
        ({"evidence": [{"source": "x", "found": 1}]}, "evidence"),
        ({"evidence": [{"source": "x", "result": float("nan")}]}, "evidence"),
        ({"tags": "red"}, "tags"),
        ({"tags": [""]}, "tags"),
        ({"tags": [str(n) for n in range(101)]}, "tags"),
        ({"provenance": {1: 2}}, "provenance"),
        ({"derived_from": ["x"]}, "derived_from"),
        ({"id": "x"}, "id"),
    ],
)
async def test_bad_input_names_its_field(session: Any, pair: Any, options: dict[str, Any], field: str) -> None:
    values: dict[str, Any] = {"content": "x", "type": "t", **options}
    with pytest.raises(InvalidInput) as caught:
        await pair[0].findings.report(values.pop("content"), **values)
    assert caught.value.field == field
    assert await session.findings.list() == []


async def test_too_large_unknown_closed_and_nobody(session: Any, pair: Any) -> None:
    a, _ = pair
    with pytest.raises(PayloadTooLarge):
        await a.findings.report("x" * 1_100_000, type="t")
    # Under the limit as text, over it as the database keeps it.
    with pytest.raises(PayloadTooLarge) as caught:
        await a.findings.report([1] * 500_000, type="t")
    assert caught.value.field == "content"
    with pytest.raises(InvalidInput, match=r"session\.join"):
        await session.findings.report("x", type="t")
    with pytest.raises(NotFound):
        await session.findings.get(new_id())
    finding = await a.findings.report("x", type="t")
    await session.close()
    for call in (
        a.findings.report("y", type="t"),
        a.findings.retract(finding.id),
        a.findings.supersede(finding.id, "z"),
        a.findings.contradict(finding.id, new_id()),
    ):
        with pytest.raises(SessionClosed):
            await call
    assert await a.findings.report("x", type="t", id=finding.id) == finding
