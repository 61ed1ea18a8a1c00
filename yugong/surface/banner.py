"""What a person reads when Yugong has started.

Decides: the words, and that the one command shown works when pasted. Must not know: how anything was started.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.text import Text

__all__ = ["base_url", "curl_line", "show"]

ANYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - compared with, not bound to
SAMPLE = '{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}'


def base_url(address: str, path: str = "/v1") -> str:
    """What a client on this machine sets as its base URL for a listening address ("host:port" or "unix:path")."""
    if address.startswith("unix:"):
        return f"http://localhost{path}"
    host, _, port = address.rpartition(":")
    return f"http://{ANYWHERE.get(host, host)}:{port}{path}"


def curl_line(address: str, key: str, model: str = "") -> str:
    """A call to paste into a shell."""
    where = ["--unix-socket", address.removeprefix("unix:")] if address.startswith("unix:") else []
    body = SAMPLE.replace("gpt-4o-mini", model) if model else SAMPLE
    words = ["curl", *where, base_url(address, "/v1/chat/completions"), "-H", f"Authorization: Bearer {key}"]
    return shlex.join([*words, "-H", "Content-Type: application/json", "-d", body])


def show(stream: TextIO, title: str, rows: Sequence[tuple[str, str]], call: str) -> None:
    """Write the banner; in colour where a terminal reads it."""
    if not stream.isatty():
        width = max(len(name) for name, _ in rows)
        lines = [title, *(f"  {name:{width}}  {value}" for name, value in rows), "", f"  {call}", ""]
        stream.write("\n".join(lines) + "\n")
        stream.flush()
        return
    console = Console(file=stream, highlight=False, soft_wrap=True)
    width = max(len(name) for name, _ in rows)
    console.print(Text(title, style="bold"))
    for name, value in rows:
        console.print(Text(f"  {name:{width}}  ", style="dim").append(value, style=""))
    # as one line however long, so that it can be copied
    console.print(Text(f"\n  {call}\n", style="cyan"))
