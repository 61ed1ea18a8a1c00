"""yugong.core.dialects.faults: how a table is read, and what is hidden from whom."""

import time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yugong.base.errors import Fault, Penalty, Scope
from yugong.core.dialects.dialect import LimitFault
from yugong.core.dialects.faults import (
    ErrorBody,
    Row,
    clean_error,
    judge_by,
    judge_success,
    read_error,
    read_error_object,
    redact,
)

TABLE = (
    Row("page", Scope.ORIGIN, Penalty.COUNT, html=True),
    Row("coded", Scope.KEY, Penalty.QUARANTINE, statuses={401}, codes={"c"}, types={"t"}, text="words"),
    Row("limited", Scope.MODEL, Penalty.COOL, statuses={429}),
    Row("rest", Scope.CALLER, Penalty.NONE, html=False, retry=False),
)


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (500, ErrorBody(is_html=True), "page"),
        (401, ErrorBody("c"), "coded"),
        (401, ErrorBody("", "t"), "coded"),
        (401, ErrorBody("", "", "some WORDS here"), "coded"),
        (401, ErrorBody(), "rest"),
        (400, ErrorBody("c"), "rest"),
        (429, ErrorBody("c"), "limited"),
    ],
)
def test_the_first_row_that_matches(status: int, error: ErrorBody, kind: str) -> None:
    assert judge_by(TABLE, status, [], error).kind == kind


def test_a_fault_carries_what_the_row_says() -> None:
    fault = judge_by(TABLE, 401, [(b"retry-after", b"3")], ErrorBody("c", "", "key sk-abcdefgh of a@b.io"))
    assert repr(fault) == "<Fault coded key 401 retry quarantine wait=3s>"
    assert fault.detail == "key [redacted] of [redacted]"
    assert repr(TABLE[1]) == "<Row coded key quarantine>"


MESSAGE = "Rate limit reached for m in organization org-Ab1 on {} (X): Limit 30000, Used 29937, Requested 385."


@pytest.mark.parametrize(
    ("message", "type_", "figures"),
    [
        (MESSAGE.format("tokens per min"), "tokens", ("tokens", 30000, 29937, 385)),
        (MESSAGE.format("requests per day"), "requests", ("requests_day", 30000, 29937, 385)),
        (MESSAGE.format("input images per minute"), "", ("input_images", 30000, 29937, 385)),
        ("U\u017fed 5, limit \u0661, to\u212aens per min", "", (None, None, None, None)),
        ("slow", "requests", ("requests", None, None, None)),
        ("slow", "other", (None, None, None, None)),
        ("your organization's rate limit of 30,000 input tokens per minute", "", ("input_tokens", 30000, None, None)),
    ],
)
def test_figures_of_a_limit(message: str, type_: str, figures: tuple[object, ...]) -> None:
    fault = judge_by(TABLE, 429, [], ErrorBody("", type_, message))
    assert isinstance(fault, LimitFault)
    assert (fault.dimension, fault.limit, fault.used, fault.requested) == figures


@pytest.mark.parametrize(
    ("header", "text", "wait"),
    [
        (b"1", "try again in 644ms", 0.644),  # the header rounds up
        (b"1", "try again in 1.2s", 1),
        (b"60", "try again in 2s", 60),
        (b"5", "", 5),
        (None, "try again in 2s", 2),
        (None, "", None),
    ],
)
def test_the_wait_is_the_headers_as_exact_as_the_text_knows_it(header: bytes | None, text: str, wait: object) -> None:
    headers = [] if header is None else [(b"retry-after", header)]
    assert judge_by(TABLE, 429, headers, ErrorBody(message=text)).wait == wait


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error":{"code":"c","type":"t","message":"m"}}', "<ErrorBody t/c 'm'>"),
        (b'{"error":{"code":429,"type":null,"message":"m"}}', "<ErrorBody /429 'm'>"),
        (b'{"error":{"type":"t","details":{"error_code":"c"}}}', "<ErrorBody t/c ''>"),
        (b'{"error":"text","code":"c"}', "<ErrorBody /c 'text'>"),
        (b'[{"error":{"code":"c"}}]', "<ErrorBody /c ''>"),
        (b'{"code":"c","detail":"d"}', "<ErrorBody /c 'd'>"),
        (b'{"error_msg":"d","error_code":1}', "<ErrorBody / 'd'>"),
        (b'{"message":["x"],"code":true}', "<ErrorBody / ''>"),
        (b'{"error":{"code":"c","type":"t","x', """<ErrorBody t/c '{"error":{"code":"c","type":"t","x'>"""),
        (b'{"error":{"message":"m","x', "<ErrorBody / 'm'>"),
        (b"plain words", "<ErrorBody / 'plain words'>"),
        (b"\n<html><body>", "<ErrorBody html/ ''>"),
        (b"<!DOCTYPE html>", "<ErrorBody html/ ''>"),
        (b"", "<ErrorBody / ''>"),
        (b"7", "<ErrorBody / ''>"),
        (b"[]", "<ErrorBody / ''>"),
    ],
)  # fmt: skip
def test_shapes_of_errors(body: bytes, said: str) -> None:
    assert repr(read_error(body)) == said


@pytest.mark.parametrize(
    ("status", "headers", "body", "fault"),
    [
        (200, [(b"Content-Type", b"Text/HTML; charset=utf-8")], b"<html>", "<Fault page origin 200 retry count>"),
        (200, [(b"content-type", b"application/json")], b"", "<Fault empty_answer origin 200 retry count>"),
        (200, [(b"content-type", b"application/json")], b"{}", "None"),
        (204, [(b"content-type", b"application/json")], b"", "None"),
        (200, [], b"", "None"),
        (304, [(b"content-type", b"text/html")], b"", "None"),
    ],
)
def test_successes_that_are_none(status: int, headers: list[tuple[bytes, bytes]], body: bytes, fault: str) -> None:
    assert repr(judge_success(TABLE, status, headers, body)) == fault


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (b"key sk-proj-Ab12_x-y***************zA9 is", b"key [redacted] is"),
        (b"sk-ant-api03-AbCd, ek_1, rk-aaaa", b"[redacted], ek_1, [redacted]"),
        (b"org-Ab12 proj_Ab12 wrkspc_01Ab", b"[redacted] [redacted] [redacted]"),
        (b"in organization Acme (Berlin) on tokens", b"in organization [redacted] on tokens"),
        (b"in project proj_x1y on requests", b"in project [redacted] on requests"),
        (b"ask bob+x@example.co.uk now", b"ask [redacted] now"),
        (b"task-force disk-usage organic ask-me", b"task-force disk-usage organic ask-me"),
        (b"gpt-4o risk-free", b"gpt-4o risk-free"),
    ],
)
def test_redaction(text: bytes, clean: bytes) -> None:
    assert redact(text) == clean


def fault(scope: Scope) -> Fault:
    return Fault("x", scope)


def test_an_error_without_secrets_is_passed_on_as_it_came() -> None:
    body = b'{ "error" : {"message":"bad \\u0041","type":"t","param":"p","code":null} }'
    assert clean_error(fault(Scope.CALLER), body) is body


def test_no_escape_hides_a_key() -> None:
    body = b'{"error":{"message":"key \\u0073k-abcdef \\"org-Ab1\\"","type":"t","param":null,"code":"c"}}'
    cleaned = clean_error(fault(Scope.KEY), body)
    assert cleaned is not None
    assert orjson.loads(cleaned)["error"] == {
        "message": 'key [redacted] "[redacted]"',
        "type": "t",
        "param": None,
        "code": "c",
    }


def test_addresses_in_the_callers_own_errors_are_its_own() -> None:
    body = b'{"error":{"message":"a@b.io is no model"}}'
    assert clean_error(fault(Scope.CALLER), body) is body
    assert clean_error(fault(Scope.ORG), body) == b'{"error":{"message":"[redacted] is no model"}}'


@pytest.mark.parametrize("body", [b"", b"<html>", b"7", b'"sk-abcdef"', b"[" * 300 + b"]" * 300])
def test_what_is_no_error_is_not_shown(body: bytes) -> None:
    assert clean_error(fault(Scope.ORIGIN), body) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "code", "type", "message", "detail", "details", "error_code"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@given(JSON, st.binary(max_size=60), st.sampled_from([0, 200, 400, 401, 429, 500]))
def test_nothing_raises(document: object, noise: bytes, status: int) -> None:
    for body in (orjson.dumps(document), orjson.dumps(document)[:-1], noise):
        judge_by((*TABLE, Row("all", Scope.CALLER, Penalty.NONE)), status, [], read_error(body))
        cleaned = clean_error(fault(Scope.KEY), body)
        assert cleaned is None or orjson.loads(cleaned) is not None
    read_error_object(document)


@pytest.mark.parametrize(
    "unit",
    [b"a", b"sk-", b"a@", b"a.", b"in organization a", b"\\", b'"message":"', b"try again in 1", b"1s", b"<", b" "],
)
def test_no_pattern_runs_away(unit: bytes) -> None:
    body = unit * (64 * 1024 // len(unit))
    started = time.perf_counter()
    error = read_error(body)
    judge_by(TABLE, 429, [], error)
    redact(body)
    clean_error(fault(Scope.KEY), orjson.dumps({"error": {"message": body.decode()}}))
    assert time.perf_counter() - started < 2
