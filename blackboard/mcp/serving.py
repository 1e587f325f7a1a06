"""Opens the board, serves one client over standard input and output, and gives everything back in the end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from io import TextIOWrapper
from typing import NoReturn

import anyio
from mcp.server.stdio import stdio_server

from ..board import Blackboard
from ..errors import BlackboardError, ConfigurationError
from .connection import Connection
from .environment import Environment
from .handlers import make_server
from .names import Names

__all__ = ["serve"]

_log = logging.getLogger(__name__)

_ENDED, _WRONG, _UNAVAILABLE = 0, 2, 4


async def serve(environment: Environment) -> int:
    """Serves until the client closes the connection; the exit code."""
    wire = _take_stdout()
    try:
        board = await Blackboard.open(environment.url, actor=environment.agent_id)
    except BlackboardError as error:
        print(f"mcp-agent-swarm: {error.code}: {error.message}", file=sys.stderr)
        return _WRONG if isinstance(error, ConfigurationError) else _UNAVAILABLE
    loop = asyncio.get_running_loop()
    ending: list[asyncio.Task[NoReturn]] = []

    def end() -> None:
        if not ending:
            ending.append(loop.create_task(_end(board)))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    try:
        server = make_server(Connection(board, environment), Names(dotted=environment.dotted))
        async with stdio_server(stdout=anyio.wrap_file(wire)) as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())
    except* (BrokenPipeError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        _log.info("the client has gone")
    finally:
        await _close(board)
    return _ENDED


def _take_stdout() -> TextIOWrapper:
    """The protocol's own stream. Whatever else prints to standard output reaches standard error from now on."""
    sys.stdout.flush()
    wire = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return TextIOWrapper(wire, encoding="utf-8")


async def _close(board: Blackboard) -> None:
    try:
        await asyncio.wait_for(board.close(), 10)
    except Exception as error:  # the lease ends by itself then, after its term
        _log.warning("the board was not closed in order: %s", error)


async def _end(board: Blackboard) -> NoReturn:
    """A signal came: what the agent holds goes back at once, and the process ends.

    A thread waits inside a read of standard input that nothing can interrupt, so the interpreter is not left the
    ordinary way.
    """
    await _close(board)
    sys.stderr.flush()
    os._exit(_ENDED)
