"""Duplicate queries: one execution, whoever dies or fails on the way."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from blackboard import Agent, Blackboard, Session
from blackboard.errors import InvalidInput, PayloadTooLarge, WaitTimeout
from blackboard.swarm import Queries
from blackboard.swarm.queries import fingerprint

from .conftest import eventually


@pytest.fixture
async def agent(session: Session) -> Agent:
    return await session.join("ops/a", capabilities=["investigate"])


async def asked(session: Session, status: str) -> Any:
    return await eventually(lambda: session.tasks.list(type="query", status=status))


async def test_the_second_asker_gets_the_first_ones_answer(session: Session, agent: Agent) -> None:
    other = Queries(await session.join("ops/b"))
    answers = iter(["first", "second"])
    assert await Queries(agent).run("Prometheus", "rate( errors[5m])", lambda: next(answers)) == "first"
    assert await other.run(" prometheus ", " rate(  errors[5m])\n", lambda: next(answers)) == "first"
    assert await other.run("prometheus", "rate( ERRORS[5m])", lambda: next(answers)) == "second"
    (first, second) = await session.tasks.list(type="query")
    assert {first.parameters["query"], second.parameters["query"]} == {"rate( errors[5m])", "rate( ERRORS[5m])"}


async def test_keys_in_another_order_are_the_same_query(session: Session, agent: Agent) -> None:
    queries = Queries(agent)
    assert await queries.run("db", {"a": [1, {"x": 1, "y": 2}], "b": None}, lambda: 1) == 1
    assert await queries.run("db", {"b": None, "a": [1, {"y": 2, "x": 1}]}, lambda: 2) == 1
    assert await queries.run("db", {"b": None, "a": [{"y": 2, "x": 1}, 1]}, lambda: None) is None


async def test_who_asks_meanwhile_waits(session: Session, agent: Agent) -> None:
    go = asyncio.Event()

    async def execute() -> str:
        await go.wait()
        return "answer"

    first = asyncio.create_task(Queries(agent).run("s", "q", execute))
    await asked(session, "running")
    other = Queries(await session.join("ops/b"))
    with pytest.raises(WaitTimeout, match="'q'"):
        await other.run("s", "q", execute, timeout=timedelta(milliseconds=20))
    second = asyncio.create_task(other.run("s", "q", pytest.fail))
    go.set()
    assert await asyncio.gather(first, second) == ["answer", "answer"]


async def test_when_the_first_asker_dies_the_next_one_runs_it(
    session: Session, agent: Agent, database_url: str
) -> None:
    waiting = asyncio.Event()
    async with Blackboard.open(database_url) as doomed:
        dying = await (await doomed.session(session.id)).join("ops/dying")
        lost = asyncio.create_task(Queries(dying).run("s", "q", waiting.wait))
        await asked(session, "running")
        second = asyncio.create_task(Queries(agent).run("s", "q", lambda: "from the second"))
        # Its process is gone, as far as the board can know: the lease ends while the work still runs.
        await doomed._leases.end()
        assert await second == "from the second"
        waiting.set()
        assert await lost is True  # its own answer; the board keeps it aside
    (task,) = await session.tasks.list(type="query")
    assert task.result == {"answer": "from the second"}
    assert len(await session.tasks.late_results(task.id)) == 1


async def test_when_it_fails_the_next_one_may_try(session: Session, agent: Agent) -> None:
    queries = Queries(agent)

    def refuse() -> None:
        raise LookupError("no route")

    for _ in range(7):
        with pytest.raises(LookupError, match="no route"):
            await queries.run("s", "q", refuse)
    (task,) = await session.tasks.list(type="query")
    assert task.error["message"] == "no route"
    assert await queries.run("s", "q", lambda: [1, 2]) == [1, 2]


async def test_a_cancelled_asker_hands_the_query_back(session: Session, agent: Agent) -> None:
    first = asyncio.create_task(Queries(agent).run("s", "q", asyncio.Event().wait))
    await asked(session, "running")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await Queries(agent).run("s", "q", lambda: 1) == 1


async def test_nobody_else_claims_a_query(session: Session, agent: Agent) -> None:
    first = asyncio.create_task(Queries(agent).run("s", "q", asyncio.Event().wait))
    await asked(session, "running")
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await asked(session, "pending")
    assert await agent.tasks.claim(10) == []


async def test_what_is_no_query_or_no_answer_is_refused(session: Session, agent: Agent) -> None:
    queries = Queries(agent)
    with pytest.raises(InvalidInput) as caught:
        await queries.run("", "q", pytest.fail)
    assert caught.value.field == "source"
    with pytest.raises(InvalidInput):
        await queries.run("s", float("nan"), pytest.fail)
    with pytest.raises(InvalidInput):
        await queries.run("s", "q", object)
    with pytest.raises(PayloadTooLarge):
        await queries.run("s", "q", lambda: "x" * 2_000_000)
    assert await queries.run("s", "q", lambda: "small") == "small"


async def test_unshared_queries_just_run(session: Session, agent: Agent) -> None:
    answers = iter([1, 2])
    queries = Queries(agent, shared=False)
    assert [await queries.run("s", "q", lambda: next(answers)) for _ in range(2)] == [1, 2]
    assert await session.tasks.list(type="query") == []


def test_fingerprints() -> None:
    assert fingerprint(" Log  File ", "a  b\n") == ("log file", "a b")
    assert fingerprint("x", ["a  b"]) == ("x", ["a  b"])
