"""What the report says, derived from the rows and events of a session; pure."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from uuid import UUID

from blackboard import Event, TaskRecord, TaskStatus
from blackboard.models.actions import ActionRecord, ActionStatus
from blackboard.models.agents import AgentRecord
from blackboard.models.findings import Finding
from blackboard.models.hypotheses import Assessment, Hypothesis, HypothesisEvidence
from blackboard.models.proposals import ProposalDetails
from blackboard.models.sessions import SessionRecord

from .narrative import Narrator, Told
from .plain import as_object
from .plots import Bar, Dot, Lane, Line, Mark, lanes_plot, time_plot

__all__ = ["Argued", "CaseFile", "Killed", "Query", "Unreadable"]

_BYTES_PER_MB = 1e6


@dataclass(frozen=True)
class Argued:
    """A hypothesis with what was said for and against it."""

    hypothesis: Hypothesis
    evidence: tuple[HypothesisEvidence, ...]
    assessments: tuple[Assessment, ...]

    @property
    def supporting(self) -> list[HypothesisEvidence]:
        """The evidence for it that counts, the heaviest first."""
        live = (one for one in self.evidence if one.supports and one.retracted_at is None)
        return sorted(live, key=lambda one: -abs(one.log_odds))

    @property
    def contradicting(self) -> list[HypothesisEvidence]:
        """The evidence against it that counts, the heaviest first."""
        live = (one for one in self.evidence if not one.supports and one.retracted_at is None)
        return sorted(live, key=lambda one: -abs(one.log_odds))


@dataclass(frozen=True)
class Query:
    """One reading: who ran it, and who asked for it."""

    source: str
    query: str
    ran_by: str
    asked_by: tuple[str, ...]


@dataclass(frozen=True)
class Killed:
    """An agent that was killed in the middle of its task, and what became of that."""

    text: str
    agent_id: str
    task_id: UUID
    at: dt.datetime
    outcome: str
    steps: tuple[Told, ...]


@dataclass(frozen=True)
class Unreadable:
    """A log with lines that could not be read."""

    source: str
    unparsed: int
    lines: int
    samples: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class CaseFile:
    """Everything on the board about one session, and what follows from it."""

    session: SessionRecord
    agents: tuple[AgentRecord, ...]
    events: tuple[Event, ...]
    findings: tuple[Finding, ...]
    hypotheses: tuple[Argued, ...]
    tasks: tuple[TaskRecord, ...]
    proposals: tuple[ProposalDetails, ...]
    actions: tuple[ActionRecord, ...]

    @property
    def title(self) -> str:
        """What the session is about."""
        return self.session.goal or self.session.name

    @cached_property
    def told(self) -> tuple[Told, ...]:
        """The events in words, without bookkeeping."""
        narrator = Narrator()
        return tuple(told for event in self.events if (told := narrator.tell(event)) is not None)

    def finding(self, kind: str) -> Finding | None:
        """The first finding of that type."""
        return next((finding for finding in self.findings if finding.type == kind), None)

    def data(self, kind: str) -> dict[str, Any]:
        """The figures of the first finding of that type; empty when there is none."""
        finding = self.finding(kind)
        return {} if finding is None else as_object(finding.provenance.get("data"))

    # -------------------------------------------------------------------------------------------------- decision

    @property
    def action(self) -> ActionRecord | None:
        """The action that was proposed."""
        return self.actions[-1] if self.actions else None

    @cached_property
    def decision(self) -> tuple[str, str]:
        """What was decided and what became of it; why."""
        action = self.action
        conclusion = next((finding for finding in reversed(self.findings) if finding.category == "conclusion"), None)
        why = str(conclusion.content) if conclusion is not None else "No conclusion was reached."
        if action is None:
            return "No action.", why
        parameters = as_object(action.parameters)
        if parameters.get("action") == "rollback":
            what = f"Roll {action.target} back from {parameters.get('from')} to {parameters.get('to')}"
        elif parameters.get("action") == "escalate":
            what = f"Escalate to {action.target}"
        else:
            what = f"{str(parameters.get('action', action.type)).capitalize()} of {action.target}"
        simulated = bool(as_object(action.result).get("simulated"))
        states = {
            ActionStatus.AWAITING_APPROVAL: "awaits approval",
            ActionStatus.PROPOSED: "awaits approval",
            ActionStatus.APPROVED: f"approved by {action.approved_by or 'the vote'}, not carried out",
            ActionStatus.REJECTED: f"rejected by {action.rejected_by or 'the vote'}",
            ActionStatus.COMPLETED: f"approved by {action.approved_by or 'the vote'}, carried out by {action.executor}"
            + (" (simulated: the case is a record of the past, nothing real was touched)" if simulated else ""),
        }
        return f"{what}: {states.get(action.status, str(action.status))}.", why

    @cached_property
    def figures(self) -> list[tuple[str, str]]:
        """Key figures: a label and a value each."""
        found: list[tuple[str, str]] = []
        onset = self.data("onset").get("onset")
        if onset:
            found.append(("errors began", f"{dt.datetime.fromisoformat(onset['at']):%H:%M:%S} UTC"))
            found.append(
                ("errors a minute", f"{onset['baseline_per_minute']:.1f} → {onset['incident_per_minute']:.1f}")
            )
        change = self.data("correlation")
        if change:
            found.append(("change that fits best", f"{change['change']} ({change['score']:.2f})"))
        for proposal in self.proposals[:1]:
            tally = proposal.tally
            found.append(("vote", f"{tally.votes_for} yes, {tally.votes_against} no, {tally.abstentions} abstain"))
        if self.action is not None and self.action.approved_by:
            found.append(("approved by", self.action.approved_by))
        asked, ran = self.query_counts
        if asked:
            found.append(("readings", f"{asked} asked, {ran} run"))
        return found

    # -------------------------------------------------------------------------------------------- who did what

    @cached_property
    def queries(self) -> tuple[Query, ...]:
        """The shared readings, in the order in which they were run."""
        asked: dict[tuple[str, str], list[str]] = {}
        for task in self.tasks:
            for item in as_object(task.result).get("queries", ()):
                key = (str(item["source"]).casefold(), str(item["query"]))
                asked.setdefault(key, []).append(str(task.assigned_to))
        found: list[Query] = []
        for task in self.tasks:
            if task.type != "query" or task.status is not TaskStatus.COMPLETED:
                continue
            parameters: Any = task.parameters
            source, query = str(parameters.get("source")), str(parameters.get("query"))
            runner = str(task.assigned_to)
            askers = list(asked.get((source, query), ()))
            # An agent that was killed has run it, but never handed in what it had asked.
            found.append(Query(source, query, runner, tuple(askers if runner in askers else [runner, *askers])))
        return tuple(found)

    @property
    def query_counts(self) -> tuple[int, int]:
        """How many readings were asked for, and how many were run."""
        return sum(len(query.asked_by) for query in self.queries), len(self.queries)

    @cached_property
    def work(self) -> list[tuple[str, str, str, str, int]]:
        """Who did what: agent, task, status, what it handed in, attempt."""
        rows: list[tuple[str, str, str, str, int]] = []
        for task in self.tasks:
            if task.type == "query":
                continue
            parameters = as_object(task.parameters)
            said = as_object(task.result).get("summary") or as_object(task.error).get("message", "")
            rows.append(
                (
                    task.assigned_to or "nobody",
                    str(parameters.get("focus") or task.type),
                    str(task.status),
                    str(said),
                    task.attempt,
                )
            )
        return rows

    @cached_property
    def kills(self) -> tuple[Killed, ...]:
        """The agents that were killed, each with what the board shows before and after."""
        found: list[Killed] = []
        for finding in self.findings:
            facts: Any = finding.provenance.get("data") if finding.type == "chaos" else None
            if not facts:
                continue
            task_id = UUID(facts["task_id"])
            task = next((one for one in self.tasks if one.id == task_id), None)
            outcome = "its task is gone"
            if task is not None:
                outcome = f"its task is {task.status}"
                if task.status is TaskStatus.COMPLETED:
                    outcome = f"{task.assigned_to} finished its task in attempt {task.attempt}"
            steps = tuple(told for told in self.told if told.event.subject_id == task_id)
            found.append(Killed(str(finding.content), facts["agent_id"], task_id, finding.created_at, outcome, steps))
        return tuple(found)

    @cached_property
    def unreadable(self) -> tuple[Unreadable, ...]:
        """The logs that had lines which could not be read."""
        found: list[Unreadable] = []
        for finding in self.findings:
            facts: Any = finding.provenance.get("data") if finding.type == "log" else None
            if facts and facts.get("unparsed"):
                samples = tuple((int(number), str(text)) for number, text in facts.get("samples", ()))
                found.append(
                    Unreadable(
                        str(facts.get("source", "")), int(facts["unparsed"]), int(facts.get("lines", 0)), samples
                    )
                )
        return tuple(found)

    @property
    def reproduce(self) -> list[str]:
        """The commands that run this case again, and that show its board."""
        context = as_object(self.session.context)
        command = "blackboard demo"
        if not context.get("metrics"):
            logs = [_quoted(one) for one in context.get("logs", ())]
            command += f" --logs {' '.join(logs)}" if logs else ""
            if context.get("deployments"):
                command += f" --deployments {_quoted(context['deployments'])}"
        if self.kills:
            command += " --chaos"
        return [command, f"blackboard board -s {self.session.name}", f"blackboard events -s {self.session.name}"]

    # ----------------------------------------------------------------------------------------------------- plots

    @cached_property
    def plots(self) -> list[tuple[str, str, str]]:
        """Title, explanation and ``<svg>`` of each plot; the text is escaped."""
        marks = self._marks()
        found: list[tuple[str, str, str]] = []
        errors = self.data("onset").get("errors") or self.data("no_onset").get("errors")
        if errors:
            points = list(_points(errors))
            step = float(errors["step_seconds"])
            svg = time_plot(
                "Errors over time",
                [Line(f"errors in {errors['source']} per {step:g} s", points, 1, "area")],
                marks=marks,
                unit=f"errors per {step:g} s, UTC",
            )
            found.append(("Errors", "Deployments and changes are marked, and the onset where there is one.", svg))
        for finding in self.findings:
            facts: Any = finding.provenance.get("data") or {}
            gauge = facts.get("gauge")
            if finding.type != "gauge" or not gauge:
                continue
            in_mb = "bytes" in gauge["name"]
            scale = _BYTES_PER_MB if in_mb else 1.0
            lines = [
                Line(gauge["name"], [(at, value / scale) for at, value in _points(gauge)], 3 if in_mb else 2, "line")
            ]
            capacity = facts.get("capacity")
            if capacity:
                lines.append(
                    Line(capacity["name"], [(at, value / scale) for at, value in _points(capacity)], 0, "limit")
                )
            values = [value for _, value in lines[0].points if not math.isnan(value)]
            tops = [value for line in lines for _, value in line.points if not math.isnan(value)]
            if not values:
                continue
            svg = time_plot(
                gauge["name"], lines, marks=marks, unit="MB, UTC" if in_mb else "UTC", height=150, top=max(tops) * 1.15
            )
            found.append((gauge["name"], str(finding.content), svg))
        confidence = self._confidence_plot()
        if confidence:
            found.append(
                (
                    "Confidence",
                    "How the hypotheses fared as assessments and evidence came in, in board time.",
                    confidence,
                )
            )
        found.append(("Work", "Tasks (bars) with findings and ballots (dots) of every agent.", self._lanes()))
        return [plot for plot in found if plot[2]]

    def _marks(self) -> list[Mark]:
        marks = [
            Mark(dt.datetime.fromisoformat(change["at"]), str(change["name"])[:40])
            for change in self.data("changes").get("changes", ())
        ]
        onset = self.data("onset").get("onset")
        if onset:
            marks.append(Mark(dt.datetime.fromisoformat(onset["at"]), "errors begin", strong=True))
        return sorted(marks, key=lambda mark: mark.at)

    def confidence_course(self, hypothesis: UUID) -> list[tuple[dt.datetime, float]]:
        """The confidence after each event that computed it."""
        return [
            (event.at, float(event.data["confidence"]))
            for event in self.events
            if event.subject_id == hypothesis
            and event.type in {"hypothesis.proposed", "hypothesis.revised"}
            and "confidence" in event.data
        ]

    def _confidence_plot(self) -> str:
        lines = [
            Line(one.hypothesis.statement, self.confidence_course(one.hypothesis.id), number, "step", dots=True)
            for number, one in enumerate(self.hypotheses[:4], 1)
        ]
        lines = [line for line in lines if line.points]
        return time_plot("Confidence of the hypotheses", lines, clock=False, top=1.0) if lines else ""

    def _lanes(self) -> str:
        if not self.events:
            return ""
        start, end = self.events[0].at, self.events[-1].at
        lanes: list[Lane] = []
        for agent in sorted(self.agents, key=lambda one: one.joined_at):
            bars = list(self._bars(agent.id))
            dots = [
                Dot(told.event.at, told.text, 4 if told.noun == "vote" else 1)
                for told in self.told
                if told.event.actor == agent.id and told.event.type in {"finding.reported", "vote.cast"}
            ]
            if bars or dots:
                lanes.append(Lane(agent.id, bars, dots))
        marks = [Mark(killed.at, f"{killed.agent_id} killed", strong=True) for killed in self.kills]
        return lanes_plot("Who worked when", lanes, start, end, marks)

    def _bars(self, agent_id: str) -> Iterator[Bar]:
        open_bars: dict[UUID, tuple[dt.datetime, str]] = {}
        names = {
            task.id: str(as_object(task.parameters).get("focus") or task.type)
            for task in self.tasks
            if task.type != "query"
        }
        holders: dict[UUID, str] = {}
        for event in self.events:
            if event.subject_id not in names or not event.type.startswith("task."):
                continue
            if event.type == "task.assigned" and event.data.get("status") == "running":
                holders[event.subject_id] = event.actor
                if event.actor == agent_id:
                    open_bars[event.subject_id] = (
                        event.at,
                        f"{names[event.subject_id]}, attempt {event.data['attempt']}",
                    )
            elif holders.get(event.subject_id) == agent_id and event.subject_id in open_bars:
                if event.type in {"task.completed", "task.failed", "task.cancelled", "task.released"}:
                    begun, label = open_bars.pop(event.subject_id)
                    yield Bar(begun, event.at, label, "done" if event.type == "task.completed" else "lost")
                elif event.type in {"task.lapsed", "task.retried", "task.dead", "task.ready"}:
                    begun, label = open_bars.pop(event.subject_id)
                    died = next((one.at for one in self.kills if one.task_id == event.subject_id), event.at)
                    yield Bar(begun, min(died, event.at), f"{label}, not finished", "lost")
        for begun, label in open_bars.values():
            yield Bar(begun, None, label, "open")


def _points(series: Mapping[str, Any]) -> Iterator[tuple[dt.datetime, float]]:
    start = dt.datetime.fromisoformat(series["start"])
    step = dt.timedelta(seconds=float(series["step_seconds"]))
    for number, value in enumerate(series["values"]):
        yield start + number * step, math.nan if value is None else float(value)


def _quoted(path: Any) -> str:
    text = str(path)
    return f"'{text}'" if " " in text else text
