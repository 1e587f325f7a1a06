"""Every statement of ``blackboard/sql`` is prepared against the migrated schema by both drivers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import psycopg
import pytest
from psycopg.pq import ExecStatus

import blackboard
from blackboard.store.statements import Statement, statements

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# Used by windows above, or by hand, and not by a repository; each says by whom.
ELSEWHERE: dict[str, str] = {
    "leases.get_lease": "tests and people who look after leases",
    "grants.agent_grants": "named by role in store/grants.py",
    "grants.reader_grants": "named by role in store/grants.py",
}


def all_statements() -> Iterator[tuple[str, Statement]]:
    folder = resources.files("blackboard").joinpath("sql")
    for found in sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql")):
        noun = found.removesuffix(".sql")
        for name, statement in statements(noun).items():
            yield f"{noun}.{name}", statement


STATEMENTS = dict(all_statements())


def test_there_are_statements() -> None:
    assert len(STATEMENTS) > 50


def test_names_are_unique() -> None:
    counts = Counter(name.partition(".")[2] for name in STATEMENTS)
    assert [name for name, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("name", STATEMENTS)
async def test_asyncpg_prepares_it(db: Connection, name: str) -> None:
    statement = STATEMENTS[name]
    prepared = await db.prepare(statement.numbered)
    assert len(prepared.get_parameters()) == len(statement.parameters)
    assert all(parameter.name != "unknown" for parameter in prepared.get_parameters())
    columns = [attribute.name for attribute in prepared.get_attributes()]
    assert len(columns) == len(set(columns)), "a row is a dict: columns need names of their own"
    assert "?column?" not in columns
    types = {attribute.name: attribute.type.name for attribute in prepared.get_attributes()}
    # Every JSON value crosses as text, so that no codec of a caller changes what is read.
    assert [column for column, kind in types.items() if kind in ("json", "jsonb")] == []
    wanted = [parameter.name for parameter in prepared.get_parameters()]
    assert "json" not in wanted
    assert "jsonb" not in wanted


@pytest.mark.parametrize("name", STATEMENTS)
def test_psycopg_prepares_it(database_url: str, name: str) -> None:
    statement = STATEMENTS[name]
    with psycopg.connect(database_url) as connection:
        # psycopg numbers its parameters in order of their first use, as the loader does.
        query = re.sub(r"%\((\w+)\)s", lambda m: f"${statement.parameters.index(m[1]) + 1}", statement.pyformat)
        query = query.replace("%%", "%")
        result = connection.pgconn.prepare(b"s", query.encode())
        assert result.status == ExecStatus.COMMAND_OK, result.error_message
        described = connection.pgconn.describe_prepared(b"s")
        assert described.nparams == len(statement.parameters)
        assert all(described.param_type(n) not in (0, 705) for n in range(described.nparams))
        assert described.nfields > 0, "a statement returns what it did"


@pytest.mark.parametrize("name", STATEMENTS)
async def test_its_header_says_what_it_does(db: Connection, name: str) -> None:
    statement = STATEMENTS[name]
    assert statement.doc.strip(), "a header comment says what the statement does"
    assert statement.doc.strip()[0].isupper()
    named: set[str] = set()
    for sentence in re.findall(r"Ind(?:ex|exes): ([^.]*)\.", statement.doc):
        named |= set(re.findall(r"[a-z_]+_[a-z_]+", sentence)) - {name.partition(".")[2] for name in STATEMENTS}
    for index in named:
        kind = await db.fetchval(
            "SELECT relkind::text FROM pg_class WHERE oid = to_regclass($1)", f"blackboard.{index}"
        )
        assert kind == "i", f"{name} names {index}, which is no index"


def test_every_statement_is_used() -> None:
    root = Path(str(blackboard.__file__)).parent
    roots = [root, root.parent / "cli", root.parent / "examples"]
    used: set[str] = set()
    for folder in roots:
        for file in folder.rglob("*.py"):
            if "sync" not in file.relative_to(folder).parts:
                used |= set(re.findall(r"""["']([a-z_]+)["']""", file.read_text(encoding="utf-8")))
    unused = {name for name in STATEMENTS if name.partition(".")[2] not in used}
    assert unused - set(ELSEWHERE) == set()


@pytest.mark.parametrize("name", STATEMENTS)
def test_its_text_is_written_as_all_are(name: str) -> None:
    text = STATEMENTS[name].text
    assert "::" not in re.sub(r"'[^']*'|\$\w*\$.*?\$\w*\$", "", text, flags=re.DOTALL), "write CAST(:x AS type)"
    outer = re.sub(r"'[^']*'", "", text)
    assert not re.search(r"^SELECT\s+\*|^SELECT\s.*\w\.\*", outer), "columns are named"
    objects: Any = re.findall(r"\b(?:FROM|JOIN|INTO|UPDATE)\s+([a-z_.]+)", text)
    known = re.findall(r"(?:WITH|,)\s*(?:RECURSIVE\s+)?([a-z_]+)\s*(?:\([^()]*\))?\s+AS", text)
    for found in objects:
        if "." not in found and found not in ("unnest", "lateral", *known):
            assert found in ("jsonb_array_elements", "generate_series", "pg_stat_activity"), f"{found} needs its schema"
