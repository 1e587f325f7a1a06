"""Small plots over time as inline SVG; colours come from the page's CSS variables, so that they follow its theme."""

from __future__ import annotations

import datetime as dt
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Bar", "Dot", "Lane", "Line", "Mark", "lanes_plot", "nice_ceiling", "time_plot"]

WIDTH = 880
LEFT, RIGHT = 56, 16
_TIME_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)


@dataclass(frozen=True)
class Line:
    """One series: its points in order of time; a gap where a value is NaN."""

    label: str
    points: Sequence[tuple[dt.datetime, float]]
    colour: int = 1
    """1 to 4: the page's ``--series-N``; 0 is the quiet colour of limits."""
    shape: str = "line"
    """``line``, ``area`` (filled to the axis), ``step`` (a value holds until the next), or ``limit`` (dashed)."""
    dots: bool = False


@dataclass(frozen=True)
class Mark:
    """A moment: a vertical line with a label."""

    at: dt.datetime
    label: str
    strong: bool = False


@dataclass(frozen=True)
class Bar:
    """A stretch of time in a lane; ``end`` None is open until the plot's end."""

    start: dt.datetime
    end: dt.datetime | None
    label: str
    kind: str = "done"
    """``done``, ``lost`` or ``open``."""


@dataclass(frozen=True)
class Dot:
    """An event in a lane."""

    at: dt.datetime
    label: str
    colour: int = 1


@dataclass(frozen=True)
class Lane:
    """One row of a lanes plot."""

    label: str
    bars: Sequence[Bar]
    dots: Sequence[Dot]


def nice_ceiling(value: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is not below ``value``."""
    if value <= 0 or not math.isfinite(value):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value * (1 - 1e-9))


def time_plot(
    title: str,
    lines: Sequence[Line],
    *,
    unit: str = "",
    marks: Sequence[Mark] = (),
    height: int = 190,
    top: float | None = None,
    clock: bool = True,
) -> str:
    """A plot of values over time from zero up, as an ``<svg>`` element.

    Args:
        title: what it shows; also its accessible name.
        lines: the series, at least one with a point.
        unit: after the numbers of the axis.
        marks: moments to point at; their labels are spread over rows where they would overlap.
        height: of the plot without title, labels and legend.
        top: the axis' end; by default above the largest value.
        clock: whether the axis shows times of day; otherwise seconds since the first point.
    """
    every = [(at, value) for line in lines for at, value in line.points if not math.isnan(value)]
    if not every:
        return ""
    start, end = min(at for at, _ in every), max(at for at, _ in every)
    if end <= start:
        end = start + dt.timedelta(seconds=1)
    shown = [mark for mark in marks if start <= mark.at <= end]
    rows = _label_rows(shown, start, end)
    head = 14 * (max(rows, default=-1) + 1) + 8
    high = top if top is not None else nice_ceiling(max(value for _, value in every))
    bottom = head + height
    legend, legend_rows = _legend(lines, bottom + 36, WIDTH - RIGHT - 7 * len(unit))
    total = bottom + 26 + 18 * legend_rows

    def x(at: dt.datetime) -> float:
        return LEFT + (at - start) / (end - start) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return bottom - min(max(value / high, 0.0), 1.0) * height

    parts = [
        (
            f'<svg class="plot" viewBox="0 0 {WIDTH} {total}" role="img" aria-label="{escape(title)}" '
            'xmlns="http://www.w3.org/2000/svg">'
        )
    ]
    step = nice_ceiling(high / 4.5)
    for number in range(math.floor(high / step + 1e-9) + 1):
        value = number * step
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{_number(value)}</text>'
        )
    for at, label in _ticks(start, end, clock):
        parts.append(f'<text class="tick" x="{x(at):.1f}" y="{bottom + 16}" text-anchor="middle">{label}</text>')
    for mark, row in zip(shown, rows, strict=True):
        kind = "mark strong" if mark.strong else "mark"
        anchor, dx = ("end", -4) if x(mark.at) > WIDTH * 0.72 else ("start", 4)
        label_y = 12 + 14 * row
        parts.append(
            f'<line class="{kind}" x1="{x(mark.at):.1f}" x2="{x(mark.at):.1f}" y1="{label_y - 8}" y2="{bottom}"/>'
        )
        style = "strong-label" if mark.strong else "tick"
        parts.append(
            f'<text class="{style}" x="{x(mark.at) + dx:.1f}" y="{label_y}" text-anchor="{anchor}">'
            f"{escape(mark.label)}</text>"
        )
    for line in lines:
        parts += _drawn(line, x, y, bottom, end)
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(legend)
    if unit:
        parts.append(
            f'<text class="tick" x="{WIDTH - RIGHT}" y="{bottom + 36}" text-anchor="end">{escape(unit)}</text>'
        )
    parts.append("</svg>")
    return "".join(parts)


def lanes_plot(
    title: str, lanes: Sequence[Lane], start: dt.datetime, end: dt.datetime, marks: Sequence[Mark] = ()
) -> str:
    """Who did what when: a row for each lane with its bars and dots, seconds since ``start`` on the axis."""
    if end <= start:
        end = start + dt.timedelta(seconds=1)
    left, pitch = 228, 34
    shown = [mark for mark in marks if start <= mark.at <= end]
    rows = _label_rows(shown, start, end)
    head = 14 * (max(rows, default=-1) + 1) + 10
    bottom = head + pitch * len(lanes)

    def x(at: dt.datetime) -> float:
        return left + min(max((at - start) / (end - start), 0.0), 1.0) * (WIDTH - left - RIGHT)

    parts = [
        (
            f'<svg class="plot" viewBox="0 0 {WIDTH} {bottom + 26}" role="img" aria-label="{escape(title)}" '
            'xmlns="http://www.w3.org/2000/svg">'
        )
    ]
    for at, label in _ticks(start, end, clock=False):
        parts.append(f'<line class="grid" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{head}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x(at):.1f}" y="{bottom + 16}" text-anchor="middle">{label}</text>')
    for mark, row in zip(shown, rows, strict=True):
        anchor, dx = ("end", -4) if x(mark.at) > WIDTH * 0.72 else ("start", 4)
        parts.append(
            f'<line class="mark strong" x1="{x(mark.at):.1f}" x2="{x(mark.at):.1f}" y1="{4 + 14 * row}" y2="{bottom}"/>'
            f'<text class="strong-label" x="{x(mark.at) + dx:.1f}" y="{12 + 14 * row}" text-anchor="{anchor}">'
            f"{escape(mark.label)}</text>"
        )
    for number, lane in enumerate(lanes):
        middle = head + pitch * number + pitch / 2
        parts.append(
            f'<text class="lane" x="{left - 12}" y="{middle + 4:.1f}" text-anchor="end">{escape(_cut(lane.label, 33))}'
            f'</text><line class="grid" x1="{left}" x2="{WIDTH - RIGHT}" y1="{middle:.1f}" y2="{middle:.1f}"/>'
        )
        for bar in lane.bars:
            low, high = x(bar.start), x(bar.end or end)
            parts.append(
                f'<rect class="bar {bar.kind}" x="{low:.1f}" y="{middle - 7:.1f}" width="{max(high - low, 2):.1f}" '
                f'height="14" rx="4"><title>{escape(bar.label)}</title></rect>'
            )
        for dot in lane.dots:
            parts.append(
                f'<circle class="dot s{dot.colour}" cx="{x(dot.at):.1f}" cy="{middle:.1f}" r="4">'
                f"<title>{escape(dot.label)}</title></circle>"
            )
    parts.append("</svg>")
    return "".join(parts)


def _drawn(
    line: Line,
    to_x: Callable[[dt.datetime], float],
    to_y: Callable[[float], float],
    bottom: float,
    end: dt.datetime,
) -> list[str]:
    runs: list[list[tuple[float, float]]] = [[]]
    for at, value in line.points:
        if math.isnan(value):
            runs.append([])
        else:
            runs[-1].append((to_x(at), to_y(value)))
    parts: list[str] = []
    for run in runs:
        if not run:
            continue
        if line.shape == "step":
            held = [run[0]]
            for before, after in itertools.pairwise(run):
                held += [(after[0], before[1]), after]
            held.append((to_x(end), run[-1][1]))
            drawn = held
        else:
            drawn = run
        path = "M" + "L".join(f"{px:.1f},{py:.1f}" for px, py in drawn)
        if line.shape == "area":
            fill = f"{path}L{run[-1][0]:.1f},{bottom}L{run[0][0]:.1f},{bottom}Z"
            parts.append(f'<path class="fill s{line.colour}" d="{fill}"/>')
        kind = "limit" if line.shape == "limit" else f"line s{line.colour}"
        parts.append(f'<path class="{kind}" d="{path}"/>')
        if line.dots:
            parts += [f'<circle class="dot s{line.colour}" cx="{px:.1f}" cy="{py:.1f}" r="3.5"/>' for px, py in run]
    return parts


def _legend(lines: Sequence[Line], y: float, most: float) -> tuple[str, int]:
    """The legend and how many rows it takes; no row goes beyond ``most``."""
    parts: list[str] = []
    at, rows = float(LEFT), 1
    for line in lines:
        kind = "limit" if line.shape == "limit" else f"line s{line.colour}"
        label = _cut(line.label, 100)
        width = 24 + 6.6 * len(label)
        if at > LEFT and at + width > most:
            at, rows, y = float(LEFT), rows + 1, y + 18
        parts.append(f'<path class="{kind}" d="M{at:.1f},{y - 4}h18"/>')
        parts.append(f'<text class="legend" x="{at + 24:.1f}" y="{y}">{escape(label)}</text>')
        at += width + 22
    return "".join(parts), rows


def _label_rows(marks: Sequence[Mark], start: dt.datetime, end: dt.datetime) -> list[int]:
    """A row for each label, so that none overlaps another."""
    taken: list[list[tuple[float, float]]] = []
    rows: list[int] = []
    for mark in marks:
        at = LEFT + (mark.at - start) / (end - start) * (WIDTH - LEFT - RIGHT)
        width = 6.4 * len(mark.label) + 14
        low, high = (at - width, at + 6) if at > WIDTH * 0.72 else (at - 6, at + width)
        row = next(
            (number for number, spans in enumerate(taken) if all(high < a or low > b for a, b in spans)), len(taken)
        )
        if row == len(taken):
            taken.append([])
        taken[row].append((low, high))
        rows.append(row)
    return rows


def _ticks(start: dt.datetime, end: dt.datetime, clock: bool) -> list[tuple[dt.datetime, str]]:
    span = (end - start).total_seconds()
    step = next((step for step in _TIME_STEPS if span / step <= 9), math.ceil(span / 9 / 86400) * 86400)
    origin = start.timestamp() if not clock else 0.0
    first = math.ceil((start.timestamp() - origin) / step - 1e-9)
    ticks: list[tuple[dt.datetime, str]] = []
    number = first
    while (at := dt.datetime.fromtimestamp(origin + number * step, dt.UTC)) <= end:
        if not clock:
            label = f"{number * step:g} s"
        elif step >= 86400:
            label = f"{at:%d %b}"
        elif step >= 60:
            label = f"{at:%H:%M}"
        else:
            label = f"{at:%H:%M:%S}"
        ticks.append((at, label))
        number += 1
    return ticks


def _number(value: float) -> str:
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1000 if letter == 'k' else limit):g}{letter}"
    return f"{value:g}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
