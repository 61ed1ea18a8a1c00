"""Secrets stay unseen."""

import copy
import json
import pickle

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yugong.base.secret import SECRET_MAX, Secret

PLANTED = "sk-canary-0123456789"


class Holder(msgspec.Struct, frozen=True):
    secret: Secret


@pytest.mark.parametrize(
    "show",
    [repr, str, lambda s: f"{[s]}", lambda s: repr(Holder(s)), lambda s: "%s %r" % (s, s), lambda s: str({"a": (s,)})],  # noqa: UP031
)
def test_shown_as_hidden(show):
    assert PLANTED not in show(Secret(PLANTED))
    assert "Secret(...)" in show(Secret(PLANTED))


@pytest.mark.parametrize(
    "leak",
    [
        lambda s: f"{s:>20}",
        lambda s: format(s, ""),
        bytes,
        pickle.dumps,
        copy.copy,
        copy.deepcopy,
        json.dumps,
        orjson.dumps,
        hash,
        lambda s: {s: 1},
        vars,
        iter,
        msgspec.json.encode,
        lambda s: setattr(s, "extra", 1),
        lambda s: setattr(s, "_Secret__value", b"other"),
    ],
)
def test_refuses_to_leave(leak):
    with pytest.raises((TypeError, AttributeError)) as raised:
        leak(Secret(PLANTED))
    assert PLANTED not in str(raised.value)


@given(st.binary(min_size=1, max_size=64), st.binary(min_size=1, max_size=64))
def test_reveals_what_went_in_and_compares_it(one, other):
    assert Secret(one).reveal() == one
    assert (Secret(one) == Secret(other)) is (one == other)
    assert (Secret(one) != Secret(other)) is (one != other)


@given(st.text(min_size=1, max_size=32, alphabet=st.characters(exclude_categories=["Cs"])))
def test_text_comes_back(text):
    assert Secret(text).reveal_text() == text
    assert len(Secret(text)) == len(text.encode())


def test_not_equal_to_its_own_bytes():
    assert Secret(b"abc") != b"abc"
    assert bool(Secret(b"\0"))


@pytest.mark.parametrize("size", [0, SECRET_MAX + 1])
def test_bounded(size):
    with pytest.raises(ValueError, match="16384"):
        Secret(b"x" * size)
    assert len(Secret(b"x" * SECRET_MAX)) == SECRET_MAX
