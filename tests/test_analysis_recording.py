"""The analysis finds in the shipped recording what happened there, and in its quiet part nothing."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator

import pytest
from blackboard_examples.incident import RECORDING
from blackboard_examples.incident.analysis import (
    Change,
    Investigation,
    Level,
    LogDigest,
    Metrics,
    NoOnset,
    Onset,
    digest_lines,
    digest_log,
    find_changes,
    find_departure,
    investigate,
    read_log,
    read_metrics,
)

GROUPS = ("route", "status")


def lines(name: str) -> Iterator[str]:
    with (RECORDING / name).open(encoding="utf-8") as file:
        yield from file


@pytest.fixture(scope="module")
def service() -> LogDigest:
    return digest_log(read_log(lines("service.log"), "service"), group_by=GROUPS)


@pytest.fixture(scope="module")
def database() -> LogDigest:
    return digest_log(read_log(lines("postgresql.log"), "postgresql"))


@pytest.fixture(scope="module")
def changes() -> tuple[Change, ...]:
    return find_changes(read_log(lines("deployments.log"), "deployments"))


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return read_metrics(lines("metrics.csv"))


@pytest.fixture(scope="module")
def deployment(changes: tuple[Change, ...]) -> Change:
    return next(change for change in changes if change.version == "1.2.3")


@pytest.fixture(scope="module")
def found(service: LogDigest, database: LogDigest, metrics: Metrics, changes: tuple[Change, ...]) -> Investigation:
    return investigate(service, others=[database], metrics=metrics, changes=changes)


def test_every_line_of_the_recording_is_read(service: LogDigest, database: LogDigest, metrics: Metrics) -> None:
    assert (service.format_name, service.unparsed) == ("time stamped text", 0)
    assert (database.format_name, database.unparsed) == ("PostgreSQL", 0)
    assert (metrics.bad_rows, metrics.bad_values) == (0, 0)
    assert service.events > 1000


def test_the_recording_names_no_machine() -> None:
    assert sum(file.stat().st_size for file in RECORDING.iterdir()) < 1_500_000
    for file in RECORDING.iterdir():
        text = file.read_text(encoding="utf-8")
        assert not any(
            path in text for path in ("/tmp", "/home", "/root", "/work", "/var/", "/dev/shm", "site-packages")
        )


def test_the_onset_lies_between_deployment_and_the_first_pool_timeout(
    found: Investigation, service: LogDigest, deployment: Change
) -> None:
    assert isinstance(found.onset, Onset)
    first_timeout = min(item.first_at for item in service.templates if item.text.startswith("pool timeout"))
    assert deployment.at < found.onset.at
    assert abs(found.onset.at - first_timeout) <= dt.timedelta(seconds=5)
    assert found.onset.ratio > 10
    assert found.onset.ended_at is None


def test_pool_timeouts_are_new_and_the_old_bug_is_not(found: Investigation, service: LogDigest) -> None:
    assert any(item.text.startswith("unhandled exception") for item in service.templates)
    assert found.new_templates
    assert all(
        item.template.text.startswith("pool timeout") for item in found.new_templates if item.source == "service"
    )


def test_the_deployment_is_the_change_to_blame(found: Investigation) -> None:
    best, *others = found.changes
    assert best.change.name == "deploy 1.2.3"
    assert best.lag > dt.timedelta()
    assert all(best.score > 1.5 * other.score for other in others)
    nearer = next(item for item in others if item.change.name == "setting report_cache=on")
    assert nearer.lag < best.lag, "another change lies nearer to the onset, so nearness alone would mislead"


def test_the_pool_ran_out_and_memory_did_not(found: Investigation) -> None:
    scores = {hypothesis.subject: hypothesis.score for hypothesis in found.hypotheses}
    assert scores["pool_in_use"] > 0.9
    assert scores["rss_bytes"] < 0.5
    assert scores["requests"] < 0.5
    assert scores["postgresql errors"] < 0.5
    assert scores["deploy 1.2.3"] > scores["setting report_cache=on"]


def test_the_pool_grew_by_one_with_each_order_not_found(found: Investigation, metrics: Metrics) -> None:
    assert found.departures[0].series in ("pool_in_use", "pool_open")
    best = found.growth[0]
    assert best.key == ("/orders/N", "404")
    assert best.slope == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize("with_metrics", [True, False])
def test_before_the_deployment_nothing_is_found(
    metrics: Metrics, changes: tuple[Change, ...], deployment: Change, with_metrics: bool
) -> None:
    quiet = digest_lines(
        (line for line in read_log(lines("service.log"), "service") if line.at < deployment.at), "service"
    )
    found = investigate(quiet, metrics=metrics if with_metrics else None, changes=changes)
    assert isinstance(found.onset, NoOnset)
    assert found.onset.reason
    assert found.hypotheses == found.changes == found.departures == found.new_templates == ()
    assert find_departure(metrics.series("pool_in_use"), until=deployment.at) is None


def test_the_service_alone_is_enough_for_an_onset(service: LogDigest) -> None:
    found = investigate(service)
    assert isinstance(found.onset, Onset)
    assert found.hypotheses == ()


@pytest.mark.parametrize("make", [lambda text: text, lambda text: text.rstrip("\n") + "\r\n"])
def test_line_ends_do_not_matter(make: Callable[[str], str], database: LogDigest) -> None:
    again = digest_log(read_log((make(text) for text in lines("postgresql.log")), "postgresql"))
    assert again == database


def test_a_log_without_events_is_refused() -> None:
    with pytest.raises(ValueError, match="no events"):
        investigate(digest_lines([], "empty"))
    assert digest_lines([], "empty").count(Level.DEBUG) == 0
