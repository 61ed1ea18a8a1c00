"""Processes come and go; calls do not notice. The line is a stand-in (standin.py), all else is real."""

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from tests.system.conftest import PATIENCE, Installation, Load, ask, children_of, eventually, hang_up, is_alive


async def test_a_killed_worker_is_replaced_and_the_other_serves_on(running: Installation) -> None:
    victim, other = running.workers()
    os.kill(victim, signal.SIGKILL)
    await running.hears(rf"worker-\d \(pid {victim}\) is gone: killed by SIGKILL; starting another one|another one in")
    assert (await running.ask("/fast")).status == 200
    await running.settled()
    assert other in running.workers()
    names = {process.partition(":")[0] for process in (await running.readyz())["processes"]}
    assert names == {"worker-0", "worker-1"}, "the dead one's row is used again"


async def test_an_upgrade_loses_no_call_and_replaces_every_process(running: Installation) -> None:
    before = {*running.workers(), running.keeper()}
    stream = asyncio.ensure_future(running.ask("/stream?n=40&gap=0.1"))
    async with Load(running.port, is_kept=False) as fresh, Load(running.port, is_kept=True) as kept:
        running.signal(signal.SIGUSR2)
        await running.hears("upgraded: all processes run the new program")
        await running.settled()
    assert fresh.failures == kept.failures == []
    assert min(fresh.answered, kept.answered) > 20
    assert (await stream).body.count(b"\n") >= 40
    assert not before & set(children_of(running.pid))
    assert (await running.scrape())['yugong_process_starts_total{reason="rolling",role="worker"}'] == 2
    running.signal(signal.SIGTERM)
    assert await running.wait() == 0


async def test_an_upgrade_that_would_not_start_is_not_begun(running: Installation) -> None:
    before = running.workers()
    running.path.write_text("listen: {workers: many}")
    running.signal(signal.SIGUSR2)
    await running.hears("upgrade: it does not start, this one goes on")
    assert running.workers() == before
    assert (await running.ask("/fast")).status == 200


async def test_a_worker_told_to_leave_is_succeeded_first(installation: Installation) -> None:
    installation.settings["listen"]["workers"] = 1
    await installation.start()
    (old,) = installation.workers()
    async with Load(installation.port, is_kept=False) as fresh, Load(installation.port, is_kept=True) as kept:
        os.kill(old, signal.SIGTERM)
        await installation.hears(rf"pid {old}\) has finished")
    await installation.settled(1)
    assert fresh.failures == kept.failures == []
    assert installation.workers() != [old]


async def test_stopping_finishes_calls_and_lets_nobody_in(running: Installation) -> None:
    slow = asyncio.ensure_future(running.ask("/slow?seconds=8"))

    async def is_under_way() -> bool:
        lines = (await running.readyz())["lines"].values()
        return any(line["in_flight"] for line in lines)

    await eventually(is_under_way, "a call under way")
    async with Load(running.port, is_kept=False) as fresh, Load(running.port, is_kept=True) as kept:
        running.signal(signal.SIGTERM)
        await running.hears("stopping")
        await eventually(lambda: is_refused(running.port), "refused")
        assert not slow.done()
        with pytest.raises(AssertionError):
            assert (await running.readyz())["ready"]
    assert (await slow).status == 200
    assert await running.wait() == 0
    assert {failure.partition(":")[0] for failure in fresh.failures + kept.failures} <= {"ConnectionRefusedError"}
    assert running.lines[-1].endswith("stopped")


async def is_refused(port: int) -> bool:
    try:
        await asyncio.wait_for(ask("127.0.0.1", port, "/fast"), 5)
    except ConnectionRefusedError:
        return True
    return False


async def test_told_twice_it_stops_at_once(running: Installation) -> None:
    slow = asyncio.ensure_future(running.ask("/slow?seconds=3600"))
    await asyncio.wait({slow}, timeout=0.3)
    running.signal(signal.SIGINT)
    await running.hears("stopping")
    running.signal(signal.SIGINT)
    assert await running.wait() == 0
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await slow


async def test_nobody_is_orphaned_by_a_killed_supervisor(running: Installation) -> None:
    children = children_of(running.pid)
    assert len(children) == 3
    slow = asyncio.ensure_future(running.ask("/slow?seconds=1"))
    await asyncio.wait({slow}, timeout=0.3)
    running.signal(signal.SIGKILL)
    assert (await slow).status == 200, "what is under way is finished"

    async def are_gone() -> bool:
        return not any(map(is_alive, children))

    await eventually(are_gone, "no orphan")
    assert await is_refused(running.port)


async def test_counters_never_go_backwards(running: Installation) -> None:
    """A killed worker, a killed keeper, an upgrade: a scraper sees no reset.

    But for what a keeper counts of itself (its processor time, the lines it wrote): killed by SIGKILL, it takes what it
    had not yet handed over with it, and Prometheus sees a reset of those.
    """
    seen: list[dict[str, float]] = []
    is_over = asyncio.Event()

    async def scrape() -> None:
        while not is_over.is_set():
            try:
                seen.append(await running.scrape())
            except ConnectionRefusedError as error:  # the socket is the supervisor's: it never closes
                raise AssertionError("a scrape was refused") from error
            except ConnectionResetError:
                pass  # the keeper was killed with this one in its hands
            await asyncio.sleep(0.1)

    scraper = asyncio.ensure_future(scrape())
    async with Load(running.port, is_kept=False):
        os.kill(running.workers()[0], signal.SIGKILL)
        await running.settled()
        os.kill(running.keeper(), signal.SIGKILL)
        await running.hears("keeper .* is gone: killed by SIGKILL")
        await running.settled()
        running.signal(signal.SIGUSR2)
        await running.hears("upgraded")
        await running.settled()
    is_over.set()
    await scraper
    monotone = [name for name in seen[-1] if "_total" in name or "_bucket" in name or "_count" in name]
    assert any(name.startswith("yugong_calls_total") for name in monotone)
    for name in monotone:
        if 'process="keeper"' in name or name.startswith("yugong_access_log"):
            continue
        values = [sample[name] for sample in seen if name in sample]
        assert values == sorted(values), name


async def test_every_call_has_its_line_in_the_access_log(running: Installation, tmp_path: Path) -> None:
    log, rotated = tmp_path / "access.log", tmp_path / "access.log.1"
    async with Load(running.port, is_kept=False) as load:
        running.signal(signal.SIGUSR2)
        await running.hears("upgraded")
        log.rename(rotated)
        mark = len(running.lines)
        running.signal(signal.SIGHUP)
        await running.hears("settings read again", mark)
    running.signal(signal.SIGTERM)
    assert await running.wait() == 0
    lines = rotated.read_text().splitlines() + log.read_text().splitlines()
    calls = [json.loads(line) for line in lines]
    assert len(calls) == load.answered
    assert {call["path"] for call in calls} == {"/fast"}


async def test_a_unix_socket_beside_the_port(installation: Installation, tmp_path: Path) -> None:
    installation.settings["listen"]["unix"] = str(tmp_path / "y.sock")
    await installation.start()
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "y.sock"))
    writer.write(b"GET /fast HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (await asyncio.wait_for(reader.read(), PATIENCE)).startswith(b"HTTP/1.1 200")
    await hang_up(writer)
    installation.signal(signal.SIGTERM)
    assert await installation.wait() == 0
    assert not (tmp_path / "y.sock").exists()


async def test_upgrades_in_a_row_under_load(installation: Installation) -> None:
    installation.settings["listen"]["workers"] = 1
    await installation.start()
    stream = asyncio.ensure_future(installation.ask("/stream?n=100&gap=0.1"))
    async with Load(installation.port, is_kept=False) as fresh, Load(installation.port, is_kept=True) as kept:
        for _ in range(5):
            mark = len(installation.lines)
            installation.signal(signal.SIGUSR2)
            await installation.hears("upgraded", mark)
    assert fresh.failures == kept.failures == []
    assert (await stream).body.count(b"\n") >= 100
