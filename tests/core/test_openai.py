"""yugong.core.dialects.openai: what the vectors do not say (they are run by test_dialects)."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yugong.base.errors import Fault, Refusal, RefusalKind, Scope
from yugong.core.dialects import openai_faults
from yugong.core.dialects.dialect import Intent, Usage
from yugong.core.dialects.openai import DIALECT
from yugong.core.dialects.openai_operations import TABLE
from yugong.core.dialects.openai_usage import RULES, read_usage
from yugong.core.dialects.taps import ByteTap, JsonTap, SseTap, StrippingTap

OPTIONS = st.none() | st.dictionaries(
    st.sampled_from(["include_usage", "include_obfuscation", "x"]), st.none() | st.booleans(), max_size=3
)


@given(
    st.lists(st.sampled_from(["model", "stream", "stream_options", "messages", "user"]), unique=True),
    OPTIONS,
    st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " :\t")]),
    st.sampled_from(["m", 'stream_options"', "\u005c", "é"]),
)
def test_usage_is_asked_for_and_nothing_else_changes(
    order: list[str], options: dict[str, bool | None] | None, separators: tuple[str, str], text: str
) -> None:
    values = {"model": "m", "stream": True, "stream_options": options, "messages": [{"model": text}], "user": text}
    document = {name: values[name] for name in [*order, *({"model", "stream"} - set(order))]}
    body = json.dumps(document, separators=separators, ensure_ascii=False).encode()
    intent = DIALECT.read("POST", "/v1/chat/completions", b"application/json", body)
    prepared = DIALECT.prepare(intent, body, "other")
    asked = json.loads(bytes(prepared))
    expected = {**(document.get("stream_options") or {}), "include_usage": True}
    assert asked == {**document, "model": "other", "stream_options": expected}
    assert intent.adds_usage is ((document.get("stream_options") or {}).get("include_usage") is not True)


def test_credentials() -> None:
    assert DIALECT.credentials("sk-1", None, "org-1", "proj_1") == (
        b"Authorization: Bearer sk-1\r\nOpenAI-Organization: org-1\r\nOpenAI-Project: proj_1\r\n"
    )
    assert DIALECT.credentials("k", "api-key", None, None) == b"api-key: k\r\n"


@pytest.mark.parametrize(
    ("path", "upstream"),
    [
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/openai/v1/chat/completions?a=1&key=sk-1", "/v1/chat/completions?a=1"),
        ("/openai/v1", "/v1"),
        ("/openai/v2/x", "/openai/v2/x"),
        ("/v1/files/a%2Fb?x=%20", "/v1/files/a%2Fb?x=%20"),
    ],
)
def test_paths(path: str, upstream: str) -> None:
    assert DIALECT.upstream_path(path) == upstream


def test_prefix_is_a_whole_segment() -> None:
    assert DIALECT.upstream_path("/openai/v10/x") == "/openai/v10/x"


@pytest.mark.parametrize(
    ("kind", "status", "type_", "code"),
    [
        (RefusalKind.INVALID_KEY, 401, "invalid_request_error", "invalid_api_key"),
        (RefusalKind.NO_MODEL, 400, "invalid_request_error", "model_required"),
        (RefusalKind.UNKNOWN_MODEL, 404, "invalid_request_error", "model_not_found"),
        (RefusalKind.NO_ROOM, 429, "requests", "rate_limit_exceeded"),
        (RefusalKind.RATE_LIMITED, 429, "rate_limit_error", "rate_limit_exceeded"),
        (RefusalKind.NO_BALANCE, 429, "insufficient_quota", "insufficient_quota"),
        (RefusalKind.BAD_UPSTREAM, 502, "server_error", "upstream_error"),
        (RefusalKind.NO_UPSTREAM, 503, "service_unavailable_error", "no_upstream_available"),
    ],
)
def test_refusals(kind: RefusalKind, status: int, type_: str, code: str) -> None:
    got, headers, body = DIALECT.refuse(Refusal(kind, "é", param="p"), "yg_1-1")
    assert got == status
    assert headers == [(b"content-type", b"application/json"), (b"x-request-id", b"yg_1-1")]
    assert json.loads(body) == {"error": {"message": "é", "type": type_, "param": "p", "code": code}}


@pytest.mark.parametrize(
    ("rule", "start"),
    [
        ("chat", b'data: {"error":{"message":"Broken."'),
        ("responses", b'event: error\ndata: {"message":"Broken."'),
        ("assistants", b'event: error\ndata: {"error":{"message":"Broken."'),
    ],
)
def test_stream_errors(rule: str, start: bytes) -> None:
    intent = Intent("x")
    intent.stream_rule = rule
    event = DIALECT.stream_error(Refusal(RefusalKind.BAD_UPSTREAM, "Broken."), intent)
    assert event.startswith(start)
    tap = SseTap(RULES[rule], intent)
    tap.feed(event)
    assert tap.has_failed()
    assert tap.is_complete()


def test_an_unreadable_429_is_still_a_429() -> None:
    shown = json.loads(DIALECT.refuse_fault(Fault("x", Scope.EGRESS, status=429), b"<html>"))
    assert shown["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize(
    ("status", "content_type", "adds_usage", "kind"),
    [
        (200, b"application/json", True, JsonTap),
        (200, b"text/event-stream", True, StrippingTap),
        (200, b"text/event-stream; charset=utf-8", False, SseTap),
        (400, b"text/event-stream", True, ByteTap),
        (200, b"audio/mpeg", False, ByteTap),
        (200, b"", False, ByteTap),
    ],
)
def test_taps(status: int, content_type: bytes, adds_usage: bool, kind: type) -> None:
    intent = Intent("chat.completions")
    intent.stream_rule = "chat"
    intent.adds_usage = adds_usage
    tap = DIALECT.tap(intent, status, content_type)
    assert type(tap) is kind
    assert tap.is_transparent is (kind is not StrippingTap)


@pytest.mark.parametrize("document", [{}, {"usage": None}, {"usage": {}}, {"response": 7}, {"response": {"usage": 7}}])
def test_silence_leaves_usage_as_it_was(document: dict[str, object]) -> None:
    known = Usage(1, 2)
    assert read_usage(known, document) is known


def test_every_stream_rule_exists() -> None:
    rows = [*TABLE._exact.values(), *TABLE._families.values(), *TABLE._other.values()]
    assert {row.stream for row in rows} == set(RULES)


def test_fault_kinds_are_bounded_labels() -> None:
    assert all(kind.isidentifier() for kind in openai_faults.KINDS)
    assert openai_faults.TABLE[-1].kind == "caller"


@pytest.mark.parametrize("document", [None, 7, [], {"response": {}}, {"status": "x"}, {"status": 200}, {"error": []}])
def test_strange_error_events(document: object) -> None:
    assert openai_faults.judge_event(document).kind == "unnamed_error"
