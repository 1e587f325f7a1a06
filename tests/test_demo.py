"""The demo from end to end: real agent processes on a real database; what is asserted is on the board."""

from __future__ import annotations

import asyncio
import datetime as dt
import getpass
import os
import pty
import random
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from blackboard_examples.incident import RECORDING
from blackboard_examples.incident.architect import conclude
from blackboard_examples.incident.ballots import decide
from blackboard_examples.incident.casework import CaseFiles
from blackboard_examples.incident.demo import SWARM_FILE, run_demo
from blackboard_examples.incident.files import check_file, check_files
from blackboard_examples.incident.report import CaseFile, collect
from blackboard_examples.incident.scan import pack_scan, scan_log, unpack_scan

from blackboard import Blackboard, TaskStatus
from blackboard.errors import InvalidInput
from blackboard.models.actions import ActionStatus
from blackboard.models.hypotheses import HypothesisStatus
from blackboard.models.proposals import ProposalStatus
from blackboard.models.sessions import SessionStatus

VALIDATOR, LEAD, ADVISOR = "ops/deploy-validator", "security/incident-response-lead", "ops/rollback-advisor"
ARCHITECT = "ops/architect"
DRIVER = """
import os, sys
from pathlib import Path
from blackboard_examples.incident.demo import run_demo
url, out, flags = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
logs = [Path(one) for one in sys.argv[4].split(os.pathsep) if one]
deployments = Path(sys.argv[5]) if sys.argv[5] else None
sys.exit(run_demo(url=url, yes="yes" in flags, chaos="chaos" in flags, logs=logs, deployments=deployments,
                  report_dir=Path(out)))
"""


def command(url: str, out: Path, *flags: str, logs: Iterable[Path] = (), deployments: Path | None = None) -> list[str]:
    joined = os.pathsep.join(map(str, logs))
    return [sys.executable, "-c", DRIVER, url, str(out), ",".join(flags), joined, str(deployments or "")]


async def run(*args: Any, **more: Any) -> str:
    """What the demo said; it must have ended well."""
    process = await asyncio.create_subprocess_exec(
        *command(*args, **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 90)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def the_case(board: Blackboard) -> CaseFile:
    """The board's only session."""
    (record,) = await board.sessions.list()
    return await collect(await board.session(record.id))


def pids_of(output: str) -> list[int]:
    return [int(pid) for pid in re.findall(r"started as process (\d+)", output)]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def statuses(case: CaseFile) -> dict[str, HypothesisStatus]:
    return {one.hypothesis.statement: one.hypothesis.status for one in case.hypotheses}


# ------------------------------------------------------------------------------------------------- the recording


async def test_recording_is_investigated_to_an_approved_rollback(
    board: Blackboard, database_url: str, tmp_path: Path
) -> None:
    output = await run(database_url, tmp_path / "out")
    case = await the_case(board)

    assert case.session.status is SessionStatus.COMPLETED
    assert case.session.name == "INC-1234"
    assert case.session.outcome["decision"] == "rollback"
    assert {agent.id for agent in case.agents} >= {VALIDATOR, LEAD, ADVISOR, ARCHITECT}

    # Hypotheses: two compete, evidence moved them apart, and neither was judged by its author.
    found = statuses(case)
    assert found["database connection pool exhaustion"] is HypothesisStatus.VALIDATED
    assert found["memory leak in the new feature"] is HypothesisStatus.REFUTED
    for argued in case.hypotheses:
        one = argued.hypothesis
        assert one.validated_by == ARCHITECT != one.agent_id
        assert set(one.verdict_evidence) <= {link.finding_id for link in argued.evidence}
        values = [value for _, value in case.confidence_course(one.id)]
        assert len(set(values)) >= 3
        assert values[-1] == one.confidence
    pool = next(one for one in case.hypotheses if "pool" in one.hypothesis.statement)
    memory = next(one for one in case.hypotheses if "memory" in one.hypothesis.statement)
    assert pool.supporting
    assert memory.contradicting
    assert memory.supporting, "what speaks for it is on the board too"
    assert len({item.agent_id for item in pool.assessments}) >= 2

    # Every finding says which file and which analysis gave which figure.
    names = {"service.log", "postgresql.log", "metrics.csv", "deployments.log"}
    for finding in case.findings:
        assert finding.evidence, finding.content
        for item in finding.evidence:
            assert item.query
            assert item.result
            assert any(name in item.source for name in names) or item.source == "board", item.source

    # The vote, as the source document has it.
    (proposal,) = case.proposals
    assert proposal.status is ProposalStatus.ACCEPTED
    assert {ballot.agent_id: ballot.choice for ballot in proposal.ballots} == {
        VALIDATOR: "yes",
        LEAD: "abstain",
        ADVISOR: "yes",
    }
    assert proposal.result is not None
    assert proposal.result["decision"] == "rollback"
    assert all(ballot.reason for ballot in proposal.ballots)

    # The action: approved by the demo's operator, because there is no terminal, which is said.
    (action,) = case.actions
    assert (action.type, action.target) == ("modify", "orders")
    assert action.parameters == {"action": "rollback", "from": "1.2.3", "to": "1.2.2"}
    assert action.status is ActionStatus.COMPLETED
    assert action.approved_by == "demo-operator"
    assert action.executor == ADVISOR
    assert action.result["simulated"] is True
    assert "approving as demo-operator" in output

    # Each file was read once, however many asked.
    assert case.query_counts == (12, 4)
    assert all(len(query.asked_by) == 3 for query in case.queries)

    # The architect concludes.
    conclusion = case.findings[-1]
    assert (conclusion.agent_id, conclusion.category) == (ARCHITECT, "conclusion")
    assert "1.2.3" in str(conclusion.content)
    assert (tmp_path / "out" / "report.md").exists()
    assert (tmp_path / "out" / "report.html").exists()
    assert not any(alive(pid) for pid in pids_of(output))


async def test_chaos_kills_one_agent_and_another_finishes_its_task(
    board: Blackboard, database_url: str, tmp_path: Path
) -> None:
    await run(database_url, tmp_path, "chaos")
    case = await the_case(board)

    (killed,) = case.kills
    facts = next(one for one in case.findings if one.type == "chaos").provenance["data"]
    assert facts["status"] == "running"
    steps = [told.event for told in killed.steps]
    types = [event.type for event in steps]
    assert types.index("task.assigned") < types.index("task.progressed") < types.index("task.lapsed")
    assert next(event for event in steps if event.type == "task.assigned").actor == killed.agent_id
    task = next(one for one in case.tasks if one.id == killed.task_id)
    assert task.status is TaskStatus.COMPLETED
    assert task.attempt == 2
    assert task.assigned_to != killed.agent_id
    assert case.session.status is SessionStatus.COMPLETED
    assert statuses(case)["database connection pool exhaustion"] is HypothesisStatus.VALIDATED
    assert case.actions[0].status is ActionStatus.COMPLETED
    text = (tmp_path / "report.md").read_text()
    assert f"{task.assigned_to} finished its task in attempt 2" in text
    assert not alive(facts["pid"])


async def test_ctrl_c_stops_everything_and_the_same_command_goes_on(
    board: Blackboard, database_url: str, tmp_path: Path
) -> None:
    process = await asyncio.create_subprocess_exec(
        *command(database_url, tmp_path, "yes"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = ""
    while "begins “" not in said:
        line = await asyncio.wait_for(process.stdout.readline(), 60)
        assert line, said
        said += line.decode()
    process.send_signal(signal.SIGINT)
    rest, _ = await asyncio.wait_for(process.communicate(), 60)
    said += rest.decode()

    assert process.returncode == 130, said
    assert "blackboard board -s INC-1234" in said
    assert len(pids_of(said)) == 4
    assert not any(alive(pid) for pid in pids_of(said))
    case = await the_case(board)
    assert case.session.status is SessionStatus.PAUSED
    assert not [task for task in case.tasks if task.status is TaskStatus.RUNNING]

    again = await run(database_url, tmp_path, "yes")
    assert "Going on with the interrupted session INC-1234" in again
    case = await the_case(board)
    assert case.session.status is SessionStatus.COMPLETED
    assert case.actions[0].status is ActionStatus.COMPLETED


@pytest.mark.parametrize(("answer", "status"), [("y", ActionStatus.COMPLETED), ("n", ActionStatus.REJECTED)])
async def test_person_at_the_terminal_decides(
    board: Blackboard, database_url: str, tmp_path: Path, answer: str, status: ActionStatus
) -> None:
    said, code = await asyncio.to_thread(_at_a_terminal, command(database_url, tmp_path), answer)

    assert code == 0, said
    assert "The agents ask for your approval: rollback of orders" in said
    assert "Error rate 459x baseline" in said
    case = await the_case(board)
    (action,) = case.actions
    assert action.status is status
    assert (action.approved_by or action.rejected_by) == getpass.getuser()
    assert case.session.status is SessionStatus.COMPLETED
    assert case.session.outcome["decision"] == ("rollback" if answer == "y" else "no action")


def _at_a_terminal(arguments: list[str], answer: str) -> tuple[str, int]:
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", NO_COLOR="1", COLUMNS="120", LINES="40")
        os.execv(arguments[0], arguments)
    said, answered, ends = "", False, time.monotonic() + 90
    try:
        while time.monotonic() < ends:
            if select.select([terminal], [], [], 1.0)[0]:
                try:
                    said += os.read(terminal, 65536).decode("utf-8", "replace")
                except OSError:  # the other end is closed
                    break
            if not answered and "Approve? [y/N]" in said:
                answered = True
                os.write(terminal, f"{answer}\n".encode())
        else:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(terminal)
    return said, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# -------------------------------------------------------------------------------------------------- other logs


async def test_quiet_log_yields_no_onset_and_no_action(board: Blackboard, database_url: str, tmp_path: Path) -> None:
    quiet = tmp_path / "quiet.log"
    lines = (RECORDING / "service.log").read_text().splitlines(keepends=True)
    deployed = next(number for number, line in enumerate(lines) if "version=1.2.3" in line)
    quiet.write_text("".join(lines[:deployed]))

    output = await run(database_url, tmp_path, "yes", logs=[quiet], deployments=RECORDING / "deployments.log")

    case = await the_case(board)
    assert case.session.status is SessionStatus.COMPLETED
    assert case.session.outcome["decision"] == "no action"
    assert case.finding("onset") is None
    assert case.finding("no_onset") is not None
    assert not case.proposals
    assert not case.actions
    assert not case.hypotheses
    assert "Nothing stands out" in str(case.findings[-1].content)
    assert "Nothing stands out" in output
    assert "time stamped text" in output


async def test_syslog_with_a_spike_and_no_deployments_is_escalated(
    board: Blackboard, database_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "messages"
    log.write_text("".join(_syslog()) + "no time in this line\n<script>alert(1)</script>\n")

    output = await run(database_url, tmp_path, logs=[log])

    case = await the_case(board)
    assert case.session.status is SessionStatus.COMPLETED
    onset = case.data("onset")["onset"]
    assert dt.datetime.fromisoformat(onset["at"]).time() == dt.time(6, 20)
    (action,) = case.actions
    assert action.type == "escalate"
    assert action.parameters["action"] == "escalate"
    assert "2 of" in output
    assert "no time in this line" in output
    (loss,) = case.unreadable
    assert loss.unparsed == 2
    assert "<script>" not in (tmp_path / "report.html").read_text()
    # One measurement makes a cause likely, not certain.
    assert set(statuses(case).values()) == {HypothesisStatus.PROPOSED}


async def test_access_log_with_deployments_leads_to_a_rollback(
    board: Blackboard, database_url: str, tmp_path: Path
) -> None:
    log, deployments = tmp_path / "access.log", tmp_path / "deploys.log"
    log.write_text("".join(_access_log()))
    deployments.write_text(
        "2026-11-20T05:00:00Z deploy service=cart version=4.1.0\n"
        "2026-11-20T06:19:40Z deploy service=cart version=4.2.0 previous=4.1.0\n"
    )

    await run(database_url, tmp_path, logs=[log], deployments=deployments)

    case = await the_case(board)
    (action,) = case.actions
    assert action.target == "cart"
    assert action.parameters == {"action": "rollback", "from": "4.2.0", "to": "4.1.0"}
    assert case.data("log")["format"] == "access log"
    assert statuses(case)["deploy 4.2.0 brought the errors"] is HypothesisStatus.VALIDATED
    assert statuses(case)["more requests came than the system could take"] is HypothesisStatus.REFUTED


async def test_signs_of_an_attack_turn_the_security_agents_vote(
    board: Blackboard, database_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "auth.log"
    start = dt.datetime(2026, 11, 20, 6, tzinfo=dt.UTC)
    drawn = random.Random(3)
    with log.open("w") as file:
        for second in range(1800):
            at = f"{start + dt.timedelta(seconds=second):%Y-%m-%d %H:%M:%S}"
            file.write(f"{at} INFO handled request {second}\n")
            if second >= 1200 and drawn.random() < 0.6:
                file.write(f"{at} ERROR authentication failed for user admin{second} from 203.0.113.9\n")
    deployments = tmp_path / "deploys.log"
    deployments.write_text("2026-11-20T06:19:30Z deploy service=cart version=2 version=2.0.0 previous=1.9.0\n")

    await run(database_url, tmp_path, logs=[log], deployments=deployments)

    case = await the_case(board)
    (proposal,) = case.proposals
    lead = next(ballot for ballot in proposal.ballots if ballot.agent_id == LEAD)
    assert lead.choice == "no"
    assert "attack" in lead.reason


def _syslog() -> Iterable[str]:
    drawn, start = random.Random(1), dt.datetime(2026, 11, 20, 6)
    for second in range(1800):
        at = f"{start + dt.timedelta(seconds=second):%b %d %H:%M:%S}"
        yield f"{at} web1 app[12]: handled request {second} in {drawn.randint(1, 40)} ms\n"
        if drawn.random() < (0.5 if second > 1200 else 0.01) or second == 1200:
            yield f"{at} web1 app[12]: ERROR upstream timed out after {drawn.randint(900, 1200)} ms\n"


def _access_log() -> Iterable[str]:
    drawn, start = random.Random(2), dt.datetime(2026, 11, 20, 6)
    for second in range(1800):
        at = f"{start + dt.timedelta(seconds=second):%d/%b/%Y:%H:%M:%S}"
        for _ in range(2):
            status = 500 if second >= 1200 and drawn.random() < 0.4 else 200
            yield (
                f'10.0.0.{drawn.randint(1, 250)} - - [{at} +0000] "GET /cart/{drawn.randint(1, 900)} HTTP/1.1" '
                f'{status} 512 "-" "Mozilla/5.0"\n'
            )


# ----------------------------------------------------------------------------------------------------- pure parts


def test_unusable_files_are_refused_before_anything_starts(tmp_path: Path) -> None:
    empty, binary, packed, prose = (tmp_path / name for name in ("empty.log", "b.log", "z.log", "prose.txt"))
    empty.write_text(" \n\n")
    binary.write_bytes(b"2026-11-20T06:00:00Z INFO \x00\x01\x02")
    packed.write_bytes(b"\x1f\x8b\x08\x00abc")
    prose.write_text("Dear all,\nnothing here has a time.\n")
    for path, words in (
        (empty, "is empty"),
        (binary, "is binary"),
        (packed, "compressed"),
        (prose, "No line of"),
        (tmp_path / "none.log", "There is no file"),
        (tmp_path, "no regular file"),
    ):
        with pytest.raises(InvalidInput, match=words) as caught:
            run_demo(url="postgresql://nobody@127.0.0.1:1/nothing", logs=[path], report_dir=tmp_path / "out")
        assert caught.value.field == "logs"
        assert str(path) in str(caught.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InvalidInput) as caught:
        check_files([RECORDING / "service.log"], tmp_path / "none.log")
    assert caught.value.field == "deployments"


def test_files_with_the_same_name_are_told_apart(tmp_path: Path) -> None:
    paths: list[Path] = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "app.log")
        paths[-1].write_text("2026-11-20T06:00:00Z INFO hello\n")
    files, checked = check_files([*paths, paths[0]])
    assert [files.name(path) for path in files.logs] == ["a/app.log", "b/app.log"]
    assert [file.format_name for file in checked] == ["time stamped text", "time stamped text"]


def test_paths_of_the_swarm_file_are_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = CaseFiles.from_context({"logs": ["recording/service.log"], "metrics": "recording/metrics.csv"})
    assert files.logs[0] == SWARM_FILE.parent / "recording" / "service.log"
    assert check_file(files.logs[0], "logs").format_name == "time stamped text"
    with pytest.raises(InvalidInput):
        CaseFiles.from_context({})


def test_packed_scan_keeps_what_the_analysis_needs() -> None:
    scan = scan_log(RECORDING / "service.log", "service.log")
    again = unpack_scan(pack_scan(scan))
    assert again.digest.rate() == scan.digest.rate()
    assert again.digest.groups == scan.digest.groups
    assert again.digest.templates == scan.digest.templates
    assert again.security == scan.security


def test_hostile_bytes_can_be_stored(tmp_path: Path) -> None:
    log = tmp_path / "hostile.log"
    log.write_bytes(b"2026-11-20T06:00:00Z ERROR \xff\xfe <b>\x00\n" * 9 + b"plain \x00 garbage\n")
    packed = pack_scan(scan_log(log, "hostile.log"))
    text = repr(packed)
    assert "\\x00" not in text
    assert packed["unparsed"] == 0 or packed["unparsed_samples"]


def test_long_reading_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blackboard_examples.incident.scan._PROGRESS_EVERY", 0.0)
    log = tmp_path / "long.log"
    log.write_text("2026-11-20T06:00:00Z INFO hello\n" * 20_000)
    shares: list[float] = []
    scan = scan_log(log, "long.log", shares.append)
    assert scan.digest.events == 20_000
    assert shares == sorted(shares)
    assert 0 < shares[len(shares) // 2] < 1


def test_ballots_follow_from_the_findings_alone() -> None:
    assert decide(VALIDATOR, {"action": "rollback"}, []).choice == "abstain"
    assert decide(ADVISOR, {"action": "rollback"}, []).choice == "no"
    assert decide(LEAD, {"action": "rollback"}, []).choice == "abstain"
    assert decide(VALIDATOR, {"action": "escalate"}, []).choice == "no"


def test_conclusion_without_any_investigation_concludes_nothing() -> None:
    claim = conclude([], [], None, {LEAD: "dead"})
    assert "Nothing can be concluded" in claim.text
    assert LEAD in claim.text
    assert claim.confidence == 0.0


async def test_failed_investigation_is_no_success(board: Blackboard, database_url: str, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text("2026-11-20T06:00:00Z INFO hello\n" * 20)
    process = await asyncio.create_subprocess_exec(
        *command(database_url, tmp_path, "yes", logs=[log]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readline(), 60)  # it has been checked by now
    log.unlink()
    output, _ = await asyncio.wait_for(process.communicate(), 90)

    assert process.returncode == 1, output.decode()
    case = await the_case(board)
    assert case.session.status is SessionStatus.FAILED
    assert "Nothing can be concluded" in str(case.findings[-1].content)
    assert "problem: " in output.decode()
