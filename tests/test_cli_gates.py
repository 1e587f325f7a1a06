"""The commands about what holds tasks back, on a real board."""

from __future__ import annotations

import pytest

from .clitools import Cli


@pytest.fixture(name="cli")
def _cli(database_url: str) -> Cli:
    return Cli(database_url)


@pytest.fixture
def incident(cli: Cli) -> str:
    return cli("session", "start", "INC-1234", "--json").json["id"]


def test_why(cli: Cli, incident: str):
    assert incident
    first = cli("task", "add", "collect", "--json").json["id"]
    task = cli("task", "add", "report", "--depends-on", first, "--requires-approval", "--json").json["id"]
    lines = cli("why", task).stdout.splitlines()
    assert lines[0] == f"Task {task} is awaiting_approval."
    assert lines[1].startswith("approval: It waits for approval: `blackboard task approve")
    assert lines[2] == f"dependency: Task {first} (collect) must complete first; it is pending."
    found = cli("why", task[-8:], "--json").json
    assert [reason["code"] for reason in found["reasons"]] == ["approval", "dependency"]
    assert "no task" in cli("why", "00000000-0000-7000-8000-000000000000", code=3).stderr.lower()


def test_limits(cli: Cli, incident: str):
    assert incident
    assert cli("limit", "list").stderr == "There are no limits.\n"
    limit = cli("limit", "set", "calls", "--max-running", "3", "--capability", "call", "--json").json
    assert (limit["kind"], limit["max_running"], limit["capability"]) == ("concurrency", 3, "call")
    cli("limit", "set", "mails", "--rate", "100", "--period", "1m", "--type", "mail", "--per-key")
    lines = cli("limit", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "calls", "mails"]
    for words in ([], ["--rate", "5"], ["--period", "5m"], ["--max-running", "1", "--rate", "5", "--period", "1m"]):
        told = cli("limit", "set", "x", *words, code=2).stderr
        assert told == "Error: A limit has either --max-running, or --rate and --period.\n", "the options' own names"
    assert cli("limit", "remove", "calls", "--json").json == {"name": "calls", "ready_again": 0}
    assert "calls" in cli("limit", "remove", "calls", code=3).stderr


def test_pause_and_resume(cli: Cli, incident: str):
    assert incident
    task = cli("task", "add", "mail", "--json").json["id"]
    pause = cli("task", "pause", "--type", "mail", "--reason", "relay down", "--as", "ops/a", "--json").json
    assert (pause["kind"], pause["name"], pause["paused_by"]) == ("type", "mail", "ops/a")
    assert "relay down" in cli("why", task).stdout
    assert cli("task", "resume", "--type", "mail", "--json").json == {"ready_again": 1}
    assert "type" in cli("task", "pause", code=2).stderr
    assert "type" in cli("task", "resume", code=2).stderr


def test_what_is_paused_is_listed(cli: Cli, incident: str):
    assert incident
    assert cli("task", "pauses").stderr == "No type and no capability is paused.\n"
    cli("task", "add", "mail")
    cli("task", "pause", "--type", "mail", "--reason", "relay down", "--as", "ops/a")
    cli("task", "pause", "--capability", "call")
    assert [one["name"] for one in cli("task", "pauses", "--json").json] == ["call", "mail"]
    head, first, second = cli("task", "pauses").stdout.splitlines()
    assert head.split() == ["PAUSED", "NAME", "BY", "SINCE", "REASON"]
    assert first.startswith("capability  call")
    assert second.startswith("type        mail") and second.endswith("relay down")
    assert "was not paused" in cli("task", "resume", "--type", "call").stderr, "that is a capability"
    assert cli("task", "resume", "--type", "mail").stderr == "Resumed; 1 task that was held is ready again.\n"
    assert cli("task", "resume", "--capability", "call").stderr == "Resumed; 0 tasks that were held are ready again.\n"


def test_add_with_gates(cli: Cli, incident: str):
    assert incident
    task = cli(
        "task", "add", "t", "--unique", "k", "--unique-window", "1h", "--limit-key", "customer 7",
        "--expires-at", "2099-01-01T00:00:00Z", "--assigned-to", "ops/a", "--fallback", "5m", "--json",
    ).json  # fmt: skip
    assert (task["unique_key"], task["limit_key"]) == ("k", "customer 7")
    assert cli("task", "add", "t", "--unique", "k", "--json").json["id"] == task["id"]


def test_prune(cli: Cli, incident: str):
    assert incident
    task = cli("task", "add", "t", "--json").json["id"]
    cli("task", "cancel", task)
    assert "give --older-than, or set the session's retention" in cli("task", "prune", code=2).stderr
    assert cli("task", "prune", "--older-than", "0s", "--dry-run").stderr == "1 task would go.\n"
    configured = cli("session", "configure", "--retention", "30d", "--ageing", "5m", "--json").json
    assert configured["retention"] and configured["ageing"]
    assert cli("task", "prune", "--json").json["tasks"] == 0
    assert cli("task", "prune", "--older-than", "0s", "--status", "cancelled", "--json").json["tasks"] == 1


def test_what_a_session_keeps(cli: Cli, incident: str):
    assert cli("session", "keep", "--json").json == {"tasks": None, "events": None, "error": None}
    assert cli("session", "keep", "--tasks", "30d", "--json").json["tasks"] == "P30D"
    kept = cli("session", "keep", "INC-1234", "--events", "90d", "--json").json
    assert (kept["tasks"], kept["events"]) == ("P30D", "P90D"), "what is not named stays"
    error = cli("session", "keep", "--events", "1m", "--json", code=2).error
    assert (error["field"], error["option"]) == ("events", "--events")
    assert cli("session", "keep", "--tasks", "ever", "--json").json["tasks"] is None
    assert cli("session", "keep", "--json").json["events"] == "P90D"
    assert len(cli("events", "--topic", "session.retention_changed", "--json").json) == 3
