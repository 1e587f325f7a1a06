"""``blackboard flow``."""

from __future__ import annotations

from pathlib import Path

import pytest

from blackboard import Session

from .clitools import Cli

FILE = """
name: release
inputs: {region: eu}
stages:
  - {name: look, type: investigate, timeout: 5m, output: found}
  - name: fix
    type: change
    after: look
    inputs: {found: look, region: inputs.region}
    compensate: {type: undo, retry_delay: 2s}
  - {name: report, type: write, after: [look, {stage: fix, on_failure: continue}], join: any}
"""


@pytest.fixture(name="cli")
def _cli(database_url: str) -> Cli:
    return Cli(database_url)


async def test_a_flow_from_a_file(cli: Cli, session: Session, tmp_path: Path) -> None:
    file = tmp_path / "release.yaml"
    file.write_text(FILE)
    made = cli("flow", "create", str(file), "--json").json
    assert (made["name"], made["inputs"], [s["name"] for s in made["stages"]]) == (
        "release", {"region": "eu"}, ["look", "fix", "report"]
    )  # fmt: skip
    tasks = await session.tasks.list(type="investigate")
    assert tasks[0].timeout is not None
    assert tasks[0].timeout.total_seconds() == 300
    short = made["id"][-8:]
    assert "look" in cli("flow", "show", short).stdout
    shown = cli("flow", "show", short, "--json").json
    assert shown["progress"]["states"] == {"ready": 1, "waiting": 2}
    assert "<- look" in cli("flow", "graph", short).stdout
    assert cli("flow", "graph", short, "--mermaid").stdout.startswith("flowchart TD")
    assert cli("flow", "graph", short, "--json").json["graph"]
    assert cli("flow", "list", "--json").json[0]["status"] == "running"
    assert cli("flow", "pause", short, "--stop", "--json").json["status"] == "paused"
    assert "running" in cli("flow", "resume", short).output
    assert cli("flow", "cancel", short, "--reason", "no", "--json").json["error"]["message"] == "no"
    assert "cancelled" in cli("flow", "list").stdout
    assert cli("flow", "list", "--status", "running", "--json").json == []
    again = cli("flow", "create", "-", "--name", "second", "--inputs", '{"region": "us"}', stdin=FILE)
    assert "second" in again.stdout


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[1]", "file"),
        ("{", "file"),
        ("stages: [{name: a, type: t}]", "name"),
        ("name: f", "stages"),
        ("{name: f, stages: [x]}", "stages"),
        ("{name: f, stages: [{name: a}]}", "type"),
        ("{name: f, stages: [{type: a}]}", "name"),
        ("{name: f, stages: [{name: a, type: t, colour: red}]}", "colour"),
        ("{name: f, stages: [{name: a, type: t, timeout: soon}]}", "timeout"),
        ("{name: f, stages: [{name: a, type: t, after: [b]}]}", "after"),
        ("{name: f, steps: []}", "steps"),
    ],
)
async def test_a_file_that_is_wrong_names_the_place(
    cli: Cli, session: Session, tmp_path: Path, text: str, field: str
) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(text)
    assert cli("flow", "create", str(file), "--json", code=2).error["field"] == field
    assert await session.flows.list() == []


async def test_a_file_that_is_not_there(cli: Cli, session: Session) -> None:
    assert cli("flow", "create", "/nowhere.yaml", "--json", code=2).error["field"] == "file"
    assert cli("flow", "show", "ffffffff", "--json", code=3).error["code"] == "not_found"
