"""All files of a case looked at together; pure, from the answers of the shared readings."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from .analysis import (
    Change,
    Columns,
    Investigation,
    Level,
    Metrics,
    NoOnset,
    Onset,
    Series,
    classify_columns,
    detect_onset,
    investigate,
)
from .scan import Scan

__all__ = ["Examination", "clock", "examine", "moment", "rise"]

ACCESS = "access log"


@dataclass(frozen=True)
class Examination:
    """What the files say together.

    Attributes:
        primary: the log whose errors stand out most; the first one when none does.
        scans: all logs, the primary one included.
        found: the analysis of the primary log with all others.
    """

    primary: Scan
    scans: tuple[Scan, ...]
    metrics: Metrics | None
    changes: tuple[Change, ...]
    found: Investigation

    @property
    def onset(self) -> Onset | None:
        """When errors began, or None."""
        return self.found.onset if isinstance(self.found.onset, Onset) else None

    @property
    def columns(self) -> Columns | None:
        """What the metrics' columns are."""
        return None if self.metrics is None else classify_columns(list(self.metrics.columns))

    @property
    def requests(self) -> Series:
        """The load: the metrics' count of requests where there is one, else the log's lines."""
        columns = self.columns
        if self.metrics is not None and columns is not None and columns.traffic:
            return self.metrics.series(columns.traffic[0])
        lines = self.primary.digest.rate(Level.DEBUG)
        return Series(f"lines of {self.primary.digest.source}", lines.start, lines.step, lines.values)

    def series(self, name: str) -> Series | None:
        """One column of the metrics."""
        return None if self.metrics is None or name not in self.metrics.columns else self.metrics.series(name)

    def capacity(self, name: str) -> Series | None:
        """The limit of a resource, where the metrics have it."""
        columns = self.columns
        limit = None if columns is None else columns.capacities.get(name)
        return None if limit is None else self.series(limit)


def examine(scans: Sequence[Scan], metrics: Metrics | None = None, changes: Sequence[Change] = ()) -> Examination:
    """The logs, metrics and changes looked at together.

    Raises:
        ValueError: no log has any event.
    """
    usable = [scan for scan in scans if scan.digest.events]
    if not usable:
        raise ValueError("none of the logs has an event with a time")
    primary, strongest = usable[0], 0.0
    for scan in usable:
        onset = _onset(scan)
        if isinstance(onset, Onset) and onset.log_likelihood_ratio > strongest:
            primary, strongest = scan, onset.log_likelihood_ratio
    found = investigate(
        primary.digest,
        others=[scan.digest for scan in usable if scan is not primary],
        metrics=metrics,
        changes=changes,
        per_line=primary.digest.format_name == ACCESS,
    )
    return Examination(primary, tuple(scans), metrics, tuple(changes), found)


def _onset(scan: Scan) -> Onset | NoOnset:
    digest = scan.digest
    exposure = digest.rate(Level.DEBUG) if digest.format_name == ACCESS else None
    return detect_onset(digest.rate(Level.ERROR), exposure=exposure)


def clock(at: dt.datetime, *, like: dt.datetime | None = None) -> str:
    """The time of day in UTC; with the date where it is not that of ``like``."""
    text = f"{at.astimezone(dt.UTC):%H:%M:%S}"
    return text if like is not None and like.date() == at.date() else f"{at.astimezone(dt.UTC):%Y-%m-%d} {text}"


def rise(now: float, before: float) -> str:
    """Two rates in words: ``333.8 a minute, 0.73 before (459 times)``."""
    return f"{now:.1f} a minute, " + (
        f"{before:.2f} before ({now / before:.0f} times)" if before > 0 else "none before"
    )


def moment(delta: dt.timedelta) -> str:
    """A duration in the largest unit that suits it: ``14 s``, ``3 min``, ``2.5 h``."""
    seconds = abs(delta.total_seconds())
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
