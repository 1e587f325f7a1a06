"""What tests share of calls whose answer nobody gets: done by the server, and then given up or cut."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from blackboard.store.statements import Statement

__all__ = ["Late", "count_now", "counted", "interrupted", "late"]


class Late:
    """The answer to one kind of statement, which is kept back.

    Attributes:
        done: the server has done it.
        deliver: lets the answer through.
    """

    def __init__(self) -> None:
        """Nothing was asked yet."""
        self.done = asyncio.Event()
        self.deliver = asyncio.Event()


def late(patch: Any, board: Any, name: str) -> Late:
    """From here on the next answer to the statement of that name is late; those after it are not."""
    kept, rows = Late(), board._executor._rows

    async def slow(statement: Statement, params: Any) -> Any:
        found = await rows(statement, params)
        if statement.name == name and not kept.done.is_set():
            kept.done.set()
            await kept.deliver.wait()
        return found

    patch.setattr(board._executor, "_rows", slow)
    return kept


def interrupted(patch: Any, board: Any, name: str) -> None:
    """The next call of that statement on a blocking board is done, and ends with Ctrl-C."""
    rows, left = board._executor._rows, [1]

    def cut(statement: Statement, params: Any) -> Any:
        found = rows(statement, params)
        if statement.name == name and left:
            left.pop()
            raise KeyboardInterrupt
        return found

    patch.setattr(board._executor, "_rows", cut)


def count_now(board: Any) -> None:
    """What the lease of a board holds was counted, and what nobody knows of was handed back; blocks for that long."""
    done = threading.Event()
    board._leases._heartbeat.beat_now(done.set)
    assert done.wait(20), "the heartbeat has counted"


async def counted(board: Any) -> None:
    """As ``count_now``, while the event loop goes on."""
    await asyncio.to_thread(count_now, board)
