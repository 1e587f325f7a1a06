"""A bounded pool of threads for handlers that block. They never keep a process from ending."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from contextvars import Context, copy_context
from queue import SimpleQueue
from typing import Any

__all__ = ["Threads"]

_Answer = tuple[Any, BaseException | None]
_Call = tuple[Callable[[Any], Any], Any, "asyncio.Future[_Answer]", asyncio.AbstractEventLoop, Context]


class Threads:
    """At most ``size`` threads, each started when all others are busy.

    The standard pool's threads are waited for when the interpreter ends: one handler that hangs would keep a worker
    alive that was told twice to stop.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._count = 0
        self._busy = 0

    async def run(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """What ``function(argument)`` returned in a thread, in a copy of the caller's context.

        A cancelled call leaves its thread at work.

        Raises:
            RuntimeError: the system has no thread left, and none was started before.
            BaseException: what the function raised.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Answer] = loop.create_future()
        if self._busy >= self._count and self._count < self._size:
            self._start_one()
        self._busy += 1
        self._calls.put((function, argument, future, loop, copy_context()))
        try:
            value, error = await future
        finally:
            self._busy -= 1
        if error is None:
            return value
        try:
            raise error
        finally:
            # Its traceback holds this frame: else all that the handler had would wait for the collector.
            del error, future

    def _start_one(self) -> None:
        thread = threading.Thread(target=self._work, name=f"blackboard-handler-{self._count + 1}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self._count:
                raise
            # The call waits for one of the others.
            return
        self._count += 1

    def close(self) -> None:
        """Idle threads end; busy ones end after their call."""
        for _ in range(self._count):
            self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            function, argument, future, loop, context = call
            answer: _Answer
            try:
                answer = (context.run(function, argument), None)
            except BaseException as error:
                answer = (None, error)
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(_answer, future, answer)
            # Nothing of a call stays while the thread waits for the next one.
            del call, function, argument, future, loop, context, answer


def _answer(future: asyncio.Future[_Answer], answer: _Answer) -> None:
    if not future.done():
        future.set_result(answer)
