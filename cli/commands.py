"""How commands are declared: nouns that load when they are used, options that every command takes, one way to end."""

from __future__ import annotations

import errno
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Concatenate, NoReturn, ParamSpec, TypeVar, cast

import typer
from typer.core import TyperCommand, TyperGroup

from . import exits
from .completion import sessions
from .helptext import GLOBAL, page
from .naming import in_shell_words
from .options import Options
from .troubles import report, report_usage

__all__ = ["LazyGroup", "command", "noun", "shared_options", "single", "take_shared", "with_shared"]

# The disk is full, say, that the output goes to.
_UNWRITTEN = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})

_P = ParamSpec("_P")
_T = TypeVar("_T")


class LazyCommand(TyperCommand):
    """Stands for a noun whose module is imported when the noun is used."""

    def __init__(self, name: str, module: str, summary: str) -> None:
        super().__init__(name, help=summary)
        self._module = module

    def load(self) -> Any:
        """The noun's own command or group."""
        module = importlib.import_module(f".{self._module}", __package__)
        return typer.main.get_command(module.app)


class BoardCommand(TyperCommand):
    """A command with our help page."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help page."""
        formatter.write(page(self, ctx))


class BoardGroup(TyperGroup):
    """A noun with our help page."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help page."""
        formatter.write(page(self, ctx))


class LazyGroup(BoardGroup):
    """The root: knows every noun by name and summary only, and ends the process with the codes of ``exits``."""

    nouns: Mapping[str, tuple[str, str]] = {}

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, (module, summary) in self.nouns.items():
            self.add_command(LazyCommand(name, module, summary))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Loads the noun that ``args`` begin with."""
        name, found, rest = super().resolve_command(ctx, args)
        return name, found.load() if isinstance(found, LazyCommand) else found, rest

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Runs a command line and raises ``SystemExit`` with one of the codes of ``exits``."""
        del standalone_mode, windows_expand_args
        given = list(sys.argv[1:] if args is None else args)
        prog_name = prog_name or "blackboard"
        self._main_shell_completion(extra, prog_name, complete_var)
        try:
            try:
                with self.make_context(prog_name, given.copy(), **extra) as ctx:
                    result = self.invoke(ctx)
            except typer.Exit as end:
                result = end.exit_code
            sys.stdout.flush()
        except (KeyboardInterrupt, typer.Abort):
            sys.exit(exits.INTERRUPTED)
        except BrokenPipeError:
            _end_of_pipe()
        except typer.TyperException as error:
            sys.exit(report_usage(error, json="--json" in given))
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _UNWRITTEN and error.filename is None:
                _mute()
            sys.exit(report(error, json="--json" in given))
        sys.exit(result if isinstance(result, int) else exits.OK)


def _end_of_pipe() -> NoReturn:
    """Ends without a word: whoever read our output has seen enough."""
    _mute()
    sys.exit(exits.OK)


def _mute() -> None:
    """What is left to say, also in buffers, goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def shared_options(
    *,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="The database; else BLACKBOARD_URL, else the embedded server.", rich_help_panel=GLOBAL
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Of the embedded server.", rich_help_panel=GLOBAL)
    ] = None,
    session: Annotated[
        str | None,
        typer.Option(
            "--session",
            "-s",
            metavar="NAME_OR_ID",
            autocompletion=sessions,
            help="Else BLACKBOARD_SESSION, else the only open one.",
            rich_help_panel=GLOBAL,
        ),
    ] = None,
    actor: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="ACTOR",
            help="Who acts, as history shows it; else BLACKBOARD_ACTOR.",
            rich_help_panel=GLOBAL,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, errors too.", rich_help_panel=GLOBAL)] = False,
    no_color: Annotated[
        bool, typer.Option("--no-color", help="No colours; so does NO_COLOR.", rich_help_panel=GLOBAL)
    ] = False,
) -> Options:
    """What every command takes, before or after its name."""
    return Options(url=url, data_dir=data_dir, session=session, actor=actor, json=json, no_color=no_color)


_SHARED = inspect.signature(shared_options, eval_str=True).parameters
_CONTEXT = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)


def noun(summary: str) -> typer.Typer:
    """The group of a noun's verbs."""
    app = typer.Typer(
        cls=BoardGroup, help=summary, add_completion=False, no_args_is_help=True, rich_markup_mode=None, name=None
    )

    def group(ctx: typer.Context, **shared: Any) -> None:
        take_shared(ctx, shared)

    app.callback()(with_shared(group))
    return app


def single() -> typer.Typer:
    """A command that is no group."""
    return typer.Typer(add_completion=False, rich_markup_mode=None)


def command(
    app: typer.Typer, name: str, *, example: str
) -> Callable[[Callable[Concatenate[Any, _P], _T]], Callable[Concatenate[Any, _P], _T]]:
    """Declares a command: its function gets a ``Desk`` and then its own arguments, and may return an exit code.

    Args:
        app: of its noun.
        name: the verb.
        example: command lines, shown in its help.
    """

    def register(function: Callable[Concatenate[Any, _P], _T]) -> Callable[Concatenate[Any, _P], _T]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        taken = {parameter.name for parameter in own}
        shared = [parameter for parameter in _SHARED.values() if parameter.name not in taken]

        def run(ctx: typer.Context, **values: Any) -> _T:
            from .desk import Desk

            given = {parameter.name: values.pop(parameter.name) for parameter in shared}
            try:
                with Desk(_merged(ctx, given)) as desk:
                    return cast("Callable[..., _T]", function)(desk, **values)
            except Exception as error:
                from blackboard.errors import InvalidInput

                if isinstance(error, InvalidInput):
                    raise in_shell_words(error, ctx) from error
                raise

        run.__doc__ = function.__doc__
        run.__name__ = function.__name__
        _sign(run, [_CONTEXT, *own, *shared])
        lines = "\n".join(inspect.cleandoc(example).splitlines())
        title = "Examples:" if "\n" in lines else "Example:"
        app.command(name, cls=BoardCommand, epilog=f"{title}\n{lines}")(run)
        return function

    return register


def with_shared(callback: Callable[..., None]) -> Callable[..., None]:
    """``callback``, which takes ``**shared``, with the shared options in its signature."""
    own = list(inspect.signature(callback, eval_str=True).parameters.values())[:-1]
    _sign(callback, [*own, *_SHARED.values()])
    return callback


def take_shared(ctx: typer.Context, values: Mapping[str, Any]) -> None:
    """The commands below ``ctx`` have these options unless they say otherwise."""
    ctx.obj = _merged(ctx, values)


def _merged(ctx: typer.Context, values: Mapping[str, Any]) -> Options:
    above = ctx.find_object(Options)
    below = shared_options(**values)
    return below if above is None else above.overridden(below)


def _sign(function: Callable[..., Any], parameters: list[inspect.Parameter]) -> None:
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    vars(function)["__signature__"] = inspect.Signature(parameters)
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
