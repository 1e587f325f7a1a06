"""The events of a session as sentences: for the terminal while it runs, and for the report's timeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from blackboard import Event

from .plain import as_object, one_line

__all__ = ["Narrator", "Told"]


@dataclass(frozen=True)
class Told:
    """An event in words; ``noun`` is what it is about, ``weight`` how much it matters: 0 little, 1 usually, 2 much."""

    event: Event
    noun: str
    text: str
    weight: int = 1


class Narrator:
    """Tells events in order; remembers from earlier ones what later ones are about."""

    def __init__(self) -> None:
        self._names: dict[UUID, str] = {}
        self._confidence: dict[UUID, float] = {}
        self._holders: dict[UUID, str] = {}
        self._attempts: dict[UUID, int] = {}
        self._shares: dict[UUID, float] = {}

    def tell(self, event: Event) -> Told | None:
        """The event in words, or None for those that are bookkeeping."""
        noun, _, verb = event.type.partition(".")
        how: Callable[[Event, str], tuple[str, int] | None] | None = {
            "session": self._session,
            "agent": self._agent,
            "task": self._task,
            "finding": self._finding,
            "hypothesis": self._hypothesis,
            "evidence": self._evidence,
            "proposal": self._proposal,
            "vote": self._vote,
            "action": self._action,
            "lock": self._lock,
        }.get(noun)
        told = None if how is None else how(event, verb)
        return None if told is None else Told(event, noun, told[0], told[1])

    def name(self, subject: Any) -> str:
        """What the row with that id is called, as far as the events told."""
        try:
            return self._names.get(UUID(str(subject)), "")
        except ValueError:
            return ""

    def _session(self, event: Event, verb: str) -> tuple[str, int] | None:
        del event
        return (f"session {verb}", 2) if verb in {"started", "completed", "failed", "paused", "resumed"} else None

    def _agent(self, event: Event, verb: str) -> tuple[str, int] | None:
        del event
        return (f"{verb} the session", 1) if verb in {"joined", "left"} else None

    def _task(self, event: Event, verb: str) -> tuple[str, int] | None:
        data, subject = event.data, event.subject_id
        if verb == "created":
            parameters: Any = data.get("parameters")
            parameters = as_object(parameters)
            kind = str(data.get("type"))
            if kind == "query":
                self._names[subject] = f"query of {parameters.get('source')}"
            else:
                self._names[subject] = f"“{one_line(parameters.get('focus') or kind, 80)}”"
            return None
        name = self._names.get(subject, "a task")
        query = name.startswith("query of")
        if verb == "assigned":
            if data.get("status") != "running":
                return None
            attempt = int(data.get("attempt") or 1)
            self._attempts[subject], self._holders[subject] = attempt, event.actor
            if query:
                return f"runs the {name}, for all who ask", 1
            return (f"begins {name}", 1) if attempt == 1 else (f"takes over {name}, attempt {attempt}", 2)
        if verb == "progressed":
            progress: Any = data.get("progress")
            step, share = as_object(progress).get("step", progress), as_object(progress).get("share")
            if not isinstance(share, float | int):
                return one_line(step, 100), 0
            # Of a long reading every tenth part is told.
            before, self._shares[subject] = self._shares.get(subject, 0.0), float(share)
            return f"{one_line(step, 100)}: {share:.0%}", 1 if int(share * 10) > int(before * 10) else 0
        if verb == "completed":
            attempt = self._attempts.get(subject, 1)
            suffix = "" if attempt == 1 else f" in attempt {attempt}"
            return (f"answered the {name}", 0) if query else (f"completed {name}{suffix}", 1)
        if verb in {"lapsed", "reclaimed", "expired", "lost"}:
            return f"{name} was taken from {self._holders.get(subject, 'its holder')}, whose lease had lapsed", 2
        if verb in {"retried", "failed", "dead", "cancelled", "released"}:
            error: Any = data.get("error")
            message = as_object(error).get("message")
            return f"{name} was {verb}{f': {one_line(message, 120)}' if message else ''}", 2
        return None

    def _finding(self, event: Event, verb: str) -> tuple[str, int] | None:
        if verb == "reported":
            content = one_line(event.data.get("content", "(long)"))
            self._names[event.subject_id] = content
            return content, 2 if event.data.get("category") == "conclusion" else 1
        if verb == "corroborated":
            return f"confirms: {self.name(event.subject_id)}", 0
        return f"{verb} a finding: {self.name(event.subject_id)}", 1

    def _hypothesis(self, event: Event, verb: str) -> tuple[str, int] | None:
        data, subject = event.data, event.subject_id
        if verb == "proposed":
            self._names[subject] = one_line(data.get("description"), 120)
        name = self._names.get(subject, "a hypothesis")
        if verb == "proposed":
            self._confidence[subject] = float(data["confidence"])
            return f"proposes: {name} ({self._confidence[subject]:.2f})", 2
        if verb == "assessed":
            assessment: Any = data.get("assessment") or {}
            stated = float(assessment.get("confidence", 0))
            return f"holds {name} to be worth {stated:.2f}: {one_line(assessment.get('reason', ''), 160)}", 0
        if verb == "revised":
            before, now = self._confidence.get(subject, 0.0), float(data["confidence"])
            self._confidence[subject] = now
            return f"{name}: {before:.2f} → {now:.2f}", 1 if abs(now - before) >= 0.005 else 0
        if verb == "validated":
            verdict = "validates" if data.get("result") else "refutes"
            return f"{verdict}: {name} ({one_line(data.get('reason', ''), 160)})", 2
        return f"{verb}: {name}", 1

    def _evidence(self, event: Event, verb: str) -> tuple[str, int] | None:
        if verb != "added":
            return f"evidence {verb}", 0
        side = "supports" if event.data.get("supports") else "contradicts"
        finding, about = self.name(event.data.get("finding_id")), self.name(event.data.get("hypothesis_id"))
        return f"“{one_line(finding, 90)}” {side} {about}", 0

    def _proposal(self, event: Event, verb: str) -> tuple[str, int] | None:
        if verb == "opened":
            self._names[event.subject_id] = one_line(event.data.get("title"), 160)
            return f"puts to the vote: {self.name(event.subject_id)}", 2
        if verb in {"accepted", "rejected", "expired", "withdrawn"}:
            result: Any = event.data.get("result") or {}
            tally = f"{result.get('votes_for')} for, {result.get('votes_against')} against"
            if result.get("abstentions"):
                tally += f", {result['abstentions']} abstained"
            return f"{verb}: {self.name(event.subject_id)} ({tally})", 2
        return None

    def _vote(self, event: Event, verb: str) -> tuple[str, int] | None:
        data = event.data
        if verb not in {"cast", "changed"}:
            return None
        return f"votes {data.get('choice')}: {one_line(data.get('reason', ''), 200)}", 2

    def _action(self, event: Event, verb: str) -> tuple[str, int] | None:
        data, subject = event.data, event.subject_id
        if verb == "proposed":
            parameters: Any = data.get("parameters")
            parameters = as_object(parameters)
            what = parameters.get("action") or data.get("type")
            if parameters.get("action") == "rollback":
                what = f"rollback {parameters.get('from')} → {parameters.get('to')}"
            self._names[subject] = f"{what} of {data.get('target')}" if what != "escalate" else "escalate to on-call"
            return f"proposes the action: {self.name(subject)}", 2
        name = self._names.get(subject, "the action")
        words = {
            "awaiting_approval": f"{name} awaits approval",
            "approved": f"{name} is approved",
            "rejected": f"{name} is rejected",
            "executing": f"carries out {name}",
            "started": f"carries out {name}",
            "completed": f"completed {name}",
            "failed": f"{name} failed",
        }
        if verb not in words:
            return (f"{name}: {verb.replace('_', ' ')}", 1) if verb != "updated" else None
        text = words[verb]
        if verb == "completed" and as_object(data.get("result")).get("simulated"):
            text += " (simulated: nothing real was touched)"
        return text, 2

    def _lock(self, event: Event, verb: str) -> tuple[str, int] | None:
        return f"lock {verb}: {event.data.get('name', '')}".rstrip(": "), 0
