"""Resources: every session as a page that a client can show or attach."""

from __future__ import annotations

from urllib.parse import quote, unquote

from mcp import MCPError
from mcp.types import (
    INVALID_PARAMS,
    Resource,
    ResourceTemplate,
    TextResourceContents,
)

from ..errors import BlackboardError
from ..models.sessions import SessionStatus
from .board_answer import Reader, board_answer
from .connection import Connection
from .fence import quoted
from .names import Names

__all__ = ["TEMPLATE", "list_resources", "read_resource"]

_PREFIX = "blackboard://session/"
_MIME = "text/plain"
_LISTED = 50

TEMPLATE = ResourceTemplate(
    name="session",
    title="A session on the blackboard",
    uri_template=f"{_PREFIX}{{name}}",
    description="The whole session at a glance, by its name or id.",
    mime_type=_MIME,
)


async def list_resources(connection: Connection) -> list[Resource]:
    """The open sessions, newest first."""
    return [
        Resource(
            name=session.name,
            title=f"Session {session.name}",
            uri=f"{_PREFIX}{quote(session.name, safe='')}",
            description=quoted(session.goal, 200),
            mime_type=_MIME,
        )
        for status in (SessionStatus.ACTIVE, SessionStatus.PAUSED)
        for session in await connection.board.sessions.list(status=status, limit=_LISTED)
    ][:_LISTED]


async def read_resource(connection: Connection, names: Names, uri: str) -> TextResourceContents:
    """The session's page.

    Raises:
        MCPError: there is no such resource, or the board cannot be read.
    """
    name = unquote(uri.removeprefix(_PREFIX))
    if not uri.startswith(_PREFIX) or not name:
        raise MCPError(INVALID_PARAMS, f"There is no resource {quoted(uri, 200)}; use {_PREFIX}NAME.")
    try:
        session = await connection.board.session(name)
        joined = connection.joined
        mine = joined is not None and joined.session.id == session.id
        reader = (
            Reader.of(joined, share_findings=connection.share_findings)
            if joined is not None and mine
            else Reader(session, connection.agent_id, (), connection.share_findings)
        )
        page = await board_answer(reader, names, f"Session {quoted(session.name, 200)}.", limit=50, max_tokens=10_000)
    except BlackboardError as error:
        raise MCPError(INVALID_PARAMS, f"{error.code}: {error.message}") from error
    return TextResourceContents(uri=uri, text=page.text, mime_type=_MIME)
