"""Processes of a run: started in a group of their own, pinned, watched through /proc, and gone when the run is.

Processor time is the kernel's own figure for a process with all its threads, those that ended included, in nanoseconds:
the clock `clock_getcpuclockid(3)` names, whose number is `(~pid << 3) | 2` (linux/posix-timers.h).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_libc = ctypes.CDLL(None, use_errno=True)


class StartError(Exception):
    """A process ended, or did not answer in time, before it was ready. Carries the end of its output."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_ns(pid: int) -> int:
    """Processor time of `pid` so far, user and system, ns; 0 when it is gone."""
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)
    except OSError:
        return 0


def tree(root: int) -> list[int]:
    """`root` and all its descendants."""
    found = [root]
    for pid in found:
        for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found.extend(int(child) for child in tasks.read_text().split())
    return found


def rss_bytes(pid: int) -> int:
    """Resident memory of `pid`; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


def descriptors(pid: int) -> int:
    """Open file descriptors of `pid`; 0 when it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def cores(workers: int = 1) -> tuple[set[int], set[int]]:
    """(the proxy's cores, the load's cores): apart where the machine allows, the last one shared where not."""
    usable = sorted(os.sched_getaffinity(0))
    proxy = set(usable[:workers])
    return proxy, set(usable[workers:]) or {usable[-1]}


class Running:
    """One started process and its group."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        cores: set[int] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        def settle() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if cores:
                os.sched_setaffinity(0, cores)

        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,
                preexec_fn=settle,
            )

    def __repr__(self) -> str:
        return f"<Running {self.name} pid={self.pid} rc={self._popen.poll()}>"

    @property
    def pid(self) -> int:
        """The first process of the group."""
        return self._popen.pid

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, patience: float = 3.0) -> None:
        """Ask the first process to end, and kill whatever is left of it and its children after `patience` seconds."""
        family = {pid: _state(pid)[1] for pid in tree(self.pid)}
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(patience)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()
        until = time.monotonic() + patience
        for pid, born in family.items():
            while _is_alive(pid, born) and time.monotonic() < until:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)  # it left the group, or is on its way out
                time.sleep(0.001)

    def wait_ready(self, port: int, path: str = "", patience: float = 20.0) -> None:
        """Wait until `port` accepts and, with a path, GET answers 200. Raises StartError."""
        until = time.monotonic() + patience
        while time.monotonic() < until:
            if self._popen.poll() is not None:
                break
            if _answers(port, path):
                return
            time.sleep(0.05)
        tail = self.log.read_text(errors="replace")[-2000:]
        raise StartError(f"{self.name} is not ready on port {port} (rc={self._popen.poll()})\n{tail}")


def _state(pid: int) -> tuple[str, str]:
    """(state, when it started in ticks since boot: what tells it from a later one of that number); both "" if gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]  # fields 3 and 22 of proc(5)


def _is_alive(pid: int, born: str) -> bool:
    state, since = _state(pid)
    return since == born and state not in ("", "Z", "X")


def _answers(port: int, path: str) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as probe:
            if not path:
                return True
            probe.settimeout(2)
            probe.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            return b" 200 " in probe.recv(64)
    except OSError:
        return False


def total_cpu(before: dict[int, int], after: dict[int, int]) -> int:
    """Processor time between two samples of a process tree, ns."""
    return sum(ns - before.get(pid, 0) for pid, ns in after.items())


def sample_cpu(pids: Iterable[int]) -> dict[int, int]:
    """Processor time of each, ns."""
    return {pid: cpu_ns(pid) for pid in pids}
