"""The journal adds up, can be read while it grows, and survives; the control plane tells and steers."""

import asyncio
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from tests.emulator.conftest import BODY, Serve, ask
from yugong.emulator import Emulator, EmulatorSpec, FaultRule, Limits, OrgSpec
from yugong.emulator.control import is_loopback
from yugong.emulator.journal import Journal


async def load(emulator: Emulator, calls: int) -> list[int]:
    """Calls over all keys at once; the statuses the clients saw (0 = none)."""
    keys = [key for org in emulator.spec.orgs for key in org.keys]
    async with aiohttp.ClientSession() as client:

        async def call(i: int) -> int:
            headers = {"Authorization": f"Bearer {keys[i % len(keys)]}", "x-emulator-call": str(i)}
            body = BODY | {"stream": bool(i % 2), "max_tokens": 5}
            try:
                async with client.post(f"{emulator.url}/v1/chat/completions", json=body, headers=headers) as answer:
                    await answer.read()
                    return answer.status
            except aiohttp.ClientError:
                return 0

        return await asyncio.gather(*(call(i) for i in range(calls)))


async def test_the_journal_adds_up(serve: Serve) -> None:
    faults = (FaultRule("500", 0.1, seed=1), FaultRule("cut_stream:2", 0.1, seed=2), FaultRule("401", 0.02, seed=3))
    spec = EmulatorSpec.uniform(3, 2, Limits(rpm=40), faults=faults)
    emulator = await serve(spec)
    seen = Counter(await load(emulator, 200))
    await emulator.idle()
    lines = emulator.journal.lines()
    assert len(lines) == emulator.attempts == 200
    assert sorted(int(line["call"]) for line in lines) == list(range(200))
    assert Counter(line["status"] for line in lines)[429] == seen[429] > 0
    cut = sum(line["fault"] == "cut_stream" for line in lines)
    assert Counter(line["status"] for line in lines)[200] == seen[200] + cut
    stats = emulator.stats()
    assert stats["in_flight"] == 0
    for name, org in stats["orgs"].items():
        mine = [line for line in lines if line["org"] == name]
        assert org["attempts"] == len(mine)
        assert org["statuses"] == {str(k): n for k, n in sorted(Counter(line["status"] for line in mine).items())}
        billed: Counter[str] = Counter()
        for line in mine:
            billed.update(line["usage"] or {})
        assert org["billed"] == billed
        group = org["groups"]["default"]
        assert group["most_requests_a_minute"] == 40
        assert group["above_limits"] is True
        assert group["in_flight"] == 0
        assert sum(group["refused"].values()) == org["statuses"]["429"]
    assert stats["faults"] == Counter(line["fault"] for line in lines if line["fault"])


def test_places_are_bytes_and_lines_are_whole(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    journal = Journal(path, fsync=True)
    journal.append({"n": 1})
    first = journal.read()
    assert first == b'{"n":1}\n'
    journal.append({"n": 2})
    assert journal.read(len(first)) == b'{"n":2}\n'
    assert journal.read(0, limit=12) == first
    journal.close()
    again = Journal(path)
    again.append({"n": 3})
    assert [line["n"] for line in again.lines()] == [1, 2, 3]
    again.close()


def test_a_full_journal_counts_what_it_drops() -> None:
    journal = Journal(None, max_bytes=20)
    for n in range(5):
        journal.append({"n": n})
    assert (len(journal.lines()), journal.dropped) == (2, 3)
    path = journal.path
    journal.close()
    assert not os.path.exists(path)
    off = Journal("")
    off.append({})
    assert (off.lines(), off.is_open, repr(off)) == ([], False, "<Journal off size=0 dropped=0>")


@pytest.fixture
async def control(serve: Serve) -> Any:
    emulator = await serve(EmulatorSpec(orgs=(OrgSpec("a", ("ka",)), OrgSpec("b", ("kb",)))))
    async with aiohttp.ClientSession() as client:

        async def steer(method: str, path: str, document: Any = None, own: bool = True) -> tuple[int, Any]:
            assert emulator.control
            base = emulator.control.url if own else emulator.url
            async with client.request(method, f"{base}/_emulator/{path}", json=document) as answer:
                data = await answer.read()
                is_json = answer.content_type == "application/json"
                return answer.status, orjson.loads(data) if is_json else (data, answer.headers["x-journal-next"])

        yield emulator, steer


async def test_control(control: Any) -> None:
    emulator, steer = control
    assert await steer("GET", "health", own=False) == (200, {"ok": True})
    assert (await steer("GET", "keys"))[1] == {"a": ["ka"], "b": ["kb"]}
    rules = {"faults": [{"kind": "500", "orgs": ["b"], "count": 1}]}
    assert await steer("POST", "faults", rules) == (200, {"rules": 1})
    statuses = [(await ask(emulator, key=key)).status for key in ("ka", "kb", "kb")]
    assert statuses == [200, 500, 200]
    told = (await steer("GET", "faults"))[1]
    assert told["rules"] == [{"kind": "500", "share": 1.0, "struck": 1, "left": 0}]
    assert told["kinds"]["stuck_head"]["stage"] == "head"
    data, place = (await steer("GET", "journal"))[1]
    assert len(data.splitlines()) == 3
    assert (await steer("GET", f"journal?since={place}"))[1] == (b"", place)
    stats = (await steer("GET", "stats", own=False))[1]
    assert stats["orgs"]["b"]["statuses"] == {"200": 1, "500": 1}
    assert emulator.attempts == 3  # steering is no attempt


async def test_control_steers_listeners(control: Any) -> None:
    emulator, steer = control
    assert (await steer("POST", "listeners", {"mode": "closed"}))[1] == [{"url": emulator.url, "mode": "closed"}]
    with pytest.raises(ConnectionRefusedError):
        await ask(emulator)
    await steer("POST", "listeners", {"listener": 0, "mode": "open"})
    assert (await ask(emulator)).status == 200


@pytest.mark.parametrize(
    ("method", "path", "document", "status"),
    [
        ("GET", "nothing", None, 404),
        ("POST", "faults", {"faults": [{"kind": "sneeze"}]}, 400),
        ("POST", "faults", {"faults": [{"kid": "500"}]}, 400),
        ("POST", "faults", {}, 400),
        ("POST", "listeners", {"listener": 9, "mode": "open"}, 400),
        ("POST", "listeners", {"mode": "sulking"}, 400),
        ("GET", "journal?since=x", None, 400),
    ],
)
async def test_control_refuses(control: Any, method: str, path: str, document: Any, status: int) -> None:
    _, steer = control
    told, answer = await steer(method, path, document)
    assert told == status
    assert answer["error"]


def test_who_may_steer() -> None:
    peers = ("127.0.0.1", "::1", "10.0.0.1", "", None)
    assert [is_loopback(peer) for peer in peers] == [True, True, False, False, False]


async def launch(*options: str) -> tuple[asyncio.subprocess.Process, dict[str, Any]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "yugong.emulator",
        *options,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout
    line = await asyncio.wait_for(process.stdout.readline(), 20)
    return process, orjson.loads(line) if line else {}


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_a_process_of_its_own(tmp_path: Path, end: signal.Signals) -> None:
    path = tmp_path / "journal"
    process, ready = await launch("--orgs", "2", "--keys", "3", "--rpm", "60", "--journal", str(path), "--pieces", "2")
    try:
        assert [len(keys) for keys in ready["keys"].values()] == [3, 3]
        headers = {"Authorization": f"Bearer {ready['keys']['org-1'][2]}"}
        async with aiohttp.ClientSession() as client:
            async with client.post(f"{ready['url']}/v1/chat/completions", json=BODY, headers=headers) as answer:
                assert (await answer.json())["usage"]["completion_tokens"] == 2
            async with client.get(f"{ready['control']}/_emulator/stats") as answer:
                assert (await answer.json())["attempts"] == 1
    finally:
        process.send_signal(end)
        _, errors = await process.communicate()
    assert process.returncode == (0 if end is signal.SIGTERM else -signal.SIGKILL)
    assert errors == b""
    lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    assert [(line["key"], line["usage"]["output"]) for line in lines] == [("org-1/2", 2)]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--spec", "SPEC"), 2, "unknown piece"),
        (("--fault", "sneeze@0.5"), 2, "unknown fault 'sneeze'"),
        (("--spec", "/nowhere.json"), 69, "No such file"),
        (("--journal", "/nowhere/at/all"), 69, "No such file"),
    ],
)
async def test_what_is_wrong_is_said_on_stderr(tmp_path: Path, options: tuple[str, ...], code: int, words: str) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text('{"piece": 1}')
    process, ready = await launch(*(str(spec) if option == "SPEC" else option for option in options))
    _, errors = await process.communicate()
    assert (process.returncode, ready) == (code, {})
    assert words in errors.decode()
    assert "Traceback" not in errors.decode()
