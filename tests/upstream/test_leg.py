"""upstream/leg: what is sent again, when waiting is over, what is left behind, and that nothing gets mixed up."""

import asyncio
import hashlib

import pytest

from yugong.base.errors import Reach, WireFault
from yugong.emulator import Emulator, EmulatorSpec, FaultRule, OrgSpec
from yugong.upstream.leg import SWEEP_EVERY
from yugong.upstream.origin import OriginSpec

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"


async def hello(talk):
    while True:
        await talk.request()
        await talk.say(HELLO)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def served(ask, leg, body_of, to, **more):
    attempt = await ask(to, **more)
    body = await body_of(attempt.connection).whole()
    leg.finish(attempt)
    return body


# -- stale connections ------------------------------------------------------------------------------------------------


def dying(ending, answer=b""):
    """Serves one request a connection, then ends it as soon as the next request arrives."""

    async def script(talk):
        await talk.request()
        await talk.say(HELLO)
        await talk.reader.read(10)
        talk.write(answer)
        await talk.writer.drain()
        if ending == "rst":
            talk.reset()

    return script


@pytest.mark.parametrize("ending", ["fin", "rst"])
async def test_a_stale_connection_is_dialled_anew(serve, ask, leg, body_of, ending):
    peer = await serve(dying(ending))
    for _ in range(4):
        assert await served(ask, leg, body_of, peer) == b"hello"
    assert peer.accepted == 4
    assert leg.counts() == (0, 1)


async def test_all_idle_connections_may_be_stale(serve, ask, leg, body_of):
    peer = await serve(dying("rst"))
    attempts = [await ask(peer) for _ in range(5)]
    for attempt in attempts:
        await body_of(attempt.connection).whole()
        leg.finish(attempt)
    assert await served(ask, leg, body_of, peer) == b"hello"


async def test_a_new_connection_that_breaks_is_not_stale(serve, ask, leg, body_of):
    """Once only: what breaks a second time is upstream's fault."""

    async def script(talk):
        await talk.request()
        if talk.number == 1:
            await talk.say(HELLO)
            await talk.reader.read(10)
        talk.reset()

    peer = await serve(script)
    assert await served(ask, leg, body_of, peer) == b"hello"
    with pytest.raises(WireFault) as caught:
        await ask(peer)
    assert (caught.value.kind, caught.value.reach, caught.value.is_stale) == ("reset", Reach.SENT, False)
    assert peer.accepted == 2


@pytest.mark.parametrize("answer", [b"H", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_a_connection_that_began_to_answer_is_not_stale(serve, ask, leg, body_of, answer):
    """Upstream has acted on it: sending it again could do a thing twice."""
    peer = await serve(dying("fin", answer))
    assert await served(ask, leg, body_of, peer) == b"hello"
    with pytest.raises(WireFault) as caught:
        await ask(peer)
    assert not caught.value.is_stale
    assert peer.accepted == 1


async def test_a_large_body_on_a_stale_connection_is_sent_anew_and_whole(serve, ask, leg, body_of):
    """What the dead connection took is read again."""
    bodies = []

    async def script(talk):
        if talk.number == 1:
            await talk.request()
            await talk.say(HELLO)
            await talk.reader.read(10)
            talk.reset()
            return
        await talk.head()
        bodies.append(await talk.reader.readexactly(len(expected)))
        await talk.say(HELLO)

    async def pieces():
        for at in range(0, len(expected), 65536):
            yield expected[at : at + 65536]
            await asyncio.sleep(0.001)

    expected = bytes(range(256)) * 2048
    peer = await serve(script)
    assert await served(ask, leg, body_of, peer) == b"hello"
    attempt = await ask(peer, length=len(expected), more=pieces)
    assert (attempt.head.status, bodies) == (200, [expected])


# -- time-outs --------------------------------------------------------------------------------------------------------


def stalling(start, gap, rest=()):
    async def script(talk):
        await talk.request()
        await talk.say(start)
        for piece in rest:
            await asyncio.sleep(gap)
            await talk.say(piece)
        await talk.gone()

    return script


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_a_head_that_does_not_come(serve, ask, leg, start):
    peer = await serve(stalling(start, 0))
    began = leg.now()
    with pytest.raises(WireFault) as caught:
        await ask(peer, waits={"first_byte": 0.2})
    assert (caught.value.kind, caught.value.reach) == ("first_byte_timeout", Reach.SENT)
    assert 0.199 <= leg.now() - began < 0.2 + 3 * SWEEP_EVERY
    await until(lambda: peer.open == 0)
    assert leg.counts() == (0, 0)


async def test_the_first_byte_is_waited_for_from_the_last_piece_of_the_request_on(serve, ask, leg):
    async def slowly():
        for _ in range(6):
            await asyncio.sleep(0.1)
            yield b"x"

    async def script(talk):
        await talk.request()
        await talk.say(HELLO)

    attempt = await ask(await serve(script), length=6, more=slowly(), waits={"first_byte": 0.4})
    assert attempt.head.status == 200


async def test_a_body_that_falls_silent(serve, ask, leg, body_of):
    peer = await serve(stalling(OK + b"Content-Length: 9\r\n\r\nhello", 0))
    attempt = await ask(peer, waits={"silence": 0.2})
    with pytest.raises(WireFault) as caught:
        await body_of(attempt.connection).whole()
    assert (caught.value.kind, caught.value.reach) == ("silence_timeout", Reach.PARTIAL)
    await until(lambda: peer.open == 0)


async def test_a_body_that_drips_is_not_silent(serve, ask, leg, body_of):
    peer = await serve(stalling(OK + b"Content-Length: 6\r\n\r\n", 0.15, [b"a", b"b", b"c", b"d", b"e", b"f"]))
    attempt = await ask(peer, waits={"silence": 0.4})
    assert await body_of(attempt.connection).whole() == b"abcdef"


async def test_silence_is_not_upstreams_while_we_hold_its_bytes_back(serve, ask, leg, body_of):
    """Nor may the time we held it be counted against it afterwards."""
    go = asyncio.Event()

    async def script(talk):
        await talk.request()
        await talk.say(OK + b"Content-Length: 9\r\n\r\nhello")
        await go.wait()
        await asyncio.sleep(2 * SWEEP_EVERY)
        await talk.say(b"four")
        await talk.gone()

    attempt = await ask(await serve(script), waits={"silence": 0.5})
    body = body_of(attempt.connection)
    await until(lambda: body.size == 5)
    attempt.connection.pause_reading()
    await asyncio.sleep(0.8)
    assert body.fault is None
    attempt.connection.resume_reading()
    go.set()
    assert await body.whole() == b"hellofour"


async def test_an_answer_that_is_whole_is_not_silent(serve, ask, leg, body_of):
    attempt = await ask(await serve(hello), waits={"silence": 0.1})
    await asyncio.sleep(0.4)
    assert await body_of(attempt.connection).whole() == b"hello"
    leg.finish(attempt)
    assert leg.counts() == (0, 1)


async def test_a_call_has_an_end_though_bytes_keep_coming(serve, ask, leg, body_of):
    peer = await serve(stalling(OK + b"\r\n", 0.02, [b"x"] * 100))
    began = leg.now()
    attempt = await ask(peer, total=0.3)
    with pytest.raises(WireFault) as caught:
        await body_of(attempt.connection).whole()
    assert (caught.value.kind, caught.value.reach) == ("total_timeout", Reach.PARTIAL)
    assert 0.299 <= leg.now() - began < 0.3 + 3 * SWEEP_EVERY


async def test_a_call_has_an_end_before_its_head(serve, ask, leg):
    with pytest.raises(WireFault) as caught:
        await ask(await serve(stalling(b"", 0)), total=0.2)
    assert (caught.value.kind, caught.value.reach) == ("total_timeout", Reach.SENT)


async def test_a_peer_that_takes_no_body_meets_the_timeout(serve, ask, leg, quiet_ends):
    async def endless():
        while True:
            yield b"x" * 65536

    async def script(talk):
        await talk.head()
        await asyncio.Event().wait()

    peer = await serve(script)
    with pytest.raises(WireFault, match="first_byte_timeout"):
        await ask(peer, length=1 << 40, more=endless(), waits={"first_byte": 0.3})
    assert leg.counts() == (0, 0)


# -- leaving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("moment", ["waiting", "head", "body", "paused"])
async def test_drop_closes_upstream_at_once(serve, ask, way, leg, body_of, authority, moment, is_tls):
    """The client is gone: upstream must see it in the same moment, and stop billing."""
    asked = asyncio.Event()
    seen = asyncio.Event()

    async def script(talk):
        await talk.head()
        asked.set()
        if moment != "waiting":
            await talk.say(OK + b"\r\n")
        if moment in ("body", "paused"):
            await talk.say(b"x" * 100_000)
        await talk.gone()
        seen.set()

    peer = await serve(script, tls=authority.context("localhost") if is_tls else None)
    to = way(peer, host="localhost", is_tls=is_tls, ca_file=authority.file)
    if moment == "waiting":
        waiting = asyncio.create_task(ask(to))
        await asked.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    else:
        attempt = await ask(to)
        if moment in ("body", "paused"):
            body = body_of(attempt.connection, pause_at=1 if moment == "paused" else None)
            await until(lambda: body.size)
        leg.drop(attempt)
    async with asyncio.timeout(0.5):
        await seen.wait()
    assert leg.counts() == (0, 0)


async def test_a_call_cancelled_while_it_dials_leaves_nothing_behind(serve, ask, way, leg, authority):
    async def mute(talk):
        await talk.gone()

    peer = await serve(mute)
    spec = way(peer, host="localhost", is_tls=True, ca_file=authority.file)
    dialling = asyncio.create_task(ask(spec))
    await until(lambda: peer.open)
    dialling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialling
    await until(lambda: peer.open == 0)
    assert leg.origin(spec).dialling == 0


async def test_close_ends_everything(serve, ask, leg, body_of):
    async def script(talk):
        await talk.request()
        await talk.say(HELLO if talk.number == 1 else HELLO[:-1])
        await talk.gone()

    peer = await serve(script)
    idle = await ask(peer)
    await body_of(idle.connection).whole()
    busy = await ask(peer)
    leg.finish(idle)
    assert leg.counts() == (1, 1)
    await leg.close()
    assert leg.counts() == (0, 0)
    assert busy.connection.transport is None
    await until(lambda: peer.open == 0)


async def test_an_unfinished_answer_is_not_kept(serve, ask, leg):
    async def script(talk):
        await talk.request()
        await talk.say(HELLO[:-1])
        await talk.gone()

    peer = await serve(script)
    leg.finish(await ask(peer))
    assert leg.counts() == (0, 0)
    await until(lambda: peer.open == 0)


# -- redirects and cookies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_answers(serve, ask, leg, body_of, status):
    """Threat 3: a redirect followed would carry the key to where it points."""
    elsewhere = await serve(hello)

    async def script(talk):
        await talk.request()
        location = f"http://127.0.0.1:{elsewhere.port}/"
        await talk.say(f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())
        await talk.gone()

    peer = await serve(script)
    attempt = await ask(peer)
    assert attempt.head.status == status
    assert attempt.head.get(b"location").endswith(f":{elsewhere.port}/".encode())
    leg.finish(attempt)
    await asyncio.sleep(0.02)
    assert (peer.accepted, len(peer.heads), elsewhere.accepted) == (1, 1, 0)


async def test_cookies_are_not_kept(serve, ask, leg, body_of):
    """Threat 4; and no header line of theirs goes to the client."""

    async def script(talk):
        while True:
            await talk.request()
            await talk.say(HELLO.replace(b"\r\n\r\n", b"\r\nSet-Cookie: session=1; Path=/\r\n\r\n"))

    peer = await serve(script)
    for _ in range(2):
        attempt = await ask(peer)
        assert b"cookie" not in b"".join(attempt.head.lines).lower()
        await body_of(attempt.connection).whole()
        leg.finish(attempt)
    assert len(peer.heads) == 2
    assert b"cookie" not in b"".join(peer.heads).lower()


# -- many at once -----------------------------------------------------------------------------------------------------


async def test_many_exchanges_are_not_mixed_up(serve, ask, leg, body_of):
    """500 at once, three rounds over kept connections, in every framing; each answer carries its caller's number."""

    async def script(talk):
        while True:
            head, body = await talk.request()
            number = int(head.split(b" ", 2)[1][1:])
            answer = b"%d:%b;" % (number, body) * (1 + number % 50)
            await asyncio.sleep(number % 7 / 1000)
            half = len(answer) // 2
            if number % 3 == 0:
                talk.write(OK + b"Content-Length: %d\r\n\r\n%b" % (len(answer), answer[:half]))
                await asyncio.sleep(0)
                await talk.say(answer[half:])
            elif number % 3 == 1:
                talk.write(OK + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (half, answer[:half]))
                await asyncio.sleep(0)
                await talk.say(b"%x\r\n%b\r\n0\r\n\r\n" % (len(answer) - half, answer[half:]))
            else:
                await talk.say(OK + b"Connection: close\r\n\r\n" + answer)
                return

    peer = await serve(script)

    async def one(number):
        mine = hashlib.sha256(b"%d" % number).hexdigest().encode()
        attempt = await ask(peer, body=mine, path=f"/{number}")
        body = await body_of(attempt.connection).whole()
        leg.finish(attempt)
        assert body == b"%d:%b;" % (number, mine) * (1 + number % 50)

    for turn in range(3):
        await asyncio.gather(*(one(turn * 1000 + number) for number in range(500)))
    busy, idle = leg.counts()
    assert busy == 0
    assert 0 < idle <= 500
    assert peer.accepted < 1200


FAULTS = [
    ("connect_refused", {"connect", "reset"}),
    ("reset_before_head", {"reset"}),
    ("close_before_head", {"reset"}),
    ("reset_mid_head", {"truncated"}),
    ("stuck_head", {"first_byte_timeout"}),
    ("garbage", {"malformed"}),
    ("malformed:chunk", {"malformed"}),
    ("malformed:status", {"malformed"}),
    ("malformed:header", {"malformed"}),
    ("malformed:both", {"malformed"}),
    ("reset_after_head", {"reset"}),
    ("truncated_json", {"truncated"}),
]


@pytest.mark.parametrize(("kind", "expected"), FAULTS)
async def test_the_emulators_faults_have_their_names(leg, way, body_of, wire_to, kind, expected):
    spec = EmulatorSpec(orgs=(OrgSpec("org", keys=("sk-k",)),), faults=(FaultRule(kind),))
    async with Emulator(spec) as emulator:
        to = OriginSpec("emulator", "127.0.0.1", int(emulator.url.rsplit(":", 1)[1]), False, is_private=True)

        async def call():
            attempt = await leg.send(leg.origin(to), wire_to(to, first_byte=0.3))
            await body_of(attempt.connection).whole()

        with pytest.raises(WireFault) as caught:
            await call()
        assert caught.value.kind in expected
        assert not caught.value.is_stale
        await leg.close()


async def test_the_emulators_redirect_is_an_answer(leg, body_of, wire_to):
    spec = EmulatorSpec(orgs=(OrgSpec("org", keys=("sk-k",)),), faults=(FaultRule("redirect"),))
    async with Emulator(spec) as emulator:
        to = OriginSpec("emulator", "127.0.0.1", int(emulator.url.rsplit(":", 1)[1]), False, is_private=True)
        attempt = await leg.send(leg.origin(to), wire_to(to))
        assert (attempt.head.status, emulator.attempts) == (307, 1)
        leg.drop(attempt)
