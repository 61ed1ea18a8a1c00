"""An answer's head: parsed once, with an eye only for what somebody needs.

`httptools` checks the syntax and calls a dictionary's own `__setitem__` for each header (4 µs a head; a Python callback
costs as much again); one pass then sorts the names by a table that remembers every spelling. Knows no dialect: which
headers reach the client is given by whoever makes the reader.
"""

from __future__ import annotations

import re

import httptools

from yugong.core.framing import FramingError, Kind, body_kind

MAX_HEAD = 64 * 1024  # bytes; Cloudflare allows 128 KiB upstream, nobody sends more than 16
_SPELLINGS_MAX = 2048

# What a header is to us, by its name.
_DULL, _PASS, _LENGTH, _ENCODING, _TYPE, _LINK, _LIMIT = range(7)
_FIXED = {
    b"content-length": _LENGTH,
    b"transfer-encoding": _ENCODING,
    b"content-type": _TYPE,
    b"link": _LINK,
    b"location": _LINK,
    b"connection": _DULL,
}
#: List headers that may come in several lines (RFC 9110 §5.3); of any other the last line counts.
_CONNECTION = re.compile(rb"\r\nconnection:([^\r]*)", re.IGNORECASE)
_REPEATABLE = (b"\r\nlink:", b"\r\nvary:", b"\r\ncache-control:", b"\r\nallow:")


class Head:
    """An answer's head."""

    __slots__ = ("content_type", "fields", "has_limits", "is_kept_alive", "kind", "length", "lines", "links", "status")

    def __init__(self, status: int, fields: dict[bytes, bytes]) -> None:
        self.status = status
        #: Every header by its name as sent.
        self.fields = fields
        self.content_type = b""
        #: Header lines that the client gets as they are, CRLF-ended.
        self.lines: list[bytes] = []
        #: `Location` and `Link`, which name the origin.
        self.links: list[tuple[bytes, bytes]] = []
        #: Whether some header speaks of limits.
        self.has_limits = False
        self.is_kept_alive = False
        self.kind = Kind.NONE
        #: Bytes of body where `kind` is LENGTH.
        self.length = 0

    def __repr__(self) -> str:
        return f"<Head {self.status} {self.kind.name.lower()} {self.length}B {len(self.fields)} headers>"

    def let_go(self) -> None:
        """Everything has been read: 5 kB that need not live as long as a stream."""
        self.fields = {}
        self.lines = []

    def pairs(self) -> list[tuple[bytes, bytes]]:
        """Every header, names in lower case."""
        return [(name.lower(), value) for name, value in self.fields.items()]

    def get(self, name: bytes) -> bytes:
        """The value of a header by its lower-case name, empty where it is missing."""
        for key, value in self.fields.items():
            if key.lower() == name:
                return value
        return b""


class _Fields:
    """What httptools calls back: with no Python in between."""

    __slots__ = ("fields", "on_header")

    def __init__(self) -> None:
        self.fields: dict[bytes, bytes] = {}
        self.on_header = self.fields.__setitem__


class HeadReader:
    """Reads heads for a client that gets the headers in `allowed` (lower-case names)."""

    __slots__ = ("_allowed", "_spellings")

    def __init__(self, allowed: frozenset[bytes]) -> None:
        self._allowed = allowed
        self._spellings: dict[bytes, int] = {}

    def __repr__(self) -> str:
        return f"<HeadReader allowed={len(self._allowed)} spellings={len(self._spellings)}>"

    def read(self, data: bytes, method: str) -> Head:
        """The head in `data`, which ends with its blank line. Raises `FramingError` for what is no head."""
        if len(data) > MAX_HEAD:
            raise FramingError("the head is too large")
        sink = _Fields()
        parser = httptools.HttpResponseParser(sink)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # a 101: the head is whole, what follows is no longer HTTP
        except httptools.HttpParserError as error:
            raise FramingError(f"head: {error}") from None
        fields = sink.fields
        if data.count(b"\n") != len(fields) + 2:
            self._join_repeated(data, fields)
        head = Head(parser.get_status_code(), fields)
        self._sort(head, fields, method)
        if head.status < 100:
            raise FramingError(f"head: status {head.status}")
        if head.kind is Kind.NONE:  # the parser is through with the message and has forgotten what it said
            head.is_kept_alive = _keeps_alive(parser.get_http_version(), data)
        else:
            head.is_kept_alive = parser.should_keep_alive() and head.kind is not Kind.CLOSE
        return head

    def _sort(self, head: Head, fields: dict[bytes, bytes], method: str) -> None:
        spellings = self._spellings
        lengths: list[bytes] = []
        encodings: list[bytes] = []
        for name, value in fields.items():
            fate = spellings.get(name)
            if fate is None:
                fate = self._learn(name)
            if fate == _DULL:
                continue
            if fate == _PASS:
                head.lines.append(b"%b: %b\r\n" % (name, value))
            elif fate == _TYPE:
                head.content_type = value
                head.lines.append(b"%b: %b\r\n" % (name, value))
            elif fate == _LIMIT:
                head.has_limits = True
            elif fate == _LENGTH:
                lengths.append(value)
            elif fate == _ENCODING:
                encodings.append(value)
            else:
                head.links.append((name, value))
        head.kind, head.length = body_kind(method, head.status, lengths, encodings)

    def _learn(self, name: bytes) -> int:
        low = name.lower()
        fate = _FIXED.get(low, _PASS if low in self._allowed else _LIMIT if b"ratelimit" in low else _DULL)
        if len(self._spellings) < _SPELLINGS_MAX:
            self._spellings[name] = fate
        return fate

    def _join_repeated(self, data: bytes, fields: dict[bytes, bytes]) -> None:
        """Some header came twice: the lists among them are joined, the rest is as if only the last had come."""
        lowered = data.lower()
        if lowered.count(b"\r\ntransfer-encoding:") > 1:  # a dictionary keeps the last only
            raise FramingError("transfer-encoding twice")
        for prefix in _REPEATABLE:
            if lowered.count(prefix) > 1:
                name = prefix[2:-1]
                values = [
                    line.partition(b":")[2].strip()
                    for line in data.split(b"\r\n")
                    if line[: len(name) + 1].lower() == name + b":"
                ]
                spelling = next(key for key in fields if key.lower() == name)
                fields[spelling] = b", ".join(values)


def _keeps_alive(version: str, data: bytes) -> bool:
    """RFC 9112 §9.3, for answers without a body."""
    options = {option.strip().lower() for line in _CONNECTION.findall(data) for option in line.split(b",")}
    return b"close" not in options and (version == "1.1" or b"keep-alive" in options)
