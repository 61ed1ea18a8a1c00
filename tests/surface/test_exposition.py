"""Merged values as text, read back with Prometheus' own parsers."""

import gzip
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from yugong.surface.exposition import expose
from yugong.surface.meters import Registry
from yugong.surface.metrics import BY_NAME, METRICS
from yugong.surface.reports import Books, Reporter

OPEN = "application/openmetrics-text; version=1.0.0"


def merged_of(registry: Registry) -> Any:
    books = Books()
    books.open("p")
    for report in Reporter(registry).round():
        books.take("p", report)
    return books.merged()


def everything() -> Registry:
    """One series of every metric there is."""
    registry = Registry()
    make = {"counter": registry.counter, "gauge": registry.gauge, "histogram": registry.histogram}
    for spec in METRICS:
        child = make[spec.kind](spec).labels(*("x" for _ in spec.labels))
        if spec.kind == "histogram":
            child.observe(spec.bounds[2])
        else:
            child.value = 3
    return registry


@pytest.mark.parametrize(("accept", "parse"), [("", parse_plain), (OPEN, parse_open)])
def test_every_metric_can_be_read_back(accept: str, parse: Any) -> None:
    _, body = expose(merged_of(everything()), accept)
    families = {family.name: family for family in parse(body.decode())}
    for spec in METRICS:
        family = families[spec.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (spec.kind, spec.help)
        if spec.kind == "histogram":
            counts = [sample.value for sample in family.samples if sample.name.endswith("_bucket")]
            assert counts == [0, 0] + [1] * (len(spec.bounds) - 1)
        else:
            assert [sample.value for sample in family.samples if sample.name == spec.name] == [3]


def test_the_format_is_the_scrapers_choice() -> None:
    merged = merged_of(everything())
    assert expose(merged, "")[0].startswith("text/plain")
    assert expose(merged, OPEN)[0].startswith("application/openmetrics-text")


@given(st.text(max_size=40))
def test_no_label_value_breaks_out(value: str) -> None:
    """Threat 35: quotes, line ends and backslashes of a client's model name stay within their quotes."""
    registry = Registry()
    registry.counter(BY_NAME["yugong_tokens_total"]).labels(value, "input").value = 1
    try:
        value.encode()
    except UnicodeEncodeError:
        return
    _, body = expose(merged_of(registry), "")
    (family,) = parse_plain(body.decode())
    assert [sample.labels["model"] for sample in family.samples] == [value]


def test_a_thousand_orgs_stay_below_three_megabytes() -> None:
    registry = Registry()
    attempts = registry.counter(BY_NAME["yugong_attempts_total"])
    headroom = registry.gauge(BY_NAME["yugong_pool_headroom_ratio"])
    for org in range(1000):
        for outcome in ("ok", "rate_limited", "server_error"):
            attempts.labels(f"org-{org}", outcome).value = 1
        for dimension in ("requests", "tokens"):
            headroom.labels(f"org-{org}", dimension).value = 0.5
    _, body = expose(merged_of(registry), "")
    assert len(body) < 3_000_000
    assert len(gzip.compress(body)) < 300_000
