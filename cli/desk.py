"""What a command works with: the board, opened when it is first asked for, and the place to print to."""

from __future__ import annotations

import getpass
import os
from collections.abc import Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from types import TracebackType
from typing import TYPE_CHECKING, Self
from uuid import UUID

from .ids import fits, looks_partial
from .options import Options
from .output import Output

if TYPE_CHECKING:
    from blackboard.models.sessions import SessionRecord
    from blackboard.sync import Agent, Blackboard, Session

__all__ = ["Desk"]


class Desk:
    """One command's options, board and output.

    Attributes:
        options: what was given on the command line.
        out: where the answer is printed.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.out = Output(json=options.json, color=not options.no_color)
        self._closing = ExitStack()
        self._board: Blackboard | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.__exit__(kind, error, trace)

    @property
    def board(self) -> Blackboard:
        """The board, open until the command ends.

        Raises:
            ConfigurationError, Unavailable: as ``Blackboard.open`` does.
        """
        if self._board is None:
            from blackboard.sync import Blackboard

            url, migrate = self.options.url, None
            if url is None and self.options.data_dir is not None:
                # A directory that was named here goes before a URL from the environment.
                from blackboard.store.embedded import EmbeddedServer

                url, migrate = EmbeddedServer(self.options.data_dir).start().url, True
            self._board = self._closing.enter_context(
                Blackboard.open(url, actor=self.options.actor, pool_size=1, migrate=migrate)
            )
        return self._board

    @property
    def url(self) -> str:
        """The database's URL; where none is set, that of the embedded server, which is started.

        Raises:
            ConfigurationError: the URL or a setting is wrong.
            EmbeddedServerError, EmbeddedServerUnavailable: the embedded server would not start.
        """
        from blackboard.settings import load_settings
        from blackboard.store.embedded import EmbeddedServer
        from blackboard.store.urls import normalise_url

        settings = load_settings(url=self.options.url, data_dir=self.options.data_dir)
        named = self.options.url or (None if self.options.data_dir else settings.url)
        return normalise_url(named) if named else EmbeddedServer(settings.data_dir).start().url

    def session(self, name_or_id: str | None = None) -> Session:
        """The session that was named: by the command, the option, the environment; else the only open one.

        Raises:
            InvalidInput: none was named and several are open, or a part of an id fits several.
            NotFound: there is none.
        """
        from blackboard.errors import InvalidInput, NotFound

        wanted = name_or_id or self.options.session or os.environ.get("BLACKBOARD_SESSION")
        if wanted:
            try:
                return self.board.session(wanted)
            except NotFound as error:
                known = self.board.sessions.list(limit=10_000)
                found = [one for one in known if fits(wanted, one.id)] if looks_partial(wanted) else []
                if not found:
                    close = get_close_matches(wanted, [one.name for one in known], 1)
                    if not close:
                        raise
                    raise NotFound(
                        f"There is no session {wanted!r}. Did you mean {close[0]!r}? `blackboard session list` shows "
                        "those there are.",
                        noun="session",
                        id=error.id,
                    ) from None
                return self.board.session(self._only(wanted, found).id)
        sessions = self.board.sessions
        opened = [*sessions.list(status="active", limit=20), *sessions.list(status="paused", limit=20)]
        if not opened:
            raise NotFound(
                "No session is open: start one with `blackboard session start NAME`, or name a closed one with "
                "--session.",
                noun="session",
                id=None,
            )
        if len(opened) > 1:
            raise InvalidInput(
                f"Several sessions are open; name one with --session: {_names(opened)}.",
                field="session",
                matches=[str(one.id) for one in opened],
            )
        return self.board.session(opened[0].id)

    def agent(self, agent_id: str | None = None, *, join: bool = True) -> Agent:
        """The handle of the agent that acts.

        Args:
            agent_id: else ``--as``, else ``BLACKBOARD_ACTOR``.
            join: make it a member if it is none.

        Raises:
            InvalidInput: no agent was named.
            NotFound: it is no member, and ``join`` is false.
        """
        from blackboard.errors import InvalidInput, NotFound, NotPermitted

        name = agent_id or self.actor
        if name is None:
            raise InvalidInput(
                "Only an agent can do this: say which one with --as AGENT or BLACKBOARD_ACTOR.", field="agent_id"
            )
        session = self.session()
        try:
            agent = session.agent(name)
        except NotFound:
            if not join:
                raise
            agent = None
        if agent is not None and agent.record.left_at is None:
            return agent
        if not join:
            raise NotPermitted(f"{name} has left this session; join it again with `blackboard agent join {name}`.")
        # A member without presence: this process ends with the command.
        session.agents.join(name)
        return session.agent(name)

    @property
    def actor(self) -> str | None:
        """Who was named with ``--as``, or in the environment or settings."""
        if self.options.actor:
            return self.options.actor
        from blackboard.settings import load_settings

        return load_settings().actor

    @property
    def person(self) -> str:
        """The human at the terminal: ``actor``, else the login name."""
        return self.actor or getpass.getuser()

    def pick(self, given: str, field: str, candidates: Sequence[UUID], *, noun: str | None = None) -> UUID:
        """The one of ``candidates`` that ``given``, a whole id or 6 or more of its ends, stands for.

        Raises:
            InvalidInput: it fits several, or is no id at all.
            NotFound: it fits none.
        """
        from blackboard.errors import InvalidInput, NotFound

        if not looks_partial(given):
            raise InvalidInput(
                f"{field} must be an id, or 6 or more characters of its beginning or end, got {given!r:.80}.",
                field=field,
            )
        found = [one for one in candidates if fits(given, one)]
        if not found:
            what = noun or field.removesuffix("_id")
            raise NotFound(
                f"No {what} in this session has an id like {given!r}; list them, or give the whole id.",
                noun=what,
                id=given,
            )
        if len(found) > 1:
            # Who asked may know no more than two of them.
            shown = ", ".join(str(one) for one in found[:10])
            raise InvalidInput(
                f"{given!r} fits several ids; give more of it: {shown} and maybe more; they differ most at their end.",
                field=field,
                matches=[str(one) for one in found[:100]],
            )
        return found[0]

    @staticmethod
    def _only(given: str, found: Sequence[SessionRecord]) -> SessionRecord:
        from blackboard.errors import InvalidInput

        if len(found) > 1:
            raise InvalidInput(
                f"{given!r} fits {len(found)} sessions; give more of it: {_names(found)}.",
                field="session",
                matches=[str(one.id) for one in found],
            )
        return found[0]


def _names(records: Sequence[SessionRecord]) -> str:
    return ", ".join(f"{one.name} ({one.id})" for one in records)
