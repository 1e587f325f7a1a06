"""Schedules: added, found, paused, removed; fired when due, with what was missed treated as they say."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from blackboard import Blackboard
from blackboard.errors import AlreadyExists, IdempotencyConflict, InvalidInput, NotFound, SessionClosed
from blackboard.repository.schedules import task_id
from blackboard.sqlstates import CONSTRAINTS, from_sqlstate
from blackboard.sync import Blackboard as SyncBlackboard

_BIG = "to_jsonb((SELECT string_agg(md5(n::text), '') FROM generate_series(1, 70000) n))"
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


async def events(db: Any, session: Any) -> list[tuple[str, str, dict[str, Any]]]:
    rows = await db.fetch(
        "SELECT type, actor, data FROM blackboard.events WHERE session_id = $1 AND type LIKE 'schedule.%' ORDER BY seq",
        session.id,
    )
    return [(row["type"].partition(".")[2], row["actor"], json.loads(row["data"])) for row in rows]


async def due(db: Any, session: Any, name: str, ago: timedelta) -> datetime:
    """The schedule should have fired ``ago``, at a whole minute."""
    return await db.fetchval(
        "UPDATE blackboard.schedules SET next_at = date_trunc('minute', blackboard.now() - $3::interval) "
        "WHERE session_id = $1 AND name = $2 RETURNING next_at",
        session.id,
        name,
        ago,
    )


async def test_a_schedule_adds_its_task_at_its_time(session: Any, board: Blackboard, clock: Any, db: Any) -> None:
    schedule = await session.schedules.add(
        "nightly",
        "30 2 * * *",
        "report",
        {"of": "yesterday"},
        timezone="Europe/Berlin",
        capability="synthesize",
        priority=8,
        timeout=timedelta(minutes=5),
        max_attempts=2,
        retry_delay=timedelta(seconds=90),
    )
    assert (schedule.fired, schedule.last_at, schedule.paused, schedule.missed) == (0, None, False, "once")
    assert schedule.next_at is not None
    assert await board.schedules.fire_due() == []
    seconds = await board.schedules.seconds_to_next()
    assert seconds is not None
    assert 0 < seconds <= 25 * 3600
    await clock.advance(timedelta(seconds=seconds + 1))
    (firing,) = await board.schedules.fire_due()
    assert (firing.planned_at, firing.name) == (schedule.next_at, "nightly")
    assert firing.task_id == task_id(schedule.id, schedule.next_at)
    assert await board.schedules.fire_due() == []
    task = await session.tasks.get(firing.task_id)
    assert (task.type, task.capability, task.priority, task.parameters) == (
        "report", "synthesize", 8, {"of": "yesterday"},
    )  # fmt: skip
    assert (task.timeout, task.max_attempts, task.retry_delay) == (5 * MINUTE, 2, timedelta(seconds=90))
    assert (task.created_by, task.status) == ("schedule:nightly", "pending")
    after = await session.schedules.get("nightly")
    assert (after.fired, after.skipped, after.last_at, after.last_task_id) == (1, 0, schedule.next_at, task.id)
    assert timedelta(hours=23) <= after.next_at - schedule.next_at <= timedelta(hours=25)
    found = await events(db, session)
    assert [(kind, actor) for kind, actor, _ in found] == [("added", "tester"), ("fired", "schedule:nightly")]
    assert found[0][2]["cron"] == "30 2 * * *"
    assert found[0][2]["options"] == {"timeout": "300.0 seconds", "max_attempts": 2, "retry_delay": "90.0 seconds"}
    assert found[1][2]["last_task_id"] == str(task.id)
    assert datetime.fromisoformat(found[1][2]["last_at"]) == schedule.next_at


@pytest.mark.parametrize(
    ("missed", "fired", "skipped"), [("skip", {0, 1}, {60, 61}), ("once", {1}, {60, 61}), ("all", {61, 62}, {0})]
)
async def test_what_was_missed(
    session: Any, board: Blackboard, db: Any, missed: str, fired: set[int], skipped: set[int]
) -> None:
    await session.schedules.add("often", "* * * * *", "t", missed=missed)
    start = await due(db, session, "often", HOUR)
    added = await board.schedules.fire_due()
    schedule = await session.schedules.get("often")
    # The minute may turn while this runs.
    assert len(added) in fired
    assert (schedule.fired, schedule.fired + schedule.skipped in {61, 62}) == (len(added), True)
    assert schedule.skipped in skipped
    assert [one.planned_at for one in added] == sorted(one.planned_at for one in added)
    assert schedule.next_at > datetime.now(UTC) - MINUTE
    kinds = [(kind, data) for kind, _, data in await events(db, session) if kind != "updated"][1:]
    assert sum(kind == "fired" for kind, _ in kinds) == len(added)
    if missed != "all":
        kind, data = kinds[0]
        assert (kind, data["count"], data["skipped"]) == ("skipped", schedule.skipped, schedule.skipped)
        assert datetime.fromisoformat(data["from"]) == start
    assert len(await session.tasks.list(limit=200)) == len(added)


async def test_one_that_is_only_a_little_late_is_not_missed(session: Any, board: Blackboard, db: Any) -> None:
    now = datetime.now(UTC)
    await session.schedules.add("yearly", "0 0 1 1 *", "t", missed="skip")
    await db.execute("UPDATE blackboard.schedules SET next_at = $1", now - timedelta(seconds=30))
    assert len(await board.schedules.fire_due()) == 1
    await db.execute("UPDATE blackboard.schedules SET next_at = $1", now - timedelta(seconds=90))
    assert await board.schedules.fire_due() == []
    assert (await session.schedules.get("yearly")).skipped == 1


async def test_pausing_resuming_removing(session: Any, board: Blackboard, clock: Any, db: Any) -> None:
    schedule = await session.schedules.add("s", "0 * * * *", "t", missed="all")
    assert (await session.schedules.pause("s")).paused is True
    assert (await session.schedules.pause(schedule.id)).paused is True
    await clock.advance(5 * HOUR)
    assert await board.schedules.fire_due() == []
    assert await board.schedules.seconds_to_next() is None
    upcoming = await session.schedules.next_times("s", 2)
    resumed = await session.schedules.resume("s")
    assert (resumed.paused, [resumed.next_at, resumed.next_at + HOUR]) == (False, upcoming)
    assert await session.schedules.resume("s") == resumed
    assert await board.schedules.fire_due() == []
    assert await session.schedules.next_times(str(schedule.id), 3) == [resumed.next_at + n * HOUR for n in range(3)]
    removed = await session.schedules.remove("s")
    assert removed.removed_at is not None
    assert await session.schedules.remove(schedule.id) == removed
    await clock.advance(5 * HOUR)
    assert await board.schedules.fire_due() == []
    assert await session.schedules.list() == []
    assert (await session.schedules.get(schedule.id)).removed_at is not None
    again = await session.schedules.add("s", "@daily", "t")
    assert again.id != schedule.id
    assert [kind for kind, _, _ in await events(db, session)] == ["added", "paused", "resumed", "removed", "added"]
    for verb in (session.schedules.pause, session.schedules.resume):
        with pytest.raises(NotFound):
            await verb(schedule.id)
    for unknown in ("x", uuid4(), str(uuid4())):
        for verb in (session.schedules.get, session.schedules.remove, session.schedules.next_times):
            with pytest.raises(NotFound):
                await verb(unknown)
    with pytest.raises(InvalidInput):
        await session.schedules.next_times("s", 0)


async def test_a_paused_or_closed_session_fires_nothing(session: Any, board: Blackboard, db: Any) -> None:
    await session.schedules.add("s", "0 * * * *", "t", missed="once")
    await due(db, session, "s", 5 * HOUR)
    await session.pause()
    assert await board.schedules.fire_due() == []
    await session.resume()
    assert len(await board.schedules.fire_due()) == 1
    await due(db, session, "s", 5 * HOUR)
    await session.close()
    assert await board.schedules.fire_due() == []
    for call in (session.schedules.add("t", "@daily", "t"), session.schedules.pause("s")):
        with pytest.raises(SessionClosed):
            await call
    assert (await session.schedules.remove("s")).removed_at is not None


async def test_only_in_the_sessions_that_were_named(session: Any, board: Blackboard, db: Any) -> None:
    other = await board.start("other")
    for one in (session, other):
        await one.schedules.add("s", "0 * * * *", "t")
        await due(db, one, "s", HOUR)
    assert [one.session_id for one in await board.schedules.fire_due(sessions=[other.id])] == [other.id]
    assert await board.schedules.fire_due(sessions=[]) == []
    assert (await board.schedules.seconds_to_next(sessions=[other.id]) or 0) > 0
    assert (await board.schedules.seconds_to_next(sessions=[session.id]) or 0) < 0
    assert [one.session_id for one in await board.schedules.fire_due()] == [session.id]
    for limit in (0, 10_001):
        with pytest.raises(InvalidInput):
            await board.schedules.fire_due(limit)


async def test_the_limit_counts_schedules(session: Any, board: Blackboard, db: Any) -> None:
    for n in range(25):
        await session.schedules.add(f"s{n}", "0 * * * *", "t")
        await due(db, session, f"s{n}", HOUR)
    assert len(await board.schedules.fire_due(12)) == 12
    assert len(await board.schedules.fire_due()) == 13


async def test_what_cannot_be_fired_is_paused_with_the_reason(session: Any, board: Blackboard, db: Any) -> None:
    for name, change in (
        ("cron", "cron = 'whenever'"),
        ("zone", "timezone = 'Mars'"),
        ("task", "options = '{\"retry_delay\": \"1 second\"}', parameters = '{}'"),
        ("fine", "priority = 1"),
    ):
        await session.schedules.add(name, "0 * * * *", "t")
        await due(db, session, name, HOUR)
        await db.execute(f"UPDATE blackboard.schedules SET {change} WHERE name = '{name}'")
    # A task under the id that the firing would use, of which the limits say otherwise.
    await db.execute("ALTER TABLE blackboard.tasks ADD CONSTRAINT no_such CHECK (type <> 'refused') NOT VALID")
    await db.execute("UPDATE blackboard.schedules SET type = 'refused' WHERE name = 'task'")
    try:
        (firing,) = await board.schedules.fire_due()
    finally:
        await db.execute("ALTER TABLE blackboard.tasks DROP CONSTRAINT no_such")
    assert firing.name == "fine"
    found = {one.name: one for one in await session.schedules.list()}
    assert {name: one.paused for name, one in found.items()} == {
        "cron": True,
        "zone": True,
        "task": True,
        "fine": False,
    }
    assert "five fields" in found["cron"].error
    assert "no time zone 'Mars'" in found["zone"].error
    assert "no_such" in found["task"].error
    paused = [data for kind, _, data in await events(db, session) if kind == "paused"]
    assert len(paused) == 3
    assert all(data["error"] for data in paused)
    with pytest.raises(InvalidInput):
        await session.schedules.resume("cron")
    assert (await session.schedules.resume("task")).error is None


async def test_a_planned_time_has_one_task_also_when_time_is_turned_back(
    session: Any, board: Blackboard, db: Any
) -> None:
    await session.schedules.add("s", "0 * * * *", "t", missed="all")
    start = await due(db, session, "s", 3 * HOUR)
    first = await board.schedules.fire_due()
    await db.execute("UPDATE blackboard.schedules SET next_at = $1", start)
    assert await board.schedules.fire_due() == []
    assert {task.id for task in await session.tasks.list()} == {one.task_id for one in first}
    assert (await session.schedules.get("s")).fired == 2 * len(first)


async def test_the_same_id_adds_once(session: Any) -> None:
    key = uuid4()
    first = await session.schedules.add("s", "@daily", "t", {"a": 1}, id=key)
    assert await session.schedules.add("s", "@daily", "t", {"a": 1}, id=str(key)) == first
    for change in ({"missed": "all"}, {"timezone": "Europe/Berlin"}, {"priority": 4}):
        with pytest.raises(IdempotencyConflict):
            await session.schedules.add("s", "@daily", "t", {"a": 1}, id=key, **change)
    with pytest.raises(AlreadyExists) as caught:
        await session.schedules.add("s", "@daily", "t")
    assert caught.value.field == "name"


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"name": ""}, "name"),
        ({"cron": "0 0 * * * *"}, "cron"),
        ({"cron": ""}, "cron"),
        ({"timezone": "Mars"}, "timezone"),
        ({"type": ""}, "type"),
        ({"parameters": float("nan")}, "parameters"),
        ({"missed": "never"}, "missed"),
        ({"priority": 11}, "priority"),
        ({"capability": "x" * 101}, "capability"),
        ({"assigned_to": ""}, "assigned_to"),
        ({"timeout": timedelta(0)}, "options"),
        ({"timeout": timedelta(days=3651)}, "options"),
        ({"fallback": HOUR}, "fallback"),
        ({"limit_key": ""}, "limit_key"),
        ({"max_attempts": 0}, "options"),
        ({"retry_delay": timedelta(days=31)}, "options"),
        ({"id": "x"}, "id"),
    ],
)
async def test_refused_schedules(session: Any, arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await session.schedules.add(**{"name": "s", "cron": "@daily", "type": "t", **arguments})
    assert caught.value.field == field


async def test_options_of_the_task(session: Any, board: Blackboard, db: Any) -> None:
    await session.join("ops/a")
    await session.schedules.add("a", "0 * * * *", "t", assigned_to="ops/a", fallback=HOUR, limit_key="orders")
    await session.schedules.add("b", "0 * * * *", "t", requires_approval=True)
    for name in "ab":
        await due(db, session, name, MINUTE)
    await board.schedules.fire_due()
    tasks = {task.created_by: task for task in await session.tasks.list()}
    assert (tasks["schedule:a"].status, tasks["schedule:a"].assigned_to) == ("assigned", "ops/a")
    assert (tasks["schedule:a"].fallback, tasks["schedule:a"].limit_key) == (HOUR, "orders")
    assert tasks["schedule:b"].status == "awaiting_approval"


async def refused(db: Any, sql: str, *arguments: Any) -> asyncpg.PostgresError:
    with pytest.raises(asyncpg.PostgresError) as caught:
        await db.execute(sql, *arguments)
    return caught.value


def insert(columns: dict[str, str]) -> str:
    full = {"name": "'s'", "cron": "'@daily'", "type": "'t'", **columns}
    return f"INSERT INTO blackboard.schedules (session_id, {', '.join(full)}) VALUES ($1, {', '.join(full.values())})"


@pytest.mark.parametrize(
    ("constraint", "columns"),
    [
        ("schedules_capability_length", {"capability": "repeat('x', 101)"}),
        ("schedules_cron_length", {"cron": "''"}),
        ("schedules_error_length", {"error": "repeat('x', 10001)", "paused": "true"}),
        ("schedules_error_when_paused", {"error": "'x'"}),
        ("schedules_fired_range", {"fired": "-1"}),
        ("schedules_last_task_iff_fired", {"fired": "1"}),
        ("schedules_last_task_iff_fired", {"last_at": "now()"}),
        ("schedules_missed_known", {"missed": "'never'"}),
        ("schedules_name_length", {"name": "''"}),
        ("schedules_options_fit", {"options": "'[]'"}),
        ("schedules_options_fit", {"options": """'{"depends_on": []}'"""}),
        ("schedules_options_fit", {"options": """'{"max_attempts": 0}'"""}),
        ("schedules_options_fit", {"options": """'{"timeout": "-1 s"}'"""}),
        ("schedules_options_fit", {"options": """'{"timeout": "3651 days"}'"""}),
        ("schedules_options_fit", {"options": """'{"unique": {"key": "k"}}'"""}),
        ("schedules_options_fit", {"options": """'{"expires_at": "2099-01-01T00:00:00Z"}'"""}),
        ("schedules_parameters_size", {"parameters": _BIG}),
        ("schedules_priority_range", {"priority": "11"}),
        ("schedules_skipped_range", {"skipped": "-1"}),
        ("schedules_timezone_length", {"timezone": "''"}),
        ("schedules_type_length", {"type": "''"}),
    ],
)  # fmt: skip
async def test_each_constraint(session: Any, db: Any, constraint: str, columns: dict[str, str]) -> None:
    error = await refused(db, insert(columns), session.id)
    assert error.constraint_name == constraint
    kind, field, message = CONSTRAINTS[constraint]
    answer = from_sqlstate(error.sqlstate, str(error), constraint=constraint)
    assert (type(answer), answer.field) == (kind, field)
    assert message.endswith(".")


async def test_keys_and_plain_sql(session: Any, db: Any) -> None:
    key = "'00000000-0000-0000-0000-000000000001'"
    await db.execute(insert({"id": key}), session.id)
    for constraint, columns in (("schedules_pkey", {"id": key, "name": "'t'"}), ("schedules_name_once", {})):
        error = await refused(db, insert(columns), session.id)
        assert error.constraint_name == constraint
        assert constraint in CONSTRAINTS
    error = await refused(db, insert({"name": "'u'"}), uuid4())
    assert error.constraint_name == "schedules_session_known"
    assert "schedules_session_known" in CONSTRAINTS
    assert (await refused(db, insert({"name": "'v'", "skipped": "2"}), session.id)).sqlstate == "BB003"
    await db.execute("UPDATE blackboard.schedules SET skipped = 2, cron = '@hourly' WHERE session_id = $1", session.id)
    for change in ("skipped = 1", "id = gen_random_uuid()"):
        assert (await refused(db, f"UPDATE blackboard.schedules SET {change}")).sqlstate == "BB003", change
    await db.execute("UPDATE blackboard.schedules SET removed_at = now()")
    for change in ("removed_at = NULL", "cron = '@daily'"):
        assert (await refused(db, f"UPDATE blackboard.schedules SET {change}")).sqlstate == "BB003", change
    assert (await refused(db, "TRUNCATE blackboard.schedules")).sqlstate == "BB005"
    await db.execute("DELETE FROM blackboard.schedules")
    assert [kind for kind, _, _ in await events(db, session)] == ["added", "skipped", "removed", "deleted"]
    await session.close()
    assert (await refused(db, insert({}), session.id)).sqlstate == "BB007"


def test_the_blocking_twin(database_url: str) -> None:
    with SyncBlackboard.open(database_url) as board:
        session = board.start("s")
        session.schedules.add("nightly", "@daily", "report", timezone="America/New_York")
        assert board.schedules.fire_due() == []
        assert len(session.schedules.next_times("nightly", 5)) == 5
        assert (board.schedules.seconds_to_next() or 0) > 0
        session.schedules.pause("nightly")
        assert session.schedules.resume("nightly").next_at is not None
