"""WebSockets through the whole line: the real listener, pool, accounts and way out, between real clients and upstreams.

Clients are the official SDK and the `websockets` package, and bare streams where they must misbehave; upstreams are the
emulator, and scripts where it behaves too well. `test_websocket` has the relay alone, `core/test_frames` the frames.
"""

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import openai
import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from bench.contenders import CUSTOMER_KEY, launch_yugong
from yugong.core import dialects
from yugong.core.frames import CLOSE, TEXT, unmask, write_close, write_frame
from yugong.core.keypool import health
from yugong.core.keypool.health import State
from yugong.emulator import Emulator, EmulatorSpec, FaultRule, GroupSpec, Limits, OrgSpec
from yugong.proxy import listener as listening
from yugong.proxy.tunnel import BLAME, STATUS_OF_CLOSE
from yugong.proxy.websocket import ENDINGS
from yugong.store import poolstate
from yugong.store.accounts import AccountFile
from yugong.store.handover import Hello
from yugong.store.settingsfile import load_settings
from yugong.supervisor.chief import import_accounts
from yugong.surface.accesslog import AccessLog
from yugong.surface.meters import Registry
from yugong.surface.metrics import Meters
from yugong.surface.proclog import ProcessLog
from yugong.upstream.handshake import accept_of
from yugong.wiring import PooledLine
from yugong.worker import Station

SOON = 5.0
"""Seconds in which what must happen at once has to have happened."""

KEY = CUSTOMER_KEY
LIMITED_KEY = "sk-limited-0123456789abcdef0123456789abcdef01234567"
REALTIME = "/v1/realtime?model=gpt-realtime"
SECRETS = ("sk-up-a-0123456789abcdef0123456789", "sk-up-b-0123456789abcdef0123456789")


class Site:
    """A worker's line in this process, as `worker` makes it, in front of one origin for each organisation.

    The first organisation is asked before the second wherever both can serve.
    """

    def __init__(self, folder: Path, origins: list[str], secrets: tuple[str, ...] = SECRETS, **settings: Any) -> None:
        document = {
            "data_dir": str(folder / "data"),
            "drain": {"lame_duck": 0, "grace": 1},
            "origins": {f"o{i}": {"dialect": "openai", "url": url, "private": True} for i, url in enumerate(origins)},
            "orgs": {
                f"org{i}": {"origin": f"o{i}", "priority": i, "keys": [{"id": "k", "secret": {"value": secrets[i]}}]}
                for i in range(len(origins))
            },
            "accounts": {
                "app": {"keys": [{"id": "k", "value": KEY}]},
                "limited": {"models": ["gpt-realtime", "gpt-4o*"], "keys": [{"id": "k", "value": LIMITED_KEY}]},
            },
            **settings,
        }
        file = folder / "yugong.yaml"
        file.write_text(json.dumps(document))
        file.chmod(0o600)
        self.settings = load_settings(file, {}, dialects.catalog()).settings
        self.data = folder / "data"
        self.data.mkdir(mode=0o700, exist_ok=True)
        import_accounts(self.data, self.settings)
        self.meters = Meters(Registry())
        self.access = AccessLog(self.meters.access_log_dropped)
        self._memory = poolstate.create()
        hello = Hello(
            name="worker-0",
            id="w",
            boot="b",
            parent=0,
            data_dir=str(self.data),
            link="",
            settings=msgspec.Raw(b"{}"),
            revision=1,
            memory_fd=self._memory,
        )
        self.product = PooledLine(Station(hello, self.meters, self.access, ProcessLog("test", "error")))
        self.port = 0
        self.records: list[dict[str, Any]] = []

    async def start(self) -> None:
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        self.port = sock.getsockname()[1]
        await self.product.start([sock], self.settings)

    async def stop(self) -> None:
        self.product.stop_accepting()
        await self.product.drain(asyncio.get_running_loop().time())
        os.close(self._memory)

    @property
    def line(self) -> Any:
        return self.product._line

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def dial(self, path: str = REALTIME, key: str | None = KEY, **options: Any) -> connect:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        headers |= options.pop("headers", {})
        options = {"ping_interval": None, "max_size": None, **options}
        return connect(f"ws://127.0.0.1:{self.port}{path}", additional_headers=headers, proxy=None, **options)

    async def record(self) -> dict[str, Any]:
        """The access log's line of the next call that ended."""
        async with asyncio.timeout(SOON):
            while not (lines := self.access.take().splitlines()):
                await asyncio.sleep(0.005)
        assert len(lines) == 1
        line = orjson.loads(lines[0])
        assert isinstance(line, dict)
        return line

    def state(self, org: int, *, of_key: bool = False) -> State:
        found = self.line.setup.pool.orgs[org]
        row = found.keys[0].row if of_key else found.row
        return State(self.product._state.cells[row + health.STATE])

    def is_at_rest(self) -> bool:
        """Nothing is left over of any call."""
        assert not self.line.relays
        assert self.meters.calls_in_flight.value == 0
        assert all(org.in_flight == 0 for org in self.line.setup.pool.orgs)
        return bool(self.line.leg.counts()[0] == 0)


Make = Callable[..., Awaitable[Site]]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Starts sites; each must be at rest when the test is over."""
    async with AsyncExitStack() as stack:

        async def started(*origins: str, **options: Any) -> Site:
            site = Site(tmp_path, list(origins), **options)
            await site.start()
            stack.push_async_callback(site.stop)
            made.append(site)
            return site

        made: list[Site] = []
        yield started
        async with asyncio.timeout(SOON):
            for site in made:
                while site.product._listener.connections:
                    await asyncio.sleep(0.005)
                assert site.is_at_rest()


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator(_spec()) as started:
        yield started


def _spec(**fields: Any) -> EmulatorSpec:
    group = GroupSpec(limits=Limits(rpm=100_000, tpm=100_000_000))
    orgs = tuple(OrgSpec(f"org{i}", (secret,), groups=(group,)) for i, secret in enumerate(SECRETS))
    return EmulatorSpec(orgs=orgs, **fields)


Script = Callable[["Peer", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Peer:
    """An upstream that plays a script after the handshake, frame by frame."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.heads: list[bytes] = []
        self.frames: list[tuple[int, bytes]] = []
        #: Set when a frame has come.
        self.heard = asyncio.Event()
        #: Set when a connection has ended.
        self.over = asyncio.Event()
        self.switch = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            key = next(line for line in head.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key: "))[19:]
            self.switch = (
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"openai-organization: org-secret\r\nset-cookie: a=b\r\nx-request-id: req_1\r\n"
                b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept_of(key)
            )
            await self._script(self, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.over.set()
            writer.close()

    async def frame(self, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        first, second = await reader.readexactly(2)
        size = second & 127
        if size > 125:
            size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8), "big")
        mask = await reader.readexactly(4)
        found = first, unmask(mask, await reader.readexactly(size))
        self.frames.append(found)
        self.heard.set()
        return found

    async def hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Frames until the client closes or is lost."""
        while True:
            first, payload = await self.frame(reader)
            if first == CLOSE:
                writer.write(write_frame(CLOSE, payload))
                return


@asynccontextmanager
async def peer(script: Script) -> AsyncIterator[tuple[str, Peer]]:
    it = Peer(script)
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", it
    finally:
        server.close()
        await server.wait_closed()


def text(document: dict[str, Any]) -> bytes:
    return write_frame(TEXT, orjson.dumps(document))


async def listen(it: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Switches, greets, and hears everything."""
    writer.write(it.switch + text({"type": "session.created"}))
    await it.hear(reader, writer)


async def closed(client: ClientConnection) -> tuple[int | None, str | None]:
    """Reads to the end; close code and reason."""
    async with asyncio.timeout(SOON):
        try:
            while True:
                await client.recv()
        except ConnectionClosed:
            return client.close_code, client.close_reason


async def refused(connecting: connect) -> tuple[int, dict[str, Any]]:
    with pytest.raises(InvalidStatus) as caught:
        await connecting
    answer = caught.value.response
    return answer.status_code, orjson.loads(answer.body or b"null")


async def events(client: ClientConnection, last: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(SOON):
        while not found or found[-1]["type"] != last:
            found.append(orjson.loads(await client.recv()))
    return found


def sdk_of(http: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{http}/v1", api_key=KEY)


# -- what clients do --------------------------------------------------------------------------------------------------


async def test_the_sdk_has_a_realtime_conversation(make: Make, emulator: Emulator) -> None:
    site = await make(emulator.url)
    async with sdk_of(site.http) as sdk, sdk.realtime.connect(model="gpt-realtime") as session:
        said = ""
        for _ in range(2):
            item: Any = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}
            await session.conversation.item.create(item=item)
            await session.response.create(response={"max_output_tokens": 5})
            async with asyncio.timeout(SOON):
                async for event in session:
                    if event.type == "response.output_text.delta":
                        said += event.delta
                    if event.type == "rate_limits.updated":
                        break
    assert len(said.split()) >= 10
    record = await site.record()
    billed = orjson.loads(emulator.journal.read(0).splitlines()[-1])["usage"]
    assert (record["status"], record["operation"], record["model"]) == (101, "realtime", "gpt-realtime")
    assert (record["account"], record["key"], record["org"], record["attempts"]) == ("app", "k", "org0", 1)
    assert (record["input_tokens"], record["output_tokens"]) == (billed["input"], billed["output"])  # of both responses
    assert record["output_tokens"] == 10
    assert record["reason"] is None
    assert record["bytes_in"] > 100 and record["bytes_out"] > 1000
    assert site.meters.frames_up.value == 5 and site.meters.frames_down.value > 20  # the close frame is one of them


async def test_the_sdk_gets_responses(make: Make, emulator: Emulator) -> None:
    site = await make(emulator.url)
    async with sdk_of(site.http) as sdk, sdk.responses.connect() as session:
        for _ in range(2):
            await session.response.create(model="gpt-4o", input="Hello", max_output_tokens=7)
            async with asyncio.timeout(SOON):
                async for event in session:
                    if event.type in ("response.completed", "response.incomplete", "error"):
                        break
            assert event.type != "error"
    record = await site.record()
    billed = orjson.loads(emulator.journal.read(0).splitlines()[-1])["usage"]
    assert (record["input_tokens"], record["output_tokens"]) == (billed["input"], billed["output"])
    assert billed["output"] == 14


async def test_any_other_socket_passes_through(make: Make, emulator: Emulator) -> None:
    site = await make(emulator.url)
    path = "/v1/live/sessions/abc/attach?x=%2F"
    async with site.dial(path, subprotocols=[Subprotocol("none"), Subprotocol("echo")]) as client:
        assert client.subprotocol == "echo"
        for message in ("hello", b"\0\xff" * 100_000, "", "é" * 300_000):
            await client.send(message)
            assert await client.recv() == message
        await asyncio.wait_for(await client.ping(b"there?"), SOON)
        site.product._read_gauges()
        assert site.meters.websockets_open.value == 1
        await client.send("close:4321:enough")
        assert await closed(client) == (4321, "enough")
    record = await site.record()
    assert (record["path"], record["reason"]) == (path.partition("?")[0], "closed_by_upstream 4321")
    site.product._read_gauges()
    assert site.meters.websockets_open.value == 0


async def test_a_browser_puts_its_key_into_the_subprotocols(make: Make) -> None:
    async with peer(listen) as (url, upstream):
        site = await make(url)
        names = ["realtime", f"openai-insecure-api-key.{KEY}", "openai-organization.org-mine", "openai-project.p"]
        async with site.dial(key=None, subprotocols=[Subprotocol(name) for name in names]) as client:
            await client.recv()
        await site.record()
    assert b"Sec-WebSocket-Protocol: realtime\r\n" in upstream.heads[0].replace(b"sec-websocket-p", b"Sec-WebSocket-P")
    assert KEY.encode() not in upstream.heads[0] and b"org-mine" not in upstream.heads[0]


async def test_upstream_sees_the_clients_request_with_the_pools_key(make: Make) -> None:
    async with peer(listen) as (url, upstream):
        site = await make(url)
        headers = {"OpenAI-Beta": "realtime=v1", "OpenAI-Organization": "org-mine", "Cookie": "a=b", "X-Mine": "1"}
        async with site.dial("/openai/v1/realtime?model=gpt-realtime&x=a%20b", headers=headers) as client:
            assert client.response is not None
            answered = client.response.headers
        await site.record()
    head = upstream.heads[0]
    lines = [line.lower() for line in head.split(b"\r\n")]
    assert lines[0] == b"get /v1/realtime?model=gpt-realtime&x=a%20b http/1.1"
    assert f"authorization: bearer {SECRETS[0]}".encode() in lines
    assert f"host: {url[7:]}".encode() in lines
    assert b"openai-beta: realtime=v1" in lines and b"x-mine: 1" in lines
    assert KEY.encode() not in head and b"org-mine" not in head
    assert not any(line.startswith((b"cookie", b"sec-websocket-extensions")) for line in lines)
    assert answered["x-request-id"] == "req_1"
    assert "openai-organization" not in answered and "set-cookie" not in answered


async def test_a_model_of_another_name_here_goes_by_its_own_upstream(make: Make) -> None:
    async with peer(listen) as (url, upstream):
        site = await make(url, models={"aliases": {"fast": "ft:gpt/2+x"}})
        async with site.dial("/v1/realtime?a=1&model=fast&b=%2F"):
            pass
        assert (await site.record())["model"] == "fast"
    assert upstream.heads[0].startswith(b"GET /v1/realtime?a=1&model=ft%3Agpt%2F2%2Bx&b=%2F HTTP/1.1\r\n")


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "sk-nobody-knows-this-one"])
async def test_who_has_no_key_is_refused_before_the_upgrade(make: Make, emulator: Emulator, key: str | None) -> None:
    site = await make(emulator.url)
    status, body = await refused(site.dial(key=key))
    assert (status, body["error"]["code"]) == (401, "invalid_api_key")
    assert (await site.record())["status"] == 401
    assert emulator.attempts == 0


async def _raw(site: Site, *lines: str, method: str = "GET", target: str = REALTIME, version: str = "1.1") -> bytes:
    """The answer to an upgrade request as written here, to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    head = [f"{method} {target} HTTP/{version}", "Host: x", f"Authorization: Bearer {KEY}", "Upgrade: websocket"]
    writer.write("\r\n".join([*head, "Connection: Upgrade", *lines, "", ""]).encode())
    try:
        return await asyncio.wait_for(reader.read(), SOON)
    finally:
        writer.close()


NONCE = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
THIRTEEN = "Sec-WebSocket-Version: 13"


async def test_malformed_upgrades_are_refused_in_the_dialects_words(make: Make, emulator: Emulator) -> None:
    site = await make(emulator.url)
    wrong: list[tuple[int, bytes]] = [
        (426, await _raw(site, NONCE, "Sec-WebSocket-Version: 8")),
        (400, await _raw(site, NONCE, THIRTEEN, version="1.0")),
        (400, await _raw(site, THIRTEEN)),
        (400, await _raw(site, THIRTEEN, "Sec-WebSocket-Key: short")),
        (400, await _raw(site, NONCE, THIRTEEN, target=f"{REALTIME}&mod%65l=another")),
        (400, await _raw(site, NONCE, THIRTEEN, target="/v1/realtime?model=&model=another")),
    ]
    for status, answer in wrong:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert b"\r\nConnection: close" in head
        assert orjson.loads(body)["error"]["code"] == "malformed_request"
    assert b"sec-websocket-version: 13" in wrong[0][1]
    assert emulator.attempts == 0
    assert site.meters.refusals.labels("malformed_request").value == len(wrong)


async def test_a_model_the_customer_may_not_use_is_refused(make: Make, emulator: Emulator) -> None:
    site = await make(emulator.url)
    status, body = await refused(site.dial("/v1/realtime?model=gpt-forbidden", key=LIMITED_KEY))
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    assert emulator.attempts == 0


@pytest.mark.parametrize(
    "message",
    [
        b'{"type":"response.create","model":"gpt-forbidden","input":"x"}',
        b'{"type":"response.create","\\u006dodel":"gpt-forbidden"}',
        b'{"type":"response.create","model":"gpt-4o","model":"gpt-forbidden"}',
        b'{"type":"session.update","session":{"audio":{"input":{"transcription":{"model":"gpt-forbidden"}}}}}',
        b'{"type":"response.create","input":"' + b"x" * (1 << 20) + b'","model":"gpt-4o"}',
        b"not JSON, of a model",
    ],
)
async def test_a_message_that_names_such_a_model_is_not_passed_on(make: Make, message: bytes) -> None:
    async with peer(listen) as (url, upstream):
        site = await make(url)
        async with site.dial("/v1/responses", key=LIMITED_KEY) as client:
            await client.send(b'{"type":"response.create","model":"gpt-4o-mini"}', text=True)
            async with asyncio.timeout(SOON):
                await upstream.heard.wait()
            await client.send(message, text=True)
            assert (await closed(client))[0] == 1008
        assert (await site.record())["reason"] == "refused 1008"
        await asyncio.wait_for(upstream.over.wait(), SOON)
    assert [payload for first, payload in upstream.frames if first != CLOSE] == [
        b'{"type":"response.create","model":"gpt-4o-mini"}'
    ]


async def test_who_is_not_limited_may_name_any_model(make: Make, emulator: Emulator) -> None:
    site = await make(emulator.url)
    async with site.dial("/v1/echo") as client:
        for message in ('{"model":"gpt-forbidden"}', '{"model":"a","model":"b"}', "x" * 2_000_000):
            await client.send(message)
            assert await client.recv() == message


async def test_a_revoked_key_ends_its_sessions(make: Make, emulator: Emulator) -> None:
    site = await make(emulator.url)
    async with site.dial("/v1/echo") as client:
        await client.send("once")
        await client.recv()
        with AccountFile(site.data) as accounts:
            accounts.disable_key("app", "k")
        keys = site.line.setup.keys
        async with asyncio.timeout(SOON):
            while site.line.setup.keys is keys:
                await asyncio.sleep(0.01)
        await client.send("twice")
        assert await closed(client) == (1008, "Incorrect API key provided.")


# -- what goes wrong upstream -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    ["401", "429_requests", "429_quota", "500", "522", "reset_before_head", "garbage", "empty_200", "redirect",
     "error_mid_stream:0"],
)  # fmt: skip
async def test_one_organisations_trouble_is_not_the_clients(make: Make, kind: str) -> None:
    rules = (FaultRule(kind, orgs=("org0",)),)
    async with Emulator(_spec(faults=rules)) as emulator:
        site = await make(emulator.url, emulator.url)
        async with site.dial() as client:
            assert [event["type"] for event in await events(client, "session.created")] == ["session.created"]
        record = await site.record()
    assert (record["status"], record["org"], record["attempts"]) == (101, "org1", 2)


async def test_a_dead_origin_is_not_the_clients_either(make: Make, emulator: Emulator) -> None:
    with socket.create_server(("127.0.0.1", 0)) as dead:
        port = dead.getsockname()[1]
    site = await make(f"http://127.0.0.1:{port}", emulator.url)
    async with site.dial() as client:
        await events(client, "session.created")
    assert (await site.record())["org"] == "org1"


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [("429_requests:50", 429, "rate_limit_exceeded"), ("500", 500, None), ("400", 400, None)],
)
async def test_when_all_refuse_the_client_gets_the_last_word(
    make: Make, kind: str, status: int, code: str | None
) -> None:
    async with Emulator(_spec(faults=(FaultRule(kind),))) as emulator:
        site = await make(emulator.url, emulator.url)
        found, body = await refused(site.dial())
        assert emulator.attempts == (1 if kind == "400" else site.settings.retry.attempts)
    assert found == status
    assert code is None or body["error"]["code"] == code
    assert (await site.record())["status"] == status


async def test_when_nobody_else_can_be_asked_the_last_word_is_upstreams(make: Make) -> None:
    async with Emulator(_spec(faults=(FaultRule("401"),))) as emulator:
        site = await make(emulator.url)
        status, body = await refused(site.dial())
        assert emulator.attempts == 1
    assert (status, body["error"]["code"]) == (401, "invalid_api_key")
    assert SECRETS[0][:12] not in str(body)
    assert site.state(0, of_key=True) is State.QUARANTINED


@pytest.mark.parametrize("first", [b"", b"\xff\xff no frames", write_frame(TEXT, b"x" * 200)[:1] + b"\xff"])
async def test_an_upstream_that_switches_and_breaks_is_left_for_another(
    make: Make, emulator: Emulator, first: bytes
) -> None:
    async def script(it: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(it.switch + first)
        await writer.drain()

    async with peer(script) as (url, _):
        site = await make(url, emulator.url)
        async with site.dial() as client:
            await events(client, "session.created")
        record = await site.record()
    assert (record["org"], record["attempts"]) == ("org1", 2)


async def test_when_nobody_speaks_websocket_it_is_a_bad_gateway(make: Make) -> None:
    async with Emulator(_spec(faults=(FaultRule("empty_200"),))) as emulator:
        site = await make(emulator.url, retry={"attempts": 1})
        status, body = await refused(site.dial())
    assert (status, body["error"]["code"]) == (502, "upstream_error")


@pytest.mark.parametrize("with_words", [True, False])
async def test_a_key_refused_after_the_101_is_tried_no_more(make: Make, emulator: Emulator, with_words: bool) -> None:
    async def script(it: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        words = {"type": "invalid_request_error", "code": "invalid_api_key", "message": f"Incorrect: {SECRETS[0]}"}
        error = text({"type": "error", "error": words}) if with_words else b""
        writer.write(it.switch + error + write_close(3000, "invalid_request_error.invalid_api_key"))
        await it.hear(reader, writer)

    async with peer(script) as (url, upstream):
        site = await make(url, emulator.url)
        async with site.dial() as client:
            assert (await events(client, "session.created"))[0]["type"] == "session.created"
        assert (await site.record())["attempts"] == 2
        assert site.state(0, of_key=True) is State.QUARANTINED
        await asyncio.wait_for(upstream.over.wait(), SOON)


async def test_a_callers_own_mistake_is_for_the_caller_to_read(make: Make) -> None:
    error = {"type": "error", "error": {"type": "invalid_request_error", "code": "invalid_model", "message": "no"}}

    async def script(it: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(it.switch + text(error) + write_close(4000, "invalid_request_error.invalid_model"))
        await it.hear(reader, writer)

    async with peer(script) as (url, _):
        site = await make(url)
        async with site.dial() as client:
            assert orjson.loads(await client.recv()) == error
            assert await closed(client) == (4000, "invalid_request_error.invalid_model")
        assert (await site.record())["attempts"] == 1


async def test_an_upstream_that_speaks_late_is_waited_for_only_so_long(make: Make) -> None:
    async def script(it: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(it.switch)
        assert (await it.frame(reader))[1] == b"first"
        writer.write(text({"type": "late"}))
        await it.hear(reader, writer)

    async with peer(script) as (url, _):
        site = await make(url, retry={"hold_first_event": "50ms"})
        async with site.dial() as client:
            await client.send("first")
            await events(client, "late")


async def test_an_upstream_lost_in_the_middle_is_told_to_the_client(make: Make) -> None:
    async def script(it: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(it.switch + text({"type": "session.created"}))
        await it.frame(reader)
        writer.transport.abort()

    async with peer(script) as (url, _):
        site = await make(url)
        async with site.dial() as client:
            await client.recv()
            await client.send("now")
            assert await closed(client) == (1011, "upstream connection lost")
        record = await site.record()
    assert (record["status"], record["reason"], record["attempts"]) == (101, "upstream_lost", 1)
    assert site.meters.broken_streams.labels("truncated").value == 1
    assert site.meters.attempts.labels("org0", "truncated").value == 1


async def test_trouble_told_within_a_session_counts_for_the_next(make: Make) -> None:
    message = f"You exceeded your current quota with {SECRETS[0]}."
    quota = {"type": "error", "error": {"type": "insufficient_quota", "code": "insufficient_quota", "message": message}}
    done = {"type": "response.done", "response": {"usage": {"input_tokens": 3, "output_tokens": 4}}}
    delta = {"type": "response.output_text.delta", "delta": "a key such as sk-abcdefgh is the model's own words"}

    async def script(it: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(it.switch + text({"type": "session.created"}))
        await it.frame(reader)
        for document in (delta, done, quota, done):
            writer.write(text(document))
        await it.hear(reader, writer)

    async with peer(script) as (url, _):
        site = await make(url)
        async with site.dial() as client:
            await client.recv()
            await client.send("go on")
            told = [orjson.loads(await client.recv()) for _ in range(4)]
            assert told[:2] == [delta, done]
            assert told[2]["error"]["code"] == "insufficient_quota"
            assert SECRETS[0] not in str(told[2])
            assert site.state(0) is State.PARKED
        record = await site.record()
    assert (record["input_tokens"], record["output_tokens"], record["status"]) == (6, 8, 101)
    assert site.state(0) is State.PARKED  # that the session ended well says nothing new


async def test_what_a_caller_names_in_a_session_costs_nobody_the_leased_model(make: Make) -> None:
    error = {"type": "error", "error": {"code": "model_not_found", "message": "The model `x` does not exist"}}

    async def script(it: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(it.switch + text({"type": "session.created"}) + text(error))
        await it.hear(reader, writer)

    async with peer(script) as (url, upstream):
        site = await make(url)
        for _ in range(2):  # the second would find the model excluded
            async with site.dial() as client:
                await events(client, "error")
            await site.record()
    assert len(upstream.heads) == 2


# -- ends -------------------------------------------------------------------------------------------------------------


async def test_a_client_that_goes_takes_its_upstream_with_it(make: Make) -> None:
    async with peer(listen) as (url, upstream):
        site = await make(url)
        client = await site.dial()
        await client.recv()
        client.transport.abort()
        await asyncio.wait_for(upstream.over.wait(), SOON)
        record = await site.record()
    assert (record["status"], record["reason"]) == (101, "client_gone")
    assert site.meters.attempts.labels("org0", "client_gone").value == 1


async def test_a_client_that_goes_before_its_101_does_too(make: Make) -> None:
    asked = asyncio.Event()

    async def script(it: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()  # and never answers
        await it.hear(reader, writer)

    async with peer(script) as (url, upstream):
        site = await make(url)
        _, writer = await asyncio.open_connection("127.0.0.1", site.port)
        lines = [f"GET {REALTIME} HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}", "Upgrade: websocket"]
        writer.write("\r\n".join([*lines, "Connection: Upgrade", NONCE, THIRTEEN, "", ""]).encode())
        await asyncio.wait_for(asked.wait(), SOON)
        writer.transport.abort()
        await asyncio.wait_for(upstream.over.wait(), SOON)
        record = await site.record()
    assert (record["status"], record["reason"]) == (499, "client_gone")


async def test_what_the_client_sends_before_its_101_arrives(make: Make) -> None:
    async with peer(listen) as (url, upstream):
        site = await make(url)
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        lines = [f"GET {REALTIME} HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}", "Upgrade: websocket"]
        head = "\r\n".join([*lines, "Connection: Upgrade", NONCE, THIRTEEN, "", ""]).encode()
        writer.write(head + write_frame(TEXT, b"early", b"\1\2\3\4") + write_close(1000, "", b"\1\2\3\4"))
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SOON)
        assert b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in answer  # RFC 6455 §1.3
        writer.transport.abort()
        await asyncio.wait_for(upstream.over.wait(), SOON)
        await site.record()
    assert upstream.frames[0] == (TEXT, b"early")


@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_messages_over_the_cap_end_the_session(make: Make, emulator: Emulator, side: str) -> None:
    async def script(it: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(it.switch + text({"type": "session.created"}))
        await it.frame(reader)
        writer.write(write_frame(TEXT, b"x" * (64 * 1024 + 1)))
        await it.hear(reader, writer)

    async with peer(script) as (url, upstream):
        site = await make(url, intake={"websocket_frame_max": "64KiB"})
        async with site.dial() as client:
            await client.recv()
            await client.send("x" * (64 * 1024 + (side == "client")))
            code, _ = await closed(client)
        record = await site.record()
    assert (code, record["reason"]) == ((1009, "client_gone") if side == "client" else (1011, "upstream_broke"))
    assert all(len(payload) <= 64 * 1024 for _, payload in upstream.frames)


async def test_a_silent_session_ends_by_its_routes_setting(make: Make) -> None:
    routes = [{"match": "* /v1/realtime*", "timeouts": {"websocket_silence": "1s"}}]
    async with peer(listen) as (url, _):
        site = await make(url, routes=routes)
        async with site.dial() as client:
            assert (await closed(client))[0] == 1001
        assert (await site.record())["reason"] == "idle 1001"


async def test_a_drain_tells_sessions_to_come_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "FAREWELL", 60.0)
    async with peer(listen) as (url, upstream):
        site = await make(url)
        async with site.dial() as client:
            await client.recv()
            site.product.stop_accepting()
            drain = asyncio.ensure_future(site.product.drain(asyncio.get_running_loop().time() + 30))
            assert await closed(client) == (1012, "service restart")
            await asyncio.wait_for(drain, SOON)  # it does not wait for what has ended
        record = await site.record()
        await asyncio.wait_for(upstream.over.wait(), SOON)
    assert record["reason"] == "draining 1012"
    assert upstream.frames[-1][0] == CLOSE


def test_every_end_the_relay_knows_is_known_here() -> None:
    assert set(BLAME) < set(ENDINGS)
    assert {reason for reason in ENDINGS if reason.startswith("upstream_")} <= set(BLAME)
    assert all(400 <= status < 600 for status in STATUS_OF_CLOSE.values())


# -- the program ------------------------------------------------------------------------------------------------------


@pytest.mark.system
async def test_the_program_serves_the_sdk_and_says_good_bye(
    tmp_path: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))  # this tree, not what is installed
    origins = {"up": {"dialect": "openai", "url": emulator.url, "private": True}}
    orgs = {"org0": {"origin": "up", "keys": [{"id": "k", "secret": {"value": SECRETS[0]}}]}}
    program = await asyncio.to_thread(launch_yugong, tmp_path, {"origins": origins, "orgs": orgs})
    try:
        url = f"http://127.0.0.1:{program.port}"
        async with sdk_of(url) as sdk, sdk.realtime.connect(model="gpt-realtime", max_retries=0) as session:
            assert (await asyncio.wait_for(session.recv(), SOON)).type == "session.created"
            os.kill(program.running.pid, signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as caught:
                await asyncio.wait_for(session.recv(), 2 * SOON)
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1012
    finally:
        await asyncio.to_thread(program.stop)
