"""The lease of this process: what it claims, locks and is present by."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterable
from datetime import timedelta
from uuid import UUID

from .ids import new_id
from .repository.scope import LeaseWatcher
from .store.executor import Executor
from .store.statements import statements
from .work.heartbeat import Heartbeat

__all__ = ["ProcessLease"]

_LEASES = statements("leases")


class ProcessLease:
    """The one lease of this process on this board: started at the first need, kept by a heartbeat of its own."""

    def __init__(self, url: str, executor: Executor, term: timedelta) -> None:
        """Nothing is held yet."""
        self._url = url
        self._executor = executor
        self._term = term
        self._heartbeat: Heartbeat | None = None
        self._last: UUID | None = None
        self._pid = 0
        self._starting = asyncio.Lock()
        self._watchers: list[LeaseWatcher] = []
        self._claiming: set[UUID] = set()
        self._claims: set[UUID] = set()

    def watch(self, watcher: LeaseWatcher) -> Callable[[], None]:
        """The watcher hears of the lease, from the heartbeat's thread, until what this returns is called."""
        self._watchers.append(watcher)

        def leave() -> None:
            self._watchers.remove(watcher)
            if not self._watchers:
                self._claims.clear()
                self._claiming.clear()

        return leave

    def begin_claim(self, claim_id: UUID) -> None:
        """A claim of that id is about to be made; while somebody watches, it is known as one of this process."""
        if self._watchers:
            self._claiming.add(claim_id)

    def end_claim(self, claim_id: UUID, *, held: bool) -> None:
        """The claim was answered and holds tasks; or it holds none, or nobody here knows which."""
        if claim_id in self._claiming:
            self._claiming.discard(claim_id)
            if held:
                self._claims.add(claim_id)

    def claims(self, *, answered: bool = False) -> frozenset[UUID]:
        """The claims of this process that may hold tasks, or only those that were answered already."""
        return frozenset(self._claims) if answered else frozenset(self._claims | self._claiming)

    def drop_claims(self, claim_ids: Iterable[UUID]) -> None:
        """These hold nothing any more."""
        self._claims.difference_update(claim_ids)

    async def current(self) -> UUID:
        """The lease that is held now; a new one where there is none, it has lapsed, or the process forked."""
        if (held := self._held()) is not None:
            return held
        async with self._starting:
            if (held := self._held()) is not None:
                return held
            lease_id = new_id()
            await self._executor.fetch_one(
                _LEASES["start_lease"], id=lease_id, host=socket.gethostname(), pid=os.getpid(), term=self._term
            )
            if self._last is not None and self._pid == os.getpid():
                # The agents of this process are there again. After a fork they are the parent's.
                await self._executor.execute(_LEASES["move_presence"], old_id=self._last, new_id=lease_id)
            self._last = lease_id
            self._pid = os.getpid()
            self._heartbeat = Heartbeat(
                self._url,
                lease_id,
                self._term,
                on_lost=lambda: self._tell_lost(lease_id),
                on_count=lambda held, since: self._tell_count(lease_id, held, since),
            )
            self._heartbeat.start()
            return lease_id

    def _held(self) -> UUID | None:
        held = self._heartbeat
        return held.lease_id if held is not None and not held.lost and self._pid == os.getpid() else None

    async def forget(self, lease_id: UUID) -> None:
        """The server said that this lease has lapsed: the next ``current`` starts a new one."""
        held = self._heartbeat
        if held is not None and held.lease_id == lease_id:
            self._heartbeat = None
            # [async-only]
            await asyncio.to_thread(held.stop)
            # [end]
            # [sync-only] held.stop()
            self._tell_lost(lease_id)

    def _tell_lost(self, lease_id: UUID) -> None:
        for watcher in tuple(self._watchers):
            watcher.on_lost(lease_id)

    def _tell_count(self, lease_id: UUID, held: int, since: UUID | None) -> None:
        for watcher in tuple(self._watchers):
            watcher.on_count(lease_id, held, since)

    async def end(self) -> None:
        """What the lease holds goes back at once."""
        held, self._heartbeat = self._heartbeat, None
        if held is None or self._pid != os.getpid():
            return
        # [async-only]
        await asyncio.to_thread(held.stop)
        # [end]
        # [sync-only] held.stop()
        if not held.lost:
            await self._executor.fetch_one(_LEASES["end_lease"], id=held.lease_id)
