"""The incident can be recorded afresh, and the fresh recording tells the same story."""

from __future__ import annotations

from pathlib import Path

import pytest
from blackboard_examples.incident.analysis import (
    Onset,
    digest_log,
    find_changes,
    investigate,
    read_log,
    read_metrics,
)
from blackboard_examples.incident.record import Timeline, record

# More requests for missing orders than in the real one: the pool is empty two seconds after the deployment.
SHORT = Timeline(
    slow_query_at=2.0,
    deploy_at=7.0,
    report_cache_at=8.0,
    end_at=15.0,
    requests_per_second=20.0,
    missing_share=0.25,
)


@pytest.mark.lifecycle
def test_a_short_recording_shows_the_leak(tmp_path: Path) -> None:
    record(tmp_path, SHORT)
    with (tmp_path / "service.log").open() as file:
        service = digest_log(read_log(file, "service"), group_by=("route", "status"))
    with (tmp_path / "deployments.log").open() as file:
        changes = find_changes(read_log(file, "deployments"))
    with (tmp_path / "metrics.csv").open() as file:
        metrics = read_metrics(file)
    assert [change.kind for change in changes] == ["deploy", "setting", "deploy", "setting"]
    assert max(metrics.columns["pool_in_use"]) == 10
    found = investigate(service, metrics=metrics, changes=changes)
    assert isinstance(found.onset, Onset)
    assert any(item.template.text.startswith("pool timeout") for item in found.new_templates)
    assert found.onset.at > changes[2].at
    assert {path.name for path in tmp_path.iterdir()} == {
        "service.log", "postgresql.log", "metrics.csv", "deployments.log",
    }  # fmt: skip


def test_a_recording_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "service.log").touch()
    with pytest.raises(FileExistsError, match=r"service\.log"):
        record(tmp_path, SHORT)
