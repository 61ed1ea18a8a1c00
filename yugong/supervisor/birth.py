"""Everything that must stand before the first child is started.

Decides: the order of it, and the exit code of each thing that can be in the way: settings, data directory, accounts,
addresses, descriptors. Must not know: the command line, what a banner looks like.
"""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
import select
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import orjson

from yugong.base.secret import Secret
from yugong.core.keypool.cells import LANES
from yugong.core.settings import Settings
from yugong.store import poolstate
from yugong.store.accounts import AccountFile, AccountsError
from yugong.store.channel import listen_local
from yugong.store.datadir import DataDirError, choose_data_dir, open_data_dir
from yugong.store.doors import Door, DoorTaken
from yugong.store.handover import pack_settings, unpack_settings
from yugong.store.settingsfile import SettingsError, readers_warning
from yugong.supervisor.chief import Chief, StartFailed, import_accounts
from yugong.supervisor.child import Child, Role, State
from yugong.supervisor.crew import Crew, Doors, Ground, link_path, start_emulator
from yugong.supervisor.entry import open_doors
from yugong.supervisor.exits import Exit, StartError
from yugong.supervisor.plan import Wanted
from yugong.supervisor.source import Demo, Plan, Source, wanted_workers
from yugong.supervisor.upgrade import Legacy, read_legacy, reopen
from yugong.surface.proclog import ProcessLog

__all__ = ["Order", "Started", "program", "rehearse_resume", "resume", "start"]

EMULATOR_MAX = 15.0  # seconds until the demo upstream says where it is
FIRST_ACCOUNT, FIRST_KEY = "default", "first"
DESCRIPTORS_LEAST = 1024


class Order(msgspec.Struct):
    """What is to be run."""

    #: How to start ourselves: interpreter, module.
    program: list[str]
    #: The settings file; None where there is none.
    path: Path | None
    is_demo: bool = False
    is_json: bool = False


class Started(msgspec.Struct):
    """What is to be told once all workers are ready."""

    #: Where clients connect, e.g. "127.0.0.1:8080" or "unix:/run/yugong.sock".
    addresses: list[str]
    admin: str | None
    data_dir: Path
    plan: Plan
    #: A customer key that was made just now, and can be shown only now.
    key: Secret | None
    path: Path | None
    workers: int
    is_json: bool
    is_ephemeral: bool


Greet = Callable[[Started], None]


class _Stand:
    """What `start` has built, before a loop runs."""

    def __init__(self, order: Order, source: Source, settings: Settings) -> None:
        self.order = order
        self.source = source
        self.settings = settings
        self.emulator_pid = 0
        self.emulator_port = 0


def program() -> list[str]:
    """How to start ourselves again. `-P` keeps a directory we happen to be started in off the import path, unless the
    program itself lies there."""
    home = Path(__file__).resolve().parents[2]
    safe = [] if home == Path.cwd() else ["-P"]
    return [sys.executable, *safe, "-m", "yugong"]


def start(order: Order, environ: Mapping[str, str], greet: Greet) -> int:
    """Run until told to stop; the exit code. Raises StartError where it does not come up."""
    try:
        source = Source(order.path, environ, Plan("demo") if order.is_demo else None)
    except SettingsError as error:
        raise StartError(Exit.SETTINGS, *map(str, error.problems)) from None
    settings = source.settings
    log = ProcessLog("supervisor", settings.log.level)
    for line in _warnings(order.path, source, _raise_descriptors()):
        log.warning(line)
    if wanted_workers(settings) > LANES // 2:
        raise StartError(Exit.SETTINGS, f"listen.workers: at most {LANES // 2} workers; a core takes one or two")
    is_ephemeral = order.is_demo and settings.data_dir is None
    path = (
        Path(tempfile.mkdtemp(prefix="yugong-demo-"))
        if is_ephemeral
        else choose_data_dir(settings.data_dir, environ, Path.cwd())
    )
    try:
        return _start_in(path, _Stand(order, source, settings), log, greet, is_ephemeral)
    finally:
        if is_ephemeral:
            shutil.rmtree(path, ignore_errors=True)


def _start_in(path: Path, stand: _Stand, log: ProcessLog, greet: Greet, is_ephemeral: bool) -> int:
    source, order = stand.source, stand.order
    try:
        data = open_data_dir(path)
        link_path(data.path).parent.mkdir(mode=0o700, exist_ok=True)
        link = Door("link", listen_local(link_path(data.path)))
    except DataDirError as error:
        raise StartError(Exit.DATA, str(error)) from None
    except OSError as error:
        raise StartError(Exit.DATA, f"{path}: {error.strerror}") from None
    try:
        key = _first_key(data.path, stand.settings)
        clients, admin = open_doors(stand.settings)
    except AccountsError as error:
        raise StartError(Exit.SETTINGS, *error.lines) from None
    except DoorTaken as error:
        raise StartError(Exit.ADDRESS, str(error)) from None
    if source.plan.upstream == "demo":
        source.plan.demo, stand.emulator_pid, stand.emulator_port = _demo(order.program)
        stand.settings = source.settings
    ground = Ground(
        program=order.program,
        boot=secrets.token_hex(8),
        data_dir=str(data.path),
        link=str(link_path(data.path)),
        lanes=LANES,
        memory_fd=poolstate.create(),
        is_demo=source.plan.upstream == "demo",
    )
    doors = Doors(clients, admin, link)
    started = Started(
        addresses=[door.bound for door in clients],
        admin=admin.bound if admin else None,
        data_dir=data.path,
        plan=source.plan,
        key=key,
        path=order.path,
        workers=wanted_workers(stand.settings),
        is_json=order.is_json,
        is_ephemeral=is_ephemeral,
    )

    async def live() -> int:
        crew = Crew(ground, Wanted(started.workers, ground.lanes), doors, log)
        _equip(crew, stand.settings, stand.emulator_port)
        if stand.emulator_pid:
            _adopt_emulator(crew, stand.emulator_pid)
        chief = Chief(crew, source, stand.settings, data.lock_fd)
        chief.is_ephemeral, chief.is_json = is_ephemeral, order.is_json
        chief.greet = lambda: greet(started)
        return await chief.run()

    try:
        return asyncio.run(live())
    except StartFailed as error:
        raise StartError(Exit.SETTINGS if error.is_settings else Exit.FAILURE, str(error)) from None


def _equip(crew: Crew, settings: Settings, emulator_port: int) -> None:
    crew.settings = msgspec.Raw(pack_settings(settings))
    crew.revision = crew.revision or 1
    crew.drain_seconds = settings.drain.lame_duck + settings.drain.grace
    crew.emulator_port = emulator_port
    crew.wanted.has_emulator = bool(emulator_port)


def _adopt_emulator(crew: Crew, pid: int) -> None:
    crew.serial += 1
    child = Child(Role.EMULATOR, "emulator", f"emulator:{crew.serial}")
    child.pid, child.state, child.started = pid, State.READY, time.monotonic()
    crew.adopt(child)


def _warnings(path: Path | None, source: Source, descriptors: int) -> list[str]:
    settings = source.settings
    found = [readers_warning(path, settings)] if path is not None else []
    if source.plan.upstream == "nothing":
        found.append(f"{path} lists no orgs: there is no upstream, and every call will be refused")
    if descriptors < max(DESCRIPTORS_LEAST, settings.listen.connections_max // 8):
        found.append(f"only {descriptors} open files are allowed; raise it (systemd: LimitNOFILE=, shell: ulimit -n)")
    return [line for line in found if line]


def _raise_descriptors() -> int:
    """As many open files as we may have; how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        pass
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _first_key(data_dir: Path, settings: Settings) -> Secret | None:
    """Import the settings' accounts; a key if there is none at all, so that a first run can be called at once."""
    import_accounts(data_dir, settings)
    with AccountFile(data_dir) as accounts:
        if accounts.keys():
            return None
        accounts.open_account(FIRST_ACCOUNT)
        return accounts.create_key(FIRST_ACCOUNT, FIRST_KEY)


def _demo(command: list[str]) -> tuple[Demo, int, int]:
    """Start the demo upstream: what it is, its pid and port."""
    ours, theirs = os.pipe()
    try:
        pid = start_emulator(command, 0, theirs)
    except OSError as error:
        raise StartError(Exit.FAILURE, f"cannot start the demo upstream: {error.strerror}") from None
    finally:
        os.close(theirs)
    with open(ours, "rb") as pipe:
        line = pipe.readline() if select.select([pipe], [], [], EMULATOR_MAX)[0] else b""
    try:
        said = orjson.loads(line)
        demo = Demo(url=said["url"], keys={name: list(keys) for name, keys in said["keys"].items()})
        return demo, pid, int(demo.url.rpartition(":")[2].strip("/"))
    except (ValueError, KeyError) as error:
        raise StartError(Exit.FAILURE, "the demo upstream does not start") from error


# --- after an upgrade ------------------------------------------------------------------------------------------------


def resume(fd: int, environ: Mapping[str, str]) -> int:
    """Go on where the program before stopped; the exit code."""
    legacy = read_legacy(fd)
    settings = unpack_settings(legacy.settings)
    log = ProcessLog("supervisor", settings.log.level)
    source = _source_of(legacy, environ, log)
    try:
        poolstate.PoolState(legacy.ground.memory_fd)
    except ValueError as error:  # the newer program keeps other figures; the old workers go on with theirs
        log.warning(f"upgrade: {error}; the pool's figures begin anew")
        legacy.ground.memory_fd = poolstate.create()
    wanted = Wanted(wanted_workers(settings), legacy.ground.lanes)
    wanted.generation, wanted.keeper_generation = legacy.generation, legacy.keeper_generation
    doors = Doors(
        [reopen(held) for held in legacy.clients],
        reopen(legacy.admin) if legacy.admin else None,
        reopen(legacy.link),
    )

    async def live() -> int:
        crew = Crew(legacy.ground, wanted, doors, log)
        crew.serial, crew.revision = legacy.serial, legacy.revision
        _equip(crew, settings, legacy.emulator_port)
        for memo in legacy.children:
            crew.recall(memo)
        chief = Chief(crew, source, settings, legacy.lock_fd)
        chief.is_ephemeral, chief.is_json = legacy.is_ephemeral, legacy.is_json
        return await chief.run(is_resumed=True)

    try:
        return asyncio.run(live())
    finally:
        if legacy.is_ephemeral:
            shutil.rmtree(legacy.ground.data_dir, ignore_errors=True)


def _source_of(legacy: Legacy, environ: Mapping[str, str], log: ProcessLog) -> Source:
    """The settings file. It was good a moment ago: if it is not now, wait for whoever is writing it; workers go on."""
    while True:
        try:
            return Source(Path(legacy.path) if legacy.path else None, environ, legacy.plan)
        except SettingsError as error:
            log.error(f"upgrade: waiting for the settings to be right again: {error}")
            time.sleep(1.0)


def rehearse_resume(text: bytes, environ: Mapping[str, str]) -> None:
    """Do what `resume` does, as far as it changes nothing. Raises whatever is in the way."""
    from yugong import keeper, worker  # noqa: F401 - that they can be imported is half the question

    legacy = msgspec.json.decode(text, type=Legacy)
    unpack_settings(legacy.settings)
    Source(Path(legacy.path) if legacy.path else None, environ, legacy.plan)
