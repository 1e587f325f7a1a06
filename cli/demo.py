"""``blackboard demo``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

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
    blackboard demo --logs app.log --logs postgresql.log --deployments deployments.log --report-dir report
    """,
)
def demo(
    desk: Desk,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Approve what the swarm decides without asking.")] = False,
    chaos: Annotated[bool, typer.Option("--chaos", help="Kill an agent in the middle of its work.")] = False,
    logs: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Search this log instead of the recorded incident; repeat it for more."),
    ] = None,
    deployments: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What was deployed when, beside --logs.")
    ] = None,
    report_dir: Annotated[
        Path, typer.Option("--report-dir", "--report", metavar="DIR", help="Where the report is written.")
    ] = Path("blackboard-report"),
) -> int:
    """Watch a swarm of agents investigate a recorded incident to an approved decision, or search your own logs."""
    from blackboard.errors import ConfigurationError

    given = [("logs", file) for file in logs or ()] + ([("deployments", deployments)] if deployments else [])
    for field, file in given:
        if not file.is_file():
            raise ConfigurationError(f"There is no file {file}.", field=field)
    if deployments is not None and not logs:
        raise ConfigurationError("--deployments goes with --logs: say which logs to search.", field="deployments")
    # Type checkers do not find packages whose folder has another name.
    run_demo: Callable[..., int] = importlib.import_module("blackboard_examples.incident.demo").run_demo
    return run_demo(
        url=desk.options.url,
        data_dir=desk.options.data_dir,
        yes=yes,
        chaos=chaos,
        logs=list(logs or ()),
        deployments=deployments,
        report_dir=report_dir,
        console=desk.out.console,
    )
