"""Feeds the frame scanner what no peer should send: `python tests/fuzz/fuzz_frames.py [count] [seed]`.

Each round makes a stream of frames, damages it, and feeds it whole, in random pieces and byte by byte. All three must
pass the same bytes, show the same messages and fail alike; only `FrameError` may come out; what passes without an error
must read, to a parser that is written down the plain way below, as the messages that were shown. Ends with 1 at the
first difference and prints the seed of its round.
"""

import random
import sys
import time
from collections.abc import Iterable

from yugong.core.frames import FrameCaps, FrameError, FrameScanner, unmask, write_frame

CAPS = FrameCaps(frame_max=500, message_max=900, hold_max=200)
FIRSTS = (0x00, 0x01, 0x02, 0x80, 0x81, 0x81, 0x81, 0x82, 0x88, 0x89, 0x8A)
SIZES = (0, 1, 2, 5, 124, 125, 126, 127, 199, 200, 201, 300, 499, 500, 501)
SLOW = 1.0  # seconds a round may take: it feeds at most some thousand bytes

Result = tuple[bytes, list[tuple[bytes, bool]], tuple[int, str] | None, int]


def feed(chunks: Iterable[bytes], is_masked: bool) -> Result:
    seen: list[tuple[bytes, bool]] = []
    scanner = FrameScanner(CAPS, is_masked=is_masked, see=lambda payload, is_whole: seen.append((payload, is_whole)))
    passed, broken = b"", None
    try:
        for chunk in chunks:
            passed += scanner.feed(chunk)
    except FrameError as error:
        passed += error.ready
        broken = error.code, error.reason
    return passed, seen, broken, scanner.close_code


def plain_texts(data: bytes) -> list[tuple[bytes, bool]]:
    """The text messages in a sound stream, as far as it goes."""
    texts, at = [], 0
    kind, message = 0, b""
    while at + 2 <= len(data):
        first, second = data[at], data[at + 1]
        at += 2
        size = second & 127
        if size > 125:
            wide = 2 if size == 126 else 8
            size = int.from_bytes(data[at : at + wide], "big")
            at += wide
        key, at = (data[at : at + 4], at + 4) if second > 127 else (bytes(4), at)
        if at + size > len(data):
            break
        payload = unmask(key, data[at : at + size])
        at += size
        if first == 0x88:
            break
        if first & 0x0F < 3:
            kind = first & 0x0F or kind
            message += payload
            if first & 0x80:
                if kind == 1:
                    texts.append((message[: CAPS.hold_max], len(message) <= CAPS.hold_max))
                message = b""
    return texts


def stream(rng: random.Random, is_masked: bool) -> bytes:
    frames = b"".join(
        write_frame(rng.choice(FIRSTS), rng.randbytes(rng.choice(SIZES)), rng.randbytes(4) if is_masked else b"")
        for _ in range(rng.randrange(6))
    )
    data = bytearray(frames)
    for _ in range(rng.choice((0, 0, 0, 1, 3))):
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)
    if rng.random() < 0.2:
        data += rng.randbytes(rng.randrange(20))
    return bytes(data[: rng.randrange(len(data) + 1)]) if rng.random() < 0.2 else bytes(data)


def pieces(rng: random.Random, data: bytes) -> Iterable[bytes]:
    at = 0
    while at < len(data):
        size = rng.choice((1, 2, 3, 7, 50, 1000))
        yield data[at : at + size]
        at += size


def check(seed: int) -> bool:
    rng = random.Random(seed)
    is_masked = rng.random() < 0.5
    data = stream(rng, is_masked)
    whole = feed([data], is_masked)
    if feed(pieces(rng, data), is_masked) != whole:
        return False
    if seed % 8 == 0 and feed((data[i : i + 1] for i in range(len(data))), is_masked) != whole:
        return False
    passed, seen, _, _ = whole
    return data.startswith(passed) and seen == plain_texts(passed)


def main(count: int, seed: int) -> int:
    began = time.monotonic()
    slowest = 0.0
    for number in range(seed, seed + count):
        start = time.monotonic()
        if not check(number):
            print(f"difference at seed {number}")
            return 1
        slowest = max(slowest, time.monotonic() - start)
    print(f"{count} streams, no difference, {time.monotonic() - began:.1f} s, slowest {slowest * 1000:.1f} ms")
    return 1 if slowest > SLOW else 0


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(arguments + [100_000, 0][len(arguments) :])))
