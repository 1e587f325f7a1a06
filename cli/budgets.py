"""``blackboard budget``."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Literal
from uuid import UUID

import typer

from . import completion
from .commands import command, noun
from .desk import Desk
from .given import Limit
from .ids import resolve
from .output import Column
from .values import duration

if TYPE_CHECKING:
    from blackboard.sync import Session

__all__ = ["app"]

app = noun("Budgets: what may be spent, what is reserved, and the ledger of what was.")

_BUDGETS = [
    Column("budget of", lambda b: b.agent_id or (f"task {b.task_id}" if b.task_id else "the session"), grow=True),
    Column("unit", lambda b: b.currency or b.unit),
    Column("ceiling", lambda b: b.ceiling, "number"),
    Column("spent", lambda b: b.spent, "number"),
    Column("reserved", lambda b: b.reserved, "number"),
    Column("remaining", lambda b: b.remaining, "number"),
    Column("soft", lambda b: b.soft, "number", wide=110),
    Column("window", lambda b: b.window, wide=100),
]
_USAGE = [
    Column("by", lambda row: row[0]),
    Column("name", lambda row: row[1].key, grow=True),
    Column("unit", lambda row: row[1].currency or row[1].unit),
    Column("spent", lambda row: row[1].spent, "number"),
    Column("reserved", lambda row: row[1].reserved, "number"),
    Column("times", lambda row: row[1].reservations, "number"),
]
_LEDGER = [
    Column("at", lambda e: e.at),
    Column("agent", lambda e: e.agent_id, grow=True),
    Column("task", lambda e: e.task_id, wide=90),
    Column("model", lambda e: e.model, wide=100),
    Column("unit", lambda e: e.currency or e.unit),
    Column("reserved", lambda e: e.reserved, "number"),
    Column("settled", lambda e: e.settled, "number"),
    Column("status", lambda e: e.status, "status"),
]

Unit = Annotated[
    Literal["tokens", "cost", "calls", "seconds"],
    typer.Argument(metavar="UNIT", help="tokens, cost, calls or seconds."),
]
AgentId = Annotated[
    str | None, typer.Option("--agent", metavar="AGENT", autocompletion=completion.agents, help="Of this agent.")
]
TaskId = Annotated[
    str | None, typer.Option("--task", metavar="ID", autocompletion=completion.tasks, help="Of all work on this task.")
]


@command(
    app,
    "set",
    example="""
    blackboard budget set tokens 2000000 --soft 1500000
    blackboard budget set cost 25 --currency EUR --window 1d
    blackboard budget set calls 100 --agent ops/a
    """,
)
def set_(
    desk: Desk,
    *,
    unit: Unit,
    ceiling: Annotated[str, typer.Argument(help="How much; seconds are wall time.")],
    agent_id: AgentId = None,
    task_id: TaskId = None,
    soft: Annotated[str | None, typer.Option(metavar="AMOUNT", help="Warn when spending reaches it.")] = None,
    window: Annotated[
        str | None, typer.Option(metavar="DURATION", help="For each fixed window of this length, such as 1d (UTC).")
    ] = None,
    currency: Annotated[str | None, typer.Option(metavar="CODE", help="Of cost; USD by default.")] = None,
) -> None:
    """Limit what the session, one agent or one task may spend; what is spent already counts."""
    session = desk.session()
    desk.out.record(
        session.budgets.set(
            unit,
            _amount(ceiling, "ceiling"),
            agent_id=agent_id,
            task_id=None if task_id is None else _task(desk, session, task_id),
            soft=None if soft is None else _amount(soft, "soft"),
            window=duration(window, "window"),
            currency=currency,
        )
    )


@command(app, "remove", example="blackboard budget remove calls --agent ops/a")
def remove(desk: Desk, *, unit: Unit, agent_id: AgentId = None, task_id: TaskId = None) -> None:
    """Take a limit away; the ledger stays."""
    session = desk.session()
    task = None if task_id is None else _task(desk, session, task_id)
    desk.out.facts({"removed": session.budgets.remove(unit, agent_id=agent_id, task_id=task)})


@command(app, "list", example="blackboard budget list")
def list_(desk: Desk) -> None:
    """List the budgets of a session and what is left of them."""
    desk.out.records(
        desk.session().budgets.list(), _BUDGETS, empty="No budgets; set one with `blackboard budget set UNIT CEILING`."
    )


@command(app, "report", example="blackboard budget report --json")
def report(desk: Desk) -> None:
    """Show what every agent, task and model spent, and what is left of each budget."""
    found = desk.session().budgets.report()
    if desk.out.json:
        desk.out.record(found)
        return
    if found.budgets:
        desk.out.records(found.budgets, _BUDGETS, empty="")
        print()
    parts = {"total": found.totals, "agent": found.agents, "task": found.tasks, "model": found.models}
    rows = [(part, usage) for part, usages in parts.items() for usage in usages if part == "total" or usage.key]
    desk.out.records(rows, _USAGE, empty="Nothing was spent yet.")


@command(app, "ledger", example="blackboard budget ledger --agent ops/a --status reserved")
def ledger(
    desk: Desk,
    *,
    agent_id: AgentId = None,
    task_id: TaskId = None,
    status: Annotated[
        Literal["reserved", "settled", "released", "expired"] | None,
        typer.Option(metavar="STATUS", help="Only those that are reserved, settled, released or expired."),
    ] = None,
    limit: Limit = 100,
) -> None:
    """List the entries of the ledger, newest first."""
    session = desk.session()
    task = None if task_id is None else _task(desk, session, task_id)
    desk.out.records(
        session.budgets.ledger(agent_id=agent_id, task_id=task, status=status, limit=limit),
        _LEDGER,
        empty="No such entries.",
        limit=limit,
    )


def _amount(text: str, field: str) -> Decimal:
    from blackboard.errors import InvalidInput

    try:
        return Decimal(text.replace("_", ""))
    except InvalidOperation:
        raise InvalidInput(f"{field} must be a number, got {text!r:.40}.", field=field) from None


def _task(desk: Desk, session: Session, given: str) -> UUID:
    return resolve(desk, given, "task_id", session.tasks.ids_like)
