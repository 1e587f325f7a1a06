"""Blackboard itself, through its public handles and its worker, history on."""

# Every player is given the options of all.
# ruff: noqa: ARG001, ARG002

from __future__ import annotations

import asyncio
import contextlib
import os
from datetime import timedelta
from time import monotonic
from typing import Any

from benchmarks.players.protocol import Player, main
from blackboard import Agent, Blackboard, NewTask, Session, TaskContext, Worker
from blackboard.errors import NotFound
from blackboard.store import migrations

# What a sweep found best; the defaults are those of the worker.
TUNED: dict[str, Any] = {"concurrency": 10, "max_batch": 2000}


class Ours(Player):
    board: Blackboard
    session: Session
    agent: Agent

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._stack = contextlib.AsyncExitStack()
        self._idle: list[asyncio.Future[Any]] = []
        self._spread: list[Session] = []

    async def setup(self, **options: Any) -> None:
        await asyncio.to_thread(migrations.upgrade, self.url)

    async def open(self, session: str = "bench", pool_size: int = 4, **options: Any) -> None:
        self.board = await Blackboard.open(self.url, pool_size=pool_size)
        try:
            self.session = await self.board.session(session)
        except NotFound:
            self.session = await self.board.start(session)
        self.agent = await self.session.join("bench/client")

    async def add_one(self, number: int) -> None:
        await self.agent.tasks.add("noop", {"n": number})

    async def add_batch(self, size: int) -> None:
        await self.agent.tasks.add_many([NewTask(type="noop", parameters={"n": -1}) for _ in range(size)])

    async def do_mixed(self, n: int, capabilities: int, priorities: int) -> None:
        """Tasks of every capability and priority."""
        for done in range(0, n, 1000):
            await self.agent.tasks.add_many(
                [
                    NewTask(
                        type="noop", parameters={"n": -1}, capability=f"c{i % capabilities}", priority=i % priorities
                    )
                    for i in range(done, min(done + 1000, n))
                ]
            )

    async def do_spread(self, sessions: int, n: int) -> None:
        """Tasks spread evenly over many sessions."""
        for number in range(sessions):
            if len(self._spread) <= number:
                session = await self.board.start(f"spread-{number}")
                self._spread.append(session)
            agent = await self._spread[number].join("bench/client")
            await agent.tasks.add_many([NewTask(type="noop", parameters={"n": -1}) for _ in range(n // sessions)])

    async def start(
        self,
        tuned: bool = False,
        copies: int = 1,
        ping: bool = False,
        spread: bool = False,
        capabilities: int = 0,
        **options: Any,
    ) -> None:
        async def noop(ctx: TaskContext) -> None:
            self.handled += 1

        async def pinged(ctx: TaskContext) -> None:
            self.handle(ctx.parameters["n"])

        settings: dict[str, Any] = dict(TUNED) if tuned else {}
        settings.update(options)
        for copy in range(copies):
            board = self.board
            if copy:
                # As good as another process to the server: connections and listener of its own.
                board = await self._stack.enter_async_context(Blackboard.open(self.url))
            where: Any = [one.name for one in self._spread] if spread else self.session.name
            worker = Worker(
                board,
                where,
                # One worker an id: two would take each other's tasks back.
                agent_id=f"bench/{os.getpid()}-{copy}",
                capabilities=[f"c{i}" for i in range(capabilities)],
                **settings,
            )
            worker.register("noop", pinged if ping else noop)
            await self._stack.enter_async_context(worker)

    async def stop(self) -> None:
        await self._stack.aclose()
        self._stack = contextlib.AsyncExitStack()

    async def do_one_by_one(self, n: int, fused: bool) -> dict[str, float]:
        """An agent that takes one task at a time, the next with the end of the last, or each apart."""
        tasks = self.agent.tasks
        began = monotonic()
        held = await tasks.claim()
        done = 0
        while held and done < n:
            done += 1
            if fused and done < n:
                held = await tasks.complete_and_claim(held[0])
            else:
                await tasks.complete(held[0])
                held = await tasks.claim() if done < n else []
        return {"seconds": monotonic() - began, "done": done}

    async def do_idle_agents(self, agents: int, seconds: float) -> None:
        """So many agents wait for a task."""
        for number in range(agents):
            agent = await self.session.join(f"bench/idle-{id(self)}-{number}")
            self._idle.append(asyncio.ensure_future(agent.tasks.claim(wait=timedelta(seconds=seconds))))

    async def do_end_idle(self) -> None:
        for waiting in self._idle:
            waiting.cancel()
        await asyncio.gather(*self._idle, return_exceptions=True)
        self._idle = []

    async def do_mute(self, muted: bool) -> None:
        """No hint is sent after a commit, or each again."""
        listener = self.session.scope.listener
        for name, silent in (("notify", lambda *_, **__: None), ("quiet", lambda: False)):
            vars(listener).pop(name, None)
            if muted:
                setattr(listener, name, silent)

    async def close(self) -> None:
        await self.stop()
        await self.board.close()


if __name__ == "__main__":
    main(Ours)
