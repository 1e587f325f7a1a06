"""What tools refuse and how they are described."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client

from blackboard import Blackboard, Session
from blackboard.mcp.environment import Environment, read_environment
from blackboard.mcp.fence import Fence, quoted
from blackboard.mcp.handlers import TOOLS
from blackboard.mcp.names import Names

from .mcp_client import Speaker, speaking


@pytest.fixture
async def agent(board: Blackboard, session: Session) -> AsyncIterator[Speaker]:
    async with speaking(board, "ops/a", session.name) as speaker:
        yield speaker


@pytest.fixture
async def other(board: Blackboard, session: Session) -> AsyncIterator[Speaker]:
    async with speaking(board, "ops/b", session.name) as speaker:
        yield speaker


# ----------------------------------------------------------------------------------------- arguments and schemas


async def _events(session: Session) -> list[tuple[str, str]]:
    return [(event.type, str(event.subject_id)) for event in (await session.events.read(limit=10_000)).events]


@pytest.mark.parametrize(
    ("verb", "arguments", "says"),
    [
        ("post_finding", {}, "content is required"),
        ("post_finding", {"content": "x", "confidence": 1.5}, "confidence should be less than or equal to 1, got 1.5"),
        ("post_finding", {"content": "x", "confidence": "nan"}, "confidence"),
        ("post_finding", {"content": "x", "agent_id": "ops/boss"}, "bound to this connection"),
        ("post_finding", {"content": "x", "colour": "red"}, "is no argument of this tool"),
        ("post_finding", {"content": "x", "category": "rumour"}, "'observation', 'hypothesis' or 'conclusion'"),
        ("post_finding", {"content": "x", "evidence": [{"query": "q"}]}, "evidence.0.source is required"),
        ("post_finding", {"content": "a\0b"}, "zero byte"),
        ("post_finding", {"content": "x" * (1 << 21)}, "payload_too_large"),
        ("post_finding", {"content": "x", "derived_from": [str(uuid.UUID(int=5))]}, "no finding"),
        ("wait", {"timeout_seconds": 301}, "timeout_seconds should be less than or equal to 300"),
        ("wait", {"topics": ["findings"]}, "write finding.*"),
        ("wait", {"cursor": "tomorrow"}, "no cursor"),
        ("claim_task", {"wait_seconds": 61}, "wait_seconds should be less than or equal to 60"),
        ("vote", {"proposal_id": "the second", "choice": "yes"}, "proposal_id should be a valid UUID"),
        ("propose_action", {"type": "destroy", "target": "x"}, "'query', 'modify', 'notify' or 'escalate'"),
        ("propose_action", {"type": "modify", "target": "x", "threshold": 0.7}, "threshold"),
        ("join_session", {"expertise": {"observation": 7}}, "expertise"),
    ],
)
async def test_bad_arguments_are_named_and_leave_nothing(
    session: Session, agent: Speaker, verb: str, arguments: dict[str, Any], says: str
) -> None:
    await agent("join_session")
    before = await _events(session)
    text, error = await agent.refused(verb, **arguments)
    assert says in text
    assert "What to do: " in text
    assert "pydantic" not in text
    assert len(text) < 1000
    assert error["code"] in {"invalid_input", "payload_too_large", "not_found"}
    assert await _events(session) == before


async def test_objects_and_lists_may_come_as_json_text(agent: Speaker) -> None:
    posted = await agent(
        "post_finding", content="x", evidence='[{"source": "log"}]', tags='["a"]', confidence="0.5", type="note"
    )
    found = (await agent("get_findings", ids=f'["{posted["finding_id"]}"]'))["findings"]
    assert (found[0]["evidence"], found[0]["tags"], found[0]["confidence"]) == ([{"source": "log"}], ["a"], 0.5)


async def test_an_unknown_tool_lists_those_there_are(agent: Speaker) -> None:
    text, error = await agent.refused("send_mail")
    assert error["code"] == "unknown_tool"
    assert "swarm_claim_task" in text


async def test_a_fault_of_ours_tells_the_model_nothing(
    agent: Speaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    await agent("join_session")
    monkeypatch.setattr("blackboard.mcp.tools_session.board_answer", broken)
    text, error = await agent.refused("view")
    assert (error["code"], "secret" in text) == ("internal", False)
    assert "secret detail" in caplog.text


async def test_schemas_are_plain_and_described(agent: Speaker) -> None:
    tools = (await agent.client.list_tools()).tools
    assert [tool.name for tool in tools][:3] == ["swarm_join_session", "swarm_view", "swarm_wait"]
    for tool in tools:
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", tool.name)
        listed = json.dumps(tool.input_schema)
        for word in ('"$ref"', '"$defs"', '"null"', '"title": "', "{claim_task}", "{view}"):
            assert word not in listed, (tool.name, word)
        assert "{" not in (tool.description or "")
        for name, schema in tool.input_schema["properties"].items():
            assert schema.get("description"), (tool.name, name)
        assert "$ref" not in json.dumps(tool.output_schema)
    assert len(json.dumps([[tool.name, tool.description, tool.input_schema] for tool in tools])) < 30_000


async def test_instructions_are_short_and_name_the_tools(agent: Speaker, board: Blackboard) -> None:
    client: Client = agent.client
    assert client.instructions is not None
    assert "ops/a" in client.instructions
    assert len(client.instructions.splitlines()) <= 16
    assert set(re.findall(r"swarm_(\w+)", client.instructions)) <= set(TOOLS)


def test_the_environment_is_read_and_options_are_stronger() -> None:
    variables = {
        "AGENT_ID": "ops/a",
        "BLACKBOARD_URL": "",
        "DATABASE_URL": "postgresql://x/y",
        "SWARM_SESSION": "INC-1",
        "SWARM_CAPABILITIES": "logs, metrics,",
        "SWARM_TOOL_NAMES": "Dotted",
    }
    told = read_environment(variables, [])
    assert told == Environment("ops/a", "postgresql://x/y", "INC-1", ("logs", "metrics"), dotted=True)
    told = read_environment(
        variables | {"BLACKBOARD_URL": "postgresql://first/y"},
        ["--agent-id", "ops/b", "--session", "INC-2", "--capabilities", "deploy"],
    )
    assert told == Environment("ops/b", "postgresql://first/y", "INC-2", ("deploy",), dotted=True)
    assert read_environment({"AGENT_ID": "a"}, []) == Environment("a")


def test_both_names_mean_the_same_tool() -> None:
    for dotted in (False, True):
        names = Names(dotted=dotted)
        for verb in TOOLS:
            assert {Names.verb(f"swarm_{verb}"), Names.verb(f"swarm.{verb}"), Names.verb(names[verb])} == {verb}
    assert Names().fill('{claim_task} with {"a": 1} {} {X}') == 'swarm_claim_task with {"a": 1} {} {X}'


@given(st.text())
def test_no_text_leaves_its_fence_or_its_line(text: str) -> None:
    fence = Fence()
    lines = fence.around("label", [text]).splitlines()
    assert lines[0].startswith("--- begin data ")
    assert lines[-1] == f"--- end data {fence.number} ---"
    assert all(line.startswith("| ") for line in lines[1:-1])
    for shown_as in (quoted(text), quoted([text])):
        assert len(f"x{shown_as}x".splitlines()) == 1
        assert shown_as.isprintable()
