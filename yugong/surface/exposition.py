"""Merged values as text for Prometheus.

Decides: which of the two text formats a scraper gets, and nothing else; names and escaping are prometheus_client's.
Must not know: processes, sockets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from yugong.surface.meters import Spec
from yugong.surface.metrics import METRICS
from yugong.surface.reports import Merged, Value

__all__ = ["expose"]


def expose(merged: Merged, accept: str) -> tuple[str, bytes]:
    """Content type and body for a scraper with this `Accept` header; about 6 µs a sample."""
    encode, content_type = choose_encoder(accept)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(merged))
    return content_type, encode(registry)


class _Collector(Collector):
    def __init__(self, merged: Merged) -> None:
        self._merged = merged

    def collect(self) -> Iterator[Metric]:
        for spec in METRICS:
            rows = self._merged.get(spec.name)
            if rows:
                yield _metric(spec, rows.items())


def _metric(spec: Spec, rows: Iterable[tuple[tuple[str, ...], Value]]) -> Metric:
    # prometheus_client appends `_total` itself and wants the unit as the name's end
    name = spec.name.removesuffix("_total")
    metric = Metric(name, spec.help, spec.kind, spec.unit if name.endswith(spec.unit) else "")
    for labels, value in sorted(rows):
        named = dict(zip(spec.labels, labels, strict=True))
        if isinstance(value, list):
            _add_histogram(metric, spec, named, value)
        else:
            metric.add_sample(spec.name, named, value)
    return metric


def _add_histogram(metric: Metric, spec: Spec, named: dict[str, str], value: list[float]) -> None:
    total, counts, running = value[0], value[1:], 0.0
    for bound, count in zip((*map(str, map(float, spec.bounds)), "+Inf"), counts, strict=True):
        running += count
        metric.add_sample(spec.name + "_bucket", {**named, "le": bound}, running)
    metric.add_sample(spec.name + "_count", named, running)
    metric.add_sample(spec.name + "_sum", named, total)
