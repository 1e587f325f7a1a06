"""Times as logs write them, made aware and brought to UTC."""

from __future__ import annotations

import datetime as dt

__all__ = ["MONTHS", "from_epoch", "infer_year", "parse_iso", "zone_named"]

MONTHS = {
    "Jan": 1, "Feb": 2, "Mar": 3, "Apr": 4, "May": 5, "Jun": 6,
    "Jul": 7, "Aug": 8, "Sep": 9, "Oct": 10, "Nov": 11, "Dec": 12,
}  # fmt: skip

_ZONES = {
    "UTC": 0, "GMT": 0, "Z": 0, "WET": 0, "CET": 1, "CEST": 2, "BST": 1, "EET": 2, "EEST": 3, "MSK": 3,
    "EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8, "PDT": -7, "JST": 9, "AEST": 10,
}  # fmt: skip
_TIMEZONES = {name: dt.timezone(dt.timedelta(hours=hours)) for name, hours in _ZONES.items()}


def zone_named(name: str) -> dt.tzinfo | None:
    """The zone of an abbreviation, where its usual meaning is clear, or None."""
    return _TIMEZONES.get(name)


def parse_iso(text: str, default_zone: dt.tzinfo = dt.UTC) -> dt.datetime | None:
    """The moment an ISO 8601 text names, in UTC, or None; a text without an offset is in ``default_zone``.

    A space for the T, a comma for the point, a basic offset (``+0200``) and more than six decimals are read too.
    """
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    if at.tzinfo is dt.UTC:
        return at
    if at.tzinfo is None:
        at = at.replace(tzinfo=default_zone)
    try:
        return at.astimezone(dt.UTC)
    except OverflowError:
        return None


def from_epoch(number: float) -> dt.datetime | None:
    """The moment a number names: seconds, milli-, micro- or nanoseconds since 1970, told apart by size, or None."""
    for limit, scale in ((1e11, 1.0), (1e14, 1e3), (1e17, 1e6), (1e20, 1e9)):
        if 0 < number < limit:
            return dt.datetime.fromtimestamp(number / scale, dt.UTC)
    return None


def infer_year(
    month: int, day: int, clock: dt.time, reference: dt.datetime, zone: dt.tzinfo = dt.UTC
) -> dt.datetime | None:
    """The newest such moment, in UTC, that is not after ``reference`` (a day of slack for clocks and zones), or None.

    RFC 3164 writes no year: a line of December read in January is last year's.
    """
    for year in range(reference.year + 1, reference.year - 9, -1):
        try:
            at = dt.datetime.combine(dt.date(year, month, day), clock, zone)
        except ValueError:  # 29 February of a year that has none
            continue
        if at <= reference + dt.timedelta(days=1):
            return at.astimezone(dt.UTC)
    return None
