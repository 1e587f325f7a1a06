"""Handlers for workers in processes of their own, and ``python worker_app.py URL SESSION`` to run one."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading

from blackboard import Blackboard, BlockingTaskContext, Handlers, TaskContext, Worker

handlers = Handlers()


def say(text: str) -> None:
    """One line that the test reads, at once."""
    print(text, flush=True)


@handlers.handler("echo")
async def echo(ctx: TaskContext) -> object:
    return ctx.parameters


@handlers.handler("gate")
async def gate(ctx: TaskContext) -> str:
    """Ends when a task of type ``open`` was completed, or when cancelled."""
    say(f"started {ctx.task.id}")
    try:
        while not await ctx.session.tasks.list(type="key"):
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        say(f"cancelled {ctx.reason}")
        raise
    return "passed"


@handlers.handler("deaf")
def deaf(ctx: BlockingTaskContext) -> None:
    """A thread that never looks whether it is to stop."""
    say(f"started {ctx.task.id}")
    threading.Event().wait()


@handlers.handler("pay")
async def pay(ctx: TaskContext) -> None:
    """Writes a row of its own with the completion; dies before the commit the first time."""
    async with ctx.transaction() as tx:
        await tx.connection.execute("INSERT INTO ledger VALUES ($1, $2)", ctx.task.id, ctx.task.attempt)
        await tx.complete({"attempt": ctx.task.attempt})
        if ctx.task.attempt == 1 and ctx.parameters.get("die") == "before":
            os.kill(os.getpid(), signal.SIGKILL)
    if ctx.task.attempt == 1 and ctx.parameters.get("die") == "after":
        os.kill(os.getpid(), signal.SIGKILL)


def make(board: Blackboard) -> Worker:
    """A factory, as the command line takes one."""
    return Worker(board, os.environ["WORKER_SESSION"], agent_id="w/made", handlers=handlers)


async def main(url: str, session: str, concurrency: str = "2") -> None:
    """Runs until a signal."""
    async with Blackboard.open(url) as board:
        worker = Worker(board, session, agent_id="w/process", concurrency=int(concurrency), handlers=handlers)
        say("ready")
        say(f"ended {await worker.run()}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main(*sys.argv[1:]))
