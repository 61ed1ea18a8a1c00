"""yugong.core.dialects.wire: what is written stays in its place."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yugong.base.errors import Refusal, RefusalKind
from yugong.core.dialects.dialect import Intent
from yugong.core.dialects.waits import parse_duration
from yugong.core.dialects.wire import (
    header_lines,
    limit_headers,
    read_limits,
    refusal_headers,
    rename_model,
    without_keys,
)


def test_header_lines() -> None:
    assert header_lines([("A", "x y"), ("B", "")]) == b"A: x y\r\nB: \r\n"


@pytest.mark.parametrize(("name", "value"), [("A", "x\r\nB: y"), ("A", "é"), ("A\n", "x"), ("Ä", "x"), ("A", "\0")])
def test_nothing_breaks_out_of_a_header(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="no header may have") as caught:
        header_lines([(name, value)])
    assert value not in str(caught.value) or not value.isprintable() or value == "x"


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        ("/v1/a", "/v1/a"),
        ("/v1/a?b=1&key=sk-1&c=%20", "/v1/a?b=1&c=%20"),
        ("/v1/a?key=1", "/v1/a"),
        ("/v1/a?k%65y=1&API_KEY=2&api-key=3&monkey=4", "/v1/a?monkey=4"),
        ("/v1/a?", "/v1/a?"),
        ("/v1/a?b=?key=1", "/v1/a?b=?key=1"),
    ],
)
def test_no_key_travels_in_a_query(path: str, clean: str) -> None:
    assert without_keys(path) == clean


@given(st.text(st.characters(codec="ascii"), max_size=40))
def test_other_queries_travel_untouched(path: str) -> None:
    if "k" not in path.lower() and "%" not in path:
        assert without_keys(path) == path


def test_renaming() -> None:
    intent = Intent("x")
    body = b'{"messages":[{"model":"a"}], "model" : "a"}'
    assert rename_model(intent, body, "b") is body
    intent.model = "a"
    assert rename_model(intent, body, 'b"') == b'{"messages":[{"model":"a"}], "model" : "b\\""}'
    assert rename_model(intent, b"{}", "b") == b"{}"
    intent.model_span = (2, 3)
    assert rename_model(intent, b"--a--", "bb") == b"--bb--"


@pytest.mark.parametrize(
    ("after", "lines"),
    [
        (None, []),
        (0.25, [(b"retry-after", b"1"), (b"retry-after-ms", b"250")]),
        (2.1, [(b"retry-after", b"3"), (b"retry-after-ms", b"2100")]),
        (-5.0, [(b"retry-after", b"1"), (b"retry-after-ms", b"0")]),
    ],
)
def test_refusals_say_when_to_come_back(after: float | None, lines: list[tuple[bytes, bytes]]) -> None:
    refusal = Refusal(RefusalKind.NO_ROOM, "x", retry_after=after)
    assert refusal_headers(refusal, b"request-id", "yg_1") == [
        (b"content-type", b"application/json"),
        (b"request-id", b"yg_1"),
        *lines,
    ]


NAMES = limit_headers("x-{field}-{dimension}", ["requests", "input-tokens"])


@pytest.mark.parametrize(
    ("headers", "reports"),
    [
        ([], "[]"),
        (
            [(b"x-limit-requests", b"60"), (b"x-remaining-requests", b"0"), (b"x-reset-requests", b"6m0s")],
            "[<LimitReport requests 0/60 full in 360.0s>]",
        ),
        ([(b"x-limit-input-tokens", b"5")], "[<LimitReport input_tokens None/5 full in Nones>]"),
        ([(b"x-limit-requests", b"0"), (b"x-remaining-requests", b"-1"), (b"x-reset-requests", b"soon")], "[]"),
        ([(b"x-limit-requests", b"1.5"), (b"x-limit-bananas", b"7"), (b"server", b"x")], "[]"),
        ([(b"x-limit-requests", b"9" * 40)], "[]"),
    ],
)
def test_limits(headers: list[tuple[bytes, bytes]], reports: str) -> None:
    assert repr(read_limits(headers, NAMES, parse_duration)) == reports


@given(st.lists(st.tuples(st.sampled_from([*NAMES, b"x"]), st.binary(max_size=20))))
def test_noise_in_limits(headers: list[tuple[bytes, bytes]]) -> None:
    for report in read_limits(headers, NAMES, parse_duration):
        assert report.limit is None or report.limit > 0
        assert report.remaining is None or report.remaining >= 0
        assert report.reset is None or report.reset >= 0


def test_a_refusal_fits_json() -> None:
    assert orjson.dumps({"m": str(Refusal(RefusalKind.INTERNAL, "é"))})
