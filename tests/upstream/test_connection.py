"""upstream/connection on real sockets: how answers begin, end, break and are left."""

import asyncio

import pytest

from yugong.base.errors import Reach, WireFault
from yugong.core.framing import Kind
from yugong.upstream.head import MAX_HEAD

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"Content-Length: 5\r\nX-Request-Id: r1\r\n\r\nhello"
CHUNKS = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def answering(*answers):
    """A script: each request gets the next answer; the connection stays open after the last."""

    async def script(talk):
        for answer in answers:
            await talk.request()
            await talk.say(answer)
        await talk.gone()

    return script


def closing(answer):
    async def script(talk):
        await talk.request()
        await talk.say(answer)

    return script


async def until(condition):
    """Waits, turn of the loop by turn, for something a callback will make true."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


# -- heads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"])
async def test_a_head_split_at_every_byte(serve, ask, leg, body_of, way, prefix):
    answer = prefix + HELLO
    cuts = iter(range(1, len(answer)))

    async def script(talk):
        for cut in cuts:
            await talk.head()
            await talk.say(answer[:cut])
            await read(next(iter(leg.origin(way(peer)).busy)), cut)
            await talk.say(answer[cut:])

    async def read(connection, count):
        await until(lambda: connection.received == count)

    peer = await serve(script)
    for _ in range(1, len(answer)):
        attempt = await ask(peer)
        assert (attempt.head.status, attempt.head.kind) == (200, Kind.LENGTH)
        assert attempt.head.get(b"x-request-id") == b"r1"
        assert await body_of(attempt.connection).whole() == b"hello"
        leg.finish(attempt)
    assert peer.accepted == 1


async def test_informational_answers_are_passed_over(serve, ask, body_of):
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\nA: b\r\n\r\n"
    attempt = await ask(await serve(answering(interim * 3 + HELLO)))
    assert attempt.head.status == 200
    assert await body_of(attempt.connection).whole() == b"hello"


async def test_a_flood_of_informational_answers_is_no_bug(serve, ask):
    """256 KiB in one read hold 14 000 of them: deep recursion here would be an exception in a callback."""
    peer = await serve(answering(b"HTTP/1.1 100 C\r\n\r\n" * 20_000 + HELLO))
    results = await asyncio.gather(ask(peer), return_exceptions=True)
    if isinstance(results[0], WireFault):
        assert results[0].kind in ("malformed", "answer_head_too_large")
    else:
        assert results[0].head.status == 200


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", OK + b"Content-Length: 5000\r\n\r\n"),
        ("HEAD", OK + b"Transfer-Encoding: chunked\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\n\r\n"),
        ("GET", OK + b"Content-Length: 0\r\n\r\n"),
    ],
)
async def test_answers_without_a_body(serve, ask, leg, body_of, method, answer):
    peer = await serve(answering(answer, answer))
    for _ in range(2):
        attempt = await ask(peer, method)
        assert attempt.head.kind is Kind.NONE
        assert await body_of(attempt.connection).whole() == b""
        leg.finish(attempt)
    assert peer.accepted == 1, "the connection was not kept"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (OK + b"Content-Length: 5\r\n\r\nhello", b"hello"),
        (CHUNKS + b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (CHUNKS + b"2;x=y\r\nhe\r\n3\r\nllo\r\n000\r\nTrailer: x\r\n\r\n", b"hello"),
        (CHUNKS + b"0\r\n\r\n", b""),
        (OK + b"\r\nhello", b"hello"),
        (OK + b"\r\n", b""),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello"),
    ],
)
async def test_bodies_are_whole(serve, ask, body_of, answer, expected):
    attempt = await ask(await serve(closing(answer)))
    body = body_of(attempt.connection)
    assert await body.whole() == expected
    assert (body.ends, body.fault) == (1, None)


async def test_whole_chunks_are_handed_on_as_they_came(serve, ask, body_of):
    go = asyncio.Event()

    async def script(talk):
        await talk.request()
        await talk.say(CHUNKS)
        await go.wait()
        await talk.say(b"5\r\nhello\r\n")
        await talk.gone()

    attempt = await ask(await serve(script))
    body = body_of(attempt.connection)
    go.set()
    await until(lambda: body.size)
    assert (body.parts, body.framed) == ([b"hello"], [b"5\r\nhello\r\n"])


# -- broken answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 1, 5, 12, 17, len(HELLO) - 6])
async def test_an_end_in_the_head(serve, ask, cut):
    with pytest.raises(WireFault) as caught:
        await ask(await serve(closing(HELLO[:cut])))
    assert (caught.value.kind, caught.value.reach) == ("truncated" if cut else "reset", Reach.SENT)
    assert not caught.value.is_stale


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 5\r\n\r\n",
        OK + b"Content-Length: 5\r\n\r\nhell",
        CHUNKS,
        CHUNKS + b"5",
        CHUNKS + b"5\r\nhel",
        CHUNKS + b"5\r\nhello",
        CHUNKS + b"5\r\nhello\r\n",
        CHUNKS + b"5\r\nhello\r\n0\r\n",
        CHUNKS + b"5\r\nhello\r\n0\r\nTrailer: x\r\n",
    ],
)
async def test_an_end_in_the_body_is_never_a_clean_one(serve, ask, leg, body_of, answer):
    attempt = await ask(await serve(closing(answer)))
    body = body_of(attempt.connection)
    with pytest.raises(WireFault) as caught:
        await body.whole()
    assert (caught.value.kind, caught.value.reach, body.ends) == ("truncated", Reach.PARTIAL, 0)
    leg.finish(attempt)
    assert leg.counts() == (0, 0)


@pytest.mark.parametrize(
    "answer", [OK + b"\r\nhello", OK + b"Content-Length: 50\r\n\r\nhello", CHUNKS + b"5\r\nhello\r\n"]
)
async def test_a_reset_in_the_body_is_never_a_clean_end(serve, ask, body_of, answer):
    go = asyncio.Event()

    async def script(talk):
        await talk.request()
        await talk.say(answer)
        await go.wait()
        talk.reset()

    attempt = await ask(await serve(script))
    body = body_of(attempt.connection)
    await until(lambda: body.size == 5)
    go.set()
    with pytest.raises(WireFault) as caught:
        await body.whole()
    assert (caught.value.kind, caught.value.reach) == ("reset", Reach.PARTIAL)


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x00" * 64,
        b"\x15\x03\x03\x00\x02\x02\x46",
        b"<html>502</html>\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/9.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"RTSP/1.0 200 OK\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 000 Nothing\r\n\r\n" + HELLO,
        b"HTTP/1.1 099 Nothing\r\n\r\n" + HELLO,
    ],
)
async def test_garbage_is_malformed(serve, ask, leg, garbage):
    with pytest.raises(WireFault) as caught:
        await ask(await serve(answering(garbage)))
    assert caught.value.kind == "malformed"
    assert leg.counts() == (0, 0)


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\ncontent-length: 6\r\n",
        b"Content-Length: 5, 6\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: -5\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length: 5 5\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Content-Length : 5\r\n",
        b"Content-Length: 5\n",
        b"Content-Length: 5\rX: y\r\n",
        b"Content-Length: 5\r\n X: folded\r\n",
        b"X: y\n\r\nContent-Length: 5\r\n",
        b"X: y\x00\r\nContent-Length: 5\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n",
        b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\ntransfer-encoding: identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
    ],
)
async def test_smuggling_shapes_are_refused(serve, ask, leg, lines):
    """Threat 38, from the other side: two ways to find the end of an answer are none."""
    with pytest.raises(WireFault) as caught:
        await ask(await serve(answering(OK + lines + b"\r\n5\r\nhello\r\n0\r\n\r\n")))
    assert caught.value.kind == "malformed"
    assert leg.counts() == (0, 0)


@pytest.mark.parametrize(
    "rest",
    [b"5\nhello\r\n0\r\n\r\n", b"5\r\nhello\n0\r\n\r\n", b"0x5\r\nhello\r\n", b"-1\r\n", b"5\r\nhello!\r\n", b"\r\n"],
)
async def test_broken_chunking_is_malformed(serve, ask, body_of, rest):
    peer = await serve(answering(CHUNKS + b"1\r\na\r\n" + rest))

    async def call():
        attempt = await ask(peer)  # may fail already here: what came with the head is looked at with it
        await body_of(attempt.connection).whole()

    with pytest.raises(WireFault) as caught:
        await call()
    assert (caught.value.kind, caught.value.reach) == ("malformed", Reach.PARTIAL)


@pytest.mark.parametrize(
    "pieces",
    [
        [OK + b"X: " + b"y" * (MAX_HEAD + 1)],
        [OK + b"X: " + b"y" * (MAX_HEAD + 1) + b"\r\n\r\n"],
        [OK, *[b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n"] * 2000, b"\r\n"],
    ],
    ids=["endless", "whole", "many lines"],
)
async def test_a_huge_head(serve, ask, leg, pieces):
    async def script(talk):
        await talk.request()
        for piece in pieces:
            await talk.say(piece)
        await talk.gone()

    with pytest.raises(WireFault) as caught:
        await ask(await serve(script))
    assert caught.value.kind == "answer_head_too_large"
    assert leg.counts() == (0, 0)


async def test_a_head_just_under_the_limit(serve, ask, body_of):
    lines = b"X: %b\r\nContent-Length: 5\r\n\r\n"
    attempt = await ask(await serve(answering(OK + lines % (b"y" * (MAX_HEAD - len(OK + lines) + 2)) + b"hello")))
    assert await body_of(attempt.connection).whole() == b"hello"


# -- keeping the connection -------------------------------------------------------------------------------------------


async def test_a_connection_carries_one_exchange_after_another(serve, ask, leg, body_of):
    peer = await serve(answering(HELLO, CHUNKS + b"2\r\nhi\r\n0\r\n\r\n", HELLO))
    bodies = []
    for _ in range(3):
        attempt = await ask(peer)
        bodies.append(await body_of(attempt.connection).whole())
        leg.finish(attempt)
    assert bodies == [b"hello", b"hi", b"hello"]
    assert (peer.accepted, leg.counts()) == (1, (0, 1))
    assert attempt.connection.served == 3


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nConnection: keep-alive, Close\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_an_answer_may_say_that_it_is_the_last(serve, ask, leg, body_of, head):
    peer = await serve(answering(head))
    attempt = await ask(peer)
    await body_of(attempt.connection).whole()
    leg.finish(attempt)
    assert leg.counts() == (0, 0)
    await until(lambda: peer.open == 0)


async def test_a_connection_of_http_1_0_is_kept_where_it_says_so(serve, ask, leg, body_of):
    peer = await serve(answering(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello"))
    attempt = await ask(peer)
    await body_of(attempt.connection).whole()
    leg.finish(attempt)
    assert leg.counts() == (0, 1)


@pytest.mark.parametrize(
    "answer", [HELLO + b"x", HELLO + HELLO, CHUNKS + b"0\r\n\r\nHTTP/1.1 ", b"HTTP/1.1 204 No Content\r\n\r\nhello"]
)
async def test_bytes_after_the_end_spoil_the_connection_not_the_answer(serve, ask, leg, body_of, answer):
    peer = await serve(answering(answer))
    attempt = await ask(peer)
    assert await body_of(attempt.connection).whole() in (b"hello", b"")
    leg.finish(attempt)
    assert leg.counts() == (0, 0)
    await until(lambda: peer.open == 0)


@pytest.mark.parametrize("is_finished", [False, True], ids=["before finish", "idle"])
async def test_bytes_nobody_asked_for_spoil_the_connection(serve, ask, leg, body_of, is_finished):
    """An answer planted on an idle connection would be the next caller's."""
    go = asyncio.Event()

    async def script(talk):
        await talk.request()
        await talk.say(HELLO)
        if talk.number == 1:
            await go.wait()
            await talk.say(OK + b"Content-Length: 6\r\n\r\nforged")
        await talk.gone()

    peer = await serve(script)
    attempt = await ask(peer)
    await body_of(attempt.connection).whole()
    if is_finished:
        leg.finish(attempt)
    go.set()
    await until(lambda: attempt.connection.transport is None)
    if not is_finished:
        leg.finish(attempt)
    assert leg.counts() == (0, 0)
    again = await ask(peer)
    assert await body_of(again.connection).whole() == b"hello"
    assert peer.accepted == 2


@pytest.mark.parametrize("ending", ["fin", "rst"])
async def test_an_idle_connection_that_closes_is_forgotten(serve, ask, leg, body_of, ending):
    go = asyncio.Event()

    async def script(talk):
        await talk.request()
        await talk.say(HELLO)
        await go.wait()
        if ending == "rst":
            talk.reset()

    attempt = await ask(await serve(script))
    await body_of(attempt.connection).whole()
    leg.finish(attempt)
    assert leg.counts() == (0, 1)
    go.set()
    await until(lambda: leg.counts() == (0, 0))
