"""Which processes to start, drain or end: examples of each rule, and a simulated installation that breaks at random."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from yugong.supervisor.child import Child, Role, State
from yugong.supervisor.plan import BEAT_MAX, START_MAX, Act, Backoff, Step, Wanted, steps

NOW = 1000.0


def child(role: Role = Role.WORKER, state: State = State.READY, *, generation: int = 0, lane: int = 0) -> Child:
    made = Child(role, f"{role.value}-{lane}", f"{role.value}-{lane}:{lane}", lane=lane, generation=generation)
    made.state, made.started, made.beat = state, NOW - 1, NOW
    made.is_serving = role is Role.KEEPER
    return made


def due(children: list[Child], wanted: Wanted, now: float = NOW) -> list[tuple[Act, object]]:
    return [(step.act, step.child or step.role) for step in steps(children, wanted, Backoff(), now)]


def workers(count: int, state: State = State.READY, generation: int = 0) -> list[Child]:
    return [child(state=state, generation=generation, lane=n) for n in range(count)]


KEEPER = child(Role.KEEPER)


def test_at_first_all_are_started() -> None:
    assert due([], Wanted(2, 24)) == [(Act.SPAWN, Role.WORKER)] * 2 + [(Act.SPAWN, Role.KEEPER)]


def test_when_all_is_well_nothing_is_due() -> None:
    assert due([*workers(2), KEEPER], Wanted(2, 24)) == []
    assert due([*workers(2, State.STARTING), KEEPER], Wanted(2, 24)) == []


def test_a_dead_one_is_replaced() -> None:
    assert due([*workers(1), KEEPER], Wanted(2, 24)) == [(Act.SPAWN, Role.WORKER)]


def test_fewer_wanted_drains_the_newest() -> None:
    some = workers(3)
    assert due([*some, KEEPER], Wanted(2, 24)) == [(Act.DRAIN, some[2])]


def test_a_rolling_restart_starts_one_beside_the_old_and_drains_one_when_it_is_ready() -> None:
    wanted = Wanted(2, 24)
    wanted.generation = 7
    old = workers(2)
    assert due([*old, KEEPER], wanted) == [(Act.SPAWN, Role.WORKER)]
    fresh = child(state=State.STARTING, generation=7, lane=2)
    assert due([*old, fresh, KEEPER], wanted) == []
    fresh.state = State.READY
    assert due([*old, fresh, KEEPER], wanted) == [(Act.SPAWN, Role.WORKER), (Act.DRAIN, old[0])]


def test_going_back_stops_the_new_that_are_not_ready() -> None:
    old, fresh = workers(2), child(state=State.STARTING, generation=7, lane=2)
    assert due([*old, fresh, KEEPER], Wanted(2, 24)) == [(Act.STOP, fresh)]


def test_one_that_wants_to_leave_is_succeeded_first() -> None:
    wanted, (leaver,) = Wanted(1, 24), workers(1)
    leaver.is_leaving = True
    assert due([leaver, KEEPER], wanted) == [(Act.SPAWN, Role.WORKER)]
    heir = child(lane=1)
    assert due([leaver, heir, KEEPER], wanted) == [(Act.DRAIN, leaver)]


def test_without_a_free_lane_it_waits() -> None:
    wanted = Wanted(2, 3)
    wanted.generation = 7
    crew = [*workers(2), child(state=State.DRAINING, lane=2), KEEPER]
    assert due(crew, wanted) == []


def test_a_keeper_follows_another_step_by_step() -> None:
    wanted = Wanted(0, 24)
    wanted.keeper_generation = 1
    fresh = child(Role.KEEPER, State.STARTING, generation=1)
    fresh.is_serving = False
    assert due([KEEPER], wanted) == [(Act.SPAWN, Role.KEEPER)]
    assert due([KEEPER, fresh], wanted) == []
    fresh.state = State.READY
    assert due([KEEPER, fresh], wanted) == [(Act.DRAIN, KEEPER)]
    leaving = child(Role.KEEPER, State.DRAINING)
    assert due([leaving, fresh], wanted) == []
    assert due([fresh], wanted) == [(Act.SERVE, fresh)]


def test_the_emulator_is_kept_where_it_is_wanted() -> None:
    wanted = Wanted(0, 24)
    wanted.has_emulator = True
    assert (Act.SPAWN, Role.EMULATOR) in due([KEEPER], wanted)
    assert due([KEEPER, child(Role.EMULATOR)], wanted) == []


def test_at_the_end_nothing_is_started_but_lateness_is_still_ended() -> None:
    wanted = Wanted(2, 24)
    wanted.is_stopping = True
    late = child(state=State.DRAINING)
    late.deadline = NOW
    assert due([late], wanted) == [(Act.KILL, late)]


def test_stuck_ones_are_ended() -> None:
    wanted = Wanted(2, 24)
    slow, silent = child(state=State.STARTING), child(lane=1)
    slow.started, silent.beat = NOW - START_MAX - 1, NOW - BEAT_MAX - 1
    assert due([slow, silent, KEEPER], wanted) == [(Act.ABORT, slow), (Act.ABORT, silent)]
    slow.is_aborted = silent.is_aborted = True
    assert due([slow, silent, KEEPER], wanted) == []


def test_backoff_grows_and_is_forgotten() -> None:
    backoff = Backoff()
    waits = [backoff.died(Role.WORKER, 0.1, NOW) for _ in range(10)]
    assert waits[:4] == [0.1, 0.2, 0.4, 0.8]
    assert waits[-1] == Backoff.LAST
    assert not backoff.is_open(Role.WORKER, NOW)
    assert backoff.is_open(Role.KEEPER, NOW)
    assert backoff.next(NOW) == Backoff.LAST
    assert backoff.died(Role.WORKER, Backoff.YOUNG, NOW) == 0
    assert backoff.is_open(Role.WORKER, NOW)
    assert backoff.next(NOW) is None


def test_reprs() -> None:
    assert repr(Step(Act.SPAWN, role=Role.KEEPER, reason="x")) == "<Step spawn Role.KEEPER x>"
    assert repr(Wanted(2, 24)) == "<Wanted workers=2 generation=0>"
    assert repr(child()) == "<Child worker-0:0 pid=0 ready generation=0>"


class Installation(RuleBasedStateMachine):
    """Children become ready, die and end in any order; generations and numbers change. Time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.children: list[Child] = []
        self.wanted = Wanted(2, 8)
        self.backoff = Backoff()
        self.now = NOW
        self.number = 0
        self.has_been_ready = False

    def of(self, role: Role, *states: State) -> list[Child]:
        return [c for c in self.children if c.role is role and c.state in states]

    def look(self) -> None:
        ready_before = len(self.of(Role.WORKER, State.READY))
        for step in steps(self.children, self.wanted, self.backoff, self.now):
            if step.act is Act.SPAWN:
                assert step.role is not None
                self.spawn(step.role)
            elif step.act is Act.SERVE:
                assert step.child is not None
                step.child.is_serving = True
            else:
                assert step.child is not None
                if step.child.state is not State.DRAINING:
                    step.child.become(State.DRAINING)
        after = len(self.of(Role.WORKER, State.READY))
        assert after >= min(ready_before, self.wanted.workers), "drained below what is wanted"

    def spawn(self, role: Role) -> None:
        self.number += 1
        lanes = {c.lane for c in self.children if c.role is Role.WORKER}
        lane = next(n for n in range(self.wanted.lanes) if n not in lanes) if role is Role.WORKER else -1
        generation = self.wanted.keeper_generation if role is Role.KEEPER else self.wanted.generation
        made = Child(role, f"{role.value}", f"{self.number}", lane=lane, generation=generation)
        made.started = made.beat = self.now
        self.children.append(made)

    @initialize()
    def begin(self) -> None:
        self.look()

    @precondition(lambda self: any(c.state is State.STARTING for c in self.children))
    @rule(data=st.data())
    def become_ready(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([c for c in self.children if c.state is State.STARTING]))
        one.become(State.READY)
        self.look()

    @precondition(lambda self: self.children)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.children))
        self.children.remove(one)
        if one.state is not State.DRAINING:
            self.backoff.died(one.role, self.now - one.started, self.now)
        self.look()

    @rule(count=st.integers(1, 3))
    def want(self, count: int) -> None:
        self.wanted.workers = count
        self.look()

    @rule(keeper=st.booleans())
    def roll(self, keeper: bool) -> None:
        self.wanted.generation += 1
        self.wanted.keeper_generation += keeper
        self.look()

    @precondition(lambda self: self.children)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.children)).is_leaving = True
        self.look()

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for one in self.children:
            one.beat = self.now
        self.look()

    @invariant()
    def lanes_are_never_shared(self) -> None:
        lanes = [c.lane for c in self.children if c.role is Role.WORKER]
        assert len(lanes) == len(set(lanes)) <= self.wanted.lanes

    @invariant()
    def one_keeper_serves_at_most(self) -> None:
        assert sum(c.is_serving for c in self.children) <= 1

    def teardown(self) -> None:
        """Left alone, with children that do as they are told, it always comes to what is wanted."""
        for _ in range(60):
            self.now += Backoff.LAST + 1
            self.children = [c for c in self.children if c.state is not State.DRAINING]
            for one in self.children:
                one.beat = self.now
                if one.state is State.STARTING:
                    one.become(State.READY)
            self.look()
        ready = self.of(Role.WORKER, State.READY)
        assert len(ready) == self.wanted.workers
        assert {c.generation for c in ready} == {self.wanted.generation}
        keepers = self.of(Role.KEEPER, State.READY)
        assert [c.is_serving for c in keepers] == [True]


TestInstallation = Installation.TestCase
TestInstallation.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
