"""The frame scanner: what passes, what is shown, what is refused; one chunk equals byte by byte."""

import random
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yugong.core.frames import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    FrameCaps,
    FrameError,
    FrameScanner,
    first_text,
    has_usage,
    unmask,
    write_close,
    write_frame,
)

CAPS = FrameCaps(1 << 20, 1 << 20, 1 << 16)
SMALL = FrameCaps(frame_max=400, message_max=600, hold_max=200)
KEY = b"\x01\x82\x00\xff"


class Run(NamedTuple):
    """What came of feeding a scanner: bytes passed, messages seen, and the error if there was one."""

    passed: bytes
    seen: list[tuple[bytes, bool]]
    error: tuple[int, str] | None
    close: tuple[bool, int, bytes]
    frames: int


def run(chunks: list[bytes], caps: FrameCaps = CAPS, *, is_masked: bool = False, cleans: bool = False) -> Run:
    seen: list[tuple[bytes, bool]] = []
    scanner = FrameScanner(
        caps,
        is_masked=is_masked,
        see=lambda payload, is_whole: seen.append((payload, is_whole)),
        clean=(lambda payload: payload.replace(b"sk-secret", b"[key]")) if cleans else None,
    )
    passed, broken = b"", None
    try:
        for chunk in chunks:
            passed += scanner.feed(chunk)
    except FrameError as error:
        passed += error.ready
        broken = error.code, error.reason
    close = (scanner.is_closed, scanner.close_code, scanner.close_reason)
    return Run(passed, seen, broken, close, scanner.frames)


def singles(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


# -- what passes ------------------------------------------------------------------------------------------------------


def test_a_whole_frame_passes_as_the_very_object() -> None:
    frame = write_frame(TEXT, b"hello")
    assert FrameScanner(CAPS, is_masked=False).feed(frame) is frame


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 100_000])
@pytest.mark.parametrize("mask", [b"", KEY])
def test_every_size_is_shown_in_the_clear(size: int, mask: bytes) -> None:
    payload = random.Random(size).randbytes(size)
    frame = write_frame(TEXT, payload, mask)
    got = run([frame], is_masked=bool(mask))
    assert (got.passed, got.seen, got.frames) == (frame, [(payload[: CAPS.hold_max], size <= CAPS.hold_max)], 1)


def test_binary_and_control_frames_are_not_shown() -> None:
    data = write_frame(BINARY, b"\0\1") + write_frame(PING, b"p") + write_frame(PONG, b"p")
    got = run([data])
    assert (got.passed, got.seen, got.frames) == (data, [], 3)


def test_fragments_are_shown_as_one_message_and_pings_pass_between() -> None:
    data = b"".join(
        (write_frame(0x01, b"one "), write_frame(PING, b"?"), write_frame(0x00, b""), write_frame(0x80, b"two"))
    )
    got = run([data + write_frame(TEXT, b"next")])
    assert got.seen == [(b"one two", True), (b"next", True)]
    assert got.passed == data + write_frame(TEXT, b"next")
    assert got.error is None


def test_of_a_long_message_in_fragments_the_beginning_is_shown() -> None:
    data = write_frame(0x01, b"a" * 150) + write_frame(0x00, b"b" * 100) + write_frame(0x80, b"c" * 210)
    for chunks in ([data], singles(data)):
        assert run(chunks, SMALL).seen == [(b"a" * 150 + b"b" * 50, False)]
    assert run([data + write_frame(TEXT, b"next")], SMALL).seen[1] == (b"next", True)


def test_binary_fragments_are_not_shown() -> None:
    assert run([write_frame(0x02, b"a") + write_frame(0x80, b"b") + write_frame(TEXT, b"c")]).seen == [(b"c", True)]


def test_part_of_a_frame_is_held_so_that_a_close_can_follow_what_passed() -> None:
    first, second = write_frame(TEXT, b"first"), write_frame(TEXT, b"second")
    scanner = FrameScanner(CAPS, is_masked=False)
    assert scanner.feed(first + second[:4]) == first
    assert not scanner.is_mid_frame
    assert scanner.feed(second[4:]) == second


def test_a_long_frame_goes_straight_through() -> None:
    frame = write_frame(BINARY, b"x" * 300, KEY)
    scanner = FrameScanner(SMALL, is_masked=True)
    assert scanner.feed(frame[:50]) == frame[:50]
    assert scanner.is_mid_frame
    assert scanner.feed(frame[50:]) == frame[50:]
    assert not scanner.is_mid_frame
    assert scanner.frames == 1


def test_of_a_long_text_the_beginning_is_shown() -> None:
    payload = bytes(range(256)) + b"y" * 50
    frame = write_frame(TEXT, payload, KEY)
    for chunks in ([frame], [frame[:11], frame[11:13], frame[13:]], singles(frame)):
        got = run(chunks, SMALL, is_masked=True)
        assert (got.seen, got.passed) == ([(payload[:200], False)], frame)


def test_nothing_counts_after_close() -> None:
    close = write_close(3000, "bye")
    got = run([write_frame(TEXT, b"a") + close + b"\xff\xff rubbish", b"more"])
    assert got.passed == write_frame(TEXT, b"a") + close
    assert got.close == (True, 3000, b"bye")
    assert got.error is None


@pytest.mark.parametrize("mask", [b"", KEY])
def test_close_without_code_is_1005(mask: bytes) -> None:
    got = run([write_frame(CLOSE, b"", mask)], is_masked=bool(mask))
    assert got.close == (True, 1005, b"")


@pytest.mark.parametrize("code", [1000, 1001, 1011, 3000, 4999])
def test_masked_close_codes_are_read(code: int) -> None:
    assert run([write_close(code, "why", KEY)], is_masked=True).close == (True, code, b"why")


def test_a_longer_head_than_needed_is_let_pass() -> None:
    frame = b"\x81\x7e\x00\x02hi"
    assert run([frame]).passed == frame
    assert run([frame]).seen == [(b"hi", True)]


# -- keys in what upstream says ---------------------------------------------------------------------------------------


def test_a_key_is_taken_out_and_only_that_frame_rewritten() -> None:
    bad = b'{"error":"Incorrect API key provided: sk-secret"}'
    before, after = write_frame(TEXT, b"a"), write_frame(BINARY, b"sk-secret stays in binary")
    got = run([before + write_frame(TEXT, bad) + after], cleans=True)
    good = bad.replace(b"sk-secret", b"[key]")
    assert got.passed == before + write_frame(TEXT, good) + after
    assert got.seen == [(b"a", True), (good, True)]


def test_a_key_is_taken_out_of_fragments_and_close_reasons() -> None:
    data = write_frame(0x01, b"x sk-secret") + write_frame(0x80, b"sk-secret y") + write_close(4001, "sk-secret!")
    got = run([data], cleans=True)
    assert got.passed == write_frame(0x01, b"x [key]") + write_frame(0x80, b"[key] y") + write_close(4001, "[key]!")
    assert got.seen == [(b"x [key][key] y", True)]
    assert got.close == (True, 4001, b"[key]!")


def test_a_cleaned_close_reason_still_fits() -> None:
    scanner = FrameScanner(CAPS, is_masked=False, clean=lambda reason: "é".encode() * 100)
    frame = scanner.feed(write_close(4001, "sk-1"))
    assert frame == write_close(4001, "é" * 61)
    assert len(frame) <= 127


def test_what_the_cleaner_leaves_alone_passes_as_it_came() -> None:
    frame = write_frame(TEXT, b"risk-free")
    assert FrameScanner(CAPS, is_masked=False, clean=lambda payload: payload).feed(frame) is frame


# -- what is refused --------------------------------------------------------------------------------------------------

BROKEN = [
    (b"\xc1\x00", 1002, "reserved bit set"),
    (b"\xa1\x00", 1002, "reserved bit set"),
    (b"\x91\x00", 1002, "reserved bit set"),
    (b"\x83\x00", 1002, "unknown opcode"),
    (b"\x8b\x00", 1002, "unknown opcode"),
    (b"\x09\x00", 1002, "control frame in fragments"),
    (b"\x80\x00", 1002, "continuation of nothing"),
    (b"\x00\x00", 1002, "continuation of nothing"),
    (b"\x01\x00\x81\x00", 1002, "message begun within a message"),
    (b"\x01\x00\x02\x00", 1002, "message begun within a message"),
    (b"\x81\x80", 1002, "frame masked"),
    (b"\x89\x7e\x00\x7e", 1002, "control frame too long"),
    (b"\x88\x01", 1002, "close frame with half a code"),
    (b"\x81\x7f\x80" + bytes(7), 1002, "frame size out of range"),
    (b"\x82\x7e\x01\x91", 1009, "frame over 400B"),
    (b"\x82\x7f\x00\x00\x00\xff\xff\xff\xff\xff", 1009, "frame over 400B"),
    (b"\x02\x7e\x01\x90" + bytes(400) + b"\x80\x7e\x00\xc9", 1009, "message over 600B"),
]


@pytest.mark.parametrize(("data", "code", "reason"), BROKEN, ids=lambda case: str(case)[:40])
def test_broken_frames_are_refused_and_what_came_before_passes(data: bytes, code: int, reason: str) -> None:
    good = write_frame(TEXT, b"before")
    for chunks in ([good + data], singles(good + data), [good, data]):
        got = run(chunks, SMALL)
        assert got.error == (code, reason)
        assert got.seen == [(b"before", True)]
        assert got.passed.startswith(good)
        assert (good + data).startswith(got.passed)


def test_an_unmasked_client_frame_is_refused() -> None:
    assert run([b"\x81\x02hi"], is_masked=True).error == (1002, "frame not masked")


def test_a_message_may_fill_its_cap_exactly_and_the_next_begins_anew() -> None:
    message = write_frame(0x02, b"x" * 400) + write_frame(0x80, b"x" * 200)
    assert run([message * 3], SMALL).error is None


def test_what_see_raises_comes_out() -> None:
    def see(payload: bytes, is_whole: bool) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        FrameScanner(CAPS, is_masked=False, see=see).feed(write_frame(TEXT, b"no"))


# -- properties -------------------------------------------------------------------------------------------------------

FIRSTS = st.sampled_from([0x00, 0x01, 0x02, 0x80, TEXT, BINARY, PING, PONG, CLOSE, 0xC1, 0x83])
PAYLOADS = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([b"sk-secret", b'{"a":"sk-secret"}', b"x" * 126, b"y" * 201, b"z" * 399, b"w" * 401]),
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, bool]:
    """Mostly sound frames, with what is wrong and what is cut mixed in."""
    is_masked = draw(st.booleans())
    data = b""
    for first, payload in draw(st.lists(st.tuples(FIRSTS, PAYLOADS), max_size=8)):
        mask = draw(st.binary(min_size=4, max_size=4)) if is_masked else b""
        data += write_frame(first, payload, mask)
    data += draw(st.binary(max_size=12))
    return data[: draw(st.integers(0, len(data)))], is_masked


def split(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    at = 0
    for cut in [*sorted(c % (len(data) + 1) for c in cuts), len(data)]:
        yield data[at:cut]
        at = cut


@given(streams(), st.lists(st.integers(0, 1 << 16), max_size=10), st.booleans())
def test_one_chunk_equals_byte_by_byte(stream: tuple[bytes, bool], cuts: list[int], cleans: bool) -> None:
    data, is_masked = stream
    cleans = cleans and not is_masked
    whole = run([data], SMALL, is_masked=is_masked, cleans=cleans)
    assert run(singles(data), SMALL, is_masked=is_masked, cleans=cleans) == whole
    assert run(list(split(data, cuts)), SMALL, is_masked=is_masked, cleans=cleans) == whole


@given(streams())
def test_what_passes_is_the_beginning_of_what_came(stream: tuple[bytes, bool]) -> None:
    data, is_masked = stream
    assert data.startswith(run([data], SMALL, is_masked=is_masked).passed)


@given(st.binary(min_size=4, max_size=4), st.binary(max_size=300))
def test_masking_twice_is_nothing(key: bytes, payload: bytes) -> None:
    masked = unmask(key, payload)
    assert unmask(key, masked) == payload
    assert masked == bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))


# -- small things -----------------------------------------------------------------------------------------------------


def test_close_reasons_are_cut_between_characters() -> None:
    frame = write_close(1008, "é" * 100)
    assert len(frame) <= 127
    assert frame[4:].decode() == "é" * 61


def test_usage_is_looked_for_before_parsing() -> None:
    assert has_usage(b'{"type":"response.done","response":{"usage":{}}}')
    assert not has_usage(b'{"type":"response.output_text.delta","delta":"hello"}')


def test_the_first_text_is_found_when_it_is_whole() -> None:
    frame = write_frame(PING, b"") + write_frame(TEXT, b'{"type":"session.created"}')
    assert first_text(frame, CAPS) == b'{"type":"session.created"}'
    assert first_text(frame[:-1], CAPS) is None
    with pytest.raises(FrameError):
        first_text(b"\xff\xff", CAPS)


def test_reprs_are_one_diagnostic_line() -> None:
    scanner = FrameScanner(CAPS, is_masked=False)
    scanner.feed(write_frame(TEXT, b"a") + b"\x81")
    assert repr(scanner) == "<FrameScanner open frames=1 held=1B left=0B>"
    assert repr(SMALL) == "<FrameCaps frame=400B message=600B hold=200B>"
    assert repr(FrameError(1002, "why")) == "<FrameError 1002 why ready=0B>"
