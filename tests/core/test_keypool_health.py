"""yugong.core.keypool.health: the table of states and events, and ends that grow, have a cap and are jittered."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yugong.base.clock import SECOND
from yugong.core.keypool import health
from yugong.core.keypool.cells import HEALTH_ROW, ListHome
from yugong.core.keypool.health import EJECTIONS, REASON, SINCE, STRIKES, UNTIL, Event, Kind, State

NOW = 10**12
PROBE_TICKS = int(health.PROBE_TIME * SECOND)

#: What follows, by state, in the order of `Event`; the first strike of five. A dot: not in the table.
#:             SUCCESS STRIKE     PARK   QUARANTINE  EXCLUDE  PROBE   UNKNOWN
EXPECTED = """
HEALTHY        HEALTHY SUSPECT     PARKED QUARANTINED EXCLUDED .       HEALTHY
SUSPECT        HEALTHY SUSPECT     PARKED QUARANTINED EXCLUDED .       SUSPECT
EJECTED        HEALTHY EJECTED     PARKED QUARANTINED EXCLUDED PROBING EJECTED
PROBING        HEALTHY EJECTED     PARKED QUARANTINED EXCLUDED PROBING EJECTED
PARKED         HEALTHY PARKED      PARKED QUARANTINED EXCLUDED PROBING PARKED
QUARANTINED    HEALTHY QUARANTINED PARKED QUARANTINED EXCLUDED PROBING QUARANTINED
EXCLUDED       HEALTHY EXCLUDED    PARKED QUARANTINED EXCLUDED PROBING EXCLUDED
"""
TABLE = {
    (State[line.split()[0]], event): word
    for line in EXPECTED.split("\n")[1:-1]
    for event, word in zip(Event, line.split()[1:], strict=True)
}
OUT = (State.EJECTED, State.PARKED, State.QUARANTINED, State.EXCLUDED)
KINDS = {"key": health.KEY, "org": health.ORG, "model": health.MODEL, "origin": health.ORIGIN}
#: Events that put out by themselves, and how long.
TIMES = {Event.PARK: health.PARK, Event.QUARANTINE: health.QUARANTINE, Event.EXCLUDE: health.EXCLUDE}
ANY_KIND = st.sampled_from(list(KINDS.values()))
SPREADS = st.floats(0, 1, exclude_max=True)


class Subject:
    """One health row between two neighbours."""

    def __init__(self, state: State = State.HEALTHY, until: int = 0) -> None:
        home = ListHome()
        home.health_row("before")
        self.row = home.health_row("this")
        home.health_row("after")
        self.cells = home.cells
        self.cells[self.row + health.STATE] = state
        self.cells[self.row + UNTIL] = until

    def __getitem__(self, field: int) -> int:
        return self.cells[self.row + field]

    @property
    def state(self) -> State:
        return State(self[health.STATE])

    def step(
        self, event: Event, now: int = NOW, kind: Kind = health.KEY, *, reason: int = 0, spread: float = 0.5
    ) -> State:
        return health.step(self.cells, self.row, event, now, kind=kind, reason=reason, spread=spread)

    def eject(self, kind: Kind, now: int = NOW, spread: float = 0.5) -> None:
        for _ in range(kind.strikes):
            assert self.state in (State.HEALTHY, State.SUSPECT)
            self.step(Event.STRIKE, now, kind, spread=spread)
        assert self.state is State.EJECTED

    def is_usable(self) -> bool:
        return health.is_usable(self.cells, self.row)

    def is_due(self, now: int) -> bool:
        return health.is_due(self.cells, self.row, now)


# -- the table --------------------------------------------------------------------------------------------------------


def test_the_table_knows_every_pair() -> None:
    assert set(TABLE) == set(itertools.product(State, Event))
    assert {pair for pair, word in TABLE.items() if word != "."} == set(health.TRANSITIONS)


@pytest.mark.parametrize(("state", "event"), TABLE, ids=lambda value: value.name)
def test_every_pair(state: State, event: Event) -> None:
    subject, following = Subject(state), TABLE[state, event]
    before = list(subject.cells)
    if following == ".":
        with pytest.raises(KeyError):
            subject.step(event)
        assert subject.cells == before
        return
    assert subject.step(event).name == following == subject.state.name
    assert subject[SINCE] == (NOW if following != state.name else 0)
    assert subject.cells[: subject.row] == before[: subject.row]
    assert subject.cells[subject.row + HEALTH_ROW :] == before[subject.row + HEALTH_ROW :]


@pytest.mark.parametrize("state", State)
def test_who_is_usable_and_who_due(state: State) -> None:
    subject = Subject(state, NOW)
    is_in_use = state in (State.HEALTHY, State.SUSPECT)
    assert subject.is_usable() == is_in_use
    assert not subject.is_due(NOW - 1)
    assert subject.is_due(NOW) == subject.is_due(NOW + 1) == (not is_in_use)


def test_no_row_is_always_usable() -> None:
    assert health.is_usable(Subject().cells, 0)


# -- strikes and ejections --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_enough_strikes_in_a_row_eject(kind: Kind) -> None:
    subject = Subject()
    for number in range(1, kind.strikes):
        assert subject.step(Event.STRIKE, NOW, kind) is State.SUSPECT
        assert subject[STRIKES] == number
    assert subject.step(Event.STRIKE, NOW, kind) is State.EJECTED
    assert subject[UNTIL] == NOW + int(kind.base * SECOND)
    assert (subject[STRIKES], subject[EJECTIONS]) == (0, 1)


def test_one_strike_suffices_where_the_kind_says_so() -> None:
    assert Subject().step(Event.STRIKE, NOW, Kind(strikes=1, base=1.0, cap=1.0)) is State.EJECTED


@given(ANY_KIND, st.integers(1, 30))
def test_success_between_strikes_starts_anew(kind: Kind, strikes: int) -> None:
    subject = Subject()
    for _ in range(3):
        for _ in range(min(strikes, kind.strikes - 1)):
            assert subject.step(Event.STRIKE, NOW, kind) is State.SUSPECT
        assert subject.step(Event.SUCCESS, NOW, kind) is State.HEALTHY


@given(st.lists(st.sampled_from(Event), max_size=20), ANY_KIND)
def test_success_resets_everything(events: list[Event], kind: Kind) -> None:
    subject = Subject()
    for event in events:
        if (subject.state, event) in health.TRANSITIONS:
            subject.step(event, NOW, kind, reason=7)
    subject.step(Event.SUCCESS, NOW + 1)
    assert [subject[field] for field in (health.STATE, UNTIL, STRIKES, EJECTIONS, REASON)] == [0] * 5
    subject.eject(kind)
    assert subject[UNTIL] == NOW + int(kind.base * SECOND)


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_ejections_double_up_to_the_cap(kind: Kind) -> None:
    """Each probe takes its whole time and then fails."""
    subject, now, lengths = Subject(), NOW, []
    subject.eject(kind, now)
    for _ in range(40):
        lengths.append((subject[UNTIL] - now) / SECOND)
        now = subject[UNTIL]
        subject.step(Event.PROBE, now, kind)
        now += PROBE_TICKS
        assert subject.step(Event.STRIKE, now, kind) is State.EJECTED
    assert lengths == [min(kind.base * 2**times, kind.cap) for times in range(40)]


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_a_probe_that_fails_at_once_puts_out_no_longer_than_its_kind_says(kind: Kind) -> None:
    """The time a probe may take is not the time its failure costs: an origin is asked again within two seconds."""
    subject, now = Subject(), NOW
    subject.eject(kind, now)
    for times in range(1, 12):
        now = subject[UNTIL]
        subject.step(Event.PROBE, now, kind)
        now += SECOND // 100
        subject.step(Event.STRIKE, now, kind)
        assert subject[UNTIL] - now == int(min(kind.base * 2**times, kind.cap) * SECOND)


@pytest.mark.parametrize(("event", "kind"), TIMES.items())
def test_what_wants_a_person_takes_its_own_time(event: Event, kind: Kind) -> None:
    """Whatever the subject: no money, a refused credential and a model that is not offered do not heal in seconds."""
    subject, now = Subject(), NOW
    for times in range(8):
        subject.step(event, now, health.ORIGIN)
        assert subject[UNTIL] - now == int(min(kind.base * 2**times, kind.cap) * SECOND)
        now = subject[UNTIL]


@given(st.sampled_from(sorted(TIMES)) | st.just(Event.STRIKE), ANY_KIND, SPREADS)
def test_ends_are_jittered_by_a_fifth(event: Event, kind: Kind, spread: float) -> None:
    subject = Subject()
    while subject.is_usable():
        subject.step(event, NOW, kind, spread=spread)
    base = TIMES.get(event, kind).base * SECOND
    assert 0.8 * base - 1 <= subject[UNTIL] - NOW <= 1.2 * base


def test_jitter_uses_its_whole_width() -> None:
    ends = []
    for tenth in range(11):
        subject = Subject()
        subject.step(Event.PARK, spread=tenth / 10)
        ends.append((subject[UNTIL] - NOW) / (health.PARK.base * SECOND))
    assert ends == pytest.approx([0.8 + 0.04 * tenth for tenth in range(11)])


@given(st.permutations(sorted(TIMES)), SPREADS)
def test_the_later_end_wins(events: list[Event], spread: float) -> None:
    subject, latest = Subject(), 0
    for event in events:
        subject.step(event, spread=spread)
        assert subject[UNTIL] >= latest
        latest = subject[UNTIL]


@pytest.mark.parametrize("state", OUT)
def test_strikes_of_calls_sent_before_change_nothing(state: State) -> None:
    """Who is out stays out as it is: its end, the count, and the reason an operator reads."""
    subject = Subject(state, NOW + SECOND)
    subject.cells[subject.row + REASON] = 7
    subject.cells[subject.row + EJECTIONS] = 2
    before = list(subject.cells)
    for _ in range(30):
        subject.step(Event.STRIKE, NOW, reason=9)
    assert subject.cells == before


@pytest.mark.parametrize("event", [Event.STRIKE, *TIMES])
def test_the_reason_is_that_of_the_last_mishap(event: Event) -> None:
    subject = Subject()
    subject.step(event, reason=7)
    assert subject[REASON] == 7
    subject.step(Event.UNKNOWN, reason=9)
    assert subject[REASON] == 7


# -- probes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", OUT)
def test_one_probe_at_a_time(state: State) -> None:
    """Nobody else is due until the probe has had its time."""
    subject = Subject(state, NOW)
    subject.step(Event.PROBE)
    assert not subject.is_usable()
    assert not subject.is_due(NOW + PROBE_TICKS - 1)
    assert subject.is_due(NOW + PROBE_TICKS)
    subject.step(Event.PROBE, NOW + PROBE_TICKS)
    assert not subject.is_due(NOW + 2 * PROBE_TICKS - 1)


def test_a_probe_that_told_nothing_frees_its_place_at_once() -> None:
    subject = Subject(State.QUARANTINED, NOW)
    subject.step(Event.PROBE)
    assert subject.step(Event.UNKNOWN, NOW + SECOND) is State.EJECTED
    assert not subject.is_due(NOW + SECOND - 1)
    assert subject.is_due(NOW + SECOND)


@pytest.mark.parametrize("state", [state for state in State if state is not State.PROBING])
def test_what_says_nothing_of_it_changes_nothing(state: State) -> None:
    subject = Subject(state, NOW if state in OUT else 0)
    before = list(subject.cells)
    subject.step(Event.UNKNOWN, NOW + SECOND, reason=9)
    assert subject.cells == before


STEPS = st.lists(
    st.tuples(st.sampled_from(Event), st.integers(0, 4000 * SECOND), ANY_KIND, SPREADS, st.integers(0, 99)), max_size=60
)


@given(STEPS)
def test_no_state_without_an_end(steps: list[tuple[Event, int, Kind, float, int]]) -> None:
    """Over any history: who is out has an end within the longest cap, who is in has none, counts stay bounded."""
    subject, now, longest = Subject(), NOW, int(1.2 * 3600 * SECOND)
    for event, elapsed, kind, spread, reason in steps:
        now += elapsed
        if (event is Event.PROBE and not subject.is_due(now)) or (subject.state, event) not in health.TRANSITIONS:
            continue
        subject.step(event, now, kind, reason=reason, spread=spread)
        assert subject.is_usable() == (subject[UNTIL] == 0)
        assert subject[UNTIL] <= now + longest
        assert subject[SINCE] <= now
        assert 0 <= subject[STRIKES] < health.ORIGIN.strikes
        assert 0 <= subject[EJECTIONS] <= 32
        assert subject.is_usable() or subject.is_due(subject[UNTIL])
