"""Reading a call: what every dialect's JSON bodies, forms and queries have in common.

A dialect names its members; this file decides how strictly they are read. A body that must be understood and cannot is
refused, one that need not be is left alone; one that says two things at once is refused always (threat 52). Figures are
clamped, never trusted (threat 58).
"""

from __future__ import annotations

from urllib.parse import parse_qsl

from yugong.base.errors import Refusal, RefusalKind
from yugong.core import jsonbody
from yugong.core.dialects.dialect import Body, Intent
from yugong.core.dialects.operations import Operation, Table
from yugong.core.multipart import read_fields

#: Longer names are no models; they would only fill tables and labels.
MAX_MODEL = 256
MAX_OUTPUT = 2**31 - 1
MAX_N = 1024
#: A body is read for operations that do not need it only up to this size, in bytes.
MAX_IDLE_READ = 1024 * 1024

_MAX_PARAMETERS = 64
_FORM_FIELDS = frozenset({"model", "stream", "n"})
_OPENS_DOCUMENT = frozenset({b"{", b" ", b"\t", b"\r", b"\n"})


def open_intent(table: Table, method: str, path: str, body: Body) -> tuple[Intent, Operation]:
    """(hot) The intent as far as method and path tell. `path` may have a query."""
    mark = path.find("?")
    row = table.find(method, path if mark < 0 else path[:mark])
    intent = Intent(row.label)
    intent.needs_model = row.needs_model
    intent.is_repeatable = row.is_repeatable
    intent.is_metered = row.is_metered
    intent.stream_rule = row.stream
    intent.input_bytes = len(body)
    if mark >= 0:
        _read_query(intent, path[mark + 1 :])
    return intent, row


def _read_query(intent: Intent, query: str) -> None:
    """`/realtime?model=…` and `/responses/{id}?stream=true`. The first value of each counts."""
    seen: set[str] = set()
    for name, value in parse_qsl(query[: MAX_MODEL * _MAX_PARAMETERS])[:_MAX_PARAMETERS]:
        if name in seen:
            continue
        seen.add(name)
        if name == "model":
            intent.model = value
        elif name == "stream":
            intent.is_stream = value == "true"


def read_document(row: Operation, body: Body) -> dict[str, object] | None:
    """(hot) The body as a JSON object, None where it is none and need not be. Raises `Refusal` BAD_JSON, TOO_LARGE."""
    if not row.is_strict and (len(body) > MAX_IDLE_READ or body[:1] not in _OPENS_DOCUMENT):
        return None
    try:
        document = jsonbody.parse(body)
    except jsonbody.Invalid as error:
        if row.is_strict or isinstance(error, jsonbody.Repeated):
            message = f"We could not parse the JSON body of your request: {error}."
            raise Refusal(RefusalKind.BAD_JSON, message) from None
        return None
    return document if type(document) is dict else None


def read_form(intent: Intent, content_type: bytes, body: Body) -> None:
    """Model, stream and n of a multipart body. Raises `Refusal` MALFORMED."""
    spans = read_fields(body, content_type, _FORM_FIELDS)
    values = {name: body[start:end] for name, (start, end) in spans.items()}
    model = values.get("model")
    if model:
        intent.model = model.decode("utf-8", "replace")
        intent.model_span = spans["model"]
    intent.is_stream = values.get("stream") in {b"true", b"True", b"1"}
    n = values.get("n", b"")
    if n.isdigit() and len(n) < 10:
        intent.n = answers(int(n))


def check_model(intent: Intent, *, is_excused: bool = False) -> None:
    """Raises `Refusal` NO_MODEL where one is needed and missing, UNKNOWN_MODEL where no model can be called so."""
    if intent.model is None:
        if intent.needs_model and not is_excused:
            raise Refusal(RefusalKind.NO_MODEL, "you must provide a model parameter")
    elif len(intent.model) > MAX_MODEL:
        raise Refusal(RefusalKind.UNKNOWN_MODEL, "The requested model does not exist.", param="model")


def answers(value: object) -> int:
    """How many answers `n` asks for: at least 1, whatever it says."""
    return min(value, MAX_N) if type(value) is int and value > 0 else 1


def output_bound(value: object) -> int | None:
    """Tokens a `max_tokens` allows, None for what is no such figure."""
    return min(value, MAX_OUTPUT) if type(value) is int and value > 0 else None
