"""Wake-ups: one thread and one connection a process hear and send hints, and fan them out to all who wait inside.

A hint says "something changed here, look again" and nothing more. It may come too often and, around a lost
connection, not at all: whoever waits looks again after the poll interval anyway.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
from collections.abc import Collection
from datetime import timedelta
from time import monotonic
from uuid import UUID

from ..errors import BlackboardError, ServerUnreachable
from .ear import Ear, Notice, running_loop
from .fanout import Fanout
from .hints import array, parse, quoted
from .link import Link, Stopped, Waker, backoff, parse_conninfo
from .subscription import Subscription, resolve

__all__ = ["Listener"]

_log = logging.getLogger(__name__)

_ANSWER_SECONDS = 10.0  # a server that is silent for longer counts as lost
_IDLE_SECONDS = 30.0  # the connection is closed after this time without a use
_UNLISTEN_SECONDS = 1.0  # waiters come and go; LISTEN is not undone and redone for each
_RELISTEN_SECONDS = 30.0  # a standby refuses LISTEN until it is promoted, which cuts no connection
_MOST_PAUSES = 8  # how far the time between two sends grows
_QUIET_PAUSES = 4  # of the shortest time between two sends: a hint that comes later is the only one
_CLOSE_SECONDS = 0.5  # what close() grants the hints that are still to be sent
_HEARD_POLL_SECONDS = 60.0  # between looks while LISTEN is in effect
_LOOK_SECONDS = 0.004  # between the looks of two who began to wait together
_FIRST_LOOK_SECONDS = 0.25  # and after the first one, which may have to open a connection
_MOST_LATE_SECONDS = 5.0  # a look comes for all that
_LENT_SECONDS = 5.0  # a loop that reads for itself may have stopped: the thread takes in what it left
_MAX_BACKOFF = 5.0
_OUTAGE_LOG_SECONDS = 60.0  # between two words about one outage
_STABLE_SECONDS = 10.0  # a connection that lived this long resets the backoff
_MAX_PENDING = 10_000  # hints kept while the server is away

# One statement for all hints: through a transaction pooler a SET of its own would reach another server process.
# An asynchronous commit holds the cluster-wide notification lock for microseconds instead of a disk flush.
_SEND = b"""
SELECT pg_catalog.set_config('synchronous_commit', 'off', true), pg_catalog.pg_notify($1, payload)
FROM pg_catalog.unnest(CAST($2 AS text[])) AS payload
"""


class Listener:
    """Sends and hears the hints of one process and database over one connection and one background thread.

    While all who wait do so in one event loop, that loop takes in what is heard, and the thread does the rest.

    Starts with the first ``subscribe`` or ``notify`` and reconnects by itself. Behind a transaction pooler it cannot
    hear (``listening`` stays False) and waiters poll, unless ``listen_url`` leads past the pooler; sending works in
    any case. After a fork the child gets a thread and connection of its own with its first call.
    """

    def __init__(
        self,
        conninfo: str,
        *,
        listen_url: str | None = None,
        channel: str = "blackboard",
        poll_interval: timedelta = timedelta(seconds=1),
        coalesce: timedelta = timedelta(milliseconds=3),
    ) -> None:
        """Nothing is connected yet.

        Args:
            conninfo: URL or key-value string as libpq reads it.
            listen_url: used in place of ``conninfo`` where that leads through a pooler.
            channel: the NOTIFY channel.
            poll_interval: the longest that a wait lasts while nothing is heard; while LISTEN is in effect, when only a
                sender that died after its commit can leave a hint out, it is a minute.
            coalesce: the shortest time between two statements that send hints; the first is sent at once. While there
                is always another one to send the time grows to eight times as much, for each of them wakes every
                listening backend of the database.

        Raises:
            ConfigurationError: the URL cannot be parsed.
        """
        self._conninfo = listen_url or conninfo
        self._channel = channel
        self._poll_seconds = poll_interval.total_seconds()
        self._coalesce_seconds = coalesce.total_seconds()
        self._subscribed = Fanout()
        self._closed = False
        parse_conninfo(self._conninfo)
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._pid = os.getpid()
        # One for both: what is heard and who is subscribed are looked at together.
        self._lock = self._subscribed.lock
        self._pending: dict[tuple[int, str], None] = {}
        self._quiet_from = 0.0
        self._say_at = 0.0
        self._next_look = 0.0
        self._sending = False
        self._pausing = False
        self._listening = False
        self._thread: threading.Thread | None = None
        self._waker: Waker | None = None
        # The loop that reads the connection itself, and whether there are waiters of several loops or in threads.
        self._ear: Ear | None = None
        self._spread = False

    @property
    def listening(self) -> bool:
        """Whether hints of other processes are heard now; False also while nobody is subscribed."""
        return self._listening and self._pid == os.getpid()

    def subscribe(
        self, sessions: UUID | Collection[UUID] | None = None, nouns: Collection[str] | None = None
    ) -> Subscription:
        """A subscription to the hints of one session or several (None: of all) about ``nouns`` (None: about all).

        A noun may be narrowed: ``tasks`` hears ``tasks.ready`` and ``tasks.changed``, and each of those hears ``tasks``
        but not the other.

        Raises:
            BlackboardError: the listener is closed.
        """
        self._check_process()
        chosen = (sessions,) if isinstance(sessions, UUID) else sessions
        subscription = Subscription(chosen, nouns, waiting=self._waiting, poll_over=self._poll_over, leave=self._forget)
        with self._lock:
            if self._closed:
                raise BlackboardError("This board is closed; open it again to wait on it.")
            self._subscribed.add(subscription)
            waker = None if self._listening else self._started()
        if waker is not None:
            waker.wake()
        return subscription

    def notify(self, session_id: UUID, noun: str, *, told: bool = False) -> None:
        """All who wait for it in this process are woken; the other processes are about to be. Call it after commit.

        Never blocks and never fails: a hint that cannot be sent is sent after the reconnect, or dropped.

        Args:
            told: the transaction that was committed has notified all who listen, this process among them.
        """
        self._check_process()
        if told and self._listening:
            return
        hint = (session_id.int, noun)
        if self._subscribed:
            self._subscribed.deliver(*hint, here=running_loop())
        if told or hint in self._pending:  # it goes out after this moment, and so after the commit
            return
        with self._lock:
            if self._closed or len(self._pending) >= _MAX_PENDING:
                return
            first = not self._pending and not self._pausing
            self._pending[hint] = None
            waker = self._started()
        if first and waker is not None:
            waker.wake()

    def quiet(self) -> bool:
        """Whether the next hint should go with its transaction, which is quickest: none has gone for a while.

        In a stream of hints they are better sent by ``notify``, which coalesces them: PostgreSQL lets only one
        transaction that notifies commit at a time.
        """
        now = monotonic()
        # Without the lock: of two who ask at once both may be told so, and that is no harm.
        quiet = now >= self._quiet_from
        self._quiet_from = now + _QUIET_PAUSES * self._coalesce_seconds
        return quiet and not self._pending

    def close(self) -> None:
        """The thread has ended, its connection is closed, and hints were sent if the server answered promptly.

        Returns within a second. Waiters are woken once; later waits last their full time.
        """
        if self._pid != os.getpid():  # the thread and its socket are the parent's
            self._closed = True
            return
        with self._lock:
            self._closed = True
            self._retire()
            thread, waker = self._thread, self._waker
            if waker:
                waker.stop(_CLOSE_SECONDS if self._pending or self._sending else 0.0)
        if thread and thread is not threading.current_thread():
            thread.join(2 * _CLOSE_SECONDS)
        self._subscribed.deliver(None, None)

    def _check_process(self) -> None:
        if self._pid == os.getpid():
            return
        # The thread stayed in the parent, and a lock may have been held there at the fork.
        self._subscribed.revive()
        self._start_afresh()
        if self._subscribed and not self._closed:
            with self._lock:
                self._started()

    def _started(self) -> Waker | None:
        """The thread's waker; None while the system has no thread or descriptor left: waiters poll, hints are kept."""
        if self._waker is None:
            waker: Waker | None = None
            try:
                waker = Waker()
                thread = threading.Thread(target=self._run, args=(waker,), name="blackboard-listener", daemon=True)
                thread.start()
            except (RuntimeError, OSError) as error:
                if waker is not None:
                    waker.close()
                if monotonic() >= self._say_at:
                    self._say_at = monotonic() + _OUTAGE_LOG_SECONDS
                    _log.warning("wake-ups wait for a thread: %s", error)
                return None
            self._thread, self._waker = thread, waker
        return self._waker

    def _waiting(self, timeout: float | None, loop: asyncio.AbstractEventLoop | None) -> tuple[float, threading.RLock]:
        self._check_process()
        ear = self._ear
        if not self._spread and (ear is None or ear.loop is not loop) and (timeout is None or timeout > 0):
            self._hear_in(loop)
        poll = max(self._poll_seconds, _HEARD_POLL_SECONDS) if self._listening else self._poll_seconds
        return poll if timeout is None else min(timeout, poll), self._lock

    def _poll_over(self, future: asyncio.Future[bool], left: float) -> None:
        """The wait ends, within ``left`` seconds: who began to wait together looks one after the other.

        All at once they would open every connection of the pool for it, and each costs the server twenty looks.
        """
        now = monotonic()
        late = min(left, _MOST_LATE_SECONDS) if self._listening else 0.0
        looks_at = min(max(now, self._next_look), now + late)
        first = now - self._next_look > _HEARD_POLL_SECONDS / 2
        self._next_look = looks_at + (_FIRST_LOOK_SECONDS if first else _LOOK_SECONDS)
        future.get_loop().call_later(looks_at - now, resolve, [future], False)

    def _forget(self, subscription: Subscription) -> None:
        self._check_process()
        with self._lock:
            self._subscribed.remove(subscription)
            waker = None if self._subscribed else self._waker
        if waker:  # the thread counts the idle time from here
            waker.wake()

    def _heard(self, own: int, notices: list[Notice]) -> None:
        here = running_loop() if notices else None
        for sender, payload in notices:
            if sender != own:  # our own went to our subscribers before it was sent
                self._subscribed.deliver(*parse(payload), here=here)

    def _hear_in(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Somebody waits in ``loop``, or, without one, blocks a thread: as long as all are of one loop, it reads."""
        with self._lock:
            if self._closed or self._spread or (self._ear is not None and self._ear.loop is loop):
                return
            self._spread = loop is None or (self._ear is not None and not self._ear.gone)
            self._retire()
            if loop is not None and not self._spread:
                try:
                    self._ear = Ear(loop, self._heard)
                except (NotImplementedError, OSError):
                    self._spread = True
            waker = self._waker
        if waker:
            waker.wake()

    def _retire(self) -> None:
        with self._lock:
            ear, self._ear = self._ear, None
        if ear is not None:
            ear.retire()

    def _run(self, waker: Waker) -> None:
        link = Link(self._conninfo, waker, name="blackboard listener", answer_seconds=_ANSWER_SECONDS)
        failures = 0
        say_at = 0.0
        try:
            while True:
                began = monotonic()
                try:
                    self._serve(link)
                except Exception as error:
                    if isinstance(error, Stopped):
                        raise
                    unexpected = not isinstance(error, ServerUnreachable)
                    if unexpected or monotonic() >= say_at:
                        say_at = monotonic() + _OUTAGE_LOG_SECONDS
                        first_line = str(error).partition("\n")[0]
                        _log.warning("wake-ups wait for a connection: %s", first_line, exc_info=unexpected)
                self._listening = False
                link.close()
                failures = 0 if monotonic() - began > _STABLE_SECONDS else failures + 1
                resume = monotonic() + backoff(failures, _MAX_BACKOFF)
                while monotonic() < resume:
                    link.wait(resume - monotonic())
        except Stopped:
            pass
        finally:
            self._listening = False
            link.close()
            waker.close()

    def _serve(self, link: Link) -> None:
        # One action a turn, the most urgent first; then wait for the next reason to act.
        idle_since = monotonic()
        send_at = listen_at = 0.0
        pause = self._coalesce_seconds
        while True:
            notices = link.notifications()
            self._heard(link.backend_pid, notices)
            now = monotonic()
            with self._lock:
                wanted, pending, closed = bool(self._subscribed), bool(self._pending), self._closed
                # In a stream of hints the next one is looked for when its time has come; nobody needs to wake us.
                self._pausing = not pending and now < send_at and pause > self._coalesce_seconds
            if closed and not pending:
                raise Stopped
            if wanted or pending:
                idle_since = now
            idle = now - idle_since
            if not link.is_open:
                if wanted or pending:
                    link.open()
                    listen_at = 0.0
                else:
                    link.wait(math.inf)
            elif pending and (now >= send_at or closed):
                steady = now < send_at + pause
                pause = min(2 * pause, _MOST_PAUSES * self._coalesce_seconds) if steady else self._coalesce_seconds
                send_at = now + pause
                self._send(link)
            elif wanted and not self._listening and now >= listen_at:
                listen_at = now + _RELISTEN_SECONDS
                self._listen(link)
            elif self._listening and not wanted and idle >= _UNLISTEN_SECONDS:
                self._listening = False
                self._retire()
                link.run(b"UNLISTEN *")
                # The pause after a refusal is not for this: the next subscriber is heard at once.
                listen_at = 0.0
            elif idle >= _IDLE_SECONDS:
                link.close()
            else:
                reasons = [math.inf]
                if pending or self._pausing:
                    reasons.append(send_at - now)
                if wanted and not self._listening:
                    reasons.append(listen_at - now)
                if not wanted:
                    reasons.append((_UNLISTEN_SECONDS if self._listening else _IDLE_SECONDS) - idle)
                ear = self._ear
                if ear is not None and notices:
                    # A loop that stands still leaves more than one read takes, and what is not read holds up the
                    # server's notifications: all of it, before the connection is lent again.
                    ear = None
                    reasons.append(0.0)
                elif ear is not None:
                    reasons.append(_LENT_SECONDS)
                link.wait(min(reasons), ear)

    def _listen(self, link: Link) -> None:
        pid = link.run(b"SELECT pg_catalog.pg_backend_pid()")[0]
        if pid != str(link.backend_pid).encode():
            # A pooler: LISTEN would stay behind on a server connection that serves others too.
            _log.info("the URL leads through a pooler: waiters poll; set listen_url to be woken")
            return
        try:
            link.run(b"LISTEN " + quoted(self._channel))
        except ServerUnreachable:
            raise
        except BlackboardError as error:
            _log.warning("LISTEN was refused, waiters poll: %s", error)
            return
        self._subscribed.deliver(None, None)  # what was sent before this moment was not heard
        self._listening = True

    def _send(self, link: Link) -> None:
        with self._lock:
            batch, self._pending = self._pending, {}
            self._sending = True  # a close just now grants it the time of a queued one
        try:
            link.run(_SEND, (self._channel.encode(), array(batch)))
        except (ServerUnreachable, Stopped):
            with self._lock:
                self._pending = batch | self._pending
            raise
        except BlackboardError as error:  # a standby, or a full queue: the next ones may pass
            _log.warning("hints were refused and dropped: %s", error)
        finally:
            self._sending = False
