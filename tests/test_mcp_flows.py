"""A stage of a flow, claimed over MCP: its agent is told what it reads."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from blackboard import Blackboard, Session, Stage

from .mcp_client import Speaker, speaking


@pytest.fixture
async def agent(board: Blackboard, session: Session) -> AsyncIterator[Speaker]:
    async with speaking(board, "ops/a", session.name) as speaker:
        yield speaker


async def test_a_stage_is_claimed_with_its_bound_inputs(session: Session, agent: Speaker) -> None:
    await agent("join_session")
    await session.flows.create(
        "release",
        [
            Stage("build", "build"),
            Stage(
                "test",
                "test",
                after=["build"],
                inputs={"image": "build.image.tag", "region": "inputs.region", "missing": "build.nothing"},
            ),
        ],
        inputs={"region": "eu"},
    )
    first = await agent("claim_task")
    assert first["bound_inputs"] == {}
    held = {"task_id": first["task"]["id"], "token": first["token"]}
    await agent("complete_task", **held, result={"image": {"tag": "v7"}, "log": "long"})
    text = await agent.text("claim_task", idempotency_key="k")
    second = await agent("claim_task", idempotency_key="k")
    assert second["bound_inputs"] == {"image": "v7", "region": "eu", "missing": None}
    assert '| input "image":\n| v7\n' in text, "inside the marks"
