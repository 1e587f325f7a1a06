"""The protocol's side of the tools: listing, checking arguments, calling, and turning errors into answers."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import Any

from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.types import (
    CallToolRequestParams,
    CallToolResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    TextContent,
    ToolAnnotations,
)
from mcp.types import Tool as ListedTool
from pydantic import ValidationError

from ..errors import BlackboardError
from .connection import Connection
from .fence import quoted
from .instructions import instructions
from .names import Names
from .refusals import Refused, from_error, from_fault, from_validation
from .resources import TEMPLATE, list_resources, read_resource
from .schema import input_schema, output_schema
from .tool import Call, Tool
from .tools_budgets import BUDGET_TOOLS
from .tools_decisions import DECISION_TOOLS
from .tools_findings import FINDING_TOOLS
from .tools_hypotheses import HYPOTHESIS_TOOLS
from .tools_session import SESSION_TOOLS
from .tools_tasks import TASK_TOOLS
from .tools_wait import WAIT_TOOLS

__all__ = ["TOOLS", "make_server"]

_log = logging.getLogger(__name__)

_Context = ServerRequestContext[dict[str, Any], Any]

TOOLS: dict[str, Tool[Any]] = {
    tool.verb: tool
    for tool in (
        *SESSION_TOOLS, *WAIT_TOOLS, *FINDING_TOOLS, *TASK_TOOLS, *DECISION_TOOLS, *HYPOTHESIS_TOOLS,
        *BUDGET_TOOLS,
    )
}  # fmt: skip
"""Every tool by its verb, in the order in which they are listed."""


def make_server(connection: Connection, names: Names) -> Server[dict[str, Any]]:
    """A server that speaks for one agent."""
    listed = [_listed(tool, names) for tool in TOOLS.values()]

    async def list_tools(context: _Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        del context, params
        return ListToolsResult(tools=listed)

    async def call_tool(context: _Context, params: CallToolRequestParams) -> CallToolResult:
        call = Call(connection, names, context.session.report_progress)
        try:
            return await _called(call, params.name, params.arguments or {})
        except Refused as refused:
            return CallToolResult(
                content=[TextContent(type="text", text=refused.text(names))],
                structured_content={"error": refused.data(names)},
                is_error=True,
            )

    async def list_pages(context: _Context, params: PaginatedRequestParams | None) -> ListResourcesResult:
        del context, params
        return ListResourcesResult(resources=await list_resources(connection))

    async def list_templates(context: _Context, params: PaginatedRequestParams | None) -> ListResourceTemplatesResult:
        del context, params
        return ListResourceTemplatesResult(resource_templates=[TEMPLATE])

    async def read_page(context: _Context, params: ReadResourceRequestParams) -> ReadResourceResult:
        del context
        return ReadResourceResult(contents=[await read_resource(connection, names, str(params.uri))])

    return Server(
        "agent-swarm",
        title="Blackboard",
        version=version("agent-blackboard"),
        instructions=instructions(names, connection.agent_id),
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_pages,
        on_list_resource_templates=list_templates,
        on_read_resource=read_page,
    )


async def _called(call: Call, name: str, given: dict[str, Any]) -> CallToolResult:
    tool = TOOLS.get(Names.verb(name))
    if tool is None:
        raise Refused(
            "unknown_tool",
            f"There is no tool {quoted(name, 100)}.",
            f"Use one of {', '.join(call.names[verb] for verb in TOOLS)}.",
        )
    try:
        arguments = tool.arguments.model_validate(given)
    except ValidationError as error:
        raise from_validation(error, tool.verb, list(tool.arguments.model_fields)) from None
    try:
        answer = await tool.run(call, arguments)
    except Refused:
        raise
    except BlackboardError as error:
        _log.info("%s was refused: %s: %s", tool.verb, error.code, error)
        raise from_error(error, tool.arguments.model_fields) from error
    except Exception as error:
        _log.exception("%s failed", tool.verb)
        raise from_fault(call.names[tool.verb]) from error
    text = f"{answer.text}\nWhat to do: {answer.advice}" if answer.advice else answer.text
    return CallToolResult(
        content=[TextContent(type="text", text=text)],
        structured_content=answer.data.model_dump(mode="json") | {"next": answer.advice},
    )


def _listed(tool: Tool[Any], names: Names) -> ListedTool:
    return ListedTool(
        name=names[tool.verb],
        title=tool.title,
        description=names.fill(tool.description),
        input_schema=_filled(input_schema(tool.arguments), names),
        output_schema=output_schema(tool.result),
        annotations=ToolAnnotations(
            title=tool.title,
            read_only_hint=not tool.writes,
            destructive_hint=False,
            idempotent_hint=tool.idempotent or not tool.writes,
            open_world_hint=False,
        ),
    )


def _filled(schema: Any, names: Names) -> Any:
    """The schema with tools by their listed names in its descriptions."""
    if isinstance(schema, dict):
        return {
            key: names.fill(value) if key == "description" and isinstance(value, str) else _filled(value, names)
            for key, value in schema.items()  # pyright: ignore[reportUnknownVariableType]
        }
    if isinstance(schema, list):
        return [_filled(item, names) for item in schema]  # pyright: ignore[reportUnknownVariableType]
    return schema
