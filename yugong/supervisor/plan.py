"""Which processes to start, drain or end now.

Decides: everything about numbers and times of processes, from a view of them and the clock, which is an argument. Must
not know: how any of it is done. One pass returns every step due; the crew takes them and asks again after each event.

A rolling restart is nothing but another generation: one child of the new generation is started beside the old ones,
and one old one drained for each that is ready, so that there are never fewer that accept than wanted. Going back is
the same, the other way.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator

from yugong.supervisor.child import Child, Role, State

__all__ = ["BEAT_MAX", "START_MAX", "Backoff", "Step", "Wanted", "steps"]

START_MAX = 60.0  # seconds from its start until a child must be ready
BEAT_MAX = 60.0  # seconds without a sign of life: its loop is stuck; a slow disk or a stopped machine are not that slow
ABORT_GRACE = 5.0  # seconds between asking a stuck child for its traceback and killing it


class Act(enum.Enum):
    SPAWN = "spawn"
    DRAIN = "drain"
    STOP = "stop"
    SERVE = "serve"
    ABORT = "abort"
    KILL = "kill"


class Step:
    """One thing to do: `SPAWN` names a role and why, the others a child."""

    __slots__ = ("act", "child", "reason", "role")

    def __init__(self, act: Act, child: Child | None = None, role: Role | None = None, reason: str = "") -> None:
        self.act = act
        self.child = child
        self.role = role
        self.reason = reason

    def __repr__(self) -> str:
        return f"<Step {self.act.value} {self.child.id if self.child else self.role} {self.reason}>"


class Wanted:
    """What there should be."""

    __slots__ = ("generation", "has_emulator", "is_stopping", "keeper_generation", "lanes", "workers")

    def __init__(self, workers: int, lanes: int) -> None:
        self.workers = workers
        self.lanes = lanes
        self.generation = 0
        self.keeper_generation = 0
        self.has_emulator = False
        #: Nothing is started any more; the end is led by the chief.
        self.is_stopping = False

    def __repr__(self) -> str:
        return f"<Wanted workers={self.workers} generation={self.generation}>"


class Backoff:
    """When a role may be started again: at once, then ever later while its children die young."""

    __slots__ = ("_deaths", "_until")

    YOUNG = 10.0  # seconds
    FIRST, LAST = 0.1, 10.0  # seconds

    def __init__(self) -> None:
        self._deaths: dict[Role, int] = {}
        self._until: dict[Role, float] = {}

    def died(self, role: Role, age: float, now: float) -> float:
        """A child died unasked at this age; in how many seconds the next may be started."""
        deaths = self._deaths.get(role, 0) + 1 if age < self.YOUNG else 0
        self._deaths[role] = deaths
        wait = min(self.LAST, self.FIRST * 2 ** (deaths - 1)) if deaths else 0.0
        self._until[role] = now + wait
        return wait

    def is_open(self, role: Role, now: float) -> bool:
        return now >= self._until.get(role, 0.0)

    def next(self, now: float) -> float | None:
        """In how many seconds a role opens again; None if none is waiting."""
        waits = [until - now for until in self._until.values() if until > now]
        return min(waits, default=None)


def steps(children: Iterable[Child], wanted: Wanted, backoff: Backoff, now: float) -> list[Step]:
    """Everything that is due at `now` (monotonic seconds)."""
    alive = [child for child in children if child.state is not State.GONE]
    due = list(_overdue(alive, now))
    if wanted.is_stopping:
        return due
    due += _workers([c for c in alive if c.role is Role.WORKER], wanted, backoff.is_open(Role.WORKER, now))
    due += _keepers([c for c in alive if c.role is Role.KEEPER], wanted, backoff.is_open(Role.KEEPER, now))
    if wanted.has_emulator and backoff.is_open(Role.EMULATOR, now):
        due += [Step(Act.SPAWN, role=Role.EMULATOR)] * (not any(c.role is Role.EMULATOR for c in alive))
    return due


def _overdue(alive: Iterable[Child], now: float) -> Iterator[Step]:
    for child in alive:
        if child.role is Role.EMULATOR:
            continue
        if child.deadline is not None and now >= child.deadline:
            yield Step(Act.KILL, child, reason="did not end in time")
        elif child.is_aborted:
            continue
        elif child.state is State.STARTING and now - child.started > START_MAX:
            yield Step(Act.ABORT, child, reason=f"not ready after {START_MAX:g} s")
        elif child.state is not State.STARTING and now - child.beat > BEAT_MAX:
            yield Step(Act.ABORT, child, reason=f"no sign of life for {BEAT_MAX:g} s")


def _workers(alive: list[Child], wanted: Wanted, may_start: bool) -> Iterator[Step]:
    current = [c for c in alive if c.state is not State.DRAINING]
    fresh = [c for c in current if c.generation == wanted.generation and not c.is_leaving]
    stale = [c for c in current if c not in fresh]
    ready = [c for c in current if c.state is State.READY]
    ready_fresh = [c for c in fresh if c.state is State.READY]
    starting = len(fresh) - len(ready_fresh)
    yield from (Step(Act.STOP, c) for c in stale if c.state is State.STARTING)
    stale = [c for c in stale if c.state is State.READY]
    if may_start:
        missing = wanted.workers - len(ready) - starting
        turns = 1 if not starting and len(fresh) < wanted.workers else 0
        room = wanted.lanes - len(alive)
        for _ in range(min(max(missing, turns), room)):
            yield Step(Act.SPAWN, role=Role.WORKER, reason="rolling" if stale else "")
    surplus = len(ready) - wanted.workers
    for child in (*stale, *reversed(ready_fresh))[: max(0, surplus)]:
        yield Step(Act.DRAIN, child)


def _keepers(alive: list[Child], wanted: Wanted, may_start: bool) -> Iterator[Step]:
    fresh = [c for c in alive if c.generation == wanted.keeper_generation and not c.is_leaving]
    old = [c for c in alive if c not in fresh]
    if not fresh and may_start:
        yield Step(Act.SPAWN, role=Role.KEEPER, reason="rolling" if old else "")
    for child in fresh:
        if child.state is not State.READY or child.is_serving:
            continue
        if not old:
            yield Step(Act.SERVE, child)
        yield from (Step(Act.DRAIN, c) for c in old if c.state is not State.DRAINING)
