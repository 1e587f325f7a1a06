"""What repositories run statements on: a pool, one connection in a transaction, or a caller's connection."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal, Protocol

from ..errors import TransientError
from .statements import Statement

__all__ = ["ConnectionExecutor", "Executor", "Isolation", "Row"]

Row = Mapping[str, Any]
Isolation = Literal["read committed", "repeatable read", "serializable"]


class Executor(Protocol):
    """Runs named statements; every error it raises is one of ``blackboard.errors``.

    A parameter that is missing or unknown is a ``TypeError`` before anything is sent.
    """

    @property
    def bound(self) -> bool:
        """Whether this runs on a caller's connection: verbs that wait must refuse then."""
        ...

    async def fetch_all(self, statement: Statement, **params: Any) -> list[Row]:
        """Runs ``statement``; all its rows in its order."""
        ...

    async def fetch_one(self, statement: Statement, **params: Any) -> Row | None:
        """Runs ``statement``; its first row, or None."""
        ...

    async def execute(self, statement: Statement, **params: Any) -> None:
        """Runs ``statement`` for its effect."""
        ...

    def transaction(self, isolation: Isolation | None = None) -> AbstractAsyncContextManager[Executor]:
        """A block whose statements, run on the executor it hands out, commit together or not at all.

        Inside a transaction, and on a caller's connection that has one, this is a savepoint; ``isolation`` is then
        what the transaction already has.
        """
        ...

    async def close(self) -> None:
        """Afterwards nothing runs here any more; a caller's connection stays open."""
        ...


class ConnectionExecutor:
    """One connection that is ours for now; subclasses say how its driver is spoken to."""

    def __init__(self, *, bound: bool) -> None:
        self.bound = bound
        """Whether the connection is a caller's."""
        self._depth = 0
        self._outer = False

    @property
    def usable(self) -> bool:
        """Whether the connection is open and between transactions."""
        raise NotImplementedError

    @property
    def at_ease(self) -> bool:
        """Whether another call may have the connection without a question; False where only ``ready`` can tell."""
        return False

    async def ready(self) -> bool:
        """Whether another call may have the connection; a short question where a call on it was given up."""
        return self.usable

    async def rows(self, statement: Statement, params: Mapping[str, Any]) -> list[Row]:
        """Runs ``statement``; all its rows in its order."""
        raise NotImplementedError

    async def command(self, sql: str) -> str:
        """Runs a command of transaction control; PostgreSQL's command tag."""
        raise NotImplementedError

    async def begins_itself(self) -> bool:
        """Whether statements are in a transaction without our BEGIN: an open one, or one the driver opens first."""
        raise NotImplementedError

    def discard(self) -> None:
        """Closes the connection at once if it is ours; nobody may use it again."""

    async def disconnect(self) -> None:
        """Closes the connection if it is ours, with a word to the server."""

    async def fetch_all(self, statement: Statement, **params: Any) -> list[Row]:
        """Runs ``statement``; all its rows in its order."""
        return await self.rows(statement, params)

    async def fetch_one(self, statement: Statement, **params: Any) -> Row | None:
        """Runs ``statement``; its first row, or None."""
        rows = await self.rows(statement, params)
        return rows[0] if rows else None

    async def execute(self, statement: Statement, **params: Any) -> None:
        """Runs ``statement`` for its effect."""
        await self.rows(statement, params)

    async def begin(self, isolation: Isolation | None = None) -> None:
        """Opens a transaction, or a savepoint inside one; ``commit`` or ``rollback`` must follow."""
        if self._depth == 0 and not await self.begins_itself():
            await self.command(f"BEGIN ISOLATION LEVEL {isolation.upper()}" if isolation else "BEGIN")
            self._depth = 1
            self._outer = True
            return
        if self._depth == 0:
            self._outer = False
        # Depth names, not unique ones: drivers cache statements by their text.
        await self.command(f"SAVEPOINT blackboard_{self._depth + 1}")
        self._depth += 1

    async def commit(self) -> None:
        """Commits what the last ``begin`` opened.

        Raises:
            TransientError: a statement had failed in it and the block went on regardless: PostgreSQL answers such a
                COMMIT with a rollback and no error. Or the commit itself collided with another transaction.
        """
        outermost = self._depth == 1 and self._outer
        try:
            tag = await self.command("COMMIT" if outermost else f"RELEASE SAVEPOINT blackboard_{self._depth}")
        except Exception:
            if outermost:
                self._depth = 0
            else:
                await self.rollback()
            raise
        except BaseException:
            self.discard()
            raise
        self._depth -= 1
        if tag == "ROLLBACK":
            raise TransientError("A statement of this transaction had failed, so nothing was kept; run it again.")

    async def rollback(self) -> None:
        """Takes back what happened since the last ``begin``; a connection that cannot do so is discarded."""
        self._depth -= 1
        try:
            if self._depth == 0 and self._outer:
                await self.command("ROLLBACK")
            else:
                await self.command(f"ROLLBACK TO SAVEPOINT blackboard_{self._depth + 1}")
                await self.command(f"RELEASE SAVEPOINT blackboard_{self._depth + 1}")
        except Exception:
            # The caller is told why the block failed; that a dead connection cannot roll back adds nothing.
            self.discard()
        except BaseException:
            self.discard()
            raise

    @asynccontextmanager
    async def transaction(self, isolation: Isolation | None = None) -> AsyncGenerator[Executor]:
        """A block that commits whole or not at all; a savepoint where a transaction is open already."""
        await self.begin(isolation)
        try:
            yield self
        except BaseException:
            await self.rollback()
            raise
        await self.commit()

    async def close(self) -> None:
        """Afterwards nothing of ours is left on the connection; it stays open for its owner."""
