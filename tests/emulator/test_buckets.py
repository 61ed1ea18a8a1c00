"""Buckets refill continuously, admission takes all or nothing, durations read as Go writes them."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yugong.emulator.buckets import MINUTE, Bucket, Window, go_duration
from yugong.emulator.orgs import Group, Org
from yugong.emulator.spec import GroupSpec, Limits, OrgSpec

amounts = st.integers(1, 5_000)
steps = st.lists(st.tuples(st.floats(0, 30, allow_nan=False), amounts), max_size=60)


def group_of(**limits: int) -> Group:
    return Group(GroupSpec(limits=Limits(**limits)), 0.0)


def charge(tokens: int) -> dict[str, int]:
    return {"requests": 1, "tokens": tokens, "requests_day": 1, "tokens_day": tokens}


@given(steps)
def test_never_more_than_capacity_and_refill(steps: list[tuple[float, int]]) -> None:
    group = group_of(tpm=6_000)
    now, taken = 0.0, 0
    for wait, tokens in steps:
        now += wait
        if group.admit(charge(tokens), now) is None:
            taken += tokens
    assert taken <= 6_000 + now * 100 + 1e-6


@given(steps)
def test_the_wait_told_is_the_wait_needed(steps: list[tuple[float, int]]) -> None:
    group = group_of(tpm=6_000)
    now = 0.0
    for wait, tokens in steps:
        now += wait
        shortage = group.admit(charge(tokens), now)
        if shortage is not None:
            assert shortage.wait > 0
            assert group.admit(charge(tokens), now + shortage.wait * 0.98) is not None
            now += shortage.wait + 1e-6
            assert group.admit(charge(tokens), now) is None


def test_all_or_nothing() -> None:
    group = group_of(rpm=10, tpm=100)
    shortage = group.admit(charge(101), 0.0)
    assert shortage is not None
    assert (shortage.dimension, shortage.wait) == ("tokens", math.inf)
    assert [bucket.level for _, bucket in group.buckets] == [10, 100]
    assert group.in_flight == 0
    assert group.stats()["above_limits"] is True


def test_concurrency() -> None:
    group = group_of(concurrency=2)
    assert group.admit(charge(1), 0.0) is None
    assert group.admit(charge(1), 0.0) is None
    shortage = group.admit(charge(1), 0.0)
    assert shortage is not None
    assert shortage.dimension == "concurrency"
    group.in_flight -= 1
    assert group.admit(charge(1), 0.0) is None
    assert group.peak == 2


def test_a_clock_that_goes_back_refills_nothing() -> None:
    bucket = Bucket(60, MINUTE, 100.0)
    bucket.level = 0.0
    assert bucket.refill(50.0) == 0
    assert bucket.refill(130.0) == pytest.approx(30)


def test_headers_of_both_dialects() -> None:
    group = group_of(rpm=60, tpm=150_000)
    group.admit(charge(16), 0.0)
    told = group.headers("openai", 0.0)
    assert "x-ratelimit-limit-requests: 60\r\n" in told
    assert "x-ratelimit-remaining-requests: 59\r\n" in told
    assert "x-ratelimit-reset-requests: 1s\r\n" in told
    assert "x-ratelimit-remaining-tokens: 149984\r\n" in told
    assert "x-ratelimit-reset-tokens: 7ms\r\n" in told
    told = group.headers("anthropic", 0.0)
    assert "anthropic-ratelimit-requests-remaining: 59\r\n" in told
    assert "anthropic-ratelimit-requests-reset: 1970-01-01T00:00:01Z\r\n" in told


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.012, "12ms"),
        (0.9999, "1s"),
        (1, "1s"),
        (7.66, "7.66s"),
        (360, "6m0s"),
        (59.9999, "1m0s"),
        (3723.5, "1h2m3.5s"),
    ],
)
def test_go_durations(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text


@given(st.floats(0, 200_000, allow_nan=False))
def test_go_durations_are_never_too_short(seconds: float) -> None:
    text = go_duration(seconds)
    read = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:([\d.]+)s)?(?:(\d+)ms)?", text)
    assert read, text
    hours, minutes, rest, ms = (float(part or 0) for part in read.groups())
    told = hours * 3600 + minutes * 60 + rest + ms / 1000
    assert seconds - 1e-6 <= told <= seconds + 0.0011


@given(st.lists(st.tuples(st.floats(0, 40, allow_nan=False), amounts), max_size=80))
def test_the_busiest_minute(steps: list[tuple[float, int]]) -> None:
    """Against the plain definition, which may look 100 ms to either side."""
    window, now = Window(), 0.0
    seen: list[tuple[float, int]] = []
    for wait, tokens in steps:
        now += wait
        window.add(tokens, now)
        seen.append((now, tokens))

    def busiest(width: float) -> int:
        return max((sum(n for at, n in seen if end - width < at <= end) for end, _ in seen), default=0)

    assert busiest(59.8) <= window.most_tokens <= busiest(60.2)


def test_models_belong_to_groups() -> None:
    groups = (
        GroupSpec("mini", ("*-mini",), Limits(rpm=1)),
        GroupSpec("large", ("gpt-4o", "gpt-5*"), Limits(rpm=2)),
    )
    org = Org(OrgSpec("some", ("key",), groups=groups), 0.0)
    names = {model: group.name if (group := org.group_of(model)) else None for model in ("gpt-4o-mini", "gpt-4o", "x")}
    assert names == {"gpt-4o-mini": "mini", "gpt-4o": "large", "x": None}


def test_prompt_cache_is_of_the_org() -> None:
    org = Org(OrgSpec("some", ("key",)), 0.0)
    head = b"a" * 5_000
    assert org.cached_tokens(head + b"first") == 0
    assert org.cached_tokens(head + b"second") == 4_608 // 4  # 4 096 and one step of 512; the next differs or is cut
    assert org.cached_tokens(b"b" * 5_000) == 0
    assert org.cached_tokens(b"short") == 0
    assert Org(OrgSpec("other", ("key",)), 0.0).cached_tokens(head) == 0
