"""yugong.core.attempt: one answer for every outcome, nothing again after a byte, and a bounded number of retries."""

import ast
import inspect
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yugong.base.errors import Fault, Penalty, Reach, Scope
from yugong.core import attempt
from yugong.core.attempt import BACKOFF_BASE, BACKOFF_CAP, Action, Progress, RetryBudget, Verdict, judge

FRESH = Progress(
    tries=1,
    max_tries=4,
    has_budget=True,
    time_left=60.0,
    has_sent_bytes=False,
    is_repeatable=True,
    has_alternative=True,
    spread=0.5,
)
#: Statuses that mean something, by class, and 0: there was no answer.
STATUSES = (0, 200, 400, 401, 402, 403, 404, 408, 409, 413, 422, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529)
#: By these upstream says that it did not act: its refusals of the request, of the credential, or for want of room.
NOT_ACTED = {400, 401, 402, 403, 404, 408, 409, 413, 422, 425, 429, 503, 529}

FAULTS = st.builds(
    Fault,
    st.just("any"),
    st.sampled_from(Scope),
    status=st.sampled_from(STATUSES),
    is_retryable=st.booleans(),
    penalty=st.sampled_from(Penalty),
    wait=st.none() | st.floats(-10, 1e6),
    reach=st.sampled_from(Reach),
)
PROGRESS = st.builds(
    Progress,
    tries=st.integers(1, 16),
    max_tries=st.integers(1, 16),
    has_budget=st.booleans(),
    time_left=st.floats(-10, 1000),
    has_sent_bytes=st.booleans(),
    is_repeatable=st.booleans(),
    has_alternative=st.booleans(),
    spread=st.floats(0, 1, exclude_max=True),
)


def broken(scope: Scope = Scope.ORIGIN, **fields: object) -> Fault:
    """A 500 that reached upstream, unless said otherwise."""
    return Fault("any", scope, **({"status": 500, "penalty": Penalty.COUNT} | fields))  # type: ignore[arg-type]


RATE_LIMITED = broken(Scope.MODEL, status=429, penalty=Penalty.COOL, wait=2.0)
UNSENT = broken(status=0, reach=Reach.UNSENT)

#: What happened, how far the call is, what follows.
BRANCHES: list[tuple[Fault | None, dict[str, object], Action, str]] = [
    (None, {}, Action.RELAY, "answered"),
    (None, {"has_sent_bytes": True}, Action.RELAY, "answered"),
    (broken(), {"has_sent_bytes": True}, Action.BREAK, "client_has_bytes"),
    (broken(Scope.CALLER), {"has_sent_bytes": True}, Action.BREAK, "client_has_bytes"),
    (broken(Scope.CALLER, status=400), {}, Action.ANSWER, "callers_own"),
    (broken(Scope.CALLER, is_retryable=False), {}, Action.ANSWER, "callers_own"),
    (broken(is_retryable=False), {}, Action.ANSWER, "final"),
    (broken(), {"is_repeatable": False}, Action.ANSWER, "may_have_acted"),
    (broken(status=0, reach=Reach.SENT), {"is_repeatable": False}, Action.ANSWER, "may_have_acted"),
    (RATE_LIMITED, {"is_repeatable": False}, Action.AGAIN, "elsewhere"),
    (UNSENT, {"is_repeatable": False}, Action.AGAIN, "elsewhere"),
    (broken(), {"tries": 4}, Action.ANSWER, "tries_spent"),
    (broken(), {"tries": 5}, Action.ANSWER, "tries_spent"),
    (broken(), {"tries": 3}, Action.AGAIN, "elsewhere"),
    (broken(), {"has_budget": False}, Action.ANSWER, "budget_spent"),
    (RATE_LIMITED, {"has_budget": False}, Action.AGAIN, "elsewhere"),
    (broken(), {"time_left": 0.0}, Action.ANSWER, "deadline"),
    (broken(), {"time_left": -1.0}, Action.ANSWER, "deadline"),
    (RATE_LIMITED, {"has_alternative": False, "time_left": 2.0}, Action.ANSWER, "deadline"),
    (RATE_LIMITED, {"has_alternative": False, "time_left": 2.1}, Action.AGAIN, "same_again"),
    (RATE_LIMITED, {"time_left": 0.1}, Action.AGAIN, "elsewhere"),
    (broken(), {}, Action.AGAIN, "elsewhere"),
    (broken(), {"has_alternative": False}, Action.AGAIN, "same_again"),
]


@pytest.mark.parametrize(("fault", "fields", "action", "reason"), BRANCHES)
def test_every_branch(fault: Fault | None, fields: dict[str, object], action: Action, reason: str) -> None:
    verdict = judge(fault, FRESH._replace(**fields))  # type: ignore[arg-type]
    assert (verdict.action, verdict.reason) == (action, reason)


def test_every_reason_is_reached() -> None:
    function = ast.parse(inspect.getsource(judge)).body[0]
    assert isinstance(function, ast.FunctionDef)
    words = {
        node.value
        for statement in function.body[1:]  # the first is the docstring
        for node in ast.walk(statement)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert words == {reason for *_, reason in BRANCHES}


@given(st.none() | FAULTS, PROGRESS)
def test_judge_is_total(fault: Fault | None, progress: Progress) -> None:
    verdict = judge(fault, progress)
    assert verdict.reason in {reason for *_, reason in BRANCHES}
    assert 0.0 <= verdict.delay < math.inf
    assert (verdict.action is Action.RELAY) == (fault is None)


@given(FAULTS, PROGRESS)
def test_nothing_again_after_a_byte(fault: Fault, progress: Progress) -> None:
    """I2, and nothing but an honest end is left (I3)."""
    assert judge(fault, progress._replace(has_sent_bytes=True)) == Verdict(Action.BREAK, "client_has_bytes")


@given(FAULTS, PROGRESS)
def test_a_callers_fault_is_the_callers(fault: Fault, progress: Progress) -> None:
    """I4: whatever else the fault says, and however many tries are left."""
    fault.scope = Scope.CALLER
    assert judge(fault, progress._replace(has_sent_bytes=False)) == Verdict(Action.ANSWER, "callers_own")


@given(FAULTS, PROGRESS)
def test_again_if_and_only_if_nothing_speaks_against_it(fault: Fault, progress: Progress) -> None:
    verdict = judge(fault, progress)
    is_harmless = progress.is_repeatable or not attempt.may_have_acted(fault)
    is_paid_for = progress.has_budget or attempt.is_routing(fault)
    may_go_on = (
        not progress.has_sent_bytes
        and fault.scope is not Scope.CALLER
        and fault.is_retryable
        and is_harmless
        and progress.tries < progress.max_tries
        and is_paid_for
    )
    if verdict.action is Action.AGAIN:
        assert may_go_on
        assert verdict.delay < progress.time_left
    elif may_go_on:
        assert verdict.reason == "deadline"


@given(FAULTS, PROGRESS)
def test_the_wait_is_upstreams_word_or_the_back_off(fault: Fault, progress: Progress) -> None:
    verdict = judge(fault, progress)
    if verdict.action is not Action.AGAIN or progress.has_alternative:
        assert verdict.delay == 0.0
        return
    most = min(BACKOFF_BASE * 2 ** (progress.tries - 1), BACKOFF_CAP)
    if (fault.wait or 0.0) > most:
        assert verdict.delay == fault.wait
    else:
        assert most / 2 <= verdict.delay <= most


def test_back_off_doubles_up_to_its_cap() -> None:
    stuck = FRESH._replace(has_alternative=False, max_tries=17)
    delays = [judge(broken(), stuck._replace(tries=tries)).delay for tries in range(1, 17)]
    assert delays[:6] == pytest.approx([BACKOFF_BASE * 0.75 * 2**n for n in range(6)])
    assert set(delays[6:]) == {BACKOFF_CAP * 0.75}


def test_back_off_is_spread() -> None:
    stuck = FRESH._replace(has_alternative=False, tries=3)
    delays = [judge(broken(), stuck._replace(spread=n / 10)).delay for n in range(10)]
    assert delays == sorted(set(delays))
    assert delays[0] == pytest.approx(BACKOFF_BASE * 2)


@pytest.mark.parametrize("penalty", Penalty)
@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("status", [0, 401, 404, 429, 500, 503, 529])
def test_what_is_routing(scope: Scope, penalty: Penalty, status: int) -> None:
    """Who is out, full or not the one is gone round; failure and overload are tried again at the budget's cost."""
    is_out = penalty in (Penalty.EXCLUDE, Penalty.PARK, Penalty.QUARANTINE)
    assert attempt.is_routing(broken(scope, penalty=penalty, status=status)) == (is_out or status in (401, 404, 429))


@pytest.mark.parametrize("reach", Reach)
@pytest.mark.parametrize("status", STATUSES)
def test_what_may_have_acted(reach: Reach, status: int) -> None:
    expected = reach is not Reach.UNSENT and status not in NOT_ACTED
    assert attempt.may_have_acted(broken(status=status, reach=reach)) == expected


# -- the retry budget -------------------------------------------------------------------------------------------------

SHARES = st.floats(0, 1)
FLOORS = st.floats(0, 50)
#: Seconds since the step before, calls that came in, retries wanted.
STEPS = st.lists(st.tuples(st.floats(0, 5), st.integers(0, 30), st.integers(0, 30)), max_size=40)


@given(SHARES, FLOORS, STEPS)
def test_retries_stay_below_share_and_floor(share: float, floor: float, steps: list[tuple[float, int, int]]) -> None:
    """Over any stretch from the start: at most `share` of the calls and `floor` a second, one second ahead."""
    budget = RetryBudget(share, floor)
    now = start = 1000.0
    calls = retries = 0
    for elapsed, arrived, wanted in steps:
        now += elapsed
        for _ in range(arrived):
            budget.earn()
        calls += arrived
        for _ in range(wanted):
            if budget.can_spend(now):
                budget.spend()
                retries += 1
        assert retries <= share * calls + floor * (now - start + 1) + 1e-6


@given(SHARES, FLOORS, STEPS)
def test_savings_have_a_cap(share: float, floor: float, steps: list[tuple[float, int, int]]) -> None:
    """A long quiet time does not buy a storm."""
    budget = RetryBudget(share, floor)
    now = 1000.0
    for elapsed, arrived, _ in steps:
        now += elapsed
        budget.can_spend(now)
        for _ in range(arrived):
            budget.earn()
    retries = 0
    while budget.can_spend(now):
        budget.spend()
        retries += 1
    assert retries <= RetryBudget.CAP


@pytest.mark.parametrize("has_looked", [False, True])
@pytest.mark.parametrize(("calls", "seconds"), [(100_000, 0), (0, 100_000), (100_000, 100_000)])
def test_a_busy_day_or_a_quiet_night_saves_up_the_cap(calls: int, seconds: int, has_looked: bool) -> None:
    budget = RetryBudget(1.0, 1.0)
    if has_looked or seconds:
        assert budget.can_spend(1000.0)
    for _ in range(calls):
        budget.earn()
    retries = 0
    while budget.can_spend(1000.0 + seconds):
        budget.spend()
        retries += 1
    assert retries == RetryBudget.CAP


@given(st.floats(0.01, 1), st.integers(0, 300))
def test_a_share_of_the_calls_is_granted(share: float, calls: int) -> None:
    budget = RetryBudget(share, 0.0)
    for _ in range(calls):
        budget.earn()
    retries = 0
    while budget.can_spend(1000.0):
        budget.spend()
        retries += 1
    assert retries >= math.floor(min(share * calls, RetryBudget.CAP) - 1e-6)


@given(st.floats(0.1, RetryBudget.CAP - 1), st.integers(1, 60))
def test_the_floor_drips_without_traffic(floor: float, seconds: int) -> None:
    budget = RetryBudget(0.0, floor)
    now = 1000.0
    while budget.can_spend(now):
        budget.spend()
    retries = 0
    for second in range(1, seconds + 1):
        while budget.can_spend(now + second):
            budget.spend()
            retries += 1
    assert floor * seconds - 1 - 1e-6 <= retries <= floor * seconds + 1 + 1e-6


def test_no_budget_at_all() -> None:
    budget = RetryBudget(0.0, 0.0)
    for second in range(100):
        budget.earn()
        assert not budget.can_spend(1000.0 + second)


def test_budget_says_what_it_has() -> None:
    assert repr(RetryBudget(0.2, 10.0)) == "<RetryBudget 10.0 left, 20% of calls + 10/s>"
