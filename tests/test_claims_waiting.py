"""Who waits for a task looks no more often than that something may have changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest

from blackboard import Blackboard, Session

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def test_a_due_task_that_somebody_has_locked_is_not_asked_for_over_and_over(
    board: Blackboard, session: Session, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await session.tasks.add("t", run_at=datetime.now(UTC) + timedelta(hours=1))
    agent = await session.join("ops/a")
    await db.execute(
        "UPDATE blackboard.tasks SET run_at = blackboard.now() - interval '1 second' WHERE id = $1", task.id
    )
    transaction = db.transaction()
    await transaction.start()
    await db.execute("SELECT 1 FROM blackboard.tasks WHERE id = $1 FOR UPDATE", task.id)
    asked: list[str] = []
    rows = board._executor._rows  # type: ignore[attr-defined]

    async def noted(statement: Any, params: Any) -> Any:
        asked.append(statement.name)
        return await rows(statement, params)

    monkeypatch.setattr(board._executor, "_rows", noted)
    assert await agent.tasks.claim(wait=timedelta(seconds=1.5)) == []
    # At once, again as soon as it was seen that something is due, and then once a second.
    assert len(asked) <= 12, asked
    await transaction.rollback()
    [claimed] = await agent.tasks.claim(wait=timedelta(seconds=20))
    assert claimed.id == task.id
