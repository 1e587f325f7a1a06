"""Which events a gauge's growth keeps step with: what leaks grows by one with each event of the kind that leaks it.

Method: between two moments the gauge is fitted by least squares to the running count of each kind of event. Counts of
anything frequent rise almost evenly and so fit any growth somewhat; the kind that is to blame fits in the steps too.
So kinds are ranked by how much of the variance is left over, and ``slope`` says how much is lost with each event.
"""

from __future__ import annotations

import datetime as dt
import itertools
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from .series import Series, bucketed

__all__ = ["GrowthMatch", "match_growth"]


@dataclass(frozen=True)
class GrowthMatch:
    """How well a gauge's growth keeps step with one kind of event."""

    series: str
    key: tuple[str, ...]
    """The values of the fields that the events were grouped by."""
    events: int
    slope: float
    """By how much the gauge grew with each event."""
    r_squared: float
    residual: float
    """The usual distance (root mean square) of the gauge from what the count says, in the gauge's unit."""


def match_growth(
    gauge: Series,
    groups: Mapping[tuple[str, ...], Mapping[int, int]],
    start: dt.datetime,
    end: dt.datetime,
    *,
    min_events: int = 3,
) -> tuple[GrowthMatch, ...]:
    """The kinds of events that a gauge grew with between two moments, the best fit first.

    Args:
        gauge: what grew.
        groups: kind to its counts by second of the epoch, as in :attr:`.LogDigest.groups`.
        start: take the gauge's departure, or a little before it.
        end: take the moment at which it stopped growing: past a limit nothing can be seen.
        min_events: kinds with fewer events are left out.
    """
    window = gauge.between(start, end)
    known = [(index, value) for index, value in enumerate(window.values) if not math.isnan(value)]
    if len(known) < 5:
        return ()
    levels = [value for _, value in known]
    total = sum((value - statistics.fmean(levels)) ** 2 for value in levels)
    if total == 0:
        return ()
    found: list[GrowthMatch] = []
    for key, seconds in groups.items():
        # A second of events is over when the sample at its end is taken.
        counts = bucketed("", seconds, window.start - window.step, window.end, window.step).values
        running = list(itertools.accumulate(counts))
        xs = [running[index] for index, _ in known]
        events = round(xs[-1] - xs[0])
        if events < min_events:
            continue
        slope, intercept = statistics.linear_regression(xs, levels)
        left = sum((value - slope * x - intercept) ** 2 for x, value in zip(xs, levels, strict=True))
        found.append(GrowthMatch(gauge.name, key, events, slope, 1 - left / total, math.sqrt(left / len(levels))))
    return tuple(sorted(found, key=lambda match: -match.r_squared))
