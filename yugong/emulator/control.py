"""Steering and reading a running emulator: JSON under `/_emulator/`.

Protection: answered to loopback peers only, without any credential. An emulator holds nothing worth more: its keys
are made up and open nothing else. The control port is bound to loopback and lives on when the listeners are closed.

| GET  /_emulator/stats             counters by org
| GET  /_emulator/journal?since=N   NDJSON from byte N on; `x-journal-next` is where to go on
| GET  /_emulator/keys              keys by org
| GET  /_emulator/faults            the kinds there are, and the rules in force with how often each struck
| POST /_emulator/faults            {"faults": [rule, …]} puts these rules in force instead
| POST /_emulator/listeners         {"listener": 0, "mode": "closed"}; without `listener`, all of them
| GET  /_emulator/health            {"ok": true}
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import orjson
from aiohttp import web

from yugong.emulator.faults import KINDS, FaultError
from yugong.emulator.spec import SpecError, rule_from

if TYPE_CHECKING:
    from yugong.emulator.server import Emulator


def is_loopback(peer: str | None) -> bool:
    try:
        return peer is not None and ipaddress.ip_address(peer).is_loopback
    except ValueError:
        return False


async def answer(emulator: Emulator, request: web.BaseRequest) -> web.StreamResponse:
    """One control request."""
    if not is_loopback(request.remote):
        return _json({"error": "the control plane answers loopback only"}, 403)
    path, _, query = request.raw_path.partition("?")
    handle = ROUTES.get((request.method, path))
    if handle is None:
        return _json({"error": "no such control route", "routes": [" ".join(each) for each in ROUTES]}, 404)
    try:
        return await handle(emulator, request, query)
    except (SpecError, FaultError, ValueError, KeyError, IndexError, TypeError) as error:
        return _json({"error": str(error)}, 400)


def _json(document: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(document), status=status, content_type="application/json")


async def _stats(emulator: Emulator, _: web.BaseRequest, __: str) -> web.Response:
    return _json(emulator.stats())


async def _journal(emulator: Emulator, _: web.BaseRequest, query: str) -> web.Response:
    since = int(parse_qs(query).get("since", ["0"])[0])
    if not emulator.journal.is_open:
        return _json({"error": "this emulator keeps no journal"}, 404)
    data = emulator.journal.read(since)
    headers = {"x-journal-next": str(since + len(data))}
    return web.Response(body=data, content_type="application/x-ndjson", headers=headers)


async def _keys(emulator: Emulator, _: web.BaseRequest, __: str) -> web.Response:
    return _json(emulator.spec.keys())


async def _faults(emulator: Emulator, _: web.BaseRequest, __: str) -> web.Response:
    plan = emulator.plan
    rules = [
        {"kind": rule.spec.kind, "share": rule.spec.share, "struck": rule.struck, "left": rule.left}
        for rule in plan.attempt_rules + plan.connection_rules
    ]
    kinds = {kind: {"stage": stage, "what": what} for kind, (stage, what) in KINDS.items()}
    return _json({"rules": rules, "struck": plan.struck, "kinds": kinds})


async def _set_faults(emulator: Emulator, request: web.BaseRequest, _: str) -> web.Response:
    document = orjson.loads(await request.read())
    emulator.plan.replace([rule_from(each, f"faults[{i}]") for i, each in enumerate(document["faults"])])
    return _json({"rules": len(document["faults"])})


async def _set_listeners(emulator: Emulator, request: web.BaseRequest, _: str) -> web.Response:
    document = orjson.loads(await request.read())
    chosen = emulator.listeners
    if "listener" in document:
        chosen = [emulator.listeners[document["listener"]]]
    for listener in chosen:
        listener.set(document["mode"])
    return _json([{"url": listener.url, "mode": listener.mode} for listener in emulator.listeners])


async def _health(_: Emulator, __: web.BaseRequest, ___: str) -> web.Response:
    return _json({"ok": True})


ROUTES: dict[tuple[str, str], Callable[[Emulator, web.BaseRequest, str], Awaitable[web.Response]]] = {
    ("GET", "/_emulator/stats"): _stats,
    ("GET", "/_emulator/journal"): _journal,
    ("GET", "/_emulator/keys"): _keys,
    ("GET", "/_emulator/faults"): _faults,
    ("POST", "/_emulator/faults"): _set_faults,
    ("POST", "/_emulator/listeners"): _set_listeners,
    ("GET", "/_emulator/health"): _health,
}
