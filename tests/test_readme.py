"""The README's examples run as they stand: Python, shell and SQL, in order, on one database."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sybil import Document, Example, Region
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

README = Path(__file__).resolve().parent.parent / "README.md"


def _console(example: Example) -> None:
    """Every line that begins with ``$`` must succeed; the others are for the reader."""
    for line in example.parsed.splitlines():
        if line.startswith("$ "):
            program, *arguments = shlex.split(line[2:])
            assert program == "blackboard", line
            ran = subprocess.run(
                [str(Path(sys.executable).with_name(program)), *arguments],
                check=False, capture_output=True, text=True, env=example.namespace["environment"],
            )  # fmt: skip
            assert ran.returncode == 0, f"{line}\n{ran.stderr}"
            assert ran.stdout.strip(), f"{line} printed nothing"


def _sql(example: Example) -> None:
    """Every statement runs; every SELECT finds something."""
    connection: psycopg.Connection[Any] = example.namespace["connection"]
    for statement in re.split(r";\s*(?:\n|$)", example.parsed):
        if statement.strip():
            cursor = connection.execute(statement.encode())
            if statement.strip().startswith("SELECT"):
                assert cursor.fetchall(), statement


def _flow(example: Example) -> None:
    """The file makes a flow."""
    ran = subprocess.run(
        [str(Path(sys.executable).with_name("blackboard")), "flow", "create", "-", "-s", "checkout"],
        check=False, input=example.parsed, capture_output=True, text=True, env=example.namespace["environment"],
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


def _regions() -> Iterator[Region]:
    document = Document(README.read_text(encoding="utf-8"), str(README))
    for parser in (
        PythonCodeBlockParser(),
        CodeBlockParser(language="console", evaluator=_console),
        CodeBlockParser(language="sql", evaluator=_sql),
        CodeBlockParser(language="yaml", evaluator=_flow),
    ):
        for region in parser(document):
            document.add(region)
    yield from document.examples()


@pytest.mark.source
def test_every_example_runs(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLACKBOARD_URL", database_url)
    examples = list(_regions())
    assert len(examples) >= 6, "the README has lost its examples"
    with psycopg.connect(database_url, autocommit=True) as connection:
        examples[0].namespace.update(environment=dict(os.environ), connection=connection)
        for example in examples:
            example.evaluate()
