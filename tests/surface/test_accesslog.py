"""One line a call: whole, on one line, without secrets."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yugong.surface import accesslog
from yugong.surface.accesslog import FIELDS, TEXT_MAX, AccessLog, Line
from yugong.surface.meters import Registry
from yugong.surface.metrics import Meters


def log(**options: Any) -> tuple[AccessLog, Meters]:
    meters = Meters(Registry())
    return AccessLog(meters.access_log_dropped, **options), meters


def call(**changes: Any) -> Any:
    fields = {
        "id": "yg_1",
        "client": "192.0.2.1",
        "account": "acme",
        "key_id": "k1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "dialect_name": "openai",
        "operation": "chat.completions",
        "model": "gpt-4o",
        "is_stream": False,
        "status": 200,
        "org": "org-1",
        "attempts": 1,
        "reason": None,
        "first_byte": 0.012345,
        "duration": 0.25,
        "bytes_in": 10,
        "bytes_out": 20,
        "usage": SimpleNamespace(input=1, cached=2, output=3, reasoning=4),
        "agent": "OpenAI/Python",
    }
    return SimpleNamespace(**{**fields, **changes})


def test_a_line_holds_every_field_that_is_documented() -> None:
    access, _ = log()
    access.put(call())
    line = json.loads(access.take())
    assert list(line) == list(FIELDS) == list(Line.__struct_fields__)
    assert line["first_byte_ms"] == 12.34
    assert line["duration_ms"] == 250.0
    assert (line["input_tokens"], line["reasoning_tokens"]) == (1, 4)
    assert access.take() == b""
    assert access.size == 0


def test_the_query_is_left_out() -> None:
    """A query can hold a key (`?key=` of Google's dialect)."""
    access, _ = log()
    access.put(call(path="/v1/models?key=sk-secret"))
    line = access.take()
    assert b"secret" not in line
    assert json.loads(line)["path"] == "/v1/models"


@given(st.text(), st.text(alphabet=st.characters(max_codepoint=0x9F)), st.binary(max_size=50))
def test_a_line_stays_a_line(path: str, model: str, agent: bytes) -> None:
    """Threat 33. Header bytes come as latin-1 or with lone surrogates; neither may break the line or a terminal."""
    access, _ = log()
    access.put(call(path=path, model=model, agent=agent.decode("utf-8", "surrogateescape")))
    line = access.take()
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    text = line.decode()
    assert not any(c < " " or "\x7f" <= c <= "\x9f" for c in text[:-1])
    json.loads(text)


def test_long_texts_are_cut() -> None:
    access, _ = log()
    access.put(call(path="/" + "a" * 100_000, model="é" * 100_000, agent="b" * 100_000))
    line = json.loads(access.take())
    assert {len(line["path"]), len(line["model"]), len(line["agent"])} == {TEXT_MAX}


def test_the_newest_are_dropped_and_counted_when_nobody_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accesslog, "RING_MAX", 1000)
    access, meters = log()
    for _ in range(100):
        access.put(call())
    kept = access.take().count(b"\n")
    assert 0 < kept < 100
    assert meters.access_log_dropped.labels("full").value == 100 - kept


def test_nothing_is_kept_where_no_log_is_wanted() -> None:
    access, meters = log(is_on=False)
    access.put(call())
    assert access.take() == b""
    assert meters.access_log_dropped.labels("full").value == 0


@pytest.mark.parametrize(
    ("now", "shown"), [(0.0, "1970-01-01T00:00:00.000Z"), (1700000000.9996, "2023-11-14T22:13:20.999Z")]
)
def test_time_is_utc_to_the_millisecond(now: float, shown: str) -> None:
    access, _ = log()
    access._clock = lambda: now
    access.put(call())
    assert json.loads(access.take())["time"] == shown
    assert repr(access) == "<AccessLog on waiting=0 0B>"
