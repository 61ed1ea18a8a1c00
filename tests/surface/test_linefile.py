"""Where access lines end: nothing blocks, what is lost is counted."""

import os
import threading
from pathlib import Path

import pytest

from yugong.surface import linefile
from yugong.surface.linefile import LineFile
from yugong.surface.meters import Registry

DROPPED = "yugong_access_log_dropped_total"


def figures(registry: Registry) -> dict[tuple[str, ...], object]:
    return {(spec.name, *labels): value for spec, labels, value in registry.values()}


def test_lines_are_written_and_counted(tmp_path: Path) -> None:
    registry, path = Registry(), tmp_path / "access.log"
    file = LineFile(str(path), registry)
    file.put(b"one\ntwo\n")
    file.put(b"three\n")
    file.close(5)
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    assert figures(registry)["yugong_access_log_lines_total",] == 3
    assert path.stat().st_mode & 0o777 & ~0o640 == 0


def test_a_file_moved_away_is_opened_anew_when_told(tmp_path: Path) -> None:
    registry, path = Registry(), tmp_path / "access.log"
    file = LineFile(str(path), registry)
    file.put(b"one\n")
    assert file.flush(5)
    path.rename(tmp_path / "access.log.1")
    file.reopen()
    file.put(b"two\n")
    file.close(5)
    assert (tmp_path / "access.log.1").read_bytes() == b"one\n"
    assert path.read_bytes() == b"two\n"


def test_a_full_disk_loses_lines_and_counts_them() -> None:
    registry = Registry()
    file = LineFile("/dev/full", registry)
    file.put(b"one\ntwo\n")
    file.close(5)
    assert figures(registry)[DROPPED, "write"] == 2
    assert figures(registry)["yugong_access_log_lines_total",] == 0


def test_a_directory_that_is_not_there_is_tried_again(tmp_path: Path) -> None:
    registry, path = Registry(), tmp_path / "later" / "access.log"
    file = LineFile(str(path), registry)
    file.put(b"one\n")
    assert file.flush(5)
    path.parent.mkdir()
    file.put(b"two\n")
    file.close(5)
    assert path.read_bytes() == b"two\n"


def test_a_line_torn_by_a_full_disk_does_not_swallow_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, path = Registry(), tmp_path / "access.log"
    write, torn = os.write, threading.Event()

    def half(fd: int, data: bytes) -> int:
        if not torn.is_set():
            torn.set()
            return write(fd, bytes(data)[:6])
        if bytes(data) == b"o\n":
            raise OSError(28, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(linefile.os, "write", half)
    file = LineFile(str(path), registry)
    file.put(b"one\ntwo\n")
    assert file.flush(5)
    file.put(b"three\n")
    file.close(5)
    assert path.read_bytes() == b"one\ntw\nthree\n"
    assert figures(registry)["yugong_access_log_lines_total",] == 2


def test_a_pipe_nobody_reads_holds_up_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(linefile, "QUEUE_MAX", 200_000)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    registry = Registry()
    file = LineFile(str(pipe), registry)
    for _ in range(100):
        file.put(b"x" * 9_999 + b"\n")
    assert figures(registry)[DROPPED, "behind"]
    assert repr(file).startswith(f"<LineFile {pipe} waiting=")
    file.close(0.1)
    os.close(reader)
    file._thread.join(5)
    assert not file._thread.is_alive()
