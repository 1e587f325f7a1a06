"""Where answers go: tables on a terminal, aligned plain text in a pipe, JSON when asked for.

Everything that agents wrote passes ``clean``: a finding must not be able to move the reader's cursor.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from .ids import short

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = [
    "Column",
    "Output",
    "ago",
    "bar",
    "clean",
    "fields",
    "jsonable",
    "many",
    "plain",
    "ready_again",
    "span",
    "styled",
]

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

_STYLES = {
    "abstain": "yellow", "accepted": "green", "active": "green", "against": "red", "approved": "green",
    "assigned": "cyan", "awaiting_approval": "bold yellow", "blocked": "yellow", "cancelled": "dim",
    "completed": "green", "dead": "bold red", "executing": "cyan", "expired": "dim", "failed": "red", "for": "green",
    "held": "yellow", "no": "red", "open": "bold yellow", "paused": "yellow", "refuted": "red", "rejected": "red",
    "retracted": "dim", "rolled_back": "magenta", "running": "cyan", "scheduled": "dim", "superseded": "dim",
    "validated": "green", "withdrawn": "dim", "yes": "green",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        title: its heading.
        value: what a record shows in it, as a value: ids, times and shares are shown by their kind.
        kind: ``text``, ``status``, ``share`` (a bar and the number) or ``number``.
        wide: terminals narrower than this leave it out; plain text never does.
        grow: takes the room that is left, and is cut to one line.
        most: on a terminal, no more than this share of its width.
    """

    title: str
    value: Callable[[Any], Any]
    kind: str = "text"
    wide: int = 0
    grow: bool = False
    most: float = 0.3


class Output:
    """Prints one command's answer."""

    def __init__(self, *, json: bool, color: bool) -> None:
        self.json = json
        self._color = color and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.terminal = not json and sys.stdout.isatty()

    def records(
        self, records: Sequence[Any], columns: Sequence[Column], *, empty: str, limit: int | None = None
    ) -> None:
        """A list of records: a table, or a JSON array of their models.

        Args:
            records: in the order of the rows.
            columns: of the table.
            empty: what is said where there are none.
            limit: as ``--limit`` said; where it was reached, that is told.
        """
        if self.json:
            self.document([jsonable(record) for record in records])
        elif not records:
            self.note(empty)
        elif self.terminal:
            self._table(records, columns)
        else:
            rows = [[column.title.upper() for column in columns]]
            rows += [[plain(column.value(record)) for column in columns] for record in records]
            widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
            for row in rows:
                print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if limit is not None and len(records) >= limit:
            self.cut(limit)

    def record(self, record: Any, *, more: Mapping[str, Any] | None = None, title: str | None = None) -> None:
        """One record, field by field; ``more`` are facts that are not fields of its model."""
        if self.json:
            self.document({**jsonable(record), **{name: jsonable(value) for name, value in (more or {}).items()}})
            return
        self.facts({**fields(record), **(more or {})}, title=title)

    def facts(self, facts: Mapping[str, Any], *, title: str | None = None) -> None:
        """Named values, one a line; as JSON one object."""
        if self.json:
            self.document({name: jsonable(value) for name, value in facts.items()})
        elif self.terminal:
            self._grid(facts, title)
        else:
            width = max(map(len, facts))
            for name, value in facts.items():
                print(f"{name.ljust(width)}  {plain(value)}".rstrip())

    def document(self, value: Any) -> None:
        """``value`` as one JSON document."""
        print(json.dumps(value, indent=2, ensure_ascii=False, default=str))

    def line(self, value: Any) -> None:
        """``value`` as one line of JSON, at once."""
        print(json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str), flush=True)

    def cut(self, limit: int) -> None:
        """A remark that a list ended at its limit."""
        self.note(f"The first {limit}; --limit shows more, if there are.")

    def note(self, text: str) -> None:
        """A remark for people: on stderr, and not with JSON."""
        if not self.json:
            print(text, file=sys.stderr)

    @property
    def console(self) -> Console:
        """Rich's console on stdout."""
        from rich.console import Console

        return Console(no_color=not self._color, highlight=False, soft_wrap=False)

    def _table(self, records: Sequence[Any], columns: Sequence[Column]) -> None:
        from rich import box
        from rich.table import Table

        console = self.console
        shown = [column for column in columns if console.width >= column.wide]
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for column in shown:
            table.add_column(
                column.title,
                header_style="bold",
                justify="right" if column.kind == "number" else "left",
                no_wrap=True,
                overflow="ellipsis",
                ratio=1 if column.grow else None,
                min_width=_least(column),
                max_width=None if column.grow else int(console.width * column.most),
            )
        for record in records:
            table.add_row(*(styled(column.value(record), column.kind) for column in shown))
        # Stretched only where there is too much: on a wide terminal the eye should not have to cross a gap.
        table.expand = any(column.grow for column in shown) and console.measure(table).maximum >= console.width
        console.print(table)

    def _grid(self, facts: Mapping[str, Any], title: str | None) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in facts.items():
            if value is not None and value not in ("", (), {}, []):
                table.add_row(name, _whole(name, value))
        console = self.console
        if title:
            console.print(Text(clean(title), style="bold"))
        console.print(table)


def _least(column: Column) -> int:
    """Below this a column says nothing: ids and what a table is about are not crushed by long names."""
    if column.grow:
        return 16
    return 8 if column.title == "id" else 10 if column.kind == "share" else len(column.title)


def styled(value: Any, kind: str = "text") -> Text:
    """``value`` for a table cell on a terminal."""
    from rich.text import Text

    if value is None:
        return Text("-", style="dim")
    if isinstance(value, UUID):
        return Text(short(value), style="cyan")
    if isinstance(value, datetime):
        return Text(ago(value), style="dim")
    if kind == "share":
        return bar(float(value))
    text = plain(value)
    return Text(text, style=_STYLES.get(text, "") if kind == "status" else "")


def bar(share: float) -> Text:
    """A number in [0, 1] as a bar of five and two digits."""
    from rich.text import Text

    filled = min(5, max(0, round(share * 5)))
    style = "green" if share >= 0.66 else "yellow" if share >= 0.33 else "red"
    return Text.assemble(("━" * filled, style), ("━" * (5 - filled), "dim"), f" {share:.2f}")


def _whole(name: str, value: Any) -> Text:
    from rich.text import Text

    if isinstance(value, datetime):
        return Text.assemble(value.strftime("%Y-%m-%d %H:%M:%S UTC"), (f"  {ago(value)}", "dim"))
    if isinstance(value, UUID):
        return Text(str(value), style="cyan")
    if isinstance(value, float) and 0 <= value <= 1 and name in {"confidence", "trust", "turnout", "expertise"}:
        return bar(value)
    if isinstance(value, Enum):
        return Text(str(value.value), style=_STYLES.get(str(value.value), ""))
    if isinstance(value, str):
        return Text(clean(value), style=_STYLES.get(value, "") if name in {"status", "choice"} else "")
    if isinstance(value, (dict, list, tuple)) or hasattr(value, "model_dump"):
        document = jsonable(value)
        if isinstance(document, list) and all(isinstance(one, str) for one in cast("list[Any]", document)):
            return Text(clean(", ".join(cast("list[str]", document))))
        return Text(clean(json.dumps(document, indent=2, ensure_ascii=False)))
    return Text(plain(value))


def plain(value: Any) -> str:
    """``value`` on one line, whole."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return span(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in cast("Iterable[Any]", value)):
        return clean(", ".join(cast("Sequence[str]", value)).replace("\n", " ")) or "-"
    if isinstance(value, (dict, list, tuple)) or hasattr(value, "model_dump"):
        return clean(json.dumps(jsonable(value), ensure_ascii=False))
    return " ".join(clean(str(value)).split()) or "-"


def many(count: int, noun: str) -> str:
    """``1 task`` or ``2 tasks``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def ready_again(count: int) -> str:
    """What became of the tasks that a pause or a limit held."""
    return "1 task that was held is ready again" if count == 1 else f"{count} tasks that were held are ready again"


def clean(text: str) -> str:
    """``text`` with what would steer a terminal made visible."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", text)


def span(value: timedelta) -> str:
    """A duration as people write it: ``1h30m``."""
    seconds = value.total_seconds()
    if seconds < 1:
        return f"{round(seconds * 1000)}ms" if seconds else "0s"
    text = ""
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            text += f"{int(seconds // size)}{unit}"
            seconds %= size
    return f"{text}{seconds:g}s" if seconds else text


def ago(at: datetime, now: datetime | None = None) -> str:
    """How long ago, or in how long, in one unit."""
    seconds = ((now or datetime.now(UTC)) - at).total_seconds()
    size = abs(seconds)
    if size < 1:
        return "now"
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        if size >= length:
            count = f"{int(size // length)}{unit}"
            break
    else:
        count = ""
    return f"{count} ago" if seconds > 0 else f"in {count}"


def fields(record: Any) -> dict[str, Any]:
    """The fields of a model, by name."""
    names = cast("Iterable[str]", cast("Any", type(record)).model_fields)
    return {name: getattr(record, name) for name in names}


def jsonable(value: Any) -> Any:
    """``value`` as JSON has it: full ids, ISO times, the models' own field names."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {str(name): jsonable(one) for name, one in cast("dict[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(one) for one in cast("Sequence[Any]", value)]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Enum):
        return value.value
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
