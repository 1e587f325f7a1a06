"""Ids by a part of them: looked for in the database, however many rows there are."""

from __future__ import annotations

from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import pytest

from blackboard import Agent, Blackboard, NewTask, Session, Stage
from blackboard.errors import InvalidInput
from blackboard.store.driver_errors import from_asyncpg

from .clitools import Cli

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

MANY = 10_050


@pytest.fixture
async def agent(session: Session) -> Agent:
    return await session.join("ops/worker")


@pytest.fixture(name="cli")
def _cli(database_url: str) -> Cli:
    return Cli(database_url)


async def test_a_task_is_found_among_more_than_ten_thousand(session: Session, cli: Cli) -> None:
    ids = await session.tasks.add_many([NewTask(type="t") for _ in range(MANY)])
    newest = max(ids)
    for part in (newest.hex[-12:], f"…{newest.hex[-12:]}", str(newest)[:-2], newest.hex[:31].upper()):
        assert cli("task", "show", part, "--json").json["id"] == str(newest)
    assert cli("why", newest.hex[-12:], "--json").json["status"] == "pending"
    # Those of one moment begin alike: two are enough to say so.
    error = cli("task", "show", newest.hex[:8], "--json", code=2).error
    assert error["message"].startswith(f"'{newest.hex[:8]}' fits several ids; give more of it: ")
    assert len(error["matches"]) == 2


async def rows(session: Session, agent: Agent) -> dict[str, tuple[Any, list[UUID]]]:
    """A repository and two ids of it, by noun."""
    findings = [(await agent.findings.report(f"f{n}", type="t")).id for n in range(2)]
    hidden = await agent.findings.retract(findings[0], "wrong")
    assert hidden.id == findings[0]
    return {
        "task": (session.tasks, await session.tasks.add_many([NewTask(type="t")] * 2)),
        "flow": (session.flows, [(await session.flows.create("f", [Stage("a", "t")])).id for _ in range(2)]),
        "finding": (session.findings, findings),
        "hypothesis": (session.hypotheses, [(await agent.hypotheses.propose(f"h{n}")).id for n in range(2)]),
        "proposal": (session.proposals, [(await agent.proposals.open(f"p{n}")).id for n in range(2)]),
        "action": (session.actions, [(await agent.actions.propose("query", f"a{n}")).id for n in range(2)]),
    }


async def test_every_noun_finds_its_own(session: Session, agent: Agent) -> None:
    found = await rows(session, agent)
    for noun, (repository, ids) in found.items():
        for one in ids:
            assert await repository.ids_like(one.hex[-12:]) == [one], noun
            assert await repository.ids_like(str(one)[:35]) == [one], noun
            assert await repository.ids_like(one.hex) == [one], noun
        for name, (stranger, _) in found.items():
            assert name == noun or await stranger.ids_like(ids[0].hex[-12:]) == [], (name, noun)


async def test_at_most_two_and_each_once(session: Session) -> None:
    wanted = [UUID(f"0199aaaa-0000-7000-8000-0000{n:04x}beef") for n in range(5)]
    both = UUID("cafe1234-0000-7000-8000-00000000cafe")
    await session.tasks.add_many([NewTask(type="t", id=one) for one in (*wanted, both)])
    assert len(await session.tasks.ids_like("0199aaaa")) == 2
    assert len(await session.tasks.ids_like("00beef")) == 1
    ends = UUID("00beef00-0000-7000-8000-000000000001")
    await session.tasks.add("t", id=ends)
    # One begins like that, and another ends like that.
    assert set(await session.tasks.ids_like("00beef")) == {ends, wanted[0]}
    assert await session.tasks.ids_like("cafe12") == [both]
    same = UUID("abcabc00-0000-7000-8000-000000abcabc")
    await session.tasks.add("t", id=same)
    assert await session.tasks.ids_like("abcabc") == [same]


async def test_only_ids_of_the_session(session: Session, board: Blackboard) -> None:
    other = await board.start("other")
    task = await other.tasks.add("t")
    assert await session.tasks.ids_like(task.id.hex[-12:]) == []
    assert await other.tasks.ids_like(task.id.hex[-12:]) == [task.id]


async def test_dead_letters_are_found_among_themselves(session: Session, agent: Agent, cli: Cli) -> None:
    await session.tasks.add("t", max_attempts=1)
    [task] = await agent.tasks.claim()
    await agent.tasks.fail(task, "broken")
    living = await session.tasks.add("t")
    assert await session.tasks.dead_ids_like(task.id.hex[-8:]) == [task.id]
    assert await session.tasks.dead_ids_like(living.id.hex[-8:]) == []
    assert cli("deadletter", "show", task.id.hex[-8:], "--json").json
    missing = cli("deadletter", "show", living.id.hex[-8:], "--json", code=3).error
    assert missing["noun"] == "dead letter"


@pytest.mark.parametrize("part", ["", "12345", "0" * 33, "xyzxyz", "12345%", "------"])
async def test_what_is_no_part_of_an_id(session: Session, part: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await session.tasks.ids_like(part)
    assert caught.value.field == "part"


async def test_the_sql_refuses_it_too(session: Session, db: Connection) -> None:
    with pytest.raises(asyncpg.PostgresError) as caught:
        await db.fetch("SELECT * FROM blackboard.find_ids($1, 'task', 'ABCDEF')", session.id)
    assert isinstance(from_asyncpg(caught.value), InvalidInput)
    assert await db.fetchval("SELECT count(*) FROM blackboard.find_ids($1, 'nothing', 'abcdef')", session.id) == 0
    found = await db.fetch("SELECT * FROM blackboard.find_ids(NULL, 'session', $1)", session.id.hex[-12:])
    assert [row[0] for row in found] == [session.id]


@pytest.mark.parametrize(("given", "code"), [("------", 3), ("0" * 33, 3), ("12345", 2), ("checkout", 2)])
async def test_what_the_command_line_makes_of_it(session: Session, cli: Cli, given: str, code: int) -> None:
    assert cli("task", "show", "--json", "--", given, code=code).error


async def test_the_beginning_is_a_range_of_the_key(session: Session, db: Connection) -> None:
    await session.tasks.add_many([NewTask(type="t") for _ in range(2000)])
    await db.execute("ANALYZE blackboard.tasks")
    plan = await db.fetch(
        "EXPLAIN SELECT t.id FROM blackboard.tasks t WHERE t.session_id = $1 AND t.id BETWEEN $2 AND $3",
        session.id, UUID("00" * 16), UUID("01" + "00" * 15),
    )  # fmt: skip
    assert "tasks_pkey" in "\n".join(row[0] for row in plan)
