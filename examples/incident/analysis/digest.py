"""One pass over a log: how many lines of which level when, and the templates of what went wrong."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from .lines import Level, LogLine
from .reader import LogReader
from .series import Series, bucketed, choose_bucket
from .templates import Template, TemplateTable

__all__ = ["LogDigest", "digest_lines", "digest_log"]

MAX_GROUPS = 2000


@dataclass(frozen=True)
class LogDigest:
    """What one log says, in a size that grows with the time it spans and not with its lines."""

    source: str
    format_name: str | None
    events: int
    unparsed: int
    unparsed_samples: tuple[tuple[int, str], ...]
    first_at: dt.datetime | None
    last_at: dt.datetime | None
    levels: dict[Level, dict[int, int]]
    """How many events of a level in each second of the epoch that had any."""
    templates: tuple[Template, ...]
    """Templates of the events at or above the level asked for, the most frequent first."""
    groups: dict[tuple[str, ...], dict[int, int]]
    """Counts by second for each combination of the fields asked for; events that lack one of them are left out."""

    @property
    def bucket(self) -> dt.timedelta:
        """The bucket that suits the log's span."""
        if self.first_at is None or self.last_at is None:
            return dt.timedelta(minutes=1)
        return choose_bucket(self.last_at - self.first_at)

    def count(self, at_least: Level = Level.ERROR) -> int:
        """How many events of this level or worse there were."""
        return sum(sum(counts.values()) for level, counts in self.levels.items() if level >= at_least)

    def rate(
        self,
        at_least: Level = Level.ERROR,
        bucket: dt.timedelta | None = None,
        start: dt.datetime | None = None,
        end: dt.datetime | None = None,
    ) -> Series:
        """How many events of this level or worse there were in each bucket, from the log's first event to its last.

        Raises:
            ValueError: the log has no events, so it has no span.
        """
        if self.first_at is None or self.last_at is None:
            raise ValueError(f"{self.source} has no events")
        seconds: Counter[int] = Counter()
        for level, counts in self.levels.items():
            if level >= at_least:
                seconds.update(counts)
        name = f"{self.source} {at_least.name.lower()}s"
        return bucketed(name, seconds, start or self.first_at, end or self.last_at, bucket or self.bucket)


def digest_lines(
    lines: Iterable[LogLine],
    source: str,
    *,
    templates_from: Level = Level.WARNING,
    template_limit: int = 2000,
    group_by: Sequence[str] = (),
) -> LogDigest:
    """The digest of events from anywhere (for a whole log with its losses see :func:`digest_log`)."""
    groups: dict[tuple[str, ...], Counter[int]] = {}
    levels: dict[Level, Counter[int]] = {level: Counter() for level in Level}
    table = TemplateTable(template_limit)
    events = 0
    first_at: dt.datetime | None = None
    last_at: dt.datetime | None = None
    for line in lines:
        events += 1
        at = line.at
        second = int(at.timestamp())
        levels[line.level][second] += 1
        if last_at is None or at > last_at:
            last_at = at
        if first_at is None or at < first_at:
            first_at = at
        if line.level >= templates_from:
            table.add(line)
        if group_by:
            fields = line.fields
            try:
                key = tuple([fields[name] for name in group_by])
            except KeyError:
                continue
            counts = groups.get(key)
            if counts is None:
                if len(groups) >= MAX_GROUPS:
                    continue
                counts = groups[key] = Counter()
            counts[second] += 1
    return LogDigest(
        source=source, format_name=None, events=events, unparsed=0, unparsed_samples=(),
        first_at=first_at, last_at=last_at,
        levels={level: dict(counts) for level, counts in levels.items() if counts}, templates=table.templates(),
        groups={key: dict(counts) for key, counts in groups.items()},
    )  # fmt: skip


def digest_log(
    reader: LogReader,
    *,
    templates_from: Level = Level.WARNING,
    template_limit: int = 2000,
    group_by: Sequence[str] = (),
) -> LogDigest:
    """The digest of a whole log, which is read in this one pass.

    Args:
        reader: the log.
        templates_from: events of this level or worse are gathered into templates.
        template_limit: so many templates are told apart; later ones count together.
        group_by: fields (``("route", "status")``, say) whose combinations are counted, at most ``MAX_GROUPS``.
    """
    digest = digest_lines(
        reader, reader.source, templates_from=templates_from, template_limit=template_limit, group_by=group_by
    )
    return replace(
        digest,
        format_name=reader.format_name,
        unparsed=reader.unparsed,
        unparsed_samples=tuple(reader.unparsed_samples),
    )
