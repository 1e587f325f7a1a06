"""Where a repository works: on which connection, in which session, as whom."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar
from uuid import UUID

from ..errors import BlackboardError, InvalidInput, TransientError, Unavailable, WaitNotAllowed
from ..jsonable import check_duration
from ..store.executor import Executor
from ..store.listener import Listener
from ..store.statements import Statement

__all__ = [
    "Claiming",
    "LeaseKeeper",
    "LeaseWatcher",
    "Repository",
    "Scope",
    "UnderLease",
    "head_start",
    "in_doubt",
    "soon",
]

_T = TypeVar("_T")

# [async-only]
Check = Callable[[], Awaitable[_T | None]]
UnderLease = Callable[[UUID], Awaitable[_T]]
# [end]
# [sync-only] Check = Callable[[], _T | None]
# [sync-only] UnderLease = Callable[[UUID], _T]


class LeaseWatcher(Protocol):
    """Hears of the lease of this process, from the heartbeat's thread or a caller's: keep the calls short."""

    def on_lost(self, lease_id: UUID) -> None:
        """The server said that the lease has lapsed; may be said twice."""
        ...


@dataclass(slots=True)
class Claiming:
    """One claim that is under way.

    Attributes:
        held: it got tasks, and whoever made it knows of them.
    """

    held: bool = False


class LeaseKeeper(Protocol):
    """Knows the lease of this process, and what is held by it."""

    async def current(self) -> UUID:
        """The lease that is held now; a new one is started when the last has lapsed."""
        ...

    async def forget(self, lease_id: UUID) -> None:
        """The server said that this lease has lapsed: the next ``current`` starts a new one."""
        ...

    async def under(self, call: UnderLease[_T], *, bound: bool) -> _T:
        """What ``call`` does under the lease that is held now; if that has lapsed, what it does under a new one."""
        ...

    def watch(self, watcher: LeaseWatcher, agent_id: str) -> Callable[[], None]:
        """The watcher hears of the lease until what this returns is called; all claims of the agent are known here."""
        ...

    def claiming(self, claim_id: UUID, *, bound: bool = False) -> AbstractAsyncContextManager[Claiming]:
        """A block that claims by that id: what it gets and does not tell is handed back."""
        ...

    def drop_claims(self, claim_ids: Iterable[UUID]) -> None:
        """Nobody here works on anything that these still hold; should they hold something, it goes back."""
        ...

    def owe(self, statement: Statement, **values: Any) -> Callable[[], None]:
        """The statement runs at every count of the lease until it has found something to do; what returns ends it."""
        ...

    def count_now(self, then: Callable[[], None]) -> None:
        """What the lease holds is counted at once; ``then`` is called after that, perhaps from another thread."""
        ...


@dataclass(frozen=True)
class Scope:
    """What a handle binds its repositories to.

    Attributes:
        executor: runs the statements.
        session_id: the session that every statement is about.
        actor: who acts, as history will show it; None leaves it to the database role.
        leases: the lease of this process; claims, locks and presence are held under it.
        listener: wakes those who wait, and sends the hints of the hot verbs.
        agent_id: set on an agent's handle; verbs that only an agent may use need it.
        capabilities: what the agent can do; the default of its claims.
    """

    executor: Executor
    session_id: UUID
    actor: str | None
    leases: LeaseKeeper
    listener: Listener
    agent_id: str | None = None
    capabilities: tuple[str, ...] = ()


class Repository:
    """One noun's statements, bound to a scope."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._executor = scope.executor

    @property
    def _agent_id(self) -> str:
        if self._scope.agent_id is None:
            raise InvalidInput(
                "Only an agent can do this: use the handle that `session.join(agent_id)` returns.", field="agent_id"
            )
        return self._scope.agent_id

    async def _under_lease(self, call: UnderLease[_T]) -> _T:
        """What ``call`` does under this process's lease; under a new one if that had lapsed and no caller's
        transaction is broken by it.
        """
        return await self._scope.leases.under(call, bound=self._executor.bound)

    def _hint(self, noun: str, *, told: bool = False) -> None:
        # The hot verbs do not notify in their own transaction: that would serialise every commit of the cluster.
        # Inside a caller's transaction their wake-up is the waiters' poll.
        if not self._executor.bound:
            self._scope.listener.notify(self._scope.session_id, noun, told=told)

    def _hints_within(self) -> bool:
        """Whether the statement that comes now should notify in its own transaction.

        In a caller's transaction nobody else can; and where hints are rare it is the quickest way.
        """
        return self._executor.bound or self._scope.listener.quiet()

    async def _until(
        self,
        verb: str,
        nouns: Collection[str] | None,
        check: Check[_T],
        timeout: timedelta | None,
        *,
        again_in: Check[float] | None = None,
        rivals: bool = False,
    ) -> _T | None:
        """What ``check`` returned when it first was not None; None when the time was up.

        It is asked at once, after every hint about ``nouns``, and at every poll, so that a lost hint only delays.

        Args:
            again_in: asked after each look in vain: in how many seconds time alone may change the answer, which no
                hint tells; None where only a hint can.
            rivals: of those who are hinted at once only a few will find something. Who has looked in vain looks a
                little later the next time, the more so the more often that was: not all come at once.

        Raises:
            InvalidInput: the timeout is no timedelta.
            WaitNotAllowed: this handle is bound to a caller's connection.
        """
        if self._executor.bound:
            raise WaitNotAllowed(
                f"{verb} waits, and a wait inside your transaction would hold its locks and its snapshot: "
                "call it on a handle that is not bound to your connection.",
                verb=verb,
            )
        ends = None if timeout is None else time.monotonic() + check_duration(timeout, "timeout").total_seconds()
        in_vain = 0
        with self._scope.listener.subscribe(self._scope.session_id, nouns) as hints:
            while True:
                found = await check()
                left = None if ends is None else ends - time.monotonic()
                if found is not None or (left is not None and left <= 0):
                    return found
                if again_in is not None:
                    soon = await again_in()
                    left = soon if left is None else left if soon is None else min(left, soon)
                # [async-only]
                hinted = await hints.wait_async(left)
                # [end]
                # [sync-only] hinted = hints.wait(left)
                if rivals and hinted:
                    pause = head_start(in_vain)
                    in_vain += 1
                    if pause:
                        await asyncio.sleep(pause if ends is None else min(pause, max(0.0, ends - time.monotonic())))


def head_start(in_vain: int) -> float:
    """Seconds that one who came ``in_vain`` so often in a row leaves to others: none at first, at most a tenth."""
    return random.random() * min(0.1, 0.001 * 2.0 ** min(in_vain, 10)) if in_vain else 0.0


def in_doubt(error: BaseException) -> bool:
    """Whether a call that ended so may have been done all the same: its answer was lost, or its caller gave up."""
    return not isinstance(error, BlackboardError) or isinstance(error, (Unavailable, TransientError))


async def soon() -> float | None:
    """A second: for what a deadline changes, which gives no hint."""
    return 1.0
