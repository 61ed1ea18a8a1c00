"""Puts an answer on the wire, on time and whole, or as wrongly as a fault asks.

The one place that writes to transports (WebSockets apart). Decides nothing about what is answered. Every write is
counted on the attempt; a client that leaves cancels the coroutine (aiohttp's `handler_cancellation`), a slow one
holds it (backpressure).
"""

import asyncio
import random
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from yugong.emulator import errors, wire
from yugong.emulator.attempt import Answer, Attempt
from yugong.emulator.errors import Trouble
from yugong.emulator.faults import Fault

NO_BODY = (204, 304)
YIELD_EVERY = 32  # events written between turns of the loop when none has to be waited for
LINGER_RESET = struct.pack("ii", 1, 0)


class ClientLeft(ConnectionError):
    """The client closed the connection before the answer was whole."""


class Wire:
    """The client's side of one connection, as one attempt uses it."""

    __slots__ = ("attempt", "protocol")

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.protocol: Any = attempt.request.protocol

    def __repr__(self) -> str:
        return f"<Wire {'open' if self.protocol.transport else 'gone'} sent={self.attempt.sent}>"

    @property
    def transport(self) -> asyncio.Transport:
        transport: asyncio.Transport | None = self.protocol.transport
        if transport is None:
            raise ClientLeft
        return transport

    def write(self, data: bytes, body: int = 0) -> None:
        """Write; `body` says how many of the bytes are the answer's."""
        self.transport.write(data)
        self.attempt.sent += body

    async def drain(self) -> None:
        if self.protocol.writing_paused:
            await self.protocol._drain_helper()  # what aiohttp's own StreamWriter.drain awaits

    async def flushed(self) -> None:
        """Wait until the kernel has all that was written; only faults need it."""
        while self.protocol.transport is not None and self.transport.get_write_buffer_size():  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    def close(self) -> None:
        """Send what is written, then FIN."""
        self.attempt.keep_alive = False
        if self.protocol.transport is not None:
            self.protocol.transport.close()

    async def reset(self) -> None:
        """Let what is written leave, then RST."""
        self.attempt.keep_alive = False
        await self.flushed()
        await asyncio.sleep(0.002)  # the peer should have read it: RST throws away what it has not
        transport = self.protocol.transport
        if transport is not None:
            sock = transport.get_extra_info("socket")
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
            transport.abort()

    async def silence(self) -> None:
        """Say nothing more, until the client leaves and cancels this."""
        self.attempt.keep_alive = False
        await asyncio.get_running_loop().create_future()


async def deliver(attempt: Attempt, answer: Answer) -> None:
    """Send an answer, with the attempt's fault if it has one for this stage."""
    out = Wire(attempt)
    fault = attempt.fault if attempt.fault and attempt.fault.stage in ("unary", "stream") else None
    if attempt.pace.delay:
        await asyncio.sleep(attempt.pace.delay)
    if fault is not None and await _strike(out, answer, fault):
        return
    attempt.status = answer.status
    if answer.events is not None:
        await _stream(out, answer, fault)
    elif answer.file is not None:
        await _send_file(out, answer)
    else:
        _send(out, answer, fault)


def _send(out: Wire, answer: Answer, fault: Fault | None) -> None:
    """A body in memory, in one write."""
    body = answer.body
    if answer.status in NO_BODY:
        framing, body = "", b""
    elif fault is not None and fault.kind == "close_framed":
        out.attempt.keep_alive = False
        framing = ""
    else:
        framing = f"Content-Length: {len(body)}\r\n"
    if out.attempt.request.method == "HEAD":
        body = b""
    out.write(wire.head(out.attempt, answer, framing) + body, len(body))
    if fault is not None and fault.kind in ("close_framed", "close_after"):
        out.close()


async def _send_file(out: Wire, answer: Answer) -> None:
    assert answer.file is not None
    body, start, end = answer.file
    out.write(wire.head(out.attempt, answer, f"Content-Length: {end - start}\r\n"))
    if out.attempt.request.method == "HEAD":
        return
    for piece in body.pieces(start, end):
        out.write(piece, len(piece))
        await out.drain()


async def _stream(out: Wire, answer: Answer, fault: Fault | None) -> None:
    """The events of a stream, each in a chunk of its own; with a fault, up to where it strikes."""
    assert answer.events is not None
    attempt = out.attempt
    if fault is not None and fault.kind == "close_framed":
        attempt.chunked = False
    if not attempt.chunked:
        attempt.keep_alive = False
    framing = "Transfer-Encoding: chunked\r\n" if attempt.chunked else ""
    out.write(wire.head(attempt, answer, framing))
    if fault is not None and fault.stage == "stream" and fault.kind != "slow_stream":
        await _stream_until(out, answer, fault)
        return
    if fault is not None and fault.kind in ("slow_stream", "slow_body"):
        attempt.pace.interval = fault.number(0, 200) / 1000
    await _pump(out, answer.events)
    _write_part(out, answer.tail)
    _end_stream(out)
    if fault is not None and fault.kind == "close_after":
        out.close()


async def _pump(out: Wire, events: Iterable[bytes]) -> None:
    """Write events: as fast as they go, or on the beat of the attempt's interval."""
    if out.attempt.pace.interval:
        beat = Beat(out, iter(events))
        while await beat.run():
            await out.drain()
        return
    attempt, protocol = out.attempt, out.protocol
    chunked = attempt.chunked
    for event in events:
        if not attempt.events % YIELD_EVERY:
            await asyncio.sleep(0)
        out.write(wire.chunk(event) if chunked else event, len(event))
        attempt.events += 1
        if protocol.writing_paused:
            await out.drain()


class Beat:
    """Events at a fixed interval, counted from the first, so that delays do not add up.

    Timer callbacks rather than a coroutine that sleeps: that is a quarter less processor time an
    event (measured, 21 to 15 µs), and thousands of streams at once are what it is for.
    """

    __slots__ = ("due", "ended", "events", "loop", "out", "timer")

    def __init__(self, out: Wire, events: Iterator[bytes]) -> None:
        self.out = out
        self.events = events
        self.loop = asyncio.get_running_loop()
        self.due = self.loop.time()
        self.ended: asyncio.Future[bool] | None = None
        self.timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Beat every {self.out.attempt.pace.interval}s events={self.out.attempt.events}>"

    async def run(self) -> bool:
        """Write until the events end (False) or the client reads too slowly (True: drain and run again)."""
        self.ended = self.loop.create_future()
        self._wait()
        try:
            return await self.ended
        finally:
            if self.timer is not None:
                self.timer.cancel()

    def _wait(self) -> None:
        self.due += self.out.attempt.pace.interval
        self.timer = self.loop.call_at(self.due, self._step)

    def _step(self) -> None:
        assert self.ended is not None
        if self.ended.done():
            return
        out = self.out
        try:
            event = next(self.events, None)
            if event is None:
                self.ended.set_result(False)
                return
            out.write(wire.chunk(event) if out.attempt.chunked else event, len(event))
        except Exception as error:
            self.ended.set_exception(error)
            return
        out.attempt.events += 1
        if out.protocol.writing_paused:
            self.ended.set_result(True)
        else:
            self._wait()


def _write_part(out: Wire, data: bytes) -> None:
    if data:
        out.write(wire.chunk(data) if out.attempt.chunked else data, len(data))


def _end_stream(out: Wire) -> None:
    if out.attempt.chunked:
        out.write(wire.LAST_CHUNK)
    else:
        out.close()


async def _stream_until(out: Wire, answer: Answer, fault: Fault) -> None:
    """A stream that goes wrong. Its usage is what was written: upstream bills what it generated."""
    events = list(answer.events or ())
    kind = fault.kind
    if kind == "cut_bytes":
        await _cut_bytes(out, b"".join(events) + answer.tail, fault)
        return
    struck_at = 0 if kind == "error_first_event" else fault.number(0, 3)
    await _pump(out, events[:struck_at])
    _bill_written(out.attempt)
    if kind in ("error_first_event", "error_mid_stream"):
        code = fault.word(0, "server_error") if kind == "error_first_event" else "server_error"
        _write_part(out, error_event(out.attempt, code))
        _end_stream(out)
    elif kind == "garbage_stream":
        _write_part(out, b"\x00\xff<garbage>{\n\n")
        _end_stream(out)
    elif kind == "stuck_stream":
        await out.silence()
    else:
        await _cut(out, fault.word(1, "close"))


async def _cut_bytes(out: Wire, body: bytes, fault: Fault) -> None:
    """Cut inside an event. Sent as one chunk that claims the whole body, unless the chunks are to end well."""
    at = fault.number(0, 200)
    how = fault.word(1, "close")
    part = body[:at]
    if not out.attempt.chunked:
        out.write(part, len(part))
    elif how == "done":
        _write_part(out, part)
    else:
        out.write(b"%x\r\n" % len(body) + part, len(part))
    out.attempt.events = part.count(b"\n\n")
    _bill_written(out.attempt)
    await _cut(out, how)


async def _cut(out: Wire, how: str) -> None:
    if how == "rst":
        await out.reset()
    elif how == "done":
        _end_stream(out)
    else:
        await out.flushed()
        out.close()


def _bill_written(attempt: Attempt) -> None:
    """Output billed for a stream that broke: at most one token for each event written."""
    if attempt.usage is not None and "output" in attempt.usage:
        attempt.usage["output"] = min(attempt.usage["output"], attempt.events)


def error_event(attempt: Attempt, code: str) -> bytes:
    """An error inside a stream, in the shape of the operation (facts: providers §2, errors after 200)."""
    trouble = Trouble(500, "server_error", code, errors.SERVER_ERROR)
    if attempt.dialect == "anthropic":
        overloaded = Trouble(529 if code in ("server_error", "overloaded_error") else 500, code, code, "Overloaded")
        return wire.sse(errors.anthropic_error(overloaded, attempt.request_id), "error")
    if attempt.path.startswith("/v1/responses"):
        event = {"type": "error", "code": code, "message": trouble.message, "param": None}
        return wire.sse(orjson.dumps(event | {"sequence_number": attempt.events}), "error")
    return wire.sse(orjson.dumps({"error": errors.openai_fields(trouble)}))


async def _strike(out: Wire, answer: Answer, fault: Fault) -> bool:
    """Faults of framing. True when the answer has been dealt with."""
    attempt = out.attempt
    kind = fault.kind
    if kind == "slow_head":
        await asyncio.sleep(fault.number(0, 1000) / 1000)
    elif kind == "informational":
        out.write(b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n" * fault.number(0, 1))
    elif kind == "huge_header":
        answer.extra += f"x-huge: {'h' * fault.number(0, 65_536)}\r\n"
    elif kind in ("reset_after_head", "truncated_json", "wrong_length", "slow_body") and answer.events is None:
        attempt.status = answer.status
        await _strike_unary(out, answer, fault)
        return True
    elif kind in ("reset_after_head", "truncated_json", "wrong_length"):
        attempt.status = answer.status
        out.write(wire.head(attempt, answer, "Transfer-Encoding: chunked\r\n"))
        if kind != "reset_after_head":
            events = list(answer.events or ())
            await _pump(out, events[: len(events) // 2])
        _bill_written(attempt)
        await _cut(out, "rst" if kind == "reset_after_head" else "close")
        return True
    return False


async def _strike_unary(out: Wire, answer: Answer, fault: Fault) -> None:
    body = answer.body
    if answer.file is not None:
        body = answer.file[0].read(answer.file[1], answer.file[2])
    length = len(body)
    if fault.kind == "wrong_length":
        length = max(0, length - fault.number(0, 10))
    out.write(wire.head(out.attempt, answer, f"Content-Length: {length}\r\n"))
    if fault.kind == "reset_after_head":
        await out.reset()
    elif fault.kind == "slow_body":
        step = max(1, len(body) // 8)
        for at in range(0, len(body), step):
            await asyncio.sleep(fault.number(0, 100) / 1000)
            out.write(body[at : at + step], len(body[at : at + step]))
    else:
        sent = body if fault.kind == "wrong_length" else body[: len(body) // 2]
        out.write(sent, len(sent))
        await out.flushed()
        out.close()


async def strike_head(attempt: Attempt, fault: Fault) -> None:
    """Faults in place of any answer."""
    out = Wire(attempt)
    kind = fault.kind
    if kind == "reset_before_head":
        await out.reset()
    elif kind == "close_before_head":
        out.close()
    elif kind == "stuck_head":
        await out.silence()
    elif kind == "reset_mid_head":
        out.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nx-requ")
        await out.reset()
    elif kind == "garbage":
        out.write(random.Random(attempt.body.sha256).randbytes(200))
        await out.flushed()
        out.close()
    else:
        out.write(_MALFORMED[fault.word(0, "chunk")])
        await out.flushed()
        out.close()


_MALFORMED = {
    "chunk": b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n{\r\n0\r\n\r\n",
    "status": b"HTTP/1.1 2OO Okay\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    "header": b"HTTP/1.1 200 OK\r\nContent-Type application/json\r\n\x00bad: 1\r\nContent-Length: 2\r\n\r\n{}",
    "both": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
}
