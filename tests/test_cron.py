"""Cron expressions: what they name, when clocks change, what is wrong with them, and plans for missed times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackboard.cron import Cron
from blackboard.errors import InvalidInput


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def times(expression: str, timezone: str, after: str, n: int) -> list[str]:
    found = islice(Cron(expression, timezone).after(moment(after)), n)
    return [one.isoformat().replace("+00:00", "Z").replace(":00Z", "Z") for one in found]


def test_expressions():
    assert times("30 2 * * *", "UTC", "2026-01-01T02:30Z", 2) == ["2026-01-02T02:30Z", "2026-01-03T02:30Z"]
    assert times("*/20 9-10 * * mon-fri", "UTC", "2026-01-02T10:30Z", 2) == ["2026-01-02T10:40Z", "2026-01-05T09:00Z"]
    assert times("@daily", "Asia/Kolkata", "2026-01-01T00:00Z", 1) == ["2026-01-01T18:30Z"]
    assert times(" @Weekly ", "UTC", "2026-01-01T00:00Z", 1) == ["2026-01-04T00:00Z"]
    assert times("0 0 29 2 *", "UTC", "2026-01-01T00:00Z", 1) == ["2028-02-29T00:00Z"]
    assert times("0 0 L * *", "utc", "2026-02-01T00:00Z", 1) == ["2026-02-28T00:00Z"]
    assert times("0 12 * * MON#1", "Z", "2026-01-01T00:00Z", 1) == ["2026-01-05T12:00Z"]


def test_a_time_that_does_not_exist_fires_once_at_the_next_that_does():
    # Europe/Berlin, 29 March 2026: after 01:59 comes 03:00 (01:00 UTC).
    assert times("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00Z", 2) == ["2026-03-29T01:00Z", "2026-03-30T00:30Z"]
    assert times("15,45 2 * * *", "Europe/Berlin", "2026-03-28T12:00Z", 2) == ["2026-03-29T01:00Z", "2026-03-30T00:15Z"]
    assert times("*/30 1-3 * * *", "Europe/Berlin", "2026-03-28T23:45Z", 4) == [
        "2026-03-29T00:00Z",
        "2026-03-29T00:30Z",
        "2026-03-29T01:00Z",
        "2026-03-29T01:30Z",
    ]


def test_an_hour_that_occurs_twice_fires_once_for_fixed_times():
    # 25 October 2026: 02:00 to 02:59 comes twice, from 00:00 and from 01:00 UTC.
    assert times("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00Z", 2) == ["2026-10-25T00:30Z", "2026-10-26T01:30Z"]
    # Asked between the two.
    assert times("30 2 * * *", "Europe/Berlin", "2026-10-25T00:45Z", 1) == ["2026-10-26T01:30Z"]
    assert times("30 2 * * *", "Europe/Berlin", "2026-10-25T01:15Z", 1) == ["2026-10-26T01:30Z"]
    # Whoever asks for every half hour gets every half hour.
    assert times("*/30 2 * * *", "Europe/Berlin", "2026-10-24T12:00Z", 4) == [
        "2026-10-25T00:00Z",
        "2026-10-25T00:30Z",
        "2026-10-25T01:00Z",
        "2026-10-25T01:30Z",
    ]


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("", "five fields"),
        ("* * * *", "five fields"),
        ("0 * * * * *", "Seconds are not supported"),
        ("@reboot", "@daily"),
        ("60 * * * *", "Bad minute"),
        ("* * * * MON#1/2", "wrong"),
        ("0 0 30 2 *", "Bad day-of-month"),
        ("0 0 * 2 MON#6", "wrong"),
        ("a b c d e", "wrong"),
        ("9" * 199 + " * * * *", "five fields"),
    ],
)
def test_what_is_wrong_with_an_expression(expression: str, said: str):
    with pytest.raises(InvalidInput, match=said) as caught:
        Cron(expression)
    assert caught.value.field == "cron"


@pytest.mark.parametrize("timezone", ["", "Mars/Base", "../etc/passwd", "Europe", "x\0y"])
def test_what_is_wrong_with_a_time_zone(timezone: str):
    with pytest.raises(InvalidInput) as caught:
        Cron("@daily", timezone)
    assert caught.value.field == "timezone"


NOW = moment("2026-06-01T12:00:30Z")


@pytest.mark.parametrize(
    ("cron", "ago", "missed", "fired", "skipped"),
    [
        ("*/10 * * * *", timedelta(0), "skip", 1, 0),
        ("*/10 * * * *", timedelta(hours=1), "skip", 1, 6),
        ("*/10 * * * *", timedelta(hours=1), "once", 1, 6),
        ("*/10 * * * *", timedelta(hours=1), "all", 7, 0),
        ("55 11 * * *", timedelta(minutes=5), "skip", 0, 1),
        ("55 11 * * *", timedelta(minutes=5), "once", 1, 0),
        ("55 11 * * *", timedelta(days=3, minutes=5), "once", 1, 3),
        ("* * * * *", timedelta(hours=2), "all", 100, 21),
        ("* * * * *", timedelta(days=400), "all", 100, 900),
        ("* * * * *", timedelta(days=400), "once", 1, 999),
        ("0 * * * *", timedelta(days=400), "all", 100, 900),
    ],
)
def test_plans(cron: str, ago: timedelta, missed: str, fired: int, skipped: int):
    due_at = moment("2026-06-01T12:00Z") - ago
    plan = Cron(cron).plan(due_at, NOW, missed)
    assert (len(plan.times), plan.skipped) == (fired, skipped)
    assert plan.next_at is not None
    assert plan.next_at > NOW
    assert all(due_at <= one <= NOW for one in plan.times)
    assert list(plan.times) == sorted(set(plan.times))
    if fired > 1:
        assert plan.next_at == Cron(cron).next(plan.times[-1])


_FIELD = st.sampled_from(["*", "*/7", "1", "2", "1,3", "2-4", "0"])


@given(
    fields=st.tuples(_FIELD, _FIELD, st.sampled_from(["*", "1-7", "28"]), st.just("*"), st.sampled_from(["*", "1"])),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
    start=st.datetimes(datetime(2025, 1, 1), datetime(2027, 12, 31)),
    rest=st.timedeltas(timedelta(0), timedelta(days=3)),
)
def test_times_grow_and_do_not_depend_on_where_one_starts(
    fields: tuple[str, ...], zone: str, start: datetime, rest: timedelta
):
    cron = Cron(" ".join(fields), zone)
    begin = start.replace(tzinfo=UTC)
    found = list(islice(cron.after(begin), 40))
    assert all(early < late for early, late in pairwise([begin, *found]))
    middle = begin + rest
    later = [one for one in found if one > middle]
    assert list(islice(cron.after(middle), len(later))) == later
