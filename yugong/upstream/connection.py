"""One connection to an origin and the exchange of one request and one answer on it.

Bytes go straight: the head is parsed by `head`, the body is followed by `core/framing` only as far as its end must
be found, and handed to a sink the moment it is read. Before a sink is set, body bytes are kept in `early`, up to a
bound, then reading pauses. Knows no keys, pools or dialects. All failures are `WireFault`s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

from yugong.base.errors import Reach, WireFault
from yugong.core.framing import Chunks, FramingError, Kind
from yugong.upstream.head import MAX_HEAD, Head, HeadReader

EARLY_LIMIT = 256 * 1024  # bytes of body kept before anybody asked for it


class Sink(Protocol):
    """Where a body goes. Called from the transport's callbacks: must not raise, must not wait."""

    def on_body(self, data: bytes, framed: bytes | None) -> None:
        """Payload; `framed` is the same as it came in whole chunks, where it did."""

    def on_end(self) -> None: ...

    def on_fault(self, fault: WireFault) -> None: ...


_START = b"HTTP/1."
_ANY = HeadReader(frozenset())


class Connection(asyncio.Protocol):
    """A kept-alive connection: idle, or carrying one exchange."""

    __slots__ = (
        "_buffer",
        "_chunks",
        "_is_eof",
        "_is_full",
        "_left",
        "_loop",
        "_method",
        "_reader",
        "_sink",
        "_waiter",
        "_write_waiter",
        "can_reuse",
        "early",
        "early_bytes",
        "fault",
        "head",
        "idle_since",
        "is_busy",
        "is_done",
        "on_idle_lost",
        "received",
        "served",
        "transport",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.transport: asyncio.Transport | None = None
        #: Called with the connection when it is lost while idle (the origin takes it out).
        self.on_idle_lost: Callable[[Connection], None] | None = None
        self.idle_since = 0.0
        #: Exchanges carried to their end.
        self.served = 0
        self._write_waiter: asyncio.Future[None] | None = None
        self._reader = _ANY
        self._reset("GET")
        self.is_busy = False

    def __repr__(self) -> str:
        state = "closed" if self.transport is None else "busy" if self.is_busy else "idle"
        return f"<Connection {state} served={self.served} head={self.head!r}>"

    def _reset(self, method: str) -> None:
        self._method = method
        self._buffer = b""
        self._chunks: Chunks | None = None
        self._left = 0
        self._sink: Sink | None = None
        self._waiter: asyncio.Future[Head] | None = None
        self._is_eof = False
        #: Reading stands because `early` is full.
        self._is_full = False
        #: The answer's head once it is there.
        self.head: Head | None = None
        #: Body bytes that came before a sink did.
        self.early: list[bytes] = []
        self.early_bytes = 0
        #: The whole answer has arrived.
        self.is_done = False
        #: What ended the exchange badly.
        self.fault: WireFault | None = None
        #: Bytes of answer read so far: the sweeper sees silence by it standing still.
        self.received = 0
        self.is_busy = True
        #: Set when the answer ended and another request may follow.
        self.can_reuse = False

    # -- the request ------------------------------------------------------------------------------------------------

    def send(self, method: str, data: bytes, reader: HeadReader) -> asyncio.Future[Head]:
        """Writes a request (or its beginning); the future is the head, or raises `WireFault`."""
        assert self.transport is not None
        assert not self.is_busy
        self._reset(method)
        self._reader = reader
        self._waiter = self._loop.create_future()
        self.transport.write(data)
        return self._waiter

    async def write_more(self, data: bytes) -> None:
        """More of the request's body, with backpressure. Returns at once when the answer has already begun."""
        if self.transport is None or self.head is not None:
            return
        self.transport.write(data)
        if self._write_waiter is not None:
            await self._write_waiter

    def pause_writing(self) -> None:
        self._write_waiter = self._loop.create_future()

    def resume_writing(self) -> None:
        waiter, self._write_waiter = self._write_waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # -- the answer -------------------------------------------------------------------------------------------------

    def attach(self, sink: Sink) -> None:
        """From here on the body goes to `sink`; what came early goes first."""
        self._sink = sink
        early, self.early = self.early, []
        self.early_bytes = 0
        if self._is_full:  # our own pause; one the sink asks for, now or before, stands
            self.resume_reading()
        for data in early:
            sink.on_body(data, None)
        if self.fault is not None:
            sink.on_fault(self.fault)
        elif self.is_done:
            sink.on_end()

    def take_early(self) -> bytes:
        """Takes what has come of the body so far."""
        early, self.early = self.early, []
        self.early_bytes = 0
        return early[0] if len(early) == 1 else b"".join(early)

    def pause_reading(self) -> None:
        self._is_full = False
        if self.transport is not None and self.transport.is_reading():
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        self._is_full = False
        if self.transport is not None and not self.transport.is_reading():
            self.transport.resume_reading()

    def is_reading(self) -> bool:
        """Whether silence is upstream's: False while we ourselves hold its bytes back."""
        return self.transport is not None and self.transport.is_reading()

    def abort(self, fault: WireFault | None = None) -> None:
        """Ends the exchange and the connection at once."""
        transport, self.transport = self.transport, None
        if transport is not None:
            transport.abort()
        self.resume_writing()
        if fault is not None:
            self._fail(fault)

    # -- asyncio.Protocol -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self.head is not None:
            self._on_body(data)
        elif self.is_busy:
            self._on_head(data)
        else:  # bytes nobody asked for: nothing on this connection can be trusted
            self._lose_idle()

    def eof_received(self) -> None:
        self._is_eof = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.resume_writing()
        if not self.is_busy:
            self._lose_idle()
        elif self.head is None:
            kind = "truncated" if self._buffer else "reset"
            # RFC 9112 §9.3.1: a kept-alive connection may close just as a request is sent; nothing was answered.
            is_stale = self.served > 0 and self.received == 0
            self._fail(WireFault(kind, Reach.SENT, str(exc or "closed before the head"), is_stale=is_stale))
        elif not self.is_done:
            if self.head.kind is Kind.CLOSE and exc is None and self._is_eof:
                self._finish()
            else:
                kind = "reset" if exc is not None else "truncated"
                self._fail(WireFault(kind, Reach.PARTIAL, str(exc or "closed in the body")))

    def _lose_idle(self) -> None:
        if self.on_idle_lost is not None:
            self.on_idle_lost(self)
        self.abort()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _on_head(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        at = 0
        while at < len(data):
            if not data.startswith(_START[: len(data) - at], at):
                self.abort(WireFault("malformed", Reach.SENT, "not HTTP"))
                return
            end = data.find(b"\r\n\r\n", at) + 4
            if (end if end >= 4 else len(data)) - at > MAX_HEAD:
                self.abort(WireFault("answer_head_too_large", Reach.HEAD, f"{len(data) - at} bytes"))
                return
            if end < 4:
                break
            try:
                head = self._reader.read(data[at:end], self._method)
            except FramingError as error:
                self.abort(WireFault("malformed", Reach.HEAD, str(error)))
                return
            if head.status >= 200:
                self._begin(head, data[end:])
                return
            if head.status == 101:
                self.abort(WireFault("malformed", Reach.HEAD, "an upgrade nobody asked for"))
                return
            at = end
        self._buffer = data[at:]

    def _begin(self, head: Head, rest: bytes) -> None:
        self._buffer = b""
        self.head = head
        self.resume_writing()  # an early answer: whoever still writes need not
        if head.kind is Kind.NONE:
            self._finish(len(rest))
        else:
            if head.kind is Kind.CHUNKED:
                self._chunks = Chunks()
            self._left = head.length
            if rest:
                self._on_body(rest)
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(head)

    def _on_body(self, data: bytes) -> None:
        if self._chunks is not None:
            self._on_chunks(data)
        elif self.is_done:
            self._lose_idle()
        elif self._left:
            excess = len(data) - self._left
            if excess > 0:
                data = data[: self._left]
            self._left -= len(data)
            self._deliver(data, None)
            if not self._left:
                self._finish(max(excess, 0))
        else:
            self._deliver(data, None)

    def _on_chunks(self, data: bytes) -> None:
        chunks = self._chunks
        assert chunks is not None
        try:
            payload = chunks.feed(data)
        except FramingError as error:
            self.abort(WireFault("malformed", Reach.PARTIAL, f"body: {error}"))
            return
        if payload:
            self._deliver(payload, data if chunks.is_whole else None)
        if chunks.is_done:
            self._chunks = None
            self._finish(chunks.excess)

    def _deliver(self, data: bytes, framed: bytes | None) -> None:
        if self._sink is not None:
            self._sink.on_body(data, framed)
        else:
            self.early.append(data)
            self.early_bytes += len(data)
            if self.early_bytes > EARLY_LIMIT and self.is_reading():
                self.pause_reading()
                self._is_full = True

    def _finish(self, excess: int = 0) -> None:
        self.is_done = True
        self.served += 1
        head = self.head
        self.can_reuse = head is not None and head.is_kept_alive and not excess and self.transport is not None
        if self._sink is not None:
            self._sink.on_end()

    def _fail(self, fault: WireFault) -> None:
        if self.fault is not None or self.is_done:
            return
        self.fault = fault
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_exception(fault)
        elif self._sink is not None:
            self._sink.on_fault(fault)
