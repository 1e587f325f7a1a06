"""What a worker's guard stops is what it means, and nothing beside it."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from blackboard import Blackboard, Session, TaskContext, Worker


@pytest.mark.parametrize("next_one", ["async", "idle"])
async def test_a_task_whose_time_was_up_before_it_started_stops_no_other(
    board: Blackboard, session: Session, monkeypatch: pytest.MonkeyPatch, next_one: str
) -> None:
    """Neither the next one in its slot nor the slot itself."""
    left = TaskContext.seconds_left.fget
    assert left is not None
    monkeypatch.setattr(
        TaskContext,
        "seconds_left",
        property(lambda ctx: -1.0 if ctx.parameters.get("late") else left(ctx)),
    )
    worker = Worker(board, session, agent_id="w/1", concurrency=1)

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> str:
        await asyncio.sleep(0)
        return "done"

    if next_one == "async":
        # They are claimed ahead of one slot, the late one in their middle.
        for _ in range(20):
            await session.tasks.add("t")
    late = await session.tasks.add("t", {"late": True}, timeout=timedelta(hours=1), max_attempts=1)
    after = [await session.tasks.add("t", max_attempts=1) for _ in range(20)]
    counts = await worker.drain()
    refused = await session.tasks.get(late.id)
    assert (refused.status, refused.error["code"]) == ("dead", "timeout")
    assert [(await session.tasks.get(task.id)).result for task in after] == ["done"] * 20
    assert (counts.dead, counts.retried) == (1, 0)
