"""upstream/connection without sockets: however an answer is cut, it is the same; whatever comes, only `WireFault`.

The transport is a record of what was asked of it; it stops delivering when paused or closed, as a real one does.
"""

import asyncio
import itertools

import uvloop
from hypothesis import example, given
from hypothesis import strategies as st

from yugong.base.errors import WireFault
from yugong.base.headers import TO_CLIENT
from yugong.upstream.connection import Connection
from yugong.upstream.head import HeadReader

LOOP = uvloop.new_event_loop()
READER = HeadReader(TO_CLIENT)


class Line(asyncio.Transport):
    """Carries bytes to a connection by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.is_closed = False
        self.is_paused = False
        self.connection = Connection(LOOP)
        self.connection.connection_made(self)

    def write(self, data: bytes) -> None:
        pass

    def is_closing(self) -> bool:
        return self.is_closed

    def is_reading(self) -> bool:
        return not (self.is_paused or self.is_closed)

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def abort(self) -> None:
        self.is_closed = True


class Record:
    """A sink that holds its protocol to its word: nothing after the end, no empty piece, one end."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.framed: list[tuple[bytes, bytes]] = []
        self.ending = ""

    def on_body(self, data: bytes, framed: bytes | None) -> None:
        assert data and not self.ending
        self.parts.append(data)
        if framed is not None:
            self.framed.append((data, framed))

    def on_end(self) -> None:
        assert not self.ending
        self.ending = "end"

    def on_fault(self, fault: WireFault) -> None:
        assert not self.ending
        self.ending = fault.kind


def play(pieces, method="GET", attach_after=0, is_ended=True):
    """What a client learns of an answer that comes in `pieces`: (head, body, how it ended, may be reused)."""
    line, record = Line(), Record()
    connection = line.connection
    waiter = connection.send(method, b"", READER)
    has_sink = False
    for number, piece in enumerate(pieces):
        if connection.head is not None and not has_sink and number >= attach_after:
            connection.attach(record)
            has_sink = True
        if line.is_closed:
            break
        if piece:
            connection.data_received(piece)
    can_reuse = connection.is_done and connection.can_reuse and not line.is_closed
    if is_ended and not line.is_closed:
        connection.eof_received()
        connection.connection_lost(None)
    if not waiter.done():
        return None, b"", "waiting", False
    if waiter.exception() is not None:
        fault = waiter.exception()
        assert isinstance(fault, WireFault)
        return None, b"", fault.kind, False
    head = waiter.result()
    if not has_sink:
        connection.attach(record)
    for payload, framed in record.framed:
        assert unframe(framed) == payload
    return (head.status, head.kind, head.lines, head.links), b"".join(record.parts), record.ending, can_reuse


def unframe(data):
    """The payload of whole chunks, by the simplest reading there is."""
    out = b""
    while data:
        size, _, rest = data.partition(b"\r\n")
        count = int(size.partition(b";")[0], 16)
        assert rest[count : count + 2] == b"\r\n"
        out, data = out + rest[:count], rest[count + 2 :]
    return out


def cut(data, at):
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in at)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


chunks = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
extensions = st.sampled_from([b"", b";a=b", b" ;x"])
interims = st.lists(
    st.sampled_from([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 E\r\nLink: </a>\r\n\r\n"]), max_size=3
)
fields = st.lists(
    st.sampled_from(
        [
            b"X-Request-Id: r",
            b"Date: today",
            b"Link: </b>",
            b"Content-Type: a/b",
            b"x-ratelimit-limit-requests: 5",
            b"A:",
        ]
    ),
    max_size=4,
    unique=True,
)


@st.composite
def answers(draw):
    """A valid answer, the body it carries, and whether its connection may be kept."""
    parts = draw(chunks)
    body = b"".join(parts)
    lines = draw(fields)
    framing = draw(st.sampled_from(["length", "chunked", "close"]))
    if framing == "length":
        lines.append(b"Content-Length: %d" % len(body))
        wire = body
    elif framing == "chunked":
        lines.append(b"transfer-encoding: Chunked")
        wire = b"".join(b"%x%b\r\n%b\r\n" % (len(part), draw(extensions), part) for part in parts)
        wire += b"0\r\n" + draw(st.sampled_from([b"", b"T: x\r\n"])) + b"\r\n"
    else:
        wire = body
    draw(st.randoms(use_true_random=False)).shuffle(lines)
    head = b"HTTP/1.1 200 OK\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    return b"".join(draw(interims)) + head + wire, body, framing != "close"


places = st.lists(st.integers(0, 1 << 20), max_size=12)


@given(answers(), places, st.integers(0, 6))
def test_any_cutting_of_an_answer_is_the_same_answer(answer, at, attach_after):
    wire, body, is_kept = answer
    whole = play([wire])
    assert whole[1:] == (body, "end", is_kept)
    assert play(cut(wire, at), attach_after=attach_after) == whole
    assert play([wire[place : place + 1] for place in range(len(wire))], attach_after=attach_after) == whole


@given(answers(), places, st.integers(0, 1 << 20))
def test_an_answer_that_stops_short_never_ends_cleanly(answer, at, stop):
    wire, body, is_kept = answer
    short = wire[: stop % len(wire)]
    head, part, ending, can_reuse = play(cut(short, at))
    assert not can_reuse
    assert body.startswith(part)
    if is_kept or head is None:
        assert ending in ("truncated", "reset")


NOISE = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\x00",
    b":",
    b" ",
    b"5",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"HTTP/1.1 ",
]


@given(answers(), st.lists(st.tuples(st.integers(0, 1 << 20), st.sampled_from(NOISE)), min_size=1, max_size=3), places)
def test_a_spoilt_answer_is_the_same_however_it_is_cut(answer, spoils, at):
    """Request smuggling lives where two readings of the same bytes differ; here each cutting is a reading."""
    wire = bytearray(answer[0])
    for place, noise in spoils:
        place %= len(wire)
        wire[place:place] = noise
    data = bytes(wire)
    assert outcome(play([data])) == outcome(play(cut(data, at)))


def outcome(played):
    """What must be the same: a fault found with the head hides the payload before it, one found later does not."""
    head, body, ending, can_reuse = played
    return (head, body, ending, can_reuse) if ending == "end" else ("fault", can_reuse)


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]),
    places,
)
@example(b"\r\n\r\n", b"", [])
@example(b"0" * 200, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", [])
def test_of_arbitrary_bytes_only_wire_faults_come(noise, start, at):
    for method in ("GET", "HEAD"):
        head, _, ending, _ = play(cut(start + noise, at), method)
        assert ending
        assert head is not None or ending != "end"
