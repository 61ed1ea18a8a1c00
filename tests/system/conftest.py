"""Real processes for the system tests: in a directory of their own, watched by what they say, gone afterwards."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

STANDIN = [sys.executable, str(Path(__file__).with_name("standin.py"))]
PATIENCE = 30.0
"""Seconds for anything: machines that run tests do other things as well."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.system)


async def eventually(holds: Callable[[], Awaitable[Any]], what: str) -> Any:
    """The first true answer; for what other processes do without saying so."""
    async with asyncio.timeout(PATIENCE):
        while True:
            if answer := await holds():
                return answer
            await asyncio.sleep(0.05)
    raise AssertionError(what)


class Answer:
    """An answer as it came."""

    def __init__(self, status: int, head: str, body: bytes) -> None:
        self.status, self.head, self.body = status, head, body

    @property
    def text(self) -> str:
        return self.body.decode()


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        await writer.wait_closed()
    except OSError:
        pass


async def ask(host: str, port: int, path: str) -> Answer:
    """One call on a new connection. Raises what the socket raises; an answer that is not whole is a ConnectionError."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        raw = await reader.read()
    finally:
        await hang_up(writer)
    head, mark, body = raw.partition(b"\r\n\r\n")
    if not mark:
        raise ConnectionResetError("closed without an answer")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    if length and int(length[1]) != len(body):
        raise ConnectionResetError("cut short")
    if b"chunked" in head.lower() and not body.endswith(b"0\r\n\r\n"):
        raise ConnectionResetError("cut short")
    return Answer(int(head.split()[1]), head.decode("latin-1"), body)


class Installation:
    """One supervisor and what it has started."""

    def __init__(self, directory: Path, program: list[str] = STANDIN) -> None:
        self.directory = directory
        self.program = program
        self.path = directory / "yugong.yaml"
        self.settings: dict[str, Any] = {
            "listen": {"address": "127.0.0.1:0", "admin": "127.0.0.1:0", "workers": 2},
            "data_dir": str(directory / "data"),
            "drain": {"lame_duck": "1s", "grace": "20s"},
            "log": {"access": str(directory / "access.log"), "level": "debug"},
        }
        self.lines: list[str] = []
        self.said: dict[str, Any] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._news = asyncio.Condition()

    # --- life --------------------------------------------------------------------------------------------------------

    def write(self) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text(yaml.safe_dump(self.settings))
        fresh.replace(self.path)

    async def start(self) -> None:
        """Start, and wait until it says that it is ready."""
        self.write()
        await self.launch("run", "--json", "-c", str(self.path))
        await self.ready()

    async def launch(self, *words: str, **environ: str) -> None:
        home = {name: value for name, value in os.environ.items() if not name.startswith(("YUGONG_", "OPENAI_"))}
        self._process = await asyncio.create_subprocess_exec(
            *self.program,
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.directory,
            env={
                **home,
                "HOME": str(self.directory),
                "TMPDIR": str(self.directory),
                "PYTHONWARNINGS": "",
                **environ,
            },
        )
        self._listening = asyncio.ensure_future(self._listen())

    async def ready(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = await self._process.stdout.readline()
        assert line, "\n".join(self.lines)
        self.said = json.loads(line)

    async def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            async with self._news:
                self.lines.append(line.decode().rstrip())
                self._news.notify_all()
        async with self._news:
            self._news.notify_all()

    async def hears(self, pattern: str, since: int = 0) -> re.Match[str]:
        """Wait until a line of stderr, after the first `since`, has this in it."""
        found: list[re.Match[str]] = []

        def look() -> bool:
            found[:] = [match for line in self.lines[since:] if (match := re.search(pattern, line))]
            return bool(found)

        try:
            async with asyncio.timeout(PATIENCE), self._news:
                await self._news.wait_for(look)
        except TimeoutError:
            raise AssertionError(f"nothing says {pattern!r}:\n" + "\n".join(self.lines)) from None
        return found[0]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def wait(self) -> int:
        """Its exit code."""
        assert self._process is not None
        async with asyncio.timeout(PATIENCE):
            code = await self._process.wait()
            if self._listening is not None:
                await self._listening
            assert self._process.stdout is not None
            await self._process.stdout.read()
        self._process._transport.close()  # type: ignore[attr-defined]  # uvloop warns of one that is only collected
        await asyncio.sleep(0)
        return code

    async def end(self) -> None:
        """Whatever state it is in: nothing of it is left."""
        if self._process is None:
            return
        descendants = children_of(self.pid)
        if self._process.returncode is None:
            self._process.kill()
        for pid in descendants:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        await self.wait()

    # --- asking ------------------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        return int(self.said["addresses"][0].rpartition(":")[2])

    @property
    def admin_port(self) -> int:
        return int(self.said["admin_url"].rpartition(":")[2])

    async def ask(self, path: str) -> Answer:
        return await ask("127.0.0.1", self.port, path)

    async def readyz(self) -> dict[str, Any]:
        answer = await ask("127.0.0.1", self.admin_port, "/readyz")
        detail: dict[str, Any] = json.loads(answer.body)
        assert (answer.status == 200) == detail["ready"]
        return detail

    async def scrape(self) -> dict[str, float]:
        """Every sample of /metrics by its name with labels."""
        answer = await ask("127.0.0.1", self.admin_port, "/metrics")
        rows = (line.rpartition(" ") for line in answer.text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in rows}

    async def settled(self, workers: int = 2) -> None:
        """Wait until so many workers are ready and none is anything else."""

        async def is_settled() -> bool:
            counts = (await self.readyz())["workers"]
            return bool(counts == {"wanted": workers, "ready": workers, "starting": 0, "draining": 0})

        await eventually(is_settled, "settled")

    def workers(self) -> list[int]:
        """Pids of the worker processes."""
        return [pid for pid in children_of(self.pid) if "_worker" in command_of(pid)]

    def keeper(self) -> int:
        (pid,) = (pid for pid in children_of(self.pid) if "_keeper" in command_of(pid))
        return pid


def children_of(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]


def command_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


class Load:
    """Calls one after the other on each of some connections, new or kept, until stopped. Keeps every failure."""

    def __init__(self, port: int, *, is_kept: bool, path: str = "/fast") -> None:
        self.port, self.is_kept, self.path = port, is_kept, path
        self.answered = 0
        self.failures: list[str] = []
        self._is_over = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Load":
        self._task = asyncio.ensure_future(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_over = True
        assert self._task is not None
        await self._task

    async def _run(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(4)))

    async def _client(self) -> None:
        while not self._is_over:
            try:
                await (self._kept() if self.is_kept else self._once())
            except (OSError, ValueError, asyncio.IncompleteReadError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                if isinstance(error, ConnectionRefusedError):
                    return
            await asyncio.sleep(0.005)

    async def _once(self) -> None:
        answer = await ask("127.0.0.1", self.port, self.path)
        self.answered += answer.status == 200
        if answer.status != 200:
            self.failures.append(str(answer.status))

    async def _kept(self) -> None:
        """One connection until we stop or the server says that it closes. One it closes while it is idle, before an
        answer to a call of ours, is a failure: a client could not know whether to send it again."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            while not self._is_over:
                writer.write(f"GET {self.path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = re.search(rb"content-length: (\d+)", head)
                assert length is not None
                await reader.readexactly(int(length[1]))
                self.answered += 1
                if b"connection: close" in head:
                    return
                await asyncio.sleep(0.005)
        finally:
            await hang_up(writer)


@pytest.fixture
async def installation(tmp_path: Path) -> AsyncIterator[Installation]:
    """Not started yet, so that a test can change its settings."""
    one = Installation(tmp_path)
    yield one
    await one.end()


@pytest.fixture
async def running(installation: Installation) -> Installation:
    await installation.start()
    return installation
