"""How a dialect's table of faults is read.

A table is a list of rows, first match wins: what the status, the error's code, type and text have to be, and what
follows. The machinery is shared, the tables are the dialects'. Error bodies are hostile input: nothing here raises,
every pattern is bounded, and what is kept for operators is redacted (threats 7, 33).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

import orjson

from yugong.base.errors import Fault, Penalty, Scope
from yugong.core.dialects.dialect import Headers, LimitFault
from yugong.core.dialects.waits import wait_in_headers, wait_in_text

#: How much of an error body is looked at.
MAX_BODY = 64 * 1024
_MAX_TEXT = 2000
_MAX_DETAIL = 300

_HTML = re.compile(rb"\s{0,64}(?:\xef\xbb\xbf)?\s{0,64}<(?:!doctype|html|head|body|center|h1)", re.IGNORECASE)
_LOOSE = {name: re.compile(rb'"' + name + rb'"\s{0,8}:\s{0,8}"((?:[^"\\]|\\.){0,2000})"') for name in
          (b"code", b"type", b"message")}  # fmt: skip

#: Keys whole or masked, organisations, projects, workspaces. All of JSON-safe characters.
_SECRETS = re.compile(
    rb"\b(?:sk|rk|ek|sess)-[A-Za-z0-9_*.\-\xe2\x80\xa6\xa2]{3,512}"
    rb"|\borg-[A-Za-z0-9]{3,64}|\bproj_[A-Za-z0-9]{3,64}|\bwrkspc_[A-Za-z0-9]{3,64}"
)
_NAMED = re.compile(rb"(\bin (?:organization|project|workspace) )[^\"\\]{1,120}?( on )")
_EMAIL = re.compile(rb"\b[A-Za-z0-9._%+\-]{1,64}@[A-Za-z0-9.\-]{1,190}\.[A-Za-z]{2,24}\b")


class ErrorBody:
    """What an error answer says, as far as it could be read."""

    __slots__ = ("code", "is_html", "message", "type")

    def __init__(self, code: str = "", type: str = "", message: str = "", *, is_html: bool = False) -> None:
        self.code = code
        self.type = type
        self.message = message
        self.is_html = is_html

    def __repr__(self) -> str:
        return f"<ErrorBody {'html' if self.is_html else ''}{self.type}/{self.code} {self.message[:60]!r}>"


class Row:
    """One line of a table. What is not given matches everything."""

    __slots__ = ("codes", "is_html", "is_retryable", "kind", "penalty", "scope", "statuses", "text", "types")

    def __init__(
        self,
        kind: str,
        scope: Scope,
        penalty: Penalty,
        *,
        statuses: Iterable[int] = (),
        codes: Iterable[str] = (),
        types: Iterable[str] = (),
        text: str = "",
        html: bool | None = None,
        retry: bool = True,
    ) -> None:
        self.kind = kind
        self.scope = scope
        self.penalty = penalty
        self.is_retryable = retry
        self.statuses = frozenset(statuses)
        self.codes = frozenset(codes)
        self.types = frozenset(types)
        self.text = re.compile(text, re.IGNORECASE) if text else None
        self.is_html = html

    def __repr__(self) -> str:
        return f"<Row {self.kind} {self.scope.value} {self.penalty.value}>"

    def matches(self, status: int, error: ErrorBody) -> bool:
        """Whether the statuses allow it, and any of code, type and text (if the row names some) says so."""
        if self.statuses and status not in self.statuses:
            return False
        if self.is_html is not None and self.is_html is not error.is_html:
            return False
        if not (self.codes or self.types or self.text):
            return True
        return (
            error.code in self.codes
            or error.type in self.types
            or (self.text is not None and self.text.search(error.message) is not None)
        )


def read_error(body: bytes) -> ErrorBody:
    """Code, type and message of an error in any of the shapes seen: `{"error":{…}}`, `{"error":"…"}`, the same in a
    list, flat, cut off in the middle, or a page of HTML."""
    body = body[:MAX_BODY]
    if _HTML.match(body):
        return ErrorBody(is_html=True)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        found = {name: match[1].decode("utf-8", "replace") for name, p in _LOOSE.items() if (match := p.search(body))}
        message = found.get(b"message") or body[:_MAX_TEXT].decode("utf-8", "replace")
        return ErrorBody(found.get(b"code", "")[:100], found.get(b"type", "")[:100], message[:_MAX_TEXT])
    return read_error_object(document)


def read_error_object(document: object) -> ErrorBody:
    """The same of a parsed document."""
    if isinstance(document, list) and document:
        document = document[0]
    if not isinstance(document, dict):
        return ErrorBody()
    inner = document.get("error")
    if isinstance(inner, str):
        return ErrorBody(_word(document.get("code")), _word(document.get("type")), inner[:_MAX_TEXT])
    error = inner if isinstance(inner, dict) else document
    message = error.get("message", error.get("detail", error.get("error_msg")))
    text = message if isinstance(message, str) else ""
    code = error.get("code")
    if code is None and isinstance(details := error.get("details"), dict):
        code = details.get("error_code")  # Anthropic's
    return ErrorBody(_word(code), _word(error.get("type")), text[:_MAX_TEXT])


def _word(value: object) -> str:
    """A code or type: some providers write codes as numbers."""
    if isinstance(value, str):
        return value[:100]
    return str(value) if type(value) is int else ""


def judge_by(table: Sequence[Row], status: int, headers: Headers, error: ErrorBody) -> Fault:
    """The fault the first matching row makes of an error. The last row of a table matches everything."""
    row = next(row for row in table if row.matches(status, error))
    wait = _wait(headers, error.message)
    detail = redact(error.message.encode("utf-8", "replace")).decode("utf-8", "replace")[:_MAX_DETAIL]
    if row.penalty is Penalty.COOL or row.kind == "request_too_large":
        fault = LimitFault(row.kind, row.scope, status=status, penalty=row.penalty, wait=wait, detail=detail)
        _read_figures(fault, error)
        return fault
    return Fault(
        row.kind,
        row.scope,
        status=status,
        is_retryable=row.is_retryable,
        penalty=row.penalty,
        wait=wait,
        detail=detail,
    )


def judge_success(table: Sequence[Row], status: int, headers: Headers, body: bytes) -> Fault | None:
    """A 2xx that is none: a page of HTML from something in between, or nothing where JSON was announced."""
    if not 200 <= status < 300:
        return None
    content_type = next((value for name, value in headers if name.lower() == b"content-type"), b"").lower()
    if content_type.startswith(b"text/html"):
        return judge_by(table, status, headers, ErrorBody(is_html=True))
    if content_type.startswith(b"application/json") and status == 200 and not body:
        return Fault("empty_answer", Scope.ORIGIN, status=status, penalty=Penalty.COUNT)
    return None


def _wait(headers: Headers, message: str) -> float | None:
    """The header's wait; the text's where that is the same figure before it was rounded up to whole seconds."""
    told = wait_in_headers(headers)
    said = wait_in_text(message)
    if told is None or (said is not None and math.ceil(said) == told):
        return said
    return told


_FIGURE = re.compile(r"\b(Limit|Used|Requested):? (\d{1,15})\b", re.IGNORECASE | re.ASCII)
_RATE_LIMIT = re.compile(r"\brate limit of (\d[\d,]{0,18})", re.IGNORECASE | re.ASCII)
_DIMENSION = re.compile(
    r"\b(request|token|input token|output token|image|input image|audio second)s? per (min|day)",
    re.IGNORECASE | re.ASCII,
)


def _read_figures(fault: LimitFault, error: ErrorBody) -> None:
    """The figures of "… on tokens per min (TPM): Limit 30000, Used 29937, Requested 385"."""
    for name, figure in _FIGURE.findall(error.message):
        setattr(fault, name.lower(), int(figure))
    limit = _RATE_LIMIT.search(error.message)
    if limit and fault.limit is None:
        fault.limit = int(limit[1].replace(",", ""))
    match = _DIMENSION.search(error.message)
    if match:
        day = "_day" if match[2].lower() == "day" else ""
        fault.dimension = match[1].lower().replace(" ", "_") + "s" + day
    elif error.type in {"tokens", "requests"}:
        fault.dimension = error.type


def redact(text: bytes, *, emails: bool = True) -> bytes:
    """`text` without keys, organisations and (unless they may be the caller's own) addresses. JSON stays JSON."""
    text = _SECRETS.sub(b"[redacted]", text)
    text = _NAMED.sub(rb"\1[redacted]\2", text)
    return _EMAIL.sub(b"[redacted]", text) if emails and b"@" in text else text


def clean_error(fault: Fault, body: bytes) -> bytes | None:
    """An error body fit for the client: the very bytes where there is nothing to hide; None if it is not JSON."""
    try:
        document = orjson.loads(body)
        plain = orjson.dumps(document)  # one spelling of every character: nothing hides behind escapes
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return None
    if not isinstance(document, (dict, list)):
        return None
    cleaned = redact(plain, emails=fault.scope is not Scope.CALLER)
    return body if cleaned == plain else cleaned
