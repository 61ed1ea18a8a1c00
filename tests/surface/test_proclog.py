"""What processes say on stderr stays on its line."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yugong.surface.proclog import LINE_MAX, ProcessLog, _one_line


def test_a_line_says_when_how_bad_who_and_what(capsys: pytest.CaptureFixture[str]) -> None:
    log = ProcessLog("worker-0")
    log.debug("not this")
    log.info("up")
    log.warning("hm")
    log.error("bad")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines] == [
        "info    worker-0: up",
        "warning worker-0: hm",
        "error   worker-0: bad",
    ]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ", line) for line in lines)


def test_an_exception_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    voice = ProcessLog("worker-0", "debug")
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        voice.exception("went wrong", error)
    first, second = capsys.readouterr().err.splitlines()
    assert re.search(r"went wrong: ValueError: two \| lines at .*test_proclog\.py:\d+$", first)
    assert "Traceback" in second


@given(st.text())
def test_whatever_is_said_is_one_printable_line(text: str) -> None:
    line = _one_line(text)
    assert line.isprintable()


def test_a_flood_is_cut() -> None:
    assert len(_one_line("x" * 100_000)) == LINE_MAX


def test_nobody_listening_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stderr", closed)
    ProcessLog("x").error("lost")
