"""The bytes of the load: requests as the official SDK writes them, answers as OpenAI writes them.

Everything is encoded once, before a run. What the lean upstream shall do travels in the request's `metadata.bench`
(`events=100,pace=50` or `size=65536`), which any transparent proxy passes on. Knows no sockets and no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

MODEL: Final = "gpt-4o-2024-08-06"
PATH: Final = "/v1/chat/completions"
CALL_BODY_BYTES: Final = 1_000
ANSWER_BODY_BYTES: Final = 700
STREAM_EVENTS: Final = 100

# Header set and order of openai-python 3.51 on its asynchronous client; the credential's length is a project key's.
_SDK_HEADERS: Final = (
    ("Accept-Encoding", "gzip, deflate"),
    ("Connection", "keep-alive"),
    ("Accept", "application/json"),
    ("Content-Type", "application/json"),
    ("User-Agent", "AsyncOpenAI/Python 3.51.0"),
    ("X-Stainless-Lang", "python"),
    ("X-Stainless-Package-Version", "3.51.0"),
    ("X-Stainless-OS", "Linux"),
    ("X-Stainless-Arch", "x64"),
    ("X-Stainless-Runtime", "CPython"),
    ("X-Stainless-Runtime-Version", "3.11.7"),
    ("X-Stainless-Async", "async:asyncio"),
    ("x-stainless-retry-count", "0"),
    ("x-stainless-read-timeout", "600"),
)

# What api.openai.com answers with behind its CDN; the limits are so high that no pool ever has to wait for them.
_ANSWER_HEADERS: Final = (
    ("Date", "Fri, 20 Nov 2026 10:00:00 GMT"),
    ("Connection", "keep-alive"),
    ("access-control-expose-headers", "X-Request-ID"),
    ("openai-organization", "org-benchbenchbenchbench"),
    ("openai-processing-ms", "412"),
    ("openai-project", "proj_benchbenchbenchbench"),
    ("openai-version", "2020-10-01"),
    ("x-envoy-upstream-service-time", "431"),
    ("x-ratelimit-limit-requests", "1000000000"),
    ("x-ratelimit-limit-tokens", "1000000000000"),
    ("x-ratelimit-remaining-requests", "999999999"),
    ("x-ratelimit-remaining-tokens", "999999999000"),
    ("x-ratelimit-reset-requests", "1ms"),
    ("x-ratelimit-reset-tokens", "6ms"),
    ("x-request-id", "req_0123456789abcdef0123456789abcdef"),
    ("cf-cache-status", "DYNAMIC"),
    ("set-cookie", "__cf_bm=0123456789abcdef0123456789abcdef; path=/; HttpOnly; Secure; SameSite=None"),
    ("Strict-Transport-Security", "max-age=31536000; includeSubDomains; preload"),
    ("X-Content-Type-Options", "nosniff"),
    ("Server", "cloudflare"),
    ("CF-RAY", "0123456789abcdef-FRA"),
    ("alt-svc", 'h3=":443"; ma=86400'),
)

_WORDS: Final = ("the", "pool", "carries", "each", "call", "where", "there", "is", "room", "and", "nobody", "waits")


def _prose(size: int) -> str:
    """Plain words, exactly `size` bytes of them."""
    line = " ".join(_WORDS) + " "
    return (line * (size // len(line) + 1))[:size]


def chat_body(order: str, size: int = CALL_BODY_BYTES, *, stream: bool = False, asks_usage: bool = False) -> bytes:
    """A chat call of `size` bytes in all (or the least the fields need); `order` tells the lean upstream what to do."""
    options = ',"stream":true' if stream else ""
    if asks_usage:
        options += ',"stream_options":{"include_usage":true}'
    head = f'{{"model":"{MODEL}","temperature":0.2,"max_tokens":256{options},"metadata":{{"bench":"{order}"}},'
    head += '"messages":[{"role":"system","content":"You are brief."},{"role":"user","content":"'
    tail = '"}]}'
    return (head + _prose(max(16, size - len(head) - len(tail))) + tail).encode()


def request(host: str, key: str, body: bytes, more: Sequence[str] = ()) -> bytes:
    """One whole HTTP/1.1 request, as the SDK writes it, with `more` lines in its head."""
    lines = [f"POST {PATH} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in _SDK_HEADERS)]
    lines += [*more, f"Authorization: Bearer {key}", f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def _identity(kind: str) -> str:
    return f'"id":"chatcmpl-BenchBenchBenchBenchBenchBench","object":"{kind}","created":1790000000,"model":"{MODEL}"'


def _head(content: tuple[tuple[str, str], ...]) -> bytes:
    lines = ["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in _ANSWER_HEADERS + content), "", ""]
    return "\r\n".join(lines).encode()


def answer(size: int = ANSWER_BODY_BYTES) -> bytes:
    """A whole JSON answer of `size` body bytes (or the least the fields need), usage at its end as with OpenAI."""
    front = f"{{{_identity('chat.completion')},"
    front += '"choices":[{"index":0,"message":{"role":"assistant","content":"'
    back = '","refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":212,'
    back += '"completion_tokens":48,"total_tokens":260,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},'
    back += '"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0}},'
    back += '"service_tier":"default","system_fingerprint":"fp_0123456789"}'
    body = (front + _prose(max(1, size - len(front) - len(back))) + back).encode()
    return _head((("Content-Type", "application/json"), ("Content-Length", str(len(body))))) + body


STREAM_HEAD: Final = _head((("Content-Type", "text/event-stream; charset=utf-8"), ("Transfer-Encoding", "chunked")))


def _chunk(payload: str) -> bytes:
    event = f"data: {payload}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(event), event)


def _delta(delta: str, finish: str, usage: str) -> bytes:
    front = f'{{{_identity("chat.completion.chunk")},"system_fingerprint":"fp_0123456789",'
    return _chunk(front + f'"choices":[{{"index":0,"delta":{delta},"finish_reason":{finish}}}]{usage}}}')


def stream_chunks(events: int, *, with_usage: bool) -> list[bytes]:
    """The chunks of a stream: `events` of them to a client that did not ask for usage, one more to one that did.

    The last carries `[DONE]` and the end of the chunked body.
    """
    usage = ',"usage":null' if with_usage else ""
    chunks = [_delta('{"role":"assistant","content":""}', "null", usage)]
    chunks += [_delta(f'{{"content":" {_WORDS[at % len(_WORDS)]}"}}', "null", usage) for at in range(events - 3)]
    chunks.append(_delta("{}", '"stop"', usage))
    if with_usage:
        front = f'{{{_identity("chat.completion.chunk")},"system_fingerprint":"fp_0123456789",'
        chunks.append(
            _chunk(front + '"choices":[],"usage":{"prompt_tokens":212,"completion_tokens":97,"total_tokens":309}}')
        )
    chunks.append(_chunk("[DONE]") + b"0\r\n\r\n")
    return chunks


def content_length(head: bytes) -> int:
    """The body's length a head (lower case) announces; -1 if it is chunked, 0 if it says nothing."""
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        end = head.find(b"\r\n", at + 17)
        return int(head[at + 17 : end if end >= 0 else len(head)])
    return -1 if b"\r\ntransfer-encoding: chunked" in head else 0


def order(body: bytes) -> dict[str, int]:
    """What `metadata.bench` asks for; {} if there is none."""
    at = body.find(b'"bench":"')
    if at < 0:
        return {}
    text = body[at + 9 : body.index(b'"', at + 9)].decode()
    return {name: int(value) for name, _, value in (part.partition("=") for part in text.split(",")) if value}
