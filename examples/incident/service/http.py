"""Just enough HTTP/1.1 on asyncio streams: one request a connection, JSON bodies."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

__all__ = ["BadRequest", "Request", "Response", "read_request", "send", "write_response"]

MAX_BODY = 64 * 1024
REASONS = {200: "OK", 201: "Created", 400: "Bad Request", 404: "Not Found", 422: "Unprocessable Content"}


class BadRequest(Exception):
    """What came in is not a request that this service reads."""


@dataclass(frozen=True)
class Request:
    """One request, as it came in."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""


@dataclass(frozen=True)
class Response:
    """One answer; ``body`` is JSON, or text that is sent as it is."""

    status: int
    body: Any


async def read_request(reader: asyncio.StreamReader) -> Request:
    """The request on this connection.

    Raises:
        BadRequest: it is not HTTP, or too large.
    """
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        start, *header_lines = head.split("\r\n")
        method, target, _ = start.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in header_lines)}
        length = int(headers.get("content-length", "0"))
        if length > MAX_BODY:
            raise BadRequest("body too large")
        body = await reader.readexactly(length)
    except (ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise BadRequest(str(error)) from error
    url = urlsplit(target)
    return Request(method, url.path, dict(parse_qsl(url.query)), body)


def write_response(writer: asyncio.StreamWriter, response: Response) -> None:
    """The answer is on its way; the caller closes the connection."""
    text = response.body if isinstance(response.body, str) else json.dumps(response.body)
    body = text.encode()
    kind = "text/plain" if isinstance(response.body, str) else "application/json"
    head = (
        f"HTTP/1.1 {response.status} {REASONS.get(response.status, 'Error')}\r\n"
        f"content-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    writer.write(head.encode("latin-1") + body)


async def send(port: int, method: str, target: str, body: bytes = b"") -> tuple[int, bytes]:
    """Status and body of one request to the service on this machine's ``port``.

    Raises:
        OSError: nothing listens there.
        asyncio.IncompleteReadError: the service went away before it answered.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(
            f"{method} {target} HTTP/1.1\r\nhost: orders\r\ncontent-length: {len(body)}\r\n\r\n".encode("latin-1")
            + body
        )
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1]), await reader.read()
    finally:
        writer.close()
