"""A bounded pool of connections that is itself an executor.

Own, and not the drivers': asyncpg's pool costs three times the round trip of a short statement, psycopg's keeps
worker threads, and both hand out connections that died while they lay idle.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from ..errors import ConfigurationError, ServerUnreachable, TransientError
from .driver_errors import closed, timed_out
from .executor import ConnectionExecutor, Executor, Isolation, Row
from .statements import Statement
from .turns import Turns
from .urls import normalise_url

__all__ = ["PoolExecutor"]

IDLE_SECONDS = 10.0
"""How long a connection stays open that nobody uses."""

_STALE = "0A000"
"""A prepared plan that the schema has left behind."""

# Of one statement on its own: it was rolled back whole, as the victim of a deadlock is, and may succeed now.
_ROLLED_BACK = frozenset({_STALE, "40001", "40P01"})

_REAPER = "blackboard-idle-connections"

RETRY_SECONDS = 0.1
"""How long a call whose connection was cut waits before its second and last try."""


class PoolExecutor:
    """At most ``pool_size`` connections, the first opened at the first call; idle ones close after some seconds.

    A call outside a transaction is repeated once, on a fresh connection, when its connection turns out to be dead or
    when it was the victim of a deadlock: every write of the board is idempotent by its client-made id. An asynchronous
    pool belongs to the event loop that uses it, and to the next one when that is closed.

    Args:
        url: where the server is, as ``normalise_url`` accepts it.
        pool_size: most connections held at a time; calls queue for them in order of arrival.
        application_name: shown in ``pg_stat_activity``, unless the URL names another.
        connect_timeout: seconds until a server that does not answer counts as unreachable.
        pooled: whether a transaction-pooling proxy (PgBouncer) is in between; None finds out.
        revive: called, in a thread, before the second try of a call whose server was gone; starts the embedded one.

    Raises:
        ConfigurationError: ``url`` is no URL of a PostgreSQL.
    """

    bound = False
    """The connections are ours."""

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 4,
        application_name: str = "blackboard",
        connect_timeout: float = 10,
        pooled: bool | None = None,
        revive: Callable[[], object] | None = None,
    ) -> None:
        self._url = normalise_url(url)
        self._revive = revive
        self._pool_size = pool_size
        self._application_name = application_name
        self._connect_timeout = connect_timeout
        self._pooled: bool | None = pooled
        self._closed = False
        # After a fork: the parent's connections. To close them would be to say good-bye in its name.
        self._inherited: list[object] = []
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._pid = os.getpid()
        # [async-only]
        self._slots = Turns(self._pool_size)
        # [end]
        # [sync-only] self._slots = threading.Semaphore(self._pool_size)
        # The most recently used is the last: what is not needed moves to the front and is closed there.
        self._idle: list[tuple[ConnectionExecutor, float]] = []
        # Never held across an await, so a thread's lock serves both worlds. Reentrant: the collector may end an
        # abandoned call in the thread that holds it.
        self._guard = threading.RLock()
        # [async-only]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reaper: asyncio.Task[None] | None = None
        # [end]
        # [sync-only] self._reaper: threading.Thread | None = None

    def _follow_process(self) -> None:
        """A forked child opens connections of its own: on its parent's both would read each other's answers."""
        if self._pid != os.getpid():
            self._inherited.append(self._idle)
            self._start_afresh()

    async def _open(self) -> ConnectionExecutor:
        """A new connection to a server that is known to serve; finds out about poolers at the first one."""
        raise NotImplementedError

    async def fetch_all(self, statement: Statement, **params: Any) -> list[Row]:
        """Runs ``statement``; all its rows in its order."""
        return await self._rows(statement, params)

    async def fetch_one(self, statement: Statement, **params: Any) -> Row | None:
        """Runs ``statement``; its first row, or None."""
        rows = await self._rows(statement, params)
        return rows[0] if rows else None

    async def execute(self, statement: Statement, **params: Any) -> None:
        """Runs ``statement`` for its effect."""
        await self._rows(statement, params)

    async def _rows(self, statement: Statement, params: Mapping[str, Any]) -> list[Row]:
        statement.check(params)
        tried = False
        while True:
            try:
                # [async-only]
                connection = self._at_hand() or await self._acquire()
                # [end]
                # [sync-only] connection = self._acquire()
                try:
                    rows = await connection.rows(statement, params)
                except BaseException:
                    await self._release(connection)
                    raise
                # [async-only]
                if not self._closed:
                    # A statement on its own that was answered leaves the connection as it was.
                    self._lay_back(connection)
                    return rows
                # [end]
                await self._release(connection)
                return rows
            except (ServerUnreachable, TransientError) as error:
                if tried or not await self._worth_repeating(error):
                    raise
            tried = True

    @asynccontextmanager
    async def transaction(self, isolation: Isolation | None = None) -> AsyncGenerator[Executor]:
        """A block on one connection that commits whole or not at all; it is not repeated.

        Statements must run on the executor that the block receives: those on this one use another connection, and
        a pool whose connections all wait for such calls stands still.
        """
        try:
            connection = await self._begun(isolation)
        except ServerUnreachable as error:
            if not await self._worth_repeating(error):
                raise
            connection = await self._begun(isolation)
        try:
            try:
                yield connection
            except BaseException:
                await connection.rollback()
                raise
            await connection.commit()
        finally:
            await self._release(connection)

    async def _begun(self, isolation: Isolation | None) -> ConnectionExecutor:
        connection = await self._acquire()
        try:
            await connection.begin(isolation)
        except BaseException:
            # Cut off in its BEGIN it may or may not be in a transaction.
            connection.discard()
            await self._release(connection)
            raise
        return connection

    async def _worth_repeating(self, error: ServerUnreachable | TransientError) -> bool:
        """Whether a second try makes sense; prepares it."""
        if self._closed or (isinstance(error, TransientError) and error.details.get("sqlstate") not in _ROLLED_BACK):
            return False
        if timed_out(error):
            return False  # the caller has waited as long as he said
        await asyncio.sleep(RETRY_SECONDS)
        if self._revive is not None and isinstance(error, ServerUnreachable):
            # [async-only]
            await asyncio.to_thread(self._revive)
            # [end]
            # [sync-only] self._revive()
        if not isinstance(error, TransientError) or error.details.get("sqlstate") == _STALE:
            # What cut this connection cut the idle ones too, and they have the same plans prepared.
            await self._close_idle(time.monotonic())
        return True

    async def close(self) -> None:
        """Afterwards idle connections are closed, busy ones close at the end of their call, new calls are refused."""
        self._closed = True
        self._follow_process()
        # [async-only]
        if self._loop is not asyncio.get_running_loop():
            return
        if self._reaper is not None:
            self._reaper.cancel()
        # [end]
        await self._close_idle(time.monotonic())

    # [async-only]
    def _at_hand(self) -> ConnectionExecutor | None:
        """The connection that was used last, if nothing has to be waited for; what ``_acquire`` finds, much faster."""
        if not self._idle or self._closed or self._loop is not asyncio.get_running_loop():
            return None
        if self._pid != os.getpid() or not self._slots.take():
            return None
        connection = self._idle.pop()[0]
        if connection.at_ease:
            return connection
        # Left where it was for ``_acquire`` to ask it.
        self._idle.append((connection, time.monotonic()))
        self._slots.release()
        return None

    def _lay_back(self, connection: ConnectionExecutor) -> None:
        """What ``_release`` does with a connection that is known to be good."""
        self._idle.append((connection, time.monotonic()))
        self._start_reaper()
        self._slots.release()

    # [end]
    async def _acquire(self) -> ConnectionExecutor:
        self._follow_process()
        # [async-only]
        self._follow_loop()
        # [end]
        await self._slots.acquire()
        try:
            if self._closed:
                raise closed()
            while True:
                with self._guard:
                    connection = self._idle.pop()[0] if self._idle else None
                if connection is None:
                    return await self._open()
                ready = False
                try:
                    ready = await connection.ready()
                finally:
                    if not ready:
                        connection.discard()
                if ready:
                    return connection
        except BaseException:
            self._slots.release()
            raise

    async def _release(self, connection: ConnectionExecutor) -> None:
        try:
            if self._closed:
                await connection.disconnect()
            elif not connection.usable:
                # A call that was cut off twice may leave a transaction or a running query behind.
                connection.discard()
            else:
                with self._guard:
                    self._idle.append((connection, time.monotonic()))
                    self._start_reaper()
        finally:
            self._slots.release()

    async def _close_idle(self, before: float) -> None:
        """Closes what is idle since ``before``."""
        with self._guard:
            old = [connection for connection, since in self._idle if since <= before]
            self._idle = [(connection, since) for connection, since in self._idle if since > before]
        try:
            while old:
                await old[-1].disconnect()
                old.pop()
        finally:
            # Whoever was to wait for all this has given up: nobody else knows them any more.
            for connection in old:
                connection.discard()

    def _start_reaper(self) -> None:
        """Called with the guard held."""
        # [async-only]
        if self._reaper is None or self._reaper.done():
            self._reaper = asyncio.create_task(self._reap(), name=_REAPER)
        # [end]
        # [sync-only] if self._reaper is None:
        # [sync-only]     self._reaper = threading.Thread(target=self._reap, name=_REAPER, daemon=True)
        # [sync-only]     self._reaper.start()

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(IDLE_SECONDS / 4)
            await self._close_idle(time.monotonic() - IDLE_SECONDS)
            with self._guard:
                if not self._idle:
                    self._reaper = None
                    return

    # [async-only]
    def _follow_loop(self) -> None:
        """Lets a handle that outlived its event loop work in the next one."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise ConfigurationError("This handle is in use in another event loop; open one in each.")
        self._loop = loop
        # Connections of the old loop can be neither used nor closed in this one.
        self._idle, self._reaper, self._slots = [], None, Turns(self._pool_size)

    # [end]
