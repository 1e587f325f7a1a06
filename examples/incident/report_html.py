"""The report as one HTML file that loads nothing: style and plots are in it, and every text of a log is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from .facts import Argued, CaseFile, Killed
from .page import STYLE
from .plain import one_line

__all__ = ["render_html"]


def h(value: Any, most: int = 2000) -> str:
    """The value on one line, escaped."""
    return escape(one_line(value, most), quote=True)


def render_html(case: CaseFile) -> str:
    """The whole report."""
    sections = [
        _decision(case),
        _plots(case),
        _section("Hypotheses", "".join(_hypothesis(case, argued) for argued in case.hypotheses) or _none()),
        _section("Vote and approval", _votes(case)),
        *(_section("Chaos", _chaos(killed)) for killed in case.kills),
        _section("Findings and their evidence", _findings(case)),
        _unreadable(case),
        _section("Who did what", _work(case)),
        _timeline(case),
        _section("Reproduce", f"<pre>{escape(chr(10).join(case.reproduce))}</pre>"),
    ]
    session = case.session
    closed = f", closed {session.closed_at:%H:%M:%S}" if session.closed_at else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{h(case.title)}</title><style>{STYLE}</style></head><body><main>"
        f'<header><p class="kicker">Incident report</p><h1>{h(case.title)}</h1>'
        f'<p class="quiet">Session {h(session.name)} · {h(session.status)} · started '
        f"{session.created_at:%Y-%m-%d %H:%M:%S} UTC{closed} · {len(case.events)} events, {len(case.findings)} "
        f"findings, {len(case.agents)} agents</p></header>"
        + "".join(sections)
        + '<footer class="quiet">Everything here was read from the board: its rows and its events.</footer>'
        "</main></body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{h(title)}</h2>{body}</section>" if body else ""


def _none() -> str:
    return '<p class="quiet">None was proposed: nothing stood out that needs a cause.</p>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Cells must be escaped already."""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    titles = "".join(f"<th>{h(title)}</th>" for title in head)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _decision(case: CaseFile) -> str:
    tiles = "".join(
        f'<div class="tile"><span class="quiet">{h(label)}</span><strong>{h(value)}</strong></div>'
        for label, value in case.figures
    )
    return (
        f'<section class="decision"><p class="verdict">{h(case.decision[0])}</p><p>{h(case.decision[1], 6000)}</p>'
        f'</section><div class="tiles">{tiles}</div>'
    )


def _plots(case: CaseFile) -> str:
    return "".join(
        f"<section><h2>{h(title)}</h2><p class='quiet'>{h(text)}</p><figure>{svg}</figure></section>"
        for title, text, svg in case.plots
    )


def _badge(status: Any) -> str:
    return f'<span class="badge {h(status)}">{h(str(status).replace("_", " "))}</span>'


def _hypothesis(case: CaseFile, argued: Argued) -> str:
    one = argued.hypothesis
    by = f" by {h(one.validated_by)}" if one.validated_by else ""
    course = case.confidence_course(one.id)
    revisions = " → ".join(f"{value:.2f}" for _, value in course)
    columns = "".join(
        f"<div><h4>{title}</h4><ul>"
        + (
            "".join(
                f'<li><span class="odds">{link.log_odds:+.2f}</span> {h(link.finding.content)} '
                f'<span class="quiet">{h(link.agent_id)}</span></li>'
                for link in links
            )
            or '<li class="quiet">nothing</li>'
        )
        + "</ul></div>"
        for title, links in (("For", argued.supporting), ("Against", argued.contradicting))
    )
    assessments = " · ".join(
        f"{h(item.agent_id)} {item.confidence:.2f}" + (f" ({h(item.reason)})" if item.reason else "")
        for item in argued.assessments
    )
    width = f"{one.confidence * 100:.0f}%"
    return (
        f'<article class="hypothesis"><h3>{h(one.statement)} {_badge(one.status)}</h3>'
        f'<div class="meter"><span style="width:{width}"></span></div>'
        f"<p><strong>{one.confidence:.2f}</strong>, {h(one.status)}{by}; proposed by {h(one.agent_id)} at "
        f"{one.prior:.2f}"
        f"{'. ' + h(one.reason) if one.reason else ''}</p>"
        f'<div class="columns">{columns}</div>'
        f'<p class="quiet">Assessments: {assessments}</p>'
        f'<p class="quiet">{len(course)} values of its confidence: {revisions}</p></article>'
    )


def _votes(case: CaseFile) -> str:
    parts: list[str] = []
    if not case.proposals:
        parts.append('<p class="quiet">Nothing was put to the vote.</p>')
    for proposal in case.proposals:
        tally = proposal.tally
        voted = {ballot.agent_id for ballot in proposal.ballots}
        rows = [
            (
                h(ballot.agent_id),
                _badge(ballot.choice),
                "" if ballot.confidence is None else f"{ballot.confidence:.2f}",
                h(ballot.reason),
            )
            for ballot in proposal.ballots
        ]
        rows += [
            (h(one), '<span class="quiet">did not vote</span>', "", "") for one in proposal.electors if one not in voted
        ]
        parts.append(
            f"<h3>{h(proposal.title)} {_badge(proposal.status)}</h3><p>{h(proposal.rule)} of {len(proposal.electors)}: "
            f"{tally.votes_for} yes, {tally.votes_against} no, {tally.abstentions} abstain, "
            f"{tally.outstanding} did not vote</p>" + _table(("agent", "vote", "confidence", "reason"), rows)
        )
    for action in case.actions:
        rows = [("type and target", f"{h(action.type)} on {h(action.target)}"), ("parameters", h(action.parameters))]
        rows.append(("status", _badge(action.status)))
        if action.approved_by:
            rows.append(("approved by", f"{h(action.approved_by)}: {h(action.approval_reason)}"))
        if action.rejected_by:
            rows.append(("rejected by", f"{h(action.rejected_by)}: {h(action.approval_reason)}"))
        if action.executor:
            rows.append(("carried out by", h(action.executor)))
        if action.result is not None:
            rows.append(("result", h(action.result)))
        parts.append("<h3>Action</h3>" + _table(("", ""), rows, "facts"))
    return "".join(parts)


def _chaos(killed: Killed) -> str:
    rows = ((f"{told.event.at:%H:%M:%S.%f}"[:12], h(told.event.actor), h(told.text)) for told in killed.steps)
    return f"<p>{h(killed.text)}. <strong>{h(killed.outcome)}.</strong></p>" + _table(
        ("UTC", "agent", "its task on the board"), rows
    )


def _findings(case: CaseFile) -> str:
    rows: list[tuple[str, ...]] = []
    for finding in case.findings:
        evidence = "".join(
            f'<li><span class="source">{h(item.source)}</span> <span class="quiet">{h(item.query)}</span><br>'
            f"{h(item.result)}</li>"
            for item in finding.evidence
        )
        confirmed = f" · confirmed by {finding.corroborations}" if finding.corroborations else ""
        hidden = f" · {finding.status}" if finding.status != "active" else ""
        rows.append(
            (
                (
                    f"<strong>{h(finding.content)}</strong><br><span class='quiet'>{h(finding.agent_id)} · "
                    f"{h(finding.type)}{h(confirmed)}{h(hidden)}</span>"
                ),
                "" if finding.confidence is None else f"{finding.confidence:.2f}",
                f'<ul class="evidence">{evidence}</ul>',
            )
        )
    return _table(("finding", "confidence", "evidence: source, query, result"), rows, "findings")


def _unreadable(case: CaseFile) -> str:
    parts = [
        f"<p>{h(loss.source)}: {loss.unparsed} of {loss.lines} lines, such as</p><ul>"
        + "".join(f"<li>line {number}: <code>{h(text)}</code></li>" for number, text in loss.samples)
        + "</ul>"
        for loss in case.unreadable
    ]
    return _section("Lines that could not be read", "".join(parts))


def _work(case: CaseFile) -> str:
    rows = (
        (h(agent), h(task), _badge(status), str(attempt), h(result))
        for agent, task, status, result, attempt in case.work
    )
    asked, ran = case.query_counts
    queries = (
        (h(query.source), h(query.query), h(query.ran_by), h(", ".join(query.asked_by))) for query in case.queries
    )
    return (
        _table(("agent", "task", "status", "attempt", "result"), rows)
        + f"<h3>Readings shared</h3><p>{asked} asked for, {ran} run; who asked later got the first one's answer.</p>"
        + (_table(("source", "query", "run by", "asked by"), queries) if case.queries else "")
    )


def _timeline(case: CaseFile) -> str:
    rows = (
        (
            f"{told.event.at:%H:%M:%S.%f}"[:12],
            h(told.event.actor),
            f"<strong>{h(told.text)}</strong>" if told.weight > 1 else h(told.text),
        )
        for told in case.told
        if told.weight > 0
    )
    table = _table(("UTC", "who", "what"), rows, "timeline")
    return f"<section><details open><summary><h2>Timeline</h2></summary>{table}</details></section>"
