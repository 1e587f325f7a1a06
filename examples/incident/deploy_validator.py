"""ops/deploy-validator: what was changed when, which change fits the onset, and what the gauges did after it."""

from __future__ import annotations

import re
from typing import Any

from blackboard import Agent
from blackboard.models.tasks import TaskRecord

from .analysis import ChangeCorrelation, Onset, Series, judge_change
from .ballots import cast_ballot
from .casework import VOTE, Case, Claim
from .examination import Examination, clock, moment
from .suspects import CHANGE, PRIOR, GaugeCase, candidates, gauge_cases, message_shares

__all__ = ["investigate"]


async def investigate(agent: Agent, focus: str, *, task: TaskRecord, queries: Any, context: Any) -> dict[str, Any]:
    """Recent deployments and changes: each is on the board with how well it explains the onset."""
    case = Case(agent, task, queries, context)
    if task.type == VOTE:
        return await cast_ballot(case)
    await case.progress(focus)
    exam = await case.examine()
    await case.report(_changes_claim(case, exam))
    onset = exam.onset
    if onset is None:
        return case.result("no onset of errors, so no change to blame")
    await case.progress("correlating changes with the onset")
    best = exam.found.changes[0] if exam.found.changes else None
    if best is not None:
        await case.report(_best_claim(case, best))
        if len(exam.found.changes) > 1:
            await case.report(_others_claim(case, exam.found.changes[1:]))
    await case.progress("looking at the gauges")
    gauges = gauge_cases(exam)
    named = candidates(message_shares(exam, onset), ())
    for gauge in gauges:
        if gauge.suspect not in named:
            # No message names it, so only the gauge can tell: this is ours to propose.
            changed = best is not None and best.order_factor == 1.0 and gauge.suspect.with_change is not None
            statement = gauge.suspect.with_change if changed else gauge.suspect.statement
            await case.propose(gauge.suspect.kind, statement or gauge.suspect.statement, PRIOR)
    if not gauges and best is not None and best.score > 0.1:
        await case.propose(CHANGE, f"{best.change.name} brought the errors", PRIOR)
        for item in judge_change(best).evidence:
            await case.report(
                Claim(
                    "change_evidence",
                    f"{best.change.name}: {item.statement}",
                    (
                        (
                            best.change.source,
                            "judge_change: order, rates before and after, other changes",
                            item.statement,
                        ),
                    ),
                    bears_on={CHANGE: item.weight} if item.weight else {},
                )
            )
    for gauge in gauges:
        for claim in gauge_claims(case, exam, gauge, onset):
            await case.report(claim)
        await case.assess(gauge.suspect.kind, gauge.judged.score, f"the gauge {gauge.judged.subject} by itself says so")
    if best is None:
        return case.result("no deployments to look at, so no change can be blamed")
    return case.result(
        f"{best.change.name} explains the onset best (score {best.score:.2f})", best=best.change.name, score=best.score
    )


def _source(case: Case) -> str:
    return "no log of deployments" if case.files.deployments is None else case.files.name(case.files.deployments)


def _changes_claim(case: Case, exam: Examination) -> Claim:
    changes = exam.changes
    data = {
        "changes": [
            {"at": change.at.isoformat(), "kind": change.kind, "name": change.name, "summary": change.summary}
            for change in changes[-100:]
        ]
    }
    if not changes:
        text = (
            "no log of deployments was given: nothing is known of changes"
            if case.files.deployments is None
            else f"{_source(case)} names no change"
        )
        return Claim("changes", text, ((_source(case), "find_changes", "0 changes"),), data=data)
    first = changes[0].at
    told = "; ".join(f"{clock(change.at, like=first)} {change.name}" for change in changes[-8:])
    return Claim(
        "changes",
        f"{len(changes)} changes: {told}",
        ((_source(case), "find_changes: deployments, settings, migrations", told),),
        data=data,
    )


def _factors(item: ChangeCorrelation) -> str:
    return (
        f"score {item.score:.2f} = order {item.order_factor:g} x proximity {item.proximity_factor:.2f} x rise "
        f"{item.ratio_factor:.2f} x not superseded {item.superseded_factor:g}; "
        f"{item.errors_before_per_minute:.1f} errors a minute before, {item.errors_after_per_minute:.1f} after"
    )


def _best_claim(case: Case, best: ChangeCorrelation) -> Claim:
    when = "before" if best.lag.total_seconds() >= 0 else "after"
    return Claim(
        "correlation",
        f"{best.change.name} at {clock(best.change.at)} UTC came {moment(best.lag)} {when} the errors began and fits "
        f"them best of all changes: {best.errors_before_per_minute:.1f} errors a minute before it, "
        f"{best.errors_after_per_minute:.1f} after",
        ((_source(case), "correlate_changes: order, proximity, rise, other changes in between", _factors(best)),),
        confidence=round(max(0.05, best.score), 3),
        data={"change": best.change.name, "score": best.score, "ratio": best.ratio, "at": best.change.at.isoformat()},
    )


def _others_claim(case: Case, others: tuple[ChangeCorrelation, ...]) -> Claim:
    told = "; ".join(f"{item.change.name} ({item.score:.2f})" for item in others[:5])
    return Claim(
        "other_changes",
        f"other changes explain the onset less well: {told}",
        tuple((_source(case), f"correlate_changes: {item.change.name}", _factors(item)) for item in others[:5]),
    )


def packed(series: Series | None) -> dict[str, Any] | None:
    """A series as a finding carries it for plots."""
    if series is None:
        return None
    return {
        "name": series.name,
        "start": series.start.isoformat(),
        "step_seconds": series.step.total_seconds(),
        "values": [None if value != value else value for value in series.values],  # noqa: PLR0124 - NaN
    }


def _readable(name: str, statement: str) -> str:
    """The statement with the gauge's name in it, and large numbers of bytes as MB."""
    if "bytes" in name:
        statement = re.sub(r"\d(?:\.\d+)?e\+\d+", lambda found: f"{float(found[0]) / 1e6:.1f} MB", statement)
    return statement if name in statement.split("(")[0] else f"{name}: {statement}"


def gauge_claims(case: Case, exam: Examination, gauge: GaugeCase, onset: Onset, *, limits: bool = False) -> list[Claim]:
    """What was measured on a gauge, a claim each; what is about its limit goes to whom asks for ``limits``."""
    name = gauge.judged.subject
    source = "metrics" if case.files.metrics is None else case.files.name(case.files.metrics)
    data = {"gauge": packed(exam.series(name)), "capacity": packed(exam.capacity(name))}
    claims: list[Claim] = []
    for item in gauge.judged.evidence:
        if ("limit" in item.statement) is not limits or not item.weight:
            continue
        text = _readable(name, item.statement)
        claims.append(
            Claim(
                "gauge_limit" if limits else "gauge",
                text,
                ((source, f"judge_resource: {name} before and since {clock(onset.at)} UTC", text),),
                bears_on={gauge.suspect.kind: item.weight},
                data=data if not claims else {},
            )
        )
    return claims
