"""What a supervisor tells a process it starts, and how settings travel between processes.

Decides: the shape of the first message. Must not know: what the processes do with it.

Settings travel whole, as one process read and checked them: a file that is edited in between cannot make two workers
disagree. Secrets given by value go with them, over a socket pair nobody else holds; references are resolved where the
secret is used.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Any

import msgspec

from yugong.base.secret import Secret
from yugong.core.settings import Settings

__all__ = ["Entrance", "Hello", "die_with_parent", "pack_settings", "unpack_settings"]


class Entrance(msgspec.Struct):
    """A listening socket the new process inherits."""

    address: str
    fd: int


class Hello(msgspec.Struct, kw_only=True):
    """The first message to a process."""

    #: Who it is in logs and in the `process` label: "worker-0", "keeper".
    name: str
    #: Unlike the name never used twice while this supervisor lives, upgrades included.
    id: str
    #: One for each start of the whole; an upgrade keeps it.
    boot: str
    #: Pid of the supervisor.
    parent: int
    data_dir: str
    #: Local socket of the keeper.
    link: str
    settings: msgspec.Raw
    revision: int
    doors: list[Entrance] = []
    #: Which row of the shared state is this worker's, of how many; free again when its process has ended.
    lane: int = 0
    lanes: int = 1
    #: The shared state: a mapped file in memory, and its size in bytes. -1: there is none.
    memory_fd: int = -1
    memory_size: int = 0
    #: The upstream is the built-in demo: say so in every answer.
    is_demo: bool = False


def pack_settings(settings: Settings) -> bytes:
    """Settings as JSON, secrets given by value included: for our own processes only."""
    return msgspec.json.encode(settings, enc_hook=_reveal)


def unpack_settings(packed: bytes | msgspec.Raw) -> Settings:
    """The opposite of `pack_settings`. Raises msgspec.ValidationError if another version of the schema packed them."""
    return msgspec.json.decode(packed, type=Settings, dec_hook=_conceal)


def _reveal(value: Any) -> str:
    if isinstance(value, Secret):
        return value.reveal().decode("latin-1")
    raise NotImplementedError(type(value).__name__)


def _conceal(kind: type, value: Any) -> Any:
    if kind is Secret:
        return Secret(str(value).encode("latin-1"))
    raise NotImplementedError(kind.__name__)


_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int) -> bool:
    """Be sent SIGTERM when the process `parent`, which started us, ends; False if it has ended already.

    The end of the control channel says the same to an event loop that runs; this also reaches one that does not yet.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    return os.getppid() == parent
