"""What clients see of upstream's faults: each kind injected into a tenth of the attempts, every body checked by digest.

    python -m bench.faults [--calls 10000] [--only 503,html_error] [--out FILE.json]

One organisation is healthy, nine are ill, at an upstream of their own. A client is served when it gets status 200 and
exactly the bytes the same call gets from upstream directly. Then everything goes down: how many attempts a call still
costs, how fast it is refused, how soon service is back. Attempts are counted by upstream and by Yugong; the larger
figure is taken.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import aiohttp
import uvloop

from bench import certificates, contenders, emulated
from bench.contenders import Proxy
from bench.emulated import Emulated

SHARE = 0.1
ILL = 9
AT_ONCE = 64
SHAPES = 32  # different calls; their direct answers are known before the run
FIRST_BYTE_SECONDS = 1.0
DOWN_SECONDS = 10.0
DOWN_RATE = 200.0
RECOVERY_STREAK = 50  # calls served in a row: service is back

_CUT = {"kind": "close_after", "share": 1.0}  # so that the next attempt meets the listener again

# Kinds of issue 2, deliverable 7: name → rules on the ill organisations; "streams": only streamed calls meet it.
FAULTS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "connect_refused": ([{"kind": "connect_refused"}, _CUT], "mixed"),
    "tls_error": ([{"kind": "tls_error"}, _CUT], "tls"),
    "reset": ([{"kind": "reset_before_head"}, {"kind": "reset_mid_head"}, {"kind": "close_before_head"}], "mixed"),
    "408": ([{"kind": "408"}], "mixed"),
    "409": ([{"kind": "409"}], "mixed"),
    "429": ([{"kind": "429_requests"}, {"kind": "429_tokens"}, {"kind": "429_slow_down"}], "mixed"),
    "429_quota": ([{"kind": "429_quota"}], "mixed"),
    "401": ([{"kind": "401"}], "mixed"),
    "500": ([{"kind": "500"}], "mixed"),
    "502": ([{"kind": "502"}], "mixed"),
    "503": ([{"kind": "503"}], "mixed"),
    "520-524": ([{"kind": f"52{digit}"} for digit in range(5)], "mixed"),
    "529": ([{"kind": "529"}], "mixed"),
    "html_error": ([{"kind": "html_error"}], "mixed"),
    "truncated": ([{"kind": "truncated_json"}], "unary"),
    "malformed": (
        [{"kind": f"malformed:{what}"} for what in ("status", "header", "both")] + [{"kind": "garbage"}],
        "mixed",
    ),
    "error_first_event": ([{"kind": "error_first_event"}], "streams"),
    "stuck_head": ([{"kind": "stuck_head"}], "mixed"),
}


@dataclass(slots=True)
class Verdict:
    """What became of the calls of one kind."""

    kind: str
    calls: int = 0
    served: int = 0
    attempts: int = 0
    struck: int = 0
    p99_ms: float = 0.0
    others: Counter[str] = field(default_factory=Counter)

    @property
    def served_share(self) -> float:
        """Of the clients, 0 to 1."""
        return self.served / max(1, self.calls)

    @property
    def attempts_per_call(self) -> float:
        """1 if nothing was ever tried again."""
        return self.attempts / max(1, self.calls)

    def line(self) -> str:
        """For a person."""
        held = self.served_share >= 0.9999 and self.attempts_per_call <= 1.25
        text = f"{self.kind:18} served {self.served_share:9.4%}  attempts/call {self.attempts_per_call:.3f}"
        text += f"  struck {self.struck:5}  p99 {self.p99_ms:7.1f} ms  {'pass' if held else 'FAIL'}"
        return f"{text}  {dict(self.others)}" if self.others else text


def bodies(shape: str) -> list[bytes]:
    """Different chat calls: whole answers, streams, and streams that ask for usage."""
    made = []
    for at in range(SHAPES):
        document: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": f"call number {at}"}]}
        streams = shape == "streams" or (shape != "unary" and at % 2 == 1)
        if streams:
            document["stream"] = True
            if at % 4 == 3:
                document["stream_options"] = {"include_usage": True}
        made.append(json.dumps(document).encode())
    return made


class Caller:
    """Calls one base URL with one key."""

    def __init__(self, session: aiohttp.ClientSession, base: str, key: str) -> None:
        self._session = session
        self._url = f"{base}/v1/chat/completions"
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    async def call(self, body: bytes) -> tuple[str, str]:
        """(status or the error's name, digest of the answer's body)."""
        try:
            async with self._session.post(self._url, data=body, headers=self._headers) as answer:
                data = await answer.read()
        except (TimeoutError, aiohttp.ClientError) as error:
            return type(error).__name__, ""
        return str(answer.status), hashlib.sha256(data).hexdigest()


async def _digests(session: aiohttp.ClientSession, upstream: Emulated, calls: list[bytes]) -> list[str]:
    caller = Caller(session, upstream.url, next(iter(upstream.keys.values()))[0])
    digests = []
    for body in calls:
        status, digest = await caller.call(body)
        if status != "200":
            raise SystemExit(f"the healthy upstream answers {status}")
        digests.append(digest)
    return digests


async def _drive(caller: Caller, calls: list[bytes], digests: list[str], verdict: Verdict, count: int) -> None:
    """`count` calls, AT_ONCE under way."""
    numbers = iter(range(count))
    latencies: list[float] = []

    async def one() -> None:
        for number in numbers:
            at = number % len(calls)
            start = perf_counter()
            status, digest = await caller.call(calls[at])
            latencies.append(perf_counter() - start)
            verdict.calls += 1
            if status == "200" and digest == digests[at]:
                verdict.served += 1
            else:
                verdict.others["wrong body" if status == "200" else status] += 1

    await asyncio.gather(*(one() for _ in range(AT_ONCE)))
    verdict.p99_ms = sorted(latencies)[int(0.99 * len(latencies))] * 1e3


class Stage:
    """Two upstreams, one healthy and one ill, and a Yugong before both."""

    def __init__(self, stack: ExitStack, folder: Path, *, tls: bool = False) -> None:
        folder.mkdir()
        made = certificates.make(folder, contenders.UPSTREAM_NAME) if tls else None
        healthy = {"orgs": [emulated.org("well")], "deterministic": True, "journal": ""}
        ill = {"orgs": [emulated.org(f"ill{at}") for at in range(ILL)], "deterministic": True, "journal": ""}
        self.well = stack.enter_context(Emulated(folder / "well", healthy))
        pair = (made.cert, made.key) if made else None
        self.ill = stack.enter_context(Emulated(folder / "ill", ill, tls=pair))
        bad: dict[str, Any] = {"dialect": "openai", "url": self.ill.url, "private": True}
        if made:
            bad |= {"ca_file": str(made.ca)}
        orgs = {name: emulated.as_org(name, keys, "bad") for name, keys in self.ill.keys.items()}
        orgs |= {name: emulated.as_org(name, keys, "good") for name, keys in self.well.keys.items()}
        good = {"dialect": "openai", "url": self.well.url, "private": True}
        settings = {
            "origins": {"good": good, "bad": bad},
            "orgs": orgs,
            "timeouts": {"first_byte": FIRST_BYTE_SECONDS},
        }
        self.proxy: Proxy = contenders.launch_yugong(folder, settings)
        stack.callback(self.proxy.stop)

    async def attempts(self, session: aiohttp.ClientSession) -> tuple[int, int]:
        """(attempts the upstreams saw, attempts Yugong counted), since their start."""
        seen = self.well.stats()["attempts"] + self.ill.stats()["attempts"]
        async with session.get(f"http://127.0.0.1:{self.proxy.admin_port}/metrics") as answer:
            text = await answer.text()
        counted = re.findall(r"^yugong_attempts_total\{[^}]*\} ([0-9.e+]+)", text, re.MULTILINE)
        return seen, int(sum(map(float, counted)))


async def kind(name: str, folder: Path, count: int) -> Verdict:
    """One kind of fault, against a fresh Yugong."""
    rules, shape = FAULTS[name]
    verdict, calls = Verdict(name), bodies(shape)
    with ExitStack() as stack:
        stage = Stage(stack, folder, tls=shape == "tls")
        async with _session() as session:
            digests = await _digests(session, stage.well, calls)
            share = SHARE * (ILL + 1) / ILL / sum(rule is not _CUT for rule in rules)
            stage.ill.set_faults([{"share": share, "seed": at, **rule} for at, rule in enumerate(rules)])
            before = await stage.attempts(session)
            caller = Caller(session, f"http://127.0.0.1:{stage.proxy.port}", contenders.CUSTOMER_KEY)
            await _drive(caller, calls, digests, verdict, count)
            await asyncio.sleep(1.5)  # the keeper's figures are a second old
            after = await stage.attempts(session)
            verdict.attempts = max(b - a for a, b in zip(before, after, strict=True))
            verdict.struck = sum(n for what, n in stage.ill.stats()["faults"].items() if what != "close_after")
    return verdict


@dataclass(slots=True)
class Down:
    """Everything down, and up again."""

    how: str
    calls: int
    attempts: int
    p99_ms: float
    recovery_s: float
    statuses: Counter[str]

    def line(self) -> str:
        """For a person."""
        amplification = self.attempts / max(1, self.calls)
        held = amplification <= 1.2 and self.p99_ms < 50 and self.recovery_s < 10 and "200" not in self.statuses
        text = f"all {self.how:14} amplification {amplification:.3f}  refusals p99 {self.p99_ms:.1f} ms"
        return f"{text}  back after {self.recovery_s:.2f} s  {'pass' if held else 'FAIL'}  {dict(self.statuses)}"


async def down(how: str, folder: Path) -> Down:
    """All upstreams fail as `how` says for DOWN_SECONDS, at DOWN_RATE calls a second; then all is well again."""
    body, latencies, statuses = bodies("unary")[0], [], Counter[str]()
    with ExitStack() as stack:
        stage = Stage(stack, folder)
        async with _session() as session:
            caller = Caller(session, f"http://127.0.0.1:{stage.proxy.port}", contenders.CUSTOMER_KEY)
            for _ in range(20):
                await caller.call(body)
            await asyncio.sleep(1.5)
            before = await stage.attempts(session)

            async def one() -> None:
                start = perf_counter()
                statuses[(await caller.call(body))[0]] += 1
                latencies.append(perf_counter() - start)

            _switch(stage, how, up=False)
            begin, tasks = perf_counter(), []
            for number in range(int(DOWN_SECONDS * DOWN_RATE)):
                await asyncio.sleep(max(0.0, begin + number / DOWN_RATE - perf_counter()))
                tasks.append(asyncio.create_task(one()))
            await asyncio.gather(*tasks)
            await asyncio.sleep(1.5)
            after = await stage.attempts(session)
            _switch(stage, how, up=True)
            recovery = await _recovery(caller, body)
    attempts = max(b - a for a, b in zip(before, after, strict=True))
    p99 = sorted(latencies)[int(0.99 * len(latencies))] * 1e3
    return Down(how, len(latencies), attempts, p99, recovery, statuses)


def _switch(stage: Stage, how: str, *, up: bool) -> None:
    for upstream in (stage.well, stage.ill):
        if how == "refused":
            upstream.set_listener("open" if up else "closed")
        else:
            upstream.set_faults([] if up else [{"kind": how, "share": 1.0}])


async def _recovery(caller: Caller, body: bytes) -> float:
    """Seconds until the first of a streak of served calls; 60 if there is none by then."""
    begin = perf_counter()
    since, streak = begin, 0
    while streak < RECOVERY_STREAK and perf_counter() - begin < 60:
        moment = perf_counter()
        status, _ = await caller.call(body)
        if status != "200":
            streak = 0
        else:
            since = moment if streak == 0 else since
            streak += 1
        await asyncio.sleep(0.01)
    return since - begin if streak >= RECOVERY_STREAK else 60.0


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=60))


async def _run(names: list[str], count: int, *, with_down: bool) -> dict[str, Any]:
    verdicts, downs = [], []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name in names:
            verdicts.append(await kind(name, Path(folder) / name, count))
            print(verdicts[-1].line(), flush=True)
        for how in ("503", "refused") if with_down else ():
            downs.append(await down(how, Path(folder) / f"all-{how}"))
            print(downs[-1].line(), flush=True)
    return {"faults": [asdict(verdict) for verdict in verdicts], "down": [asdict(each) for each in downs]}


def main() -> int:
    """0 when it could all be run, whatever came out."""
    options = argparse.ArgumentParser(prog="bench.faults")
    options.add_argument("--calls", type=int, default=10_000, help="of each kind")
    options.add_argument("--only", default="", help=f"kinds, separated by commas, of: down, {', '.join(FAULTS)}")
    options.add_argument("--out", type=Path, help="write the figures here, JSON")
    given = options.parse_args()
    wanted = [name for name in given.only.split(",") if name]
    names = [name for name in wanted if name != "down"] if wanted else list(FAULTS)
    found = uvloop.run(_run(names, given.calls, with_down=not wanted or "down" in wanted))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1, default=str) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
