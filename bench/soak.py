"""Half an hour of everything at once, and whether memory, descriptors and tasks stay flat.

    python -m bench.soak [--minutes 30] [--workers 1] [--out FILE.json]

Whole answers, streams, clients that leave in the middle, faults of upstream, uploads and WebSockets against a Yugong in
front of the emulator. Every ten seconds each process' resident memory and descriptors are read from the operating
system and its tasks from /metrics; after the first five minutes (or the first sixth) a line is laid through them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import aiohttp
import uvloop

from bench import contenders, emulated, processes
from bench.contenders import Proxy
from bench.emulated import Emulated

EVERY_SECONDS = 10.0
WARM_SECONDS = 300.0
ORGS = 10
UPLOAD = b"\x00soak" * 400_000  # 2 MB: over the size that stays in memory
# What grows by less than this over the measured part is flat: the larger of a share of the mean and an amount.
FLAT_SHARE = 0.03
FLAT_AMOUNT = {"rss_mb": 3.0, "fds": 8.0, "tasks": 8.0}


class Load:
    """The mixed load: each kind at a rate of its own, for as long as it lasts."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session = session
        self._base = base
        self._rng = random.Random(1)
        self._headers = {"Authorization": f"Bearer {contenders.CUSTOMER_KEY}"}
        self.done: Counter[str] = Counter()

    async def keep(self, name: str, rate: float, act: Callable[[], Awaitable[str]], until: float) -> None:
        """Start `act` at `rate` a second until `until` (perf_counter); count what became of it."""
        under_way: set[asyncio.Task[None]] = set()

        async def one() -> None:
            try:
                became = await act()
            except aiohttp.WSServerHandshakeError as error:
                became = f"refused {error.status}"
            except (TimeoutError, aiohttp.ClientError) as error:
                became = type(error).__name__
            self.done[f"{name} {became}"] += 1

        while perf_counter() < until:
            task = asyncio.create_task(one())
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            await asyncio.sleep(self._rng.expovariate(rate))
        if under_way:
            await asyncio.wait(under_way, timeout=30)

    def _post(self, document: dict[str, Any], **headers: str) -> Any:
        document = {
            "model": "gpt-4o",
            "messages": [{"role": "user", "content": f"soak {self._rng.random()}"}],
            **document,
        }
        return self._session.post(
            f"{self._base}/v1/chat/completions",
            json=document,
            headers={**self._headers, **{name.replace("_", "-"): value for name, value in headers.items()}},
        )

    async def unary(self) -> str:
        """A whole answer."""
        async with self._post({}) as answer:
            await answer.read()
            return str(answer.status)

    async def stream(self) -> str:
        """A stream of 50 events in about a second, read to its end."""
        async with self._post({"stream": True}, x_emulator_pace="events=50,interval_ms=20") as answer:
            data = await answer.read()
            return "whole" if data.endswith(b"data: [DONE]\n\n") else f"{answer.status} cut"

    async def leave(self) -> str:
        """A stream that the client leaves after a moment."""
        async with self._post({"stream": True}, x_emulator_pace="events=200,interval_ms=20") as answer:
            await answer.content.readany()
            answer.close()
            return str(answer.status)

    async def fault(self) -> str:
        """A fault of upstream, mostly one that strikes the first attempt only."""
        kind = self._rng.choice(
            ("500", "503", "html_error", "reset_before_head", "truncated_json", "400", "cut_stream:3")
        )
        async with self._post({"stream": kind.startswith("cut")}, x_emulator_fault=f"{kind};times=1") as answer:
            await answer.read()
            return f"{kind} {answer.status}"

    async def stranger(self) -> str:
        """A customer key nobody knows."""
        wrong = {"Authorization": f"Bearer sk-{self._rng.random()}"}
        async with self._session.get(f"{self._base}/v1/models", headers=wrong) as answer:
            await answer.read()
            return str(answer.status)

    async def upload(self) -> str:
        """A file of 2 MB as a form."""
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", UPLOAD, filename="soak.jsonl", content_type="application/jsonl")
        async with self._session.post(f"{self._base}/v1/files", data=form, headers=self._headers) as answer:
            await answer.read()
            return str(answer.status)

    async def websocket(self) -> str:
        """A realtime session: one message up, what comes within a second down, and closed."""
        url = f"{self._base}/v1/realtime?model=gpt-realtime"
        async with self._session.ws_connect(url, headers=self._headers) as socket:
            await socket.send_str('{"type":"response.create"}')
            message = await socket.receive(timeout=5)
            return message.type.name


RATES: dict[str, float] = {
    "unary": 100,
    "stream": 30,
    "leave": 5,
    "fault": 5,
    "stranger": 2,
    "upload": 1,
    "websocket": 1,
}


@dataclass(slots=True)
class Course:
    """One quantity of one process over the run."""

    process: str
    quantity: str
    seconds: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def settled(self, warm: float) -> tuple[list[float], list[float]]:
        """The samples after `warm` seconds."""
        kept = [(at, value) for at, value in zip(self.seconds, self.values, strict=True) if at >= warm]
        return [at for at, _ in kept], [value for _, value in kept]

    def growth(self, warm: float) -> float:
        """What the fitted line rises from `warm` to the end."""
        seconds, values = self.settled(warm)
        if len(values) < 3:
            return 0.0
        return statistics.linear_regression(seconds, values).slope * (seconds[-1] - seconds[0])

    def line(self, warm: float) -> str:
        """For a person."""
        seconds, values = self.settled(warm)
        if len(values) < 3:
            return f"{self.process:24} {self.quantity:8} too few samples"
        growth, mean = self.growth(warm), statistics.mean(values)
        flat = growth <= max(FLAT_SHARE * mean, FLAT_AMOUNT[self.quantity])
        hourly = growth / (seconds[-1] - seconds[0]) * 3600
        text = f"{self.process:24} {self.quantity:8} mean {mean:9.1f}  first {values[0]:9.1f}  last {values[-1]:9.1f}"
        return f"{text}  slope {hourly:+8.2f}/h  {'flat' if flat else 'GROWS'}"


async def watch(
    session: aiohttp.ClientSession, proxy: Proxy, courses: dict[tuple[str, str], Course], until: float
) -> None:
    """Sample every process of Yugong until `until`."""
    begin = perf_counter()
    while perf_counter() < until:
        at = perf_counter() - begin
        found: dict[tuple[str, str], float] = {}
        for pid, role in proxy.roles().items():
            found[f"{role} {pid}", "rss_mb"] = processes.rss_bytes(pid) / 1e6
            found[f"{role} {pid}", "fds"] = processes.descriptors(pid)
        found |= await _tasks(session, proxy)
        for (process, quantity), value in found.items():
            course = courses.setdefault((process, quantity), Course(process, quantity))
            course.seconds.append(at)
            course.values.append(value)
        _say(at, found)
        await asyncio.sleep(EVERY_SECONDS)


async def _tasks(session: aiohttp.ClientSession, proxy: Proxy) -> dict[tuple[str, str], float]:
    try:
        async with session.get(f"http://127.0.0.1:{proxy.admin_port}/metrics") as answer:
            text = await answer.text()
    except aiohttp.ClientError:
        return {}
    found = re.findall(r'^yugong_process_tasks\{process="([^"]*)"\} ([0-9.e+]+)', text, re.MULTILINE)
    return {(f"metrics {name}", "tasks"): float(value) for name, value in found}


def _say(at: float, found: dict[tuple[str, str], float]) -> None:
    words = [f"{process} {quantity} {value:.1f}" for (process, quantity), value in found.items()]
    print(f"{at:6.0f} s  {'; '.join(words)}", file=sys.stderr, flush=True)


async def run(seconds: float, workers: int, folder: Path) -> tuple[dict[tuple[str, str], Course], Counter[str]]:
    """The whole soak: (courses, what became of the calls)."""
    courses: dict[tuple[str, str], Course] = {}
    with ExitStack() as stack:
        spec = {"orgs": [emulated.org(f"org{at}") for at in range(ORGS)], "journal": ""}
        upstream = stack.enter_context(Emulated(folder / "emulator", spec))
        orgs = {name: emulated.as_org(name, keys, "emulator") for name, keys in upstream.keys.items()}
        origins = {"emulator": {"dialect": "openai", "url": upstream.url, "private": True}}
        settings = {"listen": {"workers": workers}, "origins": origins, "orgs": orgs}
        proxy = contenders.launch_yugong(folder, settings)
        stack.callback(proxy.stop)
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            load = Load(session, f"http://127.0.0.1:{proxy.port}")
            until = perf_counter() + seconds
            kept = [load.keep(name, rate, getattr(load, name), until) for name, rate in RATES.items()]
            await asyncio.gather(watch(session, proxy, courses, until), *kept)
    return courses, load.done


def report(courses: Sequence[Course], done: Counter[str], seconds: float) -> list[str]:
    """Lines for a person: what was done, then each course."""
    warm = min(WARM_SECONDS, seconds / 6)
    lines = [f"{what:40} {count:8}" for what, count in sorted(done.items())]
    return [*lines, "", *(course.line(warm) for course in courses)]


def main() -> int:
    """0 when it could be run, whatever came out."""
    options = argparse.ArgumentParser(prog="bench.soak")
    options.add_argument("--minutes", type=float, default=30.0)
    options.add_argument("--workers", type=int, default=1)
    options.add_argument("--out", type=Path, help="write every sample here, JSON")
    given = options.parse_args()
    seconds = given.minutes * 60
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        courses, done = uvloop.run(run(seconds, given.workers, Path(folder)))
    print("\n".join(report(list(courses.values()), done, seconds)))
    if given.out:
        samples = [
            {"process": c.process, "quantity": c.quantity, "at": c.seconds, "values": c.values}
            for c in courses.values()
        ]
        given.out.write_text(json.dumps({"done": done, "courses": samples}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
