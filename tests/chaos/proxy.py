"""A TCP proxy before PostgreSQL, or before PgBouncer, with a door for each client, that fails as networks do."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict

from .wire import Answer, FromClient, FromServer

__all__ = ["Ambush", "Door", "Proxy", "upstream_of"]

_T = TypeVar("_T")


class Ambush:
    """Waits for a request; the server does it whole, its answer is dropped and its connection cut.

    An answer that tells of an error, or has no row where ``rows`` wants one, passes and changes nothing. Inside a
    transaction the request's answer passes, and that of the next request is waited for: it ends at the COMMIT.

    Attributes:
        sprung: set when it has happened.
    """

    def __init__(self, matches: Callable[[str], bool], *, rows: bool = False) -> None:
        self.matches = matches
        self.rows = rows
        self.sprung = threading.Event()


class _Half(asyncio.Protocol):
    """One side of a connection."""

    def __init__(
        self,
        take: Callable[[bytes], None],
        lost: Callable[[], None],
        made: Callable[[asyncio.Transport], None] | None = None,
    ) -> None:
        self._take = take
        self._lost = lost
        self._made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._made is not None:
            self._made(cast("asyncio.Transport", transport))

    def data_received(self, data: bytes) -> None:
        self._take(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost()


@dataclass
class _Doomed:
    """The answer of that number is not to arrive, if it says that something was done."""

    index: int
    ambush: Ambush
    in_transaction: bool = False
    commits: bool = False


class _Pair:
    """A client's connection and the one it leads to."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.client: asyncio.Transport | None = None
        self.server: asyncio.Transport | None = None
        self.deaf = False
        self._connecting = False
        self._from_client = FromClient()
        self._from_server = FromServer(self._from_client)
        self._waiting = bytearray()  # for the connection to the server
        self._asked = self._answered = 0
        self._doomed: _Doomed | None = None

    async def connect(self) -> None:
        """It leads to the server, unless that does not answer."""
        if self._connecting or self.server is not None:
            return
        self._connecting = True
        try:
            transport = await self._dial(lambda: _Half(self.from_upstream, self.upstream_lost))
        except OSError:
            self.cut()
            return
        if self.client is None or self.client.is_closing():
            transport.abort()
            return
        self.server = transport
        if self.door.holding:
            transport.pause_reading()
        if self._waiting:
            transport.write(bytes(self._waiting))
            self._waiting.clear()

    async def _dial(self, half: Callable[[], _Half]) -> asyncio.Transport:
        loop, upstream = asyncio.get_running_loop(), self.door.upstream
        if isinstance(upstream, tuple):
            return (await loop.create_connection(half, *upstream))[0]
        return (await loop.create_unix_connection(half, upstream))[0]

    def from_downstream(self, data: bytes) -> None:
        """The client sent this."""
        data, ends = self.door.ration(data)
        for request in self._from_client.feed(data):
            index, self._asked = self._asked, self._asked + 1
            # Between two answers only: what was sent of one cannot be taken back.
            if self._doomed is None and index == self._answered and self._from_server.idle:
                ambush = self.door.springs(request.statements)
                self._doomed = None if ambush is None else _Doomed(index, ambush)
            elif self._doomed is not None and index == self._doomed.index:
                self._doomed.commits = any(text.strip(" ;") == "COMMIT" for text in request.statements)
        if self.server is None:
            self._waiting += data
        else:
            self.server.write(data)
        if ends:
            self.cut()

    def from_upstream(self, data: bytes) -> None:
        """The server sent this."""
        answers = self._from_server.feed(data)
        if self._doomed is None:
            self._answered += len(answers)
            self._from_server.begun()
            self._send(data)
            return
        for answer in answers:
            index, self._answered = self._answered, self._answered + 1
            if not self._judge(index, answer):
                return
        if not self._expecting:
            self._send(self._from_server.begun())

    @property
    def _expecting(self) -> bool:
        return self._doomed is not None

    def _judge(self, index: int, answer: Answer) -> bool:
        """Whether the answer passed."""
        doomed = self._doomed
        if doomed is not None and index == doomed.index:
            ambush = doomed.ambush
            done = not answer.failed and (doomed.in_transaction or answer.rows > 0 or not ambush.rows)
            if done and answer.status == "I" and (doomed.commits or not doomed.in_transaction):
                ambush.sprung.set()
                self.cut()
                return False
            if done and answer.status == "T":
                # It counts with the commit, and that has an answer of its own.
                self._doomed = _Doomed(self._answered, ambush, in_transaction=True)
            else:
                self._doomed = None
                self.door.lay(ambush)
        self._send(bytes(answer.data))
        return True

    def _send(self, data: bytes) -> None:
        if self.client is not None:
            self.client.write(data)

    def downstream_lost(self) -> None:
        """The client is gone."""
        self.door.pairs.discard(self)
        if self.server is not None:
            self.server.abort()

    def upstream_lost(self) -> None:
        """The server is gone."""
        if self.client is not None and not self.deaf:
            self.client.close()

    def cut(self) -> None:
        """Both ends are closed, and what was under way is lost."""
        for transport in (self.client, self.server):
            if transport is not None:
                transport.abort()

    def hold(self, held: bool) -> None:
        """Nothing passes while it is held."""
        for transport in (self.client, self.server):
            if transport is not None and not transport.is_closing():
                transport.pause_reading() if held else transport.resume_reading()

    def deafen(self) -> None:
        """Nothing passes any more, and only the server learns of it."""
        self.deaf = True
        if self.client is not None and not self.client.is_closing():
            self.client.pause_reading()
        if self.server is not None:
            self.server.abort()


class Door:
    """One port of the proxy; its methods may be called from any thread and return when they are done.

    Attributes:
        name: for people.
        upstream: where it leads: the path of a socket, or host and port.
        port: on 127.0.0.1.
    """

    def __init__(self, proxy: Proxy, name: str, upstream: str | tuple[str, int]) -> None:
        self.name = name
        self.upstream = upstream
        self.port = 0
        self.pairs: set[_Pair] = set()
        self._proxy = proxy
        self._server: asyncio.Server | None = None
        self.holding = False
        self._refusing = False
        self._ambushes: list[Ambush] = []
        self._ration: int | None = None
        self._connecting: set[asyncio.Task[None]] = set()

    def url(self, direct: str) -> str:
        """``direct``, the URL of a database, by way of this door."""
        user, password, database = (quote(part or "", safe="") for part in _login(direct))
        return f"postgresql://{user}{password and ':' + password}@127.0.0.1:{self.port}/{database}"

    # ------------------------------------------------------------------------------------------------ what can fail

    def cut(self) -> None:
        """The connections that were open are cut."""
        self._proxy.call(self._cut)

    def cut_after(self, count: int) -> None:
        """After so many bytes more towards the server their connection is cut."""
        self._ration = count

    def hole(self) -> None:
        """Nothing passes; new connections are taken, and lead nowhere yet."""
        self._proxy.call(self._hold, True)

    def heal(self, *, cut: bool = False) -> None:
        """Everything passes again, also what was sent meanwhile, unless the connections are ``cut``."""
        self._refusing = False
        self._ration = None
        if cut:
            self._proxy.call(self._cut)
        self._proxy.call(self._hold, False)

    def refuse(self) -> None:
        """New connections are reset; ``heal`` ends it."""
        self._refusing = True

    def deafen(self) -> None:
        """The connections that were open are dead for good, and the client is not told; new ones work."""
        self._proxy.call(self._deafen)

    def lay(self, ambush: Ambush) -> Ambush:
        """The next request that matches is answered by a cut, after the server has done it."""
        self._ambushes.append(ambush)
        return ambush

    def lift(self, ambush: Ambush) -> None:
        """It waits no longer."""
        if ambush in self._ambushes:
            self._ambushes.remove(ambush)

    # --------------------------------------------------------------------------------------------- in the loop's thread

    def springs(self, statements: tuple[str, ...]) -> Ambush | None:
        """The ambush that these statements walk into; it is taken."""
        for ambush in tuple(self._ambushes):
            if any(ambush.matches(text) for text in statements):
                self.lift(ambush)
                return ambush
        return None

    def ration(self, data: bytes) -> tuple[bytes, bool]:
        """What of ``data`` may pass, and whether its connection ends there."""
        if self._ration is None:
            return data, False
        if len(data) < self._ration:
            self._ration -= len(data)
            return data, False
        passes, self._ration = data[: self._ration], None
        return passes, True

    async def open(self) -> None:
        """It has a port from here on."""
        self._server = await asyncio.get_running_loop().create_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def shut(self) -> None:
        """It has no connections any more, and takes no more."""
        if self._server is not None:
            self._server.close()
        for pair in tuple(self.pairs):
            pair.cut()

    def _accept(self) -> _Half:
        pair = _Pair(self)
        return _Half(pair.from_downstream, pair.downstream_lost, lambda client: self._accepted(pair, client))

    def _accepted(self, pair: _Pair, client: asyncio.Transport) -> None:
        pair.client = client
        if self._refusing:
            # As a port that nobody listens on: reset, not closed.
            client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.abort()
            return
        self.pairs.add(pair)
        if self.holding:
            client.pause_reading()
        else:
            self._connect(pair)

    def _connect(self, pair: _Pair) -> None:
        task = asyncio.get_running_loop().create_task(pair.connect())
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def _cut(self) -> None:
        for pair in tuple(self.pairs):
            if not pair.deaf:
                pair.cut()

    def _deafen(self) -> None:
        for pair in self.pairs:
            pair.deafen()

    def _hold(self, held: bool) -> None:
        if held == self.holding:
            return
        self.holding = held
        for pair in tuple(self.pairs):
            if not pair.deaf:
                pair.hold(held)
                if not held:
                    self._connect(pair)


def upstream_of(url: str) -> str | tuple[str, int]:
    """Where the server of a database's URL is."""
    options = conninfo_to_dict(url)
    host, port = str(options.get("host") or "localhost"), int(options.get("port") or 5432)
    return f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)


def _login(url: str) -> tuple[str | None, str | None, str | None]:
    options = {name: None if value is None else str(value) for name, value in conninfo_to_dict(url).items()}
    return options.get("user"), options.get("password"), options.get("dbname")


class Proxy:
    """Runs in a thread of its own between ``with`` and its end."""

    def __init__(self) -> None:
        self.doors: list[Door] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos-proxy", daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for door in self.doors:
            self.call(door.shut)
        # What was aborted is told so in the loop's next turns.
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def door(self, name: str, upstream: str | tuple[str, int]) -> Door:
        """A new door, open; see ``upstream_of``."""
        door = Door(self, name, upstream)
        asyncio.run_coroutine_threadsafe(door.open(), self._loop).result(10)
        self.doors.append(door)
        return door

    def call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """What ``function`` returns in the loop's thread."""

        async def run() -> _T:
            return function(*arguments)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)
