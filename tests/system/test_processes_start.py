"""How it starts: the first run, the demo, and what is in the way."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import PATIENCE, Installation, ask, children_of, eventually, hang_up, is_alive
from yugong.supervisor.exits import Exit

REAL = [sys.executable, "-m", "yugong"]
FREE = {"YUGONG_LISTEN__ADDRESS": "127.0.0.1:0", "YUGONG_LISTEN__ADMIN": "127.0.0.1:0"}


async def chat(port: int, key: str) -> tuple[str, Any]:
    """Head and body of one chat call through a real line."""
    body = b'{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}'
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        + f"Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    try:
        raw = await asyncio.wait_for(reader.read(), PATIENCE)
    finally:
        await hang_up(writer)
    head, _, answer = raw.partition(b"\r\n\r\n")
    return head.decode("latin-1"), json.loads(answer)


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[Installation]:
    one = Installation(tmp_path, REAL)
    yield one
    await one.end()


async def test_a_first_run_serves_the_demo_and_a_second_knows_the_key(real: Installation, tmp_path: Path) -> None:
    await real.launch("run", "--json", **FREE)
    await real.ready()
    key = real.said["customer_key"]
    assert real.said["upstream"] == "demo"
    assert real.said["data_dir"] == str(tmp_path / ".local/share/yugong")
    assert Path(real.said["data_dir"]).stat().st_mode & 0o777 == 0o700
    head, answer = await chat(real.port, key)
    assert head.startswith("HTTP/1.1 200")
    assert "x-yugong-upstream: demo" in head.lower()
    assert answer["choices"][0]["message"]["content"]
    real.signal(signal.SIGTERM)
    assert await real.wait() == 0
    again = Installation(tmp_path, REAL)
    await again.launch("run", "--json", **FREE)
    await again.ready()
    assert again.said["customer_key"] is None
    head, _ = await chat(again.port, key)
    assert head.startswith("HTTP/1.1 200")
    await again.end()


async def test_the_banner_holds_a_call_that_works(real: Installation) -> None:
    await real.launch("run", **FREE)
    call = await real.hears(r"^  (curl .*)")
    shown = "\n".join(real.lines)
    assert "the built-in demo" in shown
    shell = await asyncio.create_subprocess_exec(
        "bash", "-c", f"{call[1]} -sS --max-time 20", stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(shell.communicate(), PATIENCE)
    shell._transport.close()  # type: ignore[attr-defined]
    assert json.loads(out)["object"] == "chat.completion"
    assert real.keeper()


async def test_a_key_in_the_environment_is_what_a_first_run_serves(installation: Installation) -> None:
    await installation.launch("run", "--json", OPENAI_API_KEY="sk-canary-of-the-environment", **FREE)
    await installation.ready()
    assert installation.said["upstream"] == "openai"
    assert "demo_url" not in installation.said
    assert (await installation.readyz())["upstream"] == "openai"
    assert "canary" not in "\n".join(installation.lines) + json.dumps(installation.said)


async def test_the_demo_leaves_nothing_behind(real: Installation) -> None:
    await real.launch("demo", "--json", **FREE)
    await real.ready()
    data, children = Path(real.said["data_dir"]), children_of(real.pid)
    assert len(children) == 3
    head, _ = await chat(real.port, real.said["customer_key"])
    assert head.startswith("HTTP/1.1 200")
    real.signal(signal.SIGUSR2)
    await real.hears("upgraded: all processes run")
    assert (await chat(real.port, real.said["customer_key"]))[0].startswith("HTTP/1.1 200")
    real.signal(signal.SIGINT)
    assert await real.wait() == 0
    assert not data.exists()
    assert not any(map(is_alive, children))


async def test_the_demo_upstream_does_not_outlive_a_killed_supervisor(real: Installation) -> None:
    await real.launch("demo", "--json", **FREE)
    await real.ready()
    children = children_of(real.pid)
    real.signal(signal.SIGKILL)

    async def are_gone() -> bool:
        return not any(map(is_alive, children))

    await eventually(are_gone, "no orphan")


async def refusal(installation: Installation, *words: str, **environ: str) -> tuple[int, str]:
    await installation.launch(*words, **environ)
    code = await installation.wait()
    assert not any(line.startswith("Traceback") for line in installation.lines)
    return code, "\n".join(installation.lines)


async def test_a_taken_port_is_named(installation: Installation) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        installation.settings["listen"]["address"] = f"127.0.0.1:{port}"
        installation.write()
        code, text = await refusal(installation, "run", "-c", str(installation.path))
    assert code == Exit.ADDRESS
    assert f"port {port} is taken" in text


async def test_a_data_directory_in_use_is_named(running: Installation, tmp_path: Path) -> None:
    second = Installation(tmp_path)
    code, text = await refusal(second, "run", "-c", str(running.path))
    assert code == Exit.DATA
    assert f"in use by another instance (process {running.pid})" in text


async def test_a_data_directory_others_can_read_is_refused(installation: Installation, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    (tmp_path / "data").chmod(0o755)
    installation.write()
    code, text = await refusal(installation, "run", "-c", str(installation.path))
    assert code == Exit.DATA
    assert "chmod 700" in text


async def test_wrong_settings_start_nothing_and_all_is_said(installation: Installation, tmp_path: Path) -> None:
    installation.path.write_text("listen: {workers: many}\nretry: {attempts: 99}\n")
    code, text = await refusal(installation, "run", "-c", str(installation.path))
    assert code == Exit.SETTINGS
    assert f"{installation.path}:1:" in text
    assert f"{installation.path}:2:" in text
    assert not (tmp_path / ".local").exists()


async def test_a_customer_key_that_cannot_be_had_starts_nothing(installation: Installation) -> None:
    installation.settings["accounts"] = {"a": {"keys": [{"id": "k", "value": {"env": "NOT_SET"}}]}}
    installation.write()
    code, text = await refusal(installation, "run", "-c", str(installation.path))
    assert code == Exit.SETTINGS
    assert "a/k: env:NOT_SET" in text


async def test_workers_that_cannot_start_end_it(installation: Installation) -> None:
    installation.settings["origins"] = {
        "unstartable": {"dialect": "openai", "url": "https://127.0.0.1", "private": True}
    }
    installation.write()
    code, text = await refusal(installation, "run", "-c", str(installation.path))
    assert code == Exit.FAILURE
    assert "made not to start" in text


async def test_too_many_workers_are_refused(installation: Installation) -> None:
    installation.settings["listen"]["workers"] = 100
    installation.write()
    code, text = await refusal(installation, "run", "-c", str(installation.path))
    assert code == Exit.SETTINGS
    assert "listen.workers: at most" in text


async def test_a_stale_lock_and_socket_are_no_hindrance(running: Installation, tmp_path: Path) -> None:
    os.kill(running.pid, signal.SIGKILL)
    await running.wait()
    assert (tmp_path / "data" / "run" / "keeper.sock").exists()
    again = Installation(tmp_path)
    again.settings = running.settings
    await again.start()
    assert (await ask("127.0.0.1", again.port, "/fast")).status == 200
    await again.end()
