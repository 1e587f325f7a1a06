"""One class a log format: a line in, what it says out, or None when the line is not of that format."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from typing import Any, Protocol

import orjson

from .lines import Level, Parsed, guess_level, level_named
from .timestamps import MONTHS, from_epoch, infer_year, parse_iso, zone_named

__all__ = ["LineFormat", "all_formats", "pairs"]

_PAIR = re.compile(r'([A-Za-z_@][\w.@/-]*)=("(?:[^"\\]|\\.)*"|[^\s"]*)')


def pairs(text: str) -> dict[str, str]:
    """The ``key=value`` and ``key="some value"`` pairs of a text."""
    if "=" not in text:
        return {}
    # Written out, because this is where most of the time of reading a log goes.
    return {
        key: value.rstrip(",;") if value[:1] != '"' else value[1:-1].replace('\\"', '"').replace("\\\\", "\\")
        for key, value in _PAIR.findall(text)
    }


class LineFormat(Protocol):
    """A format; instances may remember the last time stamp, so use one a file."""

    name: str

    def parse(self, text: str) -> Parsed | None:
        """What the line says, or None when it does not begin an event of this format."""
        ...


class _Format:
    def __init__(self, reference: dt.datetime, zone: dt.tzinfo) -> None:
        self._reference = reference
        self._zone = zone
        # Many lines share a second: the last time stamp and its meaning are kept.
        self._last: tuple[str, dt.datetime] | None = None


class Rfc5424(_Format):
    """Syslog after RFC 5424: ``<165>1 2003-10-11T22:14:15.003Z host app 123 ID47 [sd@1 key="value"] message``."""

    name = "syslog (RFC 5424)"
    _line = re.compile(r"<(\d{1,3})>(\d) (\S+) (\S+) (\S+) (\S+) (\S+) (-|(?:\[(?:[^\]\\]|\\.)*\])+) ?(.*)", re.DOTALL)

    def parse(self, text: str) -> Parsed | None:
        """See :class:`LineFormat`."""
        found = self._line.match(text)
        if found is None:
            return None
        priority, _, stamp, host, app, process, message_id, data, message = found.groups()
        at = parse_iso(stamp, self._zone)
        if at is None:
            return None
        fields = {"host": host, "app": app, "pid": process, "msgid": message_id}
        fields = {key: value for key, value in fields.items() if value != "-"}
        if data != "-":
            fields |= pairs(data)
        return Parsed(at, _severity(int(priority)), message.removeprefix("\ufeff"), fields | pairs(message))


def _severity(priority: int) -> Level:
    severity = priority & 7
    if severity <= 2:
        return Level.CRITICAL
    return {3: Level.ERROR, 4: Level.WARNING, 7: Level.DEBUG}.get(severity, Level.INFO)


class Rfc3164(_Format):
    """Syslog as most machines write it, after RFC 3164: ``Oct 11 22:14:15 host app[123]: message``; year inferred."""

    name = "syslog (RFC 3164)"
    _line = re.compile(
        r"(?:<(\d{1,3})>)?(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) ([ \d]\d) (\d\d):(\d\d):(\d\d) "
        r"(\S+) (?:([^\s:\[]+)(?:\[([^\]]*)\])?: ?)?(.*)",
        re.DOTALL,
    )

    def parse(self, text: str) -> Parsed | None:
        """See :class:`LineFormat`."""
        found = self._line.match(text)
        if found is None:
            return None
        priority, month, day, hour, minute, second, host, app, process, message = found.groups()
        stamp = text[found.start(2) : found.end(6)]
        if self._last is not None and self._last[0] == stamp:
            at: dt.datetime | None = self._last[1]
        else:
            try:
                clock = dt.time(int(hour), int(minute), min(int(second), 59))
            except ValueError:
                return None
            at = infer_year(MONTHS[month], int(day), clock, self._reference, self._zone)
            if at is None:
                return None
            self._last = (stamp, at)
        fields = {"host": host}
        if app is not None:
            fields["app"] = app
        if process is not None:
            fields["pid"] = process
        level = guess_level(message) if priority is None else _severity(int(priority))
        return Parsed(at, level, message, fields | pairs(message))


class Access(_Format):
    """Common and combined access logs; a status of 500 and more is an error, of 400 and more a warning.

    A number after the user agent (nginx's ``$request_time``, Apache's ``%D``) becomes ``duration``.
    """

    name = "access log"
    _line = re.compile(
        r'(\S+) (\S+) (.+?) \[(\d\d)/(\w{3})/(\d{4}):(\d\d:\d\d:\d\d) ([+-]\d{4})\] "((?:[^"\\]|\\.)*)" (\d{3}) (\d+|-)'
        r'(?: "((?:[^"\\]|\\.)*)" "((?:[^"\\]|\\.)*)")?(?: (\d+(?:\.\d+)?))?'
    )

    def parse(self, text: str) -> Parsed | None:
        """See :class:`LineFormat`."""
        found = self._line.match(text)
        if found is None:
            return None
        client, _, user, day, month, year, clock, offset, request, status, size, referer, agent, duration = (
            found.groups()
        )
        stamp = text[found.start(4) : found.end(8)]
        if self._last is not None and self._last[0] == stamp:
            at: dt.datetime | None = self._last[1]
        else:
            at = parse_iso(f"{year}-{MONTHS.get(month, 0):02d}-{day}T{clock}{offset}")
            if at is None:
                return None
            self._last = (stamp, at)
        method, _, rest = request.partition(" ")
        path = rest.partition(" ")[0]
        fields = {"client": client, "method": method, "path": path, "status": status}
        optional = {"user": user, "bytes": size, "referer": referer, "agent": agent}
        fields |= {key: value for key, value in optional.items() if value not in (None, "-", "")}
        if duration is not None:
            fields["duration"] = duration
        level = Level.ERROR if status >= "500" else Level.WARNING if status >= "400" else Level.INFO
        return Parsed(at, level, f"{method} {path} {status}", fields)


_TIME_KEYS = ("timestamp", "time", "ts", "@timestamp", "t", "at", "datetime", "date", "asctime")
_LEVEL_KEYS = ("level", "severity", "lvl", "levelname", "log.level", "loglevel", "log_level", "priority")
_MESSAGE_KEYS = ("message", "msg", "event", "text", "body")


def _level_of(value: Any) -> Level | None:
    if isinstance(value, str) and not value.isdecimal():
        return level_named(value)
    try:
        number = int(value)
    except (TypeError, ValueError):
        return None
    if number < 10:  # syslog severities
        return _severity(number)
    # Bunyan and pino count like Python's logging, one step up: 30 info, 40 warn, 50 error, 60 fatal.
    return {10: Level.DEBUG, 20: Level.DEBUG, 30: Level.INFO, 40: Level.WARNING, 50: Level.ERROR}.get(
        number, Level.CRITICAL if number > 50 else Level.INFO
    )


def _time_of(value: Any, zone: dt.tzinfo) -> dt.datetime | None:
    if isinstance(value, str):
        at = parse_iso(value, zone)
        if at is not None:
            return at
    try:
        return from_epoch(float(value))
    except (TypeError, ValueError):
        return None


def _first_time(record: Mapping[str, Any], zone: dt.tzinfo) -> tuple[str, dt.datetime] | None:
    for key in _TIME_KEYS:
        if key in record and (at := _time_of(record[key], zone)) is not None:
            return key, at
    return None


class JsonLines(_Format):
    """A JSON object a line, under the usual keys for time, level and message; numbers are epochs of any unit."""

    name = "JSON lines"

    def parse(self, text: str) -> Parsed | None:
        """See :class:`LineFormat`."""
        if not text.startswith("{"):
            return None
        try:
            record: dict[str, Any] = orjson.loads(text)
        except orjson.JSONDecodeError:
            return None
        found = _first_time(record, self._zone)
        if found is None:
            return None
        time_key, at = found
        message_key = next((key for key in _MESSAGE_KEYS if isinstance(record.get(key), str)), None)
        message = text if message_key is None else str(record[message_key])
        level_key = next((key for key in _LEVEL_KEYS if key in record), None)
        level = None if level_key is None else _level_of(record[level_key])
        taken = {message_key, level_key, time_key}
        fields = {
            name: value if isinstance(value, str) else orjson.dumps(value).decode()
            for name, value in record.items()
            if name not in taken
        }
        return Parsed(at, guess_level(message) if level is None else level, message, fields)


class Logfmt(_Format):
    """``time=… level=… msg="…" key=value``, as Go services and Heroku write it."""

    name = "logfmt"
    _first = re.compile(r"[A-Za-z_@][\w.@]*=")

    def parse(self, text: str) -> Parsed | None:
        """See :class:`LineFormat`."""
        if self._first.match(text) is None:
            return None
        fields = pairs(text)
        found = _first_time(fields, self._zone)
        if found is None:
            return None
        time_key, at = found
        del fields[time_key]
        message_key = next((key for key in _MESSAGE_KEYS if key in fields), None)
        message = text if message_key is None else fields.pop(message_key)
        level_key = next((key for key in _LEVEL_KEYS if key in fields), None)
        level = None if level_key is None else _level_of(fields.pop(level_key))
        return Parsed(at, guess_level(message) if level is None else level, message, fields)


class Postgres(_Format):
    """PostgreSQL's log with ``%m [%p] `` in front, Debian's ``%q%u@%d ``, or ``%t [%p]: user=…,db=…`` and its kin.

    DETAIL, HINT, CONTEXT and STATEMENT lines carry the field ``continues``: they belong to the line before.
    """

    name = "PostgreSQL"
    _line = re.compile(
        r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?) (\S+) \[(\d+)\](.{0,300}?)(?<![A-Z])"
        r"(DEBUG\d?|LOG|INFO|NOTICE|WARNING|ERROR|FATAL|PANIC|DETAIL|HINT|STATEMENT|CONTEXT|QUERY|LOCATION): {1,2}(.*)",
        re.DOTALL,
    )
    _user_at_database = re.compile(r"(\S+)@(\S+) ?$")
    _continuations = frozenset({"DETAIL", "HINT", "STATEMENT", "CONTEXT", "QUERY", "LOCATION"})

    def parse(self, text: str) -> Parsed | None:
        """See :class:`LineFormat`."""
        found = self._line.match(text)
        if found is None:
            return None
        stamp, zone, process, prefix, word, message = found.groups()
        at = parse_iso(stamp, zone_named(zone) or self._zone)
        if at is None:
            return None
        fields = {"pid": process}
        who = self._user_at_database.search(prefix)
        if who is not None:
            fields["user"], fields["db"] = who[1], who[2]
        elif "=" in prefix:
            fields |= {key: value for key, value in (part.split("=", 1) for part in _prefix_parts(prefix)) if value}
        if word in self._continuations:
            fields["continues"] = word.lower()
            return Parsed(at, Level.INFO, message, fields)
        return Parsed(at, level_named(word) or Level.INFO, message, fields)


def _prefix_parts(prefix: str) -> list[str]:
    return [part for part in re.split(r"[,\s]+", prefix) if "=" in part]


class Plain(_Format):
    """Any line that begins with an ISO-like time, bare or in brackets, and says its level near the beginning.

    Python's logging, log4j, nginx's error log, Go's log and most home-made formats.
    """

    name = "time stamped text"
    _line = re.compile(
        r"\[?(\d{4})[-/](\d\d)[-/](\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?) ?(Z|[+-]\d\d:?\d\d|[A-Z]{3,4}(?=[\]\s]))?\]?"
        r"[\s:|-]*(.*)",
        re.DOTALL,
    )
    _level = re.compile(
        r"\b(TRACE|DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|ERR|CRITICAL|CRIT|FATAL|SEVERE|PANIC|ALERT|EMERG)\b"
        r"|[\[<(](trace|debug|info|notice|warn|warning|error|err|critical|crit|fatal|alert|emerg|panic)[\])>]",
    )
    _strip = re.compile(r"[\s:|\-\])>]+")
    _origin = re.compile(r"(?:\[([^\]]{1,80})\]|([\w.$/-]{1,80}))[\s:|-]*[\[(<]?")

    def parse(self, text: str) -> Parsed | None:
        """See :class:`LineFormat`."""
        found = self._line.match(text)
        if found is None:
            return None
        year, month, rest, zone, message = found.groups()
        default = self._zone
        if zone is not None and zone[0] in "+-Z":
            rest += zone
        elif zone is not None and (named := zone_named(zone)) is not None:
            default = named
        elif zone is not None:  # a word of the message that looked like a zone: INFO, WARN
            message = text[found.start(4) :]
        at = parse_iso(f"{year}-{month}-{rest}", default)
        if at is None:
            return None
        said = self._level.search(message, 0, 120)
        if said is None:
            return Parsed(at, guess_level(message), message, pairs(message))
        fields = pairs(message)
        if said.start() > 1:  # one word or one bracket before the level names the logger or the thread
            if (origin := self._origin.fullmatch(message, 0, said.start())) is None:
                return Parsed(at, level_named(said[1] or said[2]) or Level.INFO, message, fields)
            fields["logger"] = origin[1] or origin[2]
        after = self._strip.match(message, said.end())
        message = message[said.end() if after is None else after.end() :]
        return Parsed(at, level_named(said[1] or said[2]) or Level.INFO, message, fields)


def all_formats(reference: dt.datetime, zone: dt.tzinfo) -> list[LineFormat]:
    """A fresh instance of every format, the more particular first: on a tie the earlier one is taken."""
    return [
        JsonLines(reference, zone),
        Rfc5424(reference, zone),
        Postgres(reference, zone),
        Access(reference, zone),
        Logfmt(reference, zone),
        Rfc3164(reference, zone),
        Plain(reference, zone),
    ]
