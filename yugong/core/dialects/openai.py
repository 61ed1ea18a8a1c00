"""OpenAI's dialect: the one everything is in that no other claims.

Reads what a call is about, asks for usage where it would not come, judges answers, and speaks OpenAI's errors. Its
tables stand beside it: operations, faults, usage. It knows nothing of pools, money or retries.
Sources: openapi.yaml (commit f85dbe22), openai-python 3.51, facts/providers.md §1–4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, unquote, unquote_plus

import orjson

from yugong.base.errors import Fault, Refusal, RefusalKind
from yugong.core import jsonbody
from yugong.core.dialects import openai_faults
from yugong.core.dialects.dialect import Body, Dialect, FirstEvent, Headers, Intent, LimitReport, Tap
from yugong.core.dialects.faults import clean_error
from yugong.core.dialects.openai_operations import TABLE
from yugong.core.dialects.openai_usage import RULES, read_usage
from yugong.core.dialects.operations import Operation
from yugong.core.dialects.taps import ByteTap, JsonTap, SseTap, StrippingTap
from yugong.core.dialects.waits import parse_duration
from yugong.core.multipart import read_fields
from yugong.core.sse import read_event

#: Longer names are no models; they would only fill tables and labels.
MAX_MODEL = 256
MAX_OUTPUT = 2**31 - 1
MAX_N = 1024
MAX_PREFIX_KEY = 512
#: A body is read for operations that do not need it only up to this size.
_MAX_IDLE_READ = 1024 * 1024

_FORM_FIELDS = frozenset({"model", "stream", "n"})
_USAGE_STREAMS = frozenset({"chat", "completions"})
_OUTPUT_MEMBERS = ("max_completion_tokens", "max_tokens", "max_output_tokens")

#: Query parameters that carry a key; our pool's goes in a header.
_KEY_PARAMETERS = frozenset({"key", "api_key", "api-key", "apikey", "access_token"})

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
_LIMIT_HEADERS: Mapping[bytes, tuple[str, str]] = {
    f"x-ratelimit-{field}-{dimension}".encode(): (dimension.replace("-", "_"), field)
    for dimension in _LIMIT_DIMENSIONS
    for field in ("limit", "remaining", "reset")
}
_WHOLE = re.compile(rb"\d{1,15}")

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
        mark = path.find("?")
        row = TABLE.find(method, path if mark < 0 else path[:mark])
        intent = Intent(row.label)
        intent.needs_model = row.needs_model
        intent.is_repeatable = row.is_repeatable
        intent.is_metered = row.is_metered
        intent.stream_rule = row.stream
        size = intent.input_bytes = len(body)
        if mark >= 0:
            _read_query(intent, path[mark + 1 :])
        is_excused = False
        if size and content_type[:9].lower() != b"multipart":
            is_excused = _read_json(intent, row, body)
        elif size and row.is_strict:
            _read_form(intent, content_type, body)
        elif row.label == "models":
            intent.model = unquote(path[:mark] if mark >= 0 else path).rstrip("/").rpartition("/")[2]
        if row.needs_model and intent.model is None and not is_excused:
            raise Refusal(RefusalKind.NO_MODEL, "you must provide a model parameter")
        if intent.model is not None and len(intent.model) > MAX_MODEL:
            raise Refusal(RefusalKind.UNKNOWN_MODEL, "The requested model does not exist.", param="model")
        return intent

    # writing the wire

    def prepare(self, intent: Intent, body: Body, model: str | None) -> Body:
        if model is not None and model != intent.model:
            if intent.model_span is not None:
                return jsonbody.splice(body, *intent.model_span, model.encode())
            found = jsonbody.find_member(body, "model")
            if found is not None:
                body = jsonbody.splice(body, found[1], found[2], orjson.dumps(model))
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
        if raw_path.startswith("/openai/v1"):
            raw_path = raw_path[7:]
        return without_keys(raw_path) if "?" in raw_path else raw_path

    # judging what came back

    def judge(self, status: int, headers: Headers, body: bytes) -> Fault | None:
        return openai_faults.judge(status, headers, body)

    def limits(self, headers: Headers) -> list[LimitReport]:
        reports: dict[str, LimitReport] = {}
        for name, value in headers:
            known = _LIMIT_HEADERS.get(name)
            if known is None:
                continue
            dimension, field = known
            report = reports.get(dimension)
            if report is None:
                report = reports[dimension] = LimitReport(dimension, None, None, None)
            if field == "reset":
                report.reset = parse_duration(value)
            elif _WHOLE.fullmatch(value):
                figure = int(value)
                if field == "remaining":
                    report.remaining = figure
                elif figure > 0:  # Azure's /responses says 0 and -1
                    report.limit = figure
        return [
            report
            for report in reports.values()
            if report.limit is not None or report.remaining is not None or report.reset is not None
        ]

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
        if document.get("error") or kind in {"error", "response.failed"}:
            return openai_faults.judge_event(document)
        if kind in _PREAMBLE:
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


# reading, step by step


def _read_query(intent: Intent, query: str) -> None:
    """`/realtime?model=…` and `/responses/{id}?stream=true`."""
    for name, value in parse_qsl(query, keep_blank_values=True, max_num_fields=None)[:64]:
        if name == "model" and value and intent.model is None:
            intent.model = value
        elif name == "stream":
            intent.is_stream = value == "true"


def _read_json(intent: Intent, row: Operation, body: Body) -> bool:
    """Takes the intent out of a JSON body. True if the model may be missing: a prompt template names it."""
    if not row.is_strict and (len(body) > _MAX_IDLE_READ or body[:1] not in _OPENS_DOCUMENT):
        return False
    try:
        document = jsonbody.parse(body)
    except jsonbody.Repeated as error:
        raise Refusal(RefusalKind.BAD_JSON, f"We could not parse the JSON body of your request: {error}.") from None
    except jsonbody.Invalid as error:
        if not row.is_strict:
            return False
        raise Refusal(RefusalKind.BAD_JSON, f"We could not parse the JSON body of your request: {error}.") from None
    if type(document) is not dict:
        return False
    get = document.get
    model = get("model")
    if type(model) is str and model:
        intent.model = model
    if get("stream") is True:
        intent.is_stream = True
        if intent.stream_rule in _USAGE_STREAMS and row.is_strict:
            options = get("stream_options")
            if options is None or (type(options) is dict and options.get("include_usage") in _UNASKED):
                intent.adds_usage = True
    for name in _OUTPUT_MEMBERS:
        figure = get(name)
        if type(figure) is int and figure > 0:
            intent.max_output = min(figure, MAX_OUTPUT)
            break
    if "n" in document or "best_of" in document:
        intent.n = max(_answers(get("n")), _answers(get("best_of")))
    key = get("prompt_cache_key") or get("previous_response_id")
    if type(key) is str:
        intent.prefix_key = key[:MAX_PREFIX_KEY]
    return type(get("prompt")) is dict and row.label == "responses"


#: First bytes of a document worth reading where it need not be read. An mmap's slice is bytes too.
_OPENS_DOCUMENT = frozenset({b"{", b" ", b"\t", b"\r", b"\n"})
_UNASKED = (None, False)


def _answers(value: object) -> int:
    return min(value, MAX_N) if type(value) is int and value > 0 else 1


def _read_form(intent: Intent, content_type: bytes, body: Body) -> None:
    spans = read_fields(body, content_type, _FORM_FIELDS)
    span = spans.get("model")
    if span is not None and (model := body[span[0] : span[1]].decode("utf-8", "replace")):
        intent.model = model
        intent.model_span = span
    span = spans.get("stream")
    intent.is_stream = span is not None and body[span[0] : span[1]] in {b"true", b"True", b"1"}
    span = spans.get("n")
    if span is not None and _WHOLE.fullmatch(body[span[0] : span[1]]):
        intent.n = _answers(int(body[span[0] : span[1]]))


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


# writing, shared with other dialects


def header_lines(lines: list[tuple[str, str]]) -> bytes:
    """Header lines, CRLF-ended. Raises `ValueError` for a value that would break out of its line (threat 43)."""
    for name, value in lines:
        if not value.isprintable() or not value.isascii() or not name.isprintable():
            raise ValueError(f"the value of header {name} has characters that no header may have")
    return b"".join(f"{name}: {value}\r\n".encode("ascii") for name, value in lines)


def without_keys(raw_path: str) -> str:
    """A raw path whose query names no key; the other parameters keep their spelling."""
    path, _, query = raw_path.partition("?")
    kept = [part for part in query.split("&") if unquote_plus(part.partition("=")[0]).lower() not in _KEY_PARAMETERS]
    return f"{path}?{'&'.join(kept)}" if kept else path


def refusal_headers(refusal: Refusal, id_name: bytes, call_id: str) -> list[tuple[bytes, bytes]]:
    """Content type, call id, and the wait if there is one: in whole seconds rounded up, and in milliseconds."""
    headers = [(b"content-type", b"application/json"), (id_name, call_id.encode("ascii"))]
    if refusal.retry_after is not None:
        wait = max(refusal.retry_after, 0.0)
        headers.append((b"retry-after", b"%d" % max(math.ceil(wait), 1)))
        headers.append((b"retry-after-ms", b"%d" % math.ceil(wait * 1000)))
    return headers


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
