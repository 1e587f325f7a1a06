"""``blackboard bench``: how fast the board is on a server of yours."""

from __future__ import annotations

import asyncio
import re
import statistics
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Annotated
from uuid import uuid4

import typer

from .commands import command, single
from .desk import Desk
from .output import Column, jsonable

if TYPE_CHECKING:
    from blackboard import Session, TaskContext

__all__ = ["app"]

app = single()


@dataclass(frozen=True)
class Figure:
    """What was measured.

    Attributes:
        what: was done.
        value: the median.
        low: the least of the samples.
        high: the greatest.
        unit: of the three.
    """

    what: str
    value: float
    low: float
    high: float
    unit: str


_COLUMNS = [
    Column("what", lambda f: f.what, grow=True),
    Column("median", lambda f: _number(f.value), "number"),
    Column("from", lambda f: _number(f.low), "number"),
    Column("to", lambda f: _number(f.high), "number"),
    Column("unit", lambda f: f.unit),
]


@command(app, "bench", example="blackboard bench --url postgresql://me@db/postgres\nblackboard bench --tasks 50000")
def bench(
    desk: Desk,
    *,
    tasks: Annotated[int, typer.Option(metavar="N", min=100, max=1_000_000, help="In the big steps.")] = 20_000,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, max=20, help="How often each figure is taken.")] = 3,
) -> None:
    """Measure adding, draining and waking up, in a database of its own that is dropped afterwards."""
    from blackboard.store import migrations

    with _own_database(desk.url) as (url, settings):
        desk.out.note("measuring in a database of its own; history is on, the worker has its defaults")
        migrations.upgrade(url)
        figures = asyncio.run(_measure(url, tasks, rounds))
    if desk.out.json:
        desk.out.document({"server": settings, "figures": [jsonable(figure.__dict__) for figure in figures]})
        return
    desk.out.records(figures, _COLUMNS, empty="nothing was measured")
    desk.out.note(", ".join(f"{name} {value}" for name, value in settings.items()))


@contextmanager
def _own_database(url: str) -> Generator[tuple[str, dict[str, str]]]:
    """A fresh database on the server of ``url``, and what of the server matters; dropped in the end."""
    import psycopg

    from blackboard.errors import ConfigurationError
    from blackboard.store.statements import statements

    known = statements("bench")
    name = f"blackboard_bench_{uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as connection:

        def command(verb: str) -> bytes:
            [(text,)] = connection.execute(known[verb].pyformat.encode(), {"name": name}).fetchall()
            return str(text).encode()

        cursor = connection.execute(known["server_settings"].pyformat.encode())
        [values] = cursor.fetchall()
        settings = {column.name: str(value) for column, value in zip(cursor.description or (), values, strict=True)}
        try:
            connection.execute(command("create_database"))
        except psycopg.errors.InsufficientPrivilege as error:
            raise ConfigurationError(
                "Measuring needs a database of its own, and this role may not create one: use a role with CREATEDB."
            ) from error
        try:
            yield re.sub(r"^(postgresql://[^/?#]*)(/[^?#]*)?", rf"\1/{name}", url), settings
        finally:
            connection.execute(command("drop_database"))


async def _measure(url: str, tasks: int, rounds: int) -> list[Figure]:
    from blackboard import Blackboard, NewTask, Worker

    single, pings = max(50, tasks // 20), 100
    starts: dict[int, float] = {}
    samples: dict[str, list[float]] = {}

    async def ping(ctx: TaskContext) -> None:
        starts[ctx.parameters] = perf_counter()

    async def noop(_: TaskContext) -> None:
        pass

    async with Blackboard.open(url) as board:
        session = await board.start("bench")
        agent = await session.join("bench/client")
        for _ in range(rounds):
            began = perf_counter()
            for _ in range(single):
                await agent.tasks.add("noop")
            samples.setdefault("tasks added, 1 a call", []).append(single / (perf_counter() - began))
            began = perf_counter()
            for done in range(0, tasks, 1000):
                await agent.tasks.add_many([NewTask(type="noop") for _ in range(min(1000, tasks - done))])
            samples.setdefault("tasks added, 1 000 a call", []).append(tasks / (perf_counter() - began))
            held = await agent.tasks.claim()
            began = perf_counter()
            for _ in range(single):
                held = await agent.tasks.complete_and_claim(held[0])
            samples.setdefault("one at a time: complete and claim the next", []).append(
                single / (perf_counter() - began)
            )
            await agent.tasks.release(held[0])
            worker = Worker(board, session, agent_id="bench/worker")
            worker.register("noop", noop)
            began = perf_counter()
            counts = await worker.drain()
            samples.setdefault("tasks drained by one worker", []).append(counts.completed / (perf_counter() - began))
        waits = await _pings(url, session, pings, ping, starts)
    figures = [Figure(what, statistics.median(s), min(s), max(s), "a second") for what, s in samples.items()]
    return [*figures, Figure("from the commit of an add to its handler", statistics.median(waits), min(waits),
                             max(waits), "ms")]  # fmt: skip


async def _pings(
    url: str, session: Session, n: int, ping: Callable[[TaskContext], Awaitable[None]], starts: dict[int, float]
) -> list[float]:
    """Milliseconds from commit to handler, on an idle worker."""
    from blackboard import Blackboard, Worker

    committed: dict[int, float] = {}
    # Heard as another process would hear it.
    async with Blackboard.open(url) as board:
        worker = Worker(board, session.name, agent_id="bench/pinged")
        worker.register("ping", ping)
        agent = await session.join("bench/client")
        async with worker:
            for number in range(n):
                await asyncio.sleep(0.01 + (number * 0.618) % 1 / 50)
                await agent.tasks.add("ping", number)
                committed[number] = perf_counter()
            for _ in range(200):
                if len(starts) == n:
                    break
                await asyncio.sleep(0.02)
    return [max(0.0, (starts[number] - at) * 1000) for number, at in committed.items() if number in starts]


def _number(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ") if value >= 100 else f"{value:.2f}"
