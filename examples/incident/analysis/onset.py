"""When errors began: the interval in which a count stands out most, and whether that can be chance.

Method: the temporal scan statistic. Of all intervals of buckets the one is taken whose Poisson log-likelihood ratio
against an even rate is largest (only intervals with more than their share count). An interval of chance reaches a
ratio of ``t`` with a probability of at most ``exp(-t)`` (Chernoff), so with ``m`` intervals looked at, and the counts'
dispersion in the rest of the series as a divisor (errors come in bursts), ``t > ln(m / alpha)`` keeps false alarms
below ``alpha``. Counts that are significant but hardly raised are no incident: a ratio of at least ``min_ratio`` is
asked for too. The onset is the beginning of that interval, the baseline what lies before it.

Source: Kulldorff, "Prospective time periodic geographical disease surveillance using a scan statistic", J. R. Stat.
Soc. A 164 (2001); Naus, "The distribution of the size of the maximum cluster of points on a line", JASA 60 (1965).
"""

from __future__ import annotations

import datetime as dt
import itertools
import math
from dataclasses import dataclass

from .series import Series, choose_bucket

__all__ = ["NoOnset", "Onset", "detect_onset"]

METHOD = "temporal scan statistic (Poisson, dispersion-corrected)"


@dataclass(frozen=True)
class Onset:
    """Errors began to come more often at ``at``, to within ``step``."""

    series: str
    at: dt.datetime
    ended_at: dt.datetime | None
    """The end of the interval; None when there is no sign that it had ended when the series ends."""
    step: dt.timedelta
    baseline_per_minute: float
    incident_per_minute: float
    ratio: float
    """Incident over baseline (by exposure if given); a baseline of zero counts as half an event, to stay finite."""
    events: int
    log_likelihood_ratio: float
    threshold: float
    dispersion: float
    method: str = METHOD


@dataclass(frozen=True)
class NoOnset:
    """Nothing stood out; ``reason`` says why, in words that can be reported."""

    series: str
    reason: str
    per_minute: float
    log_likelihood_ratio: float = 0.0
    threshold: float = 0.0
    method: str = METHOD


def detect_onset(
    series: Series,
    *,
    exposure: Series | None = None,
    min_ratio: float = 2.0,
    min_events: int = 5,
    alpha: float = 0.001,
    min_baseline: int = 5,
) -> Onset | NoOnset:
    """The most unusual rise of a series of counts, or that there is none.

    Args:
        series: counts; steps that are not known (NaN) count as none.
        exposure: what the counts are in proportion to (requests, all lines), over the same steps: then a busy hour is
            no onset. Time, when None.
        min_ratio: a rise by less than this is not an onset.
        min_events: an interval with fewer events is not looked at.
        alpha: the probability of an onset in a series that has none.
        min_baseline: so many steps before the onset are needed to compare with.

    Raises:
        ValueError: ``exposure`` has other steps than ``series``.
    """
    coarse = choose_bucket(series.end - series.start)
    working = series.resampled(coarse, sum) if coarse > series.step else series
    counts = [0.0 if math.isnan(value) else value for value in working.values]
    weights = _weights(series, exposure, working)
    total, steps = sum(counts), len(counts)
    minutes = working.step.total_seconds() / 60
    per_minute = total / (steps * minutes) if steps else 0.0
    if total < min_events:
        return NoOnset(series.name, f"{total:.0f} events in all, fewer than {min_events}", per_minute)
    if steps < 2 * min_baseline:
        return NoOnset(series.name, f"only {steps} steps, too few to compare", per_minute)
    best, start, stop, looked_at = _scan(counts, weights, min_baseline, min_events)
    if best <= 0.0:
        return NoOnset(series.name, "no interval has more than its share of the events", per_minute)
    dispersion = _dispersion(counts[:start] + counts[stop:], weights[:start] + weights[stop:])
    ratio_of_logs, threshold = best / dispersion, math.log(looked_at / alpha)
    if ratio_of_logs < threshold:
        reason = (
            f"the densest interval ({working.at(start):%H:%M:%S} on, {stop - start} steps) can be chance: "
            f"log-likelihood ratio {ratio_of_logs:.1f}, {threshold:.1f} needed"
        )
        return NoOnset(series.name, reason, per_minute, ratio_of_logs, threshold)
    before, inside = sum(counts[:start]), sum(counts[start:stop])
    rate = inside / sum(weights[start:stop])
    ratio = rate / (max(before, 0.5) / sum(weights[:start]))
    if ratio < min_ratio:
        reason = f"the rate rose by a factor of {ratio:.2f} only, {min_ratio} is an onset"
        return NoOnset(series.name, reason, per_minute, ratio_of_logs, threshold)
    at, step = _refined(series, working, start, stop)
    fell = _fell(sum(counts[stop:]), rate * sum(weights[stop:]), dispersion, alpha)
    return Onset(
        series=series.name,
        at=at,
        ended_at=working.at(stop) if fell else None,
        step=step,
        baseline_per_minute=before / start / minutes,
        incident_per_minute=inside / (stop - start) / minutes,
        ratio=ratio,
        events=round(inside),
        log_likelihood_ratio=ratio_of_logs,
        threshold=threshold,
        dispersion=dispersion,
    )


def _weights(series: Series, exposure: Series | None, working: Series) -> list[float]:
    """How much each step weighs, one on average; steps with hardly any exposure weigh a twentieth of that."""
    if exposure is None:
        return [1.0] * len(working.values)
    if (exposure.start, exposure.step, len(exposure.values)) != (series.start, series.step, len(series.values)):
        raise ValueError(f"{exposure.name} must have the steps of {series.name}")
    summed = exposure if working.step == series.step else exposure.resampled(working.step, sum)
    known = [0.0 if math.isnan(value) else value for value in summed.values]
    mean = sum(known) / len(known) if known else 0.0
    return [max(value / mean, 0.05) if mean > 0 else 1.0 for value in known]


def _scan(counts: list[float], weights: list[float], min_baseline: int, min_events: int) -> tuple[float, int, int, int]:
    """The largest log-likelihood ratio, its interval, and how many intervals were looked at."""
    sums = [0.0, *itertools.accumulate(counts)]
    weighed = [0.0, *itertools.accumulate(weights)]
    steps, total = len(counts), sums[-1]
    share = total / weighed[-1]
    best, best_start, best_stop, looked_at = 0.0, 0, 0, 0
    for start in range(min_baseline, steps):
        before, weighed_before = sums[start], weighed[start]
        if counts[start] == 0:  # an interval that begins with an empty step is beaten by the one that begins later
            looked_at += steps - start
            continue
        for stop in range(start + 1, steps + 1):
            looked_at += 1
            inside = sums[stop] - before
            expected = share * (weighed[stop] - weighed_before)
            if inside <= expected or inside < min_events:
                continue
            ratio = inside * math.log(inside / expected)
            if inside < total:
                ratio += (total - inside) * math.log((total - inside) / (total - expected))
            if ratio > best:
                best, best_start, best_stop = ratio, start, stop
    return best, best_start, best_stop, looked_at


def _fell(events: float, expected: float, dispersion: float, alpha: float) -> bool:
    """Whether so few events after the interval are more than a lull: the same bound as for the interval itself."""
    if events >= expected:
        return False
    ratio = expected - events + (events * math.log(events / expected) if events else 0.0)
    return ratio / dispersion > math.log(1 / alpha)


def _dispersion(counts: list[float], weights: list[float]) -> float:
    """Variance over mean of counts, at least 1: how much burstier than Poisson they come."""
    events = sum(counts)
    if len(counts) < 2 or events == 0:
        return 1.0
    rate = events / sum(weights)
    squares = sum((count - rate * weight) ** 2 / (rate * weight) for count, weight in zip(counts, weights, strict=True))
    return max(1.0, squares / (len(counts) - 1))


def _refined(series: Series, working: Series, start: int, stop: int) -> tuple[dt.datetime, dt.timedelta]:
    """The onset to the step of the given series: the best cut of the two coarse steps around the beginning."""
    if working.step == series.step:
        return working.at(start), working.step
    low = max(1, series.index(working.at(start - 1)))
    window_end = min(len(series.values), series.index(working.at(stop)))
    window = [0.0 if math.isnan(value) else value for value in series.values[:window_end]]
    sums = [0.0, *itertools.accumulate(window)]
    high = min(len(window) - 1, series.index(working.at(start + 1)))
    if high < low:
        return working.at(start), working.step

    def fit(cut: int) -> float:
        """Log likelihood of one Poisson rate before the cut and one after it."""
        value = 0.0
        for events, length in ((sums[cut], cut), (sums[-1] - sums[cut], len(window) - cut)):
            if events > 0:
                value += events * math.log(events / length)
        return value

    return series.at(max(range(low, high + 1), key=fit)), series.step
