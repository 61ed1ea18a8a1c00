"""Listening sockets: clear words where one cannot be had, and a door that closes on nobody."""

import asyncio
import errno
import os
import socket
from pathlib import Path

import pytest

from yugong.store.doors import Door, DoorTaken, _advice, open_tcp, open_unix, refuse_newcomers


def test_any_free_port() -> None:
    door = open_tcp("127.0.0.1", 0)
    assert door.bound == f"127.0.0.1:{door.sock.getsockname()[1]}"
    assert not door.is_unix
    assert repr(door) == f"<Door 127.0.0.1:0 fd={door.sock.fileno()}>"
    door.close()


def test_ipv6() -> None:
    try:
        door = open_tcp("::1", 0)
    except DoorTaken as error:
        pytest.skip(str(error))
    assert door.bound.startswith("[::1]:")
    door.close()


def test_a_taken_port_is_named_with_who_to_ask() -> None:
    door = open_tcp("127.0.0.1", 0)
    port = door.sock.getsockname()[1]
    with pytest.raises(DoorTaken, match=f"port {port} is taken. Find who has it with `ss -ltnp"):
        open_tcp("127.0.0.1", port)
    door.close()


@pytest.mark.parametrize(
    ("number", "port", "words"),
    [
        (errno.EACCES, 80, "port 80 needs a privilege"),
        (errno.EACCES, 8080, "Permission denied"),
        (errno.EADDRNOTAVAIL, 80, "no interface of this machine has that address"),
        (errno.EMFILE, 80, "Too many open files"),
    ],
)
def test_what_is_in_the_way_is_said(number: int, port: int, words: str) -> None:
    assert words in _advice(OSError(number, os.strerror(number)), port)


@pytest.mark.parametrize(("host", "words"), [("192.0.2.1", "no interface"), ("no.such.host.invalid", "no address of")])
def test_an_address_that_is_not_ours(host: str, words: str) -> None:
    with pytest.raises(DoorTaken, match=words):
        open_tcp(host, 0)


def test_a_dead_local_socket_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "y.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    door = open_unix(path)
    assert path.stat().st_mode & 0o777 == 0o660
    with pytest.raises(DoorTaken, match="another process listens there"):
        open_unix(path)
    refuse_newcomers(door.sock)
    door.close()
    assert not path.exists()
    door.address = "unix:/nowhere"
    Door("unix:/nowhere", socket.socket(socket.AF_UNIX)).close()


def test_a_file_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(DoorTaken, match="no socket stands there"):
        open_unix(path)
    assert path.read_text() == "data"
    with pytest.raises(DoorTaken, match="No such file"):
        open_unix(tmp_path / "nowhere" / "y.sock")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_who_was_let_in_is_served_and_who_comes_later_is_refused(host: str) -> None:
    """Closing alone would reset the first: its request would be lost."""
    try:
        door = open_tcp(host, 0)
    except DoorTaken as error:
        pytest.skip(str(error))
    loop = asyncio.get_running_loop()
    where = door.sock.getsockname()
    early, late = (socket.socket(door.sock.family) for _ in range(2))
    early.setblocking(False)
    late.setblocking(False)
    await loop.sock_connect(early, where)
    await loop.sock_sendall(early, b"hello")
    refuse_newcomers(door.sock)
    knock = asyncio.ensure_future(loop.sock_connect(late, where))
    served, _ = await loop.sock_accept(door.sock)
    assert await loop.sock_recv(served, 10) == b"hello"
    with pytest.raises(BlockingIOError):
        door.sock.accept()
    assert not knock.done()
    door.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.wait_for(knock, 10)
    await loop.sock_sendall(served, b"still here")
    assert await loop.sock_recv(early, 20) == b"still here"
    for sock in (early, late, served):
        sock.close()
