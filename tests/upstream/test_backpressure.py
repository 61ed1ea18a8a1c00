"""upstream/connection on real sockets: what waits is bounded, both ways, and nothing is lost by waiting."""

import asyncio
import hashlib

import pytest

from yugong.upstream.connection import EARLY_LIMIT

OK = b"HTTP/1.1 200 OK\r\n"
READ = 256 * 1024  # bytes uvloop reads at once
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"


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


async def settled(figure, for_seconds=0.15):
    """The value of `figure()` once it stands still."""
    while True:
        before = figure()
        await asyncio.sleep(for_seconds)
        if figure() == before:
            return before


# -- the request's body -----------------------------------------------------------------------------------------------


async def pieces_of(total, taken, piece=b"p" * 65536):
    for _ in range(total):
        taken.append(len(piece))
        yield piece


async def test_a_large_request_is_written_as_fast_as_it_is_read(serve, ask):
    go = asyncio.Event()
    taken: list[int] = []
    digest = hashlib.sha256()

    async def script(talk):
        await talk.head()
        await go.wait()
        left = 1024 * 65536
        while left:
            data = await talk.reader.read(1 << 20)
            digest.update(data)
            left -= len(data)
        await talk.say(HELLO)
        await talk.gone()

    peer = await serve(script)
    sending = asyncio.create_task(ask(peer, length=1024 * 65536, more=pieces_of(1024, taken)))
    held = await settled(lambda: len(taken))
    assert held * 65536 < 32 << 20, "the body was collected, not held back"  # the kernel alone takes up to 10 MiB
    go.set()
    assert (await sending).head.status == 200
    assert (len(taken), digest.digest()) == (1024, hashlib.sha256(b"p" * 1024 * 65536).digest())


@pytest.mark.parametrize("does_read", [True, False], ids=["reading on", "no longer reading"])
async def test_an_early_answer_ends_the_sending(serve, ask, leg, body_of, does_read):
    """A 413 may come while the body is still on its way; nobody may wait for a peer that reads no more."""
    taken: list[int] = []

    async def script(talk):
        await talk.head()
        if does_read:
            await talk.reader.readexactly(100_000)
        else:
            await settled(lambda: len(taken))
        await talk.say(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await (talk.gone() if does_read else asyncio.Event().wait())

    peer = await serve(script)
    async with asyncio.timeout(3):
        attempt = await ask(peer, length=1 << 40, more=pieces_of(1 << 24, taken))
    assert attempt.head.status == 413
    assert await body_of(attempt.connection).whole() == b"big"
    leg.finish(attempt)
    assert leg.counts() == (0, 0), "a connection with half a request on it was kept"
    assert len(taken) < 1000


async def test_an_early_answer_to_a_body_in_memory_does_not_keep_the_connection(serve, ask, leg, body_of):
    """What is still in our write buffer would stand before the next request; the peer may never have read it."""

    async def script(talk):
        await talk.head()
        await talk.say(b"HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\nno")
        await asyncio.Event().wait()

    attempt = await ask(await serve(script), body=b"x" * (16 << 20))
    assert await body_of(attempt.connection).whole() == b"no"
    assert attempt.connection.transport.get_write_buffer_size() > 0
    leg.finish(attempt)
    assert leg.counts() == (0, 0)


async def test_a_body_whose_source_fails_leaves_nothing_behind(serve, ask, leg, quiet_ends):
    class Lost(Exception):
        pass

    async def broken():
        yield b"p" * 1000
        raise Lost

    async def script(talk):
        await talk.head()
        await talk.gone()

    peer = await serve(script)
    with pytest.raises(Lost):
        await ask(peer, length=10_000, more=broken())
    assert leg.counts() == (0, 0)
    await until(lambda: peer.open == 0)


async def test_a_call_cancelled_while_it_sends_leaves_nothing_behind(serve, ask, leg, quiet_ends):
    async def stuck():
        yield b"p" * 1000
        await asyncio.Event().wait()

    async def script(talk):
        await talk.head()
        began.set()
        await talk.gone()

    began = asyncio.Event()
    peer = await serve(script)
    sending = asyncio.create_task(ask(peer, length=10_000, more=stuck()))
    await began.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert leg.counts() == (0, 0)
    await until(lambda: peer.open == 0)


# -- backpressure -----------------------------------------------------------------------------------------------------

BIG = 24 << 20
PIECE = bytes(range(256)) * 256


def sending_big(framing, sent):
    async def script(talk):
        await talk.request()
        await talk.say(OK + framing + b"\r\n")
        while sent[0] < BIG:
            data = b"%x\r\n%b\r\n" % (len(PIECE), PIECE) if b"chunked" in framing else PIECE
            await talk.say(data)
            sent[0] += len(PIECE)
        if b"chunked" in framing:
            await talk.say(b"0\r\n\r\n")
        if framing:
            await talk.gone()

    return script


FRAMINGS = pytest.mark.parametrize(
    "framing",
    [b"Content-Length: %d\r\n" % BIG, b"Transfer-Encoding: chunked\r\n", b""],
    ids=["length", "chunked", "close"],
)


@FRAMINGS
@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
async def test_a_slow_sink_holds_upstream_back(serve, ask, way, body_of, authority, framing, is_tls):
    """Threats 46 and 49: what waits here is bounded, and nothing is lost by waiting."""
    sent = [0]
    tls = authority.context("localhost") if is_tls else None
    peer = await serve(sending_big(framing, sent), tls=tls)
    attempt = await ask(way(peer, host="localhost", is_tls=is_tls, ca_file=authority.file))
    body = body_of(attempt.connection, pause_at=1 << 20)
    await body.paused.wait()
    await settled(lambda: sent[0])
    assert body.size < (1 << 20) + 4 * READ
    assert sent[0] < BIG
    assert not attempt.connection.is_reading()
    attempt.connection.resume_reading()
    assert hashlib.sha256(await body.whole()).digest() == hashlib.sha256(PIECE * (BIG // len(PIECE))).digest()


@FRAMINGS
async def test_what_nobody_takes_yet_is_bounded(serve, ask, body_of, framing):
    sent = [0]
    attempt = await ask(await serve(sending_big(framing, sent)))
    await settled(lambda: sent[0])
    connection = attempt.connection
    assert EARLY_LIMIT < connection.early_bytes <= EARLY_LIMIT + READ
    assert connection.early_bytes == sum(map(len, connection.early))
    assert not connection.is_reading()
    taken = connection.take_early()
    assert PIECE in taken
    assert (connection.early_bytes, connection.early) == (0, [])
    rest = await body_of(connection).whole()
    assert hashlib.sha256(taken + rest).digest() == hashlib.sha256(PIECE * (BIG // len(PIECE))).digest()


async def test_a_sink_that_pauses_while_it_takes_the_early_bytes_stays_paused(serve, ask, body_of):
    """A client's transport says "enough" once only, in the middle of `attach`: undoing it would buffer without end."""
    sent = [0]
    attempt = await ask(await serve(sending_big(b"Content-Length: %d\r\n" % BIG, sent)))
    await until(lambda: attempt.connection.early_bytes > EARLY_LIMIT)
    body = body_of(attempt.connection, pause_at=1)
    assert body.paused.is_set()
    await settled(lambda: sent[0])
    assert not attempt.connection.is_reading()
    assert body.size <= EARLY_LIMIT + READ
    attempt.connection.resume_reading()
    assert len(await body.whole()) == BIG


async def test_an_answer_whole_before_anybody_asked_is_handed_over_at_once(serve, ask, body_of):
    attempt = await ask(await serve(answering(HELLO)))
    await until(lambda: attempt.connection.is_done)
    body = body_of(attempt.connection)
    assert (body.parts, body.ends) == ([b"hello"], 1)


async def test_an_answer_broken_before_anybody_asked_tells_its_bytes_and_its_fault(serve, ask, body_of):
    attempt = await ask(await serve(closing(OK + b"Content-Length: 9\r\n\r\nhello")))
    await until(lambda: attempt.connection.fault is not None)
    body = body_of(attempt.connection)
    assert (body.parts, body.ends, repr(body.fault)) == ([b"hello"], 0, "<WireFault truncated partial>")
