"""A metrics file (CSV with a header and a column of times) as series."""

from __future__ import annotations

import csv
import datetime as dt
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from .series import Series
from .timestamps import from_epoch, parse_iso

__all__ = ["Metrics", "MetricsError", "read_metrics"]

_TIME_NAMES = ("at", "time", "timestamp", "ts", "date", "datetime")


class MetricsError(ValueError):
    """The file is no CSV with a header and a column of times; the message says what is missing."""


@dataclass(frozen=True)
class Metrics:
    """Samples by name, all over the same times; a value that was empty or no number is NaN."""

    at: tuple[dt.datetime, ...]
    columns: dict[str, tuple[float, ...]]
    bad_rows: int
    """Rows whose time could not be read, which are left out."""
    bad_values: int
    """Values, other than empty ones, that are no numbers."""

    @property
    def step(self) -> dt.timedelta:
        """The usual time between two samples, to the second (never less than one)."""
        gaps = [(later - earlier).total_seconds() for earlier, later in zip(self.at, self.at[1:], strict=False)]
        return dt.timedelta(seconds=max(1, round(statistics.median(gaps)))) if gaps else dt.timedelta(seconds=1)

    def series(self, name: str) -> Series:
        """One column at an even step; of several samples in a step the last is taken, a step without any is NaN.

        Raises:
            KeyError: there is no such column.
        """
        values = self.columns[name]
        step, start = self.step, self.at[0]
        count = math.floor((self.at[-1] - start) / step + 0.5) + 1
        even = [math.nan] * count
        for at, value in zip(self.at, values, strict=True):
            even[math.floor((at - start) / step + 0.5)] = value
        return Series(name, start, step, tuple(even))


def read_metrics(lines: Iterable[str], zone: dt.tzinfo = dt.UTC) -> Metrics:
    """The metrics of a CSV file, in order of time.

    Raises:
        MetricsError: there is no header, no column of times, or not one row that could be read.
    """
    reader = csv.DictReader(line for line in lines if line.strip() and not line.startswith("#"))
    names = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = names
    time_name = next((name for name in names if name.lower() in _TIME_NAMES), None)
    if time_name is None:
        raise MetricsError(f"no column of times: one of {', '.join(_TIME_NAMES)} is needed, the header is {names}")
    rows: list[tuple[dt.datetime, list[float]]] = []
    others = [name for name in names if name != time_name]
    bad_rows = bad_values = 0
    for row in reader:
        at = _time(row.get(time_name) or "", zone)
        if at is None:
            bad_rows += 1
            continue
        values: list[float] = []
        for name in others:
            text = (row.get(name) or "").strip()
            try:
                values.append(float(text) if text else math.nan)
            except ValueError:
                values.append(math.nan)
                bad_values += 1
        rows.append((at, values))
    if not rows:
        raise MetricsError(f"not one row with a time that could be read ({bad_rows} without)")
    rows.sort(key=lambda row: row[0])
    columns = {name: tuple(values[index] for _, values in rows) for index, name in enumerate(others)}
    return Metrics(tuple(at for at, _ in rows), columns, bad_rows, bad_values)


def _time(text: str, zone: dt.tzinfo) -> dt.datetime | None:
    at = parse_iso(text.strip(), zone)
    if at is not None:
        return at
    try:
        return from_epoch(float(text))
    except ValueError:
        return None
