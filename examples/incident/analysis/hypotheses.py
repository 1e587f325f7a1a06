"""What may have caused the errors, each hypothesis weighed by what was measured.

A hypothesis starts at even log-odds against it (``PRIOR``), and every piece of evidence adds its weight in log-odds;
the score is the logistic of the sum. Weights are bounded, so that no single measurement decides. They are a
convention, not a fit: scores rank hypotheses and show their distance, they are no probabilities of being right.
"""

from __future__ import annotations

import datetime as dt
import math
import statistics
from dataclasses import dataclass

from .correlation import ChangeCorrelation, correlate_series
from .departures import Departure, find_departure, robust_deviation
from .onset import Onset
from .series import Series

__all__ = ["Evidence", "Hypothesis", "judge_change", "judge_errors_elsewhere", "judge_resource", "judge_traffic"]

PRIOR = -1.0


@dataclass(frozen=True)
class Evidence:
    """One measurement; a positive ``weight`` speaks for the hypothesis, a negative one against it."""

    statement: str
    value: float
    weight: float


@dataclass(frozen=True)
class Hypothesis:
    """A possible cause with its evidence; ``subject`` is the series or the change it is about."""

    kind: str
    """change, resource, traffic or dependency."""
    subject: str
    statement: str
    evidence: tuple[Evidence, ...]

    @property
    def score(self) -> float:
        """Between 0 and 1."""
        return 1 / (1 + math.exp(-(PRIOR + sum(item.weight for item in self.evidence))))

    @property
    def supporting(self) -> tuple[Evidence, ...]:
        """What speaks for it, the heaviest first."""
        return tuple(sorted((item for item in self.evidence if item.weight > 0), key=lambda item: -item.weight))

    @property
    def refuting(self) -> tuple[Evidence, ...]:
        """What speaks against it, the heaviest first."""
        return tuple(sorted((item for item in self.evidence if item.weight < 0), key=lambda item: item.weight))


def _bounded(value: float, low: float, high: float) -> float:
    return max(low, min(high, value))


def _medians(series: Series, onset: Onset) -> tuple[float, float, list[float], list[float]]:
    before, after = series.between(end=onset.at).known(), series.between(onset.at, onset.ended_at).known()
    return (
        statistics.median(before) if before else math.nan,
        statistics.median(after) if after else math.nan,
        before,
        after,
    )


def _growth(name: str, before: float, after: float, spread: float, what: str = "median") -> Evidence:
    """How much more of it there was in the incident: twice as much weighs 1.5, less than a fifth more is against it."""
    change = after - before
    relative = change / (abs(before) or abs(after) or 1.0)
    if abs(before) < 1e-12 and after > 0:
        return Evidence(f"{name} went from 0 to {after:g} ({what})", after, 2.0)
    weight = _bounded(2 * math.log2(max(1 + relative, 1e-3)) - 0.5, -1.5, 2.0)
    said = f"{name} went from {before:g} to {after:g} ({what}), {relative:+.0%}; usual spread {spread:g}"
    return Evidence(said, relative, weight)


def judge_resource(
    series: Series,
    onset: Onset,
    errors: Series,
    capacity: Series | None = None,
    first: Departure | None = None,
) -> Hypothesis:
    """Whether the exhaustion of a resource (connections, memory, threads …) brought the errors.

    Args:
        series: how much of it was used.
        onset: when errors began.
        errors: counts of errors.
        capacity: how much of it there is, where that is known.
        first: the gauge that left its level before all others: what follows it is more likely a consequence.
    """
    name = series.name
    before, after, before_values, after_values = _medians(series, onset)
    statement = f"{name} ran out, and the errors are what that looks like"
    if not before_values or not after_values:
        return Hypothesis("resource", name, statement, (Evidence(f"{name} is not known before or after", 0.0, 0.0),))
    evidence = [_growth(name, before, after, robust_deviation(before_values))]
    together = correlate_series(series, errors, max_lag=dt.timedelta(seconds=60))
    said = (
        f"correlation with errors r={together.pearson_without_lag:+.2f} (strongest {together.pearson:+.2f} with "
        f"{name} {together.lag.total_seconds():+.0f} s ahead, {together.pairs} pairs)"
    )
    evidence.append(Evidence(said, together.pearson_without_lag, _bounded(2 * together.pearson_without_lag, -1.5, 1.5)))
    departure = find_departure(series, until=onset.at)
    if departure is None:
        evidence.append(Evidence(f"{name} kept to its level until the errors began", 0.0, -1.0))
    elif not departure.rises:
        evidence.append(Evidence(f"{name} fell before the errors began", departure.relative, -1.0))
    else:
        lead = (onset.at - departure.at).total_seconds()
        fit = f"{departure.shape}, R²={departure.r_squared:.2f}"
        said = f"{name} left its level {lead:.0f} s before the errors began ({fit})"
        evidence.append(Evidence(said, lead, 1.0))
        if (
            first is not None
            and (behind := (departure.at - first.at).total_seconds()) > 3 * series.step.total_seconds()
        ):
            evidence.append(Evidence(f"{first.series} had left its level {behind:.0f} s earlier", behind, -2.0))
    if capacity is not None and (limits := capacity.between(onset.at, onset.ended_at).known()):
        limit = statistics.median(limits)
        full = sum(value >= 0.95 * limit for value in after_values) / len(after_values)
        full_before = sum(value >= 0.95 * limit for value in before_values) / len(before_values)
        said = f"{name} was at its limit of {limit:g} {full:.0%} of the time, {full_before:.0%} before"
        evidence.append(Evidence(said, full - full_before, _bounded(3 * (full - full_before) - 1, -1.0, 2.0)))
    elif capacity is None:
        evidence.append(Evidence(f"whether {name} reached a limit is not known", 0.0, -1.0))
    return Hypothesis("resource", name, statement, tuple(evidence))


def judge_traffic(requests: Series, onset: Onset) -> Hypothesis:
    """Whether more requests came than the system could take."""
    _, _, before_values, after_values = _medians(requests, onset)
    statement = "more requests came than the system could take"
    if not before_values or not after_values:
        return Hypothesis("traffic", requests.name, statement, ())
    mean_before, mean_after = statistics.fmean(before_values), statistics.fmean(after_values)
    evidence = [
        _growth(requests.name, round(mean_before, 2), round(mean_after, 2), robust_deviation(before_values), "mean")
    ]
    peak = max(before_values)
    share = sum(value > peak for value in after_values) / len(after_values)
    said = f"{share:.0%} of the time there were more {requests.name} than ever before ({peak:g})"
    evidence.append(Evidence(said, share, _bounded(4 * share - 0.5, -0.5, 1.5)))
    return Hypothesis("traffic", requests.name, statement, tuple(evidence))


def judge_errors_elsewhere(errors: Series, onset: Onset) -> Hypothesis:
    """Whether a dependency (the database, say) had errors of its own that explain the service's."""
    before, after = errors.between(end=onset.at), errors.between(onset.at, onset.ended_at)
    statement = f"the cause shows in {errors.name}"
    minutes = errors.step.total_seconds() / 60
    counts = sum(before.known()), sum(after.known())
    if not before.values or not after.values:
        return Hypothesis(
            "dependency", errors.name, statement, (Evidence("its log does not cover both sides", 0, -0.5),)
        )
    rates = counts[0] / (len(before.values) * minutes), counts[1] / (len(after.values) * minutes)
    ratio = (rates[1] + 0.01) / (rates[0] + 0.01)
    said = f"{errors.name}: {rates[0]:.1f} a minute before, {rates[1]:.1f} after ({counts[0]:.0f} and {counts[1]:.0f})"
    few = counts[0] + counts[1] < 5
    weight = _bounded(math.log2(ratio), -2.0, 2.0) * (0.5 if few else 1.0)
    return Hypothesis(
        "dependency", errors.name, statement, (Evidence(said, ratio, weight if ratio > 2 else min(weight, -1.0)),)
    )


def judge_change(correlation: ChangeCorrelation) -> Hypothesis:
    """Whether this change brought the errors."""
    change = correlation.change
    lag, effect = correlation.lag.total_seconds(), correlation.lag_to_effect.total_seconds()
    evidence: list[Evidence] = []
    if correlation.order_factor == 1.0:
        evidence.append(
            Evidence(f"came {effect:.0f} s before the first effect, {lag:.0f} s before the errors", effect, 1.0)
        )
    elif correlation.order_factor > 0:
        said = f"came {-effect:.0f} s after the first effect, though {lag:.0f} s before the errors"
        evidence.append(Evidence(said, effect, -2.0))
    else:
        evidence.append(Evidence(f"came {-lag:.0f} s after the errors began", lag, -4.0))
    said = (
        f"{correlation.errors_before_per_minute:.1f} errors a minute before it, "
        f"{correlation.errors_after_per_minute:.1f} after (x{correlation.ratio:.1f})"
    )
    evidence.append(Evidence(said, correlation.ratio, _bounded(math.log2(max(correlation.ratio, 0.01)) / 2, -2.0, 1.5)))
    if correlation.superseded_factor < 1.0:
        later = round(-math.log2(correlation.superseded_factor))
        evidence.append(Evidence(f"nothing happened until {later} more change(s) had been made", later, -1.0 * later))
    elif correlation.order_factor == 1.0:
        evidence.append(Evidence("no other change lies between it and the first effect", 0, 1.0))
    return Hypothesis("change", change.name, f"{change.name} brought the errors", tuple(evidence))
