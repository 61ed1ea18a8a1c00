"""What an answer says can be checked from the request alone."""

import orjson
from hypothesis import given
from hypothesis import strategies as st

from yugong.emulator.text import asked_tokens, count_tokens, expected_text, piece, piece_json, prompt_of, seed_of

seeds = st.text("0123456789abcdef", min_size=8, max_size=8)


@given(seeds, st.integers(1, 60), st.integers(0, 40))
def test_a_lost_or_doubled_piece_shows(seed: str, n: int, size: int) -> None:
    pieces = [piece(seed, i, size) for i in range(n)]
    whole = expected_text(seed, n, size)
    assert "".join(pieces) == whole
    assert len(set(pieces)) == n
    for i in range(n):
        assert "".join(pieces[:i] + pieces[i + 1 :]) != whole
        assert "".join(pieces[: i + 1] + pieces[i:]) != whole


@given(seeds, st.integers(0, 1000), st.integers(0, 200))
def test_pieces_are_padded_and_quoted(seed: str, i: int, size: int) -> None:
    text = piece(seed, i, size)
    assert orjson.loads(piece_json(seed, i, size)) == text
    assert len(text.encode()) >= size
    if size >= 40:
        assert len(text.encode()) == size


def test_the_seed_outlives_stream_options() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "愚"}]}]}
    assert seed_of(prompt_of(body)) == seed_of(prompt_of(body | {"stream_options": {"include_usage": True}}))
    assert prompt_of(body) == "愚".encode()
    assert prompt_of({"input": "b", "instructions": "a"}) == b"ab"
    assert prompt_of([1]) == b""


def test_depth_is_no_danger() -> None:
    deep: object = "end"
    for _ in range(100_000):
        deep = [deep]
    assert prompt_of({"input": deep}) == b"end"


def test_counting() -> None:
    assert [count_tokens("x" * n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert count_tokens("愚") == 1
    assert asked_tokens({"max_tokens": 5, "max_completion_tokens": 7}) == 7
    assert asked_tokens({"max_tokens": True}) == asked_tokens({"max_tokens": -1}) == asked_tokens(None) == 0
