"""What every exchange of a worker stands on: the pool, the ways out, the customers' keys, the settings in force.

Records and seams only. `Setup` belongs to one reading of the settings and is replaced whole by a reload; an exchange
keeps the one it began with. `Line` is the live state that outlives reloads (I14).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from yugong.core.attempt import RetryBudget
from yugong.core.dialects.dialect import Dialect
from yugong.core.keypool.pool import Pool
from yugong.core.keypool.spec import Key, Org
from yugong.core.settings import Intake, Timeouts
from yugong.upstream.head import HeadReader
from yugong.upstream.leg import Leg
from yugong.upstream.origin import Origin

if TYPE_CHECKING:
    from yugong.core.accounts import KeyRing
    from yugong.proxy.exchange import Exchange
    from yugong.proxy.spool import Spool
    from yugong.proxy.websocket import WebSocketRelay


class Way(NamedTuple):
    """How an org is reached."""

    origin: Origin
    #: `Host` as the origin knows itself.
    authority: bytes
    #: What the origin may call itself in `Location` and `Link`: scheme and authority.
    base: bytes


class Setup(NamedTuple):
    """One reading of the settings, made ready for calls."""

    intake: Intake
    pool: Pool
    keys: KeyRing
    #: By `Org.spec.name`.
    ways: Mapping[str, Way]
    #: Header lines that authenticate a key's wire, by the key's identity in the pool. Opened per lease (I10).
    credentials: Callable[[Org, Key, Dialect], bytes]
    aliases: Mapping[str, str]
    #: (method, raw path) → time-outs.
    waits: Callable[[str, str], Timeouts]
    max_tries: int
    hold_first_event: float
    #: Seconds a call waits for room in the pool where nothing else says.
    max_wait: float
    #: Reads the heads of answers, with an eye for what reaches the client.
    reader: HeadReader
    #: Header lines added to every answer (the demo upstream says so), CRLF-ended.
    extra_lines: bytes
    #: Networks whose forwarding headers are believed.
    is_trusted: Callable[[str], bool]


class Observer(Protocol):
    """Who is told. Called on the call's way: adds numbers, nothing else."""

    def started(self) -> None: ...

    def stream_opened(self) -> None: ...

    def stream_closed(self) -> None: ...

    def attempt(self, org: str, outcome: str) -> None: ...

    def fault(self, scope: str, kind: str) -> None: ...

    def retry(self, reason: str) -> None: ...

    def refusal(self, code: str) -> None: ...

    def broken(self, kind: str) -> None: ...

    def finished(self, exchange: Exchange) -> None: ...

    def frames(self, up: int, down: int) -> None: ...


class Line:
    """The live state of a worker's line."""

    __slots__ = (
        "budget",
        "call_id",
        "entropy",
        "is_draining",
        "leg",
        "observer",
        "relays",
        "report",
        "rng",
        "setup",
        "spool",
        "wall",
    )

    def __init__(self, setup: Setup, leg: Leg, spool: Spool, observer: Observer, budget: RetryBudget) -> None:
        self.setup = setup
        self.leg = leg
        self.spool = spool
        self.observer = observer
        self.budget = budget
        #: Answers say `Connection: close`; no further request is read.
        self.is_draining = False
        #: WebSockets being relayed: a drain tells them before it ends them.
        self.relays: set[WebSocketRelay] = set()
        self.call_id: Callable[[], str]
        #: Tells the operator of a bug: what happened, and the exception.
        self.report: Callable[[str, BaseException], None]
        self.rng: Callable[[], float]
        #: Seconds since 1970: only for expiry dates.
        self.wall: Callable[[], float]
        self.entropy: Callable[[int], bytes]

    def __repr__(self) -> str:
        return f"<Line {self.setup.pool!r} {self.leg!r}{' draining' if self.is_draining else ''}>"
