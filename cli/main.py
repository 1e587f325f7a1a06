"""The ``blackboard`` command."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, Any, Final

import typer

from . import exits
from .commands import LazyGroup, take_shared, with_shared

__all__ = ["NOUNS", "app", "main"]

NOUNS: Final[dict[str, tuple[str, str]]] = {
    "demo": ("demo", "Watch a swarm solve a recorded incident, or search your own logs."),
    "board": ("board", "Show the whole picture of a session."),
    "session": ("sessions", "Sessions: problems that agents work on together."),
    "agent": ("agents", "Agents: who works in a session, and on what they are experts."),
    "finding": ("findings", "Findings: what the agents know."),
    "hypothesis": ("hypotheses", "Hypotheses: what they believe, and the evidence for and against it."),
    "task": ("tasks", "Tasks: the work to be done."),
    "why": ("why", "Say why a task does not run, or who runs it, or how it ended."),
    "limit": ("limits", "Limits: how many tasks may run at once, or start in a time."),
    "flow": ("flows", "Flows: graphs of tasks that are created, watched and changed as one thing."),
    "deadletter": ("deadletters", "Dead letters: tasks that died of their last attempt."),
    "worker": ("worker", "Run the handlers of a module for the tasks of a session."),
    "schedule": ("schedules", "Schedules: tasks that are added at the times of a cron expression."),
    "budget": ("budgets", "Budgets: what may be spent, what is reserved, and the ledger of what was."),
    "proposal": ("proposals", "Proposals: what is decided by vote."),
    "vote": ("vote", "Cast an agent's ballot on a proposal."),
    "action": ("actions", "Actions: what is done to the world outside, and who approved it."),
    "lock": ("locks", "Locks: who holds what."),
    "events": ("events", "Read or follow what happens in a session."),
    "history": ("history", "Show who changed what, from which value to which, when."),
    "swarm": ("swarm", "Run a swarm of agents that a file describes."),
    "bench": ("bench", "Measure how fast the board is on a server of yours."),
    "server": ("server", "The embedded PostgreSQL server."),
    "db": ("database", "The database's schema: migrate it, check it, grant access to it."),
}


class Root(LazyGroup):
    """The root of all commands."""

    nouns = NOUNS


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"blackboard {version('agent-blackboard')}")
        raise typer.Exit


def _root(
    ctx: typer.Context,
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    **shared: Any,
) -> None:
    del version
    take_shared(ctx, shared)


app = typer.Typer(
    name="blackboard",
    cls=Root,
    callback=with_shared(_root),
    help=(
        "A shared workspace on PostgreSQL for many agents working on one problem: what they find, believe, do and "
        "decide.\n\nWith no URL an embedded server is started or joined."
    ),
    epilog=(
        "Examples:\n"
        "blackboard demo\n"
        'blackboard session start INC-1234 --goal "Why does checkout fail?"\n'
        "blackboard events --follow\n\n"
        "Exit codes:\n" + "\n".join(f"{code:>3}  {meaning}" for code, meaning in exits.MEANINGS.items())
    ),
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


def _nowhere(number: int) -> int:
    found = os.open(os.devnull, os.O_WRONLY)
    # So that no connection gets the number of a stream, and with it what libraries print there.
    return found if found == number else os.dup2(found, number)


def main() -> None:
    """Runs the command line of this process; raises ``SystemExit`` with one of the codes of ``exits``."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            # Closed by who started us: nobody listens, and the work is done all the same.
            setattr(sys, name, os.fdopen(_nowhere(number), "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character shows its code, not a traceback.
            stream.reconfigure(errors="backslashreplace")
    typer.main.get_command(app).main(prog_name="blackboard")
