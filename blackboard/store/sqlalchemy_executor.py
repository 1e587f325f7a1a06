"""Runs statements on a caller's SQLAlchemy connection or session.

Through SQLAlchemy, not beneath it: SQLAlchemy opens its transaction at its own first statement, and what went
straight to the driver before that would commit by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

from ..errors import ConfigurationError
from .asyncpg_executor import AsyncpgConnectionExecutor
from .driver_errors import from_driver
from .executor import ConnectionExecutor, Row
from .psycopg_executor import PsycopgConnectionExecutor
from .statements import Statement

__all__ = ["SqlalchemyExecutor"]

# [async-only]
_DRIVERS = ("asyncpg", "psycopg")
# [end]
# [sync-only] _DRIVERS = ("psycopg",)

_ERRORS = (exc.SQLAlchemyError, OSError, UnicodeEncodeError)
# A caller's connection may be set to stream; a server-side cursor cannot run an INSERT.
_OPTIONS: Mapping[str, Any] = {"stream_results": False, "no_parameters": False}


class SqlalchemyExecutor(ConnectionExecutor):
    """Runs on a SQLAlchemy connection, or on the connection that a session uses at the moment of each call."""

    def __init__(self, owner: AsyncConnection | AsyncSession | async_scoped_session[Any]) -> None:
        super().__init__(bound=True)
        self._owner = owner

    @classmethod
    def on(cls, owner: object) -> SqlalchemyExecutor | None:
        """The executor on ``owner``; None if it is neither a connection nor a session.

        Raises:
            ConfigurationError: its dialect is none that the board speaks, or the session is bound to no database.
        """
        if not isinstance(owner, (AsyncConnection, AsyncSession, async_scoped_session)):
            return None
        try:
            dialect = owner.dialect if isinstance(owner, AsyncConnection) else owner.get_bind().dialect
        except exc.SQLAlchemyError as error:
            raise ConfigurationError(f"The session has no database yet; give it a bind. ({error})") from error
        if dialect.name != "postgresql" or dialect.driver not in _DRIVERS:
            raise ConfigurationError(
                f"SQLAlchemy is connected with {dialect.name}+{dialect.driver}, which the board does not speak; "
                f"create the engine with {' or '.join(f'postgresql+{driver}://' for driver in _DRIVERS)}."
            )
        return cls(cast("AsyncConnection | AsyncSession | async_scoped_session[Any]", owner))

    async def _connection(self) -> AsyncConnection:
        return self._owner if isinstance(self._owner, AsyncConnection) else await self._owner.connection()

    async def rows(self, statement: Statement, params: Mapping[str, Any]) -> list[Row]:
        """Runs ``statement``; all its rows in its order."""
        arguments = statement.arguments(params)
        try:
            connection = await self._connection()
            if connection.dialect.paramstyle == "pyformat":
                result = await connection.exec_driver_sql(statement.pyformat, dict(params), execution_options=_OPTIONS)
            else:
                result = await connection.exec_driver_sql(
                    statement.numbered, tuple(arguments), execution_options=_OPTIONS
                )
            return [dict(row) for row in result.mappings()] if result.returns_rows else []
        except _ERRORS as error:
            raise from_driver(error, statement) from error

    async def command(self, sql: str) -> str:
        """Runs a command of transaction control; PostgreSQL's command tag where SQLAlchemy shows it."""
        driver = await self._autocommitting()
        if driver is not None:
            return await driver.command(sql)
        try:
            await (await self._connection()).exec_driver_sql(sql, execution_options=_OPTIONS)
        except _ERRORS as error:
            raise from_driver(error) from error
        return ""

    async def begins_itself(self) -> bool:
        """Whether SQLAlchemy opens transactions here, or one is open."""
        driver = await self._autocommitting()
        return driver is None or await driver.begins_itself()

    async def _autocommitting(self) -> ConnectionExecutor | None:
        """The driver's connection if SQLAlchemy opens no transactions on it: BEGIN is ours to send then."""
        try:
            connection = await self._connection()
            # [async-only]
            raw = await connection.get_raw_connection()
            # [end]
            # [sync-only] raw = connection.connection
        except _ERRORS as error:
            raise from_driver(error) from error
        if not connection.dialect.detect_autocommit_setting(raw.dbapi_connection):  # pyright: ignore[reportArgumentType]
            return None
        driver: Any = raw.driver_connection
        # [async-only]
        if connection.dialect.driver == "asyncpg":
            return AsyncpgConnectionExecutor(driver, bound=True)
        # [end]
        return PsycopgConnectionExecutor(driver, bound=True)
