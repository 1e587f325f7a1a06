"""The three tables of the source document, used by somebody who knows only their CREATE TABLE statements."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeAlias

import asyncpg
import psycopg
import pytest

from blackboard import Agent, Session

from .conftest import Clock

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def stranger(database_url: str) -> AsyncIterator[Connection]:
    """A connection that sees nothing but the seed's names."""
    connection = await asyncpg.connect(database_url, server_settings={"search_path": "blackboard"})
    yield connection
    await connection.close(timeout=2)


@pytest.fixture
async def seeded(stranger: Connection) -> uuid.UUID:
    """A session made by hand."""
    return await stranger.fetchval("""INSERT INTO agent_sessions (context) VALUES ('{"task": "x"}') RETURNING id""")


async def refused(connection: Connection, sql: str, *args: Any) -> asyncpg.PostgresError:
    with pytest.raises(asyncpg.PostgresError) as error:
        await connection.execute(sql, *args)
    return error.value


async def events(connection: Connection, subject: uuid.UUID) -> list[tuple[str, str]]:
    rows = await connection.fetch("SELECT type, actor FROM events WHERE subject_id = $1 ORDER BY seq", subject)
    return [(row["type"], row["actor"]) for row in rows]


async def kinds(connection: Connection, subject: uuid.UUID) -> list[str]:
    return [kind for kind, _ in await events(connection, subject)]


# ---------------------------------------------------------------------------------------------------- sessions


async def test_a_session_has_the_seeds_columns_and_defaults(stranger: Connection) -> None:
    row = await stranger.fetchrow('INSERT INTO agent_sessions (context) VALUES (\'{"task": "INC-1234"}\') RETURNING *')
    assert row is not None
    assert set(row.keys()) == {"id", "created_at", "context", "status"}
    assert row["status"] == "active"
    assert json.loads(row["context"]) == {"task": "INC-1234"}
    assert (
        await stranger.fetchval("SELECT context ->> 'task' FROM agent_sessions WHERE id = $1", row["id"]) == "INC-1234"
    )
    assert await kinds(stranger, row["id"]) == ["session.started"]


async def test_sessions_in_one_statement_and_with_own_ids(stranger: Connection) -> None:
    mine = uuid.uuid4()
    rows = await stranger.fetch(
        "INSERT INTO agent_sessions (id, context, status) VALUES ($1, '{}', 'active'), ($2, '[]', 'paused') RETURNING id, status",
        mine, uuid.uuid4(),
    )  # fmt: skip
    assert [row["status"] for row in rows] == ["active", "paused"]
    assert rows[0]["id"] == mine
    again = await refused(stranger, "INSERT INTO agent_sessions (id, context) VALUES ($1, '{}')", mine)
    assert again.sqlstate == "23505"


async def test_nulls_have_the_defaults_and_context_is_required(stranger: Connection) -> None:
    row = await stranger.fetchrow(
        "INSERT INTO agent_sessions (id, created_at, context, status) VALUES (NULL, NULL, '{}', NULL) RETURNING *"
    )
    assert row is not None
    assert row["id"] is not None
    assert row["created_at"] is not None
    assert row["status"] == "active"
    assert (await refused(stranger, "INSERT INTO agent_sessions (status) VALUES ('active')")).sqlstate == "23502"
    session = row["id"]
    task = await stranger.fetchrow(
        "INSERT INTO agent_tasks (id, session_id, task_type, parameters, status, created_at) "
        "VALUES (NULL, $1, 't', NULL, NULL, NULL) RETURNING *",
        session,
    )
    assert task is not None
    assert (task["status"], json.loads(task["parameters"])) == ("pending", {})
    finding = await stranger.fetchrow(
        "INSERT INTO agent_findings (id, session_id, agent_id, finding_type, content, confidence) "
        "VALUES (NULL, $1, 'a', 't', '{}', NULL) RETURNING *",
        session,
    )
    assert finding is not None
    assert finding["confidence"] is None
    for sql, state in (
        ("INSERT INTO agent_tasks (task_type) VALUES ('t')", "BB002"),
        ("INSERT INTO agent_findings (agent_id, finding_type, content) VALUES ('a', 't', '{}')", "BB002"),
    ):
        assert (await refused(stranger, sql)).sqlstate == state
    for columns, values in (
        ("session_id", "$1"),
        ("session_id, agent_id, finding_type", "$1, 'a', 't'"),
        ("session_id, agent_id, content", "$1, 'a', '{}'"),
        ("session_id, finding_type, content", "$1, 't', '{}'"),
    ):
        table = "agent_tasks" if columns == "session_id" else "agent_findings"
        error = await refused(stranger, f"INSERT INTO {table} ({columns}) VALUES ({values})", session)
        assert error.sqlstate in ("23502", "BB002"), (columns, error)


async def test_a_session_is_changed_paused_and_closed_through_the_view(stranger: Connection, seeded: uuid.UUID) -> None:
    task = await stranger.fetchval(
        "INSERT INTO agent_tasks (session_id, task_type) VALUES ($1, 't') RETURNING id", seeded
    )
    await stranger.execute("UPDATE agent_sessions SET context = context || '{\"more\": 1}' WHERE id = $1", seeded)
    await stranger.execute("UPDATE agent_sessions SET status = 'paused' WHERE id = $1", seeded)
    await stranger.execute("UPDATE agent_sessions SET status = 'active' WHERE id = $1", seeded)
    assert await stranger.execute("UPDATE agent_sessions SET status = 'completed' WHERE id = $1", seeded) == "UPDATE 1"
    assert await kinds(stranger, seeded) == [
        "session.started", "session.updated", "session.paused", "session.resumed", "session.completed",
    ]  # fmt: skip
    assert await stranger.fetchval("SELECT status FROM agent_tasks WHERE id = $1", task) == "cancelled"
    assert (await refused(stranger, "UPDATE agent_sessions SET status = 'active'")).sqlstate == "BB003"
    for sql in (
        "INSERT INTO agent_tasks (session_id, task_type) VALUES ($1, 't')",
        "INSERT INTO agent_findings (session_id, agent_id, finding_type, content) VALUES ($1, 'a', 't', '{}')",
    ):
        assert (await refused(stranger, sql, seeded)).sqlstate == "BB007"


async def test_what_a_session_cannot_be(stranger: Connection, seeded: uuid.UUID) -> None:
    assert (
        await refused(stranger, "INSERT INTO agent_sessions (context, status) VALUES ('{}', 'sleeping')")
    ).sqlstate == "23514"
    assert (await refused(stranger, "UPDATE agent_sessions SET status = 'sleeping'")).sqlstate == "23514"
    assert (await refused(stranger, "UPDATE agent_sessions SET id = gen_random_uuid()")).sqlstate == "BB002"
    assert (
        await refused(stranger, "INSERT INTO agent_sessions (context, status) VALUES ('{}', $1)", "x" * 51)
    ).sqlstate == "22001"
    assert await kinds(stranger, seeded) == ["session.started"]


# ---------------------------------------------------------------------------------------------------- findings


async def test_findings_with_the_seeds_columns(stranger: Connection, seeded: uuid.UUID) -> None:
    rows = await stranger.fetch(
        "INSERT INTO agent_findings (session_id, agent_id, finding_type, content, confidence) VALUES "
        "($1, 'ops/deploy-validator', 'deployment', '{\"version\": \"v1.2.3\"}', 0.9), "
        "($1, 'security/incident-response-lead', 'correlation', '\"error rate\"', NULL) RETURNING *",
        seeded,
    )
    assert [row["agent_id"] for row in rows] == ["ops/deploy-validator", "security/incident-response-lead"]
    assert [row["confidence"] for row in rows] == [0.9, None]
    for row in rows:
        assert await events(stranger, row["id"]) == [("finding.reported", row["agent_id"])]
    found = await stranger.fetch("SELECT * FROM agent_findings WHERE session_id = $1 AND confidence > 0.5", seeded)
    assert [row["id"] for row in found] == [rows[0]["id"]]


async def test_the_second_report_of_the_same_thing_is_a_corroboration(stranger: Connection, seeded: uuid.UUID) -> None:
    insert = (
        "INSERT INTO agent_findings (session_id, agent_id, finding_type, content, confidence) "
        "VALUES ($1, $2, 'deployment', '{\"v\": 1}', 0.9) RETURNING id, agent_id"
    )
    first = await stranger.fetchrow(insert, seeded, "a/one")
    second = await stranger.fetchrow(insert, seeded, "a/two")
    assert first is not None
    assert second is not None
    assert (second["id"], second["agent_id"]) == (first["id"], "a/one"), "RETURNING names the row that was there"
    assert await stranger.fetchval("SELECT count(*) FROM agent_findings") == 1
    assert await stranger.fetchval("SELECT corroborations FROM findings") == 1
    assert "finding.corroborated" in await kinds(stranger, first["id"])


async def test_a_finding_is_updated_through_the_view(stranger: Connection, seeded: uuid.UUID) -> None:
    finding = await stranger.fetchval(
        "INSERT INTO agent_findings (session_id, agent_id, finding_type, content) VALUES ($1, 'a', 't', '1') RETURNING id",
        seeded,
    )
    await stranger.execute("UPDATE agent_findings SET confidence = 0.4, content = '2' WHERE id = $1", finding)
    row = await stranger.fetchrow("SELECT confidence, content FROM agent_findings")
    assert row is not None
    assert (row["confidence"], row["content"]) == (0.4, "2")
    assert await kinds(stranger, finding) == ["finding.reported", "finding.updated"]
    for change in ("confidence = 1.5", "confidence = 'NaN'", "confidence = -0.1"):
        assert (await refused(stranger, f"UPDATE agent_findings SET {change}")).sqlstate == "23514"
    error = await refused(stranger, "UPDATE agent_findings SET id = gen_random_uuid()")
    assert error.sqlstate == "BB012"


@pytest.mark.parametrize(
    ("columns", "state"),
    [
        ("gen_random_uuid(), 'a', 't', '1', 0.5", "BB001"),
        ("$1, 'a', 't', '1', 'NaN'", None),
        ("$1, 'a', 't', '1', 2", None),
        ("$1, repeat('a', 101), 't', '1', 0.5", "22001"),
        ("$1, 'a', repeat('t', 51), '1', 0.5", "22001"),
        ("$1, '', 't', '1', 0.5", None),
        ("$1, 'a', '', '1', 0.5", None),
    ],
)
async def test_findings_that_are_refused(
    stranger: Connection, seeded: uuid.UUID, columns: str, state: str | None
) -> None:
    sql = f"INSERT INTO agent_findings (session_id, agent_id, finding_type, content, confidence) SELECT {columns}"
    error = await refused(stranger, sql, *([seeded] if "$1" in columns else []))
    assert error.sqlstate in ([state] if state else ["23514", "BB002"])
    assert await stranger.fetchval("SELECT count(*) FROM agent_findings") == 0


# ------------------------------------------------------------------------------------------------------- tasks


async def add(stranger: Connection, session: uuid.UUID, columns: str = "", values: str = "") -> uuid.UUID:
    return await stranger.fetchval(
        f"INSERT INTO agent_tasks (session_id, task_type{columns}) VALUES ($1, 'investigate'{values}) RETURNING id",
        session,
    )


async def test_a_task_by_hand_from_beginning_to_end(stranger: Connection, seeded: uuid.UUID) -> None:
    row = await stranger.fetchrow(
        "INSERT INTO agent_tasks (session_id, task_type, parameters) VALUES ($1, 'investigate', '{\"target\": \"api\"}') RETURNING *",
        seeded,
    )
    assert row is not None
    assert set(row.keys()) == {
        "id", "session_id", "assigned_to", "task_type", "parameters", "status", "result", "created_at", "completed_at",
    }  # fmt: skip
    assert (row["status"], row["assigned_to"], row["result"], row["completed_at"]) == ("pending", None, None, None)
    update = (
        "UPDATE agent_tasks SET status = $2, assigned_to = 'ops/architect' WHERE id = $1 RETURNING status, assigned_to"
    )
    for status in ("assigned", "running"):
        changed = await stranger.fetchrow(update, row["id"], status)
        assert changed is not None
        assert tuple(changed) == (status, "ops/architect")
    done = await stranger.fetchrow(
        "UPDATE agent_tasks SET status = 'completed', result = '{\"found\": true}', completed_at = NOW() WHERE id = $1 RETURNING *",
        row["id"],
    )
    assert done is not None
    assert (done["status"], json.loads(done["result"])) == ("completed", {"found": True})
    assert done["completed_at"] is not None
    assert await kinds(stranger, row["id"]) == ["task.created", "task.reserved", "task.assigned", "task.completed"]
    assert (await events(stranger, row["id"]))[-1][1] == "ops/architect"


async def test_nobody_needs_to_be_registered(stranger: Connection, seeded: uuid.UUID) -> None:
    task = await add(stranger, seeded, ", assigned_to", ", 'who/ever'")
    assert await stranger.fetchval("SELECT status FROM agent_tasks WHERE id = $1", task) == "assigned"
    await stranger.execute("UPDATE agent_tasks SET status = 'running' WHERE id = $1", task)
    assert await stranger.fetchval("SELECT assigned_to FROM agent_tasks WHERE id = $1", task) == "who/ever"
    anonymous = await add(stranger, seeded)
    await stranger.execute("UPDATE agent_tasks SET status = 'running' WHERE id = $1", anonymous)
    user = await stranger.fetchval("SELECT session_user")
    assert await stranger.fetchval("SELECT assigned_to FROM agent_tasks WHERE id = $1", anonymous) == user
    assert await stranger.fetchval("SELECT count(*) FROM agents") == 0


async def test_a_running_task_by_hand_goes_back_after_a_fixed_term(
    stranger: Connection, seeded: uuid.UUID, clock: Clock
) -> None:
    task = await add(stranger, seeded)
    await stranger.execute("UPDATE agent_tasks SET status = 'running', assigned_to = 'a' WHERE id = $1", task)
    await clock.advance(timedelta(minutes=14))
    await stranger.execute("SELECT tend_leases()")
    assert await stranger.fetchval("SELECT status FROM agent_tasks WHERE id = $1", task) == "running"
    await clock.advance(timedelta(minutes=2))
    await stranger.execute("SELECT tend_leases()")
    assert await stranger.fetchval("SELECT status FROM agent_tasks WHERE id = $1", task) == "pending"


@pytest.mark.parametrize(("status", "last"), [("completed", "task.completed"), ("failed", "task.failed")])
async def test_a_pending_task_is_ended_at_once(stranger: Connection, seeded: uuid.UUID, status: str, last: str) -> None:
    task = await add(stranger, seeded)
    await stranger.execute("UPDATE agent_tasks SET status = $2, result = '1' WHERE id = $1", task, status)
    assert await stranger.fetchval("SELECT status FROM agent_tasks WHERE id = $1", task) == status
    assert await kinds(stranger, task) == ["task.created", "task.assigned", last]
    again = "UPDATE agent_tasks SET status = 'running' WHERE id = $1"
    assert (await refused(stranger, again, task)).sqlstate == "BB003"


async def test_back_to_pending_cancelled_and_results_alone(stranger: Connection, seeded: uuid.UUID) -> None:
    task = await add(stranger, seeded)
    await stranger.execute("UPDATE agent_tasks SET status = 'running' WHERE id = $1", task)
    await stranger.execute("UPDATE agent_tasks SET result = '{\"partly\": 1}' WHERE id = $1", task)
    assert json.loads(await stranger.fetchval("SELECT result FROM agent_tasks WHERE id = $1", task)) == {"partly": 1}
    await stranger.execute("UPDATE agent_tasks SET status = 'pending' WHERE id = $1", task)
    await stranger.execute("UPDATE agent_tasks SET parameters = '{\"x\": 1}' WHERE id = $1", task)
    await stranger.execute("UPDATE agent_tasks SET status = 'cancelled' WHERE id = $1", task)
    assert await kinds(stranger, task) == [
        "task.created", "task.assigned", "task.updated", "task.released", "task.updated", "task.cancelled",
    ]  # fmt: skip


async def test_assigning_and_unassigning(stranger: Connection, seeded: uuid.UUID) -> None:
    task = await add(stranger, seeded)
    status = "SELECT status FROM agent_tasks WHERE id = $1"
    await stranger.execute("UPDATE agent_tasks SET assigned_to = 'a' WHERE id = $1", task)
    assert await stranger.fetchval(status, task) == "assigned"
    await stranger.execute("UPDATE agent_tasks SET assigned_to = NULL WHERE id = $1", task)
    assert await stranger.fetchval(status, task) == "pending"
    error = await refused(stranger, "UPDATE agent_tasks SET status = 'assigned' WHERE id = $1", task)
    assert error.as_dict()["constraint_name"] == "tasks_assignee_when_assigned"
    await stranger.execute("UPDATE agent_tasks SET status = 'completed' WHERE id = $1", task)
    assert (await refused(stranger, "UPDATE agent_tasks SET assigned_to = 'b' WHERE id = $1", task)).sqlstate == "BB003"


@pytest.mark.parametrize(
    "status", ["running", "completed", "failed", "cancelled", "sleeping", "dead", "held", "blocked"]
)
async def test_a_task_is_not_born_in_another_status(stranger: Connection, seeded: uuid.UUID, status: str) -> None:
    error = await refused(
        stranger, "INSERT INTO agent_tasks (session_id, task_type, status) VALUES ($1, 't', $2)", seeded, status
    )
    assert error.sqlstate == "BB003"


@pytest.mark.parametrize("status", ["sleeping", "dead", "held", "blocked", "scheduled", "awaiting_approval"])
async def test_a_status_that_is_not_the_seeds_is_refused(stranger: Connection, seeded: uuid.UUID, status: str) -> None:
    task = await add(stranger, seeded)
    assert (
        await refused(stranger, "UPDATE agent_tasks SET status = $2 WHERE id = $1", task, status)
    ).sqlstate == "BB003"
    assert (
        await refused(stranger, "UPDATE agent_tasks SET status = $2 WHERE id = $1", task, "x" * 51)
    ).sqlstate == "22001"
    assert await kinds(stranger, task) == ["task.created"]


@pytest.mark.parametrize(
    "change",
    ["status = 'completed'", "status = 'failed'", "status = 'pending'", "status = 'assigned', assigned_to = 'b'",
     "result = '1'", "assigned_to = 'b'"],
)  # fmt: skip
async def test_what_a_live_agent_holds_is_not_touched(stranger: Connection, session: Session, change: str) -> None:
    agent: Agent = await session.join("ops/live")
    await session.tasks.add("t")
    [task] = await agent.tasks.claim()
    error = await refused(stranger, f"UPDATE agent_tasks SET {change} WHERE id = $1", task.id)
    assert error.sqlstate == "BB006"
    await agent.tasks.complete(task, 1)


async def test_cancelling_asks_a_live_holder(stranger: Connection, session: Session) -> None:
    agent = await session.join("ops/live")
    await session.tasks.add("t")
    [task] = await agent.tasks.claim()
    status = await stranger.fetchval(
        "UPDATE agent_tasks SET status = 'cancelled' WHERE id = $1 RETURNING status", task.id
    )
    assert status == "running", "RETURNING tells that it still runs"
    assert (await agent.tasks.progress(task, 1)).cancel_requested


async def test_of_two_that_take_one_pending_task_one_does(
    stranger: Connection, seeded: uuid.UUID, database_url: str, blocked: Callable[[int], Awaitable[None]]
) -> None:
    task = await add(stranger, seeded)
    take = "UPDATE agent_tasks SET status = 'running', assigned_to = $2 WHERE id = $1 AND status = 'pending'"
    other = await asyncpg.connect(database_url, server_settings={"search_path": "blackboard"})
    try:
        transaction = stranger.transaction()
        await transaction.start()
        assert await stranger.execute(take, task, "a") == "UPDATE 1"
        second = asyncio.ensure_future(other.execute(take, task, "b"))
        await blocked(other.get_server_pid())
        await transaction.commit()
        assert await second == "UPDATE 0"
        assert await other.fetchval("SELECT assigned_to FROM agent_tasks WHERE id = $1", task) == "a"
    finally:
        await other.close()


async def test_the_usual_queue_idiom_works(stranger: Connection, seeded: uuid.UUID, database_url: str) -> None:
    for _ in range(10):
        await add(stranger, seeded)
    taken: list[uuid.UUID] = []

    async def work(name: str) -> None:
        own = await asyncpg.connect(database_url, server_settings={"search_path": "blackboard"})
        try:
            while True:
                async with own.transaction():
                    task = await own.fetchval(
                        "SELECT id FROM agent_tasks WHERE session_id = $1 AND status = 'pending' LIMIT 1 FOR UPDATE SKIP LOCKED",
                        seeded,
                    )
                    if task is None:
                        return
                    await own.execute(
                        "UPDATE agent_tasks SET status = 'running', assigned_to = $2 WHERE id = $1", task, name
                    )
                    taken.append(task)
        finally:
            await own.close()

    await asyncio.gather(*(work(f"w/{n}") for n in range(4)))
    assert len(taken) == len(set(taken)) == 10


async def test_many_rows_in_one_update(stranger: Connection, seeded: uuid.UUID) -> None:
    await stranger.execute(
        "INSERT INTO agent_tasks (session_id, task_type) SELECT $1, 't' FROM generate_series(1, 5)", seeded
    )
    assert await stranger.execute("UPDATE agent_tasks SET status = 'completed', result = '1'") == "UPDATE 5"
    assert await stranger.fetchval("SELECT count(*) FROM events WHERE type = 'task.completed'") == 5
    assert (await refused(stranger, "UPDATE agent_tasks SET task_type = 'u'")).sqlstate == "BB002"


async def test_a_paused_session_gives_out_nothing(stranger: Connection, seeded: uuid.UUID) -> None:
    task = await add(stranger, seeded)
    await stranger.execute("UPDATE agent_sessions SET status = 'paused'")
    assert (
        await refused(stranger, "UPDATE agent_tasks SET status = 'running' WHERE id = $1", task)
    ).sqlstate == "BB012"


async def test_rows_deleted_by_hand_leave_their_last_state(stranger: Connection, seeded: uuid.UUID) -> None:
    task = await add(stranger, seeded)
    assert await stranger.execute("DELETE FROM agent_tasks WHERE id = $1", task) == "DELETE 1"
    assert await kinds(stranger, task) == ["task.created", "task.deleted"]
    await stranger.execute("DELETE FROM agent_sessions WHERE id = $1", seeded)
    assert await kinds(stranger, seeded) == ["session.started", "session.deleted"]


async def test_what_strangers_write_the_handles_read(stranger: Connection, session: Session) -> None:
    agent = await session.join("ops/agent")
    task = await add(stranger, session.id)
    await stranger.execute(
        "INSERT INTO agent_findings (session_id, agent_id, finding_type, content) VALUES ($1, 'by/hand', 't', '\"seen\"')",
        session.id,
    )
    [claimed] = await agent.tasks.claim()
    assert claimed.id == task
    [finding] = await session.findings.list()
    assert (finding.agent_id, finding.content) == ("by/hand", "seen")
    assert [event.type for event in (await session.events.read(topics=["task.*"])).events] == [
        "task.created",
        "task.assigned",
    ]


def test_psycopg_reads_and_writes_them_too(database_url: str) -> None:
    with psycopg.connect(database_url, options="-c search_path=blackboard") as connection:
        row = connection.execute(
            "INSERT INTO agent_sessions (context) VALUES (%s) RETURNING id", ['{"a": 1}']
        ).fetchone()
        assert row is not None
        session = row[0]
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO agent_findings (session_id, agent_id, finding_type, content, confidence) VALUES (%s, %s, 't', %s, %s)",
                [(session, "a", f'{{"n": {n}}}', n / 10) for n in range(5)],
            )
            cursor.executemany("INSERT INTO agent_tasks (session_id, task_type) VALUES (%s, %s)", [(session, "t")] * 3)
        connection.execute("UPDATE agent_tasks SET status = 'completed', result = '[]'")
        connection.commit()
        with pytest.raises(psycopg.errors.StringDataRightTruncation):
            connection.execute("INSERT INTO agent_tasks (session_id, task_type) VALUES (%s, %s)", [session, "x" * 60])
        connection.rollback()
        counts = connection.execute(
            "SELECT (SELECT count(*) FROM agent_findings), (SELECT count(*) FROM agent_tasks WHERE status = 'completed')"
        ).fetchone()
    assert counts == (5, 3)
