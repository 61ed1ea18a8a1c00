"""The answer's way to the client: straight from one transport to the other.

Three sinks for three moments: `Collector` keeps a small answer until it is whole (so that a truncated one can still be
tried elsewhere), `StreamHead` holds a stream until its first event is content (I2), `Relay` passes bytes on as they
come, with backpressure. Each is a future the exchange awaits once; nothing waits per chunk. The tap reads as they go.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from yugong.base.errors import Fault, Penalty, Reach, Scope, WireFault
from yugong.core.dialects.dialect import Dialect, FirstEvent, Tap
from yugong.core.framing import LAST_CHUNK, Kind
from yugong.core.sse import Splitter

if TYPE_CHECKING:
    from yugong.upstream.connection import Connection
    from yugong.upstream.head import Head

COLLECT_MAX = 1 << 20  # bytes of an answer kept until it is whole; a larger one is relayed from there
PREAMBLE_MAX = 64 * 1024  # bytes of a stream held before it counts as content

_REASONS: dict[int, bytes] = {}


def status_line(status: int) -> bytes:
    """The first line of an answer, with the standard's phrase."""
    line = _REASONS.get(status)
    if line is None:
        from http import HTTPStatus

        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = "Unknown"
        line = _REASONS[status] = f"HTTP/1.1 {status} {phrase}\r\n".encode()
    return line


class Collector:
    """Keeps a body until it is whole, too large, or lost."""

    __slots__ = ("_future", "pieces", "size")

    def __init__(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        self._future: asyncio.Future[bool] = loop.create_future()
        self.pieces: list[bytes] = []
        self.size = 0
        connection.attach(self)

    def on_body(self, data: bytes, framed: bytes | None) -> None:
        self.pieces.append(data)
        self.size += len(data)
        if self.size > COLLECT_MAX and not self._future.done():
            self._future.set_result(False)

    def on_end(self) -> None:
        if not self._future.done():
            self._future.set_result(True)

    def on_fault(self, fault: WireFault) -> None:
        if not self._future.done():
            self._future.set_exception(fault)

    async def wait(self) -> bool:
        """True when the body is whole, False when it is larger than is kept. Raises `WireFault`."""
        return await self._future


class StreamHead:
    """Holds the beginning of an event stream until it is known what it is."""

    __slots__ = ("_dialect", "_future", "_splitter", "events", "is_ended", "pieces")

    def __init__(self, connection: Connection, dialect: Dialect, loop: asyncio.AbstractEventLoop) -> None:
        self._dialect = dialect
        self._future: asyncio.Future[Fault | None] = loop.create_future()
        self._splitter = Splitter(PREAMBLE_MAX)
        self.pieces: list[bytes] = []
        self.events = 0
        self.is_ended = False
        connection.attach(self)

    def on_body(self, data: bytes, framed: bytes | None) -> None:
        self.pieces.append(data)
        if self._future.done():
            return
        for event in self._splitter.feed(data):
            self.events += 1
            verdict = self._dialect.first_event(event)
            if verdict == FirstEvent.WAIT:
                continue
            self._future.set_result(verdict if isinstance(verdict, Fault) else None)
            return

    def on_end(self) -> None:
        self.is_ended = True
        if not self._future.done():
            # Nothing but a preamble: a stream that ended before it began.
            fault = Fault("truncated", Scope.ORIGIN, status=200, penalty=Penalty.COUNT, reach=Reach.PARTIAL)
            self._future.set_result(fault)

    def on_fault(self, fault: WireFault) -> None:
        if not self._future.done():
            self._future.set_exception(fault)

    async def wait(self, seconds: float) -> Fault | None:
        """None: content (or a preamble held long enough). Raises `WireFault`."""
        if self._future.done():
            return self._future.result()
        done, _ = await asyncio.wait((self._future,), timeout=seconds)
        return self._future.result() if done else None


class Relay:
    """Bytes from upstream to the client as they come."""

    __slots__ = (
        "_connection",
        "_feed",
        "_future",
        "_is_chunked",
        "_left",
        "_tap",
        "_transport",
        "bytes_out",
    )

    def __init__(self, transport: asyncio.Transport, tap: Tap, connection: Connection) -> None:
        self._transport = transport
        self._tap = tap
        self._feed = tap.feed
        self._connection = connection
        self._is_chunked = False
        self._future: asyncio.Future[WireFault | None] | None = None
        self.bytes_out = 0

    def __repr__(self) -> str:
        return f"<Relay {self.bytes_out}B chunked={self._is_chunked}>"

    async def run(self, head: bytes, is_chunked: bool, early: list[bytes]) -> WireFault | None:
        """Writes the answer's head and its body as it comes; the fault that broke it, if one did."""
        loop = asyncio.get_running_loop()
        self._future = loop.create_future()
        self._is_chunked = is_chunked
        self._transport.write(head)
        for data in early:
            self.on_body(data, None)
        self._connection.attach(self)
        return await self._future

    def on_body(self, data: bytes, framed: bytes | None) -> None:
        out = self._feed(data)
        if not out:
            return
        self.bytes_out += len(out)
        if not self._is_chunked:
            self._transport.write(out)
        elif framed is not None and out is data:
            self._transport.write(framed)
        else:
            self._transport.write(b"%x\r\n%b\r\n" % (len(out), out))

    def on_end(self) -> None:
        future = self._future
        if future is None or future.done():
            return
        rest = self._tap.finish()
        if rest:
            self.on_rest(rest)
        future.set_result(None)

    def on_rest(self, rest: bytes) -> None:
        """Bytes that do not pass the tap (again)."""
        self.bytes_out += len(rest)
        self._transport.write(b"%x\r\n%b\r\n" % (len(rest), rest) if self._is_chunked else rest)

    def can_append(self) -> bool:
        """Whether an event of ours may follow: not inside an event, nor in a body whose length has been said."""
        return self._is_chunked and self._tap.is_between_events()

    def end(self) -> None:
        """The last chunk."""
        if self._is_chunked:
            self._transport.write(LAST_CHUNK)

    def on_fault(self, fault: WireFault) -> None:
        future = self._future
        if future is not None and not future.done():
            future.set_result(fault)

    def pause(self) -> None:
        """The client does not keep up."""
        self._connection.pause_reading()

    def resume(self) -> None:
        """It does again."""
        self._connection.resume_reading()


def framing_line(head: Head, tap: Tap, version: tuple[int, int]) -> tuple[bytes, bool, bool]:
    """How the body is framed towards the client: the header line, whether chunked, whether closing ends it."""
    if head.kind is Kind.NONE:
        length = head.get(b"content-length")  # a HEAD answer keeps the length it speaks of
        return (b"Content-Length: %b\r\n" % length if length.isdigit() else b""), False, False
    if head.kind is Kind.LENGTH and tap.is_transparent:
        return b"Content-Length: %d\r\n" % head.length, False, False
    if version >= (1, 1):
        return b"Transfer-Encoding: chunked\r\n", True, False
    return b"", False, True
