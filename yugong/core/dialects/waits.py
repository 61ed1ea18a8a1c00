"""How long upstream asks us to wait: durations, dates and sentences.

Everything here reads hostile input: what cannot be read, is negative, infinite or absurd is None, never an exception,
and no pattern can run away. There is no clock: a date counts from the answer's own `Date` header, which is also right
where our clock is not.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache

from yugong.core.dialects.dialect import Headers

#: No provider asks for more than a month; a figure beyond is garbage.
MAX_WAIT = 31 * 86_400.0

_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86_400.0,
}
# ASCII throughout: other alphabets have digits too, and letters that fold to ours (`ſ` is an `s`).
_PART = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)(ns|us|µs|ms|s|m|h|d)", re.ASCII)
_GO_DURATION = re.compile(r"(?:\d{1,12}(?:\.\d{1,12})?(?:ns|us|µs|ms|s|m|h|d)){1,6}", re.ASCII)
_NUMBER = re.compile(r"\d{1,12}(?:\.\d{1,12})?", re.ASCII)

#: "Please try again in 644ms", "in 1h2m", "Please retry after 86400 seconds", "wait 3 minutes".
_SENTENCE = re.compile(
    r"(?:again|retry|wait)(?: in| after| for)? (\d{1,9}(?:\.\d{1,9})?) ?"
    r"(milliseconds?|seconds?|secs?|minutes?|mins?|hours?|days?|ms|s|m|h|d)(?![a-z])"
    r"|(?:again|retry|wait)(?: in| after| for)? ((?:\d{1,9}(?:\.\d{1,9})?(?:ms|s|m|h|d)){1,5})",
    re.IGNORECASE | re.ASCII,
)
_MONTHS = {
    b"Jan": 1, b"Feb": 2, b"Mar": 3, b"Apr": 4, b"May": 5, b"Jun": 6,
    b"Jul": 7, b"Aug": 8, b"Sep": 9, b"Oct": 10, b"Nov": 11, b"Dec": 12,
}  # fmt: skip
_HTTP_DATE = re.compile(rb"[A-Z][a-z]{2}, (\d{2}) ([A-Z][a-z]{2}) (\d{4}) (\d{2}):(\d{2}):(\d{2}) GMT")


def _bounded(seconds: float) -> float | None:
    return seconds if seconds <= MAX_WAIT else None


def parse_duration(value: bytes) -> float | None:
    """(hot) Seconds of a Go duration (`12ms`, `7.66s`, `6m0s`) or of a bare number."""
    return _parse_duration(value[:64])


@lru_cache(1024)
def _parse_duration(value: bytes) -> float | None:
    text = value.decode("utf-8", "replace").strip()
    if _NUMBER.fullmatch(text):
        return _bounded(float(text))
    if not _GO_DURATION.fullmatch(text):
        return None
    return _bounded(sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text)))


def parse_http_date(value: bytes) -> float | None:
    """Seconds since the epoch of an IMF-fixdate (RFC 9110 §5.6.7; the two obsolete forms are not sent by anybody)."""
    match = _HTTP_DATE.fullmatch(value.strip())
    if match is None:
        return None
    day, month, year, hour, minute, second = match.groups()
    try:
        date = datetime(int(year), _MONTHS[month], int(day), int(hour), int(minute), int(second), tzinfo=UTC)
    except (KeyError, ValueError):
        return None
    return date.timestamp()


def parse_rfc3339(value: bytes) -> float | None:
    """Seconds since the epoch of `2026-11-20T10:00:00Z` (Anthropic's resets)."""
    try:
        date = datetime.fromisoformat(value[:40].decode("ascii"))
        return date.timestamp() if date.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def wait_in_text(text: str) -> float | None:
    """Seconds of the wait a sentence asks for."""
    match = _SENTENCE.search(text[:2000])
    if match is None:
        return None
    number, word, go_duration = match.groups()
    # `1h2m` matches the first form up to its first unit; the digit behind it tells.
    rest = text[match.start(1) : match.start(1) + 64] if number else go_duration
    parts = _GO_DURATION.match(rest.lower())
    if parts:
        return parse_duration(parts[0].encode())
    word = word.lower()
    unit = "ms" if word.startswith("mil") else word[0]
    return _bounded(float(number) * _UNITS[unit])


def wait_in_headers(headers: Headers) -> float | None:
    """Seconds of `retry-after-ms`, else `retry-after` (seconds or an HTTP date against the answer's own date)."""
    found = {name.lower(): value for name, value in headers}
    value = found.get(b"retry-after-ms")
    if value is not None and _NUMBER.fullmatch(text := value[:64].decode("latin-1").strip()):
        return _bounded(float(text) / 1000)
    value = found.get(b"retry-after")
    if value is None:
        return None
    if _NUMBER.fullmatch(text := value[:64].decode("latin-1").strip()):
        return _bounded(float(text))
    until, now = parse_http_date(value), parse_http_date(found.get(b"date", b""))
    if until is None or now is None:
        return None
    return _bounded(max(until - now, 0.0))
