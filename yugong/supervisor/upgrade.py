"""The supervisor's own replacement: the same process goes on as a newer program, with everything handed to it.

Decides: what is handed on, and that nothing is given up before the new program has shown that it starts and can read
it. Must not know: what is done with it.

The process keeps its number, its children and its open sockets over `exec`; signals that arrive meanwhile are blocked
and wait. Nobody who connects notices: workers accept all the while.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable

import msgspec

from yugong.store.doors import Door
from yugong.supervisor.child import Memo
from yugong.supervisor.crew import Ground
from yugong.supervisor.source import Plan

__all__ = ["SIGNALS", "Held", "Legacy", "become", "hold", "read_legacy", "rehearse", "reopen"]

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
REHEARSAL = 30.0  # seconds


class Held(msgspec.Struct):
    """An open listening socket."""

    address: str
    fd: int


class Legacy(msgspec.Struct):
    """All that outlives the program. Fields added later need defaults: an older program writes this, a newer reads."""

    ground: Ground
    plan: Plan
    #: The settings file; None where there is none.
    path: str | None
    settings: msgspec.Raw
    revision: int
    serial: int
    generation: int
    keeper_generation: int
    clients: list[Held]
    link: Held
    admin: Held | None
    lock_fd: int
    emulator_port: int
    children: list[Memo]
    #: The data directory goes when we go (`yugong demo`).
    is_ephemeral: bool = False
    is_json: bool = False


def rehearse(legacy: Legacy) -> str:
    """Have the program that is on disk now read this, in a process of its own; what is wrong, or "". Blocks."""
    command = [*legacy.ground.program, "_rehearse"]
    try:
        done = subprocess.run(
            command, input=msgspec.json.encode(legacy), capture_output=True, timeout=REHEARSAL, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    return done.stderr.decode("utf-8", "replace").strip()[-2000:] or f"exit {done.returncode}"


def become(legacy: Legacy) -> None:
    """Go on as the program that is on disk now. Returns only by raising OSError, with nothing changed."""
    text = msgspec.json.encode(legacy)
    fd = os.memfd_create("yugong-legacy", 0)
    os.write(fd, text)
    fds = [fd, legacy.lock_fd, legacy.link.fd, legacy.ground.memory_fd]
    fds += [held.fd for held in (*legacy.clients, *([legacy.admin] if legacy.admin else []))]
    fds += [memo.fd for memo in legacy.children if memo.fd >= 0]
    sys.stdout.flush()
    sys.stderr.flush()
    former = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        _inherit(fds, is_on=True)
        os.execv(legacy.ground.program[0], [*legacy.ground.program, "_resume", str(fd)])  # noqa: S606
    except OSError:
        _inherit(fds, is_on=False)
        os.close(fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
        raise


def _inherit(fds: Iterable[int], *, is_on: bool) -> None:
    for fd in fds:
        os.set_inheritable(fd, is_on)


def read_legacy(fd: int) -> Legacy:
    """What the program before left in the file `fd`. Raises msgspec.ValidationError."""
    with open(fd, "rb") as file:
        file.seek(0)
        legacy = msgspec.json.decode(file.read(), type=Legacy)
    fds = [legacy.lock_fd, legacy.link.fd, legacy.ground.memory_fd, *(held.fd for held in legacy.clients)]
    fds += [legacy.admin.fd] if legacy.admin else []
    _inherit([*fds, *(memo.fd for memo in legacy.children if memo.fd >= 0)], is_on=False)
    return legacy


def reopen(held: Held) -> Door:
    """The listening socket behind an inherited descriptor."""
    return Door(held.address, socket.socket(fileno=held.fd))


def hold(door: Door) -> Held:
    return Held(door.address, door.sock.fileno())
