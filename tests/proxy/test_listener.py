"""The client's side on real sockets, and what of aiohttp's insides it stands on: an upgrade that moves one fails here.

Clients are bare streams, for they must misbehave; upstream is a script. `tests/fuzz/fuzz_request.py` has the damage.
"""

import asyncio
import gzip
import inspect
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import http_parser, web_protocol
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader

from tests.fuzz.fuzz_request import BODY, KEY, Site, play
from yugong.proxy import listener as listening

SOON = 5.0
"""Seconds in which what must happen at once has to have happened."""

AUTH = b"Host: a\r\nAuthorization: Bearer %b\r\n" % KEY
JSON = b"Content-Type: application/json\r\n"


def get(path: str = "/v1/models", extra: bytes = b"", version: str = "HTTP/1.1") -> bytes:
    return f"GET {path} {version}\r\n".encode() + AUTH + extra + b"\r\n"


def post(body: bytes, extra: bytes = JSON, path: str = "/v1/chat/completions", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"POST {path} HTTP/1.1\r\nContent-Length: {size}\r\n".encode() + AUTH + extra + b"\r\n" + body


# -- upstream ---------------------------------------------------------------------------------------------------------


class Upstream:
    """Answers with the path it was asked for; some paths have it behave otherwise."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.written = 0
        #: Set when a request is there, and when its connection has gone.
        self.asked = asyncio.Event()
        self.gone = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.gone.set()
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        await reader.readexactly(int(length[1]) if length else 0)
        self.heads.append(head)
        self.asked.set()
        path = head.split(b" ")[1]
        if path == b"/v1/hold":
            await reader.readexactly(1)
        if path == b"/v1/endless":
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 9999999999\r\n\r\n"
            )
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
                self.written += 65536
        if path == b"/v1/chunked":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
            writer.write(b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")
            return
        body = orjson.dumps({"path": path.decode()})
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )


class Client:
    """A bare connection to the listener."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> bytes:
        async with asyncio.timeout(SOON):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def answer(self) -> tuple[int, bytes, Any]:
        """The next answer: status, head, body (read as JSON)."""
        head = await self.head()
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        assert length is not None
        async with asyncio.timeout(SOON):
            body = await self.reader.readexactly(int(length[1]))
        return int(head.split(b" ")[1]), head, orjson.loads(body or b"null")

    async def rest(self) -> bytes:
        """Everything until the listener closes."""
        async with asyncio.timeout(SOON):
            return await self.reader.read()

    async def is_refused(self, status: int) -> dict[str, Any]:
        """The answer is this refusal, in OpenAI's words, and the connection closes after it."""
        found, head, document = await self.answer()
        assert found == status, document
        assert b"\r\nConnection: close\r\n" in head
        assert await self.rest() == b""
        error = document["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error, dict)
        return error


class Door:
    """A site that listens, its upstream, and its clients."""

    def __init__(self, site: Site, port: int, upstream: Upstream) -> None:
        self.site = site
        self.port = port
        self.upstream = upstream
        self.clients: list[Client] = []

    async def connect(self, **options: Any) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, **options))
        self.clients.append(client)
        return client

    @property
    def listener(self) -> listening.Listener:
        return self.site.product._listener


Make = Callable[..., Awaitable[Door]]


@pytest.fixture
async def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Opens a door with these settings of `intake`; nothing may be reported as a bug behind it."""
    monkeypatch.setattr(listening, "SWEEP_EVERY", 0.02)
    upstream, doors = Upstream(), []
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)

    async def opened(**intake: Any) -> Door:
        site = Site(tmp_path, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", intake=intake)
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        await site.product.start([sock], site.settings)
        site.product._line.report = lambda what, bug: site.bugs.append((what, bug))
        doors.append(Door(site, sock.getsockname()[1], upstream))
        return doors[-1]

    yield opened
    for door in doors:
        for client in door.clients:
            client.writer.close()
        async with asyncio.timeout(SOON):
            while door.listener.connections:
                await asyncio.sleep(0.005)
        door.site.product.stop_accepting()
        await door.site.product.drain(asyncio.get_running_loop().time())
        assert not door.site.bugs
    server.close()


# -- aiohttp's insides ------------------------------------------------------------------------------------------------


def test_aiohttp_has_the_insides_we_rely_on() -> None:
    handler = web_protocol.RequestHandler
    slots = {*handler.__slots__, *BaseProtocol.__slots__}
    assert slots >= {
        "_loop", "_parser", "_messages", "_waiter", "_task_handler", "_upgraded", "_close", "_force_close",
        "_buffer_paused", "_max_msg_queue_size", "_msg_queue_resume_size", "_request_count", "_message_tail",
        "_manager", "transport",
    }  # fmt: skip
    ours = set(listening.ClientProtocol.__slots__)
    assert not ours & slots, "aiohttp has taken a name of ours"
    for name in ("start", "connection_made", "connection_lost", "data_received", "pause_writing", "resume_writing",
                 "close", "force_close", "_resume_reading_if_drained", "eof_received"):  # fmt: skip
        assert callable(getattr(handler, name)), name
    assert list(inspect.signature(handler.data_received).parameters) == ["self", "data"]
    assert list(inspect.signature(handler._resume_reading_if_drained).parameters) == ["self"]
    assert inspect.iscoroutinefunction(handler.start)


def test_aiohttp_takes_what_we_construct_it_with() -> None:
    parameters = inspect.signature(web_protocol.RequestHandler.__init__).parameters
    assert list(parameters)[:2] == ["self", "manager"]
    assert set(parameters) >= {"loop", "keepalive_timeout", "access_log", "auto_decompress", "max_line_size",
                               "max_field_size", "max_headers", "read_bufsize"}  # fmt: skip
    error = web_protocol._ErrInfo(status=400, exc=ValueError(), message="x")
    assert (error.status, error.message) == (400, "x")


def test_aiohttp_asks_its_server_for_what_ours_has() -> None:
    asked = set(re.findall(r"(?<!\w)(?:self\._)?manager\.(\w+)", inspect.getsource(web_protocol.RequestHandler)))
    assert asked == {"connection_made", "connection_lost", "handler_cancellation", "request_factory",
                     "request_handler", "requests_count"}  # fmt: skip


def test_the_parser_is_the_one_in_c_and_talks_as_we_listen() -> None:
    assert http_parser.HttpRequestParser is not http_parser.HttpRequestParserPy
    loop = asyncio.new_event_loop()
    parser = http_parser.HttpRequestParser(BaseProtocol(loop), loop, 65536, max_line_size=999, auto_decompress=False)
    messages, upgraded, tail = parser.feed_data(get("/v1/a%20b", b"x-A: \xe9\r\n"))
    (message, payload), *_ = messages
    assert (message.method, message.path, message.version) == ("GET", "/v1/a%20b", (1, 1))
    assert message.raw_headers[-1] == (b"x-A", b"\xe9")
    assert (message.should_close, message.upgrade, message.chunked, upgraded, tail) == (False, False, False, False, b"")
    assert payload.is_eof() and payload.read_nowait(-1) == b""
    assert parser.message_consumed() is None  # type: ignore[func-returns-value]
    with pytest.raises(HttpProcessingError):
        parser.feed_data(b"\x00\r\n\r\n")
    for name in ("is_eof", "at_eof", "read_nowait", "readany", "set_exception"):
        assert callable(getattr(StreamReader, name))
    loop.close()


async def test_aiohttp_wakes_and_counts_as_we_expect(make: Make) -> None:
    door = await make()
    client = await door.connect()
    client.send(get("/v1/hold"))
    async with asyncio.timeout(SOON):
        await door.upstream.asked.wait()
    (protocol,) = door.listener.connections
    assert protocol._waiter is None and not protocol._messages and protocol._request_count == 1
    assert isinstance(protocol._task_handler, asyncio.Task)
    client.send(get())
    async with asyncio.timeout(SOON):
        while not protocol._messages:
            await asyncio.sleep(0.005)
    assert len(protocol._messages) == 1 and len(protocol._messages[0]) == 2


# -- what takes too long ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [[b"G"], [b"GET /v1/models HTTP/1.1\r\n", b"Host: a\r\n", b"X-A"]])
async def test_a_head_that_does_not_end_gets_408(make: Make, pieces: list[bytes]) -> None:
    door = await make(header_timeout="300ms")
    client = await door.connect()
    began = asyncio.get_running_loop().time()
    for piece in pieces:
        client.send(piece)
        await asyncio.sleep(0.1)  # a trickle must not put the deadline off
    assert (await client.rest()).startswith(b"HTTP/1.1 408 ")
    assert 0.25 < asyncio.get_running_loop().time() - began < 2


@pytest.mark.parametrize("is_used", [False, True])
async def test_an_idle_connection_is_closed(make: Make, is_used: bool) -> None:
    door = await make(idle_timeout="1s")
    client = await door.connect()
    if is_used:
        client.send(get())
        assert (await client.answer())[0] == 200
    began = asyncio.get_running_loop().time()
    assert await client.rest() == b""
    assert 0.9 < asyncio.get_running_loop().time() - began < 3


async def test_a_reader_that_takes_nothing_is_given_up_and_costs_little(make: Make) -> None:
    door = await make(write_timeout="1s", stream_buffer="64KiB")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", door.port))
    sock.sendall(get("/v1/endless"))
    try:
        async with asyncio.timeout(SOON):
            await door.upstream.asked.wait()
            while not any(protocol._blocked_since for protocol in door.listener.connections):
                await asyncio.sleep(0.005)
            (protocol,) = door.listener.connections
            assert protocol.transport is not None
            assert protocol.transport.get_write_buffer_size() < 1 << 20
            await door.upstream.gone.wait()
        assert door.upstream.written < 32 << 20  # what kernels hold of it
    finally:
        sock.close()


# -- bodies -----------------------------------------------------------------------------------------------------------


async def test_a_body_that_stalls_gets_408(make: Make) -> None:
    client = await (await make(body_grace="200ms")).connect()
    client.send(post(b"", length=100))
    assert (await client.is_refused(408))["code"] == "request_timeout"


async def test_a_body_below_the_least_rate_gets_408(make: Make) -> None:
    client = await (await make(body_grace="300ms", min_body_rate="1MiB")).connect()
    await _trickle(client)


async def test_a_body_past_its_deadline_gets_408(make: Make) -> None:
    client = await (await make(body_timeout="1s", body_grace="600ms", min_body_rate=0)).connect()
    await _trickle(client)


async def _trickle(client: Client) -> None:
    client.send(post(b"", length=1_000_000))

    async def drip() -> None:
        while True:
            client.send(b"x")
            await asyncio.sleep(0.02)

    dripping = asyncio.ensure_future(drip())
    try:
        status, head, _ = await client.answer()
        assert (status, b"Connection: close" in head) == (408, True)
    finally:
        dripping.cancel()
        with suppress(asyncio.CancelledError):
            await dripping


@pytest.mark.parametrize("extra", [JSON, b"Content-Type: audio/mpeg\r\n"])
async def test_a_body_too_large_gets_413_declared_or_not(make: Make, extra: bytes) -> None:
    door = await make(body_max="8KiB", json_max="4KiB")
    limit = 4096 if extra is JSON else 8192
    client = await door.connect()
    client.send(post(b"x" * (limit + 1), extra))
    assert (await client.is_refused(413))["code"] == "request_too_large"
    client = await door.connect()
    client.send(b"POST /v1/files HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + AUTH + extra + b"\r\n")
    client.send(b"400\r\n" + b"x" * 1024 + b"\r\n")
    for _ in range(limit // 1024):
        client.send(b"400\r\n" + b"x" * 1024 + b"\r\n")
    assert (await client.is_refused(413))["code"] == "request_too_large"
    assert not door.upstream.heads


async def test_a_declared_body_is_refused_before_it_comes(make: Make) -> None:
    client = await (await make(body_max="8KiB")).connect()
    client.send(post(b"", length=8193, extra=b"Expect: 100-continue\r\n"))
    assert (await client.answer())[0] == 413


async def test_a_bomb_is_not_unpacked(make: Make) -> None:
    door = await make(json_max="64KiB")
    client = await door.connect()
    client.send(post(gzip.compress(b" " * (32 << 20)), JSON + b"Content-Encoding: gzip\r\n"))
    assert (await client.is_refused(413))["code"] == "request_too_large"
    assert not door.upstream.heads


async def test_a_body_that_breaks_its_framing_gets_400_at_once(make: Make) -> None:
    client = await (await make()).connect()
    client.send(b"POST /v1/files HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + AUTH + b"\r\n5\r\nhel")
    await asyncio.sleep(0.05)  # the call is waiting for its body
    client.send(b"lo\r\nG\r\n")
    assert (await client.is_refused(400))["code"] == "malformed_request"


async def test_a_body_is_asked_for_only_after_admission(make: Make) -> None:
    door = await make()
    client = await door.connect()
    expects = JSON + b"Expect: 100-continue\r\n"
    client.send(post(b"", expects, length=len(BODY)))
    assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(BODY)
    assert (await client.answer())[0] == 200
    client = await door.connect()
    client.send(post(b"", expects, length=len(BODY)).replace(KEY, b"sk-wrong"))
    assert (await client.answer())[0] == 401


# -- what is no HTTP --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /v1/models\r\n\r\n",
        b"CONNECT \r\n\r\n",
        b"GET /v1/models HTTP/2.0\r\n" + AUTH + b"\r\n",
        b"GET /v1/models HTTP/1.1\r\nAuthorization: Bearer %b\r\n\r\n" % KEY,
        get(extra=b"Host: b\r\n"),
        get(extra=b"Authorization: Bearer sk-other\r\n"),
        get(extra=b"X-A: 1\r\n folded\r\n"),
        get(extra=b"X-A : 1\r\n"),
        get(extra=b"X-A: \x00\r\n"),
        get(extra=b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n") + b"0\r\n\r\n",
        get(extra=b"Content-Length: 5\r\nContent-Length: 6\r\n"),
        get(extra=b"Content-Length: -5\r\n"),
        get(extra=b"Transfer-Encoding: chunked, gzip\r\n"),
        get("/v1/../admin"),
        get("http://evil/v1/models"),
    ],
)
async def test_malformed_requests_get_400_and_go_nowhere(make: Make, data: bytes) -> None:
    door = await make()
    client = await door.connect()
    client.send(data)
    await client.is_refused(400)
    assert not door.upstream.heads


@pytest.mark.parametrize("extra", [b"X-A: " + b"x" * 9000 + b"\r\n", b"X-A: 1\r\n" * 20])
async def test_headers_too_large_get_431(make: Make, extra: bytes) -> None:
    client = await (await make(header_max="4KiB", headers_max_count=16)).connect()
    client.send(get(extra=extra))
    assert (await client.is_refused(431))["code"] == "headers_too_large"


# -- one connection, many calls ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 4, 16, 200])
async def test_calls_sent_ahead_are_answered_in_order_and_kept_within_the_cap(make: Make, most: int) -> None:
    door = await make(pipeline_max=most)
    client = await door.connect()
    client.send(b"".join(get(f"/v1/models/{number}") for number in range(150)))
    depth = 0
    for number in range(150):
        status, _, document = await client.answer()
        assert (status, document) == (200, {"path": f"/v1/models/{number}"})
        depth = max(depth, *(len(protocol._messages) for protocol in door.listener.connections), 0)
    assert depth <= max(most, web_protocol.MAX_MSG_QUEUE_SIZE)  # aiohttp's parser has a cap of its own for one read


async def test_a_client_that_leaves_takes_its_upstream_call_along(make: Make) -> None:
    door = await make()
    client = await door.connect()
    client.send(get("/v1/hold"))
    async with asyncio.timeout(SOON):
        await door.upstream.asked.wait()
        client.writer.transport.abort()
        await door.upstream.gone.wait()


async def test_an_http_1_0_client_gets_a_stream_that_ends_with_its_connection(make: Make) -> None:
    client = await (await make()).connect()
    client.send(get("/v1/chunked", version="HTTP/1.0"))
    head, _, body = (await client.rest()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ") and b"\r\nConnection: close" in head
    assert b"transfer-encoding" not in head.lower() and b"content-length" not in head.lower()
    assert body == b"hello world"


async def test_no_call_gets_the_header_fields_of_another(tmp_path: Path) -> None:
    """Three calls that differ in one value, cut at every byte; upstream must see each with its own."""
    site = Site(tmp_path)
    await site.start()
    calls = [
        [(b"a", b"1"), (b"a", b"2"), (b"a", b"1")],  # one value changes and changes back
        [(b"a", b"1"), (b"bb", b"1"), (b"bb", b"2")],  # the path changes, then the value
        [(b"a", b"1"), (b"a", b"1"), (b"a", b"1"), (b"a", b"3")],
        [(b"a", b"1\r\nX-B: 2"), (b"a", b"1"), (b"a", b"1\r\nX-B: 2")],  # a field comes and goes
    ]
    for wanted in calls:
        heads = [b"GET /v1/%b HTTP/1.1\r\n%bX-A: %b\r\n\r\n" % (path, AUTH, value) for path, value in wanted]
        data = b"".join(heads)
        cuttings = [[data[:at], data[at:]] for at in range(1, len(data))]
        cuttings += [[data], heads, [data[at : at + 1] for at in range(len(data))]]
        cuttings += [
            [heads[0], *[piece for head in heads[1:] for piece in (head[:at], head[at:])]] for at in range(1, 60)
        ]
        for pieces in cuttings:
            _, wires, was_closed = await play(site, pieces)
            assert not was_closed
            seen = [
                (wire.split(b" ")[1], wire[wire.index(b"X-A: ") : wire.index(b"Accept-Encoding")]) for wire in wires
            ]
            assert seen == [(b"/v1/" + path, b"X-A: " + value + b"\r\n") for path, value in wanted], pieces
    await site.product._listener.close()
    site.product.stop_accepting()
    await site.product.drain(asyncio.get_running_loop().time())
