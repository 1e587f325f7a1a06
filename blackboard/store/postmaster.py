"""A PostgreSQL server seen from outside: its files, its locks, its answers, and the watcher that ends it when idle.

The standard library alone, and nothing else of this package: the idle watcher runs this file as a script
(``python -I -S postmaster.py watch <data dir> <lock fd>``), so it costs a bare interpreter and loads nothing more.

A data directory holds:

* ``pg/``           the cluster; owned by the server's account, mode 0700; as a rule the socket's directory too
* ``lock``          taken shared to join and exclusively to start or stop; its mtime tells the watcher of a join
* ``running.lock``  held by every process of the server while it lives: the kernel's own word, which no zombie,
  recycled pid or foreign pid namespace can falsify
* ``watch.lock``    held by the idle watcher while it lives
* ``state.json``    where the socket is, and how long the server may be idle
* ``server.log``    what the server wrote; the older part in ``server.log.1``
"""

# pathlib would be a good part of the watcher's imports, and paths are only handed to the system here.
# ruff: noqa: PTH105, PTH108, PTH110, PTH115, PTH116, PTH118, PTH119, PTH123, PTH202, PTH208

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Generator
from functools import partial

PORT = 5432
"""Only part of the socket's name: the server listens on no network port."""
READY = "00000"
STARTING_OR_STOPPING = "57P03"
NO_SUCH_DATABASE = "3D000"
SILENT = "silent"
LOG_BOUND = 4 << 20

_AFTER_TIMEOUT_QUIT = 5.0
_CLIENTS = """
SELECT (SELECT count(*) FROM pg_catalog.pg_stat_activity
         WHERE backend_type IN ('client backend', 'walsender') AND pid <> pg_catalog.pg_backend_pid()),
       (SELECT sum(sessions) FROM pg_catalog.pg_stat_database)
"""


class Refused(Exception):
    """The server answered with an error instead of a session.

    Attributes:
        sqlstate: the five characters that classify it.
    """

    def __init__(self, sqlstate: str, message: str) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class Session:
    """One connection as ``postgres`` over the socket, with simple queries; enough to look after a server.

    Raises:
        OSError: nobody listens there, or no answer within ``timeout`` seconds.
        Refused: the server answered with an error.
    """

    def __init__(self, socket_path: str, database: str, *, timeout: float, application: str) -> None:
        self.version: str | None = None
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.settimeout(timeout)
            _connect(self.socket, socket_path, timeout)
            pairs = ("user", "postgres", "database", database, "application_name", application)
            body = b"".join(text.encode() + b"\0" for text in pairs) + b"\0"
            self.socket.sendall(struct.pack("!ii", len(body) + 8, 196608) + body)
            self._until_ready()
        except BaseException:
            self.socket.close()
            raise

    def query(self, sql: str) -> list[list[str | None]]:
        """The rows of one statement, every value as text.

        Raises:
            OSError: the connection was lost.
            Refused: the statement failed.
        """
        body = sql.encode() + b"\0"
        self.socket.sendall(b"Q" + struct.pack("!i", len(body) + 4) + body)
        return self._until_ready()

    def close(self) -> None:
        """The connection is ended, whatever state it was in."""
        with contextlib.suppress(OSError):
            self.socket.sendall(b"X\0\0\0\4")
        self.socket.close()

    def _until_ready(self) -> list[list[str | None]]:
        rows: list[list[str | None]] = []
        failure: Refused | None = None
        while True:
            kind, body = self.read()
            if kind == b"Z":
                if failure is not None:
                    raise failure
                return rows
            if kind == b"D":
                rows.append(_row(body))
            elif kind == b"S":
                name, value = body.split(b"\0")[:2]
                if name == b"server_version":
                    self.version = value.decode().split()[0]  # Debian adds the package's
            elif kind == b"R" and struct.unpack_from("!i", body)[0] != 0:
                # Somebody changed pg_hba.conf to ask for a password.
                raise Refused("28000", "the server asks for a password")
            elif kind == b"E":
                fields = {part[:1]: part[1:].decode(errors="replace") for part in body.split(b"\0") if part}
                failure = Refused(fields.get(b"C", "XX000"), fields.get(b"M", "unknown error"))
                if fields.get(b"V") in ("FATAL", "PANIC"):
                    raise failure

    def read(self) -> tuple[bytes, bytes]:
        """The next message, as its kind and its body.

        Raises:
            OSError: the connection was lost.
        """
        kind, length = struct.unpack("!ci", self._exactly(5))
        return kind, self._exactly(length - 4)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise ConnectionResetError(errno.ECONNRESET, "the server closed the connection")
            data += more
        return data


def _connect(sock: socket.socket, path: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            return sock.connect(path)
        except BlockingIOError:
            # The listen queue is full for a moment: a local socket says EAGAIN instead of waiting.
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "the server accepts no connection") from None
            time.sleep(0.005)


def _row(body: bytes) -> list[str | None]:
    (count,) = struct.unpack_from("!h", body)
    values: list[str | None] = []
    at = 2
    for _ in range(count):
        (length,) = struct.unpack_from("!i", body, at)
        at += 4
        values.append(None if length < 0 else body[at : at + length].decode())
        at += max(length, 0)
    return values


class Place:
    """The paths of one data directory, and what its files and locks say about the server."""

    def __init__(self, data_dir: str) -> None:
        self.data_dir = data_dir
        self.cluster = os.path.join(data_dir, "pg")
        self.lock = os.path.join(data_dir, "lock")
        self.running_lock = os.path.join(data_dir, "running.lock")
        self.watch_lock = os.path.join(data_dir, "watch.lock")
        self.state_file = os.path.join(data_dir, "state.json")
        self.log = os.path.join(data_dir, "server.log")
        self.pid_file = os.path.join(self.cluster, "postmaster.pid")

    def state(self) -> dict[str, object]:
        """What ``state.json`` records; empty when there is none or it is damaged."""
        try:
            with open(self.state_file, encoding="utf-8") as file:
                found = json.load(file)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}  # pyright: ignore[reportUnknownVariableType]

    def save(self, state: dict[str, object]) -> None:
        """``state.json`` holds ``state``, never half of it."""
        temporary = f"{self.state_file}.{os.getpid()}"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(state, file)
        os.replace(temporary, self.state_file)

    def socket_dir(self) -> str:
        """Where the server's socket is, or will be at the next start."""
        recorded = self.state().get("socket_dir")
        return recorded if isinstance(recorded, str) else self.cluster

    def socket_path(self) -> str:
        """The socket itself."""
        return os.path.join(self.socket_dir(), f".s.PGSQL.{PORT}")

    def ask(self, database: str, timeout: float = 5.0) -> tuple[str | None, str | None]:
        """What the server answers to a login: an SQLSTATE (``READY`` if it let us in), and its version if it told.

        ``None`` means that nobody listens, ``SILENT`` that the connection got no answer in ``timeout`` seconds.
        """
        try:
            session = Session(self.socket_path(), database, timeout=timeout, application="blackboard start")
        except Refused as refused:
            return refused.sqlstate, None
        except (TimeoutError, ConnectionResetError, BrokenPipeError):
            return SILENT, None
        except OSError:
            return None, None
        session.close()
        return READY, session.version

    def listens(self, timeout: float = 5.0) -> bool:
        """Whether a server answers at the socket; no session is opened, so it does not count as use."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(timeout)
                _connect(sock, self.socket_path(), timeout)
                sock.sendall(struct.pack("!ii", 8, 80877103))  # SSLRequest: answered with one byte, then nothing held
                return sock.recv(1) in (b"N", b"S")
        except OSError:
            return False

    def pid(self) -> int | None:
        """The pid that ``postmaster.pid`` names, whether or not it lives."""
        try:
            with open(self.pid_file, encoding="utf-8", errors="replace") as file:
                pid = int(file.readline(32))
        except (OSError, ValueError):
            return None
        # Single-user mode writes its pid as a negative number.
        return abs(pid) or None

    def postmaster(self) -> int | None:
        """The pid of this cluster's living postmaster; ``None`` for a stale file, a zombie or a recycled pid."""
        pid = self.pid()
        return pid if pid is not None and _serves(pid, self.cluster) else None

    def ready(self) -> bool:
        """Whether the postmaster wrote that it takes connections."""
        try:
            with open(self.pid_file, encoding="utf-8", errors="replace") as file:
                return "ready" in file.read(4096).splitlines()[-1]
        except (OSError, IndexError):
            return False

    def lives(self) -> bool:
        """Whether any process of the server lives, be it reachable or not."""
        fd = try_lock(self.running_lock, fcntl.LOCK_SH, create=False)
        if fd is not None:
            os.close(fd)
        elif os.path.exists(self.running_lock):
            return True
        # One started by other means (pg_ctl by hand) does not hold our lock.
        return self.postmaster() is not None

    def orphans(self) -> list[int] | None:
        """The cluster's processes, found by their working directory; ``None`` where the system does not tell."""
        found: list[int] = []
        try:
            owner = os.stat(self.cluster).st_uid
            names = [name for name in os.listdir("/proc") if name.isdigit()]
        except OSError:
            return None
        for name in names:
            try:
                with open(f"/proc/{name}/comm", encoding="utf-8", errors="replace") as file:
                    if "postgres" not in file.read() or os.stat(f"/proc/{name}").st_uid != owner:
                        continue
                if os.readlink(f"/proc/{name}/cwd") == self.cluster:
                    found.append(int(name))
            except PermissionError:
                return None
            except OSError:
                continue  # it ended
        return found if names else None

    def remove_stale(self) -> None:
        """No pid file, socket or socket lock of a dead server is left; call only under both locks.

        PostgreSQL itself refuses to start while such a file names any existing process, be it a zombie or a stranger.
        """
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.pid_file)
        for directory in {self.cluster, self.socket_dir()}:
            for suffix in ("", ".lock"):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    os.unlink(os.path.join(directory, f".s.PGSQL.{PORT}{suffix}"))

    def end(self, timeout: float) -> bool:
        """The server has ended: asked politely, after ``timeout`` seconds firmly. False if it still runs.

        Call it under the exclusive lock. Clients are cut off, committed work is kept.
        """
        for signum, patience in ((signal.SIGINT, timeout), (signal.SIGQUIT, _AFTER_TIMEOUT_QUIT)):
            pid = self.postmaster()
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)
            elif self.lives():
                # The postmaster was killed and its children have not noticed yet.
                for orphan in self.orphans() or []:
                    with contextlib.suppress(OSError):
                        os.kill(orphan, signal.SIGQUIT)
            if wait_until(lambda: not self.lives(), patience):
                return True
        return False

    def trim_log(self) -> None:
        """The log is below its bound; its last part is kept in ``server.log.1``.

        The server appends, so cutting the file to nothing under it is safe.
        """
        try:
            if os.path.getsize(self.log) < LOG_BOUND:
                return
            with open(self.log, "r+b") as file:
                file.seek(-LOG_BOUND // 4, os.SEEK_END)
                tail = file.read()
                with open(self.log + ".1", "wb") as older:
                    older.write(tail)
                file.truncate(0)
        except OSError:
            return


def _serves(pid: int, cluster: str) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            arguments = [os.fsdecode(part) for part in file.read().split(b"\0")]
    except OSError:
        if os.path.exists("/proc/self"):
            return False
        import subprocess  # only where there is no /proc: it is heavy for the watcher

        command = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
        shown = subprocess.run(command, capture_output=True, text=True, check=False)
        return "postgres" in shown.stdout and f"-D {cluster}" in shown.stdout
    # A zombie's command line is empty; a recycled pid has another.
    return "postgres" in os.path.basename(arguments[0]) and cluster in arguments


def try_lock(path: str, kind: int = fcntl.LOCK_EX, *, create: bool = True) -> int | None:
    """The descriptor that holds the lock on ``path``, or ``None`` if another holds it (or, uncreated, no such file).

    Raises:
        OSError: the file cannot be opened, or its file system knows no locks.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    try:
        fd = os.open(path, flags, 0o600)
    except FileNotFoundError:
        if create:
            raise
        return None
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextlib.contextmanager
def locked(path: str, kind: int, timeout: float) -> Generator[int]:
    """The lock on ``path`` is held inside the block; yields its descriptor.

    Raises:
        TimeoutError: others held it for all of ``timeout`` seconds.
        OSError: the file cannot be opened, or its file system knows no locks.
    """
    held: list[int] = []

    def take() -> bool:
        fd = try_lock(path, kind)
        if fd is not None:
            held.append(fd)
        return fd is not None

    if not wait_until(take, timeout):
        raise TimeoutError(errno.ETIMEDOUT, f"{path} is held by another process")
    try:
        yield held[0]
    finally:
        # Said outright: a child forked meanwhile by another thread has a copy that would keep the lock.
        fcntl.flock(held[0], fcntl.LOCK_UN)
        os.close(held[0])


def wait_until(holds: Callable[[], bool], timeout: float) -> bool:
    """Whether ``holds()`` became true within ``timeout`` seconds; asks at least once."""
    deadline = time.monotonic() + timeout
    pause = 0.001
    while not holds():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)
    return True


def watch(place: Place, fd: int) -> None:
    """The server has ended, by the watcher after its idle time or by others; returns then, or when told not to watch.

    Idle means that no client was connected, none came and went, and nobody called ``start()``, for the time in
    ``state.json``. The watcher's own connection does not count.

    Args:
        place: the server to watch.
        fd: holds ``watch.lock``; closed at the end.
    """
    session: Session | None = None
    seen: object = None
    since = time.monotonic()
    while True:
        allowed = _allowed(place, fd)
        if allowed is None and _resign(place, fd, lambda: _allowed(place, fd) is None):
            return
        allowed = 1.0 if allowed is None else allowed
        pause = min(max(allowed / 20, 0.05), 15.0)
        if session is None:
            session = _open(place)
        else:
            # Wakes at once when the server closes the connection.
            select.select([session.socket], [], [], pause)
        if session is None:
            if not place.lives() and _resign(place, fd, lambda: not place.lives()):
                return
            # It restarts after a crash of one of its processes, or has no slot left: it is not idle then.
            since = time.monotonic()
            time.sleep(min(pause, 0.5))
            continue
        use = _use(session, place)
        if use is None:
            session.close()
            session = None
        elif use[0] != "0" or use != seen:
            seen, since = use, time.monotonic()
        # Under the lock nobody can join; whoever joined just before has touched the lock's file.
        elif time.monotonic() - since >= allowed and _resign(place, fd, partial(_end_if_unused, place, session, seen)):
            return
        place.trim_log()


def _allowed(place: Place, fd: int) -> float | None:
    """The idle time; ``None`` if nobody wants a watcher, or the data directory is gone and perhaps another's."""
    with contextlib.suppress(OSError):
        if not os.path.samestat(os.fstat(fd), os.stat(place.watch_lock)):
            return None
    allowed = place.state().get("idle_seconds")
    return float(allowed) if isinstance(allowed, (int, float)) else None


def _open(place: Place) -> Session | None:
    with contextlib.suppress(OSError, Refused):
        if not place.ready():
            return None  # asked now it would fill its log with refusals
        return Session(place.socket_path(), "postgres", timeout=30.0, application="blackboard idle watch")
    return None


def _use(session: Session, place: Place) -> tuple[str | None, str | None, int] | None:
    """Clients now, sessions ever, and the last ``start()``; ``None`` if the connection is lost."""
    try:
        clients, sessions = session.query(_CLIENTS)[0]
        return clients, sessions, os.stat(place.lock).st_mtime_ns
    except (OSError, Refused, IndexError):
        return None


def _end_if_unused(place: Place, session: Session, seen: object) -> bool:
    return _use(session, place) == seen and place.end(30.0)


def _resign(place: Place, fd: int, holds: Callable[[], bool]) -> bool:
    """Whether the watch was given up because ``holds()``.

    Under the exclusive lock, so that a ``start()`` sees either a watcher that stays or none, and launches one.
    """
    if not os.path.exists(place.lock):
        return True  # the whole data directory is gone; nothing is put where it was
    try:
        lock = try_lock(place.lock, create=False)
    except OSError:
        return False
    if lock is None:
        return False
    try:
        if not holds():
            return False
        os.close(fd)
        return True
    finally:
        os.close(lock)


def main(arguments: list[str]) -> int:
    """The exit status of ``watch <data dir> <fd of the held watch.lock>``."""
    if len(arguments) != 3 or arguments[0] != "watch":
        return 2
    watch(Place(arguments[1]), int(arguments[2]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
