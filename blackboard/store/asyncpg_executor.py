"""The executor of the asynchronous handles: asyncpg, the fastest way to PostgreSQL that Python has."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import asyncpg

from .driver_errors import ASYNCPG_ERRORS, MINIMUM_SERVER_VERSION, from_asyncpg, too_old
from .executor import ConnectionExecutor, Row
from .pool import PoolExecutor
from .statements import Statement
from .turns import Turns
from .urls import asyncpg_url, has_option

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]

__all__ = ["AsyncpgConnectionExecutor", "AsyncpgExecutor"]

_GOODBYE_SECONDS = 2.0
_CANCEL_SECONDS = 5.0
_ROLLBACK_SECONDS = 10.0
# As the heartbeat's and the listener's connections have them: a host that is gone is found out within half a minute.
_SOCKET_OPTIONS = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}


class AsyncpgConnectionExecutor(ConnectionExecutor):
    """Runs on one asyncpg connection.

    Args:
        connection: open, ours or a caller's.
        bound: whether it is a caller's.
        pooled: whether a transaction-pooling proxy is behind it: asyncpg's Parse and Execute are two round trips, and
            only a transaction keeps both on one server connection.
    """

    def __init__(self, connection: Connection, *, bound: bool, pooled: bool = False) -> None:
        super().__init__(bound=bound)
        self._connection = connection
        self._pooled = pooled
        # Two tasks may share a transaction; asyncpg refuses a second call instead of queueing it.
        self._turn = Turns(1)
        self._given_up = False

    @property
    def connection(self) -> Connection:
        """The connection itself, for statements that are not the board's."""
        return self._connection

    @property
    def usable(self) -> bool:
        """Whether the connection is open and between transactions."""
        return not self._connection.is_closed() and not self._connection.is_in_transaction()

    @property
    def at_ease(self) -> bool:
        """Whether another call may have the connection without a question."""
        return not self._given_up and not self._connection.is_closed()

    async def ready(self) -> bool:
        """Whether another call may have the connection; a short question where a call on it was given up."""
        if self._given_up and self.usable:
            # asyncpg has asked the server to cancel, and the next call waits for its word; one that is gone gives none.
            self._given_up = False
            try:
                async with asyncio.timeout(_CANCEL_SECONDS):
                    await self._connection.execute("SELECT 1")
            except ASYNCPG_ERRORS:
                return False
        return self.usable

    async def rows(self, statement: Statement, params: Mapping[str, Any]) -> list[Row]:
        """Runs ``statement``; all its rows in its order."""
        arguments = statement.arguments(params)
        connection = self._connection
        if self._pooled and not connection.is_in_transaction():
            async with self.transaction():
                return await self.rows(statement, params)
        if not self._turn.take():
            await self._turn.acquire()
        try:
            # fetch() also where one row is enough: fetchrow() suspends the portal after it, and the rest of a
            # SELECT with side effects would never run.
            records = await connection.fetch(statement.numbered, *arguments)
        except ASYNCPG_ERRORS as error:
            raise from_asyncpg(error, statement) from error
        except asyncio.CancelledError:
            self._given_up = True
            raise
        finally:
            self._turn.release()
        return self._rows_of(records)

    def _rows_of(self, records: list[asyncpg.Record]) -> list[Row]:
        return [dict(record.items()) for record in records]

    async def command(self, sql: str) -> str:
        """Runs a command of transaction control; PostgreSQL's command tag."""
        # Taking back follows a failure, which may be that nobody answers any more.
        limit = _ROLLBACK_SECONDS if sql.startswith("ROLLBACK") else None
        await self._turn.acquire()
        try:
            async with asyncio.timeout(limit):
                return await self._connection.execute(sql)
        except ASYNCPG_ERRORS as error:
            raise from_asyncpg(error) from error
        except asyncio.CancelledError:
            self._given_up = True
            raise
        finally:
            self._turn.release()

    async def begins_itself(self) -> bool:
        """Whether a transaction is open; asyncpg opens none on its own."""
        return self._connection.is_in_transaction()

    def discard(self) -> None:
        """Closes the connection at once if it is ours."""
        if not self.bound:
            self._connection.terminate()

    async def disconnect(self) -> None:
        """Closes the connection if it is ours."""
        if not self.bound:
            try:
                await self._connection.close(timeout=_GOODBYE_SECONDS)
            except ASYNCPG_ERRORS:
                self._connection.terminate()


class AsyncpgExecutor(PoolExecutor):
    """A pool of asyncpg connections."""

    connection_type = AsyncpgConnectionExecutor

    async def _open(self) -> AsyncpgConnectionExecutor:
        try:
            cached = not self._pooled
            connection = await self._connect(cached)
            try:
                version = connection.get_server_version()
                if version.major < MINIMUM_SERVER_VERSION:
                    raise too_old(f"{version.major}.{version.minor}")
                if self._pooled is None:
                    self._pooled = await _is_pooled(connection)
                if self._pooled and cached:
                    # Found just now, here or in another call: no statement cache survives a pooler.
                    await connection.close(timeout=_GOODBYE_SECONDS)
                    connection = await self._connect(cached=False)
            except BaseException:
                connection.terminate()
                raise
        except (*ASYNCPG_ERRORS, ValueError) as error:
            raise from_asyncpg(error) from error
        return self.connection_type(connection, bound=False, pooled=bool(self._pooled))

    async def _connect(self, cached: bool) -> asyncpg.Connection[asyncpg.Record]:
        named = has_option(self._url, "application_name")
        connection = await asyncpg.connect(
            asyncpg_url(self._url),
            timeout=self._connect_timeout,
            server_settings={} if named else {"application_name": self._application_name},
            statement_cache_size=200 if cached else 0,
        )
        _keep_alive(connection)
        return connection


def _keep_alive(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    # asyncpg has no option for this, and its transport is no public name.
    transport = getattr(connection, "_transport", None)
    found = None if transport is None else transport.get_extra_info("socket")
    if found is None or found.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    with contextlib.suppress(OSError):  # the peer may be gone already, which the first call tells
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _SOCKET_OPTIONS.items():
            if hasattr(socket, name):
                found.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _is_pooled(connection: asyncpg.Connection[asyncpg.Record]) -> bool:
    # PgBouncer tells clients a backend id of its own. The answer is in the command tag because a query without
    # arguments goes as one message, and so leaves no half-prepared statement behind on a shared server connection.
    tag = await connection.execute(f"SELECT 1 WHERE pg_backend_pid() = {int(connection.get_server_pid())}")
    return tag != "SELECT 1"
