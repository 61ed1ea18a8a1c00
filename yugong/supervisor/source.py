"""Where the settings in force come from.

Decides: what a first run without any configuration serves, and that it stays so over reloads and upgrades. Must not
know: processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from yugong.base.secret import Secret
from yugong.core.dialects import catalog
from yugong.core.settings import Org, OrgKey, Origin, SecretRef, Settings
from yugong.store.settingsfile import SettingsFile

__all__ = ["Demo", "Plan", "Source", "plan_for"]

OPENAI = "https://api.openai.com"
OPENAI_KEY = "OPENAI_API_KEY"
"""The name the official SDKs read."""


class Demo(msgspec.Struct):
    """The built-in upstream as it runs: where, and its keys by organisation."""

    url: str
    keys: dict[str, list[str]]


class Plan(msgspec.Struct):
    """What the pool holds where the settings say nothing of it."""

    #: "settings" (they say it), "openai" (the key in the environment), "demo", or "nothing".
    upstream: str
    demo: Demo | None = None


class Source:
    """The settings file, and what the plan adds to it.

    Raises (when made, and from `reload` and `poll`):
        SettingsError: with every problem there is.
    """

    __slots__ = ("_file", "path", "plan")

    def __init__(self, path: Path | None, environ: Mapping[str, str], plan: Plan | None = None) -> None:
        self.path = path
        self._file = SettingsFile(path, environ, sorted(catalog()))
        self.plan = plan or plan_for(self._file.loaded.settings, path, environ)

    def __repr__(self) -> str:
        return f"<Source {self.path or 'defaults'} upstream={self.plan.upstream}>"

    @property
    def settings(self) -> Settings:
        """As they were read last."""
        return _completed(self._file.loaded.settings, self.plan)

    def reload(self) -> Settings:
        """Read now."""
        return _completed(self._file.reload().loaded.settings, self.plan)

    def poll(self) -> Settings | None:
        """Read if the file has changed and settled; call it about once a second."""
        found = self._file.poll()
        return None if found is None else _completed(found.loaded.settings, self.plan)


def plan_for(settings: Settings, path: Path | None, environ: Mapping[str, str]) -> Plan:
    """What to serve: the settings' pool; without any file the key in the environment, else the demo."""
    if settings.orgs:
        return Plan("settings")
    if path is not None:
        return Plan("nothing")
    has_key = bool(environ.get(OPENAI_KEY) or environ.get(OPENAI_KEY + "_FILE"))
    return Plan("openai" if has_key else "demo")


def _completed(settings: Settings, plan: Plan) -> Settings:
    if plan.upstream == "openai":
        origin = Origin(dialect="openai", url=OPENAI)
        key = OrgKey(id="environment", secret=SecretRef(env=OPENAI_KEY))
        return _with_pool(settings, {"openai": origin}, {"openai": Org(origin="openai", keys=(key,))})
    if plan.upstream == "demo" and plan.demo is not None:
        origins = {"demo": Origin(dialect="openai", url=plan.demo.url, private=True)}
        return _with_pool(settings, origins, _demo_orgs(plan.demo))
    return settings


def _demo_orgs(demo: Demo) -> dict[str, Org]:
    return {
        name: Org(
            origin="demo",
            keys=tuple(OrgKey(id=f"k{n}", secret=SecretRef(value=Secret(key))) for n, key in enumerate(keys, 1)),
        )
        for name, keys in demo.keys.items()
    }


def _with_pool(settings: Settings, origins: dict[str, Origin], orgs: dict[str, Org]) -> Settings:
    return msgspec.structs.replace(settings, origins={**settings.origins, **origins}, orgs={**settings.orgs, **orgs})


def wanted_workers(settings: Settings) -> int:
    """Worker processes: as set; 0 is one for each core we may use."""
    return settings.listen.workers or len(os.sched_getaffinity(0))
