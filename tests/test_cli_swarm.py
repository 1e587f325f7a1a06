"""``blackboard swarm`` and ``blackboard demo``: what the command line adds to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from .clitools import Cli

SWARM = """
swarm:
  type: parallel_investigation
  task: "Investigate incident INC-1"
  session: INC-1
  agents:
    - ops/a: {{focus: "Check deployments", command: ["sh", "-c", "{command}"]}}
  coordination: {{timeout: 1m}}
"""


@pytest.fixture(name="cli")
def _cli(database_url: str) -> Cli:
    return Cli(database_url)


def _file(tmp_path: Path, command: str) -> str:
    path = tmp_path / "swarm.yaml"
    path.write_text(SWARM.format(command=command))
    return str(path)


def test_a_file_is_checked_and_its_faults_point_at_the_line(cli: Cli, tmp_path: Path):
    file = _file(tmp_path, "true")
    assert cli("swarm", "check", file, "--json").json["agents"] == ["ops/a"]
    assert "parallel_investigation" in cli("swarm", "check", file).stdout
    bad = tmp_path / "bad.yaml"
    bad.write_text("swarm:\n  type: juggling\n")
    for verb in ("check", "run"):
        error = cli("swarm", verb, str(bad), "--json", code=2).error
        assert error["code"] == "swarm_file"
        assert "bad.yaml:2:" in cli("swarm", verb, str(bad), code=2).stderr
    assert "nowhere.yaml" in cli("swarm", "check", "nowhere.yaml", code=2).stderr
    assert cli("session", "list", "--json").json == []


def test_a_swarm_runs_to_its_end(cli: Cli, tmp_path: Path):
    file = _file(tmp_path, "echo 42")
    done = cli("swarm", "run", file, "--logs", str(tmp_path / "logs"), "--grace", "2s")
    assert "task.completed" in done.stdout
    assert "\x1b" not in done.stdout
    assert "status    completed" in done.stdout
    assert [one["status"] for one in cli("session", "list", "--json").json] == ["completed"]
    found = cli("swarm", "run", file, "--json", "--session", "other", "--no-resume").json
    assert (found["status"], found["session_name"]) == ("completed", "other")
    assert found["tasks"][0]["result"] == 42
    assert "No such" not in cli("swarm", "run", file, "--resume", code=3).stderr
    assert cli("swarm", "run", file, "--grace", "soon", "--json", code=2).error["field"] == "grace"


def test_a_swarm_that_fails_is_refused(cli: Cli, tmp_path: Path):
    file = _file(tmp_path, "exit 3")
    path = Path(file)
    path.write_text(path.read_text().replace("{timeout: 1m}", "{timeout: 1s}"))
    assert cli("swarm", "run", file, "--json", "--grace", "1s", code=1).json["status"] == "failed"


def test_ctrl_c_ends_a_swarm_cleanly(cli: Cli, tmp_path: Path, database_url: str):
    process = subprocess.Popen(
        [sys.executable, "-m", "blackboard_cli", "swarm", "run", _file(tmp_path, "sleep 60"), "--grace", "2s"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "BLACKBOARD_URL": database_url},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "task.assigned" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in out + err
    assert "status    interrupted" in out
    assert cli("session", "list", "--json").json[0]["status"] == "paused"


@pytest.fixture(name="seen")
def _seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the demonstration was called with; it is a stand-in."""
    seen: dict[str, Any] = {}

    def run_demo(**given: Any) -> int:
        seen.update(given)
        return seen.get("code", 0)

    stand_in = types.ModuleType("blackboard_examples.incident.demo")
    vars(stand_in)["run_demo"] = run_demo
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    return seen


def test_the_demonstration_gets_its_options(cli: Cli, seen: dict[str, Any], tmp_path: Path):
    cli("demo")
    console = seen.pop("console")
    assert console.width
    assert seen == {
        "url": None,
        "data_dir": None,
        "yes": False,
        "chaos": False,
        "logs": [],
        "deployments": None,
        "report_dir": None,
    }
    log, deployments = tmp_path / "a.log", tmp_path / "d.log"
    log.write_text("x")
    deployments.write_text("y")
    cli(
        "demo", "--yes", "--chaos", "--logs", str(log), "--logs", str(deployments), "--deployments", str(deployments),
        "--report", str(tmp_path), "--url", "postgresql://x@y/z", "--data-dir", str(tmp_path),
    )  # fmt: skip
    assert (seen["yes"], seen["chaos"]) == (True, True)
    assert seen["logs"] == [log, deployments]
    assert (seen["deployments"], seen["report_dir"]) == (deployments, tmp_path)
    assert (seen["url"], seen["data_dir"]) == ("postgresql://x@y/z", tmp_path)
    seen["code"] = 1
    cli("demo", "--report-dir", str(tmp_path), code=1)


def test_the_demonstration_tells_what_it_misses(cli: Cli):
    error = cli("demo", "--logs", "/nowhere.log", "--json", code=2).error
    assert error["field"] == "logs"
    assert "/nowhere.log" in error["message"]
    assert cli("session", "list", "--json").json == []
