"""security/incident-response-lead: reads the logs, says when errors began and what they speak of, looks for attacks."""

from __future__ import annotations

from typing import Any

from blackboard import Agent
from blackboard.models.tasks import TaskRecord

from .analysis import Level, NoOnset, Onset
from .ballots import cast_ballot
from .casework import VOTE, Case, Claim
from .examination import Examination, clock, rise
from .scan import Scan, Security
from .suspects import PRIOR, TRAFFIC, Suspect, candidates, gauge_cases, message_shares

__all__ = ["describe_security", "investigate"]

PATTERNS = 3
"""So many of the new messages are reported each by itself."""


async def investigate(agent: Agent, focus: str, *, task: TaskRecord, queries: Any, context: Any) -> dict[str, Any]:
    """Error patterns and logs: everything found is on the board, and hypotheses for what the messages name."""
    case = Case(agent, task, queries, context)
    if task.type == VOTE:
        return await cast_ballot(case)
    await case.progress(focus)
    exam = await case.examine()
    for scan in exam.scans:
        await case.report(_log_claim(scan))
    await case.progress("looking for the onset of errors")
    await case.report(onset_claim(exam))
    await case.report(security_claim(exam))
    onset = exam.onset
    if onset is None:
        return case.result(_reason(exam))
    await case.progress("looking at what the errors speak of")
    for claim in _pattern_claims(exam, onset):
        await case.report(claim)
    shares = message_shares(exam, onset)
    gauges = gauge_cases(exam)
    named = [share.suspect for share in shares if share.suspect in candidates(shares, ())]
    for suspect in named:
        await case.propose(suspect.kind, suspect.statement, PRIOR)
    suspects = candidates(shares, gauges)
    for suspect in suspects:
        await case.report(_share_claim(exam, onset, suspect))
    if (leak := _leak_claim(exam)) is not None:
        await case.report(leak)
    for suspect in suspects:
        share = next((one.share for one in shares if one.suspect is suspect), 0.0)
        await case.assess(suspect.kind, share, f"{share:.0%} of the errors since the onset speak of {suspect.words}")
    await case.assess(TRAFFIC, 0.0, "the messages speak of no overload by requests")
    top = shares[0] if shares else None
    return case.result(
        f"errors began at {clock(onset.at)} UTC: {rise(onset.incident_per_minute, onset.baseline_per_minute)}"
        + (f"; {top.share:.0%} of them speak of {top.suspect.words}" if top is not None else ""),
        onset=onset.at.isoformat(),
    )


def _log_claim(scan: Scan) -> Claim:
    digest = scan.digest
    if digest.first_at is None or digest.last_at is None:
        return Claim(
            "log",
            f"{digest.source}: no line of {scan.physical_lines} could be read",
            ((digest.source, "read_log: the format by trial", "no format reads its lines"),),
            data={"unparsed": digest.unparsed, "samples": [list(sample) for sample in digest.unparsed_samples]},
        )
    lost = f"{digest.unparsed} lines could not be read" if digest.unparsed else "every line could be read"
    span = f"{clock(digest.first_at)} to {clock(digest.last_at, like=digest.first_at)} UTC"
    errors = digest.count(Level.ERROR)
    result = (
        f"format: {digest.format_name}; {scan.physical_lines} lines, {digest.events} events, {digest.unparsed} "
        f"unreadable; {errors} errors, {digest.count(Level.WARNING) - errors} warnings"
    )
    return Claim(
        "log",
        f"{digest.source} has {digest.events} events from {span} ({digest.format_name}); {lost}",
        ((digest.source, "read_log, digest_log: one pass over the file", result),),
        confidence=round(digest.events / max(1, digest.events + digest.unparsed), 4),
        data={
            "source": digest.source,
            "format": digest.format_name,
            "lines": scan.physical_lines,
            "events": digest.events,
            "errors": errors,
            "unparsed": digest.unparsed,
            "samples": [list(sample) for sample in digest.unparsed_samples],
        },
    )


def _reason(exam: Examination) -> str:
    found = exam.found.onset
    reason = found.reason if isinstance(found, NoOnset) else ""
    return f"no onset of errors in {', '.join(scan.digest.source for scan in exam.scans)}: {reason}"


def onset_claim(exam: Examination) -> Claim:
    """When errors began, or that nothing stood out; with the error rate for a plot."""
    errors = exam.found.errors
    source = exam.primary.digest.source
    data: dict[str, Any] = {
        "errors": {
            "source": source,
            "start": errors.start.isoformat(),
            "step_seconds": errors.step.total_seconds(),
            "values": [int(value) for value in errors.values],
        }
    }
    found = exam.found.onset
    if isinstance(found, NoOnset):
        result = (
            f"{found.reason}; {found.per_minute:.2f} a minute over the whole log; log-likelihood ratio "
            f"{found.log_likelihood_ratio:.1f}, threshold {found.threshold:.1f}"
        )
        return Claim(
            "no_onset", _reason(exam), ((source, f"detect_onset: {found.method}", result),), data=data, confidence=0.9
        )
    result = (
        f"{found.events} errors from {clock(found.at)} on (step {found.step.total_seconds():g} s): "
        f"{found.incident_per_minute:.1f} a minute, {found.baseline_per_minute:.2f} before; log-likelihood ratio "
        f"{found.log_likelihood_ratio:.1f}, threshold {found.threshold:.1f}, dispersion {found.dispersion:.2f}"
    )
    ended = "still going on when the log ends" if found.ended_at is None else f"over at {clock(found.ended_at)}"
    data["onset"] = {
        "at": found.at.isoformat(),
        "ended_at": None if found.ended_at is None else found.ended_at.isoformat(),
        "baseline_per_minute": found.baseline_per_minute,
        "incident_per_minute": found.incident_per_minute,
        "ratio": found.ratio,
        "events": found.events,
    }
    return Claim(
        "onset",
        f"errors in {source} began at {clock(found.at)} UTC: "
        f"{rise(found.incident_per_minute, found.baseline_per_minute)}, {ended}",
        ((source, f"detect_onset: {found.method}", result),),
        confidence=round(found.log_likelihood_ratio / (found.log_likelihood_ratio + found.threshold), 3),
        data=data,
    )


def describe_security(exam: Examination) -> tuple[Security, int, int]:
    """What all logs together have that bears on security: everything, how much before the onset, how much since."""
    together = Security()
    before = since = 0
    onset = exam.onset
    for scan in exam.scans:
        for into, counts in (
            (together.denied, scan.security.denied),
            (together.suspicious, scan.security.suspicious),
        ):
            for second, count in counts.items():
                into[second] = into.get(second, 0) + count
        together.samples += [(number, f"{scan.digest.source}: {text}") for number, text in scan.security.samples]
        if onset is not None:
            before += scan.security.between(None, onset.at)
            since += scan.security.between(onset.at, onset.ended_at)
    return together, before, since


def security_claim(exam: Examination) -> Claim:
    """Whether anything in the logs bears on security, counted."""
    found, before, since = describe_security(exam)
    denied, suspicious = sum(found.denied.values()), sum(found.suspicious.values())
    events = sum(scan.digest.events for scan in exam.scans)
    evidence = tuple(
        (
            scan.digest.source,
            "count refused access (messages, statuses 401 and 403) and requests that look like probes",
            (
                f"{sum(scan.security.denied.values())} refused, {sum(scan.security.suspicious.values())} suspicious, "
                f"in {scan.digest.events} events"
            ),
        )
        for scan in exam.scans
    )
    onset = exam.onset
    data: dict[str, Any] = {"denied": denied, "suspicious": suspicious, "before": before, "since": since}
    data["errors_since"] = 0 if onset is None else onset.events
    data["rates"] = _security_rates(exam, before, since)
    data["samples"] = [list(sample) for sample in found.samples[:5]]
    if not denied and not suspicious:
        text = f"no sign of an attack: 0 refused accesses and 0 suspicious requests in {events} events"
    else:
        text = f"{denied} refused accesses and {suspicious} suspicious requests in {events} events"
        if onset is not None:
            text += f": {before} before the errors began, {since} since"
    return Claim("security", text, evidence, data=data)


def _security_rates(exam: Examination, before: int, since: int) -> dict[str, float]:
    """A minute, before the onset and since."""
    onset = exam.onset
    if onset is None:
        return {"before": 0.0, "since": 0.0}
    start, end = exam.found.errors.start, onset.ended_at or exam.found.errors.end
    return {
        "before": before / max(1 / 60, (onset.at - start).total_seconds() / 60),
        "since": since / max(1 / 60, (end - onset.at).total_seconds() / 60),
    }


def _pattern_claims(exam: Examination, onset: Onset) -> list[Claim]:
    new = [item for item in exam.found.new_templates if item.template.level >= Level.ERROR]
    return [
        Claim(
            "error_pattern",
            f"new since the errors began: “{item.template.text[:160]}”, {item.template.count} times in "
            f"{item.source}, first at {clock(item.template.first_at)} UTC",
            (
                (
                    item.source,
                    "new_templates: messages not seen before the onset",
                    (
                        f"{item.template.count} times from {clock(item.template.first_at)} to "
                        f"{clock(item.template.last_at, like=item.template.first_at)}; the first is line "
                        f"{item.template.line_number}: {item.template.example[:200]}"
                    ),
                ),
            ),
            confidence=round(min(0.98, item.template.count / (item.template.count + 1)), 3),
        )
        for item in new[:PATTERNS]
        if item.template.count >= 2 and onset.events
    ]


def _share_claim(exam: Examination, onset: Onset, suspect: Suspect) -> Claim:
    shares = message_shares(exam, onset)
    share = next((one for one in shares if one.suspect is suspect), None)
    count, total = (0, shares[0].total if shares else 0) if share is None else (share.count, share.total)
    part = count / total if total else 0.0
    result = f"{count} of {total} errors ({part:.0%})"
    if share is not None:
        result += f"; first of the commonest is line {share.line_number}: {share.example[:200]}"
    return Claim(
        "error_messages",
        f"{count} of {total} errors since {clock(onset.at)} UTC speak of {suspect.words}",
        ((exam.primary.digest.source, f"error templates since the onset that match “{suspect.statement}”", result),),
        bears_on={suspect.kind: 2 * part if count else -1.0},
    )


def _leak_claim(exam: Examination) -> Claim | None:
    """Which kind of request a gauge grew with, one by one, before it was exhausted."""
    best = exam.found.growth[0] if exam.found.growth else None
    if best is None or best.r_squared < 0.9 or best.slope <= 0:
        return None
    case = next((one for one in gauge_cases(exam) if one.judged.subject == best.series), None)
    second = exam.found.growth[1] if len(exam.found.growth) > 1 else None
    result = (
        f"{best.slope:.2f} for each, {best.events} events, R²={best.r_squared:.3f}, residual {best.residual:.2f}"
        + (f"; next best {' '.join(second.key)}: R²={second.r_squared:.3f}" if second is not None else "")
    )
    return Claim(
        "growth",
        f"{best.series} grew by {best.slope:.2f} with each request of the kind {' '.join(best.key)} before it was "
        "used up",
        ((f"{exam.primary.digest.source}, metrics", f"match_growth: {best.series} against counts by kind", result),),
        confidence=round(min(0.95, best.r_squared), 3),
        bears_on={} if case is None else {case.suspect.kind: 1.0},
    )
