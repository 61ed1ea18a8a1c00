"""From bytes to a call: what the head says, then the body, within limits.

Decides what is let in at all (threats 25–27, 38–52): one credential, a sane Host, a path that means one thing to us and
to upstream, bodies bounded by their decoded size, a least rate. Knows no dialect: refusals are worded elsewhere.
aiohttp's parser has already refused malformed HTTP.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from yugong.base.errors import Refusal, RefusalKind
from yugong.base.headers import HOP_BY_HOP, NOT_UPSTREAM

if TYPE_CHECKING:
    from aiohttp.streams import StreamReader

    from yugong.core.settings import Intake
    from yugong.proxy.spool import Spool, Spooled

# What becomes of a header, by lower-case name; a name not in the table goes upstream as it came.
(
    _DROP,
    _BEARER,
    _KEY,
    _CONNECTION,
    _HOST,
    _TYPE,
    _PROTOCOL,
    _WAIT,
    _FORWARDED,
    _ENCODING,
    _EXPECT,
    _TELLING,
    _AGENT,
    _CODING,
) = range(1, 15)
_FATES: dict[bytes, int] = {
    **dict.fromkeys(HOP_BY_HOP | NOT_UPSTREAM, _DROP),
    b"authorization": _BEARER,
    b"api-key": _KEY,
    b"x-api-key": _KEY,
    b"x-goog-api-key": _KEY,
    b"connection": _CONNECTION,
    b"host": _HOST,
    b"content-type": _TYPE,
    b"content-encoding": _ENCODING,
    b"sec-websocket-protocol": _PROTOCOL,
    b"x-yugong-max-wait": _WAIT,
    b"x-forwarded-for": _FORWARDED,
    b"expect": _EXPECT,
    b"anthropic-version": _TELLING,
    b"anthropic-beta": _TELLING,
    b"user-agent": _AGENT,
    b"transfer-encoding": _CODING,
}

_HOST_FORM = re.compile(rb"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?\Z")
#: A path that two readers could read differently: controls, blanks, dot segments however written, empty segments,
#: back-slashes, NUL, anything encoded twice, a fragment.
_BAD_PATH = re.compile(
    r"[^!-~]|#|\\|//|%00|%5c|%25(?:2e|2f|5c|00|25)|(?:/|%2f)(?:\.|%2e){1,2}(?:/|%2f|\Z)", re.IGNORECASE
)
_KNOWN_MAX = 4096
_WS_KEY = b"openai-insecure-api-key."


class Message(Protocol):
    """A request's head as aiohttp's C parser gives it (its Python twin has another type)."""

    @property
    def method(self) -> str: ...

    @property
    def path(self) -> str: ...

    @property
    def version(self) -> tuple[int, int]: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def raw_headers(self) -> tuple[tuple[bytes, bytes], ...]: ...

    @property
    def should_close(self) -> bool: ...

    @property
    def upgrade(self) -> bool: ...

    @property
    def chunked(self) -> bool: ...


class Known:
    """Texts already found in order, so that a check costs a look-up. Bounded; cleared when full."""

    __slots__ = ("_form", "_is_allowed", "_seen")

    def __init__(self, form: re.Pattern[str] | re.Pattern[bytes], *, is_allowed: bool) -> None:
        self._form = form
        self._is_allowed = is_allowed
        self._seen: set[str | bytes] = set()

    def __repr__(self) -> str:
        return f"<Known {len(self._seen)}>"

    def has(self, text: str | bytes) -> bool:
        """Whether `text` is in order."""
        if text in self._seen:
            return True
        found = (self._form.match if self._is_allowed else self._form.search)(text)  # type: ignore[arg-type]
        if (found is not None) is not self._is_allowed:
            return False
        if len(self._seen) >= _KNOWN_MAX:
            self._seen.clear()
        self._seen.add(text)
        return True


_HOSTS = Known(_HOST_FORM, is_allowed=True)
_PATHS = Known(_BAD_PATH, is_allowed=False)


class Fields:
    """What the header fields of a request say. Made once for equal fields of one connection, then only read."""

    __slots__ = (
        "agent",
        "content_encoding",
        "content_type",
        "expects_continue",
        "forwarded_for",
        "has_bearer",
        "host",
        "is_json",
        "joined",
        "lines",
        "max_wait",
        "names",
        "presented",
        "protocols",
    )

    def __init__(self) -> None:
        #: Headers that go upstream, as `name: value` CRLF lines, while they are sorted; then in one piece.
        self.lines: list[bytes] = []
        self.joined = b""
        #: Lower-case names of those headers by which dialects tell their calls.
        self.names: frozenset[bytes] = frozenset()
        self.host = b""
        self.has_bearer = False
        #: The customer key as presented.
        self.presented: bytes | None = None
        self.content_type = b""
        self.is_json = False
        self.content_encoding = b""
        self.max_wait: float | None = None
        self.forwarded_for = b""
        #: Subprotocols asked for, without the one that carried a key.
        self.protocols: list[bytes] = []
        self.expects_continue = False
        self.agent: str | None = None

    def __repr__(self) -> str:
        return f"<Fields {len(self.joined)}B, {self.content_type!r}>"


class Call:
    """A client's request as taken in."""

    __slots__ = ("body", "fields", "has_body", "method", "path", "size", "spooled", "target", "version", "websocket")

    def __init__(self, method: str, target: str, version: tuple[int, int], fields: Fields) -> None:
        self.method = method
        #: Raw path with query, as it came.
        self.target = target
        self.path = target.partition("?")[0] if "?" in target else target
        self.version = version
        self.fields = fields
        self.websocket = False
        self.has_body = False
        self.body: bytes = b""
        self.spooled: Spooled | None = None
        #: Bytes of body as they came.
        self.size = 0

    def __repr__(self) -> str:
        where = "disk" if self.spooled is not None else "memory"
        return f"<Call {self.method} {self.path} {self.size}B in {where}>"


def read_head(message: Message, limits: Intake, fields: Fields) -> Call:
    """The call's head. Raises `Refusal` (MALFORMED, TOO_LARGE)."""
    call = Call(message.method, message.path, message.version, fields)
    if call.version[0] != 1:  # llhttp also takes a line without a version (0.9, no Host due) and HTTP/2.0
        raise _malformed("only HTTP/1.0 and HTTP/1.1 are spoken here")
    if not call.target.startswith("/"):
        raise _malformed("the request target must be a path")  # absolute form changes the authority (threat 26)
    if not _PATHS.has(call.path) or (len(call.path) != len(call.target) and not _is_clean(call.target)):
        raise _malformed("the path is ambiguous")
    if not fields.host and call.version >= (1, 1):
        raise _malformed("the Host header is missing")
    length = message.headers.get("Content-Length")
    if length is not None:
        if not length.isdigit() or len(length) > 18 or int(length) > limits.body_max:
            raise too_large(limits.body_max)
        call.has_body = length != "0"
    elif message.chunked:
        call.has_body = True
    if message.upgrade:
        call.websocket = message.headers.get("Upgrade", "").lower() == "websocket"
    return call


def _is_clean(target: str) -> bool:
    return target.isascii() and target.isprintable() and " " not in target and "#" not in target


def block_of(data: bytes, message: Message) -> bytes:
    """The header fields of `message`, whose head begins `data`, but for its Content-Length; empty if it is not whole.

    Equal blocks have equal fields: a kept-alive client repeats itself to the byte, and comparing costs a tenth of
    sorting anew. That `data` really begins with this head, and not in the middle of one sent in pieces, is checked by
    the request line and the number of fields.
    """
    start = data.find(b"\r\n")
    end = data.find(b"\r\n\r\n", start)
    if end <= start or not data.startswith(f"{message.method} {message.path} HTTP/".encode("utf-8", "surrogateescape")):
        return b""
    block = data[start : end + 2]
    if block.count(b"\n") != len(message.raw_headers) + 1:
        return b""
    at = block.find(b"\r\nContent-Length: ")
    if at < 0:
        at = block.find(b"\r\ncontent-length: ")
        if at < 0:
            return block
    return block[:at] + block[block.find(b"\r\n", at + 2) :]


def sort_fields(raw_headers: tuple[tuple[bytes, bytes], ...]) -> Fields:
    """What the header fields say. Raises `Refusal` (MALFORMED, INVALID_KEY)."""
    fields = Fields()
    listed: list[bytes] = []
    for name, value in raw_headers:
        fate = _FATES.get(name) or _FATES.get(name.lower())
        if fate is None:
            fields.lines.append(b"%b: %b\r\n" % (name, value))
        elif fate == _CONNECTION:
            listed.append(value)  # last, for it takes out what came before or after it
        elif fate != _DROP:
            _HANDLERS[fate](fields, name, value)
    for value in listed:
        _take_connection(fields, b"", value)
    fields.joined = b"".join(fields.lines)
    fields.lines.clear()
    fields.is_json = b"json" in fields.content_type
    return fields


def _take_bearer(fields: Fields, name: bytes, value: bytes) -> None:
    scheme, _, token = value.partition(b" ")
    token = token.strip()
    if scheme.lower() != b"bearer" or not token:
        raise Refusal(RefusalKind.INVALID_KEY, "The Authorization header must be: Bearer YOUR_KEY")
    if fields.has_bearer:
        raise _malformed("the Authorization header is repeated")
    fields.has_bearer = True
    _present(fields, token)


def _take_key(fields: Fields, name: bytes, value: bytes) -> None:
    fields.names |= {name.lower()}
    if value:
        _present(fields, value)


def _present(fields: Fields, key: bytes) -> None:
    if fields.presented is not None and fields.presented != key:
        raise _malformed("more than one API key was sent")
    fields.presented = key


def _take_connection(fields: Fields, name: bytes, value: bytes) -> None:
    """Names that `Connection` lists end here (threat 41)."""
    for token in value.lower().split(b","):
        listed = token.strip()
        if listed in (b"close", b"keep-alive", b"upgrade", b""):
            continue
        if listed in (b"authorization", b"host", b"content-type", b"content-length"):
            raise _malformed("Connection lists a header that must not be dropped")
        fields.lines = [line for line in fields.lines if line.partition(b":")[0].lower() != listed]


def _take_host(fields: Fields, name: bytes, value: bytes) -> None:
    if fields.host or not _HOSTS.has(value):
        raise _malformed("the Host header is malformed or repeated")
    fields.host = value


def _take_type(fields: Fields, name: bytes, value: bytes) -> None:
    if fields.content_type:
        raise _malformed("the Content-Type header is repeated")
    fields.content_type = value
    fields.lines.append(b"%b: %b\r\n" % (name, value))


def _take_encoding(fields: Fields, name: bytes, value: bytes) -> None:
    if fields.content_encoding:
        raise _malformed("the Content-Encoding header is repeated")
    fields.content_encoding = value.strip().lower()
    fields.lines.append(b"%b: %b\r\n" % (name, value))


def _take_protocols(fields: Fields, name: bytes, value: bytes) -> None:
    for token in value.split(b","):
        protocol = token.strip()
        if protocol.startswith(_WS_KEY):
            _present(fields, protocol[len(_WS_KEY) :])
        elif protocol:
            fields.protocols.append(protocol)


def _take_wait(fields: Fields, name: bytes, value: bytes) -> None:
    try:
        seconds = float(value)
    except ValueError:
        raise _malformed("x-yugong-max-wait takes a number of seconds") from None
    if not 0 <= seconds <= 86_400:
        raise _malformed("x-yugong-max-wait takes a number of seconds from 0 to 86400")
    fields.max_wait = seconds


def _take_forwarded(fields: Fields, name: bytes, value: bytes) -> None:
    fields.forwarded_for = fields.forwarded_for + b"," + value if fields.forwarded_for else value


def _take_telling(fields: Fields, name: bytes, value: bytes) -> None:
    """A header whose presence tells one dialect from another."""
    fields.names |= {name.lower()}
    fields.lines.append(b"%b: %b\r\n" % (name, value))


def _take_agent(fields: Fields, name: bytes, value: bytes) -> None:
    fields.agent = value.decode("latin-1")
    fields.lines.append(b"%b: %b\r\n" % (name, value))


def _take_coding(fields: Fields, name: bytes, value: bytes) -> None:
    """llhttp also takes nothing at all, or other codings before `chunked`, which we would lose (RFC 9112 §6.1)."""
    if value.strip().lower() != b"chunked":
        raise _malformed("the only transfer coding known is chunked")


def _take_expect(fields: Fields, name: bytes, value: bytes) -> None:
    if value.lower() != b"100-continue":
        raise _malformed("the only expectation known is 100-continue")
    fields.expects_continue = True


_HANDLERS = {
    _BEARER: _take_bearer,
    _KEY: _take_key,
    _CONNECTION: _take_connection,
    _HOST: _take_host,
    _TYPE: _take_type,
    _ENCODING: _take_encoding,
    _PROTOCOL: _take_protocols,
    _WAIT: _take_wait,
    _FORWARDED: _take_forwarded,
    _EXPECT: _take_expect,
    _TELLING: _take_telling,
    _AGENT: _take_agent,
    _CODING: _take_coding,
}


async def read_body(call: Call, payload: StreamReader, limits: Intake, spool: Spool) -> None:
    """The body, in memory or on disk. Raises `Refusal` (TOO_LARGE, TIMEOUT, NO_SPACE, MALFORMED)."""
    if payload.is_eof():
        call.body = payload.read_nowait(-1)
        call.size = len(call.body)
    else:
        await _read_slowly(call, payload, limits, spool)
    most = most_bytes(call, limits)
    if call.size > most:
        raise too_large(most)


def most_bytes(call: Call, limits: Intake) -> int:
    """Bytes this call's body may have."""
    return min(limits.json_max, limits.body_max) if call.fields.is_json else limits.body_max


async def _read_slowly(call: Call, payload: StreamReader, limits: Intake, spool: Spool) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    most = most_bytes(call, limits)
    pieces: list[bytes] = []
    held = 0
    while not (payload.is_eof() and payload.at_eof()):
        piece = await _next_piece(payload, limits, began, call.size)
        call.size += len(piece)
        held += len(piece)
        if call.size > most:
            raise too_large(most)
        pieces.append(piece)
        if held > limits.body_memory:
            if call.spooled is None:
                call.spooled = spool.open()
            await call.spooled.write(pieces, held)
            pieces, held = [], 0
    if call.spooled is None:
        call.body = b"".join(pieces)
    elif held:
        await call.spooled.write(pieces, held)


async def _next_piece(payload: StreamReader, limits: Intake, began: float, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    grace = max(limits.body_grace, 0.1)
    try:
        async with asyncio.timeout(min(grace, max(began + limits.body_timeout - loop.time(), 0.0))):
            piece = await payload.readany()
    except TimeoutError:
        raise Refusal(RefusalKind.TIMEOUT, "the request body stalled", close=True) from None
    passed = loop.time() - began
    if passed > grace and (size + len(piece)) / passed < limits.min_body_rate and not payload.is_eof():
        raise Refusal(RefusalKind.TIMEOUT, "the request body came too slowly", close=True)
    return piece


def decoded(call: Call, limit: int) -> bytes:
    """The body as its `Content-Encoding` means it, for reading only: what goes upstream is what came.

    Raises `Refusal`: TOO_LARGE past `limit` decoded bytes (threat 47), MALFORMED for a coding unknown or broken.
    """
    if call.fields.content_encoding in (b"", b"identity"):
        return call.body
    if call.fields.content_encoding not in (b"gzip", b"x-gzip", b"deflate"):
        raise _malformed("the Content-Encoding of the request is not supported")
    decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        plain = decoder.decompress(call.body, limit)
    except zlib.error:
        raise _malformed("the body is not what its Content-Encoding says") from None
    if decoder.unconsumed_tail:
        raise too_large(limit)
    if not decoder.eof or decoder.unused_data:
        raise _malformed("the body is not what its Content-Encoding says")
    return plain


def too_large(limit: int) -> Refusal:
    """The refusal of a body over `limit` bytes."""
    return Refusal(RefusalKind.TOO_LARGE, f"the request body is larger than {limit} bytes", close=True)


def _malformed(message: str) -> Refusal:
    return Refusal(RefusalKind.MALFORMED, message, close=True)
