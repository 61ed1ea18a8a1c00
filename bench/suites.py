"""The benchmarks one by one. Each is a function of a session that leaves figures in it; a table at the end names them.

Costs are processor time of the whole process tree of a proxy, as the operating system counts it, divided by what the
client received in the same window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace

from bench import growth
from bench.contenders import Proxy, Site
from bench.session import Sample, Session, per_call, per_event

CONNECTIONS = 64
ONE_RATE = 5_000  # calls a second that every contender of interest carries with room to spare
STREAMS = 800
PACE = 50
CORE = ("nginx", "relay", "yugong")
OPEN_STREAMS = (100, 5_000)
BODIES = (1_000, 16_000, 64_000, 256_000, 1_000_000)
CAPACITY_SHARE = 0.5  # of the processor time a second has

SetCount = Callable[[Site, int], Site]


def unary(session: Session) -> None:
    """A 1 kB chat call, a 0.7 kB answer, 64 keep-alive connections: each as fast as it can, then all at one rate.

    As fast as it can is not the same for all: a proxy that leaves its client and upstream idle pays for waking them
    with every write. nginx itself costs 15 µs a call at 60 000 a second and 47 µs at 6 000 (measured).
    """
    with session.upstream() as site, session.side_by_side(site) as fleet:
        load = ("unary", "--connections", str(CONNECTIONS))
        session.rounds(fleet, ("unary", f"{CONNECTIONS} connections", "µs/call"), load)
        rated = {name: proxy for name, proxy in fleet.items() if name in ("nginx", "yugong")}
        session.rounds(rated, ("unary, one rate", f"{ONE_RATE:,} calls/s", "µs/call"), (*load, "--rate", str(ONE_RATE)))


def streams(session: Session) -> None:
    """800 streams at once, 100 events each, 50 a second; a client that did not ask for usage, and one that did."""
    with session.upstream() as site, session.side_by_side(site) as fleet:
        load = ("streams", "--connections", str(STREAMS), "--pace", str(PACE))
        session.rounds(fleet, ("streams", f"{STREAMS} × {PACE}/s", "µs/event"), load, per_event)
        if not session.plan.quick:
            session.rounds(fleet, ("streams", "usage asked", "µs/event"), (*load, "--usage"), per_event)


def memory(session: Session) -> None:
    """Growth of a proxy's resident memory from 100 to 5000 open streams, per stream. Fresh processes each round."""
    low, high = OPEN_STREAMS if not session.plan.quick else (100, 1_000)
    with session.upstream() as site:
        for _ in range(min(3, session.plan.rounds)):
            for name in session.names(*CORE):
                with session.fleet([(name, name, site)]) as fleet:
                    if name not in fleet:
                        continue
                    few, many = (_open(session, fleet[name], count) for count in (low, high))
                    roles = fleet[name].roles()
                grown = (many["rss_bytes"] - few["rss_bytes"]) / (high - low)
                session.figure("memory", f"{low}→{high} streams", name, "B/stream").note(grown, many, roles)
    for figure in session.figures:
        if figure.benchmark == "memory":
            session.say(f"{figure!r} rss {figure.detail('rss_mb'):.0f} MB")


def _open(session: Session, proxy: Proxy, count: int) -> Sample:
    options = ("--connections", str(count), "--pace", "1", "--ramp", str(count / 1000), "--warm", "5", "--seconds", "1")
    return session.load("streams", proxy, *options)


def bodies(session: Session) -> None:
    """Bodies from 1 kB to 1 MB, up and down, on 16 connections."""
    sizes = BODIES if not session.plan.quick else (1_000, 64_000, 1_000_000)
    with session.upstream() as site, session.side_by_side(site, *CORE) as fleet:
        for way in ("up", "down"):
            for size in sizes:
                load = (
                    "unary",
                    "--connections",
                    "16",
                    f"--{way}",
                    str(size),
                    "--seconds",
                    str(min(2.0, session.plan.seconds)),
                )
                session.rounds(fleet, (f"bodies {way}", f"{size // 1000} kB", "µs/call"), load)


def tls(session: Session) -> None:
    """The unary call with a TLS upstream: certificate checked, connections kept."""
    with session.upstream(tls=True) as site, session.side_by_side(site, *CORE) as fleet:
        load = ("unary", "--connections", str(CONNECTIONS))
        session.rounds(fleet, ("tls", f"{CONNECTIONS} connections", "µs/call"), load)


def latency(session: Session) -> None:
    """Latency from the moment a call is due, at one rate for all: half of what Yugong (or else the dearest) can carry.

    `direct` is the upstream without a proxy. Who cannot carry the rate is left out.
    """
    with session.upstream() as site, session.side_by_side(site, *CORE) as fleet:
        costs = {name: per_call(session.load("unary", proxy, "--seconds", "1")) for name, proxy in fleet.items()}
        rate = CAPACITY_SHARE * 1e6 / costs.get("yugong", max(costs.values()))
        point = f"{rate:,.0f} calls/s"
        runners = [None, *(proxy for name, proxy in fleet.items() if rate * costs[name] < 0.85e6)]
        for _ in range(session.plan.rounds):
            for proxy in runners:
                name = proxy.name if proxy else "direct"
                sample = session.load("unary", proxy, "--rate", f"{rate:.0f}", port=site.upstream_port)
                for quantile in ("p50", "p99"):
                    session.figure(f"latency {quantile}", point, name, "ms").note(sample[f"{quantile}_ms"], sample)
    for figure in session.figures:
        if figure.benchmark.startswith("latency"):
            session.say(f"{figure!r} proxy {figure.detail('proxy_busy'):.0%}")


def connections_growth(session: Session) -> None:
    """One to two thousand client connections."""
    with session.upstream() as site, session.side_by_side(site, "nginx", "yugong") as fleet:
        for count in growth.CONNECTIONS:
            load = ("unary", "--connections", str(count), "--warm", "1.5")
            session.rounds(fleet, ("growth: connections", str(count), "µs/call"), load)


def streams_growth(session: Session) -> None:
    """100 to 5000 open streams, 20 000 events a second in all; long streams, so that only events count."""
    with session.upstream() as site, session.side_by_side(site, "nginx", "yugong") as fleet:
        for count, pace in growth.STREAMS:
            load = ("streams", "--connections", str(count), "--pace", str(pace), "--events", "2000")
            session.rounds(fleet, ("growth: streams", str(count), "µs/event"), load, per_event)


def orgs_growth(session: Session) -> None:
    """10 to 10 000 organisations of three keys each, in the settings."""
    _yugongs(session, "growth: orgs", growth.ORGS, lambda site, count: replace(site, orgs=count))


def workers_growth(session: Session) -> None:
    """One worker and two, on the same core if the machine has fewer than four."""
    _yugongs(session, "growth: workers", growth.WORKERS, lambda site, count: replace(site, workers=count))


def _yugongs(session: Session, benchmark: str, counts: tuple[int, ...], set_count: SetCount) -> None:
    if "yugong" not in session.names():
        return
    with session.upstream() as site, ExitStack() as stack:
        fleets = [
            (
                count,
                stack.enter_context(session.fleet([("yugong", "yugong", growth.site(set_count(site, count)))])),
            )
            for count in counts
        ]
        for _ in range(session.plan.rounds):
            for count, fleet in fleets:
                if "yugong" not in fleet:
                    continue
                sample = session.load("unary", fleet["yugong"], "--connections", str(CONNECTIONS))
                figure = session.figure(benchmark, str(count), "yugong", "µs/call")
                figure.note(per_call(sample), sample, fleet["yugong"].roles())
    for figure in session.figures:
        if figure.benchmark == benchmark:
            session.say(f"{figure!r} rss {figure.detail('rss_mb'):.0f} MB")


SUITES: Mapping[str, Callable[[Session], None]] = {
    "unary": unary,
    "streams": streams,
    "memory": memory,
    "bodies": bodies,
    "tls": tls,
    "latency": latency,
    "growth-connections": connections_growth,
    "growth-orgs": orgs_growth,
    "growth-streams": streams_growth,
    "growth-workers": workers_growth,
}
