"""The ceiling: what PostgreSQL does on this machine with nothing of a queue around it, by pgbench."""

from __future__ import annotations

import asyncio
import re
import tempfile
from pathlib import Path

import asyncpg

from blackboard.store.binaries import find_binaries

from .run import Run

PART = "ceiling"

_SCHEMA = """
CREATE TABLE ceiling_jobs (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, status smallint NOT NULL DEFAULT 0);
CREATE INDEX ceiling_ready ON ceiling_jobs (id) WHERE status = 0
"""
# A claim, its ids, and their end.
_CLAIM_AND_COMPLETE = """
WITH p AS MATERIALIZED (SELECT id FROM ceiling_jobs WHERE status = 0 ORDER BY id LIMIT 100 FOR UPDATE SKIP LOCKED), \
c AS (UPDATE ceiling_jobs j SET status = 1 FROM p WHERE j.id = p.id RETURNING j.id) \
SELECT array_agg(id) AS ids FROM c \\gset
UPDATE ceiling_jobs SET status = 2 WHERE id = ANY (':ids'::bigint[]);
"""
_SCRIPTS = {
    "commit of one tiny INSERT": ("INSERT INTO ceiling_jobs DEFAULT VALUES;", 1),
    "claim 100 and complete 100": (_CLAIM_AND_COMPLETE, 100),
    "SELECT 1": ("SELECT 1;", 1),
}


def _program() -> Path:
    return Path(find_binaries(None, Path(tempfile.gettempdir())).program("pgbench"))


async def run(run: Run) -> None:
    """One client and four, prepared statements where they can be."""
    program = _program()
    if not program.exists():
        run.report.fail(f"{PART}: no pgbench beside the server's programs")
        return
    seconds = run.seconds(3)
    url = run.stage.server.url()
    connection = await asyncpg.connect(url)
    await connection.execute(_SCHEMA)
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(run.rounds):
            for what, (text, tasks) in _SCRIPTS.items():
                script = Path(directory) / "script.sql"
                script.write_text(text)
                for clients in (1, 4, 16):
                    if tasks > 1:
                        await connection.execute("TRUNCATE ceiling_jobs")
                        await connection.execute(
                            "INSERT INTO ceiling_jobs (status) SELECT 0 FROM generate_series(1, $1::integer)",
                            int(200_000 * seconds),
                        )
                    rate = await _pgbench(program, url, script, clients, seconds, prepared=tasks == 1)
                    run.report.add(PART, f"{what}, {clients} clients", "pgbench", rate * tasks, "/s")
    await connection.execute("DROP TABLE ceiling_jobs")
    await connection.close()


async def _pgbench(program: Path, url: str, script: Path, clients: int, seconds: float, *, prepared: bool) -> float:
    process = await asyncio.create_subprocess_exec(
        str(program), "-n", "-f", str(script), "-c", str(clients), "-j", "2", "-T", str(max(1, round(seconds))),
        "-M", "prepared" if prepared else "simple", url,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output = (await process.communicate())[0].decode()
    found = re.search(r"tps = ([\d.]+)", output)
    if found is None:
        raise RuntimeError(output)
    return float(found[1])
