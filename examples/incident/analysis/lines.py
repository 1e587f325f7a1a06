"""What every parser produces: a time, a level, a message, and the fields around it."""

from __future__ import annotations

import datetime as dt
import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Level", "LogLine", "Parsed", "guess_level", "level_named"]


class Level(enum.IntEnum):
    """How bad a line is, on the scale of Python's ``logging``; every format's own words map to it."""

    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40
    CRITICAL = 50


@dataclass(frozen=True, slots=True)
class LogLine:
    """One event of a log; ``at`` is aware and in UTC.

    ``fields`` holds what the format names (``status``, ``pid``, ``user`` …) and ``key=value`` pairs of the message.
    Continuation lines are in ``more`` (a traceback, say; then ``exception`` is its last line), PostgreSQL's in
    ``detail``, ``hint``, ``statement`` and ``context``.
    """

    at: dt.datetime
    level: Level
    source: str
    message: str
    fields: Mapping[str, str]
    line_number: int


@dataclass(slots=True)
class Parsed:
    """What a format makes of one physical line, before continuation lines are added."""

    at: dt.datetime
    level: Level
    message: str
    fields: dict[str, str] = field(default_factory=dict[str, str])


_NAMES: dict[str, Level] = {
    "trace": Level.DEBUG,
    "debug": Level.DEBUG,
    "debug1": Level.DEBUG,
    "debug2": Level.DEBUG,
    "debug3": Level.DEBUG,
    "debug4": Level.DEBUG,
    "debug5": Level.DEBUG,
    "verbose": Level.DEBUG,
    "info": Level.INFO,
    "information": Level.INFO,
    "informational": Level.INFO,
    "notice": Level.INFO,
    "log": Level.INFO,
    "warn": Level.WARNING,
    "warning": Level.WARNING,
    "err": Level.ERROR,
    "error": Level.ERROR,
    "severe": Level.ERROR,
    "crit": Level.CRITICAL,
    "critical": Level.CRITICAL,
    "alert": Level.CRITICAL,
    "emerg": Level.CRITICAL,
    "emergency": Level.CRITICAL,
    "fatal": Level.CRITICAL,
    "panic": Level.CRITICAL,
}
_BAD_WORDS = re.compile(r"\b(panic|fatal|critical|error|failed|failure|exception|warning|warn)\b", re.IGNORECASE)
_WORD_LEVELS = {"failed": Level.ERROR, "failure": Level.ERROR, "exception": Level.ERROR}


def level_named(name: str) -> Level | None:
    """The level that this word means in any of the formats, or None."""
    return _NAMES.get(name.lower())


def guess_level(message: str) -> Level:
    """The level that the message's own words suggest, for formats that carry none; INFO when none do."""
    found = _BAD_WORDS.search(message)
    if found is None:
        return Level.INFO
    word = found[1].lower()
    return _WORD_LEVELS.get(word) or _NAMES[word]
