"""Where an answer's body ends: RFC 9112 §6.3, decided once a head, then followed byte by byte.

Decides the framing of a response and takes it apart; knows no socket. Strict where laxness would let two answers blur
into one: a length beside chunking, a length that is not digits or differs, a chunk size with anything but hex before
its extension. Trailers and chunk extensions are dropped (RFC 9112 §7.1.1–2 allow it). Used for what upstream sends;
what clients send is parsed by aiohttp.
"""

from __future__ import annotations

from enum import IntEnum

MAX_CHUNK_LINE = 256  # a size is 16 hex digits at most; the rest is extensions nobody uses
MAX_TRAILERS = 8192
MAX_CHUNK = 1 << 40


class FramingError(ValueError):
    """The bytes cannot be the body they claim to be."""


class Kind(IntEnum):
    NONE = 0
    LENGTH = 1
    CHUNKED = 2
    CLOSE = 3


def body_kind(method: str, status: int, lengths: list[bytes], encodings: list[bytes]) -> tuple[Kind, int]:
    """How the body of an answer ends, and its length where that is said. Raises `FramingError`."""
    if method == "HEAD" or status in (204, 304) or status < 200:
        return Kind.NONE, 0
    if encodings:
        if lengths or len(encodings) != 1 or encodings[0].strip().lower() != b"chunked":
            raise FramingError("transfer-encoding beside a length, twice, or unknown")
        return Kind.CHUNKED, 0
    if not lengths:
        return Kind.CLOSE, 0
    if len(set(lengths)) != 1 or not lengths[0].isdigit() or len(lengths[0]) > 15:
        raise FramingError("content-length")
    length = int(lengths[0])
    return (Kind.LENGTH, length) if length else (Kind.NONE, 0)


class Chunks:
    """Takes chunked coding apart: `feed` returns the payload in `data`; `is_done` when the last chunk went by.

    `is_whole` says that the last `feed` was exactly one or more whole chunks, so that `data` itself may be passed on.
    """

    __slots__ = ("_left", "_line", "_state", "_trailers", "excess", "is_done", "is_whole")

    def __init__(self) -> None:
        self._state = 0  # 0 size line, 1 payload, 2 CR LF after it, 3 trailers
        self._left = 0
        self._line = b""
        self._trailers = 0
        self.is_done = False
        self.is_whole = False
        #: Bytes that came after the end: nobody asked for them.
        self.excess = 0

    def __repr__(self) -> str:
        return f"<Chunks state={self._state} left={self._left} done={self.is_done}>"

    def feed(self, data: bytes) -> bytes:
        """The payload in `data`. Raises `FramingError`."""
        if self._state == 0 and not self._line:  # the common case: one read, one chunk
            end = data.find(b"\r\n", 0, 12)
            if end > 0:
                size = _size(data[:end])
                if size and len(data) == end + size + 4 and data.endswith(b"\r\n"):
                    self.is_whole = True
                    return data[end + 2 : -2]
        self.is_whole = False
        return self._walk(data)

    def _walk(self, data: bytes) -> bytes:
        parts: list[bytes] = []
        at, end = 0, len(data)
        is_whole = self._state == 0 and not self._line
        while at < end:
            if self.is_done:
                self.excess += end - at
                break
            at = self._step(data, at, parts)
        self.is_whole = is_whole and self._state == 0 and not self._line and not self.excess and not self.is_done
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _step(self, data: bytes, at: int, parts: list[bytes]) -> int:
        if self._state == 1:
            piece = data[at : at + self._left]
            parts.append(piece)
            self._left -= len(piece)
            if not self._left:
                self._state = 2
            return at + len(piece)
        line, at = self._take_line(data, at)
        if line is None:
            return at
        if self._state == 2:
            if line:
                raise FramingError("chunk longer than its size")
            self._state = 0
        elif self._state == 0:
            self._left = _size(line)
            self._state = 1 if self._left else 3
        elif line:
            self._trailers += len(line)
            if self._trailers > MAX_TRAILERS:
                raise FramingError("trailers too large")
        else:
            self.is_done = True
        return at

    def _take_line(self, data: bytes, at: int) -> tuple[bytes | None, int]:
        """A line without its CR LF, or None while it is not complete. A bare LF is refused."""
        newline = data.find(b"\n", at)
        stop = len(data) if newline < 0 else newline + 1
        self._line += data[at:stop]
        limit = MAX_TRAILERS if self._state == 3 else MAX_CHUNK_LINE
        if len(self._line) > limit:
            raise FramingError("chunk line too long")
        if self._state == 2 and not b"\r\n".startswith(self._line):
            raise FramingError("chunk longer than its size")
        if newline < 0:
            return None, stop
        if not self._line.endswith(b"\r\n"):
            raise FramingError("bare LF")
        line, self._line = self._line[:-2], b""
        return line, stop


_HEX = frozenset(b"0123456789abcdefABCDEF")


def _size(line: bytes) -> int:
    digits = line.partition(b";")[0].rstrip(b" \t")
    # int() alone would take "+5", "0x5", "5_0" and blanks.
    if not digits or len(digits) > 16 or not _HEX.issuperset(digits):
        raise FramingError("chunk size")
    size = int(digits, 16)
    if size > MAX_CHUNK:
        raise FramingError("chunk size")
    return size


def chunk(payload: bytes) -> bytes:
    """`payload` as one chunk; empty payload would be the end and is refused."""
    assert payload
    return b"%x\r\n%b\r\n" % (len(payload), payload)


LAST_CHUNK = b"0\r\n\r\n"
