"""What callers are likely to get wrong is refused, or taken as it was meant."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

import blackboard
from blackboard import Agent, RetryLater, Session
from blackboard.errors import InvalidInput
from blackboard.repository.amounts import as_amount


@pytest.fixture
async def agent(session: Session) -> Agent:
    return await session.join("ops/a")


async def test_capabilities_given_as_one_text_are_no_letters(session: Session) -> None:
    with pytest.raises(InvalidInput) as refused:
        await session.join("ops/b", capabilities="investigate")
    assert refused.value.field == "capabilities"
    assert "['investigate']" in refused.value.message


def test_a_computed_float_is_taken_to_twelve_places() -> None:
    assert as_amount(0.1 + 0.2, "cost") == Decimal("0.3")
    assert as_amount(1234 * 3e-6, "cost") == Decimal("0.003702")
    assert as_amount(1e-13, "cost") == 0
    assert as_amount(1e15, "cost") == 10**15
    assert as_amount(999_999_999_999_999.9, "cost") == Decimal("999999999999999.9")
    with pytest.raises(InvalidInput, match="12 decimal places"):
        as_amount(Decimal("0.0000000000001"), "cost")
    for wrong in (-0.5, 1e16, float("nan"), float("inf")):
        with pytest.raises(InvalidInput):
            as_amount(wrong, "cost")


async def test_what_a_call_cost_is_settled_as_a_float(session: Session, agent: Agent) -> None:
    async with agent.budgets.spend(cost=0.1 + 0.2, tokens=2000) as spend:
        spend.tokens = 1234
        spend.cost = 1234 * 0.00000117
    [cost] = [entry for entry in await session.budgets.ledger() if entry.unit == "cost"]
    assert (cost.reserved, cost.settled) == (Decimal("0.3"), Decimal("0.00144378"))


async def test_a_misspelt_amount_is_not_taken_for_what_was_reserved(session: Session, agent: Agent) -> None:
    with pytest.raises(AttributeError):
        async with agent.budgets.spend(tokens=10) as spend:
            spend.token = 3  # type: ignore[attr-defined]
    assert [entry.status for entry in await session.budgets.ledger()] == ["released"]


async def test_unique_is_where_everything_else_is(session: Session) -> None:
    unique = blackboard.Unique(key="k")
    first = await session.tasks.add("t", unique=unique)
    assert (await session.tasks.add("t", unique=unique)).id == first.id


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("timeout", {"timeout": 5}),
        ("retry_delay", {"retry_delay": "5s"}),
        ("fallback", {"assigned_to": "ops/a", "fallback": 5}),
        ("priority", {"priority": "5"}),
        ("priority", {"priority": 5.5}),
        ("priority", {"priority": True}),
        ("depends_on", {"depends_on": "0190e5a0-0000-7000-8000-000000000000"}),
        ("depends_on", {"depends_on": [5]}),
        ("unique", {"unique": blackboard.Unique(key="k", states=())}),
        ("unique", {"unique": blackboard.Unique(key="k", window=timedelta(seconds=-1))}),
    ],
    ids=str,
)
async def test_a_task_says_what_is_wrong_with_it(session: Session, field: str, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as refused:
        await session.tasks.add("t", **given)
    assert refused.value.field == field
    assert await session.tasks.list() == []


async def test_a_task_depends_on_what_names_another(session: Session) -> None:
    first = await session.tasks.add("t")
    for edge in (first, first.id, str(first.id), blackboard.Dependency(id=first.id)):
        assert (await session.tasks.add("t", depends_on=[edge])).blockers == 1


async def test_waits_and_failures_say_what_is_wrong_with_them(session: Session, agent: Agent) -> None:
    wrong: Any = 0.3
    with pytest.raises(InvalidInput, match="timeout is a timedelta"):
        await agent.tasks.claim(wait=wrong)
    with pytest.raises(InvalidInput, match="list of names"):
        await agent.tasks.claim(capabilities="x")
    await session.tasks.add("t")
    [task] = await agent.tasks.claim()
    with pytest.raises(InvalidInput, match="delay is a timedelta"):
        await agent.tasks.fail(task, "no", delay=wrong)
    # What was raised is kept although PostgreSQL does not store all of its text.
    failed = await agent.tasks.fail(task, ValueError("zero \0 and half \ud800"), retry=False)
    assert failed.error is not None and failed.error["message"] == "zero \ufffd and half ?"


TINY = timedelta(microseconds=50)


async def test_durations_below_a_millisecond_are_kept(session: Session) -> None:
    task = await session.tasks.add("t", timeout=TINY, retry_delay=TINY, assigned_to="ops/a", fallback=TINY)
    assert (task.timeout, task.retry_delay, task.fallback) == (TINY, TINY, TINY)
    unique = blackboard.Unique(key="k", window=TINY)
    assert (await session.tasks.add("t", unique=unique)).unique_key == "k"
    schedule = await session.schedules.add("n", "@daily", "t", timeout=TINY, retry_delay=TINY)
    assert schedule.options == {"timeout": "50 microseconds", "retry_delay": "50 microseconds"}


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("timeout", {"timeout": 5}),
        ("retry_delay", {"retry_delay": "5s"}),
        ("priority", {"priority": "5"}),
        ("priority", {"priority": 5.5}),
        ("priority", {"priority": True}),
        ("priority", {"priority": 11}),
    ],
    ids=str,
)
async def test_a_schedule_says_what_is_wrong_with_its_task(session: Session, field: str, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as refused:
        await session.schedules.add("n", "@daily", "t", **given)
    assert refused.value.field == field
    assert await session.schedules.list() == []


@pytest.mark.parametrize("delay", [float("inf"), float("nan"), 1e12, 1e300, -1, "soon", None])
def test_a_task_comes_back_after_a_duration(delay: Any) -> None:
    with pytest.raises(InvalidInput) as refused:
        RetryLater(delay)
    assert refused.value.field == "delay"


@pytest.mark.parametrize("age", [timedelta(days=900_000), timedelta.max, -TINY, 5, "5 days"], ids=str)
async def test_ages_are_durations_of_at_most_a_century(session: Session, age: Any) -> None:
    for call in (session.tasks.prune, session.tasks.redrive_many):
        with pytest.raises(InvalidInput) as refused:
            await call(older_than=age)
        assert refused.value.field == "older_than"
