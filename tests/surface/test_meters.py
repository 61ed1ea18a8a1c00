"""What the hot path counts on."""

import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yugong.surface.meters import OTHER, VALUE_MAX, VALUES_MAX, Family, Histogram, Registry, Spec, Total

CALLS = Spec("yugong_x_total", "counter", "org outcome", "Calls.")
TOOK = Spec("yugong_took_seconds", "histogram", "", "Took.")
TOOK.bounds = (0.1, 1.0, 10.0)


def counter() -> tuple[Registry, Family[Total]]:
    registry = Registry()
    return registry, registry.counter(CALLS)


def test_a_child_is_the_same_object_for_the_same_labels() -> None:
    registry, calls = counter()
    child = calls.labels("a", "ok")
    child.value += 2
    assert calls.labels("a", "ok") is child
    assert calls.labels("b", "ok") is not child
    assert list(registry.values()) == [(CALLS, ("a", "ok"), 2), (CALLS, ("b", "ok"), 0)]


def test_wrong_number_of_labels_is_a_bug() -> None:
    _, calls = counter()
    with pytest.raises(AssertionError, match="given 1 labels"):
        calls.labels("a")


def test_wrong_kind_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        Registry().gauge(CALLS)


def test_a_storm_of_values_ends_in_one_series_and_keeps_nothing_else() -> None:
    registry, calls = counter()
    for number in range(3 * VALUES_MAX):
        calls.labels("a", f"made-up-{number}").value += 1
    assert len(registry.rows) == VALUES_MAX + 1
    assert calls.labels("a", OTHER).value == 2 * VALUES_MAX
    assert calls.labels("a", "another").value == 2 * VALUES_MAX
    assert len(calls._children) == VALUES_MAX + 1


def test_a_cap_can_be_raised_while_counting_goes_on() -> None:
    registry, calls = counter()
    registry.caps["outcome"] = 1
    first = calls.labels("a", "ok")
    assert calls.labels("a", "late") is calls.labels("a", OTHER) is not first
    registry.caps["outcome"] = 3
    assert calls.labels("a", "late") is not calls.labels("a", OTHER)


def test_a_label_past_its_cap_leaves_the_others_alone() -> None:
    _, calls = counter()
    for number in range(VALUES_MAX):
        calls.labels("a", f"o{number}")
    late = calls.labels("b", "late")
    assert late is calls.labels("b", OTHER)
    assert late is not calls.labels("a", OTHER)


def test_a_long_value_is_cut() -> None:
    registry, calls = counter()
    calls.labels("a", "x" * 10_000)
    assert registry.rows[0][1] == ("a", "x" * VALUE_MAX)


@given(st.lists(st.floats(0, 100), max_size=50))
def test_a_histogram_puts_each_value_at_the_first_bound_that_holds_it(values: list[float]) -> None:
    histogram = Histogram(TOOK)
    for value in values:
        histogram.observe(value)
    expected = [0, 0, 0, 0]
    for value in values:
        expected[next((i for i, bound in enumerate(TOOK.bounds) if value <= bound), 3)] += 1
    assert histogram.counts == expected
    assert histogram.value == len(values)
    assert histogram.total == pytest.approx(sum(values))
    assert histogram.read() == [histogram.total, *expected]


def test_what_is_looked_up_is_looked_up_when_read() -> None:
    registry = Registry()
    gauge = registry.gauge(Spec("yugong_now", "gauge", "", "Now.")).labels()

    def refresh() -> None:
        gauge.value = 7

    registry.before_reading(refresh)
    assert [value for _, _, value in registry.values()] == [7]


def test_reprs_say_what_there_is() -> None:
    registry, calls = counter()
    calls.labels("a", "ok").value += 3
    histogram = Histogram(TOOK)
    histogram.observe(0.5)
    assert repr(calls) == "<Family yugong_x_total children=1>"
    assert repr(calls.labels("a", "ok")) == "<Total 3>"
    assert repr(registry) == "<Registry series=1>"
    assert repr(histogram) == "<Histogram n=1 sum=0.5>"
    assert repr(CALLS) == "<Spec yugong_x_total counter {org,outcome}>"


def test_counting_costs_next_to_nothing() -> None:
    """The promise is 60 ns and 300 ns; ten times that is allowed here, for machines that do other things as well."""
    _, calls = counter()
    child, histogram = calls.labels("a", "ok"), Histogram(TOOK)

    def count() -> None:
        for _ in range(10_000):
            child.value += 1

    def observe() -> None:
        for _ in range(10_000):
            histogram.observe(0.5)

    assert min(timeit.repeat(count, number=1, repeat=5)) / 10_000 < 600e-9
    assert min(timeit.repeat(observe, number=1, repeat=5)) / 10_000 < 3e-6
