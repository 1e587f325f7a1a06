"""Messages that differ only in numbers, ids and quoted values are one template."""

from __future__ import annotations

import datetime as dt
import re
from collections import Counter
from dataclasses import dataclass

from .lines import Level, LogLine
from .series import Series, bucketed

__all__ = ["OTHER", "Template", "TemplateTable", "mask"]

OTHER = "<other templates>"
"""Stands for what came after a table was full."""

_MASKS = re.compile(
    r"""
    (?=["'0-9a-fA-F])  # most characters begin nothing: one look tells
    (?:
      (?P<uuid>\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b)
    | (?P<time>\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:\ ?Z|[+-]\d\d(?::?\d\d)?)?)
    | (?P<ip>\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b|\b(?:[0-9a-fA-F]{1,4}:){3,7}[0-9a-fA-F]{1,4}\b)
    | (?P<str>"[^"]*"|(?<![\w>])'[^']*'(?![\w<]))
    | (?P<hex>\b0x[0-9a-fA-F]+\b|\b(?=[0-9a-fA-F]{8})(?=[a-fA-F]*[0-9])(?=[0-9]*[a-fA-F])[0-9a-fA-F]+\b)
    | (?P<dur>\b\d+(?:\.\d+)?\ ?(?:ns|us|µs|ms|s|sec|seconds|min|minutes|h)\b)
    | (?P<num>\d+(?:[.,]\d+)*)
    )
    """,
    re.VERBOSE,
)
_PLACEHOLDERS = {name: f"<{name}>" for name in _MASKS.groupindex}


def mask(message: str) -> str:
    """The message with ids, times, addresses, quoted text, durations and numbers as placeholders such as ``<num>``."""
    return _MASKS.sub(lambda found: _PLACEHOLDERS[found.lastgroup or "num"], message)


@dataclass(frozen=True)
class Template:
    """A message template and when it was seen; ``example`` is its first message, ``line_number`` where it stands."""

    text: str
    level: Level
    count: int
    first_at: dt.datetime
    last_at: dt.datetime
    example: str
    line_number: int
    seconds: dict[int, int]
    """How many in each second of the epoch that had any."""

    def series(self, start: dt.datetime, end: dt.datetime, bucket: dt.timedelta) -> Series:
        """How many there were in each bucket from ``start`` on."""
        return bucketed(self.text, self.seconds, start, end, bucket)

    def count_between(self, start: dt.datetime, end: dt.datetime) -> int:
        """How many there were from ``start`` until before ``end``, to the second."""
        low, high = start.timestamp(), end.timestamp()
        return sum(count for second, count in self.seconds.items() if low <= second < high)


@dataclass(slots=True)
class _Growing:
    level: Level
    first_at: dt.datetime
    last_at: dt.datetime
    example: str
    line_number: int
    count: int
    seconds: Counter[int]


class TemplateTable:
    """Templates as they come; holds at most ``limit`` of them, what is new after that counts as :data:`OTHER`."""

    def __init__(self, limit: int = 2000) -> None:
        self._limit = limit
        self._rows: dict[tuple[str, Level], _Growing] = {}

    def add(self, line: LogLine) -> None:
        """The line is counted; one with a traceback counts together with its exception."""
        text = mask(line.message)
        exception = line.fields.get("exception")
        if exception is not None:
            text = f"{text} | {mask(exception)}"
        key = (text, line.level)
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= self._limit:
                key = (OTHER, line.level)
                row = self._rows.get(key)
            if row is None:
                row = _Growing(line.level, line.at, line.at, line.message, line.line_number, 0, Counter())
                self._rows[key] = row
        row.count += 1
        row.seconds[int(line.at.timestamp())] += 1
        if line.at > row.last_at:
            row.last_at = line.at
        elif line.at < row.first_at:
            row.first_at = line.at

    def templates(self) -> tuple[Template, ...]:
        """The templates, the most frequent first."""
        rows = sorted(self._rows.items(), key=lambda item: (-item[1].count, item[0]))
        return tuple(
            Template(
                text, row.level, row.count, row.first_at, row.last_at, row.example, row.line_number, dict(row.seconds)
            )
            for (text, _), row in rows
        )
