"""Flat in backlog: the same drain with much pending, much done, many heads, many sessions, and no statistics."""

from __future__ import annotations

from .peers import OURS
from .run import Run
from .stage import Arena, PlayerProcess

PART = "backlog"

# The rows matter here, not how they came to be; completed ones have no place in the ready index. Ids are in the order
# of time, as clients make them.
_ID = """
(lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0') || '7'
 || substr(md5(random()::text), 1, 3) || '8' || substr(md5(random()::text), 1, 15))::uuid
"""
_SEED = """
BEGIN;
SET LOCAL session_replication_role = replica;
INSERT INTO blackboard.tasks (session_id, id, type, parameters, status, position, attempt, claim_id, assigned_to,
                              started_at, completed_at, created_by)
SELECT s.id, {id}, 'noop', '{{"n": -1}}', '{status}', {position}, {attempt}, {claim}, {agent}, {at}, {at},
       'bench'
FROM blackboard.sessions s, generate_series(1, {n}) WHERE s.name = 'bench';
COMMIT
"""


async def seed(arena: Arena, n: int, status: str) -> None:
    """So many tasks of that status are there, without history."""
    done = status == "completed"
    await arena.execute(
        _SEED.format(
            n=n,
            id=_ID,
            status=status,
            position="NULL" if done else "nextval('blackboard.task_positions')",
            attempt=1 if done else 0,
            claim="gen_random_uuid()" if done else "NULL",
            agent="'bench/seed'" if done else "NULL",
            at="now()" if done else "NULL",
        )
    )


async def run(run: Run) -> None:
    """Each case in a database of its own, in turn."""
    n = run.size(20_000, 4000)
    pending, completed, sessions = run.size(1_000_000, 20_000), run.size(5_000_000, 20_000), run.size(1000, 100)
    cases = {
        "plain, analysed": None,
        "never analysed": None,
        f"{pending:,} pending": ("pending", pending),
        f"{completed:,} completed kept": ("completed", completed),
        "3 capabilities x 10 priorities": None,
        f"{sessions:,} sessions": None,
    }
    for case, seeded in cases.items():
        async with run.arenas([OURS]) as arenas:
            for arena, [player] in arenas.values():
                if case == "never analysed":
                    await arena.execute("ALTER TABLE blackboard.tasks SET (autovacuum_enabled = off);"
                                        "ALTER TABLE blackboard.events SET (autovacuum_enabled = off)")  # fmt: skip
                else:
                    await _warm(arena, player)
                if seeded is not None:
                    await seed(arena, seeded[1], seeded[0])
                    await arena.execute("VACUUM ANALYZE blackboard.tasks")
                for _ in range(run.rounds):
                    await _drain(run, arena, player, case, n, sessions, wait=seeded is None or seeded[0] != "pending")
    plain = run.report.median(PART, "plain, analysed")
    for case in cases:
        value = run.report.median(PART, case)
        if plain and value and case != "plain, analysed":
            run.report.add(PART, f"{case}, of plain", OURS.name, value / plain, "")


async def _warm(arena: Arena, player: PlayerProcess) -> None:
    await player.do("fill", n=2000)
    await arena.drain(2000, [player])
    await arena.execute("ANALYZE")


async def _drain(
    run: Run, arena: Arena, player: PlayerProcess, case: str, n: int, sessions: int, *, wait: bool
) -> None:
    options: dict[str, object] = {}
    if case.startswith("3 cap"):
        await player.do("mixed", n=n, capabilities=3, priorities=10)
        options["capabilities"] = 3
    elif case.endswith("sessions"):
        await player.do("spread", sessions=sessions, n=n)
        options["spread"] = True
    elif wait:
        await player.do("fill", n=n)
    await run.stage.quiet()
    clock = await arena.drain(n, [player], done=None if wait else n, **options)
    run.rate(PART, case, OURS.name, n, clock)
