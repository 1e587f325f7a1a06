"""Ids as people type them: in full, or six or more characters of their beginning or end.

Ids are UUIDv7: those made in the same minute begin alike, so tables show their ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from .desk import Desk

__all__ = ["fits", "looks_partial", "resolve", "short"]

_PARTIAL = re.compile(r"…?[0-9a-f-]{6,36}", re.IGNORECASE)


def short(value: UUID) -> str:
    """The end of an id, as tables show it."""
    return value.hex[-8:]


def looks_partial(text: str) -> bool:
    """Whether ``text`` may be an id or a part of one."""
    return _PARTIAL.fullmatch(text) is not None


def fits(text: str, value: UUID) -> bool:
    """Whether ``value`` begins or ends with ``text``, dashes or not."""
    digits = text.lower().removeprefix("…").replace("-", "")
    return len(digits) >= 6 and (value.hex.startswith(digits) or value.hex.endswith(digits))


def resolve(
    desk: Desk, given: str, field: str, records: Callable[[], Iterable[Any]], *, noun: str | None = None
) -> UUID:
    """The id that ``given`` stands for; ``records`` are only read when it is not a whole one.

    Args:
        desk: what the command works at.
        given: as it was typed.
        field: what it was typed for.
        records: what it may stand for.
        noun: what they are, where ``field`` does not say so.

    Raises:
        InvalidInput: it fits several, or is no id at all.
        NotFound: it fits none.
    """
    try:
        return UUID(given)
    except ValueError:
        return desk.pick(given, field, [record.id for record in records()], noun=noun)
