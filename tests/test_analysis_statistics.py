"""Templates, series, onset, departures and correlations hold on made-up data of which the answer is known."""

from __future__ import annotations

import datetime as dt
import math
import random

import pytest
from blackboard_examples.incident.analysis import (
    Level,
    LogLine,
    MetricsError,
    NoOnset,
    Onset,
    Series,
    choose_bucket,
    correlate_series,
    detect_onset,
    digest_lines,
    find_changes,
    find_departure,
    mask,
    match_growth,
    pearson,
    read_log,
    read_metrics,
    spearman,
)
from blackboard_examples.incident.analysis.series import bucketed
from hypothesis import example, given
from hypothesis import strategies as st

START = dt.datetime(2024, 1, 2, 3, 0, tzinfo=dt.UTC)
SECOND = dt.timedelta(seconds=1)
numbers = st.floats(-1e6, 1e6, allow_nan=False)


def series(*values: float, step: dt.timedelta = SECOND, name: str = "x") -> Series:
    return Series(name, START, step, tuple(values))


def poisson(source: random.Random, mean: float) -> float:
    limit, count, product = math.exp(-mean), 0, source.random()
    while product > limit:
        count += 1
        product *= source.random()
    return float(count)


def line(seconds: float, message: str, level: Level = Level.ERROR, **fields: str) -> LogLine:
    return LogLine(START + dt.timedelta(seconds=seconds), level, "test", message, fields, 1)


# Templates


@pytest.mark.parametrize(
    ("message", "template"),
    [
        ("order 17 took 3.5ms", "order <num> took <dur>"),
        ("user 550e8400-e29b-41d4-a716-446655440000 is gone", "user <uuid> is gone"),
        ("connect to 10.0.0.1:5432 failed", "connect to <ip> failed"),
        ("no such key 'a b' in \"cache\"", "no such key <str> in <str>"),
        ("can't parse it, won't try", "can't parse it, won't try"),
        ("at 0xdeadbeef in commit 9fceb02d0ae598e95dc970b74767f19372d61af8", "at <hex> in commit <hex>"),
        ("since 2024-01-02T03:04:05.678Z", "since <time>"),
        ("request r000123 of default", "request r<num> of default"),
    ],
)
def test_mask(message: str, template: str) -> None:
    assert mask(message) == template


@given(st.text(max_size=200))
def test_masks_leave_no_digit_and_masking_again_changes_nothing_of_that(message: str) -> None:
    masked = mask(message)
    assert not any(character in "0123456789" for character in masked)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 3)), min_size=1, max_size=60))
def test_templates_count_every_line_once(events: list[tuple[int, int]]) -> None:
    words = ["lost", "late", "broken", "gone"]
    digest = digest_lines([line(at, f"order {at} is {words[kind]}") for at, kind in events], "test")
    assert sum(template.count for template in digest.templates) == digest.count() == len(events)
    assert len(digest.templates) == len({kind for _, kind in events})
    for template in digest.templates:
        assert template.first_at <= template.last_at
        assert sum(template.seconds.values()) == template.count
    assert sum(digest.rate().values) == len(events)


def test_a_full_table_counts_the_rest_together() -> None:
    words = ["a", "b", "c", "d", "e"]
    digest = digest_lines([line(0, word) for word in words], "test", template_limit=2)
    assert {(template.text, template.count) for template in digest.templates} == {
        ("a", 1),
        ("b", 1),
        ("<other templates>", 3),
    }


# Series


@given(st.dictionaries(st.integers(0, 5000), st.integers(1, 9), min_size=1), st.sampled_from([1, 5, 60, 3600]))
def test_buckets_lose_nothing(counts: dict[int, int], bucket: int) -> None:
    origin = int(START.timestamp())
    seconds = {origin + second: count for second, count in counts.items()}
    made = bucketed("x", seconds, START, START + max(counts) * SECOND, bucket * SECOND)
    assert sum(made.values) == sum(counts.values())
    assert made.end > START + max(counts) * SECOND


@given(st.integers(1, 10_000_000))
def test_a_bucket_is_chosen_for_any_span(seconds: int) -> None:
    bucket = choose_bucket(seconds * SECOND)
    assert seconds * SECOND <= bucket * 400


def test_between_takes_the_steps_that_begin_inside() -> None:
    ten = series(*range(10))
    assert ten.between(START + 2.5 * SECOND, START + 6 * SECOND).values == (3, 4, 5)
    assert ten.between(end=START + 3 * SECOND).values == (0, 1, 2)
    assert ten.between(START + 99 * SECOND).values == ()


# Onset


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("quiet", [0.0, 0.2, 3.0])
def test_an_onset_is_found_where_it_is(seed: int, quiet: float) -> None:
    source = random.Random(seed)
    counts = [poisson(source, quiet) for _ in range(120)] + [poisson(source, quiet * 4 + 3) for _ in range(80)]
    found = detect_onset(series(*counts))
    assert isinstance(found, Onset)
    assert abs((found.at - START).total_seconds() - 120) <= 4
    assert found.ended_at is None
    assert found.ratio > 2.0


def test_an_incident_that_is_over_has_an_end() -> None:
    source = random.Random(3)
    counts = [poisson(source, 1.0 if not 100 <= second < 150 else 9.0) for second in range(300)]
    found = detect_onset(series(*counts))
    assert isinstance(found, Onset)
    assert found.ended_at is not None
    assert abs((found.at - START).total_seconds() - 100) <= 2
    assert abs((found.ended_at - START).total_seconds() - 150) <= 2


def test_a_long_series_is_searched_coarsely_and_the_onset_refined() -> None:
    source = random.Random(5)
    counts = [poisson(source, 0.1 if second < 5000 else 2.0) for second in range(8000)]
    found = detect_onset(series(*counts))
    assert isinstance(found, Onset)
    assert found.step == SECOND
    assert abs((found.at - START).total_seconds() - 5000) <= 5


@pytest.mark.parametrize("mean", [0.0, 0.02, 0.5, 5.0])
def test_an_even_rate_has_no_onset(mean: float) -> None:
    false_alarms = 0
    for seed in range(40):
        source = random.Random(seed)
        found = detect_onset(series(*(poisson(source, mean) for _ in range(150))))
        false_alarms += isinstance(found, Onset)
        assert isinstance(found, Onset) or found.reason
    assert false_alarms == 0


def test_a_busy_hour_is_no_onset_by_exposure() -> None:
    source = random.Random(9)
    requests = [100.0 if second < 120 else 800.0 for second in range(240)]
    errors = series(*(poisson(source, count / 100) for count in requests))
    assert isinstance(detect_onset(errors), Onset)
    assert isinstance(detect_onset(errors, exposure=series(*requests)), NoOnset)
    worse = series(*(poisson(source, count / (100 if second < 180 else 20)) for second, count in enumerate(requests)))
    found = detect_onset(worse, exposure=series(*requests))
    assert isinstance(found, Onset)
    assert abs((found.at - START).total_seconds() - 180) <= 2
    assert found.ratio == pytest.approx(5.0, rel=0.2)
    with pytest.raises(ValueError, match="steps"):
        detect_onset(errors, exposure=series(1.0))


def test_regular_bursts_are_no_onset() -> None:
    counts = [20.0 if second % 30 == 7 else 0.0 for second in range(300)]
    assert isinstance(detect_onset(series(*counts)), NoOnset)


@given(st.lists(st.one_of(st.integers(0, 50).map(float), st.just(math.nan)), max_size=80))
@example([])
def test_any_counts_get_an_answer(counts: list[float]) -> None:
    found = detect_onset(series(*counts))
    if isinstance(found, Onset):
        assert found.ratio >= 2.0
        assert found.log_likelihood_ratio >= found.threshold


# Departures


def test_a_ramp_and_a_step_are_found_where_they_begin() -> None:
    source = random.Random(1)
    noise = [source.random() for _ in range(200)]
    ramp = find_departure(series(*(n + max(0, i - 120) * 0.3 for i, n in enumerate(noise))))
    step = find_departure(series(*(n + (10 if i >= 120 else 0) for i, n in enumerate(noise))))
    assert ramp is not None
    assert step is not None
    assert abs((ramp.at - START).total_seconds() - 120) <= 5
    assert step.at == START + 120 * SECOND
    assert (ramp.shape, step.shape) == ("ramp", "step")
    assert ramp.rises
    assert step.rises


@given(st.integers(0, 1000))
def test_noise_does_not_depart(seed: int) -> None:
    source = random.Random(seed)
    assert find_departure(series(*(5 + source.gauss(0, 1) for _ in range(120)))) is None


def test_too_little_or_constant_data_does_not_depart() -> None:
    assert find_departure(series()) is None
    assert find_departure(series(*[1.0] * 100)) is None
    assert find_departure(series(*[math.nan] * 100)) is None


# Correlation


@given(st.lists(st.tuples(numbers, numbers), max_size=40))
def test_correlations_are_bounded_and_symmetric(pairs: list[tuple[float, float]]) -> None:
    left, right = [first for first, _ in pairs], [second for _, second in pairs]
    for measure in (pearson, spearman):
        value = measure(left, right)
        assert -1.0 <= value <= 1.0
        assert value == pytest.approx(measure(right, left), abs=1e-9)


@given(st.lists(st.integers(-1000, 1000), min_size=3, max_size=30, unique=True))
def test_spearman_of_any_monotone_relation_is_one(values: list[int]) -> None:
    assert spearman(values, [value**3 for value in values]) == pytest.approx(1.0)


@pytest.mark.parametrize("delay", [0, 5, 20])
def test_the_lag_is_found(delay: int) -> None:
    source = random.Random(delay)
    cause = [source.random() for _ in range(300)]
    effect = [0.0] * delay + cause
    found = correlate_series(series(*cause), series(*effect[:300], name="y"), step=SECOND)
    assert found.lag == delay * SECOND
    assert found.pearson == pytest.approx(1.0)


def test_growth_is_matched_with_what_leaks() -> None:
    source = random.Random(4)
    origin = int(START.timestamp())
    leaks = {second: 1 for second in range(200) if source.random() < 0.05}
    others = dict.fromkeys(range(200), 5)
    level, levels = 0.0, []
    for second in range(200):
        level += leaks.get(second, 0)
        levels.append(level + (source.random() < 0.2))
    groups = {
        ("404",): {origin + second: count for second, count in leaks.items()},
        ("200",): {origin + second: count for second, count in others.items()},
    }
    best, other = match_growth(series(*levels), groups, START, START + 200 * SECOND)
    assert best.key == ("404",)
    assert best.slope == pytest.approx(1.0, abs=0.1)
    assert best.r_squared > other.r_squared


# Metrics and changes


def test_metrics_are_read_and_losses_counted() -> None:
    metrics = read_metrics(
        ["# a comment\n", "at, a, b\n", "2024-01-02T03:00:02Z,3,\n", "2024-01-02T03:00:00Z,1,x\n", "soon,1,2\n"]
    )
    assert (metrics.bad_rows, metrics.bad_values) == (1, 1)
    assert metrics.columns["a"] == (1.0, 3.0)
    assert metrics.series("a").step == 2 * SECOND
    assert all(math.isnan(value) for value in metrics.columns["b"])


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "at,a\nsoon,1\n"])
def test_no_metrics_say_why(text: str) -> None:
    with pytest.raises(MetricsError, match=r"time"):
        read_metrics(text.splitlines(keepends=True))


@pytest.mark.parametrize(
    ("message", "kind", "version", "name"),
    [
        (
            'deploy service=shop version=1.2.3 previous=1.2.2 change="new settings page"',
            "deploy",
            "1.2.3",
            "deploy 1.2.3",
        ),
        ("Deployed shop v2.0.0-rc.1 to production", "deploy", "2.0.0-rc.1", "deploy 2.0.0-rc.1"),
        ("Rolled back to v1.2.2 after errors", "rollback", "1.2.2", "rollback 1.2.2"),
        ("setting service=shop name=cache value=on previous=off", "setting", None, "setting cache=on"),
        ("migration 20240102 applied", "migration", None, "migration 20240102 applied"),
        ("replaced the cable of 10.0.0.1", "other", None, "other: replaced the cable of 10.0.0.1"),
    ],
)
def test_changes(message: str, kind: str, version: str | None, name: str) -> None:
    (change,) = find_changes(read_log([f"2024-01-02T03:04:05Z INFO {message}\n"], "deployments"))
    assert (change.kind, change.version, change.name) == (kind, version, name)
