"""yugong.core.dialects.reading: read strictly where it must be, left alone where it may."""

import pytest

from yugong.base.errors import Refusal, RefusalKind
from yugong.core.dialects import reading
from yugong.core.dialects.operations import Operation, Table
from yugong.core.dialects.reading import (
    MAX_N,
    MAX_OUTPUT,
    answers,
    check_model,
    open_intent,
    output_bound,
    read_document,
    read_form,
)

STRICT = Operation("POST", "/strict", "strict", model="required", stream="s", repeatable=True)
LAX = Operation("POST", "/lax", "lax")
TABLE = Table((STRICT, LAX), {})


def test_what_method_and_path_tell() -> None:
    intent, row = open_intent(TABLE, "POST", "/v1/strict?model=m&model=n&stream=true&stream=false&x", b"12345")
    assert row is STRICT
    assert repr(intent) == "<Intent strict model=m stream in=5B max_out=None>"
    assert (intent.needs_model, intent.is_repeatable, intent.is_metered, intent.stream_rule) == (True, True, True, "s")
    intent, _ = open_intent(TABLE, "POST", "/v1/strict", b"")
    assert repr(intent) == "<Intent strict model=None in=0B max_out=None>"


def test_a_query_without_end_is_read_so_far() -> None:
    intent, _ = open_intent(TABLE, "POST", "/v1/strict?" + "&".join(f"a{i}=1" for i in range(1000)) + "&model=m", b"")
    assert intent.model is None


@pytest.mark.parametrize("body", [b'{"a":1,"a":2}', b' {"a":{"b":1,"b":2}}'])
@pytest.mark.parametrize("row", [STRICT, LAX])
def test_two_meanings_are_refused_everywhere(row: Operation, body: bytes) -> None:
    with pytest.raises(Refusal, match="twice") as caught:
        read_document(row, body)
    assert caught.value.kind is RefusalKind.BAD_JSON


@pytest.mark.parametrize("body", [b"{", b"nonsense", b'{"a":NaN}', b"\x00", b"a,b\n1,2"])
def test_what_is_no_json_is_refused_only_where_it_must_be_read(body: bytes) -> None:
    assert read_document(LAX, body) is None
    with pytest.raises(Refusal, match="could not parse"):
        read_document(STRICT, body)


def test_what_need_not_be_read_is_not_read_if_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_IDLE_READ", 5)
    assert read_document(LAX, b'{"a":1}') is None
    assert read_document(STRICT, b'{"a":1}') == {"a": 1}
    assert read_document(STRICT, b"[1]") is None


TYPE = b"multipart/form-data; boundary=X"


def form(**fields: str) -> bytes:
    parts = (
        f'--X\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()
    )
    return "".join(parts).encode() + b"--X--\r\n"


@pytest.mark.parametrize(
    ("fields", "seen"),
    [
        ({"model": "whisper-1", "stream": "true", "n": "3"}, ("whisper-1", True, 3)),
        ({"model": "", "stream": "false", "n": "-3"}, (None, False, 1)),
        ({"n": "99999999999"}, (None, False, 1)),
        ({"n": "²"}, (None, False, 1)),
        ({}, (None, False, 1)),
    ],
)
def test_forms(fields: dict[str, str], seen: tuple[object, ...]) -> None:
    intent, _ = open_intent(TABLE, "POST", "/v1/strict", b"")
    body = form(**fields)
    read_form(intent, TYPE, body)
    assert (intent.model, intent.is_stream, intent.n) == seen
    if intent.model_span:
        start, end = intent.model_span
        assert body[start:end] == b"whisper-1"


def test_models() -> None:
    intent, _ = open_intent(TABLE, "POST", "/v1/strict", b"")
    with pytest.raises(Refusal) as caught:
        check_model(intent)
    assert repr(caught.value) == "<Refusal model_required 400: you must provide a model parameter>"
    check_model(intent, is_excused=True)
    intent.model = "m" * 256
    check_model(intent)
    intent.model = "m" * 257
    with pytest.raises(Refusal) as caught:
        check_model(intent)
    assert caught.value.kind is RefusalKind.UNKNOWN_MODEL


@pytest.mark.parametrize("value", [None, 0, -1, 1.5, "3", True, [], 10**30])
def test_figures_are_clamped(value: object) -> None:
    assert 1 <= answers(value) <= MAX_N
    bound = output_bound(value)
    assert bound is None or bound == MAX_OUTPUT
    assert answers(3) == output_bound(3) == 3
