"""Upstreams that play a script, byte by byte, on real sockets; a certificate authority; and a leg that must stay calm.

A script is a coroutine that gets a `Talk` per connection: it reads requests, writes what the test wants, and knows when
the other side is gone. Names are resolved by a table (`Names`), the one part that cannot be had on loopback for real.
"""

import asyncio
import datetime
import gc
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from yugong.base.errors import WireFault
from yugong.base.headers import TO_CLIENT
from yugong.upstream.connection import Connection
from yugong.upstream.head import HeadReader
from yugong.upstream.leg import Attempt, Leg, Wire
from yugong.upstream.origin import OriginSpec

PATIENCE = 10.0  # seconds nothing here should ever need


class Talk:
    """One connection, seen by the upstream."""

    def __init__(self, peer: "Peer", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peer = peer
        self.reader = reader
        self.writer = writer
        self.number = peer.accepted

    async def head(self) -> bytes:
        """The next request's head."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        self.peer.heads.append(head)
        return head

    async def request(self) -> tuple[bytes, bytes]:
        """The next request, head and body."""
        head = await self.head()
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        return head, await self.reader.readexactly(int(length or b"0"))

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def gone(self) -> None:
        """Until the other side has closed; what it still sent is thrown away."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass

    def reset(self) -> None:
        """Ends the connection with an RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.writer.transport.abort()

    def info(self, name: str) -> Any:
        return self.writer.get_extra_info(name)


Script = Callable[[Talk], Awaitable[None]]


class Peer:
    """A listening upstream. `accepted` counts connections, `heads` holds the heads of requests as they came."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.accepted = 0
        self.open = 0
        self.heads: list[bytes] = []
        self.port = 0

    async def start(self, tls: ssl.SSLContext | None, host: str) -> None:
        self._server = await asyncio.start_server(self._serve, host, 0, ssl=tls, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        self.open += 1
        try:
            await self._script(Talk(self, reader, writer))
            writer.close()
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self.open -= 1
            self._tasks.discard(task)

    def refuse(self) -> None:
        """Listens no longer; connections stay."""
        assert self._server is not None
        self._server.close()

    async def stop(self) -> None:
        self.refuse()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=PATIENCE)
        await asyncio.sleep(0)


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[Peer]]]:
    """Starts upstreams: `await serve(script, tls=context)`."""
    peers: list[Peer] = []

    async def start(script: Script, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Peer:
        peer = Peer(script)
        await peer.start(tls, host)
        peers.append(peer)
        return peer

    yield start
    for peer in peers:
        await peer.stop()


class Names:
    """The loop with names of its own: `table[name]` is a list of addresses, or an error to raise."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.table: dict[str, list[str] | Exception] = {}
        self.asked: list[str] = []
        self.gate: asyncio.Event | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def getaddrinfo(self, host: str, port: int, **options: Any) -> list[Any]:
        if host not in self.table:
            return await self._loop.getaddrinfo(host, port, **options)
        self.asked.append(host)
        if self.gate is not None:
            await self.gate.wait()
        found = self.table[host]
        if isinstance(found, Exception):
            raise found
        return [
            (socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in found
        ]


@pytest.fixture
async def names() -> Names:
    return Names(asyncio.get_running_loop())


@pytest.fixture
async def leg(names: Names) -> AsyncIterator[Leg]:
    """A leg; a test fails if anything was left to the loop's exception handler."""
    loop = asyncio.get_running_loop()
    unheard: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: unheard.append(context))
    made = Leg(names)  # type: ignore[arg-type]
    yield made
    await made.close()
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert not unheard, unheard


@pytest.fixture
async def quiet_ends(leg: Leg) -> AsyncIterator[None]:
    """Lets the collector show futures whose exception nobody took; `leg` then fails."""
    yield
    await asyncio.sleep(0.02)
    gc.collect()


class Waits(NamedTuple):
    connect: float = 5.0
    first_byte: float = 5.0
    silence: float = 5.0


class Body:
    """A sink that keeps what comes. `pause_at`: bytes after which it holds the connection back."""

    def __init__(self, connection: Connection, pause_at: int | None = None) -> None:
        self.connection = connection
        self.parts: list[bytes] = []
        self.framed: list[bytes | None] = []
        self.size = 0
        self.ends = 0
        self.pause_at = pause_at
        self.fault: WireFault | None = None
        self.paused = asyncio.Event()
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        connection.attach(self)

    def on_body(self, data: bytes, framed: bytes | None) -> None:
        assert data
        assert not self._over.done()
        self.parts.append(data)
        self.framed.append(framed)
        self.size += len(data)
        if self.pause_at is not None and self.size >= self.pause_at:
            self.pause_at = None
            self.connection.pause_reading()
            self.paused.set()

    def on_end(self) -> None:
        self.ends += 1
        self._over.set_result(None)

    def on_fault(self, fault: WireFault) -> None:
        self.fault = fault
        self._over.set_result(None)

    async def whole(self) -> bytes:
        """The body; raises the fault that broke it."""
        await asyncio.wait_for(asyncio.shield(self._over), PATIENCE)
        if self.fault is not None:
            raise self.fault
        return b"".join(self.parts)


@pytest.fixture
def body_of() -> type[Body]:
    return Body


READER = HeadReader(TO_CLIENT)


@pytest.fixture
def ask(leg: Leg) -> Callable[..., Awaitable[Attempt]]:
    """Sends a request to a peer (or a spec): `await ask(peer, waits={"silence": 0.3})`."""

    async def send(to: Peer | OriginSpec, method: str = "POST", body: bytes = b"", **more: Any) -> Attempt:
        spec = to if isinstance(to, OriginSpec) else way_to(to)
        path = more.get("path", "/")
        length = more.get("length", len(body))
        start = f"{method} {path} HTTP/1.1\r\nHost: {spec.authority}\r\nContent-Length: {length}\r\n\r\n".encode()
        waits, total = Waits(**more.get("waits", {})), more.get("total", PATIENCE)
        wire = Wire(method, start + body, READER, waits, leg.now() + total)
        pieces = more.get("more")
        wire.more = pieces if pieces is None or callable(pieces) else lambda: pieces
        return await asyncio.wait_for(leg.send(leg.origin(spec), wire), PATIENCE)

    return send


@pytest.fixture
def wire_to(leg: Leg) -> Callable[..., Wire]:
    """A chat call to an emulator."""

    def make(spec: OriginSpec, **waits: float) -> Wire:
        body = b'{"model":"gpt-4o","messages":[{"role":"user","content":"hello"}]}'
        lines = f"Host: {spec.authority}\r\nAuthorization: Bearer sk-k\r\nContent-Type: application/json\r\n"
        head = f"POST /v1/chat/completions HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
        return Wire("POST", head.encode() + body, READER, Waits(**waits), leg.now() + PATIENCE)

    return make


def way_to(peer: Peer, **changes: Any) -> OriginSpec:
    fields = {"name": "o", "host": "127.0.0.1", "port": peer.port, "is_tls": False, "is_private": True, **changes}
    return OriginSpec(**fields)


@pytest.fixture
def way() -> Callable[..., OriginSpec]:
    """The spec of a way to a peer: `way(peer, host="name.test", is_tls=True)`."""
    return way_to


# -- certificates -----------------------------------------------------------------------------------------------------


class Authority:
    """A certificate authority of our own."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._count = 0
        ca = self._sign(self._subject, self._key.public_key(), 3600, is_ca=True)
        self.file = str(folder / f"{name}.pem")
        Path(self.file).write_bytes(ca.public_bytes(serialization.Encoding.PEM))

    def _sign(self, subject: x509.Name, key: Any, seconds: int, is_ca: bool, host: str = "") -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=2))
            .not_valid_after(now + datetime.timedelta(seconds=seconds))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if host:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def context(self, host: str, seconds: int = 3600) -> ssl.SSLContext:
        """A server's context for `host`, valid for `seconds` from now (negative: no longer)."""
        self._count += 1
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        leaf = self._sign(subject, key.public_key(), seconds, is_ca=False, host=host)
        path = self._folder / f"{self._name}-{self._count}.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(private + leaf.public_bytes(serialization.Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "ours")


@pytest.fixture(scope="session")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority nobody was told to trust."""
    return Authority(tmp_path_factory.mktemp("ca"), "theirs")
