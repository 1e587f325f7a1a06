"""Finds out from logs and metrics what happened: yours, or those of the recording. Pure: lines in, values out.

From files to an answer::

    with open("service.log") as service, open("postgresql.log") as database, open("deployments.log") as deployments:
        digest = digest_log(read_log(service, "service"), group_by=("route", "status"))  # format by trial, one pass
        others = [digest_log(read_log(database, "postgresql"))]
        changes = find_changes(read_log(deployments, "deployments"))
    with open("metrics.csv") as file:
        metrics = read_metrics(file)

    found = investigate(digest, others=others, metrics=metrics, changes=changes)
    if isinstance(found.onset, NoOnset):
        print(found.onset.reason)                                     # an honest answer, too
    else:
        print(found.onset.at, found.onset.ratio, found.hypotheses[0].statement, found.hypotheses[0].score)

Step by step, as several agents would share the work:

==========================  =========================================================================================
``read_log``                events (``LogLine``) of a log in any of seven formats; counts what it could not read
``digest_log``              one pass: counts by level and second, templates of warnings and errors; stays small
``LogDigest.rate``          how many errors (or any level) in each bucket, as a ``Series``
``LogDigest.templates``     error templates with count, first and last time, an example and its line number
``detect_onset``            when a count rose beyond chance: ``Onset`` or ``NoOnset``, with method, ratio and threshold
``new_templates``           messages that were not seen before the onset
``read_metrics``            a CSV of samples; ``Metrics.series(name)`` at an even step
``find_departure``          when a gauge left its level
``match_growth``            which kind of event a gauge grew with (needs a digest with ``group_by``)
``find_changes``            deployments, settings, migrations … from a log of changes, with versions
``correlate_changes``       each change's lag to onset and first effect, error rates before and after, score
``correlate_series``        Pearson and Spearman of two series, with the lag at which they fit best
``judge_resource``          the hypothesis that a resource ran out: its evidence for and against, and a score
``judge_traffic``           … that more requests came than the system could take
``judge_errors_elsewhere``  … that a dependency had errors of its own
``judge_change``            … that a change brought the errors
==========================  =========================================================================================

All times are aware and in UTC. Nothing here knows the recording: what is found is measured.
"""

from .changes import Change, find_changes
from .correlation import (
    ChangeCorrelation,
    LaggedCorrelation,
    correlate_changes,
    correlate_series,
    pearson,
    spearman,
)
from .departures import Departure, find_departure
from .digest import LogDigest, digest_lines, digest_log
from .growth import GrowthMatch, match_growth
from .hypotheses import (
    Evidence,
    Hypothesis,
    judge_change,
    judge_errors_elsewhere,
    judge_resource,
    judge_traffic,
)
from .investigate import Columns, Investigation, NewTemplate, classify_columns, investigate, new_templates
from .lines import Level, LogLine
from .metrics import Metrics, MetricsError, read_metrics
from .onset import NoOnset, Onset, detect_onset
from .reader import LogReader, read_log
from .series import Series, choose_bucket
from .templates import Template, TemplateTable, mask

__all__ = [
    "Change",
    "ChangeCorrelation",
    "Columns",
    "Departure",
    "Evidence",
    "GrowthMatch",
    "Hypothesis",
    "Investigation",
    "LaggedCorrelation",
    "Level",
    "LogDigest",
    "LogLine",
    "LogReader",
    "Metrics",
    "MetricsError",
    "NewTemplate",
    "NoOnset",
    "Onset",
    "Series",
    "Template",
    "TemplateTable",
    "choose_bucket",
    "classify_columns",
    "correlate_changes",
    "correlate_series",
    "detect_onset",
    "digest_lines",
    "digest_log",
    "find_changes",
    "find_departure",
    "investigate",
    "judge_change",
    "judge_errors_elsewhere",
    "judge_resource",
    "judge_traffic",
    "mask",
    "match_growth",
    "new_templates",
    "pearson",
    "read_log",
    "read_metrics",
    "spearman",
]
