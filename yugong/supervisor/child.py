"""One child process: how it is started, heard and sent off.

Decides: what a child inherits and how its end is noticed (a pidfd: no signal to miss, and it works for children adopted
after an upgrade). Must not know: how many there should be, or why.
"""

from __future__ import annotations

import asyncio
import enum
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from yugong.store.channel import Channel

__all__ = ["Child", "Memo", "Role", "State", "spawn"]


class Role(enum.Enum):
    WORKER = "worker"
    KEEPER = "keeper"
    EMULATOR = "emulator"


class State(enum.IntEnum):
    STARTING = 0
    READY = 1
    DRAINING = 2
    GONE = 3


#: What a state may become; anything else is a bug.
FOLLOWS = {
    State.STARTING: {State.READY, State.DRAINING, State.GONE},
    State.READY: {State.DRAINING, State.GONE},
    State.DRAINING: {State.GONE},
    State.GONE: set[State](),
}


class Memo(msgspec.Struct):
    """A child as one supervisor writes it down for the next (an upgrade)."""

    role: str
    name: str
    id: str
    pid: int
    fd: int
    lane: int
    state: int
    generation: int
    revision: int
    is_serving: bool
    is_leaving: bool
    started: float
    deadline: float | None
    inbound: bytes
    outbound: bytes


class Child:
    """What is known of one process. Times are monotonic seconds."""

    __slots__ = (
        "beat",
        "channel",
        "deadline",
        "failure",
        "generation",
        "id",
        "is_aborted",
        "is_leaving",
        "is_misled",
        "is_serving",
        "lane",
        "name",
        "pid",
        "pidfd",
        "replies",
        "revision",
        "role",
        "started",
        "state",
        "status",
    )

    def __init__(
        self, role: Role, name: str, id: str, *, lane: int = -1, generation: int = 0, revision: int = 0
    ) -> None:
        self.role = role
        #: In logs and labels; free again when the process has ended.
        self.name = name
        #: Never used twice.
        self.id = id
        self.lane = lane
        self.generation = generation
        #: Of the settings it lives by.
        self.revision = revision
        self.state = State.STARTING
        self.pid = 0
        self.pidfd = -1
        self.channel: Channel | None = None
        self.started = 0.0
        self.beat = 0.0
        #: When it must be gone; None while it need not go.
        self.deadline: float | None = None
        #: It asked to leave (SIGTERM to it alone).
        self.is_leaving = False
        #: A keeper that has been told to serve.
        self.is_serving = False
        #: It has been told, by signal, to end at once.
        self.is_aborted = False
        #: What it said when it could not start, and whether the settings are to blame.
        self.failure = ""
        self.is_misled = False
        #: Who waits for its answer to a reload.
        self.replies: asyncio.Future[str] | None = None
        #: As os.waitpid gives it, when it has ended.
        self.status = 0

    def __repr__(self) -> str:
        return f"<Child {self.id} pid={self.pid} {self.state.name.lower()} generation={self.generation}>"

    def become(self, state: State) -> None:
        """The one place where a state changes."""
        assert state in FOLLOWS[self.state], f"{self!r} → {state.name}"
        self.state = state

    def send(self, message: Any) -> None:
        if self.channel is not None:
            self.channel.send(message)

    def signal(self, number: signal.Signals) -> None:
        """By pidfd: never another process that has got the same number since."""
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, number)
            except ProcessLookupError:
                pass

    def watch(self, loop: asyncio.AbstractEventLoop, gone: Callable[[Child], None]) -> None:
        """Call `gone` when it has ended, with `status` set."""
        self.pidfd = os.pidfd_open(self.pid)
        loop.add_reader(self.pidfd, self._ended, loop, gone)

    def _ended(self, loop: asyncio.AbstractEventLoop, gone: Callable[[Child], None]) -> None:
        loop.remove_reader(self.pidfd)
        os.close(self.pidfd)
        self.pidfd = -1
        try:
            _, self.status = os.waitpid(self.pid, 0)
        except ChildProcessError:
            self.status = 0
        gone(self)

    def ending(self) -> str:
        """How it ended, for people."""
        if os.WIFSIGNALED(self.status):
            number = os.WTERMSIG(self.status)
            return f"killed by {signal.Signals(number).name}" if number in list(signal.Signals) else f"signal {number}"
        return f"exit {os.WEXITSTATUS(self.status)}"

    def memo(self) -> Memo:
        """For the next supervisor. The channel must not be read any more."""
        inbound, outbound = self.channel.buffers() if self.channel is not None else (b"", b"")
        return Memo(
            role=self.role.value,
            name=self.name,
            id=self.id,
            pid=self.pid,
            fd=self.channel.sock.fileno() if self.channel is not None and self.channel.is_open else -1,
            lane=self.lane,
            state=int(self.state),
            generation=self.generation,
            revision=self.revision,
            is_serving=self.is_serving,
            is_leaving=self.is_leaving,
            started=self.started,
            deadline=self.deadline,
            inbound=inbound,
            outbound=outbound,
        )

    @classmethod
    def from_memo(cls, memo: Memo, now: float) -> Child:
        """The opposite, without its channel, which needs somebody to listen."""
        child = cls(
            Role(memo.role),
            memo.name,
            memo.id,
            lane=memo.lane,
            generation=memo.generation,
            revision=memo.revision,
        )
        child.pid, child.started, child.beat, child.deadline = memo.pid, memo.started, now, memo.deadline
        child.state = State(memo.state)
        child.is_serving, child.is_leaving = memo.is_serving, memo.is_leaving
        return child


def spawn(program: Sequence[str], verb: str, fds: Iterable[int]) -> tuple[int, socket.socket]:
    """Start `program verb FD` with these descriptors under the same numbers; its pid and our end of its channel.

    A fresh interpreter rather than a fork: a fork of a process with a running loop and threads is a trap, and the new
    one loads the code that is on disk now. Raises OSError.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        process = subprocess.Popen(
            [*program, verb, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), *fds),
        )
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    process.returncode = 0  # it is reaped through its pidfd; Popen shall neither wait nor warn
    return process.pid, ours
