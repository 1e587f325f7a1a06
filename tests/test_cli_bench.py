"""``blackboard bench``: it measures in a database of its own and leaves nothing behind."""

from __future__ import annotations

import psycopg
import pytest

from .clitools import Cli


@pytest.fixture(name="cli")
def _cli(database_url: str) -> Cli:
    return Cli(database_url)


def test_bench_measures_and_cleans_up(cli: Cli, database_url: str) -> None:
    told = cli("bench", "--tasks", "200", "--rounds", "1", "--json").json
    assert told["server"]["fsync"] in {"on", "off"}
    assert told["figures"]
    assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in told["figures"])
    with psycopg.connect(database_url) as connection:
        left = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'blackboard_bench_%'").fetchall()
    assert left == []
