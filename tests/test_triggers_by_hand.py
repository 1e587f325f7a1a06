"""What an application's own triggers do to the board's tables is guarded and remembered like what is typed by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

import asyncpg
import psycopg
import pytest

from blackboard import Blackboard, Session
from blackboard.errors import Conflict
from blackboard.store.driver_errors import from_asyncpg

from . import test_cli_grants

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Nested = Callable[[str], Awaitable[None]]

# The fixtures that make roles.
_cli = vars(test_cli_grants)["_cli"]
_role = vars(test_cli_grants)["_role"]

NESTED = """
CREATE TABLE public.orders (id int);
CREATE FUNCTION public.on_order() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {}; RETURN NULL; END $$;
CREATE TRIGGER on_order AFTER INSERT ON public.orders FOR EACH STATEMENT EXECUTE FUNCTION public.on_order();
INSERT INTO public.orders VALUES (1)
"""


@pytest.fixture
async def nested(db: Connection) -> AsyncIterator[Nested]:
    """Runs a statement within a trigger of an application's table."""

    async def run(statement: str) -> None:
        await db.execute(NESTED.format(statement))

    yield run
    await db.execute("DROP TABLE IF EXISTS public.orders; DROP FUNCTION IF EXISTS public.on_order()")


async def test_a_policy_that_a_trigger_changes_is_history(session: Session, nested: Nested) -> None:
    parent = await session.tasks.add("t")
    child = await session.tasks.add("t", depends_on=[parent.id])
    await nested("UPDATE blackboard.task_dependencies SET on_failure = 'continue'")
    [event] = (await session.events.read(topics=["task.dependency_changed"])).events
    assert (event.subject_id, event.data) == (child.id, {"depends_on": str(parent.id), "on_failure": "continue"})
    agent = await session.join("ops/a")
    [task] = await agent.tasks.claim()
    await agent.tasks.fail(task, "broken", retry=False)
    assert (await session.tasks.get(child.id)).status == "pending"


async def test_no_trigger_turns_an_edge_round(session: Session, nested: Nested) -> None:
    parent = await session.tasks.add("t")
    await session.tasks.add("t", depends_on=[parent.id])
    with pytest.raises(asyncpg.PostgresError) as caught:
        await nested("UPDATE blackboard.task_dependencies SET task_id = depends_on_id, depends_on_id = task_id")
    assert isinstance(from_asyncpg(caught.value), Conflict)


@pytest.mark.fresh_database
async def test_an_agents_trigger_settles_nothing(database_url: str, role: Callable[[str], str]) -> None:
    url = role("agent")
    async with Blackboard.open(url) as board:
        session = await board.start("s")
        parent = await session.tasks.add("t")
        child = await session.tasks.add("t", depends_on=[parent.id])
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                b"CREATE TEMP TABLE mine (id int);"
                b"CREATE FUNCTION pg_temp.settle() RETURNS trigger LANGUAGE plpgsql AS "
                b"$$ BEGIN UPDATE blackboard.task_dependencies SET state = 'satisfied'; RETURN NULL; END $$;"
                b"CREATE TRIGGER settle AFTER INSERT ON mine FOR EACH STATEMENT EXECUTE FUNCTION pg_temp.settle()"
            )
            with pytest.raises(psycopg.DatabaseError, match="never change"):
                connection.execute("INSERT INTO mine VALUES (1)")
        agent = await session.join("ops/a")
        [task] = await agent.tasks.claim()
        await agent.tasks.complete(task)
        assert (await session.tasks.get(child.id)).status == "pending"


@pytest.mark.fresh_database
async def test_an_agents_trigger_moves_nothing_in_the_ledger(database_url: str, role: Callable[[str], str]) -> None:
    url = role("agent")
    async with Blackboard.open(database_url) as owner, Blackboard.open(url) as board:
        session = await owner.start("s")
        agent = await (await board.session("s")).join("ops/a")
        await agent.budgets.reserve(tokens=10)
        # Made later: it takes in what is reserved.
        await session.budgets.set("tokens", 1000)
        reserved = await agent.budgets.reserve(tokens=100)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                b"CREATE TEMP TABLE mine (id int);"
                b"CREATE FUNCTION pg_temp.forget() RETURNS trigger LANGUAGE plpgsql AS "
                b"$$ BEGIN UPDATE blackboard.spend SET budget_ids = '{}'; RETURN NULL; END $$;"
                b"CREATE TRIGGER forget AFTER INSERT ON mine FOR EACH STATEMENT EXECUTE FUNCTION pg_temp.forget()"
            )
            with pytest.raises(psycopg.DatabaseError, match="never changed"):
                connection.execute("INSERT INTO mine VALUES (1)")
        await agent.budgets.settle(reserved, tokens=70)
        [budget] = await session.budgets.list()
        assert (budget.reserved, budget.spent) == (10, 70)


async def test_nobody_hides_a_tasks_dependants(session: Session, db: Connection) -> None:
    parent = await session.tasks.add("t")
    child = await session.tasks.add("t", depends_on=[parent.id])
    with pytest.raises(asyncpg.PostgresError) as caught:
        await db.execute("UPDATE blackboard.tasks SET has_dependants = false")
    assert isinstance(from_asyncpg(caught.value), Conflict)
    agent = await session.join("ops/a")
    [task] = await agent.tasks.claim()
    await agent.tasks.complete(task)
    assert (await session.tasks.get(child.id)).status == "pending"


async def test_an_attempt_comes_with_a_step(session: Session, db: Connection) -> None:
    """The number alone would be in no event, and the next claim would be told another one than history says."""
    agent = await session.join("ops/a")
    waiting = await session.tasks.add("t")
    [done] = await agent.tasks.claim(1)
    await agent.tasks.complete(done)
    again = await session.tasks.add("t")
    for task_id in (waiting.id, again.id):
        with pytest.raises(asyncpg.PostgresError) as caught:
            await db.execute("UPDATE blackboard.tasks SET attempt = attempt + 5 WHERE id = $1", task_id)
        assert isinstance(from_asyncpg(caught.value), Conflict), caught.value
