"""``blackboard worker`` and ``blackboard deadletter``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from blackboard.sync import Agent, Blackboard, Session

from .clitools import Cli, exits

HERE = Path(__file__).parent


@pytest.fixture(name="cli")
def _cli(database_url: str) -> Cli:
    return Cli(database_url)


@pytest.fixture(name="open_session")
def _open_session(database_url: str) -> Iterator[Session]:
    with Blackboard.open(database_url) as board:
        yield board.start("INC-7")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(HERE)
    yield
    sys.modules.pop("worker_app", None)
    while str(HERE) in sys.path:
        sys.path.remove(str(HERE))


def test_it_runs_the_handlers_of_a_module(cli: Cli, open_session: Session):
    task = open_session.tasks.add("echo", {"n": 1}, capability="special")
    done = cli("worker", "worker_app:handlers", "--drain", "--agent", "w/1", "--capability", "special",
               "--concurrency", "3", "--grace", "1s", "--json")  # fmt: skip
    assert done.json["completed"] == 1
    found = open_session.tasks.get(task.id)
    assert (found.status, found.result, found.assigned_to) == ("completed", {"n": 1}, "w/1")


def test_sessions_are_named_in_part_and_repeated(cli: Cli, open_session: Session, database_url: str):
    with Blackboard.open(database_url) as board:
        other = board.start("INC-8")
        for session in (open_session, other):
            session.tasks.add("echo")
        cli("worker", "worker_app:handlers", "--drain", code=exits.INVALID)
        done = cli("worker", "worker_app:handlers", "--drain", "-s", "INC-7", "-s", other.id.hex[-8:], "--json")
        assert done.json["completed"] == 2
        assert other.tasks.list()[0].assigned_to.startswith("worker/")  # type: ignore[union-attr]


def test_a_factory_makes_its_own_worker(cli: Cli, open_session: Session, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORKER_SESSION", str(open_session.id))
    open_session.tasks.add("echo")
    assert cli("worker", "worker_app:make", "--drain", "--json").json["completed"] == 1
    assert open_session.tasks.list()[0].assigned_to == "w/made"
    refused = cli("worker", "worker_app:make", "--concurrency", "3", "--json", code=exits.INVALID).error
    assert refused["field"] == "target"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("worker_app", "must be MODULE:NAME"),
        ("no_such_module:x", "There is no module 'no_such_module'"),
        ("worker_app:nothing", "has no 'nothing'"),
        ("worker_app:__name__", "must be Handlers"),
        ("worker_app:say", "in place of a Worker"),
    ],
)
def test_what_is_no_app_is_said(cli: Cli, open_session: Session, target: str, said: str):
    assert said in cli("worker", target, code=exits.INVALID).stderr


def test_signals_end_it_cleanly_and_a_second_one_at_once(open_session: Session, database_url: str):
    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "blackboard_cli", "worker", "worker_app:handlers", "--agent", "w/1"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "BLACKBOARD_URL": database_url},
        )  # fmt: skip

    with start() as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "is at work" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
        assert process.returncode == exits.OK
        assert "no more tasks are taken" in said
        assert "ended: 0 completed" in said
    task = open_session.tasks.add("deaf")
    with start() as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == f"started {task.id}\n"
        process.send_signal(signal.SIGINT)
        while "still running" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == exits.INTERRUPTED
    assert open_session.tasks.get(task.id).status == "pending"


def _die(agent: Agent, type_: str, code: str) -> str:
    task = agent.tasks.add(type_, {"n": 1}, max_attempts=1)
    [held] = agent.tasks.claim()
    agent.tasks.fail(held, {"code": code, "message": f"{code}\x1b[31m!", "traceback": "Traceback\n  in here"})
    return str(task.id)


def test_dead_letters(cli: Cli, open_session: Session):
    agent = open_session.join("w/1")
    assert cli("deadletter", "list").stderr == "No dead letters.\n"
    ids = [_die(agent, "a", "timeout"), _die(agent, "a", "x"), _die(agent, "b", "x"), _die(agent, "b", "y")]
    assert [one["id"] for one in cli("deadletter", "list", "--json").json] == ids[::-1]
    assert [one["id"] for one in cli("deadletter", "list", "--type", "a", "--error", "x", "--json").json] == [ids[1]]
    assert cli("deadletter", "list").stdout.splitlines()[0].split()[:4] == ["ID", "TYPE", "DIED", "ATTEMPTS"]

    shown = cli("deadletter", "show", ids[0][-8:])
    assert "Traceback\n  in here" in shown.stdout
    assert "\x1b[31m" not in shown.stdout
    document = cli("deadletter", "show", ids[0], "--json").json
    assert (document["status"], document["attempts"][0]["outcome"]) == ("dead", "dead")

    assert cli("deadletter", "redrive", code=exits.INVALID).stderr.startswith("Error: Name dead letters by id")
    cli("deadletter", "redrive", ids[0], "--type", "a", code=exits.INVALID)
    assert cli("deadletter", "redrive", "--type", "a", "--dry-run", "--json").json == ids[:2]
    assert cli("deadletter", "redrive", ids[0], "--dry-run").stdout.split() == [ids[0]]
    assert len(cli("deadletter", "list", "--json").json) == 4
    assert cli("deadletter", "redrive", "--error", "timeout").stdout.split() == [ids[0]]
    assert cli("deadletter", "redrive", ids[1][-8:], "--json").json == [ids[1]]
    assert cli("deadletter", "redrive", "--older-than", "1h", "--json").json == []

    assert cli("deadletter", "discard", ids[2], "--reason", "gone").stdout.split() == [ids[2]]
    assert cli("task", "show", ids[2], "--json").json["error"]["message"] == "gone"
    assert cli("deadletter", "discard", ids[0], "--json", code=exits.REFUSED).error["code"] == "invalid_transition"
    assert cli("deadletter", "redrive", "--all", "--json").json == [ids[3]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import blackboard.nosuch\n", "The module broken_app cannot be imported: ModuleNotFoundError: "),
        ("1 / 0\n", "The module broken_app cannot be imported: ZeroDivisionError: division by zero"),
        ("def make(board):\n    raise KeyError('TOKEN')\n", "broken_app:make raised KeyError: 'TOKEN'"),
        ("async def make(board):\n    raise KeyError('TOKEN')\n", "broken_app:make raised KeyError: 'TOKEN'"),
    ],
)
def test_what_the_module_itself_raises_is_no_fault_of_ours(
    cli: Cli,
    open_session: Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    text: str,
    said: str,
):
    (tmp_path / "broken_app.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    try:
        stderr = cli("worker", "broken_app:make", "--drain", code=exits.INVALID).stderr
    finally:
        sys.modules.pop("broken_app", None)
        while str(tmp_path) in sys.path:
            sys.path.remove(str(tmp_path))
    assert f"Error: {said}" in stderr
    assert "fault of ours" not in stderr
    assert 'broken_app.py", line ' in caplog.text
    assert "importlib" not in caplog.text


def test_a_part_of_an_id_that_is_no_dead_letter_says_so(cli: Cli, open_session: Session):
    task = open_session.tasks.add("t")
    message = cli("deadletter", "show", task.id.hex[-8:], code=exits.NOT_FOUND).stderr
    assert message.startswith("Error: No dead letter in this session has an id like")


def test_the_log_is_in_utc_as_everything_else_is(open_session: Session, database_url: str):
    ended = subprocess.run(
        [sys.executable, "-m", "blackboard_cli", "worker", "worker_app:handlers", "--agent", "w/1", "--drain"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "BLACKBOARD_URL": database_url, "TZ": "Etc/GMT-9"},
    )  # fmt: skip
    assert open_session.id
    first = ended.stderr.split(" ", 1)[0]
    assert first.endswith("Z"), ended.stderr
    assert abs((datetime.now(UTC) - datetime.fromisoformat(first)).total_seconds()) < 3600
