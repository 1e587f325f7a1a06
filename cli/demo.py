"""``blackboard demo``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from blackboard.errors import InvalidInput

from .commands import command, single
from .desk import Desk

__all__ = ["app"]

app = single()


@command(
    app,
    "demo",
    example="""
    blackboard demo --yes
    blackboard demo --chaos
    blackboard demo --logs app.log postgresql.log --deployments deployments.log --report-dir report
    """,
)
def demo(
    desk: Desk,
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE…]", help="More logs, after --logs FILE.", show_default=False)
    ] = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Approve what the swarm decides without asking.")] = False,
    chaos: Annotated[bool, typer.Option("--chaos", help="Kill an agent in the middle of its work.")] = False,
    logs: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE…", help="Search these logs instead of the recorded incident."),
    ] = None,
    deployments: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your own log of what was deployed when.")
    ] = None,
    report_dir: Annotated[
        Path | None,
        typer.Option("--report-dir", "--report", metavar="DIR", help="Where the report goes; incident-report here."),
    ] = None,
) -> int:
    """Watch a swarm of agents investigate a recorded incident to an approved decision, or search your own logs."""
    if more and not logs:
        raise InvalidInput("Say what these files are: blackboard demo --logs FILE…", field="logs")
    # Type checkers do not find packages whose folder has another name.
    run_demo: Callable[..., int] = importlib.import_module("blackboard_examples.incident.demo").run_demo
    return run_demo(
        url=desk.options.url,
        data_dir=desk.options.data_dir,
        yes=yes,
        chaos=chaos,
        logs=[*(logs or ()), *(more or ())],
        deployments=deployments,
        report_dir=report_dir,
        console=desk.out.console,
    )
