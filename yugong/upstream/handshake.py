"""The opening handshake of a WebSocket, on both sides of us: RFC 6455 §4 and §11.3.

Decides what an upgrade request from a client says (`read_upgrade`), writes ours to upstream, checks the answer, and
writes ours to the client. Each side has its own `Sec-WebSocket-Key`. No extension is offered upstream and none granted
to the client, whatever it asked: frames then are what they say, so the tap can read usage and a key in an error can be
taken out. That is one of the differences of I1; a client that offers compression must live without (RFC 6455 §9.1).

The key a browser puts into the list of subprotocols is the customer's (proxy/intake presents it): it does not go
upstream, and neither do the organisation and project that may stand beside it (threats 11, 12). Knows no pool and no
dialect: which credential goes upstream is the caller's affair. Failures of the wire are `WireFault`s, of the client's
request `Refusal`s.
"""

from __future__ import annotations

import asyncio
import base64
from binascii import Error as BinasciiError
from collections.abc import Sequence
from hashlib import sha1

from yugong.base.errors import Reach, Refusal, RefusalKind, WireFault
from yugong.base.headers import TO_CLIENT
from yugong.core.framing import Chunks, FramingError, Kind
from yugong.upstream.head import MAX_HEAD, Head, HeadReader

Headers = Sequence[tuple[bytes, bytes]]

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
BODY_MAX = 64 * 1024  # bytes kept of an answer that is no upgrade: it is an error for a person or an SDK
EARLY_MAX = 256 * 1024  # bytes of frames kept before the relay takes over; then reading pauses

_PROTOCOL = b"sec-websocket-protocol"
_OURS = (b"sec-websocket-key:", b"sec-websocket-version:", b"sec-websocket-extensions:", _PROTOCOL + b":")
#: Items of the subprotocol list that say who pays: the browser's way to send what it cannot put into headers.
_NOT_UPSTREAM = (b"openai-insecure-api-key.", b"openai-organization.", b"openai-project.")
#: What of an upgrade's answer may go on to the client: a 101 has no body to describe.
_IN_SWITCH = TO_CLIENT - {
    b"content-length",
    b"content-encoding",
    b"content-type",
    b"content-range",
    b"content-disposition",
    b"accept-ranges",
    b"retry-after",
    b"retry-after-ms",
}


class WrongVersion(Refusal):
    """The client speaks another version: answered with `status` and `headers` beside the dialect's body."""

    __slots__ = ()

    status = 426  # RFC 6455 §4.4
    headers = ((b"sec-websocket-version", b"13"),)

    def __init__(self) -> None:
        super().__init__(RefusalKind.MALFORMED, "Only version 13 of the WebSocket protocol is spoken here.")


class Upgrade:
    """What a client's upgrade request says. `protocols` are those that may go upstream, in the client's order."""

    __slots__ = ("accept", "protocols")

    def __init__(self, accept: bytes, protocols: tuple[bytes, ...]) -> None:
        #: The value of `Sec-WebSocket-Accept` that the client waits for.
        self.accept = accept
        self.protocols = protocols

    def __repr__(self) -> str:
        return f"<Upgrade {b', '.join(self.protocols).decode('latin-1') or 'no subprotocol'}>"


class Accepted:
    """Upstream has switched. `transport` is paused; `early` are the frames that came with the answer."""

    __slots__ = ("early", "head", "protocol", "transport")

    def __init__(self, transport: asyncio.Transport, head: Head, protocol: bytes, early: bytes) -> None:
        self.transport = transport
        self.head = head
        #: The subprotocol upstream chose; empty for none.
        self.protocol = protocol
        self.early = early

    def __repr__(self) -> str:
        return f"<Accepted {self.protocol.decode('latin-1') or 'no subprotocol'} early={len(self.early)}B>"


class Declined:
    """Upstream answered something else: an ordinary answer, to be judged as one. Its connection is closed."""

    __slots__ = ("body", "head", "is_whole")

    def __init__(self, head: Head, body: bytes, is_whole: bool) -> None:
        self.head = head
        #: Its first `BODY_MAX` bytes at most.
        self.body = body
        #: Whether that is all of it and it ended as it should.
        self.is_whole = is_whole

    def __repr__(self) -> str:
        return f"<Declined {self.head.status} {len(self.body)}B{'' if self.is_whole else ' cut'}>"


# -- the client's request ---------------------------------------------------------------------------------------------


def is_upgrade(headers: Headers) -> bool:
    """Whether a request asks for a WebSocket; other upgrades are left out as any hop-by-hop header is."""
    upgrade = _values(headers, b"upgrade")
    return [v.lower() for v in upgrade] == [b"websocket"] and b"upgrade" in _tokens(headers, b"connection")


def read_upgrade(method: str, headers: Headers) -> Upgrade:
    """What the request says. Raises `Refusal` (MALFORMED), and `WrongVersion` for any version but 13.

    `headers` in any case, as they came.
    """
    if method != "GET":
        raise Refusal(RefusalKind.MALFORMED, "A WebSocket is opened with GET.")
    if _values(headers, b"sec-websocket-version") != [b"13"]:
        raise WrongVersion
    if _values(headers, b"transfer-encoding") or _values(headers, b"content-length") not in ([], [b"0"]):
        raise Refusal(RefusalKind.MALFORMED, "An upgrade request has no body.", close=True)
    keys = _values(headers, b"sec-websocket-key")
    if len(keys) != 1 or not _is_nonce(keys[0]):
        raise Refusal(RefusalKind.MALFORMED, "Sec-WebSocket-Key must be 16 bytes in base64, once.")
    protocols = tuple(item for item in _items(headers, _PROTOCOL) if not item.startswith(_NOT_UPSTREAM))
    return Upgrade(accept_of(keys[0]), protocols)


def _is_nonce(value: bytes) -> bool:
    try:
        return len(base64.b64decode(value, validate=True)) == 16
    except BinasciiError:
        return False


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value.strip() for key, value in headers if key.lower() == name]


def _items(headers: Headers, name: bytes) -> list[bytes]:
    """The items of a comma-separated header, over all its lines (RFC 9110 §5.6.1: empty ones do not count)."""
    return [item for value in _values(headers, name) for part in value.split(b",") if (item := part.strip())]


def _tokens(headers: Headers, name: bytes) -> set[bytes]:
    return {item.lower() for item in _items(headers, name)}


# -- our request ------------------------------------------------------------------------------------------------------


def make_key(entropy: bytes) -> bytes:
    """A `Sec-WebSocket-Key` of 16 random bytes (RFC 6455 §4.1: drawn anew for each connection)."""
    assert len(entropy) == 16
    return base64.b64encode(entropy)


def accept_of(key: bytes) -> bytes:
    """The `Sec-WebSocket-Accept` that proves a key was read (RFC 6455 §4.2.2)."""
    return base64.b64encode(sha1(key + _GUID, usedforsecurity=False).digest())


def write_request(
    upgrade: Upgrade, lines: Sequence[bytes], *, target: bytes, host: bytes, credentials: bytes, key: bytes
) -> bytes:
    """The request to upstream. `lines`: the client's headers as they go upstream on any call, a CRLF-ended line each;
    `target`: path and query, as the dialect wrote it; `credentials`: its header lines; `key`: see `make_key`."""
    protocols = b"%b: %b\r\n" % (_PROTOCOL, b", ".join(upgrade.protocols)) if upgrade.protocols else b""
    return b"".join(
        (
            b"GET %b HTTP/1.1\r\nHost: %b\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" % (target, host),
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\nAccept-Encoding: identity\r\n" % key,
            credentials,
            protocols,
            *(line for line in lines if not line.lower().startswith(_OURS)),
            b"\r\n",
        )
    )


# -- upstream's answer ------------------------------------------------------------------------------------------------


def check_switch(head: Head, key: bytes, protocols: Sequence[bytes]) -> bytes:
    """The subprotocol a 101 chose, empty for none. Raises `WireFault` ("malformed") if it proves nothing (§4.1)."""
    headers = head.pairs()
    chosen = _items(headers, _PROTOCOL)
    problem = (
        "no upgrade to websocket"
        if [v.lower() for v in _values(headers, b"upgrade")] != [b"websocket"]
        else "no connection upgrade"
        if b"upgrade" not in _tokens(headers, b"connection")
        else "wrong accept value"
        if _values(headers, b"sec-websocket-accept") != [accept_of(key)]
        else "an extension nobody offered"
        if _items(headers, b"sec-websocket-extensions")
        else "a subprotocol nobody offered"
        if len(chosen) > 1 or not set(chosen) <= set(protocols)
        else None
    )
    if problem:
        raise WireFault("malformed", Reach.HEAD, f"handshake: {problem}")
    return chosen[0] if chosen else b""


async def shake_hands(
    transport: asyncio.Transport,
    request: bytes,
    key: bytes,
    protocols: Sequence[bytes],
    *,
    timeout: float,
    peek: float = 0.0,
) -> Accepted | Declined:
    """Sends `request` on a fresh connection and reads the answer. Takes the transport over.

    `timeout`: seconds for the whole answer. `peek`: seconds to wait for upstream's first bytes after its 101, for
    origins that speak first (and may say there that they refuse the key: then another can still be tried).
    Raises `WireFault`; the connection is then closed, as it is when this is cancelled.
    """
    loop = asyncio.get_running_loop()
    reader = _Answer(loop, transport)
    timer = loop.call_later(timeout, reader.expire)
    try:
        if transport.is_closing():
            raise WireFault("reset", Reach.UNSENT, "closed before the request")
        transport.set_protocol(reader)
        transport.write(request)
        transport.resume_reading()
        head = await reader.head
        if head.status != 101:
            await reader.over
            transport.abort()
            return Declined(head, reader.taken(), reader.is_whole)
        protocol = check_switch(head, key, protocols)
        if peek and not reader.has_body:
            timer.cancel()
            timer = loop.call_later(peek, reader.expire)
            await reader.over
        transport.pause_reading()
        return Accepted(transport, head, protocol, reader.taken())
    except BaseException:
        transport.abort()
        raise
    finally:
        timer.cancel()


class _Answer(asyncio.Protocol):
    """Reads one answer to an upgrade request: its head, then what there is of a body or of frames."""

    __slots__ = ("_buffer", "_chunks", "_left", "_status", "_transport", "head", "is_whole", "over")

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._buffer = bytearray()  # the head, then the body
        self._chunks: Chunks | None = None
        self._left: int | None = None
        self._status = 0
        self.head: asyncio.Future[Head] = loop.create_future()
        #: Done when there is nothing more to wait for: the body's end, upstream's first frames, a loss, the time-out.
        self.over: asyncio.Future[None] = loop.create_future()
        self.is_whole = False

    def __repr__(self) -> str:
        return f"<_Answer {'head' if not self.head.done() else 'body'} {len(self._buffer)}B>"

    @property
    def has_body(self) -> bool:
        return bool(self._buffer)

    def taken(self) -> bytes:
        return bytes(self._buffer)

    def expire(self) -> None:
        if not self.head.done():
            self.head.set_exception(WireFault("first_byte_timeout", Reach.SENT))
        self._end(is_whole=False)

    def data_received(self, data: bytes) -> None:
        if self.head.done():
            self._on_body(data)
            return
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 and len(self._buffer) <= MAX_HEAD and b"HTTP/".startswith(bytes(self._buffer[:5])):
            return
        try:
            head = self._parse_head(end + 4)
        except WireFault as fault:
            self.head.set_exception(fault)
            return
        rest = bytes(self._buffer[end + 4 :])
        self._buffer.clear()
        if 100 <= head.status < 200 and head.status != 101:
            if rest:
                self.data_received(rest)
            return
        self._status = head.status
        self.head.set_result(head)
        self._begin_body(head, rest)

    def _parse_head(self, end: int) -> Head:
        if not b"HTTP/".startswith(bytes(self._buffer[:5])):
            raise WireFault("malformed", Reach.SENT, "not HTTP")
        if not 4 <= end <= MAX_HEAD:
            raise WireFault("answer_head_too_large", Reach.HEAD, f"{len(self._buffer)} bytes")
        try:
            return _READER.read(bytes(self._buffer[:end]), "GET")
        except FramingError as error:
            raise WireFault("malformed", Reach.HEAD, str(error)) from None

    def _begin_body(self, head: Head, rest: bytes) -> None:
        if head.status != 101:
            if head.kind is Kind.NONE:
                self._end(is_whole=True)
                return
            self._chunks = Chunks() if head.kind is Kind.CHUNKED else None
            self._left = head.length if head.kind is Kind.LENGTH else None
        if rest:
            self._on_body(rest)

    def _on_body(self, data: bytes) -> None:
        if self._status == 101:
            self._buffer += data
            if len(self._buffer) > EARLY_MAX:
                self._transport.pause_reading()
            self._end(is_whole=False)
            return
        if self.over.done() or not self._status:
            return
        if self._chunks is not None:
            try:
                data = self._chunks.feed(data)
            except FramingError:
                self._end(is_whole=False)
                return
        elif self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
        room = BODY_MAX - len(self._buffer)
        self._buffer += data[:room]
        if len(data) > room:
            self._end(is_whole=False)
        elif (self._chunks is not None and self._chunks.is_done) or self._left == 0:
            self._end(is_whole=True)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.head.done():
            kind = "truncated" if self._buffer else "reset"
            self.head.set_exception(WireFault(kind, Reach.SENT, str(exc or "closed before the head")))
            return
        is_ended_by_close = exc is None and self._chunks is None and self._left is None
        self._end(is_whole=is_ended_by_close)

    def _end(self, *, is_whole: bool) -> None:
        if not self.over.done():
            self.is_whole = is_whole
            self.over.set_result(None)


_READER = HeadReader(TO_CLIENT)


# -- our answer -------------------------------------------------------------------------------------------------------


def write_switch(upgrade: Upgrade, accepted: Accepted, extra: Headers = ()) -> bytes:
    """The 101 to the client: its own accept value, the subprotocol upstream chose, upstream's headers as far as the
    allow-list goes, and `extra` (such as the call's id)."""
    lines = [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
        b"Sec-WebSocket-Accept: %b\r\n" % upgrade.accept,
    ]
    if accepted.protocol:
        lines.append(b"Sec-WebSocket-Protocol: %b\r\n" % accepted.protocol)
    lines += [b"%b: %b\r\n" % (name, value) for name, value in accepted.head.pairs() if name in _IN_SWITCH]
    lines += [b"%b: %b\r\n" % (name, value) for name, value in extra]
    lines.append(b"\r\n")
    return b"".join(lines)
