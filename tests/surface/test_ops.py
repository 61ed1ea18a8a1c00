"""The admin listener's routes, asked over a real connection."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession, web

from yugong.surface import ops
from yugong.surface.reports import Merged


class Known:
    """What a keeper knows."""

    def __init__(self) -> None:
        self.is_ready = True

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        return self.is_ready, {"ready": self.is_ready, "workers": {"ready": 2}}

    def merged(self) -> Merged:
        return {"yugong_attempts_total": {(f"org-{n}", "ok"): n for n in range(1000)}}


@pytest.fixture
async def asked() -> AsyncIterator[tuple[ClientSession, str, Known]]:
    known = Known()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return await ops.answer(request, known)

    async with ClientSession() as session:
        runner = web.ServerRunner(web.Server(answer))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield session, f"http://{host}:{port}", known
        await runner.cleanup()


Asked = tuple[ClientSession, str, Known]


async def test_alive_and_ready(asked: Asked) -> None:
    session, url, known = asked
    async with session.get(f"{url}/livez") as response:
        assert (response.status, await response.text()) == (200, "ok\n")
    async with session.get(f"{url}/readyz") as response:
        assert (response.status, json.loads(await response.read())["workers"]) == (200, {"ready": 2})
    known.is_ready = False
    async with session.get(f"{url}/readyz") as response:
        assert (response.status, json.loads(await response.read())["ready"]) == (503, False)
        assert response.headers["Cache-Control"] == "no-store"


async def test_metrics_in_the_form_asked_for(asked: Asked) -> None:
    session, url, _ = asked
    async with session.get(f"{url}/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert response.headers["Content-Encoding"] == "gzip"
        assert 'yugong_attempts_total{org="org-7",outcome="ok"} 7.0' in await response.text()
    accept = {"Accept": "application/openmetrics-text", "Accept-Encoding": "identity"}
    async with session.get(f"{url}/metrics", headers=accept) as response:
        assert response.headers["Content-Type"].startswith("application/openmetrics-text")
        assert "Content-Encoding" not in response.headers
        assert (await response.text()).endswith("# EOF\n")


@pytest.mark.parametrize("path", ["/", "/metrics/", "/%6detrics", "/v1/models", "/livez/../metrics"])
async def test_nothing_else_is_there(asked: Asked, path: str) -> None:
    from yarl import URL

    session, url, _ = asked
    async with session.get(URL(url + path, encoded=True)) as response:
        assert response.status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_nothing_can_be_changed(asked: Asked, method: str) -> None:
    session, url, _ = asked
    async with session.request(method, f"{url}/metrics", data=b"x") as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


async def test_every_route_says_what_it_is_for() -> None:
    assert set(ops.ROUTES) == {"/livez", "/readyz", "/metrics"}
    assert all(text for text, _ in ops.ROUTES.values())
