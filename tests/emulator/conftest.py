"""An emulator on a real port, and a client of bare sockets that sees every byte and how the connection ended."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import orjson
import pytest

from yugong.emulator import Emulator, EmulatorSpec

Serve = Callable[..., Awaitable[Emulator]]
BODY = {"model": "gpt-4o", "messages": [{"role": "user", "content": "How high is the mountain?"}]}
PATIENCE = 5.0  # seconds nothing here should ever need


class Heard(NamedTuple):
    """What a client heard until the connection ended or went silent."""

    data: bytes
    ending: str  # "fin", "rst", "silent" (still open), or "answer" (one whole answer, connection open)

    @property
    def head(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[2]

    @property
    def status(self) -> int:
        return int(self.data.split(b" ", 2)[1])

    @property
    def fields(self) -> dict[str, str]:
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


def request_bytes(emulator: Emulator, path: str = "/v1/chat/completions", **options: Any) -> bytes:
    """A request as bytes; options: method, body (dict or bytes), key, headers."""
    given = options.get("body", BODY)
    body = given if isinstance(given, bytes) else orjson.dumps(given)
    key = options.get("key", emulator.spec.orgs[0].keys[0])
    headers = {"Host": "emulator", "Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    headers |= {"Content-Length": str(len(body))} | options.get("headers", {})
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value is not None)
    return f"{options.get('method', 'POST')} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


async def hear(emulator: Emulator, request: bytes, silence: float = 0.5, tls: Any = None) -> Heard:
    """Send and listen until the end, or until nothing more has come for `silence` seconds."""
    port = int(emulator.url.rsplit(":", 1)[1])
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    except ConnectionResetError:
        return Heard(b"", "rst")
    heard = bytearray()
    ending = "fin"
    try:
        writer.write(request)
        while True:
            data = await asyncio.wait_for(reader.read(65536), silence)
            if not data:
                break
            heard += data
    except TimeoutError:
        ending = "silent"
    except ConnectionResetError:
        ending = "rst"
    finally:
        writer.transport.abort()
        try:
            await writer.wait_closed()
        except OSError:
            pass
    return Heard(bytes(heard), ending)


async def ask(emulator: Emulator, path: str = "/v1/chat/completions", **options: Any) -> Heard:
    """One request on a connection that is closed after it: the whole answer."""
    options["headers"] = {"Connection": "close"} | options.get("headers", {})
    return await hear(emulator, request_bytes(emulator, path, **options), PATIENCE)


def unchunked(body: bytes) -> bytes:
    """A chunked body undone; asserts that it is whole."""
    plain = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            assert body == b"\r\n"
            return plain
        assert body[length : length + 2] == b"\r\n"
        plain, body = plain + body[:length], body[length + 2 :]


def events_of(plain: bytes) -> list[Any]:
    """The JSON documents of a stream, `[DONE]` as a string."""
    found: list[Any] = []
    for block in plain.split(b"\n\n"):
        for line in block.split(b"\n"):
            if line.startswith(b"data: "):
                found.append("[DONE]" if line == b"data: [DONE]" else orjson.loads(line[6:]))
    return found


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start emulators; all are stopped at the end."""
    started: list[Emulator] = []

    async def start(spec: EmulatorSpec | None = None, **listen: Any) -> Emulator:
        emulator = Emulator(spec or EmulatorSpec.uniform())
        started.append(emulator)
        await emulator.start(**listen)
        return emulator

    yield start
    for emulator in started:
        await emulator.stop()
