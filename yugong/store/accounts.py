"""Accounts and customer keys on disk: `accounts.sqlite` and `pepper` in the data directory.

Decides: what is kept of a key (its keyed hash and last four characters), how the settings' accounts get in and out,
that the pepper fits the hashes. Must not know: who serves calls, what a command line looks like.

Only the supervisor, the keeper and commands write; workers read all of it into a `KeyRing` and look at `has_changed` to
know when to do so again. Every foreign error becomes an `AccountsError` here.
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from yugong.base.secret import Secret
from yugong.core import settings as conf
from yugong.core.accounts import PEPPER_BYTES, Account, CustomerKey, KeyHash, KeyRing, customer_key, last_four
from yugong.core.settings.rules import CUSTOMER_KEY_LENGTH, is_presentable
from yugong.store.settingsfile import SecretError

__all__ = ["AccountFile", "AccountsError", "Imported", "open_pepper"]

FILE_NAME = "accounts.sqlite"
PEPPER_NAME = "pepper"
VERSION = 1  # PRAGMA user_version; a later program adds steps to _SCHEMA, an earlier one refuses
BUSY_SECONDS = 5.0
_PROOF = b"yugong: does this pepper fit these hashes?"

_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE accounts (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, weight REAL NOT NULL, max_wait REAL, limits TEXT NOT NULL, models TEXT,
    disabled INTEGER NOT NULL, source TEXT NOT NULL, created REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE keys (
    account TEXT NOT NULL REFERENCES accounts (id), id TEXT NOT NULL, digest BLOB NOT NULL UNIQUE, last_four TEXT NOT
    NULL, models TEXT, expires REAL, disabled INTEGER NOT NULL, source TEXT NOT NULL, created REAL NOT NULL,
    PRIMARY KEY (account, id)
) STRICT, WITHOUT ROWID;
"""

# Where a row comes from: rows of the settings follow the settings, rows of commands stay until a command changes them.
SETTINGS, COMMAND = "settings", "command"


class AccountsError(Exception):
    """Accounts or keys cannot be read or written; `lines` has everything that is wrong, never a key."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class Imported(msgspec.Struct, frozen=True):
    """What an import did, as `account` or `account/key`."""

    added: list[str]
    changed: list[str]
    disabled: list[str]

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.disabled)


class _Listed(msgspec.Struct, frozen=True):
    """A key the settings list, its secret resolved."""

    account: str
    key: conf.CustomerKey
    digest: bytes
    last_four: str

    @property
    def row(self) -> tuple[Any, ...]:
        return self.digest, self.last_four, _json(self.key.models), self.key.expires, int(self.key.disabled)


def open_pepper(directory: Path, *, may_create: bool) -> Secret:
    """The pepper of the keyed hashes: 32 random bytes, made once, readable by us alone.

    Raises:
        AccountsError: not there though it must be, damaged, or open to others.
    """
    path = directory / PEPPER_NAME
    if may_create and not path.exists():
        _create_pepper(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise AccountsError(
            f"{path}: {error.strerror}; without it no customer key can be recognised, restore it"
        ) from None
    try:
        found = os.fstat(descriptor)
        raw = os.read(descriptor, PEPPER_BYTES + 1) if stat.S_ISREG(found.st_mode) else b""
    finally:
        os.close(descriptor)
    if found.st_mode & 0o077:
        raise AccountsError(f"{path} is open to others (mode {found.st_mode & 0o7777:04o}): chmod 600 {path}")
    if len(raw) != PEPPER_BYTES:
        raise AccountsError(f"{path}: damaged ({len(raw)} bytes instead of {PEPPER_BYTES}), restore it")
    return Secret(raw)


def _create_pepper(path: Path) -> None:
    """Written under another name, then linked: a crash leaves none or all of it, and two starters agree on one."""
    draft = path.with_name(f"{PEPPER_NAME}.{os.getpid()}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb", buffering=0) as file:
            file.write(os.urandom(PEPPER_BYTES))
            os.fsync(descriptor)
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    except OSError as error:
        raise AccountsError(f"{path}: {error.strerror}") from None


class AccountFile:
    """The open file. One thread uses it.

    Raises (when made):
        AccountsError: unreadable, damaged, of a later version, or the pepper does not fit.
    """

    __slots__ = ("_db", "_hash", "_seen", "path")

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE_NAME
        is_new = not self.path.exists()
        pepper = open_pepper(directory, may_create=is_new)
        self._hash = KeyHash(pepper)
        self._db = _connect(self.path)
        try:
            with self._writing():
                self._prepare()
            self._seen = self._version()
        except BaseException:
            self._db.close()
            raise

    def __repr__(self) -> str:
        return f"<AccountFile {self.path}>"

    def __enter__(self) -> AccountFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    # --- reading ---

    def ring(self) -> KeyRing:
        """Every account and key, for a worker.

        Raises:
            AccountsError: the file cannot be read.
        """
        with self._translated():
            self._seen = self._version()
            self._db.execute("BEGIN")  # one moment for both tables
            accounts = [_account(row) for row in self._db.execute("SELECT * FROM accounts")]
            keys = [_key(row) for row in self._db.execute("SELECT * FROM keys")]
            self._db.execute("COMMIT")
        return KeyRing(self._hash, accounts, keys)

    def has_changed(self) -> bool:
        """Whether another process has written since `ring` was last called here."""
        with self._translated():
            return self._version() != self._seen

    def keys(self, account: str | None = None) -> list[CustomerKey]:
        """The keys of an account, or all, in order of their names."""
        with self._translated():
            query = "SELECT * FROM keys WHERE ?1 IS NULL OR account = ?1 ORDER BY account, id"
            return [_key(row) for row in self._db.execute(query, (account,))]

    # --- writing ---

    def open_account(self, id: str, name: str = "") -> None:
        """Make an account, unless it is there already."""
        limits = msgspec.json.encode(conf.AccountLimits()).decode("ascii")
        with self._writing():
            self._db.execute(
                "INSERT INTO accounts VALUES (?, ?, 1.0, NULL, ?, NULL, 0, ?, ?) ON CONFLICT DO NOTHING",
                (id, name or id, limits, COMMAND, time.time()),
            )

    def create_key(self, account: str, id: str, *, expires: float | None = None) -> Secret:
        """A new key of an account. This is the only time it is seen.

        Raises:
            AccountsError: no such account, or it has a key of this name.
        """
        key = customer_key(os.urandom(32))
        row = (account, id, self._hash.digest(key.reveal()), last_four(key), None, expires, 0, COMMAND, time.time())
        with self._writing():
            if not self._db.execute("SELECT 1 FROM accounts WHERE id = ?", (account,)).fetchone():
                raise AccountsError(f"no account {account!r}")
            if self._db.execute("SELECT 1 FROM keys WHERE account = ? AND id = ?", (account, id)).fetchone():
                raise AccountsError(f"account {account!r} has a key {id!r} already; choose another name")
            self._db.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        return key

    def disable_key(self, account: str, id: str, *, is_disabled: bool = True) -> None:
        """Refuse a key from now on, or take it again. A key of the settings is as the settings say after the next
        reload.

        Raises:
            AccountsError: no such key.
        """
        with self._writing():
            done = self._db.execute(
                "UPDATE keys SET disabled = ? WHERE account = ? AND id = ?", (int(is_disabled), account, id)
            )
            if not done.rowcount:
                raise AccountsError(f"no key {id!r} in account {account!r}")

    def import_settings(self, settings: conf.Settings, resolve: Callable[[conf.SecretRef], Secret]) -> Imported:
        """Make the settings' accounts and keys what the settings say; those no longer listed are disabled. All or
        nothing.

        Rows that commands made are left alone, except that an account listed in the settings follows them from then on.

        Raises:
            AccountsError: every secret that cannot be had, and every key that is listed or known twice.
        """
        listed = self._resolved(settings, resolve)
        done = Imported([], [], [])
        with self._writing():
            self._retire(settings, listed, done)
            for name, account in settings.accounts.items():
                self._put_account(name, account, done)
            for one in listed:
                self._put_key(one, done)
        return done

    # --- the parts of an import ---

    def _resolved(self, settings: conf.Settings, resolve: Callable[[conf.SecretRef], Secret]) -> list[_Listed]:
        listed, wrong, seen = [], [], dict[bytes, str]()
        for name, account in settings.accounts.items():
            for key in account.keys:
                try:
                    secret = resolve(key.value)
                except SecretError as error:
                    wrong.append(f"{name}/{key.id}: {error}")
                    continue
                digest = self._hash.digest(secret.reveal())
                if not is_presentable(secret.reveal()):
                    low, high = CUSTOMER_KEY_LENGTH
                    wrong.append(f"{name}/{key.id}: a key has {low} to {high} visible ASCII characters")
                elif (other := seen.setdefault(digest, f"{name}/{key.id}")) != f"{name}/{key.id}":
                    wrong.append(f"{name}/{key.id}: the same key as {other}")
                listed.append(_Listed(name, key, digest, last_four(secret)))
        if wrong:
            raise AccountsError(*wrong)
        return listed

    def _retire(self, settings: conf.Settings, listed: list[_Listed], done: Imported) -> None:
        """Disable what the settings no longer list; a value that moved to another name takes its old row with it."""
        names, digests = {(one.account, one.key.id) for one in listed}, {one.digest: one for one in listed}
        query = "SELECT account, id, digest, disabled FROM keys WHERE source = ?"
        for account, id, digest, disabled in self._db.execute(query, (SETTINGS,)).fetchall():
            heir = digests.get(digest)
            if heir is not None and (heir.account, heir.key.id) != (account, id):
                self._db.execute("DELETE FROM keys WHERE account = ? AND id = ?", (account, id))
            elif (account, id) not in names and not disabled:
                self._db.execute("UPDATE keys SET disabled = 1 WHERE account = ? AND id = ?", (account, id))
            else:
                continue
            if (account, id) not in names:
                done.disabled.append(f"{account}/{id}")
        for (id,) in self._db.execute(
            "SELECT id FROM accounts WHERE source = ? AND disabled = 0", (SETTINGS,)
        ).fetchall():
            if id not in settings.accounts:
                self._db.execute("UPDATE accounts SET disabled = 1 WHERE id = ?", (id,))
                done.disabled.append(id)

    def _put_account(self, id: str, account: conf.Account, done: Imported) -> None:
        limits = msgspec.json.encode(account.limits).decode("ascii")
        about = (account.name or id, account.weight, account.max_wait, limits, _json(account.models))
        row = (*about, int(account.disabled), SETTINGS)
        columns = "name, weight, max_wait, limits, models, disabled, source"
        before = self._db.execute(f"SELECT {columns} FROM accounts WHERE id = ?", (id,)).fetchone()  # noqa: S608
        if before is None:
            self._db.execute("INSERT INTO accounts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (id, *row, time.time()))
            done.added.append(id)
        elif tuple(before) != row:
            self._db.execute(f"UPDATE accounts SET ({columns}) = (?, ?, ?, ?, ?, ?, ?) WHERE id = ?", (*row, id))  # noqa: S608
            done.changed.append(id)

    def _put_key(self, one: _Listed, done: Imported) -> None:
        label, where = f"{one.account}/{one.key.id}", (one.account, one.key.id)
        holder = self._db.execute("SELECT account, id FROM keys WHERE digest = ?", (one.digest,)).fetchone()
        if holder is not None and tuple(holder) != where:
            raise AccountsError(f"{label}: the same key as {holder[0]}/{holder[1]}, which was made by a command")
        query = "SELECT digest, last_four, models, expires, disabled, source FROM keys WHERE account = ? AND id = ?"
        before = self._db.execute(query, where).fetchone()
        if before is None:
            self._db.execute(
                "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*where, *one.row, SETTINGS, time.time())
            )
            done.added.append(label)
            return
        if before[5] != SETTINGS:
            raise AccountsError(f"{label}: a command made a key of this name; give the one in the settings another id")
        if tuple(before[:5]) != one.row:
            columns = "(digest, last_four, models, expires, disabled) = (?, ?, ?, ?, ?)"
            self._db.execute(f"UPDATE keys SET {columns} WHERE account = ? AND id = ?", (*one.row, *where))  # noqa: S608
            done.changed.append(label)

    # --- the file ---

    def _prepare(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise AccountsError(f"{self.path} was written by a later version of this program; use that one")
        if version == 0:
            for statement in filter(str.strip, _SCHEMA.split(";")):
                self._db.execute(statement)
            self._db.execute("INSERT INTO facts VALUES ('pepper', ?)", (self._hash.digest(_PROOF),))
            self._db.execute(f"PRAGMA user_version = {VERSION:d}")
        proof = self._db.execute("SELECT value FROM facts WHERE name = 'pepper'").fetchone()
        if proof is None or proof[0] != self._hash.digest(_PROOF):
            raise AccountsError(
                f"{self.path.parent / PEPPER_NAME} does not belong to {self.path}; restore both together"
            )

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise AccountsError(f"{self.path}: {error}") from None


def _connect(path: Path) -> sqlite3.Connection:
    """SQLite gives its -wal and -shm files the mode of the file itself, so that one is made first, for us alone."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise AccountsError(f"{path}: {error}") from None
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # a key shown once must be there after a power loss
        db.execute("PRAGMA foreign_keys = ON")
    except sqlite3.Error as error:
        db.close()
        raise AccountsError(f"{path}: {error}") from None
    return db


def _account(row: tuple[Any, ...]) -> Account:
    id, name, weight, max_wait, limits, models, disabled = row[:7]
    return Account(
        id,
        name=name,
        weight=weight,
        max_wait=max_wait,
        limits=msgspec.json.decode(limits, type=conf.AccountLimits),
        models=models and json.loads(models),
        is_disabled=bool(disabled),
    )


def _key(row: tuple[Any, ...]) -> CustomerKey:
    account, id, digest, shown, models, expires, disabled = row[:7]
    allowed = models and json.loads(models)
    return CustomerKey(
        account, id, digest, last_four=shown, models=allowed, expires=expires, is_disabled=bool(disabled)
    )


def _json(models: tuple[str, ...] | None) -> str | None:
    return None if models is None else json.dumps(models)
