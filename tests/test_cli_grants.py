"""Least privileges, tried with real roles: an agent can live a whole life and cannot touch history or functions."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta

import psycopg
import pytest

from blackboard import Blackboard
from blackboard.errors import BlackboardError, NotPermitted

from .clitools import Cli

pytestmark = pytest.mark.fresh_database


@pytest.fixture(name="cli")
def _cli(database_url: str) -> Cli:
    return Cli(database_url)


@pytest.fixture(name="role")
def _role(cli: Cli, database_url: str) -> Iterator[Callable[[str], str]]:
    """Makes a role with the grants of a kind; the URL it logs in with."""
    made: list[str] = []

    def make(kind: str) -> str:
        name = f'bb "{kind}" {uuid.uuid4().hex[:8]}'
        quoted = '"' + name.replace('"', '""') + '"'
        text = cli("db", "grants", name, "--role", kind).stdout
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {quoted} LOGIN".encode())
            made.append(quoted)
            connection.execute(text.encode())
        host = database_url.partition("://")[2].rpartition("@")[2]
        return f"postgresql://{name.replace(' ', '%20').replace(chr(34), '%22')}@{host}"

    yield make
    with psycopg.connect(database_url, autocommit=True) as connection:
        for quoted in made:
            connection.execute(f"DROP OWNED BY {quoted}".encode())
            connection.execute(f"DROP ROLE {quoted}".encode())


def test_the_statements_name_the_role_safely(cli: Cli):
    text = cli("db", "grants", 'ev"il; DROP SCHEMA blackboard', "--role", "reader").stdout
    assert 'TO "ev""il; DROP SCHEMA blackboard";' in text
    found = cli("db", "grants", "app", "--json").json
    assert (found["role"], found["kind"]) == ("app", "agent")
    assert "GRANT USAGE ON SCHEMA blackboard TO app;" in found["sql"]
    assert cli("db", "grants", "", "--json", code=2).error["field"] == "name"
    assert cli("db", "grants", "x" * 64, "--json", code=2).error["field"] == "name"


async def test_an_agent_lives_a_whole_life(role: Callable[[str], str]):
    async with Blackboard.open(role("agent")) as board:
        session = await board.start("life", goal="x")
        await session.update(goal="y", key="k")
        a = await session.join("ops/a", capabilities=["c"], expertise={"observation": 0.9})
        b = await session.join("ops/b")
        finding = await a.findings.report("x", type="t", confidence=0.8, evidence=[{"source": "log"}])
        await b.findings.report("X", type="t", confidence=0.7)
        other = await b.findings.report("y", type="t", derived_from=[finding.id])
        await b.findings.contradict(finding.id, other.id)
        new = await b.findings.supersede(other.id, "z", reason="better")
        hypothesis = await a.hypotheses.propose("h", 0.5)
        await b.hypotheses.assess(hypothesis.id, 0.7, key="k2")
        await b.hypotheses.add_evidence(hypothesis.id, finding.id)
        await b.hypotheses.retract_evidence(hypothesis.id, finding.id)
        await b.hypotheses.validate(hypothesis.id, True, [finding.id])
        gone = await a.hypotheses.propose("g")
        await a.hypotheses.withdraw(gone.id)
        await b.findings.retract(new.id)
        await a.findings.aggregate_confidence([finding.id])
        await a.findings.similar("x")
        first = await session.tasks.add("t", capability="c", timeout=timedelta(minutes=1))
        second = await session.tasks.add("u", depends_on=[first.id], max_attempts=1)
        held = await session.tasks.add("v", requires_approval=True)
        (task,) = await a.tasks.claim()
        await a.tasks.progress(task, {"done": 0.5})
        await a.tasks.release(task)
        (task,) = await a.tasks.claim()
        await a.tasks.complete(task, {"ok": True})
        (task,) = await b.tasks.claim()
        assert task.id == second.id
        await b.tasks.fail(task, "broken")
        await session.tasks.redrive(second.id)
        await session.tasks.cancel(second.id)
        await session.tasks.approve(held.id, by="maria")
        by_id = await b.tasks.claim_by_id(held.id)
        assert by_id is not None
        proposal = await a.proposals.open("?")
        await a.proposals.vote(proposal.id, "yes", key="k3")
        assert (await b.proposals.vote(proposal.id, "yes")).status == "accepted"
        withdrawn = await a.proposals.open("??")
        await a.proposals.withdraw(withdrawn.id)
        action = await a.actions.propose("modify", "x")
        await session.actions.approve(action.id, by="maria")
        started = await a.actions.start(action.id)
        await a.actions.complete(action.id, started.token, {"ok": True})
        await a.actions.roll_back(action.id)
        voted = await a.actions.propose("modify", "y", vote={"rule": "majority"})
        await a.actions.reject(voted.id, by="maria")
        grant = await a.locks.try_acquire("l", ttl=timedelta(minutes=1))
        assert grant is not None
        assert await b.locks.try_acquire("l", wait=timedelta(minutes=1)) is None
        await a.locks.renew("l", grant.token, ttl=timedelta(minutes=2))
        await a.locks.release("l", grant.token)
        picture = await session.board()
        assert picture.counts.findings == 1
        page = await session.events.read()
        await session.events.wait(page.cursor, timeout=timedelta(0))
        assert {"finding.reported", "task.completed", "proposal.accepted", "action.completed"} <= {
            event.type for event in page.events
        }
        assert await session.events.history(finding.id)
        await b.leave()
        await session.pause()
        await session.resume()
        await session.close(outcome="done")


def test_an_agent_uses_the_seeds_three_tables(role: Callable[[str], str]):
    with psycopg.connect(role("agent"), autocommit=True) as connection:
        connection.execute("SET search_path = blackboard")
        session = connection.execute("INSERT INTO agent_sessions (context) VALUES ('{}') RETURNING id").fetchone()
        assert session is not None
        connection.execute(
            "INSERT INTO agent_findings (session_id, agent_id, finding_type, content) VALUES (%s, 'a', 't', '1')",
            session,
        )
        connection.execute("INSERT INTO agent_tasks (session_id, task_type) VALUES (%s, 't')", session)
        connection.execute("UPDATE agent_tasks SET status = 'running', assigned_to = 'a'")
        connection.execute("UPDATE agent_tasks SET status = 'completed', result = '1'")
        connection.execute("UPDATE agent_sessions SET status = 'completed'")


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE blackboard.events SET actor = 'somebody else'",
        "DELETE FROM blackboard.events",
        "INSERT INTO blackboard.events SELECT * FROM blackboard.events",
        "TRUNCATE blackboard.events",
        "TRUNCATE blackboard.tasks",
        "UPDATE blackboard.history SET id = gen_random_uuid()",
        "UPDATE blackboard.schema_version SET version_num = '0001'",
        "UPDATE blackboard.proposal_electors SET weight = 1000",
        "DELETE FROM blackboard.findings",
        "DELETE FROM blackboard.tasks",
        "DELETE FROM blackboard.sessions",
        "DELETE FROM blackboard.votes",
        "DROP TABLE blackboard.tasks",
        "ALTER TABLE blackboard.tasks DISABLE TRIGGER ALL",
        "CREATE TABLE blackboard.mine (x int)",
        "CREATE FUNCTION blackboard.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE OR REPLACE FUNCTION blackboard.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT clock_timestamp()'",
        "SELECT blackboard.prune_events(gen_random_uuid(), blackboard.now())",
        "SELECT blackboard.adopt()",
        "SET session_replication_role = replica",
    ],
)
@pytest.mark.parametrize("kind", ["agent", "reader"])
def test_nobody_rewrites_history_or_replaces_functions(role: Callable[[str], str], sql: str, kind: str):
    with (
        psycopg.connect(role(kind), autocommit=True) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(sql.encode())


FORGERIES = {
    "a deletion": (
        "CREATE TEMP TABLE mine (session_id uuid, id uuid, said text)",
        (
            "CREATE TRIGGER forge AFTER DELETE ON mine REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT "
            "EXECUTE FUNCTION blackboard.record_delete('task', 'id')"
        ),
    ),
    "a task": (
        "CREATE TEMP TABLE mine (LIKE blackboard.tasks)",
        (
            "CREATE TRIGGER forge AFTER INSERT ON mine REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT "
            "EXECUTE FUNCTION blackboard.history_tasks_insert()"
        ),
    ),
    "the slots of others": (
        "CREATE TEMP TABLE mine (LIKE blackboard.tasks)",
        (
            "CREATE TRIGGER forge AFTER DELETE ON mine REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT "
            "EXECUTE FUNCTION blackboard.free_slots_of_deleted()"
        ),
    ),
}


@pytest.mark.parametrize("what", FORGERIES)
@pytest.mark.parametrize("kind", ["agent", "reader"])
def test_nobody_hangs_our_triggers_on_a_table_of_his_own(role: Callable[[str], str], what: str, kind: str):
    table, trigger = FORGERIES[what]
    with psycopg.connect(role(kind), autocommit=True) as connection:
        connection.execute(table.encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(trigger.encode())


def test_no_function_of_a_trigger_is_anybodys(role: Callable[[str], str], database_url: str):
    role("agent")
    with psycopg.connect(database_url) as connection:
        found = connection.execute(
            "SELECT p.oid::regprocedure::text, a.grantee FROM pg_proc p "
            "CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a "
            "WHERE p.pronamespace = 'blackboard'::regnamespace AND p.prorettype = 'trigger'::regtype "
            "AND a.grantee <> p.proowner"
        ).fetchall()
    assert found == [], "revoke EXECUTE from PUBLIC in the migration that makes it"


@pytest.mark.parametrize(
    "call",
    [
        "keep_late_action(gen_random_uuid(), gen_random_uuid(), 'x', 1, NULL, NULL)",
        "settle_limit(gen_random_uuid(), gen_random_uuid(), '1 s')",
        "settle_limits(gen_random_uuid())",
        "keep_due(10)",
        "keep_session(gen_random_uuid(), NULL, NULL, NULL)",
    ],
)
def test_a_reader_calls_nothing_that_writes_for_the_owner(role: Callable[[str], str], call: str):
    with (
        psycopg.connect(role("reader"), autocommit=True) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(f"SELECT blackboard.{call}".encode())


async def test_a_reader_reads_everything_and_writes_nothing(cli: Cli, role: Callable[[str], str]):
    cli("session", "start", "s")
    cli("finding", "report", "x", "--type", "t", "--as", "ops/a")
    cli("task", "add", "t")
    url = role("reader")
    for arguments in (
        ["board"], ["finding", "list"], ["task", "list"], ["agent", "list"], ["events"], ["history"],
        ["session", "list"], ["hypothesis", "list"], ["lock", "list"], ["db", "check"],
    ):  # fmt: skip
        cli(*arguments, "--json", "--url", url)
    for arguments in (
        ["session", "start", "t"],
        ["finding", "report", "y", "--type", "t", "--as", "ops/a"],
        ["task", "add", "t"],
        ["session", "close", "s"],
    ):
        error = cli(*arguments, "--json", "--url", url, code=1).error
        assert error["code"] == "not_permitted"
        assert "blackboard db grants" in error["message"]
    async with Blackboard.open(url) as board:
        with pytest.raises(NotPermitted):
            await board.start("u")


def test_every_table_has_been_thought_about(cli: Cli, database_url: str):
    """A new table belongs into the grants, or into this list of those that only triggers and the owner write."""
    text = cli("db", "grants", "x").stdout
    only_read = {
        "budgets",
        "events",
        "flow_edges",
        "flow_stages",
        "flow_tasks",
        "flows",
        "history",
        "pruned_events",
        "keyed_tasks",
        "limit_usage",
        "schema_version",
        "proposal_electors",
        "state_history",
        "members",
        "task_keys",
        "task_limits",
        "task_slots",
        "unsettled_limits",
        "retentions",
        "upkeep",
    }
    with psycopg.connect(database_url) as connection:
        names = {
            name
            for (name,) in connection.execute(
                "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE n.nspname = 'blackboard' AND c.relkind IN ('r', 'p', 'v')"
            )
        }
    written = {name for name in names if f"blackboard.{name}," in text or f"blackboard.{name}\n" in text}
    written |= {name for name in names if f"blackboard.{name} TO" in text}
    assert names - written == only_read


def test_an_unreachable_server_is_told(cli: Cli):
    error = cli("db", "grants", "x", "--url", "postgresql://x@127.0.0.1:1/x", "--json", code=4).error
    assert error["code"] == "server_unreachable"
    assert issubclass(NotPermitted, BlackboardError)
