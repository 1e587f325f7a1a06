"""``blackboard budget`` and ``blackboard schedule`` on a real board."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import psycopg
import pytest

from blackboard.sync import Blackboard

from .clitools import Cli


@pytest.fixture(name="cli")
def _cli(database_url: str) -> Cli:
    cli = Cli(database_url)
    cli("session", "start", "INC-1234")
    return cli


def test_budgets(cli: Cli, database_url: str):
    assert "blackboard budget set" in cli("budget", "list").stderr
    assert "Nothing was spent" in cli("budget", "report").stderr
    task = cli("task", "add", "t", "--json").json["id"]
    cli("budget", "set", "tokens", "2_000", "--soft", "1500")
    found = cli(
        "budget", "set", "cost", "2.50", "--currency", "EUR", "--window", "1d", "--agent", "ops/a", "--json"
    ).json
    assert (found["scope"], found["ceiling"], found["window"], found["currency"]) == ("agent", "2.50", "P1D", "EUR")
    cli("budget", "set", "calls", "3", "--task", task[-8:])
    with Blackboard.open(database_url) as board:
        agent = board.session("INC-1234").join("ops/a")
        with agent.budgets.spend(tokens=1000, calls=1, task=task, model="large", note="look") as spend:
            spend.tokens = 900
        agent.budgets.reserve(cost="0.5", currency="EUR")
    lines = cli("budget", "list").stdout.splitlines()
    assert lines[0].split() == ["BUDGET", "OF", "UNIT", "CEILING", "SPENT", "RESERVED", "REMAINING", "SOFT", "WINDOW"]
    assert lines[1].split() == ["the", "session", "tokens", "2000", "900", "0", "1100", "1500", "-"]
    assert lines[2].split() == ["ops/a", "EUR", "2.50", "0", "0.5", "2.00", "-", "24h"] or "EUR" in lines[2]
    report = cli("budget", "report").stdout
    assert ["model", "large", "tokens", "900", "0", "1"] in [line.split() for line in report.splitlines()]
    as_json = cli("budget", "report", "--json").json
    assert {usage["key"] for usage in as_json["agents"]} == {"ops/a"}
    assert [b["unit"] for b in as_json["budgets"]] == ["tokens", "cost", "calls"]
    assert len(cli("budget", "ledger", "--json").json) == 3
    assert len(cli("budget", "ledger", "--task", task, "--json").json) == 2
    (entry,) = cli(
        "budget", "ledger", "--status", "expired", "--agent", "ops/a", "--json"
    ).json  # its process has ended
    assert (entry["reserved"], entry["currency"]) == ("0.5", "EUR")
    assert "ops/a" in cli("budget", "ledger").stdout
    assert cli("budget", "remove", "calls", "--task", task, "--json").json == {"removed": True}
    assert cli("budget", "remove", "calls", "--json").json == {"removed": False}
    for arguments, field in (
        (["tokens", "many"], "ceiling"),
        (["tokens", "1", "--soft", "x"], "soft"),
        (["tokens", "1", "--window", "soon"], "window"),
        (["cost", "1", "--currency", "$"], "currency"),
        (["tokens", "5", "--soft", "6"], "soft"),
    ):
        assert cli("budget", "set", *arguments, "--json", code=2).error["field"] == field


def _due(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE blackboard.schedules SET next_at = blackboard.now() - interval '1 second'")


def test_schedules(cli: Cli, database_url: str):
    assert "blackboard schedule add" in cli("schedule", "list").stderr
    added = cli(
        "schedule", "add", "nightly", "30 2 * * *", "report", "--timezone", "Europe/Berlin", "--parameters",
        '{"of": "yesterday"}', "--missed", "skip", "--timeout", "5m", "--json",
    ).json  # fmt: skip
    assert (added["cron"], added["missed"], added["options"]) == ("30 2 * * *", "skip", {"timeout": "300.0 seconds"})
    lines = cli("schedule", "list").stdout.splitlines()
    assert lines[0].split()[:4] == ["NAME", "CRON", "TIME", "ZONE"]
    assert lines[1].count("Z") == 3
    (listed,) = cli("schedule", "list", "--json").json
    assert len(listed["next_times"]) == 3
    assert len(cli("schedule", "show", "nightly", "--times", "5", "--json").json["next_times"]) == 5
    assert cli("schedule", "pause", "nightly", "--json").json["paused"] is True
    assert "paused" in cli("schedule", "list").stdout
    assert cli("schedule", "resume", added["id"], "--json").json["paused"] is False
    assert cli("schedule", "run", "--once").stdout == ""
    _due(database_url)
    assert "nightly  task " in cli("schedule", "run", "--once", "--session", "INC-1234").stdout
    assert [task["type"] for task in cli("task", "list", "--json").json] == ["report"]
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE blackboard.schedules SET cron = 'whenever'")
    assert cli("schedule", "list", "--json").json[0]["next_times"] == []
    assert cli("schedule", "remove", "nightly", "--json").json["removed_at"]
    assert cli("schedule", "show", "nightly", "--json", code=3).error["noun"] == "schedule"
    assert cli("schedule", "add", "s", "* * * * * *", "t", "--json", code=2).error["field"] == "cron"
    assert (
        cli("schedule", "add", "s", "@daily", "t", "--timezone", "Mars", "--json", code=2).error["field"] == "timezone"
    )


def test_the_loop_in_the_foreground(cli: Cli, database_url: str):
    cli("schedule", "add", "s", "@daily", "t")
    _due(database_url)
    with subprocess.Popen(
        [sys.executable, "-m", "blackboard_cli", "schedule", "run", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "BLACKBOARD_URL": database_url},
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["name"] == "s"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert len(cli("task", "list", "--json").json) == 1


def test_a_schedule_that_nobody_looks_after_is_told(cli: Cli, database_url: str):
    cli("schedule", "add", "nightly", "@daily", "t")
    assert cli("schedule", "list").stderr == ""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE blackboard.schedules SET next_at = blackboard.now() - interval '5 minutes 1 second'")
    told = "What was due 5m ago has not fired: start a worker or `blackboard schedule run`.\n"
    assert cli("schedule", "list").stderr == told
    assert cli("schedule", "show", "nightly").stderr == told
    assert cli("schedule", "list", "--json").stderr == ""
    cli("session", "pause")
    assert cli("schedule", "list").stderr == "", "nothing fires there"
    cli("session", "resume")
    cli("schedule", "pause", "nightly")
    assert cli("schedule", "list").stderr == ""
