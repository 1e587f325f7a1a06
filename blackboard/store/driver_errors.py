"""Turns what the drivers and SQLAlchemy raise into this package's errors."""

from __future__ import annotations

import re
from typing import Any

import asyncpg
import psycopg

from ..errors import BlackboardError, ConfigurationError, InvalidInput, ServerTooOld, ServerUnreachable, TransientError
from ..sqlstates import from_sqlstate
from .statements import Statement

__all__ = [
    "ASYNCPG_ERRORS",
    "MINIMUM_SERVER_VERSION",
    "PSYCOPG_ERRORS",
    "closed",
    "from_asyncpg",
    "from_driver",
    "from_psycopg",
    "timed_out",
    "too_old",
]

MINIMUM_SERVER_VERSION = 15

# OSError covers refused and reset connections, DNS, TLS and (3.11) every kind of timeout.
ASYNCPG_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    UnicodeEncodeError,
)
PSYCOPG_ERRORS = (psycopg.Error, OSError, UnicodeEncodeError)

_CUT = "The connection to PostgreSQL was cut; repeat the call (writes are idempotent)."
_UNREACHABLE = "PostgreSQL could not be reached; check the URL and that the server runs."

# libpq hands on the text of a refused login, but not its SQLSTATE; PgBouncer gives one code to all of its refusals.
_LOGIN_TEXTS = (
    (re.compile(r"too many (clients|connections)|connection slots|no more connections allowed"), "53300"),
    (re.compile(r"(?<!role )\"[^\"]*\" does not exist|no such database"), "3D000"),
    (re.compile(r"password authentication failed|no password supplied|SASL authentication failed"), "28P01"),
    (re.compile(r"no pg_hba.conf entry|authentication failed|role \"[^\"]*\" does not exist|no such user"), "28000"),
    (re.compile(r"is (starting up|shutting down|not yet accepting connections)"), "57P03"),
)


def closed() -> ConfigurationError:
    """The error of a call on a handle that was closed."""
    return ConfigurationError("This handle was closed; open a new one.")


def too_old(version: str) -> ServerTooOld:
    """The error of a server that lacks what the board needs."""
    return ServerTooOld(
        f"The server is PostgreSQL {version} and the board needs {MINIMUM_SERVER_VERSION} or newer; upgrade it.",
        version=version,
    )


def timed_out(error: BlackboardError) -> bool:
    """Whether ``error`` stands for a server that did not answer at all in the time it had."""
    return isinstance(error.__cause__, (TimeoutError, psycopg.errors.ConnectionTimeout))


def from_asyncpg(error: BaseException, statement: Statement | None = None) -> BlackboardError:
    """The error of ours for one of ``ASYNCPG_ERRORS``."""
    if isinstance(error, asyncpg.PostgresError):
        if "query argument $" in str(error):  # dressed as the server's, but asyncpg's own encoders raised it
            return _wrong_value(error, statement)
        fields: Any = error
        return _answer(
            fields.sqlstate, str(fields.args[0]), fields.detail, fields.hint, fields.constraint_name, fields.column_name
        )
    if isinstance(error, asyncpg.InterfaceError):
        return _interface(error, statement)
    if isinstance(error, asyncpg.OutdatedSchemaCacheError):
        return TransientError("The schema changed under a running call; run it again.")
    if isinstance(error, UnicodeEncodeError):
        return _half_surrogate()
    return _unreachable(error)


def _interface(error: asyncpg.InterfaceError, statement: Statement | None) -> BlackboardError:
    text = str(error.args[0])
    if isinstance(error, asyncpg.exceptions.ClientConfigurationError):
        return ConfigurationError(f"The database URL is wrong: {text}.")
    if isinstance(error, ValueError):  # asyncpg.exceptions.DataError, which shares its name with the server's
        return _wrong_value(error, statement)
    if "another operation" in text:
        return ConfigurationError("This connection is busy in another task; use one connection a task.")
    if "pool is clos" in text:
        return closed()
    return ServerUnreachable(f"{_CUT} ({text})")


def from_psycopg(error: BaseException, statement: Statement | None = None) -> BlackboardError:
    """The error of ours for one of ``PSYCOPG_ERRORS``."""
    if isinstance(error, UnicodeEncodeError):
        return _half_surrogate()
    if not isinstance(error, psycopg.Error):
        return _unreachable(error)
    diag = error.diag
    if error.sqlstate and diag.message_primary:
        return _answer(
            error.sqlstate,
            diag.message_primary,
            diag.message_detail,
            diag.message_hint,
            diag.constraint_name,
            diag.column_name,
        )
    text = str(error).strip()
    if isinstance(error, psycopg.OperationalError):
        for pattern, sqlstate in _LOGIN_TEXTS:
            if pattern.search(text):
                return from_sqlstate(sqlstate, text)
        if "connection is bad: invalid" in text:
            return ConfigurationError(f"The database URL is wrong: {text}.")
        connecting = text.startswith("connection ") or isinstance(error, psycopg.errors.ConnectionTimeout)
        return ServerUnreachable(f"{_UNREACHABLE if connecting else _CUT} ({text})")
    if isinstance(error, psycopg.InterfaceError):
        return ServerUnreachable(f"{_CUT} ({text})")
    if isinstance(error, psycopg.ProgrammingError) and "cannot adapt" not in text and statement is None:
        return ConfigurationError(f"The database URL is wrong: {text}.")
    return _wrong_value(error, statement)


def from_driver(error: BaseException, statement: Statement | None = None) -> BlackboardError:
    """The error of ours for what SQLAlchemy raised: the driver's error decides where there is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, psycopg.Error):
            return from_psycopg(seen, statement)
        if isinstance(seen, (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
            return from_asyncpg(seen, statement)
        seen = seen.__cause__ or getattr(seen, "orig", None)
    if isinstance(error, UnicodeEncodeError):
        return _half_surrogate()
    if isinstance(error, OSError):
        return _unreachable(error)
    if type(error).__name__ in {"PendingRollbackError", "InvalidRequestError"}:
        return TransientError(f"The caller's transaction cannot go on; roll it back and run it again. ({error})")
    return ConfigurationError(f"The connection that was given does not serve: {error}.")


def _answer(
    sqlstate: str | None,
    message: str,
    detail: str | None,
    hint: str | None,
    constraint: str | None,
    column: str | None,
) -> BlackboardError:
    if sqlstate == "0A000" and "cached plan" in message:
        return TransientError("The schema changed under a prepared statement; run it again.", sqlstate=sqlstate)
    if sqlstate in {"08P01", "08000", "58000"}:  # PgBouncer's refusals
        sqlstate = next((code for pattern, code in _LOGIN_TEXTS if pattern.search(message)), sqlstate)
    return from_sqlstate(sqlstate, message, detail=detail, hint=hint, constraint=constraint, column=column)


def _wrong_value(error: BaseException, statement: Statement | None) -> InvalidInput:
    text = str(error).strip()
    number = re.search(r"query argument \$(\d+)", text)
    if statement is not None and number and int(number[1]) <= len(statement.parameters):
        field = statement.parameters[int(number[1]) - 1]
        return InvalidInput(f"{field} has the wrong type or range: {text}.", field=field)
    return InvalidInput(f"A value has the wrong type or range: {text}.")


def _half_surrogate() -> InvalidInput:
    return InvalidInput("A text contains half of a surrogate pair; pass whole characters.")


def _unreachable(error: BaseException) -> ServerUnreachable:
    return ServerUnreachable(f"{_UNREACHABLE} ({str(error) or type(error).__name__})")
