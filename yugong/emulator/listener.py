"""A listening socket that can also refuse, reset, talk nonsense or say nothing, to all new connections or by lot.

It accepts by itself rather than through `create_server`, because with TLS these faults have to strike before the
handshake. Knows nothing of HTTP.
"""

import asyncio
import os
import socket
import ssl
import struct
from collections.abc import Callable
from typing import cast

from aiohttp import web

from yugong.emulator.faults import FaultPlan

MODES = ("open", "closed", "reset", "garbage", "silent")
BACKLOG = 4096
# What each listener fault becomes for a connection that is already accepted.
BY_LOT = {"connect_refused": "reset", "tls_error": "garbage"}


class _Garbage(asyncio.Protocol):
    """Answers the first bytes (a ClientHello, say) with what is neither TLS nor HTTP, and closes."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(b"\x00\x16nonsense" + os.urandom(32))
        self.transport.close()


class _Silent(asyncio.Protocol):
    """Takes the connection and never says a word."""


class Listener:
    """One port. `set(mode)` changes what new connections meet:

    open, closed (refused; existing connections are dropped), reset (accepted, then RST), garbage, silent.
    """

    def __init__(self, server: web.Server, plan: FaultPlan, most: int, tls: ssl.SSLContext | None) -> None:
        self.mode = "open"
        self.host = ""
        self.port = 0
        self.accepted = 0
        self._server = server
        self._plan = plan
        self._most = most
        self._tls = tls
        self._socket: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._odd: set[asyncio.BaseTransport] = set()

    def __repr__(self) -> str:
        return f"<Listener {self.url} {self.mode} accepted={self.accepted}>"

    @property
    def url(self) -> str:
        """Scheme, host and port, without a path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    def open(self, host: str, port: int) -> None:
        """Bind and listen; port 0 picks one. Raises OSError when the port is taken."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((host, port))
            made.listen(BACKLOG)
        except BaseException:
            made.close()
            raise
        made.setblocking(False)
        self._socket = made
        self.host, self.port = host, made.getsockname()[1]
        asyncio.get_running_loop().add_reader(made.fileno(), self._accept)

    def set(self, mode: str) -> None:
        """Change the mode; raises ValueError for one that is none."""
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; known are {', '.join(MODES)}")
        if mode == "closed":
            self._close_socket()
            self.drop_connections()
        elif self._socket is None:
            self.open(self.host, self.port)
        self.mode = mode

    def drop_connections(self) -> None:
        """Cut every connection there is."""
        for connection in self._server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        for transport in self._odd:
            cast(asyncio.Transport, transport).abort()
        self._odd.clear()

    async def close(self) -> None:
        self._close_socket()
        self.drop_connections()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.shutdown(1.0)

    def _close_socket(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _accept(self) -> None:
        assert self._socket is not None
        for _ in range(128):
            try:
                made, _ = self._socket.accept()
            except OSError:  # none waiting, or gone again, or no descriptors left: the next event tries again
                return
            self.accepted += 1
            made.setblocking(False)
            fault = self._plan.for_connection()
            if fault is not None:
                self._plan.note(fault.kind)
            self._take(made, BY_LOT[fault.kind] if fault else self.mode)

    def _take(self, made: socket.socket, mode: str) -> None:
        if mode == "reset" or len(self._server.connections) >= self._most:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            made.close()
            return
        factory: Callable[[], asyncio.BaseProtocol] = {"garbage": _Garbage, "silent": _Silent}.get(mode, self._server)
        task = asyncio.ensure_future(self._connect(made, factory))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, made: socket.socket, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        loop = asyncio.get_running_loop()
        tls = self._tls if factory is self._server else None
        try:
            transport, _ = await loop.connect_accepted_socket(factory, made, ssl=tls)
        except (OSError, ssl.SSLError):
            made.close()  # a handshake that failed is the client's affair
            return
        if factory is not self._server:
            self._odd.add(transport)
