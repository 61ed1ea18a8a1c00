"""What a report concludes from figures: ratios, growth, bars."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import faults, growth, report, soak
from bench.session import Figure

MACHINE = {"date": "2026-11-20", "processor": "one"}


def _figure(place: str, contender: str, *values: float, point: str = "p", unit: str = "µs/call") -> Figure:
    return Figure(place, point, contender, unit, list(values))


def _verdict(figures: list[Figure], name: str) -> str:
    (bar,) = [bar for bar in report.bars(figures) if bar.name == name]
    return bar.verdict


def test_ratios_are_made_round_by_round() -> None:
    above, below = _figure("unary", "yugong", 30, 300, 31), _figure("unary", "nginx", 10, 100, 10)
    assert report.ratio(above, below) == 3.0


@pytest.mark.parametrize(("cost", "verdict"), [(30, "pass"), (31, "**FAIL**")])
def test_the_unary_bar(cost: float, verdict: str) -> None:
    figures = [_figure("unary", "yugong", cost), _figure("unary", "nginx", 10)]
    assert _verdict(figures, "unary against nginx, each as fast as it can") == verdict
    assert _verdict(figures, "unary against the plain relay") == "not measured"


def test_the_worse_of_the_stream_figures_counts() -> None:
    figures = [_figure("streams", name, cost, point=point) for point, own in (("a", 11), ("b", 13))
               for name, cost in (("yugong", own), ("nginx", 10))]  # fmt: skip
    assert _verdict(figures, "streamed event against nginx") == "**FAIL**"


def test_added_latency_is_a_difference() -> None:
    figures = [_figure("latency p99", "yugong", 3.0, 2.9), _figure("latency p99", "nginx", 1.2, 1.0)]
    assert _verdict(figures, "added latency p99 against nginx") == "pass"


def test_bodies_grow_by_the_byte() -> None:
    costs = (("1 kB", 40.0), ("64 kB", 100.0), ("1000 kB", 1_000.0))
    figures = [_figure("bodies up", "yugong", cost, point=point) for point, cost in costs]
    assert _verdict(figures, "growth, bodies up, per byte") == "pass"
    figures[-1].values = [2_500.0]
    assert _verdict(figures, "growth, bodies up, per byte") == "**FAIL**"


@given(st.lists(st.floats(min_value=0.1, max_value=1e6), min_size=1))
def test_growth_is_the_largest_rise(costs: list[float]) -> None:
    pairs = [later / earlier for at, earlier in enumerate(costs) for later in costs[at:]]
    assert growth.worst(costs) == max(pairs)


def test_a_report_says_every_figure_and_bar(tmp_path: Path) -> None:
    figures = [_figure("unary", "yugong", 30.5, 29.5), _figure("unary", "nginx", 10.0, 10.0)]
    made = report.make(figures, MACHINE, ["tls: no certificate"])
    report.write(made, tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| unary against nginx, each as fast as it can | ≤ 3 × | 3.00 × | pass |" in text
    assert "30.00 (29.50–30.50)" in text and "tls: no certificate" in text and "| processor | one |" in text
    assert '"verdict": "pass"' in (tmp_path / "results.json").read_text()


@pytest.mark.parametrize(("rise", "word"), [(0.0, "flat"), (20.0, "GROWS")])
def test_a_soak_tells_growth_from_noise(rise: float, word: str) -> None:
    seconds = [10.0 * at for at in range(180)]
    values = [500.0 if at < 300 else 100 + rise * (at - 300) / 1500 + (at % 20) / 20 for at in seconds]
    course = soak.Course("worker 1", "rss_mb", seconds, values)
    assert course.line(300.0).endswith(word)
    assert course.growth(300.0) == pytest.approx(rise, abs=0.5)


def test_a_kind_of_fault_passes_by_both_figures() -> None:
    verdict = faults.Verdict("503", calls=10_000, served=9_999, attempts=12_500)
    assert verdict.line().endswith("pass")
    verdict.attempts += 1
    assert verdict.line().endswith("FAIL")
    verdict = faults.Verdict("503", calls=10_000, served=9_998, attempts=11_000, others=Counter({"wrong body": 2}))
    assert "FAIL" in verdict.line() and "wrong body" in verdict.line()


def test_calls_of_the_fault_run_differ() -> None:
    assert len(set(faults.bodies("mixed"))) == faults.SHAPES
    assert not any(b'"stream"' in body for body in faults.bodies("unary"))
    assert all(b'"stream"' in body for body in faults.bodies("streams"))
