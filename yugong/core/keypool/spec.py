"""The pool's nouns: what settings say of an org, and what stands for it while calls run.

Records only; the deciding is in `pool`.
"""

from __future__ import annotations

from collections.abc import Set
from typing import NamedTuple

from yugong.core.keypool.buckets import DIMENSIONS, Cost


class LimitSpec(NamedTuple):
    """Configured ceilings of the models that match one of the patterns; 0 is none."""

    models: tuple[str, ...]
    #: By `Dimension`.
    amounts: Cost
    concurrency: int = 0


class OrgSpec(NamedTuple):
    """One org as the settings describe it."""

    name: str
    origin: str
    dialect: str
    keys: tuple[str, ...]
    models: tuple[str, ...] | None = None
    limits: tuple[LimitSpec, ...] = ()
    weight: float = 1.0
    priority: int = 0


class Key:
    """One credential of an org: its id and its health row."""

    __slots__ = ("name", "row")

    def __init__(self, name: str, row: int) -> None:
        self.name = name
        self.row = row

    def __repr__(self) -> str:
        return f"<Key {self.name}>"


class Org:
    """One org while calls run: this worker's own view of its load and speed."""

    __slots__ = ("in_flight", "keys", "latency", "origin_row", "row", "spec", "turn")

    def __init__(self, spec: OrgSpec, row: int, keys: list[Key], latency: float) -> None:
        self.spec = spec
        self.row = row
        self.keys = keys
        #: Peak-EWMA of seconds to first byte.
        self.latency = latency
        self.in_flight = 0
        self.turn = 0
        self.origin_row = 0

    def __repr__(self) -> str:
        return f"<Org {self.spec.name} keys={len(self.keys)} in_flight={self.in_flight} {self.latency * 1000:.0f}ms>"

    def load(self) -> float:
        """What is waiting there, in weighted seconds: less is better."""
        return self.latency * (self.in_flight + 1) / self.spec.weight


class Place:
    """One org as a candidate for one model."""

    __slots__ = (
        "at",
        "ceilings",
        "group_name",
        "group_row",
        "learn_at",
        "look_at",
        "model_name",
        "model_row",
        "org",
        "why",
    )

    def __init__(self, org: Org, group_name: str, model_name: str) -> None:
        self.org = org
        self.group_name = group_name
        self.model_name = model_name
        #: 0 until a limit is configured or learned.
        self.group_row = 0
        #: 0 until something happened to this model here.
        self.model_row = 0
        self.ceilings: Cost = (0,) * DIMENSIONS
        #: Its index among those awake, valid right after it was drawn.
        self.at = 0
        #: The tick from which its limit headers are looked at again.
        self.learn_at = 0
        self.look_at = 0
        #: Why it sleeps.
        self.why = ""

    def __repr__(self) -> str:
        return f"<Place {self.group_name!r} {self.why}>"


class Lease:
    """One attempt's reservation."""

    __slots__ = ("amounts", "group_row", "has_lane", "key", "place", "probes", "started")

    def __init__(self, place: Place, key: Key, amounts: Cost, started: int) -> None:
        self.place = place
        self.key = key
        self.amounts = amounts
        self.started = started
        #: Where something was reserved; 0 if nothing was.
        self.group_row = place.group_row
        #: Whether it counts in its group's lane of calls in flight.
        self.has_lane = False
        #: Rows that this attempt is the probe of.
        self.probes: list[int] = []

    def __repr__(self) -> str:
        return f"<Lease {self.place.org.spec.name}/{self.key.name} {self.amounts}>"


_NOBODY: frozenset[str] = frozenset()
_NO_KEY: frozenset[int] = frozenset()


class Ask:
    """What a call asks of the pool."""

    __slots__ = ("amounts", "avoid_keys", "avoid_orgs", "dialect", "model", "needs_model")

    def __init__(self, dialect: str, model: str | None, amounts: Cost) -> None:
        self.dialect = dialect
        self.model = model
        self.amounts = amounts
        #: Orgs by name, keys by row: tried already.
        self.avoid_orgs: Set[str] = _NOBODY
        self.avoid_keys: Set[int] = _NO_KEY

    def __repr__(self) -> str:
        return f"<Ask {self.dialect} {self.model} {self.amounts} avoid={sorted(self.avoid_orgs)}>"

    def avoid(self, org: str | None, key: int | None) -> None:
        """The next lease is on another org (by name), or on another key (by row)."""
        if org is not None:
            self.avoid_orgs = self.avoid_orgs | {org}
        if key is not None:
            self.avoid_keys = self.avoid_keys | {key}

    def forgive(self) -> None:
        """All have been tried once: first the orgs may be asked again, by other keys, then the same keys."""
        if self.avoid_orgs:
            self.avoid_orgs = _NOBODY
        else:
            self.avoid_keys = _NO_KEY


#: Why there is no room, from the least to the most hopeful.
_RANKS = {
    "avoided": 0,
    "no_org": 1,
    "too_large": 2,
    "model_out": 3,
    "keys_out": 4,
    "org_out": 5,
    "origin_out": 6,
    "full": 7,
}


class Shortage:
    """Nobody can take the call now."""

    __slots__ = ("is_for_all", "until", "why")

    def __init__(self, why: str, until: int, *, is_for_all: bool = True) -> None:
        self.why = why
        #: The tick from which asking again makes sense.
        self.until = until
        #: Whether another call would fare the same.
        self.is_for_all = is_for_all

    def __repr__(self) -> str:
        return f"<Shortage {self.why} until {self.until}>"

    @property
    def rank(self) -> int:
        return _RANKS[self.why]

    def soonest(self, other: Shortage) -> Shortage:
        """The more hopeful of two: full before out, sooner before later."""
        if self.why == "avoided":
            return other
        if other.why == "avoided":
            return self
        return other if (other.until, -other.rank) < (self.until, -self.rank) else self
