"""Hammers an upstream connection with answers: `python tests/fuzz/fuzz_answer_head.py [iterations] [seed]`.

Each round puts an answer together from heads, halves of heads, bodies and noise, and plays it to a connection without a
socket, cut at random, with a sink that pauses and leaves at random. Nothing but `WireFault` may come of it, every
exchange must end when its connection does, and an answer taken in two cuttings must be the same one. Prints the seed,
so that a failure repeats.
"""

import asyncio
import random
import sys
import time

from yugong.base.errors import WireFault
from yugong.base.headers import TO_CLIENT
from yugong.upstream.connection import Connection
from yugong.upstream.head import HeadReader

PIECES = [
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.0 200 OK\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n",
    b"HTTP/1.1 ",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"content-length: 99999999999999999999\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip\r\n",
    b"Connection: close\r\n",
    b"Connection: upgrade\r\nUpgrade: websocket\r\n",
    b"Link: </a>\r\n",
    b"link: </b>\r\n",
    b"X-RateLimit-Limit-Requests: 1\r\n",
    b"Content-Type: text/event-stream\r\n",
    b" folded: x\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\r",
    b"\x00",
    b"5\r\nhello\r\n",
    b"5;x=y\r\nhello\r\n",
    b"0\r\n\r\n",
    b"0\r\nT: x\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b"hello",
    b"data: {}\n\n",
    b"x" * 300,
]
LIKELY = [PIECES[0], PIECES[6], PIECES[9], PIECES[18], PIECES[23], PIECES[25], PIECES[28]]
LOOP = asyncio.new_event_loop()
READER = HeadReader(TO_CLIENT)


class Line(asyncio.Transport):
    """A transport that only remembers."""

    is_closed = False
    is_paused = False

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


class Sink:
    """Holds the connection to its word."""

    def __init__(self, connection: Connection, rng: random.Random) -> None:
        self.connection = connection
        self.rng = rng
        self.body = b""
        self.ending = ""

    def on_body(self, data: bytes, framed: bytes | None) -> None:
        assert data and not self.ending
        self.body += data
        if self.rng.random() < 0.1:
            self.connection.pause_reading()

    def on_end(self) -> None:
        assert not self.ending
        self.ending = "end"

    def on_fault(self, fault: WireFault) -> None:
        assert not self.ending and isinstance(fault, WireFault)
        self.ending = "fault"


def answer(rng: random.Random) -> bytes:
    out = bytearray()
    if rng.random() < 0.6:
        out += (
            b"HTTP/1.1 200 OK\r\n"
            + rng.choice((PIECES[6], PIECES[9], b""))
            + rng.choice((b"\r\n", b"Link: a\r\n\r\n", b""))
        )
    for _ in range(rng.randrange(1, 8)):
        piece = rng.choice(LIKELY if rng.random() < 0.5 else PIECES)
        if rng.random() < 0.1:
            piece = piece[: rng.randrange(len(piece) + 1)]
        if rng.random() < 0.05:
            piece = rng.randbytes(rng.randrange(12))
        out += piece
    return bytes(out)


def cutting(rng: random.Random, data: bytes) -> list[bytes]:
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(6)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if start < end]


def play(rng: random.Random, pieces: list[bytes], method: str) -> tuple[object, ...]:
    line, connection = Line(), Connection(LOOP)
    connection.connection_made(line)
    sink = Sink(connection, rng)
    waiter = connection.send(method, b"", READER)
    is_attached = False
    for piece in pieces:
        if line.is_closed:
            break
        if connection.head is not None and not is_attached and rng.random() < 0.5:
            connection.attach(sink)
            is_attached = True
        if line.is_paused:
            connection.resume_reading()
        connection.data_received(piece)
    can_reuse = connection.is_done and connection.can_reuse and not line.is_closed
    if not line.is_closed:
        connection.eof_received()
        connection.connection_lost(None)
    assert waiter.done(), "a head that is waited for though its connection is gone"
    if waiter.exception() is not None:
        assert isinstance(waiter.exception(), WireFault)
        return ("fault", False)
    if not is_attached:
        connection.attach(sink)
    assert sink.ending, "a body that is waited for though its connection is gone"
    head = waiter.result()
    if sink.ending == "fault":
        return ("fault", False)
    return (head.status, head.kind, tuple(head.lines), sink.body, can_reuse)


def one(rng: random.Random) -> str:
    data = answer(rng)
    method = rng.choice(("GET", "POST", "HEAD"))
    first = play(rng, cutting(rng, data), method)
    second = play(rng, cutting(rng, data), method)
    assert first == second, (data, first, second)
    return "fault" if first[0] == "fault" else "answer"


def main() -> None:
    iterations = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 2**32
    print(f"seed {seed}, {iterations} rounds")
    started = time.perf_counter()
    counts = {"fault": 0, "answer": 0}
    for round_ in range(iterations):
        try:
            counts[one(random.Random(seed + round_))] += 1
        except BaseException:
            print(f"round {round_}: python {sys.argv[0]} 1 {seed + round_}")
            raise
    took = time.perf_counter() - started
    print(f"{iterations} rounds, nothing found, {counts['answer']} whole answers, {took:.0f} s")


if __name__ == "__main__":
    main()
