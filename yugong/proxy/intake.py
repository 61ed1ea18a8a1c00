"""From bytes to a call: what the head says, then the body, within limits.

Decides what is let in at all (threats 25–27, 38–52): one credential, a sane Host, a path that means one thing to us and
to upstream, bodies bounded by their decoded size, a least rate. Knows no dialect: refusals are worded elsewhere.
aiohttp's parser has already refused malformed HTTP.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from typing import TYPE_CHECKING

from yugong.base.errors import Refusal, RefusalKind
from yugong.base.headers import HOP_BY_HOP, NOT_UPSTREAM

if TYPE_CHECKING:
    from aiohttp.http_parser import RawRequestMessage
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
) = range(1, 13)
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
}

_HOST_FORM = re.compile(rb"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?\Z")
#: A path that two readers could read differently: controls, blanks, dot segments however written, empty segments,
#: back-slashes, NUL, anything encoded twice, a fragment.
_BAD_PATH = re.compile(
    r"[^!-~]|#|\\|//|%00|%5c|%25(?:2e|2f|5c|00|25)|(?:/|%2f)(?:\.|%2e){1,2}(?:/|%2f|\Z)", re.IGNORECASE
)
_KNOWN_MAX = 4096
_WS_KEY = b"openai-insecure-api-key."


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


class Call:
    """A client's request as taken in. Header names and values are raw bytes in the order they came."""

    __slots__ = (
        "body",
        "content_encoding",
        "content_type",
        "expects_continue",
        "forwarded_for",
        "has_body",
        "header_names",
        "host",
        "lines",
        "max_wait",
        "method",
        "path",
        "presented",
        "protocols",
        "query",
        "size",
        "spooled",
        "target",
        "version",
        "websocket",
    )

    def __init__(self, method: str, target: str, version: tuple[int, int]) -> None:
        self.method = method
        #: Raw path with query, as it came.
        self.target = target
        self.path, _, self.query = target.partition("?")
        self.version = version
        self.host = b""
        #: Headers that go upstream, as `name: value` CRLF lines.
        self.lines: list[bytes] = []
        #: Lower-case names of those headers by which dialects tell their calls.
        self.header_names: set[bytes] = set()
        #: The customer key as presented.
        self.presented: bytes | None = None
        self.content_type = b""
        self.content_encoding = b""
        self.max_wait: float | None = None
        self.forwarded_for = b""
        #: Subprotocols asked for, without the one that carried a key.
        self.protocols: list[bytes] = []
        self.websocket = False
        self.expects_continue = False
        self.has_body = False
        self.body: bytes = b""
        self.spooled: Spooled | None = None
        #: Bytes of body as they came.
        self.size = 0

    def __repr__(self) -> str:
        where = "disk" if self.spooled is not None else "memory"
        return f"<Call {self.method} {self.path} {self.size}B in {where}>"


def read_head(message: RawRequestMessage, limits: Intake) -> Call:
    """The call's head. Raises `Refusal` (MALFORMED, TOO_LARGE, HEADERS_TOO_LARGE)."""
    call = Call(message.method, message.path, message.version)
    if not call.target.startswith("/"):
        raise _malformed("the request target must be a path")  # absolute form changes the authority (threat 26)
    if not _PATHS.has(call.path) or (call.query and not _is_clean(call.query)):
        raise _malformed("the path is ambiguous")
    _sort_headers(call, message.raw_headers)
    if not call.host and call.version >= (1, 1):
        raise _malformed("the Host header is missing")
    length = message.headers.get("Content-Length")
    if length is not None and (not length.isdigit() or int(length) > limits.body_max):
        raise too_large(limits.body_max)
    call.has_body = bool(message.chunked) or (length is not None and length != "0")
    call.websocket = bool(message.upgrade) and message.headers.get("Upgrade", "").lower() == "websocket"
    return call


def _is_clean(query: str) -> bool:
    return query.isascii() and query.isprintable() and " " not in query and "#" not in query


def _sort_headers(call: Call, raw_headers: tuple[tuple[bytes, bytes], ...]) -> None:
    lines = call.lines
    fates = _FATES
    special: list[tuple[int, bytes, bytes]] = []
    for name, value in raw_headers:
        fate = fates.get(name) or fates.get(name.lower())
        if fate is None:
            lines.append(b"%b: %b\r\n" % (name, value))
        elif fate != _DROP:
            special.append((fate, name, value))
    for fate, name, value in special:
        _HANDLERS[fate](call, name, value)


def _take_bearer(call: Call, name: bytes, value: bytes) -> None:
    scheme, _, token = value.partition(b" ")
    token = token.strip()
    if scheme.lower() != b"bearer" or not token:
        raise Refusal(RefusalKind.INVALID_KEY, "The Authorization header must be: Bearer YOUR_KEY")
    _present(call, token)


def _take_key(call: Call, name: bytes, value: bytes) -> None:
    call.header_names.add(name.lower())
    if value:
        _present(call, value)


def _present(call: Call, key: bytes) -> None:
    if call.presented is not None and call.presented != key:
        raise _malformed("more than one API key was sent")
    call.presented = key


def _take_connection(call: Call, name: bytes, value: bytes) -> None:
    """Names that `Connection` lists end here (threat 41)."""
    for token in value.lower().split(b","):
        listed = token.strip()
        if listed in (b"close", b"keep-alive", b"upgrade", b""):
            continue
        if listed in (b"authorization", b"host", b"content-type", b"content-length"):
            raise _malformed("Connection lists a header that must not be dropped")
        call.lines = [line for line in call.lines if line.partition(b":")[0].lower() != listed]


def _take_host(call: Call, name: bytes, value: bytes) -> None:
    if call.host or not _HOSTS.has(value):
        raise _malformed("the Host header is malformed or repeated")
    call.host = value


def _take_type(call: Call, name: bytes, value: bytes) -> None:
    if call.content_type:
        raise _malformed("the Content-Type header is repeated")
    call.content_type = value
    call.lines.append(b"%b: %b\r\n" % (name, value))


def _take_encoding(call: Call, name: bytes, value: bytes) -> None:
    if call.content_encoding:
        raise _malformed("the Content-Encoding header is repeated")
    call.content_encoding = value.strip().lower()
    call.lines.append(b"%b: %b\r\n" % (name, value))


def _take_protocols(call: Call, name: bytes, value: bytes) -> None:
    for token in value.split(b","):
        protocol = token.strip()
        if protocol.startswith(_WS_KEY):
            _present(call, protocol[len(_WS_KEY) :])
        elif protocol:
            call.protocols.append(protocol)


def _take_wait(call: Call, name: bytes, value: bytes) -> None:
    try:
        seconds = float(value)
    except ValueError:
        raise _malformed("x-yugong-max-wait takes a number of seconds") from None
    if not 0 <= seconds <= 86_400:
        raise _malformed("x-yugong-max-wait takes a number of seconds from 0 to 86400")
    call.max_wait = seconds


def _take_forwarded(call: Call, name: bytes, value: bytes) -> None:
    call.forwarded_for = call.forwarded_for + b"," + value if call.forwarded_for else value


def _take_telling(call: Call, name: bytes, value: bytes) -> None:
    """A header whose presence tells one dialect from another."""
    call.header_names.add(name.lower())
    call.lines.append(b"%b: %b\r\n" % (name, value))


def _take_expect(call: Call, name: bytes, value: bytes) -> None:
    if value.lower() != b"100-continue":
        raise _malformed("the only expectation known is 100-continue")
    call.expects_continue = True


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
}


async def read_body(call: Call, payload: StreamReader, limits: Intake, spool: Spool) -> None:
    """The body, in memory or on disk. Raises `Refusal` (TOO_LARGE, TIMEOUT, NO_SPACE, MALFORMED)."""
    if payload.is_eof():
        call.body = payload.read_nowait(-1)
        call.size = len(call.body)
    else:
        await _read_slowly(call, payload, limits, spool)
    is_json = b"json" in call.content_type
    if call.size > (limits.json_max if is_json else limits.body_max):
        raise too_large(limits.json_max if is_json else limits.body_max)


async def _read_slowly(call: Call, payload: StreamReader, limits: Intake, spool: Spool) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    most = limits.json_max if b"json" in call.content_type else limits.body_max
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
    if call.content_encoding in (b"", b"identity"):
        return call.body
    if call.content_encoding not in (b"gzip", b"x-gzip", b"deflate"):
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
