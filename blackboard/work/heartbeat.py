"""Liveness: one thread and one connection keep a process's lease alive, whatever its event loop does."""

from __future__ import annotations

import logging
import os
import random
import threading
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from time import monotonic, time
from types import TracebackType
from typing import Any, Protocol, Self
from uuid import UUID

import psycopg.sql

from ..errors import BlackboardError, InvalidInput, LeaseLost, ServerUnreachable
from ..store.link import Link, Stopped, Waker, backoff, parse_conninfo
from ..store.statements import Statement

__all__ = ["Ask", "Heartbeat", "ask_once"]

_log = logging.getLogger(__name__)

_LONGEST_ANSWER_SECONDS = 30.0
_STOP_SECONDS = 1.0
# Every so many beats all that the lease holds is counted, otherwise only what was claimed in the last two terms: while
# somebody holds an old snapshot, the server walks over everything that was ever claimed to count all.
_FULL_COUNT_EVERY = 10


class Ask(Protocol):
    """Runs a statement on the heartbeat's own connection: while the server answers at all, within a sixth of the term.

    Raises:
        ServerUnreachable: there was no answer.
        BlackboardError: the server refused it.
    """

    def __call__(self, statement: Statement, **params: Any) -> list[bytes | None]:
        """The first row, as text; empty without one."""
        ...


class Heartbeat:
    """Renews a lease every third of its term until it is stopped or the server says that the lease is gone.

    Only the server's answer ends it: it goes on through outages longer than the term, since the server lapses nothing
    in a time in which nobody could renew. The client's clock decides when to ask, never whether the lease is held.

    ::

        with Heartbeat(url, lease_id, timedelta(seconds=30), on_lost=stop_working):
            work()

    The callbacks run in the heartbeat's thread; keep them short. A renewal waits while they run.
    """

    def __init__(
        self,
        conninfo: str,
        lease_id: UUID,
        term: timedelta,
        *,
        on_lost: Callable[[], None] | None = None,
        on_count: Callable[[int, UUID | None], None] | None = None,
        tend: Callable[[Ask, int, UUID | None], None] | None = None,
    ) -> None:
        """Nothing runs yet; the lease counts as fresh from here.

        Args:
            conninfo: URL or key-value string as libpq reads it; a transaction pooler may be in between.
            lease_id: an existing lease.
            term: the term the server gives this lease.
            on_lost: called once when the server says that the lease lapsed or is unknown.
            on_count: called after each renewal with the number of running tasks that the lease holds, and with the
                claim id from which on they were counted (ids of claims are UUIDv7); None counts all.
            tend: called after that with the same, and with what it can ask the server by. What it raises is logged,
                and the lease is kept all the same.

        Raises:
            ConfigurationError: the URL cannot be parsed.
            InvalidInput: ``term`` is not positive.
        """
        seconds = term.total_seconds()
        if seconds <= 0:
            raise InvalidInput("A lease needs a positive term.", field="term")
        parse_conninfo(conninfo)
        self._conninfo = conninfo
        self._lease_id = UUID(int=lease_id.int)  # it becomes part of a statement's text: nothing but a UUID may
        self._term = seconds
        self._on_lost = on_lost
        self._on_count = on_count
        self._tend = tend
        self._waiting: deque[Callable[[], None]] = deque()
        self._pid = os.getpid()
        self._began = monotonic()
        self._last_renewed_at: float | None = None
        self._renewals = 0
        self._lost = False
        self._ended = False
        self._asked = False
        self._stopped = False
        self._state = threading.Lock()
        self._thread: threading.Thread | None = None
        self._waker: Waker | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def lease_id(self) -> UUID:
        """The lease that is kept."""
        return self._lease_id

    @property
    def lost(self) -> bool:
        """Whether the server said that the lease is gone; final."""
        return self._lost

    @property
    def last_renewed_at(self) -> float | None:
        """When the last successful renewal was asked for, by this process's ``time.monotonic()``; for diagnostics."""
        return self._last_renewed_at

    @property
    def renewals(self) -> int:
        """How many renewals succeeded."""
        return self._renewals

    def is_stale(self) -> bool:
        """Whether the work may be somebody else's by now, so that no new work should be started.

        True when the lease is lost or no renewal of the last term succeeded. A hint: only the server knows.
        """
        return self._lost or monotonic() - (self._last_renewed_at or self._began) > self._term

    def start(self) -> None:
        """The thread runs and renews at once; a no-op if it was started before.

        Raises:
            OSError, RuntimeError: the system has no descriptor or no thread left; it may be started later.
        """
        with self._state:
            if self._thread is None and not self._stopped:
                waker = Waker()
                thread = threading.Thread(target=self._run, args=(waker,), name="blackboard-heartbeat", daemon=True)
                try:
                    thread.start()
                except BaseException:
                    waker.close()
                    raise
                self._pid, self._thread, self._waker = os.getpid(), thread, waker

    def beat_now(self, then: Callable[[], None] | None = None) -> None:
        """A renewal is asked for without waiting for its turn or a backoff; returns before its answer.

        Args:
            then: called in the heartbeat's thread when that one, or a later one, was answered and tended to; also when
                there will be none.
        """
        if then is not None:
            self._waiting.append(then)
            if self._ended:
                self._tell(len(self._waiting))
        if self._waker is not None and self._pid == os.getpid():
            self._asked = True
            self._waker.wake()

    def stop(self) -> None:
        """No renewal follows; the thread and its connection have ended, within a second even if the server hangs.

        The lease is neither released nor lapsed by this. A callback that runs just now may outlast the call.
        """
        if self._pid != os.getpid():  # a forked child: thread, lease and connection are the parent's
            return
        with self._state:
            self._stopped = True
            thread, waker = self._thread, self._waker
        if waker is not None:
            waker.stop()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_STOP_SECONDS)

    def _run(self, waker: Waker) -> None:
        third = self._term / 3
        answer_seconds = min(third, _LONGEST_ANSWER_SECONDS)
        link = Link(self._conninfo, waker, name="blackboard heartbeat", answer_seconds=answer_seconds)
        due = monotonic()
        failures = 0
        try:
            while True:
                try:
                    if not self._asked and monotonic() < due:
                        link.wait(due - monotonic())
                        continue
                    self._asked = False
                    began = monotonic()
                    # Who asks from here on waits for the next one.
                    waiting = len(self._waiting)
                    self._beat(link, answer_seconds)
                    self._tell(waiting)
                    # Downward only: a third of the term is the promise, and processes started together drift apart.
                    due = began + third * random.uniform(0.85, 1.0)
                    failures = 0
                except (Stopped, LeaseLost):
                    raise
                except Exception as error:  # refused, unreachable or a fault of ours: the lease still wants its beat
                    if not failures:
                        unexpected = not isinstance(error, ServerUnreachable)
                        _log.warning(
                            "lease %s was not renewed, trying on: %s", self._lease_id, error, exc_info=unexpected
                        )
                    # Also after a refusal: a fresh connection gets past a role or a search path gone wrong.
                    link.close()
                    failures += 1
                    due = monotonic() + backoff(failures, self._term / 6)
        except (Stopped, LeaseLost):
            pass
        finally:
            link.close()
            waker.close()
        if self._lost:
            _log.error("lease %s has lapsed: its work may be with somebody else", self._lease_id)
            _call(self._on_lost)
        self._ended = True
        self._tell(len(self._waiting))

    def _tell(self, waiting: int) -> None:
        for _ in range(waiting):
            try:
                then = self._waiting.popleft()
            except IndexError:  # told by somebody else
                return
            _call(then)

    def _command(self, answer_seconds: float, since: UUID | None) -> bytes:
        # A renewal that waits for a lock must end on the server too, or every retry leaves one more behind it. Two
        # statements in one message are one transaction: nothing outlives it, so this works through a pooler.
        limit = max(1, int(answer_seconds * 1000))
        return (
            f"SET LOCAL statement_timeout = {limit}; "  # noqa: S608
            f"SELECT held FROM blackboard.renew_lease(CAST('{self._lease_id}' AS uuid), "
            f"CAST({'NULL' if since is None else repr(str(since))} AS uuid)) AS held"
        ).encode()

    def _since(self) -> UUID | None:
        if self._renewals % _FULL_COUNT_EVERY == 0:
            return None
        # The smallest UUIDv7 of that moment, by the clock that makes the ids of claims too.
        return UUID(int=max(0, int((time() - 2 * self._term) * 1000)) << 80)

    def _beat(self, link: Link, answer_seconds: float) -> None:
        link.open()
        since = self._since()
        command = self._command(answer_seconds, since)
        # Taken before the question: the server counts the term from a moment after this one.
        asked_at = monotonic()
        row = link.run(command)
        held = row[0] if row else None
        if held is None:
            self._lost = True
            raise LeaseLost("The lease has lapsed.")
        self._last_renewed_at = asked_at
        self._renewals += 1
        _call(self._on_count, int(held), since)
        if self._tend is not None:
            try:
                self._tend(partial(_ask, link, answer_seconds / 2), int(held), since)
            except Stopped:
                raise
            except Exception as error:
                unexpected = not isinstance(error, BlackboardError)
                _log.warning("what lease %s holds was not looked at: %s", self._lease_id, error, exc_info=unexpected)
                link.close()


def ask_once(conninfo: str, statement: Statement, *, seconds: float, **params: Any) -> list[bytes | None]:
    """The first row of the statement's answer, as text, over a connection of its own; empty without one.

    Blocks, and within twice the time (for each host that the URL names) it has an answer or an error: for the last word
    of a process to a server that may be silent.

    Args:
        conninfo: as a heartbeat takes it.
        statement: what to run.
        seconds: for connecting, and for the answer.
        params: of the statement.

    Raises:
        ConfigurationError: the URL cannot be parsed.
        ServerUnreachable: there was no answer.
        BlackboardError: the server refused it.
    """
    waker = Waker()
    link = Link(conninfo, waker, name="blackboard", answer_seconds=seconds)
    try:
        link.open()
        return _ask(link, seconds, statement, **params)
    finally:
        link.close()
        waker.close()


def _ask(link: Link, seconds: float, statement: Statement, **params: Any) -> list[bytes | None]:
    # One message and one transaction, as a renewal is. Plans must not hang on how fresh the statistics are.
    statement.check(params)
    quoted = {name: psycopg.sql.quote(value) for name, value in params.items()}
    settings = f"SET LOCAL statement_timeout = {max(1, int(seconds * 1000))}; SET LOCAL enable_seqscan = off; "
    return link.run((settings + statement.pyformat % quoted).encode())


def _call(callback: Callable[..., None] | None, *args: object) -> None:
    if callback is not None:
        try:
            callback(*args)
        except Exception:
            _log.exception("a callback of the heartbeat failed")
