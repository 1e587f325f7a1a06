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
    "BB014": BudgetExceeded,
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
CONSTRAINTS: dict[str, tuple[type[BlackboardError], str, str]] = {
    "agents_capabilities_few": (
        InvalidInput,
        "capabilities",
        "An agent has at most 100 capabilities, none of them NULL.",
    ),
    "agents_capacity_range": (InvalidInput, "capacity", "capacity must be between 1 and 100000."),
    "agents_expertise_size": (PayloadTooLarge, "expertise", "expertise is over 1 MiB; declare fewer categories."),
    "agents_expertise_weights": (InvalidInput, "expertise", "expertise maps categories to numbers between 0 and 1."),
    "agents_id_form": (
        InvalidInput,
        "agent_id",
        "An agent id has 1 to 100 characters and no white space, such as ops/deploy-validator.",
    ),
    "agents_pkey": (AlreadyExists, "agent_id", "An agent with this id is registered already."),
    "agents_role_length": (InvalidInput, "role", "A role has 1 to 50 characters."),
    "agents_trust_range": (InvalidInput, "trust", "trust must be between 0 and 1."),
    "flow_edges_depends_on_fkey": (NotFound, "after", "A stage comes after one that is not in its flow."),
    "flow_edges_on_failure_known": (
        InvalidInput,
        "on_failure",
        "on_failure of a stage must be fail, skip, continue or compensate.",
    ),
    "flow_edges_pkey": (AlreadyExists, "after", "A stage names another one twice in after."),
    "flow_edges_stage_fkey": (NotFound, "stage", "There is no such stage in this flow."),
    "flow_stages_bindings_object": (InvalidInput, "inputs", "inputs of a stage map names to where they come from."),
    "flow_stages_flow_fkey": (NotFound, "flow_id", "There is no such flow in this session."),
    "flow_stages_join_range": (InvalidInput, "join", "join must be all, any or a number from 1."),
    "flow_stages_loop_has_quality": (InvalidInput, "loop_to", "loop_to needs a min_quality to decide by."),
    "flow_stages_max_iterations_range": (InvalidInput, "max_iterations", "max_iterations must be between 1 and 100."),
    "flow_stages_min_quality_range": (InvalidInput, "min_quality", "min_quality must be between 0 and 1."),
    "flow_stages_name_form": (
        InvalidInput,
        "name",
        "A stage's name has 1 to 100 characters without white space and dots, and is not inputs.",
    ),
    "flow_stages_output_form": (
        InvalidInput,
        "output",
        "An output's name has 1 to 100 characters without white space and dots, and is not inputs.",
    ),
    "flow_stages_output_once": (InvalidInput, "output", "Two stages name the same output; names are unique in a flow."),
    "flow_stages_pkey": (InvalidInput, "name", "Two stages have the same name; names are unique in a flow."),
    "flow_stages_quality_range": (InvalidInput, "quality", "quality must be between 0 and 1."),
    "flow_stages_state_known": (
        InvalidInput,
        "state",
        "A stage is waiting, ready, completed, failed, skipped or cancelled.",
    ),
    "flow_tasks_flow_fkey": (NotFound, "flow_id", "There is no such flow in this session."),
    "flow_tasks_kind_known": (InvalidInput, "kind", "A flow's task is a stage or a compensation."),
    "flow_tasks_pkey": (AlreadyExists, "task_id", "This task belongs to a flow already."),
    "flows_finished_at_iff_final": (
        InvalidInput,
        "finished_at",
        "finished_at is set exactly when a flow is over; use its verbs.",
    ),
    "flows_inputs_object": (InvalidInput, "inputs", "inputs of a flow is an object."),
    "flows_inputs_size": (PayloadTooLarge, "inputs", "inputs is over 1 MiB; store it elsewhere and post a reference."),
    "flows_name_length": (InvalidInput, "name", "A flow's name has 1 to 200 characters."),
    "flows_pkey": (AlreadyExists, "id", "A flow with this id exists already; use a new id."),
    "flows_session_known": (
        NotFound,
        "session_id",
        "There is no such session; list them with `blackboard session list`.",
    ),
    "flows_status_known": (InvalidInput, "status", "A flow is running, paused, completed, failed or cancelled."),
    "flows_version_range": (InvalidInput, "version", "A flow's version counts from 1."),
    "keyed_tasks_pkey": (AlreadyExists, "task_id", "The task has this key already."),
    "late_results_agent_id_length": (InvalidInput, "agent_id", "An agent's id has 1 to 100 characters."),
    "late_results_error_size": (PayloadTooLarge, "error", "error is over 1 MiB; shorten it."),
    "budgets_agent_id_length": (InvalidInput, "agent_id", "An agent's id has 1 to 100 characters."),
    "budgets_ceiling_range": (InvalidInput, "ceiling", "A ceiling is a number from 0 to 1e15."),
    "budgets_counters_range": (InvalidInput, "spent", "The counters of a budget are kept by the ledger."),
    "budgets_currency_form": (InvalidInput, "currency", "A currency is 3 to 8 capital letters, such as USD."),
    "budgets_currency_iff_cost": (InvalidInput, "currency", "A currency belongs to a budget of cost and to no other."),
    "budgets_one_each": (AlreadyExists, "unit", "That subject has a budget of this unit already; change its ceiling."),
    "budgets_period_range": (
        InvalidInput,
        "window",
        "A window is between 1 second and 366 days, in days and seconds: months have no fixed length.",
    ),
    "budgets_pkey": (AlreadyExists, "id", "A budget with this id exists already; use a new id."),
    "budgets_scope_known": (InvalidInput, "scope", "A budget's scope must be session, agent or task."),
    "budgets_session_known": (
        NotFound,
        "session_id",
        "There is no such session; list them with `blackboard session list`.",
    ),
    "budgets_soft_range": (InvalidInput, "soft", "The soft limit lies between 0 and the ceiling."),
    "budgets_subject_fits_scope": (
        InvalidInput,
        "scope",
        "A budget is for the session, for one agent or for one task: name an agent or a task, not both.",
    ),
    "budgets_task_known": (NotFound, "task_id", "There is no such task in this session."),
    "budgets_unit_known": (InvalidInput, "unit", "A unit must be tokens, cost, calls or seconds."),
    "budgets_window_iff_period": (InvalidInput, "window", "The start of a window is kept by the board; leave it out."),
    "late_results_once": (AlreadyExists, "task_id", "This late result is kept already."),
    "late_results_pkey": (AlreadyExists, "id", "A late result with this id exists already; use a new id."),
    "late_results_result_size": (
        PayloadTooLarge,
        "result",
        "result is over 1 MiB; store it elsewhere and post a reference.",
    ),
    "leases_pkey": (AlreadyExists, "id", "A lease with this id exists already; use a new id."),
    "leases_term_range": (InvalidInput, "term", "A lease's term must be between 1 second and 30 days."),
    "limits_capability_length": (InvalidInput, "capability", "A capability has at most 100 characters."),
    "limits_figures_of_kind": (
        InvalidInput,
        "kind",
        "A concurrency limit has max_running; a rate has rate_count and rate_period.",
    ),
    "limits_kind_known": (InvalidInput, "kind", "A limit is of concurrency or of rate."),
    "limits_max_running_range": (InvalidInput, "max_running", "max_running must be between 1 and 1000000."),
    "limits_name_length": (InvalidInput, "name", "A limit's name has 1 to 100 characters."),
    "limits_name_once": (AlreadyExists, "name", "This session has a limit of that name."),
    "limits_one_scope": (InvalidInput, "type", "A limit is for one type or for one capability, not both."),
    "limits_pkey": (AlreadyExists, "id", "A limit with this id exists already."),
    "limits_rate_count_range": (InvalidInput, "rate_count", "rate_count must be between 1 and 1000000."),
    "limits_rate_period_range": (
        InvalidInput,
        "rate_period",
        "rate_period must be between 10 milliseconds and 366 days.",
    ),
    "limits_type_length": (InvalidInput, "type", "A task's type has 1 to 50 characters."),
    "limit_usage_deferred_range": (InvalidInput, "deferred", "Counters of limits are kept by the board."),
    "limit_usage_limit_fkey": (NotFound, "limit_id", "There is no such limit in this session."),
    "limit_usage_pkey": (AlreadyExists, "key", "This counter exists already."),
    "limit_usage_running_range": (InvalidInput, "running", "Counters of limits are kept by the board."),
    "limit_usage_used_range": (InvalidInput, "used", "Counters of limits are kept by the board."),
    "memberships_agent_id_fkey": (NotFound, "agent_id", "This agent is not registered; join the session first."),
    "memberships_pkey": (AlreadyExists, "agent_id", "This agent is a member already."),
    "memberships_role_length": (InvalidInput, "role", "A role has 1 to 50 characters."),
    "memberships_session_id_fkey": (
        NotFound,
        "session_id",
        "There is no such session; list them with `blackboard session list`.",
    ),
    "memberships_vote_weight_range": (InvalidInput, "vote_weight", "vote_weight must be between 0 and 1000000."),
    "requests_key_length": (InvalidInput, "key", "An idempotency key has 1 to 200 characters."),
    "requests_pkey": (AlreadyExists, "key", "This key was used already; use a new one."),
    "sessions_ageing_is_gated": (InvalidInput, "ageing", "Set ageing with configure_session, which tells the claims."),
    "sessions_ageing_range": (InvalidInput, "ageing", "ageing must be between 1 second and 3650 days."),
    "sessions_closed_at_iff_closed": (
        InvalidInput,
        "closed_at",
        "closed_at is set exactly when a session is closed; use close_session.",
    ),
    "sessions_context_size": (
        PayloadTooLarge,
        "context",
        "context is over 1 MiB; store it elsewhere and post a reference.",
    ),
    "sessions_goal_length": (InvalidInput, "goal", "A goal has at most 10000 characters; shorten it."),
    "sessions_name_length": (InvalidInput, "name", "A session's name has 1 to 200 characters."),
    "sessions_name_while_open": (
        AlreadyExists,
        "name",
        "An open session has this name: join it, close it, or use another name.",
    ),
    "sessions_not_the_board": (InvalidInput, "id", "This id stands for the board itself; use another."),
    "sessions_outcome_size": (
        PayloadTooLarge,
        "outcome",
        "outcome is over 1 MiB; store it elsewhere and post a reference.",
    ),
    "sessions_pkey": (AlreadyExists, "id", "A session with this id exists already."),
    "sessions_retention_range": (InvalidInput, "retention", "retention must be between 0 and 36500 days."),
    "sessions_status_known": (InvalidInput, "status", "A session is active, paused, completed or failed."),
    "task_dependencies_depends_on_fkey": (
        NotFound,
        "depends_on",
        "There is no such task in this session to depend on.",
    ),
    "task_dependencies_not_itself": (InvalidInput, "depends_on", "A task cannot depend on itself."),
    "task_dependencies_on_failure_known": (InvalidInput, "on_failure", "on_failure must be fail or continue."),
    "task_dependencies_pkey": (AlreadyExists, "depends_on", "This dependency exists already."),
    "task_dependencies_state_known": (
        InvalidInput,
        "state",
        "A dependency is waiting, satisfied or failed; leave it to the board.",
    ),
    "task_dependencies_task_fkey": (NotFound, "task_id", "There is no such task in this session."),
    "task_keys_pkey": (AlreadyExists, "key", "This key is used already."),
    "task_slots_pkey": (AlreadyExists, "task_id", "The task has a slot of this limit already."),
    "tasks_assigned_to_length": (InvalidInput, "assigned_to", "An agent id has 1 to 100 characters."),
    "tasks_assignee_when_assigned": (InvalidInput, "assigned_to", "An assigned task names whom it is assigned to."),
    "tasks_attempt_range": (InvalidInput, "attempt", "attempt only grows, from 0."),
    "tasks_blockers_iff_blocked": (
        InvalidInput,
        "blockers",
        "A blocked task has dependencies that have not finished; add those instead.",
    ),
    "tasks_blockers_range": (InvalidInput, "blockers", "blockers is counted by the board."),
    "tasks_capability_length": (InvalidInput, "capability", "A capability has at most 100 characters."),
    "tasks_claimed_when_running": (
        InvalidTransition,
        "status",
        "A task runs only when it was claimed; use claim_tasks or the view agent_tasks.",
    ),
    "tasks_completed_at_iff_final": (
        InvalidInput,
        "completed_at",
        "completed_at is set exactly when a task has finished; use the verbs.",
    ),
    "tasks_deadline_only_running": (
        InvalidInput,
        "deadline_at",
        "Only a running task has a deadline; give timeout instead.",
    ),
    "tasks_error_size": (PayloadTooLarge, "error", "error is over 1 MiB; shorten it."),
    "tasks_fallback_range": (InvalidInput, "fallback", "fallback must be between 0 and 3650 days."),
    "tasks_held_says_why": (InvalidInput, "held", "A held task says why in held: at least its code."),
    "tasks_held_size": (PayloadTooLarge, "held", "held is over 8 KiB; shorten it."),
    "tasks_lease_iff_running": (
        InvalidTransition,
        "status",
        "A task is held under a lease exactly while it runs; use claim_tasks.",
    ),
    "tasks_limit_key_length": (InvalidInput, "limit_key", "A limit key has 1 to 200 characters."),
    "tasks_max_attempts_range": (InvalidInput, "max_attempts", "max_attempts must be between 1 and 1000."),
    "tasks_parameters_size": (
        PayloadTooLarge,
        "parameters",
        "parameters is over 1 MiB; store it elsewhere and post a reference.",
    ),
    "tasks_pkey": (AlreadyExists, "id", "A task with this id exists already."),
    "tasks_position_iff_ready": (
        InvalidInput,
        "position",
        "A task has a position exactly while it is ready; leave it to the board.",
    ),
    "tasks_priority_range": (InvalidInput, "priority", "priority must be between 0 and 10, higher first."),
    "tasks_progress_size": (PayloadTooLarge, "progress", "progress is over 1 MiB; shorten it."),
    "tasks_ready_is_approved": (InvalidTransition, "approved_by", "The task requires approval; approve it first."),
    "tasks_ready_is_unblocked": (
        InvalidTransition,
        "status",
        "The task waits for others that have not finished; complete those, or delete its dependencies.",
    ),
    "tasks_result_size": (PayloadTooLarge, "result", "result is over 1 MiB; store it elsewhere and post a reference."),
    "tasks_retry_delay_range": (InvalidInput, "retry_delay", "retry_delay must be between 0 and 30 days."),
    "tasks_run_at_when_scheduled": (InvalidInput, "run_at", "A scheduled task names its time in run_at."),
    "tasks_status_known": (InvalidInput, "status", "There is no such task status."),
    "tasks_timeout_range": (InvalidInput, "timeout", "timeout must be longer than 0 and at most 3650 days."),
    "tasks_type_length": (InvalidInput, "type", "A task's type has 1 to 50 characters."),
    "tasks_unique_key_length": (InvalidInput, "unique", "A unique key has 1 to 200 characters."),
    "actions_approval_iff_required": (
        InvalidInput,
        "approval",
        "An approval is named exactly for an action that requires one: leave approval out, or requires_approval.",
    ),
    "actions_approval_known": (InvalidInput, "approval", "approval must be vote, human or both."),
    "actions_approval_reason_length": (InvalidInput, "reason", "A reason has at most 4000 characters; shorten it."),
    "actions_approved_before_start": (
        InvalidTransition,
        "status",
        "The action lacks an approval it requires; approve it first.",
    ),
    "actions_approved_by_length": (InvalidInput, "by", "An approver's name has 1 to 200 characters."),
    "actions_approver_is_another": (
        NotPermitted,
        "by",
        "Who proposed an action cannot approve it; somebody else must.",
    ),
    "actions_decided_at_iff_decided": (
        InvalidInput,
        "decided_at",
        "decided_at is set exactly when an action is decided; leave it to the board.",
    ),
    "actions_error_length": (InvalidInput, "error", "An error has at most 10000 characters; shorten it."),
    "actions_escalation_needs_human": (
        InvalidInput,
        "approval",
        "What is escalated awaits a human: leave approval out, or use human or both.",
    ),
    "actions_executor_iff_started": (
        InvalidTransition,
        "executor",
        "An action has executor, lease and token exactly from its start on; use start_action.",
    ),
    "actions_executor_member": (
        InvalidInput,
        "executor",
        "The executor is not a member of this session; join it first.",
    ),
    "actions_finished_at_iff_finished": (
        InvalidInput,
        "finished_at",
        "finished_at is set exactly when an action has ended; leave it to the board.",
    ),
    "actions_parameters_size": (
        PayloadTooLarge,
        "parameters",
        "parameters is over 1 MiB; store it elsewhere and post a reference.",
    ),
    "actions_pkey": (AlreadyExists, "id", "An action with this id exists already; use a new id."),
    "actions_proposal_known": (NotFound, "proposal_id", "There is no such proposal in this session; open it first."),
    "actions_proposer_member": (InvalidInput, "agent_id", "This agent is not a member of the session; join it first."),
    "actions_rejected_by_length": (InvalidInput, "by", "The name of who rejects has 1 to 200 characters."),
    "actions_result_size": (
        PayloadTooLarge,
        "result",
        "result is over 1 MiB; store it elsewhere and post a reference.",
    ),
    "actions_rollback_reason_length": (InvalidInput, "reason", "A reason has at most 4000 characters; shorten it."),
    "actions_rolled_back_by_length": (InvalidInput, "by", "The name of who rolls back has 1 to 200 characters."),
    "actions_rolled_back_by_whom": (
        InvalidInput,
        "rolled_back_by",
        "rolled_back_by is set exactly when an action is rolled back; use roll_back_action.",
    ),
    "actions_session_known": (NotFound, "session_id", "There is no such session; start it first."),
    "actions_status_known": (InvalidInput, "status", "There is no such action status."),
    "actions_target_length": (InvalidInput, "target", "target has at most 500 characters; shorten it."),
    "actions_token_range": (InvalidInput, "token", "A token is not negative."),
    "actions_type_known": (InvalidInput, "type", "type must be query, modify, notify or escalate."),
    "actions_vote_needs_proposal": (
        InvalidInput,
        "approval",
        "This approval needs a vote: name the proposal that decides.",
    ),
    "corroborations_agent_id_length": (InvalidInput, "agent_id", "An agent's id has 1 to 100 characters."),
    "corroborations_confidence_range": (InvalidInput, "confidence", "A confidence is a number between 0 and 1."),
    "corroborations_evidence_items": (
        InvalidInput,
        "evidence",
        "Evidence is a list of objects with a text `source` and optionally `query` and `result`.",
    ),
    "corroborations_evidence_size": (
        PayloadTooLarge,
        "evidence",
        "Evidence has at most 1 MiB; store it elsewhere and post a reference.",
    ),
    "corroborations_finding_known": (
        NotFound,
        "finding_id",
        "There is no such finding in this session; list them first.",
    ),
    "corroborations_pkey": (AlreadyExists, "agent_id", "This agent has corroborated that finding already."),
    "corroborations_report_once": (AlreadyExists, "report_id", "A report with this id was made already; use a new id."),
    "finding_links_agent_id_length": (InvalidInput, "agent_id", "An agent's id has 1 to 100 characters."),
    "finding_links_finding_known": (
        NotFound,
        "finding_id",
        "There is no such finding in this session; list them first.",
    ),
    "finding_links_kind_known": (InvalidInput, "kind", "A link's kind must be contradicts."),
    "finding_links_not_itself": (InvalidInput, "other_id", "A finding cannot contradict itself; name another one."),
    "finding_links_once": (AlreadyExists, "other_id", "That contradiction is on record already."),
    "finding_links_other_known": (NotFound, "other_id", "There is no such finding in this session; list them first."),
    "finding_links_pkey": (AlreadyExists, "id", "A link with this id exists already; use a new id."),
    "finding_links_reason_length": (InvalidInput, "reason", "A reason has at most 4000 characters; shorten it."),
    "findings_active_once": (
        AlreadyExists,
        "content",
        "The same thing stands on the board already; corroborate it with blackboard.report_finding().",
    ),
    "findings_agent_id_length": (InvalidInput, "agent_id", "An agent's id has 1 to 100 characters."),
    "findings_category_known": (InvalidInput, "category", "A category must be observation, hypothesis or conclusion."),
    "findings_confidence_range": (InvalidInput, "confidence", "A confidence is a number between 0 and 1."),
    "findings_content_size": (
        PayloadTooLarge,
        "content",
        "Content has at most 1 MiB; store it elsewhere and post a reference.",
    ),
    "findings_corroborations_range": (
        InvalidInput,
        "corroborations",
        "Corroborations are counted by the board; leave them to it.",
    ),
    "findings_derived_from_few": (
        InvalidInput,
        "derived_from",
        "A finding derives from at most 1000 others, none of them NULL; derive in steps.",
    ),
    "findings_evidence_items": (
        InvalidInput,
        "evidence",
        "Evidence is a list of objects with a text `source` and optionally `query` and `result`.",
    ),
    "findings_evidence_size": (
        PayloadTooLarge,
        "evidence",
        "Evidence has at most 1 MiB; store it elsewhere and post a reference.",
    ),
    "findings_pkey": (AlreadyExists, "id", "A finding with this id exists already; use a new id."),
    "findings_provenance_object": (InvalidInput, "provenance", "Provenance is a JSON object."),
    "findings_provenance_size": (
        PayloadTooLarge,
        "provenance",
        "Provenance has at most 1 MiB; store it elsewhere and post a reference.",
    ),
    "findings_reason_length": (InvalidInput, "reason", "A reason has at most 4000 characters; shorten it."),
    "findings_session_known": (
        NotFound,
        "session_id",
        "There is no such session; list them with `blackboard session list`.",
    ),
    "findings_status_known": (InvalidInput, "status", "A finding's status must be active, superseded or retracted."),
    "findings_superseded_by_another": (
        InvalidInput,
        "superseded_by",
        "A finding is superseded by another one, not by itself.",
    ),
    "findings_superseded_by_iff_superseded": (
        InvalidInput,
        "superseded_by",
        "superseded_by is set exactly when the status is superseded; use blackboard.supersede_finding().",
    ),
    "findings_superseded_by_known": (
        NotFound,
        "superseded_by",
        "There is no such finding in this session; report the successor first.",
    ),
    "findings_tags_few": (
        InvalidInput,
        "tags",
        "There are at most 100 tags with 10000 characters in all, none of them NULL.",
    ),
    "findings_trust_range": (InvalidInput, "trust", "Trust is a number between 0 and 1."),
    "findings_type_length": (InvalidInput, "type", "A finding's type has 1 to 50 characters."),
    "hypotheses_agent_id_length": (InvalidInput, "agent_id", "An agent's id has 1 to 100 characters."),
    "hypotheses_confidence_range": (
        InvalidInput,
        "confidence",
        "A hypothesis's confidence is computed and stays between 0.01 and 0.99.",
    ),
    "hypotheses_pkey": (AlreadyExists, "id", "A hypothesis with this id exists already; use a new id."),
    "hypotheses_prior_range": (InvalidInput, "confidence", "A confidence is a number between 0 and 1."),
    "hypotheses_reason_length": (InvalidInput, "reason", "A reason has at most 4000 characters; shorten it."),
    "hypotheses_revision_range": (InvalidInput, "revision", "Revisions are counted by the board; leave them to it."),
    "hypotheses_session_known": (
        NotFound,
        "session_id",
        "There is no such session; list them with `blackboard session list`.",
    ),
    "hypotheses_statement_length": (
        InvalidInput,
        "statement",
        "A statement has 1 to 2000 characters; put the rest into findings.",
    ),
    "hypotheses_status_known": (
        InvalidInput,
        "status",
        "A hypothesis's status must be proposed, validated, refuted or withdrawn.",
    ),
    "hypotheses_validated_by_length": (
        InvalidInput,
        "validated_by",
        "Who gives the verdict has a name of 1 to 100 characters.",
    ),
    "hypotheses_verdict_evidence_few": (
        InvalidInput,
        "evidence",
        "A verdict rests on at most 1000 findings, none of them NULL.",
    ),
    "hypotheses_verdict_iff_decided": (
        InvalidInput,
        "validated_by",
        "validated_by and validated_at are set exactly with a verdict; use blackboard.validate_hypothesis().",
    ),
    "hypotheses_verdict_needs_evidence": (
        InvalidInput,
        "evidence",
        "A verdict, and nothing else, needs evidence: name at least one active finding.",
    ),
    "hypothesis_assessments_agent_id_length": (InvalidInput, "agent_id", "An agent's id has 1 to 100 characters."),
    "hypothesis_assessments_confidence_range": (
        InvalidInput,
        "confidence",
        "A confidence is a number between 0 and 1.",
    ),
    "hypothesis_assessments_hypothesis_known": (
        NotFound,
        "hypothesis_id",
        "There is no such hypothesis in this session; list them first.",
    ),
    "hypothesis_assessments_pkey": (
        AlreadyExists,
        "agent_id",
        "This agent has assessed that hypothesis already; update its row.",
    ),
    "hypothesis_assessments_reason_length": (
        InvalidInput,
        "reason",
        "A reason has at most 4000 characters; shorten it.",
    ),
    "hypothesis_evidence_agent_id_length": (InvalidInput, "agent_id", "An agent's id has 1 to 100 characters."),
    "hypothesis_evidence_finding_known": (
        NotFound,
        "finding_id",
        "There is no such finding in this session; list them first.",
    ),
    "hypothesis_evidence_hypothesis_known": (
        NotFound,
        "hypothesis_id",
        "There is no such hypothesis in this session; list them first.",
    ),
    "hypothesis_evidence_live_once": (
        AlreadyExists,
        "finding_id",
        "This finding is evidence for that hypothesis already; retract it first.",
    ),
    "hypothesis_evidence_pkey": (AlreadyExists, "id", "Evidence with this id exists already; use a new id."),
    "hypothesis_evidence_reason_length": (InvalidInput, "reason", "A reason has at most 4000 characters; shorten it."),
    "hypothesis_evidence_weight_range": (InvalidInput, "weight", "A weight is a number above 0 and up to 1."),
    "lock_waiters_agent_member": (
        InvalidInput,
        "agent_id",
        "This agent is not a member of the session; join it first.",
    ),
    "lock_waiters_lock_known": (NotFound, "lock_id", "There is no such lock; use acquire_lock."),
    "lock_waiters_pkey": (AlreadyExists, "request_id", "This request waits already; use a new request_id."),
    "lock_waiters_position_once": (Conflict, "position", "That place in the queue is taken; use acquire_lock."),
    "locks_held_whole": (
        InvalidInput,
        "holder",
        "A held lock has holder, request, token and acquired_at, a free one has none; use acquire_lock.",
    ),
    "locks_holder_has_an_end": (
        InvalidInput,
        "expires_at",
        "Without a lease a lock needs an expires_at, or it could be held for ever.",
    ),
    "locks_holder_member": (InvalidInput, "holder", "The holder is not a member of this session; join it first."),
    "locks_name_length": (InvalidInput, "name", "A lock's name has 1 to 300 characters."),
    "locks_name_once": (AlreadyExists, "name", "There is a lock of that name already; acquire it."),
    "locks_pkey": (AlreadyExists, "id", "A lock with this id exists already; use a new id."),
    "locks_session_known": (NotFound, "session_id", "There is no such session; start it first."),
    "locks_token_range": (InvalidInput, "token", "A token is not negative."),
    "proposal_electors_pkey": (AlreadyExists, "agent_id", "This agent is in the electorate already."),
    "proposal_electors_proposal_known": (
        NotFound,
        "proposal_id",
        "There is no such proposal in this session; open it first.",
    ),
    "proposal_electors_weight_range": (InvalidInput, "weight", "An elector's weight is between 0 and 1000000."),
    "pauses_kind_known": (InvalidInput, "kind", "What is paused is a type or a capability."),
    "pauses_name_length": (InvalidInput, "name", "The name of what is paused has 1 to 100 characters."),
    "pauses_once": (AlreadyExists, "name", "That is paused already."),
    "pauses_pkey": (AlreadyExists, "id", "A pause with this id exists already."),
    "pauses_reason_length": (InvalidInput, "reason", "A reason has at most 4000 characters."),
    "proposals_at_deadline_known": (InvalidInput, "at_deadline", "at_deadline must be reject, tally or escalate."),
    "proposals_body_size": (PayloadTooLarge, "body", "body is over 1 MiB; store it elsewhere and post a reference."),
    "proposals_deadline_after_opening": (
        InvalidInput,
        "deadline",
        "A deadline comes after the opening: give a positive duration, or none.",
    ),
    "proposals_decided_iff_closed": (
        InvalidInput,
        "decided_at",
        "decided_at and result are set exactly when a proposal is closed; leave them to the board.",
    ),
    "proposals_min_turnout_range": (InvalidInput, "min_turnout", "min_turnout is a share between 0 and 1."),
    "proposals_pkey": (AlreadyExists, "id", "A proposal with this id exists already; use a new id."),
    "proposals_proposer_member": (
        InvalidInput,
        "agent_id",
        "This agent is not a member of the session; join it first.",
    ),
    "proposals_rule_known": (InvalidInput, "rule", "rule must be majority, unanimous or threshold."),
    "proposals_session_known": (NotFound, "session_id", "There is no such session; start it first."),
    "proposals_status_known": (InvalidInput, "status", "There is no such proposal status."),
    "proposals_threshold_iff_rule": (
        InvalidInput,
        "threshold",
        "A threshold belongs to the rule threshold and to no other; leave it out or set the rule.",
    ),
    "proposals_threshold_range": (InvalidInput, "threshold", "threshold is a share above 0 and at most 1."),
    "proposals_title_length": (InvalidInput, "title", "A title has 1 to 500 characters."),
    "schedules_capability_length": (InvalidInput, "capability", "A capability has at most 100 characters."),
    "schedules_cron_length": (InvalidInput, "cron", "A cron expression has 1 to 200 characters."),
    "schedules_error_length": (InvalidInput, "error", "An error has at most 10000 characters."),
    "schedules_error_when_paused": (InvalidInput, "error", "Only a schedule that the board paused has an error."),
    "schedules_fired_range": (InvalidInput, "fired", "fired is counted by the board; leave it out."),
    "schedules_last_task_iff_fired": (
        InvalidInput,
        "last_at",
        "last_at and last_task_id are set exactly when it has fired; use blackboard.fire_schedule().",
    ),
    "schedules_missed_known": (InvalidInput, "missed", "missed must be skip, once or all."),
    "schedules_name_length": (InvalidInput, "name", "A schedule's name has 1 to 200 characters."),
    "schedules_name_once": (
        AlreadyExists,
        "name",
        "There is a schedule of that name already; remove it first, or use another name.",
    ),
    "schedules_options_fit": (
        InvalidInput,
        "options",
        "options are those of a task, such as timeout or max_attempts, in their ranges; no depends_on and no run_at.",
    ),
    "schedules_parameters_size": (
        PayloadTooLarge,
        "parameters",
        "parameters are over 1 MiB; store them elsewhere and post a reference.",
    ),
    "schedules_pkey": (AlreadyExists, "id", "A schedule with this id exists already; use a new id."),
    "schedules_priority_range": (InvalidInput, "priority", "priority must be between 0 and 10."),
    "schedules_session_known": (
        NotFound,
        "session_id",
        "There is no such session; list them with `blackboard session list`.",
    ),
    "schedules_skipped_range": (InvalidInput, "skipped", "skipped is counted by the board; leave it out."),
    "schedules_timezone_length": (InvalidInput, "timezone", "A time zone is a name such as Europe/Berlin."),
    "schedules_type_length": (InvalidInput, "type", "A task's type has 1 to 50 characters."),
    "spend_agent_id_length": (InvalidInput, "agent_id", "An agent's id has 1 to 100 characters."),
    "spend_currency_form": (InvalidInput, "currency", "A currency is 3 to 8 capital letters, such as USD."),
    "spend_currency_iff_cost": (InvalidInput, "currency", "A currency belongs to a cost and to nothing else."),
    "spend_holder_has_an_end": (
        InvalidInput,
        "expires_at",
        "Without a lease a reservation needs an expires_at, or it could be held for ever.",
    ),
    "spend_model_length": (InvalidInput, "model", "A model's name has 1 to 200 characters."),
    "spend_note_length": (InvalidInput, "note", "A note has at most 1000 characters; shorten it."),
    "spend_pkey": (AlreadyExists, "id", "An entry of the ledger with this id exists already; use a new id."),
    "spend_reserved_range": (InvalidInput, "reserved", "An amount is from 0 to 1e15 with at most 12 decimal places."),
    "spend_settled_at_iff_ended": (
        InvalidInput,
        "settled_at",
        "settled_at is set exactly when a reservation ends; leave it to the board.",
    ),
    "spend_settled_iff_settled": (
        InvalidInput,
        "settled",
        "settled is what was really spent: set it together with the status settled, and with no other.",
    ),
    "spend_settled_range": (InvalidInput, "settled", "An amount is from 0 to 1e15 with at most 12 decimal places."),
    "spend_status_known": (InvalidInput, "status", "A reservation is reserved, settled, released or expired."),
    "spend_unit_known": (InvalidInput, "unit", "A unit must be tokens, cost, calls or seconds."),
    "spend_unit_once": (AlreadyExists, "unit", "This reservation has that unit already; use a new reservation."),
    "spend_whole_units": (InvalidInput, "amount", "Tokens and calls are whole numbers."),
    "upkeep_pkey": (AlreadyExists, "session_id", "This session is looked after already."),
    "votes_choice_known": (InvalidInput, "choice", "A ballot says yes, no or abstain."),
    "votes_confidence_range": (InvalidInput, "confidence", "confidence is between 0 and 1."),
    "votes_elector_known": (
        NotPermitted,
        "agent_id",
        "This agent is not in the electorate, which was fixed when the proposal was opened.",
    ),
    "votes_pkey": (AlreadyExists, "agent_id", "This agent has voted already; update its ballot."),
    "votes_reason_length": (InvalidInput, "reason", "A reason has at most 4000 characters; shorten it."),
    "votes_revision_range": (InvalidInput, "revision", "A ballot's revisions count from 1; leave them to the board."),
}


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
