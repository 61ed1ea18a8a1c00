"""What is wrong with a settings file, and where.

Decides: how a problem reads, and that no problem ever shows what may be a secret. Must not know: YAML, the schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

import msgspec

__all__ = ["PROBLEMS_MAX", "Place", "Problem", "Rejected", "closest", "problem_at", "quoted", "redacted"]

# Past this many, one more line helps nobody; it also bounds what a hostile file makes us keep.
PROBLEMS_MAX = 200

_MAYBE_SECRET = re.compile(r"[A-Za-z0-9+/=_-]{20,}|\bsk-[A-Za-z0-9+/=_-]*")
_UNBROKEN = re.compile(r"[A-Za-z0-9+]{20,}")
_MIXED = (re.compile("[a-z]"), re.compile("[A-Z]"), re.compile("[0-9]"))


class Place(msgspec.Struct, frozen=True):
    """Where a value stands: a file with line and column (from 1), or an environment variable (line 0)."""

    file: str
    line: int = 0
    col: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.col}" if self.line else self.file


class Problem(msgspec.Struct, frozen=True, order=True):
    """One thing to mend; `str()` is the line to show: `file:line:col: what — hint`."""

    file: str
    line: int
    col: int
    what: str
    hint: str = ""

    @property
    def place(self) -> Place:
        return Place(self.file, self.line, self.col)

    def __str__(self) -> str:
        return f"{self.place}: {self.what}" + (f" — {self.hint}" if self.hint else "")


class Rejected(Exception):
    """A value that cannot be taken: what is wrong and what would be right. Caught by the walk, never leaves it."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


def problem_at(place: Place, what: str, hint: str = "") -> Problem:
    """The one way to make a problem: whatever got into its text, no credential stays there."""
    return Problem(place.file, place.line, place.col, redacted(what), redacted(hint))


def redacted(text: str) -> str:
    """`text` with everything that may be a credential replaced by `…`."""
    return _MAYBE_SECRET.sub(lambda found: "…" if _is_keylike(found[0]) else found[0], text)


def _is_keylike(run: str) -> bool:
    """Long runs that are no credentials are names: `extra_answer_headers`, `gpt-4o-realtime-preview-2024-12-17`. Those
    are of one case and broken up; keys begin with `sk-`, mix cases and digits, or go on without a break."""
    return run.startswith("sk-") or bool(_UNBROKEN.search(run)) or all(kind.search(run) for kind in _MIXED)


def quoted(text: str) -> str:
    """A short, printable rendering of something from the file, for use in a problem; never a credential."""
    shown = redacted(text)
    shown = shown if len(shown) <= 48 else shown[:47] + "…"
    return "`" + "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown) + "`"


def closest(word: str, known: Iterable[str]) -> str:
    """`did you mean …?` for the nearest of `known`, or nothing."""
    if len(word) > 64:  # get_close_matches is quadratic in the length
        return ""
    names = list(known)
    folded = {name.casefold(): name for name in names}
    found = get_close_matches(word.casefold().replace("-", "_"), folded, n=1, cutoff=0.6)
    return f"did you mean {quoted(folded[found[0]])}?" if found else ""
