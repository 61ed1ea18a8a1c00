"""yugong.core.dialects.anthropic: what the vectors do not say (they are run by test_dialects)."""

import json

import pytest

from yugong.base.errors import Fault, Refusal, RefusalKind, Scope
from yugong.core.dialects import anthropic_faults
from yugong.core.dialects.anthropic import DIALECT
from yugong.core.dialects.dialect import Intent
from yugong.core.dialects.taps import ByteTap, JsonTap, SseTap

VERSION = frozenset({b"anthropic-version"})


@pytest.mark.parametrize(
    ("path", "header_names", "is_ours"),
    [
        ("/v1/messages", frozenset(), True),
        ("/v1/messages/batches", frozenset(), True),
        ("/v1/messagesx", frozenset(), False),
        ("/v1/models", VERSION, True),
        ("/v1/models", frozenset(), False),
        ("/v1/chat/completions", VERSION, False),
    ],
)
def test_claims(path: str, header_names: frozenset[bytes], is_ours: bool) -> None:
    assert DIALECT.claims("POST", path, header_names) is is_ours


def test_credentials() -> None:
    assert DIALECT.credentials("sk-ant-1", None, "ignored", "wrkspc_1") == (
        b"x-api-key: sk-ant-1\r\nanthropic-workspace-id: wrkspc_1\r\n"
    )
    assert DIALECT.credentials("t", "Authorization", None, None) == b"Authorization: Bearer t\r\n"


@pytest.mark.parametrize(
    ("kind", "status", "type_"),
    [
        (RefusalKind.BAD_JSON, 400, "invalid_request_error"),
        (RefusalKind.INVALID_KEY, 401, "authentication_error"),
        (RefusalKind.NO_BALANCE, 402, "billing_error"),
        (RefusalKind.FORBIDDEN, 403, "permission_error"),
        (RefusalKind.UNKNOWN_MODEL, 404, "not_found_error"),
        (RefusalKind.TOO_LARGE, 413, "request_too_large"),
        (RefusalKind.NO_ROOM, 429, "rate_limit_error"),
        (RefusalKind.INTERNAL, 500, "api_error"),
        (RefusalKind.NO_UPSTREAM, 529, "overloaded_error"),
        (RefusalKind.OVERLOADED, 529, "overloaded_error"),
        (RefusalKind.UPSTREAM_TIMEOUT, 504, "timeout_error"),
        (RefusalKind.NO_SPACE, 507, "api_error"),
    ],
)
def test_refusals(kind: RefusalKind, status: int, type_: str) -> None:
    got, headers, body = DIALECT.refuse(Refusal(kind, "No."), "yg_1-1")
    assert got == status
    assert headers == [(b"content-type", b"application/json"), (b"request-id", b"yg_1-1")]
    assert json.loads(body) == {
        "type": "error",
        "error": {"type": type_, "message": "No."},
        "request_id": "yg_1-1",
    }


def test_what_cannot_be_shown() -> None:
    for status, type_ in ((429, "rate_limit_error"), (502, "api_error")):
        shown = json.loads(DIALECT.refuse_fault(Fault("x", Scope.ORIGIN, status=status), b"<html>"))
        assert shown["error"]["type"] == type_


def test_a_stream_error_ends_a_stream() -> None:
    intent = Intent("messages")
    intent.stream_rule = "messages"
    tap = DIALECT.tap(intent, 200, b"text/event-stream")
    event = DIALECT.stream_error(Refusal(RefusalKind.BAD_UPSTREAM, "Broken."), intent)
    assert event == b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"Broken."}}\n\n'
    tap.feed(event)
    assert tap.has_failed()
    assert tap.is_complete()


def test_taps() -> None:
    intent = Intent("messages")
    for status, content_type, kind in (
        (200, b"application/json", JsonTap),
        (200, b"text/event-stream", SseTap),
        (200, b"application/x-jsonl", ByteTap),
        (500, b"application/json", ByteTap),
    ):
        assert type(DIALECT.tap(intent, status, content_type)) is kind


def test_paths_lose_keys_only() -> None:
    assert DIALECT.upstream_path("/v1/messages?beta=true&key=1") == "/v1/messages?beta=true"


def test_fault_kinds_are_bounded_labels() -> None:
    assert all(kind.isidentifier() for kind in anthropic_faults.KINDS)
    assert anthropic_faults.TABLE[-1].kind == "caller"
