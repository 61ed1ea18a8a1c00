"""Who may get calls: the table of states and events of keys, orgs, an org's models and origins.

Every state but the healthy ones has a reason and an end; at its end one call is let through as a probe, and what comes
of it decides. What is not in the table is an error. A success resets at once. Ejections grow and have a cap; money and
refused credentials take longer, because they want a person. Ticks are microseconds of the monotonic clock.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from enum import IntEnum
from typing import NamedTuple

from yugong.base.clock import SECOND

Cells = MutableSequence[int]

# A health row.
STATE, UNTIL, STRIKES, EJECTIONS, REASON, SINCE = 1, 2, 3, 4, 5, 6


class State(IntEnum):
    """Where a subject stands."""

    HEALTHY = 0
    SUSPECT = 1  # strikes, but in use
    EJECTED = 2  # too many strikes
    PROBING = 3  # one call is finding out
    PARKED = 4  # no money
    QUARANTINED = 5  # refused
    EXCLUDED = 6  # this model is not for this org


class Event(IntEnum):
    """What happened to it."""

    SUCCESS = 0
    STRIKE = 1
    PARK = 2
    QUARANTINE = 3
    EXCLUDE = 4
    PROBE = 5  # its time is over: somebody takes the risk
    UNKNOWN = 6  # an outcome that says nothing of it (the client left, a caller's mistake)


class Kind(NamedTuple):
    """How patient we are with one kind of subject."""

    strikes: int
    #: Seconds of the first ejection; each further one doubles it.
    base: float
    cap: float


KEY = Kind(strikes=5, base=1.0, cap=60.0)
ORG = Kind(strikes=5, base=1.0, cap=60.0)
MODEL = Kind(strikes=5, base=1.0, cap=60.0)
#: An origin is everybody's: only a long unbroken row of failures over all orgs speaks against it, and it is asked again
#: soon, because nothing can be served meanwhile.
ORIGIN = Kind(strikes=20, base=0.5, cap=2.0)

PROBE_TIME = 30.0  # seconds a probe may take before another is let through
PARK = Kind(strikes=1, base=300.0, cap=3600.0)
QUARANTINE = Kind(strikes=1, base=60.0, cap=3600.0)
EXCLUDE = Kind(strikes=1, base=600.0, cap=3600.0)

_S, _E = State, Event
_USABLE = (_S.HEALTHY, _S.SUSPECT)
_OUT = (_S.EJECTED, _S.PARKED, _S.QUARANTINED, _S.EXCLUDED)

#: (state, event) → next state. A strike's next state also depends on the count: see `step`.
TRANSITIONS: dict[tuple[State, Event], State] = {
    **{(s, _E.SUCCESS): _S.HEALTHY for s in State},
    **{(s, _E.PARK): _S.PARKED for s in State},
    **{(s, _E.QUARANTINE): _S.QUARANTINED for s in State},
    **{(s, _E.EXCLUDE): _S.EXCLUDED for s in State},
    **{(s, _E.UNKNOWN): s for s in State if s is not _S.PROBING},
    (_S.PROBING, _E.UNKNOWN): _S.EJECTED,  # the probe told nothing: at once the next one
    (_S.HEALTHY, _E.STRIKE): _S.SUSPECT,
    (_S.SUSPECT, _E.STRIKE): _S.SUSPECT,
    (_S.PROBING, _E.STRIKE): _S.EJECTED,
    **{(s, _E.STRIKE): s for s in _OUT},  # answers to calls sent before: known already
    **{(s, _E.PROBE): _S.PROBING for s in (*_OUT, _S.PROBING)},
}

_TIMES = {Event.PARK: PARK, Event.QUARANTINE: QUARANTINE, Event.EXCLUDE: EXCLUDE}


def is_usable(cells: Cells, row: int) -> bool:
    """Whether it may get any number of calls."""
    return not row or cells[row + STATE] <= State.SUSPECT


def is_due(cells: Cells, row: int, now: int) -> bool:
    """Whether it is out but its time is over, so that one call may probe it."""
    return cells[row + STATE] > State.SUSPECT and cells[row + UNTIL] <= now


def step(
    cells: Cells, row: int, event: Event, now: int, *, kind: Kind = KEY, reason: int = 0, spread: float = 0.5
) -> State:
    """The one function that changes a state. Returns the new one.

    `spread` in [0, 1) is the caller's random number: ends are jittered by ±20 % so that subjects do not come back in
    step. Raises `KeyError` for what the table does not know.
    """
    state = State(cells[row + STATE])
    following = TRANSITIONS[state, event]
    if event is Event.STRIKE and following is State.SUSPECT:
        cells[row + STRIKES] += 1
        if cells[row + STRIKES] >= kind.strikes:
            following = State.EJECTED
    if following is State.HEALTHY:
        _clear(cells, row)
    elif event is Event.PROBE:
        cells[row + UNTIL] = now + int(PROBE_TIME * SECOND)
    elif event is Event.UNKNOWN and state is State.PROBING:
        cells[row + UNTIL] = now
    elif following in _OUT and (state is not following or event in _TIMES):
        if state is State.PROBING:
            cells[row + UNTIL] = 0
        _set_out(cells, row, now, _TIMES.get(event, kind), spread)
    if following is not state:
        cells[row + SINCE] = now
    if event in _TIMES or (event is Event.STRIKE and state not in _OUT):
        cells[row + REASON] = reason
    cells[row + STATE] = following
    return following


def _clear(cells: Cells, row: int) -> None:
    for field in (UNTIL, STRIKES, EJECTIONS, REASON):
        cells[row + field] = 0


def _set_out(cells: Cells, row: int, now: int, kind: Kind, spread: float) -> None:
    times = cells[row + EJECTIONS]
    cells[row + EJECTIONS] = min(times + 1, 32)
    cells[row + STRIKES] = 0
    seconds = min(kind.base * 2 ** min(times, 20), kind.cap)
    until = now + int(seconds * (0.8 + 0.4 * spread) * SECOND)
    # A second cool-down must not shorten the first.
    cells[row + UNTIL] = max(cells[row + UNTIL], until)
