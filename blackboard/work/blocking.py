"""Handles of the event loop as a thread sees them: what is awaited there blocks here."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar

__all__ = ["Blocking", "BlockingContext", "call"]

_T = TypeVar("_T")


def call(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, _T]) -> _T:
    """What ``work`` returns on the loop, which another thread runs."""
    return asyncio.run_coroutine_threadsafe(work, loop).result()


class Blocking:
    """Stands for a handle: its coroutine methods block, the repositories that it carries do so too.

    ::

        Blocking(agent, loop).findings.report("...", type="deployment")
    """

    def __init__(self, target: object, loop: asyncio.AbstractEventLoop) -> None:
        self._target = target
        self._loop = loop

    def __repr__(self) -> str:
        return f"<Blocking {self._target!r}>"

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if inspect.isroutine(found):
            return self._blocking(found)
        if type(found).__module__.startswith(("blackboard.board", "blackboard.handles", "blackboard.repository")):
            return Blocking(found, self._loop)
        return found

    def _blocking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            found = function(*args, **kwargs)
            return call(self._loop, _awaited(found)) if inspect.isawaitable(found) else found

        return run


class BlockingContext(AbstractContextManager[_T], Generic[_T]):
    """An asynchronous context manager, entered and left on the loop."""

    def __init__(
        self, manager: AbstractAsyncContextManager[Any], loop: asyncio.AbstractEventLoop, wrap: Callable[[Any], _T]
    ) -> None:
        self._manager = manager
        self._loop = loop
        self._wrap = wrap

    def __enter__(self) -> _T:
        return self._wrap(call(self._loop, self._manager.__aenter__()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return call(self._loop, self._manager.__aexit__(kind, error, trace))


async def _awaited(awaitable: Any) -> Any:
    return await awaitable
