"""``blackboard flow``."""

from __future__ import annotations

from pathlib import Path

import pytest

from blackboard import Session, Stage

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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "{name: f, stages: [{name: a, type: t, capabilty: x}]}",
            "'capabilty' of stage a is no field of a stage. Did you mean 'capability'?",
        ),
        (
            "{name: f, stages: [{name: a, type: t, compensate: {type: u, timout: 1s}}]}",
            "'timout' of stage a is no field of compensate. Did you mean 'timeout'?",
        ),
        (
            "{name: f, stages: [{name: a, type: t}, {name: b, type: t, after: [{stage: a, on_failure: ignore}]}]}",
            "after.0.on_failure of stage b: Input should be 'fail', 'skip', 'continue' or 'compensate'.",
        ),
        ("{name: f, stges: []}", "What stdin gave says stges; a flow has name, inputs and stages."),
        (
            "name: f\nstages: [",
            "What stdin gave is no YAML: expected the node content, but found '<stream end>' (line 2, column 10).",
        ),
    ],
)
def test_a_wrong_file_is_told_by_its_own_words(cli: Cli, text: str, said: str) -> None:
    cli("session", "start", "INC-1234")
    assert cli("flow", "create", "-", stdin=text, code=2).stderr == f"Error: {said}\n"


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


async def test_a_flow_is_changed(cli: Cli, session: Session, tmp_path: Path) -> None:
    flow = await session.flows.create(
        "f", [Stage("look", "t"), Stage("draft", "t", after=["look"]), Stage("report", "t", after=["draft"])]
    )
    short = flow.id.hex[-8:]
    file = tmp_path / "more.yaml"
    file.write_text("stages: [{name: fix, type: t, after: look}]")
    edges = '{"report": ["look", {"stage": "fix", "on_failure": "continue"}]}'
    change = ("--add", str(file), "--remove", "draft", "--rewire", edges, "--reprioritise", '{"look": 9}')
    told = cli("flow", "modify", short, "--expected-version", "1", *change, "--key", "k")
    assert told.output == "Flow f is running (version 2).\n"
    assert cli("flow", "modify", short, "--expected-version", "1", *change, "--key", "k", "--json").json["version"] == 2
    found = await session.flows.get(flow.id)
    assert {stage.name: [(edge.stage, edge.on_failure) for edge in stage.after] for stage in found.stages} == {
        "look": [], "fix": [("look", "fail")], "report": [("fix", "continue"), ("look", "fail")]
    }  # fmt: skip
    assert (await session.tasks.get(found.stage("look").task_id)).priority == 9
    late = cli("flow", "modify", short, "--expected-version", "1", "--remove", "fix", "--json", code=1).error
    assert (late["code"], late["version"], late["expected_version"]) == ("conflict", 2, 1)
    more = cli("flow", "modify", short, "--expected-version", "2", "--add", "-", stdin="[{name: x, type: t}]")
    assert "(version 3)" in more.output
    one = cli("flow", "modify", short, "--expected-version", "3", "--rewire", '{"x": "look"}', "--json").json
    assert one["stages"][-1]["after"] == [{"stage": "look", "on_failure": "fail"}]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((), "change"),
        (("--add", "/nowhere.yaml"), "file"),
        (("--rewire", "[1]"), "rewire"),
        (("--rewire", '{"a": 1}'), "rewire"),
        (("--rewire", '{"a": [{"stage": "b", "on_failure": "explode"}]}'), "rewire"),
        (("--rewire", '{"a": [1]}'), "rewire"),
        (("--reprioritise", '{"a": "high"}'), "reprioritise"),
        (("--reprioritise", "7"), "reprioritise"),
        (("--reprioritise", '{"a": 11}'), "priority"),
    ],
)
async def test_a_change_that_is_wrong_names_the_option(
    cli: Cli, session: Session, arguments: tuple[str, ...], field: str
) -> None:
    flow = await session.flows.create("f", [Stage("a", "t"), Stage("b", "t")])
    told = cli("flow", "modify", str(flow.id), "--expected-version", "1", *arguments, "--json", code=2)
    assert told.error["field"] == field
    assert (await session.flows.get(flow.id)).version == 1


async def test_a_prune_tells_flows_apart(cli: Cli, session: Session) -> None:
    for name in ("f", "g"):
        flow = await session.flows.create(name, [Stage("a", "t"), Stage("b", "t")])
        await session.flows.cancel(flow.id)
    prune = ("task", "prune", "--older-than", "0s")
    assert cli(*prune, "--dry-run").stderr == "4 tasks and 2 flows would go.\n"
    dry = cli(*prune, "--dry-run", "--events", "--json").json
    assert (dry["tasks"], dry["flows"], dry["events"] > 4, dry["dry_run"]) == (4, 2, True, True)
    done = cli("task", "prune", "--older-than", "0s", "--events").stderr
    assert done.startswith("4 tasks, 2 flows and ")
    assert done.endswith(" events are gone.\n")
    assert cli(*prune, "--json").json["flows"] == 0
    assert await session.flows.list() == []
