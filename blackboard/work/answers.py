"""How long a worker waits for an answer: a connection may be dead without anybody ever saying so.

Meanwhile the heartbeat, on a connection of its own, keeps the lease: without a limit here the tasks would stay with a
worker that never does them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from ..errors import ServerUnreachable

__all__ = ["ANSWER_SECONDS", "COMMIT_SECONDS", "in_time"]

ANSWER_SECONDS = 10.0
"""For what the worker asks itself; twice as long after a failure, so that what really takes long is done at last."""

COMMIT_SECONDS = 30.0
"""For the beginning of a handler's transaction, the completion in it, and its commit, each."""


@asynccontextmanager
async def in_time(seconds: float) -> AsyncGenerator[None]:
    """What is asked inside is answered within ``seconds``.

    Raises:
        ServerUnreachable: it was not; asking once more takes another connection.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise ServerUnreachable(f"PostgreSQL did not answer within {seconds:.0f} s; repeat the call.") from error
