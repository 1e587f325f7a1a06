"""What was changed when: deployments, settings, flags, migrations, read from a log of changes."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable
from dataclasses import dataclass

from .lines import LogLine

__all__ = ["Change", "find_changes"]

_KINDS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("rollback", r"\b(?:rolled?[ -]?back|rollback|revert(?:ed|ing)?)\b"),
        ("setting", r"\b(?:settings?|config(?:uration)?|flags?|feature|toggled?)\b"),
        ("migration", r"\b(?:migrat(?:ion|ed|ing)|schema change)\b"),
        ("deploy", r"\b(?:deploy(?:s|ed|ing|ment)?|releas(?:e|ed|ing)|roll(?:ed)?[ -]?out|upgrad(?:e|ed|ing))\b"),
        ("restart", r"\b(?:restart(?:ed|ing)?|reboot(?:ed)?)\b"),
        ("scale", r"\b(?:scal(?:e|ed|ing)|replicas)\b"),
    )
)
_VERSION = r"v?\d+(?:\.\d+){1,3}(?:[-+][\w.]+)?"
_VERSION_SAID = re.compile(
    rf"\b(?:version|release|tag|to|deploy(?:ed|ing)?(?: \S+)?)[=: ]+\"?({_VERSION})\b", re.IGNORECASE
)
_VERSION_ANY = re.compile(rf"(?<![\w.])({_VERSION})(?![\w.])")


@dataclass(frozen=True)
class Change:
    """Something was done to the system at ``at``; ``version`` is without a leading v."""

    at: dt.datetime
    kind: str
    """deploy, rollback, setting, migration, restart, scale, or other."""
    name: str
    """A few words that tell this change from others: ``deploy 1.2.3``, ``setting report_cache=on``."""
    version: str | None
    previous: str | None
    summary: str
    source: str
    line_number: int


def find_changes(lines: Iterable[LogLine], *, others: bool = True) -> tuple[Change, ...]:
    """The changes that a log of deployments names, in order of time.

    Args:
        lines: its events.
        others: whether lines without any of the known words count too (as kind ``other``); False suits logs that
            hold more than changes.
    """
    found: list[Change] = []
    for line in lines:
        head = line.message
        # The first word that names a kind decides: a deployment's summary may well speak of settings or migrations.
        hits = [(hit.start(), kind) for kind, pattern in _KINDS if (hit := pattern.search(head)) is not None]
        kind = min(hits)[1] if hits else "other"
        if kind == "other" and not others:
            continue
        version = line.fields.get("version") if kind in ("deploy", "rollback", "restart") else None
        if version is None and kind in ("deploy", "rollback", "migration"):
            said = _VERSION_SAID.search(head) or _VERSION_ANY.search(head)
            version = None if said is None else said[1]
        version = None if version is None else version.removeprefix("v")
        previous = line.fields.get("previous")
        found.append(
            Change(
                at=line.at,
                kind=kind,
                name=_name(kind, version, line),
                version=version,
                previous=None if previous is None else previous.removeprefix("v"),
                summary=head,
                source=line.source,
                line_number=line.line_number,
            )
        )
    return tuple(sorted(found, key=lambda change: change.at))


def _name(kind: str, version: str | None, line: LogLine) -> str:
    if version is not None:
        return f"{kind} {version}"
    name, value = line.fields.get("name"), line.fields.get("value")
    if name is not None:
        return f"{kind} {name}" if value is None else f"{kind} {name}={value}"
    return line.message if line.message.lower().startswith(kind) else f"{kind}: {line.message}"
