"""Runs a program of any kind for a task: what it is told, and what is made of its output."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..models.tasks import TaskRecord
from . import leash

__all__ = ["CommandFailed", "fill_in", "mcp_config", "parse_result", "run_command", "token_of", "write_private"]

_MAX_OUTPUT = 4 * 1024 * 1024
_TAIL = 4000
_TERMINATE_SECONDS = 2.0
_DRAIN_SECONDS = 1.0


class CommandFailed(Exception):
    """The program ended with another exit code than 0, or could not be started."""


def token_of(task: TaskRecord) -> str:
    """The fencing token of a claimed task as one opaque text, as the MCP server takes it."""
    return "" if task.claim_id is None else f"{task.attempt}.{task.claim_id.hex}"


def mcp_config(variables: Mapping[str, str]) -> dict[str, Any]:
    """The configuration that gives an MCP client the board's tools, as this agent."""
    return {"mcpServers": {"agent-swarm": {"command": "mcp-agent-swarm", "env": dict(variables)}}}


def write_private(path: Path, value: Any) -> Path:
    """The file holds ``value`` as JSON, and only this user can read it."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False)
    return path


def fill_in(words: tuple[str, ...], values: Mapping[str, str]) -> list[str]:
    """The words with ``{name}`` replaced for every known name; other braces stay as they are."""
    filled: list[str] = []
    for word in words:
        parts = word.split("{")
        text = parts[0]
        for part in parts[1:]:
            name, closed, rest = part.partition("}")
            text += values[name] + rest if closed and name in values else "{" + part
        filled.append(text)
    return filled


def parse_result(output: str) -> Any:
    """The output as JSON if it is JSON, else its last line if that is, else the text; None when there is none."""
    text = output.strip()
    if not text:
        return None
    for candidate in (text, text.splitlines()[-1]):
        with contextlib.suppress(ValueError):
            return json.loads(candidate, parse_constant=_refuse)
    return text


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


async def run_command(words: list[str], environment: Mapping[str, str]) -> Any:
    """What the program printed, as ``parse_result`` reads it. It is stopped when this is cancelled.

    Raises:
        CommandFailed: its exit code was not 0; carries the end of what it wrote to standard error.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), *words,
        env=dict(environment),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    output: deque[bytes] = deque()
    errors: deque[bytes] = deque()
    readers = [
        asyncio.create_task(_tee(process.stdout, sys.stdout.buffer, output, _MAX_OUTPUT)),
        asyncio.create_task(_tee(process.stderr, sys.stderr.buffer, errors, _TAIL)),
    ]
    try:
        code = await process.wait()
        # A grandchild in the background may keep the pipes open for ever.
        await asyncio.wait(readers, timeout=_DRAIN_SECONDS)
    finally:
        for reader in readers:
            reader.cancel()
        if process.returncode is None:
            await _stop(process)
    if code:
        said = b"".join(errors)[-_TAIL:].decode("utf-8", "replace").strip()
        ended = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise CommandFailed(f"{words[0]} ended with {ended}" + (f": {said}" if said else "; it wrote no error"))
    return parse_result(b"".join(output).decode("utf-8", "replace").replace("\0", ""))


async def _tee(source: asyncio.StreamReader, log: BinaryIO, kept: deque[bytes], limit: int) -> None:
    size = 0
    while chunk := await source.read(65_536):
        log.write(chunk)
        log.flush()
        kept.append(chunk)
        size += len(chunk)
        while size - len(kept[0]) > limit:
            size -= len(kept.popleft())


async def _stop(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_TERMINATE_SECONDS):
            await process.wait()
    except TimeoutError:
        _kill(process)
        await process.wait()
    except asyncio.CancelledError:
        _kill(process)
        raise


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
