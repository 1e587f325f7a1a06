"""Reading and following events, and what happens to a command whose reader or terminal goes away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from queue import Queue

import pytest

from .clitools import Cli

COMMAND = [sys.executable, "-m", "blackboard_cli"]
WAIT = 20


@pytest.fixture(name="cli")
def _cli(database_url: str) -> Cli:
    return Cli(database_url)


class Running:
    """A command as a process of its own, its lines as they come."""

    def __init__(self, url: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "BLACKBOARD_URL": url, "PYTHONUNBUFFERED": "1"},
        )
        self.out: Queue[str] = Queue()
        self.err: Queue[str] = Queue()
        self._readers = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream, lines: Queue[str]) -> None:
        with stream:
            for line in stream:
                lines.put(line)

    def end(self) -> tuple[int, str, str]:
        """Its exit code, and the lines that nobody has taken."""
        code = self.process.wait(WAIT)
        for reader in self._readers:
            reader.join(WAIT)
        return code, "".join(self.out.queue), "".join(self.err.queue)

    def kill(self) -> None:
        """It does not run."""
        self.process.kill()
        self.end()


@pytest.fixture(name="run")
def _run(database_url: str) -> Iterator:
    running: list[Running] = []

    def start(*arguments: str) -> Running:
        running.append(Running(database_url, *arguments))
        return running[-1]

    yield start
    for one in running:
        one.kill()


def test_events_are_read_in_order_and_on_from_a_cursor(cli: Cli):
    cli("session", "start", "s", "--as", "maria")
    cli("finding", "report", "deployment v1.2.3", "--type", "deployment", "--as", "ops/a")
    done = cli("events", "--json")
    assert [event["type"] for event in done.json] == ["session.started", "agent.joined", "finding.reported"]
    assert done.json[0]["actor"] == "maria"
    cursor = json.loads(done.stderr)["cursor"]
    assert cli("events", "--since", cursor, "--json").json == []
    cli("task", "add", "investigate")
    after = cli("events", "--since", cursor)
    assert "task.created" in after.stdout
    assert "finding.reported" not in after.stdout
    assert after.stderr.startswith("cursor: bb1.")
    text = cli("events")
    assert text.stdout.splitlines()[0].split() == ["SEQ", "AT", "TYPE", "ACTOR", "SUBJECT", "DATA"]
    assert "deployment v1.2.3" in text.stdout


def test_topics_subjects_and_limits(cli: Cli):
    session = cli("session", "start", "s", "--json").json["id"]
    cli("task", "add", "a")
    task = cli("task", "add", "b", "--json").json["id"]
    cli("task", "cancel", task)
    found = cli("events", "--topic", "task.*", "--json").json
    assert [event["type"] for event in found] == ["task.created", "task.created", "task.cancelled"]
    found = cli("events", "--topic", "agent.task.created", "--topic", "session.started", "--json").json
    assert [event["type"] for event in found] == ["session.started", "task.created", "task.created"]
    assert {event["subject_id"] for event in cli("events", "--subject", task, "--json").json} == {task}
    first = cli("events", "--limit", "2", "--json")
    assert len(first.json) == 2
    rest = cli("events", "--since", json.loads(first.stderr)["cursor"], "--json").json
    assert [event["type"] for event in rest] == ["task.created", "task.cancelled"]
    assert first.json[0]["subject_id"] == session
    assert cli("events", "--topic", "vote.cast").stderr.splitlines()[0] == "No such events."


@pytest.mark.parametrize(
    ("arguments", "code", "name"),
    [
        (["--since", "rubbish"], 2, "invalid_input"),
        (["--since", "bb1.00000000.5."], 1, "cursor_from_another_history"),
        (["--subject", "x"], 2, "invalid_input"),
    ],
)
def test_wrong_cursors_and_subjects(cli: Cli, arguments: list[str], code: int, name: str):
    cli("session", "start", "s")
    done = cli("events", "--json", *arguments, code=code)
    assert json.loads(done.stderr)["error"]["code"] == name, (
        "and nothing else: what was typed is no cursor to go on from"
    )


def test_following_ends_with_ctrl_c_and_goes_on_from_its_cursor(cli: Cli, run):
    cli("session", "start", "s")
    following = run("events", "--follow", "--json", "--topic", "task.*")
    # The cursor is taken before the first line is promised: what happens from then on is told.
    assert json.loads(following.err.get(timeout=WAIT)) == {"following": True}
    cli("finding", "report", "x", "--type", "t", "--as", "ops/a")
    task = cli("task", "add", "a", "--json").json["id"]
    event = json.loads(following.out.get(timeout=WAIT))
    assert (event["type"], event["subject_id"]) == ("task.created", task)
    assert set(event) == {"session_id", "seq", "at", "actor", "type", "subject_id", "data"}
    following.process.send_signal(signal.SIGINT)
    code, out, err = following.end()
    assert (code, out) == (0, "")
    assert "Traceback" not in err
    cursor = json.loads(err)["cursor"]
    cli("task", "cancel", task)
    again = run("events", "--follow", "--since", cursor, "--topic", "task.*", "--limit", "1")
    code, out, err = again.end()
    assert code == 0
    assert "task.cancelled" in out
    assert task in out
    assert "cursor: bb1." in err


def test_an_interruption_elsewhere_is_130(cli: Cli, run, database_url: str):
    import psycopg

    cli("session", "start", "s")
    with psycopg.connect(database_url) as connection:
        connection.execute("LOCK TABLE blackboard.sessions IN ACCESS EXCLUSIVE MODE")
        waiting = run("session", "list")
        with psycopg.connect(database_url, autocommit=True) as watcher:
            while not watcher.execute(
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ).fetchone():
                assert waiting.process.poll() is None
        waiting.process.send_signal(signal.SIGINT)
        code, out, err = waiting.end()
    assert (code, out, err) == (130, "", "")


@pytest.mark.parametrize("arguments", [["finding", "list"], ["finding", "list", "--json"], ["events"], ["history"]])
def test_a_reader_that_leaves_early_is_no_error(cli: Cli, database_url: str, arguments: list[str]):
    cli("session", "start", "s")
    for number in range(3):
        # More than a pipe holds, so that the writer finds its reader gone.
        cli("finding", "report", f"{number}" + "x" * 70_000, "--type", "t", "--as", "ops/a")
    done = subprocess.run(
        f"{sys.executable} -m blackboard_cli {' '.join(arguments)} | head -c 10; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "BLACKBOARD_URL": database_url},
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) == 10
    assert "Broken" not in done.stderr
    assert "Traceback" not in done.stderr


def test_help_into_a_closed_pipe_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m blackboard_cli --help | true; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_without_unicode_is_no_error(cli: Cli, database_url: str):
    cli("session", "start", "naïve …")
    done = subprocess.run(
        [*COMMAND, "session", "list"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "BLACKBOARD_URL": database_url, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert done.returncode == 0, done.stderr
    assert "na\\xefve \\u2026" in done.stdout
