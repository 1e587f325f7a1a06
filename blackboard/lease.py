"""The lease of this process: what it claims, locks, reserves and is present by."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from .errors import BlackboardError, LeaseLost, NotFound, ServerUnreachable, Unavailable
from .ids import new_id
from .jsonable import load_json
from .repository.scope import Claiming, LeaseWatcher, UnderLease, in_doubt
from .store.executor import Executor
from .store.statements import Statement, statements
from .work import answers
from .work.heartbeat import Ask, Heartbeat

# [sync-only] from .work.heartbeat import ask_once

__all__ = ["ProcessLease"]

_T = TypeVar("_T")

_log = logging.getLogger(__name__)
_LEASES = statements("leases")

_MANY_CLAIMS = 1000
_MOST_DOUBTS = 10_000
_MOST_PAYMENTS = 100
# How long a call whose answer never came may still run on the server, or a caller's transaction stay open.
_LONGEST_CALL_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, eq=False)
class _Debt:
    statement: Statement
    values: dict[str, Any]
    until: float


class ProcessLease:
    """The one lease of this process on this board: started at the first need, kept by a heartbeat of its own.

    What is held by it without anybody here knowing of it, because an answer was lost or its caller had given up, is
    handed back at the next count of the heartbeat, in the heartbeat's thread and on its connection.
    """

    def __init__(self, url: str, executor: Executor, term: timedelta) -> None:
        """Nothing is held yet."""
        self._url = url
        self._executor = executor
        self._term = term
        self._heartbeat: Heartbeat | None
        self._watchers: list[tuple[LeaseWatcher, str]] = []
        # [async-only]
        self._loop: asyncio.AbstractEventLoop | None = None
        # [end]
        self._start_afresh()

    def _start_afresh(self) -> None:
        """After a fork, too: the lease and its claims are the parent's, and its threads may have held a lock."""
        self._pid = os.getpid()
        self._heartbeat = None
        self._last: UUID | None = None
        self._starting = asyncio.Lock()
        # Also the heartbeat's thread reads and writes what follows. Never held across a call. Reentrant: the collector
        # may end an abandoned claim in the thread that holds it.
        self._book = threading.RLock()
        # Under way: how many calls with that id.
        self._claiming: dict[UUID, int] = {}
        # Answered with tasks: from when on the claim holds none any more if the server lists none of it.
        self._claims: dict[UUID, float] = {}
        # Nobody here knows what they got, or works on it any more, and whether somebody did; the oldest first.
        self._doubtful: dict[UUID, bool] = {}
        # Being handed back: until when at the latest.
        self._going_back: dict[UUID, float] = {}
        self._debts: list[_Debt] = []

    def watch(self, watcher: LeaseWatcher, agent_id: str) -> Callable[[], None]:
        """The watcher hears of the lease, from the heartbeat's thread, until what this returns is called.

        So long everything is handed back that the agent holds by claims which no handle of this process has made.
        """
        entry = (watcher, agent_id)
        self._watchers.append(entry)
        return lambda: self._watchers.remove(entry)

    # ------------------------------------------------------------------------------------------------------- claims

    @asynccontextmanager
    async def claiming(self, claim_id: UUID, *, bound: bool = False) -> AsyncGenerator[Claiming]:
        """A block that claims by that id: what it gets and does not tell in ``held`` is handed back.

        ::

            async with leases.claiming(claim_id) as claim:
                rows = await executor.fetch_all(...)
                claim.held = bool(rows)

        Args:
            claim_id: may have been used before; a block with an id that is just being handed back begins after that.
            bound: the claim is part of a caller's transaction, and may be committed much later.
        """
        while not self._begun(claim_id):  # noqa: ASYNC110 - no event of a loop: the heartbeat's thread ends it
            await asyncio.sleep(0.01)
        claim = Claiming()
        try:
            yield claim
        except BaseException as error:
            self._ended(claim_id, held=False, doubtful=in_doubt(error))
            raise
        self._ended(claim_id, held=claim.held, doubtful=False, bound=bound)

    def _begun(self, claim_id: UUID) -> bool:
        with self._book:
            if self._going_back.get(claim_id, 0.0) > time.monotonic():
                return False
            self._claiming[claim_id] = self._claiming.get(claim_id, 0) + 1
            return True

    def _ended(self, claim_id: UUID, *, held: bool, doubtful: bool, bound: bool = False) -> None:
        # Answered, and holds tasks; or it holds none or, if doubtful, nobody here knows which.
        with self._book:
            left = self._claiming.pop(claim_id, 1) - 1
            if left > 0:
                self._claiming[claim_id] = left
            if held:
                self._claims[claim_id] = time.monotonic() + (_LONGEST_CALL_SECONDS if bound else 0.0)
                self._doubtful.pop(claim_id, None)
            elif doubtful and claim_id not in self._claims:
                self._doubt([claim_id], begun=False)

    def drop_claims(self, claim_ids: Iterable[UUID]) -> None:
        """Nobody here works on anything that these still hold; should they hold something, it goes back."""
        with self._book:
            dropped = list(claim_ids)
            for claim_id in dropped:
                self._claims.pop(claim_id, None)
            self._doubt(dropped, begun=True)

    def _doubt(self, claim_ids: Iterable[UUID], *, begun: bool) -> None:
        self._doubtful.update(dict.fromkeys(claim_ids, begun))
        while len(self._doubtful) > _MOST_DOUBTS:
            del self._doubtful[next(iter(self._doubtful))]

    def owe(self, statement: Statement, **values: Any) -> Callable[[], None]:
        """The statement runs at every count of the heartbeat, for an hour, until it has found something to do.

        For what a call has left behind whose answer nobody has got: it may come to be only then. The first column of
        its first row tells: not NULL, zero or false. A statement that is refused is not tried again.

        Returns:
            Ends it: somebody else has done it.
        """
        debt = _Debt(statement, values, time.monotonic() + _LONGEST_CALL_SECONDS)
        with self._book:
            self._debts.append(debt)
        return partial(self._paid, debt)

    def _paid(self, debt: _Debt) -> None:
        with self._book:
            if debt in self._debts:
                self._debts.remove(debt)

    # ---------------------------------------------------------------------------------- in the heartbeat's thread

    def _tend(self, lease_id: UUID, ask: Ask, held: int, since: UUID | None) -> None:
        try:
            self._look(lease_id, ask, held, since)
        finally:
            self._pay(ask)

    def _look(self, lease_id: UUID, ask: Ask, held: int, since: UUID | None) -> None:
        """What the lease holds and nobody here knows of was handed back; claims that hold nothing are forgotten."""
        agents = {agent_id for _, agent_id in tuple(self._watchers)}
        with self._book:
            before = self._claims.copy()
            if not (held and (self._doubtful or agents)) and len(before) < _MANY_CLAIMS:
                return
        began = time.monotonic()
        [listed] = ask(_LEASES["list_claims"], lease_id=lease_id, since=since or UUID(int=0))
        pairs = [(UUID(claim_id), agent_id) for claim_id, agent_id in load_json((listed or b"[]").decode())]
        claim_ids = {claim_id for claim_id, _ in pairs}
        gone = [
            (claim_id, gone_from)
            for claim_id, gone_from in before.items()
            if gone_from <= began and claim_id not in claim_ids and (since is None or claim_id >= since)
        ]
        with self._book:
            for claim_id, gone_from in gone:
                if self._claims.get(claim_id) == gone_from:
                    del self._claims[claim_id]
            for claim_id in claim_ids & self._claims.keys():
                # It is committed, if that was in question.
                self._claims[claim_id] = min(self._claims[claim_id], began)
            unknown = [
                claim_id
                for claim_id in {one for one, agent_id in pairs if one in self._doubtful or agent_id in agents}
                if claim_id not in self._claims and claim_id not in self._claiming
            ]
            begun = [claim_id for claim_id in unknown if self._doubtful.get(claim_id)]
            # The server ends the call in this time, whatever becomes of its answer.
            until = time.monotonic() + self._term.total_seconds() / 3
            self._going_back = {claim_id: end for claim_id, end in self._going_back.items() if end > began}
            self._going_back |= dict.fromkeys(unknown, until)
        if not unknown:
            return
        [returned] = ask(_LEASES["return_claims"], lease_id=lease_id, claim_ids=unknown, begun=begun)
        _log.warning("%d tasks were claimed without our knowing, and are handed back", int(returned or 0))
        with self._book:
            for claim_id in unknown:
                self._going_back.pop(claim_id, None)
                self._doubtful.pop(claim_id, None)

    def _pay(self, ask: Ask) -> None:
        with self._book:
            due = self._debts[:_MOST_PAYMENTS]
        # The next renewal must not wait for them.
        ends = time.monotonic() + self._term.total_seconds() / 12
        for debt in due:
            if time.monotonic() > ends:
                return
            done = time.monotonic() > debt.until
            try:
                row = ask(debt.statement, **debt.values)
                done = done or (bool(row) and row[0] not in {None, b"0", b"f"})
            except NotFound:
                pass
            except BlackboardError as error:
                if error.retryable:
                    raise
                _log.warning("%s was refused, and is given up: %s", debt.statement.name, error)
                done = True
            finally:
                # One that found nothing to do, or had to wait, comes behind those that were not tried yet.
                with self._book:
                    if debt in self._debts:
                        self._debts.remove(debt)
                        if not done:
                            self._debts.append(debt)

    # -------------------------------------------------------------------------------------------------- the lease

    async def current(self) -> UUID:
        """The lease that is held now; a new one where there is none, it has lapsed, or the process forked.

        Raises:
            InvalidInput: the term is out of range.
            Unavailable: the database does not serve us, or this process can have no thread for the heartbeat.
        """
        if (held := self._held()) is not None:
            return held
        if self._pid != os.getpid():
            self._start_afresh()
        # [async-only]
        if self._loop is not (loop := asyncio.get_running_loop()):
            # A lock belongs to the loop that it was first waited for in, which may be closed.
            self._loop, self._starting = loop, asyncio.Lock()
        # [end]
        async with self._starting:
            if (held := self._held()) is not None:
                return held
            lease_id = new_id()
            await self._executor.fetch_one(
                _LEASES["start_lease"], id=lease_id, host=socket.gethostname(), pid=os.getpid(), term=self._term
            )
            if self._last is not None:
                # The agents of this process are there again.
                await self._executor.execute(_LEASES["move_presence"], old_id=self._last, new_id=lease_id)
            self._last = lease_id
            with self._book:
                # They were made under the last lease, which holds nothing any more.
                self._doubtful.clear()
            heartbeat = Heartbeat(
                self._url,
                lease_id,
                self._term,
                on_lost=lambda: self._tell_lost(lease_id),
                tend=partial(self._tend, lease_id),
            )
            try:
                heartbeat.start()
            except (OSError, RuntimeError) as error:
                raise Unavailable(
                    f"This process can have no further thread or descriptor to keep a lease with ({error}); try again "
                    "when it has fewer open, or raise its limits."
                ) from error
            # A lease that nothing keeps is none that is held.
            self._heartbeat = heartbeat
            return lease_id

    def _held(self) -> UUID | None:
        held = self._heartbeat
        return held.lease_id if held is not None and not held.lost and self._pid == os.getpid() else None

    async def under(self, call: UnderLease[_T], *, bound: bool) -> _T:
        """What ``call`` does under the lease that is held now; if that has lapsed, what it does under a new one.

        Args:
            call: is given the lease's id, and does nothing when that has lapsed.
            bound: the call is part of a caller's transaction, which is broken then.

        Raises:
            LeaseLost: the lease has lapsed in a caller's transaction; or it is not the lease that was lost.
        """
        lease_id = await self.current()
        try:
            return await call(lease_id)
        except LeaseLost as lost:
            # The process slept past its lease.
            if bound or lost.details.get("noun", "lease") != "lease":
                raise
        await self.forget(lease_id)
        return await call(await self.current())

    async def forget(self, lease_id: UUID) -> None:
        """The server said that this lease has lapsed: the next ``current`` starts a new one."""
        held = self._heartbeat
        if held is not None and held.lease_id == lease_id:
            self._heartbeat = None
            # First, for the caller may give up while the thread ends.
            self._tell_lost(lease_id)
            # [async-only]
            await asyncio.to_thread(held.stop)
            # [end]
            # [sync-only] held.stop()

    def count_now(self, then: Callable[[], None]) -> None:
        """What the lease holds is counted at once; ``then`` is called when what nobody knows of was handed back.

        In the heartbeat's thread, and also if the lease is lost before.
        """
        held = self._heartbeat
        if held is None or self._pid != os.getpid():
            then()
        else:
            held.beat_now(then)

    def _tell_lost(self, lease_id: UUID) -> None:
        for watcher, _ in tuple(self._watchers):
            watcher.on_lost(lease_id)

    async def end(self) -> None:
        """What the lease holds goes back at once.

        Raises:
            ServerUnreachable: it lapses after its term.
        """
        held, self._heartbeat = self._heartbeat, None
        if held is None or self._pid != os.getpid():
            return
        # [async-only]
        await asyncio.to_thread(held.stop)
        # [end]
        # [sync-only] held.stop()
        if held.lost:
            return
        # [async-only]
        # A connection may be dead and look alive: the first try gives it up, the second the question whether it lives.
        for tries_left in (2, 1, 0):
            try:
                async with answers.in_time(answers.ANSWER_SECONDS):
                    await self._executor.fetch_one(_LEASES["end_lease"], id=held.lease_id)
                return
            except ServerUnreachable:
                if not tries_left:
                    raise
        # [end]
        # [sync-only] # Not on the pool, whose connections may be dead without a word, and wait for ever.
        # [sync-only] ask_once(self._url, _LEASES["end_lease"], seconds=answers.ANSWER_SECONDS, id=held.lease_id)
