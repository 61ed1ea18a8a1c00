"""How the values of one process reach the keeper, and how the keeper makes one truth of many.

Decides: what a report holds (new series by number, then only the values that changed) and how values of living and
departed processes merge, so that no counter ever goes backwards (Prometheus would take that for a restart). Must not
know: sockets, text formats.

A report is JSON: `{"new": [[number, metric, [label values]]…], "set": [[number, value]…], "end": bool}`; the one with
`end` closes a round. The first round on a connection names everything, so that a keeper that was replaced is soon
complete, and counts from its end on. Reading is cut in slices, so that a worker with 20 000 series is not kept from its
calls for 5 ms in one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from yugong.surface.meters import Registry, Spec
from yugong.surface.metrics import BY_NAME

__all__ = ["Books", "Merged", "Reporter", "Tally"]

SLICE = 1_000
"""Series read in one go: about 0.1 ms."""

Value = float | list[float]
Key = tuple[str, tuple[str, ...]]
Merged = dict[str, dict[tuple[str, ...], Value]]


class Reporter:
    """One connection's view of a registry: what the other side knows already."""

    __slots__ = ("_registry", "_sent")

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._sent: list[float] = []

    def __repr__(self) -> str:
        return f"<Reporter sent={len(self._sent)} of {len(self._registry.rows)}>"

    def round(self) -> Iterator[dict[str, Any]]:
        """One round of reports: what is new since the last, a slice at a time. The last one has `end`."""
        self._registry.refresh()
        count = len(self._registry.rows)
        for start in range(0, count, SLICE):
            report = self._slice(start, min(start + SLICE, count))
            if report["set"] or report["new"]:
                yield report
        yield {"new": [], "set": [], "end": True}

    def _slice(self, start: int, stop: int) -> dict[str, Any]:
        sent, rows = self._sent, self._registry.rows
        new: list[Any] = []
        changed: list[Any] = []
        known = len(sent)
        for number in range(start, stop):
            spec, labels, child = rows[number]
            if number >= known:
                new.append((number, spec.name, labels))
                sent.append(0)
            if child.value != sent[number]:
                sent[number] = child.value
                changed.append((number, child.read()))
        return {"new": new, "set": changed, "end": False}


class Tally:
    """What one process has reported so far."""

    __slots__ = ("departed", "keys", "stamp", "values")

    def __init__(self) -> None:
        #: Monotonic seconds when it went; None while it is there.
        self.departed: float | None = None
        self.keys: list[Key] = []
        self.values: list[Value] = []
        #: Order of the last report among all processes; decides "latest".
        self.stamp = 0

    def __repr__(self) -> str:
        return f"<Tally series={len(self.keys)} {'alive' if self.departed is None else 'departed'}>"

    def take(self, report: Mapping[str, Any]) -> None:
        """Take one report. Raises ValueError, TypeError, KeyError or IndexError for what no `Reporter` sends."""
        for number, name, labels in report["new"]:
            spec = BY_NAME[name]
            if number != len(self.keys) or len(labels) != len(spec.labels):
                raise ValueError(f"series {number} of {name} does not follow")
            self.keys.append((name, tuple(labels)))
            self.values.append(_zero(spec))
        for number, value in report["set"]:
            self.values[number] = value

    def lasting(self) -> Iterator[tuple[Key, Value]]:
        """What outlives the process: counters and histograms."""
        pairs = zip(self.keys, self.values, strict=True)
        return ((key, value) for key, value in pairs if BY_NAME[key[0]].kind != "gauge")


def _zero(spec: Spec) -> Value:
    return [0.0] * (len(spec.bounds) + 2) if spec.kind == "histogram" else 0


class Books:
    """All processes' tallies and what is left of those that are gone.

    A process that departs keeps its counters under its own id for `FOLD_AFTER` seconds; one that comes back within them
    (its connection broke, the keeper was replaced) reports everything again, and that takes the place of what was kept.
    """

    __slots__ = ("_coming", "_folded", "_stamp", "_tallies")

    FOLD_AFTER = 60.0

    def __init__(self) -> None:
        self._tallies: dict[str, Tally] = {}
        self._coming: dict[str, Tally] = {}
        self._folded: dict[Key, Value] = {}
        self._stamp = 0

    def __repr__(self) -> str:
        alive = len(self.alive())
        return f"<Books alive={alive} departed={len(self._tallies) - alive} folded={len(self._folded)}>"

    def alive(self) -> set[str]:
        """Ids of the processes that are there and have reported a whole round."""
        return {process for process, tally in self._tallies.items() if tally.departed is None}

    def open(self, process: str) -> None:
        """A connection of this process begins; what it reported on an earlier one counts until its first round ends."""
        self._coming[process] = Tally()

    def take(self, process: str, report: Mapping[str, Any]) -> None:
        """Take a report of an open process. Raises as `Tally.take` does."""
        tally = self._coming.get(process) or self._tallies[process]
        tally.take(report)
        if report.get("end"):
            self._tallies[process] = tally
            self._coming.pop(process, None)
        self._stamp += 1
        tally.stamp = self._stamp

    def depart(self, process: str, now: float) -> None:
        """Its connection ended: gauges go, counters stay. `now` in monotonic seconds."""
        coming = self._coming.pop(process, None)
        tally = self._tallies.setdefault(process, coming) if coming else self._tallies.get(process)
        if tally is not None:
            tally.departed = now

    def fold(self, now: float) -> int:
        """Add those long gone into one; how many they were. Keeps what is kept from growing with each restart."""
        gone = [p for p, t in self._tallies.items() if t.departed is not None and now - t.departed >= self.FOLD_AFTER]
        for process in gone:
            for key, value in self._tallies.pop(process).lasting():
                self._folded[key] = _sum(self._folded.get(key), value)
        return len(gone)

    def merged(self) -> Merged:
        """Metric → label values → value, over all processes."""
        result: dict[Key, Value] = dict(self._folded)
        for tally in sorted(self._tallies.values(), key=lambda tally: tally.stamp):
            pairs = zip(tally.keys, tally.values, strict=True) if tally.departed is None else tally.lasting()
            for key, value in pairs:
                former = result.get(key)
                result[key] = value if former is None else _MERGE[BY_NAME[key[0]].merge](former, value)
        merged: Merged = {}
        for (name, labels), value in result.items():
            merged.setdefault(name, {})[labels] = value
        return merged

    def dump(self) -> dict[str, Any]:
        """All counters as JSON can hold them, for the keeper that comes after."""
        rows = {process: _rows(tally.lasting()) for process, tally in self._tallies.items()}
        return {"folded": _rows(self._folded.items()), "tallies": rows}

    def load(self, dumped: Mapping[str, Any], now: float) -> None:
        """Take over what a former keeper dumped; processes still there will report and overwrite theirs."""
        self._folded = _unrows(dumped["folded"])
        for process, rows in dumped["tallies"].items():
            tally = Tally()
            tally.departed = now
            pairs = _unrows(rows)
            tally.keys, tally.values = list(pairs), list(pairs.values())
            self._tallies[process] = tally


def _sum(one: Value | None, other: Value) -> Value:
    if one is None:
        return other
    if isinstance(one, list) and isinstance(other, list):
        return [a + b for a, b in zip(one, other, strict=True)]
    assert not isinstance(one, list)
    assert not isinstance(other, list)
    return one + other


_MERGE: dict[str, Callable[[Value, Value], Value]] = {
    "sum": _sum,
    "max": max,  # gauges only, so both are floats
    "latest": lambda one, other: other,
}


def _rows(pairs: Iterable[tuple[Key, Value]]) -> list[Any]:
    return [(name, labels, value) for (name, labels), value in pairs]


def _unrows(rows: list[Any]) -> dict[Key, Value]:
    """Rows of metrics this version still knows in the same shape."""
    result: dict[Key, Value] = {}
    for name, labels, value in rows:
        spec = BY_NAME.get(name)
        if spec is not None and len(labels) == len(spec.labels) and _is_shaped(spec, value):
            result[name, tuple(labels)] = value
    return result


def _is_shaped(spec: Spec, value: Value) -> bool:
    return len(value) == len(spec.bounds) + 2 if isinstance(value, list) else spec.kind == "counter"
