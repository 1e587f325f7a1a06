"""Values at even steps of time."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Series", "bucketed", "choose_bucket"]

BUCKETS = tuple(dt.timedelta(seconds=s) for s in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600))


@dataclass(frozen=True)
class Series:
    """``values[i]`` is what ``name`` was, or how often it came, from ``start + i * step`` on; NaN is not known."""

    name: str
    start: dt.datetime
    step: dt.timedelta
    values: tuple[float, ...]

    @property
    def end(self) -> dt.datetime:
        """The end of the last step."""
        return self.start + len(self.values) * self.step

    def at(self, index: int) -> dt.datetime:
        """When step ``index`` begins."""
        return self.start + index * self.step

    def index(self, at: dt.datetime) -> int:
        """The step that ``at`` falls into, which may lie before or after the values."""
        return math.floor((at - self.start) / self.step)

    def per_minute(self) -> tuple[float, ...]:
        """Counts as rates: how many a minute."""
        scale = 60 / self.step.total_seconds()
        return tuple(value * scale for value in self.values)

    def between(self, start: dt.datetime | None = None, end: dt.datetime | None = None) -> Series:
        """The steps that begin at ``start`` or later and before ``end``."""
        low = 0 if start is None else max(0, -math.floor((self.start - start) / self.step))
        high = len(self.values) if end is None else max(low, -math.floor((self.start - end) / self.step))
        return Series(self.name, self.at(low), self.step, self.values[low:high])

    def resampled(self, step: dt.timedelta, combine: Callable[[list[float]], float]) -> Series:
        """The series at a coarser step; ``combine`` gets the known values of each, a step without any is NaN."""
        groups: dict[int, list[float]] = {}
        for index, value in enumerate(self.values):
            groups.setdefault(int(index * self.step / step), []).append(value)
        values: list[float] = []
        for index in range(max(groups, default=-1) + 1):
            known = [value for value in groups.get(index, []) if not math.isnan(value)]
            values.append(combine(known) if known else math.nan)
        return Series(self.name, self.start, step, tuple(values))

    def known(self) -> list[float]:
        """The values that are known, in order."""
        return [value for value in self.values if not math.isnan(value)]


def choose_bucket(span: dt.timedelta, most: int = 400) -> dt.timedelta:
    """The smallest usual bucket that cuts ``span`` into at most ``most``."""
    for bucket in BUCKETS:
        if span <= bucket * most:
            return bucket
    return dt.timedelta(seconds=math.ceil(span.total_seconds() / most / 86400) * 86400)


def bucketed(
    name: str, seconds: Mapping[int, int], start: dt.datetime, end: dt.datetime, bucket: dt.timedelta
) -> Series:
    """Counts by second of the epoch, as a series of buckets from ``start`` until ``end`` is covered."""
    size = bucket.total_seconds()
    origin = math.floor(start.timestamp())
    count = max(1, math.floor((end.timestamp() - origin) / size) + 1)
    values = [0.0] * count
    for second, number in seconds.items():
        index = math.floor((second - origin) / size)
        if 0 <= index < count:
            values[index] += number
    return Series(name, dt.datetime.fromtimestamp(origin, dt.UTC), bucket, tuple(values))
