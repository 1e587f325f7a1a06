"""From the lines of a file to events: the format found by trial, continuation lines joined, losses counted."""

from __future__ import annotations

import datetime as dt
import itertools
import re
from collections.abc import Iterable, Iterator

from .formats import LineFormat, all_formats
from .lines import LogLine, Parsed

__all__ = ["LogReader", "detect_format", "read_log"]

TRIAL_LINES = 300
SAMPLES = 5
MAX_MORE = 8_000
"""Characters of continuation that an event keeps; a traceback longer than that is cut."""

_BLOCK_START = re.compile(
    r"Traceback |DETAIL: |HINT: |CONTEXT: |Caused by: |"
    r"During handling of |The above exception |\.\.\. \d+ more|---|goroutine "
)
_EXCEPTION = re.compile(r"[A-Za-z_][\w.$]*(?:Error|Exception|Timeout|Warning|Exit|Interrupt|Failure)(?::|$)")
# Other names end a traceback, but do not begin a continuation by themselves: `nginx.conf: test is successful`.
_QUALIFIED = re.compile(r"[A-Za-z_]\w*(?:\.\w+)+(?:: |$)")


def detect_format(sample: Iterable[str], reference: dt.datetime, zone: dt.tzinfo = dt.UTC) -> LineFormat | None:
    """The format that reads the most lines of the sample, or None when none reads any."""
    candidates = all_formats(reference, zone)
    counts = [0] * len(candidates)
    for text in sample:
        if not text or text[0].isspace():
            continue
        for index, candidate in enumerate(candidates):
            counts[index] += candidate.parse(text) is not None
    best = max(range(len(candidates)), key=lambda index: (counts[index], -index))
    return candidates[best] if counts[best] else None


class LogReader:
    """The events of one log, read in one pass as they are iterated; the counts are complete when that has ended.

    Attributes:
        source: the log's name, as given.
        format_name: the format found, or None when no line could be read.
        physical_lines: lines seen, empty ones and continuations included.
        events: events handed out.
        unparsed: lines that neither begin an event nor continue one.
        unparsed_samples: the first few of those, as ``(line number, text)``.
    """

    def __init__(self, lines: Iterable[str], source: str, reference: dt.datetime, zone: dt.tzinfo) -> None:
        stream = iter(lines)
        trial = [line.rstrip("\r\n") for line in itertools.islice(stream, TRIAL_LINES)]
        self._lines = itertools.chain(trial, stream)
        self._format = detect_format(trial, reference, zone)
        self.source = source
        self.format_name = None if self._format is None else self._format.name
        self.physical_lines = 0
        self.events = 0
        self.unparsed = 0
        self.unparsed_samples: list[tuple[int, str]] = []

    def __iter__(self) -> Iterator[LogLine]:
        parse = None if self._format is None else self._format.parse
        source = self.source
        pending: Parsed | None = None
        pending_number = number = 0
        more: list[str] = []
        for number, raw in enumerate(self._lines, start=1):
            text = raw.rstrip("\r\n")
            parsed = parse(text) if parse is not None and text and text[0] not in " \t" else None
            if parsed is None:
                if pending is not None and (not text or self._continues(text, more)):
                    more.append(text)
                elif text.strip():
                    self._lost(number, text)
                continue
            if pending is not None:
                if "continues" in parsed.fields:
                    self._attach(pending, more)
                    more = [parsed.message]
                    pending.fields["continues"] = parsed.fields["continues"]
                    continue
                yield self._finish(pending, more, source, pending_number)
                more = []
            pending, pending_number = parsed, number
        self.physical_lines = number
        if pending is not None:
            yield self._finish(pending, more, source, pending_number)

    def _finish(self, parsed: Parsed, more: list[str], source: str, number: int) -> LogLine:
        self.events += 1
        if more or "continues" in parsed.fields:
            self._attach(parsed, more)
        return LogLine(parsed.at, parsed.level, source, parsed.message, parsed.fields, number)

    @staticmethod
    def _attach(parsed: Parsed, more: list[str]) -> None:
        """What was gathered is in the event's fields, under the name of the PostgreSQL line it began with if any."""
        name = parsed.fields.pop("continues", "more")
        while more and not more[-1].strip():
            more.pop()
        if not more:
            return
        text = "\n".join(more)[:MAX_MORE]
        parsed.fields[name] = f"{parsed.fields[name]}\n{text}" if name in parsed.fields else text
        if name == "more" and (_EXCEPTION.match(more[-1]) or _QUALIFIED.match(more[-1])):
            parsed.fields["exception"] = more[-1]

    @staticmethod
    def _continues(text: str, more: list[str]) -> bool:
        """Whether the line goes on with the event before: indented, or inside or at the start of a traceback."""
        if text[0] in " \t" or _BLOCK_START.match(text) is not None or _EXCEPTION.match(text) is not None:
            return True
        return bool(more) and (text[0] in "})]" or _QUALIFIED.match(text) is not None)

    def _lost(self, number: int, text: str) -> None:
        self.unparsed += 1
        if len(self.unparsed_samples) < SAMPLES:
            self.unparsed_samples.append((number, text[:200]))


def read_log(
    lines: Iterable[str], source: str, *, reference: dt.datetime | None = None, zone: dt.tzinfo = dt.UTC
) -> LogReader:
    """A reader over the lines of one log.

    Args:
        lines: an open file, or any other lines; each is looked at once, so a log may be larger than memory.
        source: what to call the log in the events.
        reference: no event is later than this (a file's modification time, say); gives RFC 3164 lines their year.
            The present when None.
        zone: the zone of times that name none.
    """
    return LogReader(lines, source, reference or dt.datetime.now(dt.UTC), zone)
