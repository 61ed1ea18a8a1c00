"""What a person reads when Yugong has started."""

import io
import shlex

import pytest

from yugong.surface.banner import base_url, curl_line, show


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080/v1"),
        ("0.0.0.0:80", "http://127.0.0.1:80/v1"),
        ("[::]:8080", "http://[::1]:8080/v1"),
        ("unix:/run/y.sock", "http://localhost/v1"),
    ],
)
def test_the_base_url_is_one_that_works_here(address: str, url: str) -> None:
    assert base_url(address) == url


def test_the_call_survives_a_shell() -> None:
    words = shlex.split(curl_line("127.0.0.1:8080", "sk-x"))
    assert words[:2] == ["curl", "http://127.0.0.1:8080/v1/chat/completions"]
    assert "Authorization: Bearer sk-x" in words
    assert words[-1].startswith('{"model": ')
    assert "--unix-socket" in shlex.split(curl_line("unix:/run/y.sock", "sk-x"))


def test_the_call_is_on_one_line_and_the_rows_line_up() -> None:
    stream = io.StringIO()
    show(stream, "Ready.", [("A", "1"), ("Long name", "2")], "curl " + "x" * 500)
    lines = stream.getvalue().splitlines()
    assert lines[:3] == ["Ready.", "  A          1", "  Long name  2"]
    assert "  curl " + "x" * 500 in lines


def test_a_terminal_gets_the_same_words() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    show(stream, "Ready.", [("A", "[bold]1[/bold]")], "curl " + "x" * 500)
    assert "x" * 500 in stream.getvalue()
    assert "[bold]1[/bold]" in stream.getvalue()
