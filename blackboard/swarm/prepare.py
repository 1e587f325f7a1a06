"""Before a swarm runs: its session is open and its tasks are on the board."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..board import Agent, Blackboard, Session
from ..errors import AlreadyExists, BlackboardError, Conflict, LockNotAcquired, NotFound
from ..ids import BOARD_ID
from ..models.sessions import SessionStatus
from ..models.tasks import TaskStatus
from .outcome import Update, UpdateKind
from .plan import Earlier, Plan, earlier_tasks, make_plan
from .spec import AgentSpec, SwarmSpec

__all__ = ["RUNNER", "Prepared", "host_plan", "prepare"]

RUNNER = "swarm/runner"
"""Who the runner is on the board: a member that observes, and the actor of what it does."""
_LOCK = "swarm/runner"


@dataclass(frozen=True)
class Prepared:
    """What a run starts with.

    Attributes:
        runner: the runner as a member of the session. While it lives somebody looks after lapsed leases.
        cursor: where the events of this run begin; None for a new session.
        token: of the lock that keeps a second runner away.
    """

    session: Session
    runner: Agent
    plan: Plan
    cursor: str | None
    token: int

    async def release(self) -> None:
        """Another runner may take the session."""
        with contextlib.suppress(BlackboardError):
            await self.runner.locks.release(_LOCK, self.token)


async def prepare(
    board: Blackboard,
    spec: SwarmSpec,
    name: str,
    report: Callable[[Update], None],
    interrupted: asyncio.Event,
    *,
    resume: bool | None,
    from_stage: str | None,
) -> Prepared:
    """The session is open, this runner's, and holds the tasks of the swarm.

    Raises:
        AlreadyExists, ConfigurationError, NotFound: as ``run_swarm`` does.
        Conflict: another runner is at work in the session, or ``interrupted`` was set while waiting for it.
    """
    before = None
    with contextlib.suppress(NotFound):
        before = await board.session(name)
    is_open = before is not None and before.record.status in {SessionStatus.ACTIVE, SessionStatus.PAUSED}
    if resume is False and is_open:
        raise AlreadyExists(
            f"There is an open session {name!r}: resume it, close it, or give this one another name.",
            noun="session",
            id=name,
        )
    if resume and not is_open:
        raise NotFound(f"There is no open session {name!r} to resume.", noun="session", id=name)
    earlier = Earlier()
    if before is not None and from_stage is not None:
        earlier = await earlier_tasks(before)
    if from_stage is not None:  # what it needs must be there before anything is changed
        make_plan(spec, BOARD_ID, from_stage=from_stage, outputs=earlier.outputs)
    if before is not None and is_open:
        session, cursor = before, await before.events.now()
    else:
        given: Any = {} if spec.context is None else spec.context
        context = cast("dict[str, Any]", given if isinstance(given, dict) else {"context": given})
        session, cursor = await board.start(name, goal=spec.task, context={"task": spec.task, **context}), None
    report(Update.now(UpdateKind.SESSION, f"session {session.name} {session.id}", session_id=session.id))
    runner = await session.join(RUNNER, role="observer")
    token = await _lock(runner, spec, report, interrupted)
    prepared = Prepared(session, runner, Plan(()), cursor, token)
    try:
        if is_open:
            earlier = await earlier_tasks(session)
            if session.record.status is SessionStatus.PAUSED:
                await session.resume()
        else:
            earlier = Earlier(outputs=earlier.outputs)
        plan = await _add_tasks(spec, runner, earlier, from_stage)
    except BaseException:
        await prepared.release()
        raise
    return Prepared(session, runner, plan, cursor, token)


async def _lock(runner: Agent, spec: SwarmSpec, report: Callable[[Update], None], interrupted: asyncio.Event) -> int:
    grant = await runner.locks.try_acquire(_LOCK)
    if grant is None:
        # A runner that was killed holds it until its lease lapses; one that lives, for longer.
        wait = 2 * spec.coordination.lease
        seconds = round(wait.total_seconds())
        report(Update.now(UpdateKind.SESSION, f"another runner has this session; waiting {seconds} s for it to go"))
        acquiring = asyncio.create_task(runner.locks.acquire(_LOCK, timeout=wait))
        stopped = asyncio.create_task(interrupted.wait())
        await asyncio.wait({acquiring, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        acquiring.cancel()  # does nothing once it is done
        try:
            grant = await acquiring
        except asyncio.CancelledError:
            raise Conflict(f"Interrupted while waiting for another runner of {runner.session.name!r}.") from None
        except LockNotAcquired as error:
            raise Conflict(
                f"Session {runner.session.name!r} is being run by another process; stop that one first.",
                noun="session",
                id=str(runner.session.id),
            ) from error
    return grant.token


async def _add_tasks(spec: SwarmSpec, runner: Agent, earlier: Earlier, from_stage: str | None) -> Plan:
    again = from_stage is not None and earlier.round >= 0
    plan = make_plan(
        spec,
        runner.session.id,
        round_number=max(earlier.round, 0) + again,
        from_stage=from_stage if from_stage is not None else earlier.from_stage,
        outputs=earlier.outputs,
    )
    wanted = {task.id for task in plan.tasks}
    for task in earlier.open:
        if task.id not in wanted:
            with contextlib.suppress(BlackboardError):  # it has finished meanwhile
                await runner.tasks.cancel(task.id, "The swarm was started anew without this task.")
    await runner.tasks.add_many([task.new for task in plan.tasks])
    for task in (await runner.tasks.get_many(wanted)).values():
        if task.status in {TaskStatus.DEAD, TaskStatus.FAILED}:
            await runner.tasks.redrive(task.id)
    return plan


def host_plan(spec: SwarmSpec, agent: AgentSpec, prepared: Prepared, folder: Path, grace: float) -> dict[str, Any]:
    """What the agent's process is told, ready for JSON."""
    plan = prepared.plan
    program = agent.program or next((task.program for task in plan.tasks if task.agent_id == agent.id), None)
    return {
        "agent_id": agent.id,
        "session_id": str(prepared.session.id),
        "capabilities": list(agent.capabilities),
        "expertise": agent.expertise,
        "focus": agent.focus,
        "target": spec.task,
        "lease": spec.coordination.lease.total_seconds(),
        "share_findings": spec.coordination.share_findings,
        "avoid_duplicate_queries": spec.coordination.avoid_duplicate_queries,
        "folder": str(folder),
        "stop_seconds": grace / 2,  # a process that ends by itself is better than one that is killed
        "paths": [str(Path.cwd()), *([str(spec.directory)] if spec.directory else [])],
        "program": {} if program is None else {"run": program.run, "command": program.command},
        "tasks": {
            str(task.id): {
                "agent_id": task.agent_id,
                "run": task.program.run,
                "command": task.program.command,
                "env": dict(task.env),
            }
            for task in plan.tasks
        },
    }
