"""The children, kept as the plan says.

Decides: nothing about how many (that is `plan`): it takes the plan's steps, hears what children say, and plans again.
Must not know: signals, files of settings, the command line.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import orjson

from yugong.store.channel import JSON, Channel
from yugong.store.doors import Door
from yugong.store.handover import Entrance, Hello
from yugong.store.poolstate import SIZE, PoolState
from yugong.supervisor.child import Child, Memo, Role, State, spawn
from yugong.supervisor.plan import ABORT_GRACE, Act, Backoff, Step, Wanted, steps
from yugong.surface.meters import Registry
from yugong.surface.metrics import BY_NAME
from yugong.surface.proclog import ProcessLog

__all__ = ["Crew", "Ground"]

LOOK = 1.0  # seconds between looks when nothing happens
STOP_GRACE = 5.0  # seconds for a child that has nothing to finish
KEEPER_GRACE = 15.0
DRAIN_SLACK = 10.0  # seconds a worker may be late beyond the time it was given


class Ground(msgspec.Struct):
    """What every child stands on; the same from start to end, upgrades included."""

    program: list[str]
    boot: str
    data_dir: str
    #: Path of the keeper's local socket.
    link: str
    lanes: int
    memory_fd: int
    is_demo: bool = False


class Doors:
    """The listening sockets in force."""

    __slots__ = ("admin", "clients", "link")

    def __init__(self, clients: list[Door], admin: Door | None, link: Door) -> None:
        self.clients = clients
        self.admin = admin
        self.link = link

    def __repr__(self) -> str:
        return f"<Doors {', '.join(door.bound for door in self.clients)}>"


class Crew:
    """All children. Only `look` starts and ends them."""

    def __init__(self, ground: Ground, wanted: Wanted, doors: Doors, log: ProcessLog) -> None:
        self.ground = ground
        self.wanted = wanted
        self.doors = doors
        self.log = log
        self.children: dict[str, Child] = {}
        self.serial = 0
        self.settings = msgspec.Raw(b"{}")
        self.revision = 0
        #: Seconds a draining worker gets.
        self.drain_seconds = 605.0
        self.emulator_port = 0
        #: Told when a child ends unasked or cannot start: its name and why.
        self.mourn: Callable[[Child, str], None] = lambda child, why: None
        #: What /readyz shows besides the workers.
        self.detail: Callable[[], dict[str, Any]] = dict
        self.registry = Registry()
        self._memory = PoolState(ground.memory_fd)
        self._backoff = Backoff()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._states = self.registry.gauge(BY_NAME["yugong_workers"])
        self._starts = self.registry.counter(BY_NAME["yugong_process_starts_total"])
        self._is_looking = False

    def __repr__(self) -> str:
        return f"<Crew {self.count()} {self.wanted!r}>"

    # --- asking ------------------------------------------------------------------------------------------------------

    def alive(self, role: Role) -> list[Child]:
        return [c for c in self.children.values() if c.role is role]

    def count(self) -> dict[str, int]:
        """Workers by state."""
        counts = {"starting": 0, "ready": 0, "draining": 0}
        for child in self.alive(Role.WORKER):
            counts[child.state.name.lower()] += 1
        return counts

    def is_settled(self) -> bool:
        """Whether as many workers as wanted are ready and of the current generation, and a keeper of its own serves."""
        fresh = [c for c in self.alive(Role.WORKER) if c.state is State.READY and not c.is_leaving]
        ready = [c for c in fresh if c.generation == self.wanted.generation]
        keepers = [c for c in self.alive(Role.KEEPER) if c.is_serving and c.state is State.READY]
        is_kept = any(c.generation == self.wanted.keeper_generation for c in keepers)
        return len(ready) == len(fresh) == self.wanted.workers and is_kept

    async def wait_until(self, holds: Callable[[], bool]) -> None:
        """Wait until this holds; looked at after each event."""
        if not holds():
            future = self._loop.create_future()
            self._waiters.append((holds, future))
            await future

    # --- acting ------------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Take every step that is due. Called after each event, and by itself once a second."""
        if self._is_looking:
            return
        self._is_looking = True
        try:
            now = time.monotonic()
            for step in steps(self.children.values(), self.wanted, self._backoff, now):
                self._take(step, now)
        finally:
            self._is_looking = False
        self._tell()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(min(LOOK, self._backoff.next(now) or LOOK), self.look)
        for waiter in list(self._waiters):
            if waiter[1].done() or waiter[0]():
                self._waiters.remove(waiter)
                if not waiter[1].done():
                    waiter[1].set_result(None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _take(self, step: Step, now: float) -> None:
        child = step.child
        if step.act is Act.SPAWN:
            assert step.role is not None
            self._spawn(step.role, step.reason, now)
            return
        assert child is not None
        if step.act is Act.DRAIN:
            self.drain(child, self.drain_seconds if child.role is Role.WORKER else KEEPER_GRACE, now)
        elif step.act is Act.STOP:
            self.stop(child, now)
        elif step.act is Act.SERVE:
            child.is_serving = True
            self._tell()
            child.send({"op": "serve"})
        elif step.act is Act.ABORT:
            self.log.error(f"{child.name} (pid {child.pid}): {step.reason}; ending it")
            child.is_aborted = True
            child.deadline = now + ABORT_GRACE
            child.signal(signal.SIGABRT)
        elif step.act is Act.KILL:
            self.log.error(f"{child.name} (pid {child.pid}): {step.reason}; killing it")
            child.deadline = now + STOP_GRACE
            child.signal(signal.SIGKILL)

    def drain(self, child: Child, seconds: float, now: float) -> None:
        """Have a child finish what is under way, in so many seconds."""
        if child.state in (State.STARTING, State.READY):
            child.become(State.DRAINING)
            child.deadline = now + seconds + DRAIN_SLACK
            child.send({"op": "drain", "seconds": seconds})

    def stop(self, child: Child, now: float) -> None:
        """Have a child leave what is under way."""
        if child.state in (State.STARTING, State.READY):
            child.become(State.DRAINING)
        child.deadline = now + STOP_GRACE
        child.send({"op": "stop"})

    def _spawn(self, role: Role, reason: str, now: float) -> None:
        self.serial += 1
        lane = self._free_lane() if role is Role.WORKER else -1
        name = f"worker-{lane}" if role is Role.WORKER else role.value
        generation = self.wanted.keeper_generation if role is Role.KEEPER else self.wanted.generation
        id = f"{name}:{self.serial}"
        child = Child(role, name, id, lane=lane, generation=generation, revision=self.revision)
        child.started = child.beat = now
        try:
            if role is Role.EMULATOR:
                child.pid = start_emulator(self.ground.program, self.emulator_port, None)
            else:
                self._spawn_heard(child)
        except OSError as error:
            self._backoff.died(role, 0.0, now)
            self.log.error(f"cannot start {name}: {error.strerror}")
            self.mourn(child, f"cannot start a process: {error.strerror}")
            return
        self.adopt(child)
        self._starts.labels(role.value, reason or ("start" if self._is_first(role) else "replace")).value += 1
        self.log.debug(f"{name} started (pid {child.pid})")

    def _is_first(self, role: Role) -> bool:
        return self.serial <= self.wanted.workers + 2

    def _spawn_heard(self, child: Child) -> None:
        doors = self._doors_for(child.role)
        fds = [door.sock.fileno() for door in doors.values()]
        is_worker = child.role is Role.WORKER
        child.pid, ours = spawn(
            self.ground.program, f"_{child.role.value}", [*fds, self.ground.memory_fd] if is_worker else fds
        )
        child.channel = Channel(ours, self._hear, self._unheard, child.id)
        hello = Hello(
            name=child.name,
            id=child.id,
            boot=self.ground.boot,
            parent=os.getpid(),
            data_dir=self.ground.data_dir,
            link=self.ground.link,
            settings=self.settings,
            revision=self.revision,
            doors=[Entrance(name, door.sock.fileno()) for name, door in doors.items()],
            lane=max(0, child.lane),
            lanes=self.ground.lanes,
            memory_fd=self.ground.memory_fd if is_worker else -1,
            memory_size=SIZE if is_worker else 0,
            is_demo=self.ground.is_demo,
        )
        child.channel.send_raw(JSON, msgspec.json.encode(hello))

    def _doors_for(self, role: Role) -> dict[str, Door]:
        if role is Role.WORKER:
            return {door.address: door for door in self.doors.clients}
        admin = {"admin": self.doors.admin} if self.doors.admin is not None else {}
        return {"link": self.doors.link, **admin}

    def _free_lane(self) -> int:
        taken = {c.lane for c in self.alive(Role.WORKER)}
        return next(lane for lane in range(self.ground.lanes) if lane not in taken)

    def adopt(self, child: Child) -> None:
        """Hear and watch this child from now on."""
        self.children[child.id] = child
        child.watch(self._loop, self._gone)
        if child.role is Role.EMULATOR:
            child.state = State.READY
        elif child.channel is not None:
            child.channel.attach(self._loop)

    def recall(self, memo: Memo) -> None:
        """Take over a child from the program before this one."""
        child = Child.from_memo(memo, time.monotonic())
        if memo.fd >= 0:
            child.channel = Channel(socket.socket(fileno=memo.fd), self._hear, self._unheard, child.id)
            child.channel.put_back(memo.inbound, memo.outbound)
        self.adopt(child)

    # --- hearing -----------------------------------------------------------------------------------------------------

    def _hear(self, channel: Channel, kind: bytes, payload: bytes) -> None:
        child = self.children.get(channel.name)
        if child is None:
            return
        message = orjson.loads(payload)
        child.beat = time.monotonic()
        match message["op"]:
            case "beat" | "draining" | "drained":
                return
            case "ready":
                self._ready(child)
            case "leave":
                child.is_leaving = True
            case "failed":
                child.failure = str(message["what"])
                child.is_misled = bool(message.get("is_settings"))
            case "reloaded":
                child.revision = message["revision"]
                self._reply(child, "")
            case "refused":
                self._reply(child, str(message["what"]))
        self.look()

    def _ready(self, child: Child) -> None:
        if child.state is not State.STARTING:
            return
        child.become(State.READY)
        self.log.debug(f"{child.name} ready after {time.monotonic() - child.started:.2f} s")
        if child.role is Role.WORKER and child.revision != self.revision:
            child.send({"op": "reload", "revision": self.revision, "settings": orjson.Fragment(bytes(self.settings))})

    @staticmethod
    def _reply(child: Child, what: str) -> None:
        if child.replies is not None and not child.replies.done():
            child.replies.set_result(what)

    def _unheard(self, channel: Channel) -> None:
        """Its end of the channel is closed; its end by itself is what counts."""

    def _gone(self, child: Child) -> None:
        was_asked = child.state is State.DRAINING
        child.become(State.GONE)
        del self.children[child.id]
        self._reply(child, "it ended")
        if child.channel is not None:
            child.channel.close()
        if child.lane >= 0:
            self._memory.clear_lane(child.lane)
        if was_asked and not child.status:
            self.log.debug(f"{child.name} (pid {child.pid}) has finished")
        elif not self.wanted.is_stopping or child.role is not Role.EMULATOR:
            self._lament(child, was_asked)
        self.look()

    def _lament(self, child: Child, was_asked: bool) -> None:
        now = time.monotonic()
        why = child.failure or child.ending()
        if was_asked:
            self.log.warning(f"{child.name} (pid {child.pid}): {why} while it was finishing")
            return
        wait = self._backoff.died(child.role, now - child.started, now)
        again = (
            "" if self.wanted.is_stopping else f"; another one in {wait:.1f} s" if wait else "; starting another one"
        )
        self.log.error(f"{child.name} (pid {child.pid}) is gone: {why}{again}")
        self.mourn(child, why)

    # --- telling -----------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """The keeper, how things are."""
        counts = self.count()
        for name, number in counts.items():
            self._states.labels(name).value = number
        state = {
            "workers": {"wanted": self.wanted.workers, **counts},
            "processes": [c.id for c in self.alive(Role.WORKER) if c.state is State.READY],
            "is_stopping": self.wanted.is_stopping,
            **self.detail(),
        }
        for keeper in self.alive(Role.KEEPER):
            keeper.send({"op": "state", "state": state})


def start_emulator(program: Sequence[str], port: int, stdout: int | None) -> int:
    """Start the demo upstream; its pid. Out of the terminal's group, so that Ctrl-C lets calls to it finish."""
    process = subprocess.Popen(
        [*program, "_emulator", "--port", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if stdout is None else stdout,
        process_group=0,
    )
    process.returncode = 0  # reaped through its pidfd
    return process.pid


def link_path(data_dir: Path) -> Path:
    """The keeper's local socket."""
    return data_dir / "run" / "keeper.sock"
