"""upstream/origin through an HTTP proxy: the tunnel, who is to blame if it does not open, and that nothing is left."""

import asyncio

import pytest

from yugong.base.errors import Reach, WireFault
from yugong.upstream.origin import Egress, OriginSpec, basic

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


async def hello(talk):
    while True:
        await talk.request()
        await talk.say(HELLO)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def tunnel(to, answer=b"HTTP/1.1 200 Connection established\r\n\r\n"):
    """A script: an HTTP proxy that answers CONNECT and then passes bytes on to `to`."""

    async def script(talk):
        await talk.head()
        await talk.say(answer)
        reader, writer = await asyncio.open_connection("127.0.0.1", to.port)

        async def pump():
            while data := await reader.read(65536):
                await talk.say(data)

        task = asyncio.create_task(pump())
        try:
            while data := await talk.reader.read(65536):
                writer.write(data)
                await writer.drain()
        finally:
            task.cancel()
            writer.transport.abort()

    return script


def through(way, peer, proxy, host="127.0.0.1", **changes):
    egress = Egress(host, proxy.port, changes.pop("authorization", ""))
    return way(peer, egress=egress, host=changes.pop("origin", "127.0.0.1"), **changes)


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
async def test_a_way_through_an_egress_proxy(serve, ask, way, leg, body_of, authority, is_tls):
    """The name is the proxy's to resolve; TLS goes through it to the origin itself; the connection is kept."""
    seen = []
    context = authority.context("api.test")
    context.sni_callback = lambda _, name, __: seen.append(name)
    peer = await serve(hello, tls=context if is_tls else None)
    proxy = await serve(tunnel(peer))
    spec = through(way, peer, proxy, authorization=basic("user", "pass"), host="127.0.0.1")
    spec = OriginSpec("o", "api.test", peer.port, is_tls, ca_file=authority.file, egress=spec.egress)
    for _ in range(3):
        attempt = await ask(spec)
        assert await body_of(attempt.connection).whole() == b"hello"
        leg.finish(attempt)
    assert seen == (["api.test"] if is_tls else [])
    assert (proxy.accepted, len(peer.heads)) == (1, 3)
    target = f"api.test:{peer.port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", "Proxy-Authorization: Basic dXNlcjpwYXNz", "", ""]
    assert proxy.heads == ["\r\n".join(lines).encode()]
    assert all(b"Proxy-" not in head for head in peer.heads)


async def test_a_session_is_resumed_through_a_proxy(serve, ask, way, leg, body_of, authority):
    reused = []

    async def script(talk):
        reused.append(talk.info("ssl_object").session_reused)
        await talk.request()
        await talk.say(HELLO.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"))
        await talk.gone()

    peer = await serve(script, tls=authority.context("localhost"))
    proxy = await serve(tunnel(peer))
    spec = OriginSpec(
        "o", "localhost", peer.port, True, ca_file=authority.file, egress=through(way, peer, proxy).egress
    )
    for _ in range(2):
        attempt = await ask(spec)
        await body_of(attempt.connection).whole()
        leg.finish(attempt)
    assert reused == [False, True]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\n\r\n",
        b"HTTP/1.1 2xx\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"SSH-2.0-x 200 y\r\n\r\n",
        b"\x00" * (64 << 10),
        b"HTTP/1.1 200 OK\r\n\r\n" + HELLO,
        b"",
        b"HTTP/1.1 200",
    ],
)
async def test_a_proxy_that_does_not_let_us_through(serve, ask, way, leg, answer):
    async def script(talk):
        await talk.head()
        await talk.say(answer)
        if len(answer) > 20:
            await talk.gone()

    peer = await serve(hello)
    proxy = await serve(script)
    with pytest.raises(WireFault) as caught:
        await ask(through(way, peer, proxy))
    assert (caught.value.kind, caught.value.reach) == ("egress_proxy", Reach.UNSENT)
    assert peer.accepted == 0
    await until(lambda: proxy.open == 0)


async def test_a_proxy_that_refuses_connections(serve, ask, way, leg):
    peer, proxy = await serve(hello), await serve(hello)
    proxy.refuse()
    with pytest.raises(WireFault) as caught:
        await ask(through(way, peer, proxy))
    assert (caught.value.kind, caught.value.reach) == ("egress_proxy", Reach.UNSENT)


async def test_a_proxy_that_never_answers_is_left_at_the_timeout(serve, ask, way, leg):
    async def mute(talk):
        await talk.head()
        await talk.gone()

    peer, proxy = await serve(hello), await serve(mute)
    with pytest.raises(WireFault, match="connect_timeout"):
        await ask(through(way, peer, proxy), waits={"connect": 0.2})
    await until(lambda: proxy.open == 0)


async def test_a_tls_origin_that_never_answers_through_a_proxy_is_left_at_the_timeout(serve, ask, way, leg, authority):
    async def mute(talk):
        await talk.gone()

    peer = await serve(mute)
    proxy = await serve(tunnel(peer))
    spec = through(way, peer, proxy, is_tls=True, ca_file=authority.file)
    with pytest.raises(WireFault, match="connect_timeout"):
        await ask(spec, waits={"connect": 0.2})
    await until(lambda: proxy.open == 0)


async def test_a_wrong_name_behind_a_proxy_is_the_origins_fault(serve, ask, way, leg, authority):
    peer = await serve(hello, tls=authority.context("other.test"))
    proxy = await serve(tunnel(peer))
    spec = OriginSpec("o", "api.test", peer.port, True, ca_file=authority.file, egress=through(way, peer, proxy).egress)
    with pytest.raises(WireFault) as caught:
        await ask(spec)
    assert (caught.value.kind, peer.heads) == ("tls", [])
    await until(lambda: proxy.open == 0)


async def test_a_dead_address_of_the_proxy_is_passed_over(serve, ask, way, leg, names):
    names.table["proxy.test"] = ["127.0.0.2", "127.0.0.1"]
    peer = await serve(hello)
    proxy = await serve(tunnel(peer))
    egress = through(way, peer, proxy).egress
    spec = way(peer, egress=Egress("proxy.test", egress.port))
    for _ in range(3):
        leg.drop(await ask(spec))
    assert proxy.accepted == 3


@pytest.mark.parametrize("host", ["169.254.169.254", "127.0.0.1", "::1"])
async def test_a_literal_private_address_is_refused_through_a_proxy_too(serve, ask, way, leg, host):
    peer = await serve(hello)
    proxy = await serve(tunnel(peer))
    with pytest.raises(WireFault, match="forbidden_address"):
        await ask(through(way, peer, proxy, is_private=False, origin=host))
    assert proxy.accepted == 0


def test_nothing_secret_is_in_a_repr(way):
    egress = Egress("proxy.test", 3128, basic("user", "canary"))
    spec = OriginSpec("o", "api.test", 443, True, egress=egress)
    for shown in (repr(egress), repr(spec), str(spec)):
        assert "canary" not in shown and basic("user", "canary") not in shown
