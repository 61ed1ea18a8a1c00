"""Finding, reading, watching; and secrets by reference."""

import os
import stat
from pathlib import Path

import pytest

from yugong.base.secret import SECRET_MAX, Secret
from yugong.core.settings import SecretRef, Settings
from yugong.store import settingsfile
from yugong.store.settingsfile import (
    SecretError,
    SettingsError,
    SettingsFile,
    find_settings_file,
    load_settings,
    readers_warning,
    resolve_secret,
)

CANARY = "sk-canary-0123456789abcdef"


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "yugong.yaml"
    made.write_text("listen: {workers: 1}\n")
    return made


# --- finding and reading ---------------------------------------------------------------------------------------------


def test_found_in_order(tmp_path):
    here, home = tmp_path / "here", tmp_path / "home"
    environ = {"HOME": str(home)}
    for directory in (here, home / ".config" / "yugong", tmp_path / "xdg" / "yugong"):
        directory.mkdir(parents=True)
    assert find_settings_file(environ, here) in (None, Path("/etc/yugong/yugong.yaml"))
    (home / ".config" / "yugong" / "yugong.yaml").touch()
    assert find_settings_file(environ, here) == home / ".config" / "yugong" / "yugong.yaml"
    (tmp_path / "xdg" / "yugong" / "yugong.yaml").touch()
    environ["XDG_CONFIG_HOME"] = str(tmp_path / "xdg")
    assert find_settings_file(environ, here) == tmp_path / "xdg" / "yugong" / "yugong.yaml"
    (here / "yugong.yaml").touch()
    assert find_settings_file(environ, here) == here / "yugong.yaml"
    environ["YUGONG_CONFIG"] = "other.yaml"  # said in words: an error later if it is not there, never another file
    assert find_settings_file(environ, here) == here / "other.yaml"


def test_loads_file_and_environment(path):
    loaded = load_settings(path, {"YUGONG_LISTEN__BACKLOG": "7"})
    assert (loaded.settings.listen.workers, loaded.settings.listen.backlog) == (1, 7)
    assert loaded.origin("listen.workers") == f"{path}:1:19"
    assert load_settings(None, {}).settings == Settings()


def test_a_byte_order_mark_is_no_matter(path):
    path.write_bytes(b"\xef\xbb\xbflisten: {workers: 3}")
    assert load_settings(path, {}).settings.listen.workers == 3


def test_every_problem_is_in_the_error(path):
    path.write_text("listen: {workers: x, backlog: y}")
    with pytest.raises(SettingsError) as raised:
        load_settings(path, {"YUGONG_RETRY__ATTEMPTS": "z"})
    assert len(raised.value.problems) == len(str(raised.value).splitlines()) == 3
    assert f"{path}:1:19: listen.workers: `x` is not a whole number" in str(raised.value)


def test_dialects_are_checked(path):
    path.write_text("origins: {o: {dialect: opena, url: https://a.example}}")
    with pytest.raises(SettingsError, match="did you mean `openai`"):
        load_settings(path, {}, ("openai",))


def test_what_is_no_settings_file(tmp_path, path):
    with pytest.raises(SettingsError, match="cannot be read: No such file or directory — check the path"):
        load_settings(tmp_path / "none.yaml", {})
    with pytest.raises(SettingsError, match="not a file"):
        load_settings(tmp_path, {})
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SettingsError, match="not a file"):  # and does not hang
        load_settings(tmp_path / "fifo", {})
    path.write_bytes(b"listen: {}\n# \xff\n")
    with pytest.raises(SettingsError, match=f"{path}:2:3: not valid UTF-8"):
        load_settings(path, {})


def test_too_large(path, monkeypatch):
    monkeypatch.setattr(settingsfile, "FILE_MAX", 10)
    with pytest.raises(SettingsError, match="larger than 0 MiB"):
        load_settings(path, {})


@pytest.mark.parametrize(
    ("text", "mode", "is_warned"),
    [
        ("accounts: {a: {keys: [{id: k, value: %s}]}}", 0o644, True),
        ("accounts: {a: {keys: [{id: k, value: %s}]}}", 0o640, False),
        ("accounts: {a: {keys: [{id: k, value: {env: X}}]}}", 0o644, False),
        ("egress: {a: {proxy: 'http://p:1', username: {env: A}, password: {value: %s}}}", 0o644, True),
    ],
)
def test_keys_in_a_file_that_all_can_read(text, mode, is_warned, path):
    path.write_text(text.replace("%s", CANARY))
    path.chmod(mode)
    warning = readers_warning(path, load_settings(path, {}).settings)
    assert bool(warning) is is_warned
    assert not is_warned or f"chmod 600 {path}" in warning
    assert CANARY not in warning


# --- watching --------------------------------------------------------------------------------------------------------


def replaced(path, text):
    """As good editors and configuration managers do it."""
    draft = path.with_suffix(".new")
    draft.write_text(text)
    draft.rename(path)


def written(path, text):
    path.write_text(text)


@pytest.mark.parametrize("write", [replaced, written])
def test_a_change_is_taken_once_it_has_settled(write, path):
    watched = SettingsFile(path, {})
    assert watched.poll() is None
    write(path, "listen: {workers: 2}\n")
    assert watched.poll() is None
    reloaded = watched.poll()
    assert [str(change) for change in reloaded.changes] == ["listen.workers changed: 1 → 2 (needs a restart)"]
    assert reloaded.needs_restart == reloaded.changes
    assert watched.loaded.settings.listen.workers == 2
    assert watched.poll() is None


def test_a_file_being_written_is_not_taken(path):
    watched = SettingsFile(path, {})
    text = "listen:\n  workers: 2\n  backlog: 9\nretry:\n  attempts: 2\n"
    for end in range(1, len(text)):
        path.write_text(text[:end])
        assert watched.poll() is None
    path.write_text(text)
    assert watched.poll() is None
    assert watched.poll().loaded.settings.retry.attempts == 2


def test_a_wrong_file_is_told_once_and_the_old_settings_stay(path):
    watched = SettingsFile(path, {})
    path.write_text("listen: {workers: x}\n")
    assert watched.poll() is None
    with pytest.raises(SettingsError, match="not a whole number"):
        watched.poll()
    assert [watched.poll() for _ in range(3)] == [None] * 3
    assert watched.loaded.settings.listen.workers == 1
    path.write_text("listen: {workers: y}\n")  # another mistake is told again
    assert watched.poll() is None
    with pytest.raises(SettingsError, match="`y`"):
        watched.poll()
    path.write_text("listen: {workers: 1}\n")
    assert watched.poll() is None
    assert watched.poll().changes == []


def test_a_file_that_is_gone_is_told_once(path):
    watched = SettingsFile(path, {})
    path.rename(path.with_suffix(".away"))
    assert watched.poll() is None  # perhaps an editor between two steps
    with pytest.raises(SettingsError, match="No such file"):
        watched.poll()
    assert [watched.poll() for _ in range(3)] == [None] * 3
    path.with_suffix(".away").rename(path)
    watched.poll()
    assert watched.poll().changes == []
    path.unlink()
    assert watched.poll() is None
    path.write_text("listen: {workers: 5}")
    assert watched.poll() is None
    assert watched.poll().loaded.settings.listen.workers == 5


def test_the_same_size_at_the_same_time_is_seen(path, monkeypatch):
    """Two writes within one tick of the file system's clock: stat cannot tell them apart."""
    frozen = path.stat()
    monkeypatch.setattr(settingsfile.os, "stat", lambda _: frozen)
    monkeypatch.setattr(settingsfile.time, "time_ns", lambda: frozen.st_ctime_ns + 1_000_000)
    watched = SettingsFile(path, {})
    path.write_text("listen: {workers: 2}\n")
    assert watched.poll() is None
    assert watched.poll().loaded.settings.listen.workers == 2


def test_an_old_file_costs_one_stat(path, monkeypatch):
    watched = SettingsFile(path, {})
    later = path.stat().st_ctime_ns + 10**10
    monkeypatch.setattr(settingsfile.time, "time_ns", lambda: later)
    assert watched.poll() is None
    monkeypatch.setattr(settingsfile, "_bytes_of", lambda _: pytest.fail("read"))
    assert watched.poll() is None


def test_a_signal_reads_at_once(path):
    watched = SettingsFile(path, {"YUGONG_LISTEN__BACKLOG": "7"})
    assert watched.reload().changes == []
    path.write_text("listen: {workers: 2}\n")
    assert [change.path for change in watched.reload().changes] == ["listen.workers"]
    path.write_text("listen: {workers: x}\n")
    with pytest.raises(SettingsError):
        watched.reload()
    assert watched.poll() is None
    assert (watched.loaded.settings.listen.workers, watched.loaded.settings.listen.backlog) == (2, 7)
    path.unlink()
    with pytest.raises(SettingsError):
        watched.reload()
    assert repr(watched) == f"<SettingsFile {path}>"


def test_no_file_never_changes():
    watched = SettingsFile(None, {})
    assert watched.poll() is None
    assert watched.reload().changes == []


# --- secrets ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def keyfile(tmp_path):
    made = tmp_path / "key"
    made.write_text(CANARY)
    made.chmod(0o600)
    return made


def test_from_each_place(tmp_path, keyfile):
    environ = {"NAME": CANARY, "OTHER_FILE": str(keyfile), "CREDENTIALS_DIRECTORY": str(tmp_path)}
    for ref in (
        SecretRef(value=Secret(CANARY)),
        SecretRef(env="NAME"),
        SecretRef(env="OTHER"),
        SecretRef(file=str(keyfile)),
        SecretRef(credential="key"),
    ):
        assert resolve_secret(ref, environ).reveal_text() == CANARY, ref


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_one_line_end_is_dropped(end, keyfile):
    keyfile.write_bytes(CANARY.encode() + end.encode())
    assert resolve_secret(SecretRef(file=str(keyfile)), {}).reveal_text() == CANARY


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "empty"),
        (b"\n", "empty"),
        (b"a\n\n", "second line"),
        (b"a\0b", "control character"),
        (b"\x7f", "control character"),
        (b"two words", "a space or a character beyond ASCII"),
        ("schlüssel".encode(), "a space or a character beyond ASCII"),
        (b"\xff\xfe", "a space or a character beyond ASCII"),
        (b"x" * (SECRET_MAX + 1), "longer than"),
        (b"x" * 10**6, "longer than"),
    ],
)
def test_what_cannot_be_a_key(raw, says, keyfile):
    keyfile.write_bytes(raw)
    with pytest.raises(SecretError, match=says) as raised:
        resolve_secret(SecretRef(file=str(keyfile)), {})
    assert str(raised.value).startswith(f"file:{keyfile}: ")


def test_a_password_may_hold_more(keyfile):
    keyfile.write_text("zwei Wörter\n")
    assert resolve_secret(SecretRef(file=str(keyfile)), {}, is_token=False).reveal_text() == "zwei Wörter"
    assert len(resolve_secret(SecretRef(value=Secret("x" * SECRET_MAX)), {})) == SECRET_MAX


@pytest.mark.parametrize(
    ("ref", "environ", "says"),
    [
        (SecretRef(env="NAME"), {}, "env:NAME: the environment has neither NAME nor NAME_FILE"),
        (SecretRef(env="NAME"), {"NAME": ""}, "env:NAME: empty"),
        (SecretRef(env="NAME"), {"NAME": CANARY, "NAME_FILE": "/x"}, "both NAME and NAME_FILE are set"),
        (SecretRef(env="NAME"), {"NAME_FILE": "/nonexistent"}, "NAME_FILE=/nonexistent.: /nonexistent: No such file"),
        (SecretRef(credential="key"), {}, "LoadCredential="),
        (SecretRef(credential="key"), {"CREDENTIALS_DIRECTORY": "/nonexistent"}, "No such file"),
        (SecretRef(file="/nonexistent"), {}, "file:/nonexistent: /nonexistent: No such file"),
        (SecretRef(file="/dev/zero"), {}, "/dev/zero is not a file"),
        (SecretRef(file="/"), {}, "file:/: / is not a file"),
    ],
)
def test_what_is_not_there(ref, environ, says):
    with pytest.raises(SecretError, match=says) as raised:
        resolve_secret(ref, environ)
    assert CANARY not in str(raised.value)


@pytest.mark.parametrize(
    ("mode", "is_taken"), [(0o400, True), (0o600, True), (0o440, True), (0o644, False), (0o620, False)]
)
def test_who_may_read_it(mode, is_taken, keyfile):
    keyfile.chmod(mode)
    if is_taken:
        assert resolve_secret(SecretRef(file=str(keyfile)), {}).reveal_text() == CANARY
    else:
        with pytest.raises(SecretError, match=f"mode {mode:04o}.; chmod 600 {keyfile}"):
            resolve_secret(SecretRef(file=str(keyfile)), {})


def test_a_link_is_judged_by_where_it_ends(keyfile, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(keyfile)
    assert resolve_secret(SecretRef(file=str(link)), {}).reveal_text() == CANARY
    keyfile.chmod(0o644)
    with pytest.raises(SecretError, match="open to others"):
        resolve_secret(SecretRef(file=str(link)), {})


def test_somebody_elses_file(keyfile, monkeypatch):
    found = os.stat_result((stat.S_IFREG | 0o600, 1, 1, 1, 4242, 0, 10, 0, 0, 0))
    monkeypatch.setattr(settingsfile.os, "fstat", lambda _: found)
    with pytest.raises(SecretError, match="belongs to user 4242"):
        resolve_secret(SecretRef(file=str(keyfile)), {})


def test_a_fifo_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(SecretError, match="is not a file"):
        resolve_secret(SecretRef(file=str(tmp_path / "fifo")), {})
