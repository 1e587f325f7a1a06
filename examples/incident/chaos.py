"""Kills one agent in the middle of its task, and not by luck: what it was doing is read from the board first."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from blackboard import Agent, Session, TaskRecord, TaskStatus

from .casework import INVESTIGATE
from .plain import as_object

__all__ = ["CHAOS_AGENT", "Kill", "kill_in_the_middle"]

CHAOS_AGENT = "demo/chaos"
PREFERRED = "security/incident-response-lead"


@dataclass(frozen=True)
class Kill:
    """What was killed, and what the board said at that moment, when the process already stood still."""

    agent_id: str
    pid: int
    task_id: UUID
    attempt: int
    step: str
    finding_id: UUID


async def kill_in_the_middle(session: Session, pids: Mapping[str, int], *, seconds: float = 60) -> Kill | None:
    """One agent that has begun its task and not ended it is dead; None when none was caught at it in time.

    The process is stopped (SIGSTOP), then the board is read: only when its task is running there, in its hands and
    unfinished, is it killed (SIGKILL); otherwise it goes on (SIGCONT).

    Args:
        session: where it works.
        pids: agent to process; grows while this waits.
        seconds: how long to wait for a chance.
    """
    # Joined as an observer: whoever kills must have no vote.
    chaos = await session.join(CHAOS_AGENT, role="observer")
    cursor = None
    ends = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < ends:
        page = await session.events.read(cursor, topics=["task.progressed"])
        cursor = page.cursor
        begun = await session.tasks.list(type=INVESTIGATE, status=TaskStatus.RUNNING)
        at_work = {task.assigned_to: task for task in begun if task.progress is not None}
        if at_work:
            # The preferred one if it has begun, or does so within a moment; else whoever is at it.
            if PREFERRED not in at_work:
                await session.events.wait(cursor, topics=["task.progressed"], timeout=timedelta(seconds=0.5))
                begun = await session.tasks.list(type=INVESTIGATE, status=TaskStatus.RUNNING)
                at_work = {task.assigned_to: task for task in begun if task.progress is not None}
            for agent_id in sorted(filter(None, at_work), key=lambda name: name != PREFERRED):
                pid = pids.get(agent_id)
                if pid is not None and (task := await _caught(session, at_work[agent_id], agent_id, pid)) is not None:
                    return await _kill(chaos, task, agent_id, pid)
        page = await session.events.wait(cursor, topics=["task.progressed"], timeout=timedelta(seconds=1))
        cursor = page.cursor
    return None


async def _caught(session: Session, task: TaskRecord, agent_id: str, pid: int) -> TaskRecord | None:
    try:
        os.kill(pid, signal.SIGSTOP)
    except ProcessLookupError:
        return None
    now = await session.tasks.get(task.id)
    if now.status is TaskStatus.RUNNING and now.assigned_to == agent_id and now.attempt == task.attempt:
        return now
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    return None


async def _kill(chaos: Agent, task: TaskRecord, agent_id: str, pid: int) -> Kill:
    step = str(as_object(task.progress).get("step") or "")
    os.kill(pid, signal.SIGKILL)
    finding = await chaos.findings.report(
        f"SIGKILL sent to {agent_id} (process {pid}) in the middle of its task, at “{step}”, attempt {task.attempt}",
        type="chaos",
        confidence=1.0,
        evidence=[
            {
                "source": "board",
                "query": f"task {task.id}, read while the process stood still",
                "result": f"status {task.status}, held by {agent_id}, attempt {task.attempt}, not finished",
            }
        ],
        provenance={
            "data": {
                "agent_id": agent_id,
                "pid": pid,
                "task_id": str(task.id),
                "attempt": task.attempt,
                "status": str(task.status),
                "step": step,
            }
        },
    )
    return Kill(agent_id, pid, task.id, task.attempt, step, finding.id)
