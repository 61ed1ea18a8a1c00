"""core/framing: one chunk equals byte by byte; only declared errors; smuggling shapes are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yugong.core.framing import LAST_CHUNK, MAX_TRAILERS, Chunks, FramingError, Kind, body_kind, chunk

payloads = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
extensions = st.sampled_from([b"", b";a=b", b" ;x", b'; q="1"'])


@pytest.mark.parametrize(
    ("method", "status", "lengths", "encodings", "expected"),
    [
        ("GET", 200, [b"5"], [], (Kind.LENGTH, 5)),
        ("GET", 200, [b"5", b"5"], [], (Kind.LENGTH, 5)),
        ("GET", 200, [b"0"], [], (Kind.NONE, 0)),
        ("GET", 200, [], [], (Kind.CLOSE, 0)),
        ("GET", 200, [], [b"Chunked"], (Kind.CHUNKED, 0)),
        ("HEAD", 200, [b"5"], [], (Kind.NONE, 0)),
        ("GET", 204, [], [], (Kind.NONE, 0)),
        ("GET", 304, [b"9"], [], (Kind.NONE, 0)),
        ("GET", 103, [], [], (Kind.NONE, 0)),
    ],
)
def test_kinds(method, status, lengths, encodings, expected):
    assert body_kind(method, status, lengths, encodings) == expected


@pytest.mark.parametrize(
    ("lengths", "encodings"),
    [
        ([b"5"], [b"chunked"]),
        ([b"5", b"6"], []),
        ([b"+5"], []),
        ([b""], []),
        ([b"1" * 16], []),
        ([], [b"gzip, chunked"]),
        ([], [b"chunked", b"chunked"]),
    ],
)
def test_ambiguous_framing_is_refused(lengths, encodings):
    with pytest.raises(FramingError):
        body_kind("POST", 200, lengths, encodings)


def encode(parts, extension=b"", trailers=b""):
    body = b"".join(b"%x%b\r\n%b\r\n" % (len(p), extension, p) for p in parts)
    return body + b"0\r\n" + trailers + b"\r\n"


@given(payloads, extensions, st.sampled_from([b"", b"a: b\r\n", b"a: b\r\nc: d\r\n"]), st.data())
def test_any_split_yields_the_payload(parts, extension, trailers, data):
    wire = encode(parts, extension, trailers)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    whole, split, single = Chunks(), Chunks(), Chunks()
    expected = b"".join(parts)
    assert whole.feed(wire) == expected
    pieces = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    assert b"".join(split.feed(p) for p in pieces) == expected
    assert b"".join(single.feed(wire[i : i + 1]) for i in range(len(wire))) == expected
    assert whole.is_done and split.is_done and single.is_done
    assert whole.excess == split.excess == single.excess == 0


@given(st.binary(max_size=60))
def test_garbage_raises_only_the_declared_error_and_splits_agree(data):
    def run(pieces):
        decoder = Chunks()
        try:
            out = b"".join(decoder.feed(p) for p in pieces)
        except FramingError:
            return None
        return out, decoder.is_done, decoder.excess

    assert run([data]) == run([data[i : i + 1] for i in range(len(data))])


@given(payloads)
def test_chunk_is_the_inverse(parts):
    decoder = Chunks()
    assert decoder.feed(b"".join(chunk(p) for p in parts) + LAST_CHUNK) == b"".join(parts)
    assert decoder.is_done


def test_whole_chunks_may_be_passed_on_as_they_came():
    decoder = Chunks()
    assert decoder.feed(chunk(b"data: 1\n\n")) == b"data: 1\n\n" and decoder.is_whole
    assert decoder.feed(chunk(b"a") + chunk(b"b")) == b"ab" and decoder.is_whole
    assert decoder.feed(b"3\r\nab") == b"ab" and not decoder.is_whole
    assert decoder.feed(b"c\r\n") == b"c" and not decoder.is_whole
    assert decoder.feed(LAST_CHUNK) == b"" and not decoder.is_whole and decoder.is_done


@pytest.mark.parametrize(
    "wire",
    [
        b"5\nhello\r\n",
        b"+5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"5_0\r\n",
        b" 5\r\nhello\r\n",
        b"\r\nhello",
        b"5\r\nhelloX\r\n",
        b"ffffffffffff\r\n",
        b"f" * 17 + b"\r\n",
        b"5;" + b"x" * 300,
        b"0\r\n" + b"t" * (MAX_TRAILERS + 1),
        b"0\r\n" + b"t: x\r\n" * (MAX_TRAILERS // 2),
    ],
)
def test_smuggling_shapes_are_refused(wire):
    with pytest.raises(FramingError):
        Chunks().feed(wire)


def test_bytes_after_the_end_are_counted_not_returned():
    decoder = Chunks()
    assert decoder.feed(LAST_CHUNK + b"HTTP/1.1 200") == b""
    assert decoder.excess == 12
    assert "done=True" in repr(decoder)
