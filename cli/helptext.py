"""Help pages: typer's own need rich, which takes longer to import than help may take to answer."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import typer
from typer.core import TyperArgument, TyperGroup, TyperOption

__all__ = ["GLOBAL", "coloured", "page"]

GLOBAL = "Global options"
"""The panel of the options that every command takes."""

_EDGE = 2


def coloured(stream: Any = None) -> bool:
    """Whether ``stream`` (stdout by default) is a terminal that may be coloured."""
    stream = sys.stdout if stream is None else stream
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or "--no-color" in sys.argv:
        return False
    return bool(stream.isatty())


def page(command: Any, ctx: Any) -> str:
    """The help page of ``command``."""
    width = min(shutil.get_terminal_size().columns, 110)
    arguments = [p for p in command.get_params(ctx) if isinstance(p, TyperArgument) and not p.hidden]
    options = [p for p in command.get_params(ctx) if isinstance(p, TyperOption) and not p.hidden]
    group = isinstance(command, TyperGroup)
    top = ctx.parent is None
    ours = [option for option in options if top or option.rich_help_panel != GLOBAL]
    shared = [option for option in options if option not in ours]
    words = [ctx.command_path, "[OPTIONS]", *(_usage(argument) for argument in arguments)]
    lines = [f"{_bold('Usage:')} {' '.join([*words, 'COMMAND …'] if group else words)}", ""]
    for paragraph in (command.help or "").split("\n\n"):
        lines += [*textwrap.wrap(paragraph, width - _EDGE), ""]
    if group:
        rows = [(name, command.get_command(ctx, name)) for name in command.list_commands(ctx)]
        lines += _section("Commands", [(name, one.get_short_help_str(200)) for name, one in rows if one], width)
    lines += _section("Arguments", [(_name(p), p.help or "") for p in arguments], width)
    lines += _section("Options", [_option(p, ctx) for p in ours], width)
    if group and shared:
        lines += [_dim("Every command also takes the global options; see `blackboard --help`."), ""]
    elif shared:
        lines += _section(GLOBAL, [_option(p, ctx) for p in shared], width)
    if command.epilog:
        # Examples and tables keep their lines.
        for block in command.epilog.split("\n\n"):
            head, *rest = block.splitlines()
            lines += [_bold(head), *(f"  {line}" for line in rest), ""]
    return "\n".join(lines).rstrip() + "\n"


def _section(title: str, rows: Sequence[tuple[str, str]], width: int) -> Iterable[str]:
    if not rows:
        return []
    lines = [_bold(f"{title}:")]
    left = min(max(len(name) for name, _ in rows), 28)
    for name, text in rows:
        wrapped = textwrap.wrap(text, max(width - left - 2 * _EDGE - 1, 20)) or [""]
        if len(name) > left:
            lines.append(f"  {_cyan(name)}")
        else:
            lines.append(f"  {_cyan(name)}{' ' * (left - len(name))}  {wrapped.pop(0)}".rstrip())
        lines += [f"  {' ' * left}  {line}" for line in wrapped]
    return [*lines, ""]


def _name(argument: TyperArgument) -> str:
    return argument.metavar or (argument.name or "").upper()


def _usage(argument: TyperArgument) -> str:
    dots = "…" if argument.nargs != 1 else ""
    return f"{_name(argument)}{dots}" if argument.required else f"[{_name(argument)}{dots}]"


def _option(option: TyperOption, ctx: typer.Context) -> tuple[str, str]:
    name, text = option.get_help_record(ctx) or ("", "")
    return name.replace(" / ", "/"), text


def _paint(code: str, text: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if coloured() else text


def _bold(text: str) -> str:
    return _paint("1", text)


def _cyan(text: str) -> str:
    return _paint("36", text)


def _dim(text: str) -> str:
    return _paint("2", text)
