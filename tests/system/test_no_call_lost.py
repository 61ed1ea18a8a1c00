"""Reloads and rolling restarts of the whole program under load: every call is answered, every stream has its end.

The line is the real one, in front of an emulator. What the processes do of themselves is tested in test_processes.py;
here only a client's view counts: 500 calls a second, four of five on kept connections, and 50 streams open throughout.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from bench.processes import Running, free_port
from tests.system.conftest import Installation, Load, hang_up
from yugong.emulator import EmulatorSpec, expected_text, seed_of

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, "-m", "yugong"]
KEY = "sk-noloss-0123456789abcdef0123456789abcdef"
PROMPT = "How high is the mountain?"
BODY: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": PROMPT}]}
RATE = 500  # calls a second
CALLERS = 40
STREAMS = 50
EVENTS = 30
GAP_MS = 100  # a stream is open for three seconds: longer than lame duck lasts
ORGS = 4


def request(body: dict[str, Any], *fields: str) -> bytes:
    document = orjson.dumps(body)
    lines = (
        "POST /v1/chat/completions HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {KEY}",
        "Content-Type: application/json",
        f"Content-Length: {len(document)}",
        *fields,
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + document


class Calls(Load):
    """Chat calls at a fixed rate in all, due by the clock: what a slow answer delays is made up for."""

    async def _run(self) -> None:
        await asyncio.gather(*(self._caller(i) for i in range(CALLERS)))

    async def _caller(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        is_kept = number % 5 > 0
        due = loop.time() + number / RATE
        wanted = request(
            BODY, "x-emulator-pace: events=4", "Connection: keep-alive" if is_kept else "Connection: close"
        )
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self._is_over:
            await asyncio.sleep(due - loop.time())
            due += CALLERS / RATE
            try:
                if streams is None:
                    streams = await asyncio.open_connection("127.0.0.1", self.port)
                is_closed = await self._call(streams, wanted)
            except (OSError, asyncio.IncompleteReadError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                is_closed = True
            if is_closed and streams is not None:
                await hang_up(streams[1])
                streams = None
        if streams is not None:
            await hang_up(streams[1])

    async def _call(self, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], wanted: bytes) -> bool:
        """One call; whether the server said that it closes."""
        reader, writer = streams
        writer.write(wanted)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None, head
        body = await reader.readexactly(int(length[1]))
        if head.split()[1] == b"200" and orjson.loads(body)["choices"][0]["message"]["content"] == SHORT:
            self.answered += 1
        else:
            self.failures.append(f"{head.split()[1].decode()}: {body.decode()[:200]}")
        return b"connection: close" in head


class Streams(Load):
    """So many streams open at any time, each read to its end and compared."""

    async def _run(self) -> None:
        await asyncio.gather(*(self._listener(i) for i in range(STREAMS)))

    async def _listener(self, number: int) -> None:
        await asyncio.sleep(EVENTS * GAP_MS / 1000 * number / STREAMS)  # they begin and end at different times
        pace = f"x-emulator-pace: events={EVENTS},interval_ms={GAP_MS}"
        wanted = request({**BODY, "stream": True}, pace, "Connection: close")
        while not self._is_over:
            try:
                await self._hear(wanted)
            except (OSError, ValueError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")

    async def _hear(self, wanted: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(wanted)
            raw = await reader.read()
        finally:
            await hang_up(writer)
        told = [orjson.loads(line) for line in re.findall(rb"^data: (\{.*\})$", raw, re.MULTILINE)]
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in told if "choices" in event)
        if text == LONG and b"data: [DONE]" in raw and raw.endswith(b"\r\n0\r\n\r\n"):
            self.answered += 1
        else:
            self.failures.append(f"stream of {len(told)} events, {len(raw)} bytes: …{raw[-200:]!r}")


SHORT = expected_text(seed_of(PROMPT.encode()), 4)
LONG = expected_text(seed_of(PROMPT.encode()), EVENTS)


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Installation]:
    """The program with the real line, two workers, before an emulator without limits."""
    port = free_port()
    command = [sys.executable, "-m", "yugong.emulator", "--port", str(port), "--journal", ""]
    command += ["--orgs", str(ORGS), "--keys", "3"]
    one = Installation(tmp_path, PROGRAM)
    one.settings["log"]["level"] = "debug"
    one.settings["origins"] = {"up": {"dialect": "openai", "url": f"http://127.0.0.1:{port}", "private": True}}
    one.settings["orgs"] = {
        org: {"origin": "up", "keys": [{"id": f"{org}-{i}", "secret": {"value": key}} for i, key in enumerate(keys)]}
        for org, keys in EmulatorSpec.uniform(ORGS, 3).keys().items()
    }
    one.settings["accounts"] = {"acme": {"keys": [{"id": "app", "value": KEY}]}}
    with Running("emulator", command, tmp_path / "emulator.log", cwd=ROOT) as upstream:
        upstream.wait_ready(port)
        try:
            await one.start()
            yield one
        finally:
            await one.end()


async def change(line: Installation, number: int) -> None:
    """One reload, of another setting each time."""
    orgs, last = line.settings["orgs"], f"org-{ORGS - 1}"
    changes: tuple[Callable[[], Any], ...] = (
        lambda: orgs["org-0"].update(weight=2 + number % 7),
        lambda: line.settings.update(retry={"attempts": 3 + number % 2}),
        lambda: orgs[last].update(disabled=not orgs[last].get("disabled")),
        lambda: orgs["org-1"]["keys"][0].update(disabled=not orgs["org-1"]["keys"][0].get("disabled")),
        lambda: line.settings.update(models={"aliases": {"fast": f"gpt-{number}"}}),
    )
    changes[number % len(changes)]()
    mark = len(line.lines)
    line.write()
    line.signal(signal.SIGHUP)
    await line.hears(r"settings read again: [1-9]\d* changed", mark)


async def restart(line: Installation, number: int) -> None:
    """One rolling restart: an upgrade of everything, or each worker in turn told to leave."""
    if number % 2 == 0:
        mark = len(line.lines)
        line.signal(signal.SIGUSR2)
        await line.hears("upgraded: all processes run the new program", mark)
    else:
        for pid in line.workers():
            os.kill(pid, signal.SIGTERM)
            await line.hears(rf"pid {pid}\) has finished")
    await line.settled()


async def loses_nothing(line: Installation, act: Callable[[Installation, int], Awaitable[None]], times: int) -> str:
    """Do it so many times under load; the figures, for who wants to read them."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with Calls(line.port, is_kept=True) as calls, Streams(line.port, is_kept=False) as streams:
        for number in range(times):
            await act(line, number)
        took, asked = loop.time() - began, calls.answered
    figures = (
        f"{act.__name__} × {times} in {took:.0f} s: {calls.answered} calls ({asked / took:.0f}/s) and "
        f"{streams.answered} streams answered, {len(calls.failures)} and {len(streams.failures)} failed"
    )
    failures = calls.failures + streams.failures
    assert not failures, f"{figures}: {failures[:5]}"
    assert asked > (took - 2) * RATE * 0.8, figures  # the first seconds connect
    assert streams.answered, figures
    return figures


async def test_no_call_is_lost_by_a_few(line: Installation) -> None:
    print(await loses_nothing(line, change, 5))
    before = {*line.workers(), line.keeper()}
    print(await loses_nothing(line, restart, 2))
    assert not before & {*line.workers(), line.keeper()}


@pytest.mark.slow
async def test_no_call_is_lost_by_a_hundred_reloads(line: Installation) -> None:
    print(await loses_nothing(line, change, 100))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
async def test_no_call_is_lost_by_twenty_restarts(line: Installation, part: int) -> None:
    """In four parts: a test that takes longer than three minutes is held to be stuck."""
    print(f"part {part}:", await loses_nothing(line, restart, 5))
