"""What may enter the database: JSON documents as text, and text that PostgreSQL can hold.

JSON crosses the wire as text in both directions (statements cast it), so no driver codec is ever needed and none of a
caller's codecs can change what we read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from enum import Enum
from typing import Any, cast
from uuid import UUID

import orjson

from .errors import InvalidInput, PayloadTooLarge

__all__ = ["MAX_JSON_BYTES", "check_duration", "check_names", "check_text", "dump_json", "load_json", "storable"]

MAX_JSON_BYTES = 1024 * 1024
"""Encoded size over which a document is refused: boards carry references to big things, not the things."""

# A backslash that is itself escaped does not start an escape: "\\u0000" in a document is six harmless characters.
_ZERO_BYTE = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")

# Dataclasses are passed through to be refused: only their owner knows which fields are meant for others.
_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS


def dump_json(value: Any, field: str) -> str:
    """``value`` as JSON text that ``jsonb`` accepts and that reads back equal.

    Accepts dicts with text keys, lists, tuples, text, numbers, booleans and None, and as text: UUIDs, enums' values,
    dates and times.

    Raises:
        InvalidInput: NaN or an infinity, a key that is no text, a type that JSON lacks, a lone surrogate, ``\\u0000``
            anywhere, an integer over 64 bits, or nesting too deep; names ``field``.
        PayloadTooLarge: the text is longer than ``MAX_JSON_BYTES``.
    """
    try:
        encoded = orjson.dumps(value, _as_text, _OPTIONS)
    except TypeError as error:
        raise InvalidInput(f"{field} cannot be stored as JSON: {error}.", field=field) from error
    if len(encoded) > MAX_JSON_BYTES:
        raise PayloadTooLarge(
            f"{field} is {len(encoded)} bytes of JSON and the limit is {MAX_JSON_BYTES}; "
            "store it elsewhere and post a reference.",
            field=field,
            limit=MAX_JSON_BYTES,
        )
    # orjson writes NaN and the infinities as null, so only a document that holds a null can hide one.
    if b"null" in encoded and any(not math.isfinite(number) for number in _floats(value)):
        raise InvalidInput(f"{field} must not contain NaN or an infinity; use null or a text.", field=field)
    if b"\\u0000" in encoded and _ZERO_BYTE.search(encoded):
        raise InvalidInput(f"{field} must not contain a zero byte (\\u0000); remove it.", field=field)
    return encoded.decode()


def _as_text(value: Any) -> str:
    # asyncpg has a class of its own for the ids in what it reads; orjson takes no subclass of UUID.
    if isinstance(value, UUID):
        return str(value)
    raise TypeError


def load_json(text: str | None) -> Any:
    """The value of JSON text as PostgreSQL prints it; None for SQL's NULL."""
    if text is None:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        # Another writer's jsonb may hold numbers that a double cannot (1e400) or more levels than orjson reads.
        return json.loads(text)


def check_text(value: Any, field: str, max_length: int, min_length: int = 0) -> str:
    """``value`` itself, known to be text that PostgreSQL stores and of an allowed length in characters.

    Raises:
        InvalidInput: not text, a zero byte, a lone surrogate, too long or too short; names ``field``.
    """
    if not isinstance(value, str):
        raise InvalidInput(f"{field} must be text, got {type(value).__name__}.", field=field)
    if len(value) > max_length:
        raise InvalidInput(f"{field} has {len(value)} characters and the limit is {max_length}.", field=field)
    if len(value) < min_length:
        wanted = "must not be empty" if min_length == 1 else f"needs at least {min_length} characters"
        raise InvalidInput(f"{field} {wanted}.", field=field)
    if "\0" in value:
        raise InvalidInput(f"{field} must not contain a zero byte; remove it.", field=field)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{field} contains half of a surrogate pair; pass whole characters.", field=field) from None
    return value


def check_names(values: Any, field: str, max_length: int, min_length: int = 0) -> list[str]:
    """``values`` as a list of texts, each known to be as ``check_text`` wants it.

    Raises:
        InvalidInput: it is a text itself, which is a sequence of letters, or one of its members is refused.
    """
    if isinstance(values, str):
        raise InvalidInput(f"{field} is a list of names: write [{values!r:.100}].", field=field)
    return [check_text(value, field, max_length, min_length) for value in values]


def check_duration(value: Any, field: str) -> timedelta:
    """``value`` itself, known to be a timedelta.

    Raises:
        InvalidInput: it is none; names ``field``.
    """
    if not isinstance(value, timedelta):
        raise InvalidInput(f"{field} is a timedelta, such as timedelta(seconds=5), got {value!r:.100}.", field=field)
    return value


def storable(text: str) -> str:
    """``text`` with something visible in place of what PostgreSQL does not store: zero bytes and lone surrogates."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _floats(value: Any) -> Iterator[float]:
    """Every float in what orjson could encode; an explicit stack, because nesting may be deep."""
    stack: list[Any] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, float):
            yield item
        elif isinstance(item, Mapping):
            stack.extend(cast("Mapping[Any, Any]", item).values())
        elif isinstance(item, Sequence) and not isinstance(item, str):
            stack.extend(cast("Sequence[Any]", item))
        elif isinstance(item, Enum):
            stack.append(item.value)
