"""``blackboard events``."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Generator
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .commands import command, single
from .desk import Desk
from .output import Column, clean, jsonable, plain

if TYPE_CHECKING:
    from blackboard.models.events import Event

__all__ = ["app", "summary"]

app = single()

# Whoever watches for another would watch for ever.
_NOUNS = (
    "session", "agent", "finding", "evidence", "hypothesis", "assessment", "task", "flow", "limit", "pause", "schedule",
    "budget", "proposal", "vote", "action", "lock",
)  # fmt: skip


_WORDS = ("title", "statement", "description", "name", "content", "choice", "reason", "error")
# What the type, the actor or another column of the line says already, or what only programs need.
_SILENT = {
    "agent_id", "attempt", "ballots", "because", "body", "claim_id", "created_by", "decided_at", "electors",
    "initiator", "lease_id", "min_turnout", "request_id", "revision", "role", "rule", "session_id", "status",
    "threshold", "token", "vote_weight", "weighted",
}  # fmt: skip


def summary(event: Any) -> str:
    """What an event's data says, in one line; words first."""
    data: dict[str, Any] = event.data
    shown = [plain(data[name]) for name in _WORDS if data.get(name)]
    if not shown or event.type.endswith((".created", ".proposed")):
        rest = {name: value for name, value in data.items() if name not in _SILENT and name not in _WORDS}
        shown += [f"{name}={plain(value)}" for name, value in rest.items() if value not in (None, "", {}, [], False, 0)]
    if data.get("confidence") is not None and not any(one.startswith("confidence=") for one in shown):
        shown.append(f"confidence={data['confidence']:g}")
    return ", ".join(shown)


_COLUMNS = [
    Column("seq", lambda e: e.seq, "number", wide=100),
    Column("at", lambda e: e.at),
    Column("type", lambda e: e.type),
    Column("actor", lambda e: e.actor, most=0.3),
    Column("subject", lambda e: e.subject_id, wide=110),
    Column("data", summary, grow=True),
]


@command(
    app,
    "events",
    example="""
    blackboard events --topic 'task.*' --limit 20
    blackboard events --follow
    blackboard events --follow --since "$CURSOR" --json
    """,
)
def events(
    desk: Desk,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with each new event, until Ctrl-C.")] = False,
    topic: Annotated[
        list[str] | None, typer.Option(metavar="TYPE", help="Such as task.completed or task.*; repeat it for more.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Only after it; an earlier run printed it on stderr.")
    ] = None,
    subject: Annotated[str | None, typer.Option(metavar="UUID", help="Only those about this row.")] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="End after so many; 1000 by default without --follow.")
    ] = None,
) -> None:
    """Read what happened in a session, from its beginning or a cursor; with --follow go on with what happens.

    At the end the cursor to go on from is printed on stderr: nothing is missed or repeated.
    """
    for one in topic or ():
        _check_topic(one)
    source = desk.session().events
    left = limit if limit is not None or follow else 1000
    cursor = since
    try:
        if follow:
            if cursor is None:
                cursor = source.now()
            # Said once the cursor is taken: what happens from now on is told.
            print(json.dumps({"following": True}) if desk.out.json else "Following; Ctrl-C ends it.", file=sys.stderr)
        found: list[Event] = []
        while left is None or left > 0:
            size = 1000 if left is None else min(left, 1000)
            if follow:
                page = source.wait(cursor, topics=topic, subject_id=subject, timeout=None, limit=size)
                with _whole():
                    for event in page.events:
                        _tell(desk, event)
                    cursor = page.cursor
            else:
                page = source.read(cursor, topics=topic, subject_id=subject, limit=size)
                found += page.events
                cursor = page.cursor
            left = None if left is None else left - len(page.events)
            if not follow and not page.more:
                break
        if not follow:
            desk.out.records(found, _COLUMNS, empty="No such events.")
    except KeyboardInterrupt:
        # The way to end this; without --follow it is an interruption like any other.
        if not follow:
            raise
    except Exception:
        # What was typed is no news to who typed it, and may be no cursor at all.
        cursor = None if cursor == since else cursor
        raise
    finally:
        if cursor is not None:
            told = json.dumps({"cursor": cursor}) if desk.out.json else f"cursor: {cursor}"
            print(told, file=sys.stderr)


def _check_topic(topic: str) -> None:
    from blackboard.errors import InvalidInput

    noun, dot, _ = topic.removeprefix("agent.").partition(".")
    if topic == "*" or (dot and noun in _NOUNS) or topic.startswith("agent."):
        return
    close = get_close_matches(noun, _NOUNS, 1)
    wanted = f"Did you mean {close[0]}.*?" if close else f"The nouns are {', '.join(_NOUNS)}."
    raise InvalidInput(
        f"{topic!r} is no kind of event; they are noun.verb, such as task.completed, or noun.*. {wanted}",
        field="topics",
    )


@contextlib.contextmanager
def _whole() -> Generator[None]:
    """A first Ctrl-C waits for the end of the block, so that the cursor says what was told; a second one does not."""
    pressed: list[int] = []

    def press(*_: object) -> None:
        pressed.append(1)
        if len(pressed) > 1:
            raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGINT, press)
    except ValueError:  # not the main thread: nobody interrupts it
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def _tell(desk: Desk, event: Event) -> None:
    if desk.out.json:
        desk.out.line(jsonable(event))
    elif desk.out.terminal:
        from rich.text import Text

        line = Text.assemble(
            (event.at.astimezone().strftime("%H:%M:%S "), "dim"),
            (f"{event.type:<24} ", "bold"),
            (f"{clean(event.actor)} ", "cyan"),
            clean(" ".join(summary(event).split())),
        )
        console = desk.out.console
        console.print(line, no_wrap=True, overflow="ellipsis", crop=True)
    else:
        print(
            f"{plain(event.at)}  {event.type}  {plain(event.actor)}  {event.subject_id}  {plain(summary(event))}",
            flush=True,
        )
