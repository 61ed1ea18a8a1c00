"""yugong.core.dialects.taps: what is read as an answer goes by, however it is cut."""

import json
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yugong.core.dialects import taps
from yugong.core.dialects.dialect import Intent, Usage
from yugong.core.dialects.taps import ByteTap, Document, JsonTap, SseTap, StreamRule, StrippingTap, count, event_kind


def read_usage(known: Usage | None, document: Document) -> Usage | None:
    usage = document.get("usage")
    if not isinstance(usage, dict):
        return known
    read = Usage(count(usage.get("in")), count(usage.get("out")))
    read.is_estimated = "start" in usage
    return read


CHAT = StreamRule("chat", read_usage, frozenset({b"[DONE]", b"error"}))
PLAIN = StreamRule("", read_usage, None)


def intent(*, metered: bool = True, input_bytes: int = 400) -> Intent:
    made = Intent("chat.completions")
    made.is_metered = metered
    made.input_bytes = input_bytes
    return made


def data(document: object, space: str = "") -> bytes:
    return b"data: " + json.dumps(document, separators=("," + space, ":" + space)).encode() + b"\n\n"


def chunk(text: str = " hello", **more: object) -> dict[str, object]:
    return {"id": "c1", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], **more}


DONE = b"data: [DONE]\n\n"
EVENTS = [
    data(chunk()),
    data(chunk(usage=None)),
    data(chunk(usage=None), " "),
    data(chunk('say "usage":null, "error"')),
    data({"choices": [], "usage": {"in": 7, "out": 9}}),
    data({"choices": [], "usage": {"in": 0, "out": 0}}, " "),
    data({"error": {"message": "boom"}}),
    data({"error": None}),
    b'event: error\ndata: {"type":"error"}\n\n',
    b'event: response.failed\ndata: {"type":"response.failed","response":{"error":{"code":"x"}}}\n\n',
    b": ping\n\n",
    b": ping\r\n\r\n",
    b": ping\n",
    b"\n",
    DONE,
    b"data: {not json\n\n",
    b"event: usage\ndata: {}\ndata: \n\n",
    b"data: [1]\r\n\r\n",
]


def state(tap: SseTap) -> tuple[object, ...]:
    usage = tap.usage()
    figures = (usage.input, usage.output, usage.is_estimated) if usage else None
    return figures, tap.is_complete(), tap.has_failed(), tap.delivered_events(), tap.is_between_events()


def run(make: Callable[[], SseTap], body: bytes, cuts: list[int]) -> tuple[bytes, tuple[object, ...]]:
    tap = make()
    out, start = b"", 0
    for cut in [*sorted(cut for cut in cuts if cut < len(body)), len(body)]:
        piece = body[start:cut]
        given_back = tap.feed(piece)
        assert given_back is piece or not tap.is_transparent
        out += given_back
        start = cut
    out += tap.finish()
    return out, state(tap)


@given(st.lists(st.sampled_from(EVENTS), max_size=8), st.lists(st.integers(0, 700)), st.sampled_from([1 << 18, 60]))
def test_however_it_is_cut_the_same_is_read(events: list[bytes], cuts: list[int], cap: int) -> None:
    body = b"".join(events)
    for kind in (SseTap, StrippingTap):
        if kind is StrippingTap and cap == 60:
            continue
        whole = run(partial(kind, CHAT, intent(), cap), body, [])
        if kind is SseTap:
            assert whole[0] == body
        if cap == 60:
            # What is over the cap depends on how much came at once; only what is passed on does not.
            assert run(partial(kind, CHAT, intent(), cap), body, cuts)[0] == whole[0]
            continue
        assert run(partial(kind, CHAT, intent(), cap), body, cuts) == whole
        assert run(partial(kind, CHAT, intent(), cap), body, list(range(len(body)))) == whole


def without_usage(body: bytes) -> bytes:
    """The emulator's rule: without `include_usage` there is no member and no extra chunk."""
    return b"".join(
        event
        for event in (b"data: " + part + b"\n\n" for part in body.removeprefix(b"data: ").split(b"\n\ndata: "))
        if b'"choices":[],"usage"' not in event
    ).replace(b"\n\n\n\n", b"\n\n")


@given(
    st.lists(
        st.tuples(
            st.text(st.sampled_from('a"\\usage:nl,}]é ')), st.sampled_from(["last", "middle", "only", "deep", "first"])
        ),
        max_size=6,
    ),
    st.sampled_from(["", " "]),
    st.lists(st.integers(0, 900)),
)
def test_what_was_added_is_removed_byte_for_byte(chunks: list[tuple[str, str]], space: str, cuts: list[int]) -> None:
    asked, unasked = b"", b""
    for text, where in chunks:
        bare: dict[str, object] = chunk(text)
        if where == "deep":
            bare["choices"] = [{"usage": None, "delta": {"content": text}}]
        after: dict[str, object] = {"obfuscation": text} if where == "middle" else {}
        full = {"usage": None, **bare} if where == "first" else {**bare, "usage": None, **after}
        asked += data(full, space)
        unasked += data({**bare, **after}, space)
    asked += data({"id": "c1", "choices": [], "usage": {"in": 5, "out": 6}}, space) + DONE
    unasked += DONE
    out, seen = run(partial(StrippingTap, CHAT, intent()), asked, cuts)
    assert out == unasked
    assert seen == ((5, 6, False), True, False, len(chunks) + 1, True)


@pytest.mark.parametrize(
    ("event", "kept"),
    [
        # Usage beside content is the provider's own habit: it would have come anyway.
        (data(chunk(usage={"in": 1, "out": 2})), None),
        (b'data: {"a":1,\ndata: "usage":null}\n\n', None),
        (b'data: {"a":1,"usage":null}\r\n\r\n', b'data: {"a":1}\r\n\r\n'),
        (b'event: x\ndata: {"a":1,"usage":null}\n\n', b'event: x\ndata: {"a":1}\n\n'),
        (b'data: {"a":[{"b":1,"usage":null}]}\n\n', None),
        (b'data: {"a":{"b":1,"usage":null}}\n\n', None),
        (b'data: "usage"\n\n', None),
        (b'data: {"usage\n\n', None),
        (b'data: ["usage"]\n\n', None),
    ],
)
def test_stripping_one_event(event: bytes, kept: bytes | None) -> None:
    tap = StrippingTap(CHAT, intent())
    assert tap.feed(event) == (event if kept is None else kept)


def test_stripping_holds_what_is_unfinished_and_gives_it_at_the_end() -> None:
    tap = StrippingTap(CHAT, intent())
    assert not tap.is_transparent
    assert tap.feed(data(chunk(usage=None))[:-1]) == b""
    assert tap.is_between_events()
    assert tap.finish() == data(chunk())[:-1]
    assert not tap.is_complete()
    assert StrippingTap(CHAT, intent()).finish() == b""


def test_stripping_passes_on_what_is_over_the_cap() -> None:
    tap = StrippingTap(CHAT, intent(), 50)
    big = data(chunk("x" * 100, usage=None))
    assert tap.feed(big[:90]) + tap.feed(big[90:-1]) + tap.feed(big[-1:]) == big
    assert tap.feed(big[:90]) == big[:87]
    assert not tap.is_between_events()


@pytest.mark.parametrize("ending", [b"", b": ping\n\n", b": ping\r\n\r\n", b"\n\n", b": a\n\n: b\n\n"])
@pytest.mark.parametrize("space", ["", " "])
def test_a_whole_chat_stream(ending: bytes, space: str) -> None:
    tap = SseTap(CHAT, intent())
    for event in [data(chunk(usage=None), space)] * 3:
        tap.feed(event)
        assert not tap.is_complete()
    tap.feed(data({"choices": [], "usage": {"in": 3, "out": 4}}, space))
    assert not tap.is_complete()
    tap.feed(DONE)
    assert tap.is_complete()
    if ending:
        tap.feed(ending)
    assert tap.finish() == b""
    assert tap.is_complete()
    assert repr(tap.usage()) == "<Usage in=3 (cached 0) out=4>"
    assert not tap.has_failed()
    assert repr(tap).startswith("<SseTap chat events=5 ")


@pytest.mark.parametrize("space", ["", " "])
def test_an_event_may_begin_with_a_comment(space: str) -> None:
    tap = SseTap(CHAT, intent())
    tap.feed(b": ping\n" + data({"choices": [], "usage": {"in": 3, "out": 4}}, space))
    assert repr(tap.usage()) == "<Usage in=3 (cached 0) out=4>"
    tap.feed(b": ping\n" + DONE)
    assert tap.is_complete()
    assert tap.delivered_events() == 2


def test_an_error_is_an_end() -> None:
    tap = SseTap(CHAT, intent())
    tap.feed(data(chunk()) + data({"error": {"message": "x"}}))
    assert tap.has_failed()
    assert tap.is_complete()


def test_the_last_event_may_lack_its_blank_line() -> None:
    tap = SseTap(CHAT, intent())
    tap.feed(b"data: [DONE]")
    assert not tap.is_complete()
    tap.finish()
    assert tap.is_complete()


def test_any_clean_end_will_do_where_none_is_named() -> None:
    tap = SseTap(PLAIN, intent())
    assert tap.is_complete()
    tap.feed(b"data: {}\n\n")
    assert tap.is_complete()
    tap.feed(b"data: {")
    assert not tap.is_complete()
    tap.finish()
    assert not tap.is_complete()
    tap.feed(b"data: {}\n")
    tap.finish()
    assert tap.is_complete()


def test_a_cut_stream_is_estimated_from_what_was_delivered() -> None:
    tap = SseTap(CHAT, intent(input_bytes=400))
    assert tap.usage() is None
    for _ in range(50):
        tap.feed(data(chunk(" hell")))
    usage = tap.usage()
    assert usage is not None
    assert (usage.input, usage.output, usage.is_estimated) == (100, 62, True)
    # Without text to measure by, an event is a token.
    tap.feed(data({"choices": []}))
    usage = tap.usage()
    assert usage is not None
    assert usage.output == 51


@pytest.mark.parametrize(
    "event",
    [
        {"delta": "hello wonderful world, once more"},
        {"delta": {"text": "hello wonderful world, once more", "n": 1}},
        {"choices": [{"text": "hello wonderful world, once more"}, 7]},
    ],
)
def test_text_is_found_in_every_shape(event: object) -> None:
    tap = SseTap(PLAIN, intent(input_bytes=0))
    for _ in range(10):
        tap.feed(data(event))
    usage = tap.usage()
    assert usage is not None
    assert usage.output == 80


def test_usage_that_only_began_is_completed_by_the_estimate() -> None:
    tap = SseTap(PLAIN, intent())
    tap.feed(data({"usage": {"in": 11, "out": 1, "start": 1}}))
    tap.feed(data({"delta": "x" * 40}))
    usage = tap.usage()
    assert usage is not None
    assert usage.input == 11
    assert usage.is_estimated
    assert usage.output >= 10
    tap.feed(data({"usage": {"in": 11, "out": 5}}))
    assert repr(tap.usage()) == "<Usage in=11 (cached 0) out=5>"


def test_what_is_not_this_calls_own_is_not_read() -> None:
    tap = SseTap(CHAT, intent(metered=False))
    tap.feed(data({"choices": [], "usage": {"in": 3, "out": 4}}) + DONE)
    assert tap.usage() is None
    tap.feed((b"data: {" + b" " * 500 + data({"usage": {"in": 1}})[7:])[:-2])
    json_tap = JsonTap(read_usage, is_metered=False)
    json_tap.feed(b'{"usage":{"in":1}}')
    assert json_tap.usage() is None


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_an_event_over_the_cap_still_tells_usage_and_end(step: int) -> None:
    body = data({"type": "partial", "b64": "A" * 5000}) + data(
        {"type": "image.completed", "b64": "A" * 5000, "usage": {"in": 8, "out": 9}}
    )
    rule = StreamRule("images", read_usage, frozenset({b"image.completed"}))
    tap = SseTap(rule, intent(), 300)
    for at in range(0, len(body), step):
        tap.feed(body[at : at + step])
    assert tap.is_complete()
    assert repr(tap.usage()) == "<Usage in=8 (cached 0) out=9>"
    assert tap.delivered_events() == 2
    assert len(tap._tail) == len(tap._head) == 0


@pytest.mark.parametrize(
    ("head", "failed"),
    [
        (b'event: error\ndata: {"x":"', True),
        (b'data: {"type": "response.failed","x":"', True),
        (b'data: {"typ":"', False),
        (b'data: {"type":12,"x":"', False),
        (b'data: {"type"', False),
    ],
)
def test_a_large_event_may_be_an_error(head: bytes, failed: bool) -> None:
    tap = SseTap(CHAT, intent(), 100)
    tap.feed(head + b"x" * 200)
    tap.feed(b'"}\n\n')
    assert tap.has_failed() is failed
    assert tap.delivered_events() == 1


@given(
    st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=5), max_size=3),
    st.none() | st.dictionaries(st.sampled_from(["in", "out"]), st.integers(0, 9), min_size=1),
    st.sampled_from(["", '"service_tier":"flex",']),
    st.lists(st.integers(0, 200)),
)
def test_json_usage_is_the_outermost(
    more: dict[str, object], usage: dict[str, int] | None, tier: str, cuts: list[int]
) -> None:
    inner = json.dumps({**more, "usage": {"in": 99}})
    tail = "" if usage is None else f',"usage":{json.dumps(usage)}'
    body = f'{{{tier}"list":[{inner}],"text":{json.dumps(inner)}{tail},"end":{json.dumps(more)}}}'.encode()
    tap = JsonTap(read_usage)
    start = 0
    for cut in [*sorted(cut for cut in cuts if cut < len(body)), len(body)]:
        piece = body[start:cut]
        if piece:
            assert not tap.is_complete()
            assert tap.feed(piece) is piece
        start = cut
    assert tap.finish() == b""
    expected = read_usage(None, json.loads(body))
    assert repr(tap.usage()) == repr(expected)
    assert tap.is_complete()
    assert repr(tap.usage()) == repr(expected)  # now without parsing again
    assert tap.delivered_bytes == len(body)


@pytest.mark.parametrize("step", [10, 100, 100_000])
@pytest.mark.parametrize("where", ["head", "tail", "nowhere"])
def test_a_long_document_is_not_kept(step: int, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taps, "KEEP", 60)
    usage = '"usage":{"in":1,"out":2}'
    body = {
        "head": f'{{{usage},"b64":"{"A" * 5000}"}}',
        "tail": f'{{"b64":"{"A" * 5000}",{usage}}}',
        "nowhere": f'{{"b64":"{"A" * 5000}"}}',
    }[where].encode()
    tap = JsonTap(read_usage, cap=200)
    for at in range(0, len(body), step):
        tap.feed(body[at : at + step])
    assert sum(map(len, tap._chunks)) + len(tap._head) + len(tap._tail) <= 320
    assert repr(tap.usage()) == ("None" if where == "nowhere" else "<Usage in=1 (cached 0) out=2>")
    assert tap.is_complete()
    assert repr(tap) == f"<JsonTap {len(body)}B>"
    tap.feed(b"x")
    assert not tap.is_complete()


def test_a_document_cut_off_is_not_complete() -> None:
    tap = JsonTap(read_usage)
    assert not tap.is_complete()
    tap.feed(b'{"usage":{"in":1')
    assert not tap.is_complete()
    assert tap.usage() is None
    assert not tap.has_failed()
    assert tap.delivered_events() == 0
    assert not tap.is_between_events()


def test_bytes_are_counted() -> None:
    tap = ByteTap()
    body = b"\0" * 10
    assert tap.feed(body) is body
    assert tap.finish() == b""
    assert tap.usage() is None
    assert tap.is_complete()
    assert not tap.has_failed()
    assert tap.delivered_events() == 0
    assert not tap.is_between_events()
    assert repr(tap) == "<ByteTap 10B>"


@pytest.mark.parametrize(
    ("value", "figure"),
    [(0, 0), (7, 7), (2**53, 2**53), (2**53 + 1, 0), (-1, 0), (1.0, 1), (1.9, 1), (-0.5, 0), (1e300, 0),
     (float("nan"), 0), (True, 0), ("7", 0), (None, 0), ([], 0)],
)  # fmt: skip
def test_figures_are_plausible_integers_or_zero(value: object, figure: int) -> None:
    assert count(value) == figure
    assert type(count(value)) is int


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (DONE, b"[DONE]"),
        (b"event: done\ndata: [DONE]\n\n", b"[DONE]"),
        (b"event: a\ndata: {}\n\n", b"a"),
        (b'data: {"type":"b"}\n\n', b"b"),
        (b'data: {"type":["b"]}\n\n', b""),
        (b'data: {"error":{}}\n\n', b""),
        (b'data: {"error":{"a":1}}\n\n', b"error"),
        (b"data: 7\n\n", b""),
        (b"", b""),
    ],
)
def test_kinds(event: bytes, kind: bytes) -> None:
    assert event_kind(event) == kind


def test_rules_say_their_name() -> None:
    assert repr(CHAT) == "<StreamRule chat>"


@given(st.lists(st.binary(max_size=30) | st.sampled_from(EVENTS), max_size=8))
def test_noise_raises_nothing(pieces: list[bytes]) -> None:
    for tap in (SseTap(CHAT, intent(), 50), StrippingTap(CHAT, intent(), 50), JsonTap(read_usage, cap=50)):
        for piece in pieces:
            tap.feed(piece)
            tap.usage()
            tap.is_complete()
        tap.finish()
        tap.usage()
        tap.is_complete()
