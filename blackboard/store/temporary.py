"""A throw-away PostgreSQL for tests and measurements, by the same mechanisms as the embedded one."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from datetime import timedelta
from pathlib import Path

from blackboard.store.binaries import server_account
from blackboard.store.cluster import barrier
from blackboard.store.embedded import EmbeddedServer
from blackboard.store.postmaster import Place, try_lock

__all__ = ["temporary_server"]

_MEMORY = Path("/dev/shm")  # noqa: S108 - directories of our own are made in it
_ROOM = 1 << 30
_GRACE = 10.0


@contextlib.contextmanager
def temporary_server(
    *,
    durable: bool = False,
    settings: Mapping[str, str] | None = None,
    directory: Path | None = None,
    bin_dir: Path | None = None,
) -> Generator[EmbeddedServer]:
    """A fresh server runs inside the block and nothing of it is left afterwards; for tests and measurements.

    It ends with this process, however that ends (on Linux; elsewhere when idle for ten minutes). What a killed
    process left behind is removed by the next one. Enter it from the main thread.

    Args:
        durable: with fsync and on a disk, as a board has it; else as fast as may be, in memory if there is room.
        settings: server parameters over the defaults.
        directory: where its own directory is made.
        bin_dir: the directory of PostgreSQL's programs.

    Raises:
        ConfigurationError: ``BLACKBOARD_PG_BIN`` or ``bin_dir`` names no usable PostgreSQL.
        EmbeddedServerUnavailable: there is no PostgreSQL to start.
        EmbeddedServerError: the server does not start or stop; says why.
    """
    base = directory or _scratch(durable)
    prefix = f"blackboard-temporary-{os.geteuid()}-"
    _sweep(base, prefix)
    own = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
    if os.geteuid() == 0:
        own.chmod(0o711)
    owner = try_lock(str(own / "owner.lock"))
    idle = None if sys.platform == "linux" else timedelta(minutes=10)
    server = EmbeddedServer(own / "data", idle_timeout=idle, settings=settings, bin_dir=bin_dir, durable=durable)
    try:
        server.start(foreground_parent=True)
        yield server
    finally:
        try:
            server.stop(timeout=0.0)
        finally:
            if owner is not None:
                os.close(owner)
            shutil.rmtree(own, ignore_errors=True)


def _scratch(durable: bool) -> Path:
    if not durable and os.access(_MEMORY, os.W_OK):
        room = os.statvfs(_MEMORY)
        # Containers often have 64 MB there.
        if room.f_bavail * room.f_frsize >= _ROOM:
            return _MEMORY
    chosen = Path(tempfile.gettempdir()).resolve()
    account = server_account()
    # The account of root's server must get there.
    reachable = account is None or barrier(str(chosen), account) is None
    return chosen if reachable else Path("/tmp")  # noqa: S108 - a directory of our own is made in it


def _sweep(base: Path, prefix: str) -> None:
    """No directory is left of a temporary server whose owner and processes are dead."""
    for found in base.glob(prefix + "*"):
        with contextlib.suppress(OSError):
            # A young one may be in the making.
            if found.stat().st_uid != os.geteuid() or time.time() - found.stat().st_mtime < _GRACE:
                continue
            owner = try_lock(str(found / "owner.lock"))
            if owner is None:
                continue
            try:
                if not Place(os.path.realpath(found / "data")).lives():
                    shutil.rmtree(found, ignore_errors=True)
            finally:
                os.close(owner)
