"""What the supervisor does when it is told something: reload, upgrade, stop.

Decides: the order of things in each of them, so that no call is lost. One at a time, in the order they were asked for;
only the end does not wait its turn. Must not know: the command line.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import orjson

from yugong.core.settings import Settings
from yugong.core.settings.showing import differences
from yugong.store.accounts import AccountFile, AccountsError
from yugong.store.doors import DoorTaken, refuse_newcomers
from yugong.store.handover import pack_settings
from yugong.store.settingsfile import SettingsError, resolve_secret
from yugong.supervisor.child import Child, Role, State
from yugong.supervisor.crew import Crew
from yugong.supervisor.entry import close_unlike, open_doors
from yugong.supervisor.source import Source, wanted_workers
from yugong.supervisor.upgrade import SIGNALS, Legacy, become, hold, rehearse
from yugong.surface.metrics import BY_NAME
from yugong.surface.proclog import ProcessLog
from yugong.surface.uplink import Uplink, count_process

__all__ = ["Chief", "StartFailed", "import_accounts"]

POLL = 1.0  # seconds between looks at the settings file
DOOR_PAUSE = 0.1  # seconds in which connections that have begun come through before the door closes
ANSWER_MAX = 30.0  # seconds a worker may take to reload
HASTE = 2.0  # seconds workers get when told twice to stop

#: What a change of which does not need new workers, though the table of settings says it needs a restart.
LIVE = {"listen.workers", "listen.admin", "listen.backlog"}
#: What a change of which needs a new keeper.
KEEPERS = {"listen.admin", "log.access"}


class StartFailed(Exception):
    """No worker could be started; `is_settings` if the settings are to blame."""

    def __init__(self, why: str, *, is_settings: bool = False) -> None:
        super().__init__(why)
        self.is_settings = is_settings


class Refused(Exception):
    """New settings that are not taken; the text has every reason, one a line."""


class Chief:
    """One supervisor, from the moment everything is open until its end."""

    def __init__(self, crew: Crew, source: Source, settings: Settings, lock_fd: int) -> None:
        self.crew = crew
        self.source = source
        #: In force; `source` may already have read others that were refused.
        self.settings = settings
        self.log: ProcessLog = crew.log
        #: Told once all workers are ready.
        self.greet: Callable[[], None] = lambda: None
        self.is_ephemeral = False
        self.is_json = False
        self._lock_fd = lock_fd
        self._asked: asyncio.Queue[str] = asyncio.Queue()
        self._end = asyncio.Event()
        self._haste = asyncio.Event()
        self._failed: asyncio.Future[tuple[Child, str]] | None = None
        self._loaded_at = time.time()
        self._outcome = "taken"
        self._problems = 0
        registry = crew.registry
        self._reloads = registry.counter(BY_NAME["yugong_settings_reloads_total"])
        self._stamp = registry.gauge(BY_NAME["yugong_settings_loaded_timestamp_seconds"]).labels()
        self._stamp.value = self._loaded_at
        count_process(registry, "supervisor")
        crew.mourn = self._mourn
        crew.detail = self._detail

    def __repr__(self) -> str:
        return f"<Chief {self.crew!r}>"

    def _detail(self) -> dict[str, Any]:
        loaded = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._loaded_at))
        upstream = self.source.plan.upstream
        last = {"last_reload": self._outcome, "problems": self._problems}
        return {"settings": {"revision": self.crew.revision, "loaded_at": loaded, **last}, "upstream": upstream}

    # --- life --------------------------------------------------------------------------------------------------------

    async def run(self, *, is_resumed: bool = False) -> int:
        """From here to the end; the exit code. Raises StartFailed if it does not come up."""
        self._listen_to_signals()
        self.crew.serial += 1
        uplink = Uplink(Path(self.crew.ground.link), f"supervisor:{self.crew.serial}", "supervisor", self.crew.registry)
        tasks = [asyncio.ensure_future(uplink.run())]
        try:
            if is_resumed:
                self._asked.put_nowait("roll")
            else:
                await self._boot()
            tasks += [asyncio.ensure_future(self._poll()), asyncio.ensure_future(self._obey(uplink))]
            await self._end.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await uplink.close()
            await self._stop()
        return 0

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop)
        loop.add_signal_handler(signal.SIGHUP, self._asked.put_nowait, "reload")
        loop.add_signal_handler(signal.SIGUSR2, self._asked.put_nowait, "upgrade")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _told_to_stop(self) -> None:
        (self._haste if self._end.is_set() else self._end).set()

    async def _boot(self) -> None:
        self.crew.look()
        failed = self._failed = asyncio.get_running_loop().create_future()
        ready = asyncio.ensure_future(self.crew.wait_until(self.crew.is_settled))
        ended = asyncio.ensure_future(self._end.wait())
        await asyncio.wait((ready, failed, ended), return_when=asyncio.FIRST_COMPLETED)
        for one in (ready, ended):
            one.cancel()
        self._failed = None
        if failed.done():
            child, why = failed.result()
            self._haste.set()
            raise StartFailed(why, is_settings=child.is_misled)
        failed.cancel()
        if not self._end.is_set():
            self.greet()

    def _mourn(self, child: Child, why: str) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_result((child, why))

    # --- one thing after the other -----------------------------------------------------------------------------------

    async def _poll(self) -> None:
        """Look whether the settings file has changed."""
        while True:
            await asyncio.sleep(POLL)
            try:
                found = self.source.poll()
            except SettingsError as error:
                self._refuse("\n".join(map(str, error.problems)))
                continue
            if found is not None:
                self._asked.put_nowait("changed")

    async def _obey(self, uplink: Uplink) -> None:
        while True:
            asked = await self._asked.get()
            try:
                if asked == "upgrade":
                    await self._upgrade(uplink)
                elif asked == "roll":
                    await self._roll_all()
                else:
                    await self._reload(is_forced=asked == "reload")
            except Exception as error:  # a bug here must not take the workers with it
                self.log.exception(f"{asked} failed", error)
            self.crew.look()

    # --- reload ------------------------------------------------------------------------------------------------------

    async def _reload(self, *, is_forced: bool) -> None:
        """Take the settings as they are on disk, or keep those in force and say why."""
        if is_forced:
            for keeper in self.crew.alive(Role.KEEPER):
                keeper.send({"op": "reopen"})
        try:
            new = self.source.reload() if is_forced else self.source.settings
            await self._take(new, is_forced=is_forced)
        except SettingsError as error:
            self._refuse("\n".join(map(str, error.problems)))
        except Refused as error:
            self._refuse(str(error))

    def _refuse(self, why: str) -> None:
        lines = why.splitlines()
        for line in lines:
            self.log.error(line)
        self.log.error("the new settings are not taken; the old ones stay in force")
        self._outcome, self._problems = "refused", len(lines)
        self._reloads.labels("refused").value += 1
        self.crew.look()

    async def _take(self, new: Settings, *, is_forced: bool) -> None:
        old = self.settings
        changes = differences(old, new)
        for change in changes:
            self.log.info(f"settings: {str(change).removesuffix(' (needs a restart)')}")
        if changes or is_forced:
            # also where nothing has changed: what a reference points to may have
            paths = {change.path for change in changes}
            if "data_dir" in paths:
                raise Refused("data_dir cannot change while we run: stop, move the directory, start")
            await self._swap(old, new, paths, any(c.needs_restart and c.path not in LIVE for c in changes))
        self.settings = new
        self.log.level = new.log.level
        self._outcome, self._problems = "taken" if changes else "unchanged", 0
        self._loaded_at = self._stamp.value = time.time()
        self._reloads.labels(self._outcome).value += 1
        self.log.info(f"settings read again: {len(changes)} changed" if changes else "settings read again: no change")

    async def _swap(self, old: Settings, new: Settings, paths: set[str], is_rolling: bool) -> None:
        """From the old settings to the new, or back if anything does not work; then Refused is raised."""
        crew, data_dir = self.crew, Path(self.crew.ground.data_dir)
        try:
            import_accounts(data_dir, new)
            opened = open_doors(new, (crew.doors.clients, crew.doors.admin))
        except (AccountsError, DoorTaken) as error:
            _restore_accounts(data_dir, old)
            raise Refused(str(error)) from None
        former = crew.settings, crew.revision, crew.doors.clients, crew.doors.admin
        crew.doors.clients, crew.doors.admin = opened
        crew.settings, crew.revision = msgspec.Raw(pack_settings(new)), crew.revision + 1
        crew.drain_seconds = new.drain.lame_duck + new.drain.grace
        workers = crew.wanted.workers
        crew.wanted.workers = wanted_workers(new)
        why = await (self._roll() if is_rolling else self._tell_workers(former))
        if why:
            crew.settings, crew.revision = former[0], crew.revision + 1
            close_unlike(opened, (former[2], former[3]))
            crew.doors.clients, crew.doors.admin = former[2], former[3]
            crew.wanted.workers = workers
            _restore_accounts(data_dir, old)
            crew.look()
            raise Refused(why)
        await self._renew_keeper(paths)
        close_unlike((former[2], former[3]), opened)

    async def _renew_keeper(self, paths: set[str]) -> None:
        crew = self.crew
        if paths & KEEPERS:
            crew.wanted.keeper_generation += 1
            crew.look()
            await crew.wait_until(crew.is_settled)
        elif "log.level" in paths:
            for keeper in crew.alive(Role.KEEPER):
                keeper.send(_reload_order(crew))

    async def _tell_workers(self, former: tuple[Any, ...]) -> str:
        """Reload every worker in place, one first; what it says against it, with all back as they were, or ""."""
        told: list[Child] = []
        for child in [c for c in self.crew.alive(Role.WORKER) if c.state is State.READY]:
            why = await self._tell_one(child)
            if why and child.state is State.READY:
                self.crew.settings, revision = former[0], self.crew.revision
                self.crew.revision = revision + 1
                for one in told:
                    await self._tell_one(one)
                return why
            told.append(child)
        return ""

    async def _tell_one(self, child: Child) -> str:
        child.replies = asyncio.get_running_loop().create_future()
        child.send(_reload_order(self.crew))
        try:
            why: str = await asyncio.wait_for(child.replies, ANSWER_MAX)
            return why
        except TimeoutError:
            return f"{child.name} did not take the new settings within {ANSWER_MAX:g} s"
        finally:
            child.replies = None

    # --- new workers -------------------------------------------------------------------------------------------------

    async def _roll(self) -> str:
        """Put new workers in the place of all, one by one; why that did not work, with the old ones back, or ""."""
        crew = self.crew
        former = crew.wanted.generation
        crew.wanted.generation = fresh = crew.serial + 1  # never used before
        settled = asyncio.ensure_future(crew.wait_until(self._has_rolled))
        why = ""
        while not why and not settled.done():
            failed = self._failed = asyncio.get_running_loop().create_future()
            crew.look()
            await asyncio.wait((settled, failed), return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                child, reason = failed.result()
                # an old one that dies meanwhile is no fault of the new, nor is the keeper
                why = reason if child.role is Role.WORKER and child.generation == fresh else ""
        self._failed = None
        settled.cancel()
        if why:
            crew.wanted.generation = former
        return why

    def _has_rolled(self) -> bool:
        fresh = [c for c in self.crew.alive(Role.WORKER) if c.state is State.READY]
        return len(fresh) >= self.crew.wanted.workers and all(
            c.generation == self.crew.wanted.generation for c in fresh
        )

    async def _roll_all(self) -> None:
        """After an upgrade: new workers and a new keeper."""
        why = await self._roll()
        if why:
            self.log.error(f"the new workers do not start, the old ones stay: {why}")
            return
        self.crew.wanted.keeper_generation += 1
        self.crew.look()
        await self.crew.wait_until(self.crew.is_settled)
        self.log.info("upgraded: all processes run the new program")

    async def _upgrade(self, uplink: Uplink) -> None:
        """Go on as the program that is on disk now."""
        loop, crew = asyncio.get_running_loop(), self.crew
        self.log.info("upgrade: trying the program that is on disk")
        why = await loop.run_in_executor(None, rehearse, self._legacy())
        if why:
            self.log.error(f"upgrade: it does not start, this one goes on: {why}")
            return
        await uplink.report()
        channels = [c.channel for c in crew.children.values() if c.channel is not None and c.channel.is_open]
        for channel in channels:
            channel.detach()
        try:
            become(self._legacy())
        except OSError as error:
            self.log.error(f"upgrade: {error.strerror}; this program goes on")
            for channel in channels:
                channel.attach(loop)

    def _legacy(self) -> Legacy:
        crew = self.crew
        return Legacy(
            ground=crew.ground,
            plan=self.source.plan,
            path=str(self.source.path) if self.source.path else None,
            settings=crew.settings,
            revision=crew.revision,
            serial=crew.serial,
            generation=crew.wanted.generation,
            keeper_generation=crew.wanted.keeper_generation,
            clients=[hold(door) for door in crew.doors.clients],
            link=hold(crew.doors.link),
            admin=hold(crew.doors.admin) if crew.doors.admin else None,
            lock_fd=self._lock_fd,
            emulator_port=crew.emulator_port,
            children=[child.memo() for child in crew.children.values()],
            is_ephemeral=self.is_ephemeral,
            is_json=self.is_json,
        )

    # --- the end -----------------------------------------------------------------------------------------------------

    async def _stop(self) -> None:
        """Let nobody in, let everybody finish, go."""
        crew = self.crew
        crew.wanted.is_stopping = True
        crew.look()
        under_way = crew.count()["ready"]
        if not self._haste.is_set() and under_way:
            self.log.info("stopping: calls under way are finished; once more to stop at once")
            for door in crew.doors.clients:
                refuse_newcomers(door.sock)
            await asyncio.sleep(DOOR_PAUSE)
        for door in crew.doors.clients:
            door.close()
        now = time.monotonic()
        for child in crew.alive(Role.WORKER):
            if child.state is State.READY:
                crew.drain(child, crew.drain_seconds, now)
            elif child.state is State.STARTING:
                crew.stop(child, now)
        await self._wait_gone(Role.WORKER)
        for child in crew.alive(Role.EMULATOR):
            child.signal(signal.SIGTERM)
        for child in crew.alive(Role.KEEPER):
            crew.drain(child, DOOR_PAUSE, time.monotonic())
        await crew.wait_until(lambda: not crew.alive(Role.KEEPER))
        for child in crew.alive(Role.EMULATOR):
            child.signal(signal.SIGKILL)
        await crew.wait_until(lambda: not crew.children)
        crew.close()
        self.log.info("stopped")

    async def _wait_gone(self, role: Role) -> None:
        crew = self.crew
        gone = asyncio.ensure_future(crew.wait_until(lambda: not crew.alive(role)))
        haste = asyncio.ensure_future(self._haste.wait())
        await asyncio.wait((gone, haste), return_when=asyncio.FIRST_COMPLETED)
        haste.cancel()
        if not gone.done():
            for child in crew.alive(role):
                crew.stop(child, time.monotonic())
                child.deadline = time.monotonic() + HASTE
            await gone


def _reload_order(crew: Crew) -> dict[str, Any]:
    return {"op": "reload", "revision": crew.revision, "settings": orjson.Fragment(bytes(crew.settings))}


def import_accounts(data_dir: Path, settings: Settings) -> None:
    """Make the accounts on disk what the settings say. Raises AccountsError."""
    with AccountFile(data_dir) as accounts:
        accounts.import_settings(settings, lambda ref: resolve_secret(ref, os.environ))


def _restore_accounts(data_dir: Path, settings: Settings) -> None:
    try:
        import_accounts(data_dir, settings)
    except AccountsError:
        pass  # what was wrong with the old ones was said when they came
