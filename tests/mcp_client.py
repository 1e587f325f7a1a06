"""Agents that speak MCP: in a process of their own over stdio, or in this one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters, stdio_client
from mcp.types import CallToolResult

from blackboard import Blackboard
from blackboard.mcp.connection import Connection
from blackboard.mcp.environment import Environment
from blackboard.mcp.handlers import make_server
from blackboard.mcp.names import Names

COMMAND = str(Path(sys.executable).parent / "mcp-agent-swarm")


def environment(agent_id: str | None, url: str | None, **variables: str) -> dict[str, str]:
    """What a client's configuration would set; settings of whoever runs the tests stay out."""
    made = {"XDG_CONFIG_HOME": "/nonexistent", "SWARM_BACKEND": "postgres", **variables}
    if agent_id is not None:
        made["AGENT_ID"] = agent_id
    if url is not None:
        made["BLACKBOARD_URL"] = url
    return made


class Speaker:
    """Calls tools by their verbs."""

    def __init__(self, client: Client, *, dotted: bool = False) -> None:
        self.client = client
        self._separator = "." if dotted else "_"

    async def raw(self, verb: str, **arguments: Any) -> CallToolResult:
        return await self.client.call_tool(f"swarm{self._separator}{verb}", arguments)

    async def __call__(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """The structured content of a call that succeeds."""
        result = await self.raw(verb, **arguments)
        assert not result.is_error, text_of(result)
        return result.structured_content

    async def text(self, verb: str, **arguments: Any) -> str:
        """The text of a call that succeeds."""
        result = await self.raw(verb, **arguments)
        assert not result.is_error, text_of(result)
        return text_of(result)

    async def refused(self, verb: str, **arguments: Any) -> tuple[str, dict[str, Any]]:
        """The text and the facts of a call that is answered with an error."""
        result = await self.raw(verb, **arguments)
        assert result.is_error, text_of(result)
        assert "Traceback" not in text_of(result)
        return text_of(result), result.structured_content["error"]


def text_of(result: CallToolResult) -> str:
    """What the model reads."""
    (content,) = result.content
    assert content.type == "text"
    return content.text


@asynccontextmanager
async def spawned(
    agent_id: str, url: str | None, *, dotted: bool = False, errors: Path | None = None, **variables: str
) -> AsyncIterator[Speaker]:
    """A server process of its own, spoken to over stdio."""
    parameters = StdioServerParameters(command=COMMAND, env=environment(agent_id, url, **variables))
    with (errors or Path("/dev/null")).open("w") as log:
        async with Client(stdio_client(parameters, errlog=log)) as client:
            yield Speaker(client, dotted=dotted)


@asynccontextmanager
async def speaking(
    board: Blackboard,
    agent_id: str,
    session: str | None = None,
    *,
    dotted: bool = False,
    share_findings: bool = True,
) -> AsyncIterator[Speaker]:
    """A server in this process."""
    told = Environment(agent_id=agent_id, session=session, dotted=dotted, share_findings=share_findings)
    server = make_server(Connection(board, told), Names(dotted=dotted))
    ready: asyncio.Future[Speaker] = asyncio.get_running_loop().create_future()
    done = asyncio.Event()

    async def live() -> None:
        # A client must be left by the task that entered it, and fixtures are torn down by another one.
        async with Client(server) as client:
            await client.list_tools()
            ready.set_result(Speaker(client, dotted=dotted))
            await done.wait()

    living = asyncio.create_task(live())
    await asyncio.wait({living, ready}, return_when=asyncio.FIRST_COMPLETED)
    if living.done():
        await living
    yield await ready
    done.set()
    await living
