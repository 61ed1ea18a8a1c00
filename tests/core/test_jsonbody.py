"""yugong.core.jsonbody: read strictly, edited without being rewritten."""

import json
import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from yugong.base.errors import Refusal, RefusalKind
from yugong.core import jsonbody
from yugong.core.jsonbody import Invalid, Repeated, find_member, object_after, parse, remove_member, splice

TEXT = st.text(st.sampled_from('ab"\\/\u0022:,{}[]\n é😀'), max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=6,
)


@contextmanager
def mapped(body: bytes) -> Iterator[mmap.mmap]:
    with tempfile.TemporaryFile() as file:
        file.write(body)
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            yield view


def spell_text(text: str, *, is_ascii: bool = True, is_quote_escaped: bool = False) -> str:
    plain = (json.dumps(char, ensure_ascii=is_ascii)[1:-1] for char in text)
    return '"' + "".join("\\u0022" if char == '\\"' and is_quote_escaped else char for char in plain) + '"'


def spell(value: object, draw: st.DrawFn) -> str:
    """JSON for `value` in some spelling: spaces and escapes."""
    space = draw(st.sampled_from(["", " ", "\n\t"]))
    if isinstance(value, dict):
        pairs = [(spell(name, draw), spell(inner, draw)) for name, inner in value.items()]
        return "{" + ",".join(f"{space}{name}{space}:{space}{inner}" for name, inner in pairs) + space + "}"
    if isinstance(value, list):
        return "[" + ",".join(space + spell(inner, draw) for inner in value) + "]"
    if isinstance(value, str):
        return spell_text(value, is_ascii=draw(st.booleans()), is_quote_escaped=draw(st.booleans()))
    return json.dumps(value)


@st.composite
def documents(draw: st.DrawFn) -> tuple[bytes, object]:
    value = draw(VALUES)
    return spell(value, draw).encode(), value


@given(documents())
def test_what_is_accepted_is_what_it_says(pair: tuple[bytes, object]) -> None:
    body, value = pair
    assert parse(body) == value


@given(documents(), TEXT, VALUES, VALUES)
@example((b"{}", {}), '"', None, None)
def test_a_repeated_member_is_found_wherever_it_is(
    pair: tuple[bytes, object], name: str, one: object, two: object
) -> None:
    for is_first_escaped, is_second_escaped in ((False, False), (True, False), (False, True), (True, True)):
        first = spell_text(name, is_quote_escaped=is_first_escaped)
        second = spell_text(name, is_quote_escaped=is_second_escaped)
        inner = f"{{{first}: {json.dumps(one)}, {second} :{json.dumps(two)}}}".encode()
        with pytest.raises(Repeated):
            parse(b'[{"x":' + pair[0] + b',"y":' + inner + b"}]")


@given(st.binary(max_size=60) | st.text(st.sampled_from('{}[]",:\\u0022dnaN1e.- \n'), max_size=40).map(str.encode))
def test_nothing_but_invalid_is_raised(body: bytes) -> None:
    try:
        value = parse(body)
    except Invalid:
        return
    assert json.loads(body) == value


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"[" * 10_000 + b"]" * 10_000, "depth"),
        (b"[" * 300 + b"]" * 300, "nested too deeply"),
        (b'{"a":1e400}', "infinity"),
        (b'{"a":-1e400}', "infinity"),
        (b'{"a":NaN}', "unexpected"),
        (b'{"a":Infinity}', "unexpected"),
        (b'["\\ud800"]', "surrogate"),
        (b'["\\udc00"]', "surrogate"),
        (b'["\xff"]', "UTF-8"),
        (b'["\xed\xa0\x80"]', "UTF-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"{} {}", "after document"),
        (b"{}\x00", "after document"),
        (b"", "empty"),
        (b'{"a":1,}', "trailing comma"),
        (b"{'a':1}", "unexpected"),
    ],
)
def test_refused_with_its_reason(body: bytes, reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        parse(body)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"a":1,"a":2}', '"a"'),
        (b'{"a":1,"b":{"c":1,"c":1}}', '"c"'),
        (b'{"a":1,"\\u0061":2,"b" :3}', '"a"'),
        # Too deep, or with numbers too long, to be read twice: found all the same.
        (b'{"a":1,"a":' + b"9" * 300 + b"}", '"a"'),
        (b"[" * 240 + b'{"a":1,"a":2}' + b"]" * 240, "member"),
    ],
)
def test_repeated_is_named(body: bytes, name: str) -> None:
    with pytest.raises(Repeated) as caught:
        parse(body)
    assert name in str(caught.value)


def test_the_name_is_left_out_where_it_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RecursionError

    monkeypatch.setattr(jsonbody.json, "loads", fail)
    with pytest.raises(Repeated, match="member name occurs twice"):
        parse(b'{"a":1,"a":2}')


def test_a_mapped_file_is_read_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonbody, "_PIECE", 7)
    body = b'{"model": "a", "text": "say \\"\\u0022\\" \\\\u0022"}'
    with mapped(body) as view:
        assert parse(view) == parse(body)
        assert find_member(view, "model") == (1, 10, 13)
        assert splice(view, 10, 13, b'"bb"') == body.replace(b'"a"', b'"bb"')
    with mapped(b'{"a":1,"a":2}') as view, pytest.raises(Repeated):
        parse(view)


def test_a_huge_document_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonbody, "MAX_DOCUMENT", 10)
    with pytest.raises(Refusal) as caught:
        parse(b'{"aaaaaaaa":1}')
    assert caught.value.kind is RefusalKind.TOO_LARGE


@given(documents(), st.sampled_from(["a", "b", '"', "\\", "ab"]))
def test_a_member_is_found_where_it_stands(pair: tuple[bytes, object], name: str) -> None:
    body, value = pair
    found = find_member(body, name)
    if not isinstance(value, dict) or name not in value:
        assert found is None
        return
    assert found is not None
    at, start, end = found
    assert json.loads(body[start:end]) == value[name]
    assert body[at : at + 1] == b'"'
    assert json.loads(splice(body, start, end, b"[7]")) == {**value, name: [7]}


@given(documents(), st.sampled_from(["a", "b", '"', "ab"]))
def test_a_member_is_removed_with_its_comma(pair: tuple[bytes, object], name: str) -> None:
    body, value = pair
    without = remove_member(body, name)
    if isinstance(value, dict) and name in value:
        assert json.loads(without) == {key: inner for key, inner in value.items() if key != name}
    else:
        assert without is body


@pytest.mark.parametrize(
    ("body", "rest"),
    [
        (b'{"a":1,"usage":null}', b'{"a":1}'),
        (b'{"a": 1, "usage": null}', b'{"a": 1}'),
        (b'{"usage":null,"a":1}', b'{"a":1}'),
        (b'{"usage": null, "a": 1}', b'{"a": 1}'),
        (b'{"usage":null}', b"{}"),
        (b'{"x":1,"usage":{"a":[1]},"y":2}', b'{"x":1,"y":2}'),
        (b'{"x":{"usage":1}}', b'{"x":{"usage":1}}'),
    ],
)
def test_removal_is_byte_exact(body: bytes, rest: bytes) -> None:
    assert remove_member(body, "usage") == rest


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b'...,"usage":{"a":1},"x":[]}', {"a": 1}),
        (b'"usage" : {"a":{"b":2}}', {"a": {"b": 2}}),
        (b'"usage":{"a":1},"y":{"usage":null}', {"a": 1}),
        (b'{"usage":{"a":1', None),
        (b'"usage":' * 9 + b"1", None),
        (b'"usage":{"a":' + b"[" * 9000, None),
        (b'"usage"', None),
        (b'xx"usage":{"a":"\xff"}', {"a": "�"}),
        (b"nothing", None),
    ],
)
def test_an_object_in_what_was_kept(text: bytes, found: object) -> None:
    assert object_after(text, b"usage") == found


def test_a_fragment_has_no_member() -> None:
    assert find_member(b"{\\", "model") is None
