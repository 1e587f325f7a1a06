"""Values as they are typed: JSON documents, durations, weights."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

__all__ = ["coming", "document", "duration", "loose", "moment", "weights"]

_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)?", re.ASCII)
_SPAN = re.compile(rf"(?:{_DURATION.pattern})+", re.ASCII)


def document(text: str | None, field: str) -> Any:
    """The JSON value that ``text`` spells; ``@file.json`` reads a file, ``-`` reads stdin; None stays None.

    Raises:
        InvalidInput: it is no JSON, or the file cannot be read; names ``field``.
    """
    if text is None:
        return None
    source, what = _source(text, field)
    try:
        return json.loads(source)
    except (ValueError, RecursionError) as error:
        raise _invalid(f"{field} must be JSON{what}: {error}.", field) from None


def loose(text: str, field: str) -> Any:
    """As ``document``, but what does not look like JSON is text itself, so that plain words need no quotes.

    What begins with ``{`` must be an object; ``[ERROR] disk full`` and ``"quoted" words`` are text where they are no
    JSON. From stdin and files too.

    Raises:
        InvalidInput: it begins like an object and is none, or the file cannot be read; names ``field``.
    """
    if text == "-" or (text.startswith("@") and not any(map(str.isspace, text))):
        text = _source(text, field)[0].rstrip("\n")
    if text.lstrip().startswith("{"):
        return document(text, field)
    if text.lstrip().startswith(("[", '"')):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text)
    return text


def duration(text: str | None, field: str) -> timedelta | None:
    """``90``, ``90s``, ``5m``, ``1h30m`` … as a duration; None stays None.

    Raises:
        InvalidInput: it is no duration; names ``field``.
    """
    if text is None:
        return None
    parts = list(_DURATION.finditer(text))
    whole = "".join(part.group() for part in parts) == text
    # Several parts need their units: 1h30 could be minutes or seconds.
    if not parts or not whole or (len(parts) > 1 and not all(part[2] for part in parts)):
        raise _invalid(f"{field} must be a duration such as 30s, 5m or 1h30m, got {text!r}.", field)
    try:
        return sum((timedelta(**{_UNITS[part[2] or "s"]: float(part[1])}) for part in parts), timedelta())
    except OverflowError:
        raise _invalid(f"{field} is too long, got {text!r}.", field) from None


def moment(text: str | None, field: str) -> datetime | None:
    """An ISO time, or how long ago (``10m``), as an aware datetime; None stays None.

    Raises:
        InvalidInput: it is neither; names ``field``.
    """
    return _moment(text, field, -1, "how long ago")


def coming(text: str | None, field: str, now: datetime | None = None) -> datetime | None:
    """An ISO time, or in how long (``10m``), as an aware datetime; None stays None.

    Args:
        text: as it was typed.
        field: what it was typed for.
        now: from when on; the same for all times that are compared with each other.

    Raises:
        InvalidInput: it is neither; names ``field``.
    """
    return _moment(text, field, 1, "in how long", now)


def _moment(text: str | None, field: str, direction: int, what: str, now: datetime | None = None) -> datetime | None:
    if text is None:
        return None
    # Eight digits are a day, as ISO 8601 has it without dashes, and not so many seconds.
    if _SPAN.fullmatch(text) and not re.fullmatch(r"\d{8}", text):
        apart = duration(text, field)
        assert apart is not None
        try:
            return (now or datetime.now(UTC)) + direction * apart
        except OverflowError:
            raise _invalid(f"{field} is too far away, got {text!r}.", field) from None
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise _invalid(
            f"{field} must be a time such as 2026-01-31T10:15:00Z, or {what}, such as 10m; got {text!r}.", field
        ) from None
    try:
        # The first and the last day of the calendar have no time in every zone.
        return (value.astimezone() if value.tzinfo is None else value).astimezone(UTC)
    except (OverflowError, ValueError):
        raise _invalid(f"{field} is too far away, got {text!r}.", field) from None


def weights(pairs: Sequence[str] | None, field: str) -> dict[str, float] | None:
    """``["deployment=0.9", …]`` as a mapping; None stays None.

    Raises:
        InvalidInput: a pair has another form; names ``field``.
    """
    if pairs is None:
        return None
    found: dict[str, float] = {}
    for pair in pairs:
        name, equals, number = pair.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            equals = ""
        if not equals or not name or not math.isfinite(found[name]):
            raise _invalid(f"{field} takes CATEGORY=WEIGHT such as deployment=0.9, got {pair!r}.", field)
    return found


def _source(text: str, field: str) -> tuple[str, str]:
    if text == "-":
        return sys.stdin.read(), " (read from stdin)"
    if not text.startswith("@"):
        return text, ""
    if text == "@":
        raise _invalid(f"{field} needs the name of a file after the @.", field)
    try:
        return Path(text[1:]).read_text(encoding="utf-8"), f" (read from {text[1:]})"
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise _invalid(f"{field} cannot be read from {text[1:]}: {error}.", field) from None


def _invalid(message: str, field: str) -> Exception:
    from blackboard.errors import InvalidInput

    return InvalidInput(message, field=field)
