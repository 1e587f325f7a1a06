"""Swarm files: what loads, and what is said about those that do not, with line and column."""

from __future__ import annotations

import textwrap
from datetime import timedelta
from pathlib import Path

import pytest

from blackboard.errors import ConfigurationError, SwarmFileError
from blackboard.swarm import load_swarm
from blackboard.swarm.commands import fill_in, parse_result
from blackboard.swarm.nodes import parse_duration
from blackboard.swarm.spec import Program, Restart, SwarmType

PARALLEL = """\
swarm:
  type: parallel_investigation

  task: "Investigate incident INC-1234"

  agents:
    - ops/deploy-validator:
        focus: "Check recent deployments and changes"

    - security/incident-response-lead:
        focus: "Analyze error patterns and logs"

    - ops/rollback-advisor:
        focus: "Assess rollback feasibility"

  coordination:
    share_findings: true
    avoid_duplicate_queries: true
    timeout: 10m

  synthesis:
    agent: ops/architect
    action: "Combine findings and recommend action"
"""

PROGRESSIVE = """\
swarm:
  type: progressive_refinement

  stages:
    - stage: 1
      agent: ops/deploy-validator
      task: "Identify recent changes"
      output: changes_list

    - stage: 2
      agent: security/incident-response-lead
      task: "Correlate changes with errors"
      input: changes_list
      output: correlation_report

    - stage: 3
      agent: ops/rollback-advisor
      task: "Recommend action based on correlation"
      input: correlation_report
      output: recommendation
"""

TWO_LINES = "  defaults:\n    run: my.module:work\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "inc-1234.yaml"
    path.write_text(text)
    return path


def problems(tmp_path: Path, text: str) -> list[tuple[int, int, str]]:
    path = write(tmp_path, text)
    with pytest.raises(SwarmFileError) as caught:
        load_swarm(path)
    error = caught.value
    found = [(one["line"], one["column"], one["message"]) for one in error.problems]
    assert error.path == str(path)
    assert (error.line, error.column) == found[0][:2]
    assert found == sorted(found)
    assert error.message == "\n".join(f"{path}:{line}:{column}: {message}" for line, column, message in found)
    return found


# ------------------------------------------------------------------------------------------------- what loads


def test_the_parallel_example_loads_with_two_more_lines(tmp_path: Path) -> None:
    spec = load_swarm(write(tmp_path, PARALLEL + TWO_LINES))
    assert spec.type is SwarmType.PARALLEL_INVESTIGATION
    assert spec.session == "inc-1234"
    assert spec.task == "Investigate incident INC-1234"
    assert [agent.id for agent in spec.agents] == [
        "ops/deploy-validator", "security/incident-response-lead", "ops/rollback-advisor", "ops/architect",
    ]  # fmt: skip
    assert spec.agents[1].focus == "Analyze error patterns and logs"
    assert all(agent.program == Program(run="my.module:work") for agent in spec.agents)
    assert [agent.capabilities for agent in spec.agents] == [("investigate",)] * 3 + [("synthesize",)]
    assert spec.coordination.share_findings
    assert spec.coordination.avoid_duplicate_queries
    assert spec.coordination.timeout == timedelta(minutes=10)
    assert spec.coordination.lease == timedelta(seconds=10)
    assert spec.synthesis
    assert spec.synthesis.agent == "ops/architect"
    assert spec.directory == tmp_path


def test_the_progressive_example_loads_with_two_more_lines(tmp_path: Path) -> None:
    spec = load_swarm(write(tmp_path, PROGRESSIVE + TWO_LINES))
    assert spec.type is SwarmType.PROGRESSIVE_REFINEMENT
    assert [(stage.name, stage.inputs, stage.output) for stage in spec.stages] == [
        ("1", (), "changes_list"),
        ("2", ("changes_list",), "correlation_report"),
        ("3", ("correlation_report",), "recommendation"),
    ]
    assert [agent.capabilities for agent in spec.agents] == [("refine",)] * 3


@pytest.mark.parametrize(("text", "lines"), [(PARALLEL, [7, 10, 13, 21]), (PROGRESSIVE, [5, 10, 16])])
def test_the_examples_as_they_stand_say_what_to_add(tmp_path: Path, text: str, lines: list[int]) -> None:
    found = problems(tmp_path, text)
    assert [line for line, _, _ in found] == lines
    assert all("add `run: package.module:function` or `command: [program, argument]`" in what for _, _, what in found)


def test_everything_an_agent_can_say(tmp_path: Path) -> None:
    spec = load_swarm(
        write(
            tmp_path,
            textwrap.dedent("""\
            swarm:
              type: parallel_investigation
              task: why
              session: INC-1
              context: {release: v1.2.3, since: 2025-01-02T10:30:00Z, hosts: [a, b]}
              defaults: {run: "m:f", env: {A: 1, B: 2}, restart: always, attempts: 7, timeout: 1h30m}
              agents:
                - a:
                    focus: x
                    command: [my-agent, -p, "{focus}", 5]
                    capabilities: [analyze_logs, investigate]
                    expertise: {database: 0.9, network: 0}
                    restart: 2
                    env: {B: 3, C: ""}
                    attempts: 1
                    timeout: 500ms
                - b: {focus: y, restart: never, run: "m.n:C.f"}
              coordination: {share_findings: no, avoid_duplicate_queries: off, lease: 30s}
              synthesis: {agent: a, action: sum up, timeout: 90s}
            """),
        )
    )
    a, b = spec.agents
    assert a.program == Program(command=("my-agent", "-p", "{focus}", "5"))
    assert a.capabilities == ("analyze_logs", "investigate", "synthesize")
    assert a.expertise == {"database": 0.9, "network": 0.0}
    assert a.restart == Restart("on-failure", 2)
    assert a.env == {"A": "1", "B": "3", "C": ""}
    assert (a.attempts, a.timeout) == (1, timedelta(milliseconds=500))
    assert b.restart == Restart("never")
    assert (b.attempts, b.timeout) == (7, timedelta(hours=1.5))
    assert spec.session == "INC-1"
    assert spec.context["hosts"] == ["a", "b"]
    assert spec.context["since"].startswith("2025-01-02T10:30:00")
    assert not spec.coordination.share_findings
    assert not spec.coordination.avoid_duplicate_queries
    assert spec.synthesis
    assert spec.synthesis.program == a.program
    assert spec.synthesis.timeout == timedelta(seconds=90)


def test_agents_may_be_a_mapping_and_anchors_work(tmp_path: Path) -> None:
    spec = load_swarm(
        write(
            tmp_path,
            "swarm:\n  type: parallel_investigation\n  task: why\n  agents:\n"
            "    a: &all {focus: x, run: 'm:f'}\n    b:\n      <<: *all\n      focus: y\n",
        )
    )
    assert [(agent.id, agent.focus) for agent in spec.agents] == [("a", "x"), ("b", "y")]
    assert [str(agent.program) for agent in spec.agents] == ["m:f", "m:f"]


def test_stages_may_share_an_agents_options(tmp_path: Path) -> None:
    spec = load_swarm(
        write(
            tmp_path,
            "swarm:\n  type: progressive_refinement\n  agents:\n    a: {run: 'm:f', restart: 3}\n  stages:\n"
            "    - {agent: a, task: one, output: x}\n    - {agent: a, task: two, input: [x], command: [wc]}\n",
        )
    )
    assert [agent.id for agent in spec.agents] == ["a"]
    assert [stage.program for stage in spec.stages] == [Program(run="m:f"), Program(command=("wc",))]
    assert [stage.name for stage in spec.stages] == ["1", "2"]
    assert spec.agents[0].restart.at_most == 3


# --------------------------------------------------------------------------------------------- what does not

HEAD = "swarm:\n  type: parallel_investigation\n  task: why\n"
ONE = "  agents: [{a: {focus: x, run: 'm:f'}}]\n"
STAGES = "swarm:\n  type: progressive_refinement\n  defaults: {run: 'm:f'}\n  stages:\n"


def agent(text: str) -> str:
    """A file with one agent's line."""
    return f"{HEAD}  agents:\n    - {text}\n"


def after(text: str) -> str:
    """A file that is right but for its last line."""
    return f"{HEAD}{ONE}  {text}\n"


def stages(*texts: str) -> str:
    """A file with these stages."""
    return STAGES + "".join(f"    - {{{text}}}\n" for text in texts)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("^", "the file is empty"),
        ("^# nothing\n", "the file is empty"),
        ("^swarm:\n", "needs `swarm`"),
        ("^swram: {}\n", "did you mean `swarm`"),
        ("^- a\n", "must be a mapping"),
        ("swarm: ^5\n", "must be a mapping"),
        ("swarm: {a: [^}\n", "this is no YAML"),
        ("swarm:\n^\tx: 1\n", "this is no YAML"),
        ("swarm: {x: ^\x01}\n", "this is no YAML"),
        ("swarm: ^!!python/object:os.x {}\n", "needs `type`"),
        (after("^sintesis: {}"), "did you mean `synthesis`"),
        (after("^task: again"), "`task` is there twice in `swarm`; first on line 3"),
        (f"swarm:\n  type: ^parallel\n  task: why\n{ONE}", "must be `parallel_investigation` or"),
        (f"swarm:\n  ^type: parallel_investigation\n{ONE}", "needs `task`"),
        (f"{HEAD}  agents: ^[]\n", "at least one agent"),
        ("swarm:\n  ^type: parallel_investigation\n  task: why\n", "needs `agents`"),
        (agent("^a: {focus: x, run: 'm:f'}\n      b: {}"), "one key, its name"),
        (agent("a: {focus: x, run: 'm:f'}\n    - ^a: {focus: y, run: 'm:f'}"), "twice; first on line 5"),
        (agent("a:\n        ^run: m:f"), "needs `focus`"),
        (agent("^a"), "needs `focus`"),
        (agent("^a b: {focus: x, run: 'm:f'}"), "no agent's name"),
        (agent(f"^{'a' * 101}: {{focus: x, run: 'm:f'}}"), "1 to 100 characters"),
        (agent("a: {focus: x, run: ^deploy.py}"), "like package.module:function"),
        (agent("a: {focus: x, run: 'm:f', ^command: [x]}"), "both `run` and `command`"),
        (agent("a: {focus: x, command: ^run it}"), "must be a list"),
        (agent("a: {focus: x, command: ^[]}"), "must begin with a program"),
        (agent("a: {focus: ^[x], run: 'm:f'}"), "must be text, not a list"),
        (agent("a: {focus: ^'', run: 'm:f'}"), "must not be empty"),
        (agent("a: {focus: x, run: 'm:f', restart: ^maybe}"), "never, on-failure, always"),
        (agent("a: {focus: x, run: 'm:f', restart: ^[]}"), "never, on-failure, always"),
        (agent("a: {focus: x, run: 'm:f', attempts: ^0}"), "from 1 to 1000"),
        (agent("a: {focus: x, run: 'm:f', env: ^[A]}"), "must be a mapping"),
        (agent("a: {focus: x, run: 'm:f', env: {A: ^[]}}"), "must be text"),
        (agent("a: {focus: x, run: 'm:f', expertise: {d: ^2}}"), "from 0 to 1"),
        (agent("a: {focus: x, run: 'm:f', expertise: {d: ^.nan}}"), "NaN"),
        (agent("a: {focus: x, run: 'm:f', capabilities: ^fly}"), "must be a list"),
        (agent("a: {focus: x, run: 'm:f', capabilities: ^[]}"), "must not be empty"),
        (after("coordination: {timeout: ^10 minutes}"), "write it like 10m"),
        (after("coordination: {timeout: ^600}"), "write it like 10m"),
        (after("coordination: {timeout: ^0s}"), "more than nothing"),
        (after("coordination: {lease: ^100ms}"), "between 1s and 1d"),
        (after("coordination: {share_findings: ^maybe}"), "true or false"),
        (after("coordination: {^share_finding: true}"), "did you mean `share_findings`"),
        (after("synthesis: ^{agent: b, run: 'm:f'}"), "needs `action`"),
        (after("^synthesis: {agent: b, action: sum}"), "has no program"),
        (after("^stages: []"), "belong to `type: progressive_refinement`"),
        (after("context: ^{x: .inf}"), "infinity"),
        (after("context: ^&a {x: *a}"), "contains itself"),
        (after("session: ^[]"), "must be text"),
        (after("defaults: {^focus: x}"), "unknown in `defaults`"),
        (stages("agent: a, task: t, input: ^x"), "no stage produces input `x`; no earlier stage has an `output`"),
        (stages("agent: a, task: t, output: y", "agent: a, task: t, input: ^x"), "there are y"),
        (stages("agent: a, task: t, input: ^x", "agent: b, task: u, output: x"), "used before stage 2"),
        (stages("agent: a, task: t, input: ^x, output: x"), "before stage 1 produces it"),
        (stages("agent: a, task: t, output: x", "agent: b, task: u, output: ^x"), "twice; first on line 5"),
        (stages("agent: a, task: t, output: x", "agent: b, task: u, input: [x, ^x]"), "twice"),
        (stages("stage: 1, agent: a, task: t", "stage: ^1, agent: b, task: u"), "twice; first on line 5"),
        (stages("agent: a, task: t, output: ^x y"), "must be a name"),
        (STAGES + "    - ^{agent: a}\n", "needs `task`"),
        (STAGES + "    - ^{task: t}\n", "needs `agent`"),
        (stages("agent: a, task: t, ^imput: x"), "did you mean `input`"),
        ("swarm:\n  type: progressive_refinement\n  stages: ^[]\n", "at least one stage"),
        ("swarm:\n  ^type: progressive_refinement\n", "needs `stages`"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    before, _, rest = text.partition("^")
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    found = problems(tmp_path, before + rest)
    assert any((line, column) == (at, where) and words in what for at, where, what in found), found


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        "swarm:\n  type: parallel_investigation\n  task: why\n  colour: red\n  agents:\n"
        "    - a: {focus: x, rum: 'm:f'}\n    - a: {focus: y, run: nothing}\n  coordination: {timeout: soon}\n",
    )
    assert [line for line, _, _ in found] == [4, 6, 6, 7, 8]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SwarmFileError, match="cannot be read: No such file"):
        load_swarm(tmp_path / "none.yaml")
    with pytest.raises(ConfigurationError, match="Is a directory"):
        load_swarm(tmp_path)
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"swarm:\n  task: caf\xe9\n")
    with pytest.raises(SwarmFileError, match=r"latin.yaml:2:12: the file is not UTF-8"):
        load_swarm(path)
    path.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(SwarmFileError, match="the limit is 1048576"):
        load_swarm(path)


def test_a_small_file_that_stands_for_a_huge_one_is_refused(tmp_path: Path) -> None:
    levels = "\n".join(f"    l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 9))
    found = problems(tmp_path, f"{HEAD}{ONE}  context:\n    l0: &l0 [x, x, x]\n{levels}\n")
    assert "stands for more than" in found[0][2]
    deep = "[" * 5000 + "]" * 5000
    assert problems(tmp_path, f"{HEAD}{ONE}  context: {deep}\n")


# ------------------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10m", 600), ("90s", 90), ("1h30m", 5400), ("500ms", 0.5), ("1.5h", 5400), ("2d", 172_800), ("1m500ms", 60.5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "10 m", "-5s", "5s5s", "0s", "31d", "1e3s", "10M", "\u0661s"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("output", "result"),
    [
        ("", None),
        ("  \n", None),
        ("done", "done"),
        ('{"a": 1}', {"a": 1}),
        ('{\n "a": [1,\n 2]\n}\n', {"a": [1, 2]}),
        ('working\nstill\n{"a": 1}\n\n', {"a": 1}),
        ("working\n7", 7),
        ("two\nlines", "two\nlines"),
        ("NaN", "NaN"),
    ],
)
def test_a_programs_output_is_read(output: str, result: object) -> None:
    assert parse_result(output) == result


def test_placeholders_are_filled_in_once() -> None:
    values = {"focus": "{agent_id} {x}", "agent_id": "ops/a"}
    assert fill_in(("{focus}", "a{agent_id}b", "{ {none} }", "{"), values) == [
        "{agent_id} {x}", "aops/ab", "{ {none} }", "{",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("restart", "code", "restarts", "wanted"),
    [
        (Restart(), 1, 0, False),
        (Restart("on-failure"), 0, 0, False),
        (Restart("on-failure"), -9, 99, True),
        (Restart("always"), 0, 99, True),
        (Restart("on-failure", 2), 1, 1, True),
        (Restart("on-failure", 2), 1, 2, False),
        (Restart("on-failure", 0), 1, 0, False),
    ],
)
def test_restarts(restart: Restart, code: int, restarts: int, wanted: bool) -> None:
    assert restart.wanted(code, restarts) is wanted
