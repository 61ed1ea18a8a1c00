"""One run: starts the upstream and the contenders, plays the rounds, keeps the figures.

All contenders of a benchmark stand side by side from its start to its end and take turns (A B C A B C …), so that
whatever else the machine does falls on all of them alike. A figure keeps every round.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from bench import certificates, contenders, processes
from bench.contenders import Proxy, Site
from bench.processes import Running, StartError

Sample = dict[str, Any]  # what bench.load prints


class LoadError(Exception):
    """The load could not run, or calls failed in it."""


@dataclass(slots=True)
class Figure:
    """One contender at one point of one benchmark, all rounds."""

    benchmark: str
    point: str
    contender: str
    unit: str
    values: list[float] = field(default_factory=list)
    details: dict[str, list[float]] = field(default_factory=dict)

    def __repr__(self) -> str:
        where = f"{self.benchmark}/{self.point} {self.contender}"
        return f"<Figure {where} {self.median:.2f} {self.unit} n={len(self.values)}>"

    @property
    def median(self) -> float:
        """Over the rounds, in `unit`."""
        return statistics.median(self.values)

    def detail(self, name: str) -> float:
        """The median of one detail; 0 if nobody measured it."""
        return statistics.median(self.details[name]) if self.details.get(name) else 0.0

    def note(self, value: float, sample: Sample | None = None, roles: dict[int, str] | None = None) -> None:
        """Add one round."""
        self.values.append(value)
        for name, figure in (_details(sample, roles or {}) if sample else {}).items():
            self.details.setdefault(name, []).append(figure)


def _details(sample: Sample, roles: dict[int, str]) -> dict[str, float]:
    found = {name: float(sample[name]) for name in ("p50_ms", "p99_ms", "client_busy")}
    found["calls_per_s"] = sample["calls"] / sample["seconds"]
    found["events_per_s"] = sample["events"] / sample["seconds"]
    found["proxy_busy"] = sample["cpu_ns"] / 1e9 / sample["seconds"]
    found["rss_mb"] = sample["rss_bytes"] / 1e6
    for pid, ns in sample["cpu_ns_by_process"].items():
        name = "busy_" + roles.get(int(pid), "child")
        found[name] = found.get(name, 0.0) + ns / 1e9 / sample["seconds"]
    return found


def per_call(sample: Sample) -> float:
    """Processor time of the proxy per call, µs."""
    return float(sample["cpu_ns"] / 1e3 / max(1, sample["calls"]))


def per_event(sample: Sample) -> float:
    """Processor time of the proxy per streamed event, µs."""
    return float(sample["cpu_ns"] / 1e3 / max(1, sample["events"]))


@dataclass(slots=True)
class Plan:
    """How much to measure."""

    rounds: int = 5
    seconds: float = 3.0
    only: Sequence[str] = ()
    quick: bool = False
    peers: bool = False  # LiteLLM and Portkey run too


class Session:
    """The processes and the figures of one run. A context manager: at its end everything it started is gone."""

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self.plan = plan
        self.say = say
        self.figures: list[Figure] = []
        self.failed: list[str] = []
        self._stack = ExitStack()
        self._numbers = 0
        self.folder = Path()

    def __enter__(self) -> Session:
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        self.folder.chmod(0o755)  # nginx, started by root, works as nobody
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def names(self, *among: str) -> list[str]:
        """The contenders of this run, of `among` if given."""
        wanted = self.plan.only or [
            name for name in contenders.STARTERS if self.plan.peers or name not in contenders.PEER_NAMES
        ]
        return [name for name in contenders.available() if name in wanted and (not among or name in among)]

    def new_folder(self, name: str) -> Path:
        """A fresh folder under the run's."""
        self._numbers += 1
        made = self.folder / f"{self._numbers:03d}-{name}"
        made.mkdir(mode=0o755)
        return made

    @contextmanager
    def upstream(self, *, tls: bool = False) -> Iterator[Site]:
        """The lean upstream, and the site in front of it."""
        folder = self.new_folder("upstream")
        port = processes.free_port()
        command = [sys.executable, "-m", "bench.upstream", "--port", str(port)]
        made = certificates.make(folder, contenders.UPSTREAM_NAME) if tls else None
        if made is not None:
            command += ["--cert", str(made.cert), "--key", str(made.key)]
        with Running("upstream", command, folder / "log", cores=processes.cores()[1], cwd=contenders.ROOT) as running:
            running.wait_ready(port)
            yield Site(folder, port, made.ca if made else None)

    @contextmanager
    def fleet(self, sites: Sequence[tuple[str, str, Site]]) -> Iterator[dict[str, Proxy]]:
        """Start `(label, contender, site)` each in a folder of its own; by label. Who cannot start is left out."""
        with ExitStack() as stack:
            fleet: dict[str, Proxy] = {}
            for label, name, site in sites:
                try:
                    fleet[label] = contenders.STARTERS[name](replace(site, folder=self.new_folder(name)))
                except StartError as error:
                    self.fail(error)
                else:
                    stack.callback(fleet[label].stop)
            yield fleet

    def fail(self, error: Exception) -> None:
        """Something could not be measured; the run goes on without it."""
        self.failed.append(str(error))
        self.say(f"FAILED {error}")

    def side_by_side(self, site: Site, *among: str) -> Any:
        """A fleet of this run's contenders before one site, by name."""
        return self.fleet([(name, name, site) for name in self.names(*among)])

    def figure(self, benchmark: str, point: str, contender: str, unit: str) -> Figure:
        """The figure of that place, made if it is new."""
        for figure in self.figures:
            if (figure.benchmark, figure.point, figure.contender) == (benchmark, point, contender):
                return figure
        self.figures.append(Figure(benchmark, point, contender, unit))
        return self.figures[-1]

    def load(self, kind: str, proxy: Proxy | None, *options: str, port: int = 0) -> Sample:
        """Run the load once against `proxy` (or a bare port). Raises LoadError if it cannot, or if calls failed."""
        command = [sys.executable, "-m", "bench.load", kind, "--key", contenders.CUSTOMER_KEY, *options]
        command += ["--port", str(proxy.port if proxy else port), "--watch", str(proxy.running.pid if proxy else 0)]
        command += [f"--header={name}: {value}" for name, value in (proxy.headers if proxy else {}).items()]
        if "--seconds" not in options:
            command += ["--seconds", str(self.plan.seconds)]
        pins = ",".join(map(str, sorted(processes.cores()[1])))
        ran = subprocess.run(
            ["taskset", "-c", pins, *command], capture_output=True, text=True, cwd=contenders.ROOT, timeout=180
        )
        where = proxy.name if proxy else "direct"
        if ran.returncode:
            raise LoadError(f"{kind} against {where}: {ran.stderr[-1500:]}")
        sample: Sample = json.loads(ran.stdout)
        if sample["errors"] or not sample["calls"] + sample["events"]:
            raise LoadError(
                f"{kind} against {where}: {sample['calls']} calls, {sample['errors']} failed: {sample['why']}"
            )
        return sample

    def rounds(
        self,
        fleet: dict[str, Proxy],
        place: tuple[str, str, str],
        load: tuple[str, ...],
        value: Callable[[Sample], float] = per_call,
    ) -> None:
        """Let the fleet take turns at `place` (benchmark, point, unit) under `load` (kind and options).

        Whose calls fail has no figure there.
        """
        benchmark, point, unit = place
        runners = dict(fleet)
        for _ in range(self.plan.rounds):
            for label, proxy in list(runners.items()):
                try:
                    sample = self.load(load[0], proxy, *load[1:])
                except LoadError as error:
                    self.fail(error)
                    del runners[label]
                    self.figures.remove(self.figure(benchmark, point, label, unit))
                else:
                    self.figure(benchmark, point, label, unit).note(value(sample), sample, proxy.roles())
        for label in runners:
            self.say(_line(self.figure(benchmark, point, label, unit)))


def _line(figure: Figure) -> str:
    low, high = min(figure.values), max(figure.values)
    rate = figure.detail("events_per_s") or figure.detail("calls_per_s")
    busy = ", ".join(
        f"{name[5:]} {figure.detail(name):.0%}"
        for name in figure.details
        if name.startswith("busy_") and figure.detail(name) > 0.002
    )
    where = f"{figure.benchmark:12} {figure.point:16} {figure.contender:8}"
    text = f"{where} {figure.median:9.2f} {figure.unit} ({low:.2f}–{high:.2f})"
    return f"{text}  {rate:,.0f}/s  proxy {busy}  client {figure.detail('client_busy'):.0%}"
