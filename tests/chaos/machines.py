"""What the storm breaks: a PostgreSQL of its own, a PgBouncer before it, and processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg

from blackboard.errors import ConfigurationError
from blackboard.store.embedded import DATABASE, EmbeddedServer
from blackboard.store.temporary import temporary_server
from blackboard.swarm import leash

from ..serverfixture import account

__all__ = ["Bouncer", "Process", "Server", "eventually"]


def eventually(holds: Callable[[], object], seconds: float, what: str) -> None:
    """Returns as soon as ``holds()`` is true.

    Raises:
        TimeoutError: it was not for ``seconds``; says ``what``.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.02)


@contextlib.contextmanager
def _no_warning_of_forks() -> Generator[None]:
    """Newer Pythons warn of every fork beside threads; between ours and their exec nothing takes a lock."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _die_with(parent: int) -> Callable[[], None] | None:
    """What a child does before it becomes another program: it arranges to be killed when we are."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def arrange() -> None:
        prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return arrange


class Server:
    """A PostgreSQL that loses no commit when its processes die."""

    def __init__(self, embedded: EmbeddedServer) -> None:
        self._embedded = embedded
        place = embedded.status()
        self.home = Path(place.data_dir).parent
        self.url = place.url
        self.socket = place.socket_dir / f".s.PGSQL.{place.port}"
        self.log = place.log_path

    @classmethod
    @contextlib.contextmanager
    def running(cls, *, durable: bool = False, bin_dir: Path | None = None) -> Generator[Server]:
        """A fresh one; of itself nothing is left in the end. Enter it from the main thread.

        Args:
            durable: it also outlives a crash of the machine, which nothing here does.
            bin_dir: where PostgreSQL's programs are.
        """
        # A write to the system's cache outlives the process, and a page may be half written when it is killed.
        settings = {"synchronous_commit": "on", "full_page_writes": "on", "restart_after_crash": "on"}
        with temporary_server(durable=durable, settings=settings, bin_dir=bin_dir) as embedded:
            yield cls(embedded)

    def stop_at_once(self) -> None:
        """It does not run, and recovers when it starts."""
        pid = self._embedded.status().pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGQUIT)
            eventually(lambda: not self._embedded.status().running, 60, "the end of the server")
        self._embedded.stop()

    def start(self) -> None:
        """It takes connections."""
        with _no_warning_of_forks():
            self._embedded.start(foreground_parent=True)

    def connect(self) -> psycopg.Connection[Any]:
        """A direct connection in autocommit mode."""
        return psycopg.connect(self.url, autocommit=True, connect_timeout=20, application_name="chaos driver")

    def ask(self, sql: str, *parameters: object) -> list[Any] | None:
        """The rows, or None if the server cannot be asked just now."""
        try:
            with self.connect() as connection:
                cursor = connection.execute(sql.encode(), parameters or None)
                return cursor.fetchall() if cursor.description else []
        except psycopg.OperationalError:
            return None


class Bouncer:
    """PgBouncer in transaction mode before a server."""

    def __init__(self, server: Server, connections: int = 12) -> None:
        """Not started yet.

        Args:
            server: leads there by its socket.
            connections: that it opens there at most.

        Raises:
            ConfigurationError: the program is not installed.
        """
        program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if program is None:
            raise ConfigurationError("pgbouncer is not installed: apt-get install pgbouncer, or leave `bouncer` out.")
        self._home = server.home / "bouncer"
        self._home.mkdir()
        self._account = account()
        self.socket = self._home / ".s.PGSQL.6432"
        config = self._home / "ini"
        config.write_text(
            f"[databases]\n{DATABASE} = host={server.socket.parent} port={server.socket.suffix[1:]} user=postgres\n"
            f"[pgbouncer]\nlisten_addr =\nlisten_port = 6432\nunix_socket_dir = {self._home}\n"
            f"auth_type = any\npool_mode = transaction\ndefault_pool_size = {connections}\nmax_client_conn = 400\n"
            "query_wait_timeout = 30\nserver_login_retry = 0.2\n"
        )
        config.chmod(0o644)
        if self._account:
            os.chown(self._home, self._account["user"], self._account["group"])
        self._command = [program, str(config)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """It takes connections."""
        with (self._home / "log").open("ab") as log, _no_warning_of_forks():
            # Not the leash: the account may not reach our Python.
            self._process = subprocess.Popen[bytes](
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True,
                preexec_fn=_die_with(os.getpid()), **self._account,
            )  # fmt: skip
        eventually(self.socket.exists, 20, "the start of PgBouncer")

    def kill(self) -> None:
        """It does not run."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(20)
        self.socket.unlink(missing_ok=True)


class Process:
    """A program of ours, started again as often as it is killed.

    Attributes:
        name: unique.
        log: what it says.
        frozen: stopped by ``freeze``.
        killed: how often ``kill`` ended it.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path, cwd: Path) -> None:
        """Not started yet."""
        self.name = name
        self.log = log
        self.frozen = False
        self.killed = 0
        self._command = _leashed([sys.executable, *command])
        self._environment = dict(environment)
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """It runs, from the beginning."""
        with self.log.open("ab") as log:
            log.write(b"--- started\n")
            log.flush()
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._cwd, env=self._environment,
                start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int | None:
        """While it was started and not yet seen to have ended."""
        return None if self._process is None else self._process.pid

    @property
    def ended(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return None if self._process is None else self._process.poll()

    def said(self, text: str) -> bool:
        """Whether ``text`` is in what it wrote since it was started last."""
        return text in self.log.read_text(errors="replace").rpartition("--- started\n")[2]

    def last_words(self) -> list[str]:
        """The end of what it wrote."""
        return self.log.read_text(errors="replace").splitlines()[-3:]

    def signal(self, number: signal.Signals) -> None:
        """It got the signal, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """It does not run."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
                self.killed += 1
            self._process.wait(20)
        self.frozen = False

    def freeze(self) -> None:
        """None of its threads runs."""
        self.signal(signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        """It goes on."""
        self.signal(signal.SIGCONT)
        self.frozen = False

    def end(self, seconds: float) -> int:
        """Its exit status after being asked to end.

        Raises:
            TimeoutError: it does not end.
        """
        self.thaw()
        self.signal(signal.SIGTERM)
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.name} was asked to end and did not within {seconds:.0f} s") from None


def _leashed(command: Sequence[str]) -> list[str]:
    """The command, which dies with us."""
    return [sys.executable, "-I", "-S", str(Path(leash.__file__)), str(os.getpid()), *command]
