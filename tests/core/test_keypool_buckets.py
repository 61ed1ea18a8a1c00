"""yugong.core.keypool.buckets: never more than upstream's own bucket grants, never less for long, all or nothing."""

from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from yugong.base.clock import SECOND
from yugong.core.keypool import buckets
from yugong.core.keypool.buckets import DIMENSIONS, NEVER, WINDOWS, Cost, Dimension
from yugong.core.keypool.cells import GROUP_ROW, HEALTH_ROW, LANES, ListHome

NOW = 10**12
MINUTE = 60 * SECOND

LIMITS = st.integers(1, 20) | st.integers(1, 10**7) | st.just(180_000_000)
ANY_DIMENSION = st.sampled_from(Dimension)
AMOUNTS = st.tuples(*[st.integers(0, 300)] * DIMENSIONS)
ALL_LIMITS = st.tuples(*[st.integers(0, 300)] * DIMENSIONS)


class Row:
    """A group's row in a list of its own, with neighbours that must stay as they are."""

    def __init__(self, *limits: int) -> None:
        home = ListHome()
        home.group_row("before")
        self.at = home.group_row("this")
        home.group_row("after")
        self.cells = home.cells
        for dimension, limit in zip(Dimension, limits, strict=False):
            buckets.set_limit(self.cells, self.at, dimension, limit)

    def ready(self, amounts: Cost, now: int) -> int:
        return buckets.ready_at(self.cells, self.at, amounts, now)

    def take(self, amounts: Cost, now: int) -> bool:
        """Reserves if it fits, as the pool does."""
        if self.ready(amounts, now) > now:
            return False
        buckets.take(self.cells, self.at, amounts, now)
        return True

    def left(self, dimension: Dimension, now: int) -> int:
        return buckets.remaining(self.cells, self.at, dimension, now)

    def lefts(self, now: int) -> list[int]:
        return [self.left(dimension, now) for dimension in Dimension]


class Upstream:
    """Upstream's bucket: full at first, refilled continuously, counted in fractions. What exceeds it is a 429."""

    def __init__(self, limit: int, window: int, now: int) -> None:
        self.limit, self.window = limit, window
        self.level, self.at = Fraction(limit), now

    def refill(self, now: int) -> None:
        self.level = min(self.level + Fraction(self.limit * (now - self.at), self.window), Fraction(self.limit))
        self.at = now

    def admits(self, amount: int, now: int) -> bool:
        self.refill(now)
        if amount > self.level:
            return False
        self.level -= amount
        return True


def only(dimension: Dimension, amount: int) -> Cost:
    return tuple(amount if one is dimension else 0 for one in Dimension)


def limited(dimension: Dimension, limit: int) -> Row:
    return Row(*only(dimension, limit))


# -- one bucket against upstream's ------------------------------------------------------------------------------------

#: Ticks between two asks, and the amount as a share of the limit in thousandths.
ASKS = st.lists(st.tuples(st.integers(0, 20 * SECOND) | st.just(0), st.integers(0, 1000)), max_size=60)


@given(ANY_DIMENSION, LIMITS, ASKS)
def test_upstream_is_never_asked_for_more(dimension: Dimension, limit: int, asks: list[tuple[int, int]]) -> None:
    """I5. And nothing is refused that fits but for the rounding: less than a tick's refill for each reservation."""
    row, now = limited(dimension, limit), NOW
    upstream = Upstream(limit, WINDOWS[dimension], now)
    taken = 0
    for elapsed, share in asks:
        now += elapsed
        amount = limit * share // 1000
        if row.take(only(dimension, amount), now):
            taken += 1
            assert upstream.admits(amount, now)
        else:
            upstream.refill(now)
            assert upstream.level < amount + Fraction(limit * taken + limit, WINDOWS[dimension])


@given(ANY_DIMENSION, LIMITS, ASKS)
def test_no_stretch_of_time_gets_more_than_burst_and_refill(
    dimension: Dimension, limit: int, asks: list[tuple[int, int]]
) -> None:
    row, now = limited(dimension, limit), NOW
    taken: list[tuple[int, int]] = []
    for elapsed, share in asks:
        now += elapsed
        amount = limit * share // 1000
        if row.take(only(dimension, amount), now):
            taken.append((now, amount))
    for first in range(len(taken)):
        total = 0
        for at, amount in taken[first:]:
            total += amount
            assert total <= limit + Fraction(limit * (at - taken[first][0]), WINDOWS[dimension])


@given(ANY_DIMENSION, LIMITS, st.lists(st.integers(0, 1000), max_size=30), st.integers(0, 1000))
def test_ready_at_is_the_first_tick_that_fits(dimension: Dimension, limit: int, shares: list[int], share: int) -> None:
    row = limited(dimension, limit)
    for one in shares:
        row.take(only(dimension, limit * one // 1000), NOW)
    wanted = only(dimension, limit * share // 1000)
    at = row.ready(wanted, NOW)
    if at > NOW:
        assert row.ready(wanted, at) <= at
        assert row.ready(wanted, at - 1) > at - 1


@given(ANY_DIMENSION, LIMITS, st.lists(st.integers(0, 1000), max_size=30), st.integers(0, 10**11))
def test_remaining_is_just_what_fits(dimension: Dimension, limit: int, shares: list[int], later: int) -> None:
    row = limited(dimension, limit)
    for share in shares:
        row.take(only(dimension, limit * share // 1000), NOW)
    now = NOW + later
    left = row.left(dimension, now)
    assert 0 <= left <= limit
    assert row.ready(only(dimension, left), now) <= now
    assert row.ready(only(dimension, left + 1), now) > now


@pytest.mark.parametrize("dimension", Dimension)
@pytest.mark.parametrize("limit", [1, 3, 7, 60, 500, 9_999, 30_000_000])
def test_refill_is_exact_over_a_long_time(dimension: Dimension, limit: int) -> None:
    """Who takes an eighth of a bucket as soon as there is room gets the burst and ten windows' refill, but for one."""
    row, now = limited(dimension, limit), NOW
    end = NOW + 10 * WINDOWS[dimension]
    amount = max(limit // 8, 1)
    wanted, total = only(dimension, amount), 0
    while (now := max(row.ready(wanted, now), now)) <= end:
        assert row.take(wanted, now)
        total += amount
    assert 11 * limit - 2 * amount <= total <= 11 * limit


@given(ANY_DIMENSION, LIMITS)
def test_an_empty_bucket_is_full_after_its_window(dimension: Dimension, limit: int) -> None:
    row = limited(dimension, limit)
    assert row.take(only(dimension, limit), NOW)
    assert row.left(dimension, NOW) == 0
    assert row.left(dimension, NOW + WINDOWS[dimension] - 1) < limit
    assert row.left(dimension, NOW + WINDOWS[dimension]) == limit
    assert row.left(dimension, NOW + 10**13) == limit


# -- all dimensions of a row ------------------------------------------------------------------------------------------


@given(ALL_LIMITS, st.lists(st.tuples(st.integers(0, SECOND), AMOUNTS), max_size=30))
def test_all_or_nothing(limits: tuple[int, ...], asks: list[tuple[int, Cost]]) -> None:
    """A call gets its amounts in every dimension, or the row stays as it is, and then one dimension had no room."""
    row, now = Row(*limits), NOW
    upstreams = [Upstream(limit, window, now) for limit, window in zip(limits, WINDOWS, strict=True)]
    for elapsed, amounts in asks:
        now += elapsed
        before, lefts = list(row.cells), row.lefts(now)
        fits = all(amount <= left for amount, left, limit in zip(amounts, lefts, limits, strict=True) if limit)
        if not row.take(amounts, now):
            assert not fits
            assert row.cells == before
            continue
        assert fits
        for dimension, upstream in zip(Dimension, upstreams, strict=True):
            if limits[dimension]:
                assert row.left(dimension, now) <= lefts[dimension] - amounts[dimension]
                assert upstream.admits(amounts[dimension], now)


@given(ALL_LIMITS, AMOUNTS, st.lists(AMOUNTS, max_size=5))
def test_only_the_row_itself_changes(limits: tuple[int, ...], amounts: Cost, more: list[Cost]) -> None:
    row = Row(*limits)
    others = row.cells[: row.at + 1], row.cells[row.at + GROUP_ROW :]
    for one in more:
        row.take(one, NOW)
    buckets.put_back(row.cells, row.at, amounts, NOW)
    buckets.lower(row.cells, row.at, Dimension.TOKENS_MINUTE, 1, NOW)
    buckets.cool(row.cells, row.at, NOW)
    buckets.enter(row.cells, row.at, LANES - 1)
    assert (row.cells[: row.at + 1], row.cells[row.at + GROUP_ROW :]) == others


@given(ALL_LIMITS, AMOUNTS)
def test_larger_than_a_limit_never_fits(limits: tuple[int, ...], amounts: Cost) -> None:
    is_oversize = any(limit and amount > limit for amount, limit in zip(amounts, limits, strict=True))
    assert (Row(*limits).ready(amounts, NOW) == NEVER) == is_oversize


@given(AMOUNTS)
def test_no_limit_no_bound(amounts: Cost) -> None:
    row = Row()
    before = list(row.cells)
    for _ in range(5):
        assert row.take(amounts, NOW)
    buckets.put_back(row.cells, row.at, amounts, NOW)
    assert row.cells == before


@given(ANY_DIMENSION, st.integers(1, 100))
def test_a_limit_taken_away_binds_no_more(dimension: Dimension, limit: int) -> None:
    row = limited(dimension, limit)
    assert buckets.limit_of(row.cells, row.at, dimension) == limit
    assert row.take(only(dimension, limit), NOW)
    assert not row.take(only(dimension, 1), NOW)
    buckets.set_limit(row.cells, row.at, dimension, 0)
    assert buckets.limit_of(row.cells, row.at, dimension) == 0
    assert row.take(only(dimension, 10 * limit), NOW)


@given(ANY_DIMENSION, st.lists(st.integers(0, 50), min_size=1, max_size=10))
def test_the_last_limit_put_in_force_is_the_limit(dimension: Dimension, limits: list[int]) -> None:
    row = Row()
    for limit in limits:
        buckets.set_limit(row.cells, row.at, dimension, limit)
    fresh = limited(dimension, limits[-1])
    for _ in range(60):
        assert row.take(only(dimension, 1), NOW) == fresh.take(only(dimension, 1), NOW)


def test_cost_of_a_call() -> None:
    assert buckets.cost(1, 500) == (1, 500, 1, 500, 0)
    assert buckets.cost(1, 500, 2)[Dimension.IMAGES_MINUTE] == 2


# -- giving back ------------------------------------------------------------------------------------------------------


@given(ALL_LIMITS, st.lists(AMOUNTS, max_size=5), AMOUNTS)
def test_put_back_undoes_a_take(limits: tuple[int, ...], before: list[Cost], amounts: Cost) -> None:
    """Up to a tick, and never in the taker's favour."""
    row = Row(*limits)
    for one in before:
        row.take(one, NOW)
    lefts, ready = row.lefts(NOW), row.ready(amounts, NOW)
    assume(row.take(amounts, NOW))
    buckets.put_back(row.cells, row.at, amounts, NOW)
    for left, was in zip(row.lefts(NOW), lefts, strict=True):
        assert was - 1 <= left <= was
    assert ready <= NOW
    assert row.ready(amounts, NOW) <= NOW + 1


@given(ALL_LIMITS, AMOUNTS)
def test_put_back_never_overfills(limits: tuple[int, ...], amounts: Cost) -> None:
    row = Row(*limits)
    buckets.put_back(row.cells, row.at, amounts, NOW)
    assert row.lefts(NOW) == list(limits)


# -- what upstream says is left ---------------------------------------------------------------------------------------


@given(ANY_DIMENSION, LIMITS, st.lists(st.integers(0, 1000), max_size=5), st.integers(-10, 10**9))
def test_lower_never_raises(dimension: Dimension, limit: int, shares: list[int], said: int) -> None:
    row = limited(dimension, limit)
    for share in shares:
        row.take(only(dimension, limit * share // 1000), NOW)
    was = row.left(dimension, NOW)
    buckets.lower(row.cells, row.at, dimension, said, NOW)
    least = min(was, said) if said >= 0 else was
    a_tick = limit // WINDOWS[dimension]  # of refill: 3 units at 180 million a minute, else less than one
    assert least <= row.left(dimension, NOW) <= min(least + a_tick, was)


@given(ANY_DIMENSION, st.integers(-10, 100))
def test_lower_without_a_limit_says_nothing(dimension: Dimension, said: int) -> None:
    row = Row()
    before = list(row.cells)
    buckets.lower(row.cells, row.at, dimension, said, NOW)
    assert row.cells == before


# -- cooling ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=5), AMOUNTS)
def test_the_later_cool_down_wins(waits: list[int], amounts: Cost) -> None:
    row = Row()
    for wait in waits:
        buckets.cool(row.cells, row.at, NOW + wait)
    end = NOW + max(waits)
    assert row.ready(amounts, NOW) == end
    assert row.ready(amounts, end) <= end


def test_cool_down_and_bucket_the_later_counts() -> None:
    row = limited(Dimension.REQUESTS_MINUTE, 60)
    one = only(Dimension.REQUESTS_MINUTE, 1)
    for _ in range(60):
        assert row.take(one, NOW)
    assert row.ready(one, NOW) == NOW + SECOND
    buckets.cool(row.cells, row.at, NOW + SECOND // 2)
    assert row.ready(one, NOW) == NOW + SECOND
    buckets.cool(row.cells, row.at, NOW + 2 * SECOND)
    assert row.ready(one, NOW) == NOW + 2 * SECOND


# -- calls in flight --------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, LANES - 1), st.booleans()), max_size=60))
def test_lanes_add_up(steps: list[tuple[int, bool]]) -> None:
    row, lanes = Row(), [0] * LANES
    for lane, is_entering in steps:
        if is_entering:
            buckets.enter(row.cells, row.at, lane)
            lanes[lane] += 1
        else:
            buckets.leave(row.cells, row.at, lane)
            lanes[lane] = max(lanes[lane] - 1, 0)
        assert buckets.in_flight(row.cells, row.at) == sum(lanes)


def test_a_dead_workers_lane_is_cleared_alone() -> None:
    row = Row()
    for lane in range(LANES):
        buckets.enter(row.cells, row.at, lane)
    buckets.clear_lane(row.cells, row.at, 3)
    assert buckets.in_flight(row.cells, row.at) == LANES - 1
    buckets.leave(row.cells, row.at, 3)
    assert buckets.in_flight(row.cells, row.at) == LANES - 1


@given(st.integers(1, 10), st.lists(st.booleans(), max_size=40))
def test_concurrency_is_held_over_all_lanes(limit: int, steps: list[bool]) -> None:
    row = Row()
    row.cells[row.at + buckets.CONCURRENCY] = limit
    amounts, under_way = buckets.cost(1, 1), 0
    for number, is_ending in enumerate(steps):
        if is_ending and under_way:
            under_way -= 1
            buckets.leave(row.cells, row.at, under_way % LANES)
        at = row.ready(amounts, NOW)
        assert (at <= NOW) == (under_way < limit), number
        if at <= NOW:
            buckets.enter(row.cells, row.at, under_way % LANES)
            under_way += 1
        else:
            assert at < NOW + SECOND


def test_concurrency_does_not_hurry_a_bucket() -> None:
    row = limited(Dimension.REQUESTS_MINUTE, 1)
    row.cells[row.at + buckets.CONCURRENCY] = 1
    one = only(Dimension.REQUESTS_MINUTE, 1)
    assert row.take(one, NOW)
    buckets.enter(row.cells, row.at, 0)
    assert row.ready(one, NOW) == NOW + MINUTE


# -- the home in one process ------------------------------------------------------------------------------------------


def test_rows_of_a_home() -> None:
    home = ListHome()
    assert home.health_row("a", is_made=False) == 0 == home.group_row("a", is_made=False)
    health, group = home.health_row("a"), home.group_row("a")
    assert (home.health_row("a"), home.group_row("a", is_made=False)) == (health, group)
    assert len({0, health, group, home.health_row("b")}) == 4
    assert len(home.cells) == 3 * HEALTH_ROW + GROUP_ROW
    assert repr(home) == "<ListHome rows=3>"
    home.lock(group)
    home.unlock(group)
