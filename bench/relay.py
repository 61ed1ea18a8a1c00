"""The plain aiohttp relay everybody writes first, as a yardstick: `web.Application` in, `ClientSession` out.

python -m bench.relay --port PORT --upstream URL
"""

import argparse
import socket

import uvloop
from aiohttp import ClientSession, DummyCookieJar, TCPConnector, web

HOP = {"host", "connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "proxy-connection"}
SESSION = web.AppKey("SESSION", ClientSession)
UPSTREAM = web.AppKey("UPSTREAM", str)


async def relay(request: web.Request) -> web.StreamResponse:
    headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
    url, body = request.app[UPSTREAM] + request.raw_path, await request.read()
    call = request.app[SESSION].request(request.method, url, headers=headers, data=body, allow_redirects=False)
    async with call as answer:
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP}
        out = web.StreamResponse(status=answer.status, headers=kept)
        await out.prepare(request)
        async for chunk in answer.content.iter_any():
            await out.write(chunk)
        await out.write_eof()
        return out


async def make(upstream: str) -> web.Application:
    app = web.Application(client_max_size=64 << 20)
    app[UPSTREAM] = upstream
    app[SESSION] = ClientSession(connector=TCPConnector(limit=0), auto_decompress=False, cookie_jar=DummyCookieJar())
    app.router.add_route("*", "/{path:.*}", relay)
    return app


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--upstream", required=True)
    given = options.parse_args()
    listener = socket.create_server(("127.0.0.1", given.port), backlog=4096)
    web.run_app(make(given.upstream), sock=listener, access_log=None, loop=uvloop.new_event_loop(), print=None)
