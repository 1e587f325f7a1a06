"""Budgets and ledger written by plain SQL: the counters stay exact, the ledger append-only, the same history."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import asyncpg
import psycopg
import pytest

from blackboard import Blackboard
from blackboard.errors import BudgetExceeded, NotPermitted
from blackboard.sqlstates import CONSTRAINTS, from_sqlstate

from .clitools import Cli
from .test_budgets_concurrency import exact
from .test_cli_grants import _role as _role_fixture

role = _role_fixture

_ENTRY = {"reservation_id": "gen_random_uuid()", "agent_id": "'ops/a'", "unit": "'tokens'", "reserved": "10"}


@pytest.fixture(name="member")
async def _member(session: Any) -> Any:
    return await session.join("ops/a")


@pytest.fixture(name="cli")
def _cli(database_url: str) -> Cli:
    return Cli(database_url)


async def refused(db: Any, sql: str, *arguments: Any) -> asyncpg.PostgresError:
    with pytest.raises(asyncpg.PostgresError) as caught:
        await db.execute(sql, *arguments)
    return caught.value


def insert(table: str, columns: dict[str, str]) -> str:
    return (
        f"INSERT INTO blackboard.{table} (session_id, {', '.join(columns)}) VALUES ($1, {', '.join(columns.values())})"
    )


async def test_a_plain_insert_is_a_reservation(session: Any, member: Any, db: Any) -> None:
    await session.budgets.set("tokens", 25)
    await db.execute(insert("spend", _ENTRY), session.id)
    await db.execute(
        "INSERT INTO blackboard.spend (session_id, reservation_id, agent_id, unit, reserved, budget_ids, at) "
        "SELECT $1, gen_random_uuid(), 'ops/a', 'tokens', 7, ARRAY[gen_random_uuid()], '-infinity' "
        "FROM generate_series(1, 2)",
        session.id,
    )
    (row,) = await exact(db, session)
    assert row["reserved"] == 24
    error = await refused(db, insert("spend", {**_ENTRY, "reserved": "2"}), session.id)
    assert error.sqlstate == "BB014"
    assert isinstance(from_sqlstate("BB014", str(error), detail=error.detail), BudgetExceeded)
    await db.execute(
        "UPDATE blackboard.spend SET status = 'settled', settled = reserved * 3 WHERE session_id = $1 AND reserved = 7",
        session.id,
    )
    await db.execute(
        "UPDATE blackboard.spend SET status = 'released' WHERE session_id = $1 AND settled IS NULL", session.id
    )
    (row,) = await exact(db, session)
    assert (row["reserved"], row["spent"]) == (0, 42)
    types = await db.fetch("SELECT type FROM blackboard.events WHERE type LIKE 'budget%' ORDER BY seq")
    assert [row["type"].partition(".")[2] for row in types] == [
        "set", "reserved", "reserved", "reserved", "exceeded", "settled", "settled", "released",
    ]  # fmt: skip
    assert await db.fetchval("SELECT count(*) FROM blackboard.spend WHERE at > '2000-01-01'") == 3


async def test_the_ledger_is_append_only(session: Any, member: Any, db: Any) -> None:
    await session.budgets.set("tokens", 100)
    await db.execute(insert("spend", _ENTRY), session.id)
    for change in (
        "reserved = 1",
        "agent_id = 'ops/b'",
        "unit = 'calls'",
        "task_id = gen_random_uuid()",
        "budget_ids = '{}'",
        "reservation_id = gen_random_uuid()",
        "at = now()",
        "expires_at = 'infinity'",
    ):
        assert (await refused(db, f"UPDATE blackboard.spend SET {change}")).sqlstate == "BB005", change
    await db.execute("UPDATE blackboard.spend SET note = 'n', model = 'm'")
    await db.execute("UPDATE blackboard.spend SET status = 'settled', settled = 4")
    for change, code in (
        ("settled = 3", "BB003"),
        ("settled_at = now()", "BB003"),
        ("status = 'reserved', settled = NULL", "BB003"),
        ("status = 'released', settled = NULL", "BB003"),
    ):
        assert (await refused(db, f"UPDATE blackboard.spend SET {change}")).sqlstate == code, change
    for sql in ("DELETE FROM blackboard.spend", "TRUNCATE blackboard.spend", "TRUNCATE blackboard.budgets"):
        assert (await refused(db, sql)).sqlstate == "BB005"
    assert (await refused(db, insert("spend", {**_ENTRY, "status": "'released'"}), session.id)).sqlstate == "BB003"
    await exact(db, session)


async def test_the_counters_belong_to_the_ledger(session: Any, member: Any, db: Any) -> None:
    await session.budgets.set("tokens", 100)
    await db.execute(insert("spend", _ENTRY), session.id)
    for change, code in (
        ("reserved = 0", "BB005"),
        ("spent = 1", "BB005"),
        ("opening = 1", "BB005"),
        ("window_start = now()", "BB005"),
        ("unit = 'calls'", "BB003"),
        ("period = '1 day'", "BB003"),
        ("agent_id = 'ops/a', scope = 'agent'", "BB003"),
        ("id = gen_random_uuid()", "BB003"),
    ):
        assert (await refused(db, f"UPDATE blackboard.budgets SET {change}")).sqlstate == code, change
    columns = {"scope": "'session'", "unit": "'calls'", "ceiling": "5", "spent": "4", "reserved": "4", "opening": "4"}
    await db.execute(insert("budgets", columns), session.id)
    await db.execute("UPDATE blackboard.budgets SET ceiling = 50, soft = 5 WHERE unit = 'calls'")
    rows = await exact(db, session)
    assert {(row["unit"], row["reserved"], row["spent"]) for row in rows} == {("tokens", 10, 0), ("calls", 0, 0)}
    await db.execute("DELETE FROM blackboard.budgets WHERE unit = 'calls'")
    found = await db.fetch(
        "SELECT type, data FROM blackboard.events WHERE type LIKE 'budget%' ORDER BY seq DESC LIMIT 2"
    )
    assert [row["type"] for row in found] == ["budget.deleted", "budget.updated"]
    assert json.loads(found[1]["data"]) == {"ceiling": 50, "soft": 5}


async def test_a_tasks_budget_goes_with_the_task(session: Any, member: Any, db: Any) -> None:
    task = await session.tasks.add("t")
    await session.budgets.set("tokens", 5, task_id=task.id)
    held = await member.budgets.reserve(tokens=5, task=task.id)
    await db.execute("DELETE FROM blackboard.tasks WHERE id = $1", task.id)
    assert await session.budgets.list() == []
    await member.budgets.settle(held)
    assert await db.fetchval("SELECT count(*) FROM blackboard.events WHERE type = 'budget.deleted'") == 1


@pytest.mark.parametrize(
    ("constraint", "columns"),
    [
        ("budgets_agent_id_length", {"scope": "'agent'", "agent_id": "''"}),
        ("budgets_ceiling_range", {"ceiling": "-1"}),
        ("budgets_ceiling_range", {"ceiling": "'NaN'"}),
        ("budgets_ceiling_range", {"ceiling": "'Infinity'"}),
        ("budgets_currency_form", {"unit": "'cost'", "currency": "'usd'"}),
        ("budgets_currency_iff_cost", {"currency": "'USD'"}),
        ("budgets_currency_iff_cost", {"unit": "'cost'"}),
        ("budgets_period_range", {"period": "'1 month'"}),
        ("budgets_period_range", {"period": "'0'"}),
        ("budgets_scope_known", {"scope": "'team'"}),
        ("budgets_soft_range", {"soft": "11"}),
        ("budgets_subject_fits_scope", {"agent_id": "'ops/a'"}),
        ("budgets_subject_fits_scope", {"scope": "'task'"}),
        ("budgets_task_known", {"scope": "'task'", "task_id": "gen_random_uuid()"}),
        ("budgets_unit_known", {"unit": "'pages'"}),
    ],
)
async def test_each_constraint_of_budgets(session: Any, db: Any, constraint: str, columns: dict[str, str]) -> None:
    sql = insert("budgets", {"scope": "'session'", "unit": "'tokens'", "ceiling": "10", **columns})
    error = await refused(db, sql, session.id)
    assert error.constraint_name == constraint
    kind, field, message = CONSTRAINTS[constraint]
    answer = from_sqlstate(error.sqlstate, str(error), constraint=constraint)
    assert type(answer) is kind
    assert answer.field == field
    assert message.endswith(".")


async def test_keys_of_budgets(session: Any, db: Any) -> None:
    columns = {"id": "gen_random_uuid()", "scope": "'session'", "unit": "'tokens'", "ceiling": "10"}
    await db.execute(insert("budgets", columns), session.id)
    found = await refused(db, insert("budgets", columns), session.id)
    assert found.constraint_name == "budgets_one_each"
    key = f"'{(await session.budgets.list())[0].id}'"
    found = await refused(db, insert("budgets", {**columns, "id": key, "unit": "'calls'"}), session.id)
    assert found.constraint_name == "budgets_pkey"
    nowhere = "'00000000-0000-0000-0000-000000000001'"
    found = await refused(db, insert("budgets", columns).replace("$1", nowhere))
    assert found.constraint_name == "budgets_session_known"
    for constraint, change in (
        ("budgets_counters_range", "reserved = -1"),
        ("budgets_window_iff_period", "window_start = now()"),
    ):
        await db.execute("ALTER TABLE blackboard.budgets DISABLE TRIGGER prepare")
        try:
            found = await refused(db, f"UPDATE blackboard.budgets SET {change}")
        finally:
            await db.execute("ALTER TABLE blackboard.budgets ENABLE TRIGGER prepare")
        assert found.constraint_name == constraint
        assert constraint in CONSTRAINTS


@pytest.mark.parametrize(
    ("constraint", "columns"),
    [
        ("spend_currency_form", {"unit": "'cost'", "currency": "'$'"}),
        ("spend_currency_iff_cost", {"unit": "'cost'"}),
        ("spend_model_length", {"model": "''"}),
        ("spend_note_length", {"note": "repeat('x', 1001)"}),
        ("spend_reserved_range", {"reserved": "-1"}),
        ("spend_reserved_range", {"reserved": "'NaN'"}),
        ("spend_reserved_range", {"unit": "'seconds'", "reserved": "0.0000000000001"}),
        ("spend_settled_iff_settled", {"settled": "1"}),
        ("spend_settled_iff_settled", {"status": "'settled'"}),
        ("spend_settled_range", {"status": "'settled'", "settled": "1e16"}),
        ("spend_unit_known", {"unit": "'pages'"}),
        ("spend_whole_units", {"reserved": "1.5"}),
        ("spend_whole_units", {"unit": "'calls'", "status": "'settled'", "settled": "0.5"}),
    ],
)
async def test_each_constraint_of_the_ledger(
    session: Any, member: Any, db: Any, constraint: str, columns: dict[str, str]
) -> None:
    error = await refused(db, insert("spend", {**_ENTRY, **columns}), session.id)
    assert error.constraint_name == constraint
    assert CONSTRAINTS[constraint][2].endswith(".")


@pytest.mark.parametrize(
    ("constraint", "columns"),
    [
        ("spend_agent_id_length", {"agent_id": "''"}),
        ("spend_status_known", {"status": "'paid'", "settled_at": "now()"}),
        ("spend_settled_at_iff_ended", {"status": "'released'"}),
        ("spend_holder_has_an_end", {}),
    ],
)
async def test_what_the_triggers_see_first(
    session: Any, member: Any, db: Any, constraint: str, columns: dict[str, str]
) -> None:
    await db.execute("ALTER TABLE blackboard.spend DISABLE TRIGGER prepare")
    try:
        error = await refused(db, insert("spend", {**_ENTRY, **columns}), session.id)
    finally:
        await db.execute("ALTER TABLE blackboard.spend ENABLE TRIGGER prepare")
    assert error.constraint_name == constraint
    assert constraint in CONSTRAINTS


async def test_keys_of_the_ledger(session: Any, member: Any, db: Any) -> None:
    key = "'00000000-0000-0000-0000-000000000001'"
    columns = {**_ENTRY, "id": key, "reservation_id": key}
    await db.execute(insert("spend", columns), session.id)
    for constraint, change in (("spend_pkey", {"unit": "'calls'"}), ("spend_unit_once", {"id": "gen_random_uuid()"})):
        error = await refused(db, insert("spend", {**columns, **change}), session.id)
        assert error.constraint_name == constraint
        assert constraint in CONSTRAINTS
    assert (await refused(db, insert("spend", {**_ENTRY, "agent_id": "'ops/x'"}), session.id)).sqlstate == "BB001"
    await session.close()
    for status in ("'reserved'", "'settled'"):
        more = {"status": status, "settled": "1"} if "settled" in status else {}
        assert (await refused(db, insert("spend", {**_ENTRY, **more}), session.id)).sqlstate == "BB007"


@pytest.mark.fresh_database
async def test_an_agents_role_spends_and_sets_no_ceilings(role: Callable[[str], str], database_url: str) -> None:
    async with Blackboard.open(database_url) as owner:
        await (await owner.start("s")).budgets.set("tokens", 100)
    async with Blackboard.open(role("agent")) as board:
        session = await board.session("s")
        agent = await session.join("ops/a")
        held = await agent.budgets.reserve(tokens=60, calls=1)
        await agent.budgets.settle(held, tokens=90, seconds=1)
        await agent.budgets.release(await agent.budgets.reserve(tokens=5))
        with pytest.raises(BudgetExceeded):
            await agent.budgets.reserve(tokens=11)
        assert (await session.budgets.report()).budgets[0].spent == 90
        for call in (session.budgets.set("tokens", 10_000), session.budgets.remove("tokens")):
            with pytest.raises(NotPermitted):
                await call
        page = await session.events.read()
        assert "budget.refused" in {event.type for event in page.events}
    reader = role("reader")
    async with Blackboard.open(reader) as board:
        session = await board.session("s")
        assert (await session.budgets.report()).totals
        assert await session.budgets.over() is False
        assert len(await session.budgets.ledger()) == 4
    with psycopg.connect(reader, autocommit=True) as connection:
        for sql in (
            "SELECT blackboard.refuse_budget(gen_random_uuid(), 'x', '{}')",
            "INSERT INTO blackboard.spend (session_id) VALUES (gen_random_uuid())",
            "UPDATE blackboard.budgets SET ceiling = 1e9",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(sql.encode())
