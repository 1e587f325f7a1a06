"""Runs the board's migrations in a schema and with a version table of their own.

They live beside an application's own Alembic history: nothing here reads or writes another version table, and
``blackboard.store.schema.include_name`` keeps ours out of the application's autogenerate. The URL comes from the
caller (``blackboard db …`` sets it), from ``-x url=…`` or from ``BLACKBOARD_URL``.
"""

from __future__ import annotations

import os

from alembic import context
from sqlalchemy import Connection, create_engine, pool, text

SCHEMA = "blackboard"
VERSION_TABLE = "schema_version"
LOCK_TIMEOUT = "5s"
STATEMENT_TIMEOUT = "10min"


def _url() -> str:
    url = context.get_x_argument(as_dictionary=True).get("url") or os.environ.get("BLACKBOARD_URL")
    url = url or context.config.get_main_option("sqlalchemy.url")
    if not url:
        raise SystemExit("No database: set BLACKBOARD_URL or pass -x url=postgresql://…")
    scheme, _, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if scheme in ("postgres", "postgresql", "postgresql+asyncpg") else url


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        version_table=VERSION_TABLE,
        version_table_schema=SCHEMA,
        include_schemas=True,
        transaction_per_migration=True,
    )
    # Two deployments at once: the second waits here, then finds nothing to do. The lock is held by a transaction of its
    # own, because each step commits, and a lock of the session would stay behind in a pooler.
    with connection.engine.connect() as guard:
        guard.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        guard.execute(text("SELECT pg_advisory_xact_lock(hashtext('blackboard migrations'))"))
        # A migration that waits for a lock blocks every query behind it; better to give up and be run again.
        connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
        connection.execute(text(f"SET statement_timeout = '{STATEMENT_TIMEOUT}'"))
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        connection.commit()
        with context.begin_transaction():
            context.run_migrations()


def online() -> None:
    given = context.config.attributes.get("connection")
    if isinstance(given, Connection):
        _run(given)
        return
    engine = create_engine(_url(), poolclass=pool.NullPool)
    try:
        with engine.connect() as connection:
            _run(connection)
    finally:
        engine.dispose()


def offline() -> None:
    context.configure(
        dialect_name="postgresql",
        version_table=VERSION_TABLE,
        version_table_schema=SCHEMA,
        transaction_per_migration=True,
        output_buffer=context.config.output_buffer,
    )
    with context.begin_transaction():
        context.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
        context.execute(f"SET statement_timeout = '{STATEMENT_TIMEOUT}'")
        context.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        context.run_migrations()


if context.is_offline_mode():
    offline()
else:
    online()
