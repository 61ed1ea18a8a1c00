"""yugong.core.keypool.pool: every call goes where there is room; its outcome counts against whom it speaks of."""

import itertools
import random
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from yugong.base.clock import SECOND
from yugong.base.errors import WIRE_FAULTS, Fault, Penalty, Reach, Scope, WireFault
from yugong.core.keypool import buckets, health
from yugong.core.keypool.buckets import NEVER, Cost, Dimension
from yugong.core.keypool.cells import GROUP_ROW, HEALTH_ROW, Home, ListHome
from yugong.core.keypool.health import Event, State
from yugong.core.keypool.pool import EWMA_WEIGHT, FIRST_GUESS, LEARN_EVERY, MODELS_KEPT, Pool, Tier
from yugong.core.keypool.spec import Ask, Lease, LimitSpec, OrgSpec, Shortage

NOW = 10**12
MINUTE = 60 * SECOND
PROBE_TICKS = int(health.PROBE_TIME * SECOND)
MODEL = "gpt-5"
ONE = buckets.cost(1, 100)


def org(name: str, **fields: Any) -> OrgSpec:
    return OrgSpec(**({"name": name, "origin": "openai", "dialect": "openai", "keys": ("k",)} | fields))


def limit(*patterns: str, rpm: int = 0, tpm: int = 0, concurrency: int = 0) -> LimitSpec:
    return LimitSpec(patterns or ("*",), (rpm, tpm, 0, 0, 0), concurrency)


def pool_of(*specs: OrgSpec, home: Home | None = None, lane: int = 0, seed: int = 1) -> Pool:
    return Pool(list(specs), home if home is not None else ListHome(), lane, random.Random(seed).random)


def ask(model: str | None = MODEL, amounts: Cost = ONE, **avoid: Any) -> Ask:
    asked = Ask("openai", model, amounts)
    asked.avoid_orgs, asked.avoid_keys = set(avoid.get("orgs", ())), set(avoid.get("keys", ()))
    return asked


def leased(pool: Pool, asked: Ask | None = None, now: int = NOW) -> Lease:
    found = pool.reserve(asked or ask(), now)
    assert isinstance(found, Lease), found
    return found


def refused(pool: Pool, asked: Ask | None = None, now: int = NOW) -> Shortage:
    found = pool.reserve(asked or ask(), now)
    assert isinstance(found, Shortage), found
    return found


def name_of(lease: Lease) -> str:
    return lease.place.org.spec.name


def end(pool: Pool, lease: Lease, fault: Fault | None = None, now: int = NOW, first_byte: float | None = None) -> None:
    """An attempt's end, as the exchange tells it."""
    pool.note(lease, fault, now)
    pool.release(lease, now, first_byte, was_sent=fault is None or fault.reach is not Reach.UNSENT)


def fault_of(scope: Scope, penalty: Penalty, **fields: Any) -> Fault:
    return Fault("any", scope, penalty=penalty, **fields)


STRIKE = fault_of(Scope.ORG, Penalty.COUNT, status=500)
REFUSED = fault_of(Scope.KEY, Penalty.QUARANTINE, status=401)
NO_MONEY = fault_of(Scope.ORG, Penalty.PARK, status=429)
NOT_OFFERED = fault_of(Scope.MODEL, Penalty.EXCLUDE, status=404)
UNREACHABLE = fault_of(Scope.ORIGIN, Penalty.COUNT, reach=Reach.UNSENT)


class Bench:
    """A pool and the cells behind it."""

    def __init__(self, *specs: OrgSpec, home: ListHome | None = None) -> None:
        self.home = home if home is not None else ListHome()
        self.pool = pool_of(*specs, home=self.home)

    def row(self, *words: str) -> int:
        """The health row of an org, of `org key name`, of `org model name`, of `origin name`."""
        row = self.home.health_row("\0".join(words), is_made=False)
        assert row, words
        return row

    def state(self, *words: str) -> State:
        return State(self.home.cells[self.row(*words) + health.STATE])

    def until(self, *words: str) -> int:
        return self.home.cells[self.row(*words) + health.UNTIL]

    def put(self, event: Event, *words: str, now: int = NOW, kind: health.Kind = health.KEY) -> int:
        """Moves a row by hand until it is out; the tick of its end."""
        row = self.home.health_row("\0".join(words))
        while health.is_usable(self.home.cells, row):
            health.step(self.home.cells, row, event, now, kind=kind)
        return self.home.cells[row + health.UNTIL]

    def rows_changed_by(self, act: Callable[[], object]) -> set[int]:
        """Where any cell is another afterwards: the rows' beginnings."""
        before = list(self.home.cells)
        act()
        starts = sorted({0, *self.home._rows.values()})
        after = list(self.home.cells)
        changed = [at for at in range(len(before)) if before[at] != after[at]]
        return {max(start for start in starts if start <= at) for at in changed}


# -- who is a candidate -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "model", "is_candidate"),
    [
        (org("a"), "anything", True),
        (org("a"), None, True),
        (org("a", models=("gpt-5", "gpt-4*")), "gpt-5", True),
        (org("a", models=("gpt-5", "gpt-4*")), "gpt-4o-mini", True),
        (org("a", models=("gpt-5", "gpt-4*")), "gpt-5-mini", False),
        (org("a", models=("gpt-5",)), "GPT-5", False),
        (org("a", models=("gpt-?",)), None, True),
        (org("a", models=()), "gpt-5", False),
        (org("a", weight=0.0), "gpt-5", False),
        (org("a", weight=-1.0), "gpt-5", False),
        (org("a", weight=1e9), "gpt-5", True),
        (org("a", keys=()), "gpt-5", False),
        (org("a", dialect="anthropic"), "gpt-5", False),
    ],
)
def test_who_is_a_candidate(spec: OrgSpec, model: str | None, is_candidate: bool) -> None:
    pool = pool_of(spec)
    found = pool.reserve(ask(model), NOW)
    if is_candidate:
        assert isinstance(found, Lease)
        assert name_of(found) == "a"
    else:
        assert isinstance(found, Shortage)
        assert (found.why, found.until) == ("no_org", NEVER)
    assert pool.has_other(ask(model)) == is_candidate
    assert not pool.has_other(ask(model, orgs={"a"}))


def test_no_orgs_at_all() -> None:
    assert refused(pool_of()).why == "no_org"


def test_random_model_names_do_not_grow_the_pool() -> None:
    """36: a hundred thousand invented names."""
    bench = Bench(*(org(f"o{n}", limits=(limit("gpt-*", rpm=10**6),)) for n in range(3)))
    leased(bench.pool)
    size = len(bench.home.cells)
    for number in range(3 * MODELS_KEPT):
        end(bench.pool, leased(bench.pool, ask(f"nonsense-{number}")))
        kept = int(repr(bench.pool).partition("models=")[2].rstrip(">"))
        assert kept <= MODELS_KEPT
    assert len(bench.home.cells) == size


# -- choosing ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 20), min_size=2, max_size=8), st.integers(0, 10**6))
def test_the_most_loaded_of_two_is_never_taken(loads: list[int], seed: int) -> None:
    """Power of two choices: whoever is drawn, somebody at least as loaded was drawn with it."""
    pool = pool_of(*(org(f"o{n}") for n in range(len(loads))), seed=seed)
    for one, load in zip(pool.orgs, loads, strict=True):
        one.in_flight = load
    chosen = leased(pool).place.org
    others = [one for one in pool.orgs if one is not chosen]
    assert chosen.in_flight - 1 <= max(one.in_flight for one in others)


@pytest.mark.parametrize("field", ["in_flight", "latency", "weight"])
def test_of_two_the_less_loaded_is_taken(field: str) -> None:
    for seed in range(20):
        pool = pool_of(org("worse"), org("better", weight=2.0 if field == "weight" else 1.0), seed=seed)
        if field != "weight":
            setattr(pool.orgs[0], field, 9)
        assert name_of(leased(pool)) == "better"


def test_choice_is_even_among_equals() -> None:
    pool = pool_of(*(org(f"o{n:02}") for n in range(20)))
    counts: Counter[str] = Counter()
    for _ in range(6000):
        lease = leased(pool)
        counts[name_of(lease)] += 1
        pool.release(lease, NOW, None, was_sent=True)
    assert len(counts) == 20
    assert max(counts.values()) < 1.25 * 300
    assert min(counts.values()) > 0.75 * 300


def test_load_stays_level_while_calls_last() -> None:
    pool = pool_of(*(org(f"o{n:02}") for n in range(50)))
    for _ in range(2000):
        leased(pool)
    loads = [one.in_flight for one in pool.orgs]
    assert sum(loads) == 2000
    assert max(loads) <= 40 + 5
    assert min(loads) >= 40 - 10


@pytest.mark.parametrize("weight", [3.0, 1e9])
def test_weight_is_a_share_of_the_calls(weight: float) -> None:
    pool = pool_of(org("light"), org("heavy", weight=weight))
    counts = Counter(name_of(leased(pool)) for _ in range(400))
    assert counts["light"] == pytest.approx(400 / (1 + weight), abs=2)


def test_cheaper_tiers_are_filled_first() -> None:
    specs = [org(f"t{tier}-{n}", priority=tier, limits=(limit(rpm=4),)) for tier in (2, 0, 1) for n in range(2)]
    pool = pool_of(*specs)
    names = [name_of(leased(pool)) for _ in range(24)]
    assert [name[:2] for name in names] == ["t0"] * 8 + ["t1"] * 8 + ["t2"] * 8
    assert refused(pool).why == "full"


@given(st.sets(st.integers(0, 5)), st.lists(st.integers(0, 2), min_size=6, max_size=6), st.integers(0, 99))
def test_avoided_orgs_are_avoided(avoided: set[int], tiers: list[int], seed: int) -> None:
    pool = pool_of(*(org(f"o{n}", priority=tier) for n, tier in enumerate(tiers)), seed=seed)
    names = {f"o{n}" for n in avoided}
    asked = ask(orgs=names)
    assert pool.has_other(asked) == (len(avoided) < 6)
    if len(avoided) == 6:
        assert refused(pool, asked).why == "avoided"
    else:
        best = min(tier for n, tier in enumerate(tiers) if n not in avoided)
        for _ in range(10):
            lease = leased(pool, asked)
            assert name_of(lease) not in names
            assert lease.place.org.spec.priority == best
    everywhere = {name_of(leased(pool, ask(orgs=rest))) for rest in all_but_one(6)}
    assert len(everywhere) == 6  # nobody was lost on the way


def all_but_one(count: int) -> list[set[str]]:
    return [{f"o{n}" for n in range(count) if n != left} for left in range(count)]


def test_keys_take_turns_and_avoided_ones_are_avoided() -> None:
    bench = Bench(org("a", keys=("k0", "k1", "k2")))
    assert [leased(bench.pool).key.name for _ in range(6)] == ["k0", "k1", "k2"] * 2
    rows = {name: bench.row("a", "key", name) for name in ("k0", "k1", "k2")}
    for one in rows:
        others = {row for name, row in rows.items() if name != one}
        assert {leased(bench.pool, ask(keys=others)).key.name for _ in range(3)} == {one}
    shortage = refused(bench.pool, ask(keys=set(rows.values())))
    assert shortage.why == "keys_out"
    assert not shortage.is_for_all
    leased(bench.pool)  # others are not held up by it


# -- room -------------------------------------------------------------------------------------------------------------


def test_a_full_place_sleeps_and_wakes() -> None:
    pool = pool_of(org("a", limits=(limit(rpm=2),)))
    for _ in range(2):
        end(pool, leased(pool))
    shortage = refused(pool)
    assert (shortage.why, shortage.until) == ("full", NOW + MINUTE // 2)
    assert not pool.has_other(ask())
    again = refused(pool, now=shortage.until - 1)
    assert (again.why, again.until) == ("full", shortage.until)
    assert name_of(leased(pool, now=shortage.until)) == "a"
    assert refused(pool, now=shortage.until).until == NOW + MINUTE


def test_who_is_full_costs_the_others_nothing() -> None:
    pool = pool_of(org("small", limits=(limit(rpm=1),)), org("large", limits=(limit(rpm=100),)))
    counts = Counter(name_of(leased(pool)) for _ in range(101))
    assert counts == {"small": 1, "large": 100}
    assert refused(pool).until == NOW + MINUTE // 100


def test_too_large_for_all_is_told_and_holds_nobody_up() -> None:
    pool = pool_of(org("a", limits=(limit(tpm=1000),)), org("b", limits=(limit(tpm=2000),)))
    large = ask(amounts=buckets.cost(1, 1500))
    assert name_of(leased(pool, large)) == "b"
    shortage = refused(pool, ask(amounts=buckets.cost(1, 2001)))
    assert (shortage.why, shortage.until, shortage.is_for_all) == ("too_large", NEVER, False)
    assert name_of(leased(pool, ask(amounts=buckets.cost(1, 1000)))) == "a"


def test_a_large_call_that_must_wait_leaves_room_for_small_ones() -> None:
    """One customer's large call must not put orgs with room to sleep for everybody."""
    pool = pool_of(org("a", limits=(limit(tpm=1000),)))
    leased(pool, ask(amounts=buckets.cost(1, 500)))
    assert refused(pool, ask(amounts=buckets.cost(1, 1000))).why == "full"
    leased(pool, ask(amounts=buckets.cost(1, 10)))


def test_models_of_a_limit_group_share_it_and_others_do_not() -> None:
    pool = pool_of(org("a", limits=(limit("gpt-5*", rpm=2), limit("o?", rpm=1))))
    leased(pool, ask("gpt-5"))
    leased(pool, ask("gpt-5-mini"))
    assert refused(pool, ask("gpt-5-nano")).why == "full"
    leased(pool, ask("o3"))
    assert refused(pool, ask("o4")).why == "full"
    for _ in range(10):
        leased(pool, ask("unlimited"))
        leased(pool, ask(None))


def test_a_limit_of_zero_is_none() -> None:
    pool = pool_of(org("a", limits=(limit(),)))
    for _ in range(100):
        leased(pool, ask(amounts=buckets.cost(1, 10**9)))


def test_the_limit_is_the_orgs_however_many_keys() -> None:
    pool = pool_of(org("a", keys=("k0", "k1", "k2"), limits=(limit(rpm=5),)))
    for _ in range(5):
        leased(pool)
    assert refused(pool).why == "full"


def test_concurrency_is_held_and_given_back() -> None:
    pool = pool_of(org("a", limits=(limit(concurrency=3),)))
    leases = [leased(pool) for _ in range(3)]
    shortage = refused(pool)
    assert shortage.why == "full"
    assert NOW < shortage.until <= NOW + SECOND
    end(pool, leases[0])
    leased(pool, now=shortage.until)
    assert refused(pool, now=shortage.until).why == "full"


def test_what_never_left_is_given_back_and_what_left_is_not() -> None:
    pool = pool_of(org("a", limits=(limit(rpm=2, tpm=1000),)))
    end(pool, leased(pool), UNREACHABLE)
    end(pool, leased(pool))
    end(pool, leased(pool), fault_of(Scope.ORIGIN, Penalty.NONE, reach=Reach.SENT))
    assert refused(pool).why == "full"


def test_nothing_is_given_back_where_nothing_was_taken() -> None:
    """The group's row came to be while the call was under way."""
    bench = Bench(org("a"))
    lease = leased(bench.pool)
    bench.pool.learn(lease, Dimension.REQUESTS_MINUTE, 10, 0, NOW)
    assert bench.rows_changed_by(lambda: bench.pool.release(lease, NOW, None, was_sent=False)) == set()


#: Ticks since the step before; what happens; how many calls at once.
RETURNS = st.lists(
    st.tuples(st.integers(0, 40 * SECOND), st.sampled_from(["sent", "unsent", "return"]), st.integers(1, 10)),
    max_size=20,
)


@given(RETURNS)
@example([(0, "unsent", 10), (40 * SECOND, "sent", 6), (0, "return", 10), (0, "sent", 10)])
def test_what_is_given_back_late_is_not_granted_twice(steps: list[tuple[int, str, int]]) -> None:
    """I5: what never left was never taken upstream; but what has refilled here since was no gain there, it was full."""
    pool, now = pool_of(org("a", limits=(limit(rpm=10),))), NOW
    upstream, asked_at = Fraction(10), NOW
    unsent: list[Lease] = []
    for elapsed, step, count in steps:
        now += elapsed
        for _ in range(count):
            if step == "return":
                if unsent:
                    pool.release(unsent.pop(0), now, None, was_sent=False)
                continue
            found = pool.reserve(ask(), now)
            if isinstance(found, Shortage):
                break
            if step == "unsent":
                unsent.append(found)
                continue
            upstream = min(upstream + Fraction(10 * (now - asked_at), MINUTE), Fraction(10)) - 1
            asked_at = now
            assert upstream >= 0, "upstream was asked for more than it grants"


def room(pool: Pool, now: int = NOW) -> int:
    """How many calls still fit."""
    return sum(isinstance(pool.reserve(ask(), now), Lease) for _ in range(1000))


@pytest.mark.parametrize(("said", "left", "fits"), [(10, None, 2), (100, 0, 0)], ids=["smaller limit", "less left"])
def test_what_is_given_back_is_no_more_than_was_taken(said: int, left: int | None, fits: int) -> None:
    """I5: the answer to one call taught a smaller limit, or that less is left; neither counts what never arrived."""
    pool = pool_of(org("a", limits=(limit(rpm=100),)))
    sent = [leased(pool) for _ in range(80 if left is None else 30)]
    unsent = [leased(pool) for _ in range(10)]
    pool.learn(sent[0], Dimension.REQUESTS_MINUTE, said, left, NOW)
    for lease in unsent:
        pool.release(lease, NOW, None, was_sent=False)
    assert room(pool) <= fits


def test_a_shortage_is_of_the_most_hopeful_org() -> None:
    bench = Bench(org("a", limits=(limit(rpm=1),)), org("b"), org("c", priority=1))
    leased(bench.pool, ask(orgs={"b", "c"}))
    until = bench.put(Event.PARK, "b")
    bench.put(Event.QUARANTINE, "c", "key", "k")
    shortage = refused(bench.pool)
    assert shortage.until == min(NOW + MINUTE, until) == NOW + MINUTE
    assert shortage.why in ("full", "keys_out")


def test_a_shortage_does_not_tell_of_an_avoided_org() -> None:
    """Waiting for an org that may not be asked is waiting for nothing."""
    bench = Bench(org("a", limits=(limit(rpm=1),)), org("b"))
    leased(bench.pool, ask(orgs={"b"}))
    until = bench.put(Event.PARK, "b")
    assert refused(bench.pool).until == NOW + MINUTE
    shortage = refused(bench.pool, ask(orgs={"a"}))
    assert (shortage.why, shortage.until) == ("org_out", until)


# -- the measure of speed ---------------------------------------------------------------------------------------------


@given(st.lists(st.none() | st.floats(0, 100), max_size=20))
def test_a_slower_answer_counts_at_once_a_faster_one_little(answers: list[float | None]) -> None:
    pool = pool_of(org("a"))
    expected = FIRST_GUESS
    for first_byte in answers:
        pool.release(leased(pool), NOW, first_byte, was_sent=True)
        if first_byte is not None:
            expected = max(first_byte, expected + (first_byte - expected) * EWMA_WEIGHT)
        assert pool.orgs[0].latency == pytest.approx(expected)


# -- what an outcome touches ------------------------------------------------------------------------------------------


def acme(home: ListHome | None = None) -> Bench:
    """One org whose every row exists, and a second one whose rows nothing of it may touch."""
    bench = Bench(org("acme", limits=(limit(rpm=100),)), org("other", origin="else", limits=(limit(rpm=9),)), home=home)
    for name in ("acme", "other"):
        bench.home.health_row(f"{name}\0model\0{MODEL}")
    return bench


#: Scope → the rows it speaks of. A failing answer is first of all the org's: others may fare better.
ROWS: dict[Scope, list[tuple[str, ...]]] = {
    Scope.CALLER: [],
    Scope.KEY: [("acme", "key", "k")],
    Scope.ORG: [("acme",)],
    Scope.EGRESS: [("acme",)],
    Scope.MODEL: [("acme", "model", MODEL)],
    Scope.ORIGIN: [("acme",), ("origin", "openai")],
}
LEADS_TO = {
    Penalty.COUNT: State.SUSPECT,
    Penalty.PARK: State.PARKED,
    Penalty.QUARANTINE: State.QUARANTINED,
    Penalty.EXCLUDE: State.EXCLUDED,
}


@pytest.mark.parametrize("reach", Reach)
@pytest.mark.parametrize("penalty", Penalty)
@pytest.mark.parametrize("scope", Scope)
def test_a_fault_touches_just_whom_it_speaks_of(scope: Scope, penalty: Penalty, reach: Reach) -> None:
    """I4: scope × penalty, all cells compared."""
    bench = acme()
    lease = leased(bench.pool, ask(orgs={"other"}))
    fault = fault_of(scope, penalty, reach=reach)
    changed = bench.rows_changed_by(lambda: bench.pool.note(lease, fault, NOW + 1))
    if penalty is Penalty.NONE or scope is Scope.CALLER:
        assert changed == set()
    elif penalty is Penalty.COOL:
        assert changed == {lease.place.group_row}
    else:
        rows = [("origin", "openai")] if scope is Scope.ORIGIN and reach is Reach.UNSENT else ROWS[scope]
        assert changed == {bench.row(*words) for words in rows}
        assert {bench.state(*words) for words in rows} == {LEADS_TO[penalty]}


@given(st.lists(st.sampled_from(Event), max_size=8), st.sampled_from(Reach), st.integers(0, 10))
def test_a_callers_fault_touches_nothing(history: list[Event], reach: Reach, later: int) -> None:
    """I4, whatever the rows have been through (those that still serve)."""
    bench = acme()
    for row in (bench.row("acme"), bench.row("acme", "key", "k"), bench.row("origin", "openai")):
        for event in history:
            if (State(bench.home.cells[row + health.STATE]), event) in health.TRANSITIONS:
                health.step(bench.home.cells, row, event, NOW - 10)
        if not health.is_usable(bench.home.cells, row):
            health.step(bench.home.cells, row, Event.SUCCESS, NOW - 10)
    lease = leased(bench.pool, ask(orgs={"other"}))
    fault = fault_of(Scope.CALLER, Penalty.NONE, status=400, reach=reach)
    assert bench.rows_changed_by(lambda: bench.pool.note(lease, fault, NOW + later)) == set()


@pytest.mark.parametrize("kind", sorted(WIRE_FAULTS))
def test_faults_of_the_wire_never_speak_of_a_key(kind: str) -> None:
    bench = acme()
    lease = leased(bench.pool, ask(orgs={"other"}))
    fault = WireFault(kind, Reach.SENT).to_fault()
    changed = bench.rows_changed_by(lambda: bench.pool.note(lease, fault, NOW))
    allowed = {bench.row("acme"), bench.row("origin", "openai")}
    assert changed <= (set() if kind == "client_gone" else allowed)


def test_a_success_touches_nothing_of_the_healthy_and_clears_the_suspect() -> None:
    bench = acme()
    lease = leased(bench.pool, ask(orgs={"other"}))
    assert bench.rows_changed_by(lambda: bench.pool.note(lease, None, NOW)) == set()
    bench.pool.note(lease, fault_of(Scope.ORIGIN, Penalty.COUNT), NOW)
    assert bench.state("acme") is bench.state("origin", "openai") is State.SUSPECT
    bench.pool.note(lease, None, NOW)
    assert bench.state("acme") is bench.state("origin", "openai") is State.HEALTHY


def test_the_reason_is_kept_for_who_reads_it() -> None:
    bench = acme()
    bench.pool.note(leased(bench.pool, ask(orgs={"other"})), REFUSED, NOW, 7)
    assert bench.home.cells[bench.row("acme", "key", "k") + health.REASON] == 7


@pytest.mark.parametrize(("wait", "expected"), [(None, SECOND), (2.5, 5 * SECOND // 2), (0.0, 0), (-3.0, 0)])
def test_a_rate_limit_cools_the_group_and_nothing_is_wrong(wait: float | None, expected: int) -> None:
    bench = Bench(org("a", keys=("k0", "k1"), limits=(limit("gpt-*", rpm=100),)))
    fault = fault_of(Scope.MODEL, Penalty.COOL, status=429, wait=wait)
    end(bench.pool, leased(bench.pool), fault)
    assert bench.state("a") is bench.state("a", "key", "k0") is State.HEALTHY
    if expected:
        assert refused(bench.pool, ask("gpt-4")).until == NOW + expected
        assert refused(bench.pool, ask("gpt-4"), NOW + expected - 1).why == "full"
    leased(bench.pool, ask("gpt-4"), NOW + expected)
    leased(bench.pool, ask("other"))


def test_a_rate_limit_cools_also_where_no_limit_is_known() -> None:
    pool = pool_of(org("a"))
    end(pool, leased(pool), fault_of(Scope.MODEL, Penalty.COOL, status=429, wait=2.0))
    assert (refused(pool).why, refused(pool).until) == ("full", NOW + 2 * SECOND)
    leased(pool, ask("other"))
    leased(pool, now=NOW + 2 * SECOND)


# -- who is out -------------------------------------------------------------------------------------------------------


def test_a_refused_key_leaves_the_others_in_use() -> None:
    bench = Bench(org("a", keys=("k0", "k1", "k2")))
    end(bench.pool, leased(bench.pool), REFUSED)
    assert bench.state("a", "key", "k0") is State.QUARANTINED
    assert {leased(bench.pool).key.name for _ in range(8)} == {"k1", "k2"}


def test_an_org_without_a_usable_key_sleeps_until_the_first_may_be_probed() -> None:
    bench = Bench(org("a", keys=("k0", "k1")))
    soon = bench.put(Event.QUARANTINE, "a", "key", "k0")
    bench.put(Event.PARK, "a", "key", "k1")
    shortage = refused(bench.pool)
    assert (shortage.why, shortage.until, shortage.is_for_all) == ("keys_out", soon, True)
    lease = leased(bench.pool, now=soon)
    assert (lease.key.name, bench.state("a", "key", "k0")) == ("k0", State.PROBING)


def test_a_parked_org_is_passed_over() -> None:
    bench = Bench(org("poor"), org("rich"))
    end(bench.pool, leased(bench.pool, ask(orgs={"rich"})), NO_MONEY)
    assert bench.state("poor") is State.PARKED
    assert {name_of(leased(bench.pool)) for _ in range(20)} == {"rich"}
    shortage = refused(bench.pool, ask(orgs={"rich"}))
    assert (shortage.why, shortage.until) == ("org_out", bench.until("poor"))


def test_a_model_that_is_not_offered_is_out_alone() -> None:
    bench = Bench(org("a"))
    end(bench.pool, leased(bench.pool), NOT_OFFERED)
    shortage = refused(bench.pool)
    assert (shortage.why, shortage.until) == ("model_out", bench.until("a", "model", MODEL))
    leased(bench.pool, ask("gpt-4"))


def test_an_origin_out_takes_its_orgs_with_it_and_has_an_end() -> None:
    bench = Bench(org("a"), org("b"), org("c", origin="else"))
    leases = [leased(bench.pool, ask(orgs={"c"})) for _ in range(health.ORIGIN.strikes)]
    for lease in leases:
        end(bench.pool, lease, UNREACHABLE, NOW + 1)
    assert bench.state("origin", "openai") is State.EJECTED
    assert {name_of(leased(bench.pool, now=NOW + 1)) for _ in range(20)} == {"c"}
    shortage = refused(bench.pool, ask(orgs={"c"}), NOW + 1)
    assert (shortage.why, shortage.until) == ("origin_out", bench.until("origin", "openai"))
    assert NOW < shortage.until <= NOW + int(1.2 * health.ORIGIN.cap * SECOND) + 1


def test_five_failures_in_a_row_put_an_org_out_and_leave_the_origin_in() -> None:
    bench = Bench(org("bad"), org("good"))
    for _ in range(health.ORG.strikes):
        end(bench.pool, leased(bench.pool, ask(orgs={"good"})), fault_of(Scope.ORIGIN, Penalty.COUNT, status=500))
        end(bench.pool, leased(bench.pool, ask(orgs={"bad"})))
    assert bench.state("bad") is State.EJECTED
    assert bench.state("origin", "openai") is State.HEALTHY
    assert {name_of(leased(bench.pool)) for _ in range(20)} == {"good"}


# -- when everybody is out --------------------------------------------------------------------------------------------


def test_when_all_are_out_for_strikes_one_serves_all_the_same() -> None:
    bench = Bench(*(org(f"o{n}") for n in range(3)))
    for number in range(3):
        bench.put(Event.STRIKE, f"o{number}", kind=health.ORG)
    lease = leased(bench.pool, now=NOW + 1)
    assert lease.probes == []
    assert bench.state(name_of(lease)) is State.EJECTED
    others = leased(bench.pool, ask(orgs={name_of(lease)}), NOW + 1)
    assert name_of(others) != name_of(lease)
    refused(bench.pool, ask(orgs={"o0", "o1", "o2"}), NOW + 1)
    end(bench.pool, lease, None, NOW + 2)
    assert bench.state(name_of(lease)) is State.HEALTHY


def test_who_is_in_goes_before_who_is_out() -> None:
    bench = Bench(org("out"), org("in"), org("overflow", priority=1))
    bench.put(Event.STRIKE, "out", kind=health.ORG)
    assert {name_of(leased(bench.pool, now=NOW + 1)) for _ in range(20)} == {"in"}
    assert name_of(leased(bench.pool, ask(orgs={"in"}), NOW + 1)) == "overflow"


@pytest.mark.parametrize(
    ("event", "words", "why"),
    [
        (Event.PARK, ("a",), "org_out"),
        (Event.EXCLUDE, ("a", "model", MODEL), "model_out"),
        (Event.QUARANTINE, ("a", "key", "k"), "keys_out"),
        (Event.STRIKE, ("origin", "openai"), "origin_out"),
    ],
)
def test_who_is_out_for_good_reason_stays_out(event: Event, words: tuple[str, ...], why: str) -> None:
    """No money, not offered, a refused credential, nobody at home: asking all the same helps nobody."""
    home = ListHome()
    home.health_row(f"a\0model\0{MODEL}")
    bench = Bench(org("a"), home=home)
    bench.put(event, *words)
    for later in range(3):
        assert refused(bench.pool, now=NOW + later).why == why
    bench.put(Event.STRIKE, "a", kind=health.ORG)
    refused(bench.pool, now=NOW + 3)


def test_a_full_org_is_not_overfilled_for_want_of_another() -> None:
    """I5 before all else."""
    bench = Bench(org("a", limits=(limit(rpm=2),)))
    bench.put(Event.STRIKE, "a", kind=health.ORG)
    for _ in range(2):
        leased(bench.pool, now=NOW + 1)
    refused(bench.pool, now=NOW + 1)


# -- probes -----------------------------------------------------------------------------------------------------------

SUBJECTS = [
    (Event.QUARANTINE, ("a", "key", "k")),
    (Event.PARK, ("a",)),
    (Event.EXCLUDE, ("a", "model", MODEL)),
    (Event.STRIKE, ("origin", "openai")),
]


@pytest.fixture(params=SUBJECTS, ids=["key", "org", "model", "origin"])
def due(request: pytest.FixtureRequest) -> tuple[Bench, tuple[str, ...], int]:
    """A pool of one org with something out, its row, and the tick from which that may be probed."""
    event, words = request.param
    home = ListHome()
    home.health_row(f"a\0model\0{MODEL}")
    bench = Bench(org("a"), home=home)
    return bench, words, bench.put(event, *words)


def test_exactly_one_call_probes(due: tuple[Bench, tuple[str, ...], int]) -> None:
    bench, words, until = due
    assert refused(bench.pool, now=NOW + 1).until == until
    refused(bench.pool, now=until - 1)
    lease = leased(bench.pool, now=until)
    assert (lease.probes, bench.state(*words)) == ([bench.row(*words)], State.PROBING)
    for later in (0, SECOND, PROBE_TICKS - 1):
        refused(bench.pool, now=until + later)
    assert leased(bench.pool, now=until + PROBE_TICKS + SECOND).probes == [bench.row(*words)]


def test_a_probe_that_succeeds_brings_it_back(due: tuple[Bench, tuple[str, ...], int]) -> None:
    bench, words, until = due
    end(bench.pool, leased(bench.pool, now=until), None, until + 1)
    assert bench.state(*words) is State.HEALTHY
    for _ in range(5):
        assert leased(bench.pool, now=until + 1).probes == []


def test_a_probe_that_tells_nothing_lets_the_next_one_go(due: tuple[Bench, tuple[str, ...], int]) -> None:
    bench, words, until = due
    lease = leased(bench.pool, now=until)
    end(bench.pool, lease, WireFault("client_gone", Reach.SENT).to_fault(), until + 1)
    assert lease.probes == []
    assert leased(bench.pool, now=until + 1).probes == [bench.row(*words)]


def test_a_probe_answered_with_a_callers_mistake_has_shown_that_it_works(
    due: tuple[Bench, tuple[str, ...], int],
) -> None:
    bench, words, until = due
    mistake = fault_of(Scope.CALLER, Penalty.NONE, status=400)
    end(bench.pool, leased(bench.pool, now=until), mistake, until + 1)
    assert bench.state(*words) is State.HEALTHY


def test_a_probe_refused_again_is_out_for_longer(due: tuple[Bench, tuple[str, ...], int]) -> None:
    bench, words, until = due
    scope = {"key": Scope.KEY, "model": Scope.MODEL}.get(words[1] if len(words) == 3 else "", Scope.ORG)
    if words[0] == "origin":
        scope = Scope.ORIGIN
    before = bench.home.cells[bench.row(*words) + health.EJECTIONS]
    end(bench.pool, leased(bench.pool, now=until), fault_of(scope, Penalty.COUNT), until + 1)
    assert bench.state(*words) is State.EJECTED
    assert bench.until(*words) > until + 1
    assert bench.home.cells[bench.row(*words) + health.EJECTIONS] == before + 1


@pytest.mark.parametrize("others", [1, 9])
def test_what_a_probe_brings_back_serves_at_once(others: int) -> None:
    """Who was turned away meanwhile waits for the probe, not for the longest it might have taken."""
    bench = Bench(org("a"), *(org(f"o{n}") for n in range(others)))
    until = bench.put(Event.STRIKE, "origin", "openai", kind=health.ORIGIN)
    lease = leased(bench.pool, ask(orgs={f"o{n}" for n in range(others)}), until)
    for _ in range(3):
        assert refused(bench.pool, now=until).why == "origin_out"
    end(bench.pool, lease, None, until + SECOND // 10)
    assert name_of(leased(bench.pool, ask(orgs={"a"}), until + SECOND)).startswith("o")


def test_a_probe_that_was_overtaken_changes_nothing() -> None:
    """It took longer than a probe may; the next one brought the key back."""
    bench = Bench(org("a"))
    until = bench.put(Event.QUARANTINE, "a", "key", "k")
    slow, quick = leased(bench.pool, now=until), leased(bench.pool, now=until + PROBE_TICKS)
    end(bench.pool, quick, None, until + PROBE_TICKS)
    mistake = fault_of(Scope.CALLER, Penalty.NONE, status=400)
    late = until + PROBE_TICKS + 1
    assert bench.rows_changed_by(lambda: bench.pool.note(slow, mistake, late)) == set()
    assert bench.state("a", "key", "k") is State.HEALTHY


def test_several_things_are_probed_by_one_call() -> None:
    bench = Bench(org("a"))
    ends = [bench.put(Event.QUARANTINE, "a", "key", "k"), bench.put(Event.PARK, "a")]
    ends.append(bench.put(Event.STRIKE, "origin", "openai", kind=health.ORIGIN))
    lease = leased(bench.pool, now=max(ends))
    assert len(lease.probes) == 3
    end(bench.pool, lease, None, max(ends))
    assert bench.state("a") is bench.state("a", "key", "k") is bench.state("origin", "openai") is State.HEALTHY


class Rival(ListHome):
    """A home where another worker is always a moment quicker: it claims the probe just before we lock the row."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0

    def lock(self, row: int) -> None:
        is_health = row in (at for (_, size), at in self._rows.items() if size == HEALTH_ROW)
        if self.now and is_health and health.is_due(self.cells, row, self.now):
            health.step(self.cells, row, Event.PROBE, self.now)


def test_who_comes_second_to_a_probe_does_not_go_along() -> None:
    """One call at a time, over all workers: the claim decides, not the look before it."""
    home = Rival()
    bench = Bench(org("a", limits=(limit(rpm=2, concurrency=2),)), org("b", origin="else"), home=home)
    home.now = bench.put(Event.STRIKE, "origin", "openai", kind=health.ORIGIN)
    shortage = refused(bench.pool, ask(orgs={"b"}), home.now)
    assert shortage.why == "origin_out"
    assert bench.pool.orgs[0].in_flight == 0
    assert name_of(leased(bench.pool, now=home.now)) == "b"


@pytest.mark.parametrize(("event", "words"), SUBJECTS)
def test_late_successes_prove_nothing(event: Event, words: tuple[str, ...]) -> None:
    """An answer to a call sent before it went out says nothing of it now, also while a probe is under way."""
    home = ListHome()
    home.health_row(f"a\0model\0{MODEL}")
    bench = Bench(org("a"), home=home)
    early = [leased(bench.pool) for _ in range(3)]
    until = bench.put(event, *words)  # in the same tick: what is out gets no call, so these went before
    state, was = bench.state(*words), bench.until(*words)
    end(bench.pool, early[0], None, NOW + 2)
    assert (bench.state(*words), bench.until(*words)) == (state, was)
    probe = leased(bench.pool, now=until)
    end(bench.pool, early[1], None, until + 1)
    assert bench.state(*words) is State.PROBING
    end(bench.pool, early[2], fault_of(Scope.CALLER, Penalty.NONE, status=400), until + 1)
    assert bench.state(*words) is State.PROBING
    end(bench.pool, probe, None, until + 2)
    assert bench.state(*words) is State.HEALTHY


@pytest.mark.parametrize("fault", [REFUSED, NO_MONEY, NOT_OFFERED], ids=["refused", "no_money", "not_offered"])
def test_one_refusal_told_by_many_calls_is_one(fault: Fault) -> None:
    """Calls under way when a key is revoked are all refused: that is no reason to leave it out for an hour."""
    bench = Bench(org("a"))
    leases = [leased(bench.pool) for _ in range(20)]
    for later, lease in enumerate(leases):
        end(bench.pool, lease, fault, NOW + 1 + later)
    words = {Scope.KEY: ("a", "key", "k"), Scope.ORG: ("a",), Scope.MODEL: ("a", "model", MODEL)}[fault.scope]
    kind = {Scope.KEY: health.QUARANTINE, Scope.ORG: health.PARK, Scope.MODEL: health.EXCLUDE}[fault.scope]
    assert bench.home.cells[bench.row(*words) + health.EJECTIONS] == 1
    assert bench.until(*words) <= NOW + 21 + int(1.2 * kind.base * SECOND)


def test_a_late_failure_does_not_speak_for_the_probe() -> None:
    """What comes of the probe decides, not the end of a call sent long before it."""
    bench = Bench(org("a"))
    early = leased(bench.pool)
    until = bench.put(Event.STRIKE, "a", now=NOW + 1)
    leased(bench.pool, now=until)
    end(bench.pool, early, STRIKE, until + 1)
    assert bench.state("a") is State.PROBING
    assert bench.home.cells[bench.row("a") + health.EJECTIONS] == 1


# -- learning ---------------------------------------------------------------------------------------------------------

REQUESTS = Dimension.REQUESTS_MINUTE


def test_a_limit_is_learned_and_binds() -> None:
    pool = pool_of(org("a"))
    pool.learn(leased(pool), REQUESTS, 3, 2, NOW)
    for _ in range(2):
        leased(pool)
    assert refused(pool).why == "full"


@pytest.mark.parametrize(("said", "granted"), [(5, 5), (10, 10), (1000, 10), (0, 10), (-4, 10), (None, 10)])
def test_what_is_configured_is_a_ceiling(said: int | None, granted: int) -> None:
    bench = Bench(org("a", limits=(limit(rpm=10),)))
    lease = leased(bench.pool)
    bench.pool.learn(lease, REQUESTS, said, None, NOW)
    assert buckets.limit_of(bench.home.cells, lease.place.group_row, REQUESTS) == granted


def test_a_learned_limit_follows_upstream_up_and_down() -> None:
    bench = Bench(org("a"))
    lease = leased(bench.pool)
    for said in (100, 500, 50):
        bench.pool.learn(lease, REQUESTS, said, None, NOW)
        assert buckets.limit_of(bench.home.cells, lease.place.group_row, REQUESTS) == said


@given(st.none() | st.integers(-10, 20), st.none() | st.integers(-10, 20), st.integers(1, 10))
def test_what_is_left_is_only_ever_lowered(said: int | None, left: int | None, taken: int) -> None:
    bench = Bench(org("a", limits=(limit(rpm=10),)))
    leases = [leased(bench.pool) for _ in range(taken)]
    row, cells = leases[0].place.group_row, bench.home.cells
    bench.pool.learn(leases[0], REQUESTS, said, None, NOW)
    before = buckets.remaining(cells, row, REQUESTS, NOW)
    bench.pool.learn(leases[0], REQUESTS, None, left, NOW)
    expected = before if left is None or left < 0 else min(before, left)
    assert buckets.remaining(cells, row, REQUESTS, NOW) == expected


def test_what_is_left_without_a_limit_says_nothing() -> None:
    pool = pool_of(org("a"))
    pool.learn(leased(pool), REQUESTS, None, 0, NOW)
    leased(pool)


def test_headers_are_looked_at_now_and_then() -> None:
    pool = pool_of(org("a"))
    lease = leased(pool)
    assert pool.is_worth_learning(lease, NOW)
    assert not pool.is_worth_learning(lease, NOW + LEARN_EVERY - 1)
    assert pool.is_worth_learning(lease, NOW + LEARN_EVERY)
    assert pool.is_worth_learning(leased(pool, ask("another")), NOW)


# -- one truth --------------------------------------------------------------------------------------------------------


def test_a_reload_forgets_nothing_learned() -> None:
    """Settings and live state are different objects: the home outlives the pool."""
    home = ListHome()
    first = Bench(org("a", limits=(limit(rpm=10),)), org("b"), home=home)
    lease = leased(first.pool, ask(orgs={"b"}))
    first.pool.learn(lease, REQUESTS, 3, 1, NOW)
    end(first.pool, leased(first.pool, ask(orgs={"a"})), NO_MONEY)
    second = Bench(org("a", limits=(limit(rpm=20),)), org("b"), home=home)
    assert refused(second.pool, ask(orgs={"a"})).why == "org_out"
    assert name_of(leased(second.pool)) == "a"
    assert refused(second.pool, ask(orgs={"b"})).until == NOW + MINUTE // 3


def test_a_lower_ceiling_counts_from_the_reload_on() -> None:
    home = ListHome()
    pool_of(org("a", limits=(limit(rpm=10),)), home=home).reserve(ask(), NOW)
    pool = pool_of(org("a", limits=(limit(rpm=2),)), home=home)
    leased(pool)
    assert refused(pool).why == "full"


def test_workers_share_limits_and_states() -> None:
    home = ListHome()
    workers = [pool_of(org("a", limits=(limit(rpm=6),)), home=home, lane=lane) for lane in range(3)]
    granted = sum(isinstance(worker.reserve(ask(), NOW), Lease) for _ in range(5) for worker in workers)
    assert granted == 6


def test_workers_share_concurrency() -> None:
    home = ListHome()
    workers = [pool_of(org("a", limits=(limit(concurrency=2),)), home=home, lane=lane) for lane in range(2)]
    leases = [leased(worker) for worker in workers]
    assert refused(workers[0]).why == "full"
    end(workers[1], leases[1])
    leased(workers[0], now=NOW + SECOND)


@pytest.mark.parametrize("fault", [fault_of(Scope.MODEL, Penalty.COOL, status=429, wait=60.0), NOT_OFFERED])
def test_what_one_worker_learns_all_know(fault: Fault) -> None:
    """One truth for all (I5): also where the row did not exist yet when the other worker first looked."""
    home = ListHome()
    first, second = (pool_of(org("a"), home=home, lane=lane) for lane in range(2))
    end(second, leased(second))
    end(first, leased(first), fault)
    refused(first)
    refused(second, now=NOW + SECOND)


class FullHome(ListHome):
    """A home with room for so many rows and no more."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def _row(self, name: str, size: int, is_made: bool) -> int:
        return super()._row(name, size, is_made and len(self._rows) < self.rows)


def test_a_home_without_room_stops_nobody() -> None:
    """Keys, then org, then origin get rows while there are any; who has none is taken as healthy and unlimited."""
    for rows in range(8):
        home = FullHome(rows)
        bench = Bench(org("a", limits=(limit(rpm=5),)), home=home)
        if rows == 0:
            assert refused(bench.pool).why == "no_org"  # a key without a row cannot be told from a bad one
            continue
        for fault in [fault_of(scope, penalty) for scope in Scope for penalty in Penalty]:
            found = bench.pool.reserve(ask(), NOW)
            if isinstance(found, Lease):
                bench.pool.learn(found, REQUESTS, 5, 5, NOW)
                end(bench.pool, found, fault)
        assert not any(home.cells[:HEALTH_ROW])


# -- any history ------------------------------------------------------------------------------------------------------

#: The faults a dialect or the wire can tell, and no fault.
OUTCOMES = [
    None,
    STRIKE,
    REFUSED,
    NO_MONEY,
    NOT_OFFERED,
    UNREACHABLE,
    fault_of(Scope.ORIGIN, Penalty.COUNT, status=500),
    fault_of(Scope.MODEL, Penalty.COOL, status=429, wait=1.5),
    fault_of(Scope.CALLER, Penalty.NONE, status=400),
    fault_of(Scope.EGRESS, Penalty.COUNT, status=403),
    WireFault("client_gone", Reach.SENT).to_fault(),
]
STEP = st.tuples(
    st.sampled_from(["reserve", "reserve", "end"]),
    st.integers(0, 10 * SECOND) | st.just(0),
    st.integers(0, 10**6),
    st.sampled_from(OUTCOMES),
)


class History:
    """Two workers over one home, an upstream that counts, and what must hold after every step."""

    RPM, CONCURRENCY = 6, 4

    def __init__(self) -> None:
        self.home = ListHome()
        shared = (limit(MODEL, rpm=self.RPM, concurrency=self.CONCURRENCY),)
        specs = [org("a", keys=("k0", "k1"), limits=shared), org("b", limits=shared), org("c", origin="else")]
        self.workers = [pool_of(*specs, home=self.home, lane=lane, seed=lane) for lane in range(2)]
        self.out: list[tuple[Pool, Lease]] = []
        self.levels = {name: (Fraction(self.RPM), NOW) for name in ("a", "b")}
        self.now = NOW

    def reserve(self, pick: int) -> None:
        pool = self.workers[pick % 2]
        found = pool.reserve(ask(orgs={"abc"[pick % 3]} if pick % 5 == 0 else ()), self.now)
        if isinstance(found, Shortage):
            assert found.until > self.now or found.why == "avoided"
            return
        self.out.append((pool, found))
        if (name := name_of(found)) in self.levels:
            level, at = self.levels[name]
            level = min(level + Fraction(self.RPM * (self.now - at), MINUTE), Fraction(self.RPM)) - 1
            assert level >= 0, "upstream was asked for more than it grants"
            self.levels[name] = level, self.now

    def end(self, pick: int, fault: Fault | None) -> None:
        if self.out:
            pool, lease = self.out.pop(pick % len(self.out))
            pool.note(lease, fault, self.now)
            pool.release(lease, self.now, 0.1, was_sent=True)
            assert lease.probes == []

    def check(self) -> None:
        cells = self.home.cells
        probes = [row for _, lease in self.out for row in lease.probes]
        assert len(probes) == len(set(probes)) or self.has_overdue_probe()
        for worker in self.workers:
            for one in worker.orgs:
                mine = [lease for pool, lease in self.out if pool is worker and lease.place.org is one]
                assert one.in_flight == len(mine)
        for (_, size), row in self.home._rows.items():
            if size == GROUP_ROW and cells[row + buckets.CONCURRENCY]:
                under_way = [lease for _, lease in self.out if lease.group_row == row]
                assert buckets.in_flight(cells, row) == len(under_way) <= self.CONCURRENCY

    def has_overdue_probe(self) -> bool:
        return any(lease.probes and lease.started + PROBE_TICKS <= self.now for _, lease in self.out)


@settings(max_examples=60)
@given(st.lists(STEP, max_size=60))
def test_any_history_ends_with_nothing_held(steps: list[tuple[str, int, int, Fault | None]]) -> None:
    history = History()
    for step, elapsed, pick, fault in steps:
        history.now += elapsed
        if step == "reserve":
            history.reserve(pick)
        else:
            history.end(pick, fault)
        history.check()
    while history.out:
        history.end(0, None)
    history.check()
    assert all(one.in_flight == 0 for worker in history.workers for one in worker.orgs)
    # After the longest time anybody is out, every org serves again.
    for worker, (left, name) in itertools.product(history.workers, enumerate("abc")):
        asked = ask(orgs=set("abc") - {name})
        lease = leased(worker, asked, history.now + (left + 1) * 2 * 3600 * SECOND)
        end(worker, lease, None, history.now + (left + 1) * 2 * 3600 * SECOND)


# -- what they say ----------------------------------------------------------------------------------------------------


def test_each_is_one_line() -> None:
    pool = pool_of(org("a", keys=("k0", "k1")), org("b", limits=(limit(rpm=1),)))
    leased(pool, ask(orgs={"a"}))
    refused(pool, ask(orgs={"a"}))
    assert repr(pool) == "<Pool orgs=2 keys=3 models=1>"
    assert repr(ask(orgs={"b", "a"})) == f"<Ask openai gpt-5 {ONE} avoid=['a', 'b']>"
    tier = Tier([])
    assert repr(tier) == "<Tier awake=0 sleeping=0>"
