"""Exit codes.

Decides: which number stands for what; they do not change between versions. Must not know: anything else.
"""

from __future__ import annotations

import enum

__all__ = ["MEANINGS", "Exit", "StartError"]


class Exit(enum.IntEnum):
    """Exit codes; they do not change between versions."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    SETTINGS = 3
    ADDRESS = 4
    DATA = 5


#: What each code means, for --help.
MEANINGS = {
    Exit.OK: "all went well",
    Exit.FAILURE: "something failed; stderr says what",
    Exit.USAGE: "the command line is wrong",
    Exit.SETTINGS: "the settings, or something they point to, are wrong; stderr lists everything",
    Exit.ADDRESS: "an address cannot be listened on",
    Exit.DATA: "the data directory cannot be used",
}


class StartError(Exception):
    """Why nothing was started; each line says one thing, and how to mend it."""

    def __init__(self, code: Exit, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.code = code
