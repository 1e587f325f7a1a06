"""PostgreSQL's messages as they pass by: where they end, which statements they run, when the server is done."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["Answer", "FromClient", "FromServer", "Request"]

_SSL, _GSS, _CANCEL = 80877103, 80877104, 80877102


@dataclass(frozen=True)
class Request:
    """What a client sent up to the point where it waits for the server to be ready again.

    Attributes:
        statements: the texts that were run, not only prepared.
    """

    statements: tuple[str, ...]


@dataclass
class FromClient:
    """Follows what a client sends; its bytes are not changed.

    Attributes:
        single: answers of one byte, to requests for encryption, that the server still owes.
        cancels: this connection only carries a request to cancel.
    """

    single: int = 0
    cancels: bool = False
    _started: bool = False
    _buffer: bytearray = field(default_factory=bytearray)
    _prepared: dict[bytes, str] = field(default_factory=dict[bytes, str])
    _ran: list[str] = field(default_factory=list[str])

    def feed(self, data: bytes) -> list[Request]:
        """The requests that ``data`` ends, one for each time that the server will say it is ready."""
        self._buffer += data
        return list(self._requests())

    def _requests(self) -> Iterator[Request]:
        while not self.cancels:
            head = 0 if not self._started else 1
            if len(self._buffer) < head + 4:
                return
            (length,) = struct.unpack_from("!i", self._buffer, head)
            if len(self._buffer) < head + length:
                return
            kind, body = bytes(self._buffer[:head]), bytes(self._buffer[head + 4 : head + length])
            del self._buffer[: head + length]
            if not self._started:
                (code,) = struct.unpack_from("!i", body)
                if code in {_SSL, _GSS}:
                    self.single += 1
                elif code == _CANCEL:
                    self.cancels = True
                else:
                    self._started = True
                    yield Request(())
            elif kind == b"P":
                name, text = body.split(b"\0", 2)[:2]
                self._prepared[name] = text.decode()
            elif kind == b"B":
                self._ran.append(self._prepared.get(body.split(b"\0", 2)[1], ""))
            elif kind == b"Q":
                yield Request((body.rstrip(b"\0").decode(),))
            elif kind == b"S":
                ran, self._ran = tuple(self._ran), []
                yield Request(ran)


@dataclass
class Answer:
    """What the server sent for one request.

    Attributes:
        data: the bytes.
        rows: how many rows are in it.
        failed: whether it tells of an error.
        status: I between transactions, T in one, E in a failed one; None while it is not complete.
    """

    data: bytearray = field(default_factory=bytearray)
    rows: int = 0
    failed: bool = False
    status: str | None = None


@dataclass
class FromServer:
    """Follows what the server sends, and cuts it into answers."""

    client: FromClient
    answer: Answer = field(default_factory=Answer)
    _buffer: bytearray = field(default_factory=bytearray)

    @property
    def idle(self) -> bool:
        """Whether no answer has begun."""
        return not self._buffer and not self.answer.data

    def begun(self) -> bytes:
        """What has arrived of the answer that is under way; it counts as sent on."""
        data = bytes(self.answer.data + self._buffer)
        self.answer.data.clear()
        return data

    def feed(self, data: bytes) -> list[Answer]:
        """The answers that ``data`` completes; the one that is under way is ``answer``."""
        self._buffer += data
        done: list[Answer] = []
        while self._buffer:
            if self.client.single:
                self.client.single -= 1
                length = 1
            else:
                if len(self._buffer) < 5:
                    break
                length = 1 + struct.unpack_from("!i", self._buffer, 1)[0]
                if len(self._buffer) < length:
                    break
                kind = bytes(self._buffer[:1])
                self.answer.rows += int(kind == b"D")
                self.answer.failed |= kind == b"E"
                if kind == b"Z":
                    self.answer.status = chr(self._buffer[5])
            self.answer.data += self._buffer[:length]
            del self._buffer[:length]
            if self.answer.status is not None:
                done.append(self.answer)
                self.answer = Answer()
        return done
