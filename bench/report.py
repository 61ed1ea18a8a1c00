"""What a run says: every figure in a table, every bar with its figure, and the machine it was measured on.

Ratios are medians of the ratios round by round, so that a slow minute of the machine, which falls on a whole round,
cancels.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench import growth
from bench.session import Figure

GROWTH_LIMIT = 1.3
PACKAGES = ("aiohttp", "uvloop", "httptools", "orjson", "msgspec", "cryptography", "prometheus-client")


@dataclass(slots=True)
class Bar:
    """A limit, and what was measured; None: not measured in this run."""

    name: str
    limit: float
    unit: str
    value: float | None
    beside: str = ""  # the same figure of others, for judgement

    @property
    def verdict(self) -> str:
        """pass, FAIL, or not measured."""
        if self.value is None:
            return "not measured"
        return "pass" if self.value <= self.limit else "**FAIL**"


@dataclass(slots=True)
class Report:
    """The text for people and the same for programs."""

    text: str
    brief: str  # only what was measured
    data: dict[str, Any] = field(default_factory=dict)


def _of(figures: Iterable[Figure], benchmark: str, contender: str, point: str = "") -> list[Figure]:
    return [
        figure
        for figure in figures
        if figure.benchmark == benchmark
        and figure.contender == contender
        and point in ("", figure.point)
        and figure.values
    ]


def ratio(above: Figure, below: Figure) -> float:
    """Median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(above.values, below.values, strict=False))


def _ratio_bar(figures: Sequence[Figure], name: str, limit: float, place: tuple[str, str]) -> Bar:
    benchmark, other = place
    above, below = _of(figures, benchmark, "yugong"), _of(figures, benchmark, other)
    points = [(ratio(a, b), a.point) for a in above for b in below if a.point == b.point]
    beside = ", ".join(f"{point}: {value:.2f}" for value, point in points) if len(points) > 1 else ""
    return Bar(name, limit, "×", max(points)[0] if points else None, beside)


def _added_bar(figures: Sequence[Figure], quantile: str, limit: float) -> Bar:
    above, below = (_of(figures, f"latency {quantile}", name) for name in ("yugong", "nginx"))
    added = (
        statistics.median(a - b for a, b in zip(above[0].values, below[0].values, strict=False))
        if above and below
        else None
    )
    return Bar(f"added latency {quantile} against nginx", limit, "ms", added)


def _growth_bar(figures: Sequence[Figure], benchmark: str, title: str) -> Bar:
    own, other = (_growth(_of(figures, benchmark, name), benchmark) for name in ("yugong", "nginx"))
    return Bar(f"growth, {title}", GROWTH_LIMIT, "×", own, f"nginx {other:.2f}" if other else "")


def _growth(figures: Sequence[Figure], benchmark: str) -> float | None:
    if len(figures) < 2:
        return None
    costs = [figure.median for figure in figures]
    if benchmark.startswith("bodies"):
        costs = growth.per_byte(costs, [int(figure.point.split()[0]) * 1000 for figure in figures])
    return growth.worst(costs)


def bars(figures: Sequence[Figure]) -> list[Bar]:
    """Every bar of the benchmarks, in the order of the report."""
    memory = _of(figures, "memory", "yugong")
    return [
        _ratio_bar(figures, "unary against nginx, each as fast as it can", 3.0, ("unary", "nginx")),
        _ratio_bar(figures, "unary against nginx, at one rate", 3.0, ("unary, one rate", "nginx")),
        _ratio_bar(figures, "unary against the plain relay", 0.33, ("unary", "relay")),
        _ratio_bar(figures, "streamed event against nginx", 1.25, ("streams", "nginx")),
        _ratio_bar(figures, "TLS upstream against nginx", 4.0, ("tls", "nginx")),
        Bar("memory of an open stream", 20.0, "kB", memory[0].median / 1000 if memory else None),
        _added_bar(figures, "p50", 0.3),
        _added_bar(figures, "p99", 2.0),
        _growth_bar(figures, "growth: connections", "connections 1→2000"),
        _growth_bar(figures, "bodies up", "bodies up, per byte"),
        _growth_bar(figures, "bodies down", "bodies down, per byte"),
        _growth_bar(figures, "growth: orgs", "orgs 10→10 000"),
        _growth_bar(figures, "growth: streams", "streams 100→5000"),
        _growth_bar(figures, "growth: workers", "workers 1→2"),
    ]


def _cell(figure: Figure) -> str:
    digits = 0 if figure.median >= 1000 else 2
    return f"{figure.median:,.{digits}f} ({min(figure.values):,.{digits}f}–{max(figure.values):,.{digits}f})"


def _tables(figures: Sequence[Figure]) -> list[str]:
    lines: list[str] = []
    for benchmark in dict.fromkeys(figure.benchmark for figure in figures):
        rows = [figure for figure in figures if figure.benchmark == benchmark and figure.values]
        names = list(dict.fromkeys(figure.contender for figure in rows))
        lines += ["", f"### {benchmark}, {rows[0].unit}", ""]
        others = [name for name in names if name != "nginx"] if "nginx" in names else []
        heads = ["", *names, *(f"{name} / nginx" for name in others)]
        lines += [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
        for point in dict.fromkeys(figure.point for figure in rows):
            at = {figure.contender: figure for figure in rows if figure.point == point}
            cells = [_cell(at[name]) if name in at else "" for name in names]
            cells += [f"{ratio(at[name], at['nginx']):.2f}" if name in at and "nginx" in at else "" for name in others]
            lines.append(f"| {point} | {' | '.join(cells)} |")
        lines += ["", *_remarks(rows)]
    return lines


def _remarks(rows: Sequence[Figure]) -> list[str]:
    """How busy each proxy was, and how its processes shared it."""
    said = []
    for figure in rows:
        busy = [(name[5:], figure.detail(name)) for name in figure.details if name.startswith("busy_")]
        parts = ", ".join(f"{name} {share:.1%}" for name, share in busy if share >= 0.001)
        rate = figure.detail("events_per_s") or figure.detail("calls_per_s")
        if parts:
            where = f"{figure.contender}, {figure.point}: {rate:,.0f}/s"
            said.append(f"- {where}; processor {parts}; resident {figure.detail('rss_mb'):.0f} MB")
    return said


def make(figures: Sequence[Figure], machine: dict[str, str], failed: Sequence[str] = ()) -> Report:
    """The report of a run."""
    held = bars(figures)
    lines = ["# Benchmarks", "", f"Measured {machine['date']} by `make bench`.", "", "## Bars", ""]
    lines += ["| bar | limit | measured | | beside |", "| --- | --- | --- | --- | --- |"]
    for bar in held:
        value = f"{bar.value:.2f} {bar.unit}" if bar.value is not None else ""
        lines.append(f"| {bar.name} | ≤ {bar.limit:g} {bar.unit} | {value} | {bar.verdict} | {bar.beside} |")
    lines += [f"\nNot measured, because it failed: {text}" for text in failed]
    lines += [
        "",
        "## Figures",
        "",
        "Medians of the rounds, the lowest and the highest in brackets; contenders took turns.",
    ]
    lines += _tables(figures)
    lines += [
        "",
        "## Machine",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in machine.items()),
        "",
    ]
    data = {"machine": machine, "bars": [{**asdict(bar), "verdict": bar.verdict.strip("*")} for bar in held]}
    met = [
        f"{bar.name}: {bar.value:.2f} {bar.unit} (≤ {bar.limit:g}) {bar.verdict} {bar.beside}"
        for bar in held
        if bar.value is not None
    ]
    return Report(
        "\n".join(lines),
        "\n".join([*_tables(figures), *met]).strip(),
        {**data, "failed": list(failed), "figures": [asdict(figure) for figure in figures]},
    )


def write(made: Report, out: Path) -> None:
    """The text to `out`, the data to results.json beside it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(made.text)
    (out.parent / "results.json").write_text(json.dumps(made.data, indent=1) + "\n")


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} –"


def _said(*command: str) -> str:
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except OSError:
        return "–"
    return (ran.stdout + ran.stderr).strip().splitlines()[0] if ran.stdout + ran.stderr else "–"


def _busy(span: float = 1.0) -> float:
    """Share of all cores in use over the next `span` seconds."""

    def read() -> tuple[int, int]:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(ticks), ticks[3] + ticks[4]

    total, idle = read()
    time.sleep(span)
    total_after, idle_after = read()
    return 1 - (idle_after - idle) / max(1, total_after - total)


def machine() -> dict[str, str]:
    """What was measured on, and when."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", info)
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _said("git", "describe", "--always", "--dirty"),
        "processor": f"{model.group(1) if model else platform.machine()}, {len(os.sched_getaffinity(0))} cores usable",
        "memory": f"{int(memory.group(1)) / 1e6:.0f} GB" if memory else "–",
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "nginx": _said(nginx, "-v"),
        "packages": ", ".join(map(_version, PACKAGES)),
        "busy_before": f"{_busy():.0%}",
    }
