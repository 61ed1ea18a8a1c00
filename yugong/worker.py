"""A worker: the process that carries calls.

Decides: its own life: what it is told at birth, when it is ready, how it reloads, drains and leaves. The line itself
(listener, proxy, pool) is a `Line`, made by `make_line`: the one place where concrete stores are named. Must not know:
other workers, the supervisor's reasons.

Signals mean little here: SIGINT, SIGHUP and SIGUSR2 go to a terminal's or a service's whole group and are the
supervisor's to act on; SIGTERM is passed on to it as a wish to leave, so that a successor stands before this one stops.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
import orjson
import uvloop

from yugong.core.settings import Settings
from yugong.store.accounts import AccountsError
from yugong.store.channel import Channel, ChannelError, receive_one
from yugong.store.handover import Hello, die_with_parent, unpack_settings
from yugong.store.settingsfile import SecretError, SettingsError
from yugong.surface.accesslog import AccessLog
from yugong.surface.meters import Registry
from yugong.surface.metrics import Meters
from yugong.surface.proclog import ProcessLog
from yugong.surface.uplink import Uplink, count_process

__all__ = ["Line", "MakeLine", "Station", "main", "make_line"]

ORPHAN_GRACE = 10.0
"""Seconds calls under way get when the supervisor is gone: nobody can start a successor, somebody may start anew."""

GC_EVERY = 20_000  # allocations between collections of the youngest
LAST_WORDS = 2.0  # seconds
BEAT = 1.0  # seconds between signs of life


class Station:
    """What a line is given besides settings: its place among the processes, and where it tells what it does."""

    __slots__ = (
        "access",
        "boot",
        "data_dir",
        "is_demo",
        "lane",
        "lanes",
        "log",
        "memory_fd",
        "memory_size",
        "meters",
        "name",
    )

    def __init__(self, hello: Hello, meters: Meters, access: AccessLog, log: ProcessLog) -> None:
        self.name = hello.name
        self.boot = hello.boot
        self.data_dir = Path(hello.data_dir)
        #: This worker's row in the shared state, below `lanes`. Nobody living has the same.
        self.lane = hello.lane
        self.lanes = hello.lanes
        #: The shared state: a mapped file in memory; -1 where there is none.
        self.memory_fd = hello.memory_fd
        self.memory_size = hello.memory_size
        #: Whether answers must say that the upstream is the built-in demo.
        self.is_demo = hello.is_demo
        self.meters = meters
        self.access = access
        self.log = log

    def __repr__(self) -> str:
        return f"<Station {self.name} lane={self.lane}/{self.lanes}>"


class Line(Protocol):
    """What carries calls, as the frame sees it."""

    async def start(self, sockets: list[socket.socket], settings: Settings) -> None:
        """Accept on these listening sockets (non-blocking, shared with other workers; ours to close). What it raises
        ends the process."""

    async def reload(self, settings: Settings) -> None:
        """Live by these settings from now on. Raises if it cannot, having kept the old ones."""

    def stop_accepting(self) -> None:
        """Close the listening sockets; from now on answers say `Connection: close`."""

    async def drain(self, deadline: float) -> None:
        """Serve what is under way and, for `drain.lame_duck` seconds, what comes on open connections; close those that
        are idle then. Return when nothing is left, or at `deadline` (the loop's clock), having ended the rest honestly.
        """

    def stats(self) -> dict[str, Any]:
        """What /readyz shows of this worker; small, JSON-able."""


MakeLine = Callable[[Station], Line]


def make_line(station: Station) -> Line:
    """The line as it is run."""
    from yugong.wiring import make_line as wire

    return wire(station)


def main(fd: int, make: MakeLine = make_line) -> int:
    """Be a worker, told what to do through the socket `fd`; the exit code."""
    for one in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(one, signal.SIG_IGN)
    faulthandler.enable()
    control = socket.socket(fileno=fd)
    try:
        hello = msgspec.json.decode(receive_one(control), type=Hello)
    except ChannelError:
        return 1
    if not die_with_parent(hello.parent):
        return 1
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Worker(hello, control, make).run())


class Worker:
    """The frame around a line."""

    def __init__(self, hello: Hello, control: socket.socket, make: MakeLine) -> None:
        self._hello = hello
        self._orders: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._channel = Channel(control, self._receive, self._orphaned, "supervisor")
        self._settings = unpack_settings(hello.settings)
        self._log = ProcessLog(hello.name, self._settings.log.level)
        self._registry = registry = Registry()
        registry.caps["model"] = self._settings.metrics.label_values_max
        count_process(registry, hello.name)
        meters = Meters(registry)
        access = AccessLog(meters.access_log_dropped, is_on=self._settings.log.access is not None)
        self._uplink = Uplink(Path(hello.link), hello.id, hello.name, registry)
        self._uplink.lines = access
        self._line = make(Station(hello, meters, access, self._log))
        self._uplink.stats = self._line.stats

    def __repr__(self) -> str:
        return f"<Worker {self._hello.name} {self._channel!r}>"

    async def run(self) -> int:
        """Live; the exit code."""
        loop = asyncio.get_running_loop()
        self._channel.attach(loop)
        loop.add_signal_handler(signal.SIGTERM, self._channel.send, {"op": "leave"})
        try:
            await self._line.start([socket.socket(fileno=door.fd) for door in self._hello.doors], self._settings)
        except (SettingsError, SecretError, AccountsError) as error:
            self._channel.send({"op": "failed", "what": str(error), "is_settings": True})
            await self._channel.flush(LAST_WORDS)
            return 1
        except Exception as error:
            self._log.exception("cannot start", error)
            self._channel.send({"op": "failed", "what": f"{type(error).__name__}: {error}"})
            await self._channel.flush(LAST_WORDS)
            return 1
        # What start-up made stays; the collector need not walk it again with every call's garbage.
        gc.collect()
        gc.freeze()
        # Calls leave hardly a cycle behind: looking for them every 700 allocations costs 4 % of a call.
        gc.set_threshold(GC_EVERY, 20, 50)
        pulse = [asyncio.ensure_future(self._uplink.run()), asyncio.ensure_future(self._beat())]
        self._channel.send({"op": "ready"})
        await self._obey()
        for task in pulse:
            task.cancel()
        await asyncio.gather(*pulse, return_exceptions=True)
        await self._uplink.close()
        self._channel.send({"op": "drained"})
        await self._channel.flush(LAST_WORDS)
        self._channel.close()
        return 0

    async def _beat(self) -> None:
        while True:
            self._channel.send({"op": "beat"})
            await asyncio.sleep(BEAT)

    async def _obey(self) -> None:
        """Reload as told, until told to go."""
        while True:
            order = await self._orders.get()
            match order["op"]:
                case "reload":
                    await self._reload(order)
                case "drain":
                    await self._drain(order["seconds"])
                    return
                case "stop":
                    return

    async def _reload(self, order: dict[str, Any]) -> None:
        revision = order["revision"]
        try:
            settings = unpack_settings(orjson.dumps(order["settings"]))
            await self._line.reload(settings)
        except (SettingsError, SecretError, AccountsError) as error:
            self._channel.send({"op": "refused", "revision": revision, "what": str(error)})
            return
        except Exception as error:
            self._log.exception("the new settings do not work here, the old ones stay", error)
            self._channel.send({"op": "refused", "revision": revision, "what": f"{type(error).__name__}: {error}"})
            return
        self._settings = settings
        self._log.level = settings.log.level
        self._registry.caps["model"] = settings.metrics.label_values_max
        self._channel.send({"op": "reloaded", "revision": revision})

    async def _drain(self, seconds: float) -> None:
        """Stop accepting, then wait for what is under way; an order to stop cuts it short."""
        self._line.stop_accepting()
        self._channel.send({"op": "draining"})
        # Should the loop itself be stuck, the kernel ends the process.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds + 2 * LAST_WORDS + 1)
        deadline = asyncio.get_running_loop().time() + seconds
        drain = asyncio.ensure_future(self._line.drain(deadline))
        cut = asyncio.ensure_future(self._told_to_stop())
        await asyncio.wait((drain, cut), return_when=asyncio.FIRST_COMPLETED)
        for task in (drain, cut):
            task.cancel()
        await asyncio.gather(drain, cut, return_exceptions=True)

    async def _told_to_stop(self) -> None:
        while (await self._orders.get())["op"] != "stop":
            pass

    def _receive(self, _: Channel, kind: bytes, payload: bytes) -> None:
        self._orders.put_nowait(orjson.loads(payload))

    def _orphaned(self, _: Channel) -> None:
        self._log.warning("the supervisor is gone; finishing what is under way")
        self._orders.put_nowait({"op": "drain", "seconds": min(ORPHAN_GRACE, self._settings.drain.grace)})


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
