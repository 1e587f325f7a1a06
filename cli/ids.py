"""Ids as people type them: in full, or six or more characters of their beginning or end.

Ids are UUIDv7: those made in the same minute begin alike, so tables show their ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from .desk import Desk

__all__ = ["digits", "fits", "looks_partial", "resolve", "short"]

_PARTIAL = re.compile(r"…?[0-9a-f-]{6,36}", re.IGNORECASE)


def short(value: UUID) -> str:
    """The end of an id, as tables show it."""
    return value.hex[-8:]


def looks_partial(text: str) -> bool:
    """Whether ``text`` may be an id or a part of one."""
    return _PARTIAL.fullmatch(text) is not None


def digits(text: str) -> str:
    """The digits of a part of an id, as it may be typed."""
    return text.lower().removeprefix("…").replace("-", "")


def fits(text: str, value: UUID) -> bool:
    """Whether ``value`` begins or ends with ``text``, dashes or not."""
    part = digits(text)
    return len(part) >= 6 and (value.hex.startswith(part) or value.hex.endswith(part))


def resolve(
    desk: Desk, given: str, field: str, find: Callable[[str], Sequence[UUID]], *, noun: str | None = None
) -> UUID:
    """The id that ``given`` stands for; ``find`` is only called when it is not a whole one.

    Args:
        desk: what the command works at.
        given: as it was typed.
        field: what it was typed for.
        find: the ids that begin or end with these digits; two are enough to know that they do not suffice.
        noun: what they are of, where ``field`` does not say so.

    Raises:
        InvalidInput: it fits several, or is no id at all.
        NotFound: it fits none.
    """
    try:
        return UUID(given)
    except ValueError:
        part = digits(given)
        return desk.pick(given, field, find(part) if looks_partial(given) and 6 <= len(part) <= 32 else [], noun=noun)
