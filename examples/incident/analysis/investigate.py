"""The whole analysis in one call; each step of it can be called alone as well."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .changes import Change
from .correlation import ChangeCorrelation, LaggedCorrelation, correlate_changes, correlate_series
from .departures import Departure, find_departure
from .digest import LogDigest
from .growth import GrowthMatch, match_growth
from .hypotheses import Hypothesis, judge_change, judge_errors_elsewhere, judge_resource, judge_traffic
from .lines import Level
from .metrics import Metrics
from .onset import NoOnset, Onset, detect_onset
from .series import Series
from .templates import Template

__all__ = ["Columns", "Investigation", "NewTemplate", "classify_columns", "investigate", "new_templates"]

_ERRORS = re.compile(r"err|fail|5xx|exception", re.IGNORECASE)
_TRAFFIC = re.compile(r"^(?:http_)?(?:requests?|rps|qps|hits|calls)(?:_total|_count|_per_second)?$", re.IGNORECASE)
_SYMPTOM = re.compile(r"_ms$|latenc|duration|^p\d\d|_p\d\d|response_time|wait|^up$", re.IGNORECASE)
_CAPACITY = re.compile(r"^(.*?)_?(?:max|limit|capacity|size_max)$", re.IGNORECASE)


@dataclass(frozen=True)
class NewTemplate:
    """A message that was first seen with the errors or after they began."""

    source: str
    template: Template
    since_onset: dt.timedelta
    """From the onset to the first of them; may be a little negative, the onset is known to within its step."""


@dataclass(frozen=True)
class Investigation:
    """What the logs and the metrics say; without an onset everything that builds on it is empty."""

    onset: Onset | NoOnset
    errors: Series
    departures: tuple[Departure, ...]
    """Gauges that left their level before the onset, the earliest first."""
    new_templates: tuple[NewTemplate, ...]
    changes: tuple[ChangeCorrelation, ...]
    correlations: tuple[LaggedCorrelation, ...]
    growth: tuple[GrowthMatch, ...]
    """Which events the earliest departing gauge grew with, the best fit first; needs a log digested by groups."""
    hypotheses: tuple[Hypothesis, ...]
    """The best first."""


@dataclass(frozen=True)
class Columns:
    """What the columns of a metrics file are, by their names."""

    errors: tuple[str, ...]
    traffic: tuple[str, ...]
    symptoms: tuple[str, ...]
    capacities: dict[str, str]
    """Resource to the column that says how much of it there is."""
    resources: tuple[str, ...]


def classify_columns(names: Sequence[str]) -> Columns:
    """Which columns of a metrics file count errors or requests, show symptoms, name a limit, or measure a resource."""
    errors = tuple(name for name in names if _ERRORS.search(name))
    traffic = tuple(name for name in names if _TRAFFIC.search(name))
    symptoms = tuple(name for name in names if _SYMPTOM.search(name) and name not in errors)
    rest = [name for name in names if name not in (*errors, *traffic, *symptoms)]
    limits = {name: found[1] for name in rest if (found := _CAPACITY.match(name)) is not None}
    resources = tuple(name for name in rest if name not in limits)
    capacities = {
        resource: limit
        for limit, stem in limits.items()
        for resource in resources
        if stem and resource.startswith(stem) and re.search(r"use|busy|active|open|size", resource)
    }
    return Columns(errors, traffic, symptoms, capacities, resources)


def new_templates(
    digests: Sequence[LogDigest], onset: Onset, at_least: Level = Level.WARNING
) -> tuple[NewTemplate, ...]:
    """Messages of this level or worse that had not been seen before the errors began, the most frequent first.

    A message counts as new from five steps of the onset's precision before it.
    """
    since = onset.at - 5 * onset.step
    found = [
        NewTemplate(digest.source, template, template.first_at - onset.at)
        for digest in digests
        for template in digest.templates
        if template.level >= at_least and template.first_at >= since
    ]
    return tuple(sorted(found, key=lambda item: -item.template.count))


def investigate(
    service: LogDigest,
    *,
    others: Sequence[LogDigest] = (),
    metrics: Metrics | None = None,
    changes: Sequence[Change] = (),
    min_ratio: float = 2.0,
    per_line: bool = False,
) -> Investigation:
    """What happened to a service, as far as its logs and metrics tell.

    Args:
        service: the log whose errors are looked into.
        others: logs of what it depends on.
        metrics: samples of gauges and counters over the same time.
        changes: what was deployed and configured.
        min_ratio: a rise of the error rate by less is no onset.
        per_line: errors are measured against all lines of the log instead of time; for logs whose traffic goes up and
            down by itself, as access logs do by day and night.

    Raises:
        ValueError: the service's log has no events.
    """
    errors = service.rate(Level.ERROR)
    onset = detect_onset(errors, exposure=service.rate(Level.DEBUG) if per_line else None, min_ratio=min_ratio)
    if isinstance(onset, NoOnset):
        return Investigation(onset, errors, (), (), (), (), (), ())
    departures: list[Departure] = []
    correlations: list[LaggedCorrelation] = []
    hypotheses: list[Hypothesis] = []
    growth: tuple[GrowthMatch, ...] = ()
    if metrics is not None:
        columns = classify_columns(list(metrics.columns))
        gauges = {name: metrics.series(name) for name in columns.resources}
        found = (find_departure(series, until=onset.at) for series in gauges.values())
        departures = sorted((item for item in found if item is not None and item.rises), key=lambda item: item.at)
        first = departures[0] if departures else None
        for name, series in gauges.items():
            correlations.append(correlate_series(series, errors))
            limit = columns.capacities.get(name)
            capacity = None if limit is None else metrics.series(limit)
            hypotheses.append(judge_resource(series, onset, errors, capacity, first))
        hypotheses += [judge_traffic(metrics.series(name), onset) for name in columns.traffic]
        if first is not None:
            growth = match_growth(gauges[first.series], service.groups, first.at - 5 * metrics.step, onset.at)
    for digest in others:
        if digest.events:
            covered = digest.rate(Level.ERROR, errors.step, errors.start, errors.end - errors.step)
            hypotheses.append(judge_errors_elsewhere(covered, onset))
    judged = correlate_changes(changes, onset, errors, departures)
    hypotheses += [judge_change(item) for item in judged]
    return Investigation(
        onset=onset,
        errors=errors,
        departures=tuple(departures),
        new_templates=new_templates([service, *others], onset),
        changes=judged,
        correlations=tuple(sorted(correlations, key=lambda item: -abs(item.pearson_without_lag))),
        growth=growth,
        hypotheses=tuple(sorted(hypotheses, key=lambda item: -item.score)),
    )
