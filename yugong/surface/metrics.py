"""Which metrics there are.

Decides: the name, kind, labels, unit and meaning of everything under `yugong_*`, in one table that the documentation is
tested against, and how one finished call is counted. Must not know: how values travel (`reports`) or read
(`exposition`).

The line takes a `Meters` object from the worker and touches its children; it does not import this floor.
"""

from __future__ import annotations

from typing import Protocol

from yugong.surface.meters import Family, Gauge, Histogram, Registry, Spec, Total

__all__ = ["BY_NAME", "METRICS", "FinishedCall", "Meters", "UsedTokens"]

#: Seconds: from a local cache's answer to a long reasoning call; the field's streams start between 0.2 and 20 s.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
#: Seconds an event loop ran late: 1 ms is the bar for added latency, 1 s is an outage.
LAGS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)

_S, _B = "seconds", "bytes"

# name, kind, labels, what it says
METRICS = (
    Spec("yugong_calls_total", "counter", "dialect operation status", "Calls answered, by the status the client got."),
    Spec("yugong_call_duration_seconds", "histogram", "dialect operation", "Whole calls, head to last byte.", unit=_S),
    Spec(
        "yugong_time_to_first_byte_seconds",
        "histogram",
        "dialect operation",
        "From the call's head to the first byte of its answer.",
        unit=_S,
    ),
    Spec("yugong_calls_in_flight", "gauge", "", "Calls being served now."),
    Spec("yugong_streams_open", "gauge", "", "Event streams open to clients now."),
    Spec("yugong_attempts_total", "counter", "org outcome", "Attempts upstream: ok, or the kind of fault."),
    Spec("yugong_faults_total", "counter", "scope kind", "What upstream got wrong, by whom it speaks of."),
    Spec("yugong_retries_total", "counter", "reason", "Attempts after the first one of a call, by reason."),
    Spec("yugong_refusals_total", "counter", "code", "Calls Yugong itself refused, by code."),
    Spec("yugong_broken_streams_total", "counter", "kind", "Answers that broke after their first byte."),
    Spec("yugong_tokens_total", "counter", "model kind", "Tokens upstream reported: input, cached, output, reasoning."),
    Spec("yugong_bytes_total", "counter", "direction", "Bytes of bodies: in from clients, out to clients.", unit=_B),
    Spec("yugong_websocket_frames_total", "counter", "direction", "WebSocket frames relayed: up to upstream, down."),
    Spec("yugong_websockets_open", "gauge", "", "WebSockets relayed now."),
    Spec("yugong_upstream_connections", "gauge", "state", "Connections to upstream: active or idle."),
    Spec("yugong_upstream_dials_total", "counter", "outcome", "Connections opened to upstream, and those that failed."),
    Spec("yugong_pool_orgs", "gauge", "", "Organisations in the pool.", merge="latest"),
    Spec("yugong_pool_keys", "gauge", "state", "Upstream keys by state of health.", merge="latest"),
    Spec(
        "yugong_pool_headroom_ratio",
        "gauge",
        "org dimension",
        "Share of an organisation's limit that is left, 0 to 1.",
        unit="ratio",
        merge="latest",
    ),
    Spec("yugong_pool_waiting", "gauge", "", "Calls waiting for room."),
    Spec("yugong_spool_bytes", "gauge", "", "Bodies spooled to disk now.", unit=_B),
    Spec(
        "yugong_access_log_dropped_total", "counter", "reason", "Access log lines lost: full (behind) or write (disk)."
    ),
    Spec("yugong_access_log_lines_total", "counter", "", "Access log lines written."),
    Spec("yugong_event_loop_lag_seconds", "histogram", "process", "How late a process' event loop ran.", unit=_S),
    Spec("yugong_process_resident_bytes", "gauge", "process", "Resident memory.", unit=_B, merge="max"),
    Spec("yugong_process_open_fds", "gauge", "process", "Open file descriptors.", merge="max"),
    Spec("yugong_process_tasks", "gauge", "process", "Tasks of the event loop.", merge="max"),
    Spec("yugong_process_cpu_seconds_total", "counter", "process", "Processor time, user and system.", unit=_S),
    Spec("yugong_workers", "gauge", "state", "Worker processes: starting, ready or draining.", merge="latest"),
    Spec("yugong_process_starts_total", "counter", "role reason", "Processes started: start, crash, rolling, leave."),
    Spec("yugong_settings_reloads_total", "counter", "outcome", "Settings read again: taken, unchanged or refused."),
    Spec(
        "yugong_settings_loaded_timestamp_seconds",
        "gauge",
        "",
        "When the settings in force were read, seconds since 1970.",
        unit=_S,
        merge="latest",
    ),
    Spec("yugong_build_info", "gauge", "version python", "Always 1; the labels say what runs.", merge="max"),
)

BY_NAME = {spec.name: spec for spec in METRICS}
for _spec in METRICS:
    if _spec.kind == "histogram":
        _spec.bounds = LAGS if "lag" in _spec.name else SECONDS


class UsedTokens(Protocol):
    """What a call used, as its dialect read it (`dialect.Usage`)."""

    @property
    def input(self) -> int: ...

    @property
    def output(self) -> int: ...

    @property
    def cached(self) -> int: ...

    @property
    def reasoning(self) -> int: ...


class FinishedCall(Protocol):
    """What is counted of one call when it has ended. The exchange carries these names."""

    @property
    def dialect_name(self) -> str: ...

    @property
    def operation(self) -> str: ...

    @property
    def status(self) -> int:
        """Of the answer the client got; 499 where it left before one, 0 is not used."""

    @property
    def duration(self) -> float:
        """Seconds from the call's head to its end."""

    @property
    def first_byte(self) -> float | None:
        """Seconds from the call's head to the first byte of the answer; None if none was sent."""

    @property
    def bytes_in(self) -> int: ...

    @property
    def bytes_out(self) -> int: ...

    @property
    def model_label(self) -> str:
        """The model as a bounded label: one the price table or the pool knows, else "other"."""

    @property
    def usage(self) -> UsedTokens | None: ...


class Meters:
    """Every metric of a process that carries calls, ready to be touched.

    Families are named after the metric (`meters.attempts.labels(org, "ok").value += 1`); what has no labels is the
    child itself (`meters.streams_open.value += 1`).
    """

    __slots__ = (
        "_by_call",
        "_by_model",
        "access_log_dropped",
        "attempts",
        "broken_streams",
        "bytes_in",
        "bytes_out",
        "calls",
        "calls_in_flight",
        "dials",
        "duration",
        "faults",
        "first_byte",
        "frames_down",
        "frames_up",
        "pool_headroom",
        "pool_keys",
        "pool_orgs",
        "pool_waiting",
        "refusals",
        "registry",
        "retries",
        "spool_bytes",
        "streams_open",
        "tokens",
        "upstream_active",
        "upstream_idle",
        "websockets_open",
    )

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._by_call: dict[tuple[str, str, int], tuple[Total, Histogram, Histogram]] = {}
        self._by_model: dict[str, tuple[Total, Total, Total, Total]] = {}
        self.calls = self._counter("calls_total")
        self.duration = registry.histogram(BY_NAME["yugong_call_duration_seconds"])
        self.first_byte = registry.histogram(BY_NAME["yugong_time_to_first_byte_seconds"])
        self.attempts = self._counter("attempts_total")
        self.faults = self._counter("faults_total")
        self.retries = self._counter("retries_total")
        self.refusals = self._counter("refusals_total")
        self.broken_streams = self._counter("broken_streams_total")
        self.tokens = self._counter("tokens_total")
        self.dials = self._counter("upstream_dials_total")
        self.access_log_dropped = self._counter("access_log_dropped_total")
        self.bytes_in, self.bytes_out = self._pair("bytes_total", "in", "out")
        self.frames_up, self.frames_down = self._pair("websocket_frames_total", "up", "down")
        self._add_gauges()

    def _add_gauges(self) -> None:
        self.calls_in_flight = self._gauge("calls_in_flight").labels()
        self.streams_open = self._gauge("streams_open").labels()
        self.websockets_open = self._gauge("websockets_open").labels()
        connections = self._gauge("upstream_connections")
        self.upstream_active, self.upstream_idle = connections.labels("active"), connections.labels("idle")
        self.pool_orgs = self._gauge("pool_orgs").labels()
        self.pool_keys = self._gauge("pool_keys")
        self.pool_headroom = self._gauge("pool_headroom_ratio")
        self.pool_waiting = self._gauge("pool_waiting").labels()
        self.spool_bytes = self._gauge("spool_bytes").labels()

    def __repr__(self) -> str:
        return f"<Meters series={len(self.registry.rows)}>"

    def _counter(self, name: str) -> Family[Total]:
        return self.registry.counter(BY_NAME["yugong_" + name])

    def _gauge(self, name: str) -> Family[Gauge]:
        return self.registry.gauge(BY_NAME["yugong_" + name])

    def _pair(self, name: str, one: str, other: str) -> tuple[Total, Total]:
        family = self._counter(name)
        return family.labels(one), family.labels(other)

    def observe(self, call: FinishedCall) -> None:
        """Count one finished call (under 2 µs). Attempts, faults and retries are counted where they happen."""
        key = (call.dialect_name, call.operation, call.status)
        series = self._by_call.get(key)
        if series is None:
            series = self._admit(*key)
        count, duration, first_byte = series
        count.value += 1
        duration.observe(call.duration)
        if call.first_byte is not None:
            first_byte.observe(call.first_byte)
        self.bytes_in.value += call.bytes_in
        self.bytes_out.value += call.bytes_out
        usage = call.usage
        if usage is not None:
            tokens = self._by_model.get(call.model_label) or self._admit_model(call.model_label)
            tokens[0].value += usage.input
            tokens[1].value += usage.cached
            tokens[2].value += usage.output
            tokens[3].value += usage.reasoning

    def _admit(self, dialect: str, operation: str, status: int) -> tuple[Total, Histogram, Histogram]:
        series = (
            self.calls.labels(dialect, operation, str(status)),
            self.duration.labels(dialect, operation),
            self.first_byte.labels(dialect, operation),
        )
        if len(self._by_call) < 10_000:  # a storm of made-up operations fills no memory either
            self._by_call[dialect, operation, status] = series
        return series

    def _admit_model(self, model: str) -> tuple[Total, Total, Total, Total]:
        labels = self.tokens.labels
        series = labels(model, "input"), labels(model, "cached"), labels(model, "output"), labels(model, "reasoning")
        if len(self._by_model) < 1_000:
            self._by_model[model] = series
        return series
