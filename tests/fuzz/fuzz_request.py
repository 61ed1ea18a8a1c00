"""Hammers the client's side with bytes: `python tests/fuzz/fuzz_request.py head|path|chunked [iterations] [seed]`.

Each round puts one to three requests together, damages them, cuts them at random and plays them to a real
`ClientProtocol` of a real line; only the two transports are not sockets, and upstream answers at once. Held against it:
nothing is reported as a bug and no exception goes astray; each request is answered or its connection closes; upstream
sees no request that a strict reading of RFC 9112 does not find in those bytes, in their order, with their raw path;
none without a customer's key, none with it; tables and memory stay bounded. Prints the seed, so that a failure repeats.
"""

import asyncio
import gc
import json
import random
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from yugong.base.headers import CREDENTIALS
from yugong.core import dialects
from yugong.proxy import intake
from yugong.proxy.listener import ClientProtocol
from yugong.store import poolstate
from yugong.store.handover import Hello
from yugong.store.settingsfile import load_settings
from yugong.supervisor.chief import import_accounts
from yugong.surface.accesslog import AccessLog
from yugong.surface.meters import Registry
from yugong.surface.metrics import Meters
from yugong.surface.proclog import ProcessLog
from yugong.upstream.connection import Connection
from yugong.upstream.origin import Origin
from yugong.wiring import PooledLine
from yugong.worker import Station

KEY = b"sk-fuzz-0123456789abcdef0123456789abcdef0123456789"
UPSTREAM_KEY = b"sk-up-0123456789abcdef0123456789abcdef01234567"
SPINS = 500  # turns of the loop in which everything that can happen without further bytes must have happened
GROWTH = 24 << 20  # bytes of resident memory that the last nine tenths of a run may add
STATUSES = frozenset({200, 400, 401, 404, 408, 413, 426, 431})

BODY = b'{"model":"gpt-4o","messages":[{"role":"user","content":"hi"}]}'
ANSWER_BODY = b'{"id":"c","object":"chat.completion","choices":[]}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(ANSWER_BODY)
SMUGGLED = b"GET /v1/smuggled HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\n\r\n" % KEY
ANSWERED = re.compile(rb"(?:\A|(?<=[\n}]))HTTP/1\.1 (\d{3}) ")

LINES = [
    b"Content-Length: 3\r\n", b"Content-Length: 62\r\n", b"Content-Length: +1\r\n", b"Content-Length: 1, 1\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding:\tchunked\r\n", b"Transfer-Encoding : chunked\r\n", b"Transfer-Encoding: xchunked\r\n",
    b"Host: b\r\n", b"Host: a/b?c#@d\r\n", b"Connection: close\r\n", b"Connection: keep-alive, x-a\r\n",
    b"Connection: authorization\r\n", b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"Upgrade: h2c\r\n",
    b"Expect: 100-continue\r\n", b"Expect: x\r\n", b"X-A: 1\r\n", b"X-A: \xe9\xff\r\n", b" folded\r\n", b"\tfolded\r\n",
    b"Content-Encoding: gzip\r\n", b"Content-Type: text/plain\r\n", b"Cookie: a=b\r\n", b"X-Forwarded-For: 9.9.9.9\r\n",
    b"x-yugong-max-wait: 0\r\n", b"x-yugong-max-wait: nan\r\n", b"api-key: other\r\n", b"x-api-key: %b\r\n" % KEY,
    b"Authorization: Bearer other\r\n", b"Authorization: Basic eA==\r\n", b": x\r\n", b"x\r\n", b"X-B:\r\n",
]  # fmt: skip
BYTES = [b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\x00", b":", b" ", b"\t", b"\x0b", b"\x7f", b"\xff", b",", b";", b"0"]
PATHS = [
    b"/v1/chat/completions", b"/v1/models", b"/openai/v1/models", b"/v1/", b"/v1", b"/", b"/admin", b"..", b".", b"/",
    b"//", b"%2e", b"%2E%2e", b"%2f", b"%5c", b"\\", b"%00", b"%252e", b"%25%32%65", b"?", b"#", b"?a=b/../c", b"*",
    b"http://evil", b"/livez", b"/readyz", b";x", b"@", b"\xc3\xa9", b"\xff", b"\x7f", b"x" * 300, b"v1", b"/v1/a b",
]  # fmt: skip
CHUNKS = [
    b"0\r\n\r\n", b"0\r\nT: x\r\n\r\n", b"0\r\nAuthorization: Bearer x\r\n\r\n", b"5\r\nhello\r\n",
    b"5;a=b\r\nhello\r\n",
    b'5;a="\r\n"\r\nhello\r\n', b"5 \r\nhello\r\n", b" 5\r\nhello\r\n", b"0x5\r\nhello\r\n", b"+5\r\nhello\r\n",
    b"-1\r\n", b"ffffffffffffffff\r\n", b"10000000000000000\r\n", b"5\nhello\n", b"5\r\nhelloX\r\n", b"05\r\nhello\r\n",
    b"5\r\nhello", b"\r\n", b"G\r\n", b"5_0\r\n", SMUGGLED, b"%x\r\n%b\r\n" % (len(SMUGGLED), SMUGGLED),
]  # fmt: skip


# -- what is sent -----------------------------------------------------------------------------------------------------


def damage(rng: random.Random, data: bytes, tokens: list[bytes]) -> bytes:
    """A little of `data` is put in, left out, doubled or changed."""
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(6)
        if kind < 2:
            data = data[:at] + rng.choice(tokens) + data[at:]
        elif kind == 2:
            data = data[:at] + data[at + rng.randrange(1, 9) :]
        elif kind == 3:
            data = data[:at] + data[at : at + 12] + data[at:]
        elif kind == 4:
            data = data[:at] + rng.randbytes(1) + data[at + 1 :]
        else:
            data = data[:at] + rng.choice(BYTES) + data[at + 1 :]
    return data


def _head_request(rng: random.Random) -> bytes:
    lines = [b"Host: a\r\n", b"Authorization: Bearer %b\r\n" % KEY, b"Content-Type: application/json\r\n"]
    start, body = b"GET /v1/models HTTP/1.1\r\n", b""
    if rng.random() < 0.5:
        start, body = b"POST /v1/chat/completions HTTP/1.1\r\n", BODY
        lines.append(b"Content-Length: %d\r\n" % len(body))
    for _ in range(rng.choice((0, 0, 1, 2))):
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(LINES))
    head = start + b"".join(lines)
    return (damage(rng, head, LINES + BYTES) if rng.random() < 0.6 else head) + b"\r\n" + body


def _path_request(rng: random.Random) -> bytes:
    path = b"/v1/models" if rng.random() < 0.6 else b""
    path += b"".join(rng.choices(PATHS, k=rng.randrange(4)))
    method = rng.choice((b"GET", b"GET", b"GET", b"DELETE", b"HEAD", b"OPTIONS", b"CONNECT", b"get", b"POST"))
    version = rng.choice((b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.1 "))
    path = damage(rng, path, PATHS + BYTES) if rng.random() < 0.4 else path
    return b"%b %b %b\r\nHost: a\r\nAuthorization: Bearer %b\r\n\r\n" % (method, path, version, KEY)


def _chunked_request(rng: random.Random) -> bytes:
    head = b"POST /v1/files HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\n" % KEY
    head += b"Transfer-Encoding: chunked\r\n" + (rng.choice(LINES) if rng.random() < 0.1 else b"") + b"\r\n"
    chunks = b"".join(rng.choice(CHUNKS[3:5]) for _ in range(rng.randrange(4)))
    if rng.random() < 0.6:
        chunks = damage(rng, chunks + b"0\r\n\r\n", CHUNKS)
    else:
        chunks += b"%x\r\n%b\r\n" % (len(SMUGGLED), SMUGGLED) + rng.choice(CHUNKS[:3])
    return head + chunks


MODES: dict[str, Callable[[random.Random], bytes]] = {
    "head": _head_request,
    "path": _path_request,
    "chunked": _chunked_request,
}


def cutting(rng: random.Random, data: bytes) -> list[bytes]:
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 0, 1, 3))))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if start < end]


# -- how it is read strictly ------------------------------------------------------------------------------------------

# Several blanks between the words of a request line are allowed (§3), and llhttp takes them.
_START = re.compile(rb"([A-Z]+) +([!-~\x80-\xff]+) +HTTP/1\.[01]\r\n")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\x00]*?)[ \t]*\r\n")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?\r\n")


def strict_targets(data: bytes) -> list[tuple[bytes, bytes]]:
    """Method and target of each whole request of `data`, up to the first thing RFC 9112 does not allow."""
    found: list[tuple[bytes, bytes]] = []
    at = 0
    while True:
        while data[at : at + 1] in (b"\r", b"\n"):  # §2.2: empty lines before a request line are to be ignored
            at += 1
        start = _START.match(data, at)
        if start is None:
            return found
        end = _strict_end(data, start.end())
        if end is None:
            return found
        found.append((start[1], start[2]))
        at = end


def _strict_end(data: bytes, at: int) -> int | None:
    """Where the message whose fields begin at `at` ends; None if it does not, or is malformed."""
    length, coding = b"", b""
    while (field := _FIELD.match(data, at)) is not None:
        at = field.end()
        name = field[1].lower()
        if name == b"content-length":
            if length or not field[2].isdigit():
                return None
            length = field[2]
        elif name == b"transfer-encoding":
            coding += b"," + field[2].lower()
    if not data.startswith(b"\r\n", at) or (coding and (length or not coding.endswith(b"chunked"))):
        return None
    at += 2
    if coding:
        return _strict_chunks(data, at)
    return at + int(length or b"0") if len(data) >= at + int(length or b"0") else None


def _strict_chunks(data: bytes, at: int) -> int | None:
    while (chunk := _CHUNK.match(data, at)) is not None:
        at = chunk.end()
        size = int(chunk[1], 16)
        if not size:
            while (trailer := _FIELD.match(data, at)) is not None:
                at = trailer.end()
            return at + 2 if data.startswith(b"\r\n", at) else None
        at += size + 2
        if data[at - 2 : at] != b"\r\n":
            return None
    return None


# -- the line it is played to -----------------------------------------------------------------------------------------


class Wire(asyncio.Transport):
    """A transport without a socket. `on_write` hears what is written."""

    def __init__(self, on_write: Callable[[bytes], None]) -> None:
        super().__init__()
        self.write = on_write  # type: ignore[method-assign, assignment]
        self.is_closed = False
        self.is_paused = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.is_closed

    def is_reading(self) -> bool:
        return not (self.is_paused or self.is_closed)

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def close(self) -> None:
        self.is_closed = True

    abort = close


class Answering(Origin):
    """An origin that answers every request at once, and remembers what it was asked."""

    wires: list[bytes]

    async def dial(self, timeout: float) -> Connection:
        loop = asyncio.get_running_loop()
        connection = Connection(loop)

        def heard(data: bytes) -> None:
            self.wires.append(data)
            loop.call_soon(connection.data_received, ANSWER if data.startswith(b"HEAD ") else ANSWER + ANSWER_BODY)

        connection.connection_made(Wire(heard))
        connection.is_busy = False
        self.busy.add(connection)
        return connection


class Site:
    """A worker's line, in this process; with `start` before an origin that is none."""

    def __init__(self, folder: Path, url: str = "http://127.0.0.1:9", **settings: Any) -> None:
        key = {"id": "k", "secret": {"value": UPSTREAM_KEY.decode()}}
        document = {
            "data_dir": str(folder / "data"),
            "origins": {"o": {"dialect": "openai", "url": url, "private": True}},
            "orgs": {"main": {"origin": "o", "keys": [key]}},
            "accounts": {"app": {"keys": [{"id": "k", "value": KEY.decode()}]}},
            **settings,
        }
        file = folder / "yugong.yaml"
        file.write_text(json.dumps(document))
        file.chmod(0o600)
        self.settings = load_settings(file, {}, dialects.catalog()).settings
        data = folder / "data"
        data.mkdir(mode=0o700)
        import_accounts(data, self.settings)
        meters = Meters(Registry())
        self.access = AccessLog(meters.access_log_dropped)
        hello = Hello(name="worker-0", id="w", boot="b", parent=0, data_dir=str(data), link="",
                      settings=msgspec.Raw(b"{}"), revision=1, memory_fd=poolstate.create())  # fmt: skip
        self.product = PooledLine(Station(hello, meters, self.access, ProcessLog("fuzz", "error")))
        self.bugs: list[Any] = []

    async def start(self) -> None:
        await self.product.start([], self.settings)
        line = self.line = self.product._line
        line.report = lambda what, bug: self.bugs.append((what, bug))
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: self.bugs.append(context))
        way = line.setup.ways["main"]
        self.origin = Answering(way.origin.spec, asyncio.get_running_loop())
        self.origin.wires = []
        line.setup = line.setup._replace(ways={"main": way._replace(origin=self.origin)})


# -- a round ----------------------------------------------------------------------------------------------------------


async def play(site: Site, pieces: list[bytes]) -> tuple[bytes, list[bytes], bool]:
    """What the client got, what upstream got, and whether the connection was closed from our side."""
    got: list[bytes] = []
    wire = Wire(got.append)
    site.origin.wires = []
    protocol = ClientProtocol(site.product._listener, asyncio.get_running_loop())
    protocol.connection_made(wire)
    task = protocol.task()
    assert task is not None
    await asyncio.sleep(0)
    for piece in pieces:
        if wire.is_closed:
            break
        if wire.is_paused:
            await _settle(protocol, wire)
        protocol.data_received(piece)
        await asyncio.sleep(0)
    await _settle(protocol, wire)
    was_closed = wire.is_closed
    lacks_body = protocol._payload is not None and not protocol._payload.is_eof()
    answers = ANSWERED.findall(b"".join(got))
    finals = [int(status) for status in answers if status != b"100"]
    assert not set(finals) - STATUSES, finals
    assert was_closed or len(finals) >= protocol._request_count - lacks_body, (pieces, got)
    protocol.connection_lost(None)
    for _ in range(SPINS):
        if task.done():
            break
        await asyncio.sleep(0)
    assert task.done(), "a connection that does not end"
    assert task.cancelled() or task.exception() is None, task
    assert not site.bugs, site.bugs
    return b"".join(got), site.origin.wires, was_closed


async def _settle(protocol: ClientProtocol, wire: Wire) -> None:
    """Until nothing more happens without further bytes."""
    for _ in range(SPINS):
        payload = protocol._payload
        if wire.is_closed or (payload is not None and not payload.is_eof()):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            return
        if protocol._waiter is not None and not protocol._waiter.done() and not protocol._messages:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"hangs: {protocol!r}")


def judge(data: bytes, wires: list[bytes]) -> None:
    """Upstream got of `data` what a strict reader finds there, once, in order, with our key instead of theirs."""
    asked = iter(strict_targets(data))
    for wire in wires:
        head, _, _ = wire.partition(b"\r\n\r\n")
        start, *lines = head.split(b"\r\n")
        method, _, rest = start.partition(b" ")
        target = rest.removesuffix(b" HTTP/1.1")
        assert any((method, target) == (m, t.removeprefix(b"/openai")) for m, t in asked), (data, wires)
        assert KEY in data
        names = [line.partition(b":")[0].lower() for line in lines]
        assert names.count(b"host") == names.count(b"authorization") == 1
        assert not {name for name in names if name in CREDENTIALS} - {b"authorization"}
        assert names.count(b"content-length") <= 1 and b"transfer-encoding" not in names
        assert b"Authorization: Bearer " + UPSTREAM_KEY in lines
        of_customer = [line for line in lines if KEY in line]
        assert all(line.partition(b":")[0].lower() not in CREDENTIALS for line in of_customer)
        assert not of_customer or data.count(KEY) > data.count(b"Authorization: Bearer " + KEY) or is_renamed(data)


def is_renamed(data: bytes) -> bool:
    """Whether damage gave a header with the key in it a name that no one can know for a credential's."""
    found = [line.partition(b":")[0].lower() for line in data.replace(b"\r", b"\n").split(b"\n") if KEY in line]
    return any(name not in CREDENTIALS for name in found)


async def one(site: Site, make: Callable[[random.Random], bytes], rng: random.Random) -> int:
    data = b"".join(make(rng) for _ in range(rng.choice((1, 1, 1, 2, 3))))
    _, wires, _ = await play(site, cutting(rng, data))
    judge(data, wires)
    return len(wires)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def run(mode: str, iterations: int, seed: int) -> None:
    make = MODES[mode]
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder))
        await site.start()
        served, before = 0, 0
        for round_ in range(iterations):
            try:
                served += await one(site, make, random.Random(seed + round_))
            except BaseException:
                print(f"round {round_}: python {sys.argv[0]} {mode} 1 {seed + round_}", flush=True)
                raise
            if round_ % 1000 == 0:
                site.access.take()
                assert len(intake._HOSTS._seen) <= intake._KNOWN_MAX and len(intake._PATHS._seen) <= intake._KNOWN_MAX
            if round_ == iterations // 10:
                gc.collect()
                before = resident()
            if round_ % 50_000 == 49_999:
                print(f"{round_ + 1} rounds, {served} wires, {resident() >> 20} MiB", flush=True)
        gc.collect()
        assert not site.product._listener.connections
        assert iterations < 10_000 or served > iterations // 20, "damage leaves nothing to serve"
        assert iterations < 10_000 or resident() - before < GROWTH, "memory grows"
        print(f"{served} wires went upstream, {resident() - before >> 10} KiB grown")
        await site.product._listener.close()


def main() -> None:
    mode = sys.argv[1] if len(sys.argv) > 1 else "head"
    iterations = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else time.time_ns() % 2**32
    print(f"{mode}: seed {seed}, {iterations} rounds", flush=True)
    started = time.perf_counter()
    uvloop.run(run(mode, iterations, seed))
    print(f"{iterations} rounds, nothing found, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
