"""``blackboard worker``."""

from __future__ import annotations

import asyncio
import gc
import importlib
import inspect
import logging
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast
from uuid import UUID

import typer

from . import completion, exits
from .commands import command, single
from .desk import Desk
from .values import duration

if TYPE_CHECKING:
    from datetime import timedelta

    from blackboard import Blackboard, Worker

__all__ = ["app"]

app = single()


@command(
    app,
    "worker",
    example="""
    blackboard worker shop.tasks:handlers --session INC-1234 --capability investigate --concurrency 20
    blackboard worker shop.tasks:make_worker
    """,
)
def worker(
    desk: Desk,
    *,
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:NAME",
            help="Handlers, or a function that takes the board and returns a Worker; looked for from here.",
        ),
    ],
    session: Annotated[
        list[str] | None,
        typer.Option(
            "--session",
            "-s",
            metavar="NAME_OR_ID",
            autocompletion=completion.sessions,
            help="Repeat it for more; else BLACKBOARD_SESSION, else the only open one.",
        ),
    ] = None,
    agent: Annotated[
        str | None, typer.Option(metavar="ID", help="Who claims; else --as, else worker/ and the host's name.")
    ] = None,
    capability: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="What it can do; repeat it for more.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=10_000, help="Handlers that run at once.  [default: 10]")
    ] = None,
    grace: Annotated[
        str | None, typer.Option(metavar="DURATION", help="For handlers, after a signal.  [default: 30s]")
    ] = None,
    drain: Annotated[bool, typer.Option("--drain", help="End when nothing is left to do.")] = False,
) -> int:
    """Run the handlers of a module for the tasks of a session, until SIGTERM or Ctrl-C.

    The first signal lets running handlers end, a second one stops at once; what was not done goes back.
    """
    _log()
    found = _load(target)
    term = duration(grace, "grace")
    return asyncio.run(_run(desk, target, found, session, agent, capability, concurrency, term, drain=drain))


async def _run(
    desk: Desk,
    target: str,
    found: object,
    sessions: Sequence[str] | None,
    agent: str | None,
    capabilities: Sequence[str] | None,
    concurrency: int | None,
    grace: timedelta | None,
    *,
    drain: bool,
) -> int:
    from blackboard import Blackboard, Handlers, Worker
    from blackboard.errors import InvalidInput

    url, migrate = desk.options.url, None
    if url is None and desk.options.data_dir is not None:
        url, migrate = desk.url, True
    async with Blackboard.open(url, actor=desk.options.actor, migrate=migrate) as board:
        if isinstance(found, Handlers):
            settings: dict[str, Any] = {}
            if concurrency is not None:
                settings["concurrency"] = concurrency
            if grace is not None:
                settings["grace"] = grace
            made = Worker(
                board,
                await _sessions(desk, board, sessions),
                agent_id=agent or desk.actor or _host_agent(),
                capabilities=capabilities or (),
                handlers=found,
                **settings,
            )
        else:
            if sessions or agent or capabilities or concurrency is not None or grace is not None:
                raise InvalidInput(
                    f"{target} makes its own worker: --session, --agent, --capability, --concurrency and --grace are "
                    "its own affair.",
                    field="target",
                )
            made = await _made(target, found, board)
        log = logging.getLogger("blackboard.worker")
        # What is there by now stays: full collections need not walk over every imported module again and again.
        gc.freeze()
        counts = await (made.drain() if drain else made.run())
        told = {name: value for name, value in asdict(counts).items() if value or name == "completed"}
        log.info("ended: %s", ", ".join(f"{value} {name}" for name, value in told.items()))
        if desk.out.json:
            desk.out.document(asdict(counts))
        return exits.INTERRUPTED if made.stopped_at_once else exits.OK


def _host_agent() -> str:
    return f"worker/{re.sub(r'[^!-~]', '-', socket.gethostname())[:90]}"


async def _sessions(desk: Desk, board: Blackboard, given: Sequence[str] | None) -> list[Any]:
    if not given:
        return [await board.session(await asyncio.to_thread(_session_id, desk, None))]
    found: list[Any] = []
    for one in given:
        found.append(await board.session(await asyncio.to_thread(_session_id, desk, one)))
    return found


def _session_id(desk: Desk, name: str | None) -> UUID:
    return desk.session(name).id


async def _made(target: str, factory: object, board: Blackboard) -> Worker:
    from blackboard import Worker
    from blackboard.errors import BlackboardError, ConfigurationError

    try:
        made = cast("Callable[[Blackboard], Any]", factory)(board)
        if inspect.isawaitable(made):
            made = await made
    except BlackboardError:
        raise
    except Exception as error:
        raise _of_theirs(f"{target} raised", error) from error
    if not isinstance(made, Worker):
        raise ConfigurationError(f"{target} returned a {type(made).__name__} in place of a Worker.")
    return made


def _of_theirs(what: str, error: Exception) -> Exception:
    """What the user's own code raised, with the way to it: it is no fault of ours."""
    from blackboard.errors import ConfigurationError

    # Without the frames of ours that lead to it.
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    frames = [frame for frame in frames if "importlib" not in frame.filename]
    if frames:
        logging.getLogger("blackboard.worker").error(
            "what failed:\n%s", "".join(traceback.format_list(frames)).rstrip()
        )
    return ConfigurationError(f"{what} {type(error).__name__}: {error}")


def _load(target: str) -> object:
    """What ``module:name`` names; the module may lie in the working directory.

    Raises:
        ConfigurationError: there is no such module or name, or it is neither handlers nor a function.
    """
    from blackboard import Handlers
    from blackboard.errors import ConfigurationError

    module, colon, path = target.partition(":")
    if not (module and colon and path):
        raise ConfigurationError(f"{target!r} must be MODULE:NAME, such as shop.tasks:handlers.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise _of_theirs(f"The module {module} cannot be imported:", error) from error
        raise ConfigurationError(
            f"There is no module {error.name!r}; it is looked for in {here} and among the installed ones."
        ) from None
    except Exception as error:
        raise _of_theirs(f"The module {module} cannot be imported:", error) from error
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise ConfigurationError(f"The module {module} has no {path!r}.") from None
    if not isinstance(found, Handlers) and not callable(found):
        raise ConfigurationError(
            f"{target} is a {type(found).__name__}: it must be Handlers, or a function that takes the board and "
            "returns a Worker."
        )
    return found


def _log() -> None:
    level = os.environ.get("BLACKBOARD_LOG", "INFO").upper()
    handler = logging.StreamHandler()
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    # In UTC, as all times that we print: a worker's log is read beside history and events.
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(handler)
    logging.getLogger("blackboard").setLevel(level if level in logging.getLevelNamesMapping() else "INFO")
