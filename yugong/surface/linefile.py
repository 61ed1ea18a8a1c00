"""Where access lines end: a file or standard output.

Decides: that writing happens in a thread of the keeper's, behind a bounded queue, and what is lost when the disk is
full or nobody reads: whole lines, counted. Must not know: what is in a line.
"""

from __future__ import annotations

import os
import threading
from collections import deque

from yugong.surface.meters import Registry
from yugong.surface.metrics import BY_NAME

__all__ = ["QUEUE_MAX", "STDOUT", "LineFile"]

STDOUT = "stdout"
QUEUE_MAX = 32 * 1024 * 1024  # bytes that may wait for the disk


class LineFile:
    """One destination. `put` from the loop, the rest in an own thread until `close`."""

    def __init__(self, target: str, registry: Registry) -> None:
        self._target = target
        self._wake = threading.Condition()
        self._batches: deque[bytes] = deque()
        self._size = 0
        self._is_closing = False
        self._must_reopen = True
        self._is_torn = False
        self._fd = -1
        dropped = registry.counter(BY_NAME["yugong_access_log_dropped_total"])
        self._behind, self._failed = dropped.labels("behind"), dropped.labels("write")
        self._written = registry.counter(BY_NAME["yugong_access_log_lines_total"]).labels()
        self._thread = threading.Thread(target=self._work, name="access-log", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<LineFile {self._target} waiting={self._size}B written={self._written.value:g}>"

    def put(self, batch: bytes) -> None:
        """Take whole lines; never blocks. Those that find the queue full are lost and counted."""
        with self._wake:
            if self._size + len(batch) > QUEUE_MAX:
                self._behind.value += batch.count(b"\n")
                return
            self._batches.append(batch)
            self._size += len(batch)
            self._wake.notify_all()

    def reopen(self, target: str | None = None) -> None:
        """Open the file again before the next line: it was moved away (log rotation), or is another one from now on."""
        with self._wake:
            self._target = target or self._target
            self._must_reopen = True

    def flush(self, timeout: float) -> bool:
        """Wait until all that was put is written or lost; whether it came so far within `timeout` seconds."""
        with self._wake:
            return self._wake.wait_for(lambda: not self._size, timeout)

    def close(self, timeout: float) -> None:
        """Write what waits, for at most `timeout` seconds: standard output may be a pipe nobody reads."""
        with self._wake:
            self._is_closing = True
            self._wake.notify_all()
        self._thread.join(timeout)

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._batches and not self._is_closing:
                    self._wake.wait()
                if not self._batches:
                    return
                batch = b"".join(self._batches)
                self._batches.clear()
                must_reopen, self._must_reopen = self._must_reopen, False
            self._write(batch, must_reopen)
            with self._wake:
                self._size -= len(batch)
                self._wake.notify_all()

    def _write(self, batch: bytes, must_reopen: bool) -> None:
        view, done = memoryview(batch), 0
        try:
            if must_reopen or self._fd < 0:
                self._open()
            if self._is_torn:
                os.write(self._fd, b"\n")
                self._is_torn = False
            while done < len(batch):
                done += os.write(self._fd, view[done:])
        except OSError:
            self._is_torn = self._is_torn or (done > 0 and batch[done - 1 : done] != b"\n")
        written = batch.count(b"\n", 0, done)
        self._written.value += written
        self._failed.value += batch.count(b"\n") - written

    def _open(self) -> None:
        """Raises OSError; the file is tried again with the next batch."""
        former, self._fd = self._fd, -1
        if former > 2:
            os.close(former)
        if self._target == STDOUT:
            self._fd = 1
        else:
            self._fd = os.open(self._target, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, 0o640)
