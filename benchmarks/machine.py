"""What the machine did meanwhile: CPU time by process from /proc, and how busy it was with other things."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

_TICK = os.sysconf("SC_CLK_TCK")


def _stat(pid: int | str) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rsplit(")", 1)[1].split()


def children(pid: int) -> list[int]:
    """Every process below ``pid``, as of now."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(entry.name)) is not None:
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    todo = [pid]
    while todo:
        below = parents.get(todo.pop(), [])
        found += below
        todo += below
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and all below it, those included that ended and were waited for."""
    total = 0
    for one in (pid, *children(pid)):
        fields = _stat(one)
        if fields is not None:
            # The kernel adds the time of a child to the fields of its parent when it is waited for.
            total += sum(int(field) for field in fields[11:15])
    return total / _TICK


def busy_seconds() -> float:
    """CPU time of the whole machine, that of others included."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:8]]
    return (sum(fields) - fields[3] - fields[4]) / _TICK


@dataclass
class Clock:
    """CPU and wall time between two moments.

    Attributes:
        seconds: wall time.
        server: CPU seconds of PostgreSQL.
        client: CPU seconds of the contestant's processes.
        others: CPU seconds of everything else on the machine.
    """

    postmaster: int
    clients: list[int]
    seconds: float = 0.0
    server: float = 0.0
    client: float = 0.0
    others: float = 0.0

    def __enter__(self) -> Clock:
        self._before = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        wall, server, client, busy = (after - before for after, before in zip(self._now(), self._before, strict=True))
        self.seconds, self.server, self.client = wall, server, client
        self.others = max(0.0, busy - server - client)

    def _now(self) -> tuple[float, float, float, float]:
        return (
            monotonic(),
            cpu_seconds(self.postmaster),
            sum(cpu_seconds(pid) for pid in self.clients),
            busy_seconds(),
        )


def describe() -> dict[str, Any]:
    """The machine, for the record."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1024 // 1024
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": memory,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": [round(load, 2) for load in os.getloadavg()],
    }
