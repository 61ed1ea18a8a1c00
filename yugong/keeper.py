"""The keeper: the process that is asked how the others are.

Decides: how reports of all processes become one truth that survives a worker's and its own end, and when the
installation counts as ready. Must not know: calls, keys in the clear.

It comes in two steps, so that one keeper can follow another without a scrape that fails or goes backwards: it says
`ready` when it could serve, and serves when told, after the one before has written its books and gone.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import orjson
import uvloop
from aiohttp import web

from yugong import __version__
from yugong.store.channel import JSON, LINES, Channel, ChannelError, receive_one
from yugong.store.handover import Hello, die_with_parent, unpack_settings
from yugong.surface import ops
from yugong.surface.linefile import LineFile
from yugong.surface.meters import Registry
from yugong.surface.proclog import ProcessLog
from yugong.surface.reports import Books, Merged
from yugong.surface.uplink import Uplink, count_process

__all__ = ["Keeper", "main"]

BOOKS = "books.json"
SAVE_EVERY = 10.0  # seconds; what a killed keeper may lose is only what departed processes counted since
SETTLE = 2.0  # seconds the first scrape after a change of keepers waits for the workers to come back
FAREWELL = 1.0  # seconds the processes get to hand over what is on its way
DISK = 2.0  # seconds the last access lines get
IDLE = 75.0  # seconds a scraper's kept-alive connection may be idle


def main(fd: int) -> int:
    """Be the keeper, told what to do through the socket `fd`; the exit code."""
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
        return runner.run(Keeper(hello, control).run())


class Keeper:
    """Books, access lines, and the admin listener in front of them."""

    def __init__(self, hello: Hello, control: socket.socket) -> None:
        self._hello = hello
        settings = unpack_settings(hello.settings)
        self._log = ProcessLog("keeper", settings.log.level)
        self._control = Channel(control, self._receive, self._orphaned, "supervisor")
        self._doors = {door.address: socket.socket(fileno=door.fd) for door in hello.doors}
        self._books = Books()
        self._path = Path(hello.data_dir) / "run" / BOOKS
        self._stats: dict[str, Any] = {}
        self._state: dict[str, Any] = {}
        self._links: dict[Channel, str] = {}
        self._told = asyncio.Event()
        self._end = asyncio.Event()
        self._settled = asyncio.Event()
        self._deserted = asyncio.Event()
        self._registry = Registry()
        count_process(self._registry, hello.name)
        self._lines = LineFile(settings.log.access, self._registry) if settings.log.access else None

    def __repr__(self) -> str:
        return f"<Keeper links={len(self._links)} {self._books!r}>"

    async def run(self) -> int:
        """Live; the exit code."""
        loop = asyncio.get_running_loop()
        self._control.attach(loop)
        loop.add_signal_handler(signal.SIGTERM, self._control.send, {"op": "leave"})
        self._control.send({"op": "ready"})
        await self._first(self._told, self._end)
        if self._told.is_set():
            await self._serve(loop)
        self._control.send({"op": "drained"})
        await self._control.flush(FAREWELL)
        self._control.close()
        return 0

    @staticmethod
    async def _first(*events: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in events]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        self._load()
        link = self._doors.pop("link")
        loop.add_reader(link.fileno(), self._welcome, link, loop)
        uplink = Uplink(Path(self._hello.link), self._hello.id, self._hello.name, self._registry)
        tasks = [asyncio.ensure_future(uplink.run()), asyncio.ensure_future(self._save_often())]
        tasks.append(asyncio.ensure_future(self._beat()))
        await self._wait_settled()
        server = web.Server(self._answer, keepalive_timeout=IDLE, access_log=None)
        listeners = [await loop.create_server(server, sock=sock) for sock in self._doors.values()]
        await self._end.wait()
        for listener in listeners:
            listener.close()
        await server.shutdown(FAREWELL)
        loop.remove_reader(link.fileno())
        link.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await uplink.close()
        await self._dismiss()
        self._save()
        if self._lines is not None:
            await loop.run_in_executor(None, self._lines.close, DISK)

    async def _wait_settled(self) -> None:
        """Until all who were there before have reported again."""
        try:
            await asyncio.wait_for(self._settled.wait(), SETTLE)
        except TimeoutError:
            self._log.debug("not everybody has reported yet")

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        return await ops.answer(request, self)

    # --- figures -----------------------------------------------------------------------------------------------------

    def merged(self) -> Merged:
        return self._books.merged()

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        state = self._state
        workers = state.get("workers", {})
        is_ready = bool(workers.get("ready")) and not state.get("is_stopping", False)
        detail = {
            "ready": is_ready,
            "version": __version__,
            **state,
            "lines": dict(sorted(self._stats.items())),
        }
        return is_ready, detail

    # --- processes ---------------------------------------------------------------------------------------------------

    def _welcome(self, link: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        try:
            sock, _ = link.accept()
        except OSError:
            return
        channel = Channel(sock, self._hear, self._depart, "process")
        self._links[channel] = ""
        channel.attach(loop)

    def _hear(self, channel: Channel, kind: bytes, payload: bytes) -> None:
        if kind == LINES:
            if self._lines is not None:
                self._lines.put(payload)
            return
        try:
            self._take(channel, orjson.loads(payload))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            self._log.exception("a report that cannot be read", error)
            channel.close()
            self._depart(channel)

    def _take(self, channel: Channel, message: dict[str, Any]) -> None:
        process = self._links[channel]
        if not process:
            self._links[channel] = process = str(message["process"])
            self._books.open(process)
            return
        self._books.take(process, message)
        if "stats" in message:
            self._stats[process.partition(":")[0]] = message["stats"]
        if message["end"] and set(self._hello_expects()) <= self._books.alive():
            self._settled.set()

    def _hello_expects(self) -> list[str]:
        expected: list[str] = self._state.get("processes", [])
        return expected

    def _depart(self, channel: Channel) -> None:
        process = self._links.pop(channel, "")
        if not self._links:
            self._deserted.set()
        if process and process not in self._links.values():
            self._books.depart(process, time.monotonic())
            self._stats.pop(process.partition(":")[0], None)
            if not self._end.is_set():
                self._save()

    async def _dismiss(self) -> None:
        """Have every process hand over what is on its way and go to the next keeper."""
        for channel in self._links:
            channel.send({"op": "bye"})
        self._deserted.clear()
        if self._links:
            try:
                await asyncio.wait_for(self._deserted.wait(), FAREWELL)
            except TimeoutError:
                self._log.warning("a process kept its connection; its last access lines may be lost")

    # --- what outlives this process ----------------------------------------------------------------------------------

    def _load(self) -> None:
        try:
            saved = orjson.loads(self._path.read_bytes())
            if saved["boot"] == self._hello.boot:
                self._books.load(saved["books"], time.monotonic())
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError) as error:
            self._log.exception(f"cannot read {self._path}; counters begin anew", error)

    def _save(self) -> None:
        text = orjson.dumps({"boot": self._hello.boot, "books": self._books.dump()})
        fresh = self._path.with_suffix(".new")
        try:
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(text)
            fresh.replace(self._path)
        except OSError as error:
            self._log.error(f"cannot write {self._path}: {error.strerror}")

    async def _save_often(self) -> None:
        while True:
            await asyncio.sleep(SAVE_EVERY)
            self._books.fold(time.monotonic())
            self._save()

    async def _beat(self) -> None:
        while True:
            self._control.send({"op": "beat"})
            await asyncio.sleep(1.0)

    # --- the supervisor ----------------------------------------------------------------------------------------------

    def _receive(self, _: Channel, kind: bytes, payload: bytes) -> None:
        assert kind == JSON
        message = orjson.loads(payload)
        match message["op"]:
            case "state":
                self._state = message["state"]
            case "serve":
                self._told.set()
            case "reload":
                self._reload(message)
            case "reopen":
                if self._lines is not None:
                    self._lines.reopen()
            case "drain" | "stop":
                self._end.set()

    def _reload(self, message: dict[str, Any]) -> None:
        settings = unpack_settings(orjson.dumps(message["settings"]))
        self._log.level = settings.log.level
        if self._lines is not None and settings.log.access:
            self._lines.reopen(settings.log.access)
        self._control.send({"op": "reloaded", "revision": message["revision"]})

    def _orphaned(self, _: Channel) -> None:
        self._end.set()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
