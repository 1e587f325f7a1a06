"""``blackboard swarm``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import exits
from .commands import command, noun
from .desk import Desk
from .events import summary
from .output import Column, clean, jsonable, span
from .values import duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from blackboard.swarm import SwarmOutcome, Update

__all__ = ["app"]

app = noun("Run a swarm of agents that a file describes.")

_TASKS = [
    Column("task", lambda t: t.name, grow=True),
    Column("agent", lambda t: t.agent_id, most=0.4),
    Column("status", lambda t: t.status, "status"),
    Column("attempts", lambda t: t.attempts, "number"),
]

File = Annotated[Path, typer.Argument(metavar="FILE", help="A swarm in YAML.")]


@command(
    app,
    "run",
    example="""
    blackboard swarm run incident.yaml
    blackboard swarm run incident.yaml --session INC-1234 --logs logs --no-resume
    """,
)
def run(
    desk: Desk,
    *,
    file: File,
    logs: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep what the agents write there.")] = None,
    resume: Annotated[
        bool | None,
        typer.Option("--resume/--no-resume", help="Only go on with an open session of that name, or only start anew."),
    ] = None,
    from_stage: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Run the stages again from this one on.")
    ] = None,
    grace: Annotated[str, typer.Option(metavar="DURATION", help="For processes that are asked to stop.")] = "5s",
) -> int:
    """Run a swarm to its end: each agent is a process of its own. Ctrl-C stops them all; running it again goes on."""
    from blackboard.swarm import SwarmStatus, load_swarm, run_swarm_sync

    term = duration(grace, "grace")
    spec = load_swarm(file)
    outcome = run_swarm_sync(
        spec,
        url=desk.options.url or (desk.url if desk.options.data_dir else None),
        data_dir=desk.options.data_dir,
        session_name=desk.options.session,
        on_update=None if desk.out.json else _teller(desk),
        logs=logs,
        resume=resume,
        from_stage=from_stage,
        grace=term,
    )
    _tell_outcome(desk, outcome)
    codes = {SwarmStatus.COMPLETED: exits.OK, SwarmStatus.INTERRUPTED: exits.INTERRUPTED}
    return codes.get(outcome.status, exits.REFUSED)


@command(app, "check", example="blackboard swarm check incident.yaml")
def check(desk: Desk, *, file: File) -> None:
    """Check a swarm's file without running it; errors point at the line."""
    from blackboard.swarm import load_swarm

    spec = load_swarm(file)
    desk.out.facts(
        {
            "file": str(file),
            "type": spec.type,
            "session": spec.session,
            "task": spec.task,
            "agents": [agent.id for agent in spec.agents],
        }
    )


def _teller(desk: Desk) -> Callable[[Update], None]:
    def tell(update: Update) -> None:
        event: Any = update.event
        text = update.message
        if event is not None:
            text = f"{event.type:<24} {event.actor}  {' '.join(summary(event).split())}"
        at = update.at.astimezone().strftime("%H:%M:%S")
        if desk.out.terminal:
            from rich.text import Text

            style = "bold red" if update.kind == "problem" else "" if event is not None else "bold"
            desk.out.console.print(
                Text.assemble((f"{at} ", "dim"), (clean(text), style)), no_wrap=True, overflow="ellipsis", crop=True
            )
        else:
            print(f"{at}  {clean(text)}", flush=True)

    return tell


def _tell_outcome(desk: Desk, outcome: SwarmOutcome) -> None:
    if desk.out.json:
        desk.out.document(jsonable(outcome.to_dict()))
        return
    print()
    desk.out.records(outcome.tasks, _TASKS, empty="")
    print()
    desk.out.facts(
        {
            "session": outcome.session_name,
            "status": outcome.status,
            "duration": span(outcome.duration),
            "result": outcome.result,
            "problems": list(outcome.problems) or None,
            "logs": str(outcome.logs) if outcome.logs else None,
        }
    )
