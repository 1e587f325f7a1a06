"""Runs the board's statements on a connection that belongs to the caller.

They commit and roll back with the caller's own rows. Codecs, row factories, autocommit and isolation level are left
as they are. A connection in autocommit mode with no transaction open keeps its word: each verb then commits by
itself. A statement that fails inside a transaction aborts it, as PostgreSQL does with any statement; wrap the verb in
a savepoint of your own to go on after an error. SQLAlchemy sessions do not flush for us: flush first what a verb
needs to see.
"""

from __future__ import annotations

from typing import Any, cast

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from psycopg import AsyncConnection

from ..errors import ConfigurationError
from .asyncpg_executor import AsyncpgConnectionExecutor
from .executor import Executor
from .psycopg_executor import PsycopgConnectionExecutor

__all__ = ["bind"]

# [async-only]
_ACCEPTED = (
    "an asyncpg connection, a psycopg AsyncConnection, or SQLAlchemy's AsyncConnection, AsyncSession or "
    "async_scoped_session with the asyncpg or psycopg dialect; blocking connections belong to blackboard.sync"
)
# [end]
# [sync-only] _ACCEPTED = (
# [sync-only]     "a psycopg Connection, or SQLAlchemy's Connection, Session or scoped_session with the psycopg "
# [sync-only]     "dialect (postgresql+psycopg://); asynchronous connections belong to blackboard, not blackboard.sync"
# [sync-only] )


def bind(connection: object) -> Executor:
    """An executor on ``connection``, in whatever transaction it is in; closing it leaves the connection open.

    Raises:
        ConfigurationError: it is nothing that can be bound to; the message says what can.
    """
    if isinstance(connection, AsyncConnection):
        return PsycopgConnectionExecutor(cast("AsyncConnection[Any]", connection), bound=True)
    # [async-only]
    if isinstance(connection, (asyncpg.Connection, PoolConnectionProxy)):
        return AsyncpgConnectionExecutor(cast("asyncpg.Connection[asyncpg.Record]", connection), bound=True)
    # [end]
    if any(kind.__module__.partition(".")[0] == "sqlalchemy" for kind in type(connection).__mro__):
        # Imported late: it takes longer to load than everything else a board needs.
        from .sqlalchemy_executor import SqlalchemyExecutor

        if (executor := SqlalchemyExecutor.on(connection)) is not None:
            return executor
    kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
    raise ConfigurationError(f"A handle cannot be bound to a {kind}: pass {_ACCEPTED}.")
