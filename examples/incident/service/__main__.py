"""``python -m blackboard_examples.incident.service --release 1.2.2 --port 8080 --database-url URL``."""

from __future__ import annotations

import argparse
import asyncio
import signal

from .app import App, Settings
from .pool import Pool


async def run(arguments: argparse.Namespace) -> None:
    """The service has answered requests until it was told to stop (SIGTERM or SIGINT)."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    pool = Pool({"dsn": arguments.database_url}, max_size=arguments.pool_max, acquire_seconds=1.0)
    settings = Settings(slow_query_ms=arguments.slow_query_ms, report_cache=arguments.report_cache == "on")
    await App(arguments.release, pool, settings).serve(arguments.port, stopped)


def main() -> None:
    """The command line is read and the service runs."""
    parser = argparse.ArgumentParser(prog="orders", description=__doc__)
    parser.add_argument("--release", required=True, choices=["1.2.2", "1.2.3"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--database-url", required=True)
    parser.add_argument("--pool-max", type=int, default=10)
    parser.add_argument("--slow-query-ms", type=float, default=100.0)
    parser.add_argument("--report-cache", choices=["on", "off"], default="off")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
