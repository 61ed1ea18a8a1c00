"""Heads and framing as bytes. Pure but for the wall clock of `Date`.

Heads are written whole and straight to the transport: a fault must be able to put anything on the wire, and it is
cheaper than a response object a call.
"""

import time
from email.utils import formatdate
from http import HTTPStatus

from yugong.emulator.attempt import FIXED_TIME, Answer, Attempt

REASONS = {each.value: each.phrase for each in HTTPStatus} | {
    520: "",
    521: "",
    522: "",
    523: "",
    524: "",
    529: "Overloaded",
}
FIXED_DATE = formatdate(FIXED_TIME, usegmt=True)
LAST_CHUNK = b"0\r\n\r\n"

_OPENAI_TAIL = (
    "openai-version: 2020-10-01\r\n"
    "x-content-type-options: nosniff\r\n"
    "strict-transport-security: max-age=31536000; includeSubDomains; preload\r\n"
    "cf-cache-status: DYNAMIC\r\n"
    "Server: cloudflare\r\n"
    'alt-svc: h3=":443"; ma=86400\r\n'
)
_ANTHROPIC_TAIL = "strict-transport-security: max-age=31536000\r\ncf-cache-status: DYNAMIC\r\nServer: cloudflare\r\n"

_date = (0, "")


def http_date() -> str:
    """The `Date` header of this second."""
    global _date  # noqa: PLW0603 — one second's text, kept because formatting it costs more than the rest of the head
    now = int(time.time())
    if _date[0] != now:
        _date = (now, formatdate(now, usegmt=True))
    return _date[1]


def head(attempt: Attempt, answer: Answer, framing: str) -> bytes:
    """A whole head. `framing` is the header lines that say where the body ends."""
    status = answer.status
    line = f"HTTP/1.1 {status} {REASONS.get(status, 'Unknown')}\r\n"
    if not attempt.keep_alive:
        framing += "Connection: close\r\n"
    elif not attempt.chunked:
        framing += "Connection: keep-alive\r\n"
    kind = f"Content-Type: {answer.content_type}\r\n" if answer.content_type else ""
    trace = _anthropic_lines(attempt) if attempt.dialect == "anthropic" else _openai_lines(attempt)
    date = FIXED_DATE if attempt.spec.deterministic else http_date()
    own = f"x-emulator-body-sha256: {attempt.body.sha256}\r\n"
    return f"{line}Date: {date}\r\n{kind}{framing}{trace}{answer.extra}{own}\r\n".encode("latin-1")


def _trace(attempt: Attempt) -> tuple[str, int]:
    """The cookie-and-ray lines every Cloudflare answer has, and the milliseconds it took."""
    if attempt.spec.deterministic:
        ray, took = attempt.body.sha256[:16], 12
    else:
        ray, took = attempt.request_id[-16:], int((time.monotonic() - attempt.started) * 1000) + 1
    lines = (
        f"cf-ray: {ray}-FRA\r\n"
        f"set-cookie: __cf_bm={ray}-1.0.1.1; path=/; HttpOnly; Secure; SameSite=None\r\n"
        f"set-cookie: _cfuvid={ray}; path=/; HttpOnly; Secure; SameSite=None\r\n"
    )
    return lines, took


def _limit_lines(attempt: Attempt) -> str:
    if attempt.limits is None:
        return ""
    return attempt.limits.headers(attempt.dialect, attempt.arrived, attempt.empty)


def _openai_lines(attempt: Attempt) -> str:
    lines, took = _trace(attempt)
    org = f"openai-organization: {attempt.organization}\r\n" if attempt.org else ""
    identity = f"openai-processing-ms: {took}\r\nx-request-id: {attempt.request_id}\r\n"
    return f"{org}{identity}{_limit_lines(attempt)}{lines}{_OPENAI_TAIL}"


def _anthropic_lines(attempt: Attempt) -> str:
    lines, _ = _trace(attempt)
    org = f"anthropic-organization-id: {attempt.organization}\r\n" if attempt.org else ""
    return f"{org}request-id: {attempt.request_id}\r\n{_limit_lines(attempt)}{lines}{_ANTHROPIC_TAIL}"


def chunk(data: bytes) -> bytes:
    """One chunk of chunked coding. An empty chunk would end the body, so there is none."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def sse(document: bytes, event: str = "") -> bytes:
    """One server-sent event of one line of data."""
    if event:
        return b"event: %b\ndata: %b\n\n" % (event.encode(), document)
    return b"data: %b\n\n" % document
