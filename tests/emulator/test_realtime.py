"""WebSockets: echo, realtime and responses sessions, limits and faults inside them."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType

from tests.emulator.conftest import Serve
from yugong.emulator import Emulator, EmulatorSpec, Limits, expected_text, seed_of


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


def connect(client: aiohttp.ClientSession, emulator: Emulator, path: str, **options: Any) -> Any:
    headers = {"Authorization": f"Bearer {emulator.spec.orgs[0].keys[0]}"} | options.pop("headers", {})
    return client.ws_connect(emulator.url + path, headers=headers, **options)


async def until(ws: aiohttp.ClientWebSocketResponse, kind: str) -> list[Any]:
    """Events up to and with one of a kind."""
    found: list[Any] = []
    while not found or found[-1]["type"] != kind:
        found.append(await ws.receive_json(timeout=5))
    return found


async def test_echo(serve: Serve, client: aiohttp.ClientSession) -> None:
    emulator = await serve()
    async with connect(client, emulator, "/v1/live/sessions/abc?x=1") as ws:
        await ws.send_str("愚公")
        await ws.send_bytes(bytes(100_000))
        await ws.ping(b"there?")
        assert await ws.receive_str() == "愚公"
        assert await ws.receive_bytes() == bytes(100_000)
        await ws.send_str("close:4321:enough")
        end = await ws.receive()
        assert (end.type, end.data, end.extra) == (WSMsgType.CLOSE, 4321, "enough")
    await emulator.idle()
    line = emulator.journal.lines()[0]
    assert (line["status"], line["events"], line["target"]) == (101, 2, "/v1/live/sessions/abc?x=1")


async def test_the_key_may_travel_in_the_subprotocol(serve: Serve, client: aiohttp.ClientSession) -> None:
    emulator = await serve()
    key = emulator.spec.orgs[0].keys[0]
    protocols = ("realtime", f"openai-insecure-api-key.{key}")
    async with client.ws_connect(f"{emulator.url}/v1/realtime?model=gpt-realtime", protocols=protocols) as ws:
        assert ws.protocol == "realtime"
        assert (await ws.receive_json())["session"]["model"] == "gpt-realtime"
    with pytest.raises(aiohttp.WSServerHandshakeError) as told:
        await client.ws_connect(f"{emulator.url}/v1/realtime", protocols=("realtime", "openai-insecure-api-key.wrong"))
    assert told.value.status == 401


async def test_realtime_bills_the_context_each_time(serve: Serve, client: aiohttp.ClientSession) -> None:
    emulator = await serve(EmulatorSpec.uniform(limits=Limits(rpm=2, tpm=10_000), pieces=4))
    async with connect(client, emulator, "/v1/realtime?model=gpt-realtime") as ws:
        await until(ws, "session.created")
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "abcd" * 10}]}
        await ws.send_json({"type": "conversation.item.create", "item": item})
        assert (await until(ws, "conversation.item.done"))[0]["type"] == "conversation.item.added"
        usages = []
        for _ in range(2):
            await ws.send_json({"type": "response.create"})
            events = await until(ws, "rate_limits.updated")
            usages.append(events[-2]["response"]["usage"])
        assert events[-1]["rate_limits"][0] == {"name": "requests", "limit": 2, "remaining": 0} | {
            "reset_seconds": events[-1]["rate_limits"][0]["reset_seconds"]
        }
        said = len(expected_text(seed_of(b"abcd" * 10), 4).encode())
        assert [usage["input_tokens"] for usage in usages] == [10, -(-(40 + said) // 4)]
        await ws.send_json({"type": "response.create"})
        assert (await until(ws, "error"))[0]["error"]["code"] == "rate_limit_exceeded"
        await ws.send_json({"type": "nonsense", "event_id": "e1"})
        assert (await until(ws, "error"))[0]["error"]["event_id"] == "e1"
        await ws.send_str("{")
        assert "Could not parse" in (await until(ws, "error"))[0]["error"]["message"]
    await emulator.idle()
    total = sum(usage["input_tokens"] for usage in usages)
    assert emulator.journal.lines()[0]["usage"] == {"input": total, "output": 8}
    assert emulator.stats()["orgs"]["org-0"]["billed"] == {"input": total, "output": 8}


async def test_responses_by_socket(serve: Serve, client: aiohttp.ClientSession) -> None:
    emulator = await serve()
    async with connect(client, emulator, "/v1/responses") as ws:
        ask = {"type": "response.create", "model": "gpt-5.6", "input": "hello", "stream_id": "s1"}
        await ws.send_json(ask)
        events = await until(ws, "response.completed")
        assert {event["stream_id"] for event in events} == {"s1"}
        text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
        assert text == expected_text(seed_of(b"hello"), 16)
        first = events[-1]["response"]["id"]
        await ws.send_json(ask | {"previous_response_id": first})
        assert (await until(ws, "response.completed"))[-1]["response"]["id"] != first
        await ws.send_json(ask | {"previous_response_id": "resp_none"})
        error = (await until(ws, "error"))[0]
        assert (error["status"], error["error"]["code"]) == (400, "previous_response_not_found")
        await ws.send_json({"type": "else"})
        assert (await until(ws, "error"))[0]["status"] == 400
    await emulator.idle()
    assert emulator.journal.lines()[0]["usage"]["output"] == 32


async def test_faults_inside_sockets(serve: Serve, client: aiohttp.ClientSession) -> None:
    emulator = await serve()
    ask = {"type": "response.create", "model": "gpt-5.6", "input": "hello"}
    async with connect(client, emulator, "/v1/responses", headers={"x-emulator-fault": "error_mid_stream:2"}) as ws:
        await ws.send_json(ask)
        assert [event["type"] for event in await until(ws, "error")] == [
            "response.created", "response.in_progress", "error"
        ]  # fmt: skip
    async with connect(client, emulator, "/v1/responses", headers={"x-emulator-fault": "cut_stream:2"}) as ws:
        await ws.send_json(ask)
        await ws.receive_json()
        await ws.receive_json()
        assert (await ws.receive()).type in (WSMsgType.CLOSED, WSMsgType.CLOSING, WSMsgType.ERROR)
    with pytest.raises(aiohttp.WSServerHandshakeError) as told:
        await connect(client, emulator, "/v1/responses", headers={"x-emulator-fault": "503"})
    assert told.value.status == 503


async def test_an_upgrade_that_is_none(serve: Serve, client: aiohttp.ClientSession) -> None:
    emulator = await serve()
    headers = {"Authorization": f"Bearer {emulator.spec.orgs[0].keys[0]}", "Upgrade": "websocket"}
    async with client.get(f"{emulator.url}/v1/realtime", headers=headers | {"Connection": "Upgrade"}) as answer:
        assert answer.status == 400
