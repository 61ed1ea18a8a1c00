"""Hammers the event splitter and the stream taps: `python tests/fuzz/fuzz_sse.py [iterations] [seed]`.

Each round makes a stream out of events, halves of events and noise, and feeds it in two random cuttings: what comes out
must be the same, joined it must be what went in, and nothing may raise. Prints the seed, so that a failure repeats.
"""

import json
import random
import sys
import time

from yugong.core.dialects import catalog
from yugong.core.dialects.dialect import Intent
from yugong.core.dialects.taps import SseTap, StrippingTap
from yugong.core.sse import Splitter, read_event

PIECES = [
    b'data: {"id":"c","choices":[{"delta":{"content":" a"}}],"usage":null}\n\n',
    b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n',
    b'data: {"error":{"message":"x"}}\n\n',
    b"data: [DONE]\n\n",
    b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":3}}}\n\n',
    b'event: message_delta\r\ndata: {"type":"message_delta","usage":{"output_tokens":3}}\r\n\r\n',
    b'event: response.completed\rdata: {"type":"response.completed","response":{"usage":{"input_tokens":1}}}\r\r',
    b": ping\n\n",
    b"data:",
    b'"usage"',
    b'"error"',
    b'{"usage":null,',
    b',"usage":null}',
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b"\xef\xbb\xbf",
    b"event: error",
    b"\x00\xff",
]


def stream(rng: random.Random) -> bytes:
    out = bytearray()
    for _ in range(rng.randrange(1, 9)):
        piece = rng.choice(PIECES)
        if rng.random() < 0.2:
            piece = piece[: rng.randrange(len(piece) + 1)]
        if rng.random() < 0.1:
            piece = rng.randbytes(rng.randrange(8))
        out += piece
    return bytes(out)


def cuttings(rng: random.Random, data: bytes) -> list[bytes]:
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(5)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def split(pieces: list[bytes], cap: int) -> tuple[list[bytes], bytes]:
    splitter = Splitter(cap)
    return [event for piece in pieces for event in splitter.feed(piece)], splitter.finish()


def split_all(data: bytes) -> list[bytes]:
    events, rest = split([data], 1 << 18)
    return [*events, rest]


def is_sane(event: bytes) -> bool:
    if b"usage" not in event:
        return True
    try:
        json.loads(read_event(event)[1])
    except ValueError:
        return False
    return b"\r" not in event


def run_tap(tap: SseTap, pieces: list[bytes]) -> tuple[bytes, str, bool, bool]:
    out = b"".join([tap.feed(piece) for piece in pieces]) + tap.finish()
    return out, repr(tap.usage()), tap.is_complete(), tap.has_failed()


def one(rng: random.Random, intents: list[tuple[str, Intent]]) -> None:
    data = stream(rng)
    first, second = cuttings(rng, data), cuttings(rng, data)
    events, rest = split(first, 1 << 18)
    assert (events, rest) == split(second, 1 << 18)
    assert b"".join(events) + rest == data
    small = rng.randrange(3, 60)
    pieces, rest = split(first, small)
    assert b"".join(pieces) + rest == data
    for event in events:
        read_event(event)
    name, intent = rng.choice(intents)
    dialect = catalog()[name]
    for cap in (1 << 18, small):
        rule = dialect.tap(intent, 200, b"text/event-stream")._rule  # type: ignore[attr-defined]
        for kind in (SseTap, StrippingTap):
            one_way = run_tap(kind(rule, intent, cap), first)
            if kind is SseTap:
                assert one_way[0] == data
            # Which event is over the cap depends on how much came at once, and an event that is no JSON may be stripped
            # or not: both are upstream's fault and neither loses content.
            if cap != small and (kind is SseTap or all(is_sane(event) for event in split_all(data))):
                other_way = run_tap(kind(rule, intent, cap), second)
                assert (one_way[0], *one_way[2:]) == (other_way[0], *other_way[2:]), (one_way, other_way)
                assert one_way[1] == other_way[1] or "estimated" in one_way[1] + other_way[1]
    for event in events:
        dialect.first_event(event)


def main() -> None:
    iterations = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 2**32
    print(f"seed {seed}, {iterations} rounds")
    intents = []
    for name, rules in (("openai", ("", "chat", "responses", "images")), ("anthropic", ("", "messages"))):
        for rule in rules:
            intent = Intent("x")
            intent.stream_rule = rule
            intents.append((name, intent))
    started = time.perf_counter()
    for round_ in range(iterations):
        rng = random.Random(seed + round_)
        try:
            one(rng, intents)
        except BaseException:
            print(f"round {round_}: python {sys.argv[0]} 1 {seed + round_}")
            raise
    print(f"{iterations} rounds, nothing found, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
