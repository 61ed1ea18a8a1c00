"""Reports of many processes become one truth in which no counter goes backwards."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from yugong.surface.meters import Registry
from yugong.surface.metrics import BY_NAME
from yugong.surface.reports import SLICE, Books, Reporter, Tally

ATTEMPTS, FLIGHT, TOOK = "yugong_attempts_total", "yugong_calls_in_flight", "yugong_call_duration_seconds"
ORGS, RESIDENT = "yugong_pool_orgs", "yugong_process_resident_bytes"


class Process:
    """A process with a registry and a connection; what it sends goes through JSON, as it does on the wire."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.registry = Registry()
        self.attempts = self.registry.counter(BY_NAME[ATTEMPTS])
        self.flight = self.registry.gauge(BY_NAME[FLIGHT]).labels()
        self.orgs = self.registry.gauge(BY_NAME[ORGS]).labels()
        self.took = self.registry.histogram(BY_NAME[TOOK]).labels("openai", "chat")
        self.reporter = Reporter(self.registry)

    def connect(self, books: Books) -> None:
        self.reporter = Reporter(self.registry)
        books.open(self.id)

    def report(self, books: Books) -> None:
        for report in self.reporter.round():
            books.take(self.id, orjson.loads(orjson.dumps(report)))


def test_counters_add_up_and_histograms_too() -> None:
    books, one, other = Books(), Process("a"), Process("b")
    for process, count in ((one, 3), (other, 4)):
        process.attempts.labels("org", "ok").value += count
        process.took.observe(0.3)
        process.connect(books)
        process.report(books)
    merged = books.merged()
    assert merged[ATTEMPTS] == {("org", "ok"): 7}
    took = merged[TOOK]["openai", "chat"]
    assert isinstance(took, list)
    assert took[0] == pytest.approx(0.6)
    assert sum(took[1:]) == 2


def test_gauges_merge_as_declared() -> None:
    books, one, other = Books(), Process("a"), Process("b")
    for process, value in ((one, 5), (other, 2)):
        process.flight.value = process.orgs.value = value
        process.registry.gauge(BY_NAME[RESIDENT]).labels("x").value = value
        process.connect(books)
        process.report(books)
    assert books.merged()[FLIGHT] == {(): 7}
    assert books.merged()[ORGS] == {(): 2}, "who spoke last"
    assert books.merged()[RESIDENT] == {("x",): 5}
    one.report(books)
    assert books.merged()[ORGS] == {(): 5}


def test_a_departed_process_leaves_its_counters_and_takes_its_gauges() -> None:
    books, one = Books(), Process("a")
    one.attempts.labels("org", "ok").value, one.flight.value = 3, 2
    one.connect(books)
    one.report(books)
    books.depart("a", 100.0)
    assert books.merged() == {ATTEMPTS: {("org", "ok"): 3}, TOOK: {("openai", "chat"): [0.0] * 19}}
    assert books.fold(159.0) == 0
    assert books.fold(160.0) == 1
    assert books.merged()[ATTEMPTS] == {("org", "ok"): 3}
    assert repr(books) == "<Books alive=0 departed=0 folded=2>"


def test_who_comes_back_is_not_counted_twice_nor_too_little_meanwhile() -> None:
    books, one = Books(), Process("a")
    one.attempts.labels("org", "ok").value = 3
    one.connect(books)
    one.report(books)
    books.depart("a", 0.0)
    one.connect(books)
    one.attempts.labels("org", "ok").value = 5
    first = next(one.reporter.round())
    books.take("a", first)
    assert books.merged()[ATTEMPTS] == {("org", "ok"): 3}, "the round has not ended"
    books.take("a", {"new": [], "set": [], "end": True})
    assert books.merged()[ATTEMPTS] == {("org", "ok"): 5}


def test_one_that_departs_before_its_first_round_ends_counts_what_it_said() -> None:
    books, one = Books(), Process("a")
    one.attempts.labels("org", "ok").value = 3
    one.connect(books)
    books.take("a", next(one.reporter.round()))
    books.depart("a", 0.0)
    assert books.merged()[ATTEMPTS] == {("org", "ok"): 3}


def test_the_next_keeper_goes_on_where_this_one_stopped() -> None:
    books, one, gone = Books(), Process("a"), Process("b")
    for process in (one, gone):
        process.attempts.labels("org", "ok").value = 3
        process.connect(books)
        process.report(books)
    books.depart("b", 0.0)
    after = Books()
    after.load(orjson.loads(orjson.dumps(books.dump())), 10.0)
    assert after.merged()[ATTEMPTS] == {("org", "ok"): 6}
    one.connect(after)
    one.report(after)
    assert after.merged()[ATTEMPTS] == {("org", "ok"): 6}
    assert after.alive() == {"a"}


def test_metrics_of_another_version_are_left_out() -> None:
    books = Books()
    rows = [["yugong_gone_total", ["x"], 3], [ATTEMPTS, ["org"], 3], [TOOK, ["openai", "chat"], [1.0, 2.0]]]
    books.load({"folded": [*rows, [ATTEMPTS, ["org", "ok"], 3]], "tallies": {}}, 0.0)
    assert books.merged() == {ATTEMPTS: {("org", "ok"): 3}}


def test_a_round_without_change_is_one_empty_report() -> None:
    one = Process("a")
    list(one.reporter.round())
    assert list(one.reporter.round()) == [{"new": [], "set": [], "end": True}]


def test_many_series_come_in_slices() -> None:
    one = Process("a")
    for number in range(3 * SLICE):
        one.attempts.labels(f"o{number}", "ok").value = 1
    reports = list(one.reporter.round())
    assert max(len(report["new"]) for report in reports) == SLICE
    assert [report["end"] for report in reports] == [False] * 4 + [True]


def test_a_round_cut_short_is_continued() -> None:
    books, one = Books(), Process("a")
    for number in range(2 * SLICE):
        one.attempts.labels(f"o{number}", "ok").value = 1
    one.connect(books)
    books.take("a", next(one.reporter.round()))
    one.report(books)
    assert len(books.merged()[ATTEMPTS]) == 2 * SLICE


@pytest.mark.parametrize(
    "report",
    [
        {"new": [[1, ATTEMPTS, ["a", "b"]]], "set": []},
        {"new": [[0, ATTEMPTS, ["a"]]], "set": []},
        {"new": [[0, "nothing", []]], "set": []},
        {"new": [], "set": [[3, 1]]},
        {"set": []},
        {"new": [3], "set": []},
    ],
)
def test_what_no_reporter_sends_is_refused(report: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError, KeyError, IndexError)):
        Tally().take(report)


class Installation(RuleBasedStateMachine):
    """Workers count, report, lose their connection, die; keepers are replaced. What was reported never gets less."""

    def __init__(self) -> None:
        super().__init__()
        self.books = Books()
        self.living: list[Process] = []
        self.number = 0
        self.now = 0.0
        self.reported = 0.0
        self.seen = 0.0

    def total(self) -> float:
        rows = self.books.merged().get(ATTEMPTS, {})
        return sum(value for value in rows.values() if not isinstance(value, list))

    @rule()
    def start(self) -> None:
        self.number += 1
        process = Process(f"p{self.number}")
        process.connect(self.books)
        self.living.append(process)

    @precondition(lambda self: self.living)
    @rule(data=st.data(), count=st.integers(1, 9))
    def count(self, data: st.DataObject, count: int) -> None:
        process = data.draw(st.sampled_from(self.living))
        process.attempts.labels(data.draw(st.sampled_from("ab")), "ok").value += count
        process.report(self.books)
        self.reported += count

    @precondition(lambda self: self.living)
    @rule(data=st.data())
    def reconnect(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from(self.living))
        self.books.depart(process.id, self.now)
        process.connect(self.books)

    @precondition(lambda self: self.living)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from(self.living))
        self.living.remove(process)
        self.books.depart(process.id, self.now)

    @rule(seconds=st.floats(0, 50))
    def wait(self, seconds: float) -> None:
        """All who live have reported within this time, as they do each second."""
        for process in self.living:
            process.report(self.books)
        self.now += seconds
        self.books.fold(self.now)

    @rule()
    def replace_keeper(self) -> None:
        after = Books()
        after.load(orjson.loads(orjson.dumps(self.books.dump())), self.now)
        self.books = after
        for process in self.living:
            process.connect(after)

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        assert self.total() == self.reported


TestInstallation = Installation.TestCase


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), max_size=30))
def test_order_of_reports_does_not_matter(counts: list[tuple[str, int]]) -> None:
    processes = {name: Process(name) for name in "abc"}
    for name, count in counts:
        processes[name].attempts.labels("org", "ok").value += count
    totals = []
    for order in ("abc", "cab"):
        books = Books()
        for name in order:
            processes[name].connect(books)
            processes[name].report(books)
        totals.append(books.merged().get(ATTEMPTS, {}))
    assert totals[0] == totals[1]
