"""The command ``mcp-agent-swarm``: ``--help`` says what it reads from its environment."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from .environment import WrongEnvironment, read_environment

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Serves one agent over standard input and output; never returns. ``--help`` lists the exit codes."""
    try:
        environment = read_environment(os.environ, arguments)
    except WrongEnvironment as error:
        _refuse(str(error))
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="mcp-agent-swarm: %(name)s: %(message)s")
    try:
        from .serving import serve  # after the quick answers: it imports everything
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"mcp", "mcp_types", "anyio"}:
            raise
        _refuse("the package mcp is not installed: pip install 'agent-blackboard[mcp]'")
    sys.exit(asyncio.run(serve(environment)))


def _refuse(message: str) -> NoReturn:
    print(f"mcp-agent-swarm: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
