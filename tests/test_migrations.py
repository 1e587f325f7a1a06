"""The migrations: up, down and up, beside an application's own, by other roles, offline, and through a dump."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import os
import re
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blackboard_migrations
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from blackboard import Blackboard, NewTask
from blackboard.errors import SchemaMissing, SchemaOutdated, SchemaTooNew, TransientError
from blackboard.store import migrations
from blackboard.store.binaries import find_binaries
from blackboard.store.schema import include_name

from .conftest import with_database

pytestmark = pytest.mark.timeout(180)

VERSIONS = Path(next(iter(blackboard_migrations.__path__))) / "versions"
REVISIONS = sorted(path.name[:4] for path in VERSIONS.glob("[0-9]*.py"))


@pytest.fixture
def empty_url(create_database: Callable[..., str]) -> str:
    return create_database()


def program(name: str) -> str:
    given = os.environ.get("BLACKBOARD_TEST_PG_BIN")
    directory = Path(given) if given else find_binaries(None, Path(tempfile.gettempdir())).directory
    return str(directory / name)


def run(*command: str, stdin: str | None = None) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def dump(url: str, *options: str) -> str:
    text = run(program("pg_dump"), "--no-owner", "--no-privileges", "--schema=blackboard", *options, f"--dbname={url}")
    kept = [
        line
        for line in text.splitlines()
        if not re.match(r"(--|SET |SELECT pg_catalog\.set_config|\\(un)?restrict )", line)
    ]
    return "\n".join(line for line in kept if line.strip())


def objects(url: str, schema: str = "blackboard") -> set[tuple[str, str]]:
    with psycopg.connect(url) as connection:
        return set(
            connection.execute(
                """SELECT 'relation', relname::text FROM pg_class WHERE relnamespace = to_regnamespace(%(s)s)
                   UNION ALL SELECT 'function', proname::text FROM pg_proc WHERE pronamespace = to_regnamespace(%(s)s)
                   UNION ALL SELECT 'type', typname::text FROM pg_type WHERE typnamespace = to_regnamespace(%(s)s)""",
                {"s": schema},
            ).fetchall()
        )


def test_head_is_the_newest_file() -> None:
    assert REVISIONS[-1] == migrations.HEAD


def test_up_down_up_for_every_revision(empty_url: str) -> None:
    seen: dict[str, str] = {}
    for revision in REVISIONS:
        migrations.upgrade(empty_url, revision)
        assert migrations.current(empty_url) == revision
        seen[revision] = dump(empty_url, "--schema-only")
    for older, revision in reversed([*itertools.pairwise(REVISIONS)]):
        migrations.downgrade(empty_url, older)
        assert dump(empty_url, "--schema-only") == seen[older], f"the downgrade of {revision} leaves a trace"
        migrations.upgrade(empty_url, revision)
        assert dump(empty_url, "--schema-only") == seen[revision]
        migrations.downgrade(empty_url, older)
    migrations.downgrade(empty_url, "base")
    assert objects(empty_url) <= {("relation", "schema_version"), ("relation", "schema_version_pkc"),
                                  ("type", "schema_version"), ("type", "_schema_version")}  # fmt: skip
    assert migrations.current(empty_url) is None
    migrations.upgrade(empty_url)
    migrations.upgrade(empty_url)
    assert migrations.current(empty_url) == migrations.HEAD


def test_what_a_revision_means() -> None:
    migrations.check_revision(migrations.HEAD)
    for revision, error in ((None, SchemaMissing), ("0001", SchemaOutdated), ("9999", SchemaTooNew)):
        with pytest.raises(error, match=r"blackboard db|upgrade the package"):
            migrations.check_revision(revision)


def test_a_newer_database_is_not_touched(empty_url: str) -> None:
    migrations.upgrade(empty_url)
    with psycopg.connect(empty_url) as connection:
        connection.execute("UPDATE blackboard.schema_version SET version_num = '9999'")
    before = dump(empty_url, "--schema-only")
    for call in (lambda: migrations.upgrade(empty_url), lambda: migrations.downgrade(empty_url, "base")):
        with pytest.raises(SchemaTooNew):
            call()
    assert dump(empty_url, "--schema-only") == before


def test_an_upgrade_that_waits_in_vain_says_for_what(empty_url: str) -> None:
    before = REVISIONS[REVISIONS.index("0020") - 1]
    migrations.upgrade(empty_url, before)
    with psycopg.connect(empty_url) as connection:
        connection.execute("LOCK TABLE blackboard.sessions IN ROW EXCLUSIVE MODE")
        with pytest.raises(TransientError, match=r"another transaction holds.*run the upgrade again"):
            migrations.upgrade(empty_url, "0020")
    assert migrations.current(empty_url) == before
    migrations.upgrade(empty_url, "0020")
    assert migrations.current(empty_url) == "0020"


def test_an_upgrade_takes_from_roles_what_they_must_not_have(empty_url: str) -> None:
    """Also what was granted before."""
    role = f"bbagent_{uuid.uuid4().hex[:8]}"
    migrations.upgrade(empty_url, "0019")
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role}; GRANT USAGE ON SCHEMA blackboard TO {role}".encode())
        connection.execute(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA blackboard TO {role}".encode())
        may = "SELECT has_function_privilege(%s, 'blackboard.record_delete()', 'EXECUTE')"
        try:
            assert connection.execute(may, [role]).fetchone() == (True,)
            migrations.upgrade(empty_url, "0020")
            assert connection.execute(may, [role]).fetchone() == (False,)
            migrations.downgrade(empty_url, "0019")
            assert connection.execute(may, [role]).fetchone() == (True,)
        finally:
            connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


@pytest.mark.parametrize("how", ["threads", "processes"])
async def test_several_upgrades_at_once(empty_url: str, how: str) -> None:
    code = "import sys; from blackboard.store import migrations; migrations.upgrade(sys.argv[1])"
    if how == "threads":
        await asyncio.gather(*(asyncio.to_thread(migrations.upgrade, empty_url) for _ in range(3)))
    else:
        await asyncio.gather(*(asyncio.to_thread(run, sys.executable, "-c", code, empty_url) for _ in range(3)))
    assert migrations.current(empty_url) == migrations.HEAD
    with psycopg.connect(empty_url) as connection:
        assert connection.execute("SELECT count(*) FROM blackboard.liveness").fetchone() == (1,)


def test_the_offline_sql_makes_the_same_schema(empty_url: str, create_database: Callable[..., str]) -> None:
    migrations.upgrade(empty_url)
    other = create_database()
    script = migrations.offline_sql()
    assert "lock_timeout" in script
    run(program("psql"), "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-q", f"--dbname={other}", stdin=script)
    assert dump(other, "--schema-only") == dump(empty_url, "--schema-only")
    assert migrations.current(other) == migrations.HEAD


# ---------------------------------------------------------------------------------- beside an application's own

ENV = """
from alembic import context
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, pool
from blackboard.store.schema import include_name

metadata = MetaData()
Table("orders", metadata, Column("id", Integer, primary_key=True))
engine = create_engine(context.config.get_main_option("sqlalchemy.url"), poolclass=pool.NullPool)
with engine.connect() as connection:
    context.configure(
        connection=connection, target_metadata=metadata, include_schemas=True, include_name=include_name
    )
    with context.begin_transaction():
        context.run_migrations()
"""

REVISION = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = "a1", None
def upgrade():
    op.create_table("orders", sa.Column("id", sa.Integer, primary_key=True))
def downgrade():
    op.drop_table("orders")
"""


def application(tmp_path: Path, url: str) -> Any:
    from alembic.config import Config

    (tmp_path / "versions").mkdir(parents=True)
    (tmp_path / "env.py").write_text(ENV)
    (tmp_path / "script.py.mako").write_text("")
    (tmp_path / "versions" / "a1_orders.py").write_text(REVISION)
    config = Config(stdout=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    config.set_main_option("script_location", str(tmp_path))
    config.set_main_option("path_separator", "os")
    config.set_main_option("sqlalchemy.url", url.replace("postgresql://", "postgresql+psycopg://").replace("%", "%%"))
    return config


@pytest.mark.parametrize("ours_first", [False, True])
def test_it_lives_beside_an_applications_own_history(empty_url: str, tmp_path: Path, ours_first: bool) -> None:
    from alembic import command
    from alembic.util.exc import AutogenerateDiffsDetected

    config = application(tmp_path / "app", empty_url)
    if ours_first:
        migrations.upgrade(empty_url)
    command.upgrade(config, "head")
    migrations.upgrade(empty_url)
    theirs = objects(empty_url, "public")
    try:
        command.check(config)
    except AutogenerateDiffsDetected as error:
        pytest.fail(f"the application's autogenerate shows what is ours: {error}")
    with psycopg.connect(empty_url) as connection:
        assert connection.execute("SELECT version_num FROM public.alembic_version").fetchall() == [("a1",)]
    migrations.downgrade(empty_url, "base")
    assert objects(empty_url, "public") == theirs
    migrations.upgrade(empty_url)
    command.downgrade(config, "base")
    assert migrations.current(empty_url) == migrations.HEAD
    config.stdout.close()


def test_the_name_filter() -> None:
    assert not include_name("blackboard", "schema", {})
    assert include_name("public", "schema", {})
    assert include_name(None, "schema", {})
    assert not include_name("tasks", "table", {"schema_name": "blackboard"})
    assert include_name("tasks", "table", {"schema_name": None})


# ---------------------------------------------------------------------------------------- other roles and settings


async def _work(url: str) -> None:
    async with Blackboard.open(url) as board:
        session = await board.start(f"s-{uuid.uuid4().hex[:6]}", context={"grüße": "ß"})
        agent = await session.join("ops/a", capabilities=["x"], expertise={"observation": 0.5})
        parent = await session.tasks.add("t", capability="x")
        child = await session.tasks.add("t", depends_on=[parent.id])
        [task] = await agent.tasks.claim()
        await agent.tasks.complete(task, {"r": 1})
        finding = await agent.findings.report("seen", type="t", confidence=0.5)
        hypothesis = await agent.hypotheses.propose("it leaks", confidence=0.4)
        await agent.hypotheses.add_evidence(hypothesis.id, finding.id)
        await agent.locks.acquire("a")
        await agent.proposals.open("yes?")
        await agent.actions.propose("query", "api")
        assert (await session.tasks.get(child.id)).status == "pending"
        picture = await session.board()
        assert picture.counts.findings == 1
        assert len((await session.events.read()).events) > 8
        assert all(event.at.utcoffset().total_seconds() == 0 for event in (await session.events.read()).events)  # type: ignore[union-attr]
        await session.close()


async def test_an_owner_that_is_no_superuser(empty_url: str, server_url: str) -> None:
    role = f"bbowner_{uuid.uuid4().hex[:8]}"
    name = conninfo_to_dict(empty_url)["dbname"]
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'".encode())
        connection.execute(f'GRANT CREATE, CONNECT ON DATABASE "{name}" TO {role}'.encode())
    try:
        url = as_role(empty_url, role)
        await asyncio.to_thread(migrations.upgrade, url)
        await _work(url)
        await asyncio.to_thread(migrations.downgrade, url, "base")
        await asyncio.to_thread(migrations.upgrade, url)
    finally:
        with psycopg.connect(empty_url, autocommit=True) as connection:
            connection.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}".encode())


def as_role(url: str, role: str) -> str:
    parts = conninfo_to_dict(url)
    parts |= {"user": role, "password": "secret"}
    host = parts.pop("host", "localhost")
    port = parts.pop("port", "5432")
    return f"postgresql://{role}:secret@/{parts['dbname']}?host={host}&port={port}"


@pytest.mark.parametrize(
    "setting",
    [
        "search_path = 'nowhere'",
        "search_path = 'blackboard, pg_catalog'",
        "search_path = ''",
        "timezone = 'Pacific/Kiritimati'",
        "datestyle = 'German, DMY'",
        "intervalstyle = 'iso_8601'",
        "default_transaction_isolation = 'repeatable read'",
        "default_transaction_isolation = 'serializable'",
        "standard_conforming_strings = off",
        "bytea_output = 'escape'",
        "extra_float_digits = 0",
        "check_function_bodies = off",
        "plan_cache_mode = force_generic_plan",
        "enable_seqscan = off",
    ],
)
async def test_a_database_with_other_settings(empty_url: str, setting: str) -> None:
    name = conninfo_to_dict(empty_url)["dbname"]
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" SET {setting}'.encode())
    try:
        await asyncio.to_thread(migrations.upgrade, empty_url)
    except Exception as error:
        if "standard_conforming_strings" in setting and "standard_conforming_strings" in str(error):
            return
        raise
    assert await asyncio.to_thread(migrations.current, empty_url) == migrations.HEAD
    await _work(empty_url)


async def test_a_database_with_another_collation(server_url: str) -> None:
    name = f"bbtest_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        found = connection.execute(
            "SELECT collcollate FROM pg_collation WHERE collprovider = 'c' AND collencoding = 6 "
            "AND collcollate !~ '^(C|POSIX)'"
        ).fetchone()
        try:
            locale = f"LOCALE '{found[0]}'" if found else "LOCALE_PROVIDER icu ICU_LOCALE 'de-u-kn-true'"
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 {locale} ENCODING 'UTF8'".encode())
        except psycopg.errors.FeatureNotSupported:
            pytest.skip("this server knows no collation but C")
    url = with_database(server_url, name)
    try:
        await asyncio.to_thread(migrations.upgrade, url)
        await _work(url)
    finally:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


# -------------------------------------------------------------------------------------------------------- dumps


@pytest.mark.parametrize("jobs", ["1", "2"])
async def test_a_board_with_data_is_dumped_and_restored_without_an_error(
    empty_url: str, create_database: Callable[..., str], tmp_path: Path, jobs: str
) -> None:
    await asyncio.to_thread(migrations.upgrade, empty_url)
    await _work(empty_url)
    async with Blackboard.open(empty_url) as board:
        session = await board.start("open")
        await session.tasks.add_many([NewTask(type="t") for _ in range(50)])
    archive = str(tmp_path / "dump")
    await asyncio.to_thread(run, program("pg_dump"), "--format=directory", f"--file={archive}", f"--dbname={empty_url}")
    other = create_database()
    done = await asyncio.to_thread(
        subprocess.run,
        [program("pg_restore"), "--exit-on-error", f"--jobs={jobs}", f"--dbname={other}", archive],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    before, after = [await asyncio.to_thread(dump, url, "--data-only") for url in (empty_url, other)]
    assert sorted(before.splitlines()) == sorted(after.splitlines())
    # Comparisons of rows are printed with other parentheses once they were parsed again.
    shapes = [re.sub(r"[()]", "", await asyncio.to_thread(dump, url, "--schema-only")) for url in (empty_url, other)]
    assert shapes[0] == shapes[1]
    await _work(other)
    assert importlib.util.find_spec("blackboard") is not None
