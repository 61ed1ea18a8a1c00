"""The lean upstream of the load: fixed answers from memory, streams at a pace. It checks nothing.

    python -m bench.upstream --port PORT [--cert FILE --key FILE]

Cheap enough that the proxy before it is what is measured: bare protocols on uvloop, every byte encoded before the run.
Asked for `stream_options.include_usage` it answers as OpenAI does: `"usage":null` in each chunk, one more chunk at the
end.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import ssl
from collections import defaultdict
from functools import lru_cache
from typing import cast

import uvloop

from bench import wire

KEPT_BYTES = 16_384  # of a request: what a body asks for stands at its start, or it is small
TICK_SECONDS = 0.001  # libuv's timers have milliseconds


@lru_cache(maxsize=64)
def _answer(size: int) -> bytes:
    return wire.answer(size)


@lru_cache(maxsize=64)
def _chunks(events: int, with_usage: bool) -> list[bytes]:
    return wire.stream_chunks(events, with_usage=with_usage)


@lru_cache(maxsize=256)
def _order(text: bytes) -> dict[str, int]:
    return wire.order(text)


class Pacer:
    """All streams on one wheel of millisecond slots: one timer for the process, not one per event."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._rng = random.Random(1)
        self._at = int(loop.time() * 1000)
        self._due: defaultdict[int, list[Answerer]] = defaultdict(list)
        loop.call_later(TICK_SECONDS, self._tick)

    def add(self, stream: Answerer) -> None:
        """Give `stream` its next event within one period, at random: what begins together does not stay in step."""
        self._due[self._at + self._rng.randint(1, stream.period)].append(stream)

    def _tick(self) -> None:
        now = int(self._loop.time() * 1000)
        while self._at <= now:
            for stream in self._due.pop(self._at, ()):
                if stream.emit():
                    self._due[self._at + stream.period].append(stream)
            self._at += 1
        self._loop.call_later(TICK_SECONDS, self._tick)


class Answerer(asyncio.Protocol):
    """One connection from the proxy: reads a request to its end, answers it from memory."""

    __slots__ = ("_body_left", "_chunks", "_head", "_next", "_pacer", "_transport", "period")

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._transport: asyncio.Transport | None = None
        self._head = b""  # what has come of a request: its head and the start of its body
        self._body_left = 0  # bytes still to come; -1: until the last chunk
        self._chunks: list[bytes] = []
        self._next = 0
        self.period = 0  # milliseconds between events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        if self._body_left > 0:
            self._body_left -= len(data)
            if len(self._head) < KEPT_BYTES:
                self._head += data
            if self._body_left <= 0:
                self._answer()
            return
        self._head = self._head + data if self._head else data
        if self._body_left < 0:
            if self._head.endswith(b"0\r\n\r\n"):
                self._answer()
            return
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            return
        length = wire.content_length(self._head[:end].lower())
        if length < 0 and not self._head.endswith(b"0\r\n\r\n"):
            self._body_left = -1
            return
        self._body_left = end + 4 + length - len(self._head) if length >= 0 else 0
        if self._body_left <= 0:
            self._answer()

    def _answer(self) -> None:
        head, self._head, self._body_left = self._head, b"", 0
        at = head.find(b'"bench":"')
        asked = _order(head[at : head.find(b"}", at)]) if at >= 0 else {}
        if self._transport is None:
            return
        if "events" not in asked:
            self._transport.write(_answer(asked.get("size", wire.ANSWER_BODY_BYTES)))
            return
        self._chunks = _chunks(asked["events"], b'"include_usage":true' in head)
        self.period = max(1, 1000 // asked.get("pace", 50))
        self._next = 1
        self._transport.write(wire.STREAM_HEAD + self._chunks[0])
        self._pacer.add(self)

    def emit(self) -> bool:
        """Write the next event; True while more follow."""
        if self._transport is None:
            return False
        self._transport.write(self._chunks[self._next])
        self._next += 1
        return self._next < len(self._chunks)


async def _serve(port: int, context: ssl.SSLContext | None) -> None:
    loop = asyncio.get_running_loop()
    pacer = Pacer(loop)
    server = await loop.create_server(lambda: Answerer(pacer), "127.0.0.1", port, ssl=context, backlog=4096)
    gc.freeze()
    gc.disable()
    await server.serve_forever()


def main() -> None:
    """Serve until killed."""
    options = argparse.ArgumentParser(prog="bench.upstream")
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--cert")
    options.add_argument("--key")
    given = options.parse_args()
    context = None
    if given.cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(given.cert, given.key)
    uvloop.run(_serve(given.port, context))


if __name__ == "__main__":
    main()
