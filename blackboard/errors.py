"""Every error the package raises on purpose, and the one table that maps PostgreSQL's answers to them.

::

    BlackboardError                     code, retryable, details; the message says what to do next
    ├── ConfigurationError              a setting, a URL or a file is wrong
    │   └── SwarmFileError              a swarm file is wrong; names file, line and column
    ├── Unavailable                     the database cannot serve us now
    │   ├── ServerUnreachable           nothing answers there
    │   ├── ServerTooOld                PostgreSQL older than 15
    │   ├── TooManyConnections          the server's connection slots are used up
    │   ├── EmbeddedServerUnavailable   no PostgreSQL binaries to start
    │   ├── EmbeddedServerError         the embedded server would not start or stop
    │   └── SchemaError                 the board's tables are not as this version needs them
    │       ├── SchemaMissing           never migrated
    │       ├── SchemaOutdated          older than this package
    │       └── SchemaTooNew            newer than this package
    ├── InvalidInput                    a value was refused; names the field
    │   ├── PayloadTooLarge             over the size limit of its column
    │   └── CyclicDependency            carries the path
    ├── NotFound                        no such row; names noun and id
    ├── Conflict                        the row is not in a state that allows this
    │   ├── AlreadyExists               that name is taken
    │   ├── IdempotencyConflict         same id or key, other content
    │   ├── InvalidTransition           the life cycle has no such step
    │   └── SessionClosed               the session takes no more writes
    ├── NotPermitted                    this agent may not do that
    ├── LeaseLost                       the work was taken from a holder that went silent
    ├── LockNotAcquired                 somebody else held the lock until the time was up
    ├── WaitTimeout                     what was waited for did not happen in time
    ├── WaitNotAllowed                  a verb that waits was called inside a caller's transaction
    ├── CursorExpired                   the events after this cursor were pruned
    ├── CursorFromAnotherHistory        the cursor was read from another database or a later state
    └── TransientError                  a serialization failure or deadlock: run the transaction again
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

__all__ = [
    "AlreadyExists",
    "BlackboardError",
    "ConfigurationError",
    "Conflict",
    "CursorExpired",
    "CursorFromAnotherHistory",
    "CyclicDependency",
    "EmbeddedServerError",
    "EmbeddedServerUnavailable",
    "IdempotencyConflict",
    "InvalidInput",
    "InvalidTransition",
    "LeaseLost",
    "LockNotAcquired",
    "NotFound",
    "NotPermitted",
    "PayloadTooLarge",
    "SchemaError",
    "SchemaMissing",
    "SchemaOutdated",
    "SchemaTooNew",
    "ServerTooOld",
    "ServerUnreachable",
    "SessionClosed",
    "SwarmFileError",
    "TooManyConnections",
    "TransientError",
    "Unavailable",
    "WaitNotAllowed",
    "WaitTimeout",
    "from_sqlstate",
]


class BlackboardError(Exception):
    """Base of every error of this package.

    Attributes:
        code: stable, lower-case identifier, the same in Python, CLI ``--json`` output and MCP.
        retryable: whether the same call may succeed later without a change by the caller.
        details: typed facts of this occurrence (``field``, ``noun``, ``id``, ``status`` ...), JSON-ready.
    """

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def __getattr__(self, name: str) -> Any:
        # Typed facts read like attributes: ``error.field``, ``error.noun``.
        details = self.__dict__.get("details", {})
        if name in details:
            return details[name]
        raise AttributeError(name)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.details))

    def to_dict(self) -> dict[str, Any]:
        """The error as JSON-ready values, as ``--json`` and MCP print it."""
        return {"code": self.code, "message": self.message, "retryable": self.retryable, **self.details}


def _rebuild(kind: type[BlackboardError], message: str, details: dict[str, Any]) -> BlackboardError:
    return kind(message, **details)


class ConfigurationError(BlackboardError):
    """A setting, a URL or a file is wrong."""

    code = "configuration"


class SwarmFileError(ConfigurationError):
    """A swarm file is wrong; ``details`` hold ``path``, ``line`` and ``column`` (1-based)."""

    code = "swarm_file"


class Unavailable(BlackboardError):
    """The database cannot serve us now."""

    code = "unavailable"
    retryable = True


class ServerUnreachable(Unavailable):
    """Nothing answers at the URL, or the connection was cut."""

    code = "server_unreachable"


class ServerTooOld(Unavailable):
    """The server is older than PostgreSQL 15."""

    code = "server_too_old"
    retryable = False


class TooManyConnections(Unavailable):
    """The server's connection slots are used up."""

    code = "too_many_connections"


class EmbeddedServerUnavailable(Unavailable):
    """No PostgreSQL binaries were found to start an embedded server with."""

    code = "embedded_unavailable"
    retryable = False


class EmbeddedServerError(Unavailable):
    """The embedded server would not start or stop; the message quotes its log."""

    code = "embedded_error"
    retryable = False


class SchemaError(Unavailable):
    """The board's tables are not as this version of the package needs them."""

    code = "schema"
    retryable = False


class SchemaMissing(SchemaError):
    """The database has no blackboard yet: run ``blackboard db upgrade``."""

    code = "schema_missing"


class SchemaOutdated(SchemaError):
    """The database's blackboard is older than this package: run ``blackboard db upgrade``."""

    code = "schema_outdated"


class SchemaTooNew(SchemaError):
    """The database's blackboard is newer than this package: upgrade the package."""

    code = "schema_too_new"


class InvalidInput(BlackboardError):
    """A value was refused and nothing was written; ``details["field"]`` names it where known."""

    code = "invalid_input"


class PayloadTooLarge(InvalidInput):
    """A value is over the size limit: store it elsewhere and post a reference."""

    code = "payload_too_large"


class CyclicDependency(InvalidInput):
    """The dependencies form a cycle; ``details["path"]`` lists it."""

    code = "cyclic_dependency"


class NotFound(BlackboardError):
    """No such row; ``details`` hold ``noun`` and ``id``."""

    code = "not_found"


class Conflict(BlackboardError):
    """The row is not in a state that allows this."""

    code = "conflict"


class AlreadyExists(Conflict):
    """That name or id is taken."""

    code = "already_exists"


class IdempotencyConflict(Conflict):
    """The id or key was used before with other content."""

    code = "idempotency_conflict"


class InvalidTransition(Conflict):
    """The life cycle has no step from ``details["status"]`` to what was asked for."""

    code = "invalid_transition"


class SessionClosed(Conflict):
    """The session is completed or failed and takes no more writes."""

    code = "session_closed"


class NotPermitted(BlackboardError):
    """This agent may not do that; the message says who may."""

    code = "not_permitted"


class LeaseLost(BlackboardError):
    """The lease lapsed and the work may be with somebody else; a late result was kept aside, not applied."""

    code = "lease_lost"


class LockNotAcquired(BlackboardError):
    """Somebody else held the lock until the time was up; ``details["holder"]`` names the agent."""

    code = "lock_not_acquired"
    retryable = True


class WaitTimeout(BlackboardError):
    """What was waited for did not happen in time."""

    code = "wait_timeout"
    retryable = True


class WaitNotAllowed(BlackboardError):
    """A verb that waits was called on a handle bound to a caller's transaction."""

    code = "wait_not_allowed"


class CursorExpired(BlackboardError):
    """Events after this cursor were pruned: read the board afresh and start from a new cursor."""

    code = "cursor_expired"


class CursorFromAnotherHistory(BlackboardError):
    """The cursor is ahead of this database's history: it came from another one, or a restore went back in time."""

    code = "cursor_from_another_history"


class TransientError(BlackboardError):
    """A serialization failure or deadlock: the transaction was rolled back whole; run it again."""

    code = "transient"
    retryable = True


# SQLSTATEs raised by the board's own functions (class BB), see migrations/versions/0001_foundation.up.sql.
_OWN: dict[str, type[BlackboardError]] = {
    "BB001": NotFound,
    "BB002": InvalidInput,
    "BB003": InvalidTransition,
    "BB004": IdempotencyConflict,
    "BB005": NotPermitted,
    "BB006": LeaseLost,
    "BB007": SessionClosed,
    "BB008": CyclicDependency,
    "BB009": CursorExpired,
    "BB010": CursorFromAnotherHistory,
    "BB011": AlreadyExists,
    "BB012": Conflict,
    "BB013": PayloadTooLarge,
}

_STANDARD: dict[str, tuple[type[BlackboardError], str]] = {
    "08000": (ServerUnreachable, "The connection to PostgreSQL failed; try again."),
    "08001": (ServerUnreachable, "PostgreSQL could not be reached; check the URL and that the server runs."),
    "08003": (ServerUnreachable, "The connection to PostgreSQL was cut; repeat the call (writes are idempotent)."),
    "08006": (ServerUnreachable, "The connection to PostgreSQL was cut; repeat the call (writes are idempotent)."),
    "21000": (InvalidInput, "A row was named twice in one call; name each once."),
    "22001": (InvalidInput, "A text is too long for its column; shorten it."),
    "22003": (InvalidInput, "A number is out of range."),
    "22021": (InvalidInput, "Text must not contain a zero byte; remove it."),
    "22023": (InvalidInput, "A parameter value is not allowed here."),
    "22P02": (InvalidInput, "A value has the wrong form for its column."),
    "22P05": (InvalidInput, "Text must not contain \\u0000; remove it."),
    "23502": (InvalidInput, "A required value is missing."),
    "23505": (AlreadyExists, "That id or name is taken; choose another."),
    "25006": (Unavailable, "The server is read-only, a standby perhaps; use the primary's URL."),
    "25P02": (TransientError, "The transaction has already failed; roll it back and run it again."),
    "25P03": (TransientError, "The transaction was idle for too long and is gone; run it again."),
    "26000": (ConfigurationError, "A pooler swapped the server connection under us; open with pooled=True."),
    "28000": (ConfigurationError, "PostgreSQL refused the login; check user and pg_hba.conf."),
    "28P01": (ConfigurationError, "PostgreSQL refused the password; check the URL."),
    "3D000": (ConfigurationError, "That database does not exist; create it or correct the URL."),
    "3F000": (SchemaMissing, "The database has no blackboard yet: run `blackboard db upgrade`."),
    "40001": (TransientError, "Concurrent transactions collided; run the transaction again."),
    "40P01": (TransientError, "A deadlock was broken; run the transaction again."),
    "42501": (NotPermitted, "The database role lacks a privilege; see `blackboard db grants`."),
    "42883": (SchemaOutdated, "The database's blackboard is older than this package: run `blackboard db upgrade`."),
    "42P05": (ConfigurationError, "A pooler swapped the server connection under us; open with pooled=True."),
    "42P01": (SchemaMissing, "The database has no blackboard yet: run `blackboard db upgrade`."),
    "53300": (
        TooManyConnections,
        "PostgreSQL has no connection left: put PgBouncer in front, lower pool_size, or raise max_connections.",
    ),
    "54000": (PayloadTooLarge, "A value exceeds a limit of PostgreSQL; store it elsewhere and post a reference."),
    "55P03": (TransientError, "A row lock was not granted in time; run the transaction again."),
    "57014": (TransientError, "The statement took longer than statement_timeout allows; try again."),
    "57P01": (ServerUnreachable, "PostgreSQL is shutting down; repeat the call when it is back."),
    "57P02": (ServerUnreachable, "PostgreSQL crashed and is recovering; repeat the call when it is back."),
    "57P05": (ServerUnreachable, "PostgreSQL closed a connection that was idle for too long; repeat the call."),
    "57P03": (ServerUnreachable, "PostgreSQL is starting up; repeat the call in a moment."),
}

# Named constraints: what each one means to a caller, and the field it guards. Filled by the nouns below; a test
# breaks every CHECK, key and exclusion constraint of the schema and expects its entry here.
CONSTRAINTS: dict[str, tuple[type[BlackboardError], str, str]] = {}


def from_sqlstate(
    sqlstate: str | None,
    message: str,
    *,
    detail: str | None = None,
    hint: str | None = None,
    constraint: str | None = None,
    column: str | None = None,
) -> BlackboardError:
    """The error of ours that stands for PostgreSQL's answer.

    ``detail`` of our own SQLSTATEs (class BB) is a JSON object of typed facts. A constraint that is named in
    ``CONSTRAINTS`` decides before its SQLSTATE does. What is unknown becomes a plain ``BlackboardError`` that
    carries the server's words and ``details["sqlstate"]``.
    """
    code = sqlstate or ""
    if code in _OWN:
        facts: Mapping[str, Any] = {}
        if detail:
            try:
                facts = json.loads(detail)
            except ValueError:
                facts = {"detail": detail}
        text = f"{message} {hint}" if hint else message
        return _OWN[code](text, **facts)
    if constraint and constraint in CONSTRAINTS:
        kind, field, text = CONSTRAINTS[constraint]
        return kind(text, field=field, constraint=constraint)
    if code in _STANDARD:
        kind, text = _STANDARD[code]
        facts = {"field": column} if column else {}
        return kind(f"{text} (PostgreSQL said: {message})", sqlstate=code, **facts)
    if code.startswith("08"):
        return ServerUnreachable(f"The connection to PostgreSQL failed: {message}", sqlstate=code)
    if code.startswith("53"):
        return Unavailable(f"PostgreSQL is out of a resource: {message}", sqlstate=code)
    if code.startswith(("22", "23")):
        return InvalidInput(f"PostgreSQL refused a value: {message}", sqlstate=code, constraint=constraint)
    return BlackboardError(f"PostgreSQL answered with {code or 'an error'}: {message}", sqlstate=code)
