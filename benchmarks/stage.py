"""Where a run happens: one durable server, a database for each contestant, and their processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncGenerator
from time import monotonic
from typing import Any

import asyncpg

from blackboard.store.embedded import EmbeddedServer

from .machine import Clock
from .peers import HERE, NODE_MODULES, Contestant

_ANSWER_SECONDS = 900.0
# As many as min_wal_size keeps.
_LOG_FILES = 128


class PlayerError(Exception):
    """A contestant could not do what it was told."""


class PlayerProcess:
    """One process of a contestant."""

    def __init__(self, contestant: Contestant, url: str) -> None:
        self.contestant = contestant
        self.url = url
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """It runs."""
        environment = {
            **os.environ,
            "BENCH_NODE_MODULES": str(NODE_MODULES / "package.json"),
            "PYTHONUNBUFFERED": "1",
        }
        if self.contestant.language == "own":
            environment["PYTHONPATH"] = os.pathsep.join(
                [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
            )
        else:
            # Nothing of ours may be found by a peer.
            environment.pop("PYTHONPATH", None)
        self._process = await asyncio.create_subprocess_exec(
            *self.contestant.command(self.url),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            limit=1 << 24,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    async def do(self, name: str, **options: Any) -> dict[str, Any]:
        """What it answers.

        Raises:
            PlayerError: it could not.
        """
        async with self._turn:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps({"do": name, **options}).encode() + b"\n")
            await self._process.stdin.drain()
            while True:
                line = await asyncio.wait_for(self._process.stdout.readline(), _ANSWER_SECONDS)
                if not line:
                    raise PlayerError(f"{self.contestant.name} ended at {name!r}")
                if line.startswith(b"{"):
                    break
        answer = json.loads(line)
        if "error" in answer:
            raise PlayerError(f"{self.contestant.name}, {name}: {answer['error']}")
        return answer

    async def end(self) -> None:
        """It has ended."""
        with contextlib.suppress(ProcessLookupError):
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                await asyncio.wait_for(self._process.wait(), 3)
            except TimeoutError:
                os.killpg(self._process.pid, signal.SIGKILL)
                await self._process.wait()


class Arena:
    """A contestant's database, with as many processes of it as are wanted."""

    def __init__(self, stage: Stage, contestant: Contestant, database: str) -> None:
        self.stage = stage
        self.contestant = contestant
        self.database = database
        self.url = stage.server.url(database)
        self.processes: list[PlayerProcess] = []
        self._watch: asyncpg.Connection[Any] | None = None

    async def player(self, **options: Any) -> PlayerProcess:
        """One more process, connected; the first one makes the schema."""
        player = PlayerProcess(self.contestant, self.url)
        await player.start()
        first = not self.processes
        self.processes.append(player)
        if first:
            await player.do("setup", **options)
            if self.contestant.patch:
                await self.execute(self.contestant.patch)
        await player.do("open", **options)
        return player

    async def execute(self, sql: str) -> None:
        """In a connection of its own."""
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    async def finished(self) -> None:
        """Every task is done, and that is committed."""
        if self._watch is None:
            self._watch = await asyncpg.connect(self.url)
        while await self._watch.fetchval(self.contestant.unfinished):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.003)

    def clock(self, *players: PlayerProcess) -> Clock:
        """Measures the time and CPU of the block."""
        return self.stage.clock([player.pid for player in players or self.processes])

    async def drain(self, n: int, players: list[PlayerProcess], *, done: int | None = None, **options: Any) -> Clock:
        """Measures from the start of the workers until ``n`` tasks are handled and, if all, done and committed.

        Args:
            n: how many are there to be done.
            players: whose workers do them.
            done: stop after so many.
            options: of the workers.
        """
        wanted = n if done is None else done
        clock = self.clock(*players)
        with clock:
            for player in players:
                await player.do("start", **options)
            began = monotonic()
            while True:
                handled = [(await player.do("count"))["handled"] for player in players]
                if sum(handled) >= wanted:
                    break
                if monotonic() - began > self.stage.patience:
                    raise PlayerError(f"{self.contestant.name} handled {handled} of {n} in {self.stage.patience} s")
                await asyncio.sleep(0.01)
            if done is None:
                await self.finished()
        for player in players:
            await player.do("stop")
        return clock

    async def close(self) -> None:
        """Its processes have ended."""
        if self._watch is not None:
            await self._watch.close()
        await asyncio.gather(*(process.end() for process in self.processes))


class Stage:
    """The server, and what has been set up on it."""

    def __init__(self, server: EmbeddedServer, *, patience: float = 180.0) -> None:
        self.server = server
        self.patience = patience
        self._databases = 0
        pid = server.status().pid
        assert pid is not None
        self.postmaster = pid

    def clock(self, pids: list[int]) -> Clock:
        """Measures the time and CPU of the block."""
        return Clock(self.postmaster, pids)

    async def wear_in(self) -> None:
        """The files of the write-ahead log are there, as on any server in use.

        To make one is 16 MB of zeros and a flush, for which whoever happens to need it would pay.
        """
        connection = await asyncpg.connect(self.server.url())
        try:
            for _ in range(_LOG_FILES):
                await connection.execute("SELECT pg_logical_emit_message(false, '', ''); SELECT pg_switch_wal()")
            await connection.execute("CHECKPOINT")
        finally:
            await connection.close()

    async def quiet(self) -> None:
        """What an earlier measurement left to be written has been written."""
        connection = await asyncpg.connect(self.server.url())
        try:
            await connection.execute("CHECKPOINT")
        finally:
            await connection.close()

    @contextlib.asynccontextmanager
    async def arena(self, contestant: Contestant) -> AsyncGenerator[Arena]:
        """A fresh database for the contestant; dropped afterwards."""
        self._databases += 1
        database = f"arena_{self._databases}"
        admin = await asyncpg.connect(self.server.url())
        try:
            await admin.execute(f"CREATE DATABASE {database}")
            arena = Arena(self, contestant, database)
            try:
                yield arena
            finally:
                await arena.close()
        finally:
            with contextlib.suppress(asyncpg.PostgresError):
                await admin.execute(f"DROP DATABASE {database} WITH (FORCE)")
            await admin.close()
