"""The files of a case: which they are, and whether they can be read at all, before anything starts."""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blackboard.errors import InvalidInput

from .analysis.reader import TRIAL_LINES, detect_format
from .plain import as_object

__all__ = ["CaseFiles", "CheckedFile", "check_file", "check_files"]

HERE = Path(__file__).parent
_SNIFF = 65_536
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"(\xb5/\xfd": "zstd", b"PK\x03\x04": "zip"}


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case, by absolute path; their names are unique, and are what the board calls them."""

    logs: tuple[Path, ...]
    metrics: Path | None = None
    deployments: Path | None = None

    @classmethod
    def from_context(cls, context: Any) -> CaseFiles:
        """The files that a session's context names under ``logs``, ``metrics`` and ``deployments``.

        A path that is not absolute is meant relative to the swarm file; this example's lies beside this module.

        Raises:
            InvalidInput: it names no log.
        """
        known = as_object(context)
        logs: Any = known.get("logs") or ()
        names: Sequence[Any] = [logs] if isinstance(logs, str) else logs
        if not names:
            raise InvalidInput("The context names no logs: list their paths under `logs`.", field="context.logs")
        metrics, deployments = known.get("metrics"), known.get("deployments")
        return cls(
            logs=tuple(_resolved(str(name)) for name in names),
            metrics=None if metrics is None else _resolved(str(metrics)),
            deployments=None if deployments is None else _resolved(str(deployments)),
        )

    def context(self) -> dict[str, Any]:
        """The other way round: what a session's context says about the files."""
        return {
            "logs": [str(path) for path in self.logs],
            "metrics": None if self.metrics is None else str(self.metrics),
            "deployments": None if self.deployments is None else str(self.deployments),
        }

    def name(self, path: Path) -> str:
        """What the board calls the file: its name, with its folder where two files have the same."""
        every = [*self.logs, *(other for other in (self.metrics, self.deployments) if other is not None)]
        same = [other for other in every if other.name == path.name and other != path]
        return f"{path.parent.name}/{path.name}" if same else path.name


@dataclass(frozen=True)
class CheckedFile:
    """What a first look at a log has shown."""

    path: Path
    bytes: int
    format_name: str


def _resolved(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_absolute():
        return path
    beside = HERE / path
    return beside if beside.exists() else Path.cwd() / path


def check_files(logs: Sequence[Path], deployments: Path | None = None) -> tuple[CaseFiles, list[CheckedFile]]:
    """The case that these files make, each of which can be read and has lines with times.

    Raises:
        InvalidInput: a file is missing, unreadable, empty, not text, or in no format that is known; names it.
    """
    unique = list(dict.fromkeys(Path(path).expanduser().absolute() for path in logs))
    if not unique:
        raise InvalidInput("Name at least one log file.", field="logs")
    checked = [check_file(path, "logs") for path in unique]
    other = None if deployments is None else Path(deployments).expanduser().absolute()
    if other is not None:
        checked.append(check_file(other, "deployments"))
    return CaseFiles(tuple(unique), None, other), checked


def check_file(path: Path, field: str) -> CheckedFile:
    """The file can be read, is text, and its first lines have a format that is known.

    Raises:
        InvalidInput: it is not so; the message says what to do.
    """
    try:
        if not path.exists():
            raise InvalidInput(f"There is no file {path}; check the path.", field=field, path=str(path))
        if not path.is_file():
            raise InvalidInput(f"{path} is no regular file; name a log file.", field=field, path=str(path))
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_SNIFF)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}.", field=field, path=str(path)) from None
    if not head.strip():
        raise InvalidInput(f"{path} is empty; there is nothing to read in it.", field=field, path=str(path))
    packed = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if packed is not None:
        raise InvalidInput(f"{path} is compressed ({packed}); unpack it first.", field=field, path=str(path))
    if b"\x00" in head or _odd_share(head) > 0.1:
        raise InvalidInput(f"{path} is binary, not text; name a text log.", field=field, path=str(path))
    first = io.StringIO(head.decode("utf-8-sig", "replace")).readlines()[:TRIAL_LINES]
    reference = dt.datetime.fromtimestamp(path.stat().st_mtime, dt.UTC)
    found = detect_format([line.rstrip("\r\n") for line in first], reference)
    if found is None:
        example = next((line.strip()[:80] for line in first if line.strip()), "")
        raise InvalidInput(
            f"No line of {path} begins with a time in a format that is known (its first: {example!r}). Known are "
            "syslog, common and combined access logs, JSON lines, logfmt, PostgreSQL, and lines that begin with a "
            "time stamp.",
            field=field,
            path=str(path),
        )
    return CheckedFile(path, size, found.name)


def _odd_share(head: bytes) -> float:
    """The share of control characters other than white space and colour escapes."""
    odd = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head)
    return odd / len(head)
