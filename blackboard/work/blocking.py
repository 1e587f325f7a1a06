"""Handles of the event loop as a thread sees them: what is awaited there blocks here."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

from ..errors import ConfigurationError
from ..store.ear import running_loop

__all__ = ["Blocking", "BlockingContext", "call"]

_T = TypeVar("_T")

_HANDLES = ("blackboard.board", "blackboard.handles", "blackboard.repository")
_END: Any = object()


def call(loop: asyncio.AbstractEventLoop, work: Awaitable[_T]) -> _T:
    """What ``work`` returns on the loop, which another thread runs.

    Raises:
        ConfigurationError: this is the loop's own thread, which would wait for itself for ever, or the loop is closed.
        BaseException: what ``work`` raised.
    """
    if running_loop() is loop:
        why = "it was called in the event loop's own thread: use it in the handler that it was given to"
    elif loop.is_closed():
        why = "its event loop has ended, and the worker with it"
    else:
        return asyncio.run_coroutine_threadsafe(_awaited(work), loop).result()
    if isinstance(work, Coroutine):
        cast("Coroutine[Any, Any, _T]", work).close()
    raise ConfigurationError(f"This handle blocks, and {why}.")


class Blocking:
    """Stands for a handle: what is awaited, entered or iterated asynchronously there blocks here.

    The same holds for the repositories that it carries and for the handles that its methods return.

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
        return self._stand_in(found)

    def _blocking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            found = function(*map(_bare, args), **{name: _bare(value) for name, value in kwargs.items()})
            if inspect.isawaitable(found):
                return self._stand_in(call(self._loop, found))
            if isinstance(found, AbstractAsyncContextManager):
                return BlockingContext(cast("Any", found), self._loop, self._stand_in)
            if isinstance(found, AsyncGenerator):
                return _each(cast("Any", found), self._loop)
            return self._stand_in(found)

        return run

    def _stand_in(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._stand_in(one) for one in cast("list[Any]", value)]
        return Blocking(value, self._loop) if type(value).__module__.startswith(_HANDLES) else value


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


def _each(source: AsyncGenerator[_T], loop: asyncio.AbstractEventLoop) -> Generator[_T]:
    try:
        while (found := call(loop, anext(source, _END))) is not _END:
            yield found
    finally:
        # Not waited for: what was not read to its end the collector may end, in any thread and in the loop's own.
        if not loop.is_closed():
            asyncio.run_coroutine_threadsafe(_awaited(source.aclose()), loop)


def _bare(value: Any) -> Any:
    """An argument as the handles on the loop take it: what stands for a handle gives it back."""
    if isinstance(value, Blocking):
        return vars(value)["_target"]
    if isinstance(value, (list, tuple)):
        return [_bare(one) for one in cast("Sequence[Any]", value)]
    return value


async def _awaited(awaitable: Awaitable[_T]) -> _T:
    return await awaitable
