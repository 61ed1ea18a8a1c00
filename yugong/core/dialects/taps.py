"""Readers for answers as they go by: usage, whether they ended as they must, whether they failed.

A tap gives back the bytes it is given (the very object); only `StrippingTap` takes out what an added `include_usage`
brought. What it keeps is bounded whatever upstream sends. The formats are a dialect's `StreamRule`s; this file knows
JSON and events, no provider.

Speed. A stream's usual chunk is one whole event of one line. It is told by its first line end standing second to last,
and looked into only where `"usage"` or `"error"` occurs with a value (`rfind`: CPython's backward search costs half of
the forward one). Measured: 0.4–0.6 µs an event of 220 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import orjson

from yugong.core.dialects.dialect import Intent, Usage
from yugong.core.jsonbody import object_after, remove_member
from yugong.core.sse import CAP, LastPart, Part, Splitter, read_event, split

#: What is kept of either end of an answer or event over the cap.
KEEP = 16 * 1024
#: Bytes of text one token is taken for where nothing better is known (OpenAI's own rule of thumb for English).
BYTES_A_TOKEN = 4
MAX_COUNT = 2**53

_FAILURES = frozenset({b"error", b"response.failed"})

Document = Mapping[str, object]


class StreamRule:
    """One format of event stream."""

    __slots__ = ("ends", "name", "read_usage")

    def __init__(
        self, name: str, read_usage: Callable[[Usage | None, Document], Usage | None], ends: frozenset[bytes] | None
    ) -> None:
        self.name = name
        #: Usage so far and an event's document to usage so far.
        self.read_usage = read_usage
        #: Event names or types, or the data `[DONE]`, one of which must come last; None if any clean end will do.
        self.ends = ends

    def __repr__(self) -> str:
        return f"<StreamRule {self.name}>"


def count(value: object) -> int:
    """A figure of a usage object: anything but a plausible integer is zero (threat 58)."""
    if type(value) is int and 0 <= value <= MAX_COUNT:
        return value
    if type(value) is float and 0 <= value <= MAX_COUNT:
        return int(value)
    return 0


def event_kind(event: bytes) -> bytes:
    """The name of an event, or its document's `type`; `[DONE]`; `error` for a document that holds one; else empty."""
    name, data = read_event(event)
    if data == b"[DONE]":
        return data
    document = _document(data)
    if document.get("error"):
        return b"error"
    kind = document.get("type")
    return name or (kind.encode("utf-8", "replace") if isinstance(kind, str) else b"")


def _document(data: bytes) -> Document:
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _is_comment(event: bytes) -> bool:
    """A comment, or nothing but line ends. An event may begin with a comment and go on with data."""
    return event.lstrip(b"\r\n")[:1] in {b":", b""} and not read_event(event)[1]


def _has_failed(document: Document) -> bool:
    return bool(document.get("error")) or document.get("type") in ("error", "response.failed")


def _tells(event: bytes) -> bool:
    """Whether an event is worth parsing. `SseTap.feed` has the same written out."""
    at = event.rfind(b'"usage"')
    if at >= 0 and event[at + 7 : at + 12] != b":null":
        return True
    at = event.rfind(b'"error"')
    return at >= 0 and event[at + 7 : at + 12] != b":null"


def _text_bytes(document: Document) -> int:
    """Bytes of generated text in one event, as far as its shape is known: for estimates only."""
    total = 0
    choices = document.get("choices")
    for part in [document, *(choices if isinstance(choices, list) else ())]:
        if not isinstance(part, dict):
            continue
        for value in (part.get("delta"), part.get("text")):
            texts = value.values() if isinstance(value, dict) else (value,)
            total += sum(len(text.encode("utf-8", "replace")) for text in texts if isinstance(text, str))
    return total


class ByteTap:
    """For answers nothing is read in: binary, plain text, errors."""

    __slots__ = ("delivered_bytes",)
    is_transparent = True

    def __init__(self) -> None:
        self.delivered_bytes = 0

    def __repr__(self) -> str:
        return f"<ByteTap {self.delivered_bytes}B>"

    def feed(self, data: bytes) -> bytes:
        self.delivered_bytes += len(data)
        return data

    def finish(self) -> bytes:
        return b""

    def usage(self) -> Usage | None:
        return None

    def is_complete(self) -> bool:
        return True

    def has_failed(self) -> bool:
        return False

    def delivered_events(self) -> int:
        return 0

    def is_between_events(self) -> bool:
        return False


class JsonTap:
    """For one JSON document. Collects up to `cap` bytes; of a longer one it keeps the ends, where usage stands."""

    __slots__ = ("_cap", "_chunks", "_document", "_head", "_is_metered", "_read_usage", "_tail", "delivered_bytes")
    is_transparent = True

    def __init__(
        self, read_usage: Callable[[Usage | None, Document], Usage | None], *, is_metered: bool = True, cap: int = CAP
    ) -> None:
        self._read_usage = read_usage
        self._is_metered = is_metered
        self._cap = cap
        self._chunks: list[bytes] = []
        #: The whole document, once somebody asked whether it is one.
        self._document: object = None
        self._head = b""
        self._tail = b""
        self.delivered_bytes = 0

    def __repr__(self) -> str:
        return f"<JsonTap {self.delivered_bytes}B>"

    def feed(self, data: bytes) -> bytes:
        self.delivered_bytes += len(data)
        self._document = None
        if self.delivered_bytes <= self._cap:
            self._chunks.append(data)
        else:
            self._clip(data)
        return data

    def _clip(self, data: bytes) -> None:
        if self._chunks:
            joined = b"".join(self._chunks)
            self._chunks.clear()
            self._head = joined[:KEEP]
            self._tail = joined[-KEEP:]
        elif not self._head:  # the very first piece is over the cap
            self._head = data[:KEEP]
        self._tail = (self._tail + data[-KEEP:])[-KEEP:]

    def finish(self) -> bytes:
        return b""

    def usage(self) -> Usage | None:
        if not self._is_metered:
            return None
        if isinstance(self._document, dict):
            return self._read_usage(None, self._document)
        if self._chunks:
            return self._usage_in(self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks))
        found = object_after(self._tail, b"usage") or object_after(self._head, b"usage")
        return self._read_usage(None, {"usage": found}) if found else None

    def _usage_in(self, data: bytes) -> Usage | None:
        """Usage stands near the end, behind what may be long. From its name on, the rest with a brace before it is a
        document only if it was a member of the outermost object; then nothing else has to be parsed."""
        at = data.rfind(b'"usage"')
        if at < 0:
            return None
        if data.rfind(b'"service_tier"', 0, at) < 0:
            document = _document(b"{" + data[at:])
            if document:
                return self._read_usage(None, document)
        return self._read_usage(None, _document(data))

    def is_complete(self) -> bool:
        """Whether the document is closed; of a long one only its last byte is looked at."""
        if not self._chunks:
            return self._tail.rstrip()[-1:] in {b"}", b"]"}
        try:
            self._document = orjson.loads(self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks))
        except orjson.JSONDecodeError:
            return False
        return True

    def has_failed(self) -> bool:
        return False

    def delivered_events(self) -> int:
        return 0

    def is_between_events(self) -> bool:
        return False


class SseTap:
    """For event streams."""

    __slots__ = (
        "_events",
        "_failed",
        "_head",
        "_input_bytes",
        "_is_between",
        "_is_cut",
        "_is_metered",
        "_last",
        "_rule",
        "_splitter",
        "_tail",
        "_usage",
        "delivered_bytes",
    )
    is_transparent = True

    def __init__(self, rule: StreamRule, intent: Intent, cap: int = CAP) -> None:
        self._rule = rule
        self._is_metered = intent.is_metered
        self._input_bytes = intent.input_bytes
        self._splitter = Splitter(cap)
        self._is_between = True
        #: Whether the stream ended inside an event. Clients throw such an event away (WHATWG HTML, 9.2.6).
        self._is_cut = False
        self._events = 0
        self._failed = False
        #: The last chunk that was no comment: how the stream ended is read in it when somebody asks.
        self._last = b""
        self._usage: Usage | None = None
        #: Both ends of an event over the cap.
        self._head = b""
        self._tail = b""
        self.delivered_bytes = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._rule.name} events={self._events} {self.delivered_bytes}B>"

    def feed(self, data: bytes) -> bytes:
        length = len(data)
        self.delivered_bytes += length
        if self._is_between and data[-2:] == b"\n\n":
            at = data.find(b"\n")
            # One line, or two (`event:` and `data:`). `> 58`: a name's letter, since a comment or blank line must not
            # hide the event before it.
            if (at == length - 2 or data.find(b"\n", at + 1) == length - 2) and data[0] > 58:
                self._events += 1
                self._last = data
                at = data.rfind(b'"usage"')
                if at >= 0 and data[at + 7 : at + 12] != b":null":
                    self._look(data)
                else:
                    at = data.rfind(b'"error"')
                    if at >= 0 and data[at + 7 : at + 12] != b":null":
                        self._look(data)
                return data
        self._feed_slowly(data)
        return data

    def _feed_slowly(self, data: bytes) -> None:
        """Several events, events of several lines, or a piece of one."""
        if self._is_between and data[-2:] == b"\n\n":
            self._take_all(data)
            return
        splitter = self._splitter
        for piece in splitter.feed(data):
            if isinstance(piece, Part):
                self._take_part(piece)
            else:
                self._take(piece)
        self._is_between = splitter.is_between

    def _take_all(self, data: bytes) -> None:
        """Whole events. `> 58`: begins with a field's name, so not with a comment or a blank line."""
        is_plain = data[0] > 58 and data.find(b"\r") < 0 and data.rfind(b"\n:") < 0 and data.rfind(b"\n\n\n") < 0
        if is_plain and data.rfind(b'"usage"') < 0 and data.rfind(b'"error"') < 0:
            self._events += data.count(b"\n\n")
            self._last = data
            return
        for event in split(data):
            self._take(event)

    def _take(self, event: bytes) -> None:
        if _is_comment(event):
            return
        self._events += 1
        self._last = event
        if _tells(event):
            self._look(event)

    def _look(self, data: bytes) -> None:
        """Reads an event; several, if what looked like one has bare carriage returns in it."""
        for event in split(data) if b"\r" in data else (data,):
            document = _document(read_event(event)[1])
            if _has_failed(document):
                self._failed = True
            if self._is_metered:
                self._usage = self._rule.read_usage(self._usage, document)

    def _take_part(self, part: bytes) -> None:
        """A piece of an event over the cap: its ends say what it is and what it used."""
        if not self._head:
            self._head = part[:KEEP]
        self._tail = (self._tail + part[-KEEP:])[-KEEP:]
        if not isinstance(part, LastPart):
            return
        self._events += 1
        name, _ = read_event(self._head)
        kind = name or _kind_in(self._head)
        found = object_after(self._tail, b"usage")
        if self._is_metered and found:
            self._usage = self._rule.read_usage(self._usage, {"type": kind.decode("utf-8", "replace"), "usage": found})
        self._failed = self._failed or kind in _FAILURES
        self._last = b"event: " + kind + b"\n\n"
        self._head = self._tail = b""

    def finish(self) -> bytes:
        rest = self._splitter.finish()
        if rest:
            self._take(rest)
            self._is_cut = not _is_comment(rest)
            self._is_between = rest[-1:] in {b"\n", b"\r"}
        return b""

    def usage(self) -> Usage | None:
        """What was said; where nothing was, or only how it began (a rule marks that as estimated), a guess at what
        was delivered."""
        said = self._usage
        if not self._is_metered or not self._events or (said is not None and not said.is_estimated):
            return said
        guess = self._estimate()
        if said is None:
            return guess
        said.output = max(said.output, guess.output)
        return said

    def _estimate(self) -> Usage:
        """What was delivered, guessed: an event is a token at least, more where its text is longer than one."""
        last = self._last_event()
        text = _text_bytes(_document(read_event(last)[1]))
        envelope = len(last) - text if text else self.delivered_bytes // self._events
        text_in_all = self.delivered_bytes - self._events * envelope
        usage = Usage(self._input_bytes // BYTES_A_TOKEN, max(self._events, text_in_all // BYTES_A_TOKEN))
        usage.is_estimated = True
        return usage

    def _last_event(self) -> bytes:
        return next((event for event in reversed(split(self._last)) if not _is_comment(event)), b"")

    def is_complete(self) -> bool:
        if self._rule.ends is None:
            return self._is_between
        last = self._last_event()
        # `[DONE]` says nothing that could be missing; an end that does must be whole
        return event_kind(last) in self._rule.ends and (not self._is_cut or read_event(last)[1] == b"[DONE]")

    def has_failed(self) -> bool:
        """`event: error` with nothing of an error in its data (assistants) is looked for only at the end."""
        return not self._is_cut and (self._failed or event_kind(self._last_event()) in _FAILURES)

    def delivered_events(self) -> int:
        return self._events

    def is_between_events(self) -> bool:
        return self._is_between and not self._is_cut


def _kind_in(head: bytes) -> bytes:
    """The first `"type":"…"` in the head of an event that was not kept whole."""
    at = head.find(b'"type"')
    if at < 0:
        return b""
    start = head.find(b'"', at + 6) + 1
    end = head.find(b'"', start)
    return head[start:end] if 0 < start < end <= start + 100 else b""


class StrippingTap(SseTap):
    """For a stream to which usage was added for a client that did not ask: it sees what it would have seen without.

    Out go `"usage":null` members and the extra event with `"choices":[]` and the usage (facts/providers.md §3).
    """

    __slots__ = ()
    is_transparent = False

    def feed(self, data: bytes) -> bytes:
        self.delivered_bytes += len(data)
        if self._is_between and data[-2:] == b"\n\n":
            if data.find(b"\n") == len(data) - 2:
                return self._strip(data)
            if data.find(b"\r") < 0:  # a slow reader gets several events at once
                return b"".join([self._strip(event + b"\n\n") for event in data[:-2].split(b"\n\n")])
        splitter = self._splitter
        out = b"".join([self._strip(piece) for piece in splitter.feed(data)])
        self._is_between = splitter.is_between
        return out

    def _strip(self, piece: bytes) -> bytes:
        """An event without its `"usage":null`; nothing for the extra event."""
        if isinstance(piece, Part):
            self._take_part(piece)
            return bytes(piece)
        at = piece.rfind(b',"usage":null')
        # Outermost, if the only bracket that closes behind it is the last: then bytes can be cut out unparsed. An
        # unescaped quotation mark behind a comma can only open a member's name.
        is_outermost = at > 0 and piece.find(b"}", at) == len(piece) - 3 and piece.find(b"]", at) < 0
        if is_outermost and piece.find(b"\n") == len(piece) - 2 and piece[-1] == 10 and piece.find(b"\r") < 0:
            self._events += 1
            self._last = piece
            return piece[:at] + piece[at + 13 :]
        return self._strip_slowly(piece)

    def _strip_slowly(self, piece: bytes) -> bytes:
        self._take(piece)
        if piece.rfind(b'"usage"') < 0:
            return piece
        data = read_event(piece)[1]
        document = _document(data)
        if "usage" not in document:
            return piece
        if document["usage"] is None:
            at = piece.find(data)
            return piece if at < 0 else piece[:at] + remove_member(data, "usage") + piece[at + len(data) :]
        if document.get("choices") == []:
            self._events -= 1
            return b""
        return piece

    def is_between_events(self) -> bool:
        return not self._splitter.is_over and not self._is_cut  # what is unfinished is still held here

    def finish(self) -> bytes:
        rest = self._splitter.finish()
        self._is_between = not rest
        if not rest:
            return b""
        kept = self._strip(rest)
        self._is_cut = not _is_comment(rest)
        return kept
