"""Settings change while it runs: taken where they are right, kept as they were where not."""

import os
import signal
import socket
from typing import Any

import pytest

from tests.system.conftest import Installation, Load, eventually


async def attempts(running: Installation) -> set[str]:
    """What the workers that answer live by."""
    return {(await running.ask("/settings")).text for _ in range(8)}


async def test_a_changed_file_is_taken_and_said(running: Installation) -> None:
    before = running.workers()
    running.settings["retry"] = {"attempts": 7}
    running.write()
    await running.hears("retry.attempts changed: 5 → 7")
    await running.hears("settings read again: 1 changed")
    assert await attempts(running) == {"7"}
    assert running.workers() == before
    detail = (await running.readyz())["settings"]
    assert (detail["revision"], detail["last_reload"]) == (2, "taken")


async def test_wrong_settings_change_nothing_and_every_problem_is_said(running: Installation) -> None:
    running.path.write_text("listen: {workers: many, adress: 'x'}\nretry: {attempts: 99}\n")
    await running.hears(r"yugong.yaml:1:\d+: .*adress")
    await running.hears(r"yugong.yaml:2:\d+: ")
    await running.hears("the new settings are not taken; the old ones stay in force")
    assert await attempts(running) == {"5"}
    assert (await running.readyz())["settings"]["problems"] == 3
    running.settings["retry"] = {"attempts": 3}
    running.write()
    await running.hears("settings read again: 1 changed")
    assert await attempts(running) == {"3"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"origins": {"unloadable": {"dialect": "openai", "url": "https://127.0.0.1", "private": True}}},
            "made not to load",
        ),
        ({"data_dir": "/tmp/elsewhere"}, "data_dir cannot change while we run"),
        (
            {"accounts": {"a": {"keys": [{"id": "k", "value": {"env": "NOT_SET"}}]}}},
            "the environment has neither NOT_SET nor NOT_SET_FILE",
        ),
        ({"listen": {"address": "192.0.2.1:80", "admin": "127.0.0.1:0", "workers": 2}}, "no interface of this machine"),
    ],
)
async def test_settings_that_do_not_work_are_taken_back(running: Installation, change: Any, words: str) -> None:
    before = running.workers()
    running.settings["retry"] = {"attempts": 7}
    running.settings.update(change)
    running.write()
    running.signal(signal.SIGHUP)
    await running.hears(words)
    await running.hears("the old ones stay in force")
    assert await attempts(running) == {"5"}
    assert running.workers() == before
    assert (await running.readyz())["settings"]["last_reload"] == "refused"


async def test_workers_that_do_not_start_leave_the_old_ones_in_place(running: Installation) -> None:
    before = running.workers()
    running.settings["origins"] = {"unstartable": {"dialect": "openai", "url": "https://127.0.0.1", "private": True}}
    running.settings["listen"]["connections_max"] = 100  # needs new workers
    async with Load(running.port, is_kept=True) as load:
        running.write()
        running.signal(signal.SIGHUP)
        await running.hears("made not to start")
        await running.hears("the old ones stay in force")
        await running.settled()
    assert load.failures == []
    assert running.workers() == before


async def test_what_needs_new_workers_gets_them_one_by_one(running: Installation) -> None:
    before = running.workers()
    running.settings["listen"]["connections_max"] = 100
    async with Load(running.port, is_kept=False) as fresh, Load(running.port, is_kept=True) as kept:
        running.write()
        running.signal(signal.SIGHUP)
        await running.hears("settings read again: 1 changed")
        await running.settled()
    assert fresh.failures == kept.failures == []
    assert not set(before) & set(running.workers())


async def test_more_workers_and_fewer(running: Installation) -> None:
    async with Load(running.port, is_kept=False) as load:
        for count in (3, 1):
            running.settings["listen"]["workers"] = count
            running.write()
            running.signal(signal.SIGHUP)
            await running.settled(count)
    assert load.failures == []


async def test_another_address(running: Installation) -> None:
    """The old one is served until the new one is."""
    old = running.port
    with socket.create_server(("127.0.0.1", 0)) as probe:
        new = probe.getsockname()[1]
    running.settings["listen"]["address"] = f"127.0.0.1:{new}"
    running.settings["listen"]["admin"] = "localhost:0"
    running.write()
    running.signal(signal.SIGHUP)
    await running.hears("settings read again|are not taken")
    running.said["addresses"] = [f"127.0.0.1:{new}"]
    assert (await running.ask("/fast")).status == 200
    assert old != new


async def test_reloads_in_a_row_under_load(running: Installation) -> None:
    async with Load(running.port, is_kept=False) as fresh, Load(running.port, is_kept=True) as kept:
        for number in range(20):
            mark = len(running.lines)
            running.settings["retry"] = {"attempts": 2 + number % 2}
            running.write()
            running.signal(signal.SIGHUP)
            await running.hears("settings read again", mark)
    assert fresh.failures == kept.failures == []
    total = "yugong_settings_reloads_total"

    async def are_counted() -> bool:
        values = await running.scrape()
        return sum(value for name, value in values.items() if name.startswith(total)) >= 20

    await eventually(are_counted, "reloads counted")


async def test_a_worker_killed_in_the_middle_of_a_reload_comes_back_with_the_new_settings(
    running: Installation,
) -> None:
    running.settings["retry"] = {"attempts": 6}
    running.write()
    running.signal(signal.SIGHUP)
    os.kill(running.workers()[0], signal.SIGKILL)
    await running.hears("settings read again|are not taken")
    running.signal(signal.SIGHUP)
    await running.settled()

    async def do_all() -> bool:
        return await attempts(running) == {"6"}

    await eventually(do_all, "the new settings everywhere")
