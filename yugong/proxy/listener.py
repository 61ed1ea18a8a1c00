"""The client's side: aiohttp's hardened server, with the parts taken out that a relay does not need.

aiohttp parses what clients send (threats 38–52 were measured on it); `ClientProtocol.start` replaces its per-call
task, request and writer objects, which cost 5 µs a call, and hands each message to an `Exchange`. Ties to aiohttp's
internals are all in this file, and `tests/proxy/test_listener.py` names each one. Decides deadlines of heads, idle
connections and slow readers; one sweep a second looks at all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING

from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy
from aiohttp.web_protocol import MAX_MSG_QUEUE_SIZE, RequestHandler, _ErrInfo

from yugong.base.errors import Refusal, RefusalKind
from yugong.proxy import intake
from yugong.proxy.exchange import Exchange

if TYPE_CHECKING:
    from aiohttp.streams import StreamReader

    from yugong.core.settings import Intake
    from yugong.proxy.line import Line
    from yugong.proxy.relay import Relay

SWEEP_EVERY = 1.0  # seconds
LINGER = 2.0  # seconds an unread body is thrown away for, so that the refusal is not lost in a reset
LINGER_BYTES = 8 << 20
FAREWELL = 2.0  # seconds before a drain's end in which WebSockets are told to close: they would stay for a day


class ClientProtocol(RequestHandler):
    """One client connection. One task for its whole life; a call is a plain coroutine in it."""

    __slots__ = (
        "_block",
        "_blocked_since",
        "_fields",
        "_first_data",
        "_head_since",
        "_listener",
        "_payload",
        "client",
        "is_idle",
        "line",
        "relay",
    )

    def __init__(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        limits = listener.limits
        super().__init__(
            listener,  # type: ignore[arg-type]  # stands in for aiohttp's Server
            loop=loop,
            keepalive_timeout=0,  # the sweep does it
            access_log=None,  # type: ignore[arg-type]
            auto_decompress=False,
            max_line_size=limits.request_line_max,
            max_field_size=limits.header_max,
            max_headers=limits.headers_max_count,
            read_bufsize=limits.stream_buffer,
        )
        # aiohttp's parser stops at its own cap, and goes on only after a pause: a higher one of ours would hang.
        self._max_msg_queue_size = min(limits.pipeline_max, MAX_MSG_QUEUE_SIZE)
        self._msg_queue_resume_size = max(self._max_msg_queue_size // 2, 1)
        self._listener = listener
        self.line: Line = listener.line
        #: The peer's address.
        self.client = ""
        #: The answer under way, if it is being relayed.
        self.relay: Relay | None = None
        self._payload: StreamReader | None = None
        #: What was read last while no call was under way: the beginning of a head.
        self._first_data = b""
        # The fields of the call before, and the bytes they were made from.
        self._block = b""
        self._fields: intake.Fields | None = None
        #: Loop time since which a head is being received; 0 where none is.
        self._head_since = 0.0
        #: Loop time since which the client takes nothing.
        self._blocked_since = 0.0
        #: Loop time since which no call is under way; 0 while one is.
        self.is_idle = 0.0

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def task(self) -> asyncio.Task[None] | None:
        """The connection's one task, while it lives."""
        return self._task_handler

    # -- what asyncio calls -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        self.transport.set_write_buffer_limits(high=self._listener.limits.stream_buffer)
        peer = transport.get_extra_info("peername")
        self.client = str(peer[0]) if isinstance(peer, tuple) else "unix"
        self.is_idle = self._loop.time()

    def connection_lost(self, exc: BaseException | None) -> None:
        payload, self._payload = self._payload, None
        if payload is not None and not payload.is_eof():
            payload.set_exception(ConnectionResetError("the client left"))
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.is_idle:  # and not `_waiter`: the first bytes may be here before the task has begun to wait
            if self._head_since:
                self._first_data = b""  # a head in several pieces
            else:
                self._head_since = self._loop.time()
                self._first_data = data
        super().data_received(data)
        if self._messages and isinstance(self._messages[-1][0], _ErrInfo):
            self._break_body()

    def _break_body(self) -> None:
        """What came is no HTTP: aiohttp's C parser says so, but not to the body it was reading, which would stall."""
        payload = self._messages[-2][1] if len(self._messages) > 1 else self._payload
        if payload is not None and not payload.is_eof():
            broken = Refusal(RefusalKind.MALFORMED, "The request body is not valid HTTP.", close=True)
            # Later, for `readany` looks at it only when it is called, and may just have been woken by these same bytes.
            self._loop.call_soon(payload.set_exception, broken)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._blocked_since = self._loop.time()
        if self.relay is not None:
            self.relay.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._blocked_since = 0.0
        if self.relay is not None:
            self.relay.resume()

    # -- what an exchange calls ---------------------------------------------------------------------------------------

    def client_transport(self) -> asyncio.Transport:
        """The transport, for a relay. Raises `ConnectionResetError` if the client has left."""
        if self.transport is None:
            raise ConnectionResetError("the client left")
        return self.transport

    def write(self, data: bytes) -> None:
        """Writes to the client; nobody is there: nothing happens."""
        if self.transport is not None:
            self.transport.write(data)

    def abort_after_writes(self) -> None:
        """What was written is sent, then the connection closes without the answer's end: the client sees it break."""
        self.close()
        if self.transport is not None:
            self.transport.close()

    def step_aside(self) -> None:
        """The connection is a WebSocket's from here on: its relay keeps the time, `sweep` finds nothing to end."""
        self._blocked_since = 0.0

    def is_secure(self, exchange: Exchange) -> bool:
        """Whether the client called us by https, as far as we can know."""
        if self.transport is not None and self.transport.get_extra_info("sslcontext") is not None:
            return True
        assert exchange.call is not None
        return exchange.call.fields.host == exchange.setup.ways[exchange.org or ""].authority

    def fields_of(self, message: intake.Message, first_data: bytes) -> intake.Fields:
        """What the call's header fields say; equal to the call before on this connection, they are not sorted anew."""
        block = intake.block_of(first_data, message) if first_data else b""
        if block and block == self._block and self._fields is not None:
            return self._fields
        fields = intake.sort_fields(message.raw_headers)
        self._block, self._fields = block, fields
        return fields

    def forget_fields(self) -> None:
        """A stream begins: the next call of this connection is far, its fields are sorted anew."""
        self._block, self._fields = b"", None
        if self._payload is not None and self._payload.is_eof():
            self._payload = None

    # -- the life of a connection -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serves one message after the other. Replaces aiohttp's own loop."""
        loop, line = self._loop, self.line
        try:
            while not self._force_close:
                if not self._messages:
                    self._waiter = loop.create_future()
                    try:
                        await self._waiter
                    finally:
                        self._waiter = None
                message, payload = self._messages.popleft()
                if self._parser is not None:
                    self._parser.message_consumed()
                if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
                    self._resume_reading_if_drained()
                now = loop.time()
                self._head_since = self.is_idle = 0.0
                if isinstance(message, _ErrInfo) or not message.path:
                    self._refuse_malformed(message, now)
                    break
                self._payload = payload
                exchange = Exchange(line, self, now)
                exchange.message, exchange.payload, exchange.first_data = message, payload, self._first_data
                self._first_data = b""
                del message, payload  # the exchange lets go of them when they have been read
                keeps_alive = await exchange.serve()
                if not keeps_alive or self._upgraded:  # what said keep-alive is kept, also in a drain
                    await self._linger(exchange.payload)
                    break
                self._payload = None
                self.is_idle = loop.time()
        finally:  # whatever happened: a connection without its task would stay open for good
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    def _refuse_malformed(self, error: _ErrInfo | intake.Message, now: float) -> None:
        exchange = Exchange(self.line, self, now)
        # llhttp takes a request line that is a method and nothing else; such a message has no path.
        status, message = (error.status, error.message.lower()) if isinstance(error, _ErrInfo) else (400, "")
        is_large = message.startswith(_LARGE)
        kind = RefusalKind.HEADERS_TOO_LARGE if is_large else RefusalKind.MALFORMED
        if status == 413:
            kind = RefusalKind.TOO_LARGE
        exchange.reject(Refusal(kind, "The request is not valid HTTP.", close=True))

    async def _linger(self, payload: StreamReader) -> None:
        """Reads away what the client still sends, for a moment: closing with unread bytes would reset the answer."""
        if payload.is_eof() or self.transport is None:
            return
        left = LINGER_BYTES
        with contextlib.suppress(TimeoutError, ConnectionError, Exception):
            async with asyncio.timeout(LINGER):
                while left > 0 and not payload.at_eof():
                    left -= len(await payload.readany())

    def sweep(self, now: float) -> None:
        """Ends what has taken too long (threats 44 and 46)."""
        limits = self._listener.limits
        if self._blocked_since and now - self._blocked_since > limits.write_timeout:
            if self.transport is not None:
                self.transport.abort()
        elif self._head_since and self._waiter is not None and now - self._head_since > limits.header_timeout:
            self.write(_HEAD_TIMEOUT)
            self.force_close()
        elif self.is_idle and not self._head_since and now - self.is_idle > limits.idle_timeout:
            self.force_close()

    def leave_if_idle(self) -> bool:
        """Closes the connection if no call is under way on it; whether it did."""
        if self.is_idle and not self._head_since and not self._messages:
            self.force_close()
            return True
        return False


#: What aiohttp says of heads that are too large, and of nothing else (http_exceptions.LineTooLong, _http_parser.pyx).
_LARGE = ("got more than", "too many headers")
_HEAD_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Listener:
    """All client connections of a worker. Stands in for aiohttp's `Server` towards its protocol."""

    handler_cancellation = True  # a client that leaves cancels its call

    def __init__(self, line: Line) -> None:
        if HttpRequestParser is HttpRequestParserPy:
            raise RuntimeError("aiohttp's C parser is missing: reinstall aiohttp from a wheel, or with a C compiler")
        self.line = line
        self.limits: Intake = line.setup.intake
        self.connections: set[ClientProtocol] = set()
        self._loop = asyncio.get_running_loop()
        self._servers: list[asyncio.Server] = []
        self._is_empty = asyncio.Event()
        self._sweep_handle = self._loop.call_later(SWEEP_EVERY, self._sweep)
        # What aiohttp's protocol asks its server for.
        self.requests_count = 0
        self.request_handler = self.request_factory = lambda *_: None

    def __repr__(self) -> str:
        return f"<Listener connections={len(self.connections)} doors={len(self._servers)}>"

    async def listen(self, sock: socket.socket, backlog: int, tls: ssl.SSLContext | None = None) -> None:
        """Accepts on a bound socket."""
        make = self._make
        if sock.family == socket.AF_UNIX:
            server = await self._loop.create_unix_server(make, sock=sock, backlog=backlog, ssl=tls)
        else:
            server = await self._loop.create_server(make, sock=sock, backlog=backlog, ssl=tls)
        self._servers.append(server)

    def _make(self) -> ClientProtocol:
        return ClientProtocol(self, self._loop)

    def connection_made(self, protocol: ClientProtocol, transport: asyncio.Transport) -> None:
        self.connections.add(protocol)

    def connection_lost(self, protocol: ClientProtocol, exc: BaseException | None = None) -> None:
        self.connections.discard(protocol)
        if not self.connections:
            self._is_empty.set()

    def _sweep(self) -> None:
        self._sweep_handle = self._loop.call_later(SWEEP_EVERY, self._sweep)
        now = self._loop.time()
        for protocol in list(self.connections):
            protocol.sweep(now)

    def stop_accepting(self) -> None:
        """Closes the doors; open connections are served on, and told to close after their next answer."""
        self.line.is_draining = True
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def drain(self, lame_duck: float, deadline: float) -> None:
        """Serves what comes on open connections for `lame_duck` seconds, then waits for calls under way until
        `deadline` (loop time), then ends the rest. WebSockets are told to come again (1012) shortly before that."""
        quiet = min(self._loop.time() + lame_duck, deadline)
        await self._emptied(quiet)
        while self.connections and self._loop.time() < deadline:
            for protocol in list(self.connections):
                protocol.leave_if_idle()
            if self._loop.time() >= deadline - FAREWELL:
                for relay in list(self.line.relays):
                    relay.drain()
            await self._emptied(min(self._loop.time() + 0.1, deadline))
        for protocol in list(self.connections):
            protocol.force_close()

    async def _emptied(self, until: float) -> None:
        """Waits for the last connection to go, or for `until` (loop time)."""
        self._is_empty.clear()
        if self.connections:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._is_empty.wait()

    async def close(self) -> None:
        """Ends everything at once."""
        self.stop_accepting()
        self._sweep_handle.cancel()
        tasks = [task for protocol in self.connections if (task := protocol.task()) is not None]
        for protocol in list(self.connections):
            protocol.force_close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
