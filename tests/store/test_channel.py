"""Messages between processes: whole, in order, over any split, and across two channels on one socket."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yugong.store import channel as module
from yugong.store.channel import (
    JSON,
    LINES,
    Channel,
    ChannelError,
    connect_local,
    listen_local,
    receive_one,
)


class Ear:
    """Keeps what a channel hears."""

    def __init__(self, sock: socket.socket) -> None:
        self.heard: asyncio.Queue[tuple[bytes, bytes]] = asyncio.Queue()
        self.ended = asyncio.Event()
        self.channel = Channel(sock, self.receive, self.closed, "ear")

    def receive(self, channel: Channel, kind: bytes, payload: bytes) -> None:
        self.heard.put_nowait((kind, payload))

    def closed(self, channel: Channel) -> None:
        self.ended.set()

    async def next(self) -> tuple[bytes, bytes]:
        return await asyncio.wait_for(self.heard.get(), 10)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    yield one, other
    one.close()
    other.close()


Pair = tuple[socket.socket, socket.socket]


async def test_messages_arrive_whole_and_in_order(pair: Pair) -> None:
    ear, mouth = Ear(pair[0]), Ear(pair[1]).channel
    loop = asyncio.get_running_loop()
    ear.channel.attach(loop)
    mouth.attach(loop)
    mouth.send({"op": "a"})
    mouth.send_raw(LINES, b"x" * 3_000_000)
    mouth.send({"op": "b"})
    assert await ear.next() == (JSON, b'{"op":"a"}')
    assert await ear.next() == (LINES, b"x" * 3_000_000)
    assert await ear.next() == (JSON, b'{"op":"b"}')
    await mouth.flush(5)
    assert mouth.waiting == 0
    mouth.close()
    await asyncio.wait_for(ear.ended.wait(), 10)
    assert repr(ear.channel) == "<Channel ear closed in=0B out=0B>"
    ear.channel.send({"op": "into the void"})


@given(st.lists(st.binary(max_size=30), max_size=8), st.integers(1, 7))
def test_any_split_is_the_same(payloads: list[bytes], size: int) -> None:
    heard: list[bytes] = []
    one, other = socket.socketpair()
    with one, other:
        listener = Channel(one, lambda channel, kind, payload: heard.append(payload), lambda channel: None)
        stream = b"".join(len(p).to_bytes(4, "big") + JSON + p for p in payloads)
        for start in range(0, len(stream), size):
            other.send(stream[start : start + size])
            listener._readable()
    assert heard == payloads


async def test_half_a_message_goes_over_to_the_next_channel(pair: Pair) -> None:
    """An upgrade: the program that read the first half is not the one that reads the second."""
    loop = asyncio.get_running_loop()
    first = Ear(pair[0])
    first.channel.attach(loop)
    whole = orjson.dumps({"op": "a" * 100})
    framed = len(whole).to_bytes(4, "big") + JSON + whole
    pair[1].setblocking(False)
    await loop.sock_sendall(pair[1], framed[:50])
    async with asyncio.timeout(10):
        while not first.channel._inbound:
            await asyncio.sleep(0)
    first.channel.detach()
    second = Ear(socket.socket(fileno=os.dup(pair[0].fileno())))
    second.channel.put_back(*first.channel.buffers())
    second.channel.attach(loop)
    await loop.sock_sendall(pair[1], framed[50:])
    assert await second.next() == (JSON, whole)
    second.channel.close()


async def test_what_was_not_sent_is_sent_by_the_next_channel(pair: Pair) -> None:
    loop = asyncio.get_running_loop()
    first = Ear(pair[0]).channel
    first.send_raw(LINES, b"y" * 2_000_000)
    assert first.waiting
    second = Ear(socket.socket(fileno=os.dup(pair[0].fileno()))).channel
    second.put_back(*first.buffers())
    second.attach(loop)
    ear = Ear(pair[1])
    ear.channel.attach(loop)
    assert await ear.next() == (LINES, b"y" * 2_000_000)
    ear.channel.close()
    second.close()


async def test_flush_gives_up(pair: Pair) -> None:
    mouth = Ear(pair[0]).channel
    mouth.attach(asyncio.get_running_loop())
    mouth.send_raw(LINES, b"y" * 2_000_000)
    await mouth.flush(0.01)
    assert mouth.waiting
    mouth.close()


async def test_a_length_nobody_sends_ends_the_channel(pair: Pair) -> None:
    ear = Ear(pair[0])
    ear.channel.attach(asyncio.get_running_loop())
    pair[1].send(b"\xff\xff\xff\xff" + JSON)
    await asyncio.wait_for(ear.ended.wait(), 10)
    assert not ear.channel.is_open


async def test_writing_to_who_is_gone_is_told_by_the_reader(pair: Pair) -> None:
    ear = Ear(pair[0])
    ear.channel.attach(asyncio.get_running_loop())
    pair[1].close()
    ear.channel.send({"op": "a"})
    await asyncio.wait_for(ear.ended.wait(), 10)


def test_the_first_message_is_read_and_not_a_byte_more(pair: Pair) -> None:
    sender = Channel(pair[0], lambda *_: None, lambda _: None)
    sender.send({"op": "hello"})
    sender.send({"op": "next"})
    assert receive_one(pair[1]) == b'{"op":"hello"}'
    assert receive_one(pair[1]) == b'{"op":"next"}'


@pytest.mark.parametrize("sent", [b"", b"\0\0\0", b"\0\0\0\5Jabc", b"\0\0\0\1Lx", b"\xff\xff\xff\xffJ"])
def test_a_first_message_that_does_not_come(pair: Pair, sent: bytes) -> None:
    pair[0].send(sent) if sent else None
    pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises(ChannelError):
        receive_one(pair[1])


@pytest.mark.parametrize("depth", [0, 12])
def test_a_local_socket_however_deep(tmp_path: Path, depth: int) -> None:
    directory = tmp_path.joinpath(*["a-long-name"] * depth)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "keeper.sock"
    path.write_text("what stood there before")
    former = os.umask(0)
    with listen_local(path) as sock:
        assert path.stat().st_mode & 0o777 == 0o600
        with connect_local(path):
            sock.accept()[0].close()
    assert os.umask(former) == 0


def test_nobody_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connect_local(tmp_path / "nobody")
    with pytest.raises(FileNotFoundError):
        listen_local(tmp_path / "nowhere" / "x.sock")


def test_frames_are_bounded() -> None:
    assert module.FRAME_MAX < 2**32


def test_json_only(pair: Pair) -> None:
    sender: Any = Channel(pair[0], lambda *_: None, lambda _: None)
    with pytest.raises(TypeError):
        sender.send(object())
