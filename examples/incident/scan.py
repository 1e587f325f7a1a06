"""One pass over a log, and its outcome as JSON: so that one agent reads a file and all others get the answer."""

from __future__ import annotations

import datetime as dt
import io
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .analysis import Level, LogDigest, LogLine, LogReader, Template, digest_lines, read_log

__all__ = ["Scan", "Security", "clean", "pack_scan", "scan_log", "unpack_scan"]

TEMPLATES = 40
GROUPS = 24
_GROUPINGS = (("route", "status"), ("method", "status"))
_PROGRESS_EVERY = 0.5
"""Seconds between two reports of how far a long reading is."""

_DENIED = re.compile(
    r"auth\w* (?:fail|denied|error)|(?:invalid|wrong|bad) (?:password|credentials?|token|user)"
    r"|failed (?:password|login)|log-?in fail|permission denied|access denied"
    r"|unauthori[sz]ed|forbidden|no pg_hba\.conf entry",
    re.IGNORECASE,
)
_SUSPICIOUS = re.compile(
    r"union(?:\s|\+|%20)+(?:all(?:\s|\+|%20)+)?select|\bor(?:\s|\+|%20)+'?1'?='?1|\.\./\.\.|%2e%2e|/etc/passwd|<script"
    r"|%3cscript|\$\{jndi:|/wp-login|/\.env\b|/\.git/|phpmyadmin|xp_cmdshell|sqlmap|nikto|;\s*(?:wget|curl) ",
    re.IGNORECASE,
)


@dataclass
class Security:
    """What in a log bears on security: refused access and requests that look like probes."""

    denied: dict[int, int] = field(default_factory=dict[int, int])
    """Failed authentications and refused permissions (also statuses 401 and 403), by second of the epoch."""
    suspicious: dict[int, int] = field(default_factory=dict[int, int])
    """Requests that look like an attack (injection, traversal, well-known targets of scanners)."""
    samples: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    """The first few of both, as ``(line number, text)``."""

    @property
    def total(self) -> int:
        """How many there are of both."""
        return sum(self.denied.values()) + sum(self.suspicious.values())

    def between(self, start: dt.datetime | None, end: dt.datetime | None) -> int:
        """How many there are of both from ``start`` until before ``end``."""
        low = -math.inf if start is None else start.timestamp()
        high = math.inf if end is None else end.timestamp()
        return sum(n for counts in (self.denied, self.suspicious) for at, n in counts.items() if low <= at < high)


@dataclass(frozen=True)
class Scan:
    """One log as it was read: its digest and what in it bears on security."""

    digest: LogDigest
    security: Security
    physical_lines: int
    bytes: int


class _Watched:
    """The reader's events, passed on, with a look at each for security."""

    def __init__(self, reader: LogReader, security: Security, tick: Callable[[], None]) -> None:
        self._reader, self._security, self._tick = reader, security, tick

    def __iter__(self) -> Iterator[LogLine]:
        denied: Counter[int] = Counter()
        suspicious: Counter[int] = Counter()
        samples = self._security.samples
        for number, line in enumerate(self._reader):
            if not number & 0x3FF:
                self._tick()
            message = line.message
            if line.fields.get("status") in ("401", "403") or _DENIED.search(message) is not None:
                counts = denied
            elif _SUSPICIOUS.search(message) is not None:
                counts = suspicious
            else:
                yield line
                continue
            counts[int(line.at.timestamp())] += 1
            if len(samples) < 5:
                samples.append((line.line_number, clean(message[:200])))
            yield line
        self._security.denied, self._security.suspicious = dict(denied), dict(suspicious)


def scan_log(path: Path, name: str, on_progress: Callable[[float], None] | None = None) -> Scan:
    """The log is read once, from beginning to end.

    Args:
        path: the file.
        name: what to call it.
        on_progress: is told the share that has been read, about twice a second.
    """
    stat = path.stat()
    security = Security()
    told = time.monotonic()
    with path.open("rb") as file:

        def tick() -> None:
            nonlocal told
            if on_progress is not None and (now := time.monotonic()) - told >= _PROGRESS_EVERY:
                told = now
                on_progress(min(1.0, file.tell() / (stat.st_size or 1)))

        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="\n")
        group_by = _grouping(path, name)
        reader = read_log(text, name, reference=dt.datetime.fromtimestamp(stat.st_mtime, dt.UTC))
        digest = digest_lines(_Watched(reader, security, tick), name, group_by=group_by)
    digest = replace(
        digest,
        format_name=reader.format_name,
        unparsed=reader.unparsed,
        unparsed_samples=tuple(reader.unparsed_samples),
    )
    return Scan(digest, security, reader.physical_lines, stat.st_size)


def _grouping(path: Path, name: str) -> Sequence[str]:
    """The fields that tell kinds of events apart, judged by the first lines."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        seen = [line.fields for line, _ in zip(read_log(file, name), range(200), strict=False)]
    for names in _GROUPINGS:
        if sum(all(name in fields for name in names) for fields in seen) * 2 > len(seen):
            return names
    return ()


def pack_scan(scan: Scan) -> dict[str, Any]:
    """The scan as a JSON object of at most some hundred kB, whatever the size of the log.

    Counts are kept by bucket, at most 400 of them; of templates the most frequent and the newest are kept.
    """
    digest = scan.digest
    origin = 0 if digest.first_at is None else math.floor(digest.first_at.timestamp())
    size = int(digest.bucket.total_seconds())

    def packed(seconds: Mapping[int, int]) -> list[int]:
        counts: Counter[int] = Counter()
        for second, count in seconds.items():
            counts[(second - origin) // size] += count
        return [number for pair in sorted(counts.items()) for number in pair]

    frequent = list(digest.templates[:TEMPLATES])
    newest = sorted(
        (template for template in digest.templates[TEMPLATES:] if template.level >= Level.ERROR),
        key=lambda template: template.first_at,
        reverse=True,
    )[: TEMPLATES // 2]
    return {
        "source": digest.source,
        "format": digest.format_name,
        "bytes": scan.bytes,
        "lines": scan.physical_lines,
        "events": digest.events,
        "unparsed": digest.unparsed,
        "unparsed_samples": [[number, clean(text)] for number, text in digest.unparsed_samples],
        "first_at": _iso(digest.first_at),
        "last_at": _iso(digest.last_at),
        "origin": origin,
        "bucket_seconds": size,
        "levels": {level.name: packed(seconds) for level, seconds in digest.levels.items()},
        "template_count": len(digest.templates),
        "templates": [
            {
                "text": clean(template.text[:500]),
                "level": template.level.name,
                "count": template.count,
                "first_at": _iso(template.first_at),
                "last_at": _iso(template.last_at),
                "example": clean(template.example[:500]),
                "line": template.line_number,
                "counts": packed(template.seconds),
            }
            for template in [*frequent, *newest]
        ],
        "groups": [
            {"key": [clean(name) for name in key], "counts": packed(seconds)}
            for key, seconds in sorted(digest.groups.items(), key=lambda item: -sum(item[1].values()))[:GROUPS]
        ],
        "security": {
            "denied": packed(scan.security.denied),
            "suspicious": packed(scan.security.suspicious),
            "samples": [[number, text] for number, text in scan.security.samples],
        },
    }


def unpack_scan(packed: Mapping[str, Any]) -> Scan:
    """The scan that :func:`pack_scan` packed; times within it are those of its buckets."""
    origin, size = int(packed["origin"]), int(packed["bucket_seconds"])

    def seconds(pairs: Sequence[int]) -> dict[int, int]:
        return {origin + pairs[at] * size: pairs[at + 1] for at in range(0, len(pairs), 2)}

    digest = LogDigest(
        source=packed["source"],
        format_name=packed["format"],
        events=packed["events"],
        unparsed=packed["unparsed"],
        unparsed_samples=_samples(packed["unparsed_samples"]),
        first_at=_moment(packed["first_at"]),
        last_at=_moment(packed["last_at"]),
        levels={Level[name]: seconds(pairs) for name, pairs in packed["levels"].items()},
        templates=tuple(
            Template(
                text=item["text"],
                level=Level[item["level"]],
                count=item["count"],
                first_at=dt.datetime.fromisoformat(item["first_at"]),
                last_at=dt.datetime.fromisoformat(item["last_at"]),
                example=item["example"],
                line_number=item["line"],
                seconds=seconds(item["counts"]),
            )
            for item in packed["templates"]
        ),
        groups={tuple(item["key"]): seconds(item["counts"]) for item in packed["groups"]},
    )
    told = packed["security"]
    security = Security(seconds(told["denied"]), seconds(told["suspicious"]), list(_samples(told["samples"])))
    return Scan(digest, security, packed["lines"], packed["bytes"])


def clean(text: str) -> str:
    """The text without zero bytes and lone surrogates, which a database cannot store."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _samples(pairs: Iterable[Sequence[Any]]) -> tuple[tuple[int, str], ...]:
    return tuple((int(number), str(text)) for number, text in pairs)


def _iso(at: dt.datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def _moment(text: str | None) -> dt.datetime | None:
    return None if text is None else dt.datetime.fromisoformat(text)
