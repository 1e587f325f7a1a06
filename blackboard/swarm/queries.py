"""Duplicate queries are avoided: a query's fingerprint is claimed before it runs, and its answer is kept.

The claim is a task of the board, so that it has a lease: when its asker dies, the next one runs the query.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from time import monotonic
from typing import Any
from uuid import UUID, uuid5

from ..board import Agent
from ..errors import BlackboardError, LeaseLost, WaitTimeout
from ..jsonable import check_text, dump_json
from ..models.tasks import TaskRecord, TaskStatus

__all__ = ["BlockingQueries", "Queries", "fingerprint"]

QUERY = "query"
_CAPABILITY = "swarm.query"
"""Nobody offers it: a query is run by those who ask it, and by nobody else."""
_LOOK = timedelta(seconds=1)


def fingerprint(source: str, query: Any) -> tuple[str, Any]:
    """Source and query such that equal questions look equal.

    Case and white space around and within the source do not count, nor does white space around the query, nor how
    much of it there is inside, nor the order of keys. The query's case does.

    Raises:
        InvalidInput: the source is no text, or the query no JSON value.
    """
    name = " ".join(check_text(source, "source", 1000, 1).split()).casefold()
    dump_json(query, "query")
    return name, " ".join(query.split()) if isinstance(query, str) else query


class Queries:
    """Asks questions that other agents of the session may ask too."""

    def __init__(self, agent: Agent, *, shared: bool = True) -> None:
        """``shared`` False runs every query, as ``avoid_duplicate_queries: false`` wants it."""
        self._agent = agent
        self.shared = shared

    async def run(
        self,
        source: str,
        query: Any,
        execute: Callable[[], Any | Awaitable[Any]],
        *,
        timeout: timedelta | None = None,
    ) -> Any:
        """The answer to the query, which ran once in this session however many asked.

        The first asker runs ``execute``. Who asks meanwhile waits for its answer, who asks later gets it at once. When
        the first one dies, or its ``execute`` fails, the next one runs it.

        Args:
            source: what is asked, such as ``prometheus`` or a file's name.
            query: text or any JSON value.
            execute: asks it; may be async. Its answer must be a JSON value of up to 1 MiB.
            timeout: how long to wait for somebody else's answer.

        Raises:
            InvalidInput: source, query or answer is refused.
            SessionClosed: the session is over.
            WaitTimeout: somebody else's answer did not come in time.
            Exception: what ``execute`` raised.
        """
        if not self.shared:
            return await _await(execute())
        task, answer = await self.begin(source, query, timeout)
        if task is None:
            return answer
        try:
            answer = await _await(execute())
        except BaseException as error:
            await self.give_up(task, error)
            raise
        await self.finish(task, answer)
        return answer

    async def begin(self, source: str, query: Any, timeout: timedelta | None) -> tuple[TaskRecord | None, Any]:
        """The claimed task, for the one who runs the query; None and the answer for all others."""
        name, normal = fingerprint(source, query)
        tasks = self._agent.tasks
        task_id = _query_id(self._agent.session.id, name, normal)
        ends = None if timeout is None else monotonic() + timeout.total_seconds()
        while True:
            task = await tasks.add(
                QUERY, {"source": name, "query": normal}, capability=_CAPABILITY, max_attempts=1000, id=task_id
            )
            if task.status is TaskStatus.COMPLETED:
                return None, task.result["answer"]
            if task.status in {TaskStatus.FAILED, TaskStatus.DEAD}:
                with suppress(BlackboardError):
                    await tasks.redrive(task_id)
            try:
                claimed = await tasks.claim_by_id(task_id)
            except LeaseLost:  # this process slept past its lease; the next call starts a new one
                claimed = await tasks.claim_by_id(task_id)
            if claimed is not None:
                return claimed, None
            left = None if ends is None else ends - monotonic()
            if left is not None and left <= 0:
                raise WaitTimeout(f"Nobody has answered {query!r:.200} in time; ask again.", id=str(task_id))
            if task.status is TaskStatus.CANCELLED:
                raise WaitTimeout(f"The query {query!r:.200} was cancelled.", id=str(task_id))
            with suppress(WaitTimeout):
                await tasks.wait(task_id, _LOOK if left is None else min(_LOOK, timedelta(seconds=left)))

    async def finish(self, task: TaskRecord, answer: Any) -> None:
        """The answer is there for all who ask."""
        try:
            await self._agent.tasks.complete(task, {"answer": answer})
        except LeaseLost:
            return  # somebody else runs it again; this answer is as good
        except BlackboardError as error:
            await self.give_up(task, error)
            raise

    async def give_up(self, task: TaskRecord, error: BaseException) -> None:
        """The next one who asks runs the query."""
        with suppress(BlackboardError):
            if isinstance(error, Exception):
                await self._agent.tasks.fail(task, error, delay=timedelta(0))
            else:  # cancelled, or the process ends
                await self._agent.tasks.release(task)


class BlockingQueries:
    """The same for a function that is not async; ``execute`` runs in the caller's thread."""

    def __init__(self, queries: Queries, loop: asyncio.AbstractEventLoop) -> None:
        """``loop`` runs in another thread."""
        self._queries = queries
        self._loop = loop

    def run(self, source: str, query: Any, execute: Callable[[], Any], *, timeout: timedelta | None = None) -> Any:
        """The answer to the query, which ran once in this session; see ``Queries.run``."""
        queries = self._queries
        if not queries.shared:
            return execute()
        task, answer = self._wait(queries.begin(source, query, timeout))
        if task is None:
            return answer
        try:
            answer = execute()
        except BaseException as error:
            self._wait(queries.give_up(task, error))
            raise
        self._wait(queries.finish(task, answer))
        return answer

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _query_id(session_id: UUID, source: str, query: Any) -> UUID:
    # Keys in order: orjson keeps the order of a dict, and two askers may write theirs differently.
    return uuid5(session_id, f"query\n{source}\n{dump_json(_ordered(query), 'query')}")


def _ordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _ordered(value[key]) for key in sorted(value)}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, (list, tuple)):
        return [_ordered(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value


async def _await(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
