"""OpenAI's dialect: the one everything is in that no other claims.

Reads what a call is about, asks for usage where it would not come, judges answers, and speaks OpenAI's errors. Its
tables stand beside it: operations, faults, usage. It knows nothing of pools, money or retries.
Sources: openapi.yaml (commit f85dbe22), openai-python 3.51, facts/providers.md §1–4.
"""

from __future__ import annotations

from urllib.parse import unquote

import orjson

from yugong.base.errors import Fault, Refusal, RefusalKind
from yugong.core import jsonbody
from yugong.core.dialects import openai_faults
from yugong.core.dialects.dialect import Body, Dialect, FirstEvent, Headers, Intent, LimitReport, Tap
from yugong.core.dialects.faults import clean_error
from yugong.core.dialects.openai_operations import TABLE
from yugong.core.dialects.openai_usage import RULES, read_usage
from yugong.core.dialects.reading import answers, check_model, open_intent, output_bound, read_document, read_form
from yugong.core.dialects.taps import ByteTap, JsonTap, SseTap, StrippingTap
from yugong.core.dialects.waits import parse_duration
from yugong.core.dialects.wire import (
    header_lines,
    limit_headers,
    read_limits,
    refusal_headers,
    rename_model,
    without_keys,
)
from yugong.core.sse import read_event

MAX_PREFIX_KEY = 512

_USAGE_STREAMS = frozenset({"chat.completions", "completions"})
_OUTPUT_MEMBERS = ("max_completion_tokens", "max_tokens", "max_output_tokens")

#: Events that come before content. `response.created` tells only that the call was admitted.
_PREAMBLE = frozenset({"response.created", "response.queued", "response.in_progress", "ping", "keepalive"})

_LIMIT_DIMENSIONS = (
    "requests",
    "tokens",
    "input-tokens",
    "output-tokens",
    "project-requests",
    "project-tokens",
    "input-images",
    "images",
    "audio-seconds",
    "requests_usage_based",
    "tokens_usage_based",
)
_LIMIT_HEADERS = limit_headers("x-ratelimit-{field}-{dimension}", _LIMIT_DIMENSIONS)

#: Status to `error.type`, as OpenAI's own errors have it.
_TYPES = {429: "rate_limit_error", 503: "service_unavailable_error"}
_KIND_TYPES = {RefusalKind.NO_BALANCE: "insufficient_quota", RefusalKind.NO_ROOM: "requests"}
_KIND_CODES = {RefusalKind.NO_ROOM: "rate_limit_exceeded"}

_INCLUDE = b'"stream_options":{"include_usage":true},'


class OpenAI:
    """See `Dialect`."""

    name = "openai"

    def __repr__(self) -> str:
        return "<OpenAI dialect>"

    def claims(self, method: str, path: str, header_names: frozenset[bytes]) -> bool:
        return True

    # reading a call

    def read(self, method: str, path: str, content_type: bytes, body: Body) -> Intent:
        intent, row = open_intent(TABLE, method, path, body)
        is_excused = False
        if not intent.input_bytes:
            if row.label == "models":
                intent.model = unquote(path.partition("?")[0]).rstrip("/").rpartition("/")[2]
        elif content_type[:9].lower() != b"multipart":
            document = read_document(row, body)
            if document is not None:
                _read_members(intent, document)
                # The model may stand in the prompt template instead (openapi.yaml).
                is_excused = type(document.get("prompt")) is dict and row.label == "responses"
        elif row.is_strict:
            read_form(intent, content_type, body)
        check_model(intent, is_excused=is_excused)
        return intent

    # writing the wire

    def prepare(self, intent: Intent, body: Body, model: str | None) -> Body:
        if model is not None and model != intent.model:
            body = rename_model(intent, body, model)
        return _ask_for_usage(body) if intent.adds_usage else body

    def credentials(self, secret: str, header: str | None, organization: str | None, project: str | None) -> bytes:
        name = header or "Authorization"
        lines = [(name, f"Bearer {secret}" if name.lower() == "authorization" else secret)]
        if organization:
            lines.append(("OpenAI-Organization", organization))
        if project:
            lines.append(("OpenAI-Project", project))
        return header_lines(lines)

    def upstream_path(self, raw_path: str) -> str:
        if raw_path.startswith("/openai/v1") and raw_path[10:11] in {"", "/", "?"}:
            raw_path = raw_path[7:]
        return without_keys(raw_path)

    # judging what came back

    def judge(self, status: int, headers: Headers, body: bytes) -> Fault | None:
        return openai_faults.judge(status, headers, body)

    def limits(self, headers: Headers) -> list[LimitReport]:
        return read_limits(headers, _LIMIT_HEADERS, parse_duration)

    def has_limits(self, name: bytes) -> bool:
        return name in _LIMIT_HEADERS

    def first_event(self, event: bytes) -> str | Fault:
        """WAIT covers comments, `response.created|queued|in_progress`, chat chunks without choices (Azure's filter
        results) and deltas that only open an answer (`{"role":"assistant","content":""}`): nothing in them is lost if
        the call is made anew."""
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
        if document.get("error") or kind in ("error", "response.failed"):
            return openai_faults.judge_event(document)
        if isinstance(kind, str) and kind in _PREAMBLE:
            return FirstEvent.WAIT
        choices = document.get("choices")
        is_opening = isinstance(choices, list) and all(_only_opens(choice) for choice in choices)
        return FirstEvent.WAIT if is_opening and not document.get("usage") else FirstEvent.CONTENT

    def tap(self, intent: Intent, status: int, content_type: bytes) -> Tap:
        if status >= 400:
            return ByteTap()
        if content_type.startswith(b"application/json"):
            return JsonTap(read_usage, is_metered=intent.is_metered)
        if content_type.startswith(b"text/event-stream"):
            rule = RULES[intent.stream_rule]
            return StrippingTap(rule, intent) if intent.adds_usage else SseTap(rule, intent)
        return ByteTap()

    # speaking to the client

    def refuse(self, refusal: Refusal, call_id: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        headers = refusal_headers(refusal, b"x-request-id", call_id)
        return refusal.kind.status, headers, orjson.dumps({"error": _error(refusal)})

    def refuse_fault(self, fault: Fault, body: bytes) -> bytes:
        cleaned = clean_error(fault, body)
        if cleaned is not None:
            return cleaned
        kind = RefusalKind.NO_ROOM if fault.status == 429 else RefusalKind.BAD_UPSTREAM
        message = "The upstream service answered with an error that cannot be shown."
        return orjson.dumps({"error": _error(Refusal(kind, message))})

    def stream_error(self, refusal: Refusal, intent: Intent) -> bytes:
        error = _error(refusal)
        if intent.stream_rule == "responses":
            # The event is flat by the description, but the SDKs raise only on a truthy `error`: so both.
            document = {**error, "type": "error", "sequence_number": 0, "error": error}
            return b"event: error\ndata: " + orjson.dumps(document) + b"\n\n"
        head = b"event: error\n" if intent.stream_rule == "assistants" else b""
        return head + b"data: " + orjson.dumps({"error": error}) + b"\n\n"


# the steps of the above


def _read_members(intent: Intent, document: dict[str, object]) -> None:
    """Takes the intent out of a JSON body."""
    get = document.get
    model = get("model")
    if type(model) is str and model:
        intent.model = model
    if get("stream") is True:
        intent.is_stream = True
        intent.adds_usage = intent.operation in _USAGE_STREAMS and _wants_no_usage(get("stream_options"))
    for name in _OUTPUT_MEMBERS:
        bound = output_bound(get(name))
        if bound is not None:
            intent.max_output = bound
            break
    if "n" in document or "best_of" in document:
        intent.n = max(answers(get("n")), answers(get("best_of")))
    key = get("prompt_cache_key") or get("previous_response_id")
    if type(key) is str:
        intent.prefix_key = key[:MAX_PREFIX_KEY]


def _wants_no_usage(options: object) -> bool:
    """Whether these stream options leave usage out. What upstream would refuse is left as it is."""
    if options is None:
        return True
    if type(options) is not dict:
        return False
    asked = options.get("include_usage")
    return asked is None or asked is False


def _ask_for_usage(body: Body) -> bytes:
    """`body` with `stream_options.include_usage` true. The body has been read: an object without repeated members."""
    if body.find(b"stream_options") < 0 and body.find(b"\\u") < 0:
        at = body.find(b"{") + 1
        return jsonbody.splice(body, at, at, _INCLUDE)
    found = jsonbody.find_member(body, "stream_options")
    if found is None:
        at = body.find(b"{") + 1
        return jsonbody.splice(body, at, at, _INCLUDE)
    _, start, end = found
    if body[start : start + 1] != b"{":  # null
        return jsonbody.splice(body, start, end, b'{"include_usage":true}')
    asked = jsonbody.find_member(body, "include_usage", start)
    if asked is not None:  # null or false
        return jsonbody.splice(body, asked[1], asked[2], b"true")
    comma = b"" if body[start + 1 : end - 1].strip() == b"" else b","
    return jsonbody.splice(body, start + 1, start + 1, b'"include_usage":true' + comma)


def _only_opens(choice: object) -> bool:
    """Whether a choice of a chunk says nothing yet."""
    if not isinstance(choice, dict) or choice.get("finish_reason"):
        return False
    delta = choice.get("delta")
    if delta is None:
        return choice.get("text") == ""
    return isinstance(delta, dict) and not any(value for name, value in delta.items() if name != "role")


def _error(refusal: Refusal) -> dict[str, object]:
    kind = refusal.kind
    fallback = "invalid_request_error" if kind.status < 500 else "server_error"
    return {
        "message": refusal.message,
        "type": _KIND_TYPES.get(kind) or _TYPES.get(kind.status, fallback),
        "param": refusal.param,
        "code": _KIND_CODES.get(kind, kind.code),
    }


DIALECT: Dialect = OpenAI()
