"""upstream/origin and address: which addresses are dialled, TLS, what is kept and for how long."""

import asyncio
import socket
import ssl

import pytest

from yugong.base.errors import Reach, WireFault
from yugong.upstream.address import Resolver, is_public
from yugong.upstream.origin import OriginSpec

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


async def hello(talk):
    while True:
        await talk.request()
        await talk.say(HELLO)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


# -- addresses --------------------------------------------------------------------------------------------------------

FORBIDDEN = """
    127.0.0.1 127.9.9.9 0.0.0.0 0.1.2.3 10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254 169.254.170.2
    100.64.0.1 192.0.0.8 192.0.2.1 198.18.0.1 198.51.100.7 203.0.113.9 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255
    :: ::1 fe80::1 fe80::1%1 fc00::1 fd00:ec2::254 ff02::1 fec0::1 2001:db8::1 100::1
    ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0.0.0.0 ::ffff:224.0.0.1 ::127.0.0.1 ::10.0.0.1
    2002:7f00:1:: 2002:a9fe:a9fe:: 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b::a00:1 64:ff9b:1::a00:1
    2001:0:53aa:64c:0:fbff:f5ff:fffe
""".split()
PUBLIC = (
    "1.1.1.1 104.18.6.192 162.159.140.245 2606:4700::6812:7c0 2a00:1450:4001::1 64:ff9b::101:101 ::ffff:1.1.1.1".split()
)


@pytest.mark.parametrize("host", FORBIDDEN)
def test_addresses_nobody_may_be_sent_to(host):
    """Threat 2: loopback, private, link-local, metadata, shared, reserved; and each as it hides in IPv6."""
    assert not is_public(host)


@pytest.mark.parametrize("host", PUBLIC)
def test_addresses_of_the_internet(host):
    assert is_public(host)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "::1", "localhost", "0.0.0.0", "169.254.169.254", "::ffff:127.0.0.1", "inside.test"]
)
async def test_a_private_address_is_refused_unless_the_origin_is_private(serve, ask, way, leg, names, host):
    names.table["inside.test"] = ["127.0.0.1", "10.0.0.1", "::ffff:127.0.0.1"]
    peer = await serve(hello)
    with pytest.raises(WireFault) as caught:
        await ask(way(peer, host=host, is_private=False))
    assert (caught.value.kind, caught.value.reach) == ("forbidden_address", Reach.UNSENT)
    assert peer.accepted == 0
    assert leg.counts() == (0, 0)


async def test_a_name_is_judged_at_every_dial(ask, way, serve, names, leg):
    """DNS rebinding: public when looked at first, loopback later."""
    peer = await serve(hello)
    spec = way(peer, host="turn.test", is_private=False, resolve_every=0.0)
    names.table["turn.test"] = ["127.0.0.1"]
    for _ in range(2):
        with pytest.raises(WireFault, match="forbidden_address"):
            await ask(spec)
    assert peer.accepted == 0


async def test_of_mixed_addresses_only_the_public_ones_are_tried(names):
    names.table["mixed.test"] = ["127.0.0.1", "1.1.1.1", "::1", "10.0.0.1", "1.0.0.1"]
    resolver = Resolver(names, "mixed.test", 443, 30.0, is_private=False)
    for _ in range(4):
        assert {a.host for a in await resolver.addresses()} == {"1.1.1.1", "1.0.0.1"}


async def test_addresses_take_turns(names):
    names.table["two.test"] = ["10.0.0.1", "10.0.0.2"]
    resolver = Resolver(names, "two.test", 443, 30.0, is_private=True)
    firsts = [(await resolver.addresses())[0].host for _ in range(4)]
    assert sorted(firsts) == ["10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.2"]
    assert names.asked == ["two.test"]


async def test_a_dead_first_address_is_passed_over(serve, ask, way, names, leg):
    peer = await serve(hello)
    names.table["two.test"] = ["127.0.0.2", "127.0.0.1", "::1"]
    for _ in range(4):
        leg.drop(await ask(way(peer, host="two.test")))
    assert peer.accepted == 4


async def test_all_addresses_dead(ask, names, leg):
    names.table["two.test"] = ["127.0.0.2", "127.0.0.1"]
    spec = OriginSpec("o", "two.test", free_port(), False, is_private=True)
    with pytest.raises(WireFault) as caught:
        await ask(spec)
    assert (caught.value.kind, caught.value.reach) == ("connect", Reach.UNSENT)
    assert leg.origin(spec).dialling == 0


async def test_a_name_is_looked_up_again_and_the_old_answer_serves_meanwhile(names):
    names.table["move.test"] = ["10.0.0.1"]
    resolver = Resolver(names, "move.test", 443, 0.0, is_private=True)
    assert [a.host for a in await resolver.addresses()] == ["10.0.0.1"]
    names.table["move.test"] = ["10.0.0.2"]
    names.gate = asyncio.Event()
    await asyncio.sleep(0.002)
    assert [a.host for a in await resolver.addresses()] == ["10.0.0.1"]
    names.gate.set()
    await until(lambda: len(names.asked) == 2 and resolver._pending is None)
    assert [a.host for a in await resolver.addresses()] == ["10.0.0.2"]
    await resolver.close()


async def test_an_old_answer_serves_while_the_resolver_is_away(names):
    names.table["away.test"] = ["10.0.0.1"]
    resolver = Resolver(names, "away.test", 443, 0.0, is_private=True)
    await resolver.addresses()
    names.table["away.test"] = OSError("resolver away")
    for _ in range(3):
        await asyncio.sleep(0.002)
        assert [a.host for a in await resolver.addresses()] == ["10.0.0.1"]
    await resolver.close()


async def test_an_answer_older_than_it_may_serve_is_asked_for_again(names, monkeypatch):
    """Also where `resolve_every` is longer than that."""
    names.table["old.test"] = ["10.0.0.1"]
    resolver = Resolver(names, "old.test", 443, 3600.0, is_private=True)
    await resolver.addresses()
    monkeypatch.setattr("yugong.upstream.address.RESOLVE_KEPT", 0.0)
    await asyncio.sleep(0.002)
    assert [a.host for a in await resolver.addresses()] == ["10.0.0.1"]
    names.table["old.test"] = OSError("gone")
    await resolver.close()


async def test_one_look_up_serves_all_who_wait_for_it(names):
    names.table["slow.test"] = ["10.0.0.1"]
    names.gate = asyncio.Event()
    resolver = Resolver(names, "slow.test", 443, 30.0, is_private=True)
    waiting = [asyncio.create_task(resolver.addresses()) for _ in range(20)]
    await until(lambda: names.asked)
    waiting[0].cancel()  # who leaves takes nobody along
    await asyncio.sleep(0)
    names.gate.set()
    found = await asyncio.gather(*waiting[1:])
    assert {a.host for addresses in found for a in addresses} == {"10.0.0.1"}
    assert names.asked == ["slow.test"]


@pytest.mark.parametrize("host", ["missing.test", "a..b", "x" * 64 + ".test"])
async def test_a_name_that_does_not_resolve(ask, names, leg, host):
    names.table["missing.test"] = socket.gaierror(-2, "Name or service not known")
    with pytest.raises(WireFault) as caught:
        await ask(OriginSpec("o", host, 443, False))
    assert (caught.value.kind, caught.value.reach) == ("resolve", Reach.UNSENT)


# -- dialling ---------------------------------------------------------------------------------------------------------


async def test_a_full_backlog_ends_in_a_connect_timeout(ask, leg):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        port = sock.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        await asyncio.sleep(0.01)
        spec = OriginSpec("o", "127.0.0.1", port, False, is_private=True)
        with pytest.raises(WireFault) as caught:
            await ask(spec, waits={"connect": 0.2})
        for filler in fillers:
            filler.close()
    assert (caught.value.kind, caught.value.reach) == ("connect_timeout", Reach.UNSENT)
    assert leg.origin(spec).dialling == 0


@pytest.mark.parametrize("ending", ["fin", "rst", "greeting"])
async def test_a_peer_that_hangs_up_or_speaks_first_is_a_wire_fault(serve, ask, leg, ending):
    """The end may come between the dial and the request; nothing but a `WireFault` may come of it."""

    async def script(talk):
        if ending == "rst":
            talk.reset()
        elif ending == "greeting":
            talk.write(b"HTTP/1.1 503 Too many connections\r\nContent-Length: 0\r\n\r\n")
            await talk.gone()

    peer = await serve(script)
    faults = []
    for _ in range(100):
        try:
            leg.drop(await ask(peer))
        except WireFault as fault:
            faults.append(fault)
    assert leg.counts() == (0, 0)
    assert faults or ending == "greeting"
    assert not any(fault.is_stale for fault in faults)


async def test_connections_are_capped(serve, ask, way, leg):
    peer = await serve(hello)
    spec = way(peer, max_connections=2)
    held = [await ask(spec) for _ in range(2)]
    with pytest.raises(WireFault) as caught:
        await ask(spec)
    assert caught.value.reach is Reach.UNSENT
    leg.drop(held[0])
    assert (await ask(spec)).head.status == 200
    assert peer.accepted == 3


async def test_dials_under_way_count_against_the_cap(serve, ask, way, leg):
    peer = await serve(hello)
    spec = way(peer, max_connections=3)
    results = await asyncio.gather(*(ask(spec) for _ in range(10)), return_exceptions=True)
    assert sum(not isinstance(r, WireFault) for r in results) == 3
    assert peer.accepted == 3


async def test_an_idle_connection_expires(serve, ask, way, leg, body_of):
    peer = await serve(hello)
    spec = way(peer, keepalive=30.0)
    attempts = [await ask(spec) for _ in range(3)]
    for attempt in attempts:
        await body_of(attempt.connection).whole()
        leg.finish(attempt)
    origin = leg.origin(spec)
    origin.drop_expired(leg.now() + 29.0)
    assert origin.idle == 3
    attempts[0].connection.idle_since -= 20.0
    origin.drop_expired(leg.now() + 29.0)
    assert origin.idle == 2
    origin.drop_expired(leg.now() + 31.0)
    assert origin.idle == 0
    await until(lambda: peer.open == 0)


async def test_the_connection_used_last_is_taken_first(serve, ask, leg, body_of):
    peer = await serve(hello)
    attempts = [await ask(peer) for _ in range(3)]
    for attempt in attempts:
        await body_of(attempt.connection).whole()
        leg.finish(attempt)
    assert (await ask(peer)).connection is attempts[2].connection


async def test_a_retired_origin_lets_its_exchanges_end(serve, ask, way, leg, body_of):
    go = asyncio.Event()

    async def script(talk):
        await talk.request()
        await talk.say(HELLO[:-1])
        await go.wait()
        await talk.say(HELLO[-1:])
        await talk.gone()

    peer = await serve(script)
    attempt = await ask(peer)
    await leg.retire(set())
    go.set()
    assert await body_of(attempt.connection).whole() == b"hello"
    leg.finish(attempt)
    await until(lambda: peer.open == 0)


# -- TLS --------------------------------------------------------------------------------------------------------------


async def test_tls_is_verified_and_names_the_origin(serve, ask, way, names, authority, body_of):
    seen = []
    context = authority.context("api.test")
    context.sni_callback = lambda _, name, __: seen.append(name)
    names.table["api.test"] = ["127.0.0.1"]
    peer = await serve(hello, tls=context)
    attempt = await ask(way(peer, host="api.test", is_tls=True, ca_file=authority.file))
    assert await body_of(attempt.connection).whole() == b"hello"
    assert seen == ["api.test"]
    assert f"Host: api.test:{peer.port}".encode() in peer.heads[0]


@pytest.mark.parametrize("wrong", ["name", "authority", "expired", "system", "plain", "not http"])
async def test_what_is_not_the_origin_is_refused(serve, ask, way, names, authority, strangers, leg, wrong):
    names.table["api.test"] = ["127.0.0.1"]
    contexts = {
        "name": lambda: authority.context("other.test"),
        "authority": lambda: strangers.context("api.test"),
        "expired": lambda: authority.context("api.test", seconds=-60),
        "system": lambda: authority.context("api.test"),
    }

    async def plain(talk):
        await talk.say(HELLO if wrong == "plain" else b"\x00" * 64)
        await talk.gone()

    peer = await serve(plain if wrong not in contexts else hello, tls=contexts[wrong]() if wrong in contexts else None)
    ca_file = None if wrong == "system" else authority.file
    with pytest.raises(WireFault) as caught:
        await ask(way(peer, host="api.test", is_tls=True, ca_file=ca_file))
    assert (caught.value.kind, caught.value.reach) == ("tls", Reach.UNSENT)
    assert peer.heads == []
    assert leg.counts() == (0, 0)


async def test_old_tls_is_refused(serve, ask, way, names, authority):
    names.table["api.test"] = ["127.0.0.1"]
    context = authority.context("api.test")
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    peer = await serve(hello, tls=context)
    with pytest.raises(WireFault) as caught:
        await ask(way(peer, host="api.test", is_tls=True, ca_file=authority.file))
    assert caught.value.kind in (
        "tls",
        "reset",
    )  # whether the peer's alert gets out before its end is the peer's affair
    assert peer.heads == []


async def test_a_handshake_that_never_ends_is_a_connect_timeout(serve, ask, way, authority, leg):
    async def mute(talk):
        await talk.gone()

    peer = await serve(mute)
    with pytest.raises(WireFault, match="connect_timeout"):
        await ask(way(peer, host="localhost", is_tls=True, ca_file=authority.file), waits={"connect": 0.2})
    await until(lambda: peer.open == 0)


async def test_a_peer_gone_in_the_handshake_is_a_wire_fault(serve, ask, way, authority):
    async def leave(talk):
        await talk.reader.read(100)

    peer = await serve(leave)
    with pytest.raises(WireFault) as caught:
        await ask(way(peer, host="localhost", is_tls=True, ca_file=authority.file))
    assert caught.value.kind in ("tls", "reset")
    assert caught.value.reach is Reach.UNSENT


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_the_second_dial_resumes_the_session(serve, ask, way, authority, leg, body_of, version):
    reused = []

    async def script(talk):
        reused.append(talk.info("ssl_object").session_reused)
        await talk.request()
        await talk.say(HELLO.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n") if talk.number == 1 else HELLO)
        await talk.gone()

    context = authority.context("localhost")
    context.maximum_version = version
    peer = await serve(script, tls=context)
    for _ in range(2):
        attempt = await ask(way(peer, host="localhost", is_tls=True, ca_file=authority.file))
        await body_of(attempt.connection).whole()
        leg.finish(attempt)
    assert reused == [False, True]


async def test_a_body_cut_off_without_a_tls_goodbye_is_truncated(serve, ask, way, authority, body_of):
    """An attacker can send a FIN, not a close_notify: a body that ends with its connection may not end cleanly then."""
    go = asyncio.Event()

    async def script(talk):
        await talk.request()
        await talk.say(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await go.wait()
        with socket.fromfd(talk.info("socket").fileno(), socket.AF_INET, socket.SOCK_STREAM) as raw:
            raw.shutdown(socket.SHUT_WR)
        await asyncio.Event().wait()

    peer = await serve(script, tls=authority.context("localhost"))
    attempt = await ask(way(peer, host="localhost", is_tls=True, ca_file=authority.file))
    body = body_of(attempt.connection)
    await until(lambda: body.size == 5)
    go.set()
    with pytest.raises(WireFault) as caught:
        await body.whole()
    assert caught.value.reach is Reach.PARTIAL


async def test_an_idle_connection_that_closes_without_a_tls_goodbye_is_forgotten(
    serve, ask, way, leg, authority, body_of
):
    async def script(talk):
        await talk.request()
        await talk.say(HELLO)
        await go.wait()
        with socket.fromfd(talk.info("socket").fileno(), socket.AF_INET, socket.SOCK_STREAM) as raw:
            raw.shutdown(socket.SHUT_WR)
        await asyncio.Event().wait()

    go = asyncio.Event()
    peer = await serve(script, tls=authority.context("localhost"))
    attempt = await ask(way(peer, host="localhost", is_tls=True, ca_file=authority.file))
    assert await body_of(attempt.connection).whole() == b"hello"
    leg.finish(attempt)
    assert leg.counts() == (0, 1)
    go.set()
    await until(lambda: leg.counts() == (0, 0))
