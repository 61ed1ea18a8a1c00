"""I3, as the official SDKs live it: a stream that breaks upstream never looks like one that ended.

Streams of chat, responses and Anthropic messages are broken at every boundary between their events and at 200 random
bytes. Whatever upstream does there, the SDK raises, and what it was given until then begins the text that was due.
One Yugong and one emulator for all of the file; hundreds of calls at once, for most of a call is waiting.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import anthropic
import openai
import pytest

from bench.contenders import CUSTOMER_KEY, Proxy, launch_yugong
from bench.processes import Running, free_port
from yugong.emulator import EmulatorSpec, expected_text, seed_of

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "How high is the mountain?"
MESSAGES: Any = [{"role": "user", "content": PROMPT}]
SEED = seed_of(PROMPT.encode())
ORGS = 400
"""Of each dialect. One upstream that breaks every stream is soon let alone, and there would be none left to break."""
KEYS = 1
AT_ONCE = 24
SILENCE = 3  # seconds; longer than a busy machine is silent by itself
BYTES = 200
HOWS = ("close", "rst", "done")
SDKS = {"openai", "anthropic", "httpx", "httpx2"}
"""Packages whose exceptions a caller of the SDKs meets: inside a stream they let those of their transport through."""


class Kind(NamedTuple):
    """One kind of stream."""

    name: str
    path: str
    body: dict[str, Any]
    pieces: int
    """Pieces of text in it."""
    before: int
    """Events before the first piece."""
    events: int
    """All of them; at this boundary only `[DONE]` is missing, if there is one."""
    last: bytes
    """How its last event's last line ends: a stream that lacks no more than what follows lacks nothing."""

    def __repr__(self) -> str:
        return f"<Kind {self.name} {self.events} events>"

    def text(self, events: int) -> str:
        """What so many events say."""
        return expected_text(SEED, min(max(events - self.before, 0), self.pieces))

    @property
    def pace(self) -> str:
        return f"events={self.pieces}"

    @property
    def boundaries(self) -> range:
        """Numbers of events after which the stream is not whole."""
        return range(self.events + (self.last == b"[DONE]"))


_CHAT = {"model": "gpt-4o", "messages": MESSAGES}
KINDS = {
    kind.name: kind
    for kind in (
        # a role, 18 pieces, a finish reason; a chunk with the usage goes only to who asked
        Kind("chat", "/v1/chat/completions", _CHAT, 18, 1, 20, b"[DONE]"),
        Kind(
            "chat_with_usage",
            "/v1/chat/completions",
            {**_CHAT, "stream_options": {"include_usage": True}},
            18,
            1,
            21,
            b"[DONE]",
        ),
        Kind("responses", "/v1/responses", {"model": "gpt-5.6", "input": PROMPT}, 12, 4, 20, b"}"),
        Kind(
            "messages",
            "/v1/messages",
            {"model": "claude-opus-5-5", "max_tokens": 100, "messages": MESSAGES},
            14,
            3,
            20,
            b"}",
        ),
    )
}


class Ending(NamedTuple):
    """How a stream ended for the SDK."""

    fault: str
    text: str
    error: str
    """The name of what was raised; empty after a clean end."""


class Clients:
    """The SDKs, and the emulator itself."""

    def __init__(self, url: str, upstream: str, keys: dict[str, list[str]]) -> None:
        self.openai = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=CUSTOMER_KEY, max_retries=0, timeout=60)
        self.anthropic = anthropic.AsyncAnthropic(base_url=url, api_key=CUSTOMER_KEY, max_retries=0, timeout=60)
        self.upstream = upstream
        self.key = keys["org-0"][0]
        self._room = asyncio.Semaphore(AT_ONCE)

    async def close(self) -> None:
        await self.openai.close()
        await self.anthropic.close()

    async def hear(self, kind: Kind, fault: str) -> Ending:
        """One stream to its end, whatever that is."""
        heard: list[str] = []
        error = ""
        async with self._room:
            try:
                async for text in self._texts(kind, fault):
                    heard.append(text)
            except Exception as raised:
                if type(raised).__module__.partition(".")[0] not in SDKS:
                    raise
                error = type(raised).__name__
        return Ending(fault, "".join(heard), error)

    async def _texts(self, kind: Kind, fault: str) -> AsyncIterator[str]:
        headers = {"x-emulator-fault": fault, "x-emulator-pace": kind.pace}
        if not fault:
            del headers["x-emulator-fault"]
        sdk: Any = self.anthropic if kind.name == "messages" else self.openai
        make = {"messages": "messages", "responses": "responses"}.get(kind.name, "chat.completions")
        for name in make.split("."):
            sdk = getattr(sdk, name)
        async with await sdk.create(**kind.body, stream=True, extra_headers=headers) as stream:
            async for event in stream:
                if kind.name.startswith("chat"):
                    yield "".join(choice.delta.content or "" for choice in event.choices)
                elif event.type == "response.output_text.delta":
                    yield event.delta
                elif event.type == "content_block_delta":
                    yield event.delta.text
                elif event.type == "error":
                    # OpenAI's SDK hands an error event of its upstream's own shape over instead of raising it.
                    raise openai.APIError(event.message, stream.response.request, body=None)

    async def size(self, kind: Kind) -> int:
        """Bytes of a whole stream as upstream sends it, up to where it lacks nothing any more."""
        body = {**kind.body, "stream": True}
        if kind.name == "chat":
            body["stream_options"] = {"include_usage": True}  # as we ask on our own
        headers = {"Authorization": f"Bearer {self.key}", "x-emulator-pace": kind.pace}
        if kind.name == "messages":
            headers |= {"anthropic-version": "2023-06-01"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.upstream + kind.path, json=body, headers=headers) as answer,
        ):
            content = (await answer.read()).rstrip()
        assert answer.status == 200, content
        assert content.endswith(kind.last)
        return len(content)


def _settings(origin: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"origins": {}, "orgs": {}, "timeouts": {"silence": SILENCE}}
    for i, (org, secrets) in enumerate(EmulatorSpec.uniform(2 * ORGS, KEYS).keys().items()):
        dialect = ("openai", "anthropic")[i % 2]
        settings["origins"][org] = {"dialect": dialect, "url": origin, "private": True}
        named = [{"id": f"{org}-{j}", "secret": {"value": secret}} for j, secret in enumerate(secrets)]
        settings["orgs"][org] = {"origin": org, "keys": named}
    return settings


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Where the SDKs call, and where Yugong does."""
    folder = tmp_path_factory.mktemp("ends")
    port = free_port()
    command = [sys.executable, "-m", "yugong.emulator", "--port", str(port), "--orgs", str(2 * ORGS)]
    command += ["--keys", str(KEYS), "--journal", ""]
    proxy: Proxy | None = None
    with Running("emulator", command, folder / "emulator.log", cwd=ROOT) as upstream:
        try:
            upstream.wait_ready(port)
            proxy = launch_yugong(folder, _settings(f"http://127.0.0.1:{port}"))
            yield f"http://127.0.0.1:{proxy.port}", f"http://127.0.0.1:{port}"
        finally:
            if proxy is not None:
                proxy.stop()


@pytest.fixture
async def clients(urls: tuple[str, str]) -> AsyncIterator[Clients]:
    made = Clients(*urls, EmulatorSpec.uniform(2 * ORGS, KEYS).keys())
    yield made
    await made.close()


each_kind = pytest.mark.parametrize("kind", list(KINDS.values()), ids=list(KINDS))


@each_kind
async def test_a_whole_stream_ends_cleanly(clients: Clients, kind: Kind) -> None:
    """Else the others could not fail: they would hear a broken stream every time."""
    assert await clients.hear(kind, "") == Ending("", kind.text(kind.events), "")


@each_kind
async def test_no_clean_end_at_any_boundary(clients: Clients, kind: Kind) -> None:
    """All that came before the break reaches the client, but for a reset, which may overtake it."""
    faults = [
        (fault, at)
        for at in kind.boundaries
        for fault in (*(f"cut_stream:{at}:{how}" for how in HOWS), f"error_mid_stream:{at}", f"stuck_stream:{at}")
    ]
    endings = await asyncio.gather(*(clients.hear(kind, fault) for fault, _ in faults))
    wrong = [
        ending
        for ending, (fault, at) in zip(endings, faults, strict=True)
        if not ending.error
        or not kind.text(at).startswith(ending.text)
        or (not fault.endswith("rst") and ending.text != kind.text(at))
    ]
    assert not wrong, wrong[:5]


@each_kind
async def test_no_clean_end_at_random_bytes(clients: Clients, kind: Kind) -> None:
    size = await clients.size(kind)
    places = random.Random(20).sample(range(1, size), BYTES)
    hows = HOWS if kind.name != "chat_with_usage" else HOWS[2:]
    faults = [f"cut_bytes:{at}:{how}" for at in places for how in hows]
    endings = await asyncio.gather(*(clients.hear(kind, fault) for fault in faults))
    whole = kind.text(kind.events)
    wrong = [ending for ending in endings if not ending.error or not whole.startswith(ending.text)]
    assert not wrong, wrong[:5]
    begun = Counter(bool(ending.text) for ending in endings)
    assert begun[True] > len(endings) / 3, begun  # or it would be refusals that were raised
