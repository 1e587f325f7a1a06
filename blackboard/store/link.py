"""A connection driven without a blocking call, and the waker that ends its waits."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import selectors
import socket
import threading
from collections.abc import Sequence
from time import monotonic

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ..errors import BlackboardError, ConfigurationError, ServerUnreachable
from ..sqlstates import from_sqlstate
from .ear import Ear, Notice

__all__ = ["Link", "Stopped", "Waker", "backoff", "parse_conninfo"]

_log = logging.getLogger(__name__)

# poll(2) needs no descriptor of its own and takes descriptors over 1023.
_Selector: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)


class Stopped(Exception):
    """The owner of the waker is stopping: leave the loop."""


class Waker:
    """A flag that any thread raises and that a select loop sees as a readable socket."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._raised = False
        # No thread writes to a descriptor that another one closes just now: its number may be a stranger's already.
        # Reentrant: the collector may end what wakes us, in the middle of this.
        self._writing = threading.RLock()
        self.stop_at = math.inf

    def fileno(self) -> int:
        return self._reader.fileno()

    def wake(self) -> None:
        """The loop runs once more; what was stored before the call is seen by it."""
        if not self._raised:
            self._raised = True
            # The loop may have ended, or the buffer be full of earlier wake-ups.
            with self._writing, contextlib.suppress(OSError):
                self._writer.send(b"\0")

    def stop(self, grace: float = 0.0) -> None:
        """Every wait of the loop ends with ``Stopped``, at latest ``grace`` seconds from now."""
        self.stop_at = monotonic() + grace
        self._raised = False
        self.wake()

    def clear(self) -> None:
        with contextlib.suppress(OSError):
            self._reader.recv(4096)
        # After the read: a wake-up in between is not written, but the loop looks at the state after this.
        self._raised = False

    def close(self) -> None:
        with self._writing:
            self._reader.close()
            self._writer.close()


class Link:
    """One connection driven without a blocking call, so that a hung server cannot hold the thread that owns it.

    ``psycopg.Connection`` waits inside its calls where no other thread can reach it. This one waits on the socket and
    a waker together, with a deadline for everything. Only its own thread may use it, and lend it to an ear.
    """

    def __init__(self, conninfo: str, waker: Waker, *, name: str, answer_seconds: float) -> None:
        """Not connected yet.

        Raises:
            ConfigurationError: ``conninfo`` cannot be parsed.
        """
        self._options = {
            "fallback_application_name": name,
            "client_encoding": "UTF8",
            "keepalives_idle": "15",
            "keepalives_interval": "5",
            "keepalives_count": "3",
            "tcp_user_timeout": str(max(1, int(answer_seconds * 1000))),
            **parse_conninfo(conninfo),
        }
        self._answer_seconds = answer_seconds
        self._waker = waker
        self._conn: pq.abc.PGconn | None = None
        # Kept, for to make one takes longer than to ask it. It knows descriptors by number alone, so a new connection
        # may have the number of the last one.
        self._selector: selectors.BaseSelector | None = None
        # What it watches of the connection: a descriptor and events, or nothing.
        self._watched: tuple[int, int] | None = None

    @property
    def is_open(self) -> bool:
        return self._conn is not None

    @property
    def backend_pid(self) -> int:
        """The server process as the connection's start named it; a pooler invents one."""
        return self._conn.backend_pid if self._conn else 0

    def open(self) -> None:
        """Connected to the first host that answers; a no-op on an open link.

        Raises:
            ServerUnreachable: no host let us in, each within its time.
            Stopped: the waker was stopped.
        """
        if self._conn is not None:
            return
        limit = float(self._options.get("connect_timeout") or 0)
        limit = min(limit, self._answer_seconds) if limit > 0 else self._answer_seconds
        reason = "the host name has no address"
        for address in self._addresses():
            try:
                self._connect(make_conninfo("", **{**self._options, **address}), monotonic() + limit)
            except (psycopg.Error, ServerUnreachable) as error:
                reason = str(error).strip()
                self.close()
            except Stopped:
                self.close()
                raise
            else:
                return
        raise ServerUnreachable(f"PostgreSQL could not be reached: {reason}")

    def _addresses(self) -> list[dict[str, str]]:
        # libpq looks names up inside a call that holds the interpreter lock: a slow name server would stop the whole
        # process. Here only this thread waits. Hosts are tried one by one, so that a silent one does not hide the next.
        hosts = self._options.get("host", "").split(",")
        ports = self._options.get("port", "").split(",")
        if "hostaddr" in self._options or len(ports) not in {1, len(hosts)}:
            return [{}]
        found: list[dict[str, str]] = []
        for index, host in enumerate(hosts):
            base = {"host": host, "port": ports[index % len(ports)]}
            if not host or host.startswith(("/", "@")):
                found.append({key: value for key, value in base.items() if value})
                continue
            try:
                answers = socket.getaddrinfo(host, base["port"] or None, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                _log.debug("no address for %s: %s", host, error)
                continue
            found.extend({**base, "hostaddr": str(answer[4][0])} for answer in answers)
        return found

    def _connect(self, conninfo: str, deadline: float) -> None:
        conn = self._conn = pq.PGconn.connect_start(conninfo.encode())
        while True:
            status = pq.PollingStatus.FAILED if conn.status == pq.ConnStatus.BAD else conn.connect_poll()
            if status == pq.PollingStatus.OK:
                conn.nonblocking = 1
                return
            if status == pq.PollingStatus.FAILED:
                raise ServerUnreachable(conn.get_error_message())
            reading = status == pq.PollingStatus.READING
            self._await(selectors.EVENT_READ if reading else selectors.EVENT_WRITE, deadline)

    def run(self, command: bytes, params: Sequence[bytes | None] | None = None) -> list[bytes | None]:
        """The first row of the last result of ``command``, empty without one.

        Without ``params`` the command may hold several statements; they are one transaction.

        Raises:
            ServerUnreachable: the connection was lost, or no answer came in time; close the link.
            BlackboardError: the server refused the statement; the link is still good.
            Stopped: the waker was stopped; close the link.
        """
        conn, deadline = self._require(), monotonic() + self._answer_seconds
        row: list[bytes | None] = []
        refusal: BlackboardError | None = None
        try:
            if params is None:
                conn.send_query(command)
            else:
                conn.send_query_params(command, params)
            while conn.flush():
                self._await(selectors.EVENT_READ | selectors.EVENT_WRITE, deadline)
                conn.consume_input()
            while True:
                while conn.is_busy():
                    self._await(selectors.EVENT_READ, deadline)
                    conn.consume_input()
                if (result := conn.get_result()) is None:
                    break
                if result.status in {pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK}:
                    row = [result.get_value(0, i) for i in range(result.nfields)] if result.ntuples else []
                else:
                    state = result.error_field(pq.DiagnosticField.SQLSTATE)
                    refusal = from_sqlstate(state.decode() if state else "08006", result.get_error_message())
        except psycopg.Error as error:
            raise ServerUnreachable(f"The connection to PostgreSQL was lost: {error}") from error
        if refusal is not None:
            if conn.status == pq.ConnStatus.BAD:
                raise ServerUnreachable(refusal.message)
            raise refusal
        return row

    def wait(self, timeout: float, ear: Ear | None = None) -> None:
        """Something came in, the waker was raised, or ``timeout`` seconds passed; also works on a closed link.

        Args:
            timeout: in seconds.
            ear: what comes in meanwhile is read by its loop, and ends no wait.

        Raises:
            ServerUnreachable: the connection was lost; close the link.
            Stopped: the waker was stopped.
        """
        deadline = monotonic() + timeout
        try:
            if ear is None or self._conn is None:
                came = self._select(selectors.EVENT_READ, deadline)
            else:
                with ear.lent(self._conn.socket, self._overhear):
                    self._select(0, deadline)
                came = True
            if came:
                self._require().consume_input()
        except psycopg.Error as error:
            raise ServerUnreachable(f"The connection to PostgreSQL was lost: {error}") from error

    def _overhear(self) -> tuple[int, list[Notice]] | None:
        # In the ear's loop, while this link is lent to it.
        try:
            self._require().consume_input()
        except (psycopg.Error, ServerUnreachable):
            self._waker.wake()  # whoever waits takes the link back, and meets the same error
            return None
        return self.backend_pid, self.notifications()

    def notifications(self) -> list[Notice]:
        """What arrived since the last call."""
        found: list[Notice] = []
        while self._conn is not None and (notice := self._conn.notifies()) is not None:
            found.append((notice.be_pid, notice.extra.decode("utf-8", "replace")))
        return found

    def close(self) -> None:
        """Disconnected; does not wait for the server."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.finish()

    def _require(self) -> pq.abc.PGconn:
        if self._conn is None:
            raise ServerUnreachable("There is no connection to PostgreSQL.")
        return self._conn

    def _await(self, events: int, deadline: float) -> None:
        while not self._select(events, deadline):
            if monotonic() >= deadline:
                raise ServerUnreachable("PostgreSQL did not answer in time.")

    def _watching(self, events: int) -> selectors.BaseSelector:
        """The selector, which watches the waker and, for ``events``, the connection that there is now."""
        if (selector := self._selector) is None:
            selector = self._selector = _Selector()
            selector.register(self._waker, selectors.EVENT_READ)
        try:
            # While connecting, libpq goes from one descriptor to the next.
            wanted = None if self._conn is None or not events else (self._conn.socket, events)
        except psycopg.Error as error:
            raise ServerUnreachable(f"The connection to PostgreSQL was lost: {error}") from error
        if wanted != self._watched:
            if self._watched is not None:
                selector.unregister(self._watched[0])
                self._watched = None
            if wanted is not None:
                selector.register(*wanted)
                self._watched = wanted
        return selector

    def _select(self, events: int, deadline: float) -> bool:
        # True: the socket is ready. False: woken up, or at the deadline.
        selector = self._watching(events)
        until = min(deadline, self._waker.stop_at)
        ready = selector.select(None if until == math.inf else max(0.0, until - monotonic()))
        if any(key.fileobj is self._waker for key, _ in ready):
            self._waker.clear()
        if monotonic() >= self._waker.stop_at:
            raise Stopped
        return any(key.fileobj is not self._waker for key, _ in ready)


def parse_conninfo(conninfo: str) -> dict[str, str]:
    """The options of a URL or key-value string.

    Raises:
        ConfigurationError: libpq cannot read it.
    """
    try:
        return {key: str(value) for key, value in conninfo_to_dict(conninfo).items() if value is not None}
    except psycopg.Error:  # its text may quote the password
        raise ConfigurationError("The database URL cannot be parsed; check its quoting.") from None


def backoff(failures: int, longest: float) -> float:
    """Seconds before attempt number ``failures`` + 1: doubled each time, bounded, and spread over processes."""
    return random.uniform(0.3, 1.0) * min(longest, 0.05 * 2 ** min(failures, 20))
