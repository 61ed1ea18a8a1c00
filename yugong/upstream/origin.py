"""The way to one origin: dialling, TLS, an egress proxy where one is set, and the connections kept alive.

Decides which connection carries the next exchange. Knows the origin's address and nothing of keys, orgs or calls. TLS
is verified against the system's or a given authority, always with the origin's own name (SNI); sessions are resumed.
"""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
from dataclasses import dataclass

from yugong.base.errors import Reach, WireFault
from yugong.upstream.address import Address, Resolver, is_literal, is_public
from yugong.upstream.connection import Connection

CONNECT_ANSWER_MAX = 16 * 1024  # bytes
_CONNECTED = re.compile(rb"HTTP/1\.[01] 2\d\d[ \r]")


@dataclass(frozen=True, slots=True)
class Egress:
    """An HTTP proxy on our way out (`CONNECT`)."""

    host: str
    port: int
    #: The whole `Proxy-Authorization` value; empty where none is needed.
    authorization: str = ""

    def __repr__(self) -> str:
        return f"<Egress {self.host}:{self.port}>"


def basic(username: str, password: str) -> str:
    """RFC 7617 credentials for `Egress.authorization`."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


@dataclass(frozen=True, slots=True)
class OriginSpec:
    """Where an origin is and how it is dialled."""

    name: str
    host: str
    port: int
    is_tls: bool
    is_private: bool = False
    ca_file: str | None = None
    is_verified: bool = True
    egress: Egress | None = None
    max_connections: int = 20_000
    #: Seconds an idle connection is kept: below what the origin's own front end keeps.
    keepalive: float = 55.0
    #: Seconds after which the name is looked up again.
    resolve_every: float = 30.0

    @property
    def authority(self) -> str:
        """The `Host` a wire carries: no port where it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_tls else 80) else f"{host}:{self.port}"


class _Context(ssl.SSLContext):
    """A client context that takes up the last session (TLS resumption), which asyncio gives no argument for."""

    last_session: ssl.SSLSession | None = None

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        name = server_hostname.decode() if isinstance(server_hostname, bytes) else server_hostname
        return super().wrap_bio(incoming, outgoing, server_side, name, session or self.last_session)


def client_context(ca_file: str | None, *, is_verified: bool) -> _Context:
    """A verifying TLS 1.2+ client context."""
    context = _Context(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # Anybody on the way can send a FIN, only the origin a close_notify; Python ignores the difference by default, and a
    # body that ends with its connection could be cut short and look whole (RFC 8446 §6.1, RFC 9112 §9.8).
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    if not is_verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca_file is not None:
        context.load_verify_locations(ca_file)
    else:
        context.load_default_certs()
    return context


class Origin:
    """The connections to one origin by one way out."""

    __slots__ = (
        "_context",
        "_egress_resolver",
        "_idle",
        "_is_closed",
        "_loop",
        "_resolver",
        "busy",
        "dialling",
        "spec",
    )

    def __init__(self, spec: OriginSpec, loop: asyncio.AbstractEventLoop) -> None:
        self.spec = spec
        self._loop = loop
        self._context = client_context(spec.ca_file, is_verified=spec.is_verified) if spec.is_tls else None
        self._resolver = Resolver(loop, spec.host, spec.port, spec.resolve_every, is_private=spec.is_private)
        egress = spec.egress
        self._egress_resolver = (
            Resolver(loop, egress.host, egress.port, spec.resolve_every, is_private=True) if egress else None
        )
        self._idle: list[Connection] = []
        self._is_closed = False
        #: Connections that carry an exchange.
        self.busy: set[Connection] = set()
        self.dialling = 0

    def __repr__(self) -> str:
        return f"<Origin {self.spec.name} idle={len(self._idle)} busy={len(self.busy)} dialling={self.dialling}>"

    @property
    def idle(self) -> int:
        """Connections kept for the next exchange."""
        return len(self._idle)

    def take(self) -> Connection | None:
        """The idle connection used last, if there is one."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                self.busy.add(connection)
                return connection
        return None

    async def dial(self, timeout: float) -> Connection:
        """A new connection within `timeout` seconds. Raises `WireFault` (resolve, connect, connect_timeout, tls, …)."""
        if len(self.busy) + self.dialling >= self.spec.max_connections:
            raise WireFault("connect", Reach.UNSENT, f"{self.spec.name}: max_connections reached")
        self.dialling += 1
        try:
            async with asyncio.timeout(timeout):
                connection = await self._dial_any()
        except TimeoutError as error:
            raise WireFault("connect_timeout", Reach.UNSENT, f"{self.spec.name}: {timeout:g} s") from error
        finally:
            self.dialling -= 1
        if connection.transport is None or connection.transport.is_closing():
            # It ended, or spoke before it was asked, between the handshake and now.
            raise WireFault("reset", Reach.UNSENT, f"{self.spec.name}: lost before the request")
        connection.on_idle_lost = self._drop_idle
        self.busy.add(connection)
        return connection

    def give_back(self, connection: Connection) -> None:
        """An exchange is over: keeps the connection if another may follow on it, else closes it."""
        self.busy.discard(connection)
        transport = connection.transport
        if transport is None:
            return
        if self._context is not None and connection.served == 1:  # TLS 1.3 sends its tickets after the handshake
            tls = transport.get_extra_info("ssl_object")
            self._context.last_session = getattr(tls, "session", None)
        if not connection.can_reuse or self._is_closed or transport.is_closing():
            connection.abort()
            return
        connection.is_busy = False
        connection.resume_reading()
        connection.idle_since = self._loop.time()
        self._idle.append(connection)

    def drop_expired(self, now: float) -> None:
        """Closes what has been idle for longer than is safe (called from time to time)."""
        limit = now - self.spec.keepalive
        if self._idle and self._idle[0].idle_since < limit:
            expired = [c for c in self._idle if c.idle_since < limit]
            self._idle = [c for c in self._idle if c.idle_since >= limit]
            for connection in expired:
                connection.abort()

    async def close(self) -> None:
        """Closes every idle connection; those that are busy end with their exchanges."""
        self._is_closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.abort()
        await self._resolver.close()
        if self._egress_resolver is not None:
            await self._egress_resolver.close()

    def _drop_idle(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    # -- dialling ---------------------------------------------------------------------------------------------------

    async def _dial_any(self) -> Connection:
        spec = self.spec
        if spec.egress is not None:
            return await self._dial_through(spec.egress)
        fault: WireFault | None = None
        for address in await self._resolver.addresses():
            try:
                return await self._dial_one(address)
            except WireFault as error:
                fault = error
                if error.kind == "tls":
                    break
        assert fault is not None
        raise fault

    async def _dial_one(self, address: Address) -> Connection:
        spec = self.spec
        name = spec.host if self._context is not None else None
        try:
            _, protocol = await self._loop.create_connection(
                lambda: Connection(self._loop),
                address.host,
                address.port,
                ssl=self._context,
                server_hostname=name,
            )
        except OSError as error:
            raise _translate(error, spec.name) from error
        return _idle(protocol)

    async def _dial_through(self, egress: Egress) -> Connection:
        spec = self.spec
        if not spec.is_private and is_literal(spec.host) and not is_public(spec.host):  # a name is the proxy's to judge
            raise WireFault("forbidden_address", Reach.UNSENT, f"{spec.host} is a private address")
        transport, tunnel = await self._reach(egress)
        connection = Connection(self._loop)
        secured: asyncio.Transport | None = transport
        try:
            await tunnel.open(transport, spec, egress)
            if self._context is None:
                transport.set_protocol(connection)
            else:
                secured = await self._loop.start_tls(transport, connection, self._context, server_hostname=spec.host)
        except OSError as error:
            transport.abort()
            raise _translate(error, spec.name) from error
        except BaseException:  # a time-out cancels us here
            transport.abort()
            raise
        assert secured is not None
        connection.connection_made(secured)
        return _idle(connection)

    async def _reach(self, egress: Egress) -> tuple[asyncio.Transport, _Tunnel]:
        """A connection to the egress proxy, by the first of its addresses that takes one."""
        assert self._egress_resolver is not None
        detail = ""
        try:
            for address in await self._egress_resolver.addresses():
                try:
                    return await self._loop.create_connection(lambda: _Tunnel(self._loop), address.host, address.port)
                except OSError as error:
                    detail = str(error)
        except WireFault as fault:
            detail = fault.detail
        raise WireFault("egress_proxy", Reach.UNSENT, f"{egress.host}:{egress.port}: {detail}")


def _idle(connection: Connection) -> Connection:
    connection.is_busy = False
    return connection


def _translate(error: OSError, origin: str) -> WireFault:
    """The one place where a dial's foreign exceptions get our names."""
    if isinstance(error, ssl.SSLError | ssl.CertificateError):
        return WireFault("tls", Reach.UNSENT, f"{origin}: {error}")
    if isinstance(error, ConnectionResetError | ConnectionAbortedError | BrokenPipeError):
        return WireFault("reset", Reach.UNSENT, f"{origin}: {error}")
    return WireFault("connect", Reach.UNSENT, f"{origin}: {error}")


class _Tunnel(asyncio.Protocol):
    """Speaks CONNECT (RFC 9110 §9.3.6) with an egress proxy, then steps aside."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._answer = b""
        self._waiter: asyncio.Future[bytes] = loop.create_future()

    async def open(self, transport: asyncio.Transport, spec: OriginSpec, egress: Egress) -> None:
        target = f"{spec.host}:{spec.port}" if ":" not in spec.host else f"[{spec.host}]:{spec.port}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if egress.authorization:
            lines.append(f"Proxy-Authorization: {egress.authorization}")
        transport.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        answer = await self._waiter
        problem = ""
        if not _CONNECTED.match(answer):
            problem = answer.partition(b"\r\n")[0][:200].decode("latin-1")
        elif answer.find(b"\r\n\r\n") != len(answer) - 4:
            # An origin does not speak first: whoever planted this would answer our first request.
            problem = "bytes after its answer"
        if problem:
            raise WireFault("egress_proxy", Reach.UNSENT, f"{egress.host}:{egress.port}: {problem}")

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if self._waiter.done():
            return
        if b"\r\n\r\n" in self._answer:
            self._waiter.set_result(self._answer)
        elif len(self._answer) > CONNECT_ANSWER_MAX:
            self._waiter.set_exception(WireFault("egress_proxy", Reach.UNSENT, "answer too large"))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._waiter.done():
            self._waiter.set_exception(WireFault("egress_proxy", Reach.UNSENT, str(exc or "closed")))
