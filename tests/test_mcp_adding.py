"""What add_task takes beside the work itself, and that its errors are told by the names of its arguments."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from blackboard import Blackboard, Session

from .mcp_client import Speaker, speaking


@pytest.fixture
async def agent(board: Blackboard, session: Session) -> AsyncIterator[Speaker]:
    async with speaking(board, "ops/a", session.name) as speaker:
        await speaker("join_session")
        yield speaker


async def test_a_task_takes_what_the_library_takes(session: Session, agent: Speaker) -> None:
    at = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    added = await agent(
        "add_task", type="mail", run_at=at.isoformat(), expires_at=(at + timedelta(hours=1)).isoformat(),
        assigned_to="ops/b", fallback_seconds=60, timeout_seconds=5, max_attempts=3, retry_delay_seconds=0.5,
        unique="once", unique_window_seconds=3600, limit_key="customer",
    )  # fmt: skip
    task = await session.tasks.get(added["task_id"])
    assert (task.status, task.run_at, task.expires_at) == ("scheduled", at, at + timedelta(hours=1))
    assert (task.fallback, task.timeout) == (timedelta(minutes=1), timedelta(seconds=5))
    assert (task.max_attempts, task.retry_delay) == (3, timedelta(seconds=0.5))
    assert (task.unique_key, task.limit_key) == ("once", "customer")
    assert (await agent("add_task", type="mail", unique="once"))["task_id"] == added["task_id"]
    plain = await session.tasks.get((await agent("add_task", type="mail"))["task_id"])
    assert (plain.max_attempts, plain.retry_delay, plain.unique_key) == (5, timedelta(seconds=1), None)


@pytest.mark.parametrize(
    ("arguments", "field", "says"),
    [
        ({"run_at": "2030-01-01T00:00:00"}, "run_at", "run_at should have timezone info"),
        ({"run_at": "2030-01-02T00:00:00Z", "expires_at": "2030-01-01T00:00:00Z"}, "expires_at", "later than run_at"),
        ({"fallback_seconds": 5}, "fallback_seconds", "fallback_seconds needs assigned_to"),
        ({"unique_window_seconds": 5}, "unique_window_seconds", "how long unique holds"),
        ({"unique": "k", "unique_window_seconds": 1e300}, "unique_window_seconds", "is too long"),
        ({"retry_delay_seconds": 1e8}, "retry_delay_seconds", "retry_delay_seconds must be between 0 and 30 days"),
        ({"max_attempts": 0}, "max_attempts", "max_attempts should be greater"),
    ],
)
async def test_what_is_refused_is_named_as_the_argument(
    session: Session, agent: Speaker, arguments: dict[str, Any], field: str, says: str
) -> None:
    text, error = await agent.refused("add_task", type="t", **arguments)
    assert says in text
    assert (error["code"], error["details"]["field"]) == ("invalid_input", field)
    assert await session.tasks.list() == []


async def test_a_topic_that_nothing_is_ever_about_is_refused(agent: Speaker) -> None:
    for topic in ("tasks.*", "bogus.*", "findings"):
        text, _ = await agent.refused("wait", topics=[topic], timeout_seconds=0)
        assert "is no kind of event" in text
    assert "write task.*" in (await agent.refused("wait", topics=["tasks.*"]))[0]
    for topic in ("*", "schedule.*", "agent.task.assigned", "flow.created"):
        await agent("wait", topics=[topic], timeout_seconds=0)
