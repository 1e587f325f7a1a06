"""Which function does which type of task."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import ConfigurationError
from ..jsonable import check_text
from .retry import RetryPolicy

__all__ = ["Handler", "Handlers"]

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Handler:
    """One type's function.

    Attributes:
        type: of the tasks it does.
        function: takes a ``TaskContext`` (a ``BlockingTaskContext`` if it is no coroutine function) and returns the
            result as JSON values.
        suspends: whether it is a coroutine function and runs on the event loop; others run in threads.
        retry: what a failure of such a task means, where the task was not added with a policy of its own.
    """

    type: str
    function: Callable[[Any], Any]
    suspends: bool
    retry: RetryPolicy | None = None


class Handlers(Mapping[str, Handler]):
    """Handlers by type of task; a module can fill one at import, before there is any board.

    ::

        handlers = Handlers()

        @handlers.handler("investigate", retry=RetryPolicy(max_attempts=3))
        async def investigate(ctx: TaskContext) -> dict[str, str]:
            return {"target": ctx.parameters["target"]}
    """

    def __init__(self) -> None:
        self._by_type: dict[str, Handler] = {}

    def __getitem__(self, type: str) -> Handler:  # noqa: A002
        return self._by_type[type]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_type)

    def __len__(self) -> int:
        return len(self._by_type)

    def handler(self, type: str, *, retry: RetryPolicy | None = None) -> Callable[[_F], _F]:  # noqa: A002
        """A decorator: tasks of that type are done by the function; see ``register``."""

        def register(function: _F) -> _F:
            self.register(type, function, retry=retry)
            return function

        return register

    def register(self, type: str, function: Callable[[Any], Any], *, retry: RetryPolicy | None = None) -> None:  # noqa: A002
        """Tasks of that type are done by ``function``.

        Args:
            type: 1 to 50 characters.
            function: called with one context; a coroutine function runs on the event loop and must not block it, any
                other one runs in a thread, and what it awaits for it blocks.
            retry: what a failure means, unless a task was added with numbers of its own; see ``RetryPolicy``.

        Raises:
            ConfigurationError: the type has a handler already.
            InvalidInput: ``type`` is refused.
        """
        check_text(type, "type", 50, 1)
        if type in self._by_type:
            raise ConfigurationError(f"Tasks of type {type!r} have a handler already; one type has one handler.")
        # Not the class's own __call__ alone: a partial or an instance may wrap a coroutine function.
        inner = getattr(function, "func", function)
        suspends = inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(getattr(inner, "__call__", None))  # noqa: B004
        self._by_type[type] = Handler(type, function, suspends, retry)

    def update(self, other: Mapping[str, Handler]) -> None:
        """The handlers of ``other`` are here too.

        Raises:
            ConfigurationError: a type has a handler already.
        """
        for handler in other.values():
            self.register(handler.type, handler.function, retry=handler.retry)
