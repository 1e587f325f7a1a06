"""The service's log: one plain line an event, UTC time, level, then words and ``key=value`` pairs."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType

__all__ = ["configure"]

ROOT = Path(__file__).resolve().parents[1]


def short(filename: str) -> str:
    """A source file's name without the machine's directories."""
    path = Path(filename)
    if path.is_relative_to(ROOT):
        return str(path.relative_to(ROOT))
    parts = path.parts
    for marker in ("site-packages", f"python{sys.version_info.major}.{sys.version_info.minor}"):
        if marker in parts:
            return "/".join(parts[parts.index(marker) + 1 :])
    return path.name if path.is_absolute() else filename


class Formatter(logging.Formatter):
    """UTC with milliseconds and a Z; tracebacks name files relative to the service."""

    converter = time.gmtime
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def formatException(  # noqa: N802 - logging's name
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        """The traceback as Python prints it, with short file names."""
        if ei[0] is None:
            return ""
        report = traceback.TracebackException(ei[0], ei[1], ei[2])
        for frame in report.stack:
            frame.filename = short(frame.filename)
        return "".join(report.format()).rstrip("\n")


def configure() -> logging.Logger:
    """The service's logger, which writes to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("orders")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return logger
