"""A key is known by its keyed hash, and good when its account, its date and its models say so."""

import re
from timeit import repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yugong.base.errors import Refusal, RefusalKind
from yugong.base.secret import Secret
from yugong.core.accounts import Account, CustomerKey, Grant, KeyHash, KeyRing, customer_key, last_four
from yugong.core.settings import AccountLimits

HASH = KeyHash(Secret(b"p" * 32))
OTHER = KeyHash(Secret(b"q" * 32))
NOW = 1_800_000_000.0


def key(value, account="acme", id="web", **more):
    return CustomerKey(account, id, HASH.digest(value), **more)


def ring(*keys, **more):
    return KeyRing(HASH, [Account("acme", **more), Account("zeta")], keys)


@given(st.lists(st.binary(min_size=1, max_size=512), min_size=1, max_size=20, unique=True), st.binary(max_size=600))
def test_finds_what_it_has_and_nothing_else(values, probe):
    found = ring(*(key(value, id=str(index)) for index, value in enumerate(values)))
    assert len(found) == len(values)
    for index, value in enumerate(values):
        assert found.find(value).key.id == str(index)
    assert (found.find(probe) is not None) is (probe in values)


@given(st.binary(max_size=64))
def test_the_pepper_is_in_the_hash(value):
    assert HASH.digest(value) != OTHER.digest(value)
    assert len(HASH.digest(value)) == 32
    assert HASH.digest(value) == HASH.digest(value)  # nothing is left over from the one before


def test_too_long_is_not_even_hashed():
    long = b"x" * 513
    assert ring(key(long)).find(long) is None


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_pepper_has_32_bytes(size):
    with pytest.raises(ValueError, match="32 bytes"):
        KeyHash(Secret(b"x" * (size or 1)))


def test_admits_a_good_key():
    grant = ring(key(b"sk-good", expires=NOW + 1)).admit(b"sk-good", NOW)
    assert (grant.account.id, grant.key.id) == ("acme", "web")
    assert repr(grant) == "<Grant acme/web>"


@pytest.mark.parametrize(
    ("about_key", "about_account", "kind", "says"),
    [
        ({"is_disabled": True}, {}, RefusalKind.INVALID_KEY, "disabled"),
        ({"expires": NOW}, {}, RefusalKind.INVALID_KEY, "expired"),
        ({"expires": NOW - 1e9}, {}, RefusalKind.INVALID_KEY, "expired"),
        ({}, {"is_disabled": True}, RefusalKind.FORBIDDEN, "suspended"),
        ({"is_disabled": True, "expires": 0.0}, {"is_disabled": True}, RefusalKind.INVALID_KEY, "disabled"),
    ],
)
def test_refuses_with_the_reason(about_key, about_account, kind, says):
    with pytest.raises(Refusal, match=says) as raised:
        ring(key(b"sk-x", **about_key), **about_account).admit(b"sk-x", NOW)
    assert raised.value.kind is kind


def test_an_unknown_key_is_refused_without_being_repeated():
    with pytest.raises(Refusal) as raised:
        ring(key(b"sk-x")).admit(b"sk-planted", NOW)
    assert raised.value.kind is RefusalKind.INVALID_KEY
    assert "planted" not in str(raised.value)


@pytest.mark.parametrize(
    ("account", "own", "allowed"),
    [
        (None, None, ["gpt-5", "o3", "gpt-4.1"]),
        (["gpt-*"], None, ["gpt-5", "gpt-4.1"]),
        (None, ["o3"], ["o3"]),
        (["gpt-*"], ["*5", "o3"], ["gpt-5"]),
        ([], None, []),
        (None, [], []),
    ],
)
def test_models_need_both_rights(account, own, allowed):
    grant = Grant(Account("a", models=account), key(b"x", models=own))
    assert [model for model in ("gpt-5", "o3", "gpt-4.1") if grant.allows(model)] == allowed


def test_a_ring_is_whole():
    with pytest.raises(ValueError, match="belongs to no account"):
        ring(key(b"x", account="nobody"))
    with pytest.raises(ValueError, match="the same key as"):
        ring(key(b"x"), key(b"x", id="other"))


@given(st.binary(min_size=32, max_size=32))
def test_every_bit_is_in_the_key(entropy):
    made = customer_key(entropy).reveal_text()
    assert re.fullmatch(r"sk-[0-9A-Za-z]{43}", made)
    alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert sum(alphabet.index(char) * 62**at for at, char in enumerate(made[3:])) == int.from_bytes(entropy)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_key_needs_all_its_entropy(size):
    with pytest.raises(ValueError, match="32 random bytes"):
        customer_key(b"x" * size)


def test_little_is_kept_of_a_short_key():
    assert last_four(Secret("sk-0123456789abcd")) == "abcd"
    assert last_four(Secret("sk-012345678abc")) == ""


def test_records_show_no_key():
    one = key(b"sk-planted-key-0123", last_four="0123", is_disabled=True)
    assert repr(one) == "<CustomerKey acme/web …0123 disabled>"
    assert repr(Account("acme", limits=AccountLimits(concurrency=1))) == "<Account acme>"
    assert repr(ring(one)) == "<KeyRing accounts=2 keys=1>"
    assert "p" * 8 not in repr(HASH)


def test_a_look_up_does_not_grow():
    """0.7 µs of ten keys or 100 000 (measured). Only the ratio is held: a busy or traced machine slows both."""
    few, many = (ring(*(key(b"sk-%043d" % at, id=str(at)) for at in range(size))) for size in (10, 5_000))
    presented = b"sk-%043d" % 5
    cost = {one: min(repeat(lambda one=one: one.find(presented), number=2_000, repeat=9)) for one in (few, many)}
    assert cost[many] < 3 * cost[few]
