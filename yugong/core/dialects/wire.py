"""Writing: header lines upstream, paths without keys, bodies with another model, refusals; and limits out of headers.

What dialects share in speaking. Each value that could break out of its place is refused or clamped here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import unquote_plus

import orjson

from yugong.base.errors import Refusal
from yugong.core import jsonbody
from yugong.core.dialects.dialect import Body, Headers, Intent, LimitReport

#: Query parameters that carry a key; the pool's own goes in a header.
_KEY_PARAMETERS = frozenset({"key", "api_key", "api-key", "apikey", "access_token"})
_WHOLE = re.compile(rb"\d{1,15}")


def header_lines(lines: Iterable[tuple[str, str]]) -> bytes:
    """Header lines, CRLF-ended. Raises `ValueError` for a value that would break out of its line (threat 43)."""
    out = []
    for name, value in lines:
        if not (value.isascii() and value.isprintable() and name.isascii() and name.isprintable()):
            raise ValueError(f"the value of header {name!r} has characters that no header may have")
        out.append(f"{name}: {value}\r\n")
    return "".join(out).encode("ascii")


def without_keys(raw_path: str) -> str:
    """A raw path whose query names no key; the other parameters keep their spelling."""
    path, mark, query = raw_path.partition("?")
    if not mark:
        return raw_path
    kept = [part for part in query.split("&") if unquote_plus(part.partition("=")[0]).lower() not in _KEY_PARAMETERS]
    return f"{path}?{'&'.join(kept)}" if kept else path


def rename_model(intent: Intent, body: Body, model: str) -> Body:
    """`body` with the model it names replaced; the very object if it names none."""
    if intent.model_span is not None:
        return jsonbody.splice(body, *intent.model_span, model.encode())
    found = jsonbody.find_member(body, "model") if intent.model is not None else None
    return body if found is None else jsonbody.splice(body, found[1], found[2], orjson.dumps(model))


def refusal_headers(refusal: Refusal, id_name: bytes, call_id: str) -> list[tuple[bytes, bytes]]:
    """Content type, call id, and the wait if there is one: in whole seconds rounded up, and in milliseconds."""
    headers = [(b"content-type", b"application/json"), (id_name, call_id.encode("ascii"))]
    if refusal.retry_after is not None:
        wait = max(refusal.retry_after, 0.0)
        headers.append((b"retry-after", b"%d" % max(math.ceil(wait), 1)))
        headers.append((b"retry-after-ms", b"%d" % math.ceil(wait * 1000)))
    return headers


def limit_headers(pattern: str, dimensions: Iterable[str]) -> dict[bytes, tuple[str, str]]:
    """Header name to (dimension, field). `pattern` holds `{field}` and `{dimension}`."""
    return {
        pattern.format(field=field, dimension=dimension).encode(): (dimension.replace("-", "_"), field)
        for dimension in dimensions
        for field in ("limit", "remaining", "reset")
    }


def read_limits(
    headers: Headers, names: Mapping[bytes, tuple[str, str]], parse_reset: Callable[[bytes], float | None]
) -> list[LimitReport]:
    """What the known headers say, one report a dimension. Garbage, negatives and limits of zero count as unsaid."""
    reports: dict[str, LimitReport] = {}
    for name, value in headers:
        known = names.get(name)
        if known is None:
            continue
        dimension, field = known
        if field == "reset":
            reset = parse_reset(value)
            if reset is not None:
                _report(reports, dimension).reset = reset
        elif _WHOLE.fullmatch(value):
            figure = int(value)
            if field == "remaining":
                _report(reports, dimension).remaining = figure
            elif figure:  # Azure's /responses says 0 and -1
                _report(reports, dimension).limit = figure
    return list(reports.values())


def _report(reports: dict[str, LimitReport], dimension: str) -> LimitReport:
    report = reports.get(dimension)
    if report is None:
        report = reports[dimension] = LimitReport(dimension, None, None, None)
    return report
