"""What goes wrong, told once on stderr: what happened and what to do, or as JSON."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from . import exits
from .helptext import coloured
from .naming import spelled
from .output import clean

__all__ = ["report", "report_usage"]


def report_usage(error: typer.TyperException, *, json: bool) -> int:
    """Tells that the command line is wrong; the exit code."""
    ctx: Any = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError" and not json:
        # Asked for nothing: the page itself is the answer.
        typer.echo(error.format_message(), err=True)
        return exits.INVALID
    # Pydantic's own preface says nothing to whoever typed the value.
    message = error.format_message().replace(": Value error, ", ": ")
    if type(error).__name__ == "NoArgsIsHelpError":
        message = "Missing command."
    path = ctx.command_path if ctx is not None else "blackboard"
    facts: dict[str, Any] = {"code": "usage", "message": message, "retryable": False}
    parameter: Any = getattr(error, "param", None)
    if parameter is not None:
        facts |= {"field": str(parameter.name).rstrip("_"), "option": spelled(parameter)}
    _tell(message if json else f"{message}\nSee `{path} --help`.", facts, json=json)
    return exits.INVALID


def report(error: Exception, *, json: bool) -> int:
    """Tells of any other error; the exit code."""
    from blackboard.errors import BlackboardError

    if isinstance(error, BlackboardError):
        _tell(error.message, error.to_dict(), json=json)
    else:
        if os.environ.get("BLACKBOARD_DEBUG"):
            raise error
        if isinstance(error, OSError) and error.filename is None:
            message = f"The answer could not be written ({error.strerror or error}); what the command does may be done."
            _tell(message, {"code": "output", "message": message, "retryable": False}, json=json)
            return exits.REFUSED
        message = f"{type(error).__name__}: {error} (this is a fault of ours; BLACKBOARD_DEBUG=1 shows where)"
        _tell(message, {"code": "internal", "message": message, "retryable": False}, json=json)
    return exits.exit_code(error)


def _tell(message: str, facts: dict[str, Any], *, json: bool) -> None:
    if json:
        import json as encoder

        print(encoder.dumps({"error": facts}, default=str, ensure_ascii=False), file=sys.stderr)
        return
    label = "\x1b[1;31mError:\x1b[0m" if coloured(sys.stderr) else "Error:"
    # It may repeat what agents wrote.
    print(f"{label} {clean(message)}", file=sys.stderr)
