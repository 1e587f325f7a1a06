"""What the tests of waiting and liveness do to a private server: freeze it, look at it, put a pooler before it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg

from .serverfixture import PrivateServer, account

__all__ = ["Pooler", "WatchedServer", "eventually"]


def eventually(holds: Callable[[], object], seconds: float = 20.0) -> None:
    """Returns as soon as ``holds()`` is true; fails the test after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"did not come true within {seconds} s"
        time.sleep(0.005)


class WatchedServer(PrivateServer):
    """A private server that a test can look into and freeze."""

    def __init__(self) -> None:
        super().__init__("full_page_writes=off")
        self.start()

    @property
    def conninfo(self) -> str:
        return self.url()

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.conninfo, autocommit=True)

    def sql(self, statement: str, *params: object) -> list[Any]:
        with self.connect() as connection:
            cursor = connection.execute(statement, params or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def backends(self, application: str) -> list[int]:
        return [row[0] for row in self.sql("SELECT pid FROM pg_stat_activity WHERE application_name = %s", application)]

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """The whole server stands still inside, without closing anything."""
        assert self._process
        postmaster = self._process.pid
        os.kill(postmaster, signal.SIGSTOP)  # first, so that no new children appear
        children: list[int] = []
        try:
            children = [int(p) for p in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()]
            for pid in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in (*children, postmaster):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


class Pooler:
    """PgBouncer in transaction mode in front of ``server``, with one server connection."""

    def __init__(self, server: WatchedServer) -> None:
        self.root = server.root / "bouncer"
        self.root.mkdir()
        owner = account()
        (self.root / "users").write_text('"postgres" ""\n')
        (self.root / "ini").write_text(
            f"[databases]\n* = host={server.root}\n"
            f"[pgbouncer]\nlisten_addr =\nlisten_port = 6432\nunix_socket_dir = {self.root}\n"
            f"auth_type = trust\nauth_file = {self.root}/users\npool_mode = transaction\ndefault_pool_size = 1\n"
        )
        if owner:
            for path in (self.root, *self.root.iterdir()):
                os.chown(path, owner["user"], owner["group"])
        program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin")
        assert program
        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen([program, str(self.root / "ini")], stdout=log, stderr=log, cwd="/",
                                            env=server._environment, start_new_session=True,
                                            **owner)  # fmt: skip
        eventually((self.root / ".s.PGSQL.6432").exists)

    @property
    def conninfo(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.root}&port=6432"

    def sql(self, statement: str) -> list[Any]:
        with psycopg.connect(self.conninfo, autocommit=True, prepare_threshold=None) as connection:
            return connection.execute(statement).fetchall()  # type: ignore[arg-type]

    def destroy(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        shutil.rmtree(self.root, ignore_errors=True)
