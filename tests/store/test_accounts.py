"""Keys on disk: known by hash only, in step with the settings, under a pepper that fits."""

import sqlite3
import subprocess
import sys
from functools import partial

import pytest

from yugong.core.settings import Settings, read_settings
from yugong.store import accounts as module
from yugong.store.accounts import AccountFile, AccountsError, open_pepper
from yugong.store.settingsfile import resolve_secret

RESOLVE = partial(resolve_secret, environ={"WEB": "sk-web-0123456789abcdef"})
TEXT = """
accounts:
  acme:
    name: Acme Ltd.
    weight: 2
    max_wait: 5s
    models: ["gpt-*"]
    limits: {requests_per_minute: 10, concurrency: 3}
    keys:
      - {id: web, value: {env: WEB}}
      - {id: app, value: sk-app-0123456789abcdef, models: [gpt-5], expires: 2027-01-31T00:00:00Z}
  zeta: {keys: [{id: only, value: sk-zeta-0123456789abcdef}]}
"""


def settings(text):
    return read_settings(text).settings


@pytest.fixture
def file(tmp_path):
    with AccountFile(tmp_path) as opened:
        yield opened


def states(file):
    return {f"{key.account}/{key.id}": not key.is_disabled for key in file.keys(None)}


def test_a_made_key_is_shown_once_and_found(file, tmp_path):
    file.open_account("default", "First")
    file.open_account("default", "Again")  # is there already
    key = file.create_key("default", "first", expires=2e9)
    grant = file.ring().admit(key.reveal(), 1.9e9)
    assert (grant.account.id, grant.account.name, grant.key.id) == ("default", "First", "first")
    assert grant.key.expires == 2e9
    assert grant.key.last_four == key.reveal_text()[-4:]
    assert file.create_key("default", "second") != key
    assert repr(file) == f"<AccountFile {tmp_path / 'accounts.sqlite'}>"


def test_only_hashes_are_on_disk(tmp_path):
    with AccountFile(tmp_path) as file:
        file.open_account("default")
        clear = [file.create_key("default", f"k{index}").reveal() for index in range(50)]
        file.import_settings(settings(TEXT), RESOLVE)
        clear += [b"sk-web-0123456789abcdef", b"sk-app-0123456789abcdef", b"sk-zeta-0123456789abcdef"]
        assert len(file.ring()) == 53
        on_disk = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert not any(key in on_disk or key[3:-4] in on_disk for key in clear)
        assert {path.name for path in tmp_path.iterdir()} >= {"accounts.sqlite", "pepper", "accounts.sqlite-wal"}
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_refusals_of_commands(file):
    with pytest.raises(AccountsError, match="no account 'nobody'"):
        file.create_key("nobody", "k")
    file.open_account("a")
    file.create_key("a", "k")
    with pytest.raises(AccountsError, match="has a key 'k' already"):
        file.create_key("a", "k")
    with pytest.raises(AccountsError, match="no key 'x' in account 'a'"):
        file.disable_key("a", "x")
    assert states(file) == {"a/k": True}
    assert [key.id for key in file.keys("a")] == ["k"]
    assert file.keys("b") == []


def test_disabling_and_taking_back(file):
    file.open_account("a")
    key = file.create_key("a", "k").reveal()
    file.disable_key("a", "k")
    assert file.ring().find(key).refusal(0.0)
    file.disable_key("a", "k", is_disabled=False)
    assert file.ring().find(key).refusal(0.0) is None


# --- the settings' accounts ------------------------------------------------------------------------------------------


def test_the_settings_are_taken_over(file):
    done = file.import_settings(settings(TEXT), RESOLVE)
    assert done.added == ["acme", "zeta", "acme/web", "acme/app", "zeta/only"]
    ring = file.ring()
    web, app = ring.find(b"sk-web-0123456789abcdef"), ring.find(b"sk-app-0123456789abcdef")
    account = web.account
    assert (account.name, account.weight, account.max_wait, account.limits.concurrency) == ("Acme Ltd.", 2.0, 5.0, 3)
    assert web.allows("gpt-5.1")
    assert not web.allows("o3")
    assert not app.allows("gpt-5.1")
    assert app.key.expires == 1801353600.0
    assert not file.import_settings(settings(TEXT), RESOLVE)  # nothing new


def test_what_is_no_longer_listed_is_disabled_and_comes_back(file):
    file.import_settings(settings(TEXT), RESOLVE)
    file.open_account("own")
    file.create_key("own", "k")
    file.create_key("zeta", "made")
    fewer = settings("accounts: {acme: {keys: [{id: web, value: {env: WEB}}]}}")
    done = file.import_settings(fewer, RESOLVE)
    assert (sorted(done.disabled), done.changed) == (["acme/app", "zeta", "zeta/only"], ["acme"])
    assert states(file) == {"acme/app": False, "acme/web": True, "own/k": True, "zeta/made": True, "zeta/only": False}
    assert file.ring().accounts["zeta"].is_disabled  # so that the key made for it is refused as well
    assert not file.import_settings(fewer, RESOLVE)
    done = file.import_settings(settings(TEXT), RESOLVE)
    assert sorted(done.changed) == ["acme", "acme/app", "zeta", "zeta/only"]
    assert all(states(file).values())
    assert file.import_settings(Settings(), RESOLVE).disabled
    assert states(file) == {"acme/app": False, "acme/web": False, "own/k": True, "zeta/made": True, "zeta/only": False}


def test_a_new_value_replaces_the_old(file):
    text = "accounts: {a: {keys: [{id: k, value: sk-%s-0123456789}]}}"
    file.import_settings(settings(text % "old"), RESOLVE)
    assert file.import_settings(settings(text % "new"), RESOLVE).changed == ["a/k"]
    assert file.ring().find(b"sk-old-0123456789") is None
    assert file.ring().find(b"sk-new-0123456789").key.id == "k"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a: {keys: [{id: k, value: sk-1111-1111}]}", "a: {keys: [{id: l, value: sk-1111-1111}]}"),
        ("a: {keys: [{id: k, value: sk-1111-1111}]}", "b: {keys: [{id: k, value: sk-1111-1111}]}"),
        (
            "a: {keys: [{id: k, value: sk-1111-1111}, {id: l, value: sk-2222-2222}]}",
            "a: {keys: [{id: k, value: sk-2222-2222}, {id: l, value: sk-1111-1111}]}",
        ),
    ],
)
def test_a_value_may_move(before, after, file):
    file.import_settings(settings(f"accounts: {{{before}}}"), RESOLVE)
    new = settings(f"accounts: {{{after}}}")
    file.import_settings(new, RESOLVE)
    ring = file.ring()
    for account, listed in new.accounts.items():
        for key in listed.keys:
            grant = ring.admit(key.value.value.reveal(), 0.0)
            assert (grant.account.id, grant.key.id) == (account, key.id)


def test_all_or_nothing(file):
    file.import_settings(settings(TEXT), RESOLVE)
    before = states(file)
    wrong = """
accounts:
  a:
    keys:
      - {id: one, value: {env: NONE}}
      - {id: two, value: {file: /nonexistent}}
      - {id: three, value: {env: WEB}}
      - {id: four, value: {value: sk-web-0123456789abcdef}}
      - {id: five, value: {env: SHORT}}
"""
    with pytest.raises(AccountsError) as raised:
        file.import_settings(
            settings(wrong), partial(resolve_secret, environ={"WEB": "sk-web-0123456789abcdef", "SHORT": "x"})
        )
    assert [line.split(": ")[0] for line in raised.value.lines] == ["a/one", "a/two", "a/four", "a/five"]
    assert "the same key as a/three" in str(raised.value)
    assert "sk-web" not in str(raised.value)
    assert states(file) == before


def test_a_commands_key_is_not_taken_over(file):
    file.open_account("a")
    made = file.create_key("a", "k").reveal_text()
    with pytest.raises(AccountsError, match="a/k: a command made a key of this name"):
        file.import_settings(settings("accounts: {a: {keys: [{id: k, value: sk-other-other}]}}"), RESOLVE)
    with pytest.raises(AccountsError, match="a/l: the same key as a/k, which was made by a command") as raised:
        file.import_settings(settings(f"accounts: {{a: {{keys: [{{id: l, value: {made}}}]}}}}"), RESOLVE)
    assert made not in str(raised.value)
    assert states(file) == {"a/k": True}


# --- the file --------------------------------------------------------------------------------------------------------


def test_others_see_changes(tmp_path):
    with AccountFile(tmp_path) as writer, AccountFile(tmp_path) as reader:
        assert len(reader.ring()) == 0
        assert not reader.has_changed()
        writer.open_account("a")
        key = writer.create_key("a", "k")
        assert reader.has_changed()
        assert reader.ring().find(key.reveal())
        assert not reader.has_changed()


def test_kept_over_a_restart_and_a_kill(tmp_path):
    program = (
        "import os, sys, pathlib, signal; from yugong.store.accounts import AccountFile;"
        " file = AccountFile(pathlib.Path(sys.argv[1])); file.open_account('a');"
        " print(file.create_key('a', 'k').reveal_text(), flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    with AccountFile(tmp_path) as file:
        assert file.ring().find(done.stdout.strip().encode()).key.id == "k"


def test_two_first_starts_agree(tmp_path):
    program = (
        "import sys, pathlib; from yugong.store.accounts import AccountFile; sys.stdin.read();"
        " file = AccountFile(pathlib.Path(sys.argv[1])); file.open_account('a');"
        " print(file.create_key('a', sys.argv[2]).reveal_text(), flush=True)"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), f"k{n}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for n in range(4)
    ]
    for one in started:
        one.stdin.close()
    made = [one.stdout.read().strip() for one in started]
    assert [one.wait() for one in started] == [0] * 4
    for one in started:
        one.stdout.close()
    with AccountFile(tmp_path) as file:
        assert [file.ring().find(key).key.id for key in made] == ["k0", "k1", "k2", "k3"]


def test_a_pepper_is_made_once(tmp_path):
    first = open_pepper(tmp_path, may_create=True)
    assert first == open_pepper(tmp_path, may_create=True) == open_pepper(tmp_path, may_create=False)
    assert [path.name for path in tmp_path.iterdir()] == ["pepper"]
    module._create_pepper(tmp_path / "pepper")  # another starter was first
    assert open_pepper(tmp_path, may_create=False) == first


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda pepper: pepper.unlink(), "without it no customer key can be recognised"),
        (lambda pepper: pepper.write_bytes(b"x" * 32), "does not belong to"),
        (lambda pepper: pepper.write_bytes(b"x" * 31), "damaged .31 bytes"),
        (lambda pepper: pepper.write_bytes(b""), "damaged .0 bytes"),
        (lambda pepper: pepper.chmod(0o640), "chmod 600"),
        (lambda pepper: (pepper.unlink(), pepper.mkdir(mode=0o700)), "damaged .0 bytes"),
        (lambda pepper: (pepper.rename(pepper.with_name("p")), pepper.symlink_to("p")), "restore it"),
    ],
)
def test_a_harmed_pepper_stops_the_start(harm, says, tmp_path):
    AccountFile(tmp_path).close()
    harm(tmp_path / "pepper")
    with pytest.raises(AccountsError, match=says):
        AccountFile(tmp_path)


def test_a_pepper_that_cannot_be_made(tmp_path):
    with pytest.raises(AccountsError, match="No such file or directory"):
        open_pepper(tmp_path / "none", may_create=True)


def test_a_damaged_file(tmp_path):
    AccountFile(tmp_path).close()
    (tmp_path / "accounts.sqlite").write_bytes(b"not a database" * 1000)
    with pytest.raises(AccountsError, match="not a database"):
        AccountFile(tmp_path)
    (tmp_path / "accounts.sqlite").unlink()
    (tmp_path / "accounts.sqlite").symlink_to("/dev/null")
    with pytest.raises(AccountsError):
        AccountFile(tmp_path)


def test_a_later_version(tmp_path):
    AccountFile(tmp_path).close()
    db = sqlite3.connect(tmp_path / "accounts.sqlite")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(AccountsError, match="a later version of this program"):
        AccountFile(tmp_path)


def test_a_busy_file_is_said(tmp_path, monkeypatch):
    AccountFile(tmp_path).close()
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.01)
    other = sqlite3.connect(tmp_path / "accounts.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(AccountsError, match="locked"):
        AccountFile(tmp_path)
    other.close()


def test_names_are_bound_not_pasted(file):
    evil = "a'); DROP TABLE keys; --"
    file.open_account(evil, evil)
    file.create_key(evil, evil)
    assert states(file) == {f"{evil}/{evil}": True}
