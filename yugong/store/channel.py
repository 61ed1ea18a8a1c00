"""Messages between the processes of one Yugong, over a socket pair or a local socket.

Decides: the framing (length, kind, payload), how much may wait to be sent, and that neither side ever blocks. Must not
know: what the messages say.

A channel is callbacks on a loop's readers and writers rather than an asyncio stream: its buffers can be taken out and
put into another channel, which is how a supervisor replaces its own program without losing half a message.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

__all__ = ["JSON", "LINES", "Channel", "ChannelError", "connect_local", "listen_local", "receive_one"]

JSON = b"J"
LINES = b"L"

_HEAD = struct.Struct(">Ic")
FRAME_MAX = 256 * 1024 * 1024  # bytes; settings of 10 000 orgs are a hundredth of it
READ_SIZE = 256 * 1024
PATH_MAX = 100  # bytes; the kernel's sun_path holds 108

Receive = Callable[["Channel", bytes, bytes], None]


class ChannelError(Exception):
    """The other side is gone or does not speak this protocol."""


class Channel:
    """One end. `receive(channel, kind, payload)` is called for each message, `closed(channel)` once when it is over."""

    __slots__ = ("_closed", "_drained", "_inbound", "_loop", "_outbound", "_receive", "is_open", "name", "sock")

    def __init__(
        self, sock: socket.socket, receive: Receive, closed: Callable[[Channel], None], name: str = ""
    ) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.name = name
        self.is_open = True
        self._receive = receive
        self._closed = closed
        self._inbound = bytearray()
        self._outbound = bytearray()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drained: asyncio.Event | None = None

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<Channel {self.name} {state} in={len(self._inbound)}B out={len(self._outbound)}B>"

    @property
    def waiting(self) -> int:
        """Bytes not yet taken by the other side."""
        return len(self._outbound)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to read and write on this loop."""
        self._loop = loop
        loop.add_reader(self.sock.fileno(), self._readable)
        if self._outbound:
            loop.add_writer(self.sock.fileno(), self._writable)

    def detach(self) -> None:
        """Stop reading and writing; what is buffered stays."""
        if self._loop is not None:
            self._loop.remove_reader(self.sock.fileno())
            self._loop.remove_writer(self.sock.fileno())
            self._loop = None

    def close(self) -> None:
        """Close without a last word to `closed`; idempotent."""
        if self.is_open:
            self.detach()
            self.is_open = False
            self.sock.close()
            if self._drained is not None:
                self._drained.set()

    def send(self, message: Any) -> None:
        """Send one JSON message. On a closed channel nothing happens: `closed` has told."""
        self.send_raw(JSON, orjson.dumps(message))

    def send_raw(self, kind: bytes, payload: bytes) -> None:
        if not self.is_open:
            return
        was_empty = not self._outbound
        self._outbound += _HEAD.pack(len(payload), kind) + payload
        if was_empty:
            self._writable()

    def buffers(self) -> tuple[bytes, bytes]:
        """What has come in without being a whole message yet, and what has not gone out."""
        return bytes(self._inbound), bytes(self._outbound)

    def put_back(self, inbound: bytes, outbound: bytes) -> None:
        """Continue where another channel on the same socket was stopped; before `attach`."""
        self._inbound[:0] = inbound
        self._outbound[:0] = outbound

    async def flush(self, timeout: float) -> None:
        """Wait until all is sent, the channel is closed, or `timeout` seconds are over."""
        if self.is_open and self._outbound:
            self._drained = asyncio.Event()
            try:
                await asyncio.wait_for(self._drained.wait(), timeout)
            except TimeoutError:
                pass
            finally:
                self._drained = None

    def _readable(self) -> None:
        try:
            data = self.sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end()
            return
        self._inbound += data
        self._deliver()

    def _deliver(self) -> None:
        inbound, start = self._inbound, 0
        while self.is_open and len(inbound) - start >= _HEAD.size:
            length, kind = _HEAD.unpack_from(inbound, start)
            if length > FRAME_MAX:
                self._end()
                return
            stop = start + _HEAD.size + length
            if len(inbound) < stop:
                break
            payload = bytes(memoryview(inbound)[start + _HEAD.size : stop])
            start = stop
            self._receive(self, kind, payload)
        del inbound[:start]

    def _writable(self) -> None:
        try:
            sent = self.sock.send(self._outbound)
        except BlockingIOError:
            sent = 0
        except OSError:
            # what has come in is still to be read; the reader will meet the end
            self._outbound.clear()
            sent = 0
        del self._outbound[:sent]
        if self._drained is not None and not self._outbound:
            self._drained.set()
        if self._loop is not None:
            if self._outbound:
                self._loop.add_writer(self.sock.fileno(), self._writable)
            else:
                self._loop.remove_writer(self.sock.fileno())

    def _end(self) -> None:
        self.close()
        self._closed(self)


def receive_one(sock: socket.socket) -> bytes:
    """Read one JSON message, blocking, and not a byte more; its text. Raises ChannelError when it does not come."""
    length, kind = _HEAD.unpack(_exactly(sock, _HEAD.size))
    if kind != JSON or length > FRAME_MAX:
        raise ChannelError("not a message")
    return _exactly(sock, length)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = sock.recv(min(size - len(data), READ_SIZE))
        if not more:
            raise ChannelError("the other side is gone")
        data += more
    return bytes(data)


def listen_local(path: Path, mode: int = 0o600) -> socket.socket:
    """A listening local socket at `path`, for whom `mode` lets. Raises OSError. What stood there before is removed."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    former = os.umask(0o777 & ~mode)
    try:
        path.unlink(missing_ok=True)
        with _short(path) as short:
            sock.bind(short)
        sock.listen(128)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(former)
    sock.setblocking(False)
    return sock


def connect_local(path: Path) -> socket.socket:
    """A connected local socket. Raises OSError; local connects never wait long."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(path) as short:
            sock.connect(short)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


class _short:
    """A name for `path` that fits in a socket's address however deep it lies: through the directory's descriptor."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) <= PATH_MAX:
            return str(self._path)
        self._fd = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._fd}/{self._path.name}"

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
