"""Functions and small programs that the swarms of the tests run; their processes import this file by name."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from uuid import UUID

if os.environ.get("CRASH_AT_IMPORT"):
    os._exit(3)


async def report(agent: Any, focus: str, *, inputs: Any, missing: Any) -> dict[str, Any]:
    """Says what it was given."""
    if not inputs and not missing:
        await agent.findings.report(f"{focus} is done", type="note", confidence=0.9)
    return {"by": agent.id, "focus": focus, "inputs": inputs, "missing": missing}


def blocking(agent: Any, session: Any, focus: str, queries: Any) -> dict[str, Any]:
    """The same with the blocking twin."""
    agent.findings.report(f"{focus} is done", type="note", confidence=0.5)
    threads: list[int] = []
    answer = queries.run("here", "what", lambda: threads.append(threading.get_ident()) or 42)
    return {
        "by": agent.id,
        "type": type(agent).__module__,
        "answer": answer,
        "same_thread": threads in ([], [threading.get_ident()]),
        "findings": len(session.findings.list()),
    }


async def hang_once(agent: Any, task: Any) -> dict[str, Any]:
    """Hangs in the first attempt, after it has shown who it is."""
    if task.attempt == 1:
        await agent.tasks.progress(task, {"pid": os.getpid()})
        await asyncio.Event().wait()
    return {"by": agent.id, "attempt": task.attempt}


async def hang(agent: Any, task: Any) -> None:
    """Never ends, unless it is stopped."""
    await agent.tasks.progress(task, {"pid": os.getpid()})
    await asyncio.Event().wait()


def hang_in_thread(agent: Any, task: Any) -> None:
    """Never ends, whoever asks it to."""
    agent.tasks.progress(task, {"pid": os.getpid()})
    threading.Event().wait()


def until_cancelled(agent: Any, task: Any, cancelled: threading.Event) -> None:
    """Ends when it is asked to."""
    agent.tasks.progress(task, {"pid": os.getpid()})
    cancelled.wait()


async def stuck_loop(agent: Any, task: Any) -> None:
    """Blocks its event loop."""
    await agent.tasks.progress(task, {"pid": os.getpid()})
    time.sleep(600)


async def fail(focus: str) -> None:
    """Fails."""
    raise LookupError(f"nothing about {focus}")


async def unstorable() -> Any:
    """Returns what is no JSON value."""
    return {"number": float("nan")}


async def ask(agent: Any, queries: Any) -> dict[str, Any]:
    """Asks what all ask; each execution leaves a line."""
    path = Path(os.environ["QUERY_LOG"])

    async def execute() -> str:
        with path.open("a") as file:
            file.write(f"{agent.id}\n")
        # Long enough for all others to have asked: they wait for this answer, as the board shows.
        while len(await agent.session.findings.list()) < int(os.environ["QUERY_ASKERS"]):
            await asyncio.sleep(0.01)
        return agent.id

    await agent.findings.report(f"{agent.id} asks", type="note")
    return {"answer": await queries.run(" Prometheus", "rate(errors[5m])  ", execute)}


async def see(agent: Any, session: Any, focus: str) -> dict[str, Any]:
    """Reports, waits until the other has too, and says what it sees."""
    await agent.findings.report(f"{agent.id} was here", type="note")
    while len((await session.board()).findings) < 2:
        await asyncio.sleep(0.01)
    return {"mine": [f.agent_id for f in await agent.findings.list()], "all": len(await session.findings.list())}


async def stage(focus: str, inputs: dict[str, Any], agent: Any) -> dict[str, Any]:
    """Passes on what it got; leaves a line where STAGE_LOG says."""
    if path := os.environ.get("STAGE_LOG"):
        with Path(path).open("a") as file:
            file.write(f"{focus}\n")
    return {"focus": focus, "inputs": inputs, "by": agent.id}


async def stage_or_hang(focus: str, inputs: dict[str, Any], agent: Any, task: Any) -> dict[str, Any]:
    """Like ``stage``, but hangs while the file that HANG_WHILE names is there."""
    if Path(os.environ["HANG_WHILE"]).exists() and "second" in focus:
        await agent.tasks.progress(task, {"pid": os.getpid()})
        await asyncio.Event().wait()
    return await stage(focus, inputs, agent)


# ---------------------------------------------------------------------------------------------------- programs


def show() -> None:
    """Prints what a program is told."""
    config = Path(os.environ["SWARM_MCP_CONFIG"])
    assignment = Path(os.environ["SWARM_ASSIGNMENT"])
    sys.stderr.write("a line for the log\n")
    print("some words before the result")
    print(
        json.dumps(
            {
                "arguments": sys.argv[2:],
                "environment": {k: v for k, v in os.environ.items() if k.startswith(("SWARM_", "AGENT_", "BLACKB"))},
                "config": json.loads(config.read_text()),
                "config_mode": oct(config.stat().st_mode & 0o777),
                "config_path": str(config),
                "assignment": json.loads(assignment.read_text()),
                "extra": os.environ.get("EXTRA"),
                "mcp_found": subprocess.run(
                    ["sh", "-c", "command -v mcp-agent-swarm"], check=False, capture_output=True
                ).returncode
                == 0,
            }
        )
    )


def complete_itself() -> None:
    """Completes its task by itself, as a program with the MCP tools does."""
    from blackboard import Blackboard

    async def main() -> None:
        async with Blackboard.open(os.environ["BLACKBOARD_URL"]) as board:
            session = await board.session(UUID(os.environ["SWARM_SESSION"]))
            agent = await session.join(os.environ["AGENT_ID"])
            task = await agent.tasks.get(os.environ["SWARM_TASK_ID"])
            attempt, _, claim = os.environ["SWARM_TASK_TOKEN"].partition(".")
            assert (task.attempt, task.claim_id) == (int(attempt), UUID(claim))
            await agent.tasks.complete(task, {"by": "itself"})

    asyncio.run(main())
    print("this is not the result")


def sleeper() -> None:
    """Starts a child, says both process ids on the board's log, and waits."""
    child = subprocess.Popen(["sleep", "600"])
    Path(os.environ["PIDS"]).write_text(f"{os.getpid()} {child.pid}\n")
    child.wait()


def exit_badly() -> None:
    """Ends with an error."""
    sys.stderr.write("the disk is full\n")
    raise SystemExit(7)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
