"""Server-sent events: where one ends, and what it says.

Rules. Bytes are never altered: the pieces given out, joined, are the bytes taken in. An event ends at its blank line
whatever the line ends are (LF, CRLF, CR, mixed), and where it ends does not depend on how the bytes were cut: one chunk
equals byte by byte. There is no limit on a line (image events are megabytes), but a cap on what is held: an event over
it is passed on in `Part`s, unread. This file knows no dialect and no JSON.

Source: WHATWG HTML, "Server-sent events", 9.2.5–9.2.6 (parsing and interpreting an event stream).
"""

from __future__ import annotations

import re

#: What a splitter holds of one event before it gives up reading it, in bytes (I13).
CAP = 256 * 1024

_BOM = b"\xef\xbb\xbf"
#: A blank line where carriage returns occur. `\n\r` may be half of a CRLF: its end is known only with the next byte.
_BLANK = re.compile(rb"\n\n|\r\r|\n\r\n|\n\r(?=[^\n])")
_LINE_END = re.compile(rb"\r\n|\n|\r")


class Part(bytes):
    """A piece of an event that is over the cap."""


class LastPart(Part):
    """The piece that ends it."""


class Splitter:
    """Cuts a stream into whole events, terminators included. Holds at most `cap` bytes and one chunk."""

    __slots__ = ("_cap", "_held", "_scanned", "is_over")

    def __init__(self, cap: int = CAP) -> None:
        self._cap = cap
        self._held = bytearray()
        self._scanned = 0
        #: Whether the event at hand is over the cap, and its beginning passed on.
        self.is_over = False

    def __repr__(self) -> str:
        return f"<Splitter holds {len(self._held)}B{' over' if self.is_over else ''}>"

    @property
    def is_between(self) -> bool:
        """Whether nothing of an unfinished event is held or has been passed on."""
        return not self._held and not self.is_over

    def feed(self, data: bytes) -> list[bytes]:
        """The events that end in `data`; an event over the cap comes as `Part`s, the last a `LastPart`."""
        held = self._held
        held += data
        pieces: list[bytes] = []
        start = 0
        while (end := _end_of_event(held, start, self._scanned)) >= 0:
            piece = bytes(held[start:end])
            pieces.append(LastPart(piece) if self.is_over else piece)
            self.is_over = False
            start = self._scanned = end
        if start:
            del held[:start]
        #: A terminator is at most three bytes, the last of which may still be missing.
        self._scanned = max(len(held) - 3, 0)
        if len(held) > self._cap:
            self._overflow(pieces)
        return pieces

    def _overflow(self, pieces: list[bytes]) -> None:
        """Gives up on the event held: passes it on, but for the bytes in which its end may have begun."""
        cut = len(self._held) - 3
        pieces.append(Part(self._held[:cut]))
        del self._held[:cut]
        self._scanned = 0
        self.is_over = True

    def finish(self) -> bytes:
        """What is left at the end of the stream: an event without its blank line, usually nothing."""
        rest = bytes(self._held)
        self._held.clear()
        self._scanned = 0
        self.is_over = False
        return rest


def _end_of_event(held: bytearray, start: int, scanned: int) -> int:
    """Where the event that starts at `start` ends, -1 if not yet. Nothing ends before `scanned`.

    The single-byte searches are an order of magnitude faster than the others: most of a large event is one base64 line.
    """
    at = max(start, scanned)
    if held.find(b"\r", at) < 0:
        line_end = held.find(b"\n", at)
        if line_end < 0:
            return -1
        blank = held.find(b"\n\n", line_end)
        return blank + 2 if blank >= 0 else -1
    match = _BLANK.search(held, at)
    return match.end() if match else -1


def split(data: bytes) -> list[bytes]:
    """The events of bytes known to be whole; a rest without its blank line comes last."""
    if data.find(b"\r") < 0:
        events = [event + b"\n\n" for event in data.split(b"\n\n")]
        rest = events.pop()[:-2]
    else:
        splitter = Splitter(len(data))
        events = splitter.feed(data)
        rest = splitter.finish()
    return [*events, rest] if rest else events


def read_event(event: bytes) -> tuple[bytes, bytes]:
    """The name (`event:`) and data of one event; several data lines are joined by LF. Both empty for a comment."""
    if event[:6] == b"data: " and event.find(b"\n") == len(event) - 2 and event[-1] == 10 and b"\r" not in event:
        return b"", event[6:-2]
    name = b""
    data: list[bytes] = []
    for line in _LINE_END.split(event.lstrip(b"\r\n").removeprefix(_BOM)):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return name, b"\n".join(data)
