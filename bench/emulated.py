"""The emulator as an upstream of its own process, for runs where answers and faults matter more than cost.

emulator = stack.enter_context(Emulated(folder, {"orgs": [...], "deterministic": True}))
emulator.set_faults([{"kind": "503", "share": 0.1}])
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from bench.contenders import ROOT
from bench.processes import Running, StartError

START_SECONDS = 30.0


class Emulated:
    """One running emulator. `url` is its base, `keys` its organisations' keys."""

    def __init__(self, folder: Path, spec: dict[str, Any], *, tls: tuple[Path, Path] | None = None) -> None:
        folder.mkdir(exist_ok=True)
        file = folder / "spec.json"
        file.write_text(json.dumps(spec))
        command = [sys.executable, "-m", "yugong.emulator", "--spec", str(file)]
        if tls:
            command += ["--tls", *map(str, tls)]
        self.running = Running("emulator", command, folder / "emulator.log", cwd=ROOT)
        ready = self._ready(folder / "emulator.log")
        self.url: str = ready["url"]
        self.keys: dict[str, list[str]] = ready["keys"]
        self._control: str = ready["control"]

    def __enter__(self) -> Emulated:
        return self

    def __exit__(self, *_: object) -> None:
        self.running.stop()

    def __repr__(self) -> str:
        return f"<Emulated {self.url} {self.running!r}>"

    def _ready(self, log: Path) -> dict[str, Any]:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            for line in log.read_text().splitlines():
                if line.startswith('{"url"'):
                    ready: dict[str, Any] = json.loads(line)
                    return ready
            time.sleep(0.05)
        self.running.stop()
        raise StartError(f"the emulator is not ready\n{log.read_text()[-2000:]}")

    def stats(self) -> dict[str, Any]:
        """Counters since its start."""
        return self._ask("stats")

    def set_faults(self, rules: list[dict[str, Any]]) -> None:
        """Put these rules in force, and no others."""
        self._ask("faults", {"faults": rules})

    def set_listener(self, mode: str) -> None:
        """open, closed, reset, garbage or silent, for new connections."""
        self._ask("listeners", {"mode": mode})

    def _ask(self, what: str, document: dict[str, Any] | None = None) -> dict[str, Any]:
        url = f"{self._control.split('/_emulator')[0].rstrip('/')}/_emulator/{what}"
        data = json.dumps(document).encode() if document is not None else None
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
            return found


def org(name: str, keys: int = 3) -> dict[str, Any]:
    """An organisation without limits."""
    return {"name": name, "keys": [f"sk-emulator-{name}-{at}-0123456789abcdef" for at in range(keys)]}


def as_org(name: str, keys: list[str], origin: str) -> dict[str, Any]:
    """The same organisation as Yugong's settings name it."""
    made = [{"id": f"{name}-{at}", "secret": {"value": key}} for at, key in enumerate(keys)]
    return {"origin": origin, "keys": made}
