"""The pool's numbers in memory shared by all workers of a machine: a mapped memory file of integer rows.

Implements `core.keypool.cells.Home`. The supervisor makes the file and hands its descriptor down; it outlives any
worker. A row is found by the hash of its name, claimed under a lock by whoever needs it first. Row locks are POSIX
record locks: 1.5 µs, exact over processes, and released by the kernel when a process dies (measured: design §5). Record
locks belong to a process, so a worker must open the state once and never close a second descriptor of it.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
from collections.abc import Iterator, MutableSequence
from typing import cast

from yugong.core.keypool.buckets import LANE
from yugong.core.keypool.cells import GROUP_ROW, HEALTH_ROW, LANES

CELL = 8  # bytes
HEALTH_ROWS = 1 << 18  # sparse: only rows in use take memory
GROUP_ROWS = 1 << 16
HEADER = 64  # cells: version, lanes' owners
VERSION = 1
PROBES_MAX = 64  # steps of linear probing before a table counts as full

_HEALTH_AT = HEADER
_GROUP_AT = HEADER + HEALTH_ROWS * HEALTH_ROW
CELLS = _GROUP_AT + GROUP_ROWS * GROUP_ROW
SIZE = CELLS * CELL

_DIRECTORY = 1  # the cell whose lock guards claiming rows


def create() -> int:
    """A new memory file, to be inherited by workers. Returns its descriptor."""
    fd = os.memfd_create("yugong-pool", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    return fd


class PoolState:
    """One process's view of the shared rows."""

    __slots__ = ("_fd", "_map", "_rows", "cells")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._map = mmap.mmap(fd, SIZE)
        #: A memoryview: reads and writes of a cell are single aligned 8-byte moves.
        self.cells = cast(MutableSequence[int], memoryview(self._map).cast("q"))
        self._rows: dict[tuple[int, str], int] = {}
        if not self.cells[0]:
            self.cells[0] = VERSION
        if self.cells[0] != VERSION:
            raise ValueError(f"pool state of version {self.cells[0]}, this program knows {VERSION}")

    def __repr__(self) -> str:
        return f"<PoolState fd={self._fd} known={len(self._rows)}>"

    def health_row(self, name: str, *, is_made: bool = True) -> int:
        return self._find(name, _HEALTH_AT, HEALTH_ROWS, HEALTH_ROW, is_made)

    def group_row(self, name: str, *, is_made: bool = True) -> int:
        return self._find(name, _GROUP_AT, GROUP_ROWS, GROUP_ROW, is_made)

    def lock(self, row: int) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_EX, CELL, row * CELL)

    def unlock(self, row: int) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, CELL, row * CELL)

    def clear_lane(self, lane: int) -> None:
        """A worker is gone: what its lane counted is no more. Called by the supervisor before the lane is reused."""
        assert 0 <= lane < LANES
        for slot in self._slots():
            row = _GROUP_AT + slot * GROUP_ROW
            if self.cells[row] and self.cells[row + LANE + lane]:
                self.cells[row + LANE + lane] = 0

    def _slots(self) -> Iterator[int]:
        """Group rows that memory stands behind: the file's holes are not read, or they would be filled."""
        at, end = _GROUP_AT * CELL, SIZE
        done = -1
        while at < end:
            try:
                start = os.lseek(self._fd, at, os.SEEK_DATA)
            except OSError:
                return
            at = min(os.lseek(self._fd, start, os.SEEK_HOLE), end)
            first = max((start - _GROUP_AT * CELL) // (GROUP_ROW * CELL), done + 1)
            last = (at - 1 - _GROUP_AT * CELL) // (GROUP_ROW * CELL)
            yield from range(first, last + 1)
            done = max(done, last)

    def _find(self, name: str, start: int, rows: int, size: int, is_made: bool) -> int:
        known = self._rows.get((size, name))
        if known is not None:
            return known
        wanted = _hash(name)
        row = self._probe(wanted, start, rows, size, is_claimed=False)
        if not row and is_made:
            self.lock(_DIRECTORY)
            try:
                row = self._probe(wanted, start, rows, size, is_claimed=True)
            finally:
                self.unlock(_DIRECTORY)
        if row:
            self._rows[size, name] = row
        return row

    def _probe(self, wanted: int, start: int, rows: int, size: int, *, is_claimed: bool) -> int:
        slot = wanted % rows
        for _ in range(PROBES_MAX):
            row = start + slot * size
            found = self.cells[row]
            if found == wanted:
                return row
            if not found:
                if is_claimed:
                    self.cells[row] = wanted
                    return row
                return 0
            slot = (slot + 1) % rows
        return 0


def _hash(name: str) -> int:
    """63 bits, never 0: two names in one row would take a birthday among 2^31 rows."""
    return (int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1) or 1
