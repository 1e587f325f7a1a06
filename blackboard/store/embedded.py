"""The embedded PostgreSQL: a server per user that starts on demand, is shared by all processes, and ends when idle.

``EmbeddedServer().start()`` starts it or joins it; any number of processes may do so at once. The server outlives its
starter. It listens on a Unix socket in a directory that only its account can enter (so no password is needed), keeps
PostgreSQL's durable defaults, and survives ``kill -9`` of anything: the next ``start()`` puts things right.

What lies in a data directory is told in :mod:`blackboard.store.postmaster`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

from blackboard.errors import ConfigurationError, EmbeddedServerError
from blackboard.store import postmaster
from blackboard.store.binaries import find_binaries
from blackboard.store.cluster import (
    account_of,
    check_reach,
    choose_socket_dir,
    major_version,
    make_cluster,
    prepare,
    unusable,
)
from blackboard.store.launching import OURS, server_arguments, spawn
from blackboard.store.postmaster import NO_SUCH_DATABASE, PORT, READY, Place, locked, try_lock

__all__ = ["DATABASE", "EmbeddedServer", "ServerInfo", "default_data_dir"]

DATABASE = "blackboard"


@dataclass(frozen=True)
class ServerInfo:
    """A server as it was when asked.

    Attributes:
        url: connects with psycopg, asyncpg and psql as it is.
        pid: the postmaster's, while it runs.
        version: of PostgreSQL, such as ``18.6``; ``None`` before the first start.
        log_path: what the server wrote; see :meth:`EmbeddedServer.logs`.
        port: only part of the socket's name.
    """

    url: str
    data_dir: Path
    socket_dir: Path
    pid: int | None
    running: bool
    version: str | None
    log_path: Path
    port: int


def default_data_dir() -> Path:
    """Where this user's board lives: ``BLACKBOARD_DATA_DIR``, else the platform's place for application data.

    For root it is a directory of the system, because the account that serves root must be able to enter it.

    Raises:
        ConfigurationError: the user has no home directory and nothing else is set.
    """
    named = os.environ.get("BLACKBOARD_DATA_DIR")
    if named:
        return Path(named).expanduser().absolute()
    mac = sys.platform == "darwin"
    if os.geteuid() == 0:
        return Path("/Library/Application Support/Blackboard" if mac else "/var/lib/blackboard")
    xdg = Path(os.environ.get("XDG_DATA_HOME") or ".")
    if not mac and xdg.is_absolute():
        return xdg / "blackboard"
    try:
        home = Path.home()
    except RuntimeError as error:
        raise ConfigurationError(
            "This user has no home directory to keep the board in. Set BLACKBOARD_DATA_DIR, or give the URL of a "
            "running server."
        ) from error
    return home / ("Library/Application Support/Blackboard" if mac else ".local/share/blackboard")


class EmbeddedServer:
    """A handle on the server of one data directory; holds no connection and no lock between calls.

    Handles in any number of processes and threads may be used at once.

    Args:
        data_dir: a directory of its own, created if missing; :func:`default_data_dir` if not given.
        idle_timeout: the server ends itself when nobody used it for so long; ``None``: never. Of several who share a
            server, the longest wish holds.
        settings: server parameters over the defaults; they count for the one who starts the server.
        bin_dir: the directory of PostgreSQL's programs; else the chain of :mod:`blackboard.store.binaries`.
        durable: False for data that may be lost with the machine: faster, never for a board that matters.

    Raises:
        ConfigurationError: ``settings`` names one that the data directory decides, or there is no home directory to
            put the data in.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        idle_timeout: timedelta | None = timedelta(minutes=30),
        settings: Mapping[str, str] | None = None,
        bin_dir: Path | None = None,
        durable: bool = True,
    ) -> None:
        self._place = Place(os.path.realpath((data_dir or default_data_dir()).expanduser()))
        self._idle = None if idle_timeout is None else max(idle_timeout.total_seconds(), 0.0)
        self._settings = dict(settings or {})
        for name in OURS & self._settings.keys():
            raise ConfigurationError(f"The embedded server's {name!r} is given by its data directory.", setting=name)
        self._bin_dir = bin_dir
        self._durable = durable
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, *, foreground_parent: bool = False, timeout: float = 60.0) -> ServerInfo:
        """The server runs and takes connections, and the database ``blackboard`` exists.

        Joins a running server, else starts one, after making the cluster if there is none. A start interrupted
        anywhere, by any signal, is taken up by the next.

        Args:
            foreground_parent: if we start it, the server is our child and ends with the calling thread, however that
                ends (on Linux; elsewhere only :meth:`stop` and the idle time end it).
            timeout: seconds after which waiting for the server, or for others who start or stop it, is given up.

        Raises:
            ConfigurationError: ``BLACKBOARD_PG_BIN`` or ``bin_dir`` names no usable PostgreSQL.
            EmbeddedServerUnavailable: there is no PostgreSQL to start.
            EmbeddedServerError: the data directory cannot be used, or the server does not start; says why.
        """
        deadline = time.monotonic() + timeout
        prepare(self._place)
        with self._locked(fcntl.LOCK_SH, deadline):
            # Joiners do not wait for each other.
            answer, version = self._place.ask(DATABASE)
            if answer == READY and self._cared_for():
                os.utime(self._place.lock)
                return self._info(version)
        with self._locked(fcntl.LOCK_EX, deadline):
            version = self._bring_up(deadline, foreground_parent)
            self._care()
            os.utime(self._place.lock)
            return self._info(version)

    def stop(self, timeout: float = 10.0) -> bool:
        """The server does not run; true if it did. Its clients were cut off, and committed work is kept.

        Args:
            timeout: seconds for an orderly end; then it is ended at once and recovers at its next start.

        Raises:
            EmbeddedServerError: it did not end, or others held the lock for too long.
        """
        if not Path(self._place.lock).is_file():
            return False
        with self._locked(fcntl.LOCK_EX, time.monotonic() + timeout + 60.0):
            if not self._place.lives():
                self._reap()
                return False
            if not self._place.end(timeout):
                raise EmbeddedServerError(
                    f"The server in {self._place.data_dir} (process {self._place.pid()}) does not end. If it runs in "
                    "another container or as another user, stop it there; else end it with `kill -9`.",
                    data_dir=self._place.data_dir,
                    pid=self._place.pid(),
                )
            self._reap()
            return True

    def status(self) -> ServerInfo:
        """How the server is now; asking starts nothing and does not count as use."""
        return self._info(None)

    def url(self, database: str = DATABASE) -> str:
        """The URL of a database of this server, as psycopg, asyncpg and psql take it; it may not run yet."""
        host = quote(self._place.socket_dir(), safe="/")
        return f"postgresql://postgres@/{quote(database, safe='')}?host={host}&port={PORT}"

    def logs(self, lines: int = 50) -> str:
        """The last lines that the server wrote; empty before the first start."""
        return self._log_since(0, lines)

    @contextlib.contextmanager
    def _locked(self, kind: int, deadline: float) -> Generator[None]:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self._place.lock, kind, max(deadline - time.monotonic(), 0.0)))
            except TimeoutError as error:
                raise EmbeddedServerError(
                    f"Another process has been starting or stopping the server in {self._place.data_dir} all the "
                    "while. Try again; if it hangs, end the process that holds the file `lock` there "
                    "(`fuser -v` shows it).",
                    data_dir=self._place.data_dir,
                ) from error
            except OSError as error:
                unusable(self._place, f"its lock file cannot be taken ({error.strerror or error})", error)
            try:
                yield
            except OSError as error:
                unusable(self._place, f"{error.strerror or error} ({error.filename or 'no file'})", error)

    # Starting

    def _bring_up(self, deadline: float, foreground: bool) -> str | None:
        """The running server's version; call it under the exclusive lock."""
        place = self._place
        started_at: int | None = None
        unreachable_since: float | None = None
        created = Path(place.cluster).exists()
        while True:
            # Asked before it is ready, the server would fill its log with refusals.
            asks = started_at is None or place.ready()
            answer, version = place.ask(DATABASE if created else "postgres") if asks else (None, None)
            if answer == NO_SUCH_DATABASE or (answer == READY and not created):
                self._create_database()
                created = True
                continue
            if answer == READY:
                return version
            if answer not in (None, postmaster.STARTING_OR_STOPPING, postmaster.SILENT):
                return None  # it runs, and has a reason that the client will be told (no slot left, a password)
            life = try_lock(place.running_lock) if answer is None and place.postmaster() is None else None
            if life is not None:
                try:
                    if started_at is not None:
                        self._failed("ended while starting", started_at)
                    started_at = self._launch(life, foreground)
                finally:
                    # The server holds the lock now, by the same open file.
                    os.close(life)
                unreachable_since = None
            elif answer is None and started_at is None:
                unreachable_since = unreachable_since or time.monotonic()
                self._clear_way(time.monotonic() - unreachable_since)
            if time.monotonic() > deadline:
                self._failed(f"takes no connections (process {place.pid()})", started_at)
            time.sleep(0.003)

    def _launch(self, life: int, foreground: bool) -> int:
        """The log's length before the server process was launched, which holds ``life`` from now on."""
        place = self._place
        self._reap()
        place.remove_stale()
        account = account_of(place)
        major = major_version(place)
        binaries = find_binaries(account, Path(place.data_dir) / "programs", major=major, directory=self._bin_dir)
        check_reach(place, account)
        if major is None:
            make_cluster(place, binaries, account, durable=self._durable)
        socket_dir = choose_socket_dir(place, account)
        place.save({"socket_dir": socket_dir, "idle_seconds": self._idle, "version": binaries.version})
        arguments = server_arguments(place, binaries, socket_dir, self._settings, durable=self._durable)
        place.trim_log()
        start = self._log_size()
        self._child = spawn(place, arguments, life, account, with_us=foreground)
        return start

    def _reap(self) -> None:
        if self._child is not None and not self._place.lives():
            self._child.wait()
            self._child = None

    def _clear_way(self, waited: float) -> None:
        """What is left of a dead or unreachable server, and does not go by itself, is being ended."""
        place = self._place
        if place.postmaster() is not None:
            # Somebody removed the socket from under a server that runs. (Is its directory gone too, then perhaps only
            # for us, whose /tmp is another: such a server is left alone.)
            if waited > 1.0 and place.ready() and Path(place.socket_dir()).is_dir():
                place.end(10.0)
        elif waited > 2.0:
            orphans = place.orphans()
            if orphans:
                place.end(5.0)
            elif orphans == []:
                # A stranger has the descriptor: a process forked by another thread during a start.
                with contextlib.suppress(FileNotFoundError):
                    Path(place.running_lock).unlink()

    def _failed(self, what: str, log_start: int | None) -> NoReturn:
        said = self._log_since(log_start or 0, 15)
        remedy = "Its disk is full: free some space. " if "No space left on device" in said else ""
        raise EmbeddedServerError(
            f"The embedded server in {self._place.data_dir} {what}. {remedy}Its log says:\n{said or '(nothing)'}",
            data_dir=self._place.data_dir,
            log=said,
        )

    def _create_database(self) -> None:
        try:
            session = postmaster.Session(
                self._place.socket_path(), "postgres", timeout=30.0, application="blackboard start"
            )
            try:
                session.query(f"CREATE DATABASE {DATABASE}")
            finally:
                session.close()
        except postmaster.Refused as refused:
            if refused.sqlstate != "42P04":  # somebody else just made it
                raise EmbeddedServerError(f"The database {DATABASE} cannot be created: {refused}") from refused
        except OSError as error:
            raise EmbeddedServerError(f"The server ended while the database was created: {error}") from error

    # The watcher

    def _wish(self) -> float | None:
        """How long the server may be idle by the longest wish of those who share it; ``None``: for ever."""
        held = self._place.state().get("idle_seconds")
        if self._idle is None or not isinstance(held, (int, float)):
            return None
        return max(self._idle, float(held))

    def _cared_for(self) -> bool:
        held = self._place.state().get("idle_seconds")
        if held is None:
            return True
        free = try_lock(self._place.watch_lock, fcntl.LOCK_SH)
        if free is not None:
            os.close(free)
        return free is None and held == self._wish()

    def _care(self) -> None:
        """The longest wish is recorded, and a watcher lives if there is one to fulfil; under the exclusive lock."""
        wish = self._wish()
        state = self._place.state()
        if state.get("idle_seconds") != wish:
            self._place.save(state | {"idle_seconds": wish})
        # In a frozen program or an application server this is not an interpreter, and there is no idle end.
        interpreter = not getattr(sys, "frozen", False) and "py" in Path(sys.executable or "").name
        watch = try_lock(self._place.watch_lock) if wish is not None and interpreter else None
        if watch is not None:
            try:
                script = str(Path(postmaster.__file__).resolve())
                command = [sys.executable, "-I", "-S", script, "watch", self._place.data_dir, str(watch)]
                spawn(self._place, command, watch, None)
            finally:
                os.close(watch)

    # What is told

    def _info(self, version: str | None) -> ServerInfo:
        place = self._place
        recorded = place.state().get("version")
        pid = place.pid() if place.lives() else None
        return ServerInfo(
            url=self.url(),
            data_dir=Path(place.data_dir),
            socket_dir=Path(place.socket_dir()),
            pid=pid,
            running=version is not None or (pid is not None and place.ready() and place.listens()),
            version=version or (recorded if isinstance(recorded, str) else None),
            log_path=Path(place.log),
            port=PORT,
        )

    def _log_size(self) -> int:
        try:
            return Path(self._place.log).stat().st_size
        except OSError:
            return 0

    def _log_since(self, start: int, lines: int) -> str:
        try:
            with Path(self._place.log).open("rb") as file:
                file.seek(max(start, self._log_size() - 256 * 1024))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:]) if lines > 0 else ""
