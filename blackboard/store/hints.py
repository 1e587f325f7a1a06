"""What a hint says, and how it crosses the wire: a session and a noun."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from uuid import UUID

__all__ = ["array", "concerns", "keys_of", "parse", "quoted"]


def concerns(noun: str, nouns: Collection[str]) -> bool:
    """Whether a hint about ``noun`` is for those who asked for ``nouns``; ``tasks`` takes in ``tasks.ready``."""
    return any(noun == wanted or noun.startswith(f"{wanted}.") or wanted.startswith(f"{noun}.") for wanted in nouns)


def keys_of(sessions: Collection[UUID] | None) -> list[int | None]:
    """What subscriptions to these sessions are found by; None for those to all sessions."""
    return [None] if sessions is None else [session_id.int for session_id in sessions]


def parse(payload: str) -> tuple[int | None, str | None]:
    """Session and noun of a payload; ``(None, None)``, which means everybody, if it has another form."""
    session, _, noun = payload.partition(" ")
    try:
        return (UUID(session).int, noun) if noun else (None, None)
    except ValueError:
        return None, None


def quoted(identifier: str) -> bytes:
    """As an identifier in SQL."""
    return b'"%s"' % identifier.encode().replace(b'"', b'""')


def array(hints: Iterable[tuple[int, str]]) -> bytes:
    """Their payloads as the text of an array."""
    payloads = (f"{UUID(int=session)} {noun}" for session, noun in hints)
    escaped = (payload.replace("\\", "\\\\").replace('"', '\\"') for payload in payloads)
    return ("{" + ",".join(f'"{payload}"' for payload in escaped) + "}").encode()
