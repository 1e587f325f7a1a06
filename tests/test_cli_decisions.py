"""Proposals, votes, actions, locks, and the whole picture, from the command line."""

from __future__ import annotations

import json
import re
from uuid import uuid4

import pytest

from .clitools import Cli, module


@pytest.fixture(name="cli")
def _cli(database_url: str) -> Cli:
    return Cli(database_url)


@pytest.fixture
def incident(cli: Cli) -> str:
    """An open session with two members; its id."""
    found = cli("session", "start", "INC-1234", "--goal", "Why does checkout fail?", "--json").json["id"]
    cli("agent", "join", "ops/a", "--capability", "investigate", "--expertise", "deployment=0.9")
    cli("agent", "join", "ops/b")
    return found


def _report(cli: Cli, content: str, *more: str, agent: str = "ops/a") -> str:
    return cli("finding", "report", content, "--type", "deployment", "--as", agent, "--json", *more).json["id"]


def test_proposals_and_votes(cli: Cli, incident: str):
    cli("agent", "join", "ops/c")
    opened = cli(
        "proposal", "open", "Roll back?", "--body", '{"action": "rollback"}', "--rule", "threshold", "--threshold",
        "0.6", "--min-turnout", "0.5", "--deadline", "10m", "--at-deadline", "reject", "--as", "ops/a", "--json",
    ).json  # fmt: skip
    assert (opened["rule"], opened["threshold"], opened["status"]) == ("threshold", 0.6, "open")
    part = opened["id"][-8:]
    vote = cli("vote", part, "yes", "--confidence", "0.9", "--reason", "5x baseline", "--as", "ops/a")
    assert re.search(r"^tally +1 yes, 0 no, 0 abstained, 2 to come$", vote.stdout, re.MULTILINE)
    assert "5x baseline" in vote.stdout
    changed = cli("vote", part, "abstain", "--as", "ops/a", "--json").json
    assert (changed["tally"]["votes_for"], changed["tally"]["abstentions"]) == (0, 1)
    cli("vote", part, "yes", "--as", "ops/a", "--key", "k1")
    assert cli("vote", part, "yes", "--as", "ops/b", "--json").json["status"] == "accepted", "one no changes nothing"
    shown = cli("proposal", "show", part, "--json").json
    assert [(one["agent_id"], one["choice"]) for one in shown["ballots"]] == [("ops/a", "yes"), ("ops/b", "yes")]
    assert set(shown["electors"]) == {"ops/a", "ops/b", "ops/c"}
    text = cli("proposal", "show", part).stdout
    assert re.search(r"^decision +rollback$", text, re.MULTILINE)
    assert [one["id"] for one in cli("proposal", "list", "--status", "accepted", "--json").json] == [opened["id"]]
    assert "2 yes, 0 no, 0 abstained" in cli("proposal", "list", "--limit", "3").stdout
    assert cli("vote", part, "no", "--as", "ops/b", "--json", code=1).error["code"] == "invalid_transition"
    other = cli(
        "proposal", "open", "Weighted?", "--weighted", "--electorate", "ops/a", "--deadline", "none", "--as", "ops/a",
        "--json",
    ).json  # fmt: skip
    assert other["deadline_at"] is None
    assert cli("vote", other["id"], "yes", "--as", "ops/b", "--json", code=1).error["code"] == "not_permitted"
    assert cli("vote", other["id"], "yes", "--as", "ops/stranger", "--json", code=3).error["noun"] == "agent"
    assert "ops/stranger" not in cli("agent", "list").stdout, "voting makes nobody a member"
    error = cli("vote", other["id"], "yes", "--confidence", "1.5", "--as", "ops/a", "--json", code=2).error
    assert error["field"] == "confidence"
    assert cli("proposal", "withdraw", other["id"], "--as", "ops/a", "--json").json["status"] == "withdrawn"
    cli("agent", "leave", "ops/c")
    third = cli("proposal", "open", "Third?", "--as", "ops/a", "--json").json
    assert cli("vote", third["id"], "yes", "--as", "ops/c", "--json", code=1).error["code"] == "not_permitted"


def test_actions(cli: Cli, incident: str):
    first = cli(
        "action", "propose", "modify", "checkout", "--parameters", '{"do": "rollback"}', "--as", "ops/a", "--json"
    ).json
    assert (first["status"], first["approval"]) == ("awaiting_approval", "human")
    approved = cli("action", "approve", first["id"][-8:], "--by", "maria", "--reason", "checked", "--json").json
    assert (approved["status"], approved["approved_by"]) == ("approved", "maria")
    assert approved["approval_reason"] == "checked"
    own = cli("action", "propose", "notify", "on-call", "--as", "ops/a", "--json").json
    assert cli("action", "approve", own["id"], "--as", "ops/a", "--json", code=1).error["code"] == "not_permitted"
    rejected = cli("action", "reject", own["id"], "--reason", "not now", "--as", "maria", "--json").json
    assert (rejected["status"], rejected["rejected_by"]) == ("rejected", "maria")
    free = cli("action", "propose", "query", "metrics", "--no-requires-approval", "--as", "ops/a", "--json").json
    assert free["status"] == "approved"
    voted = cli(
        "action", "propose", "modify", "db", "--approval", "both", "--vote-rule", "unanimous", "--vote-deadline", "1h",
        "--vote-title", "Restart?", "--as", "ops/a", "--json",
    ).json  # fmt: skip
    proposal = cli("proposal", "show", voted["proposal_id"], "--json").json
    assert (proposal["title"], proposal["rule"]) == ("Restart?", "unanimous")
    decided = cli("proposal", "open", "Together?", "--as", "ops/b", "--json").json
    tied = cli("action", "propose", "modify", "x", "--proposal-id", decided["id"][-8:], "--as", "ops/a", "--json").json
    assert tied["proposal_id"] == decided["id"]
    listed = cli("action", "list", "--status", "awaiting_approval", "--json").json
    assert [one["id"] for one in listed] == [tied["id"], voted["id"]]
    assert first["id"] in cli("action", "list", "--limit", "9").stdout
    assert cli("action", "show", first["id"][-8:], "--json").json == approved
    assert cli("action", "approve", first["id"], "--by", "joe", "--json", code=1).error["code"] == "invalid_transition"
    assert cli("action", "show", str(uuid4()), "--json", code=3).error["noun"] == "action"


def test_who_approves_without_a_name(cli: Cli, incident: str, monkeypatch: pytest.MonkeyPatch):
    action = cli("action", "propose", "modify", "checkout", "--as", "ops/a", "--json").json
    monkeypatch.setattr(module("desk").getpass, "getuser", lambda: "login")
    assert cli("action", "approve", action["id"], "--json").json["approved_by"] == "login"


async def test_locks(cli: Cli, board):
    assert cli("session", "start", "s").code == 0
    session = await board.session("s")
    agent = await session.join("ops/a")
    grant = await agent.locks.try_acquire("file:/src/main.py")
    (listed,) = cli("lock", "list", "--json").json
    assert (listed["name"], listed["holder"], listed["token"]) == ("file:/src/main.py", "ops/a", grant.token)
    assert cli("lock", "list", "--holder", "ops/z").stderr == "Nothing is locked.\n"
    assert cli("lock", "show", "file:/src/main.py", "--json").json == listed
    assert "ops/a" in cli("lock", "list").stdout
    assert cli("lock", "show", "nothing", "--json", code=3).error["noun"] == "lock"


async def test_speaking_for_an_agent_leaves_its_presence_alone(cli: Cli, board):
    session = await board.start("s")
    agent = await session.join("ops/a")
    assert agent.record.present
    cli("finding", "report", "x", "--type", "t", "--as", "ops/a")
    record = await session.agents.get("ops/a")
    assert record.present
    assert record.lease_id == agent.record.lease_id


def test_the_board(cli: Cli, incident: str):
    finding = _report(cli, "deployment v1.2.3", "--confidence", "0.9")
    cli("hypothesis", "propose", "pool exhaustion", "--as", "ops/a")
    cli("task", "add", "investigate")
    cli("proposal", "open", "Roll back?", "--as", "ops/a")
    cli("action", "propose", "modify", "checkout", "--as", "ops/a")
    for arguments in (["board"], ["session", "show"], ["session", "show", "INC-1234"]):
        picture = cli(*arguments, "--json").json
        assert picture["session"]["id"] == incident
        assert [one["id"] for one in picture["findings"]] == [finding]
        assert picture["cursor"].startswith("bb1.")
        assert {"agents", "hypotheses", "tasks", "proposals", "actions", "counts"} <= picture.keys()
    text = cli("board").stdout
    for words in (
        "session     INC-1234", "HYPOTHESES (1)", "FINDINGS (1)", "TASKS (1)", "PROPOSALS (1)", "ACTIONS (1)", finding
    ):  # fmt: skip
        assert words in text
    assert "\x1b" not in text
    _report(cli, "another")
    assert "FINDINGS (1 of 2)" in cli("board", "--limit", "1").stdout
    assert json.loads(cli("board", "--limit", "1", "--json").stdout)["counts"]["findings"] == 2


def test_history(cli: Cli, incident: str):
    task = cli("task", "add", "investigate", "--json").json["id"]
    cli("task", "cancel", task, "--as", "maria")
    changes = cli("history", task[-8:], "--json").json
    assert changes == cli("history", task, "--json").json
    (status,) = [one for one in changes if one["field"] == "status" and one["event"] == "task.cancelled"]
    assert (status["actor"], status["old"], status["new"]) == ("maria", "pending", "cancelled")
    text = cli("history", task).stdout
    assert re.search(r"maria +task\.cancelled +status +pending +cancelled", text)
    assert len(cli("history", "--limit", "2", "--json").json) == 2
    assert cli("history", "--json").json[0]["subject_id"] == incident
    assert cli("history", str(uuid4()), "--json", code=3).error["noun"] == "subject"
    assert cli("history", "abc", "--json", code=2).error["field"] == "subject"
