"""Where an origin is: names resolved again and again, and addresses nobody may be sent to refused.

Decides which addresses may be dialled (threat 2: an allowed name that resolves to a loopback, private or metadata
address is refused at connect time, unless that origin is configured as private). Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import dataclass

from yugong.base.errors import Reach, WireFault

RESOLVE_KEPT = 600.0  # seconds an old answer serves when the resolver is away

#: Not on the internet, though `is_global` of some Python or other says so: IETF protocol assignments, IPv4-compatible
#: addresses, local NAT64 (RFC 8215), site-local.
_INNER = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "::/96", "64:ff9b:1::/48", "fec0::/10")))
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address


@dataclass(frozen=True, slots=True)
class Address:
    """One resolved way to an origin."""

    host: str
    port: int
    family: int


def is_public(host: str) -> bool:
    """Whether an IP address lies on the public internet; one that carries an IPv4 address is judged by that."""
    ip = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        nat64 = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None
        ip = ip.ipv4_mapped or ip.sixtofour or nat64 or ip
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _INNER)


def is_literal(host: str) -> bool:
    """Whether `host` is an address itself, not a name."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


class Resolver:
    """Resolves one host; the first address is rotated so that a dead one does not come first for ever."""

    __slots__ = ("_again", "_asked", "_found", "_is_private", "_loop", "_pending", "_turn", "host", "port")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, host: str, port: int, again: float, *, is_private: bool
    ) -> None:
        self._loop = loop
        self.host = host
        self.port = port
        self._again = again
        self._is_private = is_private
        self._found: list[Address] = []
        self._asked = -1e9
        self._turn = 0
        self._pending: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Resolver {self.host}:{self.port} {len(self._found)} addresses>"

    async def addresses(self) -> list[Address]:
        """The addresses to try, in order. Raises `WireFault` (resolve, forbidden_address)."""
        now = self._loop.time()
        age = now - self._asked
        if age > min(self._again, RESOLVE_KEPT) and self._pending is None:
            self._pending = self._loop.create_task(self._resolve())
        if not self._found or age > RESOLVE_KEPT:
            assert self._pending is not None
            await asyncio.shield(self._pending)
        allowed = self._found if self._is_private else [a for a in self._found if is_public(a.host)]
        if not allowed:
            raise WireFault("forbidden_address", Reach.UNSENT, f"{self.host} resolves to private addresses only")
        self._turn += 1
        turn = self._turn % len(allowed)
        return allowed[turn:] + allowed[:turn]

    async def _resolve(self) -> None:
        try:
            found = await self._loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # the latter: a label too long or empty (IDNA)
            if not self._found or self._loop.time() - self._asked > RESOLVE_KEPT:
                raise WireFault("resolve", Reach.UNSENT, f"{self.host}: {error}") from error
        else:
            self._found = [Address(str(a[0]), int(a[1]), f) for f, _, _, _, a in found]
            self._asked = self._loop.time()
        finally:
            self._pending = None

    async def close(self) -> None:
        """Ends a look-up under way."""
        if self._pending is not None:
            self._pending.cancel()
            await asyncio.gather(self._pending, return_exceptions=True)
