"""Locks: asked for, waited for in order, renewed, released, and checked by their fencing token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from uuid import UUID

from ..errors import BlackboardError, LeaseLost, LockNotAcquired, NotFound, WaitNotAllowed
from ..ids import as_uuid, new_id
from ..jsonable import check_text
from ..models.locks import LockGrant, LockRecord
from ..store.statements import statements
from .scope import Repository, in_doubt, soon

__all__ = ["Locks"]

_SQL = statements("locks")


class Locks(Repository):
    """One holder at a time for a named thing, first come first served.

    A lock ends when it is released, when its ttl is over, or when the lease of its holder's process lapses. It is not
    re-entrant: a second request of its holder queues like anybody's.
    """

    async def try_acquire(
        self,
        name: str,
        *,
        ttl: timedelta | None = None,
        request_id: UUID | str | None = None,
        wait: timedelta | None = None,
    ) -> LockGrant | None:
        """The lock is this agent's, or None is returned and, with ``wait``, the request is in the queue.

        Calling again with the same ``request_id`` keeps its place and tells what became of it; while the grant lasts
        it returns the same token.

        Args:
            name: 1 to 300 characters, such as ``file:/src/main.py``.
            ttl: how long the grant lasts unless renewed; None until released or the lease lapses.
            request_id: the request; a new one when not given.
            wait: how long the request stays in the queue; None or zero leaves nothing behind.

        Raises:
            IdempotencyConflict: the request is for another lock or of another agent.
            InvalidInput: a value is refused; names the field.
            LeaseLost: this process's lease lapsed, on a handle that is bound to a caller's connection.
            NotPermitted: this agent is no member any more.
            SessionClosed: the session is over.
        """
        request = new_id() if request_id is None else as_uuid(request_id, "request_id")
        checked, agent_id = check_text(name, "name", 300, 1), self._agent_id
        try:
            row = await self._under_lease(
                lambda lease_id: self._executor.fetch_one(
                    _SQL["acquire_lock"],
                    session_id=self._scope.session_id,
                    name=checked,
                    agent_id=agent_id,
                    lease_id=lease_id,
                    request_id=request,
                    ttl=ttl,
                    wait=wait,
                )
            )
        except BaseException as error:
            if request_id is None and in_doubt(error):
                # Nobody else could ever release it.
                self._owe_cancel(request)
            raise
        assert row is not None
        lock = LockRecord.from_row(row)
        return _grant(lock) if lock.request_id == request else None

    async def acquire(
        self, name: str, *, timeout: timedelta | None = timedelta(seconds=30), ttl: timedelta | None = None
    ) -> LockGrant:
        """The lock is this agent's, after all who asked before.

        Args:
            name: 1 to 300 characters, such as ``file:/src/main.py``.
            timeout: how long to queue; None waits without end.
            ttl: how long the grant lasts unless renewed; None until released or the lease lapses.

        Raises:
            LockNotAcquired: the time was up; names the holder. The request has left the queue.
            WaitNotAllowed: this handle is bound to a caller's connection; use ``try_acquire``.
            InvalidInput, LeaseLost, NotPermitted, SessionClosed: as ``try_acquire`` does.
        """
        request = new_id()
        ends = None if timeout is None else time.monotonic() + timeout.total_seconds()

        async def ask() -> LockGrant | None:
            # Every ask keeps the place in the queue; one without time left takes it out.
            left = timedelta(minutes=1) if ends is None else timedelta(seconds=max(0.0, ends - time.monotonic()))
            return await self.try_acquire(name, ttl=ttl, request_id=request, wait=left)

        try:
            grant = await self._until("acquire", ("locks",), ask, timeout, again_in=soon)
        except WaitNotAllowed:
            raise
        except BaseException:
            cancelled = self._owe_cancel(request)
            # Why nobody waits any more matters more than that the queue could not be told: it is told later.
            with suppress(BlackboardError):
                # [async-only]
                ended = await asyncio.shield(self.cancel_wait(request))
                # [end]
                # [sync-only] ended = self.cancel_wait(request)
                if ended:
                    cancelled()
            raise
        if grant is None:
            holder = (await self.get(name)).holder
            raise LockNotAcquired(
                f"{holder or 'Somebody'} held the lock {name!r} until the time was up; try again later.",
                name=name,
                holder=holder,
            )
        return grant

    @asynccontextmanager
    async def hold(
        self, name: str, *, timeout: timedelta | None = timedelta(seconds=30), ttl: timedelta | None = None
    ) -> AsyncGenerator[LockGrant]:
        """The lock is this agent's inside the block: ``async with agent.locks.hold("file:/x") as grant: …``.

        Arguments and errors are those of ``acquire``.

        Raises:
            LeaseLost: on leaving, the lock had run out before: what it protected may have been touched by others.
        """
        grant = await self.acquire(name, timeout=timeout, ttl=ttl)
        try:
            yield grant
        except BaseException:
            with suppress(LeaseLost):
                await self.release(name, grant.token)
            raise
        await self.release(name, grant.token)

    async def renew(self, name: str, token: int, *, ttl: timedelta | None = None) -> LockGrant:
        """The grant lasts ``ttl`` from now, or with None until released or the lease lapses.

        Raises:
            InvalidInput: a value is refused; names the field.
            LeaseLost: the lock is not this agent's under that token any more.
        """
        row = await self._executor.fetch_one(
            _SQL["renew_lock"],
            session_id=self._scope.session_id,
            name=check_text(name, "name", 300, 1),
            agent_id=self._agent_id,
            token=token,
            ttl=ttl,
        )
        assert row is not None
        return _grant(LockRecord.from_row(row))

    async def release(self, name: str, token: int) -> None:
        """The lock is with its first waiter, or free; releasing it again under the same token changes nothing.

        Raises:
            LeaseLost: the lock ran out before: what it protected may have been touched by others.
        """
        await self._executor.fetch_one(
            _SQL["release_lock"],
            session_id=self._scope.session_id,
            name=check_text(name, "name", 300, 1),
            agent_id=self._agent_id,
            token=token,
        )

    def _owe_cancel(self, request: UUID) -> Callable[[], None]:
        return self._scope.leases.owe(
            _SQL["cancel_lock_wait"], session_id=self._scope.session_id, agent_id=self._agent_id, request_id=request
        )

    async def cancel_wait(self, request_id: UUID | str) -> bool:
        """The request waits no longer, and does not hold the lock either if it was granted meanwhile.

        Returns:
            Whether there was something to end.
        """
        row = await self._executor.fetch_one(
            _SQL["cancel_lock_wait"],
            session_id=self._scope.session_id,
            agent_id=self._agent_id,
            request_id=as_uuid(request_id, "request_id"),
        )
        assert row is not None
        return bool(row["ended"])

    async def require(self, name: str, token: int) -> None:
        """Until the transaction ends nobody but the token's holder can have the lock.

        Call it on a handle that is bound to your transaction, before the writes that the lock protects.

        Raises:
            LeaseLost: the lock is not held under that token any more; the transaction must not write.
        """
        await self._executor.execute(
            _SQL["require_lock"],
            session_id=self._scope.session_id,
            name=check_text(name, "name", 300, 1),
            token=token,
        )

    async def get(self, name: str) -> LockRecord:
        """One lock.

        Raises:
            NotFound: nobody has ever asked for it.
        """
        row = await self._executor.fetch_one(
            _SQL["get_lock"], session_id=self._scope.session_id, name=check_text(name, "name", 300, 1)
        )
        if row is None:
            raise NotFound(f"There is no lock {name!r} in this session.", noun="lock", id=name)
        return LockRecord.from_row(row)

    async def list(self, *, holder: str | None = None, limit: int = 100) -> list[LockRecord]:
        """The locks that are held or waited for, by name; with ``holder`` those that this agent holds."""
        rows = await self._executor.fetch_all(
            _SQL["list_locks"], session_id=self._scope.session_id, holder=holder, limit=limit
        )
        return [LockRecord.from_row(row) for row in rows]


def _grant(lock: LockRecord) -> LockGrant:
    return LockGrant.model_validate(
        {field: getattr(lock, field) for field in LockGrant.model_fields},
    )
