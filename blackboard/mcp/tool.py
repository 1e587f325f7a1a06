"""What a tool is: a name, what it takes, what it answers, and the function behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from .connection import Connection
from .names import Names

__all__ = [
    "Answer",
    "Arguments",
    "Call",
    "IdempotencyKey",
    "Item",
    "JsonArray",
    "JsonObject",
    "MaxTokens",
    "Result",
    "Tool",
]

_PROGRESS_SECONDS = 5.0

Progress = Callable[[float, float | None, str | None], Awaitable[None]]


class Arguments(BaseModel):
    """What a tool takes; what it does not know, it refuses."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Item(BaseModel):
    """A part of what a tool answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Result(Item):
    """What a tool answers as structured content; the fields of one tool are always the same.

    Attributes:
        next: what to do now; the last line of the text says the same.
    """

    next: str = ""


A = TypeVar("A", bound=Arguments)


@dataclass(frozen=True)
class Answer:
    """Text for the model, the same as values, and what to do now, which is added to both."""

    text: str
    data: Result
    advice: str = ""


@dataclass(frozen=True)
class Call:
    """One call of a tool: where it happens and how to name other tools."""

    connection: Connection
    names: Names
    progress: Progress

    @asynccontextmanager
    async def waiting(self, seconds: float, message: str) -> AsyncGenerator[None]:
        """Meanwhile the client hears every few seconds that the call is alive, so that it does not give up."""
        began = monotonic()

        async def tell() -> None:
            while True:
                with suppress(Exception):  # a client that has gone ends the call elsewhere
                    await self.progress(min(monotonic() - began, seconds), seconds, message)
                await asyncio.sleep(_PROGRESS_SECONDS)

        telling = asyncio.create_task(tell())
        try:
            yield
        finally:
            telling.cancel()
            with suppress(asyncio.CancelledError):
                await telling


@dataclass(frozen=True)
class Tool(Generic[A]):
    """One tool.

    Attributes:
        verb: its name without the prefix.
        description: for the model; other tools as ``{claim_task}``.
        writes: whether it changes the board.
        idempotent: whether the same call again changes nothing even without an idempotency key.
    """

    verb: str
    title: str
    description: str
    arguments: type[A]
    result: type[Result]
    run: Callable[[Call, A], Awaitable[Answer]]
    writes: bool = True
    idempotent: bool = False


def _parsed(value: Any) -> Any:
    # Models often hand over an object or a list as its JSON text.
    if isinstance(value, str) and value.lstrip()[:1] in {"{", "["}:
        with suppress(ValueError):
            return json.loads(value)
    return value


JsonObject = Annotated[dict[str, Any], BeforeValidator(_parsed)]
"""An object, or its JSON text."""

JsonArray = BeforeValidator(_parsed)
"""Marks a list that may come as its JSON text."""

IdempotencyKey = Annotated[
    str | None,
    Field(
        min_length=1,
        max_length=200,
        description="Your own name for this very call. Repeated with the same key and arguments, the call changes "
        "nothing and returns the first result. Use a new key for each new thing.",
        examples=["finding-pool-exhausted-1"],
    ),
]

MaxTokens = Annotated[
    int,
    Field(
        ge=200,
        le=50_000,
        description="About how many tokens the answer may cost. What does not fit is left out and counted.",
    ),
]
"""How long an answer may be."""
