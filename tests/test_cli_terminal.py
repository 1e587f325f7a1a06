"""What a terminal shows: tables that fit, colours that can be switched off, nothing that steers it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from .clitools import Cli

ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(name="cli")
def _cli(database_url: str) -> Cli:
    return Cli(database_url)


def shown(url: str, width: int, *arguments: str, stdin: str | None = None, **env: str) -> tuple[int, str]:
    """The exit code of a command on a terminal of that width, and what it wrote there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    clean = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "NO_COLOR", "LINES"}}
    process = subprocess.Popen(
        [sys.executable, "-m", "blackboard_cli", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**clean, "BLACKBOARD_URL": url, "TERM": "xterm-256color", "LANG": "C.UTF-8", **env},
    )
    os.close(theirs)
    if stdin is not None:
        os.write(ours, stdin.encode())
    text = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # how Linux tells that nobody is at the other end any more
            break
        if not part:
            break
        text += part
    os.close(ours)
    return process.wait(30), text.decode().replace("\r\n", "\n")


@pytest.fixture(name="full")
def _full(cli: Cli) -> dict[str, str]:
    cli("session", "start", "INC-1234", "--goal", "Why does checkout fail? " * 8)
    found = {
        "finding": ("finding", "report", "error rate spike " * 12, "--type", "errors", "--confidence", "0.85"),
        "hypothesis": ("hypothesis", "propose", "connection pool exhaustion " * 6),
        "task": ("task", "add", "investigate", "--assigned-to", "security/incident-response-lead-of-the-night"),
        "proposal": ("proposal", "open", "Roll back to v1.2.2? " * 8),
        "action": ("action", "propose", "modify", "checkout-service-in-the-eu " * 8),
    }
    cli("agent", "join", "security/incident-response-lead-of-the-night")
    return {
        noun: cli(*words, "--as", "security/incident-response-lead-of-the-night", "--json").json["id"]
        for noun, words in found.items()
    }


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_and_show_the_ends_of_ids(cli: Cli, full: dict[str, str], database_url: str, width: int):
    for noun, found in full.items():
        code, text = shown(database_url, width, noun, "list")
        assert code == 0, text
        assert "\x1b[" in text
        plain = ANSI.sub("", text)
        assert max(map(len, plain.splitlines())) <= width, plain
        assert found[-8:] in plain
        assert found not in plain
        assert len(plain.splitlines()) == 3, plain
    code, text = shown(database_url, width, "board")
    plain = ANSI.sub("", text)
    assert code == 0
    assert max(map(len, plain.splitlines())) <= width, plain
    assert "━━━━" in plain
    for found in full.values():
        assert found[-8:] in plain
    for noun, found in full.items():
        code, text = shown(database_url, width, noun, "show", found[-8:])
        assert code == 0
        assert found in ANSI.sub("", text), "one row is shown with its whole id"
    for words in (
        ["events"],
        ["history"],
        ["agent", "list"],
        ["session", "list"],
        ["--help"],
        ["task", "add", "--help"],
    ):
        code, text = shown(database_url, width, *words)
        assert code == 0
        lines = [line for line in ANSI.sub("", text).splitlines() if not line.startswith(("cursor:", "  blackboard"))]
        assert max(map(len, lines)) <= width, words


@pytest.mark.parametrize(("arguments", "env"), [(["--no-color"], {}), ([], {"NO_COLOR": "1"}), ([], {"TERM": "dumb"})])
def test_colours_are_switched_off(cli: Cli, full: dict[str, str], database_url: str, arguments: list[str], env: dict):
    for words in (
        ["finding", "list"],
        ["board"],
        ["finding", "show", full["finding"]],
        ["--help"],
        ["board", "--help"],
    ):
        code, text = shown(database_url, 100, *words, *arguments, **env)
        assert code == 0, text
        assert not re.search(r"\x1b\[[0-9;]*(3[0-9]|9[0-7])[;m]", text), words
    code, text = shown(database_url, 100, "finding", "show", "zz", *arguments, **env)
    assert code == 2
    assert "\x1b" not in text


def test_what_agents_write_does_not_steer_the_terminal(cli: Cli, database_url: str):
    evil = "\x1b]0;owned\x07\x1b[2J[bold]no markup[/bold] :smile:"
    cli("session", "start", "s", "--goal", evil)
    found = cli("finding", "report", evil, "--type", "t", "--as", "ops/a", "--json").json["id"]
    cli("action", "propose", "modify", evil, "--as", "ops/a")
    cli("proposal", "open", evil, "--as", "ops/a")
    for words in (["finding", "list"], ["finding", "show", found], ["board"], ["events"], ["session", "list"],
                  ["history"], ["action", "list"], ["proposal", "list"]):  # fmt: skip
        _, text = shown(database_url, 200, *words)
        rest = ANSI.sub("", text)
        assert "\x1b" not in rest, words
        assert "\x07" not in rest
        if words[-1] != "history":
            assert "[bold]no markup" in rest, words


def test_errors_are_one_message(cli: Cli, database_url: str):
    code, text = shown(database_url, 80, "task", "list")
    assert code == 3
    assert ANSI.sub("", text).replace("\n", "").startswith("Error: No session is open")


def test_a_downgrade_asks(cli: Cli, create_database, template: str):
    url = create_database(template)
    code, text = shown(url, 100, "db", "downgrade", "base", stdin="n\n")
    assert "lose what the newer tables hold?" in text
    assert code == 130
    assert cli("db", "check", "--url", url, "--json").json["ok"]
    code, text = shown(url, 100, "db", "downgrade", "base", stdin="y\n")
    assert code == 0
    assert cli("db", "current", "--url", url, "--json").json["revision"] is None


def test_a_table_is_no_wider_than_what_is_in_it(cli: Cli, database_url: str):
    cli("session", "start", "INC-1234")
    cli("limit", "set", "calls", "--max-running", "3", "--type", "call")
    _, text = shown(database_url, 160, "limit", "list")
    head, rule, row = ANSI.sub("", text).splitlines()
    assert row.startswith("calls") and max(len(head), len(rule), len(row)) < 80, "no gap between a name and its figures"


def test_the_board_counts_tasks_in_the_order_of_their_life(cli: Cli):
    cli("session", "start", "INC-1234")
    first = cli("task", "add", "t", "--json").json["id"]
    cli("task", "add", "t", "--depends-on", first)
    cli("task", "add", "t", "--run-at", "1h")
    cli("task", "cancel", cli("task", "add", "t", "--json").json["id"])
    cli("task", "add", "t", "--requires-approval")
    counted = "tasks       1 scheduled, 1 blocked, 1 awaiting_approval, 1 pending, 1 cancelled\n"
    assert counted in cli("board").stdout


def test_next_times_that_do_not_fit_are_marked_as_cut(cli: Cli, database_url: str):
    cli("session", "start", "INC-1234")
    cli("schedule", "add", "nightly", "30 2 * * *", "report", "--timezone", "Europe/Berlin")
    _, text = shown(database_url, 80, "schedule", "list")
    row = ANSI.sub("", text).splitlines()[-1]
    assert len(row) == 80 and row.endswith("…"), text
