"""Patterns in which `*` stands for anything, and nothing else is special.

Decides: whether a name matches. Must not know: what is named.

Not a regular expression: `*a*a*a*a` against a long hostile name must stay linear, and a model's name may hold `[`, `?`
or `+`.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Globs"]


class Globs:
    """A set of patterns, made once, asked often. Matching is case-sensitive and linear in the name's length."""

    __slots__ = ("_exact", "_has_all", "_pieces", "patterns")

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(patterns)
        self._has_all = "*" in self.patterns
        self._exact = frozenset(one for one in self.patterns if "*" not in one)
        self._pieces = [one.split("*") for one in self.patterns if "*" in one]

    def __repr__(self) -> str:
        return f"<Globs {' '.join(self.patterns[:4])}{' …' if len(self.patterns) > 4 else ''}>"

    def matches(self, name: str) -> bool:
        """Whether any pattern matches the whole of `name`."""
        if self._has_all or name in self._exact:
            return True
        return any(_is_match(pieces, name) for pieces in self._pieces)


def _is_match(pieces: list[str], name: str) -> bool:
    """Each middle piece at its leftmost place after the one before: with `*` alone, no other is ever better."""
    first, *middle, last = pieces
    if not name.startswith(first):
        return False
    at = len(first)
    for piece in middle:
        found = name.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return len(name) - len(last) >= at and name.endswith(last)
