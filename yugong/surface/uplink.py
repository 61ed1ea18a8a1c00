"""A process' connection to the keeper: its metrics each second, its access log lines four times a second.

Decides: when to report, and to connect again when the keeper was replaced. Must not know: what is counted.

Nothing here waits for the keeper: what it does not take stays in the bounded ring and is dropped from there.
"""

from __future__ import annotations

import asyncio
import os
import platform
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from yugong import __version__
from yugong.store.channel import JSON, LINES, Channel, connect_local
from yugong.surface.accesslog import AccessLog
from yugong.surface.meters import Gauge, Registry
from yugong.surface.metrics import BY_NAME
from yugong.surface.reports import Reporter

__all__ = ["TICK", "Uplink", "count_process"]

TICK = 0.25  # seconds between looks
TICKS_A_REPORT = 4
BEHIND = 4 * 1024 * 1024  # bytes on their way: more is not sent until they have arrived
LAST_WORDS = 1.0  # seconds


class Uplink:
    """Runs as one task from `run`; `close` sends what is left."""

    def __init__(self, path: Path, process: str, name: str, registry: Registry) -> None:
        self._path = path
        self._process = process
        self._registry = registry
        self._lag = registry.histogram(BY_NAME["yugong_event_loop_lag_seconds"]).labels(name)
        self._reporter = Reporter(registry)
        self._channel: Channel | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        #: Set where there are lines to hand over.
        self.lines: AccessLog | None = None
        #: Told with each round, as it stands (readiness detail).
        self.stats: Callable[[], dict[str, Any]] | None = None

    def __repr__(self) -> str:
        return f"<Uplink {self._process} {self._channel!r}>"

    async def run(self) -> None:
        """Report until cancelled."""
        loop = asyncio.get_running_loop()
        ticks = 0
        while True:
            if self._channel is None and self._connect():
                await self.report()
            due = loop.time() + TICK
            await asyncio.sleep(TICK)
            self._lag.observe(max(0.0, loop.time() - due))
            ticks += 1
            self.hand_over()
            if ticks % TICKS_A_REPORT == 0:
                await self.report()

    async def close(self) -> None:
        """Report once more, with all lines, and leave. To be called when `run` is not running any more."""
        if self._channel is None:
            self._connect()
        self.hand_over()
        await self.report()
        if self._channel is not None:
            await self._channel.flush(LAST_WORDS)
            self._channel.close()
            self._channel = None
        if self._leaving:
            await asyncio.wait(self._leaving)

    def hand_over(self) -> None:
        """Send the lines that wait, unless those before are still on their way."""
        channel, lines = self._channel, self.lines
        if channel is not None and lines is not None and lines.size and channel.waiting < BEHIND:
            channel.send_raw(LINES, lines.take())

    async def report(self) -> None:
        """One round of what has changed. One cut short is continued by the next: what was not sent is still to send."""
        channel, reports = self._channel, self._reporter.round()
        while channel is not None and channel is self._channel and channel.waiting < BEHIND:
            report = next(reports, None)
            if report is None:
                return
            if report["end"] and self.stats is not None:
                report["stats"] = self.stats()
            channel.send_raw(JSON, orjson.dumps(report, default=str))
            await asyncio.sleep(0)

    def _connect(self) -> bool:
        try:
            sock = connect_local(self._path)
        except OSError:
            return False  # the keeper is not there yet, or not again
        self._reporter = Reporter(self._registry)
        self._channel = Channel(sock, self._dismissed, self._lost, "keeper")
        self._channel.attach(asyncio.get_running_loop())
        self._channel.send({"process": self._process})
        return True

    def _lost(self, channel: Channel) -> None:
        if channel is self._channel:
            self._channel = None

    def _dismissed(self, channel: Channel, kind: bytes, payload: bytes) -> None:
        """All a keeper ever says is that it leaves: give it what is on its way, and the rest to the next one."""
        if channel is self._channel:
            self._channel = None
            task = asyncio.ensure_future(self._leave(channel))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    @staticmethod
    async def _leave(channel: Channel) -> None:
        await channel.flush(LAST_WORDS)
        channel.close()


def count_process(registry: Registry, name: str) -> None:
    """Have the figures of this process looked up whenever its values are read (about 20 µs)."""

    def gauge(metric: str) -> Gauge:
        return registry.gauge(BY_NAME[metric]).labels(name)

    resident, fds = gauge("yugong_process_resident_bytes"), gauge("yugong_process_open_fds")
    tasks = gauge("yugong_process_tasks")
    cpu = registry.counter(BY_NAME["yugong_process_cpu_seconds_total"]).labels(name)
    build = registry.gauge(BY_NAME["yugong_build_info"]).labels(__version__, platform.python_version())
    build.value = 1
    page = resource.getpagesize()

    def refresh() -> None:
        with open("/proc/self/statm", "rb") as file:
            resident.value = int(file.read().split()[1]) * page
        fds.value = _open_fds()
        tasks.value = _count_tasks()
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu.value = used.ru_utime + used.ru_stime

    registry.before_reading(refresh)


def _open_fds() -> int:
    # Since Linux 6.2 the size of the directory is the number of descriptors; before, it is 0 and they must be listed.
    return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))


def _count_tasks() -> int:
    """Tasks of the running loop. Listing 5 000 of them takes 2 ms, so the interpreter's own set is only measured."""
    tasks = getattr(asyncio.tasks, "_all_tasks", None) or getattr(asyncio.tasks, "_scheduled_tasks", None)
    if tasks is not None:
        return len(tasks)
    return len(asyncio.all_tasks())
