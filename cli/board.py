"""``blackboard board``: the whole picture of a session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .commands import command, single
from .desk import Desk
from .output import Column, bar, clean, jsonable, plain, styled

if TYPE_CHECKING:
    from rich.console import RenderableType

    from blackboard.models.picture import Picture
    from blackboard.sync import Session

__all__ = ["app", "show_board"]

app = single()


@command(app, "board", example="blackboard board --session INC-1234 --limit 10")
def board(
    desk: Desk,
    *,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="At most so many of each kind.")] = 20,
) -> None:
    """Show the whole picture of a session: context, findings, hypotheses, tasks, proposals, actions."""
    show_board(desk, desk.session(), limit)


def show_board(desk: Desk, session: Session, limit: int) -> None:
    """Prints the picture of ``session``."""
    from blackboard.models.tasks import TaskStatus

    picture = session.board(limit=limit)
    if desk.out.json:
        desk.out.document(jsonable(picture))
        return
    # In the order of a task's life.
    counts = picture.counts.tasks
    tasks = {status.value: counts[status] for status in TaskStatus if status in counts}
    sections: list[tuple[str, int, Sequence[Any], list[Column]]] = [
        ("hypotheses", picture.counts.hypotheses, picture.hypotheses, _HYPOTHESES),
        ("findings", picture.counts.findings, picture.findings, _FINDINGS),
        ("tasks", sum(tasks.values()), picture.tasks, _TASKS),
        ("proposals", picture.counts.proposals, picture.proposals, _PROPOSALS),
        ("actions", picture.counts.actions, picture.actions, _ACTIONS),
    ]
    if desk.out.terminal:
        _drawn(desk, picture, sections, tasks)
    else:
        _written(desk, picture, sections, tasks)


def _written(
    desk: Desk, picture: Picture, sections: list[tuple[str, int, Sequence[Any], list[Column]]], tasks: dict[str, int]
) -> None:
    session = picture.session
    desk.out.facts(
        {
            "session": session.name,
            "id": session.id,
            "status": session.status,
            "goal": session.goal,
            "context": session.context,
            "outcome": session.outcome,
            "agents": [agent.id for agent in picture.agents if agent.left_at is None],
            "created_at": session.created_at,
            "closed_at": session.closed_at,
            "tasks": ", ".join(f"{count} {status}" for status, count in tasks.items()),
            "cursor": picture.cursor,
        }
    )
    for title, count, records, columns in sections:
        if records:
            shown = f"{len(records)} of {count}" if len(records) < count else str(count)
            print(f"\n{title.upper()} ({shown})")
            desk.out.records(records, columns, empty="")


def _drawn(
    desk: Desk, picture: Picture, sections: list[tuple[str, int, Sequence[Any], list[Column]]], tasks: dict[str, int]
) -> None:
    from rich import box
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    console = desk.out.console
    session = picture.session
    here = [agent for agent in picture.agents if agent.left_at is None]
    agents = Text(", ").join(
        # Without a blank between them, so that no line ends with the mark.
        Text.assemble(("●" if agent.present else "○", "green" if agent.present else "dim"), clean(agent.id))
        for agent in here
    )
    head = Table.grid(padding=(0, 2))
    head.add_column(style="dim", no_wrap=True)
    head.add_column(overflow="fold")
    facts: list[tuple[str, RenderableType | None]] = [
        ("goal", Text(clean(session.goal)) if session.goal else None),
        ("context", Text(plain(session.context)) if session.context else None),
        ("outcome", Text(plain(session.outcome), style="bold") if session.outcome is not None else None),
        ("agents", agents if here else None),
        (
            "tasks",
            Text(", ").join(Text.assemble(f"{n} ", styled(s, "status")) for s, n in tasks.items()) if tasks else None,
        ),
    ]
    for name, value in facts:
        if value is not None:
            head.add_row(name, value)
    parts: list[RenderableType] = [head]
    for title, count, records, columns in sections:
        if not records:
            continue
        shown = f"{len(records)} of {count}" if len(records) < count else str(count)
        table = Table(box=None, show_header=False, pad_edge=False, expand=True, padding=(0, 2, 0, 0))
        for column in columns:
            if console.width >= column.wide:
                table.add_column(
                    no_wrap=not column.grow,
                    overflow="ellipsis",
                    ratio=1 if column.grow else None,
                    max_width=None if column.grow else int(console.width * column.most),
                )
        for record in records:
            table.add_row(*(_cell(column, record) for column in columns if console.width >= column.wide))
        parts += [Text(), Text.assemble((title, "bold"), (f"  {shown}", "dim")), table]
    title_text = Text.assemble((clean(session.name), "bold"), " · ", styled(session.status, "status"))
    console.print(
        Panel(
            Group(*parts),
            title=title_text,
            title_align="left",
            box=box.ROUNDED,
            border_style="dim",
            padding=(1, 2),
        )
    )


def _cell(column: Column, record: Any) -> RenderableType:
    value = column.value(record)
    return bar(value) if column.kind == "share" and value is not None else styled(value, column.kind)


def _content(record: Any) -> str:
    return record.content if isinstance(record.content, str) else plain(record.content)


def _votes(record: Any) -> str:
    tally = record.tally
    return f"{tally.votes_for} yes · {tally.votes_against} no · {tally.abstentions} abstain"


def _target(record: Any) -> str:
    parameters = f" {plain(record.parameters)}" if record.parameters else ""
    return f"{record.type} {record.target}{parameters}"


_id: Callable[[Any], Any] = lambda record: record.id  # noqa: E731 - one name for what every section begins with

_HYPOTHESES = [
    Column("id", _id),
    Column("confidence", lambda h: h.confidence, "share"),
    Column("statement", lambda h: h.statement, grow=True),
    Column("status", lambda h: h.status, "status"),
    Column("agent", lambda h: h.agent_id, wide=100),
]
_FINDINGS = [
    Column("id", _id),
    Column("confidence", lambda f: f.confidence, "share"),
    Column("content", _content, grow=True),
    Column("agent", lambda f: f.agent_id, most=0.22),
    Column("type", lambda f: f.type, wide=100),
    Column("created", lambda f: f.created_at, wide=90),
]
_TASKS = [
    Column("id", _id),
    Column("status", lambda t: t.status, "status"),
    Column("type", lambda t: t.type, grow=True),
    Column("assigned to", lambda t: t.assignee, most=0.3),
    Column("priority", lambda t: f"p{t.priority}"),
]
_PROPOSALS = [
    Column("id", _id),
    Column("status", lambda p: p.status, "status"),
    Column("title", lambda p: p.title, grow=True),
    Column("tally", _votes, most=0.5),
]
_ACTIONS = [
    Column("id", _id),
    Column("status", lambda a: a.status, "status"),
    Column("action", _target, grow=True),
    Column("agent", lambda a: a.agent_id, most=0.22),
]
