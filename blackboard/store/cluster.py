"""A data directory made fit for a server: its place, its account, its cluster, its socket's directory.

Only :mod:`blackboard.store.embedded` calls these, and all but :func:`prepare` under the exclusive lock.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from blackboard.errors import EmbeddedServerError
from blackboard.store.binaries import Account, Binaries, as_account, clean_environment, server_account
from blackboard.store.postmaster import Place

__all__ = [
    "account_of",
    "barrier",
    "check_reach",
    "choose_socket_dir",
    "major_version",
    "make_cluster",
    "prepare",
    "unusable",
]

# The directory plus the socket's name must fit sockaddr_un: 108 bytes on Linux, 104 on macOS.
_LONGEST_SOCKET_DIR = 88


def unusable(place: Place, why: str, cause: BaseException | None = None) -> NoReturn:
    """Never returns.

    Raises:
        EmbeddedServerError: the data directory cannot be used, for the reason ``why``.
    """
    raise EmbeddedServerError(
        f"The data directory {place.data_dir} cannot be used: {why}. Choose another with BLACKBOARD_DATA_DIR (a new "
        "path or an empty directory on a local disk), or give the URL of a running server.",
        data_dir=place.data_dir,
    ) from cause


def prepare(place: Place) -> None:
    """The data directory exists and is ours to use.

    Raises:
        EmbeddedServerError: it is not, and why.
    """
    path = Path(place.data_dir)
    try:
        if not path.exists():
            _make_directory(path)
        found = {entry.name for entry in path.iterdir()}
    except (NotADirectoryError, FileExistsError) as error:
        unusable(place, "it, or a directory above it, is a file", error)
    except OSError as error:
        unusable(place, f"{error.strerror or error} ({error.filename})", error)
    if "lock" not in found:
        if "PG_VERSION" in found:
            unusable(place, "it is itself a PostgreSQL cluster; Blackboard makes its own in a directory of its own")
        if any(not name.startswith(".") and name != "lost+found" for name in found):
            unusable(place, "it holds other files and was not made by Blackboard")
        if os.geteuid() == 0 and path.stat().st_uid == 0:
            # An empty directory given to us is ours; the server's account must pass through it.
            path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o011)
    if not os.access(path, os.W_OK | os.X_OK | os.R_OK):
        unusable(place, "it is not writable for this user")


def _make_directory(path: Path) -> None:
    missing = [path, *(parent for parent in path.parents if not parent.exists())]
    for directory in reversed(missing):
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            if not directory.is_dir():
                raise
            continue  # another process was faster
        if os.geteuid() == 0:
            # Root's server runs as another account, which must pass through, but not look around.
            directory.chmod(0o711)


def account_of(place: Place) -> Account | None:
    """The account that runs this place's server; ``None`` for our own.

    Raises:
        EmbeddedServerError: the cluster belongs to somebody else, or we are root and have no account to run it as.
    """
    try:
        owner = Path(place.cluster).stat().st_uid
    except FileNotFoundError:
        return server_account()
    if owner != os.geteuid() and os.geteuid() != 0:
        unusable(place, f"its cluster belongs to the user with uid {owner}, and only that user can run it")
    account = server_account(owner)
    if account is not None and account.uid != owner:
        unusable(place, f"its cluster belongs to root; give it to an account with `chown -R {account.name}`")
    return account


def check_reach(place: Place, account: Account | None) -> None:
    """The account can enter the data directory.

    Raises:
        EmbeddedServerError: it cannot; names the directory that bars it.
    """
    if account is None:
        return
    # Tried and not computed: ACLs and security modules have a say, too.
    tried = subprocess.run(
        ["/bin/sh", "-c", 'cd -- "$1"', "sh", place.data_dir],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
        **as_account(account),
    )
    if tried.returncode != 0:
        unusable(
            place,
            f"PostgreSQL does not run as root, and the account `{account.name}` that it runs as here cannot enter it "
            f"({barrier(place.data_dir, account)} does not let others pass; `chmod o+x` would)",
        )


def barrier(path: str, account: Account) -> Path | None:
    """The topmost directory on the way to ``path`` that the account cannot pass, judged by the modes."""
    for directory in (*reversed(Path(path).parents), Path(path)):
        found = directory.stat()
        shift = 6 if found.st_uid == account.uid else 3 if found.st_gid == account.gid else 0
        if not found.st_mode >> shift & 1:
            return directory
    return None


def major_version(place: Place) -> int | None:
    """The PostgreSQL version that made the cluster; ``None`` if there is no cluster yet.

    Raises:
        EmbeddedServerError: what is there is no cluster.
    """
    try:
        return int((Path(place.cluster) / "PG_VERSION").read_text("ascii").split(".")[0])
    except FileNotFoundError:
        if Path(place.cluster).exists():
            unusable(place, "its directory `pg` is no PostgreSQL cluster (PG_VERSION is missing)")
        return None
    except (OSError, ValueError) as error:
        unusable(place, f"its cluster's PG_VERSION cannot be read ({error})", error)


def make_cluster(place: Place, binaries: Binaries, account: Account | None, *, durable: bool) -> None:
    """The cluster exists, whole: made aside and then renamed, so that an interrupted attempt leaves only litter.

    Raises:
        EmbeddedServerError: ``initdb`` failed; quotes it.
    """
    data_dir = Path(place.data_dir)
    for litter in data_dir.glob("making-*"):
        shutil.rmtree(litter, ignore_errors=True)
    try:
        making = Path(tempfile.mkdtemp(prefix="making-", dir=data_dir))
    except OSError as error:
        unusable(place, f"nothing can be written there ({error.strerror or error})", error)
    try:
        if account is not None:
            os.chown(making, account.uid, account.gid)
        _initdb(place, binaries, account, making, durable=durable)
        making.rename(place.cluster)
        if durable:
            directory = os.open(data_dir, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
    finally:
        if making.exists():
            shutil.rmtree(making, ignore_errors=True)


def _initdb(place: Place, binaries: Binaries, account: Account | None, target: Path, *, durable: bool) -> None:
    command = [binaries.program("initdb"), "-D", str(target), "-U", "postgres", "-E", "UTF8"]
    # Whoever can enter the socket's directory is trusted; over a network nobody, should it ever listen on one.
    command += ["--auth-local=trust", "--auth-host=reject", "--no-instructions", "--locale=C"]
    command += ["--data-checksums", "--wal-segsize=4"] if durable else ["--no-sync", "--wal-segsize=1"]
    if durable and binaries.major >= 17 and sys.platform == "linux":
        command += ["--sync-method=syncfs"]
    # With C alone upper('ä') stays 'ä'. Before 17 the cure is a locale of the system, which may lack it.
    if binaries.major >= 17:
        variants = [["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]]
    else:
        variants = [["--lc-ctype=C.UTF-8"], []]
    said = ""
    for variant in variants:
        try:
            made = subprocess.run(
                command + variant,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=clean_environment(),
                start_new_session=True,
                check=False,
                **as_account(account),
            )
        except OSError as error:
            raise EmbeddedServerError(f"{command[0]} cannot be run: {error}", data_dir=place.data_dir) from error
        said = str(made.stdout, "utf-8", "replace").strip()
        if made.returncode == 0:
            return
        if "invalid locale" not in said:
            break
    hint = ""
    if "could not look up effective user ID" in said:
        hint = f"The user with uid {os.geteuid()} has no entry in /etc/passwd: add one. "
    elif "No space left on device" in said:
        hint = "The disk is full: free some space. "
    raise EmbeddedServerError(
        f"PostgreSQL's cluster could not be made in {place.data_dir}. {hint}initdb says:\n{said[-1500:]}",
        data_dir=place.data_dir,
    )


def choose_socket_dir(place: Place, account: Account | None) -> str:
    """The cluster's own directory, or a short private one if its path does not fit a socket's name."""
    cluster = place.cluster
    # A comma would separate hosts in a URL.
    if len(os.fsencode(cluster)) <= _LONGEST_SOCKET_DIR and "," not in cluster:
        return cluster
    owner = account.uid if account else os.geteuid()
    recorded = place.socket_dir()
    if recorded != cluster:
        with contextlib.suppress(OSError):
            found = Path(recorded).lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == owner and not found.st_mode & 0o077:
                return recorded
    # Not below TMPDIR, which may be as long as the data's path.
    made = tempfile.mkdtemp(prefix="blackboard-", dir="/tmp")
    if account is not None:
        os.chown(made, account.uid, account.gid)
    return made
