"""The data directory is found, made, ours alone, and one instance's at a time."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from yugong.store.datadir import DataDirError, choose_data_dir, open_data_dir


@pytest.mark.parametrize(
    ("configured", "environ", "is_beside", "expected"),
    [
        ("/srv/y", {"STATE_DIRECTORY": "/var/lib/y", "HOME": "HERE"}, True, "/srv/y"),
        ("sub/y", {}, False, "HERE/sub/y"),
        (None, {"STATE_DIRECTORY": "/var/lib/y:/var/lib/z", "XDG_DATA_HOME": "/x"}, True, "/var/lib/y"),
        (None, {"XDG_DATA_HOME": "/x", "HOME": "HERE"}, True, "HERE/.yugong"),
        (None, {"XDG_DATA_HOME": "/x", "HOME": "HERE"}, False, "/x/yugong"),
        (None, {"XDG_DATA_HOME": "relative", "HOME": "HERE"}, False, "HERE/.local/share/yugong"),
        (None, {"HOME": "HERE"}, False, "HERE/.local/share/yugong"),
        (None, {"HOME": "/nonexistent"}, False, "HERE/.yugong"),
        (None, {"HOME": ""}, False, "HERE/.yugong"),
        (None, {}, False, "HERE/.yugong"),
    ],
)
def test_where_it_is(configured, environ, is_beside, expected, tmp_path):
    if is_beside:
        (tmp_path / ".yugong").mkdir()
    environ = {name: value.replace("HERE", str(tmp_path)) for name, value in environ.items()}
    assert choose_data_dir(configured, environ, tmp_path) == Path(expected.replace("HERE", str(tmp_path)))
    assert sorted(tmp_path.iterdir()) == ([tmp_path / ".yugong"] if is_beside else [])  # choosing makes nothing


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_made_for_us_alone(umask, tmp_path):
    before = os.umask(umask)
    try:
        with open_data_dir(tmp_path / "a" / "b") as opened:
            assert opened.path.stat().st_mode & 0o7777 == 0o700
            assert (opened.path / "lock").stat().st_mode & 0o777 == 0o600
            assert (opened.path / "lock").read_text() == f"{os.getpid()}\n"
            assert opened.free_bytes() > 0
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("mode", "is_taken"), [(0o700, True), (0o750, True), (0o755, False), (0o770, False), (0o707, False)]
)
def test_open_to_others_is_refused(mode, is_taken, tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    path.chmod(mode)
    if is_taken:
        open_data_dir(path).close()
    else:
        with pytest.raises(DataDirError, match=f"mode {mode:04o}.*chmod 700 {path}"):
            open_data_dir(path)
        assert list(path.iterdir()) == []


def test_somebody_elses_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    (tmp_path / "data").mkdir(mode=0o700)
    with pytest.raises(DataDirError, match="we run as 12345; run as its owner, or: chown -R 12345"):
        open_data_dir(tmp_path / "data")


def test_one_instance_at_a_time(tmp_path):
    with open_data_dir(tmp_path / "data") as opened:
        with pytest.raises(DataDirError, match=f"in use by another instance .process {os.getpid()}."):
            open_data_dir(tmp_path / "data")
        assert repr(opened) == f"<DataDir {tmp_path / 'data'} open>"
    opened.close()  # twice is harmless
    open_data_dir(tmp_path / "data").close()


def test_the_lock_ends_with_its_holder(tmp_path):
    program = (
        "import sys, pathlib; from yugong.store.datadir import open_data_dir;"
        " held = open_data_dir(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "data")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(DataDirError, match=f"process {holder.pid}"):
            open_data_dir(tmp_path / "data")
        holder.kill()
        holder.wait()
    open_data_dir(tmp_path / "data").close()


def test_a_lock_that_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setattr("yugong.store.datadir.fcntl.flock", refuse_locks)
    with pytest.raises(DataDirError, match="No locks available; set data_dir to a directory"):
        open_data_dir(tmp_path / "data")


def refuse_locks(descriptor, operation):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))  # as some network file systems do


def test_too_little_room(tmp_path):
    with pytest.raises(DataDirError, match=r"MiB free on its disk, at least .* are needed; make room, or set data_dir"):
        open_data_dir(tmp_path / "data", room=2**62)
    open_data_dir(tmp_path / "data").close()  # the lock was given back


def test_what_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataDirError, match="is not a directory"):
        open_data_dir(tmp_path / "file")
    with pytest.raises(DataDirError, match="is not a directory; set data_dir to another path"):
        open_data_dir(tmp_path / "file" / "below")
    with pytest.raises(DataDirError, match="set data_dir to a directory we can write to"):
        open_data_dir(tmp_path / "file" / "below" / "that")
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "lock").symlink_to(tmp_path / "file")
    with pytest.raises(DataDirError):
        open_data_dir(tmp_path / "data")
    assert (tmp_path / "file").read_text() == "x"
