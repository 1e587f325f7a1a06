"""Every noun's commands on a real board: people's output, JSON, errors that name the field, ids in part."""

from __future__ import annotations

import re
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from .clitools import Cli, module


@pytest.fixture(name="cli")
def _cli(database_url: str) -> Cli:
    return Cli(database_url)


@pytest.fixture
def incident(cli: Cli) -> str:
    """An open session with two members; its id."""
    found = cli("session", "start", "INC-1234", "--goal", "Why does checkout fail?", "--json").json["id"]
    cli("agent", "join", "ops/a", "--capability", "investigate", "--expertise", "deployment=0.9")
    cli("agent", "join", "ops/b")
    return found


def _report(cli: Cli, content: str, *more: str, agent: str = "ops/a") -> str:
    return cli("finding", "report", content, "--type", "deployment", "--as", agent, "--json", *more).json["id"]


def test_sessions(cli: Cli, tmp_path: Path):
    assert cli("session", "list").stderr.startswith("No sessions; start one with `blackboard session start NAME`.")
    file = tmp_path / "context.json"
    file.write_text('{"service": "checkout"}')
    started = cli(
        "session", "start", "one", "--goal", "find it", "--context", f"@{file}", "--allow-self-validation", "--json"
    ).json
    assert started["context"] == {"service": "checkout"}
    assert started["allow_self_validation"] is True
    assert UUID(started["id"])
    again = cli("session", "start", "one", "--id", started["id"], code=1).stderr
    assert "id" in again
    assert "name" in cli("session", "start", "one", code=1).stderr
    piped = cli("session", "start", "two", "--context", "-", "--json", stdin='{"a": [1, 2]}').json
    assert piped["context"] == {"a": [1, 2]}
    assert [one["name"] for one in cli("session", "list", "--json").json] == ["two", "one"]
    lines = cli("session", "list").stdout.splitlines()
    assert lines[0].split()[:3] == ["ID", "NAME", "STATUS"]
    assert lines[2].startswith(started["id"])
    assert cli("session", "pause", "two", "--json").json["status"] == "paused"
    assert [one["name"] for one in cli("session", "list", "--status", "paused", "--json").json] == ["two"]
    assert cli("session", "resume", "two", "--json").json["status"] == "active"
    closed = cli("session", "close", "two", "--outcome", "rolled back", "--json").json
    assert (closed["status"], closed["outcome"]) == ("completed", "rolled back")
    assert cli("session", "close", "one", "--outcome", '{"a": 1}', "--status", "failed", "--json").json["outcome"] == {
        "a": 1
    }
    assert cli("session", "pause", "two", code=1).stderr.startswith("Error: ")
    assert cli("session", "pause", "two", "--json", code=1).error["code"] == "session_closed"


def test_which_session(cli: Cli):
    error = cli("finding", "list", "--json", code=3).error
    assert error["noun"] == "session"
    assert "blackboard session start" in error["message"]
    one = cli("session", "start", "one", "--json").json["id"]
    assert cli("finding", "list", "--json").json == []
    two = cli("session", "start", "two", "--json").json["id"]
    error = cli("finding", "list", "--json", code=2).error
    assert error["field"] == "session"
    assert {one, two} == set(error["matches"])
    assert f"one ({one})" in error["message"]
    for name in ("two", two, two[-8:], two.replace("-", "")):
        assert cli("session", "show", name, "--json").json["session"]["id"] == two
        assert cli("board", "-s", name, "--json").json["session"]["id"] == two
    assert cli("board", "--json", env={"BLACKBOARD_SESSION": "one"}).json["session"]["id"] == one
    assert cli("board", "--json", "--session", "two", env={"BLACKBOARD_SESSION": "one"}).json["session"]["id"] == two
    assert cli("session", "show", one[:6], "--json", code=2).error["matches"], "ids of one minute begin alike"
    assert cli("session", "show", "nobody", "--json", code=3).error == {
        "code": "not_found",
        "message": "There is no session 'nobody'; `blackboard session list` shows those there are.",
        "retryable": False,
        "noun": "session",
        "id": "nobody",
    }
    assert cli("session", "show", "abcdef", "--json", code=3).error["id"] == "abcdef"


def test_a_session_that_was_mistyped_is_guessed(cli: Cli):
    cli("session", "start", "INC-1234")
    error = cli("task", "list", "-s", "INC-1243", "--json", code=3).error
    assert (error["id"], "Did you mean 'INC-1234'?" in error["message"]) == ("INC-1243", True)
    cli("session", "start", "added")
    assert "Did you mean 'added'?" in cli("task", "list", "-s", "addeda", code=3).stderr, "which may be a part of an id"


def test_a_list_that_ends_at_its_limit_says_so(cli: Cli, incident: str):
    assert incident
    for name in ("one", "two", "three"):
        cli("task", "add", name)
    told = cli("task", "list", "--limit", "2")
    assert len(told.stdout.splitlines()) == 3
    assert told.stderr == "The first 2; --limit shows more, if there are.\n"
    assert cli("task", "list", "--limit", "4").stderr == ""
    assert cli("task", "list", "--limit", "2", "--json").stderr == ""
    assert "--limit shows more" in cli("history", "--limit", "1").stderr


def test_a_part_of_many_ids_does_not_claim_to_list_them_all(cli: Cli, incident: str):
    assert incident
    ids = [cli("task", "add", "t", "--json").json["id"] for _ in range(3)]
    error = cli("task", "show", ids[0][:6], "--json", code=2).error
    assert len(error["matches"]) == 2
    assert "and maybe more; they differ most at their end" in error["message"]


def test_agents(cli: Cli, incident: str):
    listed = cli("agent", "list", "--json").json
    assert [one["id"] for one in listed] == ["ops/a", "ops/b"]
    assert listed[0]["session_id"] == incident
    assert listed[0]["expertise"] == {"deployment": 0.9}
    assert [one["id"] for one in cli("agent", "list", "--capability", "investigate", "--json").json] == ["ops/a"]
    changed = cli(
        "agent", "join", "ops/a", "--role", "observer", "--vote-weight", "2.5", "--capacity", "3", "--json"
    ).json
    assert (changed["role"], changed["vote_weight"], changed["capacity"]) == ("observer", 2.5, 3)
    assert changed["capabilities"] == ["investigate"]
    assert not changed["present"]
    assert cli("agent", "show", "ops/a", "--json").json == changed
    assert "observer" in cli("agent", "show", "ops/a").stdout
    assert cli("agent", "leave", "ops/b", "--json").json["left_at"]
    assert "left" in cli("agent", "list").stdout
    assert cli("agent", "show", "ops/z", code=3).stderr == "Error: ops/z is not a member of this session.\n"
    assert cli("agent", "join", "ops/z", "--expertise", "much", "--json", code=2).error["field"] == "expertise"


def test_findings(cli: Cli, incident: str):
    reported = cli(
        "finding", "report", "deployment v1.2.3 at 10:15 UTC", "--type", "deployment", "--confidence", "0.9",
        "--evidence", '{"source": "log", "query": "deploy"}', "--evidence", '[{"source": "a"}, {"source": "b"}]',
        "--tag", "release", "--tag", "checkout", "--provenance", '{"tool": "cli"}', "--as", "ops/a", "--json",
    ).json  # fmt: skip
    assert reported["agent_id"] == "ops/a"
    assert [one["source"] for one in reported["evidence"]] == ["log", "a", "b"]
    assert reported["tags"] == ["release", "checkout"]
    assert reported["provenance"] == {"tool": "cli"}
    derived = cli(
        "finding", "report", '{"rate": 5}', "--type", "error_rate", "--category", "conclusion", "--as", "ops/new",
        "--derived-from", reported["id"][-8:], "--json",
    ).json  # fmt: skip
    assert derived["content"] == {"rate": 5}
    assert derived["derived_from"] == [reported["id"]]
    assert "ops/new" in [one["id"] for one in cli("agent", "list", "--json").json], "who reports is a member"
    assert [one["id"] for one in cli("finding", "list", "--json").json] == [derived["id"], reported["id"]]
    for arguments, wanted in [
        (["--category", "conclusion"], derived),
        (["--type", "deployment"], reported),
        (["--agent-id", "ops/new"], derived),
        (["--tag", "release"], reported),
        (["--min-confidence", "0.5"], reported),
        (["--limit", "1"], derived),
        (["--since", "1h", "--limit", "1"], derived),
    ]:
        assert [one["id"] for one in cli("finding", "list", "--json", *arguments).json] == [wanted["id"]]
    assert cli("finding", "list", "--since", "2999-01-01T00:00:00Z", "--json").json == []
    again = cli(
        "finding", "report", "Deployment V1.2.3 at 10:15 UTC", "--type", "deployment", "--as", "ops/b", "--json"
    ).json
    assert (again["id"], again["corroborated"]) == (reported["id"], True)
    shown = cli("finding", "show", reported["id"][-6:], "--json").json
    assert shown["corroborated_by"] == ["ops/b"]
    assert shown["contradicted_by"] == []
    text = cli("finding", "show", reported["id"]).stdout
    assert f"id               {reported['id']}" in text
    listing = cli("finding", "list").stdout
    assert reported["id"] in listing
    assert "\x1b" not in listing
    taken = cli("finding", "retract", reported["id"][-8:], "--reason", "wrong clock", "--as", "ops/a", "--json").json
    assert (taken["status"], taken["reason"]) == ("retracted", "wrong clock")
    assert reported["id"] not in cli("finding", "list").stdout
    assert reported["id"] in cli("finding", "list", "--include-hidden").stdout


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--confidence", "nan"], "confidence"),
        (["--confidence", "1.5"], "confidence"),
        (["--evidence", "{"], "evidence"),
        (["--evidence", '{"result": 1}'], "evidence"),
        (["--evidence", "@/nowhere.json"], "evidence"),
        (["--provenance", "[1"], "provenance"),
        (["--id", "x"], "id"),
        (["--tag", "t" * 101], "tags"),
        (["--derived-from", "zz"], "derived_from"),
    ],
)
def test_a_bad_value_is_named_and_nothing_is_written(
    cli: Cli,
    incident: str,
    arguments: list[str],
    field: str,
):
    error = cli("finding", "report", "x", "--type", "t", "--as", "ops/a", "--json", *arguments, code=2).error
    assert error["field"] == field
    assert error["option"] == arguments[0]
    assert arguments[0] in error["message"], "the option that was typed, not the library's name"
    assert cli("finding", "list", "--json").json == []


def test_a_payload_that_is_too_large(cli: Cli, incident: str):
    error = cli("finding", "report", "-", "--type", "t", "--as", "ops/a", "--json", stdin="x" * 1_500_000, code=2).error
    assert error["code"] == "payload_too_large"


def test_only_an_agent_reports(cli: Cli, incident: str):
    error = cli("finding", "report", "x", "--type", "t", "--json", code=2).error
    assert error["field"] == "agent_id"
    assert "--as" in error["message"]


def test_text_that_steers_terminals_is_shown_and_not_obeyed(cli: Cli, incident: str):
    _report(cli, "harmless\x1b[2J\x07 text\u202egnp.exe")
    text = cli("finding", "list").stdout
    assert "harmless\\x1b[2J\\x07 text\\x202egnp.exe" in text
    assert cli("finding", "list", "--json").json[0]["content"] == "harmless\x1b[2J\x07 text\u202egnp.exe"


def test_ids_in_part(cli: Cli, incident: str):
    head = "0199aaaa-0000-7000-8000-"
    one, two = f"{head}00000000a111", f"{head}00000000b222"
    _report(cli, "one", "--id", one)
    _report(cli, "two", "--id", two)
    for part in (one, one[-6:], one[-8:], one.upper(), one.replace("-", ""), "…" + one[-8:]):
        assert cli("finding", "show", part, "--json").json["id"] == one
    assert cli("finding", "show", head[:-1] + "-00000000a", "--json").json["id"] == one
    error = cli("finding", "show", "0199aa", "--json", code=2).error
    assert (error["field"], sorted(error["matches"])) == ("finding_id", [one, two])
    assert one in error["message"]
    error = cli("finding", "show", "00a111"[:5], "--json", code=2).error
    assert error["field"] == "finding_id"
    assert "6 or more characters" in error["message"]
    assert cli("finding", "show", "ffffff", "--json", code=3).error["noun"] == "finding"
    assert cli("finding", "show", str(uuid4()), "--json", code=3).error["code"] == "not_found"


def test_hypotheses(cli: Cli, incident: str):
    finding = _report(cli, "error rate spike", "--confidence", "0.8", agent="ops/b")
    other = _report(cli, "memory is flat", "--confidence", "0.8", agent="ops/b")
    pool = cli("hypothesis", "propose", "pool exhaustion", "--confidence", "0.7", "--as", "ops/a", "--json").json
    leak = cli("hypothesis", "propose", "memory leak", "--confidence", "0.3", "--as", "ops/a", "--json").json
    assert (pool["confidence"], pool["status"]) == (pytest.approx(0.7), "proposed")
    raised = cli("hypothesis", "evidence", pool["id"][-8:], finding[-8:], "--as", "ops/b", "--json").json
    assert raised["confidence"] > 0.7
    lowered = cli(
        "hypothesis", "evidence", leak["id"], other, "--contradicts", "--weight", "0.5", "--as", "ops/b", "--json"
    ).json
    assert lowered["confidence"] < 0.3
    assessed = cli("hypothesis", "assess", leak["id"], "0.1", "--reason", "flat", "--as", "ops/b", "--json").json
    assert assessed["confidence"] < lowered["confidence"]
    listed = cli("hypothesis", "list", "--json").json
    assert [one["statement"] for one in listed] == ["pool exhaustion", "memory leak"]
    assert len(cli("hypothesis", "list", "--min-confidence", "0.5", "--limit", "5", "--json").json) == 1
    shown = cli("hypothesis", "show", leak["id"][-8:], "--json").json
    assert [(one["finding_id"], one["supports"]) for one in shown["evidence"]] == [(other, False)]
    text = cli("hypothesis", "show", leak["id"]).stdout
    assert "against" in text
    assert "memory is flat" in text
    error = cli("hypothesis", "validate", pool["id"], "--evidence", finding, "--as", "ops/a", "--json", code=1).error
    assert error["code"] == "not_permitted"
    assert cli("hypothesis", "validate", pool["id"], "--as", "ops/b", "--json", code=2).error["field"] == "evidence"
    done = cli("hypothesis", "validate", pool["id"], "--evidence", finding[-8:], "--as", "ops/b", "--json").json
    assert (done["status"], done["validated_by"]) == ("validated", "ops/b")
    done = cli(
        "hypothesis", "validate", leak["id"], "--refuted", "--evidence", other, "--reason", "flat", "--as", "ops/b"
    ).stdout
    assert re.search(r"^status +refuted$", done, re.MULTILINE)
    assert [one["id"] for one in cli("hypothesis", "list", "--status", "refuted", "--json").json] == [leak["id"]]
    assert (
        cli("hypothesis", "assess", leak["id"], "2", "--as", "ops/b", "--json", code=2).error["field"] == "confidence"
    )


def test_tasks(cli: Cli, incident: str):
    first = cli(
        "task", "add", "investigate", "--parameters", '{"target": "checkout"}', "--priority", "8", "--timeout", "5m",
        "--capability", "investigate", "--max-attempts", "2", "--retry-delay", "90s", "--json",
    ).json  # fmt: skip
    assert first["parameters"] == {"target": "checkout"}
    assert (first["priority"], first["timeout"], first["retry_delay"]) == (8, "PT5M", "PT1M30S")
    second = cli("task", "add", "report", "--depends-on", first["id"][-8:], "--assigned-to", "ops/a", "--json").json
    assert second["status"] == "blocked"
    third = cli("task", "add", "remediate", "--requires-approval", "--json").json
    fourth = cli("task", "add", "remediate", "--requires-approval", "--json").json
    later = cli("task", "add", "report", "--run-at", "2999-01-01T00:00:00Z", "--json").json
    assert later["status"] == "scheduled"
    listed = cli("task", "list", "--status", "blocked", "--status", "scheduled", "--json").json
    assert [one["id"] for one in listed] == [second["id"], later["id"]]
    assert [one["id"] for one in cli("task", "list", "--type", "report", "--limit", "1", "--json").json] == [
        second["id"]
    ]
    assert cli("task", "list", "--capability", "investigate", "--json").json == [first]
    assert [one["id"] for one in cli("task", "list", "--assigned-to", "ops/a", "--json").json] == [second["id"]]
    assert first["id"] in cli("task", "list").stdout
    assert cli("task", "show", second["id"][-8:], "--json").json["depends_on"] == [
        {"id": first["id"], "on_failure": "fail"}
    ]
    approved = cli("task", "approve", third["id"][-8:], "--by", "maria", "--json").json
    assert (approved["status"], approved["approved_by"]) == ("pending", "maria")
    rejected = cli("task", "reject", fourth["id"], "--by", "maria", "--reason", "too risky", "--json").json
    assert rejected["status"] == "cancelled"
    assert cli("task", "cancel", first["id"], "--reason", "enough", "--json").json["status"] == "cancelled"
    assert cli("task", "approve", first["id"], "--json", code=1).error["code"] == "invalid_transition"
    assert cli("task", "redrive", third["id"], "--json", code=1).error["code"] == "invalid_transition"
    assert cli("task", "late", third["id"], "--json").json == []
    for arguments, field in [
        (["--priority", "11"], "priority"),
        (["--parameters", "{oops"], "parameters"),
        (["--timeout", "soon"], "timeout"),
        (["--retry-delay", "1h30"], "retry_delay"),
        (["--run-at", "tomorrow"], "run_at"),
        (["--depends-on", "x"], "depends_on"),
    ]:
        assert cli("task", "add", "t", "--json", *arguments, code=2).error["field"] == field
    assert cli("task", "list", "--status", "asleep", "--json", code=2).error["field"] == "status"
    assert cli("task", "add", "t", "--depends-on", str(uuid4()), "--json", code=3).error["code"] == "not_found"


async def test_a_failed_task_is_redriven_and_late_results_are_listed(cli: Cli, board, clock, database_url):
    from datetime import timedelta

    from blackboard.errors import LeaseLost

    session = await board.start("late")
    agent = await session.join("ops/slow")
    task = await session.tasks.add("t", max_attempts=2)
    (held,) = await agent.tasks.claim()
    assert held.id == task.id
    await agent.tasks.release(held)
    with pytest.raises(LeaseLost):
        await agent.tasks.complete(held, {"too": "late"})
    late = cli("task", "late", str(task.id)[-8:], "--json").json
    assert [(one["agent_id"], one["result"]) for one in late] == [("ops/slow", {"too": "late"})]
    assert "too" in cli("task", "late", str(task.id)).stdout
    (held,) = await agent.tasks.claim()
    await agent.tasks.fail(held, "broken", retry=False)
    again = cli("task", "redrive", str(task.id), "--json").json
    assert again["status"] == "pending"
    await clock.advance(timedelta(0))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("5m", 300), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172_800), ("250ms", 0.25)],
)
def test_durations(text: str, seconds: float):
    values, output = module("values"), module("output")
    found = values.duration(text, "timeout")
    assert found.total_seconds() == seconds
    assert values.duration(output.span(found), "timeout") == found


def test_plain_words_need_no_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    values = module("values")
    file = tmp_path / "content.json"
    file.write_text('{"a": 1}\n')
    for text, wanted in [
        ("deployment v1.2.3", "deployment v1.2.3"),
        ('{"a": 1}', {"a": 1}),
        ("[1, 2]", [1, 2]),
        ("[ERROR] disk full", "[ERROR] disk full"),
        ('"quoted"', "quoted"),
        ('"quoted" words', '"quoted" words'),
        ("@maria said so", "@maria said so"),
        (f"@{file}", {"a": 1}),
        ("42", "42"),
        ("-1", "-1"),
    ]:
        assert values.loose(text, "content") == wanted
