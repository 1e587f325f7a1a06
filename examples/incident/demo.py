"""``blackboard demo``: the swarm of INC-1234.yaml on the recording or on your own logs, from first event to report."""

from __future__ import annotations

import asyncio
import getpass
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from rich.console import Console
from rich.text import Text

from blackboard import Blackboard, Session
from blackboard.errors import BlackboardError, Conflict, NotFound
from blackboard.models.actions import ActionRecord, ActionStatus
from blackboard.models.sessions import SessionStatus
from blackboard.swarm.loader import load_swarm
from blackboard.swarm.outcome import SwarmOutcome, SwarmStatus, Update, UpdateKind
from blackboard.swarm.runner import run_swarm
from blackboard.swarm.spec import SwarmSpec

from . import RECORDING
from .chaos import Kill, kill_in_the_middle
from .files import CaseFiles, CheckedFile, check_file, check_files
from .live import LiveView, View, make_view
from .plain import as_object
from .report import collect, summary_lines, write_report
from .rollback_advisor import simulated_result

__all__ = ["DEMO_OPERATOR", "SWARM_FILE", "run_demo"]

SWARM_FILE = Path(__file__).parent / "INC-1234.yaml"
DEMO_OPERATOR = "demo-operator"
RELEASE_MANAGER = "ops/release-manager"
"""Carries an action out that was approved after the swarm had gone home."""
LIVE_PACE = 0.2
"""Seconds that an agent rests after each finding when somebody watches, so that the board can be followed."""
INTERRUPTED = 130


def run_demo(
    *,
    url: str | None = None,
    data_dir: Path | None = None,
    yes: bool = False,
    chaos: bool = False,
    logs: Sequence[Path] = (),
    deployments: Path | None = None,
    report_dir: Path | None = None,
    console: Console | None = None,
) -> int:
    """The swarm has run to a decision and the report is written; returns the exit code.

    Args:
        url: the board's database; without one the embedded server, started or joined.
        data_dir: of the embedded server.
        yes: approves as ``demo-operator`` without asking; so does a run without a terminal.
        chaos: kills one agent in the middle of its task.
        logs: your own logs in place of the recording.
        deployments: your own log of deployments, with ``logs``.
        report_dir: where ``report.md`` and ``report.html`` go; ``incident-report`` here by default.
        console: where to show it.

    Returns:
        0 when every task came to its end, also when nothing was found; 1 when one did not; 130 when interrupted.

    Raises:
        BlackboardError: a file or the database cannot be used; nothing has been started then.
    """
    spec, files, checked = _spec(list(logs), deployments)
    demo = _Demo(
        spec=spec,
        files=files,
        checked=checked,
        url=url,
        data_dir=data_dir,
        yes=yes,
        chaos=chaos,
        report_dir=Path("incident-report") if report_dir is None else Path(report_dir),
        console=console or Console(),
    )
    try:
        return asyncio.run(demo.run())
    except KeyboardInterrupt:
        return INTERRUPTED


def _spec(logs: list[Path], deployments: Path | None) -> tuple[SwarmSpec, CaseFiles, list[CheckedFile]]:
    """The swarm of the example's file, on the files that are asked for.

    Raises:
        InvalidInput: a file cannot be used.
    """
    spec = load_swarm(SWARM_FILE)
    if not logs:
        if deployments is not None:
            check_file(Path(deployments), "deployments")
        names = [str(RECORDING / name) for name in ("service.log", "postgresql.log")]
        files = CaseFiles(
            tuple(Path(name) for name in names),
            RECORDING / "metrics.csv",
            RECORDING / "deployments.log" if deployments is None else Path(deployments).absolute(),
        )
        return replace(spec, context={**_extra(spec), **files.context()}), files, []
    files, checked = check_files(logs, deployments)
    name = f"logs-{files.logs[0].stem}"[:150]
    named = ", ".join(files.name(path) for path in files.logs)
    spec = replace(
        spec,
        session=name,
        task=f"Investigate {named}"[:1000],
        context={**_extra(spec), **files.context()},
        # A long reading keeps a machine busy: silence of a few seconds is no death then.
        coordination=replace(spec.coordination, lease=timedelta(seconds=10)),
    )
    return spec, files, checked


def _extra(spec: SwarmSpec) -> dict[str, Any]:
    return as_object(spec.context)


class _Demo:
    def __init__(
        self,
        *,
        spec: SwarmSpec,
        files: CaseFiles,
        checked: list[CheckedFile],
        url: str | None,
        data_dir: Path | None,
        yes: bool,
        chaos: bool,
        report_dir: Path,
        console: Console,
    ) -> None:
        self.spec, self.files, self.checked = spec, files, checked
        self.url, self.data_dir = url, data_dir
        self.chaos, self.report_dir, self.console = chaos, report_dir, console
        self.asks = not yes and console.is_terminal and sys.stdin.isatty()
        self.pids: dict[str, int] = {}
        self.session_id: UUID | None = None
        self.known = asyncio.Event()
        self.wake = asyncio.Event()
        self.kill: Kill | None = None

    async def run(self) -> int:
        """See ``run_demo``."""
        began = time.monotonic()
        self._introduce()
        async with Blackboard.open(self.url, data_dir=self.data_dir) as board:
            name, resume = await self._name(board)
            view = make_view(self.console, name)
            pace = LIVE_PACE if isinstance(view, LiveView) or self.chaos else 0.0
            spec = replace(self.spec, session=name, context={**_extra(self.spec), "pace_seconds": pace})
            helpers = [
                asyncio.create_task(self._watch(board, view)),
                asyncio.create_task(self._approve(board, view)),
            ]
            if self.chaos:
                helpers.append(asyncio.create_task(self._wreak(board, view)))
            view.start()
            try:
                outcome = await run_swarm(
                    spec,
                    url=board.url,
                    on_update=lambda update: self._told(update, view),
                    data_dir=self.data_dir,
                    resume=resume,
                    close_session=False,
                )
            finally:
                await self._settle_view(board, view)
                view.stop()
                if not self.asks:
                    helpers[1].cancel()
                helpers[0].cancel()
                for helper in helpers[2:]:
                    helper.cancel()
            if outcome.status is SwarmStatus.INTERRUPTED:
                helpers[1].cancel()
                await asyncio.gather(*helpers, return_exceptions=True)
                self._say_where(name, interrupted=True)
                return INTERRUPTED
            session = await board.session(outcome.session_id)
            await self._finish_approval(session, helpers[1])
            await asyncio.gather(*helpers, return_exceptions=True)
            for helper in helpers:
                if not helper.cancelled() and (error := helper.exception()) is not None:
                    self.console.print(Text(f"demo: {error}", style="red"))
            await self._close(session, outcome)
            return await self._report(session, outcome, time.monotonic() - began)

    # ------------------------------------------------------------------------------------------------ beginning

    def _introduce(self) -> None:
        said = self.console.print
        if self.checked:
            for file in self.checked:
                size = f"{file.bytes / 1e6:.1f} MB" if file.bytes >= 1e5 else f"{file.bytes} bytes"
                said(Text(f"{file.path}: {file.format_name}, {size}"), soft_wrap=True)
            if self.files.deployments is None:
                text = "No log of deployments: errors cannot be traced to a change, and no rollback will be proposed."
                said(text, soft_wrap=True)
        else:
            said(Text(f"{self.spec.task}: the recording in {RECORDING}"), soft_wrap=True)

    async def _name(self, board: Blackboard) -> tuple[str, bool | None]:
        """The session's name, and whether an interrupted run of the same case is continued."""
        name = self.spec.session
        try:
            before = await board.session(name)
        except NotFound:
            return name, False
        if before.record.status not in (SessionStatus.ACTIVE, SessionStatus.PAUSED):
            return name, False
        context = as_object(before.record.context)
        same = all(context.get(key) == value for key, value in self.files.context().items())
        if before.record.status is SessionStatus.PAUSED and same:
            self.console.print(f"Going on with the interrupted session {name}.")
            return name, True
        return f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}", False

    # ------------------------------------------------------------------------------------------- while it runs

    def _told(self, update: Update, view: View) -> None:
        if update.kind is UpdateKind.SESSION and update.session_id is not None:
            self.session_id = update.session_id
            self.known.set()
        if update.kind is UpdateKind.AGENT_STARTED and update.agent_id and update.pid:
            self.pids[update.agent_id] = update.pid
        if update.event is not None and update.event.type.startswith(("action.", "proposal.")):
            self.wake.set()
        view.update(update)

    async def _session(self, board: Blackboard) -> Session:
        await self.known.wait()
        assert self.session_id is not None
        return await board.session(self.session_id)

    async def _watch(self, board: Blackboard, view: View) -> None:
        if not isinstance(view, LiveView):
            return
        session = await self._session(board)
        while True:
            with suppress(BlackboardError):
                view.picture(await session.board())
            await asyncio.sleep(0.15)

    async def _settle_view(self, board: Blackboard, view: View) -> None:
        if self.session_id is not None and isinstance(view, LiveView):
            with suppress(BlackboardError):
                view.picture(await (await board.session(self.session_id)).board())

    async def _wreak(self, board: Blackboard, view: View) -> None:
        session = await self._session(board)
        self.kill = await kill_in_the_middle(session, self.pids)
        if self.kill is None:
            view.say("chaos: no agent was caught in the middle of its task; nothing was killed")
        else:
            view.say(f"chaos: {self.kill.agent_id} (process {self.kill.pid}) was killed at “{self.kill.step}”")

    async def _approve(self, board: Blackboard, view: View) -> None:
        """The action that its vote has accepted is approved or rejected by a person, or by ``demo-operator``."""
        session = await self._session(board)
        while True:
            waiting = [
                action
                for action in await session.actions.list(status=ActionStatus.AWAITING_APPROVAL)
                if action.vote_accepted or action.proposal_id is None
            ]
            if waiting:
                await self._decide(session, waiting[0], view)
                return
            self.wake.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.wake.wait(), 0.5)

    async def _decide(self, session: Session, action: ActionRecord, view: View) -> None:
        if not self.asks:
            why = "--yes" if self.console.is_terminal else "no terminal to ask at"
            view.say(f"approving as {DEMO_OPERATOR} ({why})")
            await session.actions.approve(action.id, by=DEMO_OPERATOR, reason=f"approved by the demo itself: {why}")
            return
        view.stop()
        await self._figures(session, action)
        answer = await _ask(self.console, "Approve? [y/N] ")
        who = _person()
        with suppress(Conflict):  # decided from another terminal meanwhile
            if answer.strip().lower() in {"y", "yes"}:
                await session.actions.approve(action.id, by=who, reason="approved at the terminal")
            else:
                await session.actions.reject(action.id, by=who, reason="rejected at the terminal")
        view.start()

    async def _figures(self, session: Session, action: ActionRecord) -> None:
        said = self.console.print
        parameters = as_object(action.parameters)
        said()
        said(
            Text(
                f"The agents ask for your approval: {parameters.get('action', action.type)} of {action.target}", "bold"
            )
        )
        for key, value in parameters.items():
            if key != "action":
                said(Text(f"  {key}: {value}"))
        for kind in ("onset", "correlation", "rollback_feasibility", "security"):
            for finding in await session.findings.list(type=kind, limit=1):
                said(Text(f"  {finding.content}"))
        if action.proposal_id is not None:
            proposal = await session.proposals.get(action.proposal_id)
            for ballot in proposal.ballots:
                said(Text(f"  {ballot.agent_id} votes {ballot.choice}: {ballot.reason}"))

    # ------------------------------------------------------------------------------------------------- the end

    async def _finish_approval(self, session: Session, approving: asyncio.Task[None]) -> None:
        """A person who took longer than the agents waited is waited for; what they approve is then carried out."""
        actions = await session.actions.list(limit=1)
        if not actions:
            approving.cancel()
            return
        waiting = actions[0].status is ActionStatus.AWAITING_APPROVAL and actions[0].vote_accepted
        if not waiting:
            approving.cancel()
        await asyncio.gather(approving, return_exceptions=True)
        action = await session.actions.get(actions[0].id)
        if action.status is ActionStatus.APPROVED:
            agent = await session.join(RELEASE_MANAGER, role="observer")
            started = await agent.actions.start(action.id)
            await agent.actions.complete(action.id, started.token, simulated_result(action))

    async def _close(self, session: Session, outcome: SwarmOutcome) -> None:
        actions = await session.actions.list(limit=1)
        action = actions[0] if actions else None
        conclusion = await session.findings.list(category="conclusion", limit=1)
        parameters = as_object(None if action is None else action.parameters)
        done = action is not None and action.status in (ActionStatus.APPROVED, ActionStatus.COMPLETED)
        result: dict[str, Any] = {
            "decision": parameters.get("action") if done else "no action",
            "action": None if action is None else {"id": str(action.id), "status": str(action.status), **parameters},
            "conclusion": conclusion[0].content if conclusion else None,
            "problems": list(outcome.problems),
        }
        completed = outcome.status is SwarmStatus.COMPLETED and not _unfinished(outcome)
        await session.close(outcome=result, status=SessionStatus.COMPLETED if completed else SessionStatus.FAILED)

    async def _report(self, session: Session, outcome: SwarmOutcome, seconds: float) -> int:
        case = await collect(session)
        paths = await asyncio.to_thread(write_report, case, self.report_dir)
        self.console.print()
        for line in summary_lines(case):
            self.console.print(Text(line), soft_wrap=True)
        self.console.print()
        for problem in outcome.problems:
            self.console.print(Text(f"problem: {problem}"), soft_wrap=True)
        if outcome.logs is not None:
            self.console.print(Text(f"The agents' logs: {outcome.logs}"), soft_wrap=True)
        for path in paths:
            self.console.print(Text(f"Report: {path}"), soft_wrap=True)
        self._say_where(session.name)
        self.console.print(Text(f"{seconds:.1f} s"))
        return 0 if outcome.status is SwarmStatus.COMPLETED and not _unfinished(outcome) else 1

    def _say_where(self, name: str, *, interrupted: bool = False) -> None:
        if interrupted:
            self.console.print("Interrupted: every agent has stopped, the session is paused; the same command goes on.")
        option = f" --data-dir {self.data_dir}" if self.data_dir is not None and self.url is None else ""
        # The URL may hold a password, so it is not printed.
        hint = " (with the same --url)" if self.url is not None else ""
        self.console.print(Text(f"Look at the board: blackboard board -s {name}{option}{hint}"), soft_wrap=True)


def _unfinished(outcome: SwarmOutcome) -> list[str]:
    """The tasks that came to no good end."""
    return [task.name for task in outcome.tasks if task.status != "completed"]


def _person() -> str:
    """Who sits at the terminal, as the system knows them."""
    with suppress(Exception):
        return getpass.getuser()[:200]
    return DEMO_OPERATOR


async def _ask(console: Console, question: str) -> str:
    """A line from the terminal; empty at its end. Can be cancelled, which a thread that reads cannot."""
    console.print(Text(question, style="bold"), end="")
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str] = loop.create_future()
    descriptor = sys.stdin.fileno()

    def read() -> None:
        if not answer.done():
            answer.set_result(os.read(descriptor, 4096).decode("utf-8", "replace"))

    loop.add_reader(descriptor, read)
    try:
        return await answer
    finally:
        loop.remove_reader(descriptor)
