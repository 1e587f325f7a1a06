"""What may be wrong with a service, and by which messages and gauges each of it is known: the agents' experience.

The catalogue says what to look for; whether it is there, and how much speaks for it, is measured in the files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .analysis import Hypothesis, Level, Onset
from .examination import Examination

__all__ = [
    "CHANGE",
    "MIN_SHARE",
    "PRIOR",
    "SUSPECTS",
    "TRAFFIC",
    "UNKNOWN",
    "GaugeCase",
    "MessageShare",
    "Suspect",
    "gauge_cases",
    "message_shares",
    "suspect_of",
]

PRIOR = round(1 / (1 + math.exp(1.0)), 2)
"""What a suspicion is worth before anything speaks for it: one of several, so less than even (log-odds -1)."""
MIN_SHARE = 0.05
"""A suspect is worth a hypothesis when so many of the errors name it."""
MIN_CORRELATION = 0.5
"""… or when a gauge of it moves with the errors at least so much."""


@dataclass(frozen=True)
class Suspect:
    """A kind of failure; ``words`` completes "errors that speak of …"."""

    kind: str
    statement: str
    words: str
    messages: re.Pattern[str]
    gauges: re.Pattern[str] | None = None
    with_change: str | None = None
    """The statement when a change came before the errors: what the change is suspected of."""


def _words(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


SUSPECTS: tuple[Suspect, ...] = (
    Suspect(
        "pool",
        "database connection pool exhaustion",
        "a connection pool without free connections",
        _words(
            r"\bpool\b.{0,40}(?:time|exhaust|full|no connection|limit)|too many (?:clients|connections)"
            r"|no connection within|remaining connection slots|connection pool"
        ),
        _words(r"pool_?(?:in_?use|used|busy|active)|(?:db_)?connections?_(?:in_?use|used|active|busy)"),
    ),
    Suspect(
        "memory",
        "memory exhaustion",
        "memory that cannot be had",
        _words(r"out of memory|memoryerror|\boom\b|oom-?kill|cannot allocate|heap space|gc overhead|std::bad_alloc"),
        _words(r"\brss|rss_|memory|\bmem_|heap"),
        with_change="memory leak in the new feature",
    ),
    Suspect(
        "disk",
        "a file system without space",
        "a disk that is full",
        _words(r"no space left|disk (?:is )?full|enospc|quota exceeded"),
        _words(r"disk_(?:used|usage)|fs_used"),
    ),
    Suspect(
        "access",
        "access is refused: credentials or permissions",
        "refused access",
        _words(
            r"permission denied|access denied|unauthori[sz]ed|forbidden|authentication fail|invalid (?:password|token)"
            r"|failed password|certificate (?:has )?expired"
        ),
    ),
    Suspect(
        "dependency",
        "a dependency is slow or does not answer",
        "a dependency that does not answer",
        _words(
            r"timed? ?out|timeout|connection (?:refused|reset|closed|aborted)|unreachable|no route|upstream"
            r"|\b50[234]\b|econn|name resolution|broken pipe"
        ),
    ),
    Suspect(
        "defect",
        "a defect in the service's own code",
        "exceptions of the service's own code",
        _words(r"exception|traceback|panic|segfault|null ?pointer|nil pointer|assert|unhandled|undefined|\b500\b"),
    ),
)
UNKNOWN = Suspect("unknown", "a failure that the messages do not name", "nothing that is known", re.compile(r"(?!)"))
TRAFFIC = "traffic"
CHANGE = "change"


@dataclass(frozen=True)
class MessageShare:
    """How many of the errors since the onset name one suspect; ``example`` is the commonest template's."""

    suspect: Suspect
    count: int
    total: int
    example: str
    line_number: int

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self.count / self.total if self.total else 0.0


@dataclass(frozen=True)
class GaugeCase:
    """A gauge of a suspect and what was measured on it."""

    suspect: Suspect
    judged: Hypothesis
    correlation: float


def suspect_of(message: str) -> Suspect:
    """The first suspect that the message names, else ``UNKNOWN``."""
    return next((suspect for suspect in SUSPECTS if suspect.messages.search(message) is not None), UNKNOWN)


def message_shares(exam: Examination, onset: Onset) -> tuple[MessageShare, ...]:
    """What the errors since the onset speak of, the most frequent first."""
    counts: dict[str, int] = {}
    examples: dict[str, tuple[Suspect, str, int]] = {}
    end = onset.ended_at or exam.found.errors.end
    for template in exam.primary.digest.templates:
        if template.level < Level.ERROR:
            continue
        count = template.count_between(onset.at, end)
        if not count:
            continue
        suspect = suspect_of(template.example)
        counts[suspect.kind] = counts.get(suspect.kind, 0) + count
        examples.setdefault(suspect.kind, (suspect, template.example, template.line_number))
    total = sum(counts.values())
    shares = [MessageShare(examples[kind][0], count, total, *examples[kind][1:]) for kind, count in counts.items()]
    return tuple(sorted(shares, key=lambda share: -share.count))


def gauge_cases(exam: Examination) -> tuple[GaugeCase, ...]:
    """The suspects whose gauge moves with the errors, each with its best gauge, the best first."""
    best: dict[str, GaugeCase] = {}
    correlations = {item.left: item.pearson_without_lag for item in exam.found.correlations}
    for judged in exam.found.hypotheses:
        if judged.kind != "resource":
            continue
        correlation = correlations.get(judged.subject, 0.0)
        suspect = next((one for one in SUSPECTS if one.gauges is not None and one.gauges.search(judged.subject)), None)
        if suspect is None or correlation < MIN_CORRELATION:
            continue
        known = best.get(suspect.kind)
        if known is None or judged.score > known.judged.score:
            best[suspect.kind] = GaugeCase(suspect, judged, correlation)
    return tuple(sorted(best.values(), key=lambda case: -case.judged.score))


def candidates(shares: Sequence[MessageShare], gauges: Sequence[GaugeCase]) -> tuple[Suspect, ...]:
    """The suspects that are worth a hypothesis: by the messages first, then those that only a gauge speaks of."""
    found = [share.suspect for share in shares if share.share >= MIN_SHARE]
    found += [case.suspect for case in gauges if case.suspect not in found]
    return tuple(found)
