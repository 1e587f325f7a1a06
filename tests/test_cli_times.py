"""Times as they are typed: what lies ahead is counted from now on, what lies behind, back from now."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from blackboard.errors import InvalidInput

from .clitools import Cli, module

_MINUTE = timedelta(minutes=1)


@pytest.fixture(name="cli")
def _cli(database_url: str) -> Cli:
    cli = Cli(database_url)
    cli("session", "start", "one")
    return cli


def test_a_duration_is_in_how_long_or_how_long_ago() -> None:
    values = module("values")
    for given, apart in (("10m", 10 * _MINUTE), ("1h30m", 90 * _MINUTE), ("2s", timedelta(seconds=2))):
        now = datetime.now(UTC)
        assert timedelta() <= values.coming(given, "run_at") - now - apart < _MINUTE
        assert timedelta() <= now - values.moment(given, "since") + _MINUTE - apart < 2 * _MINUTE
    whole = datetime(2026, 1, 31, 10, 15, tzinfo=UTC)
    assert values.coming("2026-01-31T10:15:00Z", "run_at") == whole == values.moment("2026-01-31T10:15:00Z", "since")
    assert values.coming(None, "run_at") is None
    for name, said in (("coming", "in how long"), ("moment", "how long ago")):
        for wrong in ("tomorrow", "999999999d"):
            with pytest.raises(InvalidInput) as refused:
                getattr(values, name)(wrong, "run_at")
            assert refused.value.field == "run_at"
        with pytest.raises(InvalidInput, match=said):
            getattr(values, name)("tomorrow", "run_at")


def test_a_task_runs_and_expires_in_so_long(cli: Cli) -> None:
    before = datetime.now(UTC)
    later = cli("task", "add", "t", "--run-at", "10m", "--expires-at", "1h", "--json").json
    assert later["status"] == "scheduled"
    assert 9 * _MINUTE < datetime.fromisoformat(later["run_at"]) - before < 11 * _MINUTE
    assert 59 * _MINUTE < datetime.fromisoformat(later["expires_at"]) - before < 61 * _MINUTE


def test_a_stage_of_a_file_runs_in_so_long(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "flow.yaml"
    file.write_text("name: f\nstages:\n  - {name: a, type: t, run_at: 10m}\n")
    cli("flow", "create", str(file))
    [task] = cli("task", "list", "--json").json
    assert task["status"] == "scheduled"


def test_what_is_depended_on_is_a_task(cli: Cli) -> None:
    error = cli("task", "add", "t", "--depends-on", "ffffff", "--json", code=3).error
    assert (error["noun"], error["id"]) == ("task", "ffffff")
    assert error["message"].startswith("No task in this session")


def test_a_wrong_choice_is_told_without_the_librarys_preface(cli: Cli) -> None:
    message = cli("budget", "set", "bogus", "1", "--json", code=2).error["message"]
    assert "'bogus' is not one of" in message
    assert "Value error" not in message


def test_a_window_without_a_key_is_refused(cli: Cli) -> None:
    assert cli("task", "add", "t", "--unique-window", "5m", "--json", code=2).error["field"] == "unique_window"
