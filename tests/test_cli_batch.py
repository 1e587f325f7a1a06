"""Many tasks from a file: all of them or none, and what is wrong is told with its line and field."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from .clitools import Cli, module

FIRST, SECOND, NOBODY = (str(uuid.UUID(f"0190000000007000800000000000000{n}")) for n in (1, 2, 3))


@pytest.fixture(name="cli")
def _cli(database_url: str) -> Cli:
    cli = Cli(database_url)
    cli("session", "start", "one")
    return cli


def _lines(*tasks: Any) -> str:
    return "".join(f"{json.dumps(task)}\n" for task in tasks)


def _types(cli: Cli) -> list[str]:
    return [task["type"] for task in cli("task", "list", "--json").json]


def test_an_object_a_line(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    before = datetime.now(UTC)
    file.write_text(
        "\ufeff"
        + _lines(
            {
                "type": "mail", "parameters": {"to": "ops \u2028"}, "capability": "send", "priority": 8,
                "timeout": "5m", "retry_delay": 90, "max_attempts": 3, "run_at": "2h", "expires_at": "1d",
                "requires_approval": False, "assigned_to": "ops/a", "fallback": "10m", "limit_key": "customer",
                "unique": {"key": "once", "window": "1h"}, "id": FIRST,
            },
        )
        + "\n  \n"
        + _lines({"type": "report", "depends_on": [FIRST]}),
        encoding="utf-8",
    )  # fmt: skip
    told = cli("task", "add", "--batch", str(file))
    ids = told.stdout.splitlines()
    assert (ids[0], len(ids), told.stderr) == (FIRST, 2, f"2 tasks from {file}.\n")
    mail, report = (cli("task", "show", one, "--json").json for one in ids)
    assert mail["parameters"] == {"to": "ops \u2028"}
    assert (mail["priority"], mail["capability"], mail["limit_key"]) == (8, "send", "customer")
    assert timedelta(hours=1) < datetime.fromisoformat(mail["run_at"]) - before < timedelta(hours=3)
    assert (mail["timeout"], mail["retry_delay"], mail["fallback"]) == ("PT5M", "PT1M30S", "PT10M")
    assert (report["status"], report["depends_on"]) == ("blocked", [{"id": FIRST, "on_failure": "fail"}])


def test_an_array_and_stdin(cli: Cli) -> None:
    text = '[{"type": "a"},\n\n {"type": "b",\n "unique": "k"},{"type": "c", "unique": "k"}]\n'
    a, b, again = cli("task", "add", "--batch", "-", "--json", stdin=text).json
    assert b == again
    assert [task["id"] for task in cli("task", "list", "--json").json] == [a, b]
    for nothing in ("", "\n", "[]"):
        assert cli("task", "add", "--batch", "-", "--json", stdin=nothing).json == []


def test_a_task_may_depend_on_a_later_one_and_a_repeated_batch_adds_nothing(cli: Cli) -> None:
    text = _lines({"type": "after", "id": FIRST, "depends_on": SECOND}, {"type": "before", "id": SECOND})
    for _ in range(2):
        assert cli("task", "add", "--batch", "-", stdin=text).stdout.split() == [FIRST, SECOND]
    assert sorted(_types(cli)) == ["after", "before"]


@pytest.mark.parametrize(
    ("wrong", "field", "told"),
    [
        ('{"type": "a"', "batch", "Line 3 is no JSON: Expecting ',' delimiter (column 13)."),
        ("[1]", "batch", "Line 3 must be an object"),
        ("{}", "type", "type of line 3 is missing."),
        ('{"type": ""}', "type", "type of line 3 must not be empty."),
        ('{"type": "a", "prority": 1}', "prority", "is no field of a task. Did you mean 'priority'?"),
        ('{"type": "a", "priority": "high"}', "priority", "priority of line 3 should be a valid integer"),
        ('{"type": "a", "priority": 11}', "priority", "priority of line 3 must be a whole number between 0 and 10"),
        ('{"type": "a", "timeout": "soon"}', "timeout", "timeout of line 3 must be a duration"),
        ('{"type": "a", "timeout": -1}', "timeout", "timeout of line 3 must be a duration"),
        ('{"type": "a", "timeout": 0}', "timeout", "timeout of line 3 must be longer than 0"),
        ('{"type": "a", "run_at": 5}', "run_at", "run_at of line 3 must be a time"),
        ('{"type": "a", "run_at": "2h", "expires_at": "1h"}', "expires_at", "expires_at of line 3 must be later than"),
        ('{"type": "a", "unique": {"kez": "k"}}', "unique", "unique.key of line 3 is required."),
        ('{"type": "a", "unique": {"key": "k", "window": "x"}}', "unique", "unique.window of line 3 must be"),
        ('{"type": "a", "parameters": NaN}', "parameters", "parameters of line 3 must not contain NaN"),
        ('{"type": "a", "depends_on": ["zz"]}', "depends_on", "depends_on.0 of line 3 should be a valid UUID"),
        ('{"type": "a", "max_attempts": 0}', "max_attempts", "max_attempts of line 3 must be between 1 and 1000"),
        ('{"type": "a", "fallback": "1m"}', "fallback", "fallback of line 3 needs assigned_to"),
        (f'{{"type": "a", "id": "{FIRST}"}}', "id", "id of line 3 is that of line 1"),
    ],
)
def test_what_is_wrong_is_told_with_its_line_and_nothing_is_added(cli: Cli, wrong: str, field: str, told: str) -> None:
    text = _lines({"type": "fine", "id": FIRST}, {"type": "fine"}) + f"{wrong}\n" + _lines({"type": "fine"})
    error = cli("task", "add", "--batch", "-", "--json", stdin=text, code=2).error
    assert (error["code"], error["line"], error["field"]) == ("invalid_input", 3, field)
    assert told in error["message"]
    assert _types(cli) == []


def test_what_only_the_board_knows_is_told_with_its_line_too(cli: Cli) -> None:
    text = _lines({"type": "fine"}, {"type": "a", "depends_on": [NOBODY]}, {"type": "fine"})
    error = cli("task", "add", "--batch", "-", "--json", stdin=text, code=3).error
    assert (error["line"], error["id"]) == (2, NOBODY)
    ring = _lines(
        {"type": "fine"}, {"type": "a", "id": FIRST, "depends_on": [SECOND]},
        {"type": "a", "id": SECOND, "depends_on": [FIRST]},
    )  # fmt: skip
    assert cli("task", "add", "--batch", "-", "--json", stdin=ring, code=2).error["code"] == "cyclic_dependency"
    assert _types(cli) == []
    cli("task", "add", "known", "--id", FIRST)
    other = _lines({"type": "fine"}, {"type": "other", "id": FIRST})
    error = cli("task", "add", "--batch", "-", "--json", stdin=other, code=1).error
    assert (error["code"], error["line"]) == ("idempotency_conflict", 2)
    cli("session", "close", "one")
    told = cli("task", "add", "--batch", "-", "-s", "one", "--json", stdin=_lines({"type": "a"}), code=1).error
    assert (told["code"], "line" in told) == ("session_closed", False), "which no line brought about"


@pytest.mark.parametrize(
    ("text", "line"),
    [("[", 1), ('[{"type": "a"},\n]', 2), ('[{"type": "a"}\n {"type": "b"}]', 2), ('[{"type": "a"}]\nx', 2),
     ('[{"type": "a"},\n{"type":}]', 2), ('\n[{"type": "a"},\n5]', 3)],
)  # fmt: skip
def test_a_wrong_array(cli: Cli, text: str, line: int) -> None:
    error = cli("task", "add", "--batch", "-", "--json", stdin=text, code=2).error
    assert (error["field"], error["line"]) == ("batch", line)
    assert _types(cli) == []


def test_portions_are_one_transaction(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = module("batch")
    monkeypatch.setattr(batch, "_TASKS", 10)
    tasks = [{"type": f"t{n}", "priority": 5} for n in range(35)]
    ids = cli("task", "add", "--batch", "-", "--json", stdin=_lines(*tasks)).json
    assert [task["id"] for task in cli("task", "list", "--json").json] == ids
    assert _types(cli) == [task["type"] for task in tasks]
    tasks[32]["priority"] = 11
    error = cli("task", "add", "--batch", "-", "--json", stdin=_lines(*tasks), code=2).error
    assert (error["field"], error["line"]) == ("priority", 33)
    assert len(_types(cli)) == 35, "what the earlier portions held is not there either"


def test_a_file_that_cannot_be_read(cli: Cli, tmp_path: Path) -> None:
    error = cli("task", "add", "--batch", "/nowhere.jsonl", "--json", code=2).error
    assert error["option"] == "--batch"
    assert error["message"].startswith("--batch cannot be read from /nowhere.jsonl")
    file = tmp_path / "latin"
    file.write_bytes(b'{"type": "a"}\n{"type": "\xe9"}\n')
    assert cli("task", "add", "--batch", str(file), "--json", code=2).error["line"] == 2


def test_what_the_file_says_is_not_said_beside_it(cli: Cli) -> None:
    for more in (["t"], ["--priority", "8"], ["--parameters", "{}"]):
        assert cli("task", "add", *more, "--batch", "-", "--json", stdin="", code=2).error["field"] == "batch"
    error = cli("task", "add", "--json", code=2).error
    assert (error["field"], error["option"]) == ("type", "TYPE")
