"""Arguments and options that mean the same wherever they are taken.

An option that may be given several times has a name in the singular: ``--capability a --capability b``.
"""

from __future__ import annotations

from typing import Annotated

import typer

from . import completion

__all__ = [
    "AssignedTo",
    "By",
    "Capability",
    "Fallback",
    "Id",
    "Limit",
    "LimitKey",
    "LongestRun",
    "MaxAttempts",
    "Needed",
    "Priority",
    "Reason",
    "RequiresApproval",
    "RetryDelay",
    "TaskId",
    "Timeout",
    "Type",
]

TaskId = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        autocompletion=completion.tasks,
        help="Whole, or 6 or more characters of its beginning or end.",
    ),
]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why.")]
By = Annotated[str | None, typer.Option(metavar="NAME", help="Who decides; else --as, else your login name.")]
Timeout = Annotated[str | None, typer.Option(metavar="DURATION", help="The longest to wait; else until it ends.")]
Limit = Annotated[int, typer.Option(metavar="N", min=1, max=1_000_000_000, help="At most so many.")]
Type = Annotated[
    str | None,
    typer.Option("--type", metavar="TYPE", autocompletion=completion.types, help="Tasks of this type."),
]
Capability = Annotated[
    str | None,
    typer.Option(metavar="NAME", autocompletion=completion.capabilities, help="Tasks that need this capability."),
]

# What a new task is like, whoever adds it.
Needed = Annotated[
    str,
    typer.Option(metavar="NAME", autocompletion=completion.capabilities, help="Only agents that offer it may claim."),
]
Priority = Annotated[int, typer.Option(metavar="N", min=0, max=10, help="0 to 10, higher first.")]
AssignedTo = Annotated[
    str | None, typer.Option(metavar="AGENT", autocompletion=completion.agents, help="Only this agent may claim it.")
]
LongestRun = Annotated[str | None, typer.Option(metavar="DURATION", help="The longest an attempt may run.")]
RequiresApproval = Annotated[bool, typer.Option("--requires-approval", help="Held until somebody approves it.")]
MaxAttempts = Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="1 to 1000; then it is dead.")]
RetryDelay = Annotated[str, typer.Option(metavar="DURATION", help="Before the second attempt; doubles.")]
LimitKey = Annotated[str | None, typer.Option(metavar="KEY", help="For limits that are per key.")]
Fallback = Annotated[
    str | None, typer.Option(metavar="DURATION", help="How long it waits for --assigned-to; then anybody may.")
]
Id = Annotated[str | None, typer.Option("--id", metavar="UUID", help="The idempotency key.")]
