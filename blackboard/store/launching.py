"""How a server's process is launched: with which parameters, as whom, and whose child it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping

from blackboard.errors import EmbeddedServerError
from blackboard.store.binaries import Account, Binaries, as_account, clean_environment
from blackboard.store.postmaster import PORT, Place

__all__ = ["OURS", "server_arguments", "spawn"]

_SETTINGS = {
    # 200 processes with two connections each, and some for people.
    "max_connections": "450",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "min_wal_size": "32MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
    # Errors go to the client that made them. The log gets one line for each, without the values in them.
    "log_line_prefix": "%m [%p] ",
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_checkpoints": "off",
    "checkpoint_warning": "0",
    # Each of these would keep processes running for nothing.
    "max_logical_replication_workers": "0",
    # Compiling a statement takes longer than any of ours runs.
    "jit": "off",
}
_SETTINGS_SINCE_18 = {"io_method": "sync"}
_SETTINGS_NOT_DURABLE = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
}

OURS = frozenset({"config_file", "data_directory", "hba_file", "port", "unix_socket_directories"})
"""Parameters that the data directory decides."""


def server_arguments(
    place: Place, binaries: Binaries, socket_dir: str, settings: Mapping[str, str], *, durable: bool
) -> list[str]:
    """The command that runs the place's server, with ``settings`` over the defaults."""
    command = [binaries.program("postgres"), "-D", place.cluster, "-h", "", "-k", socket_dir, "-p", str(PORT)]
    defaults = _SETTINGS | (_SETTINGS_SINCE_18 if binaries.major >= 18 else {})
    if not durable:
        defaults |= _SETTINGS_NOT_DURABLE
    for name, value in {**defaults, **settings}.items():
        command += ["-c", f"{name}={value}"]
    return command


def spawn(
    place: Place, arguments: list[str], lock: int, account: Account | None, *, with_us: bool = False
) -> subprocess.Popen[bytes] | None:
    """The program runs in a session of its own and writes to the log; returned if it is to be our child.

    Args:
        place: whose log it writes to.
        arguments: its path and what follows.
        lock: a descriptor that it holds from now on.
        account: runs it; None for our own.
        with_us: it is our child, and ends with the calling thread.

    Raises:
        EmbeddedServerError: it cannot be run.
    """
    if not with_us:
        # By way of a shell that ends at once: not our child, it leaves no zombie and no warning with us.
        arguments = ["/bin/sh", "-c", '"$@" &', "sh", *arguments]
    log = os.open(place.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        process: subprocess.Popen[bytes] = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",  # ours may be out of reach for the account
            env=clean_environment(),
            start_new_session=True,
            pass_fds=(lock,),
            preexec_fn=_end_with(os.getpid()) if with_us else None,  # noqa: PLW1509 - only prctl and getppid
            **as_account(account),
        )
    except OSError as error:
        raise EmbeddedServerError(
            f"{arguments[0]} cannot be run{f' as {account.name}' if account else ''}: {error}",
            data_dir=place.data_dir,
        ) from error
    finally:
        os.close(log)
    if with_us:
        return process
    process.wait()
    return None


def _end_with(parent: int) -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    import ctypes

    prctl = ctypes.CDLL(None).prctl

    def arrange() -> None:
        prctl(1, int(signal.SIGINT))  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return arrange
