"""Listening sockets that outlive the processes which accept on them.

Decides: how an address becomes a socket, what the operator reads when it does not, and how a door is shut so that
nobody who was let in is thrown out. Must not know: settings, processes, HTTP.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import struct
from pathlib import Path

from yugong.store.channel import listen_local

__all__ = ["BACKLOG", "Door", "DoorTaken", "open_tcp", "open_unix", "refuse_newcomers"]

BACKLOG = 4096  # connections waiting to be accepted; the kernel caps it at net.core.somaxconn


class DoorTaken(Exception):
    """An address that cannot be listened on; the message says why and what to do."""


class Door:
    """One listening socket and the address it was asked for by."""

    __slots__ = ("address", "sock")

    def __init__(self, address: str, sock: socket.socket) -> None:
        #: As in the settings: "127.0.0.1:8484", "[::1]:0" or "unix:/run/yugong.sock".
        self.address = address
        self.sock = sock

    def __repr__(self) -> str:
        return f"<Door {self.address} fd={self.sock.fileno()}>"

    @property
    def is_unix(self) -> bool:
        return self.sock.family == socket.AF_UNIX

    @property
    def bound(self) -> str:
        """Where it really listens: with the port the kernel chose, if it was asked to."""
        if self.is_unix:
            return self.address
        host, port = self.sock.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def close(self) -> None:
        if self.is_unix:
            _unlink_own(Path(self.address.removeprefix("unix:")))
        self.sock.close()


def open_tcp(host: str, port: int) -> Door:
    """Listen on host and port (0: any free one). Raises DoorTaken."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise DoorTaken(
            f"cannot listen on {address}: {host!r} is no address of this machine ({error.strerror})"
        ) from None
    family, kind, protocol, _, where = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        sock.bind(where)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise DoorTaken(f"cannot listen on {address}: {_advice(error, port)}") from None
    sock.setblocking(False)
    return Door(address, sock)


def _advice(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is taken. Find who has it with `ss -ltnp 'sport = :{port}'`, or set another port"
    if error.errno == errno.EACCES and port < 1024:
        return (
            f"port {port} needs a privilege. Use a port from 1024, or let systemd give "
            "AmbientCapabilities=CAP_NET_BIND_SERVICE"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return "no interface of this machine has that address"
    return os.strerror(error.errno or 0)


def open_unix(path: Path, mode: int = 0o660) -> Door:
    """Listen on a local socket; a dead one left behind is replaced, a living one is not. Raises DoorTaken."""
    address = f"unix:{path}"
    try:
        if path.exists() or path.is_symlink():
            _check_dead(path)
        return Door(address, listen_local(path, mode))
    except OSError as error:
        raise DoorTaken(f"cannot listen on {address}: {error.strerror}") from None


def _check_dead(path: Path) -> None:
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise DoorTaken(f"cannot listen on unix:{path}: something that is no socket stands there; remove it")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(str(path))
    except OSError:
        return
    finally:
        probe.close()
    raise DoorTaken(f"cannot listen on unix:{path}: another process listens there")


def _unlink_own(path: Path) -> None:
    try:
        path.unlink()
    except OSError:
        pass  # somebody tidied up before us


# One instruction each: code, jump if true, jump if false, operand (linux/filter.h). The filter of a TCP socket sees the
# segment from its TCP header on: byte 13 is the flags, 0x02 is SYN.
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load byte 13
    (0x45, 0, 1, 0x02),  # SYN set?
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # take it whole
)
_SO_ATTACH_FILTER = 26


def refuse_newcomers(sock: socket.socket) -> None:
    """Let no new connection begin on this listening socket, while those that have begun can still be accepted.

    Closing a listening socket resets every connection that waits in its queue, whose client may have sent a request
    already and must take it for lost; nginx would not try a POST again. With this first, a client that knocks hears
    nothing; its system knocks again a second later, finds the socket closed, and is refused, which is safe to try
    elsewhere. Where filters are not to be had, nothing is changed.
    """
    if sock.family == socket.AF_UNIX:
        return
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in _DROP_SYN))
    filter_ = struct.pack("HL", len(_DROP_SYN), ctypes.addressof(program))
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_)
    except OSError:
        pass
