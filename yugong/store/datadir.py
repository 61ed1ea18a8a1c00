"""The directory in which everything that must last is kept.

Decides: where it is, that it is ours alone, that one instance uses it at a time, that there is room. Must not know:
what is kept in it.

Each refusal names the command that mends it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Mapping
from pathlib import Path

__all__ = ["DataDir", "DataDirError", "choose_data_dir", "open_data_dir"]

LOCK_NAME = "lock"
ROOM_LEAST = 64 * 2**20  # bytes; below this the journal and one spooled upload would fill the disk at once


class DataDirError(Exception):
    """The directory cannot be used; the text says what to do."""


class DataDir:
    """The directory, locked. The lock goes with the descriptor: children that inherit it keep it until they end."""

    __slots__ = ("lock_fd", "path")

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self.lock_fd = lock_fd

    def __repr__(self) -> str:
        return f"<DataDir {self.path} {'open' if self.lock_fd >= 0 else 'closed'}>"

    def __enter__(self) -> DataDir:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the lock back. The lock file stays: removing it would let two holders lock two files of one name."""
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1

    def free_bytes(self) -> int:
        """Room on its file system, in bytes, for a process that is not root."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def check_room(self, least: int = ROOM_LEAST) -> None:
        """Raises DataDirError with less than `least` bytes free."""
        free = self.free_bytes()
        if free < least:
            text = f"{self.path}: {free // 2**20} MiB free on its disk, at least {-(-least // 2**20)} MiB are needed"
            raise DataDirError(f"{text}; make room, or set data_dir to another disk")


def choose_data_dir(configured: str | None, environ: Mapping[str, str], here: Path) -> Path:
    """Where the data goes: the setting; systemd's state directory; `.yugong` where we are started if it is there
    already; the XDG data directory; `.yugong` where there is no home. Nothing is created."""
    if configured:
        return (here / Path(configured).expanduser()).absolute()
    if state := environ.get("STATE_DIRECTORY", "").split(":")[0]:  # systemd.exec(5); several are joined by colons
        return Path(state)
    beside = here / ".yugong"
    if beside.is_dir():
        return beside
    # The XDG base directory specification 0.8: a relative path is to be ignored.
    shared = environ.get("XDG_DATA_HOME", "")
    if shared.startswith("/"):
        return Path(shared) / "yugong"
    home = environ.get("HOME", "")
    return Path(home) / ".local" / "share" / "yugong" if home.startswith("/") and Path(home).is_dir() else beside


def open_data_dir(path: Path, *, room: int = ROOM_LEAST) -> DataDir:
    """Create the directory (0700) if it is not there, check it, lock it.

    Raises:
        DataDirError: it cannot be made, others may look into it, it belongs to somebody else, another instance uses it,
        or
            less than `room` bytes are free.
    """
    path = path.absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        _check_ownership(path, path.stat())
        opened = DataDir(path, _locked(path))
    except FileExistsError:
        raise DataDirError(f"{path} is not a directory; set data_dir to another path") from None
    except OSError as error:
        raise DataDirError(f"{path}: {_reason(error)}; set data_dir to a directory we can write to") from None
    try:
        opened.check_room(room)
    except DataDirError:
        opened.close()
        raise
    return opened


def _check_ownership(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        text = f"{path} belongs to user {found.st_uid}, we run as {os.geteuid()}"
        raise DataDirError(f"{text}; run as its owner, or: chown -R {os.geteuid()} {path}")
    if stat.S_IMODE(found.st_mode) & 0o027:  # a group may read (backups), nobody else may do anything
        text = f"{path} is open to others (mode {stat.S_IMODE(found.st_mode):04o})"
        raise DataDirError(f"{text}: chmod 700 {path} (under systemd: StateDirectoryMode=0700)")


def _locked(path: Path) -> int:
    """A descriptor that holds the lock; the file says who, for people."""
    descriptor = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        text = f"{path} is in use by another instance (process {holder})"
        raise DataDirError(f"{text}; stop that one, or give this one a data_dir of its own") from None
    except OSError:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
    return descriptor


def _reason(error: OSError) -> str:
    return {errno.EROFS: "read-only file system", errno.EACCES: "permission denied"}.get(
        error.errno or 0, error.strerror or "cannot be used"
    )
