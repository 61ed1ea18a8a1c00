"""The opening handshake: what the client asked, what goes upstream, what comes back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from yugong.base.errors import Reach, Refusal, RefusalKind, WireFault
from yugong.core.frames import TEXT, write_frame
from yugong.upstream.connection import MAX_HEAD, Head
from yugong.upstream.handshake import (
    BODY_MAX,
    EARLY_MAX,
    Accepted,
    Declined,
    Upgrade,
    WrongVersion,
    accept_of,
    check_switch,
    is_upgrade,
    make_key,
    read_upgrade,
    shake_hands,
    write_request,
    write_switch,
)

KEY = make_key(bytes(range(16)))
BASIC = [
    (b"Host", b"localhost"),
    (b"Upgrade", b"websocket"),
    (b"Connection", b"keep-alive, Upgrade"),
    (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    (b"Sec-WebSocket-Version", b"13"),
]


def with_protocols(*values: bytes) -> list[tuple[bytes, bytes]]:
    return BASIC + [(b"Sec-WebSocket-Protocol", value) for value in values]


def switched(**changes: bytes | None) -> Head:
    values = {"upgrade": b"WebSocket", "connection": b"upgrade", "sec_websocket_accept": accept_of(KEY), **changes}
    headers = [(name.replace("_", "-").encode(), value) for name, value in values.items() if value is not None]
    return Head(101, dict(headers))


# -- the client's request ---------------------------------------------------------------------------------------------


def test_the_accept_value_is_that_of_the_rfc() -> None:
    assert read_upgrade("GET", BASIC).accept == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize(
    ("upgrade", "connection", "asked"),
    [
        (b"websocket", b"Upgrade", True),
        (b"WebSocket", b"keep-alive, uPGRADE", True),
        (b"h2c", b"Upgrade", False),
        (b"websocket, h2c", b"Upgrade", False),
        (b"websocket", b"keep-alive", False),
    ],
)
def test_only_websockets_are_upgrades(upgrade: bytes, connection: bytes, asked: bool) -> None:
    assert is_upgrade([(b"Upgrade", upgrade), (b"Connection", connection)]) is asked


def test_a_plain_request_is_no_upgrade() -> None:
    assert not is_upgrade([(b"Host", b"localhost")])


def test_a_browsers_key_and_organisation_are_taken_out_of_the_subprotocols() -> None:
    upgrade = read_upgrade(
        "GET",
        with_protocols(
            b"realtime, openai-insecure-api-key.yg-abc,openai-organization.org-1",
            b"openai-project.p1 , ,openai-beta.realtime-v1",
        ),
    )
    assert upgrade.protocols == (b"realtime", b"openai-beta.realtime-v1")
    assert repr(upgrade) == "<Upgrade realtime, openai-beta.realtime-v1>"


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("POST", {}),
        ("GET", {b"Sec-WebSocket-Key": b"short"}),
        ("GET", {b"Sec-WebSocket-Key": b"dGhlIHNhbXBsZSBub25jZQ="}),
        ("GET", {b"Sec-WebSocket-Key": None}),
        ("GET", {b"Content-Length": b"5"}),
        ("GET", {b"Transfer-Encoding": b"chunked"}),
    ],
)
def test_wrong_requests_are_refused(method: str, changes: dict[bytes, bytes | None]) -> None:
    headers = {**dict(BASIC), **changes}
    with pytest.raises(Refusal) as refused:
        read_upgrade(method, [(name, value) for name, value in headers.items() if value is not None])
    assert refused.value.kind is RefusalKind.MALFORMED


def test_two_keys_in_the_head_are_refused() -> None:
    with pytest.raises(Refusal):
        read_upgrade("GET", [*BASIC, (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ==")])


@pytest.mark.parametrize("version", [b"8", b"14", b"13, 8", b""])
def test_other_versions_are_answered_with_ours(version: bytes) -> None:
    with pytest.raises(WrongVersion) as refused:
        read_upgrade("GET", [*BASIC[:-1], (b"Sec-WebSocket-Version", version)])
    assert (refused.value.status, refused.value.headers) == (426, ((b"sec-websocket-version", b"13"),))


# -- our request ------------------------------------------------------------------------------------------------------


def test_the_request_has_our_handshake_and_the_clients_headers() -> None:
    upgrade = read_upgrade("GET", with_protocols(b"realtime, openai-insecure-api-key.yg-abc", b"v2"))
    lines = [
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        b"sec-websocket-version: 13\r\n",
        b"Sec-WebSocket-Extensions: permessage-deflate\r\n",
        b"OpenAI-Beta: realtime=v1\r\n",
        b"Origin: https://app.example\r\n",
    ]
    request = write_request(
        upgrade,
        lines,
        target=b"/v1/realtime?model=m",
        host=b"api.example",
        credentials=b"Authorization: Bearer sk-pool\r\n",
        key=KEY,
    )
    assert request == (
        b"GET /v1/realtime?model=m HTTP/1.1\r\nHost: api.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY + b"\r\nAccept-Encoding: identity\r\n"
        b"Authorization: Bearer sk-pool\r\nsec-websocket-protocol: realtime, v2\r\n"
        b"OpenAI-Beta: realtime=v1\r\nOrigin: https://app.example\r\n\r\n"
    )


def test_without_subprotocols_none_is_offered() -> None:
    request = write_request(read_upgrade("GET", BASIC), [], target=b"/", host=b"h", credentials=b"", key=KEY)
    assert b"protocol" not in request.lower()


# -- upstream's answer ------------------------------------------------------------------------------------------------


def test_a_sound_switch_gives_the_chosen_subprotocol() -> None:
    assert check_switch(switched(), KEY, ()) == b""
    assert check_switch(switched(sec_websocket_protocol=b"realtime"), KEY, (b"x", b"realtime")) == b"realtime"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"upgrade": None}, "no upgrade to websocket"),
        ({"upgrade": b"h2c"}, "no upgrade to websocket"),
        ({"connection": b"keep-alive"}, "no connection upgrade"),
        ({"sec_websocket_accept": None}, "wrong accept value"),
        ({"sec_websocket_accept": accept_of(b"other")}, "wrong accept value"),
        ({"sec_websocket_extensions": b"permessage-deflate"}, "an extension nobody offered"),
        ({"sec_websocket_protocol": b"graphql"}, "a subprotocol nobody offered"),
        ({"sec_websocket_protocol": b"a, b"}, "a subprotocol nobody offered"),
    ],
)
def test_a_switch_that_proves_nothing_is_a_fault(changes: dict[str, bytes | None], problem: str) -> None:
    with pytest.raises(WireFault) as fault:
        check_switch(switched(**changes), KEY, (b"a", b"b"))
    assert (fault.value.kind, fault.value.reach) == ("malformed", Reach.HEAD)
    assert fault.value.detail == f"handshake: {problem}"


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def upstream(script: Script) -> AsyncIterator[asyncio.Transport]:
    """A connection to a server that reads our request's head and then does as `script` says."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await script(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
    try:
        yield transport
    finally:
        transport.abort()
        server.close()
        await server.wait_closed()


REQUEST = b"GET /v1/realtime HTTP/1.1\r\nhost: h\r\n\r\n"
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: %b\r\nx-request-id: r1\r\nset-cookie: a=b\r\n\r\n" % accept_of(KEY)
)


async def shake(answer: bytes, *, then: str = "wait", timeout: float = 5.0, peek: float = 0.0) -> Accepted | Declined:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        if then == "wait":
            await reader.read()

    async with upstream(script) as transport:
        return await shake_hands(transport, REQUEST, KEY, (b"realtime",), timeout=timeout, peek=peek)


async def test_frames_that_come_with_the_switch_are_kept() -> None:
    answer = await shake(b"HTTP/1.1 100 Continue\r\n\r\n" + SWITCH + b"\x81\x02hi")
    assert isinstance(answer, Accepted)
    assert (answer.early, answer.protocol) == (b"\x81\x02hi", b"")
    assert repr(answer) == "<Accepted no subprotocol early=4B>"


async def test_a_switch_in_single_bytes_is_read_the_same() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in b"HTTP/1.1 103 Early Hints\r\n\r\n" + SWITCH:
            writer.write(bytes((byte,)))
            await writer.drain()
        await reader.read()

    async with upstream(script) as transport:
        answer = await shake_hands(transport, REQUEST, KEY, (), timeout=5.0)
        assert isinstance(answer, Accepted)
        assert not transport.is_reading()


async def test_peek_waits_for_the_first_frame() -> None:
    first = write_frame(TEXT, b'{"type":"error"}')

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SWITCH)
        await writer.drain()
        await accepted.wait()
        writer.write(first)
        await reader.read()

    accepted = asyncio.Event()
    async with upstream(script) as transport:
        shaking = asyncio.ensure_future(shake_hands(transport, REQUEST, KEY, (), timeout=5.0, peek=5.0))
        await asyncio.sleep(0)  # it has taken the transport over
        reader: Any = transport.get_protocol()
        await asyncio.wait_for(asyncio.shield(reader.head), 5)
        assert not shaking.done()
        accepted.set()
        answer = await shaking
    assert isinstance(answer, Accepted)
    assert answer.early == first


async def test_what_comes_before_the_relay_is_kept_up_to_a_bound() -> None:
    sent = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SWITCH + b"x" * (EARLY_MAX + 1))
        await writer.drain()
        sent.set()
        await reader.read()

    async with upstream(script) as transport:
        answer = await shake_hands(transport, REQUEST, KEY, (), timeout=5.0, peek=5.0)
        await asyncio.wait_for(sent.wait(), 5)
        assert isinstance(answer, Accepted)
        assert 0 < len(answer.early) <= EARLY_MAX + 1
        assert not transport.is_reading()


async def test_peek_gives_up_on_an_upstream_that_waits_for_the_client() -> None:
    answer = await shake(SWITCH, peek=0.05)
    assert isinstance(answer, Accepted)
    assert answer.early == b""


@pytest.mark.parametrize(
    ("answer", "then", "body", "is_whole"),
    [
        (b"HTTP/1.1 401 No\r\ncontent-length: 4\r\n\r\nnope", "wait", b"nope", True),
        (b"HTTP/1.1 429 No\r\ntransfer-encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n", "wait", b"no", True),
        (b"HTTP/1.1 503 No\r\n\r\ntill the end", "close", b"till the end", True),
        (b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", "wait", b"", True),
        (b"HTTP/1.1 502 No\r\ncontent-length: 9\r\n\r\ncut", "close", b"cut", False),
        (b"HTTP/1.1 502 No\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "wait", b"", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nupgrade: websocket\r\n\r\nok", "wait", b"ok", True),
        (
            b"HTTP/1.1 403 No\r\ncontent-length: 99999999\r\n\r\n" + b"x" * (BODY_MAX + 1),
            "wait",
            b"x" * BODY_MAX,
            False,
        ),
    ],
)
async def test_other_answers_are_handed_back(answer: bytes, then: str, body: bytes, is_whole: bool) -> None:
    got = await shake(answer, then=then)
    assert isinstance(got, Declined)
    assert (got.head.status, got.body, got.is_whole) == (int(answer[9:12]), body, is_whole)


async def test_a_body_that_stops_is_handed_back_at_the_time_out() -> None:
    got = await shake(b"HTTP/1.1 500 No\r\ncontent-length: 9\r\n\r\nhalf", timeout=0.1)
    assert isinstance(got, Declined)
    assert repr(got) == "<Declined 500 4B cut>"


@pytest.mark.parametrize(
    ("answer", "then", "kind", "reach"),
    [
        (b"", "close", "reset", Reach.SENT),
        (b"HTTP/1.1 101 Swi", "close", "truncated", Reach.SENT),
        (b"SSH-2.0-x\r\n", "wait", "malformed", Reach.SENT),
        (b"HTTP/1.1 abc\r\n\r\n", "wait", "malformed", Reach.HEAD),
        (b"HTTP/1.1 400 x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "wait", "malformed", Reach.HEAD),
        (b"HTTP/1.1 400 x\r\ntransfer-encoding: br\r\n\r\n", "wait", "malformed", Reach.HEAD),
        (b"HTTP/1.1 101 x\r\nx: " + b"y" * MAX_HEAD, "wait", "answer_head_too_large", Reach.HEAD),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "wait", "malformed", Reach.HEAD),
        (SWITCH.replace(accept_of(KEY), accept_of(b"x")), "wait", "malformed", Reach.HEAD),
    ],
)
async def test_what_is_no_answer_is_a_fault(answer: bytes, then: str, kind: str, reach: Reach) -> None:
    with pytest.raises(WireFault) as fault:
        await shake(answer, then=then)
    assert (fault.value.kind, fault.value.reach) == (kind, reach)


async def test_silence_is_a_fault_in_time() -> None:
    with pytest.raises(WireFault) as fault:
        await shake(b"", timeout=0.05)
    assert fault.value.kind == "first_byte_timeout"


async def test_a_connection_already_closing_is_a_fault_before_anything_was_sent() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pass

    async with upstream(script) as transport:
        transport.abort()
        with pytest.raises(WireFault) as fault:
            await shake_hands(transport, REQUEST, KEY, (), timeout=1.0)
    assert fault.value.reach is Reach.UNSENT


async def test_cancelled_it_closes_the_connection() -> None:
    started, gone = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        started.set()
        try:
            await reader.read()
        except ConnectionError:
            pass
        gone.set()

    async with upstream(script) as transport:
        shaking = asyncio.ensure_future(shake_hands(transport, REQUEST, KEY, (), timeout=5.0))
        await started.wait()
        shaking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await shaking
        await asyncio.wait_for(gone.wait(), 5)


async def test_a_real_server_accepts_our_request() -> None:
    async def handler(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=("realtime",))
        await socket.prepare(request)
        await socket.send_str(request.headers["authorization"])
        await socket.receive()
        return socket

    app = web.Application()
    app.router.add_get("/v1/realtime", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(asyncio.Protocol, *runner.addresses[0])
        headers = with_protocols(b"openai-insecure-api-key.yg-1, realtime")
        upgrade = read_upgrade("GET", headers)
        request = write_request(
            upgrade, [], target=b"/v1/realtime", host=b"h", credentials=b"authorization: Bearer p\r\n", key=KEY
        )
        answer = await shake_hands(transport, request, KEY, upgrade.protocols, timeout=5.0, peek=5.0)
        assert isinstance(answer, Accepted)
        assert (answer.protocol, answer.early) == (b"realtime", write_frame(TEXT, b"Bearer p"))
        transport.abort()
    finally:
        await runner.cleanup()


# -- our answer -------------------------------------------------------------------------------------------------------


def test_the_switch_to_the_client_shows_only_what_it_may() -> None:
    upgrade = Upgrade(b"ACCEPT", (b"realtime",))
    headers = [(b"x-request-id", b"r1"), (b"set-cookie", b"a=b"), (b"openai-organization", b"o"), (b"server", b"s")]
    accepted = Accepted(asyncio.Transport(), Head(101, dict(headers)), b"realtime", b"")
    assert write_switch(upgrade, accepted, [(b"x-yugong-call", b"yg_1")]) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: ACCEPT\r\nSec-WebSocket-Protocol: realtime\r\nx-request-id: r1\r\n"
        b"x-yugong-call: yg_1\r\n\r\n"
    )
