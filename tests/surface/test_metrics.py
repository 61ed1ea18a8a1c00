"""Which metrics there are, and how one call is counted."""

import re
import timeit
from types import SimpleNamespace
from typing import Any

import pytest

from yugong.surface.meters import OTHER, Registry
from yugong.surface.metrics import BY_NAME, METRICS, Meters

KINDS = {"counter", "gauge", "histogram"}


@pytest.mark.parametrize("spec", METRICS, ids=lambda spec: spec.name)
def test_every_metric_keeps_to_the_naming_rules(spec: Any) -> None:
    """https://prometheus.io/docs/practices/naming/"""
    assert re.fullmatch(r"yugong_[a-z_]+", spec.name)
    assert spec.kind in KINDS
    assert spec.help.endswith(".")
    assert spec.merge in ("sum", "max", "latest")
    assert spec.name.endswith("_total") == (spec.kind == "counter")
    assert (spec.kind == "histogram") == bool(spec.bounds)
    assert list(spec.bounds) == sorted(set(spec.bounds))
    assert spec.unit in ("", "seconds", "bytes", "ratio")
    assert not spec.unit or spec.unit in spec.name


def test_no_name_stands_twice() -> None:
    assert len(BY_NAME) == len(METRICS)


def call(**changes: Any) -> Any:
    usage = SimpleNamespace(input=10, cached=4, output=20, reasoning=5)
    fields = {
        "dialect_name": "openai",
        "operation": "chat.completions",
        "status": 200,
        "duration": 0.3,
        "first_byte": 0.1,
        "bytes_in": 1000,
        "bytes_out": 700,
        "model_label": "gpt-4o",
        "usage": usage,
    }
    return SimpleNamespace(**{**fields, **changes})


def read(meters: Meters) -> dict[tuple[str, ...], Any]:
    return {(spec.name, *labels): value for spec, labels, value in meters.registry.values()}


def test_a_call_is_counted_whole() -> None:
    meters = Meters(Registry())
    meters.observe(call())
    meters.observe(call(status=502, first_byte=None, usage=None))
    values = read(meters)
    assert values["yugong_calls_total", "openai", "chat.completions", "200"] == 1
    assert values["yugong_calls_total", "openai", "chat.completions", "502"] == 1
    assert values["yugong_call_duration_seconds", "openai", "chat.completions"][0] == pytest.approx(0.6)
    assert sum(values["yugong_time_to_first_byte_seconds", "openai", "chat.completions"][1:]) == 1
    assert values["yugong_bytes_total", "in"] == 2000
    assert values["yugong_bytes_total", "out"] == 1400
    kinds = {"input": 10, "cached": 4, "output": 20, "reasoning": 5}
    assert {kind: values["yugong_tokens_total", "gpt-4o", kind] for kind in kinds} == kinds


def test_a_hundred_thousand_models_leave_the_number_of_series_flat() -> None:
    meters = Meters(Registry())
    for number in range(100_000):
        meters.observe(call(model_label=f"m{number}", operation=f"o{number % 1000}"))
    models = {labels[0] for spec, labels, _ in meters.registry.values() if spec.name == "yugong_tokens_total"}
    assert len(models) == 201
    assert OTHER in models
    assert len(meters.registry.rows) < 2_000
    assert len(meters._by_model) <= 1_000
    tokens = [value for key, value in read(meters).items() if key[0] == "yugong_tokens_total" and key[2] == "output"]
    assert sum(tokens) == 100_000 * 20


def test_counting_a_call_takes_two_microseconds() -> None:
    """Ten times that is allowed here."""
    meters, one = Meters(Registry()), call()

    def observe() -> None:
        for _ in range(5_000):
            meters.observe(one)

    assert min(timeit.repeat(observe, number=1, repeat=5)) / 5_000 < 20e-6


def test_repr_is_one_line() -> None:
    assert repr(Meters(Registry())).startswith("<Meters series=")
