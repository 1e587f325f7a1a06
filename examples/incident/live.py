"""The board on the terminal: filling live where it is one, plain lines with times where it is none."""

from __future__ import annotations

import datetime as dt
import os
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.layout import Layout
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from blackboard import Event
from blackboard.models.picture import Picture
from blackboard.swarm.outcome import Update, UpdateKind

from .narrative import Narrator, Told
from .plain import as_object, one_line

__all__ = ["LiveView", "PlainView", "Process", "View", "make_view", "render"]

STATUS_STYLES = {"proposed": "yellow", "validated": "bold green", "refuted": "red"}


class View(Protocol):
    """Where the run is shown."""

    def start(self) -> None:
        """It is shown from now on."""
        ...

    def stop(self) -> None:
        """The terminal is free for other output."""
        ...

    def update(self, update: Update) -> None:
        """Something happened."""
        ...

    def picture(self, picture: Picture) -> None:
        """The board looks like this now."""
        ...

    def say(self, text: str) -> None:
        """A line of the demo's own."""
        ...


@dataclass
class Process:
    """One agent's process as the runner told of it."""

    pid: int | None = None
    state: str = "starting"
    doing: str = ""


@dataclass
class Seen:
    """What a live view shows, apart from the board's picture."""

    title: str
    processes: dict[str, Process] = field(default_factory=dict[str, Process])
    told: deque[Told] = field(default_factory=lambda: deque[Told](maxlen=200))
    confidences: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    picture: Picture | None = None
    started_at: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))


def make_view(console: Console, title: str) -> View:
    """A live view on a terminal; plain lines elsewhere, and where NO_COLOR or a dumb terminal ask for it."""
    plain = not console.is_terminal or console.no_color or "NO_COLOR" in os.environ or console.is_dumb_terminal
    return PlainView(console) if plain else LiveView(console, title)


class PlainView:
    """A line with its time for everything that matters."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._narrator = Narrator()

    def start(self) -> None:
        """Nothing to prepare."""

    def stop(self) -> None:
        """Nothing to put away."""

    def update(self, update: Update) -> None:
        """One line, or none for bookkeeping."""
        if update.event is not None:
            told = self._narrator.tell(update.event)
            if told is not None and told.weight > 0:
                self._line(update.event.at, update.event.actor, told.text)
        elif update.kind is UpdateKind.AGENT_STARTED:
            self._line(update.at, update.agent_id or "", f"started as process {update.pid}")
        elif update.kind is UpdateKind.AGENT_EXITED and update.returncode:
            self._line(update.at, update.agent_id or "", f"process {update.pid} ended with {update.returncode}")
        elif update.kind in {UpdateKind.PROBLEM, UpdateKind.TIMED_OUT}:
            self._line(update.at, "swarm", update.message)

    def picture(self, picture: Picture) -> None:
        """Lines tell it all."""
        del picture

    def say(self, text: str) -> None:
        """A line of the demo's own."""
        self._line(dt.datetime.now(dt.UTC), "demo", text)

    def _line(self, at: dt.datetime, who: str, text: str) -> None:
        line = Text(f"{at.astimezone(dt.UTC):%H:%M:%S.%f}"[:12] + f"  {who:<32}  {one_line(text)}")
        self._console.print(line, soft_wrap=True, highlight=False)


class LiveView:
    """The whole board on one screen, drawn anew several times a second."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._seen = Seen(title)
        self._narrator = Narrator()
        self._live: Live | None = None

    def start(self) -> None:
        """The screen is the board's."""
        self._live = Live(self, console=self._console, refresh_per_second=8, transient=False)
        self._live.start()

    def stop(self) -> None:
        """The last picture stays, output goes on below it."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __rich__(self) -> RenderableType:
        size = self._console.size
        return render(self._seen, size.width, min(size.height - 1, 44))

    def update(self, update: Update) -> None:
        """The agents' states, the last events and the confidences' course follow."""
        seen = self._seen
        if update.kind is UpdateKind.AGENT_STARTED and update.agent_id:
            seen.processes[update.agent_id] = Process(update.pid, "alive")
        elif update.kind is UpdateKind.AGENT_EXITED and update.agent_id:
            process = seen.processes.setdefault(update.agent_id, Process(update.pid))
            process.state = "done" if update.returncode == 0 else f"killed ({-(update.returncode or 0)})"
            if update.returncode is not None and update.returncode > 0:
                process.state = f"exit {update.returncode}"
            process.doing = ""
        if update.event is None:
            return
        told = self._narrator.tell(update.event)
        if told is None:
            return
        if told.weight > 0:
            seen.told.append(told)
        self._note(update.event, told)

    def _note(self, event: Event, told: Told) -> None:
        seen = self._seen
        if event.type in {"hypothesis.proposed", "hypothesis.revised"} and "confidence" in event.data:
            seen.confidences.setdefault(str(event.subject_id), []).append(float(event.data["confidence"]))
        process = seen.processes.get(event.actor)
        if process is not None and told.noun == "task":
            if event.type != "task.completed":
                process.doing = told.text
            elif not told.text.startswith("answered"):  # a query in the middle of its task
                process.doing = "idle"

    def picture(self, picture: Picture) -> None:
        """The board looks like this now."""
        self._seen.picture = picture

    def say(self, text: str) -> None:
        """A line above the board."""
        self._console.print(Text(text))


def render(seen: Seen, width: int, height: int) -> Layout:
    """The whole screen: agents, hypotheses, findings, decision and the last events, within ``width`` by ``height``."""
    layout = Layout()
    small = height < 30
    agents = max(len(seen.processes), 4) + (0 if small else 2)
    count = 0 if seen.picture is None else len(seen.picture.hypotheses)
    hypotheses = max(3, min(count, 4)) + 2
    events = 2 if small else max(3, min(10, height - agents - hypotheses - 11))
    layout.split_column(
        Layout(_header(seen), size=1),
        Layout(_agents(seen, framed=not small), size=agents),
        Layout(_findings(seen, width, height - 1 - agents - hypotheses - 4 - events - 2), name="findings"),
        Layout(_hypotheses(seen, width), size=hypotheses),
        Layout(_decision(seen, width), size=4),
        Layout(_events(seen, width, events), size=events + 2),
    )
    return layout


def _panel(body: RenderableType, title: str) -> Panel:
    return Panel(body, title=f"[bold]{title}[/]", title_align="left", border_style="dim", padding=(0, 1))


def _header(seen: Seen) -> Text:
    counts = ""
    if seen.picture is not None:
        tasks = ", ".join(f"{number} {status}" for status, number in seen.picture.counts.tasks.items())
        counts = f"  {seen.picture.counts.findings} findings, tasks: {tasks}"
    elapsed = (dt.datetime.now(dt.UTC) - seen.started_at).total_seconds()
    return Text.assemble((f" {seen.title} ", "bold reverse"), (f" {elapsed:4.1f} s{counts}", "dim"), no_wrap=True)


def _agents(seen: Seen, *, framed: bool) -> RenderableType:
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(width=31, no_wrap=True)
    table.add_column(width=8, no_wrap=True, justify="right")
    table.add_column(width=10, no_wrap=True)
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    members = () if seen.picture is None else seen.picture.agents
    present = {agent.id for agent in members if agent.present}
    for name, process in seen.processes.items():
        dead = process.state.startswith(("killed", "exit"))
        style = "red" if dead else "green" if name in present else "dim"
        table.add_row(
            Text(name, style="bold red" if dead else "bold"),
            Text(str(process.pid or ""), style="dim"),
            Text(process.state, style=style),
            Text(process.doing, style="cyan"),
        )
    return _panel(table, "Agents") if framed else table


def _findings(seen: Seen, width: int, rows: int) -> Panel:
    picture = seen.picture
    shown = [] if picture is None else list(picture.findings)[: max(1, rows)]
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=17 if width < 100 else 31, no_wrap=True, overflow="ellipsis")
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column(width=4, no_wrap=True, justify="right")
    for finding in reversed(shown):
        who = finding.agent_id.rpartition("/")[2] if width < 100 else finding.agent_id
        strong = finding.category == "conclusion"
        table.add_row(
            Text(who, style="dim"),
            Text(one_line(finding.content), style="bold" if strong else ""),
            Text("" if finding.confidence is None else f"{finding.confidence:.2f}", style="dim"),
        )
    return _panel(table, "Findings" if picture is None else f"Findings ({picture.counts.findings})")


def _bar(value: float, width: int) -> Text:
    full = round(value * width)
    style = "green" if value >= 0.8 else "red" if value <= 0.2 else "yellow"
    return Text.assemble(("━" * full, style), ("─" * (width - full), "dim"))


def _hypotheses(seen: Seen, width: int) -> Panel:
    table = Table.grid(padding=(0, 1), expand=True)
    bar = 16 if width < 100 else 30
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column(width=bar, no_wrap=True)
    table.add_column(width=4, no_wrap=True)
    table.add_column(width=11, no_wrap=True)
    shown = () if seen.picture is None else seen.picture.hypotheses[:4]
    for one in shown:
        table.add_row(
            one.statement,
            _bar(one.confidence, bar),
            f"{one.confidence:.2f}",
            Text(one.status, style=STATUS_STYLES.get(one.status, "")),
        )
    return _panel(table, "Hypotheses")


def _decision(seen: Seen, width: int) -> Panel:
    del width
    picture = seen.picture
    lines: list[RenderableType] = []
    if picture is not None and picture.proposals:
        one = picture.proposals[0]
        tally = one.tally
        said = Text.assemble(
            (f"{str(one.status).upper()}: ", "bold"),
            (f"{tally.votes_for} yes", "green"),
            (", ", ""),
            (f"{tally.votes_against} no", "red"),
            (f", {tally.abstentions} abstain, {tally.outstanding} to come", ""),
            (f"  {one.title}", "dim"),
            no_wrap=True,
            overflow="ellipsis",
        )
        lines.append(said)
    if picture is not None and picture.actions:
        action = picture.actions[0]
        parameters = as_object(action.parameters)
        what = parameters.get("action", action.type)
        by = f", approved by {action.approved_by}" if action.approved_by else ""
        line = Text(f"{what} of {action.target}: ", no_wrap=True, overflow="ellipsis")
        line.append(str(action.status).replace("_", " ") + by, style="bold")
        lines.append(line)
    if not lines:
        lines.append(Text("nothing has been proposed yet", style="dim"))
    return _panel(Group(*lines), "Decision")


def _events(seen: Seen, width: int, rows: int) -> Panel:
    del width
    lines = [
        Text.assemble(
            (f"{told.event.at:%H:%M:%S} ", "dim"),
            (f"{told.event.actor.rpartition('/')[2]} ", "cyan"),
            (told.text, "bold" if told.weight > 1 else ""),
            no_wrap=True,
            overflow="ellipsis",
        )
        for told in list(seen.told)[-rows:]
    ]
    return _panel(Group(*lines), "Events")
