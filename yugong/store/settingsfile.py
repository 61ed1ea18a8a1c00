"""The settings file on disk: finding, reading, watching, and the secrets it points to.

Decides: which file is read, when a changed file counts as settled, which file may hold a secret. Must not know: what a
setting means.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Collection, Mapping
from hashlib import blake2b
from pathlib import Path

import msgspec

from yugong.base.secret import SECRET_MAX, Secret
from yugong.core.settings import Loaded, Problem, SecretRef, Settings, read_settings
from yugong.core.settings.showing import Change, differences

__all__ = [
    "Reloaded",
    "SecretError",
    "SettingsError",
    "SettingsFile",
    "find_settings_file",
    "load_settings",
    "readers_warning",
    "resolve_secret",
]

FILE_MAX = 64 * 2**20  # bytes
# A file system may stamp two writes with the same time (ext4: the kernel's tick of 4 ms; FAT and some network ones: 2
# s). While the stamp is younger than this, the bytes are compared instead.
STAMP_TRUST_NS = 3_000_000_000


class SettingsError(Exception):
    """The settings cannot be used; `problems` has everything that is wrong."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class SecretError(Exception):
    """A secret cannot be had. The text names its place, never its value."""


class Reloaded(msgspec.Struct, frozen=True):
    """New settings, and what is not as before."""

    loaded: Loaded
    changes: list[Change]

    @property
    def needs_restart(self) -> list[Change]:
        """The changes that only a restart brings into effect."""
        return [change for change in self.changes if change.needs_restart]


# --- reading
# -----------------------------------------------------------------------------------------------------------


def find_settings_file(environ: Mapping[str, str], here: Path) -> Path | None:
    """`$YUGONG_CONFIG`; `yugong.yaml` where we are started; the user's; the system's. None when there is none."""
    if named := environ.get("YUGONG_CONFIG"):
        return here / named
    config = environ.get("XDG_CONFIG_HOME", "")
    home = environ.get("HOME", "")
    user = Path(config) if config.startswith("/") else Path(home) / ".config" if home.startswith("/") else None
    places = [here, *([user / "yugong"] if user else []), Path("/etc/yugong")]
    return next((place / "yugong.yaml" for place in places if (place / "yugong.yaml").is_file()), None)


def load_settings(path: Path | None, environ: Mapping[str, str], dialects: Collection[str] = ()) -> Loaded:
    """Read the file (None: defaults) with the environment over it.

    Raises:
        SettingsError: with every problem there is.
    """
    return _read(_bytes_of(path) if path else b"", path, environ, dialects)


def readers_warning(path: Path, settings: Settings) -> str:
    """A warning when the file holds secrets in the clear and others may read it; else nothing."""
    if not _has_secrets(settings) or not path.stat().st_mode & 0o007:
        return ""
    return f"{path} holds keys in the clear and everybody on this machine can read it: chmod 600 {path}"


def _read(raw: bytes, path: Path | None, environ: Mapping[str, str], dialects: Collection[str]) -> Loaded:
    file = str(path) if path else "defaults"
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line, col = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        raise SettingsError([Problem(file, line, col, "not valid UTF-8", "save the file as UTF-8")]) from None
    found = read_settings(text, file, environ, dialects)
    if isinstance(found, list):
        raise SettingsError(found)
    return found


def _bytes_of(path: Path) -> bytes:
    def judge(found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise SettingsError([Problem(str(path), 0, 0, "not a file", "name the settings file")])

    try:
        raw = _contents(path, FILE_MAX, judge)
    except OSError as error:
        hint = "check the path" if isinstance(error, FileNotFoundError) else ""
        raise SettingsError([Problem(str(path), 0, 0, f"cannot be read: {error.strerror}", hint)]) from None
    if len(raw) > FILE_MAX:
        raise SettingsError([Problem(str(path), 0, 0, f"larger than {FILE_MAX // 2**20} MiB")])
    return raw


def _contents(path: Path, limit: int, judge: Callable[[os.stat_result], None]) -> bytes:
    """Up to `limit` + 1 bytes of a file that `judge` has let pass by its open descriptor, so that it cannot be swapped
    in between. Without O_NONBLOCK a FIFO would hang us."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        judge(os.fstat(descriptor))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(limit + 1)
    finally:
        os.close(descriptor)


def _has_secrets(settings: Settings) -> bool:
    refs = [key.secret for org in settings.orgs.values() for key in org.keys]
    refs += [key.value for account in settings.accounts.values() for key in account.keys]
    refs += [ref for egress in settings.egress.values() for ref in (egress.username, egress.password) if ref]
    return any(ref.value is not None for ref in refs)


# --- watching
# ----------------------------------------------------------------------------------------------------------


class SettingsFile:
    """The file and the settings in force. A change that cannot be read leaves them as they are.

    Raises (when made):
        SettingsError: the file cannot be used.
    """

    __slots__ = ("_digest", "_dialects", "_environ", "_is_young", "_pending", "_stamp", "loaded", "path")

    def __init__(self, path: Path | None, environ: Mapping[str, str], dialects: Collection[str] = ()) -> None:
        self.path = path
        self._environ = dict(environ)
        self._dialects = tuple(dialects)
        self._stamp, self._is_young = _Stamp(), True
        self._look()
        raw = _bytes_of(path) if path else b""
        self._digest = _digest(raw)  # of the bytes last judged, good or bad
        self._pending: bytes | None = None  # of bytes seen once, not yet settled
        self.loaded = _read(raw, path, self._environ, self._dialects)

    def __repr__(self) -> str:
        return f"<SettingsFile {self.path or 'none'}{' settling' if self._pending else ''}>"

    def reload(self) -> Reloaded:
        """Read now, changed or not (SIGHUP). The settings in force change only if all is well.

        Raises:
            SettingsError: with every problem; the old settings stay.
        """
        self._look()
        self._pending = None
        return self._take(_bytes_of(self.path) if self.path else b"")

    def poll(self) -> Reloaded | None:
        """Look whether the file has changed, and take it once two looks in a row find the same bytes: a file that is
        being written can be complete YAML and half the orgs. Call it about once a second.

        Raises:
            SettingsError: what is there now is wrong (said once for each content); the old settings stay.
        """
        if self.path is None:
            return None
        if not self._look() and self._pending is None:
            return None
        try:
            raw = _bytes_of(self.path)
        except SettingsError as error:
            self._refuse(error)
            return None
        digest = _digest(raw)
        if digest == self._digest:
            self._pending = None
        elif digest != self._pending:
            self._pending = digest
        else:
            self._pending = None
            return self._take(raw)
        return None

    def _look(self) -> bool:
        """Whether the file may have changed since the last look. Look first, read then: no change is missed."""
        stamp, was_young = _stamp(self.path), self._is_young
        is_same = stamp == self._stamp and not was_young
        self._stamp, self._is_young = stamp, stamp.is_young(time.time_ns())
        return not is_same

    def _take(self, raw: bytes) -> Reloaded:
        self._digest = _digest(raw)
        new = _read(raw, self.path, self._environ, self._dialects)
        changes = differences(self.loaded.settings, new.settings)
        self.loaded = new
        return Reloaded(new, changes)

    def _refuse(self, error: SettingsError) -> None:
        """A file that is away for a moment (an editor's save) is not worth a word; one that stays away is, once."""
        digest = _digest(str(error).encode("utf-8", "replace"))
        if digest == self._digest:
            return
        if digest != self._pending:
            self._pending = digest
            return
        self._pending, self._digest = None, digest
        raise error


class _Stamp(msgspec.Struct, frozen=True):
    """What stat says of a file. Replacing it changes the inode, writing it the times or the size."""

    inode: int = 0
    size: int = -1
    mtime_ns: int = 0
    ctime_ns: int = 0

    def is_young(self, now_ns: int) -> bool:
        """Whether a change right after `now_ns` might bear the same time. A time in the future (a clock set back) is
        never trusted."""
        return self.size >= 0 and now_ns - self.ctime_ns < STAMP_TRUST_NS


def _stamp(path: Path | None) -> _Stamp:
    try:
        found = os.stat(path) if path else None
    except OSError:
        found = None
    return _Stamp(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns) if found else _Stamp()


def _digest(raw: bytes) -> bytes:
    return blake2b(raw, digest_size=16).digest()


# --- secrets
# -----------------------------------------------------------------------------------------------------------


def resolve_secret(ref: SecretRef, environ: Mapping[str, str], *, is_token: bool = True) -> Secret:
    """The secret a reference stands for. One line end at its end is dropped, as editors and `echo` leave one.

    `is_token`: it goes into a header as it is, so that it must be visible ASCII without spaces.

    Raises:
        SecretError: not there, unreadable, open to others, empty, too long, or not a token.
    """
    secret = ref.value if ref.value is not None else _from_elsewhere(ref, environ)
    value = secret.reveal()
    if any(byte < 0x20 or byte == 0x7F for byte in value):
        raise SecretError(f"{ref}: holds a control character or a second line")
    if is_token and any(not 0x21 <= byte <= 0x7E for byte in value):
        raise SecretError(f"{ref}: holds a space or a character beyond ASCII, so it cannot be a key")
    return secret


def _from_elsewhere(ref: SecretRef, environ: Mapping[str, str]) -> Secret:
    if ref.file is not None:
        return _from_file(Path(ref.file).expanduser(), str(ref))
    if ref.credential is not None:
        directory = environ.get("CREDENTIALS_DIRECTORY")
        if not directory:
            raise SecretError(f"{ref}: no $CREDENTIALS_DIRECTORY; LoadCredential= in the systemd unit sets it")
        return _from_file(Path(directory) / ref.credential, str(ref))
    name = ref.env or ""
    value, file = environ.get(name), environ.get(f"{name}_FILE")
    if value is not None and file is not None:
        raise SecretError(f"{ref}: both {name} and {name}_FILE are set; remove one")
    if file is not None:
        return _from_file(Path(file), f"{ref} ({name}_FILE={file})")
    if value is None:
        raise SecretError(f"{ref}: the environment has neither {name} nor {name}_FILE")
    return _secret(os.fsencode(value), str(ref))


def _from_file(path: Path, ref: str) -> Secret:
    """Symbolic links are followed (containers get secrets through them): what counts is the file they end in."""
    try:
        raw = _contents(path, SECRET_MAX + 2, lambda found: _check_keeper(found, path, ref))
    except OSError as error:
        raise SecretError(f"{ref}: {path}: {error.strerror}") from None
    return _secret(raw, ref)


def _check_keeper(found: os.stat_result, path: Path, ref: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise SecretError(f"{ref}: {path} is not a file")
    if found.st_uid not in (0, os.geteuid()):
        raise SecretError(f"{ref}: {path} belongs to user {found.st_uid}; chown {os.geteuid()} {path}")
    if stat.S_IMODE(found.st_mode) & 0o027:  # group may read: Kubernetes' fsGroup
        raise SecretError(f"{ref}: {path} is open to others (mode {stat.S_IMODE(found.st_mode):04o}); chmod 600 {path}")


def _secret(raw: bytes, ref: str) -> Secret:
    raw = raw.removesuffix(b"\n").removesuffix(b"\r")
    if not raw:
        raise SecretError(f"{ref}: empty")
    if len(raw) > SECRET_MAX:
        raise SecretError(f"{ref}: longer than {SECRET_MAX} bytes")
    return Secret(raw)
