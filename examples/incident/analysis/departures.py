"""When a gauge left its usual level: earlier than the errors, it points at the cause.

Method: a constant is compared with a step and with a hinge (constant, then a straight line), each fitted by least
squares at every cut. The better of the two is taken where it explains at least ``min_r_squared`` of the variance, and
where the level at the end lies at least ``min_sigmas`` robust deviations of the baseline, and ``min_relative`` of it,
away from the baseline.
"""

from __future__ import annotations

import datetime as dt
import itertools
import math
import statistics
from dataclasses import dataclass

from .series import Series, choose_bucket

__all__ = ["Departure", "find_departure", "robust_deviation"]


@dataclass(frozen=True)
class Departure:
    """``series`` left its baseline at ``at`` and stood at ``level`` at the end of the window looked at."""

    series: str
    at: dt.datetime
    shape: str
    """step or ramp."""
    baseline: float
    level: float
    r_squared: float

    @property
    def rises(self) -> bool:
        """Whether there is more of it than before."""
        return self.level > self.baseline

    @property
    def relative(self) -> float:
        """The change as a share of the baseline (of the level, when the baseline is nothing)."""
        return (self.level - self.baseline) / (abs(self.baseline) or abs(self.level) or 1.0)


def robust_deviation(values: list[float]) -> float:
    """The spread of most values: 1.4826 times the median distance from the median."""
    if not values:
        return 0.0
    middle = statistics.median(values)
    return 1.4826 * statistics.median(abs(value - middle) for value in values)


def find_departure(
    series: Series,
    *,
    until: dt.datetime | None = None,
    min_relative: float = 0.5,
    min_sigmas: float = 4.0,
    min_r_squared: float = 0.5,
    min_side: int = 5,
) -> Departure | None:
    """The moment at which a gauge left its level before ``until``, or None when it kept to it."""
    window = series.between(end=until)
    step = choose_bucket(window.end - window.start)
    if step > window.step:
        window = window.resampled(step, statistics.fmean)
    points = [(index, value) for index, value in enumerate(window.values) if not math.isnan(value)]
    if len(points) < 3 * min_side:
        return None
    values = [value for _, value in points]
    mean = statistics.fmean(values)
    total = sum((value - mean) ** 2 for value in values)
    if total == 0:
        return None
    sums = [0.0, *itertools.accumulate(values)]
    fits = [
        fit
        for cut in range(min_side, len(points) - 2)
        for fit in (_step(sums, mean, cut, total), _hinge(points, cut, mean, total))
    ]
    best, shape, cut = max(fits)
    before = values[:cut]
    baseline = statistics.median(before)
    level = statistics.median(values[-max(3, min(min_side, (len(values) - cut) // 2)) :])
    spread = max(robust_deviation(before), statistics.pstdev(before) if len(before) > 1 else 0.0)
    departure = Departure(series.name, window.at(points[cut][0]), shape, baseline, level, best)
    if best < min_r_squared or abs(level - baseline) < min_sigmas * spread or abs(departure.relative) < min_relative:
        return None
    return departure


def _step(sums: list[float], mean: float, cut: int, total: float) -> tuple[float, str, int]:
    """The share of variance that two levels explain."""
    count = len(sums) - 1
    low, high = sums[cut] / cut, (sums[-1] - sums[cut]) / (count - cut)
    return (cut * (low - mean) ** 2 + (count - cut) * (high - mean) ** 2) / total, "step", cut


def _hinge(points: list[tuple[int, float]], cut: int, mean: float, total: float) -> tuple[float, str, int]:
    """The share of variance that a level and a line from the cut on explain."""
    origin = points[cut - 1][0]
    hinge = [max(0, index - origin) for index, _ in points]
    hinge_mean = sum(hinge) / len(hinge)
    spread = sum((value - hinge_mean) ** 2 for value in hinge)
    together = sum((h - hinge_mean) * (value - mean) for h, (_, value) in zip(hinge, points, strict=True))
    return together**2 / (spread * total) if spread else 0.0, "ramp", cut
