"""The one place that decides which driver a handle uses."""

from __future__ import annotations

from collections.abc import Callable

from .asyncpg_executor import AsyncpgExecutor
from .executor import Executor

# [sync-only] from .psycopg_executor import PsycopgExecutor

__all__ = ["open_executor"]


def open_executor(
    url: str,
    *,
    pool_size: int = 4,
    application_name: str = "blackboard",
    connect_timeout: float = 10,
    pooled: bool | None = None,
    revive: Callable[[], object] | None = None,
) -> Executor:
    """A pool of connections to ``url``, opened at the first call; ``close`` it in the end.

    Args:
        url: ``postgresql://…``; a socket directory goes into the query (``?host=/dir``).
        pool_size: most connections held at a time.
        application_name: shown in ``pg_stat_activity``, unless the URL names another.
        connect_timeout: seconds until a server that does not answer counts as unreachable.
        pooled: whether a transaction-pooling proxy such as PgBouncer is in between; None finds out.
        revive: called before a call whose server was gone is tried again; starts the embedded server.

    Raises:
        ConfigurationError: ``url`` is no URL of a PostgreSQL.
    """
    # [async-only]
    driver = AsyncpgExecutor
    # [end]
    # [sync-only] driver = PsycopgExecutor
    return driver(
        url,
        pool_size=pool_size,
        application_name=application_name,
        connect_timeout=connect_timeout,
        pooled=pooled,
        revive=revive,
    )
