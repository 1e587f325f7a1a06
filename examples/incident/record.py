"""``python -m blackboard_examples.incident.record OUTDIR``: INC-1234 happens again, and is recorded.

A private PostgreSQL is started, release 1.2.2 of the orders service runs under load, two settings are changed and
release 1.2.3 is deployed at the moments of :class:`Timeline`. Nothing is written that did not happen: the logs are
the processes' own, the deployments log gets its line when the change has been made, and the metrics are what the
service said each second. Only directories of this machine are cut out of PostgreSQL's log.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import datetime as dt
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from blackboard.store.temporary import temporary_server

from .load import Load
from .service.http import send
from .service.queries import SCHEMA

__all__ = ["Timeline", "record"]

COLUMNS = [
    "at", "up", "requests", "errors", "p50_ms", "p95_ms",
    "pool_in_use", "pool_open", "pool_max", "pool_waiting", "rss_bytes", "report_cache_entries",
]  # fmt: skip
LOG_SETTINGS = {
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "log_connections": "on",
    "log_disconnections": "on",
    "log_error_verbosity": "default",
    "log_min_error_statement": "error",
    "log_min_duration_statement": "100ms",
    "log_lock_waits": "on",
    "log_temp_files": "0",
    "log_checkpoints": "on",
    "checkpoint_timeout": "90s",
}
"""What PostgreSQL logs is what Debian's and most hosters' configuration makes it log, and its checkpoints are short."""


@dataclass(frozen=True)
class Timeline:
    """Seconds after the start at which things are done, and the load."""

    slow_query_at: float = 50.0
    deploy_at: float = 110.0
    report_cache_at: float = 140.0
    end_at: float = 330.0
    requests_per_second: float = 6.0
    missing_share: float = 0.025
    """Share of requests that ask for an order that does not exist: each takes one connection from release 1.2.3."""
    seed: int = 1234


@dataclass
class Recorder:
    """What runs while the incident is recorded."""

    directory: Path
    database_url: str
    port: int
    settings: dict[str, str] = field(default_factory=lambda: {"slow_query_ms": "100", "report_cache": "off"})
    release: str = ""
    process: subprocess.Popen[bytes] | None = None

    def note(self, text: str) -> None:
        """The deployments log has one more line, with this moment's time."""
        at = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        with (self.directory / "deployments.log").open("a", encoding="utf-8") as file:
            file.write(f"{at} INFO {text}\n")

    async def deploy(self, release: str, change: str) -> None:
        """The old release is stopped, the new one answers.

        Raises:
            TimeoutError: it did not answer within ten seconds.
        """
        self.stop()
        with (self.directory / "service.log").open("ab") as log:
            command = [sys.executable, "-m", f"{__package__}.service", "--release", release, "--port", str(self.port)]
            command += ["--database-url", self.database_url, "--slow-query-ms", self.settings["slow_query_ms"]]
            command += ["--report-cache", self.settings["report_cache"]]
            self.process = subprocess.Popen(command, stderr=log)  # noqa: ASYNC220 - returns within milliseconds
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    await send(self.port, "GET", "/metrics")
                    break
                await asyncio.sleep(0.05)
        previous = f" previous={self.release}" if self.release else ""
        self.note(f'deploy service=orders version={release}{previous} change="{change}"')
        self.release = release

    async def change_setting(self, name: str, value: str) -> None:
        """The running service has this setting."""
        await send(self.port, "PUT", f"/settings?{name}={value}")
        self.note(f"setting service=orders name={name} value={value} previous={self.settings[name]}")
        self.settings[name] = value

    def stop(self) -> None:
        """No release runs."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=10)
            self.process = None

    async def sample(self) -> None:
        """``metrics.csv`` gets one line a second, until this is cancelled; counters as what the second added."""
        last = {"requests_total": 0.0, "errors_total": 0.0}
        with (self.directory / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            next_at = time.monotonic()
            while True:
                at = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
                row: dict[str, str] = {"at": at, "up": "0"}
                try:
                    _, body = await send(self.port, "GET", "/metrics")
                except (OSError, asyncio.IncompleteReadError):
                    last = {"requests_total": 0.0, "errors_total": 0.0}
                else:
                    row |= dict(line.split(" ", 1) for line in body.decode().splitlines())
                    now = {name: float(row[name]) for name in last}
                    if now["requests_total"] < last["requests_total"]:  # another process counts from zero
                        last = {"requests_total": 0.0, "errors_total": 0.0}
                    row["up"] = "1"
                    row["requests"] = f"{now['requests_total'] - last['requests_total']:.0f}"
                    row["errors"] = f"{now['errors_total'] - last['errors_total']:.0f}"
                    last = now
                writer.writerow(row)
                file.flush()
                next_at += 1.0
                await asyncio.sleep(max(0.0, next_at - time.monotonic()))


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def background(coroutine: Coroutine[Any, Any, None]) -> AsyncGenerator[None]:
    """The coroutine runs inside the block."""
    task = asyncio.ensure_future(coroutine)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(started: float, seconds: float) -> None:
    """It is ``seconds`` after ``started``."""
    await asyncio.sleep(max(0.0, started + seconds - time.monotonic()))


async def play(recorder: Recorder, timeline: Timeline) -> None:
    """The incident has happened, from the first release to the end of the recording."""
    await recorder.deploy("1.2.2", "GET /report counts sales per product")
    load = Load(recorder.port, timeline.requests_per_second, timeline.missing_share, timeline.seed)
    started = time.monotonic()
    load.start()
    try:
        async with background(recorder.sample()):
            await until(started, timeline.slow_query_at)
            await recorder.change_setting("slow_query_ms", "15")
            await until(started, timeline.deploy_at)
            await recorder.deploy("1.2.3", "GET /orders/N returns the order's history")
            await until(started, timeline.report_cache_at)
            await recorder.change_setting("report_cache", "on")
            await until(started, timeline.end_at)
    finally:
        await load.stop()
        recorder.stop()


async def prepare(server_url: str, database_url: str) -> None:
    """The service has its role, its database and its tables, and the tables are filled."""
    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute("CREATE ROLE orders LOGIN")
        await connection.execute("CREATE DATABASE orders OWNER orders")
    finally:
        await connection.close()
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(SCHEMA)
    finally:
        await connection.close()


def record(directory: Path, timeline: Timeline) -> None:
    """``directory`` holds a recording of an incident that just happened.

    Raises:
        FileExistsError: a recording is there already.
        EmbeddedServerError: PostgreSQL did not start.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("service.log", "postgresql.log", "metrics.csv", "deployments.log"):
        if (directory / name).exists():
            raise FileExistsError(f"{directory / name} exists: choose an empty directory")
    with temporary_server(durable=True, settings=LOG_SETTINGS) as server:
        info = server.status()
        database_url = server.url("orders").replace("//postgres@", "//orders@", 1)
        asyncio.run(prepare(info.url, database_url))
        skipped = len(info.log_path.read_bytes())  # the making of the tables is no part of the incident
        asyncio.run(play(Recorder(directory, database_url, free_port()), timeline))
        log = info.log_path.read_bytes()[skipped:].decode()
    machine_path = re.compile(rf"{re.escape(str(info.data_dir))}[^\s\"'():]*")
    (directory / "postgresql.log").write_text(machine_path.sub("<path>", log), encoding="utf-8")


def main() -> None:
    """The command line is read and the incident recorded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("outdir", type=Path)
    parser.add_argument("--scale", type=float, default=1.0, help="stretch the time line by this factor")
    parser.add_argument("--requests-per-second", type=float, default=Timeline.requests_per_second)
    arguments = parser.parse_args()
    os.environ["TZ"] = "UTC"
    time.tzset()
    usual = Timeline()
    timeline = Timeline(
        slow_query_at=usual.slow_query_at * arguments.scale,
        deploy_at=usual.deploy_at * arguments.scale,
        report_cache_at=usual.report_cache_at * arguments.scale,
        end_at=usual.end_at * arguments.scale,
        requests_per_second=arguments.requests_per_second,
    )
    record(arguments.outdir, timeline)
    size = sum(file.stat().st_size for file in arguments.outdir.iterdir())
    print(f"recorded {timeline.end_at:.0f} s in {arguments.outdir}: {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
