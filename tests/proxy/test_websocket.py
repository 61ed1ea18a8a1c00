"""The relay between real peers: a client, aiohttp's low-level server with us behind it, and an upstream.

Clients and upstreams are the `websockets` package and aiohttp where they behave, and bare streams where they must not.
"""

import asyncio
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.web_protocol import RequestHandler
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, ConnectionClosedError

from yugong.base.errors import Refusal, RefusalKind
from yugong.core.frames import BINARY, CLOSE, PING, TEXT, See, unmask, write_close, write_frame
from yugong.proxy.websocket import ENDINGS, Client, Ended, SocketLimits, WebSocketRelay, on_usage, take_over
from yugong.upstream.handshake import (
    Accepted,
    accept_of,
    make_key,
    read_upgrade,
    shake_hands,
    write_request,
    write_switch,
)

SOON = 5.0
"""Seconds in which what must happen at once has to have happened."""

END = (-1, b"")
"""What a peer here reads after the last frame."""

MASK = b"\x01\x02\x03\x04"


class _Answered(web.StreamResponse):
    """What aiohttp is told after a relay: nothing is left to be written."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


class Rig:
    """Us in the middle, as the proxy does it: one handler on aiohttp's low-level server."""

    def __init__(self, upstream: tuple[str, int], limits: SocketLimits, **taps: Any) -> None:
        self.upstream = upstream
        self.limits = limits
        self.taps = taps
        self.port = 0
        self.server = web.Server(self.handle, access_log=None, handler_cancellation=True)
        self.relay: WebSocketRelay | None = None
        self.task: asyncio.Task[Any] | None = None
        self.handler: RequestHandler | None = None
        #: How upstream's TLS is checked; None for none.
        self.tls: ssl.SSLContext | None = None
        #: Set when the client's upgrade request has been read.
        self.asked = asyncio.Event()
        #: The rig goes on to upstream only when this is set.
        self.go = asyncio.Event()
        self.go.set()
        self.started = asyncio.Event()
        #: Set when the handler has come to its end: giving the connection back must not cancel it.
        self.settled = asyncio.Event()
        self.ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/realtime?model=m"

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = request._message.raw_headers
        upgrade = read_upgrade(request.method, headers)
        self.handler = request._protocol
        self.asked.set()
        await self.go.wait()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(asyncio.Protocol, *self.upstream, ssl=self.tls)
        key = make_key(os.urandom(16))
        wire = write_request(
            upgrade, [], target=b"/up", host=b"up", credentials=b"authorization: Bearer k\r\n", key=key
        )
        accepted = await shake_hands(transport, wire, key, upgrade.protocols, timeout=SOON)
        assert isinstance(accepted, Accepted)
        client = take_over(request._protocol)
        assert client is not None
        await self.run(client, accepted, write_switch(upgrade, accepted))
        await asyncio.sleep(0)  # as settling the call may
        self.settled.set()
        return _Answered()

    async def run(self, client: Client, accepted: Accepted, switch: bytes) -> None:
        client.transport.write(switch)
        self.relay = WebSocketRelay(client.transport, accepted.transport, self.limits, **self.taps)
        self.task = asyncio.current_task()
        self.started.set()
        try:
            self.ended.set_result(await self.relay.run(client.early, accepted.early))
        except BaseException as error:
            self.ended.set_exception(error)
        finally:
            client.give_back()

    async def end(self) -> Ended:
        ended = await asyncio.wait_for(self.ended, SOON)
        await asyncio.wait_for(self.settled.wait(), SOON)
        return ended


@asynccontextmanager
async def rig(upstream: tuple[str, int], limits: SocketLimits | None = None, **taps: Any) -> AsyncIterator[Rig]:
    it = Rig(upstream, limits or SocketLimits(), **taps)
    listener = await asyncio.get_running_loop().create_server(it.server, "127.0.0.1", 0)
    it.port = listener.sockets[0].getsockname()[1]
    try:
        yield it
    finally:
        listener.close()
        await listener.wait_closed()
        try:
            async with asyncio.timeout(SOON):
                while it.server.connections:  # aiohttp forgets each by itself, not only at its shutdown
                    await asyncio.sleep(0.001)
        finally:
            await it.server.shutdown(1.0)


Serve = Callable[[ServerConnection], Awaitable[None]]
Raw = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def polite(serving: Serve, **options: Any) -> AsyncIterator[tuple[str, int]]:
    """An upstream of the `websockets` package."""
    async with serve(serving, "127.0.0.1", 0, max_size=None, **options) as server:
        yield next(iter(server.sockets)).getsockname()


@asynccontextmanager
async def rude(script: Raw, **options: Any) -> AsyncIterator[tuple[str, int]]:
    """An upstream that shakes hands and then does what `script` says, frame by frame."""

    async def serving(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            key = next(line for line in head.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key: "))[19:]
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept_of(key)
            )
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serving, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()
        await server.wait_closed()


UPGRADE = (
    b"GET /v1/realtime HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Bare:
    """A client that says what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def frame(self) -> tuple[int, bytes]:
        """First byte and payload of the next frame; `END` after the last."""
        return await asyncio.wait_for(read_frame(self.reader, is_masked=False), SOON)

    def reset(self) -> None:
        """Loses the connection with a reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


async def read_frame(reader: asyncio.StreamReader, *, is_masked: bool = True) -> tuple[int, bytes]:
    try:
        first, second = await reader.readexactly(2)
        assert (second > 127) is is_masked
        size = second & 127
        if size > 125:
            size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8), "big")
        mask = await reader.readexactly(4) if second > 127 else b""
        payload = await reader.readexactly(size)
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return END
    return first, unmask(mask, payload) if mask else payload


@asynccontextmanager
async def bare(port: int, early: bytes = b"", **options: Any) -> AsyncIterator[Bare]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
    try:
        writer.write(UPGRADE + early)
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SOON)
        yield Bare(reader, writer)
    finally:
        writer.transport.abort()


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


class Heard:
    """What an upstream of `rude` read: frames, and when its connection ended."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.over = asyncio.Event()

    async def listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (frame := await read_frame(reader)) != END:
            self.frames.append(frame)
            if frame[0] == CLOSE:
                break
        self.over.set()

    async def all(self) -> list[tuple[int, bytes]]:
        await asyncio.wait_for(self.over.wait(), SOON)
        return self.frames


def close(code: int, reason: str = "") -> tuple[int, bytes]:
    return CLOSE, code.to_bytes(2, "big") + reason.encode()


# -- peers that behave ------------------------------------------------------------------------------------------------


async def test_messages_go_both_ways_and_are_counted() -> None:
    async with polite(echo) as upstream, rig(upstream) as us:
        async with connect(us.url, max_size=None) as client:
            assert client.response is not None
            assert "Sec-WebSocket-Extensions" not in client.response.headers
            for message in ("hello", "", "é" * 1000, b"\0\xff", "x" * 70_000, b"y" * 3_000_000):
                await client.send(message)
                assert await client.recv() == message
        ended = await us.end()
    assert (ended.reason, ended.code, ended.is_clean) == ("closed_by_client", 1000, True)
    assert (ended.frames_from_client, ended.frames_from_upstream) == (7, 7)
    assert ended.bytes_from_client - ended.bytes_from_upstream == 7 * 4  # the masks


async def test_aiohttps_own_client_and_server_agree_too() -> None:
    async def handler(request: web.Request) -> web.WebSocketResponse:
        answering = web.WebSocketResponse(protocols=("realtime",), max_msg_size=0)
        await answering.prepare(request)
        async for message in answering:
            await (answering.send_str if message.type is aiohttp.WSMsgType.TEXT else answering.send_bytes)(message.data)
        return answering

    app = web.Application()
    app.router.add_get("/up", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with rig(runner.addresses[0]) as us, aiohttp.ClientSession() as session:
            options = {"protocols": ("realtime", "openai-insecure-api-key.yg-1"), "compress": 15}
            async with session.ws_connect(us.url, max_msg_size=0, **options) as client:
                assert (client.protocol, client.compress) == ("realtime", 0)
                for message in ("hello", "x" * 500_000):
                    await client.send_str(message)
                    assert (await client.receive()).data == message
            assert (await us.end()).is_clean
    finally:
        await runner.cleanup()


async def test_pings_and_pongs_go_end_to_end() -> None:
    async with polite(echo, ping_interval=None) as upstream, rig(upstream) as us:
        async with connect(us.url, ping_interval=None) as client:
            await asyncio.wait_for(await client.ping(b"are you there"), SOON)
        ended = await us.end()
    assert (ended.frames_from_client, ended.frames_from_upstream) == (2, 2)


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1011, 3000, 4999])
async def test_close_codes_of_the_client_reach_upstream(code: int) -> None:
    closed: asyncio.Future[tuple[int | None, str | None]] = asyncio.get_running_loop().create_future()

    async def serving(connection: ServerConnection) -> None:
        await connection.wait_closed()
        closed.set_result((connection.close_code, connection.close_reason))

    async with polite(serving) as upstream, rig(upstream) as us:
        async with connect(us.url) as client:
            await client.close(code, "why")
        assert await asyncio.wait_for(closed, SOON) == (code, "why")
        ended = await us.end()
    assert (ended.reason, ended.code, ended.detail, ended.is_clean) == ("closed_by_client", code, "why", True)


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
async def test_close_codes_of_upstream_reach_the_client(code: int) -> None:
    async def serving(connection: ServerConnection) -> None:
        await connection.send("last words")
        await connection.close(code, "enough")

    async with polite(serving) as upstream, rig(upstream) as us:
        async with connect(us.url) as client:
            assert await client.recv() == "last words"
            with pytest.raises(ConnectionClosed):
                await client.recv()
            assert (client.close_code, client.close_reason) == (code, "enough")
        ended = await us.end()
    assert (ended.reason, ended.code, ended.is_clean) == ("closed_by_upstream", code, True)


async def test_fragments_and_pings_between_them_pass_as_they_came() -> None:
    frames = [(0x01, b"one "), (PING, b"?"), (0x00, b""), (0x80, b"two"), (0x02, b"\0"), (0x80, b"\1")]
    heard, seen = Heard(), []

    def see(payload: bytes, is_whole: bool) -> None:
        seen.append((payload, is_whole))

    async with rude(heard.listen) as upstream, rig(upstream, see_client=see) as us, bare(us.port) as client:
        for first, payload in frames:
            client.writer.write(write_frame(first, payload, MASK))
        client.writer.write(write_close(1000, "", MASK))
        client.writer.write_eof()
        assert (await heard.all())[:-1] == frames
    assert seen == [(b"one two", True)]


async def test_masks_stay_those_of_the_client() -> None:
    frame = write_frame(TEXT, b"hello", b"\xaa\xbb\xcc\xdd")
    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.set_result(await reader.readexactly(len(frame)))

    async with rude(script) as upstream, rig(upstream) as us, bare(us.port) as client:
        client.writer.write(frame)
        assert await asyncio.wait_for(got, SOON) == frame


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Server's and client's context around one self-signed certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "upstream")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "upstream.pem"
    pem.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cafile=str(pem))


@pytest.mark.parametrize("who", ["client", "upstream"])
async def test_over_tls_both_closes_are_clean(
    who: str, tls: tuple[ssl.SSLContext, ssl.SSLContext], caplog: pytest.LogCaptureFixture
) -> None:
    async def serving(connection: ServerConnection) -> None:
        for message in (await connection.recv(), b"x" * 3_000_000):
            await connection.send(message)
        if who == "upstream":
            await connection.close(3001, "enough")
        await connection.wait_closed()

    async with polite(serving, ssl=tls[0]) as upstream, rig(upstream) as us:
        us.tls = tls[1]
        async with connect(us.url, max_size=None) as client:
            await client.send("hello")
            assert await client.recv() == "hello"
            assert await client.recv() == b"x" * 3_000_000
            if who == "client":
                await client.close(3001, "enough")
            await asyncio.wait_for(client.wait_closed(), SOON)
        ended = await us.end()
    assert (ended.reason, ended.code, ended.is_clean) == (f"closed_by_{who}", 3001, True)
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_an_upstream_that_leaves_over_tls_has_its_close_passed_on(
    tls: tuple[ssl.SSLContext, ssl.SSLContext], caplog: pytest.LogCaptureFixture
) -> None:
    """Over TLS no half of a connection stays open; asyncio warns of a protocol that wishes for one."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_frame(reader)
        writer.write(write_close(3000, "bye"))

    async with rude(script, ssl=tls[0]) as upstream, rig(upstream) as us:
        us.tls = tls[1]
        async with bare(us.port) as client:
            client.writer.write(write_frame(TEXT, b"hello", MASK))
            assert await client.frame() == close(3000, "bye")
            relay = us.relay
            assert relay is not None
            async with asyncio.timeout(SOON):
                while "upstream lost" not in repr(relay):
                    await asyncio.sleep(0.001)
            client.writer.write(write_close(3000, "bye", MASK))
            assert await client.frame() == END
            assert (await us.end()).is_clean
    assert not [record for record in caplog.records if record.name == "asyncio"]


# -- taking over from aiohttp -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 100])
async def test_no_early_frame_is_lost(count: int) -> None:
    """Frames sent with the upgrade request, and more before the 101: over aiohttp's own bound as well."""
    size = 10_000
    frames = [write_frame(BINARY, number.to_bytes(2, "big") * (size // 2), os.urandom(4)) for number in range(count)]
    async with polite(echo) as upstream, rig(upstream) as us:
        us.go.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", us.port)
        writer.write(UPGRADE + frames[0])
        await us.asked.wait()
        for frame in frames[1:]:
            writer.write(frame)
        assert us.handler is not None
        kept = min(sum(map(len, frames)), us.handler._read_bufsize)  # there aiohttp stops reading
        while len(us.handler._message_tail) < kept:
            await asyncio.sleep(0)
        us.go.set()
        await reader.readuntil(b"\r\n\r\n")
        client = Bare(reader, writer)
        for number in range(count):
            assert await client.frame() == (BINARY, number.to_bytes(2, "big") * (size // 2))
        writer.write(write_close(1000, "", MASK))
        assert (await client.frame())[0] == CLOSE
        assert (await us.end()).is_clean
        writer.close()


async def test_frames_that_come_with_upstreams_switch_are_passed_on() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(write_frame(TEXT, b'{"type":"session.created"}'))
        await reader.read()

    async with rude(script) as upstream, rig(upstream) as us, bare(us.port) as client:
        assert await client.frame() == (TEXT, b'{"type":"session.created"}')


async def test_a_client_gone_before_the_switch_is_not_taken_over() -> None:
    taken: asyncio.Future[Client | None] = asyncio.get_running_loop().create_future()
    asked, go = asyncio.Event(), asyncio.Event()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        protocol = request._protocol
        asked.set()
        await go.wait()
        while protocol.transport is not None:
            await asyncio.sleep(0)
        taken.set_result(take_over(protocol))
        return _Answered()

    server = web.Server(handle, access_log=None)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
    writer.write(UPGRADE)
    await asked.wait()
    writer.transport.abort()
    go.set()
    assert await asyncio.wait_for(taken, SOON) is None
    listener.close()
    await listener.wait_closed()
    await server.shutdown(1.0)


# -- peers that break the protocol ------------------------------------------------------------------------------------

CLIENT_BREAKS = [
    (write_frame(TEXT, b"not masked"), 1002, "frame not masked"),
    (write_frame(0xC1, b"x", MASK), 1002, "reserved bit set"),
    (write_frame(0x83, b"x", MASK), 1002, "unknown opcode"),
    (write_frame(0x80, b"x", MASK), 1002, "continuation of nothing"),
    (write_frame(0x01, b"x", MASK) + write_frame(TEXT, b"y", MASK), 1002, "message begun within a message"),
    (write_frame(0x09, b"x", MASK), 1002, "control frame in fragments"),
    (b"\x89\xfe\x00\x7e", 1002, "control frame too long"),
    (b"\x82\xff\x00\x00\x00\x00\x01\x00\x00\x01", 1009, "frame over 16777216B"),
]


@pytest.mark.parametrize(("data", "code", "reason"), CLIENT_BREAKS, ids=[case[2] for case in CLIENT_BREAKS])
async def test_a_client_that_breaks_the_protocol_is_told_so(data: bytes, code: int, reason: str) -> None:
    heard = Heard()
    async with rude(heard.listen) as upstream, rig(upstream) as us, bare(us.port) as client:
        client.writer.write(write_frame(TEXT, b"fine", MASK) + data)
        assert await client.frame() == close(code, reason)
        assert await client.frame() == END
        client.writer.close()
        frames = await heard.all()
        assert (frames[0], frames[-1]) == ((TEXT, b"fine"), close(1001, "protocol error"))
        ended = await us.end()
    assert (ended.reason, ended.code, ended.detail) == ("client_broke", code, reason)
    assert not ended.is_clean


async def test_a_frame_of_exactly_the_cap_passes_and_one_byte_more_does_not() -> None:
    async with polite(echo) as upstream, rig(upstream) as us:
        async with connect(us.url, max_size=None, ping_interval=None) as client:
            message = b"z" * (16 << 20)
            await client.send(message)
            assert await asyncio.wait_for(client.recv(), 20) == message
            try:
                await client.send(message + b"!")
            except ConnectionClosedError:
                pass  # told before it had sent all
            await asyncio.wait_for(client.wait_closed(), SOON)
            assert (client.close_code, client.close_reason) == (1009, "frame over 16777216B")
        assert (await us.end()).reason == "client_broke"


@pytest.mark.parametrize("data", [write_frame(TEXT, b"masked", MASK), b"\xc1\x00", b"\x82\x7f\0\0\0\x01\0\0\0\0"])
async def test_an_upstream_that_breaks_the_protocol_is_not_shown_to_the_client(data: bytes) -> None:
    told: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(write_frame(TEXT, b"fine") + data)
        told.set_result(await read_frame(reader))

    async with rude(script) as upstream, rig(upstream) as us, bare(us.port) as client:
        assert await client.frame() == (TEXT, b"fine")
        assert await client.frame() == close(1011, "upstream broke the protocol")
        client.writer.close()
        assert await asyncio.wait_for(told, SOON) == close(1002, "upstream broke the protocol")
        assert (await us.end()).reason == "upstream_broke"


# -- connections that are lost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reset", "eof"])
async def test_a_lost_client_closes_upstream_at_once(how: str) -> None:
    heard = Heard()
    async with rude(heard.listen) as upstream, rig(upstream) as us, bare(us.port) as client:
        client.writer.write(write_frame(TEXT, b"a", MASK) + write_frame(TEXT, b"half", MASK)[:5])
        await us.started.wait()
        if how == "reset":
            client.reset()
        else:
            client.writer.write_eof()
        assert (await heard.all())[-1] == close(1001, "client gone")
        ended = await us.end()
    assert (ended.reason, ended.code, ended.is_clean) == ("client_lost", 1001, False)


@pytest.mark.parametrize("how", ["reset", "eof"])
async def test_a_lost_upstream_is_told_to_the_client(how: str) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_frame(reader)
        writer.write(write_frame(TEXT, b"whole") + write_frame(TEXT, b"half")[:4])
        await writer.drain()
        if how == "reset":
            # Answered, so that the reset does not overtake what was written.
            await read_frame(reader)
            Bare(reader, writer).reset()

    async with rude(script) as upstream, rig(upstream) as us:
        async with connect(us.url) as client:
            await client.send("begin")
            assert await client.recv() == "whole"
            await client.send("read it")
            with pytest.raises(ConnectionClosedError):
                await client.recv()
            assert (client.close_code, client.close_reason) == (1011, "upstream connection lost")
        ended = await us.end()
    assert (ended.reason, ended.code) == ("upstream_lost", 1011)


async def test_upstream_lost_within_a_long_frame_ends_without_a_close_frame() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(write_frame(BINARY, b"x" * 5_000_000)[:4_000_000])
        await writer.drain()

    async with rude(script) as upstream, rig(upstream) as us, bare(us.port) as client:
        assert len(await asyncio.wait_for(client.reader.read(), SOON)) == 4_000_000
        assert (await us.end()).reason == "upstream_lost"


async def test_upstream_that_closes_and_leaves_at_once_is_a_proper_close() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(write_close(3000, "invalid_request_error.invalid_api_key"))

    async with rude(script) as upstream, rig(upstream) as us:
        async with connect(us.url) as client:
            with pytest.raises(ConnectionClosed):
                await client.recv()
            assert client.close_code == 3000
        ended = await us.end()
    assert (ended.reason, ended.code) == ("closed_by_upstream", 3000)


async def test_upstream_gone_instead_of_answering_a_close() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_frame(reader)

    async with rude(script) as upstream, rig(upstream) as us, bare(us.port) as client:
        client.writer.write(write_close(1000, "", MASK))
        assert await client.frame() == close(1011, "upstream connection lost")
        ended = await us.end()
    assert (ended.reason, ended.is_clean) == ("closed_by_client", False)


async def test_a_half_closed_client_that_said_close_still_gets_the_answer() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_frame(reader)
        await may_answer.wait()
        writer.write(write_frame(TEXT, b"still this") + write_close(1000, "done"))
        await reader.read()

    may_answer = asyncio.Event()
    async with rude(script) as upstream, rig(upstream) as us, bare(us.port) as client:
        client.writer.write(write_close(1000, "", MASK))
        client.writer.write_eof()
        await us.started.wait()
        may_answer.set()
        assert await client.frame() == (TEXT, b"still this")
        assert await client.frame() == close(1000, "done")
        assert (await us.end()).is_clean


async def test_upstream_lost_before_the_relay_begins() -> None:
    """Its last frames came with the handshake: they are passed on, then its loss."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    theirs_reader, theirs_writer = await asyncio.open_connection(sock=theirs)
    client, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    ours, gone = socket.socketpair()
    upstream, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    gone.close()
    while not upstream.is_closing():
        await asyncio.sleep(0)
    running = asyncio.ensure_future(
        WebSocketRelay(client, upstream, SocketLimits()).run(
            write_frame(TEXT, b"to nobody", MASK), write_frame(TEXT, b"last words")
        )
    )
    peer = Bare(theirs_reader, theirs_writer)
    assert await peer.frame() == (TEXT, b"last words")
    assert await peer.frame() == close(1011, "upstream connection lost")
    theirs_writer.close()
    assert (await asyncio.wait_for(running, SOON)).reason == "upstream_lost"


# -- time and room ----------------------------------------------------------------------------------------------------


async def test_a_silent_pair_is_closed() -> None:
    heard = Heard()
    limits = SocketLimits(idle_timeout=0.1, close_timeout=1.0)
    async with rude(heard.listen) as upstream, rig(upstream, limits) as us, bare(us.port) as client:
        assert await client.frame() == close(1001, "idle too long")
        client.writer.close()
        assert await heard.all() == [close(1001, "idle too long")]
        assert (await us.end()).reason == "idle"


async def test_no_pair_stays_open_for_ever() -> None:
    limits = SocketLimits(total_timeout=0.3, idle_timeout=0.2)
    async with polite(echo) as upstream, rig(upstream, limits) as us:
        async with connect(us.url, ping_interval=0.05) as client:
            await asyncio.wait_for(client.wait_closed(), SOON)
            assert (client.close_code, client.close_reason) == (1001, "open too long")
        assert (await us.end()).reason == "expired"


async def test_any_byte_puts_idleness_off() -> None:
    limits = SocketLimits(idle_timeout=0.2)
    async with polite(echo) as upstream, rig(upstream, limits) as us:
        async with connect(us.url, ping_interval=0.05) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.recv(), 0.6)
            await client.send("still here")
            assert await client.recv() == "still here"
        assert (await us.end()).reason == "closed_by_client"


async def test_a_slow_client_stops_upstream_and_is_closed_in_time() -> None:
    sent = 0
    stopped = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        frame = write_frame(BINARY, b"x" * 60_000)
        try:
            while True:
                writer.write(frame)
                await writer.drain()
                sent += len(frame)
        finally:
            stopped.set()

    limits = SocketLimits(write_timeout=0.3, close_timeout=0.3)
    async with rude(script) as upstream, rig(upstream, limits) as us, bare(us.port, limit=1024) as client:
        assert client.writer is not None  # it is open, and reads no more
        await asyncio.wait_for(stopped.wait(), SOON)
        ended = await us.end()
    assert (ended.reason, ended.code) == ("client_slow", 1008)
    # What the kernels' buffers took, and ours: bounded, whatever upstream would have sent.
    assert sent < 40_000_000
    assert ended.bytes_from_upstream < 40_000_000


async def test_a_slow_client_that_wakes_up_reads_why() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frame = write_frame(BINARY, b"x" * 60_000)
        while True:
            writer.write(frame)
            await writer.drain()

    limits = SocketLimits(write_timeout=0.2, close_timeout=SOON)
    async with rude(script) as upstream, rig(upstream, limits) as us, bare(us.port, limit=1024) as client:
        await us.started.wait()
        relay = us.relay
        assert relay is not None
        while "client_slow" not in repr(relay):
            await asyncio.sleep(0.01)
        while (frame := await client.frame())[0] == BINARY:
            pass
        assert frame == close(1008, "reading too slowly")
        client.writer.close()
        assert (await us.end()).reason == "client_slow"


async def test_a_reader_that_only_pauses_loses_nothing() -> None:
    count = 400

    async def serving(connection: ServerConnection) -> None:
        for number in range(count):
            await connection.send(number.to_bytes(2, "big") * 20_000)

    async with polite(serving) as upstream, rig(upstream) as us, bare(us.port, limit=1024) as client:
        await us.started.wait()
        await asyncio.sleep(0.2)  # time in which every buffer on the way fills up
        for number in range(count):
            assert await client.frame() == (BINARY, number.to_bytes(2, "big") * 20_000)
        assert (await client.frame())[0] == CLOSE


async def test_an_upstream_that_does_not_read_is_told_to_the_client_and_cut() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()
        await over.wait()

    over = asyncio.Event()
    limits = SocketLimits(write_timeout=0.3, close_timeout=2 * SOON)
    async with rude(script) as upstream, rig(upstream, limits) as us, bare(us.port) as client:
        frame = write_frame(BINARY, b"x" * 60_000, MASK)

        async def push() -> None:
            while True:
                client.writer.write(frame)
                await client.writer.drain()

        pushing = asyncio.ensure_future(push())
        assert await client.frame() == close(1013, "upstream is not reading")
        pushing.cancel()
        client.writer.transport.abort()  # noticed, because the client is read again
        ended = await us.end()
        over.set()
    assert (ended.reason, ended.code) == ("upstream_slow", 1013)


async def test_a_closing_handshake_that_nobody_answers_ends_in_time() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    limits = SocketLimits(close_timeout=0.2)
    async with rude(script) as upstream, rig(upstream, limits) as us, bare(us.port) as client:
        client.writer.write(write_close(1000, "", MASK))
        ended = await us.end()
    assert (ended.reason, ended.code, ended.is_clean) == ("closed_by_client", 1000, False)


# -- the service's own ends -------------------------------------------------------------------------------------------


async def test_draining_asks_the_client_to_come_again() -> None:
    async with polite(echo) as upstream, rig(upstream) as us:
        async with connect(us.url) as client:
            await us.started.wait()
            assert us.relay is not None
            us.relay.drain()
            with pytest.raises(ConnectionClosed):
                await client.recv()
            assert (client.close_code, client.close_reason) == (1012, "service restart")
        assert (await us.end()).reason == "draining"


async def test_cancelled_it_closes_both() -> None:
    heard = Heard()
    limits = SocketLimits(close_timeout=0.5)
    async with rude(heard.listen) as upstream, rig(upstream, limits) as us, bare(us.port) as client:
        await us.started.wait()
        assert us.task is not None
        us.task.cancel()
        assert await client.frame() == close(1012, "service restart")
        assert await heard.all() == [close(1001, "service restart")]
        with pytest.raises(asyncio.CancelledError):
            await us.end()


# -- what is seen -----------------------------------------------------------------------------------------------------


async def test_taps_see_both_sides_in_the_clear_and_usage_is_picked_out() -> None:
    asked: list[bytes] = []
    usage: list[bytes] = []
    done = '{"type":"response.done","response":{"usage":{"input_tokens":3}}}'

    async def serving(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send('{"type":"response.output_text.delta","delta":"hi"}')
        await connection.send(done)
        await connection.send([done[:20], done[20:]])
        await connection.send(done.encode())

    def see_client(payload: bytes, is_whole: bool) -> None:
        asked.append(payload)

    see_upstream: See = on_usage(usage.append)
    async with polite(serving) as upstream, rig(upstream, see_client=see_client, see_upstream=see_upstream) as us:
        async with connect(us.url) as client:
            await client.send('{"type":"response.create"}')
            async for _ in client:
                pass
        await us.end()
    assert asked == [b'{"type":"response.create"}']
    assert usage == [done.encode()] * 2


def test_a_message_shown_in_part_is_not_read_for_usage() -> None:
    read: list[bytes] = []
    on_usage(read.append)(b'{"usage":', False)
    assert read == []


async def test_keys_in_upstreams_errors_are_taken_out() -> None:
    async def serving(connection: ServerConnection) -> None:
        await connection.send("before")
        await connection.send('{"type":"error","error":{"message":"Incorrect API key provided: sk-pool-1"}}')
        await connection.close(3000, "sk-pool-1 is wrong")

    def clean(payload: bytes) -> bytes:
        return payload.replace(b"sk-pool-1", b"sk-***")

    async with polite(serving) as upstream, rig(upstream, clean=clean) as us:
        async with connect(us.url) as client:
            assert await client.recv() == "before"
            assert await client.recv() == '{"type":"error","error":{"message":"Incorrect API key provided: sk-***"}}'
            with pytest.raises(ConnectionClosed):
                await client.recv()
            assert client.close_reason == "sk-*** is wrong"
        ended = await us.end()
    assert "sk-pool-1" not in repr(ended) + ended.detail


async def test_a_refused_message_does_not_reach_upstream() -> None:
    def see(payload: bytes, is_whole: bool) -> None:
        if b"resp_other" in payload:
            raise Refusal(RefusalKind.NOT_FOUND, "No such response.")

    heard = Heard()
    async with rude(heard.listen) as upstream, rig(upstream, see_client=see) as us, bare(us.port) as client:
        client.writer.write(write_frame(TEXT, b"mine", MASK))
        client.writer.write(write_frame(TEXT, b"resp_other", MASK))
        assert await client.frame() == close(1008, "No such response.")
        client.writer.close()
        frames = await heard.all()
        assert frames == [(TEXT, b"mine"), close(1001, "refused")] or frames == [close(1001, "refused")]
        ended = await us.end()
    assert (ended.reason, ended.code, ended.detail) == ("refused", 1008, "No such response.")


@pytest.mark.parametrize("when", ["with the switch", "later"])
async def test_a_bug_in_a_tap_ends_honestly_and_comes_out(when: str) -> None:
    def see(payload: bytes, is_whole: bool) -> None:
        raise ZeroDivisionError

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if when == "later":
            await read_frame(reader)
        writer.write(write_frame(TEXT, b"boom"))
        await reader.read()

    async with rude(script) as upstream, rig(upstream, see_upstream=see) as us, bare(us.port) as client:
        client.writer.write(write_frame(BINARY, b"go", MASK))
        assert await client.frame() == close(1011, "internal error")
        client.writer.close()
        with pytest.raises(ZeroDivisionError):
            await us.end()


async def test_without_aiohttps_c_loop_all_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def see(payload: bytes, is_whole: bool) -> None:
        seen.append(payload)

    monkeypatch.setattr("yugong.proxy.websocket._UNMASK", unmask)
    async with polite(echo) as upstream, rig(upstream, see_client=see) as us, connect(us.url) as client:
        await client.send("hello")
        assert await client.recv() == "hello"
    assert seen == [b"hello"]


# -- tables and lines -------------------------------------------------------------------------------------------------


def test_every_code_we_send_may_be_sent() -> None:
    """RFC 6455 §7.4.1: 1005, 1006 and 1015 never stand in a frame."""
    for ending in ENDINGS.values():
        assert {ending.to_client, ending.to_upstream} <= {0, 1001, 1002, 1008, 1011, 1012, 1013}
        assert len(ending.words) <= 123


async def test_reprs_are_one_diagnostic_line() -> None:
    async with polite(echo) as upstream, rig(upstream) as us:
        async with connect(us.url) as client:
            await us.started.wait()
            assert repr(us.relay) == "<WebSocketRelay open <_Side client open 0B> <_Side upstream open 0B>>"
            await client.close()
        ended = await us.end()
    assert repr(ended) == "<Ended closed_by_client 1000 client=8B/1 upstream=4B/1>"
    assert repr(Client(None, asyncio.Transport(), b"xy")) == "<Client early=2B>"  # type: ignore[arg-type]
    assert repr(SocketLimits()).startswith("<SocketLimits client=<FrameCaps frame=16777216B")
