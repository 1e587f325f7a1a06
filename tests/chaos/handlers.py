"""What the storm's workers do: ``blackboard worker chaos.handlers:make``, set up by its environment.

Every attempt is noted when it starts (``chaos.started``). Most tasks write one row (``chaos.ledger``) in the
transaction that completes them, and a line in a file when the commit was answered.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg

from blackboard import Blackboard, BlockingTaskContext, Handlers, RetryLater, RetryPolicy, TaskContext, Worker
from blackboard.errors import TransientError, Unavailable
from blackboard.ids import new_id

__all__ = ["IN_TRANSACTION", "MEANT_TO_DIE", "TABLES", "handlers", "make"]

TABLES = """
CREATE SCHEMA chaos;
-- No keys: what should be there once is counted.
CREATE TABLE chaos.ledger (task_id uuid NOT NULL, attempt integer NOT NULL, worker text NOT NULL, pid integer NOT NULL,
                           at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE chaos.started (id uuid PRIMARY KEY, task_id uuid NOT NULL, attempt integer NOT NULL, lease_id uuid NOT NULL,
                            worker text NOT NULL, pid integer NOT NULL,
                            at timestamptz NOT NULL DEFAULT clock_timestamp());
"""
IN_TRANSACTION = frozenset(
    {"pay", "pay_slowly", "pay_blocking", "pay_later", "pay_third", "pay_overrun", "pay_and_die"}
)
"""Types of tasks that complete in a transaction, with a row in the ledger."""
MEANT_TO_DIE = frozenset({"doom"})
"""Types of tasks that end dead."""

CUT = (Unavailable, TransientError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)
"""What a cut connection may look like to a handler."""

_PATIENCE = 5.0
"""Seconds for a statement of the handler's own: a connection may be dead and nobody say so."""

_START = "INSERT INTO chaos.started VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING"
_ENTRY = "INSERT INTO chaos.ledger VALUES ($1, $2, $3, $4)"
_AGAIN = RetryPolicy(max_attempts=1000, delay=timedelta(milliseconds=100), factor=1)

handlers = Handlers()


def _entry(ctx: TaskContext | BlockingTaskContext) -> tuple[Any, ...]:
    return ctx.task.id, ctx.task.attempt, ctx.task.assigned_to, os.getpid()


def _answered(ctx: TaskContext | BlockingTaskContext) -> None:
    """The commit was answered: from here on it must not be lost. One write, so that no line is half there."""
    line = json.dumps({"task_id": str(ctx.task.id), "attempt": ctx.task.attempt, "pid": os.getpid()})
    file = os.open(Path(os.environ["CHAOS_HOME"]) / "answered.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, f"{line}\n".encode())
    finally:
        os.close(file)


async def _started(ctx: TaskContext) -> None:
    """The attempt is noted, once, however long that takes."""
    row = (new_id(), ctx.task.id, ctx.task.attempt, ctx.task.lease_id, ctx.task.assigned_to, os.getpid())
    while True:
        try:
            async with ctx.transaction() as tx:
                await tx.connection.execute(_START, *row, timeout=_PATIENCE)
        except CUT:
            await asyncio.sleep(0.05)
        else:
            return


async def _pay(ctx: TaskContext, *, held: float = 0.0, die: str = "") -> None:
    async with ctx.transaction() as tx:
        await tx.connection.execute(_ENTRY, *_entry(ctx), timeout=_PATIENCE)
        await asyncio.sleep(held)
        await tx.complete({"attempt": ctx.task.attempt})
        if die == "before":
            os.kill(os.getpid(), signal.SIGKILL)
    if die == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    _answered(ctx)


@handlers.handler("pay", retry=_AGAIN)
async def pay(ctx: TaskContext) -> None:
    """The plain case."""
    await _started(ctx)
    await _pay(ctx)


@handlers.handler("pay_slowly", retry=_AGAIN)
async def pay_slowly(ctx: TaskContext) -> None:
    """Long enough to be hit, before its transaction and in it."""
    await _started(ctx)
    await asyncio.sleep(ctx.parameters["before"])
    await _pay(ctx, held=ctx.parameters["held"])


@handlers.handler("pay_blocking", retry=_AGAIN)
def pay_blocking(ctx: BlockingTaskContext) -> None:
    """The same in a thread."""
    row = (new_id(), ctx.task.id, ctx.task.attempt, ctx.task.lease_id, ctx.task.assigned_to, os.getpid())
    while True:
        try:
            with ctx.transaction() as tx:
                tx.connection.execute(_START, *row, timeout=_PATIENCE)
        except CUT:
            ctx.raise_if_cancelled()
            time.sleep(0.05)
        else:
            break
    time.sleep(ctx.parameters["before"])
    with ctx.transaction() as tx:
        tx.connection.execute(_ENTRY, *_entry(ctx), timeout=_PATIENCE)
        tx.complete({"attempt": ctx.task.attempt})
    _answered(ctx)


@handlers.handler("pay_later", retry=_AGAIN)
async def pay_later(ctx: TaskContext) -> None:
    """Not the first time."""
    await _started(ctx)
    if ctx.task.attempt == 1:
        raise RetryLater(0.1, "not yet")
    await _pay(ctx)


@handlers.handler("pay_third", retry=_AGAIN)
async def pay_third(ctx: TaskContext) -> None:
    """Fails twice; the second time after an entry that must not stay."""
    await _started(ctx)
    if ctx.task.attempt == 1:
        raise ValueError("the first time")
    async with ctx.transaction() as tx:
        await tx.connection.execute(_ENTRY, *_entry(ctx), timeout=_PATIENCE)
        if ctx.task.attempt == 2:
            raise ValueError("the second time")
        await tx.complete({"attempt": ctx.task.attempt})
    _answered(ctx)


@handlers.handler("pay_overrun")
async def pay_overrun(ctx: TaskContext) -> None:
    """Runs longer than it may, the first time."""
    await _started(ctx)
    await _pay(ctx, held=60.0 if ctx.task.attempt == 1 else 0.0)


@handlers.handler("pay_and_die", retry=_AGAIN)
async def pay_and_die(ctx: TaskContext) -> None:
    """Kills its own process, the first time."""
    await _started(ctx)
    await _pay(ctx, die=ctx.parameters["die"] if ctx.task.attempt == 1 else "")


@handlers.handler("plain", retry=_AGAIN)
async def plain(ctx: TaskContext) -> object:
    """No transaction: its completion is written beside it, with others, those of other sessions among them."""
    await _started(ctx)
    await asyncio.sleep(ctx.parameters.get("before", 0.0))
    return {"attempt": ctx.task.attempt}


@handlers.handler("doom", retry=RetryPolicy(max_attempts=2, delay=timedelta(milliseconds=50)))
async def doom(ctx: TaskContext) -> None:
    """Never succeeds."""
    await _started(ctx)
    raise ValueError("as always")


@handlers.handler("here", retry=_AGAIN)
async def here(ctx: TaskContext) -> object:
    """Says that its worker is there, and who that is."""
    return os.getpid()


def make(board: Blackboard) -> Worker:
    """The worker that the environment asks for."""
    return Worker(
        board,
        os.environ["CHAOS_SESSIONS"].split(","),
        agent_id=os.environ["CHAOS_AGENT"],
        capabilities=["storm"],
        concurrency=int(os.environ["CHAOS_CONCURRENCY"]),
        handlers=handlers,
        grace=timedelta(seconds=5),
        poll_interval=timedelta(seconds=0.3),
    )
