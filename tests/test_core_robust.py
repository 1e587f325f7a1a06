"""What would stop a whole board, lose work, or rewrite history: deep flows, odd values, raw SQL, races, clocks."""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import Agent, Blackboard, Dependency, NewTask, Session
from blackboard.errors import CyclicDependency, InvalidInput, LeaseLost, SessionClosed, TransientError
from blackboard.ids import new_id

from .conftest import Clock, Connect

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def agent(steady: Session) -> Agent:
    return await steady.join("ops/worker")


async def refused(db: Connection, sql: str, *args: Any) -> asyncpg.PostgresError:
    with pytest.raises(asyncpg.PostgresError) as error:
        await db.execute(sql, *args)
    return error.value


async def hold(db: Connection, session: Session, term: str = "30 seconds") -> tuple[uuid.UUID, asyncpg.Record]:
    """A claim under a lease that no heartbeat renews."""
    lease_id = uuid.uuid4()
    await db.execute("SELECT blackboard.start_lease($1, 'elsewhere', 1, CAST($2::text AS interval))", lease_id, term)
    row = await db.fetchrow(
        "SELECT * FROM blackboard.claim_tasks($1, 'ops/silent', '{}', $2, $3, 1)", session.id, lease_id, uuid.uuid4()
    )
    assert row is not None
    return lease_id, row


# ---------------------------------------------------------------------------------------------- flows of any depth


async def test_a_chain_of_thousands_falls_in_one_step(session: Session, agent: Agent) -> None:
    ids = [new_id() for _ in range(3000)]
    await session.tasks.add_many(
        [NewTask(type="t", id=ids[n], depends_on=(ids[n - 1],) if n else ()) for n in range(len(ids))]
    )
    await session.tasks.cancel(ids[0])
    assert await session.tasks.count() == {"cancelled": len(ids)}
    last = await session.tasks.get(ids[-1])
    assert last.error["code"] == "dependency_failed"
    assert last.error["depends_on"] == [str(ids[-2])]


async def test_a_silent_owner_of_the_head_of_a_long_chain_stops_nobody(
    session: Session, agent: Agent, db: Connection, clock: Clock
) -> None:
    ids = [new_id() for _ in range(1500)]
    await session.tasks.add_many(
        [NewTask(type="t", id=ids[n], max_attempts=1, depends_on=(ids[n - 1],) if n else ()) for n in range(len(ids))]
    )
    await hold(db, session)
    other = await session.tasks.add("t")
    await clock.advance(timedelta(seconds=31))
    assert [task.id for task in await agent.tasks.claim()] == [other.id]
    assert await session.tasks.count() == {"running": 1, "dead": 1, "cancelled": len(ids) - 1}


async def test_a_task_that_is_added_after_its_parent_failed_never_runs(session: Session, agent: Agent) -> None:
    parent = await session.tasks.add("t")
    await session.tasks.cancel(parent.id)
    for options in ({}, {"assigned_to": agent.id}, {"requires_approval": True}):
        child = await session.tasks.add("t", depends_on=[parent.id], **options)
        assert (child.status, child.error["code"]) == ("cancelled", "dependency_failed")
    assert await agent.tasks.claim() == []
    lenient = await session.tasks.add("t", depends_on=[Dependency(id=parent.id, on_failure="continue")])
    assert [task.id for task in await agent.tasks.claim()] == [lenient.id]


async def test_a_dense_flow_is_checked_for_cycles_in_linear_time(session: Session) -> None:
    # 12 layers of 6, each task depends on the whole layer above: 6^11 paths.
    layers = [[new_id() for _ in range(6)] for _ in range(12)]
    began = time.monotonic()
    for n, layer in enumerate(layers):
        above = tuple(layers[n - 1]) if n else ()
        await session.tasks.add_many([NewTask(type="t", id=task, depends_on=above) for task in layer])
    batch = [[new_id() for _ in range(6)] for _ in range(12)]
    await session.tasks.add_many(
        [
            NewTask(type="t", id=task, depends_on=tuple(batch[n - 1]) if n else ())
            for n, layer in enumerate(batch)
            for task in layer
        ]
    )
    assert time.monotonic() - began < 60


async def test_a_cycle_at_the_end_of_a_long_chain_is_found(session: Session, db: Connection) -> None:
    ids = [new_id() for _ in range(400)]
    await session.tasks.add_many(
        [NewTask(type="t", id=ids[n], depends_on=(ids[n - 1],) if n else ()) for n in range(len(ids))]
    )
    below = await session.tasks.add("t", depends_on=[ids[-1]])
    error = await refused(
        db,
        "INSERT INTO blackboard.task_dependencies (session_id, task_id, depends_on_id) VALUES ($1, $2, $3)",
        session.id, ids[0], below.id,
    )  # fmt: skip
    assert error.sqlstate == "BB008"
    path = json.loads(error.detail or "")["path"]
    assert len(path) == len(ids) + 2
    assert path[0] == path[-1]
    with pytest.raises(CyclicDependency):
        x, y = new_id(), new_id()
        await session.tasks.add_many(
            [NewTask(type="t", id=x, depends_on=(y, ids[3])), NewTask(type="t", id=y, depends_on=(x,))]
        )


async def test_plain_ids_are_dependencies_for_sql_too(session: Session, db: Connection) -> None:
    parent = await session.tasks.add("t")
    row = await db.fetchrow(
        "SELECT * FROM blackboard.add_task($1, $2, 't', '', 5::smallint, '{}', $3::text::jsonb, 'x')",
        session.id, new_id(), json.dumps({"depends_on": [str(parent.id)]}),
    )  # fmt: skip
    assert row is not None
    assert (row["status"], row["blockers"]) == ("blocked", 1)


async def test_a_dependency_deleted_by_hand_frees_its_task(session: Session, db: Connection) -> None:
    parent = await session.tasks.add("t")
    child = await session.tasks.add("t", depends_on=[parent.id])
    await db.execute("DELETE FROM blackboard.task_dependencies WHERE task_id = $1", child.id)
    assert (await session.tasks.get(child.id)).status == "pending"
    types = [event.type for event in (await session.events.read(subject_id=child.id)).events]
    assert types[-2:] == ["task.dependency_removed", "task.ready"]


async def test_by_hand_only_the_policy_of_a_dependency_changes(session: Session, agent: Agent, db: Connection) -> None:
    parent = await session.tasks.add("t")
    child = await session.tasks.add("t", depends_on=[parent.id])
    for change in ("state = 'satisfied'", "depends_on_id = gen_random_uuid()", "task_id = depends_on_id"):
        error = await refused(db, f"UPDATE blackboard.task_dependencies SET {change} WHERE task_id = $1", child.id)
        assert error.sqlstate in ("BB012", "23514", "23503")
    await db.execute("UPDATE blackboard.task_dependencies SET on_failure = 'continue' WHERE task_id = $1", child.id)
    [task] = await agent.tasks.claim()
    await agent.tasks.fail(task, "x", retry=False)
    assert (await session.tasks.get(child.id)).status == "pending"
    assert "task.dependency_changed" in [event.type for event in (await session.events.read()).events]


async def test_a_task_that_got_a_dependency_while_it_ran_waits_when_it_is_handed_back(
    session: Session, agent: Agent, db: Connection, clock: Clock
) -> None:
    first = await session.tasks.add("first", priority=9)
    [running] = await agent.tasks.claim()
    late = await session.tasks.add("late", priority=1)
    insert = "INSERT INTO blackboard.task_dependencies (session_id, task_id, depends_on_id) VALUES ($1, $2, $3)"
    await db.execute(insert, session.id, first.id, late.id)
    assert (await agent.tasks.release(running)).status == "blocked"
    [other] = await agent.tasks.claim(5)
    assert other.id == late.id
    error = await refused(db, "UPDATE blackboard.tasks SET status = 'pending', position = 1 WHERE id = $1", first.id)
    assert error.as_dict()["constraint_name"] == "tasks_ready_is_unblocked"
    await agent.tasks.complete(other)
    [again] = await agent.tasks.claim()
    assert again.id == first.id


# ---------------------------------------------------------------------------------------------------- values


async def test_no_length_of_a_delay_or_timeout_stops_a_queue(session: Session, agent: Agent, db: Connection) -> None:
    with pytest.raises(InvalidInput) as refusal:
        await session.tasks.add("t", timeout=timedelta(days=100_000))
    assert refusal.value.field == "timeout"
    for delay in ("0", "1 second", "30 days"):
        for attempt in (1, 30, 1000, 2_000_000_000):
            found = await db.fetchval("SELECT blackboard.backoff($1::text::interval, $2)", delay, attempt)
            base = await db.fetchval("SELECT extract(epoch FROM $1::text::interval)::float8", delay)
            assert timedelta(0) <= found <= 1.5 * timedelta(seconds=max(3600.0, base))
    held = await session.tasks.add("t", max_attempts=1000, retry_delay=timedelta(days=30))
    [task] = await agent.tasks.claim()
    assert (await agent.tasks.fail(task, "x")).status == "scheduled"
    assert (await session.tasks.get(held.id)).run_at is not None


@pytest.mark.parametrize(
    "expertise", ['{"a": [0.5]}', '{"a": []}', '{"a": {"b": 1}}', '{"a": "1"}', '{"a": 2}', "[]", "1"]
)
async def test_expertise_that_is_no_weight_is_refused(db: Connection, expertise: str) -> None:
    error = await refused(db, "INSERT INTO blackboard.agents (id, expertise) VALUES ('x', $1::text::jsonb)", expertise)
    assert error.as_dict()["constraint_name"] == "agents_expertise_weights"


async def test_a_weight_too_small_for_a_double_counts_as_nothing(db: Connection) -> None:
    await db.execute("INSERT INTO blackboard.agents (id, expertise) VALUES ('x', '{\"a\": 1e-400, \"b\": 0.25}')")
    assert await db.fetchval("SELECT blackboard.expertise('x', 'a')") == 0
    assert await db.fetchval("SELECT blackboard.expertise('x', 'b')") == 0.25
    assert await db.fetchval("SELECT blackboard.expertise('x', 'c')") == 0.5


async def test_null_arguments_change_nothing_unasked(session: Session, agent: Agent, db: Connection) -> None:
    for _ in range(3):
        await session.tasks.add("t", assigned_to="ops/worker")
    lease = await session.scope.leases.current()
    claim = "SELECT * FROM blackboard.claim_tasks($1, 'ops/worker', NULL, $2, $3, NULL)"
    assert len(await db.fetch(claim, session.id, lease, uuid.uuid4())) == 1
    row = await db.fetchrow(claim, session.id, lease, uuid.uuid4())
    assert row is not None
    failed = await db.fetchrow(
        "SELECT * FROM blackboard.fail_task($1, $2, $3, $4, NULL, NULL, NULL, 'ops/worker')",
        session.id, row["id"], row["claim_id"], row["attempt"],
    )  # fmt: skip
    assert failed is not None
    assert failed["status"] == "scheduled"
    assert json.loads(failed["error"])["code"] == "failed"
    for call in (
        "blackboard.claim_tasks(NULL, NULL, NULL, NULL, NULL, NULL)",
        "blackboard.claim_task(NULL, NULL, NULL, NULL, NULL)",
        "blackboard.cancel_task(NULL, NULL, NULL, NULL)",
        "blackboard.decide_task(NULL, NULL, NULL, NULL, NULL)",
        "blackboard.redrive_task(NULL, NULL, NULL)",
        "blackboard.close_session(NULL, NULL, NULL, NULL)",
        "blackboard.update_session(NULL, NULL, NULL, NULL, NULL, NULL)",
        "blackboard.join_session(NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
        "blackboard.leave_session(NULL, NULL)",
        "blackboard.add_task(NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
        "blackboard.start_session(NULL, NULL, NULL, NULL, NULL, NULL)",
        "blackboard.start_lease(NULL, NULL, NULL, NULL)",
    ):
        error = await refused(db, f"SELECT * FROM {call}")
        assert error.sqlstate is not None
        assert error.sqlstate[:2] in ("BB", "23"), (call, error)
    assert await db.fetchval("SELECT blackboard.renew_lease(NULL)") is None
    assert await db.fetchval("SELECT blackboard.end_lease(NULL)") is False


# ------------------------------------------------------------------------------------------------- leases, clocks


async def test_a_claim_that_is_committed_after_its_lease_was_swept_is_not_lost(
    session: Session, agent: Agent, db: Connection, connect: Connect, clock: Clock
) -> None:
    added = await session.tasks.add("t")
    slow = await connect()
    transaction = slow.transaction()
    await transaction.start()
    lease_id = uuid.uuid4()
    await db.execute("SELECT blackboard.start_lease($1, 'elsewhere', 1, '30 seconds')", lease_id)
    await slow.execute(
        "SELECT * FROM blackboard.claim_tasks($1, 'ops/slow', '{}', $2, $3, 1)", session.id, lease_id, uuid.uuid4()
    )
    await db.execute("SELECT blackboard.end_lease($1)", lease_id)
    assert await db.fetchval("SELECT swept_at IS NOT NULL FROM blackboard.leases WHERE id = $1", lease_id)
    await transaction.commit()
    await clock.advance(timedelta(seconds=20))
    [task] = await agent.tasks.claim()
    assert (task.id, task.attempt) == (added.id, 2)


async def test_a_task_under_a_lease_that_was_deleted_goes_back(
    session: Session, agent: Agent, db: Connection, clock: Clock
) -> None:
    added = await session.tasks.add("t")
    lease_id, _ = await hold(db, session)
    await db.execute("DELETE FROM blackboard.leases WHERE id = $1", lease_id)
    await clock.advance(timedelta(seconds=20))
    assert [task.id for task in await agent.tasks.claim()] == [added.id]


async def test_where_looks_are_rare_a_silent_holder_still_loses_its_work(
    session: Session, agent: Agent, db: Connection, clock: Clock
) -> None:
    # Every look comes after a gap of more than ten seconds, as with one process of a long term.
    await session.tasks.add("t")
    await hold(db, session)
    for _ in range(6):
        await clock.advance(timedelta(seconds=20), gap=True)
        await db.execute("SELECT blackboard.tend_leases()")
    assert len(await agent.tasks.claim()) == 1


async def test_a_suspected_holder_that_renews_starts_afresh(session: Session, db: Connection, clock: Clock) -> None:
    await session.tasks.add("t")
    lease_id, _ = await hold(db, session)
    for _ in range(3):
        await clock.advance(timedelta(seconds=20), gap=True)
        await db.execute("SELECT blackboard.tend_leases()")
    assert await db.fetchval("SELECT suspected_at IS NOT NULL FROM blackboard.leases WHERE id = $1", lease_id)
    assert await db.fetchval("SELECT blackboard.renew_lease($1)", lease_id) == 1
    await clock.advance(timedelta(seconds=40), gap=True)
    await db.execute("SELECT blackboard.tend_leases()")
    assert await db.fetchval("SELECT lapsed_at FROM blackboard.leases WHERE id = $1", lease_id) is None


async def test_a_clock_that_goes_back_delays_a_lapse_by_one_term_at_most(
    session: Session, agent: Agent, db: Connection, clock: Clock
) -> None:
    added = await session.tasks.add("t")
    await clock.advance(timedelta(hours=5))
    lease_id, _ = await hold(db, session)
    await db.execute("UPDATE blackboard.liveness SET checked_at = blackboard.now()")
    await clock.advance(timedelta(hours=-5), gap=True)
    await db.execute("SELECT blackboard.tend_leases()")
    left = await db.fetchval("SELECT expires_at - blackboard.now() FROM blackboard.leases WHERE id = $1", lease_id)
    assert left <= timedelta(seconds=30)
    await clock.advance(timedelta(seconds=31))
    assert [task.id for task in await agent.tasks.claim()] == [added.id]


async def test_a_row_that_cannot_be_swept_stops_nobody(
    session: Session, agent: Agent, db: Connection, clock: Clock
) -> None:
    await session.tasks.add("stuck", priority=9)
    await hold(db, session)
    other = await session.tasks.add("t")
    await db.execute(
        "CREATE FUNCTION blackboard.fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'a fault'; END $$"
    )
    await db.execute(
        "CREATE TRIGGER fault BEFORE UPDATE ON blackboard.tasks FOR EACH ROW WHEN (OLD.type = 'stuck') "
        "EXECUTE FUNCTION blackboard.fault()"
    )
    try:
        await clock.advance(timedelta(seconds=31))
        assert [task.id for task in await agent.tasks.claim()] == [other.id]
    finally:
        await db.execute("DROP FUNCTION blackboard.fault() CASCADE")
    await clock.advance(timedelta(seconds=5))
    assert [task.type for task in await agent.tasks.claim()] == ["stuck"]


async def test_a_task_asked_to_stop_is_not_retried_when_its_time_is_up(
    session: Session, db: Connection, clock: Clock
) -> None:
    added = await session.tasks.add("t", timeout=timedelta(seconds=60))
    await hold(db, session, term="1 hour")
    await session.tasks.cancel(added.id)
    await clock.advance(timedelta(seconds=61))
    await db.execute("SELECT blackboard.tend_leases()")
    assert (await session.tasks.get(added.id)).status == "cancelled"


async def test_a_redriven_task_is_no_longer_asked_to_stop(session: Session, agent: Agent) -> None:
    added = await session.tasks.add("t")
    [task] = await agent.tasks.claim()
    await session.tasks.cancel(added.id)
    await agent.tasks.fail(task, "x", retry=False)
    await session.tasks.redrive(added.id)
    [task] = await agent.tasks.claim()
    assert not task.cancel_requested


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_an_older_snapshot_claims_and_completes(
    session: Session, agent: Agent, db: Connection, connect: Connect, board: Blackboard, isolation: Any, clock: Clock
) -> None:
    added = await session.tasks.add("t")
    other = await connect()
    async with db.transaction(isolation=isolation):
        await db.fetchval("SELECT count(*) FROM blackboard.sessions")
        # Others look after the leases meanwhile: the snapshot's row of that is out of date.
        await clock.advance(timedelta(seconds=5))
        await other.execute("SELECT blackboard.tend_leases()")
        bound = board.bind(db).agent(agent)
        [task] = await bound.tasks.claim()
        await bound.tasks.complete(task, 1)
        await bound.findings.report("seen", type="t")
    assert (await session.tasks.get(added.id)).status == "completed"


# ------------------------------------------------------------------------------------------------------ raw SQL


async def test_history_names_who_acted_and_not_who_is_written_in_a_column(session: Session, db: Connection) -> None:
    task_id = uuid.uuid4()
    await db.execute(
        "INSERT INTO blackboard.tasks (session_id, id, type, created_by) VALUES ($1, $2, 't', 'somebody/else')",
        session.id, task_id,
    )  # fmt: skip
    [event] = (await session.events.read(subject_id=task_id)).events
    assert event.actor == await db.fetchval("SELECT session_user")


@pytest.mark.parametrize(
    "columns",
    [
        "status, blockers, position) VALUES ($1, 't', 'blocked', 1, NULL",
        "status, completed_at, position) VALUES ($1, 't', 'cancelled', now(), NULL",
        "status, completed_at, position) VALUES ($1, 't', 'completed', now(), NULL",
        "attempt) VALUES ($1, 't', 7",
        "released) VALUES ($1, 't', 7",
    ],
)
async def test_a_task_is_born_open(session: Session, db: Connection, columns: str) -> None:
    error = await refused(db, f"INSERT INTO blackboard.tasks (session_id, type, {columns})", session.id)
    assert error.sqlstate == "BB003"


@pytest.mark.parametrize(
    "change",
    ["id = gen_random_uuid()", "type = 'u'", "created_at = now() - interval '1 day'", "created_by = 'x'",
     "session_id = gen_random_uuid()", "requires_approval = true, approved_by = 'x'"],
)  # fmt: skip
async def test_what_history_does_not_tell_never_changes(session: Session, db: Connection, change: str) -> None:
    await session.tasks.add("t")
    assert (await refused(db, f"UPDATE blackboard.tasks SET {change}")).sqlstate == "BB012"


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("sessions", "id = gen_random_uuid()"),
        ("sessions", "created_by = 'x'"),
        ("agents", "id = 'another'"),
        ("agents", "created_at = now()"),
        ("memberships", "agent_id = 'ops/other'"),
    ],
)
async def test_keys_never_change(session: Session, agent: Agent, db: Connection, table: str, change: str) -> None:
    await db.execute("INSERT INTO blackboard.agents (id) VALUES ('ops/other')")
    error = await refused(db, f"UPDATE blackboard.{table} SET {change}")
    assert error.sqlstate in ("BB012", "23503", "23505")


@pytest.mark.parametrize(
    "change",
    [
        "attempt = 0",
        "attempt = attempt + 1",
        "claim_id = gen_random_uuid()",
        "lease_id = gen_random_uuid()",
        "status = 'pending', position = 1, lease_id = NULL, attempt = 0",
    ],
)
async def test_a_fence_cannot_be_moved_by_hand(session: Session, agent: Agent, db: Connection, change: str) -> None:
    await session.tasks.add("t")
    [task] = await agent.tasks.claim()
    error = await refused(db, f"UPDATE blackboard.tasks SET {change} WHERE id = $1", task.id)
    assert error.sqlstate in ("BB003", "23514")
    await agent.tasks.complete(task)


async def test_a_claim_by_hand_raises_the_attempt(session: Session, db: Connection) -> None:
    await session.tasks.add("t")
    error = await refused(
        db,
        "UPDATE blackboard.tasks SET status = 'running', position = NULL, lease_id = gen_random_uuid(), attempt = 0, "
        "claim_id = gen_random_uuid(), assigned_to = 'x', started_at = now()",
    )
    assert error.sqlstate in ("BB003", "23514")


async def test_deleted_members_and_agents_leave_their_last_state(
    session: Session, agent: Agent, db: Connection
) -> None:
    await db.execute("DELETE FROM blackboard.memberships")
    await db.execute("DELETE FROM blackboard.agents")
    rows = await db.fetch("SELECT type, data ->> 'agent_id' AS agent FROM blackboard.events WHERE type ~ '^agent'")
    assert ("agent.removed", agent.id) in [tuple(row) for row in rows]
    assert ("agent.deleted", agent.id) in [tuple(row) for row in rows]
    for table in ("memberships", "agents", "task_dependencies", "late_results", "tasks", "sessions", "events"):
        assert (await refused(db, f"TRUNCATE blackboard.{table} CASCADE")).sqlstate == "BB005"


async def test_a_session_with_tasks_is_not_deleted(session: Session, board: Blackboard, db: Connection) -> None:
    await session.tasks.add("t")
    assert (await refused(db, "DELETE FROM blackboard.sessions WHERE id = $1", session.id)).sqlstate == "BB012"
    empty = await board.start("empty")
    await db.execute("DELETE FROM blackboard.sessions WHERE id = $1", empty.id)
    assert await db.fetchval(
        "SELECT type FROM blackboard.events WHERE session_id = $1 ORDER BY seq DESC", empty.id
    ) == ("session.deleted")


async def test_late_results_are_kept_only_of_tasks_that_exist(session: Session, agent: Agent, db: Connection) -> None:
    call = (
        "SELECT * FROM blackboard.complete_tasks($1, ARRAY[$2::uuid], ARRAY[gen_random_uuid()], ARRAY[1], "
        "ARRAY['1'::jsonb], 'x')"
    )
    assert len(await db.fetch(call, session.id, uuid.uuid4())) == 1
    assert await db.fetchval("SELECT count(*) FROM blackboard.late_results") == 0


async def test_one_statement_over_several_sessions(board: Blackboard, db: Connection) -> None:
    sessions = [await board.start(f"many-{n}") for n in range(3)]
    ids = [session.id for session in sessions]
    await db.execute(
        "INSERT INTO blackboard.tasks (session_id, type) SELECT s, 't' FROM unnest($1::uuid[]) s, generate_series(1, 4)",
        ids,
    )
    await db.execute("UPDATE blackboard.tasks SET priority = 9")
    for session in sessions:
        types = [event.type for event in (await session.events.read(topics=["task.*"])).events]
        assert types == ["task.created"] * 4 + ["task.updated"] * 4
    await db.execute("UPDATE blackboard.sessions SET status = 'failed', closed_at = now() WHERE id = ANY ($1)", ids)
    assert await db.fetchval("SELECT count(*) FROM blackboard.tasks WHERE status = 'cancelled'") == 12


async def test_copy_and_upsert_write_history_too(session: Session, db: Connection) -> None:
    ids = [uuid.uuid4() for _ in range(3)]
    await db.copy_records_to_table(
        "tasks", schema_name="blackboard", columns=["session_id", "id", "type"],
        records=[(session.id, task_id, "copied") for task_id in ids],
    )  # fmt: skip
    upsert = (
        "INSERT INTO blackboard.tasks (session_id, id, type) VALUES ($1, $2, 'copied'), ($1, $3, 'new') "
        "ON CONFLICT (session_id, id) DO UPDATE SET priority = 8"
    )
    new = uuid.uuid4()
    await db.execute(upsert, session.id, ids[0], new)
    types = {
        task_id: [event.type for event in (await session.events.read(subject_id=task_id)).events]
        for task_id in (ids[0], ids[1], new)
    }
    assert types == {
        ids[0]: ["task.created", "task.updated"],
        ids[1]: ["task.created"],
        new: ["task.created"],
    }
    with pytest.raises(asyncpg.PostgresError):
        await db.copy_records_to_table(
            "tasks", schema_name="blackboard", columns=["session_id", "type"], records=[(uuid.uuid4(), "t")]
        )


async def test_functions_of_the_caller_do_not_shadow_those_of_the_triggers(session: Session, db: Connection) -> None:
    schema = f"evil_{uuid.uuid4().hex[:8]}"
    await db.execute(f"CREATE SCHEMA {schema}")
    try:
        for name, arguments, result, body in (
            ("now", "", "timestamptz", "'epoch'::timestamptz"),
            ("format", "text, VARIADIC text[]", "text", "'owned'"),
            ("jsonb_build_object", "VARIADIC \"any\"", "jsonb", None),
            ("current_setting", "text, boolean", "text", "'owned'"),
            ("set_config", "text, text, boolean", "text", "'owned'"),
            ("clock_timestamp", "", "timestamptz", "'epoch'::timestamptz"),
            ("nextval", "text", "bigint", "1"),
            ("hint", "uuid, text", "void", None),
            ("coalesce_", "", "text", "'owned'"),
        ):  # fmt: skip
            if body is not None:
                await db.execute(
                    f"CREATE FUNCTION {schema}.{name}({arguments}) RETURNS {result} LANGUAGE sql AS $$ SELECT {body} $$"
                )
        await db.execute(f"SET search_path = {schema}, pg_catalog, blackboard")
        task_id = uuid.uuid4()
        await db.execute(
            "INSERT INTO blackboard.tasks (session_id, id, type) VALUES ($1, $2, 't')", session.id, task_id
        )
        await db.execute("UPDATE blackboard.tasks SET priority = 3 WHERE id = $1", task_id)
        user = await db.fetchval("SELECT session_user")
    finally:
        await db.execute("RESET search_path")
        await db.execute(f"DROP SCHEMA {schema} CASCADE")
    events = (await session.events.read(subject_id=task_id)).events
    assert [event.actor for event in events] == [user, user]
    assert all(event.at.year > 2000 for event in events)


# ----------------------------------------------------------------------------------------------------- closing


async def test_who_adds_while_the_session_closes_is_either_seen_or_refused(
    board: Blackboard, session: Session, connect: Connect, blocked: Callable[[int], Awaitable[None]]
) -> None:
    adder, closer, late = await connect(), await connect(), await connect()
    insert = "INSERT INTO blackboard.tasks (session_id, type) VALUES ($1, 't')"
    transaction = adder.transaction()
    await transaction.start()
    await adder.execute(insert, session.id)
    closing = asyncio.ensure_future(
        closer.execute("SELECT blackboard.close_session($1, 'completed', NULL, 'x')", session.id)
    )
    await blocked(closer.get_server_pid())
    adding = asyncio.ensure_future(late.execute(insert, session.id))
    await blocked(late.get_server_pid())
    await transaction.commit()
    await closing
    with pytest.raises(asyncpg.PostgresError) as refusal:
        await adding
    assert refusal.value.sqlstate == "BB007"
    assert await session.tasks.count() == {"cancelled": 1}


async def test_an_older_snapshot_adds_nothing_to_a_session_that_was_closed_meanwhile(
    board: Blackboard, session: Session, db: Connection
) -> None:
    with pytest.raises((TransientError, SessionClosed)):
        async with db.transaction(isolation="repeatable_read"):
            await db.fetchval("SELECT count(*) FROM blackboard.sessions")
            await session.close()
            bound = await board.bind(db).session(session.id)
            await bound.tasks.add("t")
    assert await session.tasks.count() == {}


async def test_closing_by_hand_does_what_closing_does(session: Session, agent: Agent, db: Connection) -> None:
    await session.tasks.add("t")
    await session.tasks.add("t", run_at=None, requires_approval=True)
    [task] = await agent.tasks.claim()
    await agent.locks.acquire("a")
    await db.execute("UPDATE blackboard.sessions SET status = 'completed', closed_at = now() WHERE id = $1", session.id)
    assert await session.tasks.count() == {"running": 1, "cancelled": 1}
    assert (await session.tasks.get(task.id)).cancel_requested
    assert await db.fetchval("SELECT holder FROM blackboard.locks") is None
    assert (await agent.tasks.fail(task, "x")).status == "cancelled"


async def test_a_failed_task_of_a_closed_session_is_not_reopened_by_hand(
    session: Session, agent: Agent, db: Connection
) -> None:
    await session.tasks.add("t")
    [task] = await agent.tasks.claim()
    await agent.tasks.fail(task, "x", retry=False)
    await session.close()
    error = await refused(
        db, "UPDATE blackboard.tasks SET status = 'pending', position = 1, completed_at = NULL WHERE id = $1", task.id
    )
    assert error.sqlstate == "BB007"


# ---------------------------------------------------------------------------------------------------- load


async def test_ten_thousand_tasks_in_one_call(session: Session, agent: Agent) -> None:
    await session.tasks.add_many([NewTask(type="t", parameters={"n": n}) for n in range(10_000)])
    tasks = await agent.tasks.claim(10_000)
    assert len({task.id for task in tasks}) == 10_000
    assert [task.parameters["n"] for task in tasks] == list(range(10_000))
    assert await agent.tasks.complete_many([(task, task.parameters) for task in tasks]) == []
    assert await session.tasks.count() == {"completed": 10_000}


async def test_verbs_that_meet_never_hang_and_lose_nothing(
    board: Blackboard, session: Session, database_url: str, connect: Connect
) -> None:
    stop = time.monotonic() + 4
    added: set[uuid.UUID] = set()

    async def work(seed: int) -> int:
        dice = random.Random(seed)
        deadlocks = 0
        async with Blackboard.open(database_url, pool_size=1) as own:
            mine = await own.session(session.id)
            agent = await mine.join(f"w/{seed}")
            while time.monotonic() < stop:
                known = list(added)
                try:
                    match dice.randrange(6):
                        case 0 | 1:
                            parents = dice.sample(known, min(len(known), dice.randrange(4)))
                            batch = [NewTask(type="t", id=new_id(), depends_on=tuple(parents)) for _ in range(3)]
                            dice.shuffle(batch)
                            await mine.tasks.add_many(batch)
                            added.update(task.id for task in batch if task.id)
                        case 2 | 3:
                            for task in await agent.tasks.claim(3):
                                try:
                                    if dice.random() < 0.5:
                                        await agent.tasks.complete(task)
                                    else:
                                        await agent.tasks.fail(task, "x", retry=dice.random() < 0.5, delay=timedelta(0))
                                except LeaseLost:
                                    pass
                        case 4:
                            if known:
                                task = await mine.tasks.get(dice.choice(known))
                                if not task.finished:
                                    await mine.tasks.cancel(task.id)
                        case _:
                            if known:
                                task = await mine.tasks.get(dice.choice(known))
                                if task.status in ("failed", "dead"):
                                    await mine.tasks.redrive(task.id)
                except TransientError:
                    deadlocks += 1
                except Exception as error:
                    if type(error).__name__ != "InvalidTransition":
                        raise
            return deadlocks

    await asyncio.wait_for(asyncio.gather(*(work(n) for n in range(8))), 60)
    db = await connect()
    wrong = await db.fetch(
        """SELECT t.id, t.status, t.blockers, count(d.*) FILTER (WHERE d.state = 'waiting') AS waiting
           FROM blackboard.tasks t LEFT JOIN blackboard.task_dependencies d ON d.session_id = t.session_id AND d.task_id = t.id
           GROUP BY t.session_id, t.id
           HAVING t.blockers <> count(d.*) FILTER (WHERE d.state = 'waiting') AND t.completed_at IS NULL
               OR t.status = 'blocked' AND count(d.*) FILTER (WHERE d.state = 'waiting') = 0"""
    )
    assert wrong == []
    unsettled = await db.fetchval(
        """SELECT count(*) FROM blackboard.task_dependencies d
           JOIN blackboard.tasks p ON p.session_id = d.session_id AND p.id = d.depends_on_id
           WHERE d.state = 'waiting' AND p.completed_at IS NOT NULL"""
    )
    assert unsettled == 0
    assert await db.fetchval("SELECT count(*) FROM blackboard.tasks") >= len(added)
    await asyncio.wait_for(session.close(), 20)
    open_tasks = await db.fetchval(
        "SELECT count(*) FROM blackboard.tasks WHERE completed_at IS NULL AND status <> 'running'"
    )
    assert open_tasks == 0
