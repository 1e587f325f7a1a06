"""What was measured: samples by part, case and contestant; one table, and JSON."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

OURS = "blackboard"
CEILING = ("bare table", "pgbench")


@dataclass
class Series:
    """The samples of one figure.

    Attributes:
        part: of the benchmark.
        case: what was done.
        who: did it.
        unit: of the samples.
        higher: whether more is better; None where it is neither.
        samples: in the order taken.
        others: CPU seconds a second that the rest of the machine used meanwhile, in cores.
        note: what to know.
    """

    part: str
    case: str
    who: str
    unit: str
    higher: bool | None = True
    samples: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def median(self) -> float:
        """Of the samples."""
        return statistics.median(self.samples)

    def text(self) -> str:
        """Median and range."""
        if len(self.samples) == 1:
            return number(self.median)
        return f"{number(self.median)} ({number(min(self.samples))}-{number(max(self.samples))})"


class Report:
    """Collects figures; a figure that fails is told and not made up."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, str, str], Series] = {}
        self.failures: list[str] = []

    def add(
        self,
        part: str,
        case: str,
        who: str,
        value: float,
        unit: str,
        *,
        higher: bool | None = True,
        others: float | None = None,
        note: str = "",
    ) -> None:
        """One more sample."""
        series = self.series.setdefault((part, case, who), Series(part, case, who, unit, higher, note=note))
        series.samples.append(value)
        if others is not None:
            series.others.append(others)
        print(f"  {part}: {case}, {who}: {number(value)} {unit}", flush=True)

    def fail(self, what: str) -> None:
        """It could not be measured."""
        self.failures.append(what)
        print(f"  not measured: {what}", flush=True)

    def median(self, part: str, case: str, who: str = OURS) -> float | None:
        """Of what was measured."""
        series = self.series.get((part, case, who))
        return series.median if series and series.samples else None

    def table(self) -> str:
        """All of it: a line for each contestant in each case, and what ours is to it."""
        lines = [
            "| case | who | median (min-max) | unit | blackboard is |",
            "| --- | --- | ---: | --- | ---: |",
        ]
        part = ""
        groups: dict[tuple[str, str], list[Series]] = {}
        for series in self.series.values():
            groups.setdefault((series.part, series.case), []).append(series)
        for (name, case), rows in groups.items():
            if name != part:
                part = name
                lines.append(f"| **{name}** | | | | |")
            rows.sort(key=lambda row: (row.who != OURS, row.who not in CEILING, row.median * (-1 if row.higher else 1)))
            ours = next((row for row in rows if row.who == OURS), None)
            shown = case
            for row in rows:
                label = row.who + (f" ({row.note})" if row.note else "")
                lines.append(f"| {shown} | {label} | {row.text()} | {row.unit} | {_ratio(ours, row)} |")
                shown = ""
        if self.failures:
            lines += ["", "Not measured: " + "; ".join(self.failures)]
        return "\n".join(lines)

    def document(self, **facts: Any) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            **facts,
            "series": [asdict(series) | {"median": series.median} for series in self.series.values()],
            "failures": self.failures,
        }


def _ratio(ours: Series | None, row: Series) -> str:
    if ours is None or row is ours or row.higher is None or not row.median or not ours.median:
        return ""
    if row.higher:
        return f"x {ours.median / row.median:.2f}"
    return (
        f"x {row.median / ours.median:.2f} better"
        if row.median >= ours.median
        else (f"x {ours.median / row.median:.2f} worse")
    )


def number(value: float) -> str:
    """Three figures, thousands apart."""
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    if abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}"


def percentile(values: list[float], share: float) -> float:
    """The smallest value that so many are not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
