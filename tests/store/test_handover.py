"""What one process tells another."""

import os

import msgspec
import pytest

from yugong.base.secret import Secret
from yugong.core.settings import Account, CustomerKey, Org, OrgKey, Origin, SecretRef, Settings
from yugong.store.handover import Entrance, Hello, die_with_parent, pack_settings, unpack_settings


def settings() -> Settings:
    key = OrgKey(id="k", secret=SecretRef(value=Secret(b"sk-\xff\x00-all-bytes")))
    return Settings(
        origins={"o": Origin(dialect="openai", url="http://127.0.0.1:1", private=True)},
        orgs={"a": Org(origin="o", keys=(key, OrgKey(id="e", secret=SecretRef(env="KEY"))), weight=2.5)},
        accounts={"acme": Account(keys=(CustomerKey(id="c", value=SecretRef(file="/run/key")),), max_wait=1.5)},
    )


def test_settings_come_back_the_same_secrets_included() -> None:
    before = settings()
    after = unpack_settings(pack_settings(before))
    assert after == before
    secret = after.orgs["a"].keys[0].secret.value
    assert secret is not None
    assert secret.reveal() == b"sk-\xff\x00-all-bytes"


def test_the_first_message_carries_them() -> None:
    hello = Hello(
        name="worker-0",
        id="worker-0:1",
        boot="b",
        parent=1,
        data_dir="/d",
        link="/d/l",
        settings=msgspec.Raw(pack_settings(settings())),
        revision=3,
        doors=[Entrance("127.0.0.1:1", 5)],
    )
    again = msgspec.json.decode(msgspec.json.encode(hello), type=Hello)
    assert unpack_settings(again.settings) == settings()
    assert (again.doors, again.memory_fd) == ([Entrance("127.0.0.1:1", 5)], -1)


def test_settings_of_another_shape_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        unpack_settings(b'{"listen": {"workers": "many"}}')


def test_a_parent_that_is_gone_is_noticed() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0 if die_with_parent(os.getppid()) and not die_with_parent(1_000_000_000) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
