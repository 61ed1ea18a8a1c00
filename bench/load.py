"""The load: one process of bare protocols on uvloop that calls, counts, and reads the proxy's processor time itself.

    python -m bench.load unary --port 8080 --watch PID --connections 64 --seconds 3

It prints one JSON object: calls and events inside the window, errors, latencies, and the proxy's processor time and
memory per process over exactly that window. Every answer is checked for status and length, every stream for its number
of events.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import json
import os
import random
import struct
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import cast

import uvloop

from bench import processes, wire

CONNECT_AT_ONCE = 64
_libc = ctypes.CDLL(None, use_errno=True)


class Tally:
    """What has been counted so far. One per process."""

    __slots__ = ("calls", "errors", "events", "latencies", "why")

    def __init__(self) -> None:
        self.calls = 0
        self.events = 0
        self.errors = 0
        self.latencies: list[float] = []
        self.why: dict[str, int] = {}

    def error(self, why: str) -> None:
        """One failed call."""
        self.errors += 1
        self.why[why] = self.why.get(why, 0) + 1


class Caller(asyncio.Protocol):
    """One keep-alive connection for whole answers. `on_free` is called when it may send again."""

    __slots__ = ("_data", "_left", "_since", "_tally", "closing", "on_free", "request", "transport")

    def __init__(self, tally: Tally, request: bytes) -> None:
        self._tally = tally
        self._data = b""
        self._left = 0
        self._since = 0.0
        self.request = request
        self.closing = False
        self.transport: asyncio.Transport | None = None
        self.on_free: Callable[[], None] = self.call

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if not self.closing:
            self._tally.error("closed")

    def call(self, since: float = 0.0) -> None:
        """Send the request; its latency counts from `since` (a perf_counter), or from now."""
        if self.transport is None or self.closing:
            return
        self._since = since or perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self._left > 0:
            self._left -= len(data)
            if self._left <= 0:
                self._done()
            return
        if self._data:
            data = self._data + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._data = data
            return
        length = wire.content_length(data[:end].lower())
        if length < 0 and not data.endswith(b"0\r\n\r\n"):
            self._data = data
            return
        self._data = b""
        if data[9:12] != b"200":
            self._tally.error(data[9:12].decode("latin-1"))
        self._left = end + 4 + length - len(data) if length > 0 else 0
        if self._left <= 0:
            self._done()

    def _done(self) -> None:
        self._left = 0
        self._tally.calls += 1
        self._tally.latencies.append(perf_counter() - self._since)
        self.on_free()


class Streamer(asyncio.Protocol):
    """One connection that has one stream open at any time: when a stream ends the next begins on it."""

    __slots__ = ("_end", "_events", "_expected", "_newline", "_request", "_started", "_tally", "closing", "transport")

    def __init__(self, tally: Tally, request: bytes, expected: int) -> None:
        self._tally = tally
        self._request = request
        self._expected = expected
        self._events = 0
        self._end = b""  # the last bytes that came, for what is cut in two
        self._newline = False  # the last byte was the first of an event's two
        self._started = False
        self.closing = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if not self.closing:
            self._tally.error("closed")

    def call(self) -> None:
        """Open the next stream."""
        if self.transport is not None:
            self._events, self._started, self._end = 0, False, b""
            self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        end = data if self._started and len(data) >= 12 else self._end + data
        self._end = end[-12:]
        if not self._started:
            if len(end) < 12:
                return
            self._started = True
            if end[9:12] != b"200":
                self._fail(end[9:12].decode("latin-1"))
                return
        seen = data.count(b"\n\n")
        if self._newline and data[0] == 10:
            seen += 1
        self._newline = end[-1] == 10 and end[-2] not in (10, 13)
        self._events += seen
        self._tally.events += seen
        if end.endswith(b"0\r\n\r\n"):
            self._tally.calls += 1
            if self._events != self._expected:
                self._tally.error(f"{self._events} of {self._expected} events")
            if not self.closing:
                self.call()

    def _fail(self, why: str) -> None:
        self._tally.error(why)
        self.closing = True
        if self.transport is not None:
            self.transport.close()


class Arrivals:
    """Calls at a mean rate, apart by exponential waits, whatever the answers do (an open loop).

    Timed by a timerfd: libuv's own timers have milliseconds, which would send calls in bunches. A call that finds no
    free connection waits for one, and its wait counts.
    """

    def __init__(self, callers: list[Caller], rate: float) -> None:
        self._free = deque(callers)
        self._waiting: deque[float] = deque()
        self._rate = rate
        self._rng = random.Random(1)
        self._due = perf_counter()
        self._fd = _libc.timerfd_create(1, os.O_NONBLOCK | os.O_CLOEXEC)
        for caller in callers:
            caller.on_free = partial(self._freed, caller)

    def start(self) -> None:
        """Begin. Needs the running loop."""
        asyncio.get_running_loop().add_reader(self._fd, self._tick)
        self._arm()

    def stop(self) -> None:
        """No more calls."""
        asyncio.get_running_loop().remove_reader(self._fd)

    def _arm(self) -> None:
        wait = max(1e-6, self._due - perf_counter())
        _libc.timerfd_settime(self._fd, 0, struct.pack("qqqq", 0, 0, int(wait), int(wait % 1 * 1e9) + 1), None)

    def _tick(self) -> None:
        os.read(self._fd, 8)
        now = perf_counter()
        while self._due <= now:
            if self._free:
                self._free.popleft().call(self._due)
            else:
                self._waiting.append(self._due)
            self._due += self._rng.expovariate(self._rate)
        self._arm()

    def _freed(self, caller: Caller) -> None:
        if self._waiting:
            caller.call(self._waiting.popleft())
        else:
            self._free.append(caller)


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3 if ordered else 0.0


class Window:
    """The measured span: counters, processor time and memory at its start and its end."""

    def __init__(self, tally: Tally, root: int) -> None:
        self._tally = tally
        self._root = root

    async def measure(self, seconds: float) -> dict[str, object]:
        """Wait `seconds` and say what happened meanwhile."""
        tally, pids = self._tally, processes.tree(self._root) if self._root else []
        tally.latencies.clear()
        own = processes.cpu_ns(os.getpid())
        calls, events, start = tally.calls, tally.events, perf_counter()
        before = processes.sample_cpu(pids)
        await asyncio.sleep(seconds)
        after = processes.sample_cpu(pids)
        span = perf_counter() - start
        ordered = sorted(tally.latencies)
        return {
            "calls": tally.calls - calls,
            "events": tally.events - events,
            "seconds": span,
            "cpu_ns": processes.total_cpu(before, after),
            "cpu_ns_by_process": {pid: after[pid] - before[pid] for pid in pids},
            "rss_bytes": sum(map(processes.rss_bytes, pids)),
            "client_busy": (processes.cpu_ns(os.getpid()) - own) / 1e9 / span,
            "p50_ms": _quantile(ordered, 0.50),
            "p99_ms": _quantile(ordered, 0.99),
            "errors": tally.errors,
            "why": tally.why,
        }


async def _connect(make: type[asyncio.Protocol], port: int, count: int, *arguments: object) -> list[asyncio.Protocol]:
    loop = asyncio.get_running_loop()
    made: list[asyncio.Protocol] = []
    for start in range(0, count, CONNECT_AT_ONCE):
        batch = range(start, min(count, start + CONNECT_AT_ONCE))
        pairs = [loop.create_connection(lambda: make(*arguments), "127.0.0.1", port) for _ in batch]
        made += [protocol for _, protocol in await asyncio.gather(*pairs)]
    return made


def _close(protocols: list[Caller] | list[Streamer]) -> None:
    for protocol in protocols:
        protocol.closing = True
        if protocol.transport is not None:
            protocol.transport.abort()


async def unary(given: argparse.Namespace) -> dict[str, object]:
    """Calls with whole answers: a closed loop, or `--rate` calls a second."""
    tally = Tally()
    body = wire.chat_body(f"size={given.down}", given.up)
    request = wire.request(given.host, given.key, body, given.header)
    callers = cast(list[Caller], await _connect(Caller, given.port, given.connections, tally, request))
    arrivals = Arrivals(callers, given.rate) if given.rate else None
    if arrivals is not None:
        arrivals.start()
    else:
        for caller in callers:
            caller.call()
    gc.freeze()
    gc.disable()
    await asyncio.sleep(given.warm)
    result = await Window(tally, given.watch).measure(given.seconds)
    if arrivals is not None:
        arrivals.stop()
    _close(callers)
    return result


async def streams(given: argparse.Namespace) -> dict[str, object]:
    """Open streams, begun evenly over one life of a stream (at most `--ramp` seconds), each followed by the next."""
    tally = Tally()
    order = f"events={given.events},pace={given.pace}"
    body = wire.chat_body(order, given.up, stream=True, asks_usage=given.usage)
    request = wire.request(given.host, given.key, body, given.header)
    expected = given.events + (1 if given.usage else 0)
    streamers = cast(list[Streamer], await _connect(Streamer, given.port, given.connections, tally, request, expected))
    gap = min(given.ramp, given.events / given.pace) / len(streamers)
    start = perf_counter()
    for at, streamer in enumerate(streamers):
        streamer.call()
        if (ahead := start + at * gap - perf_counter()) > 0.001:
            await asyncio.sleep(ahead)
    gc.freeze()
    gc.disable()
    await asyncio.sleep(given.warm)
    result = await Window(tally, given.watch).measure(given.seconds)
    result["open"] = sum(streamer.transport is not None for streamer in streamers)
    _close(streamers)
    return result


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="bench.load")
    options.add_argument("kind", choices=("unary", "streams"))
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--host", default="api.openai.com")
    options.add_argument("--key", default="sk-bench")
    options.add_argument("--header", action="append", default=[], help="one more line of the request's head")
    options.add_argument("--watch", type=int, default=0, help="first process of the proxy")
    options.add_argument("--connections", type=int, default=64)
    options.add_argument("--seconds", type=float, default=3.0)
    options.add_argument("--warm", type=float, default=0.7)
    options.add_argument("--up", type=int, default=wire.CALL_BODY_BYTES, help="bytes of the request body")
    options.add_argument("--down", type=int, default=wire.ANSWER_BODY_BYTES, help="bytes of the answer body")
    options.add_argument("--rate", type=float, default=0.0, help="calls a second; 0: as fast as answers come")
    options.add_argument("--events", type=int, default=wire.STREAM_EVENTS)
    options.add_argument("--pace", type=int, default=50, help="events a second of one stream")
    options.add_argument("--ramp", type=float, default=2.0)
    options.add_argument("--usage", action="store_true", help="ask for usage in streams")
    return options


def main() -> None:
    """Run the load and print its result."""
    given = _options().parse_args()
    result = uvloop.run(unary(given) if given.kind == "unary" else streams(given))
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()
