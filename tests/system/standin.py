"""The program with a stand-in for the line, so that processes are tested without what they carry.

Run as `python standin.py run …`: the supervisor, the keeper and the command line are the real ones; a worker serves
these paths on aiohttp's low-level server:

    /fast           the worker's pid
    /slow?seconds=  the same, later
    /stream?n=&gap= so many lines, each after a gap
    /settings       retry.attempts, as this worker lives by it
"""

import asyncio
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from aiohttp import web

from yugong.core.settings import Settings
from yugong.worker import Station

HERE = [sys.executable, str(Path(__file__).resolve())]


class Call:
    """A finished call, as the access log and metrics want it."""

    dialect_name, operation, model, model_label = "openai", "chat.completions", "gpt-4o", "gpt-4o"
    account, key_id, org, reason, usage, agent = "acme", "k1", "org-1", None, None, "standin"
    method, client, id, is_stream, attempts = "GET", "127.0.0.1", "yg_1", False, 1
    bytes_in = bytes_out = 10

    def __init__(self, path: str, duration: float) -> None:
        self.path, self.duration, self.first_byte, self.status = path, duration, duration, 200


class StandInLine:
    """What a line does, without a proxy."""

    def __init__(self, station: Station) -> None:
        self.station = station
        self.settings = Settings()
        self.in_flight = 0
        self.is_draining = False
        self.server: Any = None
        self.listeners: list[asyncio.Server] = []
        self.idle = asyncio.Event()

    async def start(self, sockets: list[socket.socket], settings: Settings) -> None:
        if "unstartable" in settings.origins:
            raise RuntimeError("made not to start")
        self.settings = settings
        self.server = web.Server(self.answer, access_log=None)
        for sock in sockets:
            self.listeners.append(await asyncio.get_running_loop().create_server(self.server, sock=sock, backlog=4096))

    async def reload(self, settings: Settings) -> None:
        if "unloadable" in settings.origins:
            raise RuntimeError("made not to load")
        self.settings = settings

    def stop_accepting(self) -> None:
        self.is_draining = True
        for listener in self.listeners:
            listener.close()

    async def drain(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        lame = loop.time() + self.settings.drain.lame_duck
        while (self.in_flight or (self.server.connections and loop.time() < lame)) and loop.time() < deadline:
            await asyncio.sleep(0.02)
        await self.server.shutdown(0.1)

    def stats(self) -> dict[str, Any]:
        return {"in_flight": self.in_flight}

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        began = time.monotonic()
        self.in_flight += 1
        self.station.meters.calls_in_flight.value += 1
        try:
            return await self.respond(request)
        finally:
            self.in_flight -= 1
            self.station.meters.calls_in_flight.value -= 1
            call = Call(request.path_qs, time.monotonic() - began)
            self.station.meters.observe(call)
            self.station.access.put(call)

    async def respond(self, request: web.BaseRequest) -> web.StreamResponse:
        query = request.query
        if request.path == "/settings":
            return self.text(str(self.settings.retry.attempts))
        if request.path == "/stuck":
            time.sleep(3600)
        if request.path == "/slow":
            await asyncio.sleep(float(query["seconds"]))
        if request.path == "/stream":
            response = web.StreamResponse()
            await response.prepare(request)
            for number in range(int(query["n"])):
                await asyncio.sleep(float(query["gap"]))
                await response.write(b"%d\n" % number)
            await response.write_eof()
            return response
        return self.text(str(os.getpid()))

    def text(self, body: str) -> web.Response:
        response = web.Response(text=body)
        if self.is_draining:
            response.force_close()
        return response


def main() -> int:
    words = sys.argv[1:]
    if words and words[0] == "_worker":
        from yugong import worker

        return worker.main(int(words[1]), StandInLine)
    from yugong import cli

    return cli.main(words, program=HERE)


if __name__ == "__main__":
    sys.exit(main())
