"""The load and its upstream: what goes over the wire is right however it is cut, and everything is counted once."""

import asyncio
import itertools
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import processes, wire
from bench.load import Caller, Streamer, Tally
from bench.upstream import Answerer, Pacer


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.written += b"<closed>"


def _cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % len(data) for place in places)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


CUTS = st.lists(st.integers(min_value=0, max_value=10_000), max_size=30)


def _head_of(message: bytes) -> tuple[bytes, bytes]:
    head, _, body = message.partition(b"\r\n\r\n")
    return head, body


def test_a_call_is_as_large_as_the_bar_says() -> None:
    body = wire.chat_body("size=700")
    head, sent = _head_of(wire.request("api.openai.com", "sk-x", body))
    assert len(body) == 1000 and json.loads(body)["metadata"]["bench"] == "size=700"
    assert sent == body and wire.content_length(head.lower()) == 1000
    assert 15 <= head.count(b"\r\n") <= 18


@pytest.mark.parametrize("size", [700, 1_000, 64_000])
def test_an_answer_is_as_large_as_asked(size: int) -> None:
    head, body = _head_of(wire.answer(size))
    assert len(body) == size == wire.content_length(head.lower())
    assert json.loads(body)["usage"]["total_tokens"] == 260
    assert 20 <= head.count(b"\r\n") <= 25


@pytest.mark.parametrize("with_usage", [False, True])
def test_a_stream_has_the_events_asked_for(with_usage: bool) -> None:
    chunks = wire.stream_chunks(100, with_usage=with_usage)
    assert len(chunks) == (101 if with_usage else 100)
    payloads = [chunk.split(b"\r\n", 1)[1].split(b"\n\n")[0].removeprefix(b"data: ") for chunk in chunks]
    events = [json.loads(payload) for payload in payloads[:-1]]
    assert payloads[-1] == b"[DONE]" and chunks[-1].endswith(b"0\r\n\r\n")
    assert all(("usage" in event) == with_usage for event in events)
    assert all(200 <= len(chunk) <= 290 for chunk in chunks[:-1])


def test_a_head_without_length_has_no_body() -> None:
    assert wire.content_length(b"http/1.1 204 no content\r\nserver: x") == 0
    assert wire.content_length(b"http/1.1 200 ok\r\ntransfer-encoding: chunked") == -1


@given(CUTS)
def test_a_cut_answer_is_one_call(places: list[int]) -> None:
    tally, transport = Tally(), Wire()
    caller = Caller(tally, b"request")
    caller.connection_made(transport)
    caller.call()
    for piece in _cut(wire.answer(), places):
        caller.data_received(piece)
    assert (tally.calls, tally.errors, len(tally.latencies)) == (1, 0, 1)
    assert transport.written == b"requestrequest"  # and the next one is under way


@given(CUTS)
def test_a_cut_stream_has_all_its_events(places: list[int]) -> None:
    tally, transport = Tally(), Wire()
    streamer = Streamer(tally, b"request", 10)
    streamer.connection_made(transport)
    streamer.call()
    whole = wire.STREAM_HEAD + b"".join(wire.stream_chunks(10, with_usage=False))
    for piece in _cut(whole, places):
        streamer.data_received(piece)
    assert tally.events == 10
    assert tally.why == {}


def test_a_short_stream_is_an_error() -> None:
    tally = Tally()
    streamer = Streamer(tally, b"request", 11)
    streamer.connection_made(Wire())
    streamer.call()
    streamer.data_received(wire.STREAM_HEAD + b"".join(wire.stream_chunks(10, with_usage=False)))
    assert tally.why == {"10 of 11 events": 1}


def test_a_refusal_is_an_error() -> None:
    tally = Tally()
    caller = Caller(tally, b"request")
    caller.connection_made(Wire())
    caller.call()
    caller.data_received(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}")
    assert tally.why == {"429": 1}


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_cut_request_gets_one_answer(chunked: bool) -> None:
    body = wire.chat_body("size=900", 2_000)
    request = wire.request("localhost", "sk-x", body)
    if chunked:
        head = request[: request.index(b"\r\n\r\n")].replace(b"Content-Length: 2000", b"Transfer-Encoding: chunked")
        request = head + b"\r\n\r\n" + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    for step in (1, 7, 1024, len(request)):
        transport = Wire()
        answerer = Answerer(Pacer(asyncio.get_running_loop()))
        answerer.connection_made(transport)
        for start in range(0, len(request), step):
            answerer.data_received(request[start : start + step])
        assert transport.written == wire.answer(900)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A lean upstream; its port."""
    port, folder = processes.free_port(), tmp_path_factory.mktemp("upstream")
    command = [sys.executable, "-m", "bench.upstream", "--port", str(port)]
    with processes.Running("upstream", command, folder / "log") as running:
        running.wait_ready(port)
        yield port, running.pid


def _load(upstream: tuple[int, int], *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.load", *options, "--port", str(upstream[0]), "--watch", str(upstream[1])]
    ran = subprocess.run([*command, "--seconds", "0.3", "--warm", "0.1"], capture_output=True, text=True, timeout=30)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


@pytest.mark.system
@pytest.mark.parametrize(
    "options",
    [
        ("unary", "--connections", "4"),
        ("unary", "--connections", "2", "--up", "200000", "--down", "300000"),
        ("unary", "--connections", "4", "--rate", "200"),
        ("streams", "--connections", "5", "--events", "5", "--pace", "200"),
        ("streams", "--connections", "5", "--events", "5", "--pace", "200", "--usage"),
    ],
    ids=" ".join,
)
def test_the_load_runs_without_errors(upstream: tuple[int, int], options: tuple[str, ...]) -> None:
    sample = _load(upstream, *options)
    assert sample["errors"] == 0, sample["why"]
    assert sample["calls"] > 0 and sample["cpu_ns"] > 0 and sample["rss_bytes"] > 1_000_000
    assert (sample["events"] > sample["calls"]) == (options[0] == "streams")


@pytest.mark.system
def test_an_open_loop_keeps_its_rate(upstream: tuple[int, int]) -> None:
    sample = _load(upstream, "unary", "--connections", "8", "--rate", "300")
    assert sample["calls"] / sample["seconds"] < 600
    assert sample["p99_ms"] >= sample["p50_ms"] > 0
