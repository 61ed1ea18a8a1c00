"""Requests that try transparency where it is likely to break, beside one of every operation: framings, codings, odd
methods and paths, credentials in every place, odd answers. As data; what may differ is decided in `test_transparency`.

A `script` in the query is answered by the tap with these very bytes, so that answers can be odder than the emulator's.
"""

from __future__ import annotations

import gzip
import json
from typing import NamedTuple

from tests.system.operations import FILE, MODEL, Sample, form, odd_json
from tests.system.wiretap import Fields

ORGANIZATION = b"org-the-clients-own"
ORDINARY: Fields = [
    # What SDKs and browsers send, and what only a raw comparison tells from something alike.
    (b"User-Agent", b"OpenAI/Python 3.51.0"),
    (b"accept", b"application/json, text/event-stream;q=0.9"),
    (b"Accept-Encoding", b"gzip, deflate, br, zstd"),
    (b"OpenAI-Organization", ORGANIZATION),
    (b"OpenAI-Project", b"proj_theclientsown"),
    (b"OpenAI-Beta", b"assistants=v2, responses_multi_agent=v1"),
    (b"X-Stainless-Lang", b"python"),
    (b"Idempotency-Key", b"stainless-python-retry-0a1b"),
    (b"X-Twice", b"2"),
    (b"x-ODD-name_~", b'a  b\t;"c\\"" ,\xe9\xff, (d)'),
    (b"X-Twice", b"1"),
    (b"X-Empty", b""),
    (b"X-Client-Request-Id", b"123e4567-e89b-12d3-a456-426614174000"),
    (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    (b"Origin", b"https://app.example"),
    (b"Referer", b"https://app.example/chat?x=1"),
    (b"Accept-Language", b"zh, en;q=0.5"),
    (b"Cache-Control", b"no-cache"),
    (b"If-None-Match", b'"etag"'),
    (b"X-Request-Id", b"the-clients-own"),
]
HOPS: Fields = [
    # Between the client and whom it called: RFC 9110 §7.6.1, cookies, and what proxies in front say.
    (b"Connection", b"keep-alive, X-Private"),
    (b"X-Private", b"1"),
    (b"Keep-Alive", b"timeout=5"),
    (b"Proxy-Connection", b"keep-alive"),
    (b"Proxy-Authorization", b"Basic eDp5"),
    (b"TE", b"trailers"),
    (b"Cookie", b"__cf_bm=abc; session=def"),
    (b"Forwarded", b"for=192.0.2.1"),
    (b"Via", b"1.1 edge"),
    (b"X-Forwarded-For", b"192.0.2.1"),
    (b"X-Forwarded-Host", b"api.example"),
    (b"X-Forwarded-Proto", b"https"),
    (b"X-Forwarded-Port", b"443"),
    (b"X-Forwarded-Prefix", b"/ai"),
    (b"X-Real-IP", b"192.0.2.1"),
    (b"CF-Connecting-IP", b"192.0.2.1"),
    (b"True-Client-IP", b"192.0.2.1"),
    (b"X-Yugong-Max-Wait", b"1.5"),
]


class Case(NamedTuple):
    """One request, as bytes but for whom it is sent to and with which key."""

    name: str
    method: str
    target: str
    fields: Fields = ORDINARY
    body: bytes = b""
    content_type: str = ""
    framing: str = "length"  # length, chunked, trailers (chunked, with one after it), or none
    credential: str = "Authorization"
    host: str = ""  # in place of whom it is sent to
    version: str = "HTTP/1.1"
    is_claude: bool = False

    def __repr__(self) -> str:
        return f"<Case {self.name}: {self.method} {self.target} {len(self.body)}B>"

    def request(self, authority: str, key: str, ids: dict[str, str]) -> bytes:
        """The request's bytes."""
        target = self.target
        for name, value in ids.items():
            target = target.replace(f"{{{name}}}", value)
        lines = [f"{self.method} {target} {self.version}".encode(), f"Host: {self.host or authority}".encode()]
        value = f"Bearer {key}" if self.credential == "Authorization" else key
        lines.append(f"{self.credential}: {value}".encode())
        lines += [b"%b: %b" % field for field in self.fields]
        if self.content_type:
            lines.insert(4, f"Content-Type: {self.content_type}".encode())
        body = self.body
        if self.framing in ("chunked", "trailers"):
            lines.append(b"Transfer-Encoding: chunked")
            body = chunked(body, b"X-Sum: 1\r\n" if self.framing == "trailers" else b"")
        elif self.framing == "length":
            lines.insert(7, b"Content-Length: %d" % len(body))
        return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(body: bytes, trailer: bytes = b"") -> bytes:
    """Chunked coding in pieces of uneven sizes, one of them of a single byte."""
    pieces, size = [], 1
    while body:
        pieces.append(b"%X\r\n%b\r\n" % (len(body[:size]), body[:size]))
        body, size = body[size:], size * 3
    return b"".join(pieces) + b"0\r\n" + trailer + b"\r\n"


def of_operation(sample: Sample, ids: dict[str, str]) -> Case:
    """The case of one operation; `ids` are what is known of objects by the parameter that names them."""
    content_type, body = sample.payload()
    framing = "length" if body or sample.method not in ("GET", "DELETE") else "none"
    return Case(sample.name, sample.method, sample.target(ids), ORDINARY, body, content_type, framing)


# --- answers ---------------------------------------------------------------------------------------------------------

ALLOWED = (
    "accept-ranges age allow cache-control content-disposition content-encoding content-language content-range "
    "content-type date etag expires last-modified link location openai-model openai-processing-ms openai-version "
    "request-id retry-after retry-after-ms vary x-request-id x-should-retry"
).split()
"""Answer headers that reach the client; `content-length` does where it frames the body or describes it (HEAD)."""

_VALUES = {"content-type": "text/x-odd", "content-encoding": "x-odd", "location": "/v1/else", "link": "</a>; rel=next"}
_EVERY = "".join(f"{name.title()}: {_VALUES.get(name, f'some {name}')}\r\n" for name in ALLOWED)
_HIDDEN = "".join(
    f"{name}: hidden\r\n"
    for name in "Set-Cookie Server CF-Ray CF-Cache-Status Alt-Svc Strict-Transport-Security X-Content-Type-Options "
    "OpenAI-Organization Anthropic-Organization-Id X-RateLimit-Limit-Requests Azureml-Model-Session X-Ms-Region "
    "apim-request-id Via X-Envoy-Upstream-Service-Time Report-To NEL X-Anything-New".split()
)
_EVENTS = (
    '\ufeff: a comment\r\n\r\nid: 1\nretry: 10\nevent: thread.message.delta\ndata: {"a":\ndata: 1}\n\n'
    'event:thread.run.step.delta\rdata:{"usage": null, "ü": "\\u00e9"}\r\r: keep-alive\n\n\n'
    'data: {"choices":[{"delta":{"content":"x"}}],"usage":{"total_tokens":3}}\n\nevent: done\ndata: [DONE]\n\n'
).encode()
_CHAT_EVENTS = b"".join(
    b"data: %b\n\n" % data
    for data in (
        b'{"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}',
        b'{"id":"c","object":"chat.completion.chunk", "choices": [ {"index":0,"delta":{"content":"\\ud83d\\ude00"}}]}',
        b'{"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}',
        b"[DONE]",
    )
)
_JSON = json.dumps({"odd": 1.0, "z": [1e2, "é/\u2028"], "usage": {"total_tokens": 1}}, indent=1).encode() + b" \n"


def _answer(head: str, body: bytes = b"", *, coded: bytes = b"") -> bytes:
    framing = "Transfer-Encoding: chunked\r\n" if coded else f"Content-Length: {len(body)}\r\n"
    return f"HTTP/1.1 {head}\r\n{framing}\r\n".encode() + (coded or body)


SCRIPTS: dict[str, bytes] = {
    "every-header": _answer(f"200 OK\r\n{_EVERY}{_HIDDEN}X-Request-ID: twice", b"body"),
    "links": _answer(
        "201 Created\r\nLocation: http://ORIGIN/v1/new?a=%2F\r\nLink: <http://ORIGIN/v1/n>; rel=next, "
        "<https://other.example/>; rel=help\r\nContent-Type: text/plain",
        b"there",
    ),
    "away": _answer("307 Temporary Redirect\r\nLocation: http://169.254.169.254/latest/"),
    "home": _answer("302 Found\r\nLocation: /v1/relative"),
    "reason": _answer("200 Fine By Me\r\nContent-Type: text/plain", b"x"),
    "odd-status": _answer("299 Odd\r\nContent-Type: application/json", _JSON),
    "no-content": b"HTTP/1.1 204 No Content\r\nETag: \"x\"\r\n\r\n",
    "not-modified": b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n",
    "hints": b"HTTP/1.1 103 Early Hints\r\nLink: </s.css>\r\n\r\n" + _answer("200 OK\r\nContent-Type: text/plain"),
    "empty": _answer("200 OK\r\nContent-Type: text/plain"),
    "trailers": _answer("200 OK\r\nContent-Type: text/plain", coded=chunked(b"body", b"X-Sum: 1\r\n")),
    "close": b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nConnection: close\r\n\r\n" + FILE,
    "json": _answer("200 OK\r\nContent-Type: application/json;charset=UTF-8", _JSON),
    "json-chunked": _answer("200 OK\r\nContent-Type: application/json", coded=chunked(_JSON)),
    "json-lines": _answer("200 OK\r\nContent-Type: application/jsonl", b'{"a":1}\n{"b":2}\n'),
    "json-gzip": _answer("200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip", gzip.compress(_JSON)),
    "page": _answer("200 OK\r\nContent-Type: text/html", b"<!doctype html><title>a file of the client's</title>"),
    "events": _answer("200 OK\r\nContent-Type: text/event-stream", coded=chunked(_EVENTS)),
    "events-length": _answer("200 OK\r\nContent-Type: text/event-stream; charset=utf-8", _EVENTS),
    "events-chat": _answer("200 OK\r\nContent-Type: text/event-stream", coded=chunked(_CHAT_EVENTS)),
    "error-400": _answer("400 Bad Request\r\nContent-Type: application/json", b'{ "error" : {"message":"m\\u00e9"} }'),
    "error-409": _answer("409 Conflict\r\nContent-Type: application/json", b'{"error":{"message":"m","code":"used"}}'),
    "error-422": _answer("422 What\r\nContent-Type: text/plain", b"no JSON at all"),
    "error-404": _answer("404 Not Found\r\nContent-Type: application/json", b'{"error":{"message":"No such File"}}'),
    "error-500": _answer(
        "500 Internal Server Error\r\nContent-Type: application/json",
        b'{"error":{"message":"The server had an error for org-abcdefghijklmnop","type":"server_error"}}',
    ),
}  # fmt: skip


# --- requests --------------------------------------------------------------------------------------------------------

_CHAT: dict[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": "How high is the mountain?"}]}
_STREAM: dict[str, object] = {**_CHAT, "stream": True}
_JSON_TYPE = "application/json"
_FORM = 'multipart/form-data; boundary="--=_Part 7\'()+_,-./:?"'


def _chat(name: str, document: dict[str, object], **options: object) -> Case:
    body = options.pop("body", odd_json(document))
    return Case(name, "POST", "/v1/chat/completions", **{"body": body, "content_type": _JSON_TYPE, **options})  # type: ignore[arg-type]


def _get(name: str, target: str, method: str = "GET", **options: object) -> Case:
    return Case(name, method, target, **{"framing": "none", **options})  # type: ignore[arg-type]


def _claude(name: str, method: str, target: str, document: object = None) -> Case:
    fields = [(b"anthropic-version", b"2023-06-01"), (b"anthropic-beta", b"a-1,b-2"), *ORDINARY]
    fields.append((b"anthropic-workspace-id", b"wrkspc_own"))
    body = odd_json(document) if document else b""
    framing = "length" if body else "none"
    kind = _JSON_TYPE if body else ""
    return Case(name, method, target, fields, body, kind, framing, credential="x-api-key", is_claude=True)


_SAID = {"model": "claude-opus-5-5", "max_tokens": 8, "messages": _CHAT["messages"]}
_DOUBTFUL = ("page", "json-lines", "json-gzip")
_LARGE = FILE * 6000  # 3 MB: over what stays in memory

CASES: list[Case] = [
    # framings and codings of requests
    _chat("chunked body", _CHAT, framing="chunked"),
    _chat("chunked body of a stream", _STREAM, framing="chunked"),
    _chat("trailers", _CHAT, framing="trailers", fields=[*ORDINARY, (b"Trailer", b"X-Sum")]),
    _chat("gzip body", _CHAT, body=gzip.compress(odd_json(_CHAT)), fields=[*ORDINARY, (b"Content-Encoding", b"gzip")]),
    _chat(
        "gzip body of a stream",
        _STREAM,
        body=gzip.compress(odd_json(_STREAM)),
        fields=[*ORDINARY, (b"content-encoding", b"gzip")],
    ),
    _chat("expectation", _CHAT, fields=[*ORDINARY, (b"Expect", b"100-continue")]),
    _chat("hop-by-hop headers", _CHAT, fields=[*HOPS, *ORDINARY]),
    _chat("HTTP/1.0", _CHAT, version="HTTP/1.0"),
    _chat("HTTP/1.0 stream", _STREAM, version="HTTP/1.0"),
    Case("POST without a body", "POST", "/v1/batches/b-1/cancel", framing="none"),
    Case("large form", "POST", "/v1/files", ORDINARY, form([["purpose", "", "assistants"], ["file", "a.bin"]])
         .replace(FILE, _LARGE), _FORM),
    Case("large form, chunked", "POST", "/v1/uploads/u/parts", ORDINARY, form([["data", "a.bin"]])
         .replace(FILE, _LARGE), _FORM, "chunked"),
    # streams and usage
    _chat("usage asked for", {**_STREAM, "stream_options": {"include_usage": True}}),
    _chat("usage declined", {**_STREAM, "stream_options": {"include_usage": False, "include_obfuscation": False}}),
    _chat("usage left open", {**_STREAM, "stream_options": None}),
    _chat("other options", {"stream_options": {"include_obfuscation": False}, **_STREAM, "n": 2}),
    _chat("not a stream", {**_CHAT, "stream": False}),
    _chat("long stream", _STREAM, fields=[*ORDINARY, (b"x-emulator-pace", b"events=300,size=4000")]),
    # sizes and ranges of answers
    _chat("huge header of upstream", _CHAT, fields=[*ORDINARY, (b"x-emulator-fault", b"huge_header:20000")]),
    _chat("large answer", _CHAT, fields=[*ORDINARY, (b"x-emulator-pace", b"events=16,size=70000")]),
    Case("large sound", "POST", "/v1/audio/speech", [*ORDINARY, (b"x-emulator-pace", b"size=5000000")],
         b'{"model":"tts-1","input":"a","voice":"alloy"}', _JSON_TYPE),
    _get("range", "/v1/files/{file_id}/content", fields=[*ORDINARY, (b"Range", b"bytes=5-80")]),
    _get("range to the end", "/v1/files/{file_id}/content", fields=[*ORDINARY, (b"range", b"bytes=-7")]),
    _get("range beyond the end", "/v1/files/{file_id}/content", fields=[*ORDINARY, (b"Range", b"bytes=99999999-")]),
    # methods
    _get("HEAD", "/v1/models", "HEAD"),
    _get("HEAD of a content", "/v1/files/{file_id}/content", "HEAD"),
    _get("OPTIONS", "/v1/chat/completions", "OPTIONS",
         fields=[*ORDINARY, (b"Access-Control-Request-Method", b"POST")]),
    _get("PROPFIND", "/v1/files", "PROPFIND"),
    Case("QUERY", "QUERY", "/v1/new/thing", ORDINARY, b'{"x":1}', _JSON_TYPE),
    Case("PATCH", "PATCH", "/v1/vaults/v", ORDINARY, FILE, "application/merge-patch"),
    Case("PUT", "PUT", "/v1/new/thing", ORDINARY, FILE, "image/png"),
    Case("DELETE with a body", "DELETE", "/v1/new/thing", ORDINARY, b'{"x":1}', _JSON_TYPE),
    Case("GET with a body", "GET", "/v1/new/thing", ORDINARY, b"body", "text/plain"),
    # paths and queries
    _get("unknown path", "/v1/not/there/yet"),
    Case("unknown path, no JSON", "POST", "/v1/not/there/yet", ORDINARY, b'{"not": JSON', _JSON_TYPE),
    Case("unknown path, no content type", "POST", "/v1/not/there/yet", ORDINARY, FILE),
    _get("escapes in the path", "/v1/files/f%2Fil%c3%BCe%20a+b;c=1,d@e!$&'()*~:%7E/x"),
    _get("slash in a model", "/v1/models/ft:gpt-4o%2Fmy%2Dorg::abc"),
    _get("trailing slash", "/v1/assistants/"),
    _get("raw query", "/v1/evals?a=1&a=2&b=%20+%2B&c&=d&&e[]=%5B&semi;colon=1&q=a/b?c:@!$'()*,;=~%E4%BD%A0&z="),
    _get("empty query", "/v1/evals?"),
    _get("/openai prefix", "/openai/v1/models?limit=%31"),
    Case("/openai prefix of a chat", "POST", "/openai/v1/chat/completions", ORDINARY, odd_json(_CHAT), _JSON_TYPE),
    _get("key in the query", "/v1/models?a=1&api-key=sk-other&z=%31"),
    # whom one calls and as whom
    _chat("Host: api.openai.com", _CHAT, host="api.openai.com"),
    _chat("api-key", _CHAT, credential="api-key"),
    _chat("x-goog-api-key", _CHAT, credential="X-Goog-Api-Key"),
    _claude("messages", "POST", "/v1/messages", _SAID),
    _claude("messages streamed", "POST", "/v1/messages", {**_SAID, "stream": True}),
    _claude("count_tokens", "POST", "/v1/messages/count_tokens", {**_SAID, "max_tokens": 8}),
    _claude("models of Anthropic", "GET", "/v1/models?limit=5"),
    _claude("unknown path of Anthropic", "GET", "/v1/messages/batches/b-1"),
    # odd answers
    *(_get(f"answer: {name}", f"/v1/odd/answers?script={name}") for name in SCRIPTS if name not in _DOUBTFUL),
    *(
        _chat(f"answer to a chat: {name}", _STREAM)._replace(target=f"/v1/chat/completions?script={name}")
        for name in ("events-chat", "json", "error-400")
    ),
    _chat("answer to a chat: events", {**_STREAM, "stream_options": {"include_usage": True}})._replace(
        target="/v1/chat/completions?script=events"
    ),
    _get("answer to HEAD", "/v1/odd/answers?script=not-modified", "HEAD"),
    # what the emulator refuses for the client's own fault
    _chat("400 of upstream", {**_CHAT, "messages": "none"}, fields=[*ORDINARY, (b"x-emulator-fault", b"400")]),
    _chat("413 of upstream", _CHAT, fields=[*ORDINARY, (b"x-emulator-fault", b"413")]),
    _get("no such file", "/v1/files/file-none"),
    _get("HEAD of no such file", "/v1/files/file-none/content", "HEAD"),
    # what never goes upstream
    _chat("unknown key", _CHAT, credential="api_key"),
    _get("ambiguous path", "/v1/files/../models"),
    _chat("repeated member", _CHAT, body=b'{"model":"gpt-5.6","model":"gpt-4o","messages":[]}'),
    _chat("no JSON", _CHAT, body=b'{"model":"gpt-5.6",'),
    # last, for what is taken for a fault costs the only organisation its good name
    _get("answer of a file: page", "/v1/containers/c/files/f/content?script=page"),
    _get("answer of a file: json-lines", "/v1/files/f/content?script=json-lines"),
    *(_get(f"answer: {name}", f"/v1/odd/answers?script={name}") for name in _DOUBTFUL[1:]),
    _chat("answer to a chat: json-gzip", _CHAT)._replace(target="/v1/chat/completions?script=json-gzip"),
    _chat("500 of upstream", _CHAT)._replace(target="/v1/chat/completions?script=error-500"),
]  # fmt: skip
