"""The tool that waits for events."""

from __future__ import annotations

from datetime import timedelta
from difflib import get_close_matches
from time import monotonic
from typing import Annotated, Any

from pydantic import Field, field_validator

from ..models.events import Event
from .budget import Budget
from .fence import NOTICE, Fence, quoted
from .tool import Answer, Arguments, Call, Item, JsonArray, MaxTokens, Result, Tool

__all__ = ["WAIT_TOOLS"]

_READ_AT_ONCE = 50
_NOUNS = (
    "session", "agent", "finding", "evidence", "hypothesis", "assessment", "task", "flow", "limit", "pause", "schedule",
    "budget", "proposal", "vote", "action", "lock",
)  # fmt: skip


class WaitArguments(Arguments):
    """What wait takes."""

    cursor: Annotated[
        str | None,
        Field(
            max_length=100_000,
            description="Events after this one count: the cursor of the last {wait}, {view} or {join_session}. By "
            "default this server goes on from where it last told you of events.",
        ),
    ] = None
    topics: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=200)]] | None,
        JsonArray,
        Field(
            max_length=50,
            description="Kinds of event to wake for, such as task.* or proposal.opened; all by default. The events are "
            f"noun.verb with the nouns {', '.join(_NOUNS)}.",
            examples=[["task.*", "proposal.opened"]],
        ),
    ] = None
    timeout_seconds: Annotated[
        float, Field(ge=0, le=300, description="Return after so many seconds even if nothing happened; 0 to 300.")
    ] = 30
    include_own: Annotated[bool, Field(description="Whether what you did yourself counts too.")] = False
    max_tokens: MaxTokens = 2000

    @field_validator("topics")
    @classmethod
    def _like_events(cls, topics: list[str] | None) -> list[str] | None:
        for topic in topics or ():
            noun, dot, _ = topic.removeprefix("agent.").partition(".")
            if topic == "*" or (dot and noun in _NOUNS) or topic.startswith("agent."):
                continue
            close = get_close_matches(noun, _NOUNS, 1)
            wanted = f"write {close[0]}.*, or" if close else f"the nouns are {', '.join(_NOUNS)}; write"
            raise ValueError(f"{topic!r} is no kind of event: {wanted} a type such as finding.reported")
        return topics


class EventItem(Item):
    """Something that happened."""

    seq: int
    at: str
    type: str
    actor: str
    subject_id: str
    summary: str


class WaitResult(Result):
    """What wait answers; ``more`` says that the next call returns at once."""

    notice: str = NOTICE
    happened: bool
    events: tuple[EventItem, ...]
    omitted: int
    more: bool
    cursor: str


async def wait(call: Call, arguments: WaitArguments) -> Answer:
    """Something happened, or the time is up; either way the cursor goes on from there."""
    agent = await call.connection.agent()
    cursor = arguments.cursor or call.connection.cursor or await agent.events.now()
    ends = monotonic() + arguments.timeout_seconds
    async with call.waiting(arguments.timeout_seconds, "waiting for events"):
        while True:
            left = max(0.0, ends - monotonic())
            page = await agent.events.wait(
                cursor, topics=arguments.topics, timeout=timedelta(seconds=left), limit=_READ_AT_ONCE
            )
            cursor = page.cursor
            events = [event for event in page.events if arguments.include_own or event.actor != agent.id]
            if events or (left <= 0 and not page.more):
                break
    call.connection.cursor = cursor
    budget = Budget(arguments.max_tokens)
    items, lines = budget.fill("events", map(_event_item, events), _event_line)
    omitted = budget.omitted["events"]
    result = WaitResult(happened=bool(events), events=tuple(items), omitted=omitted, more=page.more, cursor=cursor)
    if not events:
        return Answer(
            f"Nothing happened within {arguments.timeout_seconds:g} seconds.\ncursor: {cursor}",
            result,
            f"{call.names['wait']} again with this cursor, or {call.names['view']} for the whole board.",
        )
    fence = Fence()
    parts = [f"{len(events)} events.", fence.explanation(), fence.around("events", lines)]
    if omitted:
        parts.append(f"Left out: {omitted} events did not fit; {call.names['view']} shows what became of them.")
    if page.more:
        parts.append(f"There is more: {call.names['wait']} with this cursor returns at once.")
    parts.append(f"cursor: {cursor}")
    return Answer(
        "\n".join(parts),
        result,
        f"{call.names['get_findings']}, {call.names['view']} or {call.names['claim_task']} for what concerns you, then "
        f"{call.names['wait']} with this cursor.",
    )


def _event_item(event: Event) -> EventItem:
    return EventItem(
        seq=event.seq,
        at=event.at.isoformat(timespec="seconds"),
        type=event.type,
        actor=event.actor,
        subject_id=str(event.subject_id),
        summary=quoted(event.data, 300),
    )


def _event_line(item: EventItem) -> str:
    return f"{item.at} {item.type} {item.subject_id} by {quoted(item.actor, 100)} {item.summary}"


WAIT_TOOLS: tuple[Tool[Any], ...] = (
    Tool(
        "wait",
        "Wait for events",
        "Sleep until something happens on the board that somebody else did, or until the time is up. Returns the "
        "events and the cursor to go on with; no event between two calls is missed.",
        WaitArguments,
        WaitResult,
        wait,
        writes=False,
    ),
)
