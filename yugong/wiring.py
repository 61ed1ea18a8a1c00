"""The line as it is run: the one place where the proxy meets concrete stores, metrics and settings.

Decides which concrete thing stands behind each seam. A reload makes a new `Setup` beside the old one; calls under way
end with the one they began with, and what was learned stays in the shared rows (I14).
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import random
import secrets
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from yugong.base.headers import TO_CLIENT
from yugong.base.ids import CallIds
from yugong.base.secret import Secret
from yugong.core.attempt import RetryBudget
from yugong.core.keypool import health
from yugong.core.keypool.buckets import DIMENSIONS
from yugong.core.keypool.health import State
from yugong.core.keypool.pool import Pool
from yugong.core.keypool.spec import Key, LimitSpec, Org, OrgSpec
from yugong.core.settings import Settings
from yugong.core.settings.routes import RouteTable
from yugong.proxy import line as proxy
from yugong.proxy.listener import Listener
from yugong.proxy.spool import Spool
from yugong.store.accounts import AccountFile
from yugong.store.poolstate import PoolState
from yugong.store.settingsfile import SecretError, resolve_secret
from yugong.upstream.head import HeadReader
from yugong.upstream.leg import Leg
from yugong.upstream.origin import Egress, OriginSpec, basic

if TYPE_CHECKING:
    from yugong.core import settings as conf
    from yugong.core.dialects.dialect import Dialect
    from yugong.proxy.exchange import Exchange
    from yugong.surface.accesslog import AccessLog
    from yugong.surface.metrics import Meters
    from yugong.worker import Station

MAX_WAIT = 30.0  # seconds a call waits for room where neither it nor its account says
LOOK_EVERY = 0.5  # seconds between looks at the accounts: a revoked key is refused within 1 s (threat 14)
DEMO_LINE = b"x-yugong-upstream: demo\r\n"


class LineObserver:
    """Tells metrics and access log what the line does."""

    __slots__ = ("_access", "_meters")

    def __init__(self, meters: Meters, access: AccessLog) -> None:
        self._meters = meters
        self._access = access

    def __repr__(self) -> str:
        return f"<LineObserver {self._meters!r}>"

    def started(self) -> None:
        self._meters.calls_in_flight.value += 1

    def stream_opened(self) -> None:
        self._meters.streams_open.value += 1

    def stream_closed(self) -> None:
        self._meters.streams_open.value -= 1

    def attempt(self, org: str, outcome: str) -> None:
        self._meters.attempts.labels(org, outcome).value += 1

    def fault(self, scope: str, kind: str) -> None:
        self._meters.faults.labels(scope, kind).value += 1

    def retry(self, reason: str) -> None:
        self._meters.retries.labels(reason).value += 1

    def refusal(self, code: str) -> None:
        self._meters.refusals.labels(code).value += 1

    def broken(self, kind: str) -> None:
        self._meters.broken_streams.labels(kind).value += 1

    def frames(self, up: int, down: int) -> None:
        self._meters.frames_up.value += up
        self._meters.frames_down.value += down

    def finished(self, exchange: Exchange) -> None:
        self._meters.calls_in_flight.value -= 1
        self._meters.observe(exchange)
        self._access.put(exchange)


class PooledLine:
    """The worker's line: listener, exchanges, pool, ways out."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._state = PoolState(station.memory_fd)
        self._state.clear_lane(station.lane)
        self._accounts = AccountFile(station.data_dir)
        self._settings: Settings
        self._listener: Listener
        self._line: proxy.Line
        self._looker: asyncio.Task[None]

    def __repr__(self) -> str:
        return f"<PooledLine {self._station!r}>"

    async def start(self, sockets: list[socket.socket], settings: Settings) -> None:
        """Begins to serve on `sockets`."""
        station = self._station
        leg = Leg(asyncio.get_running_loop())
        setup = self._set_up(settings, leg)
        spool_dir = station.data_dir / "spool"
        spool_dir.mkdir(mode=0o700, exist_ok=True)
        budget = RetryBudget(settings.retry.budget_share, settings.retry.budget_floor)
        observer = LineObserver(station.meters, station.access)
        line = self._line = proxy.Line(setup, leg, Spool(str(spool_dir), settings.intake.spool_max), observer, budget)
        line.call_id = CallIds(secrets.token_bytes(8)).next
        line.rng = random.random
        line.report = station.log.exception
        line.wall = time.time
        line.entropy = os.urandom
        self._settings = settings
        self._listener = Listener(line)
        station.meters.registry.before_reading(self._read_gauges)
        for sock in sockets:
            await self._listener.listen(sock, settings.listen.backlog)
        self._looker = asyncio.ensure_future(self._watch_accounts())

    async def reload(self, settings: Settings) -> None:
        """Lives by other settings from now on."""
        line = self._line
        line.setup = self._set_up(settings, line.leg)
        line.budget = RetryBudget(settings.retry.budget_share, settings.retry.budget_floor)
        line.spool.limit = settings.intake.spool_max
        self._listener.limits = settings.intake
        self._settings = settings
        await line.leg.retire({way.origin.spec for way in line.setup.ways.values()})

    def stop_accepting(self) -> None:
        """Closes the doors."""
        self._listener.stop_accepting()

    async def drain(self, deadline: float) -> None:
        """Ends in peace what is under way."""
        await self._listener.drain(self._settings.drain.lame_duck, deadline)
        self._looker.cancel()
        await asyncio.gather(self._looker, return_exceptions=True)
        await self._listener.close()
        await self._line.leg.close()

    def stats(self) -> dict[str, Any]:
        """For /readyz."""
        pool = self._line.setup.pool
        active, idle = self._line.leg.counts()
        return {
            "connections": len(self._listener.connections),
            "upstream": {"active": active, "idle": idle},
            "orgs": len(pool.orgs),
            "keys": self._keys_by_state(pool),
            "customer_keys": len(self._line.setup.keys),
            "draining": self._line.is_draining,
        }

    # -- from settings to a setup -------------------------------------------------------------------------------------

    def _set_up(self, settings: Settings, leg: Leg) -> proxy.Setup:
        opened = {
            (name, key.id): secret
            for name, org in settings.orgs.items()
            if not org.disabled
            for key in org.keys
            if not key.disabled and (secret := self._open(name, key)) is not None
        }
        specs = [_org_spec(name, org, settings, opened) for name, org in settings.orgs.items() if not org.disabled]
        ways = {name: _way(settings, org, leg) for name, org in settings.orgs.items() if not org.disabled}
        extra = frozenset(name.lower().encode() for name in settings.relay.extra_answer_headers)
        return proxy.Setup(
            intake=settings.intake,
            pool=Pool(specs, self._state, self._station.lane, random.random),
            keys=self._accounts.ring(),
            ways=ways,
            credentials=_Credentials(settings, opened),
            aliases=dict(settings.models.aliases),
            waits=RouteTable(settings).timeouts,
            max_tries=settings.retry.attempts,
            hold_first_event=settings.retry.hold_first_event,
            max_wait=MAX_WAIT,
            reader=HeadReader(TO_CLIENT | extra),
            extra_lines=DEMO_LINE if self._station.is_demo else b"",
            is_trusted=_trust(settings.listen.trusted_proxies),
        )

    def _open(self, org: str, key: conf.OrgKey) -> Secret | None:
        """One key that cannot be had must not keep the others from serving."""
        try:
            return resolve_secret(key.secret, os.environ)
        except SecretError as error:
            self._station.log.error(f"orgs.{org}.keys.{key.id} is left out: {error}")
            return None

    async def _watch_accounts(self) -> None:
        """Keys made, changed or revoked by other processes count here soon."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                if self._accounts.has_changed():
                    self._line.setup = self._line.setup._replace(keys=self._accounts.ring())
            except Exception as error:
                self._station.log.error(f"cannot read the accounts, those known stay in force: {error}")

    # -- gauges -------------------------------------------------------------------------------------------------------

    def _read_gauges(self) -> None:
        meters, line = self._station.meters, self._line
        active, idle = line.leg.counts()
        meters.upstream_active.value, meters.upstream_idle.value = active, idle
        meters.websockets_open.value = len(line.relays)
        meters.spool_bytes.value = line.spool.used
        meters.pool_orgs.value = len(line.setup.pool.orgs)
        for state, count in self._keys_by_state(line.setup.pool).items():
            meters.pool_keys.labels(state).value = count

    def _keys_by_state(self, pool: Pool) -> dict[str, int]:
        counts = dict.fromkeys((state.name.lower() for state in State), 0)
        cells = self._state.cells
        for org in pool.orgs:
            for key in org.keys:
                counts[State(cells[key.row + health.STATE]).name.lower()] += 1
        return counts


class _Credentials:
    """Header lines that authenticate a wire, made once for each key of a setup."""

    __slots__ = ("_lines", "_opened", "_orgs")

    def __init__(self, settings: Settings, opened: dict[tuple[str, str], Secret]) -> None:
        self._orgs = settings.orgs
        self._opened = opened
        self._lines: dict[Key, bytes] = {}

    def __repr__(self) -> str:
        return f"<Credentials keys={len(self._opened)}>"

    def __call__(self, org: Org, key: Key, dialect: Dialect) -> bytes:
        lines = self._lines.get(key)
        if lines is None:
            spec = self._orgs[org.spec.name]
            secret = self._opened[org.spec.name, key.name].reveal_text()
            lines = self._lines[key] = dialect.credentials(secret, None, spec.organization, spec.project)
        return lines


def _org_spec(name: str, org: conf.Org, settings: Settings, opened: dict[tuple[str, str], Secret]) -> OrgSpec:
    return OrgSpec(
        name=name,
        origin=org.origin,
        dialect=settings.origins[org.origin].dialect,
        keys=tuple(key.id for key in org.keys if (name, key.id) in opened),
        models=org.models,
        limits=tuple(_limit_spec(limit) for limit in org.limits),
        weight=org.weight,
        priority=org.priority,
    )


def _limit_spec(limit: conf.Limit) -> LimitSpec:
    amounts = (
        limit.requests_per_minute,
        limit.tokens_per_minute,
        limit.requests_per_day,
        limit.tokens_per_day,
        limit.images_per_minute,
    )
    assert len(amounts) == DIMENSIONS
    return LimitSpec(limit.models, tuple(amount or 0 for amount in amounts), limit.concurrency or 0)


def _way(settings: Settings, org: conf.Org, leg: Leg) -> proxy.Way:
    origin = settings.origins[org.origin]
    url = urlsplit(origin.url)
    is_tls = url.scheme == "https"
    spec = OriginSpec(
        name=org.origin,
        host=url.hostname or "",
        port=url.port or (443 if is_tls else 80),
        is_tls=is_tls,
        is_private=origin.private,
        ca_file=origin.ca_file,
        is_verified=origin.verify,
        egress=_egress(settings.egress[org.egress]) if org.egress is not None else None,
        max_connections=origin.max_connections,
        keepalive=origin.keepalive,
        resolve_every=origin.resolve_every,
    )
    authority = spec.authority.encode()
    return proxy.Way(leg.origin(spec), authority, url.scheme.encode() + b"://" + authority)


def _egress(egress: conf.Egress) -> Egress:
    url = urlsplit(egress.proxy)
    authorization = ""
    if egress.username is not None and egress.password is not None:
        name, word = (resolve_secret(ref, os.environ, is_token=False) for ref in (egress.username, egress.password))
        authorization = basic(name.reveal_text(), word.reveal_text())
    return Egress(url.hostname or "", url.port or 80, authorization)


def _trust(networks: tuple[str, ...]) -> Callable[[str], bool]:
    parsed = [ipaddress.ip_network(network, strict=False) for network in networks]

    def is_trusted(client: str) -> bool:
        if client == "unix":
            return True
        address = ipaddress.ip_address(client)
        return any(address in network for network in parsed)

    return is_trusted


def make_line(station: Station) -> PooledLine:
    """The line as it is run."""
    return PooledLine(station)
