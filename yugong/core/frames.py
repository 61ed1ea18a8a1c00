"""Where a WebSocket frame ends, and which ones may go by: RFC 6455 §5, one direction at a time.

Decides what is passed on (`feed` returns it), when a peer has broken the protocol (`FrameError`) and what the tap sees.
Knows no socket, no clock and no dialect. Frames pass as they came, mask and all; a payload is only unmasked where the
tap must read it. Frames up to `hold_max` are passed on whole, so that a close frame can be put after each of them, and
a key in one (threat 7) can be taken out; longer ones go straight through, seen by their beginning only.

No extension is ever negotiated (see upstream/handshake), so reserved bits are always wrong. Text is not checked for
UTF-8: the two ends do that, we are between them.
"""

from __future__ import annotations

from collections.abc import Callable

#: First bytes of a frame: FIN bit and opcode (RFC 6455 §5.2).
TEXT, BINARY, CLOSE, PING, PONG = 0x81, 0x82, 0x88, 0x89, 0x8A

#: Takes a text message's payload, at most `hold_max` bytes of it, and whether that is all.
See = Callable[[bytes, bool], None]
#: Masks or unmasks: the four bytes of the key, the payload.
Unmask = Callable[[bytes, bytes], bytes]
#: Takes a payload with something like a key in it and returns what may be passed on.
Clean = Callable[[bytes], bytes]

KEY_MARK = b"sk-"  # every key of the OpenAI and Anthropic kind begins so; nothing in base64 does
CONTROL_MAX = 125  # bytes, RFC 6455 §5.5

_NONE, _IN_TEXT, _IN_BINARY = 0, 1, 2
#: The message under way after a frame, by (message under way before it, first byte); what is missing is an error.
#: Control frames may come between fragments and change nothing.
_CONTROL = dict.fromkeys((CLOSE, PING, PONG))
_NEXT: tuple[dict[int, int | None], ...] = (
    {0x01: _IN_TEXT, 0x02: _IN_BINARY, TEXT: _NONE, BINARY: _NONE, **_CONTROL},
    {0x00: _IN_TEXT, 0x80: _NONE, **_CONTROL},
    {0x00: _IN_BINARY, 0x80: _NONE, **_CONTROL},
)


def unmask(key: bytes, payload: bytes) -> bytes:
    """`payload` masked or unmasked by the four bytes of `key` (RFC 6455 §5.3), as one big number: 3 µs a kilobyte."""
    size = len(payload)
    pad = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(pad, "little")).to_bytes(size, "little")


class FrameError(Exception):
    """The peer broke the protocol or a cap; the connection cannot go on.

    `code` is the close code it earns (1002 protocol, 1009 too big), `ready` what came before it and may be passed on.
    """

    __slots__ = ("code", "ready", "reason")

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.ready = b""

    def __repr__(self) -> str:
        return f"<FrameError {self.code} {self.reason} ready={len(self.ready)}B>"


class FrameCaps:
    """Bytes of payload: in one frame, in one message over all its fragments, and up to which a frame is held."""

    __slots__ = ("frame_max", "hold_max", "message_max")

    def __init__(self, frame_max: int, message_max: int, hold_max: int) -> None:
        assert hold_max >= CONTROL_MAX, "control frames are always held whole"
        self.frame_max = frame_max
        self.message_max = message_max
        self.hold_max = hold_max

    def __repr__(self) -> str:
        return f"<FrameCaps frame={self.frame_max}B message={self.message_max}B hold={self.hold_max}B>"


class FrameScanner:
    """Follows the frames of one direction. `is_masked`: they come from a client (RFC 6455 §5.1); `unmask` may be
    replaced by one in C.

    `see` is called for each text message, after `clean` where that applied; what it raises ends the relay. `clean`
    needs unmasked frames. One chunk or byte by byte: the same bytes come out and the same calls are made.
    """

    __slots__ = (
        "_caps",
        "_clean",
        "_held",
        "_is_masked",
        "_key",
        "_left",
        "_message",
        "_message_size",
        "_need",
        "_room",
        "_see",
        "_seen",
        "_seen_all",
        "_stream_first",
        "_stream_size",
        "_unmask",
        "close_code",
        "close_reason",
        "frames",
        "is_closed",
    )

    def __init__(
        self,
        caps: FrameCaps,
        *,
        is_masked: bool,
        see: See | None = None,
        clean: Clean | None = None,
        unmask: Unmask = unmask,
    ) -> None:
        assert not (is_masked and clean), "a masked frame is passed on as it came"
        self._caps = caps
        self._is_masked = is_masked
        self._see = see
        self._clean = clean
        self._unmask = unmask
        self._held = bytearray()
        self._need = 0  # bytes that must be in `_held` before anything more can be said
        self._left = 0  # payload still to come of a frame that goes straight through
        self._stream_first = 0
        self._stream_size = 0
        self._key = b""
        self._message = _NONE
        self._message_size = 0
        self._room = min(caps.frame_max, caps.message_max)  # what the next data frame may have
        self._seen = bytearray()  # the message under way, as far as the tap will see it
        self._seen_all = True
        #: Frames passed whole.
        self.frames = 0
        #: The peer has sent its close frame: nothing after it counts.
        self.is_closed = False
        #: What that said; 1005 for a close frame without a code (RFC 6455 §7.1.5).
        self.close_code = 0
        self.close_reason = b""

    def __repr__(self) -> str:
        state = f"closed {self.close_code}" if self.is_closed else "open"
        return f"<FrameScanner {state} frames={self.frames} held={len(self._held)}B left={self._left}B>"

    @property
    def is_mid_frame(self) -> bool:
        """Whether part of a frame has been passed on: nothing can be put in until its end."""
        return self._left > 0

    def feed(self, data: bytes) -> bytes:
        """What may be passed on now: mostly the very object given. Raises `FrameError`, once; and what `see` raises."""
        if self._need:
            held = self._held
            held += data
            if len(held) < self._need:
                return b""
            data = bytes(held)
            held.clear()
            self._need = 0
        return self._walk(data)

    def _walk(self, data: bytes) -> bytes:
        """Goes from frame to frame; `start` is the first byte not yet in `done`."""
        start, end = 0, len(data)
        at = self._stream(data, 0) if self._left else 0
        done: list[bytes] = []
        try:
            while at < end and not self.is_closed:
                payload_at, size = self._head(data, at, end)
                if not payload_at:
                    break
                first, frame_end = data[at], payload_at + size
                if size > self._caps.hold_max:
                    at = self._begin_stream(data, at, payload_at, size)
                    continue
                if frame_end > end:
                    self._hold(data, at, frame_end - at)
                    break
                changed = self._pass_whole(first, data, payload_at, frame_end)
                if changed is not None:
                    done += (data[start:at], write_frame(first, changed))
                    start = frame_end
                at = frame_end
        except FrameError as error:
            error.ready = b"".join((*done, data[start:at]))
            raise
        if done:
            return b"".join((*done, data[start:at]))
        return data if at == end else data[:at]

    def _hold(self, data: bytes, at: int, need: int) -> None:
        self._held += data[at:]
        self._need = need

    def _head(self, data: bytes, at: int, end: int) -> tuple[int, int]:
        """Where the payload begins and its size; (0, 0) if the head is not there yet. Raises `FrameError`."""
        if end - at < 2:
            self._hold(data, at, 2)
            return 0, 0
        first, second = data[at], data[at + 1]
        if first not in _NEXT[self._message]:
            raise FrameError(1002, _why(first, self._message))
        if (second > 127) is not self._is_masked:
            raise FrameError(1002, "frame not masked" if self._is_masked else "frame masked")
        size = second & 127
        wide = 0 if size < 126 else 2 if size == 126 else 8
        if wide:
            if first >= CLOSE:
                raise FrameError(1002, "control frame too long")
            if end - at < 2 + wide:
                self._hold(data, at, 2 + wide)
                return 0, 0
            # More bytes than the size needs are let pass: both ends read them alike.
            size = int.from_bytes(data[at + 2 : at + 2 + wide], "big")
            if size >> 63:
                raise FrameError(1002, "frame size out of range")
        if size > self._room and first < CLOSE:
            raise FrameError(1009, self._too_big(size))
        if size == 1 and first == CLOSE:
            raise FrameError(1002, "close frame with half a code")
        payload_at = at + 2 + wide + (4 if self._is_masked else 0)
        if payload_at > end:
            self._hold(data, at, payload_at - at)
            return 0, 0
        return payload_at, size

    def _too_big(self, size: int) -> str:
        caps = self._caps
        return f"frame over {caps.frame_max}B" if size > caps.frame_max else f"message over {caps.message_max}B"

    # -- frames that are held whole ---------------------------------------------------------------------------------

    def _pass_whole(self, first: int, data: bytes, at: int, end: int) -> bytes | None:
        """Takes note of a frame; its payload if that had to be changed."""
        self.frames += 1
        if first == TEXT:
            if self._see is None and self._clean is None:
                return None
            payload, changed = self._read(data, at, end)
            if self._see is not None:
                self._see(payload, True)
            return changed
        if first in (BINARY, PING, PONG):
            return None
        if first == CLOSE:
            return self._on_close(data, at, end)
        changed = None
        if self._message == _IN_TEXT or first == 0x01:
            payload, changed = self._read(data, at, end)
            self._gather(payload)
        self._after_fragment(first, end - at)
        return changed

    def _read(self, data: bytes, at: int, end: int) -> tuple[bytes, bytes | None]:
        """The payload in the clear, and again if it is not what came."""
        payload = data[at:end]
        if self._is_masked:
            return self._unmask(data[at - 4 : at], payload), None
        if self._clean is not None and KEY_MARK in payload:
            clean = self._clean(payload)
            if clean != payload:
                return clean, clean
        return payload, None

    def _on_close(self, data: bytes, at: int, end: int) -> bytes | None:
        payload = data[at:end]
        if self._is_masked:
            payload = self._unmask(data[at - 4 : at], payload)
        code, reason = payload[:2], payload[2:]
        self.is_closed = True
        self.close_code = int.from_bytes(code, "big") if code else 1005
        self.close_reason = reason
        if self._clean is None or KEY_MARK not in reason:
            return None
        self.close_reason = _cut_text(self._clean(reason), CONTROL_MAX - 2)
        return code + self.close_reason

    # -- messages in several frames ---------------------------------------------------------------------------------

    def _gather(self, payload: bytes) -> None:
        if self._see is not None:
            room = self._caps.hold_max - len(self._seen)
            self._seen += payload[:room]
            self._seen_all = self._seen_all and len(payload) <= room

    def _after_fragment(self, first: int, size: int) -> None:
        """The message goes on, or has ended and is shown."""
        was, after = self._message, _NEXT[self._message][first]
        assert after is not None
        self._message = after
        self._message_size += size
        self._room = min(self._caps.frame_max, self._caps.message_max - self._message_size)
        if after == _NONE:
            self._message_size = 0
            self._room = min(self._caps.frame_max, self._caps.message_max)
            if self._see is not None and (was == _IN_TEXT or first == TEXT):
                payload, is_whole = bytes(self._seen), self._seen_all
                self._seen.clear()
                self._seen_all = True
                self._see(payload, is_whole)

    # -- frames too long to hold ------------------------------------------------------------------------------------

    def _begin_stream(self, data: bytes, at: int, payload_at: int, size: int) -> int:
        self._stream_first = data[at]
        self._stream_size = size
        self._key = data[payload_at - 4 : payload_at] if self._is_masked else b""
        self._left = size
        return self._stream(data, payload_at)

    def _stream(self, data: bytes, at: int) -> int:
        """Takes what is there of a long frame; where it stops."""
        stop = min(at + self._left, len(data))
        first = self._stream_first
        if self._see is not None and (first in (0x01, TEXT) or self._message == _IN_TEXT):
            self._gather_stream(data, at, stop)
        self._left -= stop - at
        if self._left == 0:
            self.frames += 1
            self._after_fragment(first, self._stream_size)
        return stop

    def _gather_stream(self, data: bytes, at: int, stop: int) -> None:
        payload = data[at : min(stop, at + self._caps.hold_max - len(self._seen))]
        if self._is_masked:
            turn = (self._stream_size - self._left) % 4
            payload = self._unmask(self._key[turn:] + self._key[:turn], payload)
        self._seen += payload
        self._seen_all = False  # such a frame is longer than what is shown


def _why(first: int, message: int) -> str:
    """What is wrong with a first byte that the table does not have."""
    if first & 0x70:
        return "reserved bit set"
    if first & 0x0F not in (0, 1, 2, 8, 9, 10):
        return "unknown opcode"
    if first & 0x08:
        return "control frame in fragments"
    return "message begun within a message" if message else "continuation of nothing"


def _cut_text(text: bytes, limit: int) -> bytes:
    """At most `limit` bytes of UTF-8, no character cut in two."""
    return text if len(text) <= limit else text[:limit].decode("utf-8", "ignore").encode()


def write_frame(first: int, payload: bytes, mask: bytes = b"") -> bytes:
    """A frame; `first` is its first byte. `mask`: four unpredictable bytes where we speak as a client, else empty."""
    size = len(payload)
    bit = 0x80 if mask else 0
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 1 << 16:
        head = bytes((first, bit | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, bit | 127)) + size.to_bytes(8, "big")
    return head + mask + unmask(mask, payload) if mask else head + payload


def write_close(code: int, reason: str, mask: bytes = b"") -> bytes:
    """A close frame; `reason` is cut to what fits (123 bytes)."""
    return write_frame(CLOSE, code.to_bytes(2, "big") + _cut_text(reason.encode(), CONTROL_MAX - 2), mask)


def has_usage(payload: bytes) -> bool:
    """Whether a message is worth parsing for usage (`response.done`, `response.completed`, `session.closed` …)."""
    return b"usage" in payload


def first_text(data: bytes, caps: FrameCaps) -> bytes | None:
    """The first text message in what a server has sent so far, or None. Raises `FrameError`."""
    found: list[bytes] = []
    FrameScanner(caps, is_masked=False, see=lambda payload, _: found.append(payload)).feed(data)
    return found[0] if found else None
