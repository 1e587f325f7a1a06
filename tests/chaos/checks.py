"""What must hold after the storm in each of its sessions, asked of the database, of the reader and of the workers' own notes."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import psycopg
from psycopg.rows import namedtuple_row

from blackboard.models.tasks import FINAL, TRANSITIONS, TaskStatus

from .feeder import Added
from .handlers import IN_TRANSACTION, MEANT_TO_DIE
from .reader import notes, pages
from .report import Violation

__all__ = ["RULES", "Evidence", "check"]

_SHOWN = 5


class Step(NamedTuple):
    """One event of a task."""

    seq: int
    at: Any
    actor: str
    type: str
    task_id: UUID
    session_id: UUID
    data: dict[str, Any]


@dataclass
class Evidence:
    """What the rules look at; read once, when everything has come to rest.

    Attributes:
        connection: to the database.
        session_ids: all there are.
        home: where processes wrote things down.
        added: the session and the type of every task whose adding was answered.
        starts: when the server started, by its own clock.
        term: of the workers' leases, seconds.
    """

    connection: psycopg.Connection[Any]
    session_ids: tuple[UUID, ...]
    home: Path
    added: dict[UUID, Added]
    starts: list[Any]
    term: float

    def rows(self, sql: str, *parameters: object) -> list[Any]:
        """Rows with attributes."""
        with self.connection.cursor(row_factory=namedtuple_row) as cursor:
            return cursor.execute(sql.encode(), parameters or None).fetchall()

    @cached_property
    def tasks(self) -> dict[UUID, dict[str, Any]]:
        """Every row, as JSON."""
        return {row.id: row.row for row in self.rows("SELECT id, to_jsonb(t) AS row FROM blackboard.tasks t")}

    @cached_property
    def steps(self) -> dict[UUID, list[Step]]:
        """The events of every task, in order."""
        sql = (
            "SELECT seq, at, actor, type, subject_id, session_id, data FROM blackboard.events "
            "WHERE type LIKE 'task.%' ORDER BY seq"
        )
        found: dict[UUID, list[Step]] = defaultdict(list)
        for row in self.rows(sql):
            found[row.subject_id].append(Step(*row))
        return found

    @cached_property
    def ledger(self) -> dict[UUID, list[Any]]:
        """What handlers wrote with their completions."""
        found: dict[UUID, list[Any]] = defaultdict(list)
        for row in self.rows("SELECT task_id, attempt, worker, pid FROM chaos.ledger ORDER BY at"):
            found[row.task_id].append(row)
        return found

    @cached_property
    def started(self) -> list[Any]:
        """What handlers wrote when they started."""
        return self.rows("SELECT task_id, attempt, lease_id, worker, pid FROM chaos.started ORDER BY at")

    def completion(self, task_id: UUID) -> Step | None:
        """The claim under which the task was completed."""
        claim = None
        for step in self.steps[task_id]:
            if step.type == "task.assigned":
                claim = step
            elif step.type == "task.completed":
                return claim
        return None

    def story(self, task_id: UUID) -> tuple[str, ...]:
        """All that is known of a task, in lines."""
        added = self.added.get(task_id)
        said = "never added" if added is None else f"{added.type}, session {added.session_id}"
        lines = [f"task {task_id} ({said})"]
        lines += [
            f"{step.at:%H:%M:%S.%f} {step.seq} {step.type} by {step.actor} {json.dumps(step.data)[:300]}"
            for step in self.steps[task_id]
        ]
        lines += [f"started: attempt {row.attempt} by {row.worker}, process {row.pid}, lease {row.lease_id}"
                  for row in self.started if row.task_id == task_id]  # fmt: skip
        lines += [f"ledger: attempt {row.attempt} by {row.worker}, process {row.pid}" for row in self.ledger[task_id]]
        return tuple(lines)

    def facts(self) -> dict[str, int]:
        """Numbers that say how much was tried."""
        types = Counter(step.type for steps in self.steps.values() for step in steps)
        return {
            "tasks": len(self.tasks),
            "attempts": types["task.assigned"],
            "attempts lapsed": types["task.lapsed"],
            "attempts failed": types["task.retried"] + types["task.dead"],
            "attempts released": types["task.released"],
            "outcomes refused": types["task.result_refused"],
            "claims from several sessions": self.wide("task.assigned"),
            "writes to several sessions": self.wide("task.completed"),
            "events": self.rows("SELECT count(*) FROM blackboard.events")[0][0],
            "leases": self.rows("SELECT count(*) FROM blackboard.leases")[0][0],
            "starts of the server": len(self.starts),
        }

    def wide(self, type_: str) -> int:
        """How many transactions did that in several sessions."""
        sql = (
            "SELECT count(*) FROM (SELECT FROM blackboard.events WHERE type = %s "
            "GROUP BY tx HAVING count(DISTINCT session_id) > 1) wide"
        )
        return int(self.rows(sql, type_)[0][0])


Finding = tuple[str, UUID | None]
Rule = Callable[[Evidence], Iterator[Finding]]
RULES: Final[dict[str, Rule]] = {}
"""What must hold, in words, and who looks whether it does."""


def _rule(text: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES[text] = rule
        return rule

    return register


def check(evidence: Evidence) -> list[Violation]:
    """Every rule that does not hold, with what shows it."""
    violations: list[Violation] = []
    for text, rule in RULES.items():
        for number, (found, task_id) in enumerate(rule(evidence)):
            story = evidence.story(task_id) if task_id is not None and number < _SHOWN else ()
            violations.append(Violation(text, found, story))
    return violations


@_rule("every task that was added is there and has ended as it was meant to, and no other is there")
def _ended(evidence: Evidence) -> Iterator[Finding]:
    for task_id, added in evidence.added.items():
        row = evidence.tasks.get(task_id)
        meant = TaskStatus.DEAD if added.type in MEANT_TO_DIE else TaskStatus.COMPLETED
        if row is None or row["session_id"] != str(added.session_id):
            yield f"{task_id} was added, and is not there", task_id
        elif row["status"] != meant:
            yield f"{task_id} is {row['status']}, and should be {meant}: {row['error']}", task_id
    for task_id in evidence.tasks.keys() - evidence.added.keys():
        yield f"{task_id} was never added", task_id


@_rule("the ledger has one row for each task that completes in a transaction, of the attempt that completed it")
def _once(evidence: Evidence) -> Iterator[Finding]:
    for task_id, row in evidence.tasks.items():
        entries = evidence.ledger[task_id]
        wanted = 1 if row["type"] in IN_TRANSACTION and row["status"] == "completed" else 0
        if len(entries) != wanted:
            yield f"{task_id} ({row['type']}, {row['status']}) has {len(entries)} rows in the ledger", task_id
            continue
        claim = evidence.completion(task_id)
        for entry in entries:
            if claim is None or (entry.attempt, entry.worker) != (claim.data["attempt"], claim.data["assigned_to"]):
                yield f"{task_id}: attempt {entry.attempt} of {entry.worker} did not complete it", task_id
    for task_id in evidence.ledger.keys() - evidence.tasks.keys():
        yield f"the ledger has a row for {task_id}, which is no task", task_id


@_rule("a task is completed once or dead once, by who held it, and nothing follows")
def _completed_once(evidence: Evidence) -> Iterator[Finding]:
    for task_id, steps in evidence.steps.items():
        ends = [step for step in steps if step.data.get("status") in FINAL]
        if len(ends) != 1:
            yield f"{task_id} ended {len(ends)} times", task_id
        elif any(step.seq > ends[0].seq and "status" in step.data for step in steps):
            yield f"{task_id} went on after its end", task_id
        claim = evidence.completion(task_id)
        if claim is not None and ends[0].type == "task.completed" and ends[0].actor != claim.data["assigned_to"]:
            yield f"{task_id} was held by {claim.data['assigned_to']} and completed by {ends[0].actor}", task_id


@_rule("a commit that was answered is in the ledger")
def _kept(evidence: Evidence) -> Iterator[Finding]:
    file = evidence.home / "answered.jsonl"
    entries = {(task_id, row.attempt) for task_id, rows in evidence.ledger.items() for row in rows}
    for line in file.read_text().splitlines() if file.exists() else ():
        told = json.loads(line)
        if (UUID(told["task_id"]), told["attempt"]) not in entries:
            yield f"the commit of attempt {told['attempt']} of {told['task_id']} was lost", UUID(told["task_id"])


@_rule("one owner at a time, attempts that grow by one, legal steps only")
def _one_owner(evidence: Evidence) -> Iterator[Finding]:
    for task_id, steps in evidence.steps.items():
        status, attempt = None, 0
        for step in steps:
            new = TaskStatus(step.data["status"]) if "status" in step.data else status
            if step.type == "task.assigned":
                if status == TaskStatus.RUNNING:
                    yield f"{task_id} was handed out at {step.seq} while it was running", task_id
                if step.data["attempt"] != attempt + 1:
                    yield f"{task_id}: attempt {step.data['attempt']} follows {attempt}", task_id
                attempt = step.data["attempt"]
            if status is not None and new != status and (new is None or new not in TRANSITIONS[status]):
                yield f"{task_id} went from {status} to {new} at {step.seq}", task_id
            status = new


@_rule("no step is missing: each is named after the one before it")
def _named(evidence: Evidence) -> Iterator[Finding]:
    sql = (
        "SELECT subject_id, seq, type, before, after FROM ("
        "SELECT subject_id, seq, type, data ->> 'status' AS after, NULLIF(data -> 'error', 'null') AS error, "
        "lag(data ->> 'status') OVER (PARTITION BY session_id, subject_id ORDER BY seq) AS before "
        "FROM blackboard.events WHERE type LIKE 'task.%' AND data ? 'status') steps "
        "WHERE type IS DISTINCT FROM CASE WHEN before IS NULL THEN 'task.created' "
        "ELSE blackboard.task_event(before, after, error) END ORDER BY seq"
    )
    for row in evidence.rows(sql):
        yield f"{row.subject_id} went from {row.before} to {row.after} by {row.type} at {row.seq}", row.subject_id


@_rule("the fold of a task's events is its row")
def _fold(evidence: Evidence) -> Iterator[Finding]:
    for task_id, row in evidence.tasks.items():
        folded: dict[str, Any] = {}
        for step in evidence.steps[task_id]:
            folded |= step.data
        wrong = {name: (value, row[name]) for name, value in folded.items() if name in row and row[name] != value}
        if any(str(step.session_id) != row["session_id"] for step in evidence.steps[task_id]):
            yield f"{task_id} has events in another session", task_id
        if wrong:
            yield f"{task_id}: by its events and by its row: {wrong}", task_id
    for task_id in evidence.steps.keys() - evidence.tasks.keys():
        yield f"{task_id} has events and no row", task_id


@_rule("an attempt was started at most once, by who had claimed it")
def _started_once(evidence: Evidence) -> Iterator[Finding]:
    claims = {
        (task_id, step.data["attempt"]): step.data
        for task_id, steps in evidence.steps.items()
        for step in steps
        if step.type == "task.assigned"
    }
    times = Counter((row.task_id, row.attempt) for row in evidence.started)
    for (task_id, attempt), count in times.items():
        if count > 1:
            yield f"attempt {attempt} of {task_id} was started {count} times", task_id
    for row in evidence.started:
        claim = claims.get((row.task_id, row.attempt))
        if claim is None or (row.worker, str(row.lease_id)) != (claim["assigned_to"], claim["lease_id"]):
            yield f"attempt {row.attempt} of {row.task_id} was started by {row.worker} without a claim", row.task_id


@_rule("a result is kept aside only if another attempt counted")
def _late(evidence: Evidence) -> Iterator[Finding]:
    sql = "SELECT task_id, attempt, agent_id FROM blackboard.late_results WHERE result IS NOT NULL"
    for row in evidence.rows(sql):
        claim = evidence.completion(row.task_id)
        if claim is not None and claim.data["attempt"] == row.attempt:
            yield f"the result of attempt {row.attempt} of {row.task_id} counted, and is called late", row.task_id


@_rule("the reader by cursor saw every event of every session, once")
def _read(evidence: Evidence) -> Iterator[Finding]:
    for session_id in evidence.session_ids:
        rows = evidence.rows("SELECT seq FROM blackboard.events WHERE session_id = %s", session_id)
        written = {row.seq for row in rows}
        read = Counter(seq for _, seqs in pages(notes(evidence.home, session_id)) for seq in seqs)
        if missed := sorted(written - read.keys()):
            yield f"{len(missed)} of {session_id} were missed, {missed[:10]} first", None
        if made_up := sorted(read.keys() - written):
            yield f"{len(made_up)} of {session_id} were read that are not there, {made_up[:10]} first", None
        if twice := sorted(seq for seq, count in read.items() if count > 1):
            yield f"{len(twice)} of {session_id} were read more than once, {twice[:10]} first", None


@_rule("nothing lapses within one term of a start of the server")
def _mercy(evidence: Evidence) -> Iterator[Finding]:
    # A lease that its owner ended has not expired.
    sql = (
        "SELECT id, pid, lapsed_at FROM blackboard.leases "
        "WHERE lapsed_at >= %s AND lapsed_at < %s + term AND expires_at < lapsed_at"
    )
    for start in evidence.starts:
        for row in evidence.rows(sql, start, start):
            yield f"lease {row.id} of process {row.pid} lapsed at {row.lapsed_at}, and the server started {start}", None


@_rule("no limit was ever exceeded, and none counts what does not run")
def _limits(evidence: Evidence) -> Iterator[Finding]:
    limits = evidence.rows("SELECT session_id, name, type, per_key, max_running FROM blackboard.limits")
    types = {task_id: row["type"] for task_id, row in evidence.tasks.items()}
    keys = {task_id: row["limit_key"] for task_id, row in evidence.tasks.items()}
    running: dict[tuple[UUID, str, str | None], set[UUID]] = defaultdict(set)
    for step in sorted(step for steps in evidence.steps.values() for step in steps if "status" in step.data):
        for limit in limits:
            key = keys.get(step.task_id) if limit.per_key else None
            if limit.session_id != step.session_id or (limit.per_key and key is None):
                continue
            if limit.type not in {None, types.get(step.task_id)}:
                continue
            held = running[limit.session_id, limit.name, key]
            if step.data["status"] == "running":
                held.add(step.task_id)
                if len(held) > limit.max_running:
                    yield f"{len(held)} ran at {step.seq} under the limit {limit.name!r} ({key})", step.task_id
            else:
                held.discard(step.task_id)
    sql = (
        "SELECT limit_id, key, counted, slots, running "
        "FROM blackboard.sessions s, LATERAL blackboard.check_limits(s.id)"
    )
    for row in evidence.rows(sql):
        yield (
            f"limit {row.limit_id} ({row.key}) counts {row.counted}, by {row.slots} slots, and {row.running} run",
            None,
        )


@_rule("in the end no lease lives and no task is held; no process held tasks under two leases at once")
def _leases(evidence: Evidence) -> Iterator[Finding]:
    leases = {str(row.id): row for row in evidence.rows(
        "SELECT id, host, pid, started_at, lapsed_at FROM blackboard.leases ORDER BY started_at, id")}  # fmt: skip
    used = {
        step.data.get("lease_id") for steps in evidence.steps.values() for step in steps if step.type == "task.assigned"
    }
    last: dict[tuple[str, int], Any] = {}
    for key, lease in leases.items():
        if lease.lapsed_at is None:
            yield f"lease {key} of process {lease.pid} still lives", None
        if key in used:
            before = last.get((lease.host, lease.pid))
            if before is not None and (before.lapsed_at is None or before.lapsed_at > lease.started_at):
                yield f"process {lease.pid} held tasks under {before.id} and {key} at once", None
            last[lease.host, lease.pid] = lease
    for task_id, row in evidence.tasks.items():
        if row["lease_id"] is not None:
            yield f"{task_id} is still held under {row['lease_id']}", task_id
