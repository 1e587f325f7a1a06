"""Errors as a model needs them: a code, what happened, and what to do next, by the name of the tool to call."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from ..errors import (
    BlackboardError,
    BudgetExceeded,
    CursorExpired,
    CursorFromAnotherHistory,
    IdempotencyConflict,
    InvalidInput,
    InvalidTransition,
    LeaseLost,
    NotFound,
    NotPermitted,
    PayloadTooLarge,
    SessionClosed,
    TransientError,
    Unavailable,
)
from .fence import plain, quoted
from .names import Names

__all__ = ["Refused", "from_error", "from_fault", "from_validation"]

# The most specific class decides. Templates are ours alone: nothing that others wrote is ever formatted into them.
_NEXT: dict[type[BlackboardError], str] = {
    BudgetExceeded: (
        'Nothing was reserved: do not spend it. Reserve less, or {fail_task} with error="budget"; only a human '
        "raises a budget."
    ),
    IdempotencyConflict: "Repeat the first call with exactly the same arguments, or call with a new idempotency_key.",
    LeaseLost: (
        "Stop this work: somebody else may be doing it. What you learned is still welcome with {post_finding}; "
        "{claim_task} gets you other work."
    ),
    SessionClosed: "{view} still shows the session; to work on, join an open one with {join_session}.",
    PayloadTooLarge: "Store it elsewhere and send a reference, or send less. Nothing was written.",
    InvalidTransition: "{view} shows the present state; decide from there.",
    NotPermitted: "{view} shows who may; leave it to them.",
    CursorExpired: "Call {view} for the present state and go on with the cursor that it returns.",
    CursorFromAnotherHistory: "Call {view} for the present state and go on with the cursor that it returns.",
    TransientError: "Call again with the same arguments and the same idempotency_key.",
    Unavailable: (
        "Wait some seconds and call again with the same arguments and, if you gave one, the same idempotency_key. "
        "If it lasts, tell the person who runs you."
    ),
    InvalidInput: "Nothing was written. Correct the argument and call again.",
    BlackboardError: "If calling again does not help, tell the person who runs you.",
}

_LOOK: dict[str, str] = {
    "session": "Call {join_session} with the name of an open session, or with create_if_missing=true.",
    "finding": "{get_findings} lists the findings with their ids.",
    "proposal": "{view} lists the open proposals with their ids.",
    "hypothesis": "{view} lists the hypotheses with their ids.",
    "task": "{view} lists the tasks with their ids.",
    "action": "{view} lists the actions with their ids.",
    "agent": "Call {join_session} first.",
    "reservation": "{reserve_budget} makes one and returns its id.",
}


class Refused(Exception):
    """A tool call that is answered with an error.

    Attributes:
        code: stable, lower-case; that of the error tree where there is one.
        advice: what to do now; tools as ``{claim_task}``.
        facts: typed details, JSON-ready.
    """

    def __init__(
        self,
        code: str,
        message: str,
        advice: str,
        *,
        retryable: bool = False,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.advice = advice
        self.retryable = retryable
        self.facts = dict(facts or {})

    def text(self, names: Names) -> str:
        """For the model to read."""
        return f"{self.code}: {plain(self.message)}\nWhat to do: {names.fill(self.advice)}"

    def data(self, names: Names) -> dict[str, Any]:
        """The same as JSON-ready values."""
        return {
            "code": self.code,
            "message": self.message,
            "retryable": self.retryable,
            "next": names.fill(self.advice),
            "details": json.loads(json.dumps(self.facts, default=str)),
        }


def from_error(error: BlackboardError, arguments: Iterable[str] = ()) -> Refused:
    """A typed error of the board, with the step that follows it.

    Args:
        error: what the board said.
        arguments: of the tool, in whose names it is told: ``timeout`` may be ``timeout_seconds`` there.
    """
    advice = next(_NEXT[kind] for kind in type(error).__mro__ if kind in _NEXT)
    if isinstance(error, NotFound):
        advice = _LOOK.get(str(error.details.get("noun")), "{view} shows what there is.")
    known = set(arguments)
    names = {name.removesuffix("_seconds"): name for name in known if name.removesuffix("_seconds") not in known}
    field = str(error.details.get("field", ""))
    message, facts = error.message, error.details
    if field in names and field not in known:
        message = f"{names[field]}{message.removeprefix(field)}" if message.startswith(f"{field} ") else message
        facts = {**facts, "field": names[field]}
    return Refused(error.code, message, advice, retryable=error.retryable, facts=facts)


def from_fault(verb: str) -> Refused:
    """A fault of ours: the details stay in the log."""
    return Refused(
        "internal",
        f"{verb} failed inside the server; the reason is in its log (standard error).",
        "Call again once with the same idempotency_key; if it fails again, tell the person who runs you.",
    )


def from_validation(error: ValidationError, verb: str, fields: list[str]) -> Refused:
    """Arguments that are not what the tool takes, each named with what is wrong about it."""
    faults: list[str] = []
    names: list[str] = []
    for fault in error.errors(include_url=False):
        name = ".".join(str(part) for part in fault["loc"]) or "arguments"
        names.append(name)
        faults.append(_fault(name, fault["type"], fault["msg"], fault.get("input"), fields))
    return Refused(
        "invalid_input",
        "; ".join(faults) + ".",
        f"Nothing was written. Correct this and call {{{verb}}} again.",
        facts={"field": names[0], "fields": names},
    )


def _fault(name: str, kind: str, message: str, given: object, fields: list[str]) -> str:
    if kind == "missing":
        return f"{name} is required"
    if kind == "extra_forbidden":
        if name in {"agent", "agent_id"}:
            return f"{name} is no argument: who you are is bound to this connection"
        return f"{quoted(name, 100)} is no argument of this tool, which takes {', '.join(fields)}"
    wanted = message.removeprefix("Value error, ").removeprefix("Input ")
    return f"{name} {wanted[:1].lower()}{wanted[1:]}, got {quoted(given, 80)}"
