"""The orders service: routes, the report cache, settings that change while it runs, and its metrics."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import json
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from .http import BadRequest, Request, Response, read_request, write_response
from .logs import configure
from .pool import Pool, PoolTimeout
from .queries import fetch_report, insert_order

__all__ = ["App", "Settings"]

LATENCY_SECONDS = 5.0
"""The latency quantiles are those of the requests that ended within so many seconds."""


@dataclass
class Settings:
    """What can be changed while the service runs, by ``PUT /settings?name=value``."""

    slow_query_ms: float = 100.0
    report_cache: bool = False


def resident_bytes() -> int:
    """This process's resident memory; its highest so far where the system does not tell."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    pages = int(statm.read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class App:
    """One running release."""

    def __init__(self, release: str, pool: Pool, settings: Settings) -> None:
        self.release = release
        self.pool = pool
        self.settings = settings
        self.log = configure()
        module = importlib.import_module(f".release_{release.replace('.', '_')}", __package__)
        self._get_order: Callable[[Pool, int], Awaitable[Response]] = module.get_order
        self._reports: dict[int, str] = {}
        self._latencies: deque[tuple[float, float]] = deque()
        self._numbers = itertools.count(1)
        self._requests = 0
        self._errors = 0

    async def serve(self, port: int, stopped: asyncio.Event) -> None:
        """Requests on the loopback ``port`` are answered until ``stopped`` is set."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", port)
        self.log.info("service started version=%s pool_max=%d", self.release, self.pool.max_size)
        async with server:
            while not stopped.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopped.wait(), 1.0)
                await self.pool.close_idle()
        await self.pool.close()
        self.log.info("service stopped version=%s requests=%d errors=%d", self.release, self._requests, self._errors)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await read_request(reader)
            if request.path == "/metrics":
                response = Response(200, self.metrics())
            elif request.path == "/settings" and request.method == "PUT":
                response = self.change_settings(request)
            else:
                response = await self.answer(request)
            write_response(writer, response)
            await writer.drain()
        except (BadRequest, ConnectionError):
            pass  # the client is gone or speaks something else: nobody to answer
        finally:
            writer.close()

    async def answer(self, request: Request) -> Response:
        """The answer to one request, which is logged and counted, also when it failed."""
        request_id = f"r{next(self._numbers):06d}"
        started = time.perf_counter()
        route = "/orders/N" if request.path.startswith("/orders/") else request.path
        try:
            response = await self._route(request)
        except PoolTimeout as error:
            self.log.error("pool timeout: %s id=%s route=%s", error, request_id, route)
            response = Response(503, {"error": "try again later"})
        except Exception:
            self.log.exception("unhandled exception id=%s route=%s", request_id, route)
            response = Response(500, {"error": "internal error"})
        elapsed_ms = (time.perf_counter() - started) * 1000
        self._requests += 1
        self._errors += response.status >= 500
        self._latencies.append((time.monotonic(), elapsed_ms))
        self.log.info(
            "request id=%s method=%s route=%s path=%s status=%d duration_ms=%.1f",
            request_id, request.method, route, request.path, response.status, elapsed_ms,
        )  # fmt: skip
        return response

    async def _route(self, request: Request) -> Response:
        match request.method, request.path.split("/")[1:]:
            case "POST", ["orders"]:
                return await self._create_order(request)
            case "GET", ["orders", number] if number.isdecimal():
                return await self._get_order(self.pool, int(number))
            case "GET", ["report"]:
                return await self._report(int(request.query.get("day", "1")))
            case _:
                return Response(404, {"error": "no such page"})

    async def _create_order(self, request: Request) -> Response:
        order = json.loads(request.body)
        connection = await self.pool.acquire()
        try:
            async with connection.transaction():
                order_id = await insert_order(connection, order["product_id"], order["quantity"])
        except asyncpg.IntegrityConstraintViolationError as error:
            self.log.warning("order refused: %s", error)
            return Response(422, {"error": str(error)})
        finally:
            self.pool.release(connection)
        return Response(201, {"id": order_id})

    async def _report(self, day: int) -> Response:
        if self.settings.report_cache and day in self._reports:
            return Response(200, self._reports[day])
        connection = await self.pool.acquire()
        started = time.perf_counter()
        try:
            rows = await fetch_report(connection, day)
        finally:
            self.pool.release(connection)
        elapsed_ms = (time.perf_counter() - started) * 1000
        if elapsed_ms > self.settings.slow_query_ms:
            self.log.warning("slow query name=report day=%d duration_ms=%.1f", day, elapsed_ms)
        text = json.dumps(rows)
        if self.settings.report_cache:
            self._reports[day] = text
        return Response(200, text)

    def change_settings(self, request: Request) -> Response:
        """The settings named in the query have their new values, and the log says so."""
        for name, value in request.query.items():
            if name == "slow_query_ms":
                self.settings.slow_query_ms = float(value)
            elif name == "report_cache":
                self.settings.report_cache = value == "on"
            else:
                return Response(400, {"error": f"no setting {name}"})
            self.log.info("setting changed name=%s value=%s", name, value)
        return Response(200, {})

    def metrics(self) -> str:
        """The service's counters and gauges, one ``name value`` a line."""
        now = time.monotonic()
        while self._latencies and self._latencies[0][0] < now - LATENCY_SECONDS:
            self._latencies.popleft()
        ordered = sorted(value for _, value in self._latencies)
        values: dict[str, float] = {
            "requests_total": self._requests,
            "errors_total": self._errors,
            "pool_in_use": self.pool.in_use,
            "pool_open": self.pool.size,
            "pool_max": self.pool.max_size,
            "pool_waiting": self.pool.waiting,
            "rss_bytes": resident_bytes(),
            "report_cache_entries": len(self._reports),
        }
        if ordered:
            values["p50_ms"] = round(ordered[len(ordered) // 2], 1)
            values["p95_ms"] = round(ordered[int(len(ordered) * 0.95)], 1)
        return "".join(f"{name} {value}\n" for name, value in values.items())
