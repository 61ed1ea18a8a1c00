"""Anthropic's dialect: the Messages API and what stands around it.

Claims what says so (`anthropic-version`, which every client of it must send) or is under `/v1/messages`. Usage is said
twice in a stream, at its start and, cumulative, near its end. It knows nothing of pools, money or retries.
Sources: facts/providers.md §3–5, anthropic 2.10.
"""

from __future__ import annotations

from urllib.parse import unquote

import orjson

from yugong.base.errors import Fault, Refusal, RefusalKind
from yugong.core.dialects import anthropic_faults
from yugong.core.dialects.dialect import Body, Dialect, FirstEvent, Headers, Intent, LimitReport, Tap, Usage
from yugong.core.dialects.faults import clean_error
from yugong.core.dialects.operations import Operation, Table
from yugong.core.dialects.reading import check_model, open_intent, output_bound, read_document
from yugong.core.dialects.taps import ByteTap, Document, JsonTap, SseTap, StreamRule, count
from yugong.core.dialects.waits import parse_http_date, parse_rfc3339
from yugong.core.dialects.wire import (
    header_lines,
    limit_headers,
    read_limits,
    refusal_headers,
    rename_model,
    without_keys,
)
from yugong.core.sse import read_event

_VERSION = b"anthropic-version"

_TABLE = Table(
    (
        Operation("POST", "/messages", "messages", model="required", stream="messages", repeatable=True),
        Operation(
            "POST",
            "/messages/count_tokens",
            "messages.count_tokens",
            model="required",
            repeatable=True,
            metered=False,
        ),
        Operation("GET", "/models", "models.list", repeatable=True, metered=False),
        Operation("GET", "/models/{}", "models", repeatable=True, metered=False),
    ),
    dict.fromkeys(
        (
            "agents",
            "complete",
            "environments",
            "files",
            "memory_stores",
            "messages",
            "models",
            "organizations",
            "sessions",
            "skills",
            "vaults",
        ),
        "",
    ),
    prefixes=("/v1/",),
)

_LIMIT_HEADERS = limit_headers(
    "anthropic-ratelimit-{dimension}-{field}", ("requests", "tokens", "input-tokens", "output-tokens")
)

#: Said before any content; nothing is lost if the call is made anew.
_PREAMBLE = frozenset({"message_start", "content_block_start", "ping"})

#: Refusal to (status, error type) where the refusal's own status is not Anthropic's.
_STATUSES = {RefusalKind.NO_BALANCE: 402, RefusalKind.OVERLOADED: 529, RefusalKind.NO_UPSTREAM: 529}
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    431: "invalid_request_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def read_usage(known: Usage | None, document: Document) -> Usage | None:
    """Usage of an answer or event laid over what was known: later figures replace earlier ones, null says nothing.

    Of `message_start` alone it is marked as estimated: it knows the input, but hardly any of the output.
    """
    is_start = document.get("type") == "message_start"
    message = document.get("message")
    holder = message if isinstance(message, dict) else document
    said = holder.get("usage")
    if not isinstance(said, dict) or not said:
        return known
    raw = {**(known.raw or {} if known else {}), **{name: value for name, value in said.items() if value is not None}}
    cached = count(raw.get("cache_read_input_tokens"))
    written = count(raw.get("cache_creation_input_tokens"))
    # Anthropic's input excludes the cache; ours is all of it.
    usage = Usage(count(raw.get("input_tokens")) + cached + written, count(raw.get("output_tokens")))
    usage.cached = cached
    usage.cache_write = written
    details = raw.get("output_tokens_details")
    usage.reasoning = count(details.get("thinking_tokens")) if isinstance(details, dict) else 0
    tier = raw.get("service_tier")
    usage.service_tier = tier[:32] if isinstance(tier, str) else None
    usage.is_estimated = is_start
    usage.raw = raw
    return usage


_RULES = {
    "messages": StreamRule("messages", read_usage, frozenset({b"message_stop", b"error"})),
    "": StreamRule("", read_usage, None),
}


class Anthropic:
    """See `Dialect`."""

    name = "anthropic"

    def __repr__(self) -> str:
        return "<Anthropic dialect>"

    def claims(self, method: str, path: str, header_names: frozenset[bytes]) -> bool:
        """OpenAI's chat path stays OpenAI's: Anthropic serves it too, in OpenAI's words."""
        if path.startswith("/v1/messages"):
            return path[12:13] in {"", "/"}
        return _VERSION in header_names and not path.startswith("/v1/chat/")

    def read(self, method: str, path: str, content_type: bytes, body: Body) -> Intent:
        intent, row = open_intent(_TABLE, method, path, body)
        if not intent.input_bytes:
            if row.label == "models":
                intent.model = unquote(path.partition("?")[0]).rstrip("/").rpartition("/")[2]
        elif content_type[:9].lower() != b"multipart":
            document = read_document(row, body)
            if document is not None:
                model = document.get("model")
                intent.model = model if type(model) is str and model else None
                intent.is_stream = document.get("stream") is True
                intent.max_output = output_bound(document.get("max_tokens"))
        check_model(intent)
        return intent

    def prepare(self, intent: Intent, body: Body, model: str | None) -> Body:
        return body if model is None or model == intent.model else rename_model(intent, body, model)

    def credentials(self, secret: str, header: str | None, organization: str | None, project: str | None) -> bytes:
        """`project` is a workspace; an organization is not named in calls."""
        name = header or "x-api-key"
        lines = [(name, f"Bearer {secret}" if name.lower() == "authorization" else secret)]
        if project:
            lines.append(("anthropic-workspace-id", project))
        return header_lines(lines)

    def upstream_path(self, raw_path: str) -> str:
        return without_keys(raw_path)

    def judge(self, status: int, headers: Headers, body: bytes) -> Fault | None:
        return anthropic_faults.judge(status, headers, body)

    def limits(self, headers: Headers) -> list[LimitReport]:
        """Resets are points in time, counted from the answer's own date; without one they are unsaid."""
        now = next((parse_http_date(value) for name, value in headers if name == b"date"), None)

        def seconds_until(value: bytes) -> float | None:
            moment = parse_rfc3339(value)
            return None if now is None or moment is None else max(moment - now, 0.0)

        return read_limits(headers, _LIMIT_HEADERS, seconds_until)

    def has_limits(self, name: bytes) -> bool:
        return name in _LIMIT_HEADERS

    def first_event(self, event: bytes) -> str | Fault:
        """WAIT covers comments, pings, `message_start` and `content_block_start`: content begins with a delta."""
        name, data = read_event(event)
        if not data:
            return FirstEvent.WAIT
        try:
            document = orjson.loads(data)
        except orjson.JSONDecodeError:
            return FirstEvent.CONTENT
        if not isinstance(document, dict):
            return FirstEvent.CONTENT
        kind = name.decode("utf-8", "replace") or document.get("type")
        if kind == "error" or document.get("error"):
            return anthropic_faults.judge_event(document)
        return FirstEvent.WAIT if isinstance(kind, str) and kind in _PREAMBLE else FirstEvent.CONTENT

    def tap(self, intent: Intent, status: int, content_type: bytes) -> Tap:
        if status >= 400:
            return ByteTap()
        if content_type.startswith(b"application/json"):
            return JsonTap(read_usage, is_metered=intent.is_metered)
        if content_type.startswith(b"text/event-stream"):
            return SseTap(_RULES[intent.stream_rule], intent)
        return ByteTap()

    def refuse(self, refusal: Refusal, call_id: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        headers = refusal_headers(refusal, b"request-id", call_id)
        return _status(refusal), headers, orjson.dumps({**_error(refusal), "request_id": call_id})

    def refuse_fault(self, fault: Fault, body: bytes) -> bytes:
        cleaned = clean_error(fault, body)
        if cleaned is not None:
            return cleaned
        kind = RefusalKind.NO_ROOM if fault.status == 429 else RefusalKind.BAD_UPSTREAM
        return orjson.dumps(_error(Refusal(kind, "The upstream service answered with an error that cannot be shown.")))

    def stream_error(self, refusal: Refusal, intent: Intent) -> bytes:
        return b"event: error\ndata: " + orjson.dumps(_error(refusal)) + b"\n\n"


def _status(refusal: Refusal) -> int:
    return _STATUSES.get(refusal.kind, refusal.kind.status)


def _error(refusal: Refusal) -> dict[str, object]:
    kind = _TYPES.get(_status(refusal), "api_error")
    return {"type": "error", "error": {"type": kind, "message": refusal.message}}


DIALECT: Dialect = Anthropic()
