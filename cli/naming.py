"""What the library calls an argument, in the words of whoever typed it: ``run_at`` is ``--run-at`` there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from blackboard.errors import InvalidInput

__all__ = ["in_shell_words", "spelled"]

# Where the library's name for it is no parameter of the command: which one it is.
_OTHERWISE = {
    "capabilities": "capability",
    "cursor": "since",
    "error_code": "error",
    "n": "times",
    "rate_count": "rate",
    "rate_period": "period",
    "subject_id": "subject",
    "tags": "tag",
    "task_ids": "task_id",
    "topics": "topic",
}
# What was typed or written by others is repeated as it is; names of two words are never words of a sentence.
_NAMES = re.compile(r"""('[^']*'|"[^"]*"|`[^`]*`)|\b[a-z]+(?:_[a-z]+)+\b""")


def spelled(parameter: Any) -> str:
    """How a parameter of a command is typed: ``--run-at``, or ``ID`` for an argument."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name or "").strip("[].").upper()
    return max(parameter.opts, key=len)


def in_shell_words(error: InvalidInput, ctx: typer.Context) -> InvalidInput:
    """``error`` with the options and arguments of the command in place of the library's names.

    Its ``field`` stays, the same in every language, and ``option`` says what to type. What is wrong inside a file is
    told as the file has it.
    """
    if "line" in error.details or "stage" in error.details:
        return error
    names = _names(ctx)
    field = str(error.details.get("field", ""))
    message = _NAMES.sub(lambda found: found[1] or names.get(found[0], found[0]), error.message)
    option = names.get(field)
    if option is None:
        return error if message == error.message else type(error)(message, **error.details)
    if message.startswith(f"{field} ") and not message.startswith(f"{field} of "):
        message = f"{option}{message.removeprefix(field)}"
    elif option.startswith("--") and " --" not in f" {message}" and _given(ctx, option):
        message = f"{option}: {message}"
    return type(error)(message, **error.details, option=option)


def _names(ctx: typer.Context) -> Mapping[str, str]:
    """How the parameters of the command are typed, by the library's names for them."""
    names = {str(one.name).rstrip("_"): spelled(one) for one in ctx.command.params}
    return {other: names[name] for other, name in _OTHERWISE.items() if name in names} | names


def _given(ctx: typer.Context, option: str) -> bool:
    """Whether it was typed: of what was not, the message says itself where it comes from."""
    for one in ctx.command.params:
        if spelled(one) == option:
            source = ctx.get_parameter_source(str(one.name))
            return source is not None and source.name == "COMMANDLINE"
    return False
