"""What history costs, and what a wake-up costs those who add."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg

from .peers import BARE, OURS
from .run import Run

PART = "history"
HINTS = "wake-ups"

# The triggers that write history hold the rules of a task as well: the look that finds most tasks plain stays, and so
# does the one at the session; nothing is written.
_OFF = """
ALTER TABLE blackboard.tasks DISABLE TRIGGER history_insert;
ALTER TABLE blackboard.tasks DISABLE TRIGGER history_update;
CREATE FUNCTION blackboard.rules_only() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_session_id uuid := (SELECT n.session_id FROM new_rows n LIMIT 1);
BEGIN
    PERFORM 1 FROM new_rows n
    WHERE n.session_id <> v_session_id OR n.type = '' OR length(n.type) > 50
       OR blackboard.is_odd_task(n.priority, n.parameters, n.timeout, n.max_attempts, n.retry_delay, n.blockers, n.held,
                                 n.progress)
    LIMIT 1;
    IF FOUND THEN
        RAISE 'no task of a benchmark is odd';
    END IF;
    IF TG_OP = 'INSERT' THEN
        IF NOT pg_try_advisory_xact_lock_shared(blackboard.session_lock(v_session_id)) THEN
            PERFORM pg_advisory_xact_lock_shared(blackboard.session_lock(v_session_id));
        END IF;
        PERFORM 1 FROM blackboard.sessions s WHERE s.id = v_session_id AND s.status IN ('active', 'paused');
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER rules_only_insert AFTER INSERT ON blackboard.tasks REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.rules_only();
CREATE TRIGGER rules_only_update AFTER UPDATE ON blackboard.tasks REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.rules_only()
"""


async def run(run: Run) -> None:
    """The same runs with the history triggers and without."""
    await _history(run)
    await _hints(run)


async def _history(run: Run) -> None:
    n, single, batched = run.size(60_000, 4000), run.size(5000), run.size(100_000, 5000)
    async with run.arenas([OURS]) as on, run.arenas([OURS]) as off:
        arenas = {"on": on[OURS.name], "off": off[OURS.name]}
        await arenas["off"][0].execute(_OFF)
        for _ in range(run.rounds):
            for state, (arena, [player]) in arenas.items():
                await player.do("fill", n=n)
                await run.stage.quiet()
                run.rate(PART, f"history {state}: drain", OURS.name, n, await arena.drain(n, [player], tuned=True))
            for state, (arena, [player]) in arenas.items():
                with arena.clock() as clock:
                    await player.do("add", n=single)
                run.rate(PART, f"history {state}: one a call", OURS.name, single, clock)
            for state, (arena, [player]) in arenas.items():
                with arena.clock() as clock:
                    await player.do("batch", n=batched, size=1000)
                run.rate(PART, f"history {state}: 1 000 a call", OURS.name, batched, clock)
            for arena, [player] in arenas.values():
                await arena.drain(single + batched, [player], tuned=True)
        for what in ("drain", "one a call", "1 000 a call"):
            with_it = run.report.median(PART, f"history on: {what}")
            without = run.report.median(PART, f"history off: {what}")
            if with_it and without:
                run.report.add(
                    PART, f"history costs, {what}", OURS.name, (1 - with_it / without) * 100, "%", higher=False
                )


async def _hints(run: Run) -> None:
    """16 concurrent single adds, by one process to one table: nobody told, nobody listening, 50 listening."""
    n = run.size(16_000, 1600) // 16 * 16
    cases = [
        ("16 adders, nobody told", OURS.name, 0),
        ("16 adders, nobody listening", OURS.name, 0),
        ("16 adders, 50 listening", OURS.name, 50),
        ("16 adders, nobody told", BARE.name, 0),
    ]
    async with run.arenas([OURS, BARE], pool_size=16) as arenas:
        arena, [player] = arenas[OURS.name]
        # The first ones open connections and make plans.
        await player.do("adders", n=n // 4, concurrency=16)
        for turn in range(run.rounds):
            # Tables grow and the machine changes: nobody is always first.
            for case, who, listening in cases[turn % 4 :] + cases[: turn % 4]:
                adder = arenas[who][1][0]
                if adder is player:
                    await player.do("mute", muted=case.endswith("told"))
                listeners = await _listeners(arena.url, listening)
                await run.stage.quiet()
                with run.stage.clock([adder.pid]) as clock:
                    await adder.do("adders", n=n, concurrency=16)
                run.rate(HINTS, case, who, n, clock)
                for listener in listeners:
                    await listener.close()
    told, silent = (
        run.report.median(HINTS, "16 adders, 50 listening"),
        run.report.median(HINTS, "16 adders, nobody told"),
    )
    if told and silent:
        run.report.add(HINTS, "wake-ups cost, 50 listening", OURS.name, (1 - told / silent) * 100, "%", higher=False)


async def _listeners(url: str, n: int) -> list[asyncpg.Connection[Any]]:
    """Connections that hear every hint and do nothing with it."""
    connections = await asyncio.gather(*(asyncpg.connect(url) for _ in range(n)))
    for connection in connections:
        await connection.add_listener("blackboard", lambda *_: None)
    return list(connections)
