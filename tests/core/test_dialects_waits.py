"""yugong.core.dialects.waits: durations, dates and sentences, all of them hostile."""

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yugong.core.dialects.waits import (
    MAX_WAIT,
    parse_duration,
    parse_http_date,
    parse_rfc3339,
    wait_in_headers,
    wait_in_text,
)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"12ms", 0.012),
        (b"9ms", 0.009),
        (b"7.66s", 7.66),
        (b"6m0s", 360),
        (b"1h0m0s", 3600),
        (b"24h0m0s", 86_400),
        (b"1h2m3.5s", 3723.5),
        (b"500us", 0.0005),
        ("500µs".encode(), 0.0005),
        (b"3d", 259_200),
        (b"0s", 0),
        (b"20", 20),
        (b" 1.5 ", 1.5),
        (b"-1", None),
        (b"-3s", None),
        (b"inf", None),
        (b"nan", None),
        (b"1e3", None),
        (b"", None),
        (b"s", None),
        (b"1x", None),
        (b"9" * 12, None),
        (b"999999h", None),
        (b"1s" * 7, None),
        ("\u0661s".encode(), None),
        (b"\xff", None),
    ],
)
def test_durations(value: bytes, seconds: float | None) -> None:
    assert parse_duration(value) == (None if seconds is None else pytest.approx(seconds))


@given(st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1)))
def test_dates(moment: datetime) -> None:
    moment = moment.replace(tzinfo=UTC, microsecond=0)
    assert parse_http_date(format_datetime(moment, usegmt=True).encode()) == moment.timestamp()
    assert parse_rfc3339(moment.isoformat().encode()) == moment.timestamp()
    assert parse_rfc3339(moment.strftime("%Y-%m-%dT%H:%M:%SZ").encode()) == moment.timestamp()


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"Wed, 99 Nov 2026 10:00:00 GMT",
        b"Wed, 20 Xyz 2026 10:00:00 GMT",
        b"Wed, 20 Nov 0000 10:00:00 GMT",
        b"20 Nov 2026",
    ],
)
def test_what_is_no_date(value: bytes) -> None:
    assert parse_http_date(value) is None


@pytest.mark.parametrize(
    "value", [b"", b"2026-11-20", b"2026-11-20T10:00:00", b"\xff", b"0001-01-01T00:00:00+23:59", b"x" * 99]
)
def test_what_is_no_rfc3339(value: bytes) -> None:
    assert parse_rfc3339(value) is None or value.startswith(b"0001")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Please try again in 644ms.", 0.644),
        ("Please try again in 20s. Visit", 20),
        ("Please try again in 6m0s.", 360),
        ("Please try again in 1h2m.", 3720),
        ("Please try again in 1m26.4s.", 86.4),
        ("Please try again in 7.66s", 7.66),
        ("Please retry after 86400 seconds.", 86_400),
        ("Please retry after 1 second.", 1),
        ("Try again in 3 minutes", 180),
        ("try again in 500 milliseconds", 0.5),
        ("wait 2 hours", 7200),
        ("Please wait for 5 mins", 300),
        ("retry in 2 days", 172_800),
        ("retry in 99 days", None),
        ("Please try again later.", None),
        ("try again in 5 smurfs", None),
        ("try again in 5 \u017f", None),
        ("try again in 5Sx", 5),
        ("try again in 1H2Mx", 3720),
        ("Limit 30000, Used 29937", None),
        ("", None),
    ],
)
def test_sentences(text: str, seconds: float | None) -> None:
    assert wait_in_text(text) == (None if seconds is None else pytest.approx(seconds))


DATE = (b"date", b"Fri, 20 Nov 2026 10:00:00 GMT")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([], None),
        ([(b"retry-after", b"7")], 7),
        ([(b"Retry-After", b"1.5")], 1.5),
        ([(b"retry-after", b"7"), (b"retry-after-ms", b"250")], 0.25),
        ([(b"retry-after", b"7"), (b"retry-after-ms", b"soon")], 7),
        ([(b"retry-after", b"-7")], None),
        ([(b"retry-after", b"1e9")], None),
        ([(b"retry-after", b"999999999999")], None),
        ([DATE, (b"retry-after", b"Fri, 20 Nov 2026 10:00:30 GMT")], 30),
        ([DATE, (b"retry-after", b"Fri, 20 Nov 2026 09:00:00 GMT")], 0),
        ([(b"retry-after", b"Fri, 20 Nov 2026 10:00:30 GMT")], None),
        ([DATE, (b"retry-after", b"tomorrow")], None),
    ],
)
def test_headers(headers: list[tuple[bytes, bytes]], seconds: float | None) -> None:
    assert wait_in_headers(headers) == seconds


@given(st.binary(max_size=80), st.text(max_size=80))
def test_noise_is_none_or_a_bounded_wait(value: bytes, text: str) -> None:
    for wait in (
        parse_duration(value),
        wait_in_text(text),
        wait_in_text(f"try again in {text}"),
        wait_in_headers([DATE, (b"retry-after", value), (b"retry-after-ms", value)]),
    ):
        assert wait is None or 0 <= wait <= MAX_WAIT
    parse_http_date(value)
    parse_rfc3339(value)
