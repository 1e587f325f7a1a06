"""Runs the migrations, and says whether a database is at the revision that this package needs."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING

import psycopg

from ..errors import BlackboardError, SchemaMissing, SchemaOutdated, SchemaTooNew, TransientError
from .driver_errors import from_psycopg
from .urls import normalise_url

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Engine
    from sqlalchemy.exc import DBAPIError

__all__ = ["HEAD", "check_revision", "current", "downgrade", "offline_sql", "upgrade"]

HEAD = "0020"
"""The newest revision; a test compares it with the files. Known here so that opening a board imports no Alembic."""

# Alembic keeps what it is doing in module globals: one run at a time in a process.
_ALEMBIC = threading.Lock()


def check_revision(revision: str | None) -> None:
    """Nothing happens if the database is at ``HEAD``.

    Raises:
        SchemaMissing: it has no blackboard.
        SchemaOutdated: it is older than this package.
        SchemaTooNew: it is newer than this package.
    """
    if revision is None:
        raise SchemaMissing("The database has no blackboard yet: run `blackboard db upgrade`.", needed=HEAD)
    if revision < HEAD:
        raise SchemaOutdated(
            f"The database's blackboard is at revision {revision}, this package needs {HEAD}: "
            "run `blackboard db upgrade`.",
            revision=revision,
            needed=HEAD,
        )
    if revision > HEAD:
        raise SchemaTooNew(
            f"The database's blackboard is at revision {revision}, this package knows {HEAD}: "
            "upgrade the package, or run `blackboard db downgrade` with the newer one.",
            revision=revision,
            needed=HEAD,
        )


def upgrade(url: str, revision: str = "head") -> None:
    """The database is at ``revision``, each step in a transaction of its own.

    Raises:
        BlackboardError: the database refused; what was done before stays, and running it again goes on.
    """
    _run(url, "upgrade", revision)


def downgrade(url: str, revision: str) -> None:
    """The database is back at ``revision`` (``base`` removes everything).

    Raises:
        BlackboardError: the database refused.
    """
    _run(url, "downgrade", revision)


def current(url: str) -> str | None:
    """The revision that the database is at, or None where there is no blackboard.

    Raises:
        BlackboardError: the database cannot be reached.
    """
    from alembic.runtime.migration import MigrationContext
    from sqlalchemy.exc import DBAPIError

    engine = _engine(url)
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(
                connection, opts={"version_table": "schema_version", "version_table_schema": "blackboard"}
            )
            return context.get_current_revision()
    except DBAPIError as error:
        raise _translated(error) from error
    finally:
        engine.dispose()


def offline_sql(revisions: str = "base:head") -> str:
    """The SQL that an upgrade would run, for those who run it by other means."""
    from alembic import command

    buffer = io.StringIO()
    with _ALEMBIC:
        command.upgrade(_config(buffer), revisions, sql=True)
    return buffer.getvalue()


def _run(url: str, direction: str, revision: str) -> None:
    from alembic import command
    from alembic.util.exc import CommandError
    from sqlalchemy.exc import DBAPIError

    engine = _engine(url)
    try:
        with _ALEMBIC, engine.connect() as connection:
            config = _config(None)
            config.attributes["connection"] = connection
            getattr(command, direction)(config, revision)
    except CommandError as error:
        raise SchemaTooNew(f"{error}; this package knows revisions up to {HEAD}.", needed=HEAD) from error
    except DBAPIError as error:
        raise _refused(direction, error.orig) or _translated(error) from error
    except psycopg.Error as error:
        # The revisions run on the driver itself, past SQLAlchemy's wrapping.
        raise _refused(direction, error) or from_psycopg(error) from error
    finally:
        engine.dispose()


def _refused(direction: str, error: BaseException | None) -> TransientError | None:
    if not isinstance(error, psycopg.errors.LockNotAvailable):
        return None
    return TransientError(
        f"The {direction} waited for a table that another transaction holds, and gave up before everybody had to wait "
        "behind it. The steps before stay done. Let that transaction end (the one with the oldest xact_start in "
        f"pg_stat_activity, most likely), and run the {direction} again.",
        sqlstate=error.sqlstate,
    )


def _config(buffer: io.StringIO | None) -> Config:
    from alembic.config import Config

    config = Config(output_buffer=buffer) if buffer is not None else Config()
    config.set_main_option("script_location", "blackboard_migrations:.")
    config.set_main_option("path_separator", "os")
    return config


def _engine(url: str) -> Engine:
    from sqlalchemy import NullPool, create_engine

    rest = normalise_url(url).partition("://")[2]
    return create_engine(
        f"postgresql+psycopg://{rest}",
        poolclass=NullPool,
        connect_args={"application_name": "blackboard migrations", "connect_timeout": 10, "prepare_threshold": None},
    )


def _translated(error: DBAPIError) -> BlackboardError:
    original = error.orig
    return from_psycopg(original) if original is not None else BlackboardError(f"The migration failed: {error}")
