"""yugong.core.keypool.spec: the pool's nouns say what they are, and of two shortages the more hopeful is told."""

import itertools
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yugong.core.keypool import buckets
from yugong.core.keypool.spec import Key, Lease, LimitSpec, Org, OrgSpec, Place, Shortage

REASONS = ("avoided", "no_org", "too_large", "model_out", "keys_out", "org_out", "origin_out", "full")
"""From the least to the most hopeful."""

SPEC = OrgSpec(name="acme", origin="openai", dialect="openai", keys=("a", "b"))
SHORTAGES = st.builds(Shortage, st.sampled_from(REASONS), st.integers(0, 5))


def org(*, weight: float = 1.0, latency: float = 0.5) -> Org:
    return Org(SPEC._replace(weight=weight), 8, [Key("a", 16)], latency)


def test_an_org_offers_all_models_without_limits_unless_told() -> None:
    assert (SPEC.models, SPEC.limits, SPEC.weight, SPEC.priority) == (None, (), 1.0, 0)
    assert LimitSpec(("*",), buckets.cost(1, 1)).concurrency == 0


@given(st.floats(0.001, 100), st.integers(0, 1000), st.floats(0.01, 1e9))
def test_load_is_weighted_seconds_of_waiting(latency: float, in_flight: int, weight: float) -> None:
    one = org(weight=weight, latency=latency)
    one.in_flight = in_flight
    assert one.load() == pytest.approx(latency * (in_flight + 1) / weight)
    busier, slower, heavier = (org(weight=weight, latency=latency) for _ in range(3))
    busier.in_flight = in_flight + 1
    slower.in_flight = heavier.in_flight = in_flight
    slower.latency *= 2
    heavier.spec = heavier.spec._replace(weight=weight * 2)
    assert heavier.load() < one.load() < min(busier.load(), slower.load())


def test_each_noun_is_one_line_and_names_no_secret() -> None:
    here = org()
    here.in_flight = 3
    place = Place(here, "acme\0gpt-*", "acme\0model\0gpt-5")
    place.why = "full"
    lease = Lease(place, here.keys[0], buckets.cost(1, 20), 7)
    assert repr(here.keys[0]) == "<Key a>"
    assert repr(here) == "<Org acme keys=1 in_flight=3 500ms>"
    assert repr(place) == r"<Place 'acme\x00gpt-*' full>"
    assert repr(lease) == "<Lease acme/a (1, 20, 1, 20, 0)>"
    assert repr(Shortage("full", 12)) == "<Shortage full until 12>"


def test_a_lease_keeps_the_row_it_was_reserved_in() -> None:
    """What is learned meanwhile makes a row; nothing was taken there."""
    place = Place(org(), "group", "model")
    lease = Lease(place, place.org.keys[0], buckets.cost(1, 20), 7)
    place.group_row = 99
    assert (lease.group_row, lease.probes, lease.started) == (0, [], 7)


# -- shortages --------------------------------------------------------------------------------------------------------


def test_ranks_stand_in_the_order_of_hope() -> None:
    ranks = [Shortage(why, 0).rank for why in REASONS]
    assert ranks == sorted(set(ranks))


def test_an_unknown_reason_is_a_bug() -> None:
    with pytest.raises(KeyError):
        Shortage("moon", 0).rank  # noqa: B018


@given(SHORTAGES, SHORTAGES)
def test_the_more_hopeful_of_two(one: Shortage, other: Shortage) -> None:
    found = one.soonest(other)
    assert found in (one, other)
    if one.why == other.why != "avoided":
        assert found.until == min(one.until, other.until)
    if one.until == other.until:
        assert found.rank == max(one.rank, other.rank)


@given(SHORTAGES)
def test_who_was_avoided_has_no_say(other: Shortage) -> None:
    assert Shortage("avoided", 0).soonest(other) is other
    if other.why != "avoided":
        assert other.soonest(Shortage("avoided", 0)) is other


@given(st.lists(SHORTAGES, min_size=2, max_size=4))
def test_the_order_of_asking_does_not_matter(shortages: list[Shortage]) -> None:
    def told(order: tuple[Shortage, ...]) -> tuple[str, int]:
        found = reduce(Shortage.soonest, order)
        return found.why, 0 if found.why == "avoided" else found.until

    assert len({told(order) for order in itertools.permutations(shortages)}) == 1


def test_shortages_are_everybodys_unless_said() -> None:
    assert Shortage("full", 1).is_for_all
    assert not Shortage("too_large", 1, is_for_all=False).is_for_all
