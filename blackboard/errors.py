"""Every error the package raises on purpose; ``sqlstates`` maps PostgreSQL's answers to them.

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
    │       ├── SchemaTooNew            newer than this package
    │       └── HistoryNotAdopted       restored from a dump of another cluster
    ├── InvalidInput                    a value was refused; names the field
    │   ├── PayloadTooLarge             over the size limit of its column
    │   └── CyclicDependency            carries the path
    ├── NotFound                        no such row; names noun and id
    ├── Conflict                        the row is not in a state that allows this
    │   ├── AlreadyExists               that name is taken
    │   ├── BudgetExceeded              a budget has no room for it; names budget, ceiling, spent, reserved, asked
    │   ├── IdempotencyConflict         same id or key, other content
    │   ├── InvalidTransition           the life cycle has no such step
    │   └── SessionClosed               the session takes no more writes
    ├── NotPermitted                    this agent may not do that
    ├── LeaseLost                       the work was taken from a holder that went silent
    ├── LockNotAcquired                 somebody else held the lock until the time was up
    ├── TaskNotCompleted                the task ended without a result; names status, error_code, error_message
    ├── WaitTimeout                     what was waited for did not happen in time
    ├── WaitNotAllowed                  a verb that waits was called inside a caller's transaction
    ├── CursorExpired                   the events after this cursor were pruned
    ├── CursorFromAnotherHistory        the cursor was read from another database or a later state
    └── TransientError                  a serialization failure or deadlock: run the transaction again
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "AlreadyExists",
    "BlackboardError",
    "BudgetExceeded",
    "ConfigurationError",
    "Conflict",
    "CursorExpired",
    "CursorFromAnotherHistory",
    "CyclicDependency",
    "EmbeddedServerError",
    "EmbeddedServerUnavailable",
    "HistoryNotAdopted",
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
    "TaskNotCompleted",
    "TooManyConnections",
    "TransientError",
    "Unavailable",
    "WaitNotAllowed",
    "WaitTimeout",
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

    def __init__(self, message: str, /, **details: Any) -> None:
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


class HistoryNotAdopted(SchemaError):
    """The database was restored from a dump of another cluster: run `blackboard db adopt`."""

    code = "history_not_adopted"


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


class BudgetExceeded(Conflict):
    """A budget has no room for what was to be reserved, and nothing was.

    ``details`` hold ``budget`` (its id), ``scope``, ``unit``, ``currency``, ``ceiling``, ``spent``, ``reserved``,
    ``asked``, ``agent_id``, ``task_id`` and, for a budget with a window, ``resets_at``.
    """

    code = "budget_exceeded"


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


class TaskNotCompleted(BlackboardError):
    """The task whose result was asked for ended failed, dead or cancelled, and has none.

    ``details`` hold ``id``, ``status``, and of its last error ``error_code`` and ``error_message`` (each may be None).
    """

    code = "task_not_completed"


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
