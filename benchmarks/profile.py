"""Where the server's time goes: CPU of one backend for each hot statement, as it is and with parts taken away.

CPU time of the one backend process, in nanoseconds from the kernel, so that other load disturbs it little.
"""

from __future__ import annotations

import contextlib
import statistics
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg

from blackboard.store import migrations

from .peers import OURS
from .run import Run

PART = "profile"

# What is taken away, one database each.
ABLATIONS: dict[str, str] = {
    "as it is": "",
    "without history triggers, which hold the rules too": (
        "ALTER TABLE blackboard.tasks DISABLE TRIGGER history_insert;"
        "ALTER TABLE blackboard.tasks DISABLE TRIGGER history_update"
    ),
    "without any trigger": "ALTER TABLE blackboard.tasks DISABLE TRIGGER USER",
    "without index events_cursor": "DROP INDEX blackboard.events_cursor",
    "without index events_subject": "DROP INDEX blackboard.events_subject",
    "without index tasks_leased": "DROP INDEX blackboard.tasks_leased",
}
_ADD = """
SELECT blackboard.add_tasks($1, $2, $3::text[], $4::text[], $5::smallint[], $6::text[]::jsonb[],
                            $7::text[]::jsonb[], 'bench')
"""
_CLAIM = "SELECT id, attempt FROM blackboard.claim_tasks($1, 'bench', '{}', $2, $3, $4)"
_COMPLETE = "SELECT blackboard.complete_tasks($1, $2, $3, $4, $5::text[]::jsonb[], 'bench')"


def cpu_ns(pid: int) -> int:
    """Of a process, so far."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


class Subject:
    """One database, and what its statements cost."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.cost: dict[tuple[str, int], list[float]] = {}

    async def open(self, ablation: str) -> None:
        """Ready to be measured."""
        with contextlib.suppress(Exception):
            migrations.upgrade(self.url)
        connection = self.connection = await asyncpg.connect(self.url)
        self.pid = connection.get_server_pid()
        self.session, self.lease = uuid.uuid4(), uuid.uuid4()
        await connection.execute("INSERT INTO blackboard.sessions (id, name) VALUES ($1, 'bench')", self.session)
        await connection.fetchval("SELECT blackboard.start_lease($1, 'here', 1, interval '1 day')", self.lease)
        if ablation:
            await connection.execute(ablation)
        self.statements = [await connection.prepare(sql) for sql in (_ADD, _CLAIM, _COMPLETE)]

    async def cycle(self, size: int) -> None:
        """``size`` tasks are added, claimed and completed, by one call each."""
        add, claim, complete = self.statements
        ids = [uuid.UUID(int=uuid.uuid4().int) for _ in range(size)]
        nothing: list[None] = [None] * size
        await self._timed("add", size, add.fetch, self.session, ids, ["noop"] * size, [""] * size, [5] * size,
                          ['{"n": 1}'] * size, nothing)  # fmt: skip
        claim_id = uuid.uuid4()
        rows = await self._timed("claim", size, claim.fetch, self.session, self.lease, claim_id, size)
        await self._timed("complete", size, complete.fetch, self.session, [row["id"] for row in rows],
                          [claim_id] * size, [row["attempt"] for row in rows], nothing)  # fmt: skip

    async def _timed(self, what: str, size: int, call: Callable[..., Any], *arguments: Any) -> Any:
        before = cpu_ns(self.pid)
        answer = await call(*arguments)
        self.cost.setdefault((what, size), []).append((cpu_ns(self.pid) - before) / size / 1000)
        return answer


async def run(run: Run) -> None:
    """All ablations in turn, for batches and for single tasks."""
    subjects: dict[str, Subject] = {}
    async with contextlib.AsyncExitStack() as stack:
        for name, ablation in ABLATIONS.items():
            arena = await stack.enter_async_context(run.stage.arena(OURS))
            subjects[name] = Subject(arena.url)
            await subjects[name].open(ablation)
        for _ in range(max(4, int(20 * run.scale))):
            for subject in subjects.values():
                await subject.cycle(1000)
        for _ in range(max(20, int(400 * run.scale))):
            for subject in subjects.values():
                await subject.cycle(1)
        for name, subject in subjects.items():
            for (what, size), costs in subject.cost.items():
                run.report.add(PART, f"{what}, {size} a call: {name}", OURS.name, statistics.median(costs), "µs/task",
                               higher=None)  # fmt: skip
            await subject.connection.close()
