"""The report of a session, as Markdown and as one HTML file: read from the board, and from nothing else."""

from __future__ import annotations

from pathlib import Path

from blackboard import Event, Session

from .facts import Argued, CaseFile
from .report_html import render_html
from .report_markdown import render_markdown

__all__ = ["CaseFile", "collect", "render_html", "render_markdown", "summary_lines", "write_report"]


async def collect(session: Session) -> CaseFile:
    """Everything on the board that the report is made of.

    Args:
        session: open or closed.
    """
    record = await session.refresh()
    events: list[Event] = []
    cursor = None
    while True:
        page = await session.events.read(cursor, limit=5000)
        events += page.events
        cursor = page.cursor
        if not page.more:
            break
    events.sort(key=lambda event: event.seq)
    hypotheses = [
        Argued(
            one,
            tuple(await session.hypotheses.evidence(one.id)),
            tuple(await session.hypotheses.assessments(one.id)),
        )
        for one in await session.hypotheses.list(limit=100)
    ]
    proposals = [await session.proposals.get(one.id) for one in await session.proposals.list(limit=20)]
    findings = await session.findings.list(include_hidden=True, limit=1000)
    return CaseFile(
        session=record,
        agents=tuple(await session.agents.list()),
        events=tuple(events),
        findings=tuple(sorted(findings, key=lambda finding: (finding.created_at, finding.id))),
        hypotheses=tuple(hypotheses),
        tasks=tuple(await session.tasks.list(limit=1000)),
        proposals=tuple(proposals),
        actions=tuple(reversed(await session.actions.list(limit=20))),
    )


def write_report(case: CaseFile, directory: Path) -> tuple[Path, Path]:
    """``report.md`` and ``report.html`` are in the directory, which is made if it is not there.

    Raises:
        OSError: it cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    markdown, html = directory / "report.md", directory / "report.html"
    markdown.write_text(render_markdown(case), encoding="utf-8")
    html.write_text(render_html(case), encoding="utf-8")
    return markdown, html


def summary_lines(case: CaseFile) -> list[str]:
    """The report in a few lines, for a terminal."""
    lines = [f"{case.title}: {line}" if not number else line for number, line in enumerate(case.decision)]
    for argued in case.hypotheses:
        one = argued.hypothesis
        by = f" by {one.validated_by}" if one.validated_by else ""
        lines.append(f"  {one.confidence:.2f}  {one.statement}: {one.status}{by}")
    for proposal in case.proposals:
        tally = proposal.tally
        lines.append(
            f"  vote: {tally.votes_for} yes, {tally.votes_against} no, {tally.abstentions} abstain; {proposal.status}"
        )
    for loss in case.unreadable:
        lines.append(f"  {loss.source}: {loss.unparsed} of {loss.lines} lines could not be read")
        lines += [f"    line {number}: {text}" for number, text in loss.samples[:3]]
    asked, ran = case.query_counts
    if asked:
        lines.append(f"  {asked} readings asked for, {ran} run")
    for killed in case.kills:
        lines.append(f"  {killed.text}; {killed.outcome}")
    return lines
