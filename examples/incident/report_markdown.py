"""The report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from .facts import CaseFile
from .plain import one_line

__all__ = ["render_markdown"]

_SPECIAL = re.compile(r"([\\`*_\[\]|#])")


def md(value: Any, most: int = 2000) -> str:
    """The value on one line, with nothing in it that Markdown or HTML would take for markup."""
    return _SPECIAL.sub(r"\\\1", escape(one_line(value, most), quote=False))


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    lines += [f"| {' | '.join(md(cell) for cell in row)} |" for row in rows]
    return lines


def render_markdown(case: CaseFile) -> str:
    """The whole report; plots are in the HTML form only."""
    lines = [f"# {md(case.title)}", ""]
    closed = f", closed {case.session.closed_at:%H:%M:%S}" if case.session.closed_at else ""
    lines.append(
        f"Session {md(case.session.name)} ({case.session.status}), started "
        f"{case.session.created_at:%Y-%m-%d %H:%M:%S} UTC{closed}. Everything here is read from the board: "
        f"{len(case.events)} events, {len(case.findings)} findings."
    )
    lines += ["", "## Decision", "", f"**{md(case.decision[0])}**", "", md(case.decision[1]), ""]
    lines += _table(("figure", "value"), case.figures) if case.figures else []
    lines += ["", "## Hypotheses"]
    if not case.hypotheses:
        lines += ["", "None was proposed: nothing stood out that needs a cause."]
    for argued in case.hypotheses:
        lines += ["", *_hypothesis(case, argued)]
    lines += ["", "## Vote and approval"]
    lines += _decisions(case)
    lines += ["", "## Findings and their evidence", ""]
    rows = (
        (
            finding.agent_id,
            finding.category if finding.category == "conclusion" else finding.type,
            finding.content,
            "" if finding.confidence is None else f"{finding.confidence:.2f}",
            "; ".join(f"{item.source}: {item.query} = {item.result}" for item in finding.evidence),
        )
        for finding in case.findings
    )
    lines += _table(("agent", "type", "finding", "confidence", "evidence: source: query = result"), rows)
    if case.unreadable:
        lines += ["", "## Lines that could not be read", ""]
        for loss in case.unreadable:
            lines.append(f"{md(loss.source)}: {loss.unparsed} of {loss.lines} lines, such as")
            lines += [f"- line {number}: {md(text)}" for number, text in loss.samples]
    lines += ["", "## Who did what", ""]
    lines += _table(("agent", "task", "status", "attempt", "result"), ((a, t, s, n, r) for a, t, s, r, n in case.work))
    asked, ran = case.query_counts
    lines += ["", f"Readings of files: {asked} asked for, {ran} run; who asked later got the first one's answer.", ""]
    if case.queries:
        rows = ((query.source, query.query, query.ran_by, ", ".join(query.asked_by)) for query in case.queries)
        lines += _table(("source", "query", "run by", "asked by"), rows)
    for killed in case.kills:
        lines += ["", "## Chaos", "", f"{md(killed.text)}; {md(killed.outcome)}.", ""]
        rows = ((f"{told.event.at:%H:%M:%S.%f}"[:12], told.event.actor, told.text) for told in killed.steps)
        lines += _table(("UTC", "agent", "on the board"), rows)
    lines += ["", "## Timeline", ""]
    rows = ((f"{told.event.at:%H:%M:%S.%f}"[:12], told.event.actor, told.text) for told in case.told if told.weight > 0)
    lines += _table(("UTC", "who", "what"), rows)
    lines += ["", "## Reproduce", "", "```", *case.reproduce, "```", ""]
    return "\n".join(lines)


def _hypothesis(case: CaseFile, argued: Any) -> list[str]:
    one = argued.hypothesis
    verdict = f", {one.status} by {one.validated_by}" if one.validated_by else f", {one.status}"
    lines = [f"### {md(one.statement)}: {one.confidence:.2f}{md(verdict)}", ""]
    lines.append(f"Proposed by {md(one.agent_id)} at {one.prior:.2f}. {md(one.reason)}".rstrip())
    for title, links in (("For", argued.supporting), ("Against", argued.contradicting)):
        lines += ["", f"{title}:", ""]
        lines += [
            f"- {md(link.finding.content)} ({link.log_odds:+.2f} log-odds, {md(link.agent_id)})" for link in links
        ] or ["- nothing"]
    if argued.assessments:
        lines += ["", "Assessments:", ""]
        lines += [
            f"- {md(item.agent_id)}: {item.confidence:.2f}{': ' + md(item.reason) if item.reason else ''}"
            for item in argued.assessments
        ]
    course = [f"{value:.2f}" for _, value in case.confidence_course(one.id)]
    lines += ["", f"Course of its confidence: {' → '.join(course)}"]
    return lines


def _decisions(case: CaseFile) -> list[str]:
    lines: list[str] = []
    if not case.proposals:
        lines += ["", "Nothing was put to the vote."]
    for proposal in case.proposals:
        tally = proposal.tally
        lines += ["", f"**{md(proposal.title)}**: {proposal.status} ({proposal.rule}): {tally.votes_for} yes, "]
        lines[-1] += f"{tally.votes_against} no, {tally.abstentions} abstain, {tally.outstanding} did not vote."
        lines += [""]
        voted = {ballot.agent_id for ballot in proposal.ballots}
        rows: list[tuple[Any, ...]] = [
            (
                ballot.agent_id,
                ballot.choice,
                "" if ballot.confidence is None else f"{ballot.confidence:.2f}",
                ballot.reason,
            )
            for ballot in proposal.ballots
        ]
        rows += [(elector, "did not vote", "", "") for elector in proposal.electors if elector not in voted]
        lines += _table(("agent", "vote", "confidence", "reason"), rows)
    for action in case.actions:
        lines += ["", f"Action {md(action.type)} on {md(action.target)} {md(action.parameters)}: {action.status}."]
        if action.approved_by:
            lines[-1] += f" Approved by {md(action.approved_by)}: {md(action.approval_reason)}."
        if action.rejected_by:
            lines[-1] += f" Rejected by {md(action.rejected_by)}."
        if action.result is not None:
            lines[-1] += f" Result: {md(action.result)}."
    return lines
