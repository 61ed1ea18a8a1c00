"""Bytes of HTTP/1.1 as they are: a client that sends what it is given and keeps all that comes, and a tap that stands
before an upstream and notes what that is sent.

Its parser is no part of the product and as plain as can be: it reads what well-behaved peers write, and fails loudly
on anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

PATIENCE = 20.0  # seconds for any one answer
SCRIPT = re.compile(rb"[?&]script=([\w-]+)")  # the query parameter that names a scripted answer

Fields = list[tuple[bytes, bytes]]
LINE, REST = -1, -2
Read = Callable[[int], Awaitable[bytes]]  # so many bytes, a line, or all there is


class Message(NamedTuple):
    """A request or an answer, its framing undone."""

    start: bytes
    fields: Fields  # names as spelled
    body: bytes
    framing: str  # length, chunked, close, or none
    trailers: Fields
    interim: tuple[bytes, ...] = ()  # first lines of 1xx answers before it
    closes: bool = False  # whether the connection ended with it

    def __repr__(self) -> str:
        return f"<Message {self.start.decode('latin-1')!r} {len(self.fields)} fields, {len(self.body)}B {self.framing}>"

    def named(self) -> dict[str, list[bytes]]:
        """Values by lower-case name, in order."""
        found: dict[str, list[bytes]] = {}
        for name, value in self.fields:
            found.setdefault(name.lower().decode("latin-1"), []).append(value)
        return found

    def first(self, name: str) -> bytes:
        return self.named().get(name, [b""])[0]


async def read_message(read: Read, *, answers: str = "") -> Message:
    """The next message; `answers` is the method it is the answer to. Raises EOFError before one, ValueError inside."""
    interim: list[bytes] = []
    while True:
        start = (await read(LINE)).rstrip(b"\r\n")
        if not start:
            raise EOFError
        fields = await _read_fields(read)
        if not (answers and start.split()[1][:1] == b"1"):
            break
        interim.append(start)
    named = Message(start, fields, b"", "", []).named()
    trailers: Fields = []
    body, framing = b"", "none"
    is_bodiless = answers == "HEAD" or (answers and start.split()[1] in (b"204", b"304"))
    if is_bodiless:
        pass
    elif "transfer-encoding" in named:
        framing = "chunked"
        pieces = []
        while size := int((await read(LINE)).split(b";")[0], 16):
            pieces.append(await read(size))
            if await read(2) != b"\r\n":
                raise ValueError("a chunk without its end")
        trailers = await _read_fields(read)
        body = b"".join(pieces)
    elif "content-length" in named:
        framing = "length"
        body = await read(int(named["content-length"][0]))
    elif answers:
        framing = "close"
        body = await read(REST)
    said = b",".join(named.get("connection", ())).lower()
    closes = framing == "close" or b"close" in said or (start[:8] == b"HTTP/1.0" and b"keep-alive" not in said)
    return Message(start, fields, body, framing, trailers, tuple(interim), closes)


async def _read_fields(read: Read) -> Fields:
    found: Fields = []
    while line := (await read(LINE)).rstrip(b"\r\n"):
        name, colon, value = line.partition(b":")
        if not colon:
            raise ValueError(f"no header field: {line[:60]!r}")
        found.append((name, value.strip(b" \t")))
    return found


def reading(stream: asyncio.StreamReader, note: Callable[[bytes], object], first: bytes = b"") -> Read:
    """How `read_message` reads from a stream from which the line `first` was taken; the rest goes to `note` as well."""
    taken = [first] if first else []

    async def read(size: int) -> bytes:
        if taken:
            return taken.pop()
        if size == LINE:
            data = await stream.readline()
        elif size == REST:
            data = await stream.read()
        else:
            data = await stream.readexactly(size)
        note(data)
        return data

    return read


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


class Client:
    """One kept connection to a port of loopback, opened again after each end."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def __repr__(self) -> str:
        return f"<Client of {self.port} {'open' if self._streams else 'closed'}>"

    async def ask(self, request: bytes, method: str) -> Message:
        """Send a request as it is, return the answer. Raises what the socket raises, TimeoutError, ValueError."""
        async with asyncio.timeout(PATIENCE):
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self.port, limit=8 << 20)
            reader, writer = self._streams
            try:
                writer.write(request)
                answer = await read_message(reading(reader, len), answers=method)
            except BaseException:
                await self.close()
                raise
            if answer.closes:
                await self.close()
            return answer

    async def close(self) -> None:
        if self._streams is not None:
            streams, self._streams = self._streams, None
            await hang_up(streams[1])


class Tap:
    """Stands before an upstream on a port of its own. Passes bytes on as they come, keeps every request, and answers
    those whose query names a script itself."""

    def __init__(self, upstream_port: int, scripts: Mapping[str, bytes]) -> None:
        self.upstream_port = upstream_port
        self.scripts = scripts
        self.requests: list[Message] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Tap {self.port} requests={len(self.requests)}>"

    @property
    def authority(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=8 << 20)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: requests are read and passed on at once, answers copied blindly."""
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        copying = asyncio.ensure_future(_copy(up_reader, writer))
        try:
            while first := await reader.readline():
                script = SCRIPT.search(first)
                pass_on = len if script else up_writer.write
                pass_on(first)
                self.requests.append(await read_message(reading(reader, pass_on, first)))
                if script:
                    answer = self.scripts[script[1].decode()].replace(b"ORIGIN", self.authority.encode())
                    writer.write(answer)
                    if b"connection: close" in answer.lower():
                        break
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            copying.cancel()
            await hang_up(up_writer)
            await hang_up(writer)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()
