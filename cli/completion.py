"""What a shell offers when Tab is pressed: the ids and names that the board has just now.

It asks the board only where it can be asked at once: no server is started, no schema migrated, and whatever goes wrong
there is nothing to offer and nothing is printed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import typer

from .options import Options

if TYPE_CHECKING:
    from blackboard.sync import Session

__all__ = [
    "agents",
    "capabilities",
    "dead_letters",
    "flows",
    "limits",
    "schedules",
    "sessions",
    "statuses",
    "tasks",
    "types",
]

_NEWEST = 200
"""Tasks that are looked at: more than anybody reads on a screen."""

_NAME = re.compile(r"\w[\w./@:+=-]*")
_HARMFUL = re.compile(r"[^\w ./@+=,-]")

Offer = Callable[["Session"], Iterable[tuple[str, str]]]


def statuses(*, final: bool = False) -> Callable[[str], list[str]]:
    """Offers the statuses of a task, or those of one that has ended."""

    def complete(incomplete: str) -> list[str]:
        from blackboard.models.tasks import FINAL, TaskStatus

        return [one.value for one in TaskStatus if one.startswith(incomplete) and (one in FINAL or not final)]

    return complete


def sessions(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Offers the open sessions by name."""

    def found(board: Any) -> list[tuple[str, str]]:
        known = [*board.sessions.list(status="active"), *board.sessions.list(status="paused")]
        return [(one.name, one.goal) for one in known]

    return _fitting(_asked(ctx, found), incomplete)


def _of(offer: Offer) -> Callable[[typer.Context, str], list[tuple[str, str]]]:
    def complete(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
        return _fitting(_asked(ctx, lambda board: offer(_session(board, _options(ctx)))), incomplete)

    return complete


tasks = _of(lambda session: ((str(one.id), f"{one.type}, {one.status}") for one in _tasks(session)))
"""Offers tasks, the newest first."""
types = _of(lambda session: ((one.type, "") for one in _tasks(session)))
"""Offers the types of the newest tasks."""
capabilities = _of(
    lambda session: (
        *((one.capability, "") for one in _tasks(session)),
        *((name, "") for agent in session.agents.list() for name in agent.capabilities),
    )
)
"""Offers what the newest tasks need, and what agents offer."""
dead_letters = _of(lambda session: ((str(one.id), one.type) for one in session.tasks.dead_letters(limit=_NEWEST)))
"""Offers dead tasks."""
flows = _of(lambda session: ((str(one.id), f"{one.name}, {one.status}") for one in session.flows.list(limit=_NEWEST)))
"""Offers flows."""
schedules = _of(lambda session: ((one.name, one.cron) for one in session.schedules.list(limit=_NEWEST)))
"""Offers schedules by name."""
limits = _of(lambda session: ((one.name, "") for one in session.limits.list()))
"""Offers limits by name."""
agents = _of(lambda session: ((one.id, one.role or "") for one in session.agents.list()))
"""Offers the members of the session."""


def _tasks(session: Session) -> Iterable[Any]:
    return session.tasks.list(newest=True, limit=_NEWEST)


def _fitting(offered: Iterable[tuple[str, str]], incomplete: str) -> list[tuple[str, str]]:
    """Those that begin with what was typed, each once.

    Shells evaluate what they are given, and agents choose names: what could mean something to a shell is not offered.
    """
    return list(
        {
            name: (name, _HARMFUL.sub(" ", said))
            for name, said in offered
            if name.startswith(incomplete) and _NAME.fullmatch(name)
        }.values()
    )


def _asked(ctx: typer.Context, ask: Callable[[Any], Iterable[tuple[str, str]]]) -> list[tuple[str, str]]:
    os.environ.setdefault("PGCONNECT_TIMEOUT", "2")
    try:
        from blackboard.sync import Blackboard

        url = _url(_options(ctx))
        if url is None:
            return []
        with Blackboard.open(url, pool_size=1, migrate=False) as board:
            return list(ask(board))
    except Exception:
        return []


def _url(options: Options) -> str | None:
    """The URL of the database that is meant; None for an embedded server that does not run."""
    from blackboard.settings import load_settings
    from blackboard.store.embedded import EmbeddedServer

    settings = load_settings(url=options.url, data_dir=options.data_dir)
    named = options.url or (None if options.data_dir else settings.url)
    if named is not None:
        return named
    server = EmbeddedServer(settings.data_dir)
    return server.url() if server.status().running else None


def _session(board: Any, options: Options) -> Session:
    wanted = options.session or os.environ.get("BLACKBOARD_SESSION")
    if wanted:
        return board.session(wanted)
    [only] = [*board.sessions.list(status="active", limit=2), *board.sessions.list(status="paused", limit=2)]
    return board.session(only.id)


def _options(ctx: typer.Context) -> Options:
    """What was typed so far, before or after the names of the commands."""
    found = Options()
    above: Any = ctx
    chain: list[Any] = []
    while above is not None:
        chain.append(above)
        above = above.parent
    for one in reversed(chain):
        given = {name: one.params.get(name) for name in ("url", "data_dir", "session")}
        if isinstance(given["session"], (list, tuple)):  # of a worker: the first will do
            given["session"] = next(iter(cast("Sequence[str]", given["session"])), None)
        found = found.overridden(Options(**given))
    return found
