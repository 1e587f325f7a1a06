"""An executor over psycopg; its generated twin carries the blocking handles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, LiteralString, cast

from psycopg import AsyncConnection, AsyncCursor
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from .driver_errors import MINIMUM_SERVER_VERSION, PSYCOPG_ERRORS, from_psycopg, too_old
from .executor import ConnectionExecutor, Row
from .pool import PoolExecutor
from .statements import Statement
from .urls import has_option

__all__ = ["PsycopgConnectionExecutor", "PsycopgExecutor"]

_PREPARE_AFTER = 5
# A host that is gone is found out within half a minute, and not after the system's two hours.
_KEEPALIVE: dict[str, Any] = {
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


class PsycopgConnectionExecutor(ConnectionExecutor):
    """Runs on one psycopg connection."""

    def __init__(self, connection: AsyncConnection[Any], *, bound: bool) -> None:
        super().__init__(bound=bound)
        self._connection = connection

    @property
    def usable(self) -> bool:
        """Whether the connection is open and between transactions."""
        # A closed connection's status is UNKNOWN.
        return self._connection.pgconn.transaction_status == TransactionStatus.IDLE

    async def rows(self, statement: Statement, params: Mapping[str, Any]) -> list[Row]:
        """Runs ``statement``; all its rows in its order."""
        statement.check(params)
        try:
            # A cursor class of our choice: a caller's connection may hand out cursors with another placeholder style.
            async with AsyncCursor(self._connection, row_factory=dict_row) as cursor:
                await cursor.execute(cast("LiteralString", statement.pyformat), params)
                return list[Row](await cursor.fetchall()) if cursor.description else []
        except PSYCOPG_ERRORS as error:
            raise from_psycopg(error, statement) from error

    async def command(self, sql: str) -> str:
        """Runs a command of transaction control; PostgreSQL's command tag."""
        try:
            async with AsyncCursor(self._connection, row_factory=dict_row) as cursor:
                await cursor.execute(cast("LiteralString", sql))
                return cursor.statusmessage or ""
        except PSYCOPG_ERRORS as error:
            raise from_psycopg(error) from error

    async def begins_itself(self) -> bool:
        """Whether psycopg opens transactions here, or one is open."""
        return not self._connection.autocommit or self._connection.pgconn.transaction_status != TransactionStatus.IDLE

    def discard(self) -> None:
        """Closes the connection at once if it is ours."""
        if not self.bound:
            self._connection.pgconn.finish()

    async def disconnect(self) -> None:
        """Closes the connection if it is ours."""
        if not self.bound:
            await self._connection.close()


class PsycopgExecutor(PoolExecutor):
    """A pool of psycopg connections."""

    async def _open(self) -> PsycopgConnectionExecutor:
        try:
            connection = await AsyncConnection.connect(
                self._url,
                autocommit=True,
                prepare_threshold=None,
                fallback_application_name=self._application_name,
                connect_timeout=max(2, round(self._connect_timeout)),  # libpq knows whole seconds, and takes 1 for 2
                **{name: value for name, value in _KEEPALIVE.items() if not has_option(self._url, name)},
            )
        except PSYCOPG_ERRORS as error:
            raise from_psycopg(error) from error
        try:
            version = connection.info.server_version // 10000
            if version < MINIMUM_SERVER_VERSION:
                raise too_old(str(version))
            if self._pooled is None:
                self._pooled = await _is_pooled(connection)
            # Now, not when connecting: another call may have found the pooler in between.
            if not self._pooled:
                connection.prepare_threshold = _PREPARE_AFTER
        except BaseException:
            await connection.close()
            raise
        return PsycopgConnectionExecutor(connection, bound=False)


async def _is_pooled(connection: AsyncConnection[Any]) -> bool:
    # PgBouncer tells clients a backend id of its own.
    try:
        async with AsyncCursor(connection, row_factory=dict_row) as cursor:
            await cursor.execute("SELECT pg_backend_pid() AS pid", prepare=False)
            row = await cursor.fetchone()
    except PSYCOPG_ERRORS as error:
        raise from_psycopg(error) from error
    return row is None or row["pid"] != connection.info.backend_pid
