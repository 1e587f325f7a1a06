"""Claims and completions of many sessions whose answer is lost: what was done counts, once, and in each of them."""

# ruff: noqa: F401, F811 - fixtures are imported, and asked for by name

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from blackboard import Blackboard, NewTask, Session, TaskContext, Worker

from .chaos.kit import door, far_board
from .chaos.proxy import Ambush, Door
from .conftest import eventually


@pytest.fixture
def far_term() -> timedelta:
    """Nothing here can wait for a lapse."""
    return timedelta(hours=1)


@pytest.fixture
async def sessions(board: Blackboard) -> list[Session]:
    return [await board.start(f"many-{n}") for n in range(3)]


async def story(session: Session, task_id: Any) -> list[str]:
    events = (await session.events.read(subject_id=task_id)).events
    return [event.type.removeprefix("task.") for event in events]


@pytest.mark.parametrize("verb", ["claim_tasks_across", "complete_tasks_across"])
async def test_what_was_done_in_many_sessions_is_asked_for_again(
    verb: str, sessions: list[Session], far_board: Blackboard, door: Door
) -> None:
    worker = Worker(far_board, [session.name for session in sessions], agent_id="w/there", concurrency=9)
    together = asyncio.Barrier(9)

    @worker.handler("t")
    async def handle(ctx: TaskContext) -> str:
        # All end at once, so that they are written at once.
        await together.wait()
        return ctx.session.name

    ids = [await session.tasks.add_many([NewTask(type="t") for _ in range(3)]) for session in sessions]
    ambush = door.lay(Ambush(lambda text: f"blackboard.{verb}(" in text, rows="claim" in verb))
    async with asyncio.timeout(60):
        counts = await worker.drain()
    assert ambush.sprung.is_set()
    assert (counts.claimed, counts.completed, counts.refused, counts.lost) == (9, 9, 0, 0)
    for session, mine in zip(sessions, ids, strict=True):
        assert {task.result for task in await session.tasks.list()} == {session.name}
        assert [await story(session, one) for one in mine] == [["created", "assigned", "completed"]] * 3
        assert [await session.tasks.late_results(one) for one in mine] == [[]] * 3


async def test_a_worker_joins_many_sessions_though_the_answer_is_lost(
    sessions: list[Session], far_board: Blackboard, door: Door
) -> None:
    ambush = door.lay(Ambush(lambda text: "blackboard.join_sessions(" in text, rows=True))
    agents = await far_board.join([session.id for session in sessions], "w/there", capabilities=["c"])
    assert ambush.sprung.is_set()
    assert [agent.session.name for agent in agents] == ["many-0", "many-1", "many-2"]
    for session in sessions:
        joined = [event for event in (await session.events.read()).events if event.type == "agent.joined"]
        assert len(joined) == 1

        async def present(session: Session = session) -> bool:
            return (await session.agents.get("w/there")).present

        await eventually(present)
