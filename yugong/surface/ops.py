"""The admin listener's routes: is it alive, is it ready, what does it count.

Decides: what may be asked for, by one table, and what is answered. Must not know: where the figures come from.
Nothing here names a key, an account or a path of this machine to who asks: the listener is for the machine's own tools,
but a loopback port can be reached by more than them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import orjson
from aiohttp import web

from yugong.surface.exposition import expose
from yugong.surface.reports import Merged

__all__ = ["ROUTES", "Figures", "answer"]


class Figures(Protocol):
    """What the keeper knows."""

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether calls can be served, and the detail."""

    def merged(self) -> Merged:
        """All metrics, over all processes."""


NO_STORE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


async def answer(request: web.BaseRequest, figures: Figures) -> web.Response:
    """Answer one request on the admin listener."""
    route = ROUTES.get(request.rel_url.raw_path)
    if route is None:
        return web.Response(status=404, text="not found\n", headers=NO_STORE)
    if request.method not in ("GET", "HEAD"):
        return web.Response(status=405, text="GET or HEAD\n", headers={**NO_STORE, "Allow": "GET, HEAD"})
    return route[1](request, figures)


def _livez(request: web.BaseRequest, figures: Figures) -> web.Response:
    return web.Response(text="ok\n", headers=NO_STORE)


def _readyz(request: web.BaseRequest, figures: Figures) -> web.Response:
    is_ready, detail = figures.readiness()
    body = orjson.dumps(detail, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE, default=str)
    return web.Response(status=200 if is_ready else 503, body=body, content_type="application/json", headers=NO_STORE)


def _metrics(request: web.BaseRequest, figures: Figures) -> web.Response:
    content_type, body = expose(figures.merged(), request.headers.get("Accept", ""))
    response = web.Response(body=body, headers={**NO_STORE, "Content-Type": content_type})
    if len(body) > 16_384 and "gzip" in request.headers.get("Accept-Encoding", ""):
        response.enable_compression(web.ContentCoding.gzip)
    return response


Route = Callable[[web.BaseRequest, Figures], web.Response]
ROUTES: dict[str, tuple[str, Route]] = {
    "/livez": ("the keeper answers", _livez),
    "/readyz": ("200 if a worker is ready to take calls, else 503; the detail as JSON", _readyz),
    "/metrics": ("all metrics, for Prometheus", _metrics),
}

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
