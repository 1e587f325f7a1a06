"""The report: well-formed, self-contained, escaped, and with the board's own numbers."""

from __future__ import annotations

import datetime as dt
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from blackboard_examples.incident.narrative import Narrator
from blackboard_examples.incident.plain import as_object, one_line
from blackboard_examples.incident.plots import Bar, Dot, Lane, Line, Mark, lanes_plot, nice_ceiling, time_plot
from blackboard_examples.incident.report import (
    CaseFile,
    collect,
    render_html,
    render_markdown,
    summary_lines,
    write_report,
)

from blackboard import Blackboard, Session
from blackboard.models.actions import ActionStatus
from blackboard.models.proposals import VoteOptions

HOSTILE = "<script>alert(\"x\")</script> & 'q' | `tick` [a](javascript:alert(1)) <img src=x onerror=alert(1)> ]]> -->"
START = dt.datetime(2026, 11, 20, 7, tzinfo=dt.UTC)
VOID = {"meta", "br", "img", "link", "input", "hr"}
SELF_CLOSING_SVG = {"line", "circle", "path"}


class Checker(HTMLParser):
    """Balances tags, and gathers text and attributes."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text.append(data)


def checked(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    return checker


def series(values: list[float], name: str = "errors") -> dict[str, Any]:
    return {"name": name, "source": name, "start": START.isoformat(), "step_seconds": 1.0, "values": values}


@pytest.fixture
async def case(board: Blackboard, session: Session) -> CaseFile:
    """A board with everything that a report can show, hostile text included."""
    await session.update(goal=f"Investigate {HOSTILE}")
    validator = await session.join("ops/deploy-validator")
    lead = await session.join("security/incident-response-lead")
    advisor = await session.join("ops/rollback-advisor")
    architect = await session.join("ops/architect")
    task = await session.tasks.add("investigate", {"focus": f"Analyze {HOSTILE}"}, assigned_to=lead.id)
    (claimed,) = await lead.tasks.claim()
    await lead.tasks.progress(claimed, {"step": HOSTILE, "share": 0.5})
    onset = {
        "errors": series([0, 0, 1, 9, 8]),
        "onset": {
            "at": (START + dt.timedelta(seconds=3)).isoformat(),
            "ended_at": None,
            "baseline_per_minute": 20.0,
            "incident_per_minute": 510.0,
            "ratio": 25.5,
            "events": 17,
        },
    }
    found = await lead.findings.report(
        f"errors began: {HOSTILE}",
        type="onset",
        confidence=0.97,
        evidence=[{"source": HOSTILE, "query": f"detect {HOSTILE}", "result": f"17 errors {HOSTILE}"}],
        provenance={"data": onset},
    )
    change = await validator.findings.report(
        "deploy 1.2.3 fits best",
        type="correlation",
        confidence=0.9,
        evidence=[{"source": "deployments.log", "query": "correlate", "result": "0.90"}],
        provenance={"data": {"change": HOSTILE, "score": 0.9, "at": START.isoformat()}},
    )
    await validator.findings.report(
        "changes",
        type="changes",
        provenance={"data": {"changes": [{"at": (START + dt.timedelta(seconds=1)).isoformat(), "name": HOSTILE}]}},
    )
    await validator.findings.report(
        "pool_in_use went up",
        type="gauge",
        provenance={"data": {"gauge": series([1, 2, 5, 10, 10], HOSTILE), "capacity": series([10] * 5, "pool_max")}},
    )
    await lead.findings.report(
        "a log",
        type="log",
        provenance={"data": {"source": "x.log", "unparsed": 1, "lines": 9, "samples": [[4, HOSTILE]]}},
    )
    hypothesis = await lead.hypotheses.propose(f"pool exhaustion {HOSTILE}", 0.3)
    await lead.hypotheses.add_evidence(hypothesis.id, found.id, supports=True, weight=0.5)
    await validator.hypotheses.add_evidence(hypothesis.id, change.id, supports=False, weight=0.1)
    await validator.hypotheses.assess(hypothesis.id, 0.6, reason=HOSTILE)
    await architect.hypotheses.validate(hypothesis.id, result=True, evidence=[found.id], reason=HOSTILE)
    action = await advisor.actions.propose(
        "modify",
        f"orders {HOSTILE}",
        {"action": "rollback", "from": "1.2.3", "to": HOSTILE},
        approval="both",
        vote=VoteOptions(title=f"Roll back {HOSTILE}", electorate=[validator.id, lead.id, advisor.id], deadline=None),
    )
    assert action.proposal_id is not None
    await lead.proposals.vote(action.proposal_id, "abstain", reason=HOSTILE)
    await validator.proposals.vote(action.proposal_id, "yes", confidence=0.9, reason="25x baseline")
    await advisor.proposals.vote(action.proposal_id, "yes", confidence=0.85, reason="stable before")
    await session.actions.approve(action.id, by="demo-operator", reason=HOSTILE)
    await architect.findings.report(
        f"Pool exhaustion. {HOSTILE}", type="conclusion", category="conclusion", confidence=0.9
    )
    await lead.tasks.complete(
        claimed,
        {"summary": HOSTILE, "queries": [{"source": "service.log", "query": "digest", "ran": True}]},
    )
    del task, board
    return await collect(session)


async def test_html_is_well_formed_self_contained_and_escaped(case: CaseFile) -> None:
    html = render_html(case)
    checker = checked(html)

    assert "<script" not in html.lower()
    assert "<img" not in html.lower()
    assert "onerror=alert" not in [name for _, name, _ in checker.attributes]
    for tag, name, value in checker.attributes:
        assert name not in {"src", "href", "action", "onerror", "onclick"}, (tag, name, value)
        assert not value.startswith(("http:", "//", "javascript:")) or name == "xmlns", (tag, name, value)
    assert not re.search(r"@import|url\(", html)
    assert {value for _, name, value in checker.attributes if name == "xmlns"} <= {"http://www.w3.org/2000/svg"}
    # … and nothing was lost on the way.
    assert " ".join(HOSTILE.split()) in "".join(checker.text)


async def test_numbers_are_those_of_the_board(case: CaseFile, session: Session, tmp_path: Path) -> None:
    markdown, html = write_report(case, tmp_path / "made" / "here")
    texts = (markdown.read_text(), "".join(checked(html.read_text()).text), "\n".join(summary_lines(case)))
    (hypothesis,) = await session.hypotheses.list()
    (proposal,) = await session.proposals.list()
    tally = await session.proposals.tally(proposal.id)

    for text in texts:
        assert f"{hypothesis.confidence:.2f}" in text
        assert f"{tally.votes_for} yes, {tally.votes_against} no, {tally.abstentions} abstain" in text
        assert "approved by demo-operator" in text
    for link in await session.hypotheses.evidence(hypothesis.id):
        assert f"{link.log_odds:+.2f}" in texts[0]
        assert f"{link.log_odds:+.2f}" in texts[1]
    course = [
        event.data["confidence"]
        for event in case.events
        if event.subject_id == hypothesis.id and "confidence" in event.data
    ]
    assert len(course) == 4
    for text in texts[:2]:
        assert " → ".join(f"{value:.2f}" for value in course) in text
        assert f"{len(case.events)} events" in text
        assert "20.0 → 510.0" in text
    assert case.actions[0].status is ActionStatus.APPROVED


async def test_markdown_has_no_live_markup_of_a_log(case: CaseFile) -> None:
    text = render_markdown(case)
    assert "<script>" not in text
    assert "<img" not in text
    assert not re.search(r"(?<!\\)\]\(javascript", text)
    for line in text.splitlines():
        if line.startswith("| "):  # an unescaped bar would shift the cells
            cells = len(re.findall(r"(?<!\\)\|", line))
            assert cells in {3, 4, 5, 6}, line


async def test_timeline_tells_every_step_from_events(case: CaseFile) -> None:
    told = [(one.event.type, one.text) for one in case.told]
    kinds = [kind for kind, _ in told]
    order = ["session.started", "finding.reported", "hypothesis.proposed", "hypothesis.validated", "proposal.opened"]
    order += ["proposal.accepted", "action.approved", "task.completed"]
    assert [kinds.index(kind) for kind in order] == sorted(kinds.index(kind) for kind in order)
    assert any("(2 for, 0 against, 1 abstained)" in text for _, text in told)
    assert all("\n" not in text for _, text in told)


async def test_plots_show_the_series_on_the_board(case: CaseFile) -> None:
    titles = [title for title, _, _ in case.plots]
    assert titles[0] == "Errors"
    assert "Confidence" in titles
    assert "Work" in titles
    errors = case.plots[0][2]
    path = re.search(r'class="line s1" d="M([^"]+)"', errors)
    assert path is not None
    heights = [float(point.split(",")[1]) for point in path[1].split("L")]
    assert len(heights) == 5
    assert heights.index(min(heights)) == 3, "the most errors stand highest"
    assert "errors begin" in errors


async def test_report_of_an_empty_session(session: Session, tmp_path: Path) -> None:
    case = await collect(session)
    write_report(case, tmp_path)
    checked((tmp_path / "report.html").read_text())
    assert case.decision[0] == "No action."
    assert "Nothing was put to the vote" in (tmp_path / "report.md").read_text()


async def test_elector_who_did_not_vote_is_named(session: Session) -> None:
    advisor = await session.join("ops/rollback-advisor")
    await session.join("security/incident-response-lead")
    await advisor.proposals.open("Roll back?", {"action": "rollback"}, deadline=None)
    case = await collect(session)
    assert "| security/incident-response-lead | did not vote |" in render_markdown(case)
    assert "did not vote" in "".join(checked(render_html(case)).text)


@pytest.mark.parametrize(
    ("value", "ceiling"), [(0, 1), (-3, 1), (1, 1), (1.1, 2), (2.1, 2.5), (7, 10), (340, 500), (math.inf, 1)]
)
def test_nice_ceiling(value: float, ceiling: float) -> None:
    assert nice_ceiling(value) == ceiling


def test_plot_survives_gaps_and_single_points() -> None:
    points = [(START + dt.timedelta(seconds=number), value) for number, value in enumerate([1.0, math.nan, 2.0])]
    svg = time_plot("t", [Line("a", points, dots=True), Line("cap", points[:1], 0, "limit")], marks=[Mark(START, "x")])
    checked(svg)
    assert "nan" not in svg
    assert time_plot("t", [Line("a", [(START, math.nan)])]) == ""
    assert "nan" not in time_plot("t", [Line("a", [(START, 0.0)], shape="step")])


def test_labels_of_marks_do_not_overlap() -> None:
    points = [(START + dt.timedelta(seconds=number), 1.0) for number in range(100)]
    marks = [
        Mark(START + dt.timedelta(seconds=50 + number), f"a change with a long name {number}") for number in range(5)
    ]
    svg = time_plot("t", [Line("a", points)], marks=marks)
    rows = re.findall(r'class="tick" x="[\d.]+" y="([\d.]+)" text-anchor="(?:start|end)">a change', svg)
    assert len(set(rows)) == 5


def test_lanes_plot_is_well_formed() -> None:
    lane = Lane("<b>", [Bar(START, None, "<i>", "open")], [Dot(START, "<u>")])
    svg = lanes_plot("lanes", [lane], START, START + dt.timedelta(seconds=2), [Mark(START, "<kill>", strong=True)])
    checked(svg)
    assert "<kill>" not in svg


def test_plain_values() -> None:
    assert as_object([1]) == {}
    assert one_line({"a": "b"}) == '{"a": "b"}'
    assert one_line("a\n b") == "a b"
    assert len(one_line("x" * 500, 10)) == 10
    assert Narrator().name("no uuid") == ""
