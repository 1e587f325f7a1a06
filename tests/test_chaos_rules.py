"""The rules that a storm is judged by: each is broken by hand, behind the back of all triggers, and must say so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from blackboard import Blackboard, NewTask, Session, TaskContext, Worker
from blackboard.ids import new_id

from .chaos.checks import RULES, Evidence, check
from .chaos.feeder import Added
from .chaos.handlers import TABLES
from .chaos.reader import notes

pytestmark = pytest.mark.fresh_database


@pytest.fixture
def raw(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(TABLES.encode())
        yield connection


@pytest.fixture
async def evidence(
    raw: psycopg.Connection[Any], board: Blackboard, session: Session, database_url: str, tmp_path: Path
) -> Evidence:
    """Of a day on which nothing happened: three tasks, one of which was tried twice, and one of which died."""
    answered: list[str] = []

    async def pay(ctx: TaskContext) -> None:
        row = (new_id(), ctx.task.id, ctx.task.attempt, ctx.task.lease_id, ctx.agent.id, 1)
        raw.execute("INSERT INTO chaos.started VALUES (%s, %s, %s, %s, %s, %s)", row)
        if ctx.task.type == "doom" or (ctx.task.type == "pay_third" and ctx.task.attempt == 1):
            raise ValueError("not now")
        async with ctx.transaction() as tx:
            await tx.connection.execute(
                "INSERT INTO chaos.ledger VALUES ($1, $2, $3, 1)", ctx.task.id, ctx.task.attempt, ctx.agent.id
            )
            await tx.complete(1)
        answered.append(json.dumps({"task_id": str(ctx.task.id), "attempt": ctx.task.attempt}))

    await session.limits.set("few", max_running=2)
    tasks = [
        NewTask(type=type_, id=new_id(), max_attempts=2, retry_delay=timedelta(0))
        for type_ in ("pay", "pay_third", "doom")
    ]
    async with Blackboard.open(database_url) as other:
        worker = Worker(other, session.name, agent_id="chaos/1", poll_interval=timedelta(milliseconds=20))
        for task in tasks:
            worker.register(task.type, pay)
        await session.tasks.add_many(tasks)
        assert (await worker.drain(scheduled=True)).completed == 2
    (tmp_path / "answered.jsonl").write_text("\n".join(answered) + "\n")
    page = await session.events.read()
    notes(tmp_path, session.id).write_text(
        json.dumps({"cursor": page.cursor, "seqs": [event.seq for event in page.events]}) + "\n"
    )
    added = {task.id: Added(session.id, task.type) for task in tasks if task.id is not None}
    raw.execute("SET session_replication_role = replica")
    return Evidence(raw, (session.id,), tmp_path, added, [], 30.0)


def afresh(evidence: Evidence) -> Evidence:
    """The same, read again."""
    return replace(evidence)


def broken(evidence: Evidence) -> set[str]:
    return {violation.rule for violation in check(afresh(evidence))}


def test_a_good_day_breaks_no_rule(evidence: Evidence) -> None:
    assert check(evidence) == []
    facts = evidence.facts()
    assert (facts["tasks"], facts["attempts"], facts["attempts failed"]) == (3, 5, 3)


ONE = "(SELECT id FROM blackboard.tasks WHERE type = 'pay')"
LATE = (
    "INSERT INTO blackboard.late_results (session_id, task_id, claim_id, attempt, agent_id, result) "
    f"SELECT session_id, id, claim_id, attempt, 'chaos/1', '1' FROM blackboard.tasks WHERE id = {ONE}"
)
EVENT = f"INSERT INTO blackboard.events (session_id, type, subject_id, data) SELECT session_id, %s, id, %s FROM blackboard.tasks WHERE id = {ONE}"


def event(type_: str, **data: Any) -> tuple[str, tuple[Any, ...]]:
    return EVENT, (type_, json.dumps(data))


FORGERIES: dict[str, list[tuple[str, tuple[Any, ...]]]] = {
    "every task": [
        (f"UPDATE blackboard.tasks SET status = 'failed' WHERE id = {ONE}", ()),
        (f"DELETE FROM blackboard.tasks WHERE id = {ONE}", ()),
        ("INSERT INTO blackboard.tasks (session_id, type) SELECT id, 'pay' FROM blackboard.sessions", ()),
        (f"UPDATE blackboard.tasks SET session_id = gen_random_uuid() WHERE id = {ONE}", ()),
    ],
    "the ledger": [
        (f"INSERT INTO chaos.ledger SELECT * FROM chaos.ledger WHERE task_id = {ONE}", ()),
        (f"DELETE FROM chaos.ledger WHERE task_id = {ONE}", ()),
        (f"UPDATE chaos.ledger SET attempt = 7 WHERE task_id = {ONE}", ()),
        (f"UPDATE chaos.ledger SET worker = 'somebody' WHERE task_id = {ONE}", ()),
        ("INSERT INTO chaos.ledger VALUES (gen_random_uuid(), 1, 'chaos/1', 1)", ()),
        ("INSERT INTO chaos.ledger SELECT id, 1, 'chaos/1', 1 FROM blackboard.tasks WHERE type = 'doom'", ()),
    ],
    "a task is completed once": [
        event("task.completed", status="completed"),
        event("task.released", status="pending"),
        ("DELETE FROM blackboard.events WHERE type = 'task.dead'", ()),
        ("UPDATE blackboard.events SET actor = 'somebody' WHERE type = 'task.completed'", ()),
    ],
    "a commit that was answered": [(f"DELETE FROM chaos.ledger WHERE task_id = {ONE}", ())],
    "one owner": [
        (f"UPDATE blackboard.events SET data = data || '{{\"attempt\": 2}}' WHERE type = 'task.assigned' AND subject_id = {ONE}", ()),
        ("DELETE FROM blackboard.events WHERE type = 'task.assigned'", ()),
        event("task.assigned", status="running", attempt=2, assigned_to="chaos/2"),
        event("task.ready", status="pending"),
    ],
    "no step": [
        *((f"DELETE FROM blackboard.events WHERE type = 'task.{verb}'", ()) for verb in ("created", "assigned", "retried")),
        event("task.released", status="pending"),
    ],
    "the fold": [
        (f"UPDATE blackboard.tasks SET priority = 9 WHERE id = {ONE}", ()),
        (f"UPDATE blackboard.tasks SET result = '2' WHERE id = {ONE}", ()),
        ("UPDATE blackboard.events SET session_id = gen_random_uuid() WHERE type = 'task.completed'", ()),
        ("DELETE FROM blackboard.events WHERE type = 'task.completed'", ()),
        (f"DELETE FROM blackboard.tasks WHERE id = {ONE}", ()),
    ],
    "an attempt was started": [
        ("INSERT INTO chaos.started SELECT gen_random_uuid(), task_id, attempt, lease_id, worker, pid FROM chaos.started", ()),
        (f"INSERT INTO chaos.started SELECT gen_random_uuid(), task_id, 7, lease_id, worker, pid FROM chaos.started WHERE task_id = {ONE}", ()),
        ("UPDATE chaos.started SET worker = 'somebody'", ()),
        ("UPDATE chaos.started SET lease_id = gen_random_uuid()", ()),
    ],
    "a result is kept aside": [
        (LATE, ()),
    ],
    "the reader": [
        event("task.progressed", progress=1),
        ("DELETE FROM blackboard.events WHERE type = 'session.started'", ()),
    ],
    "no limit": [
        ("UPDATE blackboard.limits SET max_running = 0", ()),
        ("UPDATE blackboard.limit_usage SET running = 5", ()),
    ],
    "in the end": [
        ("UPDATE blackboard.leases SET lapsed_at = NULL", ()),
        (f"UPDATE blackboard.tasks SET lease_id = gen_random_uuid() WHERE id = {ONE}", ()),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "forgery"),
    [(rule, forgery) for rule, forgeries in FORGERIES.items() for forgery in forgeries],
)
def test_a_forgery_is_found(evidence: Evidence, rule: str, forgery: tuple[str, tuple[Any, ...]]) -> None:
    # Without checks and keys: nothing but the rules stands in the way.
    for table in ("tasks", "late_results", "leases", "limits", "limit_usage"):
        for (name,) in evidence.connection.execute(
            "SELECT conname FROM pg_constraint WHERE contype IN ('c', 'f') AND conrelid = %s::regclass",
            (f"blackboard.{table}",),
        ).fetchall():
            evidence.connection.execute(f'ALTER TABLE blackboard.{table} DROP CONSTRAINT "{name}"'.encode())
    statement, parameters = forgery
    changed = evidence.connection.execute(statement.encode(), parameters).rowcount
    assert changed > 0
    assert any(found.startswith(rule) for found in broken(evidence))


def test_every_rule_is_tried() -> None:
    tried = {*FORGERIES, "nothing lapses"}
    assert all(any(rule.startswith(start) for start in tried) for rule in RULES)


def test_two_leases_of_one_process_at_once_are_found(evidence: Evidence) -> None:
    other = new_id()
    evidence.connection.execute(
        "INSERT INTO blackboard.leases (id, host, pid, term, started_at, expires_at, lapsed_at) "
        "SELECT %s, host, pid, term, started_at - interval '1 second', expires_at, lapsed_at FROM blackboard.leases "
        "WHERE id IN (SELECT (data ->> 'lease_id')::uuid FROM blackboard.events WHERE type = 'task.assigned')",
        (other,),
    )
    assert not any(rule.startswith("in the end") for rule in broken(evidence)), "it never held anything"
    evidence.connection.execute(
        "UPDATE blackboard.events SET data = data || jsonb_build_object('lease_id', %s::text) "
        f"WHERE type = 'task.assigned' AND subject_id = {ONE}".encode(),
        (str(other),),
    )
    assert any(rule.startswith("in the end") for rule in broken(evidence))


def test_a_lapse_too_soon_after_a_start_is_found(evidence: Evidence) -> None:
    start = evidence.connection.execute("SELECT clock_timestamp()").fetchone()
    assert start is not None
    evidence.starts.append(start[0])
    lapse = (
        "INSERT INTO blackboard.leases (id, term, started_at, expires_at, lapsed_at) VALUES (%s, '30 s', %s, %s, %s)"
    )
    soon, late = start[0] + timedelta(seconds=29), start[0] + timedelta(seconds=31)
    evidence.connection.execute(lapse, (new_id(), start[0], start[0], late))
    assert not any(rule.startswith("nothing lapses") for rule in broken(evidence))
    evidence.connection.execute(lapse, (new_id(), start[0], late, soon))
    assert not any(rule.startswith("nothing lapses") for rule in broken(evidence)), "its owner ended it"
    evidence.connection.execute(lapse, (new_id(), start[0], start[0], soon))
    assert any(rule.startswith("nothing lapses") for rule in broken(evidence))


def test_events_read_twice_or_lost_by_the_reader_are_found(evidence: Evidence) -> None:
    file = notes(evidence.home, evidence.session_ids[0])
    whole = file.read_text()
    file.write_text(whole + whole)
    assert any(rule.startswith("the reader") for rule in broken(evidence))
    line = json.loads(whole)
    file.write_text(json.dumps({**line, "seqs": line["seqs"][1:]}) + "\n")
    assert any(rule.startswith("the reader") for rule in broken(evidence))
    file.write_text(whole + whole[:20])
    assert broken(evidence) == set(), "half a line is none"


async def test_every_session_is_looked_at(evidence: Evidence, board: Blackboard) -> None:
    other = await board.start("another")
    await other.limits.set("none", max_running=1)
    wider = replace(evidence, session_ids=(*evidence.session_ids, other.id))
    assert broken(wider) == {next(rule for rule in RULES if rule.startswith("the reader"))}
    page = await other.events.read()
    line = {"cursor": page.cursor, "seqs": [event.seq for event in page.events]}
    notes(wider.home, other.id).write_text(json.dumps(line) + "\n")
    assert broken(wider) == set(), "nor do limits of one session count what runs in another"
    evidence.connection.execute("UPDATE blackboard.limit_usage SET running = 5 WHERE session_id = %s", (other.id,))
    assert any(rule.startswith("no limit") for rule in broken(wider))


def test_what_is_found_is_shown(evidence: Evidence) -> None:
    evidence.connection.execute(f"DELETE FROM chaos.ledger WHERE task_id = {ONE}".encode())
    found = next(one for one in check(afresh(evidence)) if one.rule.startswith("the ledger"))
    assert "0 rows in the ledger" in found.text
    assert any("task.assigned by chaos/1" in line for line in found.evidence)
    assert any(line.startswith("started: attempt 1 by chaos/1") for line in found.evidence)
