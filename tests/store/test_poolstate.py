"""yugong.store.poolstate: one truth for all workers, exact, and nothing left locked by the dead. Real processes."""

import fcntl
import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, MutableSequence
from typing import cast

import pytest

from yugong.core.keypool import buckets
from yugong.core.keypool.cells import GROUP_ROW, HEALTH_ROW, LANES
from yugong.store import poolstate
from yugong.store.poolstate import CELL, PROBES_MAX, SIZE, VERSION, PoolState

PROCESSES = 3
FIELD = 3
"""A cell of a health row that these tests use."""

#: What each child begins with: the shared state, and a line to say that it is there and wait for the start.
PRELUDE = """
import sys
from yugong.store.poolstate import PoolState
state = PoolState(int(sys.argv[1]))
arguments = sys.argv[2:]
def ready():
    print("ready", flush=True)
    sys.stdin.readline()
"""

INCREMENT = """
row = state.health_row("shared")
ready()
for _ in range(int(arguments[0])):
    state.lock(row)
    state.cells[row + 3] += 1
    state.unlock(row)
"""

HOLD = """
row = state.health_row("shared")
state.lock(row)
state.cells[row + 3] += 1
ready()
"""

FIND = """
names = [f"name-{number}" for number in range(int(arguments[0]))]
ready()
found = [(name, state.health_row(name), state.group_row(name)) for name in names]
for name, health, group in found:
    print(name, health, group)
"""

#: Says at each line whether it could have a lock.
WATCH = """
import fcntl
for line in sys.stdin:
    try:
        fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB, 8, int(line) * 8)
    except BlockingIOError:
        print("held", flush=True)
    else:
        state.unlock(int(line))
        print("free", flush=True)
"""

RESERVE = """
import random
from yugong.core.keypool.buckets import cost
from yugong.core.keypool.pool import Pool
from yugong.core.keypool.spec import Ask
from yugong.core.keypool.spec import Lease, LimitSpec, OrgSpec
limits = (LimitSpec(("*",), (int(arguments[0]), 0, 0, 0, 0), int(arguments[1])),)
specs = [OrgSpec(name, "origin", "openai", ("k",), limits=limits) for name in ("a", "b")]
pool = Pool(specs, state, int(arguments[2]), random.random)
ready()
count = 0
while isinstance(pool.reserve(Ask("openai", "gpt-5", cost(1, 1)), 10**12), Lease):
    count += 1
print(count, flush=True)
sys.stdin.readline()
"""


class Child:
    """A process with the shared state, as a worker has it."""

    def __init__(self, fd: int, script: str, *arguments: object) -> None:
        words = [sys.executable, "-c", PRELUDE + script, str(fd), *map(str, arguments)]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[fd], bufsize=1
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def say(self, word: object = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL

    def finish(self) -> str:
        """What else it said; fails if it did not end well."""
        said, _ = self.process.communicate()
        assert self.process.returncode == 0
        return said


Start = Callable[..., Child]


@pytest.fixture
def fd() -> Iterator[int]:
    descriptor = poolstate.create()
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def start(fd: int) -> Iterator[Start]:
    """Starts children; at the end none is left."""
    children: list[Child] = []

    def make(script: str, *arguments: object) -> Child:
        children.append(Child(fd, script, *arguments))
        return children[-1]

    yield make
    for child in children:
        if child.process.poll() is None:
            child.process.kill()
        child.process.communicate()


def start_together(start: Start, calls: list[tuple[object, ...]]) -> list[Child]:
    """Children that begin their work at the same time."""
    children = [start(*call) for call in calls]
    for child in children:
        assert child.line() == "ready"
    for child in children:
        child.say()
    return children


# -- several processes ------------------------------------------------------------------------------------------------


def test_updates_under_the_lock_are_exact(fd: int, start: Start) -> None:
    rounds = 15_000
    for child in start_together(start, [(INCREMENT, rounds)] * PROCESSES):
        child.finish()
    state = PoolState(fd)
    assert state.cells[state.health_row("shared", is_made=False) + FIELD] == PROCESSES * rounds


def test_a_killed_process_leaves_no_lock_and_its_update(fd: int, start: Start) -> None:
    state = PoolState(fd)
    row = state.health_row("shared")
    for killed in range(1, 4):
        child = start(HOLD)
        assert child.line() == "ready"
        with pytest.raises(BlockingIOError):
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, CELL, row * CELL)
        child.kill()
        state.lock(row)
        assert state.cells[row + FIELD] == killed
        state.unlock(row)


def test_a_lock_holds_one_row_only(fd: int, start: Start) -> None:
    state = PoolState(fd)
    others = [state.health_row("another"), state.group_row("shared")]
    assert start(HOLD).line() == "ready"
    for row in others:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, CELL, row * CELL)
        state.unlock(row)


def test_rows_have_the_same_place_for_all(fd: int, start: Start) -> None:
    """Found by name, made by whoever comes first, each for itself; all want the same ones at the same moment."""
    names = 1500
    found: set[tuple[str, ...]] = set()
    for child in start_together(start, [(FIND, names)] * PROCESSES):
        found |= {tuple(line.split()) for line in child.finish().splitlines()}
    assert len(found) == names
    rows = {int(row) for _, *both in found for row in both}
    assert len(rows) == 2 * names
    state = PoolState(fd)
    for name, health, group in found:
        assert (state.health_row(name, is_made=False), state.group_row(name, is_made=False)) == (
            int(health),
            int(group),
        )


class Watched:
    """The cells, and at every writing of one what another process sees of the directory's lock."""

    def __init__(self, cells: MutableSequence[int], watcher: Child) -> None:
        self.cells, self.watcher = cells, watcher
        self.seen: list[str] = []

    def __getitem__(self, at: int) -> int:
        return self.cells[at]

    def __setitem__(self, at: int, value: int) -> None:
        self.seen.append(self.look())
        self.cells[at] = value

    def look(self) -> str:
        self.watcher.say(poolstate._DIRECTORY)
        return self.watcher.line()


def test_a_row_is_claimed_by_one_process_at_a_time(fd: int, start: Start) -> None:
    """Two names that want the same free slot: whoever writes there holds the directory's lock, and gives it back."""
    state = PoolState(fd)
    watched = Watched(state.cells, start(WATCH))
    state.cells = cast(MutableSequence[int], watched)
    assert watched.look() == "free"
    for name in ("a", "b", "a"):
        assert state.health_row(name) and state.group_row(name)
        assert watched.look() == "free"
    assert watched.seen == ["held"] * 4


def test_no_org_gets_more_than_its_limit_over_all_workers(start: Start) -> None:
    """I5, exactly: the bucket's burst at one tick, two orgs of it."""
    children = start_together(start, [(RESERVE, 400, 0, lane) for lane in range(PROCESSES)])
    assert sum(int(child.line()) for child in children) == 2 * 400


def test_concurrency_is_one_number_over_all_workers_and_the_deads_share_comes_back(fd: int, start: Start) -> None:
    children = start_together(start, [(RESERVE, 0, 60, lane) for lane in range(PROCESSES)])
    counts = [int(child.line()) for child in children]
    assert sum(counts) == 2 * 60
    state = PoolState(fd)
    rows = [state.group_row(f"{name}\0*", is_made=False) for name in ("a", "b")]
    assert all(buckets.in_flight(state.cells, row) == 60 for row in rows)
    for lane, child in enumerate(children):
        child.kill()
        state.clear_lane(lane)
        assert sum(buckets.in_flight(state.cells, row) for row in rows) == sum(counts[lane + 1 :])


# -- one process ------------------------------------------------------------------------------------------------------


def test_a_new_state_is_empty_and_marked_with_its_version(fd: int) -> None:
    state = PoolState(fd)
    assert (state.cells[0], len(state.cells) * CELL) == (VERSION, SIZE)
    assert state.health_row("a", is_made=False) == 0 == state.group_row("a", is_made=False)
    assert repr(state) == f"<PoolState fd={fd} known=0>"
    row = state.health_row("a")
    assert row > 0
    assert not any(state.cells[row + 1 : row + HEALTH_ROW])
    assert repr(state) == f"<PoolState fd={fd} known=1>"


def test_the_state_is_not_inherited_by_chance(fd: int) -> None:
    assert not os.get_inheritable(fd)


@pytest.mark.parametrize("version", [VERSION + 1, -1])
def test_a_state_of_another_program_is_refused(fd: int, version: int) -> None:
    os.pwrite(fd, version.to_bytes(CELL, sys.byteorder, signed=True), 0)
    with pytest.raises(ValueError, match=f"version {version}, this program knows {VERSION}"):
        PoolState(fd)
    assert int.from_bytes(os.pread(fd, CELL, 0), sys.byteorder, signed=True) == version


def test_a_row_keeps_its_place_and_what_is_in_it(fd: int) -> None:
    first, second = PoolState(fd), PoolState(fd)
    row = first.health_row("a")
    first.cells[row + FIELD] = -7
    assert first.health_row("a") == first.health_row("a", is_made=False) == second.health_row("a") == row
    assert second.cells[row + FIELD] == -7


def test_rows_do_not_overlap(fd: int) -> None:
    state = PoolState(fd)
    healths = sorted(state.health_row(f"name-{number}") for number in range(300))
    groups = sorted(state.group_row(f"name-{number}") for number in range(300))
    assert healths[0] >= poolstate.HEADER
    assert healths[-1] + HEALTH_ROW <= groups[0]
    assert groups[-1] + GROUP_ROW <= len(state.cells)
    assert all(after - before >= HEALTH_ROW for before, after in itertools.pairwise(healths))
    assert all(after - before >= GROUP_ROW for before, after in itertools.pairwise(groups))


def test_a_cleared_lane_is_cleared_in_every_group_and_alone(fd: int) -> None:
    state = PoolState(fd)
    rows = [state.group_row(f"group-{number}") for number in range(50)]
    for row in rows:
        for lane in (0, 5, LANES - 1):
            buckets.enter(state.cells, row, lane)
    before = {at: state.cells[at] for row in rows for at in range(row, row + GROUP_ROW)}
    state.clear_lane(5)
    changed = {at for at, was in before.items() if state.cells[at] != was}
    assert changed == {row + buckets.LANE + 5 for row in rows}
    assert all(buckets.in_flight(state.cells, row) == 2 for row in rows)


@pytest.mark.parametrize("lane", [-1, LANES])
def test_a_lane_that_is_none_is_a_bug(fd: int, lane: int) -> None:
    with pytest.raises(AssertionError):
        PoolState(fd).clear_lane(lane)


def test_only_rows_in_use_take_memory(fd: int) -> None:
    """The file is sparse, also after a worker has begun: reading a hole of a mapped memory file fills it."""
    state = PoolState(fd)
    for number in range(100):
        state.health_row(f"name-{number}")
    state.clear_lane(0)
    assert os.fstat(fd).st_blocks * 512 < SIZE // 20


@pytest.mark.parametrize(("table", "rows"), [("health_row", "HEALTH_ROWS"), ("group_row", "GROUP_ROWS")])
def test_a_full_table_has_no_row_and_breaks_nothing(
    fd: int, monkeypatch: pytest.MonkeyPatch, table: str, rows: str
) -> None:
    monkeypatch.setattr(poolstate, rows, 16)
    state = PoolState(fd)
    find = getattr(state, table)
    names = [f"name-{number}" for number in range(40)]
    random.Random(7).shuffle(names)
    found = {name: find(name) for name in names}
    kept = {name: row for name, row in found.items() if row}
    assert (len(kept), len(set(kept.values()))) == (16, 16)
    fresh = getattr(PoolState(fd), table)
    assert {name: fresh(name) for name in names} == {name: find(name, is_made=False) for name in names} == found


def test_a_crowded_table_is_not_searched_from_end_to_end(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that all want one slot: the limit of steps, then no row."""
    state = PoolState(fd)
    crowd = iter(range(1, 10**9))
    monkeypatch.setattr(poolstate, "_hash", lambda name: next(crowd) * poolstate.HEALTH_ROWS)
    rows = [state.health_row(f"name-{number}") for number in range(PROBES_MAX + 5)]
    assert [row > 0 for row in rows] == [True] * PROBES_MAX + [False] * 5
    assert rows[:PROBES_MAX] == [rows[0] + number * HEALTH_ROW for number in range(PROBES_MAX)]


def test_the_last_slot_is_followed_by_the_first(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    state = PoolState(fd)
    last = poolstate.HEALTH_ROWS - 1
    hashes = {"one": last, "two": last + poolstate.HEALTH_ROWS}
    monkeypatch.setattr(poolstate, "_hash", hashes.__getitem__)
    rows = [state.health_row("one"), state.health_row("two")]
    assert rows == [poolstate.HEADER + last * HEALTH_ROW, poolstate.HEADER]
