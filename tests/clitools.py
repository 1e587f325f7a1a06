"""Runs the command line as its entry point does, in this process."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
from dataclasses import dataclass
from typing import Any

from typer.testing import CliRunner

MAIN = next(iter(importlib.metadata.entry_points(group="console_scripts", name="blackboard"))).load()
APP = sys.modules[MAIN.__module__].app
PACKAGE = MAIN.__module__.rpartition(".")[0]

HEAVY = [
    "alembic",
    "asyncpg",
    "pydantic",
    "pydantic_core",
    "pydantic_settings",
    "psycopg",
    "rich.console",
    "sqlalchemy",
    "yaml",
]


def module(name: str) -> Any:
    """A module of the command line."""
    return importlib.import_module(f"{PACKAGE}.{name}")


exits = module("exits")


@dataclass
class Done:
    """What a command answered."""

    code: int
    stdout: str
    stderr: str
    output: str

    @property
    def json(self) -> Any:
        """Its standard output as one JSON document."""
        return json.loads(self.stdout)

    @property
    def error(self) -> dict[str, Any]:
        """The error that it told as JSON."""
        return json.loads(self.stderr)["error"]


class Cli:
    """Runs commands on one database."""

    def __init__(self, url: str | None) -> None:
        self.env: dict[str, str | None] = {"BLACKBOARD_URL": url, "COLUMNS": "100"}

    def __call__(
        self, *arguments: str, code: int = 0, stdin: str | None = None, env: dict[str, str] | None = None
    ) -> Done:
        """Runs one command; fails unless it ends with ``code``."""
        result = CliRunner().invoke(
            APP, arguments, input=stdin, env={**self.env, **(env or {})}, prog_name="blackboard"
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, f"{arguments}: {result.exit_code}\n{result.output}"
        return Done(result.exit_code, result.stdout, result.stderr, result.output)
