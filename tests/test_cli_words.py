"""Errors say what was typed, not what the library calls it; what cannot be written is told; Tab offers what there is."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from .clitools import Cli, module


@pytest.fixture(name="cli")
def _cli(database_url: str) -> Cli:
    cli = Cli(database_url)
    cli("session", "start", "one")
    return cli


@pytest.mark.parametrize(
    ("arguments", "field", "option", "told"),
    [
        (["task", "add", "t", "--run-at", "soon"], "run_at", "--run-at", "--run-at must be a time"),
        (["task", "add", "t", "--fallback", "5m"], "fallback", "--fallback", "--fallback needs --assigned-to:"),
        (["task", "add", "t", "--depends-on", "run_at"], "depends_on", "--depends-on", "got 'run_at'."),
        (["task", "add", "t", "--retry-delay", "99d"], "retry_delay", "--retry-delay", "--retry-delay must be"),
        (["task", "add", ""], "type", "TYPE", "TYPE must not be empty."),
        (["task", "show", "zz"], "task_id", "ID", "ID must be an id"),
        (["task", "prune", "--older-than", "99999999d"], "older_than", "--older-than", "give --older-than (0"),
        (["limit", "set", "l", "--rate", "1", "--period", "0"], "rate_period", "--period", "--period must be between"),
        (["budget", "set", "tokens", "9", "--soft", "99"], "soft", "--soft", "--soft: The soft limit"),
        (["events", "--since", "x"], "cursor", "--since", "--since: This is no cursor"),
        (["agent", "join", "ops/a", "--capability", ""], "capabilities", "--capability", "--capability must not be"),
        (["schedule", "add", "n", "@daily", "t", "--timeout", "x"], "timeout", "--timeout", "--timeout must be a"),
    ],
)  # fmt: skip
def test_an_error_names_the_option(cli: Cli, arguments: list[str], field: str, option: str, told: str) -> None:
    error = cli(*arguments, "--json", code=2).error
    assert (error["field"], error["option"]) == (field, option)
    assert told in error["message"]


@pytest.mark.parametrize(
    ("arguments", "option"),
    [(["task", "add", "t", "--priority", "11"], "--priority"), (["task", "list", "--limit", "99999999999"], "--limit"),
     (["schedule", "add", "n", "@daily", "t", "--max-attempts", "5000"], "--max-attempts")],
)  # fmt: skip
def test_a_number_out_of_its_range_is_named(cli: Cli, arguments: list[str], option: str) -> None:
    error = cli(*arguments, "--json", code=2).error
    assert (error["code"], error["option"]) == ("usage", option)


def test_what_is_wrong_inside_a_file_keeps_the_words_of_the_file(cli: Cli) -> None:
    told = cli("flow", "create", "-", "--name", "f", "--json", stdin="stages: [{type: t}]", code=2).error
    assert (told["message"], told["field"]) == ("name of stage 1 is missing.", "name")
    text = "name: f\nstages: [{name: a, type: t, timeout: soon}]"
    assert "timeout of stage a must be" in cli("flow", "create", "-", stdin=text, code=2).stderr


def test_a_group_without_a_verb_is_an_error_in_json_too(cli: Cli) -> None:
    assert cli("--json", "task", code=2).error["code"] == "usage"
    assert cli("task", "add", "t", "--id", "x", "--priority", "x", "--json", code=2).error["field"] == "priority"


def test_a_task_that_can_never_start_is_refused(cli: Cli) -> None:
    for expires_at in ("1h", "2h"):
        error = cli("task", "add", "t", "--run-at", "2h", "--expires-at", expires_at, "--json", code=2).error
        assert error["option"] == "--expires-at"
        assert "must be later than --run-at" in error["message"]
    told = cli("task", "add", "t", "--expires-at", "2020-01-01T00:00:00Z")
    assert "has passed already" in told.stderr
    assert cli("task", "add", "t", "--expires-at", "1h").stderr == ""


def test_a_day_without_dashes_is_no_number_of_seconds() -> None:
    values = module("values")
    assert values.coming("20300101T1015Z", "run_at") == datetime(2030, 1, 1, 10, 15, tzinfo=UTC)
    assert values.coming("20300101", "run_at").year in {2029, 2030}


@pytest.mark.parametrize("given", ["12:00", "0001-01-01", "9999-12-31T23:59:59-05:00", "\u0663h", "", "-5", "1e9d"])
def test_no_time_at_all(cli: Cli, given: str) -> None:
    assert cli("task", "add", "t", f"--run-at={given}", "--json", code=2).error["option"] == "--run-at"


def test_a_topic_that_nothing_is_ever_about_is_refused(cli: Cli) -> None:
    error = cli("events", "--topic", "tasks.*", "--json", code=2).error
    assert (error["option"], "Did you mean task.*?" in error["message"]) == ("--topic", True)
    assert cli("events", "--topic", "bogus", "--follow", "--json", code=2).error["option"] == "--topic"
    for good in ("*", "session.*", "agent.session.started", "session.started"):
        assert len(cli("events", "--topic", good, "--json").json) == 1


@pytest.mark.source
def test_both_windows_know_the_nouns_of_events() -> None:
    from blackboard.mcp.tools_wait import _NOUNS  # pyright: ignore[reportPrivateUsage]

    assert module("events")._NOUNS == _NOUNS
    schema = (Path(__file__).parent.parent / "migrations" / "schema.sql").read_text(encoding="utf-8")
    for noun in _NOUNS:
        assert f"'{noun}." in schema or f"('{noun}', " in schema, noun


def test_schedules_are_looked_after_in_the_session_of_the_environment(cli: Cli) -> None:
    cli("session", "start", "two")
    for name in ("one", "two"):
        cli("schedule", "add", "s", "@yearly", "t", "-s", name)
    with_past = "UPDATE blackboard.schedules SET next_at = blackboard.now() - interval '10 seconds'"
    with psycopg.connect(str(cli.env["BLACKBOARD_URL"])) as connection:
        connection.execute(with_past)
    assert len(cli("schedule", "run", "--once", env={"BLACKBOARD_SESSION": "two"}).stdout.splitlines()) == 1
    assert len(cli("task", "list", "-s", "two", "--json").json) == 1
    assert len(cli("schedule", "run", "--once").stdout.splitlines()) == 1, "of all sessions: the other one's"


def _env(cli: Cli) -> dict[str, str]:
    return {**os.environ, **{name: value for name, value in cli.env.items() if value is not None}}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has it")  # noqa: PTH110
def test_an_answer_that_cannot_be_written(cli: Cli) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "blackboard_cli", "session", "list"],
            check=False, env=_env(cli), stdout=full, stderr=subprocess.PIPE,
        )  # fmt: skip
    assert done.returncode == 1
    assert os.strerror(errno.ENOSPC) in done.stderr.decode()
    assert "fault of ours" not in done.stderr.decode()


def test_nobody_listens(cli: Cli) -> None:
    for closed in (">&-", ">&- 2>&-"):
        line = f'exec "{sys.executable}" -m blackboard_cli task add t {closed}'
        done = subprocess.run(["sh", "-c", line], check=False, env=_env(cli), capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")
    assert len(cli("task", "list", "--json").json) == 2


def _offered(cli: Cli, typed: str) -> list[str]:
    words = typed.split(" ")
    done = subprocess.run(
        [sys.executable, "-c", "from blackboard_cli.main import main; main()"],
        env={
            **os.environ, "BLACKBOARD_URL": str(cli.env["BLACKBOARD_URL"]), "_BLACKBOARD_COMPLETE": "complete_bash",
            "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1),
        },
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_tab_offers_what_is_on_the_board(cli: Cli, tmp_path: Path) -> None:
    task = cli("task", "add", "investigate", "--capability", "dig", "--json").json["id"]
    cli("schedule", "add", "nightly", "@daily", "t")
    cli("limit", "set", "calls", "--max-running", "3")
    cli("agent", "join", "ops/a")
    assert _offered(cli, "blackboard task show ") == [task]
    assert _offered(cli, f"blackboard why {task[:9]}") == [task]
    assert _offered(cli, "blackboard task list --type inv") == ["investigate"]
    assert _offered(cli, "blackboard task list --capability ") == ["dig"]
    assert _offered(cli, "blackboard schedule show ") == ["nightly"]
    assert _offered(cli, "blackboard limit remove c") == ["calls"]
    assert _offered(cli, "blackboard agent show ops") == ["ops/a"]
    cli("session", "start", "two")
    assert sorted(_offered(cli, "blackboard task list -s ")) == ["one", "two"]
    assert _offered(cli, "blackboard task show ") == [], "which session is not known"
    assert _offered(cli, "blackboard -s one task show ") == [task]
    assert _offered(cli, "blackboard --url postgresql://127.0.0.1:1/x task list -s ") == []
    nowhere = tmp_path / "data"
    assert _offered(cli, f"blackboard --data-dir {nowhere} task list -s ") == []
    assert not nowhere.exists(), "no server is started for a Tab"


def test_tab_offers_nothing_that_a_shell_would_run(cli: Cli) -> None:
    for evil in ("a$(id)", "\\$(id)", "a`id`", "a;b", "a b", "a\nb", "-rf", "a'b", "\x1b[2J"):
        cli("task", "add", "--", evil)
    cli("task", "add", "good.type")
    assert _offered(cli, "blackboard task list --type ") == ["good.type"]
