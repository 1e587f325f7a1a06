"""How two series move together, and how a change relates to the onset of errors."""

from __future__ import annotations

import datetime as dt
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .changes import Change
from .departures import Departure
from .onset import Onset
from .series import Series, choose_bucket

__all__ = ["ChangeCorrelation", "LaggedCorrelation", "correlate_changes", "correlate_series", "pearson", "spearman"]


def pearson(left: Sequence[float], right: Sequence[float]) -> float:
    """Pearson's r, between -1 and 1; 0 when one of the two never changes or there are fewer than three pairs."""
    if len(left) < 3 or len(left) != len(right):
        return 0.0
    try:
        return max(-1.0, min(1.0, statistics.correlation(left, right)))
    except (statistics.StatisticsError, OverflowError):
        return 0.0


def spearman(left: Sequence[float], right: Sequence[float]) -> float:
    """Spearman's rank correlation, ties at their mean rank: sees any monotone relation, and is not led by outliers."""
    return pearson(_ranks(left), _ranks(right))


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        stop = start
        while stop + 1 < len(order) and values[order[stop + 1]] == values[order[start]]:
            stop += 1
        for position in range(start, stop + 1):
            ranks[order[position]] = (start + stop) / 2
        start = stop + 1
    return ranks


@dataclass(frozen=True)
class LaggedCorrelation:
    """How ``left`` and ``right`` move together when ``right`` is looked at ``lag`` later."""

    left: str
    right: str
    lag: dt.timedelta
    """Where the correlation is strongest; positive: ``left`` moves first."""
    pearson: float
    spearman: float
    pearson_without_lag: float
    pairs: int


def correlate_series(
    left: Series, right: Series, *, max_lag: dt.timedelta = dt.timedelta(minutes=1), step: dt.timedelta | None = None
) -> LaggedCorrelation:
    """The strongest correlation within ``max_lag`` either way; averaged over ``step`` (at most 100 by default)."""
    common = step or max(left.step, right.step, choose_bucket(min(left.end - left.start, right.end - right.start), 100))
    start = max(left.start, right.start)
    left_values, right_values = _aligned(left, start, common), _aligned(right, start, common)
    most = math.floor(max_lag / common)
    best: tuple[float, int, list[float], list[float]] = (-1.0, 0, [], [])
    without = 0.0
    for lag in sorted(range(-most, most + 1), key=abs):  # of equal ones the shortest lag is taken
        first, second = _paired(left_values, right_values, lag)
        value = pearson(first, second)
        if lag == 0:
            without = value
        if abs(value) > best[0] + 1e-9 and len(first) >= 8:
            best = (abs(value), lag, first, second)
    _, lag, first, second = best
    return LaggedCorrelation(
        left.name, right.name, lag * common, pearson(first, second), spearman(first, second), without, len(first)
    )


def _aligned(series: Series, start: dt.datetime, step: dt.timedelta) -> list[float]:
    """The mean of the series in each step from ``start`` on."""
    groups: dict[int, list[float]] = {}
    for index, value in enumerate(series.values):
        if not math.isnan(value) and (at := series.at(index)) >= start:
            groups.setdefault(math.floor((at - start) / step), []).append(value)
    return [
        statistics.fmean(groups[index]) if index in groups else math.nan for index in range(max(groups, default=-1) + 1)
    ]


def _paired(left: list[float], right: list[float], lag: int) -> tuple[list[float], list[float]]:
    pairs = [
        (left[index], right[index + lag])
        for index in range(len(left))
        if 0 <= index + lag < len(right) and not math.isnan(left[index]) and not math.isnan(right[index + lag])
    ]
    return [first for first, _ in pairs], [second for _, second in pairs]


@dataclass(frozen=True)
class ChangeCorrelation:
    """One change, measured against the onset; ``score`` is between 0 and 1 and the product of the four factors."""

    change: Change
    lag: dt.timedelta
    """From the change to the onset; negative when the change came later."""
    lag_to_effect: dt.timedelta
    """From the change to the first effect: the earliest departure of a gauge, or the onset when none departed."""
    errors_before_per_minute: float
    errors_after_per_minute: float
    ratio: float
    order_factor: float
    """1 before the first effect; 0.1 between effect and onset, since the effect may be misjudged; 0 after the onset."""
    proximity_factor: float
    """``half_life / (half_life + lag_to_effect)``: 1 at once, one half when the effect came a half-life later."""
    ratio_factor: float
    """1 - 1 / ratio: how much of the error rate after the change is new."""
    superseded_factor: float
    """Halves with every later change that also came before the first effect."""
    score: float


def correlate_changes(
    changes: Sequence[Change],
    onset: Onset,
    errors: Series,
    departures: Sequence[Departure] = (),
    *,
    window: dt.timedelta = dt.timedelta(minutes=10),
    half_life: dt.timedelta = dt.timedelta(minutes=10),
    tolerance: dt.timedelta = dt.timedelta(seconds=2),
) -> tuple[ChangeCorrelation, ...]:
    """How well each change explains the onset, the best first.

    Args:
        changes: what was changed.
        onset: when the errors began.
        errors: counts of errors, for the rates before and after each change.
        departures: gauges that left their level; the earliest before the onset is taken as the first effect.
        window: so long before and after a change errors are counted.
        half_life: see ``proximity_factor``.
        tolerance: clocks and sampling may put an effect so much before its cause.
    """
    effect_at = min([onset.at, *(departure.at for departure in departures)])
    found: list[ChangeCorrelation] = []
    for change in changes:
        lag, lag_to_effect = onset.at - change.at, effect_at - change.at
        before = _rate(errors.between(change.at - window, change.at))
        after = _rate(errors.between(change.at, change.at + window))
        floor = 0.5 / max(1.0, (change.at - max(errors.start, change.at - window)).total_seconds() / 60)
        ratio = after / max(before, floor)
        order = 1.0 if lag_to_effect >= -tolerance else 0.1 if lag >= -tolerance else 0.0
        proximity = half_life / (half_life + max(lag_to_effect, dt.timedelta()))
        later = sum(1 for other in changes if change.at < other.at <= effect_at + tolerance)
        ratio_factor = max(0.0, 1 - 1 / ratio) if ratio > 0 else 0.0
        superseded = 0.5**later
        found.append(
            ChangeCorrelation(
                change=change,
                lag=lag,
                lag_to_effect=lag_to_effect,
                errors_before_per_minute=before,
                errors_after_per_minute=after,
                ratio=ratio,
                order_factor=order,
                proximity_factor=proximity,
                ratio_factor=ratio_factor,
                superseded_factor=superseded,
                score=order * proximity * ratio_factor * superseded,
            )
        )
    return tuple(sorted(found, key=lambda item: -item.score))


def _rate(series: Series) -> float:
    known = series.known()
    return sum(known) / len(known) * 60 / series.step.total_seconds() if known else 0.0
