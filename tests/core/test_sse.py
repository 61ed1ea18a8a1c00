"""yugong.core.sse: one chunk equals byte by byte, whatever the line ends."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yugong.core.sse import CAP, LastPart, Part, Splitter, read_event, split

LINES = st.lists(
    st.sampled_from(
        [
            b"data: {}",
            b"data:x",
            b"data",
            b"data:  two spaces",
            b"event: a",
            b"event:b",
            b": comment",
            b":",
            b"id: 1",
            b"retry: 5",
            b"nonsense",
            b"",
            b"data: \xf0\x9f\x98\x80",
        ]
    ),
    max_size=12,
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Streams of one line end, or of mixed ones, with or without BOM and a last blank line."""
    out = draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    end = draw(ENDS)
    is_mixed = draw(st.booleans())
    for line in draw(LINES):
        out += line + (draw(ENDS) if is_mixed else end)
    return out


def feed_all(data: bytes, cuts: list[int], cap: int = CAP) -> tuple[list[bytes], bytes]:
    splitter = Splitter(cap)
    pieces: list[bytes] = []
    start = 0
    for cut in [*sorted(cuts), len(data)]:
        pieces += splitter.feed(data[start:cut])
        start = cut
    return pieces, splitter.finish()


def lines_of(data: bytes) -> list[bytes]:
    """A reader of lines as plain as it can be, to compare with."""
    lines, line, at = [], b"", 0
    while at < len(data):
        if data[at : at + 2] == b"\r\n":
            at += 1
        if data[at] in b"\r\n":
            lines.append(line)
            line = b""
        else:
            line += data[at : at + 1]
        at += 1
    return lines


def events_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """What WHATWG's algorithm dispatches, read line by line."""
    events, name, fields, has_data = [], b"", [], False
    for line in lines_of(data.removeprefix(b"\xef\xbb\xbf")):
        if not line:
            if has_data:
                events.append((name, b"\n".join(fields)))
            name, fields, has_data = b"", [], False
        elif line[:1] != b":":
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"data":
                fields.append(value)
                has_data = True
            elif field == b"event":
                name = value
    return events


def has_data(piece: bytes) -> bool:
    return any(line.partition(b":")[0] == b"data" for line in lines_of(piece.removeprefix(b"\xef\xbb\xbf")))


@given(streams(), st.lists(st.integers(0, 150)))
def test_one_chunk_equals_any_chunks(data: bytes, cuts: list[int]) -> None:
    whole = feed_all(data, [])
    assert b"".join(whole[0]) + whole[1] == data
    assert feed_all(data, [cut for cut in cuts if cut < len(data)]) == whole
    assert feed_all(data, list(range(len(data)))) == whole


@given(streams())
def test_events_are_those_of_the_standard(data: bytes) -> None:
    pieces, rest = feed_all(data, [])
    ours = [read_event(piece) for piece in pieces if has_data(piece)]
    assert ours == events_of(data[: len(data) - len(rest)])


@given(streams(), st.lists(st.integers(0, 150)), st.integers(3, 40))
def test_over_the_cap_nothing_is_lost_and_little_held(data: bytes, cuts: list[int], cap: int) -> None:
    splitter = Splitter(cap)
    pieces: list[bytes] = []
    for at in range(len(data)):
        pieces += splitter.feed(data[at : at + 1])
        assert len(splitter._held) <= cap
    assert b"".join(pieces) + splitter.finish() == data
    pieces, rest = feed_all(data, cuts, cap)
    assert b"".join(pieces) + rest == data
    assert all(len(piece) <= cap or isinstance(piece, Part) or b"\n" in piece or b"\r" in piece for piece in pieces)


def test_an_event_over_the_cap_comes_in_parts() -> None:
    splitter = Splitter(10)
    first = splitter.feed(b"data: " + b"x" * 20)
    assert [type(piece) for piece in first] == [Part]
    assert splitter.is_over
    assert not splitter.is_between
    assert repr(splitter) == "<Splitter holds 3B over>"
    last = splitter.feed(b"yy\n\ndata: z\n\n")
    assert last == [b"xxxyy\n\n", b"data: z\n\n"]
    assert [type(piece) for piece in last] == [LastPart, bytes]
    assert splitter.is_between
    assert repr(splitter) == "<Splitter holds 0B>"


@pytest.mark.parametrize(
    ("event", "name", "data"),
    [
        (b"data: x\n\n", b"", b"x"),
        (b"data:x\n\n", b"", b"x"),
        (b"data:  x\n\n", b"", b" x"),
        (b"data: a\ndata: b\n\n", b"", b"a\nb"),
        (b"data\n\n", b"", b""),
        (b"event: e\r\ndata: x\r\n\r\n", b"e", b"x"),
        (b"event:e\rdata:x\r\r", b"e", b"x"),
        (b"\ndata: x\n\n", b"", b"x"),
        (b"\xef\xbb\xbfdata: x\n\n", b"", b"x"),
        (b": ping\n\n", b"", b""),
        (b"data: a\rdata: b\n\n", b"", b"a\nb"),
        (b"data: unended", b"", b"unended"),
        (b"datax: 1\n\n", b"", b""),
    ],
)
def test_fields(event: bytes, name: bytes, data: bytes) -> None:
    assert read_event(event) == (name, data)


def test_a_crlf_cut_in_two_belongs_to_its_event() -> None:
    splitter = Splitter()
    assert splitter.feed(b"data: x\r\n\r") == []
    assert splitter.feed(b"\ndata: y\r\n\r\n") == [b"data: x\r\n\r\n", b"data: y\r\n\r\n"]


@given(streams())
def test_split_equals_the_splitter(data: bytes) -> None:
    pieces, rest = feed_all(data, [])
    assert split(data) == ([*pieces, rest] if rest else pieces)


def test_a_megabyte_line_needs_no_limit() -> None:
    event = b"data: " + b"A" * (1 << 20) + b"\n\n"
    pieces, rest = feed_all(event * 2, list(range(0, len(event) * 2, 65536)), 1 << 21)
    assert pieces == [event, event]
    assert rest == b""


@pytest.mark.slow
def test_a_hundred_thousand_splits() -> None:
    rng = random.Random(52)
    for _ in range(100_000):
        data = b"".join(
            rng.choice([b"data: x", b"data:", b"event: a", b": c", b"", b""]) + rng.choice([b"\n", b"\r\n", b"\r"])
            for _ in range(rng.randrange(12))
        )
        cuts = [rng.randrange(len(data) + 1) for _ in range(rng.randrange(6))]
        assert feed_all(data, cuts) == feed_all(data, [])
