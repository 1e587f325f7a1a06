"""``blackboard server`` and ``db`` on servers and databases of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from blackboard.store import migrations
from blackboard.store.embedded import EmbeddedServer

from .clitools import Cli


@pytest.fixture(name="room")
def _room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data directory that the server's account can reach, ended in the end."""
    import shutil
    import tempfile

    base = Path(tempfile.mkdtemp(prefix="bbcli-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    base.chmod(0o755)
    yield base / "data"
    EmbeddedServer(base / "data").stop()
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(name="empty")
def _empty(create_database: Callable[..., str]) -> Cli:
    """The command line on a database without a board."""
    return Cli(create_database())


@pytest.mark.lifecycle
def test_the_embedded_server(room: Path):
    cli = Cli(None)
    here = ("--data-dir", str(room))
    assert cli("server", "status", *here, "--json", code=4).json["running"] is False
    assert cli("server", "stop", *here).stdout == "it was not running\n"
    assert cli("server", "logs", *here).stdout == ""
    started = cli("server", "start", *here, "--idle-timeout", "10m", "--json").json
    assert started["running"]
    assert started["data_dir"] == str(room)
    assert cli("server", "status", *here, "--json").json["pid"] == started["pid"]
    assert "running   yes" in cli("server", "status", *here).stdout
    url = cli("server", "url", *here).stdout.strip()
    assert cli("server", "url", *here, "--json").json == {"url": url}
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert migrations.current(url) == migrations.HEAD, "it can be used at once"
    assert cli("session", "start", "s", *here, "--json").json["name"] == "s"
    # A directory that is named goes before a URL from the environment.
    elsewhere = {"BLACKBOARD_URL": "postgresql://x@127.0.0.1:1/x"}
    assert [one["name"] for one in cli("session", "list", *here, "--json", env=elsewhere).json] == ["s"]
    assert cli("db", "check", *here, "--json", env=elsewhere).json["ok"]
    assert "ready to accept connections" in cli("server", "logs", *here, "--lines", "500").stdout
    assert cli("server", "logs", *here, "--lines", "2", "--json").json["lines"]
    assert cli("server", "stop", *here, "--json").json["running"] is False
    assert cli("server", "status", *here, code=4).stdout
    assert [one["name"] for one in cli("session", "list", *here, "--json").json] == ["s"], "it starts by itself"


def test_a_bad_idle_timeout(room: Path):
    error = Cli(None)("server", "start", "--data-dir", str(room), "--idle-timeout", "soon", "--json", code=2).error
    assert error["field"] == "idle_timeout"
    assert not room.exists()


def test_a_database_without_a_board_says_what_to_do(empty: Cli):
    error = empty("session", "list", "--json", code=4).error
    assert error["code"] == "schema_missing"
    assert "blackboard db upgrade" in error["message"]
    found = empty("db", "check", "--json", code=4).json
    assert (found["ok"], found["revision"]) == (False, None)
    assert "blackboard db upgrade" in found["problem"]
    assert empty("db", "current", "--json").json == {"revision": None, "needed": migrations.HEAD}


def test_up_and_down(empty: Cli):
    assert empty("db", "upgrade", "0001", "--json").json == {"before": None, "revision": "0001"}
    error = empty("session", "list", "--json", code=4).error
    assert (error["code"], error["revision"]) == ("schema_outdated", "0001")
    assert empty("db", "upgrade", "--json").json == {"before": "0001", "revision": migrations.HEAD}
    assert empty("db", "check", "--json").json["ok"] is True
    assert f"revision        {migrations.HEAD}" in empty("db", "check").stdout
    error = empty("db", "downgrade", "base", "--json", code=2).error
    assert error["field"] == "yes"
    assert empty("db", "downgrade", "base", code=2).stderr.startswith("Error: A downgrade loses")
    assert empty("db", "current", "--json").json["revision"] == migrations.HEAD
    assert empty("db", "downgrade", "base", "--yes", "--json").json == {"before": migrations.HEAD, "revision": None}
    assert empty("db", "upgrade", "9999", code=4).stderr.startswith("Error: ")


def test_the_sql_of_an_upgrade_can_be_run_by_other_means(empty: Cli):
    text = empty("db", "sql").stdout
    assert "CREATE TABLE blackboard.tasks" in text
    with psycopg.connect(str(empty.env["BLACKBOARD_URL"]), autocommit=True) as connection:
        connection.execute(text.encode())
    assert empty("db", "check", "--json").json["ok"] is True
    part = empty("db", "sql", "0001:0002", "--json").json["sql"]
    assert "CREATE TABLE blackboard.findings" in part
    assert "CREATE TABLE blackboard.sessions" not in part


def test_a_restored_database_is_noticed_and_adopted(empty: Cli):
    empty("db", "upgrade")
    assert empty("db", "adopt", "--json").json == {"adopted": False}
    empty("session", "start", "s")
    cursor = empty("events", "--json").stderr
    with psycopg.connect(str(empty.env["BLACKBOARD_URL"]), autocommit=True) as connection:
        connection.execute("UPDATE blackboard.history SET system_identifier = 'another cluster'")
    found = empty("db", "check", "--json", code=4).json
    assert (found["ok"], found["needs_adoption"]) == (False, True)
    error = empty("session", "list", "--json", code=4).error
    assert "blackboard db adopt" in error["message"]
    assert empty("db", "adopt", "--json").json == {"adopted": True}
    assert empty("db", "check", "--json").json["ok"] is True
    old = cursor.partition('"cursor": "')[2].partition('"')[0]
    done = empty("events", "--since", old, "--json", code=1)
    assert "cursor_from_another_history" in done.stderr


def test_a_missing_server_and_a_missing_database(database_url: str):
    cli = Cli("postgresql://postgres@127.0.0.1:1/x")
    for arguments in (["db", "check"], ["db", "upgrade"], ["db", "current"], ["session", "list"], ["events"]):
        assert cli(*arguments, "--json", code=4).error["code"] == "server_unreachable", arguments
    cli = Cli(database_url.replace("/bbtest_", "/nowhere_"))
    assert "nowhere_" in cli("session", "list", code=2).stderr


def test_psql_reads_what_grants_prints(database_url: str):
    done = subprocess.run(
        [sys.executable, "-m", "blackboard_cli", "db", "grants", "pg_monitor", "--role", "reader"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "BLACKBOARD_URL": database_url},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(";\n")
    statements = re.sub(r"^--.*\n", "", done.stdout, flags=re.MULTILINE).split(";")
    assert all(one.strip().startswith(("GRANT", "REVOKE")) for one in statements if one.strip())
