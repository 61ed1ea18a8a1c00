"""The pool's decisions: who gets a call, what is reserved for it, and what its outcome teaches.

Pure: numbers live behind `cells.Home`, `now` and randomness are arguments. Choosing and reserving are one step. What
the pool is made of (`OrgSpec`) comes from the settings; what it has learned lives in the home and outlives a reload.
Selection: tiers by priority; in a tier two random places that are not known to be full, the less loaded one first
(power of two choices on time to first byte × (in flight + 1) / weight). A place found full or out sleeps until it can
serve.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, MutableSequence, Set
from fnmatch import fnmatchcase

from yugong.base.clock import SECOND, to_ticks
from yugong.base.errors import Fault, Penalty, Reach, Scope
from yugong.core.keypool import buckets, health
from yugong.core.keypool.buckets import Cost, Dimension
from yugong.core.keypool.cells import Home
from yugong.core.keypool.health import Event, State
from yugong.core.keypool.spec import Ask, Key, Lease, LimitSpec, Org, OrgSpec, Place, Shortage

_SMALLEST = buckets.cost(1, 1)  # what fits if anything does
_AVOIDED = Shortage("avoided", 0)

EWMA_WEIGHT = 0.1  # of the newest time to first byte; a slower one counts at once (peak EWMA)
FIRST_GUESS = 0.5  # seconds to first byte of an org never asked
MODELS_KEPT = 512  # candidate lists kept; one more clears them (36: 100 000 random model names)
PANIC_LOOKS = 8  # places looked at when everybody is out
COOL_DEFAULT = 1.0  # seconds after a 429 that names no wait
LEARN_EVERY = SECOND // 50  # ticks between looks at one place's limit headers
NAP = SECOND // 10  # how long a place that is out without a known end is left alone

Rng = Callable[[], float]


class Tier:
    """Places of one priority for one model: those worth asking, and those asleep until a tick."""

    __slots__ = ("_tie", "awake", "sleeping")

    def __init__(self, places: list[Place]) -> None:
        self.awake = places
        self.sleeping: list[tuple[int, int, Place]] = []
        self._tie = 0

    def __repr__(self) -> str:
        return f"<Tier awake={len(self.awake)} sleeping={len(self.sleeping)}>"

    def wake(self, now: int) -> None:
        """Brings back who has slept enough."""
        while self.sleeping and self.sleeping[0][0] <= now:
            self.awake.append(heapq.heappop(self.sleeping)[2])

    def put_to_sleep(self, place: Place, until: int) -> None:
        """Not asked again before `until`."""
        self._tie += 1
        heapq.heappush(self.sleeping, (until, self._tie, place))


class Pool:
    """All orgs and keys of one worker's settings, over counters shared with the others."""

    __slots__ = ("_home", "_lane", "_rng", "_sets", "orgs")

    def __init__(self, specs: list[OrgSpec], home: Home, lane: int, rng: Rng) -> None:
        self._home = home
        self._lane = lane
        self._rng = rng
        self._sets: dict[tuple[str, str | None], list[Tier]] = {}
        self.orgs = [self._make_org(spec) for spec in specs]

    def __repr__(self) -> str:
        return f"<Pool orgs={len(self.orgs)} keys={sum(len(o.keys) for o in self.orgs)} models={len(self._sets)}>"

    # -- choosing and reserving -------------------------------------------------------------------------------------

    def reserve(self, ask: Ask, now: int) -> Lease | Shortage:
        """A lease on an org and key with room, or why there is none and until when."""
        tiers = self._tiers(ask.dialect, ask.model)
        if not tiers:
            return Shortage("no_org", buckets.NEVER)
        shortage: Shortage | None = None
        for tier in tiers:
            found = self._from_tier(tier, ask, now)
            if isinstance(found, Lease):
                return found
            shortage = found if shortage is None else shortage.soonest(found)
        assert shortage is not None
        return self._fail_open(tiers, ask, now) or shortage

    def _from_tier(self, tier: Tier, ask: Ask, now: int) -> Lease | Shortage:
        if tier.sleeping:
            tier.wake(now)
        awake = tier.awake
        avoided: list[Place] = []
        shortage = _AVOIDED
        try:
            while awake:
                place = self._draw(awake)
                if ask.avoid_orgs and place.org.spec.name in ask.avoid_orgs:
                    avoided.append(self._remove(awake, place))
                    continue
                found = self._try(place, ask, now)
                if isinstance(found, Lease):
                    return found
                self._remove(awake, place)
                if found.is_for_all:
                    tier.put_to_sleep(place, max(found.until, now + 1))
                else:
                    avoided.append(place)
                shortage = shortage.soonest(found)
        finally:
            awake.extend(avoided)
        for until, _, place in tier.sleeping:
            is_sooner = until < shortage.until or shortage is _AVOIDED
            if is_sooner and place.org.spec.name not in ask.avoid_orgs:
                shortage = shortage.soonest(Shortage(place.why, until))
        return shortage

    def _fail_open(self, tiers: list[Tier], ask: Ask, now: int) -> Lease | None:
        """Everybody left is out for strikes: better one of them than nobody (Envoy's panic threshold).

        Refused keys, orgs without money and what is full stay out; so does everything while the origin itself is out.
        """
        for tier in tiers:
            for _, _, place in tier.sleeping[:PANIC_LOOKS]:
                if place.why in _STRUCK and place.org.spec.name not in ask.avoid_orgs:
                    found = self._try(place, ask, now, is_forced=True)
                    if isinstance(found, Lease):
                        return found
        return None

    def _draw(self, awake: list[Place]) -> Place:
        """Power of two choices."""
        count = len(awake)
        first = int(self._rng() * count)
        place = awake[first]
        place.at = first
        if count > 1:
            second = int(self._rng() * (count - 1))
            if second >= first:
                second += 1
            other = awake[second]
            if other.org.load() < place.org.load():
                other.at = second
                return other
        return place

    @staticmethod
    def _remove(awake: list[Place], place: Place) -> Place:
        last = awake.pop()
        if last is not place:
            awake[place.at] = last
        return place

    def _try(self, place: Place, ask: Ask, now: int, *, is_forced: bool = False) -> Lease | Shortage:
        org = place.org
        cells = self._home.cells
        if now >= place.look_at:
            self._look_up(place, now)
        has_due = False
        # Who is out, and from when one call may probe it; the widest first.
        for row in (org.origin_row, org.row, place.model_row):
            if row and cells[row + health.STATE] > State.SUSPECT:
                if cells[row + health.UNTIL] > now:
                    if is_forced and row != org.origin_row and cells[row + health.STATE] in _ON_PROBATION:
                        continue
                    place.why = _whose(place, row)
                    return Shortage(place.why, _end(cells, row, now))
                has_due = True
        key = self._pick_key(org, ask.avoid_keys, now)
        if key is None:
            place.why = "keys_out"
            until = min((_end(cells, k.row, now) for k in org.keys), default=buckets.NEVER)
            return Shortage("keys_out", max(until, now + NAP), is_for_all=not ask.avoid_keys)
        row = place.group_row
        if row:
            at = self._take(row, ask.amounts, now)
            if at > now:
                place.why = "full"
                is_for_all = buckets.ready_at(cells, row, _SMALLEST, now) > now
                return Shortage("too_large" if at == buckets.NEVER else "full", at, is_for_all=is_for_all)
        lease = Lease(place, key, ask.amounts, now)
        lease.has_lane = bool(row and cells[row + buckets.CONCURRENCY])
        org.in_flight += 1
        if has_due or cells[key.row + health.STATE] > State.SUSPECT:
            taken = self._claim_probes(lease, now)
            if taken:
                return self._yield_to_probe(lease, taken, now)
        return lease

    def _look_up(self, place: Place, now: int) -> None:
        """Rows that other workers have made for this place."""
        place.look_at = now + NAP
        place.group_row = place.group_row or self._home.group_row(place.group_name, is_made=False)
        place.model_row = place.model_row or self._home.health_row(place.model_name, is_made=False)

    def _yield_to_probe(self, lease: Lease, row: int, now: int) -> Shortage:
        """Somebody else's call was faster to probe `row`: this one has to go elsewhere."""
        for mine in list(lease.probes):
            self._step(lease, mine, Event.UNKNOWN, now)
        self.release(lease, now, None, was_sent=False)
        lease.place.why = _whose(lease.place, row)
        return Shortage(lease.place.why, now + NAP)

    def _take(self, row: int, amounts: Cost, now: int) -> int:
        """Reserves in a group's buckets; the tick from which that is possible, if it is not now."""
        home = self._home
        cells = home.cells
        home.lock(row)
        at = buckets.ready_at(cells, row, amounts, now)
        if at <= now:
            buckets.take(cells, row, amounts, now)
            if cells[row + buckets.CONCURRENCY]:
                buckets.enter(cells, row, self._lane)
        home.unlock(row)
        return at

    def _pick_key(self, org: Org, avoid: Set[int], now: int) -> Key | None:
        """The next key in turn that may be used."""
        cells = self._home.cells
        keys = org.keys
        count = len(keys)
        turn = org.turn
        for step in range(count):
            key = keys[(turn + step) % count]
            row = key.row
            if cells[row + health.STATE] > State.SUSPECT and cells[row + health.UNTIL] > now:
                continue
            if row in avoid:
                continue
            org.turn = (turn + step + 1) % count
            return key
        return None

    def _claim_probes(self, lease: Lease, now: int) -> int:
        """Makes this call the probe of what is due; a row whose probe somebody else has begun meanwhile, or 0."""
        home, place = self._home, lease.place
        for row in (place.org.origin_row, place.org.row, place.model_row, lease.key.row):
            if not row or home.cells[row + health.STATE] <= State.SUSPECT:
                continue
            home.lock(row)
            is_mine = health.is_due(home.cells, row, now)
            if is_mine:
                health.step(home.cells, row, Event.PROBE, now)
                lease.probes.append(row)
            is_lost = not is_mine and home.cells[row + health.STATE] > State.SUSPECT
            home.unlock(row)
            if is_lost:
                return row
        return 0

    # -- what an outcome teaches ------------------------------------------------------------------------------------

    def note(self, lease: Lease, fault: Fault | None, now: int, reason: int = 0) -> None:
        """One attempt's outcome: None is a success. Counts against exactly the scope the fault speaks of (I4)."""
        place = lease.place
        if fault is None:
            cells = self._home.cells
            for row in (lease.key.row, place.org.row, place.model_row, place.org.origin_row):
                if row and cells[row + health.STATE]:
                    self._step(lease, row, Event.SUCCESS, now)
            return
        for row, event, kind in _effects(lease, fault, self._model_row):
            self._step(lease, row, event, now, kind=kind, reason=reason)
        if fault.penalty is Penalty.COOL and fault.scope is not Scope.CALLER:
            self._cool(lease, fault.wait, now)
        # A probe that got any answer but one about itself has shown that it works.
        verdict = Event.SUCCESS if fault.reach >= Reach.HEAD and fault.scope in _SPEAKS_WELL else Event.UNKNOWN
        for row in list(lease.probes):
            self._step(lease, row, verdict, now)

    def _step(
        self, lease: Lease, row: int, event: Event, now: int, *, kind: health.Kind = health.KEY, reason: int = 0
    ) -> None:
        cells = self._home.cells
        if not row or (event is Event.SUCCESS and cells[row + health.STATE] == State.HEALTHY):
            return
        is_probe = row in lease.probes
        self._home.lock(row)
        # The answer to a call sent before the subject went out proves nothing of it now.
        is_late = (
            cells[row + health.STATE] > State.SUSPECT and not is_probe and lease.started <= cells[row + health.SINCE]
        )
        state = State(cells[row + health.STATE])
        is_known = is_late and (
            state is State.PROBING
            or event in (Event.SUCCESS, Event.UNKNOWN)
            or health.TRANSITIONS[state, event] is state
        )
        if not is_known:
            health.step(cells, row, event, now, kind=kind, reason=reason, spread=self._rng())
        self._home.unlock(row)
        if is_probe:
            lease.probes.remove(row)

    def _cool(self, lease: Lease, wait: float | None, now: int) -> None:
        row = self._group_row(lease.place)
        if row:
            self._home.lock(row)
            buckets.cool(self._home.cells, row, now + to_ticks(wait if wait is not None else COOL_DEFAULT))
            self._home.unlock(row)

    def is_worth_learning(self, lease: Lease, now: int) -> bool:
        """Whether this place's limits were last looked at long enough ago: our own buckets count meanwhile."""
        if now < lease.place.learn_at:
            return False
        lease.place.learn_at = now + LEARN_EVERY
        return True

    def learn(self, lease: Lease, dimension: Dimension, limit: int | None, left: int | None, now: int) -> None:
        """What a header says of one bucket: the limit is its size (up to a configured ceiling), the rest lowers it."""
        row = self._group_row(lease.place)
        if not row:
            return
        cells = self._home.cells
        ceiling = lease.place.ceilings[dimension]
        in_force = buckets.limit_of(cells, row, dimension)
        if limit is not None and limit > 0:
            wanted = min(limit, ceiling) if ceiling else limit
            if wanted != in_force:
                self._home.lock(row)
                buckets.set_limit(cells, row, dimension, wanted)
                cells[row + buckets.TAUGHT] = now
                self._home.unlock(row)
        if left is not None and left < buckets.remaining(cells, row, dimension, now):
            self._home.lock(row)
            buckets.lower(cells, row, dimension, left, now)
            cells[row + buckets.TAUGHT] = now
            self._home.unlock(row)

    def release(self, lease: Lease, now: int, first_byte: float | None, was_sent: bool) -> None:
        """The attempt is over. `first_byte`: seconds to the answer's head; None if there was none."""
        org = lease.place.org
        org.in_flight -= 1
        row = lease.group_row
        if row:
            cells = self._home.cells
            if lease.has_lane:
                buckets.leave(cells, row, self._lane)
            if not was_sent:
                self._home.lock(row)
                if lease.started > cells[row + buckets.TAUGHT]:
                    buckets.put_back(cells, row, lease.amounts, now, now - lease.started)
                self._home.unlock(row)
        if first_byte is not None:
            if first_byte > org.latency:
                org.latency = first_byte
            else:
                org.latency += (first_byte - org.latency) * EWMA_WEIGHT

    # -- what the pool is made of -----------------------------------------------------------------------------------

    def has_other(self, ask: Ask) -> bool:
        """Whether some org that may serve the model, if only for want of others, is not avoided yet."""
        for tier in self._tiers(ask.dialect, ask.model):
            for place in tier.awake:
                if place.org.spec.name not in ask.avoid_orgs:
                    return True
            for _, _, place in tier.sleeping[:PANIC_LOOKS]:
                if place.why in _STRUCK and place.org.spec.name not in ask.avoid_orgs:
                    return True
        return False

    def _tiers(self, dialect: str, model: str | None) -> list[Tier]:
        tiers = self._sets.get((dialect, model))
        if tiers is None:
            if len(self._sets) >= MODELS_KEPT:
                self._sets.clear()
            tiers = self._sets[dialect, model] = self._find_places(dialect, model)
        return tiers

    def _find_places(self, dialect: str, model: str | None) -> list[Tier]:
        by_priority: dict[int, list[Place]] = {}
        for org in self.orgs:
            spec = org.spec
            if spec.dialect == dialect and org.keys and spec.weight > 0 and _offers(spec, model):
                by_priority.setdefault(spec.priority, []).append(self._make_place(org, model))
        return [Tier(by_priority[priority]) for priority in sorted(by_priority)]

    def _make_place(self, org: Org, model: str | None) -> Place:
        limit = next((item for item in org.spec.limits if _matches(item.models, model or "")), None)
        group = f"{org.spec.name}\0{','.join(limit.models) if limit else model or ''}"
        place = Place(org, group, f"{org.spec.name}\0model\0{model or ''}")
        place.group_row = self._home.group_row(group, is_made=limit is not None)
        place.model_row = self._home.health_row(place.model_name, is_made=False)
        if limit is not None:
            self._configure(place, limit)
        return place

    def _configure(self, place: Place, limit: LimitSpec) -> None:
        cells = self._home.cells
        row = place.group_row
        place.ceilings = limit.amounts
        if not row:
            return
        for dimension in Dimension:
            ceiling = limit.amounts[dimension]
            known = buckets.limit_of(cells, row, dimension)
            if ceiling and (not known or known > ceiling):
                buckets.set_limit(cells, row, dimension, ceiling)
        cells[row + buckets.CONCURRENCY] = limit.concurrency

    def _make_org(self, spec: OrgSpec) -> Org:
        keys = [Key(name, self._home.health_row(f"{spec.name}\0key\0{name}")) for name in spec.keys]
        org = Org(spec, self._home.health_row(spec.name), [key for key in keys if key.row], FIRST_GUESS)
        org.origin_row = self._home.health_row(f"origin\0{spec.origin}")
        return org

    def _model_row(self, place: Place) -> int:
        if not place.model_row:
            place.model_row = self._home.health_row(place.model_name)
        return place.model_row

    def _group_row(self, place: Place) -> int:
        if not place.group_row:
            place.group_row = self._home.group_row(place.group_name)
        return place.group_row


def _end(cells: MutableSequence[int], row: int, now: int) -> int:
    """The tick from which a subject that is out may serve; a probe's end is near, whatever its latest is."""
    until = cells[row + health.UNTIL]
    return min(until, now + NAP) if cells[row + health.STATE] == State.PROBING else until


def _whose(place: Place, row: int) -> str:
    """Why a place is out, by the row that says so."""
    if row == place.org.origin_row:
        return "origin_out"
    return "org_out" if row == place.org.row else "model_out"


def _offers(spec: OrgSpec, model: str | None) -> bool:
    if spec.models is None or model is None:
        return True
    return _matches(spec.models, model)


def _matches(patterns: tuple[str, ...], model: str) -> bool:
    return any(fnmatchcase(model, pattern) for pattern in patterns)


_STRUCK = frozenset({"org_out", "model_out"})
_ON_PROBATION = frozenset({State.EJECTED})
#: Scopes whose faults say that key and org as such are in order.
_SPEAKS_WELL = frozenset({Scope.MODEL, Scope.CALLER})

_EVENTS = {
    Penalty.COUNT: Event.STRIKE,
    Penalty.PARK: Event.PARK,
    Penalty.QUARANTINE: Event.QUARANTINE,
    Penalty.EXCLUDE: Event.EXCLUDE,
}


def _effects(lease: Lease, fault: Fault, model_row: Callable[[Place], int]) -> list[tuple[int, Event, health.Kind]]:
    """Which rows a fault touches, and how: the table of scope × penalty."""
    event = _EVENTS.get(fault.penalty)
    if event is None:
        return []
    place = lease.place
    if fault.scope is Scope.KEY:
        return [(lease.key.row, event, health.KEY)]
    if fault.scope is Scope.ORG or fault.scope is Scope.EGRESS:
        return [(place.org.row, event, health.ORG)]
    if fault.scope is Scope.MODEL:
        return [(model_row(place), event, health.MODEL)]
    if fault.scope is Scope.ORIGIN and fault.reach is Reach.UNSENT:
        return [(place.org.origin_row, event, health.ORIGIN)]  # nobody was reached: it says nothing of the org
    if fault.scope is Scope.ORIGIN:
        # A failing answer speaks of the org that got it first, and of the origin only if nobody fares better.
        return [(place.org.row, event, health.ORG), (place.org.origin_row, event, health.ORIGIN)]
    return []
