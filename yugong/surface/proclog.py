"""What processes say on stderr: a line with time, level, process and words.

Decides: the form of a line and that it stays one line whatever is in it (threat 33). Must not know: what is worth
saying. Access lines are not said here (`accesslog`).
"""

from __future__ import annotations

import sys
import time
import traceback

__all__ = ["LEVELS", "ProcessLog"]

LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3}
LINE_MAX = 4_000  # characters; below PIPE_BUF, so that lines of several processes do not mix


class ProcessLog:
    """The voice of one process. `level` may change while it runs."""

    __slots__ = ("level", "name")

    def __init__(self, name: str, level: str = "info") -> None:
        self.name = name
        self.level = level

    def __repr__(self) -> str:
        return f"<ProcessLog {self.name} {self.level}>"

    def debug(self, text: str) -> None:
        self._say("debug", text)

    def info(self, text: str) -> None:
        self._say("info", text)

    def warning(self, text: str) -> None:
        self._say("warning", text)

    def error(self, text: str) -> None:
        self._say("error", text)

    def exception(self, text: str, error: BaseException) -> None:
        """An error with the place it came from; all of it on one line at level debug."""
        where = traceback.extract_tb(error.__traceback__)[-1:]
        place = f" at {where[0].filename.rpartition('yugong/')[2]}:{where[0].lineno}" if where else ""
        self._say("error", f"{text}: {type(error).__name__}: {error}{place}")
        if self.level == "debug":
            self._say("debug", "".join(traceback.format_exception(error)))

    def _say(self, level: str, text: str) -> None:
        if LEVELS[level] < LEVELS[self.level]:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        line = f"{stamp}.{int(now % 1 * 1000):03d}Z {level:7} {self.name}: {_one_line(text)}\n"
        try:
            sys.stderr.write(line)
            sys.stderr.flush()
        except (OSError, ValueError):
            pass  # nobody listens; there is no other place to say so


def _one_line(text: str) -> str:
    shown = text.replace("\n", " | ").rstrip(" |")
    shown = shown if len(shown) <= LINE_MAX else shown[: LINE_MAX - 1] + "…"
    return shown if shown.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown)
