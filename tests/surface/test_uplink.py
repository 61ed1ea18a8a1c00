"""A process' connection to the keeper, over a real local socket."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import orjson
import pytest

from yugong.store.channel import LINES, Channel, listen_local
from yugong.surface import uplink as module
from yugong.surface.accesslog import AccessLog
from yugong.surface.meters import Registry
from yugong.surface.metrics import Meters
from yugong.surface.uplink import Uplink, count_process


class Keeper:
    """Takes connections and keeps what it hears."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.channels: list[Channel] = []
        self.messages: asyncio.Queue[Any] = asyncio.Queue()
        self.lines: asyncio.Queue[bytes] = asyncio.Queue()
        self.sock: socket.socket | None = None

    def open(self) -> None:
        self.sock = listen_local(self.path)
        asyncio.get_running_loop().add_reader(self.sock.fileno(), self.welcome)

    def welcome(self) -> None:
        assert self.sock is not None
        channel = Channel(self.sock.accept()[0], self.hear, lambda channel: self.messages.put_nowait("gone"))
        channel.attach(asyncio.get_running_loop())
        self.channels.append(channel)

    def hear(self, channel: Channel, kind: bytes, payload: bytes) -> None:
        if kind == LINES:
            self.lines.put_nowait(payload)
        else:
            self.messages.put_nowait(orjson.loads(payload))

    async def until(self, wanted: Any) -> Any:
        async with asyncio.timeout(10):
            while True:
                message = await self.messages.get()
                if wanted(message):
                    return message

    def close(self) -> None:
        if self.sock is not None:
            asyncio.get_running_loop().remove_reader(self.sock.fileno())
            self.sock.close()
        for channel in self.channels:
            channel.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK", 0.01)


@pytest.mark.usefixtures("quick")
async def test_reports_and_lines_arrive_and_the_last_ones_too(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "keeper.sock")
    keeper.open()
    registry = Registry()
    meters = Meters(registry)
    uplink = Uplink(keeper.path, "worker-0:1", "worker-0", registry)
    uplink.lines = AccessLog(meters.access_log_dropped)
    uplink.stats = lambda: {"well": True}
    uplink.lines._lines, uplink.lines._size = [b"one\n"], 4
    task = asyncio.ensure_future(uplink.run())
    assert await keeper.until(lambda m: "process" in m) == {"process": "worker-0:1"}
    first = await keeper.until(lambda m: m.get("end"))
    assert first["stats"] == {"well": True}
    assert await asyncio.wait_for(keeper.lines.get(), 10) == b"one\n"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    meters.attempts.labels("org", "ok").value = 5
    uplink.lines._lines, uplink.lines._size = [b"two\n"], 4
    await uplink.close()
    new = await keeper.until(lambda m: m["new"])
    assert new["new"][0][1:] == ["yugong_attempts_total", ["org", "ok"]]
    assert new["set"][-1][1] == 5
    assert await asyncio.wait_for(keeper.lines.get(), 10) == b"two\n"
    await keeper.until(lambda m: m == "gone")
    keeper.close()


@pytest.mark.usefixtures("quick")
async def test_a_keeper_that_comes_later_or_again_hears_everything(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "keeper.sock")
    registry = Registry()
    Meters(registry).attempts.labels("org", "ok").value = 5
    uplink = Uplink(keeper.path, "w:1", "w", registry)
    task = asyncio.ensure_future(uplink.run())
    await asyncio.sleep(0)
    keeper.open()
    for _ in range(2):
        await keeper.until(lambda m: m == {"process": "w:1"})
        names = (await keeper.until(lambda m: m.get("new")))["new"]
        assert "yugong_attempts_total" in [name for _, name, _ in names]
        keeper.channels[-1].send({"op": "bye"})
        await keeper.until(lambda m: m == "gone")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await uplink.close()
    keeper.close()


@pytest.mark.usefixtures("quick")
async def test_a_keeper_that_hears_nothing_is_not_sent_more_than_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEHIND", 100_000)
    sock = listen_local(tmp_path / "keeper.sock")
    registry = Registry()
    meters = Meters(registry)
    uplink = Uplink(tmp_path / "keeper.sock", "w:1", "w", registry)
    uplink.lines = lines = AccessLog(meters.access_log_dropped)
    assert uplink._connect()
    for _ in range(100):
        lines._lines.append(b"x" * 99_999 + b"\n")
        lines._size += 100_000
        uplink.hand_over()
        await uplink.report()
    assert uplink._channel is not None
    assert uplink._channel.waiting < 300_000
    assert lines.size > 5_000_000
    monkeypatch.setattr(module, "LAST_WORDS", 0.05)
    await uplink.close()
    sock.close()


async def test_a_process_knows_its_own_figures() -> None:
    registry = Registry()
    count_process(registry, "worker-0")
    values = {spec.name: (labels, value) for spec, labels, value in registry.values()}
    assert values["yugong_process_resident_bytes"][1] > 10_000_000
    assert values["yugong_process_open_fds"][1] >= 3
    assert values["yugong_process_tasks"][1] >= 1
    assert values["yugong_process_cpu_seconds_total"] == (("worker-0",), pytest.approx(1, abs=1e4))
    assert values["yugong_build_info"][1] == 1
