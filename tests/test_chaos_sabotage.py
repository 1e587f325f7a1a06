"""The storm finds what is broken: functions of the storm's own database, each without one thing that keeps it right."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from .chaos.storm import Options, Storm

pytestmark = pytest.mark.lifecycle

BIN_DIR = os.environ.get("BLACKBOARD_TEST_PG_BIN")
DEFINITION = (
    "SELECT pg_get_functiondef(p.oid) FROM pg_proc p "
    "WHERE p.pronamespace = 'blackboard'::regnamespace AND p.proname = %s"
)


def break_off(storm: Storm, function: str, part: str, instead: str) -> None:
    """The storm's database has another function of that name."""
    rows = storm.server.ask(DEFINITION, function)
    assert rows is not None and len(rows) == 1
    [(text,)] = rows
    assert text.count(part) == 1
    assert storm.server.ask(text.replace(part, instead)) is not None


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("function", "part", "instead", "options", "rule"),
    [
        pytest.param(
            "complete_tasks_across",
            " AND t.claim_id = x.claim_id AND t.attempt = x.attempt",
            "",
            # Results that wait behind a hole while their tasks lapse, and are run by somebody else when it closes.
            {"faults": ("hole",), "types": ("plain",)},
            "a task is completed once or dead once, by who held it, and nothing follows",
            id="the fence of completions",
        ),
        pytest.param(
            "claim_tasks_across",
            " AND NOT s.gated",
            "",
            {"faults": ("kill",), "limited": True},
            "no limit was ever exceeded, and none counts what does not run",
            id="the limits of claims",
        ),
    ],
)
def test_a_storm_over_several_sessions_misses(
    function: str, part: str, instead: str, options: dict[str, Any], rule: str, tmp_path: Path
) -> None:
    asked = Options(
        seed=1, seconds=8, workers=3, tasks=300, term=1.0, pause=0.8, bin_dir=Path(BIN_DIR) if BIN_DIR else None,
        **options,
    )  # fmt: skip
    with Storm(asked, tmp_path) as storm:
        break_off(storm, function, part, instead)
        report = storm.run()
    assert rule in {violation.rule for violation in report.violations}, "\n".join(report.lines())
