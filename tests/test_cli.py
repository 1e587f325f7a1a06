"""The command line as a whole: its help, its options, its errors, its codes, and what it does not import."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from blackboard import errors

from .clitools import APP, HEAVY, Cli, exits, module


@pytest.fixture(name="cli")
def _cli(database_url: str) -> Cli:
    return Cli(database_url)


def _walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    if hasattr(command, "list_commands"):
        with command.make_context(path[-1] if path else "blackboard", [], resilient_parsing=True) as ctx:
            for name in command.list_commands(ctx):
                _, found, _ = command.resolve_command(ctx, [name])
                yield from _walk(found, (*path, name))


TREE = [path for path, _ in _walk(typer.main.get_command(APP), ())]
LEAVES = [path for path, command in _walk(typer.main.get_command(APP), ()) if not hasattr(command, "list_commands")]


def test_entry_point_and_module_are_the_same_command():
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="blackboard")
    assert entry.value == "blackboard_cli.main:main"
    for command in ([sys.executable, "-m", "blackboard_cli"], ["blackboard"]):
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            [*command, "--version"], check=False, capture_output=True, text=True, env={**os.environ, "PATH": path}
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"blackboard {importlib.metadata.version('agent-blackboard')}\n"


@pytest.mark.parametrize("path", TREE, ids=" ".join)
def test_every_command_has_help(path: tuple[str, ...]):
    result = CliRunner().invoke(APP, [*path, "--help"], prog_name="blackboard")
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"Usage: {' '.join(('blackboard', *path))} ")
    assert max(map(len, result.output.splitlines())) <= 120
    if path in LEAVES:
        example = result.output[result.output.index("Example") :]
        line = rf"^  (?:.*\W)?blackboard {' '.join(path)}\b"
        assert re.search(line, example, re.MULTILINE), "an example that uses the command itself"
        for option in ("--json", "--url", "--as", "--session", "--data-dir", "--no-color"):
            assert option in result.output


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_option_and_argument_is_explained(path: tuple[str, ...]):
    command = dict(_walk(typer.main.get_command(APP), ()))[path]
    for parameter in command.params:
        assert parameter.help, f"{parameter.name} has no help"


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_is_run_by_a_test(path: tuple[str, ...]):
    text = "".join(file.read_text(encoding="utf-8") for file in Path(__file__).parent.glob("test_cli*.py"))
    words = r'", "'.join(map(re.escape, path))
    assert re.search(rf'\("{words}"', text), f"no test runs cli({', '.join(path)})"


def test_root_help_lists_every_noun_with_its_summary_and_the_exit_codes():
    result = CliRunner().invoke(APP, ["--help"])
    for name, (_, summary) in module("main").NOUNS.items():
        assert re.search(rf"^  {name} +{re.escape(summary[:30])}", result.output, re.MULTILINE), name
    for code, meaning in exits.MEANINGS.items():
        assert f"{code:>3}  {meaning}" in result.output


def test_a_nouns_summary_is_the_one_that_the_root_tells():
    for name, (where, summary) in module("main").NOUNS.items():
        group = module(where).app
        if isinstance(group.info.help, str):
            assert group.info.help == summary, name


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["finding", "report", "--help"], ["db", "--help"], ["server", "--help"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]):
    code = (
        "import sys\n"
        "from blackboard_cli.main import main\n"
        f"sys.argv = ['blackboard', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print('\\n' + ' '.join(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.splitlines()[-1].split())
    heavy = set(HEAVY) if arguments[0].startswith("--") else set(HEAVY) - {"pydantic", "pydantic_core"}
    assert not loaded & heavy
    if arguments[0].startswith("--"):
        assert not any(name.startswith("blackboard.") for name in loaded)
        ours = {name for name in loaded if name.startswith("blackboard_cli.")}
        nouns = {f"blackboard_cli.{where}" for where, _ in module("main").NOUNS.values()}
        assert not ours & nouns


@pytest.mark.parametrize(
    ("shell", "sign"), [("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete --command")]
)
def test_completion_scripts(shell: str, sign: str):
    done = subprocess.run(
        [sys.executable, "-c", "from blackboard_cli.main import main; main()"],
        env={**os.environ, "_BLACKBOARD_COMPLETE": f"source_{shell}"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert sign in done.stdout
    assert "blackboard" in done.stdout


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("blackboard fin", {"finding"}),
        ("blackboard s", {"schedule", "session", "swarm", "server"}),
        ("blackboard finding r", {"report", "retract"}),
        ("blackboard finding report --conf", {"--confidence"}),
        ("blackboard vote 91d4c27b a", {"abstain"}),
        ("blackboard --js", {"--json"}),
        ("blackboard task list --js", {"--json"}),
        ("blackboard task list --status pending --status a", {"awaiting_approval", "assigned"}),
        ("blackboard task prune --status c", {"completed", "cancelled"}),
        ("blackboard flow list --status r", {"running"}),
    ],
)
def test_completion_of_nouns_verbs_options_and_choices(typed: str, wanted: set[str]):
    words = typed.split()
    done = subprocess.run(
        [sys.executable, "-c", "from blackboard_cli.main import main; main()"],
        env={
            **os.environ,
            "_BLACKBOARD_COMPLETE": "complete_bash",
            "COMP_WORDS": typed,
            "COMP_CWORD": str(len(words) - 1),
        },
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == wanted


def test_every_error_of_the_library_has_a_code():
    wanted = {
        errors.InvalidInput: 2,
        errors.PayloadTooLarge: 2,
        errors.ConfigurationError: 2,
        errors.SwarmFileError: 2,
        errors.NotFound: 3,
        errors.ServerUnreachable: 4,
        errors.SchemaOutdated: 4,
        errors.HistoryNotAdopted: 4,
        errors.TransientError: 4,
        errors.LeaseLost: 5,
        errors.LockNotAcquired: 5,
        errors.WaitTimeout: 5,
        errors.Conflict: 1,
        errors.SessionClosed: 1,
        errors.NotPermitted: 1,
        errors.CursorExpired: 1,
    }
    for name in errors.__all__:
        kind = getattr(errors, name)
        if isinstance(kind, type) and issubclass(kind, errors.BlackboardError):
            code = exits.exit_code(kind("…"))
            assert code in exits.MEANINGS
            assert code == wanted.get(kind, code), name


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["sesion", "list"], "No such command 'sesion'. Did you mean 'session'"),
        (["session", "lst"], "No such command 'lst'. Did you mean 'list'"),
        (["session", "list", "--limmit", "3"], "No such option: --limmit"),
        (["session", "list", "--limit", "many"], "--limit"),
        (["session", "list", "--limit", "0"], "--limit"),
        (["session", "list", "--status", "asleep"], "--status"),
        (["session", "start"], "NAME"),
        (["vote", "91d4c27b", "perhaps"], "choice"),
    ],
)
def test_a_wrong_command_line_is_told_with_the_way_to_help(cli: Cli, arguments: list[str], told: str):
    result = cli(*arguments, code=2)
    assert told.lower() in result.stderr.lower()
    assert result.stderr.startswith("Error: ")
    assert "--help` ." not in result.stderr
    assert re.search(r"See `blackboard.* --help`\.$", result.stderr.strip())
    assert not result.stdout
    result = cli(*arguments, "--json", code=2)
    found = json.loads(result.stderr)["error"]
    assert found["code"] == "usage"
    assert told.lower() in found["message"].lower()


def test_without_arguments_the_help_is_shown():
    result = CliRunner().invoke(APP, [], prog_name="blackboard")
    assert result.exit_code == 2
    assert "Usage: blackboard" in result.output
    result = CliRunner().invoke(APP, ["task"], prog_name="blackboard")
    assert result.exit_code == 2
    assert "Usage: blackboard task" in result.output


def test_global_options_stand_anywhere(cli: Cli):
    for arguments in (["--json", "session", "list"], ["session", "--json", "list"], ["session", "list", "--json"]):
        assert cli(*arguments).json == []


def test_the_last_word_counts(cli: Cli, database_url: str):
    result = cli("--as", "outer", "session", "start", "one", "--as", "inner", "--json")
    assert result.json["created_by"] == "inner"
    assert cli("--as", "outer", "session", "start", "two", "--json").json["created_by"] == "outer"
    assert cli("session", "start", "three", "--json", env={"BLACKBOARD_ACTOR": "env"}).json["created_by"] == "env"
    here = cli("--url", "postgresql://nobody@127.0.0.1:1/none", "session", "list", "--url", database_url, "--json")
    assert len(here.json) == 3


@pytest.mark.parametrize(
    ("url", "code", "told"),
    [
        ("mysql://root@localhost/db", 2, "PostgreSQL"),
        ("postgresql://postgres@127.0.0.1:1/none", 4, "127.0.0.1"),
        ("nonsense", 2, "database URL"),
    ],
)
def test_a_wrong_url_is_told(cli: Cli, url: str, code: int, told: str):
    result = cli("session", "list", "--url", url, code=code)
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    error = json.loads(cli("session", "list", "--url", url, "--json", code=code).stderr)["error"]
    assert {"code", "message", "retryable"} <= error.keys()


def test_a_password_is_never_printed(cli: Cli):
    result = cli("session", "list", "--url", "postgresql://me:s3cret@127.0.0.1:1/none", code=4)
    assert "s3cret" not in result.stderr


def test_a_fault_of_ours_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("surprise")

    monkeypatch.setattr(module("desk").Desk, "session", fail)
    result = cli("board", code=1)
    assert result.stderr == "Error: RuntimeError: surprise (this is a fault of ours; BLACKBOARD_DEBUG=1 shows where)\n"
    assert json.loads(cli("board", "--json", code=1).stderr)["error"]["code"] == "internal"


def test_an_interruption_is_130_without_a_trace(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module("desk").Desk, "session", interrupt)
    result = cli("board", code=130)
    assert result.output == ""


def test_choices_are_those_of_the_library():
    from blackboard.models import actions, findings, flows, hypotheses, proposals, sessions

    for path, name, enum, left_out in [
        (("session", "list"), "status", sessions.SessionStatus, set[str]()),
        (("session", "close"), "status", sessions.SessionStatus, {"active", "paused"}),
        (("flow", "list"), "status", flows.FlowStatus, set[str]()),
        (("finding", "list"), "category", findings.FindingCategory, set[str]()),
        (("finding", "report"), "category", findings.FindingCategory, set[str]()),
        (("hypothesis", "list"), "status", hypotheses.HypothesisStatus, set[str]()),
        (("proposal", "list"), "status", proposals.ProposalStatus, set[str]()),
        (("proposal", "open"), "rule", proposals.Rule, set[str]()),
        (("proposal", "open"), "at_deadline", proposals.AtDeadline, set[str]()),
        (("vote",), "choice", proposals.Choice, set[str]()),
        (("action", "list"), "status", actions.ActionStatus, set[str]()),
        (("action", "propose"), "type_", actions.ActionType, set[str]()),
        (("action", "propose"), "approval", actions.Approval, set[str]()),
        (("action", "propose"), "vote_rule", proposals.Rule, set[str]()),
    ]:
        command = dict(_walk(typer.main.get_command(APP), ()))[path]
        (parameter,) = [one for one in command.params if one.name == name]
        assert set(parameter.type_descriptor.choices) == {one.value for one in enum} - left_out, (path, name)


def test_the_statuses_of_tasks_are_told():
    from blackboard.models.tasks import FINAL, TaskStatus

    for path, known in ((("task", "list"), set(TaskStatus)), (("task", "prune"), set(FINAL))):
        command = dict(_walk(typer.main.get_command(APP), ()))[path]
        (status,) = [one for one in command.params if one.name == "status"]
        assert known == {one for one in TaskStatus if re.search(rf"\b{one}\b", status.help)}, path


def test_options_have_the_names_of_the_python_parameters():
    from blackboard.repository import actions, agents, findings, hypotheses, proposals, sessions, tasks

    def known(method: Any) -> set[str]:
        return set(inspect.signature(method).parameters)

    plurals = {"capability": "capabilities", "tag": "tags"}
    # What the command line adds or leaves out, and why.
    adds = {"actor", "url", "data_dir", "session", "json", "no_color", "help", "evidence_id"}
    for path, method, own in [
        (("session", "list"), sessions.Sessions.list, set[str]()),
        (("session", "start"), sessions.Sessions.start, set[str]()),
        (("session", "close"), sessions.Sessions.close, {"name_or_id"}),
        (("agent", "list"), agents.Agents.list, set[str]()),
        (("agent", "join"), agents.Agents.join, set[str]()),
        (("finding", "list"), findings.Findings.list, set[str]()),
        (("finding", "report"), findings.Findings.report, set[str]()),
        (("finding", "retract"), findings.Findings.retract, set[str]()),
        (("hypothesis", "list"), hypotheses.Hypotheses.list, set[str]()),
        (("hypothesis", "propose"), hypotheses.Hypotheses.propose, set[str]()),
        (("hypothesis", "assess"), hypotheses.Hypotheses.assess, set[str]()),
        (("hypothesis", "evidence"), hypotheses.Hypotheses.add_evidence, set[str]()),
        (("hypothesis", "validate"), hypotheses.Hypotheses.validate, set[str]()),
        (("task", "list"), tasks.Tasks.list, set[str]()),
        (("task", "add"), tasks.Tasks.add, {"unique_window", "batch"}),
        (("task", "reject"), tasks.Tasks.reject, set[str]()),
        (("proposal", "list"), proposals.Proposals.list, set[str]()),
        (("proposal", "open"), proposals.Proposals.open, set[str]()),
        (("vote",), proposals.Proposals.vote, set[str]()),
        (("action", "list"), actions.Actions.list, set[str]()),
        (("action", "propose"), actions.Actions.propose, {"vote_rule", "vote_deadline", "vote_title"}),
        (("action", "approve"), actions.Actions.approve, set[str]()),
    ]:
        command = dict(_walk(typer.main.get_command(APP), ()))[path]
        names = {one.name.removesuffix("_") for one in command.params} - adds - own
        # What is given one at a time is named in the singular.
        names = {plurals.get(name, name) if plurals.get(name) in known(method) else name for name in names}
        assert names <= known(method), (path, names - known(method))
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name not in adds | {"supports", "result"}:
                assert f"--{parameter.name.removesuffix('_').replace('_', '-')}" in parameter.opts, (
                    path,
                    parameter.name,
                )
