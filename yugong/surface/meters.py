"""What the hot path counts on: plain objects whose whole cost is an addition.

Decides: how a counter, a gauge and a histogram hold their values, and that no client can make the number of series grow
without end (threats 35 and 36). Must not know: which metrics there are (`metrics.METRICS`), how they reach the keeper
(`reports`) or how they read on paper (`exposition`).

Callers keep the child they got from `labels()`: `child.value += 1` costs 15–40 ns, `histogram.observe()` about 200 ns,
where prometheus_client's cached child takes 240 ns and its `labels().inc()` a microsecond.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

__all__ = ["OTHER", "Family", "Gauge", "Histogram", "Registry", "Series", "Spec", "Total"]

OTHER = "other"
"""What a label reads whose value came too late to get a series of its own."""

VALUE_MAX = 128  # characters of a label value; longer ones are cut


class Spec:
    """One metric as declared: what it is called, what it means, how workers' values become one.

    `kind`: "counter", "gauge" or "histogram". `merge` for gauges: "sum" over processes, "max", or "latest" (the last
    word of whoever spoke last: for what all workers read from the same shared memory).
    """

    __slots__ = ("bounds", "help", "kind", "labels", "merge", "name", "unit")

    def __init__(self, name: str, kind: str, labels: str, text: str, *, unit: str = "", merge: str = "sum") -> None:
        self.name = name
        self.kind = kind
        self.labels = tuple(labels.split())
        self.help = text
        self.unit = unit
        self.merge = merge
        self.bounds: tuple[float, ...] = ()

    def __repr__(self) -> str:
        return f"<Spec {self.name} {self.kind} {{{','.join(self.labels)}}}>"


class Total:
    """A counter's child: `child.value += n`, n never negative."""

    __slots__ = ("value",)

    def __init__(self, spec: Spec) -> None:
        self.value: float = 0

    def __repr__(self) -> str:
        return f"<Total {self.value:g}>"

    def read(self) -> float | list[float]:
        return self.value


class Gauge(Total):
    """A gauge's child: `child.value = n`, or `+=` and `-=`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<Gauge {self.value:g}>"


class Histogram:
    """A histogram's child. `value` is the number of observations: by it every kind of child tells that it changed."""

    __slots__ = ("bounds", "counts", "total", "value")

    def __init__(self, spec: Spec) -> None:
        self.bounds = spec.bounds
        self.counts = [0] * (len(spec.bounds) + 1)
        self.total = 0.0
        self.value: float = 0

    def __repr__(self) -> str:
        return f"<Histogram n={self.value:g} sum={self.total:g}>"

    def observe(self, value: float) -> None:
        """Take one value, in the unit of the metric. A value equal to a bound is within it (Prometheus' `le`)."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
        self.value += 1

    def read(self) -> float | list[float]:
        """Sum, then the count of each bucket by itself (not cumulative)."""
        return [self.total, *self.counts]


Series = Total | Gauge | Histogram
Child = TypeVar("Child", Total, Gauge, Histogram)

#: How many values one label of one metric may take in a process; what is not named here has `VALUES_MAX`.
VALUES_MAX = 100
CAPS = {"org": 10_000, "model": 200, "operation": 200, "status": 64}


class Family(Generic[Child]):
    """One metric of one process, and its children by label values."""

    __slots__ = ("_admitted", "_children", "_make", "_registry", "spec")

    def __init__(self, spec: Spec, make: Callable[[Spec], Child], registry: Registry) -> None:
        self.spec = spec
        self._make: Callable[[Spec], Child] = make
        self._registry = registry
        self._children: dict[tuple[str, ...], Child] = {}
        self._admitted: tuple[set[str], ...] = tuple(set() for _ in spec.labels)

    def __repr__(self) -> str:
        return f"<Family {self.spec.name} children={len(self._children)}>"

    def labels(self, *values: str) -> Child:
        """The child for these label values, in the order they are declared; keep it. Values past the cap: `other`."""
        child = self._children.get(values)
        return child if child is not None else self._admit(values)

    def _admit(self, values: tuple[str, ...]) -> Child:
        assert len(values) == len(self.spec.labels), f"{self.spec!r} given {len(values)} labels"
        caps = self._registry.caps
        named = zip(self.spec.labels, values, self._admitted, strict=True)
        kept = tuple(_bounded(value, admitted, caps.get(label, VALUES_MAX)) for label, value, admitted in named)
        child = self._children.get(kept)
        if child is None:
            child = self._children[kept] = self._make(self.spec)
            self._registry.add(self.spec, kept, child)
        return child


def _bounded(value: str, admitted: set[str], cap: int) -> str:
    """`value` if it may have a series of its own, else `other`; nothing is remembered of those that may not."""
    value = str(value)[:VALUE_MAX]
    if value in admitted:
        return value
    if len(admitted) >= cap:
        return OTHER
    admitted.add(value)
    return value


class Registry:
    """All series of one process, in the order they came to be; a series never leaves, so its place is its number."""

    __slots__ = ("_before", "caps", "rows")

    def __init__(self) -> None:
        #: Values a label may take, by its name; may be changed while counting goes on.
        self.caps = dict(CAPS)
        self.rows: list[tuple[Spec, tuple[str, ...], Series]] = []
        self._before: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<Registry series={len(self.rows)}>"

    def counter(self, spec: Spec) -> Family[Total]:
        assert spec.kind == "counter", spec
        return Family(spec, Total, self)

    def gauge(self, spec: Spec) -> Family[Gauge]:
        assert spec.kind == "gauge", spec
        return Family(spec, Gauge, self)

    def histogram(self, spec: Spec) -> Family[Histogram]:
        assert spec.kind == "histogram", spec
        return Family(spec, Histogram, self)

    def add(self, spec: Spec, labels: tuple[str, ...], child: Series) -> None:
        self.rows.append((spec, labels, child))

    def before_reading(self, refresh: Callable[[], None]) -> None:
        """Call `refresh` before values are read: for gauges that are looked up rather than kept."""
        self._before.append(refresh)

    def refresh(self) -> None:
        for one in self._before:
            one()

    def values(self) -> Iterable[tuple[Spec, tuple[str, ...], float | list[float]]]:
        """Everything as it stands now; for tests and small registries."""
        self.refresh()
        return [(spec, labels, child.read()) for spec, labels, child in self.rows]
