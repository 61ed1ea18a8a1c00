"""Bodies too large for memory, on disk for as long as their call lasts.

Files have no name (`O_TMPFILE`), so nothing is left behind by a crash. Writing and reading happen on threads: a slow
disk holds its own call, not the loop. What is spooled in all has a cap (I13); a full disk is a refusal, not a fault.
"""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import tempfile
from collections.abc import AsyncIterator

from yugong.base.errors import Refusal, RefusalKind

PIECE = 256 * 1024  # bytes read back at once


class Spooled:
    """One body on disk."""

    __slots__ = ("_fd", "_map", "_pending", "_spool", "size")

    def __init__(self, spool: Spool, fd: int) -> None:
        self._spool = spool
        self._fd = fd
        self._map: mmap.mmap | None = None
        self._pending: list[bytes] = []
        self.size = 0

    def __repr__(self) -> str:
        return f"<Spooled {self.size}B>"

    async def write(self, pieces: list[bytes], size: int) -> None:
        """Appends `pieces` of `size` bytes together. Raises `Refusal` (NO_SPACE)."""
        self._spool.claim(size)
        self.size += size
        try:
            await asyncio.get_running_loop().run_in_executor(None, _write_all, self._fd, pieces)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise _full("the disk for request bodies is full") from error
            raise

    def view(self) -> mmap.mmap:
        """The bytes, mapped: looked into without being read whole."""
        if self._map is None:
            self._map = mmap.mmap(self._fd, self.size, prot=mmap.PROT_READ)
        return self._map

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body from its beginning."""
        loop = asyncio.get_running_loop()
        for at in range(0, self.size, PIECE):
            yield await loop.run_in_executor(None, os.pread, self._fd, min(PIECE, self.size - at), at)

    def close(self) -> None:
        """Frees the space."""
        if self._map is not None:
            self._map.close()
        os.close(self._fd)
        self._spool.free(self.size)


class Spool:
    """The folder for bodies, and what they take together."""

    __slots__ = ("folder", "limit", "used")

    def __init__(self, folder: str, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        #: Bytes on disk now.
        self.used = 0

    def __repr__(self) -> str:
        return f"<Spool {self.used} of {self.limit}B>"

    def open(self) -> Spooled:
        """A new, empty body. Raises `Refusal` (NO_SPACE) when the disk cannot even hold a file."""
        try:
            fd = os.open(self.folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EISDIR):  # a file system without O_TMPFILE
                fd = _unlinked(self.folder)
            elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE):
                raise _full("no room for another request body") from error
            else:
                raise
        return Spooled(self, fd)

    def claim(self, size: int) -> None:
        """Counts `size` more bytes. Raises `Refusal` (NO_SPACE) past the cap."""
        if self.used + size > self.limit:
            raise _full("too many large request bodies at once")
        self.used += size

    def free(self, size: int) -> None:
        self.used -= size


def _full(message: str) -> Refusal:
    return Refusal(RefusalKind.NO_SPACE, message + "; please try again later", retry_after=10.0, close=True)


def _unlinked(folder: str) -> int:
    fd, path = tempfile.mkstemp(dir=folder)
    os.unlink(path)
    return fd


def _write_all(fd: int, pieces: list[bytes]) -> None:
    for piece in pieces:
        view = memoryview(piece)
        while view:
            view = view[os.write(fd, view) :]
