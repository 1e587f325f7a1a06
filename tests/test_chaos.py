"""A small crash storm in the suite; ``make chaos`` runs large ones, and ``tests/chaos`` says what it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .chaos.faults import FAULTS
from .chaos.machines import eventually
from .chaos.report import Report, Violation
from .chaos.storm import Options, Storm

pytestmark = pytest.mark.lifecycle

HERE = Path(__file__).parent
POOLER = os.environ.get("BLACKBOARD_TEST_PGBOUNCER") != "0"
BIN_DIR = os.environ.get("BLACKBOARD_TEST_PG_BIN")


@pytest.mark.timeout(400)
def test_a_small_storm(tmp_path: Path) -> None:
    """Every kind of fault once and some again, in an order that is drawn, on three sessions; only the end is looked at.

    Connections that are dead without a word take the product's patience (``tests/test_chaos_silence.py`` shortens it).
    """
    faults = tuple(name for name in FAULTS if name != "deaf" and (POOLER or name != "bouncer"))
    options = Options(
        seed=20, faults=faults, seconds=7, workers=3, tasks=120, pause=0.8, bin_dir=Path(BIN_DIR) if BIN_DIR else None
    )
    with Storm(options, tmp_path) as storm:
        report = storm.run()
    assert report.good, "\n".join(report.lines())
    assert set(faults) <= report.faults.keys()
    assert report.facts["tasks"] >= 120
    assert report.facts["claims from several sessions"] > 0
    assert report.facts["starts of the server"] >= 3, "at first, after its restart and after its outage"


def processes_of(home: str) -> list[int]:
    """The living processes that were started for the storm whose notes are in ``home``."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment, stat = (entry / "environ").read_bytes(), (entry / "stat").read_text()
            except OSError:
                continue
            if f"CHAOS_HOME={home}\0".encode() in environment and stat.rpartition(")")[2].split()[0] != "Z":
                found.append(int(entry.name))
    return found


@pytest.mark.timeout(200)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_storm_that_is_broken_off(how: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos", "--faults", "kill,stop", "--workers", "2", "--minutes", "5"]
    with subprocess.Popen(
        command, cwd=HERE.parent, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    ) as storm:
        try:
            assert storm.stderr is not None
            home = storm.stderr.readline().rpartition(" in ")[2].strip()
            eventually(lambda: len(processes_of(home)) == 3, 100, "the start of the processes")
            assert len(list(tmp_path.glob("blackboard-chaos-*"))) == 1
        finally:
            storm.send_signal(how)
            storm.wait(60)
    assert storm.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[how]
    eventually(lambda: not processes_of(home), 20, "the end of the processes")


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tests.chaos", *arguments], cwd=HERE.parent, capture_output=True, text=True,
            check=False, env={**os.environ, "PATH": str(tmp_path)},
        )  # fmt: skip

    assert "there is no rain; there are kill, stop" in run("--faults", "kill,rain").stderr
    assert run("--faults", "rain").returncode == 2
    assert "must be positive" in run("--minutes", "0").stderr
    helped = run("--help")
    assert helped.returncode == 0
    for name, fault in FAULTS.items():
        assert name in helped.stdout
        assert fault.__doc__ in helped.stdout


def test_a_report_is_for_people_and_for_programs() -> None:
    bad = Violation("nothing is lost", "one was lost", ("task 1", "task 2"))
    report = Report({"seed": 7, "sessions": 3, "faults": ["kill"]}, 3.0, {"kill": 2}, {"tasks": 5}, [bad] * 7)
    said = "\n".join(report.lines())
    assert not report.good
    assert "VIOLATED: nothing is lost (7 times)" in said
    assert said.count("one was lost") == 5
    assert "run it again with --seed 7 --sessions 3 --faults kill" in said
    assert json.loads(json.dumps(report.json()))["violations"][0]["evidence"] == ["task 1", "task 2"]
    assert "everything held" in "\n".join(Report({"seed": 7, "faults": []}, 3.0, {}, {}).lines())
