"""What was served and billed: one NDJSON line an attempt, appended with one `write` each.

A line survives `kill -9` of the emulator as soon as it is written; `fsync` makes it survive the machine. Places in
the journal are byte offsets, so a reader asks `since=` the end of what it read. Lines past `max_bytes` are counted
in `dropped` and not kept. Knows nothing of what the lines say.
"""

import os
import tempfile
from typing import Any

import orjson


class Journal:
    """An append-only file. `path` None makes a temporary one, "" keeps nothing."""

    __slots__ = ("_fd", "_fsync", "_max_bytes", "_temporary", "dropped", "path", "size")

    def __init__(self, path: str | None, *, fsync: bool = False, max_bytes: int = 1 << 30) -> None:
        self._temporary = path is None
        self._fsync = fsync
        self._max_bytes = max_bytes
        self.dropped = 0
        self.size = 0
        self._fd = -1
        if path is None:
            self._fd, path = tempfile.mkstemp(prefix="yugong-emulator-", suffix=".ndjson")
        elif path:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self.size = os.fstat(self._fd).st_size
        self.path = path

    def __repr__(self) -> str:
        return f"<Journal {self.path or 'off'} size={self.size} dropped={self.dropped}>"

    @property
    def is_open(self) -> bool:
        return self._fd >= 0

    def append(self, line: dict[str, Any]) -> None:
        """Write one line. Raises OSError when the disk refuses it: an unwritten bill is a bug worth stopping for."""
        if self._fd < 0:
            return
        data = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        if self.size + len(data) > self._max_bytes:
            self.dropped += 1
            return
        self.size += os.write(self._fd, data)
        if self._fsync:
            os.fdatasync(self._fd)

    def read(self, since: int = 0, limit: int = 16 << 20) -> bytes:
        """Whole lines from byte `since` on, at most about `limit` bytes of them."""
        if self._fd < 0 or since >= self.size:
            return b""
        data = os.pread(self._fd, min(limit, self.size - since), since)
        return data[: data.rfind(b"\n") + 1]

    def lines(self, since: int = 0) -> list[dict[str, Any]]:
        """All lines from byte `since` on, parsed; for tests."""
        found: list[dict[str, Any]] = []
        while data := self.read(since):
            found.extend(orjson.loads(line) for line in data.splitlines())
            since += len(data)
        return found

    def close(self) -> None:
        """Close; a temporary journal is removed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if self._temporary:
                os.unlink(self.path)
