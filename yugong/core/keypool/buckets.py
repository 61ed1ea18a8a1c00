"""What an org still allows: one bucket for each limit group and dimension, each a single integer.

A bucket is the *theoretical arrival time* of the generic cell rate algorithm (ITU-T I.371): the tick at which it would
be full again. It refills by itself, needs no timer and no second number, and survives a crash at any moment. Cost `c`
of a limit `L` a window `W` moves it by `c * W / L` ticks, rounded up; what would move it further than `W` from now does
not fit. A group's row holds its buckets, the limits in force and the lanes of calls in flight. All or nothing: every
dimension is checked before any is changed. Ticks are microseconds of the system's monotonic clock.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from enum import IntEnum

from yugong.base.clock import SECOND
from yugong.core.keypool.cells import GROUP_ROW, LANES

Cells = MutableSequence[int]


class Dimension(IntEnum):
    """What upstream counts."""

    REQUESTS_MINUTE = 0
    TOKENS_MINUTE = 1
    REQUESTS_DAY = 2
    TOKENS_DAY = 3
    IMAGES_MINUTE = 4


WINDOWS = (60 * SECOND, 60 * SECOND, 86_400 * SECOND, 86_400 * SECOND, 60 * SECOND)
DIMENSIONS = len(Dimension)

# A group's row: name hash, TATs, limits, which limits there are, cooling until, concurrency limit, lanes.
_TAT = 1
_LIMIT = _TAT + DIMENSIONS
_MASK = _LIMIT + DIMENSIONS
COOL_UNTIL = _MASK + 1
CONCURRENCY = COOL_UNTIL + 1
LANE = CONCURRENCY + 1
#: The tick at which upstream last corrected the row: what was reserved before is not given back after.
TAUGHT = LANE + LANES
assert TAUGHT < GROUP_ROW

Cost = tuple[int, ...]
"""Units asked for, by `Dimension`."""

NEVER = 1 << 62

#: The dimensions of each mask of limits: most rows have two of five.
_LIMITED = [tuple(d for d in range(DIMENSIONS) if mask >> d & 1) for mask in range(1 << DIMENSIONS)]


def cost(requests: int, tokens: int, images: int = 0) -> Cost:
    """The cost of a call in every dimension."""
    return (requests, tokens, requests, tokens, images)


def set_limit(cells: Cells, row: int, dimension: Dimension, limit: int) -> None:
    """Puts a limit in force (0: none)."""
    cells[row + _LIMIT + dimension] = limit
    if limit:
        cells[row + _MASK] |= 1 << dimension
    else:
        cells[row + _MASK] &= ~(1 << dimension)


def limit_of(cells: Cells, row: int, dimension: Dimension) -> int:
    """The limit in force, 0 if none is known."""
    return cells[row + _LIMIT + dimension]


def remaining(cells: Cells, row: int, dimension: Dimension, now: int) -> int:
    """Units that fit now."""
    limit = cells[row + _LIMIT + dimension]
    window = WINDOWS[dimension]
    ahead = max(cells[row + _TAT + dimension] - now, 0)
    return max(limit * (window - ahead) // window, 0)


def ready_at(cells: Cells, row: int, amounts: Cost, now: int) -> int:
    """The tick from which `amounts` fits every bucket (`now` or earlier: at once; `NEVER`: larger than a limit)."""
    at = cells[row + COOL_UNTIL]
    for dimension in _LIMITED[cells[row + _MASK]]:
        limit = cells[row + _LIMIT + dimension]
        amount = amounts[dimension]
        if amount > limit:
            return NEVER
        window = WINDOWS[dimension]
        tat = cells[row + _TAT + dimension]
        # Rounded up: never a unit more than upstream grants.
        ready = (tat if tat > now else now) - (-amount * window // limit) - window
        if ready > now and ready > at:
            at = ready
    if cells[row + CONCURRENCY] and in_flight(cells, row) >= cells[row + CONCURRENCY]:
        at = max(at, now + SECOND // 20)  # a call's end cannot be foretold
    return at


def take(cells: Cells, row: int, amounts: Cost, now: int) -> None:
    """Reserves `amounts`; the caller has seen that they fit."""
    for dimension in _LIMITED[cells[row + _MASK]]:
        at = row + _TAT + dimension
        tat = cells[at]
        moved = -amounts[dimension] * WINDOWS[dimension] // cells[row + _LIMIT + dimension]
        cells[at] = (tat if tat > now else now) - moved


def put_back(cells: Cells, row: int, amounts: Cost, now: int, elapsed: int = 0) -> None:
    """Gives back what was reserved and never used (the attempt never left)."""
    for dimension in _LIMITED[cells[row + _MASK]]:
        at = row + _TAT + dimension
        back = max(amounts[dimension] * WINDOWS[dimension] // cells[row + _LIMIT + dimension] - elapsed, 0)
        cells[at] = max(cells[at] - back, min(now, cells[at]))


def lower(cells: Cells, row: int, dimension: Dimension, left: int, now: int) -> None:
    """Upstream says that `left` units remain: never raises the local figure."""
    limit = cells[row + _LIMIT + dimension]
    if not limit or left < 0:
        return
    window = WINDOWS[dimension]
    at = row + _TAT + dimension
    cells[at] = max(cells[at], now + (limit - min(left, limit)) * window // limit)


def cool(cells: Cells, row: int, until: int) -> None:
    """Nothing goes to this group before `until`; the later of two deadlines wins."""
    cells[row + COOL_UNTIL] = max(cells[row + COOL_UNTIL], until)


def in_flight(cells: Cells, row: int) -> int:
    """Calls under way over all workers."""
    start = row + LANE
    return sum(cells[start : start + LANES])


def enter(cells: Cells, row: int, lane: int) -> None:
    """One more call of this worker. A lane has one writer: no lock."""
    cells[row + LANE + lane] += 1


def leave(cells: Cells, row: int, lane: int) -> None:
    """One call less."""
    at = row + LANE + lane
    cells[at] = max(cells[at] - 1, 0)


def clear_lane(cells: Cells, row: int, lane: int) -> None:
    """A worker died: what it had in flight is no more."""
    cells[row + LANE + lane] = 0
