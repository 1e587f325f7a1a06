"""What the four agents have in common: shared readings, findings with evidence, hypotheses and what bears on them."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid5

from blackboard import Agent
from blackboard.errors import Conflict, InvalidInput, NotFound
from blackboard.models.tasks import TaskRecord

from .analysis import Change, Metrics, find_changes, read_log, read_metrics
from .examination import Examination, examine
from .files import CaseFiles
from .plain import as_object
from .scan import Scan, clean, pack_scan, scan_log, unpack_scan

__all__ = ["Case", "Claim", "action_id", "hypothesis_id", "proposal_of"]

T = TypeVar("T")
VOTE = "vote"
INVESTIGATE = "investigate"


@dataclass(frozen=True)
class Claim:
    """One thing that an agent has found out, with what it was found by.

    Attributes:
        text: what is claimed, in one sentence; every number in it is computed.
        evidence: ``(source, query, result)``: which file, which analysis, which figures.
        confidence: how sure the measurement is, in [0, 1].
        bears_on: kind of hypothesis to log-odds: positive speaks for it, negative against it.
        data: figures for plots and later readers.
    """

    type: str
    text: str
    evidence: tuple[tuple[str, str, str], ...]
    confidence: float = 0.9
    category: str = "observation"
    bears_on: Mapping[str, float] = field(default_factory=dict[str, float])
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tags: tuple[str, ...] = ()


def hypothesis_id(session_id: UUID, kind: str) -> UUID:
    """The id of the session's hypothesis of that kind: whoever proposes it, it is there once."""
    return uuid5(session_id, f"hypothesis {kind}")


def action_id(session_id: UUID) -> UUID:
    """The id of the action that the swarm proposes."""
    return uuid5(session_id, "action")


def proposal_of(parameters: Any) -> UUID:
    """The proposal that a task of type ``vote`` is about.

    Raises:
        InvalidInput: it names none.
    """
    try:
        return UUID(parameters["proposal_id"])
    except (KeyError, TypeError, ValueError):
        raise InvalidInput("A task of type vote names its proposal_id.", field="parameters") from None


class Case:
    """One agent's work on one task of the case."""

    def __init__(self, agent: Agent, task: TaskRecord, queries: Any, context: Any) -> None:
        self.agent = agent
        self.session = agent.session
        self.task = task
        self.context = as_object(context)
        self.files = CaseFiles.from_context(context)
        self._queries = queries
        # So that a person who watches can follow: no agent needs it, and none waits for it.
        self._pace = min(2.0, max(0.0, float(self.context.get("pace_seconds") or 0.0)))
        self._asked: list[dict[str, Any]] = []
        self._reported: list[UUID] = []

    # ------------------------------------------------------------------------------------------ shared readings

    async def examine(self) -> Examination:
        """All files of the case, each read by whoever asked first."""
        scans = [await self.scan(path) for path in self.files.logs]
        return examine(scans, await self.metrics(), await self.changes())

    async def scan(self, path: Path) -> Scan:
        """One log, digested."""
        name = self.files.name(path)

        async def execute() -> dict[str, Any]:
            share = 0.0

            def tell(now: float) -> None:
                nonlocal share
                share = now

            async with self._ticking(f"reading {name}", lambda: share):
                return pack_scan(await asyncio.to_thread(scan_log, path, name, tell))

        return unpack_scan(await self._ask(name, "digest: counts, templates, security, in one pass", execute))

    async def metrics(self) -> Metrics | None:
        """The metrics, where the case has any."""
        path = self.files.metrics
        if path is None:
            return None

        def execute() -> dict[str, Any]:
            with path.open(encoding="utf-8-sig", errors="replace") as file:
                metrics = read_metrics(file)
            columns = {
                name: [None if math.isnan(value) else value for value in values]
                for name, values in metrics.columns.items()
            }
            return {
                "at": [at.isoformat() for at in metrics.at],
                "columns": columns,
                "bad_rows": metrics.bad_rows,
                "bad_values": metrics.bad_values,
            }

        packed = await self._ask(self.files.name(path), "samples of every column", execute)
        return Metrics(
            tuple(datetime.fromisoformat(at) for at in packed["at"]),
            {
                name: tuple(math.nan if value is None else float(value) for value in values)
                for name, values in packed["columns"].items()
            },
            packed["bad_rows"],
            packed["bad_values"],
        )

    async def changes(self) -> tuple[Change, ...]:
        """What was deployed and configured, where the case has a log of it."""
        path = self.files.deployments
        if path is None:
            return ()
        name = self.files.name(path)

        def execute() -> list[dict[str, Any]]:
            with path.open(encoding="utf-8-sig", errors="replace") as file:
                found = find_changes(read_log(file, name))
            return [
                {
                    "at": change.at.isoformat(),
                    "kind": change.kind,
                    "name": clean(change.name[:200]),
                    "version": change.version,
                    "previous": change.previous,
                    "summary": clean(change.summary[:500]),
                    "line": change.line_number,
                }
                for change in found[-500:]
            ]

        packed = await self._ask(name, "changes: deployments, settings, migrations", execute)
        return tuple(
            Change(
                at=datetime.fromisoformat(item["at"]),
                kind=item["kind"],
                name=item["name"],
                version=item["version"],
                previous=item["previous"],
                summary=item["summary"],
                source=name,
                line_number=item["line"],
            )
            for item in packed
        )

    async def _ask(self, source: str, query: str, execute: Callable[[], Any]) -> Any:
        ran = False

        async def noting() -> Any:
            nonlocal ran
            ran = True
            answer = execute()
            return await answer if inspect.isawaitable(answer) else answer

        answer: Any = await self._queries.run(source, query, noting)
        self._asked.append({"source": source, "query": query, "ran": ran})
        return answer

    @contextlib.asynccontextmanager
    async def _ticking(self, step: str, share: Callable[[], float]) -> AsyncGenerator[None]:
        """Every half second the board shows how far a long reading is."""

        async def tick() -> None:
            while True:
                await asyncio.sleep(0.5)
                await self.progress(step, share())

        ticker = asyncio.create_task(tick())
        try:
            yield
        finally:
            ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ticker

    # --------------------------------------------------------------------------------------- what goes on the board

    async def progress(self, step: str, share: float | None = None) -> None:
        """The board shows what this agent is at."""
        now: dict[str, Any] = {"step": step}
        if share is not None:
            now["share"] = round(share, 3)
        await self.agent.tasks.progress(self.task, now)

    async def report(self, claim: Claim) -> UUID:
        """The claim is a finding on the board, and evidence for or against the hypotheses that it bears on."""
        finding = await self.agent.findings.report(
            clean(claim.text),
            type=claim.type,
            category=claim.category,
            confidence=claim.confidence,
            evidence=[
                {"source": source, "query": query, "result": clean(result)} for source, query, result in claim.evidence
            ],
            tags=claim.tags,
            provenance={"task": str(self.task.id), "bears_on": dict(claim.bears_on), "data": dict(claim.data)},
        )
        self._reported.append(finding.id)
        if self._pace:
            await asyncio.sleep(self._pace)
        for kind, log_odds in claim.bears_on.items():
            await self._link(kind, finding.id, finding.confidence, log_odds)
        return finding.id

    async def propose(self, kind: str, statement: str, confidence: float) -> UUID:
        """The hypothesis is on the board, with all findings that bear on it; the second proposer's is the first's."""
        identity = hypothesis_id(self.session.id, kind)
        with contextlib.suppress(Conflict):  # somebody else has proposed it
            await self.agent.hypotheses.propose(statement, confidence, id=identity)
        # Whoever comes later links: findings that were there before by the proposer, later ones by their reporter.
        for finding in reversed(await self.session.findings.list(limit=1000)):
            bears_on = as_object(finding.provenance.get("bears_on"))
            if kind in bears_on:
                await self._link(kind, finding.id, finding.confidence, float(bears_on[kind]))
        return identity

    async def _link(self, kind: str, finding: UUID, confidence: float | None, log_odds: float) -> None:
        sure = min(0.98, 0.5 if confidence is None else confidence)
        most = math.log((0.5 + sure / 2) / (0.5 - sure / 2)) or 1.0
        weight = round(min(1.0, max(0.01, abs(log_odds) / most)), 4)
        # Not proposed yet, decided already, or linked by somebody else: each is fine.
        with contextlib.suppress(NotFound, Conflict, InvalidInput):
            await self.agent.hypotheses.add_evidence(
                hypothesis_id(self.session.id, kind), finding, supports=log_odds > 0, weight=weight
            )

    async def assess(self, kind: str, share: float, reason: str) -> None:
        """This agent's own view of the hypothesis is on the board, if the hypothesis is and is still open.

        It is a starting point, around that of a new hypothesis: what was measured counts as evidence, and must not
        count twice.

        Args:
            kind: of the hypothesis.
            share: how much of what this agent has looked at agrees with it, in [0, 1].
            reason: what that is.
        """
        confidence = round(0.15 + 0.25 * min(1.0, max(0.0, share)), 2)
        with contextlib.suppress(NotFound, Conflict):
            await self.agent.hypotheses.assess(
                hypothesis_id(self.session.id, kind),
                confidence,
                reason=clean(f"before the evidence is weighed: {reason}"),
            )

    # ------------------------------------------------------------------------------------------------- waiting

    async def until(self, check: Callable[[], Awaitable[T | None]], *topics: str, timeout: timedelta) -> T | None:
        """What ``check`` first returned that is not None, asked anew after each event; None when the time is up."""
        cursor = await self.agent.events.now()
        ends = asyncio.get_running_loop().time() + timeout.total_seconds()
        while (found := await check()) is None:
            left = ends - asyncio.get_running_loop().time()
            if left <= 0:
                return None
            # Absence leaves no event, so it is looked at anew every second.
            page = await self.agent.events.wait(
                cursor, topics=topics or None, timeout=timedelta(seconds=min(left, 1.0))
            )
            cursor = page.cursor
        return found

    def result(self, summary: str, **more: Any) -> dict[str, Any]:
        """What this task hands in: a summary, the findings and which readings were asked for and run."""
        return {
            "summary": clean(summary),
            "findings": [str(one) for one in self._reported],
            "queries": self._asked,
            **more,
        }
