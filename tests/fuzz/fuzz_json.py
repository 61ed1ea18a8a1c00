"""Hammers what reads bodies: `python tests/fuzz/fuzz_json.py [iterations] [seed]`.

Each round damages a call or an answer and reads it in a random dialect. `read` may raise a `Refusal` and nothing else;
what it accepts must mean the same to the standard library; prepared bodies must still be JSON; judging, limits and taps
raise nothing. Prints the seed, so that a failure repeats.
"""

import json
import random
import sys
import time
from contextlib import suppress

from yugong.base.errors import Refusal
from yugong.core.dialects import catalog

CALLS = [
    b'{"model":"gpt-4o","messages":[{"role":"user","content":"hi \\"there\\" \\u00e9"}],"stream":true,"n":2}',
    b'{"model":"m","stream":true,"stream_options":{"include_usage":false},"metadata":{"a":[1,2.5e3,null,true]}}',
    b'{"model":"m","model":"n"}',
    b'{"input":["a","b"],"model":"m","prompt":{"id":"x"}}',
    b'{"m\\u006fdel":"m","x":"\\u0022:"}',
]
FORM = (
    b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nID3\r\n'
    b'--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--XX--\r\n'
)
ANSWERS = [
    (
        b'{"error":{"message":"Rate limit reached for m in organization org-abc on tokens per min (TPM): Limit 300, '
        b'Used 2. Please try again in 644ms.","type":"tokens","param":null,"code":"rate_limit_exceeded"}}'
    ),
    b'{"type":"error","error":{"type":"overloaded_error","message":"x","details":{"error_code":"c"}}}',
    b'{"id":"c","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"prompt_tokens_details":{"a":1}}}',
    b"<html><head><title>502 Bad Gateway</title></head></html>",
]
PATHS = ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/files", "/v1/images/edits", "/v1/models/x", "/x"]
TOKENS = [b'"', b"{", b"}", b"[", b"]", b":", b",", b"\\", b"\\u0022", b"\\ud800", b"NaN", b"1e400", b"-", b"null",
          b'"model":"m"', b"\xff", b"\xef\xbb\xbf", b"\x00", b"\r\n", b"--XX", b'"usage":{',
          b'"a":1,"a":2']  # fmt: skip
HEADERS = [b"retry-after", b"retry-after-ms", b"date", b"content-type", b"x-ratelimit-limit-tokens",
           b"x-ratelimit-reset-tokens", b"anthropic-ratelimit-tokens-reset"]  # fmt: skip
VALUES = [b"1", b"6m0s", b"12ms", b"-1", b"Fri, 20 Nov 2026 10:00:00 GMT", b"2026-11-20T10:00:00Z", b"text/html",
          b"application/json", b"\xff", b"9" * 30, b""]  # fmt: skip


def damage(rng: random.Random, data: bytes) -> bytes:
    for _ in range(rng.randrange(4)):
        at, end = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
        kind = rng.randrange(4)
        if kind == 0:
            data = data[:at] + rng.choice(TOKENS) + data[at:]
        elif kind == 1:
            data = data[:at] + data[end:] if end - at < 12 else data[:at] + rng.choice(TOKENS) + data[at + 1 :]
        elif kind == 2:
            data = data[:at] + data[at : at + 12] + data[at:]
        else:
            data = data[:at] + rng.randbytes(rng.randrange(3)) + data[at:]
    return data


def strictly(pairs: list[tuple[str, object]]) -> dict[str, object]:
    assert len({name for name, _ in pairs}) == len(pairs), "a repeated member was accepted"
    return dict(pairs)


def one(rng: random.Random) -> None:
    dialect = rng.choice(list(catalog().values()))
    is_form = rng.random() < 0.2
    body = damage(rng, FORM if is_form else rng.choice(CALLS))
    content_type = b"multipart/form-data; boundary=XX" if is_form else b"application/json"
    path = rng.choice(PATHS)
    with suppress(Refusal):
        intent = dialect.read("POST", path, content_type, body)
        prepared = bytes(dialect.prepare(intent, body, rng.choice([None, intent.model, "other"])))
        if not is_form and intent.needs_model:
            said = json.loads(body, object_pairs_hook=strictly)
            model = said.get("model")
            assert intent.model == (model if isinstance(model, str) and model else None)
            json.loads(prepared, object_pairs_hook=strictly)
            assert not intent.adds_usage or json.loads(prepared)["stream_options"]["include_usage"] is True
    answer = damage(rng, rng.choice(ANSWERS))
    headers = [(rng.choice(HEADERS), rng.choice(VALUES)) for _ in range(rng.randrange(4))]
    fault = dialect.judge(rng.choice([200, 400, 401, 403, 404, 409, 429, 500, 529]), headers, answer)
    if fault is not None:
        json.loads(dialect.refuse_fault(fault, answer))
    dialect.limits(headers)
    dialect.first_event(b"data: " + answer + b"\n\n")
    call = dialect.read("GET", "/v1/files", b"", b"")
    call.is_metered = True
    tap = dialect.tap(call, 200, b"application/json")
    middle = rng.randrange(len(answer) + 1)
    tap.feed(answer[:middle])
    tap.feed(answer[middle:])
    usage = tap.usage()
    tap.is_complete()
    again = tap.usage()
    assert usage is None or (again is not None and usage.input == again.input) or not tap.is_complete()


def main() -> None:
    iterations = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 2**32
    print(f"seed {seed}, {iterations} rounds")
    started = time.perf_counter()
    for round_ in range(iterations):
        try:
            one(random.Random(seed + round_))
        except BaseException:
            print(f"round {round_}: python {sys.argv[0]} 1 {seed + round_}")
            raise
    print(f"{iterations} rounds, nothing found, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
